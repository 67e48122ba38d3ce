"""Do nested pairs need both layers? What is lost when layer 0 may not inform later attention, or when later attention is gone.

A head of layer 0 can reach the logits directly, or by what later heads attend to and copy. Two cuts tell these apart:

    composition   what the heads of layer 0 write is taken out of the inputs of later layers' attention (queries, keys and
                  values), and still reaches the MLPs and the logits; biases stay
    later heads   the outputs of all heads behind layer 0 are zeroed

    value[cut, condition] = mean over closers of (d(closer) - mean over its control tokens of d),
    d = loss with the cut - clean loss

in nats, over nested closers (another pair lies inside) and over flat ones, with the control tokens of
``circuits.detectors.brackets``: what a cut costs every token at that depth is no matter of brackets. ``contrast[cut]`` is
nested less flat, averaged over the examples that have both. Nested pairs need both layers if both cuts cost nested closers
something and the first costs them more than flat ones; which head knows depth is then for ``BracketScores`` and ablations to
say. A one-layer model cannot be asked: ``state`` is "untestable" and the values are NaN. The null is that of untrained models
of the same shape.

Source: the claim that layer-1 heads need layer-0 heads on nested brackets is Wang et al. 2024 (rLLC); test ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.brackets import BracketTokens
from circuits.detectors.brackets import (
    BATCH,
    CONDITIONS,
    above_controls,
    bracket_hash,
    check_bracket_tokens,
    example_means,
    per_condition,
)
from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import next_token_loss
from circuits.models.own import own
from circuits.models.protocol import (
    check_finite,
    check_model,
    check_tokens,
    device_of,
    model_hash,
    resid_mid_name,
    resid_post_name,
    resid_pre_name,
    undisturbed,
    z_name,
)
from circuits.models.random_init import config_of, random_twins
from circuits.results import check_whole, labelled, mean_and_stderr

CUTS = ("composition", "later_heads")


@contextmanager
def without_composition(model: Any) -> Iterator[None]:
    """A context in which attention behind layer 0 does not read what the heads of layer 0 wrote, while everything else does.

    Raises:
        ValueError: attention and MLP read one input, so that attention's cannot be cut alone.
    """
    if getattr(model.cfg, "parallel_attn_mlp", False):
        raise ValueError(
            "attention and MLP read one stream here (parallel_attn_mlp), so this cut is not defined: measure another model"
        )
    wrote: list[Tensor] = []

    def remember(z: Tensor, hook: Any) -> None:
        wrote[:] = [torch.einsum("bphd,hdm->bpm", z, model.blocks[0].attn.W_O)]

    # Layers add to the stream, so what is taken out in front of attention and put back right behind it is missed there alone.
    back = resid_post_name if model.cfg.attn_only else resid_mid_name
    hooks: list[tuple[str, Any]] = [(z_name(0), remember)]
    for layer in range(1, model.cfg.n_layers):
        hooks.append((resid_pre_name(layer), lambda resid, hook: resid - wrote[0]))
        hooks.append((back(layer), lambda resid, hook: resid + wrote[0]))
    with undisturbed(model), model.hooks(fwd_hooks=hooks):
        yield


@contextmanager
def without_later_heads(model: Any) -> Iterator[None]:
    """A context in which no head behind layer 0 writes anything."""
    hooks = [(z_name(layer), lambda z, hook: torch.zeros_like(z)) for layer in range(1, model.cfg.n_layers)]
    with undisturbed(model), model.hooks(fwd_hooks=hooks):
        yield


def cut_effects(model: Any, tokens: Int[Tensor, "example pos"]) -> Float[np.ndarray, "cut example pos_minus_1"]:
    """Loss with each cut less clean loss, at every predicted token, nats."""

    def losses(part: Tensor) -> Tensor:
        return next_token_loss(model(part), part, per_token=True).double().cpu()

    found = []
    for part in tokens.to(device_of(model)).split(BATCH):
        with undisturbed(model):
            clean = losses(part)
        with without_composition(model):
            composition = losses(part)
        with without_later_heads(model):
            later = losses(part)
        found.append(torch.stack([composition - clean, later - clean]))
    return torch.cat(found, dim=1).numpy()


@dataclass(frozen=True)
class NestedBrackets:
    """Whether nested pairs need both layers: ``Dataset(cut, condition)``.

    Args:
        tokens: ``bracket_set(...)`` or ``annotate(tokens, classes)``, with nested and flat pairs.
        null_seeds: untrained models behind the null; 0 leaves it out (NaN).
    """

    tokens: BracketTokens = field(compare=False)
    null_seeds: int = 4
    name: str = field(default="nested_brackets", init=False)
    version: int = field(default=1, init=False)
    _data: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        check_whole("null_seeds", self.null_seeds, 0)
        if self.null_seeds == 1:
            raise ValueError("one untrained model has no spread: use null_seeds=2 or more, or 0 for no null")
        object.__setattr__(self, "_data", bracket_hash(check_bracket_tokens(self.tokens, needed_by="the test of nested pairs")))

    def spec(self) -> dict[str, Any]:
        return {"tokens": self._data, "null_seeds": self.null_seeds}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value [cut, condition]`` in nats with ``stderr`` over examples, ``null_mean, null_sd, z`` over untrained models, and
            its two parts ``on_closer`` and ``on_control``; ``contrast [cut]`` (nested less flat) with ``contrast_stderr``;
            ``n [condition]`` examples, ``n_both`` for the contrast; ``state`` "ok" or "untestable". ``chance`` is 0: a cut of
            what says nothing about brackets.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, tokens that do not fit it, or parallel attention and MLPs.
        """
        check_model(model)
        check_finite(model)
        model = own(model)  # in a foreign one the middle of a layer is no place to write to
        cfg = model.cfg
        check_tokens(self.tokens.tokens, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, needed_by="the test of nested pairs")
        testable = cfg.n_layers > 1
        shape = (len(CUTS), len(self.tokens.closer))
        parts = self._parts(model) if testable else np.full((2, *shape), np.nan)
        excess = parts[0] - parts[1]
        there = np.where(np.isfinite(excess), 1.0, np.nan)  # both parts over the same closers
        mean, stderr, n = per_condition(self.tokens, excess)
        on_closer, on_control = (per_condition(self.tokens, part * there)[0] for part in parts)
        contrast, contrast_stderr, n_both = self._contrast(excess)
        null = np.array(np.nan), np.array(np.nan)
        if testable and self.null_seeds:
            null = _null(self, config_of(model), device_of(model))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (mean - null[0]) / null[1]
        grid = ("cut", "condition")
        return labelled(
            {
                "value": (grid, mean),
                "stderr": (grid, stderr),
                "chance": ((), 0.0),
                "null_mean": (grid, np.broadcast_to(null[0], mean.shape)),
                "null_sd": (grid, np.broadcast_to(null[1], mean.shape)),
                "z": (grid, z),
                "on_closer": (grid, on_closer),
                "on_control": (grid, on_control),
                "contrast": (("cut",), contrast),
                "contrast_stderr": (("cut",), contrast_stderr),
                "n": (("condition",), n),
                "n_both": ((), n_both),
                "state": ((), "ok" if testable else "untestable"),
            },
            {"cut": list(CUTS), "condition": list(CONDITIONS)},
            measure=self,
            definition="loss increase by the cut on closers above that on tokens of the same depth; contrast = nested - flat",
            source="claim of Wang et al. 2024 on nested brackets; test of circuits.detectors.nested_brackets",
            model_hash=model_hash(model),
            data_hash=self._data,
            null="untrained models of the same shape",
            units="nats",
        )

    def _parts(self, model: Any) -> Float[np.ndarray, "part cut closer"]:
        """Loss increase at closers, and at their control tokens."""
        return np.stack(above_controls(self.tokens, cut_effects(model, self.tokens.tokens)))

    def _contrast(self, excess: Float[np.ndarray, "cut closer"]) -> tuple[np.ndarray, np.ndarray, int]:
        """Nested less flat, over the examples that have both."""
        data, there = self.tokens, np.isfinite(excess).all(0)
        sides = [there & data.nested, there & ~data.nested]
        both = np.intersect1d(data.example[sides[0]], data.example[sides[1]])
        nested, flat = (example_means(data, excess, side & np.isin(data.example, both)) for side in sides)
        if len(both) == 0:
            return np.full(len(CUTS), np.nan), np.full(len(CUTS), np.nan), 0
        return *mean_and_stderr(nested - flat, axis=-1), len(both)


@lru_cache(maxsize=4)
def _null(made: NestedBrackets, cfg: HookedTransformerConfig, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over untrained models, ``[cut, condition]``."""
    found = []
    for twin in random_twins(cfg, made.null_seeds):
        at, control = made._parts(twin.to(device))
        found.append(per_condition(made.tokens, at - control)[0])
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
