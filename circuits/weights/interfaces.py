"""What heads write to the residual stream and read from it: the two sides of a composition score.

A head writes ``A = F W_V W_O`` and reads, as queries, keys or values,

    Q: B^T = F W_K W_Q^T      K: B^T = F W_Q W_K^T      V: B^T = W_O^T W_V^T

norms folded in. The stream is on the right of each (columns of ``A``, of ``B^T``), so its right singular vectors are directions
of the stream. ``F`` says what comes into the heads, by a root of its second moment, ``F^T F``; a value's own output is not read
by anything here, so ``V`` has none. Four kinds:

    everything    every direction equally: ``F`` is the identity, and scores are those of Elhage et al. 2021
    tokens        token embeddings, ``F^T F = W_E^T W_E``: what a head writes and reads because of a token
    positions     position embeddings. Standard positions: ``F^T F = W_pos^T W_pos``. Shortformer positions reach queries and keys
                  behind the norm and never the stream, so writers get tokens and readers ``W_pos`` through ``pos_Q, pos_K``
    activations   what the layer's heads read on given tokens: the second moment of ``x P / sigma`` over all positions

The last three restrict a score to what is in fact written and read; a strong direction that nothing enters counts for nothing.
Norm scales, which differ between positions, are in the activations and left out of tokens and positions.

Source: Elhage et al. 2021, "composition scores"; Merullo et al. 2024 for weighing by what comes in.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.protocol import check_tokens, device_of, resid_pre_name, undisturbed
from circuits.weights.factored import check_factors
from circuits.weights.folded import FoldedWeights

Incoming = Literal["everything", "tokens", "positions", "activations"]
INCOMING: tuple[str, ...] = get_args(Incoming)
MODES = ("Q", "K", "V")
Root = Float[Tensor, "_ d_model"]


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the interface, of several heads: singular values and where they point in the residual stream.

    Attributes:
        squares: squared singular values, descending, ``[head, r]``. directions: orthonormal rows, ``[head, r, dims]``.
    """

    squares: Float[Tensor, "head r"]
    directions: Float[Tensor, "head r dims"]


def side(outer: Float[Tensor, "head m r"], inner: Float[Tensor, "head r dims"]) -> Side:
    """Singular values of ``outer @ inner`` and its right singular vectors, without forming the product.

    With ``outer = Q R`` and ``inner^T = Q' R'`` both come from the small core ``R R'^T = U diag(S) V^T``: the directions are
    ``V^T Q'^T``, and ``Q`` is not needed.
    """
    outer, inner = check_factors(outer, inner)
    return _side(torch.linalg.qr(outer, mode="r").R, *torch.linalg.qr(inner.mT))


def _side(outer: Tensor, frame: Float[Tensor, "head dims k"], inner: Float[Tensor, "head k r"]) -> Side:
    """The side of ``Q outer (frame inner)^T``, whatever ``Q``."""
    core = outer @ inner.mT
    short = core.shape[-1] - core.shape[-2]
    if short > 0:  # fewer inputs than dimensions of a head: the other singular values are 0
        core = torch.nn.functional.pad(core, (0, 0, 0, short))
    _, singular, right = torch.linalg.svd(core, full_matrices=False)
    return Side(singular.square(), right @ frame.mT)


@dataclass(frozen=True, eq=False)
class Interfaces:
    """The sides of every head of a model, for one kind of input.

    Attributes:
        weights: norms folded. into_writers, into_readers: roots ``F`` of each layer, None for the identity.
        behind_norm: whether readers' inputs are shortformer positions.
        removed: orthonormal rows taken out of what is written and read. kept: decomposed weights of the last layer asked for.
    """

    weights: FoldedWeights
    into_writers: tuple[Root | None, ...]
    into_readers: tuple[Root | None, ...]
    behind_norm: bool = False
    removed: Float[Tensor, "k d_model"] | None = None
    kept: dict[tuple[int, str, bool], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def dims(self) -> int:
        """Dimensions in which writers and readers meet."""
        return self.weights.dims - (0 if self.removed is None else len(self.removed))

    def writers(self, layer: int) -> Side:
        """What the heads of a layer write."""
        return self._of(self._entering(self.into_writers[layer], "V", layer), self._split("O", layer, met=True))

    def readers(self, layer: int, mode: str) -> Side:
        """What the heads of a layer read as queries, keys or values: ``mode`` is ``"Q"``, ``"K"`` or ``"V"``."""
        w, root = self.weights, self.into_readers[layer]
        if mode == "V":
            return self._of(self._split("O", layer)[1], self._split("V", layer, met=True))
        if self.behind_norm:
            assert root is not None
            outer = torch.linalg.qr(root @ (w.pos_K if mode == "Q" else w.pos_Q)[layer], mode="r").R
        else:
            outer = self._entering(root, "K" if mode == "Q" else "Q", layer)
        return self._of(outer, self._split(mode, layer, met=True))

    def _of(self, outer: Tensor, inner: tuple[Tensor, Tensor]) -> Side:
        """Decomposed in float64, kept in the model's precision: directions are many, and cosines need no more."""
        made = _side(outer, *inner)
        # There are no more directions than dimensions; where the norms leave fewer than d_head, the other values are 0.
        made = Side(made.squares[:, : self.dims], made.directions[:, : self.dims])
        return Side(made.squares, made.directions.to(self.weights.W_E.dtype))

    def _entering(self, root: Root | None, name: str, layer: int) -> Tensor:
        """The triangle of ``F W``."""
        return self._split(name, layer)[1] if root is None else torch.linalg.qr(root @ self._weight(name, layer), mode="r").R

    def _split(self, name: str, layer: int, *, met: bool = False) -> tuple[Tensor, Tensor]:
        """Orthonormal frame and triangle of a weight with the stream as rows; kept until another layer is asked for."""
        met = met and self.removed is not None
        if self.kept and next(iter(self.kept))[0] != layer:
            self.kept.clear()
        if (layer, name, met) not in self.kept:
            weight = self._weight(name, layer)
            self.kept[layer, name, met] = tuple(torch.linalg.qr(self.met(weight.mT).mT if met else weight))
        return self.kept[layer, name, met]

    def _weight(self, name: str, layer: int) -> Float[Tensor, "head d_model r"]:
        w = self.weights
        return w.writes(w.W_O[layer]).mT if name == "O" else {"Q": w.W_Q, "K": w.W_K, "V": w.W_V}[name][layer]

    def met(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Vectors of the stream without the directions that are removed."""
        return x if self.removed is None else x - (x @ self.removed.mT) @ self.removed


def interfaces(
    model: Any, weights: FoldedWeights, incoming: str, tokens: Int[Tensor, "example pos"] | None, *, remove_mean: bool
) -> Interfaces:
    """The sides of every head for one kind of input.

    Args:
        model: whose weights these are; run on ``tokens`` if ``incoming`` is ``"activations"``, and left as found.
        remove_mean: take the direction of the mean token embedding out of what is written and read.

    Raises:
        ValueError: positions that there are none of, or tokens that do not fit the model.
    """
    layers, kind = weights.cfg.n_layers, weights.cfg.positional_embedding_type
    removed = mean_direction(weights) if remove_mean else None
    check_dims(weights.dims - remove_mean)
    if incoming == "everything":
        nothing = (None,) * layers
        return Interfaces(weights, nothing, nothing, removed=removed)
    if incoming == "activations":
        assert tokens is not None
        roots = tuple(root_of(moment) for moment in activation_moments(model, weights, tokens))
        return Interfaces(weights, roots, roots, removed=removed)
    of_tokens = (root_of(weights.C),) * layers
    if incoming == "tokens":
        return Interfaces(weights, of_tokens, of_tokens, removed=removed)
    if weights.W_pos is None:
        raise ValueError(f"the model has {kind!r} positions, which are no vectors; use incoming='tokens' or 'activations'")
    of_positions = (root_of(weights.W_pos.mT @ weights.W_pos),) * layers
    behind_norm = kind == "shortformer"
    return Interfaces(weights, of_tokens if behind_norm else of_positions, of_positions, behind_norm, removed)


def check_dims(dims: int) -> None:
    """Refuse a stream in which there is no direction to be random.

    Raises:
        ValueError: fewer than 2 dimensions.
    """
    if dims < 2:
        raise ValueError(f"writers and readers meet in {dims} dimensions, a null needs 2: use a model with a larger d_model")


def root_of(moment: Float[Tensor, "d_model d_model"]) -> Root:
    """``F`` with ``F^T F`` the moment, ``sqrt(eigenvalues) * eigenvectors^T``; as many rows as eigenvalues are not rounding."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > values[-1] * 1e-14
    return values[kept].sqrt()[:, None] * vectors[:, kept].mT


def mean_direction(weights: FoldedWeights) -> Float[Tensor, "1 d_model"]:
    """The direction of the mean token embedding, as readers see it: it is in every token and tells none from another.

    Raises:
        ValueError: the mean embedding is zero, so there is nothing to remove.
    """
    mean = weights.writes(weights.W_E.mean(0, dtype=torch.float64))
    size = mean.norm()
    if not float(size) > 0:
        raise ValueError("the mean token embedding is zero and has no direction; use remove_mean=False")
    return (mean / size)[None]


def activation_moments(
    model: Any, weights: FoldedWeights, tokens: Int[Tensor, "example pos"]
) -> list[Float[Tensor, "d_model d_model"]]:
    """Second moment of what each layer's heads read, ``x P / sigma`` (before gain and shift), over examples and positions."""
    cfg = weights.cfg
    check_tokens(tokens, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, needed_by="a second moment")
    moments = [torch.zeros(cfg.d_model, cfg.d_model, dtype=torch.float64) for _ in range(cfg.n_layers)]
    normed = cfg.normalization_type is not None

    def keep(x: Tensor, hook: Any) -> None:
        seen = weights.writes(x.detach().to("cpu", torch.float64).flatten(0, 1))
        if normed:
            seen = seen / (seen.square().mean(-1, keepdim=True) + cfg.eps).sqrt()
        moments[int(hook.name.split(".")[1])].addmm_(seen.mT, seen)

    with undisturbed(model), model.hooks(fwd_hooks=[(resid_pre_name(layer), keep) for layer in range(cfg.n_layers)]):
        for part in tokens.to(device_of(model)).split(16):
            model(part)
    return [moment / tokens.numel() for moment in moments]
