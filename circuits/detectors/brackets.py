"""Which heads close brackets: attention to the opener and effect on the closer, each against controls of the same depth.

Closers, openers, depths and controls are those of ``circuits.data.brackets``. With c the position of a closer and o of its
opener:

    attention   A[q, o] - mean over control keys k of A[q, k]            control keys: openers of the same type and depth that are
                                                                         closed already
                at two queries: q = c - 1 "before", which predicts the closer, and q = c "at", the closer itself
    effect      e(c) - mean over control tokens p of e(p)                control tokens: no brackets, same depth, same example

``e(p)`` is the loss of predicting token p with the head's output zeroed, less the clean loss, in nats (positive: the head
helps). So a head that likes openers, or recent ones, or helps every token inside brackets, gets 0. A closer without controls is
left out of that difference. Differences are averaged over the closers of an example, then over examples, for all closers, for
*nested* ones (another pair lies inside) and for *flat* ones (none does). Chance: uniform attention gives every key of a row the
same, so 0; no effect is 0. The null is that of untrained models of the same shape, heads of the same layer: it hardly varies in
effect, so besides ``z`` look at ``stderr`` and at the other heads. Source: the score proposed for Dyck heads in Wang et al.
2024 (appendix B names Dyck patterns, without a score); definition ours.
"""

from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.data.brackets import BracketTokens
from circuits.models.config import HookedTransformerConfig
from circuits.models.effects import head_effects
from circuits.models.patterns import check_pattern
from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash, pattern_name, undisturbed
from circuits.models.random_init import config_of, random_twins
from circuits.results import array_hash, check_whole, labelled, mean_and_stderr

BATCH = 32
CONDITIONS = ("all", "flat", "nested")
QUERIES = ("before", "at")
SCORES = (*QUERIES, "effect")


def check_bracket_tokens(given: Any, *, needed_by: str) -> BracketTokens:
    """Refuse what is no bracket set, or holds too little to have an error.

    Raises:
        TypeError: not a ``BracketTokens``. ValueError: fewer than two examples with a closer that has controls.
    """
    if not isinstance(given, BracketTokens):
        raise TypeError(
            f"got a {type(given).__name__}, {needed_by} needs BracketTokens: use bracket_set(...) or annotate(tokens, classes)"
        )
    check_tokens(given.tokens, d_vocab=2**31, n_ctx=2**31, min_length=4, needed_by=needed_by)
    usable = len(np.unique(given.example[given.controls.any(1) & _weights(given).any(1)]))
    if usable < 2:
        raise ValueError(f"{usable} examples have a closer with control keys and control tokens, {needed_by} needs 2: give more")
    return given


def bracket_hash(data: BracketTokens) -> str:
    parts = (getattr(data, part.name) for part in fields(data))
    return array_hash(*(part.cpu() if isinstance(part, Tensor) else part for part in parts))


def _weights(data: BracketTokens) -> Float[np.ndarray, "closer pos"]:
    """Weights of each closer's control tokens, summing to 1 (or 0 where there are none)."""
    alike = (data.level[data.example] == data.depth[:, None]).astype(np.float64)
    return alike / np.maximum(alike.sum(1, keepdims=True), 1)


def above_controls(
    data: BracketTokens, per_token: Float[np.ndarray, "*score example pos_minus_1"]
) -> tuple[Float[np.ndarray, "*score closer"], Float[np.ndarray, "*score closer"]]:
    """A quantity of predicted tokens at every closer, and its mean over the control tokens (NaN where there are none)."""
    at = per_token[..., data.example, data.closer - 1]
    weights = _weights(data)[:, 1:]
    control = np.einsum("...cp,cp->...c", per_token[..., data.example, :], weights)
    return at, np.where(weights.any(1), control, np.nan)


def per_condition(
    data: BracketTokens, values: Float[np.ndarray, "*score closer"]
) -> tuple[Float[np.ndarray, "*score condition"], Float[np.ndarray, "*score condition"], Int[np.ndarray, "condition"]]:
    """Mean of closers' values over examples, its error, and the number of examples; closers with a NaN are left out."""
    there = np.isfinite(values).reshape(-1, values.shape[-1]).all(0)
    chosen = {"all": there, "flat": there & ~data.nested, "nested": there & data.nested}
    found = [example_means(data, values, chosen[name]) for name in CONDITIONS]
    nothing = np.full(values.shape[:-1], np.nan)
    mean, stderr = zip(*(mean_and_stderr(x, axis=-1) if x.shape[-1] else (nothing, nothing) for x in found), strict=True)
    return np.stack(mean, -1), np.stack(stderr, -1), np.asarray([x.shape[-1] for x in found])


def example_means(data: BracketTokens, values: np.ndarray, chosen: np.ndarray) -> Float[np.ndarray, "*score example"]:
    """Means over the chosen closers of every example that has some."""
    examples, index = np.unique(data.example[chosen], return_inverse=True)
    share = np.zeros((chosen.sum(), len(examples)))
    share[np.arange(len(index)), index] = 1.0
    return values[..., chosen] @ (share / np.maximum(share.sum(0), 1))


def attention_to_opener(
    row: Float[Tensor, "closer head key"], opener: Int[Tensor, "closer"], controls: Bool[Tensor, "closer key"]
) -> Float[Tensor, "part closer head"]:
    """Attention of each closer's query on its opener, and its mean over the control keys (NaN where there are none)."""
    on_opener = row.gather(-1, opener[:, None, None].expand(-1, row.shape[1], 1))[..., 0]
    return torch.stack([on_opener, (row * controls[:, None]).sum(-1) / controls.sum(-1)[:, None]])


def closer_scores(model: Any, data: BracketTokens) -> dict[str, Float[np.ndarray, "part layer head closer"]]:
    """Every score at every closer (part 0) and at its controls (part 1): attention at both queries, and effect."""
    layers = range(model.cfg.n_layers)
    attention = np.full((len(QUERIES), 2, len(layers), model.cfg.n_heads, len(data.closer)), np.nan)
    opener, controls = torch.from_numpy(data.opener), torch.from_numpy(data.controls)
    with undisturbed(model):
        for start in range(0, len(data.tokens), BATCH):
            here = np.flatnonzero((data.example >= start) & (data.example < start + BATCH))

            def score(pattern: Tensor, hook: Any, layer: int, here: np.ndarray = here, start: int = start) -> None:
                check_pattern(pattern, where=hook.name)
                for i, back in enumerate((1, 0)):
                    row = pattern.cpu()[data.example[here] - start, :, data.closer[here] - back]
                    attention[i, :, layer][..., here] = attention_to_opener(row, opener[here], controls[here]).transpose(1, 2)

            with model.hooks(fwd_hooks=[(pattern_name(layer), partial(score, layer=layer)) for layer in layers]):
                model(data.tokens[start : start + BATCH].to(device_of(model)))
    effect = np.empty((len(layers), model.cfg.n_heads, len(data.tokens), data.tokens.shape[1] - 1))
    for found in head_effects(model, data.tokens, "zero", direct=False):
        effect[:, :, found.rows] = found.total
    return dict(zip(QUERIES, attention, strict=True)) | {"effect": np.stack(above_controls(data, effect))}


@dataclass(frozen=True)
class BracketScores:
    """How well each head finds and closes brackets: ``Dataset(layer, head, condition, query)``.

    Args:
        tokens: what to measure on: ``bracket_set(...)``, or ``annotate(tokens, classes)`` for real code.
        null_seeds: untrained models behind the null; 0 leaves it out (NaN).
    """

    tokens: BracketTokens = field(compare=False)
    null_seeds: int = 4
    name: str = field(default="bracket_scores", init=False)
    version: int = field(default=1, init=False)
    _data: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        check_whole("null_seeds", self.null_seeds, 0)
        object.__setattr__(self, "_data", bracket_hash(check_bracket_tokens(self.tokens, needed_by="the bracket score")))

    def spec(self) -> dict[str, Any]:
        return {"tokens": self._data, "null_seeds": self.null_seeds}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value [layer, head, condition, query]``, attention above controls in [-1, 1], and ``effect [layer, head,
            condition]``, nats above controls; each with ``stderr`` over examples, ``null_mean, null_sd, z`` (for the effect
            with ``effect_`` in front) and its two parts: ``on_opener``, ``on_control``, ``effect_on_closer``,
            ``effect_on_control``. ``chance`` is 0. ``n [condition, score]``: examples behind "before", "at" and "effect"; fewer
            than two leave the error NaN.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, or tokens that do not fit it.
        """
        check_model(model)
        check_finite(model)
        cfg = model.cfg
        check_tokens(self.tokens.tokens, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, needed_by="the bracket score")
        scores = closer_scores(model, self.tokens)
        null = self._null_of(model)
        found: dict[str, list[np.ndarray]] = {}
        counts = []
        for name in SCORES:
            at, control = scores[name]
            mean, stderr, n = per_condition(self.tokens, at - control)
            there = np.where(np.isfinite(at - control), 1.0, np.nan)  # both parts over the same closers
            parts = [per_condition(self.tokens, part * there)[0] for part in (at, control)]
            with np.errstate(divide="ignore", invalid="ignore"):
                z = (mean - null[name][0]) / null[name][1]
            sides = [np.broadcast_to(x, mean.shape) for x in null[name]]
            for label, x in zip(VARIABLES, (mean, stderr, *sides, z, *parts), strict=True):
                found.setdefault(label, []).append(x)
            counts.append(n)
        grid = ("layer", "head", "condition")
        both = {name: ((*grid, "query"), np.stack(x[:2], -1)) for name, x in found.items()}
        effects = {EFFECTS[name]: (grid, x[2]) for name, x in found.items()}
        return labelled(
            both | effects | {"chance": ((), 0.0), "n": (("condition", "score"), np.stack(counts, -1))},
            {
                "layer": np.arange(cfg.n_layers),
                "head": np.arange(cfg.n_heads),
                "condition": list(CONDITIONS),
                "query": list(QUERIES),
                "score": list(SCORES),
            },
            measure=self,
            definition="attention to the opener above that to closed ones of its kind; effect on the closer above its depth's",
            source="Dyck heads of Wang et al. 2024; definition of circuits.detectors.brackets",
            model_hash=model_hash(model),
            data_hash=self._data,
            null="heads of the same layer in untrained models of the same shape",
            units="attention; nats",
        )

    def _null_of(self, model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The null for a model's shape; NaN where it was not asked for."""
        if self.null_seeds == 0:
            return {name: (np.array(np.nan), np.array(np.nan)) for name in SCORES}
        if self.null_seeds * model.cfg.n_heads < 2:
            raise ValueError("one head of one untrained model has no spread: use null_seeds=2 or more, or 0 for no null")
        return _null(self, config_of(model), device_of(model))


VARIABLES = ("value", "stderr", "null_mean", "null_sd", "z", "on_opener", "on_control")
EFFECTS = {
    "value": "effect",
    "stderr": "effect_stderr",
    "null_mean": "effect_null_mean",
    "null_sd": "effect_null_sd",
    "z": "effect_z",
    "on_opener": "effect_on_closer",
    "on_control": "effect_on_control",
}


@lru_cache(maxsize=4)
def _null(made: BracketScores, cfg: HookedTransformerConfig, device: torch.device) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and sd over the heads of untrained models, ``[layer, 1, condition]``: the same for every checkpoint of a run."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for twin in random_twins(cfg, made.null_seeds):
        for name, (at, control) in closer_scores(twin.to(device), made.tokens).items():
            found[name].append(per_condition(made.tokens, at - control)[0])
    heads = {name: np.concatenate(x, axis=1) for name, x in found.items()}  # [layer, seed * head, condition]
    return {name: (x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)) for name, x in heads.items()}
