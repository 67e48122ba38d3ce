"""Train a small model on a synthetic language whose truth is known, in memory: ground truth for what detectors should find.

Batches are drawn in chunks from (seed, chunk number), so the model depends on its arguments alone. Loss is mean next-token
cross-entropy in nats; AdamW, a short linear warm-up, then a cosine to 0.
"""

import math
from typing import Any

import torch

from circuits.data.languages import MixedLanguage
from circuits.dynamics.determinism import deterministic
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.progress import bar
from circuits.results import check_whole

CHUNK = 64
"""Steps whose batches are written together, which is many times faster than one by one."""
WARMUP = 100


def language_model(language: MixedLanguage, **changes: Any) -> HookedTransformerConfig:
    """A two-layer attention-only model that learns such a language in minutes, with fields changed by keyword."""
    fields = {
        "n_layers": 2,
        "d_model": 64,
        "n_heads": 4,
        "d_head": 16,
        "n_ctx": 64,
        "d_vocab": language.d_vocab,
        "attn_only": True,
        "normalization_type": "LN",
        "positional_embedding_type": "shortformer",
        "positional_init": "sinusoidal",
        "seed": 0,
    }
    return HookedTransformerConfig.parse(fields | changes, origin="model of a language")


def train_on_language(
    language: MixedLanguage,
    model_cfg: HookedTransformerConfig | None = None,
    *,
    steps: int = 2500,
    batch: int = 32,
    lr: float = 1e-2,
    seed: int = 0,
    threads: int = 2,
    progress: bool | None = None,
) -> HookedTransformer:
    """Train a new model on fresh text of a language; the same bytes for the same arguments on one machine.

    Args:
        language: what to learn. model_cfg: default ``language_model(language)``; its seed draws the first weights.
        steps, batch: of ``batch`` sequences of ``n_ctx`` tokens, none read twice.
        lr: the highest learning rate. seed: of the text. threads: of torch. progress: as of ``circuits.progress.bar``.

    Returns:
        the model, in ``eval()`` mode.

    Raises:
        ValueError: the model has another vocabulary, numbers make no sense, or the loss is no longer finite.
    """
    cfg = language_model(language) if model_cfg is None else model_cfg
    if cfg.d_vocab != language.d_vocab:
        raise ValueError(f"the model reads {cfg.d_vocab} ids and the language has {language.d_vocab}: make d_vocab the same")
    for name, value, least in (("steps", steps, 1), ("batch", batch, 1), ("seed", seed, 0), ("threads", threads, 1)):
        check_whole(name, value, least)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: need a positive learning rate, e.g. 1e-2")
    model = HookedTransformer(cfg).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    with deterministic(threads), bar(total=steps, label="language", on=progress, unit="step") as shown:
        for step in range(steps):
            if step % CHUNK == 0:
                size = min(CHUNK, steps - step) * batch
                batches = language.sample(size, length=cfg.n_ctx, seed=[seed, step]).tokens.split(batch)
            loss = model(batches[step % CHUNK], return_type="loss")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % CHUNK == 0 and not math.isfinite(now := float(loss.detach())):
                raise ValueError(f"the loss is {now} at step {step}: train with a smaller lr than {lr}")
            shown.update(1)
    return model.eval()
