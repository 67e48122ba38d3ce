"""Random orientation: how strongly two matrices would compose if they had nothing to do with each other.

A writer ``A`` (rows out, columns the residual stream) and a reader ``B`` have squared singular values ``a_i`` and ``b_j``. Turn
one of them by a Haar-random orthogonal matrix of the ``d`` dimensions they share. With ``C_ij`` the cosine between singular
direction ``i`` of the writer and ``j`` of the reader, the squared composition score is

    S = ||A B||^2 / (||A||^2 ||B||^2) = sum_ij a_i b_j C_ij^2 / (sum a  sum b),

and under the rotation ``C`` is a corner block of a Haar matrix ``U``. From ``E U_ij^2 = 1/d`` and the fourth moments

    E U_ij^4 = 3 / (d (d+2)),   E U_ij^2 U_ik^2 = 1 / (d (d+2)),   E U_ij^2 U_kl^2 = (d+1) / (d (d-1) (d+2))   (i != k, j != l)

the mean of ``S`` is ``1/d`` whatever the spectra, and its variance has a closed form in ``sum a^2`` and ``sum b^2``. The upper
tail is skewed for steep spectra, where a normal or gamma law is wrong, so p-values count how many of ``n`` sampled blocks score
as high: ``p = (1 + count) / (1 + n)``, never below ``1 / (1 + n)``. All pairs share the blocks.

This null answers "more than two heads of random orientation?" and nothing else: in a trained model about half of all pairs
exceed it. Source: Elhage et al. 2021 (the baseline to subtract); Collins and Sniady 2006 for the moments.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK_BYTES = 24 * 2**20
"""How much of the sampled blocks, and of what is computed from them, is in memory at once."""


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
    """Blocks of Haar-random orthogonal ``dims x dims`` matrices, in float32.

    A Haar matrix's first ``c`` columns are ``Q = G R^-1`` for a Gaussian ``G [dims, c]`` with ``R^T R = G^T G``. Its rows are
    exchangeable, so every ``rows`` of them are a corner block; the ``dims // rows`` blocks of one ``Q`` are all used. Each has
    exactly the law of a corner; those of one matrix are weakly dependent (their squares in a column add up to at most 1),
    which makes counts over them vary less, if anything, than counts over independent ones.
    """
    if columns > rows:
        return corner_blocks(columns, rows, dims, draws, rng).transpose(1, 2)
    each = dims // rows
    frames = orthonormal(torch.randn(-(-draws // each), dims, columns, generator=rng))
    return frames[:, : each * rows].reshape(-1, rows, columns)[:draws]


def orthonormal(x: Float[Tensor, "frame dims columns"]) -> Float[Tensor, "frame dims columns"]:
    """Orthonormal columns with the span of given ones: ``X R^-1`` with ``R^T R = X^T X``.

    Many times faster than a QR decomposition for thin frames, and as exact where the Gram matrix is well conditioned, which
    Gaussian frames of at least twice as many dimensions are; others are decomposed.
    """
    dims, columns = x.shape[1:]
    if dims >= 2 * columns:
        lower, fault = torch.linalg.cholesky_ex(x.mT @ x)
        if not bool(fault.any()):
            eye = torch.eye(columns, dtype=x.dtype).expand_as(lower)
            return x @ torch.linalg.solve_triangular(lower, eye, upper=False).mT
    return torch.linalg.qr(x).Q


def squared_blocks(
    rows: int, columns: int, dims: int, draws: int, rng: torch.Generator, *, per_draw: int = 0
) -> Iterator[Float[Tensor, "rows columns draw"]]:
    """Squares of ``draws`` corner blocks, part by part, the draws last.

    Args:
        per_draw: further numbers that the caller holds for each draw.
    """
    size = max(dims // max(rows, columns), BLOCK_BYTES // (4 * (3 * rows * columns + per_draw)))
    for start in range(0, draws, size):
        yield corner_blocks(rows, columns, dims, min(size, draws - start), rng).square().permute(1, 2, 0).contiguous()


def through_writers(a: Float[Tensor, "src r"], blocks: Float[Tensor, "r *rest"]) -> Float[Tensor, "src *rest"]:
    """How strongly each of a reader's directions is written, ``sum_i a_i C_ij^2 / sum a``, from squared cosines ``[i, ...]``."""
    return (shares(a).float() @ blocks.flatten(1)).unflatten(1, blocks.shape[1:])


def reached(observed: Float[Tensor, "src dst"]) -> Float[Tensor, "src dst"]:
    """What a sample has to reach: equal scores computed in another order of summation must count."""
    return (observed * (1 - 1e-6)).float()


def count_largest(observed: Float[Tensor, "one other"], samples: Float[Tensor, "one draw"]) -> Int[Tensor, "one other"]:
    """How many of each row's samples reach each of its observed values."""
    ordered = samples.sort(dim=1).values
    return samples.shape[1] - torch.searchsorted(ordered, reached(observed).contiguous())


def upper_tails(
    squared: Float[Tensor, "src dst"],
    a: Float[Tensor, "src r"],
    b: Float[Tensor, "dst q"],
    pairs: list[tuple[slice, slice]],
    dims: int,
    draws: int,
    rng: torch.Generator,
    *,
    by_writer: Float[Tensor, "src dst"] | None = None,
    by_reader: Float[Tensor, "src dst"] | None = None,
    strongest: Float[Tensor, "src dst"] | None = None,
    kernel: Float[Tensor, "src dst"] | None = None,
) -> dict[str, Float[Tensor, "src dst"]]:
    """Upper-tail p-values under random orientation, of the score and of its strongest components.

    Args:
        squared: observed squared scores. a, b: squared singular values of writers and readers.
        pairs: blocks of sources and destinations that are asked for; the score's p is 1 elsewhere.
        dims: of the space they meet in. draws: sampled orientations, shared by all pairs.
        by_writer, by_reader, strongest, kernel: observed ``max_i sum_j b_j C_ij^2 / sum b``, ``max_j sum_i a_i C_ij^2 / sum a``,
            ``max_ij C_ij^2`` and ``sum_ij C_ij^2 / min(r, q)``, if wanted.

    Returns:
        ``p``, and ``p_by_writer, p_by_reader, p_strongest, p_kernel`` where given: ``(1 + count) / (1 + draws)``; 1 for a zero
        matrix.
    """
    observed = {"p": squared, "p_by_writer": by_writer, "p_by_reader": by_reader, "p_strongest": strongest, "p_kernel": kernel}
    counts = {name: torch.zeros(x.shape, dtype=torch.int64) for name, x in observed.items() if x is not None}
    weights_b, bound = shares(b).float(), reached(squared)
    # Held for each draw: what writers write, what readers read, and the scores of one block of pairs.
    largest = max((bound[pair].numel() for pair in pairs), default=0)
    held = len(a) * b.shape[1] + 2 * largest + (0 if by_writer is None else len(b) * a.shape[1])
    for blocks in squared_blocks(a.shape[1], b.shape[1], dims, draws, rng, per_draw=held):
        written = through_writers(a, blocks)  # [src q draw]
        for source, destination in pairs:
            scores = torch.matmul(weights_b[destination], written[source])  # [src dst draw]
            counts["p"][source, destination] += (scores >= bound[source, destination, None]).sum(-1)
        if by_writer is not None:
            counts["p_by_writer"] += count_largest(by_writer.T, torch.matmul(weights_b, blocks).amax(0)).T
        if by_reader is not None:
            counts["p_by_reader"] += count_largest(by_reader, written.amax(1))
        if strongest is not None:
            counts["p_strongest"] += count_largest(strongest.flatten()[None], blocks.amax((0, 1))[None]).view_as(strongest)
        if kernel is not None:
            overlap = blocks.sum((0, 1)) / min(blocks.shape[:2])
            counts["p_kernel"] += count_largest(kernel.flatten()[None], overlap[None]).view_as(kernel)
    return {name: (1 + found).double() / (1 + draws) for name, found in counts.items()}
