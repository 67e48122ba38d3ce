"""Q-, K- and V-composition: how much of what a head reads is what an earlier head writes.

With ``W_OV = W_V W_O`` of the earlier head (``src``) and ``W_QK = W_Q W_K^T``, ``W_OV`` of the later one (``dst``), rows in,
columns out, the score of Elhage et al. 2021 is a ratio of Frobenius norms in [0, 1],

    Q: ||W_OV^src W_QK|| / (||W_OV^src|| ||W_QK||),   K: ||W_OV^src W_QK^T|| / (...),   V: ||W_OV^src W_OV^dst|| / (...),

with every norm folded in (``weights/folded.py``). Through singular value decompositions ``A = X diag(s) V^T`` of the writer
and ``B = W diag(t) Y^T`` of the reader its square is ``sum_ij s_i^2 t_j^2 C_ij^2 / (sum s^2 sum t^2)``, where ``C = V^T W`` are
the cosines between what is written and what is read; so one matrix of cosines gives everything here:

    value               the score
    normalised          (S - 1/d) / (S_max - 1/d), S the squared score, S_max that of perfectly aligned sorted spectra
    by_writer           max_i sum_j t_j^2 C_ij^2 / sum t^2: how strongly the best-read single direction of the writer is read,
    by_reader           and the converse: a channel of 1 to 4 dimensions shows here and hardly in the score
    kernel              sum_ij C_ij^2 / min(r, q), the overlap of the two subspaces in [0, 1]

A large score is no evidence by itself, nor is a small one (a trained model with a perfect K-composition circuit can score
below random). Beside it stand three nulls, each with its question:

    null_mean, null_sd, z, p   of S: more than matrices with these spectra in random orientation? (``weights/haar.py``)
    p_layer                    more than the other pairs of the same two layers? The rank, so never below 1 / number of pairs
    p_covariance               more than directions drawn from what the two layers' heads write and read on the whole?

Source: Elhage et al. 2021, "composition scores"; Merullo et al. 2024 (components); Yamagiwa et al. 2026 (projection kernel).
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.protocol import model_hash
from circuits.results import labelled
from circuits.weights.factored import product_svd
from circuits.weights.folded import FoldedWeights, folded
from circuits.weights.haar import corner_blocks, largest_component_tail, shares, squared_score_moments, upper_tail

MODES = ("Q", "K", "V")


@dataclass(frozen=True)
class Side:
    """One side of the interface, of several heads: singular values and where they point in the residual stream.

    Attributes:
        squares: squared singular values, descending, ``[head, r]``. directions: orthonormal rows, ``[head, r, dims]``.
    """

    squares: Float[Tensor, "head r"]
    directions: Float[Tensor, "head r dims"]


def side(outer: Float[Tensor, "head m r"], inner: Float[Tensor, "head r dims"]) -> Side:
    """Singular values of ``outer @ inner`` and its right singular vectors, without forming the product."""
    _, singular, right = product_svd(outer, inner)
    return Side(singular.square(), right)


def writers(weights: FoldedWeights, layer: int, *, weighting: Tensor | None = None, basis: Tensor | None = None) -> Side:
    """What the heads of a layer write: ``W_V W_O``.

    Args:
        weighting: a square root ``F [n, d_model]`` of the second moment ``F^T F`` of what the heads read; None is the identity.
        basis: orthonormal columns ``[d_model, k]`` of the subspace the interface is restricted to.
    """
    outer = weights.W_V[layer] if weighting is None else weighting @ weights.W_V[layer]
    inner = weights.writes(weights.W_O[layer])
    return side(outer, inner if basis is None else inner @ basis)


def readers(
    weights: FoldedWeights, layer: int, mode: str, *, weighting: Tensor | None = None, basis: Tensor | None = None
) -> Side:
    """What the heads of a layer read as queries (``W_QK``), keys (``W_QK^T``) or values (``W_OV``); arguments as ``writers``."""
    interface, other = {
        "Q": (weights.W_Q[layer], weights.W_K[layer]),
        "K": (weights.W_K[layer], weights.W_Q[layer]),
        "V": (weights.W_V[layer], weights.writes(weights.W_O[layer]).transpose(1, 2)),
    }[mode]
    if weighting is not None and mode != "V":  # what a value becomes is not read by tokens
        other = weighting @ other
    inner = interface if basis is None else basis.T @ interface
    return side(other, inner.transpose(1, 2))


@dataclass(frozen=True)
class Pairs:
    """Scores of every writer with every reader, each ``[src, dst]``; ``squared`` is the square of the composition score."""

    squared: Float[Tensor, "src dst"]
    normalised: Float[Tensor, "src dst"]
    by_writer: Float[Tensor, "src dst"]
    by_reader: Float[Tensor, "src dst"]
    kernel: Float[Tensor, "src dst"]


def compose_pairs(writer: Side, reader: Side, dims: int) -> Pairs:
    """All scores of all pairs, from one matrix of squared cosines.

    Args:
        dims: dimensions the two sides meet in, for the random baseline of ``normalised``.

    Returns:
        Scores; a zero matrix composes with nothing, so its scores are 0.
    """
    src, r, dst, q = *writer.directions.shape[:2], *reader.directions.shape[:2]
    a, b = shares(writer.squares), shares(reader.squares)
    cosines = writer.directions.flatten(0, 1) @ reader.directions.flatten(0, 1).T
    squares = cosines.square().view(src, r, dst, q)
    # Directions of vanishing singular values are arbitrary: they belong to no subspace.
    real_a, real_b = _real(writer.squares), _real(reader.squares)
    written = torch.einsum("srdq,dq->srd", squares, b)  # how strongly each direction of the writer is read
    read = torch.einsum("srdq,sr->sdq", squares, a)
    squared = torch.einsum("srd,sr->sd", written, a)
    most = a[:, : min(r, q)] @ b[:, : min(r, q)].T
    rank = torch.minimum(real_a.sum(-1)[:, None], real_b.sum(-1)[None]).clamp_min(1)
    chance = 1 / dims
    span = torch.where(most > chance, most - chance, torch.nan)
    return Pairs(
        squared=squared,
        normalised=torch.where(squared > 0, (squared - chance) / span, 0.0),
        by_writer=(written * real_a[:, :, None]).amax(1),
        by_reader=(read * real_b[None]).amax(2),
        kernel=torch.einsum("srdq,sr,dq->sd", squares, real_a, real_b) / rank,
    )


def _real(squares: Float[Tensor, "head r"]) -> Float[Tensor, "head r"]:
    """1 for singular values that are not rounding, 0 for the rest."""
    return (squares > squares.amax(-1, keepdim=True) * 1e-20).to(squares) * (squares > 0)


def covariance_blocks(writer: Side, reader: Side, draws: int, rng: torch.Generator) -> Float[Tensor, "draw r q"]:
    """Cosines of orthonormal frames drawn from what the writers write and the readers read on the whole.

    Each frame spans ``r`` Gaussian vectors whose covariance is the mean over heads of ``sum_i s_i^2 v_i v_i^T / sum s^2``.
    """
    frames = []
    for one in (writer, reader):
        heads, r = one.directions.shape[:2]
        # A Gaussian vector of that covariance is a random combination of all heads' weighted directions.
        scaled = (shares(one.squares)[..., None].sqrt() * one.directions).flatten(0, 1).float()
        mixed = torch.randn(draws, r, heads * r, generator=rng) @ scaled
        frames.append(torch.linalg.qr(mixed.transpose(1, 2)).Q)
    return frames[0].transpose(1, 2) @ frames[1]


@lru_cache(maxsize=4)
def _haar_blocks(rows: int, columns: int, dims: int, draws: int, seed: int) -> Float[Tensor, "draw rows columns"]:
    """The random-orientation null's draws, the same for every pair and every checkpoint of a shape."""
    return corner_blocks(rows, columns, dims, draws, torch.Generator().manual_seed(seed))


def gaussian_baseline(dims: int, d_head: int, *, heads: int = 200, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the score of heads with Gaussian weights: the constant that papers subtract.

    About ``1 / sqrt(dims)``. It ignores spectra, so it calls too many or too few pairs of a trained model large.
    """
    rng = torch.Generator().manual_seed(seed)
    made = [torch.randn(heads, dims, d_head, generator=rng, dtype=torch.float64) for _ in range(4)]
    writer, reader = side(made[0], made[1].transpose(1, 2)), side(made[2], made[3].transpose(1, 2))
    scores = compose_pairs(writer, reader, dims).squared.sqrt().diagonal()
    return float(scores.mean()), float(scores.std())


@dataclass(frozen=True)
class Composition:
    """Composition of every earlier head with every later one: ``Dataset(mode, src_layer, src_head, dst_layer, dst_head)``.

    Args:
        draws: sampled orientations behind ``p``, which is never below ``1 / (1 + draws)``. covariance_draws: behind
            ``p_covariance``; 0 leaves it out (NaN). seed: of both.
        tokens: weigh what heads read by the token embeddings, ``W_E^T W_E``: how much composes when tokens come in.
    """

    draws: int = 20_000
    covariance_draws: int = 500
    seed: int = 0
    tokens: bool = False
    name: str = field(default="composition", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        whole = isinstance(self.draws, int) and isinstance(self.covariance_draws, int)
        if not whole or self.draws < 1 or self.covariance_draws < 0:
            given = f"draws={self.draws!r}, covariance_draws={self.covariance_draws!r}"
            raise ValueError(f"{given}: need whole numbers of at least 1 and 0")

    def spec(self) -> dict[str, Any]:
        return {"draws": self.draws, "covariance_draws": self.covariance_draws, "seed": self.seed, "tokens": self.tokens}

    def __call__(self, model: Any) -> Any:
        """Measure a model.

        Returns:
            ``value`` in [0, 1] and the variables of this module's docstring; NaN where the source is not in an earlier layer.
            Scores are functions of the weights alone and have no standard error.

        Raises:
            TypeError, ValueError: not a hooked model, NaN weights, one layer alone, or a model that cannot be represented.
        """
        weights = folded(model)
        layers, heads = weights.W_O.shape[:2]
        if layers < 2:
            raise ValueError("the model has 1 layer, composition needs 2: an earlier head to write and a later one to read")
        grid = ("mode", "src_layer", "src_head", "dst_layer", "dst_head")
        names = ("value", "normalised", "by_writer", "by_reader", "kernel", "null_mean", "null_sd", "z", "p")
        names += ("p_by_writer", "p_layer", "p_covariance")
        found = {name: np.full((len(MODES), layers, heads, layers, heads), np.nan) for name in names}
        weighting = weights.writes(weights.W_E) if self.tokens else None
        written = [writers(weights, layer, weighting=_root(weighting)) for layer in range(layers)]
        rng = torch.Generator().manual_seed(self.seed)
        for later in range(1, layers):
            for m, mode in enumerate(MODES):
                reader = readers(weights, later, mode, weighting=_root(weighting))
                for earlier in range(later):
                    part = self._pair_of_layers(written[earlier], reader, weights.dims, rng)
                    for name, values in part.items():
                        found[name][m, earlier, :, later] = values.numpy()
        mean, sd = gaussian_baseline(weights.dims, weights.cfg.d_head)
        return labelled(
            {name: (grid, values) for name, values in found.items()} | {"chance": ((), mean)},
            {"mode": list(MODES), **{dim: np.arange(n) for dim, n in zip(grid[1:], (layers, heads) * 2, strict=True)}},
            measure=self,
            definition="||A B|| / (||A|| ||B||) of what one head writes and another reads, norms folded in",
            source="Elhage et al. 2021; nulls of circuits.weights.haar",
            model_hash=model_hash(model),
            seed=self.seed,
            stderr="none: a function of the weights alone",
            null="matrices of the same spectra in random orientation; null_mean, null_sd and z are of the squared score",
            smallest_p=1 / (1 + self.draws),
            smallest_p_layer=1 / heads**2,
            smallest_p_covariance=1 / (1 + self.covariance_draws) if self.covariance_draws else np.nan,
            gaussian_sd=sd,
        )

    def _pair_of_layers(self, writer: Side, reader: Side, dims: int, rng: torch.Generator) -> dict[str, Tensor]:
        pairs = compose_pairs(writer, reader, dims)
        mean, sd = squared_score_moments(writer.squares[:, None], reader.squares[None], dims)
        blocks = _haar_blocks(writer.squares.shape[1], reader.squares.shape[1], dims, self.draws, self.seed)
        flat = pairs.squared.flatten()
        at_least = (flat[None] >= flat[:, None] * (1 - 1e-12)).sum(1).view_as(pairs.squared)
        found = {
            "value": pairs.squared.sqrt(),
            "normalised": pairs.normalised,
            "by_writer": pairs.by_writer,
            "by_reader": pairs.by_reader,
            "kernel": pairs.kernel,
            "null_mean": mean,
            "null_sd": sd,
            "z": torch.where(sd > 0, (pairs.squared - mean) / sd, 0.0),
            "p": upper_tail(pairs.squared, writer.squares, reader.squares, blocks),
            "p_by_writer": largest_component_tail(pairs.by_writer, reader.squares, blocks),
            "p_layer": at_least.double() / len(flat),
        }
        if self.covariance_draws:
            drawn = covariance_blocks(writer, reader, self.covariance_draws, rng)
            found["p_covariance"] = upper_tail(pairs.squared, writer.squares, reader.squares, drawn)
        return found


def _root(rows: Float[Tensor, "n d_model"] | None) -> Float[Tensor, "m d_model"] | None:
    """A square root of ``rows^T rows`` with at most d_model rows: the triangle of its QR decomposition."""
    return None if rows is None else torch.linalg.qr(rows).R
