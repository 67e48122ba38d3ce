"""A clean run, frozen: with its patterns and norm scales held, an attention-only model is linear in what is written.

    read_l(x)  = x P diag(w_l) / sigma_l             P takes the mean out where the norm centres, sigma_l [batch, pos, 1]
    head h     writes  A^h read_l(x) W_V^h W_O^h     A [query, key], rows sum to 1
    bias L<l>  = b_O + sum_h (b_V^h + beta_l W_V^h) W_O^h     what layer l writes whatever it reads, beta_l the norm's bias
    logits     = x P diag(w) W_U / sigma + b_U + beta W_U     of the final norm

``sigma`` and ``A`` are numbers of the clean run; centring and gain are part of the linear maps. Shortformer positions, rotary
ones, smeared keys and caps on scores act on patterns alone, so they are in ``A``. Source: Elhage et al. 2021, "Path Expansion
Trick" and "Handling layer normalization".
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.final_losses import FinalLosses
from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Norm
from circuits.models.own import bare
from circuits.models.protocol import check_evaluated, check_finite, check_model, check_tokens, device_of
from circuits.models.stacked import Clean, clean_run
from circuits.paths.wiring import EMBED, POS

FEWEST = 3
"""Examples: with fewer there are no two ways to exchange them, so a null has no spread."""
EXAMPLES = 16
"""Examples of a batch, where patterns are small."""
ENTRIES = 2**26
"""Of the patterns that a batch holds: 256 MB of float32."""

ROUNDING = 1e-6
"""Relative spread below which a null does not vary: rounding of float32."""


class FrozenRun:
    """A run of an attention-only model on some tokens, and the linear model that it leaves.

    Args:
        model: from ``bare``. tokens: ``[batch, pos]``, on its device.
    """

    def __init__(self, model: HookedTransformer, tokens: Int[Tensor, "batch pos"]):
        self.model, self.cfg = model, model.cfg
        self.clean: Clean = clean_run(model, tokens.long(), "preserved", "frozen")
        self.readout = FinalLosses(model, self.clean.tokens, self.clean.scale("ln_final"))
        self.W_V = [fold(block.ln1, block.attn.W_V) for block in model.blocks]  # [head, d_model, d_head] of every layer

    @cached_property
    def starts(self) -> dict[str, tuple[int, Float[Tensor, "batch pos d_model"]]]:
        """Where paths begin: the first layer that reads it, and what is written."""
        tokens = self.clean.tokens
        embedded = self.model.embed(tokens)
        found = {EMBED: (0, embedded)}
        if self.cfg.positional_embedding_type == "standard":
            found[POS] = (0, self.model.pos_embed(tokens))
        for layer in range(self.cfg.n_layers):
            found[f"bias L{layer}"] = (layer + 1, self.constant(layer).expand_as(embedded))
        return found

    def constant(self, layer: int) -> Float[Tensor, "d_model"]:
        """What a layer writes at every position, whatever it reads."""
        attn = self.model.blocks[layer].attn
        bias = attn.b_V + torch.einsum("d,hdr->hr", shift_of(self.model.blocks[layer].ln1, attn.b_O), attn.W_V)
        return attn.b_O + torch.einsum("hr,hrd->d", bias, attn.W_O)

    def gathered(self, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch head pos d_head"]:
        """What the heads of a layer gather from a stream, before ``W_O`` and without biases."""
        scale = self.clean.scale(f"blocks.{layer}.ln1")
        read = stream if scale is None else stream / scale
        return self.clean.pattern[layer] @ (read[:, None] @ self.W_V[layer])

    def written(self, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the heads of a layer write together when they read a stream."""
        z = self.gathered(layer, stream).transpose(1, 2).flatten(2)
        return z @ self.model.blocks[layer].attn.W_O.flatten(0, 1)

    def by_order(self) -> list[Float[Tensor, "batch pos d_model"]]:
        """The final stream in parts: the sum of all paths through n heads, for n = 0..n_layers."""
        parts: list[Any] = [sum(stream for first, stream in self.starts.values() if first == 0)]
        for layer in range(self.cfg.n_layers):
            new = [self.written(layer, part) for part in parts]
            parts = [parts[0] + self.constant(layer), *(a + b for a, b in zip(parts[1:], new, strict=False)), new[-1]]
        return parts

    def of_layer(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The sum of the paths through one head, one of this layer: its heads read what is written by no head."""
        return self.written(layer, sum((x for first, x in self.starts.values() if first <= layer), torch.zeros(())))

    def logits(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        """What a part of the final stream adds to the logits; without ``bias``."""
        scale = self.clean.scale("ln_final")
        return (stream if scale is None else stream / scale) @ self.readout.M

    @property
    def bias(self) -> Float[Tensor, "d_vocab_out"]:
        """What no path brings: ``b_U + beta W_U``."""
        return self.readout.c

    def losses(self, streams: Float[Tensor, "stack batch pos d_model"]) -> Float[Tensor, "stack batch pos_minus_1"]:
        """Next-token losses with these final streams, in nats, the final norm's scale held."""
        return self.readout.losses(streams)


def fold(norm: torch.nn.Module, weight: Float[Tensor, "*head d_model n"]) -> Float[Tensor, "*head d_model n"]:
    """``P diag(w) W``: a reading weight with the norm's gain and centring in it."""
    if not isinstance(norm, Norm):
        return weight
    weight = weight if norm.w is None else norm.w[:, None] * weight
    return weight - weight.mean(-2, keepdim=True) if norm.centred else weight


def shift_of(norm: torch.nn.Module, like: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    """The norm's bias, zero where it has none."""
    return norm.b if isinstance(norm, Norm) and norm.b is not None else torch.zeros_like(like)


def linear_model(model: Any) -> HookedTransformer:
    """The model in our class, if freezing it leaves a linear one.

    Raises:
        TypeError: not a hooked model. ValueError: one in training mode, with MLPs, a cap on logits or NaN weights, or one that
            cannot be represented.
    """
    check_model(model)
    check_evaluated(model)
    check_finite(model)
    twin = bare(model)
    if not twin.cfg.attn_only:
        raise ValueError(
            "the model has MLPs, which are not linear in what they read: path expansion needs an attn_only model "
            "(score_terms and edges take any)"
        )
    if twin.cfg.output_logits_soft_cap > 0:
        raise ValueError(
            f"output_logits_soft_cap is {twin.cfg.output_logits_soft_cap}, so logits are no sum over paths: "
            "path expansion needs a model without it"
        )
    return twin


def check_examples(tokens: Any, needed_by: str, *, min_length: int = 2) -> None:
    """Refuse tokens that a measure with errors and a null cannot use, before there is a model.

    Raises:
        TypeError, ValueError: no token ids ``[example, pos]``, sequences too short, or too few examples.
    """
    check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=min_length, needed_by=needed_by)
    if len(tokens) < FEWEST:
        raise ValueError(
            f"{needed_by} need {FEWEST} examples, one to measure and others to exchange it with, and {len(tokens)} were given: "
            "pass more text"
        )


def fitting(model: HookedTransformer, tokens: Int[Tensor, "example pos"], needed_by: str) -> Int[Tensor, "example pos"]:
    """The tokens on the model's device.

    Raises:
        ValueError: they do not fit the model, or it has no logit for one of them.
    """
    check_tokens(tokens, d_vocab=model.cfg.d_vocab, n_ctx=model.cfg.n_ctx, needed_by=needed_by)
    if int(tokens.max()) >= model.cfg.d_vocab_out:
        raise ValueError(f"token {int(tokens.max())} has no logit, the model has d_vocab_out = {model.cfg.d_vocab_out}")
    return tokens.to(device_of(model)).long()


def batches(cfg: HookedTransformerConfig, tokens: Int[Tensor, "example pos"]) -> Iterator[Int[Tensor, "batch"]]:
    """Rows of examples in batches of almost one size, whose patterns fit in memory; each holds ``FEWEST`` or more."""
    fit = ENTRIES // (cfg.n_layers * cfg.n_heads * tokens.shape[1] ** 2)
    size = max(FEWEST, min(EXAMPLES, fit))
    return iter(torch.arange(len(tokens)).tensor_split(max(1, len(tokens) // size)))


def exchanges(examples: int, count: int, seed: int, *stream: int) -> list[int]:
    """Distances of cyclic exchanges among so many examples, all different, ``count`` or as many as there are."""
    order = np.random.default_rng([seed, 50, *stream]).permutation(examples - 1)[:count] + 1
    return [int(distance) for distance in order]


def against(value: np.ndarray, null: np.ndarray) -> dict[str, np.ndarray]:
    """``null_mean``, ``null_sd`` and ``z`` of values, given the null's draws along the first axis.

    Where the draws are one up to rounding, as of a term that is the same in every example, there is no z: it is NaN.
    """
    mean, sd = null.mean(0), null.std(0, ddof=1)
    varies = sd > ROUNDING * np.abs(null).max(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(varies, (value - mean) / sd, np.nan)
    return {"null_mean": np.asarray(mean), "null_sd": np.where(varies, sd, 0.0), "z": z}
