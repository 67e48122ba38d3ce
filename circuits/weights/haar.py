"""Random orientation: how strongly two matrices would compose if they had nothing to do with each other.

A writer ``A`` (rows out, columns the residual stream) and a reader ``B`` have squared singular values ``a_i`` and ``b_j``. Turn
one of them by a Haar-random orthogonal matrix of the ``d`` dimensions they share. With ``C_ij`` the cosine between singular
direction ``i`` of the writer and ``j`` of the reader, the squared composition score is

    S = ||A B||^2 / (||A||^2 ||B||^2) = sum_ij a_i b_j C_ij^2 / (sum a  sum b),

and under the rotation ``C`` is a corner block of a Haar matrix ``U``. From ``E U_ij^2 = 1/d`` and the fourth moments

    E U_ij^4 = 3 / (d (d+2)),   E U_ij^2 U_ik^2 = 1 / (d (d+2)),   E U_ij^2 U_kl^2 = (d+1) / (d (d-1) (d+2))   (i != k, j != l)

the mean of ``S`` is ``1/d`` whatever the spectra, and its variance has a closed form in ``sum a^2`` and ``sum b^2``. The upper
tail is skewed for steep spectra, where a normal or gamma law is wrong, so p-values count how many of ``n`` sampled corner
blocks score as high: ``p = (1 + count) / (1 + n)``, never below ``1 / (1 + n)``.

This null answers "more than two heads of random orientation?" and nothing else: in a trained model about half of all pairs
exceed it. Source: Elhage et al. 2021 (the baseline to subtract); Collins and Sniady 2006 for the moments.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""How much of the sampled blocks and scores is in memory at once."""


def squared_score_moments(
    a: Float[Tensor, "*#batch r"], b: Float[Tensor, "*#batch q"], dims: int
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Mean and standard deviation of the squared score under random orientation, exactly.

    Args:
        a, b: squared singular values of writer and reader. dims: dimensions of the space they meet in.

    Returns:
        The mean, ``1 / dims``, and the standard deviation; both 0 where one matrix is zero.

    Raises:
        ValueError: fewer than 2 dimensions, or more singular values than dimensions.
    """
    if dims < 2 or max(a.shape[-1], b.shape[-1]) > dims:
        raise ValueError(
            f"{a.shape[-1]} and {b.shape[-1]} singular values in {dims} dimensions; need at most {dims}, and dims >= 2"
        )
    a, b = shares(a), shares(b)
    first_a, first_b = a.sum(-1), b.sum(-1)  # 1, or 0 for a zero matrix
    second_a, second_b = (a**2).sum(-1), (b**2).sum(-1)
    same, line, apart = 3 / (dims * (dims + 2)), 1 / (dims * (dims + 2)), (dims + 1) / (dims * (dims - 1) * (dims + 2))
    cross_a, cross_b = first_a**2 - second_a, first_b**2 - second_b
    square = same * second_a * second_b + line * (second_a * cross_b + cross_a * second_b) + apart * cross_a * cross_b
    mean = first_a * first_b / dims
    return mean, (square - mean**2).clamp_min(0).sqrt()


def shares(squares: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
    """Each value's share of the sum; zeros stay zeros."""
    total = squares.sum(-1, keepdim=True)
    return squares / torch.where(total > 0, total, 1)


def corner_blocks(rows: int, columns: int, dims: int, draws: int, rng: torch.Generator) -> Float[Tensor, "draw rows columns"]:
    """Top-left blocks of Haar-random orthogonal ``dims x dims`` matrices, in float32.

    A Haar matrix's first ``c`` columns are ``G R^-1`` for a Gaussian ``G [dims, c]`` with ``R^T R = G^T G``. Of ``G`` only the
    top rows are needed: the Gram matrix of the others is a Wishart matrix, drawn as ``T T^T`` with Bartlett's triangular
    ``T``, whose squared diagonal is chi^2 with ``dims - rows``, ``dims - rows - 1``, ... degrees of freedom.
    """
    if columns > rows:
        return corner_blocks(columns, rows, dims, draws, rng).transpose(1, 2)
    if dims - rows < columns:  # the block is nearly the whole matrix
        return torch.linalg.qr(torch.randn(draws, dims, columns, generator=rng)).Q[:, :rows]
    top = torch.randn(draws, rows, columns, generator=rng)
    bartlett = torch.randn(draws, columns, columns, generator=rng).tril(-1)
    freedom = (dims - rows - np.arange(columns)).astype(np.float64)
    seed = int(torch.randint(2**62, (), generator=rng))
    chi = np.sqrt(np.random.default_rng(seed).chisquare(freedom, size=(draws, columns)))
    bartlett += torch.diag_embed(torch.from_numpy(chi).float())
    gram = top.transpose(1, 2) @ top + bartlett @ bartlett.transpose(1, 2)
    lower = torch.linalg.cholesky(gram)
    return torch.linalg.solve_triangular(lower, top.transpose(1, 2), upper=False).transpose(1, 2)


def upper_tail(
    squared: Float[Tensor, "src dst"],
    a: Float[Tensor, "src r"],
    b: Float[Tensor, "dst q"],
    blocks: Float[Tensor, "draw r q"],
) -> Float[Tensor, "src dst"]:
    """Probability of a squared score at least this large, counted over sampled cosines, which all pairs share.

    Args:
        squared: observed squared scores. a, b: squared singular values of writers and readers.
        blocks: cosines under the null, ``corner_blocks(r, q, dims, ...)`` for random orientation.

    Returns:
        ``(1 + count) / (1 + draws)``; 1 for a zero matrix.
    """
    weights_a, weights_b = shares(a).float(), shares(b).float()
    # Equal scores computed in another order of summation must count as reached.
    reached = (squared * (1 - 1e-6)).float()
    counts = torch.zeros(squared.shape, dtype=torch.int64)
    per_draw = 4 * (blocks.shape[1] * (blocks.shape[2] + b.shape[0]) + squared.numel())
    for part in blocks.split(max(1, BLOCK_BYTES // per_draw)):
        read = torch.einsum("kij,nj->kin", part.square(), weights_b)
        counts += (torch.einsum("mi,kin->kmn", weights_a, read) >= reached).sum(0)
    return (1 + counts).double() / (1 + len(blocks))


def largest_component_tail(
    component: Float[Tensor, "src dst"], b: Float[Tensor, "dst q"], blocks: Float[Tensor, "draw r q"]
) -> Float[Tensor, "src dst"]:
    """Probability that the strongest of the writer's directions is read at least this strongly, counted likewise.

    Args:
        component: observed ``max_i sum_j b_j C_ij^2 / sum b``.
    """
    weights_b, reached = shares(b).float(), (component * (1 - 1e-6)).float()
    counts = torch.zeros(component.shape, dtype=torch.int64)
    per_draw = 4 * (blocks.shape[1] * (blocks.shape[2] + b.shape[0]) + component.numel())
    for part in blocks.split(max(1, BLOCK_BYTES // per_draw)):
        strongest = torch.einsum("kij,nj->kin", part.square(), weights_b).amax(1)
        counts += (strongest[:, None] >= reached).sum(0)
    return (1 + counts).double() / (1 + len(blocks))
