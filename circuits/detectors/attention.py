"""Which heads attend where a definition says: every attention detector, from one forward pass per batch.

The definitions are in ``models/patterns.py``. Each is measured on sequences made for it, all of the same length:

    previous_token, current_token, first_token, fixed_lag, entropy    plain random tokens (or the caller's own tokens)
    induction, duplicate_token      random tokens repeated once, at many lags: every example group has its own period and
                                    gap, and no two groups the same lag (their sum), so a head that looks back a fixed
                                    distance scores at most 1 / number of groups
    induction_stripe                ``[BOS, r, r]``, one fixed period; can be fooled by a head that looks back n - 1
    prefix_matching                 Olsson et al. 2022: 25 random tokens four times; likewise fixed in period

Beside each score stand its standard error over examples, its chance level under uniform attention on the same tokens,
and a null from untrained models of the same shape (mean and sd over their heads of the same layer). That null answers
"more than an untrained head?"; it does not answer "more than an unrelated trained head?", for which compare heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.tokens import check_ids, repeated_random_tokens
from circuits.models import patterns
from circuits.models.config import HookedTransformerConfig
from circuits.models.protocol import check_finite, check_model, check_tokens, device_of, model_hash, pattern_name, undisturbed
from circuits.models.random_init import config_of, random_twins
from circuits.results import array_hash, labelled, mean_and_stderr

DETECTORS = (
    "previous_token",
    "current_token",
    "duplicate_token",
    "first_token",
    "fixed_lag",
    "induction",
    "induction_stripe",
    "prefix_matching",
    "entropy",
)
LAG = "lag"
"""The distance behind ``fixed_lag``, which is no score."""

SHORTEST = 16


@dataclass(frozen=True)
class Battery:
    """The token sets the detectors read, each ``[example, pos]`` with its own number and length of examples.

    Attributes:
        plain: no structure (or the caller's text). lags: repeats at many periods and gaps. stripe: ``[BOS, r, r]``.
        prefix: Olsson's four repeats.
    """

    plain: Int[Tensor, "_ _"]
    lags: Int[Tensor, "_ _"]
    stripe: Int[Tensor, "_ _"]
    prefix: Int[Tensor, "_ _"]

    def sets(self) -> dict[str, Int[Tensor, "_ _"]]:
        return {"plain": self.plain, "lags": self.lags, "stripe": self.stripe, "prefix": self.prefix}


def battery(ids: np.ndarray, *, n_ctx: int, examples: int, groups: int, seed: int, tokens: Tensor | None = None) -> Battery:
    """Make the token sets for a context of ``n_ctx``; periods shrink with short contexts, never below 3 tokens.

    Raises:
        ValueError: the context or the list of ids is too short.
    """
    length = min(n_ctx, 101)
    if length < SHORTEST:
        raise ValueError(
            f"the model reads n_ctx = {n_ctx} tokens, attention detectors need at least {SHORTEST}: measure a model with a "
            "longer context"
        )
    if len(ids) < length - 1:
        raise ValueError(f"{len(ids)} token ids are allowed and a sequence needs {length - 1} different ones: allow more ids")
    n, quarter = (length - 1) // 2, (length - 1) // 4
    rng = np.random.default_rng([seed, 10])
    lags = []
    per_group = max(1, examples // groups)
    for group, (period, gap) in enumerate(periods_and_gaps(groups, length, rng)):
        made = repeated_random_tokens(ids, n=period, gap=gap, length=length, examples=per_group, seed=seed * 1000 + group)
        lags.append(made.tokens)
    if tokens is None:
        tokens = torch.from_numpy(np.stack([np.r_[0, rng.permutation(ids)[: length - 1]] for _ in range(examples)]))
    return Battery(
        plain=tokens.long(),
        lags=torch.cat(lags),
        stripe=repeated_random_tokens(ids, n=n, examples=examples, seed=seed).tokens,
        prefix=repeated_random_tokens(ids, n=quarter, repeats=4, examples=examples, seed=seed).tokens,
    )


def periods_and_gaps(groups: int, length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Random periods and gaps that fit twice into ``length``, no two with the same lag (their sum).

    Raises:
        ValueError: the length does not have so many different lags.
    """
    n = (length - 1) // 2
    shortest = max(3, n // 5)
    possible = length - 2 * shortest  # lags shortest..length - 1 - shortest
    if groups > possible:
        raise ValueError(
            f"groups={groups}, and sequences of {length} tokens have {possible} different lags: use at most {possible}"
        )
    found: dict[int, tuple[int, int]] = {}
    while len(found) < groups:
        period = int(rng.integers(shortest, n + 1))
        gap = int(rng.integers(0, length - 2 * period))
        found.setdefault(period + gap, (period, gap))
    return list(found.values())


def detector_scores(
    pattern: Float[Tensor, "example head query key"], tokens: Int[Tensor, "example pos"], which: str
) -> dict[str, Tensor]:
    """The scores of one layer's patterns on one token set, each ``[example, head]``."""
    if which == "plain":
        fixed_lag, lag = patterns.fixed_lag_score(pattern)
        return {
            "previous_token": patterns.previous_token_score(pattern, tokens),
            "current_token": patterns.current_token_score(pattern, tokens),
            "first_token": patterns.first_token_score(pattern, tokens),
            "fixed_lag": fixed_lag,
            LAG: lag.to(fixed_lag).expand_as(fixed_lag),
            "entropy": patterns.attention_entropy(pattern),
        }
    if which == "lags":
        return {
            "duplicate_token": patterns.duplicate_token_score(pattern, tokens),
            "induction": patterns.induction_score(pattern, tokens),
        }
    return {"induction_stripe" if which == "stripe" else "prefix_matching": patterns.induction_score(pattern, tokens)}


def attention_scores(model: Any, sets: dict[str, Int[Tensor, "_ _"]]) -> dict[str, Float[Tensor, "_ layer head"]]:
    """Per-example scores of every head, holding the patterns of one layer at a time.

    Each token set is one forward pass; the hook on a layer's pattern computes that layer's scores and keeps nothing else.
    """
    found: dict[str, list[Tensor]] = {}
    with undisturbed(model):
        for which, tokens in sets.items():

            def score(pattern: Tensor, hook: Any, which: str = which, tokens: Tensor = tokens) -> None:
                patterns.check_pattern(pattern, where=hook.name)
                for name, value in detector_scores(pattern, tokens, which).items():
                    found.setdefault(name, []).append(value.cpu())

            hooks = [(pattern_name(layer), score) for layer in range(model.cfg.n_layers)]
            with model.hooks(fwd_hooks=hooks):
                model(tokens)
    return {name: torch.stack(layers, dim=1) for name, layers in found.items()}


@lru_cache(maxsize=8)
def _chance(made: "AttentionScores", n_ctx: int, d_vocab: int) -> dict[str, float]:
    """Every score under uniform attention on the same tokens."""
    chance = {}
    for which, tokens in made.tokens_for(n_ctx, d_vocab).sets().items():
        uniform = patterns.uniform_pattern(tokens.shape[1]).expand(tokens.shape[0], -1, -1, -1)
        chance |= {name: float(value.mean()) for name, value in detector_scores(uniform, tokens, which).items()}
    return chance


@dataclass(frozen=True)
class AttentionScores:
    """Every attention detector at one model: ``Dataset(layer, head, detector)``.

    Args:
        examples: sequences per token set. groups: number of (period, gap) pairs for induction and duplicates.
        seed: of the random tokens. ids: ids to draw them from (default: all but 0).
        tokens: what previous-token, current-token, first-token, fixed-lag and entropy are measured on, ``[example, pos]``
            with BOS first (default: random tokens).
        null_seeds: untrained models behind the null; 0 leaves it out (NaN).
    """

    examples: int = 16
    groups: int = 8
    seed: int = 0
    ids: Sequence[int] | np.ndarray | Tensor | None = None
    tokens: Tensor | None = field(default=None, compare=False)
    null_seeds: int = 4
    name: str = field(default="attention_scores", init=False)
    version: int = field(default=2, init=False)
    _text: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = (self.examples, self.groups, self.null_seeds)
        if not all(isinstance(size, int) for size in sizes) or self.examples < 2 or self.groups < 2 or self.null_seeds < 0:
            given = f"examples={self.examples!r}, groups={self.groups!r}, null_seeds={self.null_seeds!r}"
            raise ValueError(f"{given}: need whole numbers of at least 2, 2 and 0")
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(check_ids(self.ids).tolist()))
        if self.tokens is not None:
            check_tokens(self.tokens, d_vocab=2**31, n_ctx=2**31, min_length=SHORTEST, needed_by="detect")
            object.__setattr__(self, "_text", array_hash(self.tokens.cpu()))

    def spec(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "groups": self.groups,
            "seed": self.seed,
            "ids": None if self.ids is None else array_hash(np.asarray(self.ids)),
            "tokens": self._text or None,
            "null_seeds": self.null_seeds,
        }

    def tokens_for(self, n_ctx: int, d_vocab: int) -> Battery:
        ids = np.arange(1, d_vocab) if self.ids is None else np.asarray(self.ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= d_vocab):
            raise ValueError(
                f"ids run from {ids.min()} to {ids.max()}, the vocabulary is 0..{d_vocab - 1}: pass ids of this model"
            )
        return battery(ids, n_ctx=n_ctx, examples=self.examples, groups=self.groups, seed=self.seed, tokens=self.tokens)

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            Dataset with dims ``layer, head, detector``: ``value`` (attention mass in [0, 1]; entropy in nats), ``stderr``
            over examples, ``chance``, ``null_mean``, ``null_sd``, ``z``, and ``lag [layer, head]``, the distance behind
            ``fixed_lag``.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, a context or vocabulary too small, foreign tokens.
        """
        check_model(model)
        check_finite(model)
        cfg = model.cfg
        if self.tokens is not None:
            check_tokens(self.tokens, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, min_length=SHORTEST, needed_by="detect")
        sets = self.tokens_for(cfg.n_ctx, cfg.d_vocab).sets()
        on_device = {which: tokens.to(device_of(model)) for which, tokens in sets.items()}
        samples = attention_scores(model, on_device)
        value, stderr = (np.stack(x, -1) for x in zip(*(mean_and_stderr(samples[d]) for d in DETECTORS), strict=True))
        chance = _chance(self, cfg.n_ctx, cfg.d_vocab)
        null_mean, null_sd = self._null_of(model)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (value - null_mean) / null_sd
        dims = ("layer", "head", "detector")
        return labelled(
            {
                "value": (dims, value),
                "stderr": (dims, stderr),
                "chance": (("detector",), [chance[d] for d in DETECTORS]),
                "null_mean": (dims, np.broadcast_to(null_mean, value.shape)),
                "null_sd": (dims, np.broadcast_to(null_sd, value.shape)),
                "z": (dims, z),
                LAG: (dims[:2], samples[LAG][0].numpy().astype(np.int64)),
            },
            {"layer": np.arange(cfg.n_layers), "head": np.arange(cfg.n_heads), "detector": list(DETECTORS)},
            measure=self,
            definition="mean attention on the keys a definition names, over the rows it includes (circuits.models.patterns)",
            source="Elhage et al. 2021; Olsson et al. 2022; Voita et al. 2019",
            model_hash=model_hash(model),
            data_hash=array_hash(*(t.cpu() for t in sets.values())),
            seed=self.seed,
            n_examples=self.examples,
            null="heads of the same layer in untrained models of the same shape",
        )

    def _null_of(self, model: Any) -> tuple[np.ndarray, np.ndarray]:
        """The null for a model's shape; NaN where it was not asked for."""
        if self.null_seeds == 0:
            return np.array(np.nan), np.array(np.nan)
        if self.null_seeds * model.cfg.n_heads < 2:
            raise ValueError("one head of one untrained model has no spread: use null_seeds=2 or more, or 0 for no null")
        return _null(self, config_of(model), device_of(model))


@lru_cache(maxsize=4)
def _null(made: AttentionScores, cfg: HookedTransformerConfig, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over the heads of untrained models, ``[layer, 1, detector]``: the same for every checkpoint of a run."""
    sets = {which: tokens.to(device) for which, tokens in made.tokens_for(cfg.n_ctx, cfg.d_vocab).sets().items()}
    per_model = []
    for twin in random_twins(cfg, made.null_seeds):
        samples = attention_scores(twin.to(device), sets)
        per_model.append(np.stack([samples[d].double().numpy().mean(0) for d in DETECTORS], -1))
    heads = np.concatenate(per_model, axis=1)  # [layer, seed * head, detector]
    return heads.mean(1, keepdims=True), heads.std(1, ddof=1, keepdims=True)
