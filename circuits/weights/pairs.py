"""Scores of every writer with every reader, from one matrix of cosines; definitions in ``circuits.weights.composition``."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.haar import corner_blocks, shares
from circuits.weights.interfaces import Side


@dataclass(frozen=True)
class Pairs:
    """Scores of every writer with every reader, each ``[src, dst]``; ``squared`` is the square of the composition score."""

    squared: Float[Tensor, "src dst"]
    normalised: Float[Tensor, "src dst"]
    by_writer: Float[Tensor, "src dst"]
    by_reader: Float[Tensor, "src dst"]
    strongest: Float[Tensor, "src dst"]
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
    # Directions of vanishing singular values are arbitrary: they belong to no subspace.
    real_a, real_b = significant(writer), significant(reader)
    cosines = writer.directions.flatten(0, 1) @ reader.directions.flatten(0, 1).T
    squares = cosines.square_().view(src, r, dst, q)
    # How strongly each direction of the writer is read, and how much of it lies in the reader's subspace.
    weights_b = torch.stack((b, real_b), -1).to(squares)
    read, inside = torch.einsum("srdq,dqw->srdw", squares, weights_b).double().unbind(-1)
    written = torch.einsum("srdq,sr->sdq", squares, a.to(squares)).double()
    squared = torch.einsum("srd,sr->sd", read, a)
    most = a[:, : min(r, q)] @ b[:, : min(r, q)].T
    rank = torch.minimum(real_a.sum(-1)[:, None], real_b.sum(-1)[None]).clamp_min(1)
    chance = 1 / dims
    span = torch.where(most > chance, most - chance, torch.nan)
    return Pairs(
        squared=squared,
        normalised=torch.where(squared > 0, (squared - chance) / span, 0.0),
        by_writer=(read * real_a[:, :, None]).amax(1),
        by_reader=(written * real_b[None]).amax(2),
        strongest=squares.mul_(real_a.to(squares)[:, :, None, None]).mul_(real_b.to(squares)).amax((1, 3)).double(),
        kernel=torch.einsum("srd,sr->sd", inside, real_a) / rank,
    )


def significant(one: Side) -> Float[Tensor, "head r"]:
    """1 for singular values that are not rounding: above ``r`` units in the last place of the largest, or 1e-10 of it; else 0."""
    squares, r = one.squares, one.squares.shape[-1]
    least = max(1e-10, r * torch.finfo(one.directions.dtype).eps) ** 2
    return (squares > squares.amax(-1, keepdim=True) * least).to(squares) * (squares > 0)


@lru_cache(maxsize=16)
def gaussian_baseline(dims: int, d_head: int, *, heads: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the score of heads with Gaussian weights: the constant that papers subtract.

    About ``1 / sqrt(dims)``. It ignores spectra, so it calls too many or too few pairs of a trained model large.

    No ``dims x d_head`` matrix is drawn. With ``A = Q1 R1 R2^T Q2^T`` and ``B = Q3 R3 R4^T Q4^T`` the product's norm is that of
    ``R1 R2^T C R3 R4^T``, where ``C = Q2^T Q3`` is a Haar block and each ``R`` is Bartlett's triangle: normal above the
    diagonal, chi with ``dims, dims - 1, ...`` degrees of freedom on it. Heads wider than ``dims`` are drawn with ``dims``.
    """
    r = min(d_head, dims)
    rng, other = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    scores = []
    for start in range(0, heads, 100):
        n = min(100, heads - start)
        freedom = np.broadcast_to(dims - np.arange(r, dtype=np.float64), (4, n, r))
        chi = torch.from_numpy(np.sqrt(other.chisquare(freedom)))
        R = torch.randn(4, n, r, r, generator=rng, dtype=torch.float64).triu(1) + torch.diag_embed(chi)
        writer, reader = R[0] @ R[1].mT, R[2] @ R[3].mT
        blocks = corner_blocks(r, r, dims, n, rng).double()
        both, one, two = (torch.linalg.matrix_norm(x) for x in (writer @ blocks @ reader, writer, reader))
        scores.append(both / (one * two))
    found = torch.cat(scores)
    return float(found.mean()), float(found.std())
