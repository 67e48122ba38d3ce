"""Which heads copy what they attend to, which suppress it, and which carry out induction: attention and its effect on logits.

Four scores from -1 to 1, made of the direct effect ``L_k`` of each source ``k`` on centred logits (``detectors.direct_logits``;
the final norm is folded and frozen, and its scale cancels). They are ratios: of a head that hardly writes they say what kind of
little it does, so read them beside its effect on the loss.

    copying           on 25 different random tokens: of what the head raises in the sample, the share that falls on what it
                      attends to, ``4 a / (a + S) - 1`` (``copying_ratio``). Chance is ``4 / 26 - 1 = -.85``, not 0.
    anti_copying      the same of what it lowers; same chance.
    ov_induction      on repeats at many lags (those of ``detectors.attention``): over queries whose token occurred before,
                      ``mean_i sum_k A[i, k] s_k`` on the keys ``k`` that followed it then, ``s_k = L_k[x_k] / max_t |L_k[t]|``.
                      1: attends nowhere else and raises those tokens most; negative: anti-induction. In size at most the
                      induction score. Chance 0.
    copy_suppression  over queries at which the model, if it stopped before this layer, would predict an earlier token of the
                      context (one of its 10 likeliest by the logit lens): ``-mean_i sum_k A[i, k] s_k`` on those keys. 1:
                      attends nowhere else and lowers those tokens most; negative: copies what is predicted. Chance 0.

Readings. Olsson et al. state their ratio in words: the raise of the attended token to that of all tokens in the sample, from 0 to
1/2, scaled to -1..1. Here raises are taken source by source and weighed by attention (direct logit attribution), so that a head
which attends broadly and copies all it sees scores 1; of its mixed output such a head scores near chance (the planted one -.62).
They put no BOS in front (a mistake, says their footnote 31); here one stands there, as in training, and is no source;
``bos=False`` is theirs. McDougall et al. 2023 speak of copy suppression where the source is in the model's top 10 predictions at
the head's input, in the head's top 2 attended, and among the 10 most suppressed, at the completions the head affects most; here
the first is kept (``predicted``), attention and share stand for the others, and every such query counts. Random tokens seldom
hold what a model predicts: pass text as ``tokens`` to measure suppression there.

``chance`` is the score where attention does not know what values do. The null is heads of the same layer of untrained models of
the same shape: it answers "more than an untrained head?", not "more than an unrelated trained head?".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.tokens import check_ids
from circuits.detectors.attention import battery
from circuits.detectors.direct_logits import (
    Readout,
    copying_ratio,
    own_shares,
    predicted_mask,
    sample_effects,
    share_through,
)
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.models.own import own
from circuits.models.patterns import check_pattern, induction_mask
from circuits.models.protocol import (
    check_finite,
    check_model,
    check_tokens,
    device_of,
    model_hash,
    pattern_name,
    resid_pre_name,
    undisturbed,
    value_name,
)
from circuits.models.random_init import random_twins
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

DETECTORS = ("copying", "anti_copying", "ov_induction", "copy_suppression")
SAMPLE = 25
"""Random tokens that copying is measured on; fewer in a context that is shorter."""
BATCH = 16


@dataclass(frozen=True)
class CopyingScores:
    """Copying, anti-copying, OV-supported induction and copy suppression of every head: ``Dataset(layer, head, detector)``.

    Args:
        examples: sequences per token set. groups: number of (period, gap) pairs behind ``ov_induction``.
        seed: of the random tokens. ids: ids to draw them from (default: all but 0).
        tokens: what ``copy_suppression`` is measured on, ``[example, pos]`` with BOS first (default: those repeats).
        bos: whether BOS stands before the sample of ``copying`` and ``anti_copying``.
        predicted: how many of the likeliest tokens count as predicted.
        null_seeds: untrained models behind the null; 0 leaves it out (NaN).
    """

    examples: int = 16
    groups: int = 8
    seed: int = 0
    ids: Sequence[int] | np.ndarray | Tensor | None = None
    tokens: Tensor | None = field(default=None, compare=False)
    bos: bool = True
    predicted: int = 10
    null_seeds: int = 4
    name: str = field(default="copying_scores", init=False)
    version: int = field(default=1, init=False)
    _text: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        for option, least in (("examples", 2), ("groups", 2), ("seed", 0), ("predicted", 1), ("null_seeds", 0)):
            check_whole(option, getattr(self, option), least)
        if not isinstance(self.bos, bool):
            raise ValueError(f"bos={self.bos!r}: need True or False")
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(check_ids(self.ids).tolist()))
        if self.tokens is not None:
            check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=3, needed_by="copy suppression")
            object.__setattr__(self, "_text", array_hash(self.tokens.cpu()))

    def spec(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "groups": self.groups,
            "seed": self.seed,
            "ids": None if self.ids is None else array_hash(np.asarray(self.ids)),
            "tokens": self._text or None,
            "bos": self.bos,
            "predicted": self.predicted,
            "null_seeds": self.null_seeds,
        }

    def tokens_for(self, n_ctx: int, d_vocab: int) -> dict[str, Int[Tensor, "_ _"]]:
        """The token sets, each ``[example, pos]``: ``sample``, ``repeats`` and, where text was given, ``text``.

        Raises:
            ValueError: ids outside the vocabulary, or a context or a list of ids that is too short.
        """
        ids = np.arange(1, d_vocab) if self.ids is None else np.asarray(self.ids)
        if len(ids) and ids.max() >= d_vocab:
            raise ValueError(
                f"ids run from {ids.min()} to {ids.max()}, the vocabulary is 0..{d_vocab - 1}: pass ids of this model"
            )
        repeats = battery(ids, n_ctx=n_ctx, examples=self.examples, groups=self.groups, seed=self.seed).lags
        rng = np.random.default_rng([self.seed, 40])
        n = min(SAMPLE, n_ctx - self.bos)
        sample = torch.from_numpy(np.stack([rng.permutation(ids)[:n] for _ in range(self.examples)]))
        if self.bos:
            sample = torch.nn.functional.pad(sample, (1, 0))
        sets = {"sample": sample.long(), "repeats": repeats}
        return sets if self.tokens is None else sets | {"text": self.tokens.long()}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head, detector``: ``value`` in [-1, 1], ``stderr`` over examples, ``chance``,
            ``null_mean``, ``null_sd``, ``z``, and ``rows [layer, detector]``, the queries behind a score. Without any (no
            earlier token is ever predicted) a score is NaN; examples without any are left out of its mean.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, a model that cannot be represented or predicts other tokens
                than it reads, a context or vocabulary too small, foreign tokens.
        """
        check_model(model)
        check_finite(model)
        cfg = model.cfg
        if self.tokens is not None:
            check_tokens(self.tokens, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, needed_by="copy suppression")
        if self.null_seeds * cfg.n_heads == 1:
            raise ValueError("one head of one untrained model has no spread: use null_seeds=2 or more, or 0 for no null")
        sets = self.tokens_for(cfg.n_ctx, cfg.d_vocab)
        ours = own(model)
        samples, rows = copying_scores(ours, sets, bos=self.bos, predicted=self.predicted)
        value, stderr = (np.stack(x, -1) for x in zip(*(_over_examples(samples[d]) for d in DETECTORS), strict=True))
        null_mean, null_sd = (np.nan, np.nan) if self.null_seeds == 0 else _null(self, ours.cfg, device_of(ours))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (value - null_mean) / null_sd
        dims = ("layer", "head", "detector")
        ratio = 4 / (sets["sample"].shape[1] - self.bos + 1) - 1
        return labelled(
            {
                "value": (dims, value),
                "stderr": (dims, stderr),
                "chance": (dims[2:], [ratio, ratio, 0.0, 0.0]),
                "null_mean": (dims, np.broadcast_to(null_mean, value.shape)),
                "null_sd": (dims, np.broadcast_to(null_sd, value.shape)),
                "z": (dims, z),
                "rows": (("layer", "detector"), np.stack([rows[d] for d in DETECTORS], -1)),
            },
            {"layer": np.arange(cfg.n_layers), "head": np.arange(cfg.n_heads), "detector": list(DETECTORS)},
            measure=self,
            definition="direct effects on centred logits, source by source and weighed by attention (circuits.detectors.copying)",
            source="Olsson et al. 2022 (copying); McDougall et al. 2023 (copy suppression); readings ours",
            model_hash=model_hash(model),
            data_hash=array_hash(*(t.cpu() for t in sets.values())),
            seed=self.seed,
            n_examples=self.examples,
            null="heads of the same layer in untrained models of the same shape",
        )


def copying_scores(
    model: HookedTransformer, sets: dict[str, Int[Tensor, "_ _"]], *, bos: bool = True, predicted: int = 10
) -> tuple[dict[str, Float[Tensor, "_ layer head"]], dict[str, np.ndarray]]:
    """Per-example scores of every head, holding streams, values and patterns of one layer at a time; and the queries behind them.

    Returns:
        Scores ``[example, layer, head]`` and numbers of queries ``[layer]``, by detector.
    """
    layers = range(model.cfg.n_layers)
    found: dict[str, list[list[Tensor]]] = {detector: [[] for _ in layers] for detector in DETECTORS}
    rows = {detector: np.zeros(len(layers), dtype=np.int64) for detector in DETECTORS}
    with undisturbed(model):
        readout = Readout.of(model)
        held: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            held[hook.name] = value

        for which, tokens in sets.items():
            text = which == "text" or (which == "repeats" and "text" not in sets)
            for part in tokens.to(device_of(model)).split(BATCH):

                def score(pattern: Tensor, hook: Any, which: str = which, text: bool = text, part: Tensor = part) -> None:
                    check_pattern(pattern, where=hook.name)
                    layer = hook.layer()
                    resid, v = held.pop(resid_pre_name(layer)), held.pop(value_name(layer))
                    W_O = model.blocks[layer].attn.W_O
                    if which == "sample":
                        scores = _of_sample(pattern, v, W_O, readout, part, int(bos))
                    else:
                        masks = {"ov_induction": induction_mask(part)} if which == "repeats" else {}
                        if text:
                            masks["copy_suppression"] = predicted_mask(resid, readout, part, predicted)
                        scores = _of_targets(pattern, v, W_O, readout, part, masks)
                    for name, (value, count) in scores.items():
                        found[name][layer].append(value.cpu())
                        rows[name][layer] += count

                hooks = [(name(layer), keep) for name in (resid_pre_name, value_name) for layer in layers]
                hooks += [(pattern_name(layer), score) for layer in layers]
                with model.hooks(fwd_hooks=hooks):
                    model(part, return_type=None)
    return {d: torch.stack([torch.cat(parts) for parts in found[d]], dim=1) for d in DETECTORS}, rows


def _of_sample(
    pattern: Tensor, v: Tensor, W_O: Tensor, readout: Readout, tokens: Tensor, first: int
) -> dict[str, tuple[Tensor, int]]:
    """Copying and anti-copying of one layer on tokens from position ``first`` on, and their queries."""
    at = slice(first, None)
    effects = sample_effects(v[:, at], W_O, readout.W, tokens[:, at])
    signed = {"copying": effects, "anti_copying": -effects}
    return {name: (copying_ratio(pattern[:, :, at, at], x), tokens[:, at].numel()) for name, x in signed.items()}


def _of_targets(
    pattern: Tensor, v: Tensor, W_O: Tensor, readout: Readout, tokens: Tensor, masks: dict[str, Tensor]
) -> dict[str, tuple[Tensor, int]]:
    """Attention times share on each mask's keys, of one layer, and the queries that have any; shares of these keys alone."""
    needed = torch.stack([mask.any(1) for mask in masks.values()]).any(0)  # [example, key]
    shares = v.new_zeros(v.shape[:3])
    shares[needed] = own_shares(v[needed], W_O, readout.W, tokens[needed])
    signed = {name: -shares if name == "copy_suppression" else shares for name in masks}
    return {name: (share_through(pattern, mask, signed[name]), int(mask.any(-1).sum())) for name, mask in masks.items()}


def _over_examples(samples: Float[Tensor, "_ layer head"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error ``[layer, head]`` over the examples that have a score: the same ones for all heads of a layer."""
    per_layer = [mean_and_stderr(x[x.isfinite().all(1)]) if bool(x.isfinite().any()) else None for x in samples.unbind(1)]
    none = (np.full(samples.shape[2], np.nan),) * 2
    mean, stderr = zip(*(none if found is None else found for found in per_layer), strict=True)
    return np.stack(mean), np.stack(stderr)


@lru_cache(maxsize=4)
def _null(made: CopyingScores, cfg: HookedTransformerConfig, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over the heads of untrained models, ``[layer, 1, detector]``: the same for every checkpoint of a run."""
    sets = made.tokens_for(cfg.n_ctx, cfg.d_vocab)
    per_model = []
    for twin in random_twins(cfg, made.null_seeds):
        samples, _ = copying_scores(twin.to(device), sets, bos=made.bos, predicted=made.predicted)
        per_model.append(np.stack([_over_examples(samples[d])[0] for d in DETECTORS], -1))
    heads = np.concatenate(per_model, axis=1)  # [layer, seed * head, detector]
    return heads.mean(1, keepdims=True), heads.std(1, ddof=1, keepdims=True)
