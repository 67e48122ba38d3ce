"""Train a small HookedTransformer, keep its checkpoints, resume after a kill to the same bytes.

Everything a step depends on is its number, the seed and the state saved with it: batches are drawn from the step number
(``data/mixture.py``), the model uses no randomness, and weights, optimiser moments and losses are saved together.
Loss is mean next-token cross-entropy in nats.
"""

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuits.data.corpora import Corpus, hf_dataset, stdlib_code, stdlib_prose, text_file
from circuits.data.languages import BRACKETS, dyck
from circuits.data.mixture import training_batch
from circuits.data.streams import sample_blocks
from circuits.data.tokenizer import encode_stream, train_bpe
from circuits.data.tokens import random_ids, shuffle_tokens, windows
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.presets import TrainConfig
from circuits.files import read_json, read_tokenizer, write_json, write_whole
from circuits.models.checkpoints import save_weights, step_file
from circuits.models.hooked import HookedTransformer
from circuits.progress import bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EVALUATION_EXAMPLES = 128

CORPUS_TOKENS = {"train": 600_000, "held_out": 200_000}
"""At most so many tokens of each corpus kind's two parts go with a run: text for statistics, not to train on."""


@dataclass(frozen=True)
class TrainingData:
    """A token stream to train on, what it is, and the evaluation tokens and corpus streams that go with the run."""

    stream: np.ndarray
    tokenizer: "Tokenizer"
    identity: list[dict[str, Any]]
    evaluation: dict[str, torch.Tensor]
    corpus: dict[str, torch.Tensor]

    @property
    def counts(self) -> np.ndarray:
        return np.bincount(self.stream, minlength=self.tokenizer.get_vocab_size())


def corpora_of(data: str) -> list[Corpus]:
    """The corpora a data name stands for.

    Raises:
        ValueError: the name is empty or of no known form.
    """
    if data == "stdlib":
        return [stdlib_code(), stdlib_prose()]
    if data.startswith("file:"):
        return [text_file(data.removeprefix("file:"))]
    if data.startswith("hf:"):
        return [hf_dataset(data.removeprefix("hf:"))]
    raise ValueError(f"the training data is {data!r}; name it with --data stdlib, --data file:PATH or --data hf:NAME")


def prepare(config: TrainConfig, out: Path) -> TrainingData:
    """Read the corpora, train (or reload) the tokenizer, write it into the run."""
    corpora = corpora_of(config.data)
    train, held_out = [c.split("train") for c in corpora], [c.split("held_out") for c in corpora]
    path = out / "tokenizer.json"
    if not path.exists():
        built = train_bpe((d for c in train for d in c.documents), vocab_size=config.model.d_vocab)
        write_whole(path, lambda aside: built.save(str(aside)))
    tokenizer = read_tokenizer(path)
    if tokenizer.get_vocab_size() > config.model.d_vocab:
        raise ValueError(
            f"{path} has {tokenizer.get_vocab_size()} ids and the model {config.model.d_vocab}: train into an empty folder"
        )
    streams, unseen = encode_kinds(tokenizer, train), encode_kinds(tokenizer, held_out)
    stream = np.concatenate([*streams.values()])
    evaluation = evaluation_tokens(tokenizer, unseen, n_ctx=config.model.n_ctx)
    evaluation["token_counts"] = torch.from_numpy(np.bincount(stream, minlength=config.model.d_vocab).astype(np.int32))
    return TrainingData(stream, tokenizer, [c.identity for c in corpora], evaluation, corpus_tokens(streams, unseen))


def encode_kinds(tokenizer: "Tokenizer", corpora: list[Corpus]) -> dict[str, np.ndarray]:
    """Each corpus as one stream of ids, by kind, in the given order."""
    return {corpus.kind: encode_stream(tokenizer, corpus.documents) for corpus in corpora}


def corpus_tokens(train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The text that goes with a run for n-gram statistics: flat token streams without BOS, uint16 where ids fit, else int32.

    Args:
        train, held_out: the streams of each corpus kind, as ``encode_kinds`` gives them.

    Returns:
        ``<kind>_train``, at most 600,000 tokens, and ``<kind>`` (held out), at most 200,000; longer streams are sampled in evenly
        spaced blocks, so cut them by ``circuits.data.streams.split_blocks`` before counting.
    """
    parts = {f"{kind}_train": sample_blocks(stream, CORPUS_TOKENS["train"]) for kind, stream in train.items()}
    parts |= {kind: sample_blocks(stream, CORPUS_TOKENS["held_out"]) for kind, stream in held_out.items()}
    return {
        name: torch.from_numpy(stream.astype(np.uint16 if stream.max(initial=0) < 2**16 else np.int32))
        for name, stream in parts.items()
    }


def evaluation_tokens(tokenizer: "Tokenizer", held_out: Mapping[str, np.ndarray], *, n_ctx: int) -> dict[str, torch.Tensor]:
    """Held-out windows of every kind, the first kind shuffled, and bracket strings; int32 ``[example, pos]``."""
    found = {}
    for kind, stream in held_out.items():
        if len(stream) >= n_ctx - 1:
            found[kind] = windows(stream, n_ctx=n_ctx, examples=EVALUATION_EXAMPLES, seed=0)
    if found:
        first = next(iter(found))
        found[f"shuffled_{first}"] = shuffle_tokens(found[first])

    def single(bracket: str) -> int:
        return tokenizer.encode(bracket, add_special_tokens=False).ids[0]

    pairs = [(single(opening), single(closing)) for opening, closing in BRACKETS]
    found["brackets"] = dyck(pairs, length=(n_ctx - 1) // 2 * 2, examples=EVALUATION_EXAMPLES).tokens
    return {kind: tokens.to(torch.int32) for kind, tokens in found.items()}


def learning_rate(config: TrainConfig, step: int) -> float:
    return config.lr * min(1.0, (step + 1) / config.warmup) if config.warmup else config.lr


def train(config: TrainConfig, out: str | Path, *, progress: bool | None = None) -> Path:
    """Train, or go on with a run that was stopped, until ``config.steps``.

    Writes into ``out``: ``config.json``, ``meta.json``, ``tokenizer.json``, ``evaluation.safetensors``, ``corpus.safetensors``,
    ``losses.csv`` and ``checkpoints/step_*.safetensors``; while unfinished also ``state.pt`` to resume from. A finished run is
    left alone. Stopping it at any moment loses at most ``save_every`` steps of work, and the resumed run writes the same bytes
    as an unbroken one on the same machine and thread count.

    Raises:
        ValueError: ``out`` holds a run of another configuration or on other data; the loss is no longer finite.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config is a {type(config).__name__}, need a TrainConfig: circuits.preset('stdlib-2l')")
    out = Path(out)
    known = read_json(out / "train.json", what="the run's training configuration") if (out / "train.json").exists() else None
    if known is not None and known != config.model_dump(mode="json"):
        raise ValueError(
            f"{out} holds a run of another configuration; give an empty folder, or the same options to go on with it"
        )
    if step_file(out, config.steps).exists() and not (out / "state.pt").exists():
        return out
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda' and torch sees no GPU: use device='auto' or 'cpu'")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device)
    data = prepare(config, out)
    if (out / "meta.json").exists() and read_json(out / "meta.json", what="the run's description")["data"] != data.identity:
        raise ValueError(
            f"{out} was begun on other text than this Python's ({data.identity}); go on where it began, or in an empty folder"
        )
    for leftover in out.rglob(".*.partial"):  # what a killed run was writing
        leftover.unlink()
    write_json(out / "train.json", config.model_dump(mode="json"))
    write_json(out / "config.json", config.model.model_dump(mode="json"))
    save_weights(out / "evaluation.safetensors", data.evaluation)
    save_weights(out / "corpus.safetensors", data.corpus)
    write_json(out / "meta.json", describe_run(config, data))
    with deterministic(config.threads):
        _loop(config, data, out, device, progress)
    return out


def describe_run(config: TrainConfig, data: TrainingData) -> dict[str, Any]:
    """What a reader must know of a run: recipe, data identity, versions."""
    from importlib.metadata import version

    return {
        "name": config.name,
        "tokens_per_step": config.batch * config.model.n_ctx,
        "seed": config.seed,
        "train": config.model_dump(mode="json", exclude={"model"}),
        "data": data.identity,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "transformer_lens": version("transformer-lens"),
        },
    }


def _loop(config: TrainConfig, data: TrainingData, out: Path, device: torch.device, progress: bool | None) -> None:
    model = HookedTransformer(config.model).to(device).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=True
    )
    step, losses = _resume(out / "state.pt", model, optimiser)
    keep = set(config.checkpoint_steps())
    ids = random_ids(data.counts, trim=0.0)
    per_step = config.batch * config.model.n_ctx
    with bar(
        total=config.steps * per_step, initial=step * per_step, label=config.name, on=progress, unit="tok", unit_scale=True
    ) as shown:
        while True:
            if step in keep:
                save_weights(step_file(out, step), model.state_dict(), step=step)
            if step == config.steps:
                _save_losses(out / "losses.csv", losses)
                (out / "state.pt").unlink(missing_ok=True)
                return
            if step % config.save_every == 0:
                _save_losses(out / "losses.csv", losses)
                _save_state(out / "state.pt", model, optimiser, step, losses)
            batch = training_batch(
                data.stream,
                step=step,
                seed=config.seed,
                batch=config.batch,
                n_ctx=config.model.n_ctx,
                repeats=config.repeats,
                ids=ids,
            )
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, step)
            loss = model(batch.to(device), return_type="loss")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if config.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimiser.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"the loss is {losses[-1]} at step {step}: the run diverged; train with a smaller lr than {config.lr}"
                )
            step += 1
            shown.update(per_step)
            shown.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)


def _save_state(path: Path, model: HookedTransformer, optimiser: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "losses": torch.tensor(losses, dtype=torch.float64),
    }
    write_whole(path, lambda aside: torch.save(state, aside))


def _save_losses(path: Path, losses: list[float]) -> None:
    text = "step,loss\n" + "".join(f"{i},{loss!r}\n" for i, loss in enumerate(losses))
    write_whole(path, lambda aside: aside.write_text(text))


def _resume(path: Path, model: HookedTransformer, optimiser: torch.optim.Optimizer) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); delete it to begin again") from error
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), [float(x) for x in state["losses"]]
