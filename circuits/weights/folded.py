"""A model's weights with its norms folded in: what circuits, spectra, composition and skip-trigrams are read from.

Conventions are transformer-lens': vectors are rows and weights multiply from the right, ``W_QK = W_Q W_K^T`` (query from
the left, key from the right), ``W_OV = W_V W_O``. A norm in front of a reading weight is

    LN(x) = (x P / sigma) diag(w) + b,    P = I - 1 1^T / d_model,    sigma a positive number of each position,

so everything but ``sigma`` is linear and goes into the weights: a reading weight becomes ``P diag(w) W``, its bias
``b W + bias``. RMS norms have no ``P`` and no ``b``; without a norm nothing changes. ``sigma`` is left out: it scales a
position's scores and logits and turns no direction. What shortformer positions add reaches queries and keys behind the norm, so
``W_pos`` multiplies the unfolded ``W_Q`` and ``W_K`` (``pos_Q``, ``pos_K``).

Writers (``W_E``, ``W_O``) are kept as they are and once more with the mean direction taken out where every reader takes it
out (``writes``), so that a norm in a score does not count what nobody reads. Value biases move every output by a
constant, since rows of attention sum to 1: ``b_V W_O`` is part of ``b_O``. All of it is float64.

Source: Elhage et al. 2021, "Handling layer normalization"; transformer-lens' ``fold_layer_norm``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Norm
from circuits.models.protocol import check_finite, check_model


@dataclass(frozen=True)
class FoldedWeights:
    """Norm-folded weights of every head, float64, on the CPU.

    Attributes:
        W_Q, W_K, W_V: what heads read the residual stream with. b_Q, b_K: their biases.
        W_O: what they write with. b_O: the constant each layer writes (value biases included).
        W_E, W_U, b_U: embedding, folded unembedding and its bias.
        W_pos: positions, None if there are none. pos_Q, pos_K: what positions are read with (shortformer: not folded).
        centred: whether the norms take out the mean direction. dims: dimensions a direction can have, d_model or one less.
        cfg: of the model.
    """

    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    b_Q: Float[Tensor, "layer head d_head"]
    b_K: Float[Tensor, "layer head d_head"]
    b_O: Float[Tensor, "layer d_model"]
    W_E: Float[Tensor, "d_vocab d_model"]
    W_U: Float[Tensor, "d_model d_vocab_out"]
    b_U: Float[Tensor, "d_vocab_out"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    pos_Q: Float[Tensor, "layer head d_model d_head"]
    pos_K: Float[Tensor, "layer head d_model d_head"]
    centred: bool
    cfg: HookedTransformerConfig

    @property
    def dims(self) -> int:
        return self.cfg.d_model - self.centred

    def writes(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What of a written vector any reader can see: without its mean where the norms take that out."""
        return x - x.mean(-1, keepdim=True) if self.centred else x


def folded(model: Any) -> FoldedWeights:
    """Fold a model's norms into its weights.

    Args:
        model: a HookedTransformer, or a transformer-lens model that converts to one. It is left as found.

    Raises:
        TypeError: not a hooked model. ValueError: NaN weights, or a model that cannot be represented (grouped keys, ...).
    """
    check_model(model)
    check_finite(model)
    if not isinstance(model, HookedTransformer):
        from circuits.models.convert import from_transformer_lens

        model = from_transformer_lens(model)
    cfg = model.cfg
    layers = [_layer(block.ln1, block.attn) for block in model.blocks]
    stacked = {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
    gain, shift, centred = _norm(model.ln_final, cfg.d_model)
    W_U = _copy(model.unembed.W_U)
    b_U = shift @ W_U + _copy(model.unembed.b_U)
    positions = cfg.positional_embedding_type in ("standard", "shortformer")
    shortformer = cfg.positional_embedding_type == "shortformer"
    return FoldedWeights(
        **stacked,
        W_E=_copy(model.embed.W_E),
        W_U=_fold(W_U, gain, centred),
        b_U=b_U,
        W_pos=_copy(model.pos_embed.W_pos) if positions else None,
        pos_Q=_copy(model.W_Q) if shortformer else stacked["W_Q"],
        pos_K=_copy(model.W_K) if shortformer else stacked["W_K"],
        centred=centred,
        cfg=cfg,
    )


def _copy(weight: Tensor) -> Tensor:
    """A float64 copy on the CPU, apart from the model."""
    return weight.detach().to(device="cpu", dtype=torch.float64, copy=True)


def _norm(norm: torch.nn.Module, d_model: int) -> tuple[Tensor, Tensor, bool]:
    """Gain and shift of a norm, and whether it centres."""
    ones, zeros = torch.ones(d_model, dtype=torch.float64), torch.zeros(d_model, dtype=torch.float64)
    if not isinstance(norm, Norm):
        return ones, zeros, False
    return ones if norm.w is None else _copy(norm.w), zeros if norm.b is None else _copy(norm.b), norm.centred


def _fold(reader: Tensor, gain: Float[Tensor, "d_model"], centred: bool) -> Tensor:
    """``P diag(w) W`` for ``W [..., d_model, n]``, in place: an unembedding may be large."""
    reader.mul_(gain[:, None])
    return reader.sub_(reader.mean(-2, keepdim=True)) if centred else reader


def _layer(norm: torch.nn.Module, attn: Any) -> dict[str, Tensor]:
    gain, shift, centred = _norm(norm, attn.cfg.d_model)
    raw = {name: _copy(getattr(attn, name)) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")}
    bias = {name: shift @ raw[f"W_{name[-1]}"] + raw[name] for name in ("b_Q", "b_K", "b_V")}
    read = {name: _fold(raw[name], gain, centred) for name in ("W_Q", "W_K", "W_V")}
    return read | {
        "W_O": raw["W_O"],
        "b_Q": bias["b_Q"],
        "b_K": bias["b_K"],
        "b_O": raw["b_O"] + torch.einsum("hr,hrd->d", bias["b_V"], raw["W_O"]),
    }
