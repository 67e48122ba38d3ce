"""Products of two thin factors, kept as factors: norms, traces, eigenvalues and singular values without the product.

A product is ``left [*batch, m, r] @ right [*batch, r, n]``; rows are vectors, as everywhere, so ``W_OV`` is ``(W_V, W_O)``
and ``W_QK`` is ``(W_Q, W_K^T)``. With Grams and QR factors of size r everything is exact and nothing is m x n:

    ||L R||_F^2 = tr(L^T L  R R^T)        sum of two r x r Grams multiplied entry by entry
    tr(L R)     = sum_ij L_ij R_ji        m = n
    eig(L R)    = eig(R L) and zeros      cyclic: if L R x = a x and a != 0, then R x is an eigenvector of R L
    L R         = Q_L (R_L R_R^T) Q_R^T   thin QR of L and of R^T; the singular values are those of the core in brackets

All of it is computed in float64 whatever comes in, and comes out in float64 (eigenvalues: complex128). A zero factor gives
zeros and no NaN. transformer-lens' ``FactoredMatrix`` holds the same two factors: ``product_norm(F.A, F.B)``.

Source: Elhage et al. 2021; their composition figure was wrong because of a bug in such code (erratum on the page), so
tests/unit/test_factored.py holds all of this against dense.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def check_factors(left: Tensor, right: Tensor, *, square_for: str = "") -> tuple[Tensor, Tensor]:
    """Both factors in float64, after a look at their shapes."""
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.is_complex() or right.is_complex():
        given = [str(x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in (left, right)]
        raise TypeError(f"factors are {given[0]} and {given[1]}; need two real tensors, e.g. W_V[0, 3] and W_O[0, 3]")
    shapes = f"left {tuple(left.shape)} and right {tuple(right.shape)}"
    if min(left.ndim, right.ndim) < 2 or left.shape[-1] != right.shape[-2] or left.shape[:-2] != right.shape[:-2]:
        raise ValueError(
            f"{shapes} do not multiply; need [*batch, m, r] and [*batch, r, n] with the same batch: transpose with .mT "
            "(W_QK is W_Q and W_K.mT), or expand the smaller batch"
        )
    if square_for and left.shape[-2] != right.shape[-1]:
        raise ValueError(f"{shapes} make a product that is not square; {square_for} need m = n: use product_singular_values")
    return left.double(), right.double()


def product_norm(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r n"]) -> Float[Tensor, "*batch"]:
    """Frobenius norm of a product, ``sqrt(tr(L^T L R R^T))``, in float64.

    Args:
        left, right: the factors, of any floating type.

    Returns:
        At least 0: rounding that makes the trace negative is clamped. The error is about 1e-8 of ``||L|| ||R||`` where the
        factors all but cancel; ``product_singular_values`` keeps full precision there.

    Raises:
        TypeError: not real tensors. ValueError: shapes that do not multiply.

    Source: Elhage et al. 2021, composition scores.
    """
    left, right = check_factors(left, right)
    return ((left.mT @ left) * (right @ right.mT)).sum((-2, -1)).clamp(min=0).sqrt()


def product_trace(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r m"]) -> Float[Tensor, "*batch"]:
    """Trace of a product, ``sum_ij L_ij R_ji``: the sum of its eigenvalues and of its diagonal; in float64.

    Args:
        left, right: the factors of a square product.

    Returns:
        Any real number.

    Raises:
        TypeError: not real tensors. ValueError: shapes that do not multiply, or a product that is not square.

    Source: Elhage et al. 2021, "copying" (sum of eigenvalues = trace).
    """
    left, right = check_factors(left, right, square_for="traces")
    return (left * right.mT).sum((-2, -1))


def product_eigenvalues(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r m"]) -> Complex[Tensor, "*batch k"]:
    """The ``k = min(m, r)`` eigenvalues of a product that can differ from 0, from the r x r matrix ``R L``; complex128.

    Args:
        left, right: the factors of a square product.

    Returns:
        Eigenvalues in LAPACK's order. Those of a rank below k are zeros to rounding.

    Raises:
        TypeError: not real tensors. ValueError: shapes that do not multiply, or a product that is not square.

    Source: Elhage et al. 2021, "copying"; that the eigenvalues are the same is the cyclic identity above.
    """
    left, right = check_factors(left, right, square_for="eigenvalues")
    # Of the two orders the smaller matrix: with r > m the r x r one would only add r - m zeros.
    core = right @ left if left.shape[-1] <= left.shape[-2] else left @ right
    return torch.linalg.eigvals(core)


def product_singular_values(left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r n"]) -> Float[Tensor, "*batch k"]:
    """Singular values of a product, largest first, in float64; ``k = min(m, r, n)``.

    Args:
        left, right: the factors, of any floating type.

    Returns:
        At least 0, largest first; the remaining ones of the product are 0.

    Raises:
        TypeError: not real tensors. ValueError: shapes that do not multiply.

    Source: Chan 1982 (SVD behind a QR).
    """
    left, right = check_factors(left, right)
    return torch.linalg.svdvals(torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.mT, mode="r").R.mT)


def product_svd(
    left: Float[Tensor, "*batch m r"], right: Float[Tensor, "*batch r n"]
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k n"]]:
    """Thin singular value decomposition of a product, ``L R = U diag(S) Vh``, in float64; ``k = min(m, r, n)``.

    Args:
        left, right: the factors, of any floating type.

    Returns:
        ``U`` with orthonormal columns, ``S`` largest first, ``Vh`` with orthonormal rows (also where S is 0).

    Raises:
        TypeError: not real tensors. ValueError: shapes that do not multiply.

    Source: Chan 1982 (SVD behind a QR).
    """
    left, right = check_factors(left, right)
    Q_left, R_left = torch.linalg.qr(left)
    Q_right, R_right = torch.linalg.qr(right.mT)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.mT, full_matrices=False)
    return Q_left @ U, S, Vh @ Q_right.mT


def compose(
    left: Float[Tensor, "*batch m r"],
    right: Float[Tensor, "*batch r d"],
    then_left: Float[Tensor, "*batch d q"],
    then_right: Float[Tensor, "*batch q n"],
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch k n"]]:
    """Factors of ``(A B)(C D) = A (B C) D`` with inner size ``k = min(r, q)``, in float64; nothing is d x d.

    Args:
        left, right: A and B, the product a vector meets first. then_left, then_right: C and D, the second.

    Returns:
        ``(A, (B C) D)`` or ``(A (B C), D)``: the r x q core ``B C`` goes to the side on which the inner size is smaller.

    Raises:
        TypeError: not real tensors. ValueError: shapes that do not multiply.

    Source: Elhage et al. 2021, virtual heads and composition (V: A B and C D are two ``W_OV``).
    """
    left, right = check_factors(left, right)
    then_left, then_right = check_factors(then_left, then_right)
    right, then_left = check_factors(right, then_left)
    core = right @ then_left
    return (left, core @ then_right) if core.shape[-2] <= core.shape[-1] else (left @ core, then_right)
