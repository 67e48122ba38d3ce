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
constant, since rows of attention sum to 1: ``b_V W_O`` is part of ``b_O``. Heads are float64. Embedding and unembedding, which
may be large, are the model's own tensors, read in float64 block by block (``of_tokens``, ``logits``, ``G``, ``C``): no copy of
either is made.

Source: Elhage et al. 2021, "Handling layer normalization"; transformer-lens' ``fold_layer_norm``.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.layers import Norm
from circuits.models.own import own
from circuits.models.protocol import check_finite, check_model

TOKEN_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class FoldedWeights:
    """Norm-folded weights of every head, float64, on the CPU.

    Attributes:
        W_Q, W_K, W_V: what heads read the residual stream with. b_Q, b_K: their biases.
        W_O: what they write with. b_O: the constant each layer writes (value biases included).
        W_E, W_U: the model's embedding and unembedding, in its dtype and not folded. gain_U: of the norm before ``W_U``.
        b_U: bias of the logits, the norm's shift included.
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
    gain_U: Float[Tensor, "d_model"]
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

    def of_tokens(self, reader: Float[Tensor, "d_model r"]) -> Float[Tensor, "d_vocab r"]:
        """``W_E reader``: what a reading weight makes of every token."""
        return torch.cat([rows.double() @ reader for rows in self.W_E.split(TOKEN_BLOCK)])

    def logits(self, written: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab_out"]:
        """What written vectors add to every logit, up to the scale of the final norm: ``written P diag(w) W_U``."""
        seen = self.writes(written) * self.gain_U
        return torch.cat([seen @ columns.double() for columns in self.W_U.split(TOKEN_BLOCK, dim=1)], dim=1)

    @cached_property
    def G(self) -> Float[Tensor, "d_model d_model"]:
        """``P diag(w) W_U W_E``, the unembedding into the embedding. Raises ValueError for two vocabularies."""
        return _fold(through_tokens(self.W_U, self.W_E), self.gain_U, self.centred)

    @cached_property
    def C(self) -> Float[Tensor, "d_model d_model"]:
        """``W_E^T W_E``, the second moment of the embeddings times the size of the vocabulary."""
        return through_tokens(self.W_E.mT, self.W_E)


def through_tokens(
    W_U: Float[Tensor, "d_model d_vocab"], W_E: Float[Tensor, "d_vocab d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """``W_U W_E``, summed over the vocabulary in blocks, in float64 without a float64 copy of either.

    Args:
        W_U: unembedding, or ``W_E.mT`` for the Gram matrix of the embedding. W_E: embedding.

    Returns:
        Its trace is the trace of the direct path ``W_E W_U``.

    Raises:
        ValueError: two vocabularies of different size.

    Source: Elhage et al. 2021; nonzero eigenvalues of ``A B`` and ``B A`` are the same.
    """
    if W_U.shape[1] != W_E.shape[0]:
        raise ValueError(
            f"W_U predicts {W_U.shape[1]} tokens and W_E reads {W_E.shape[0]}: copying needs one vocabulary for both; "
            "pass W_U[:, ids] and W_E[ids] of the tokens they share"
        )
    total = torch.zeros(W_U.shape[0], W_E.shape[1], dtype=torch.float64)
    for columns, rows in zip(W_U.split(TOKEN_BLOCK, dim=1), W_E.split(TOKEN_BLOCK), strict=True):
        total.addmm_(columns.double(), rows.double())
    return total


def folded(model: Any) -> FoldedWeights:
    """Fold a model's norms into its weights.

    Args:
        model: a HookedTransformer, or a transformer-lens model that converts to one. It is left as found.

    Raises:
        TypeError: not a hooked model. ValueError: NaN weights, or a model that cannot be represented (grouped keys, ...).
    """
    check_model(model)
    check_finite(model)
    model = own(model)
    cfg = model.cfg
    grid = (cfg.n_layers, cfg.n_heads)
    shapes = dict.fromkeys(("W_Q", "W_K", "W_V"), (*grid, cfg.d_model, cfg.d_head))
    shapes |= {"W_O": (*grid, cfg.d_head, cfg.d_model), "b_Q": (*grid, cfg.d_head), "b_K": (*grid, cfg.d_head)}
    # Filled layer by layer: with a list of layers and their stack, the weights of all heads would be held twice.
    heads = {name: torch.empty(shape, dtype=torch.float64) for name, shape in shapes.items()}
    heads["b_O"] = torch.empty(cfg.n_layers, cfg.d_model, dtype=torch.float64)
    for layer, block in enumerate(model.blocks):
        for name, weight in _layer(block.ln1, block.attn).items():
            heads[name][layer] = weight
    gain, shift, centred = _norm(model.ln_final, cfg.d_model)
    W_U = model.unembed.W_U.detach().cpu()
    b_U = torch.cat([shift @ columns.double() for columns in W_U.split(TOKEN_BLOCK, dim=1)]) + _copy(model.unembed.b_U)
    positions = cfg.positional_embedding_type in ("standard", "shortformer")
    shortformer = cfg.positional_embedding_type == "shortformer"
    return FoldedWeights(
        **heads,
        W_E=model.embed.W_E.detach().cpu(),
        W_U=W_U,
        gain_U=gain,
        b_U=b_U,
        W_pos=_copy(model.pos_embed.W_pos) if positions else None,
        pos_Q=_copy(model.W_Q) if shortformer else heads["W_Q"],
        pos_K=_copy(model.W_K) if shortformer else heads["W_K"],
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
    """``P diag(w) W`` for ``W [..., d_model, n]``, in place: callers hand over their own copy."""
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
