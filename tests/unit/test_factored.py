"""Factored maths against dense: norms, traces, eigenvalues, singular values and products of products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from circuits.models.upstream import FactoredMatrix
from circuits.weights import factored

SIZES = st.integers(1, 9)
BATCHES = st.sampled_from([(), (1,), (3,), (2, 2)])


def factors(seed: int, batch: tuple[int, ...], m: int, r: int, n: int, rank: int | None = None):
    """Gaussian factors, of lower rank if asked for: 0 makes the left one zero."""
    rng = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(*batch, *shape, generator=rng, dtype=torch.float64)

    left = gaussian(m, r) if rank is None else gaussian(m, rank) @ gaussian(rank, r)
    return left, gaussian(r, n)


def close(found: torch.Tensor, dense: torch.Tensor, size: torch.Tensor) -> bool:
    """Equal to 1e-10 of the largest entry's size."""
    return bool(((found - dense).abs() <= 1e-10 * float(size.max()) + 1e-300).all())


def eigenvalue_distance(found: torch.Tensor, dense: torch.Tensor) -> float:
    """Largest distance between two spectra under the best matching; missing eigenvalues are zeros."""
    found = torch.nn.functional.pad(found, (0, dense.numel() - found.numel()))
    cost = (found[:, None] - dense[None]).abs().numpy()
    return float(cost[linear_sum_assignment(cost)].max())


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), batch=BATCHES, m=SIZES, r=SIZES, n=SIZES, rank=st.sampled_from([None, 0, 1, 2]))
def test_norms_and_singular_values_equal_dense(seed: int, batch: tuple[int, ...], m: int, r: int, n: int, rank: int | None):
    left, right = factors(seed, batch, m, r, n, rank)
    dense = left @ right
    size = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    assert close(factored.product_norm(left, right), torch.linalg.matrix_norm(dense), size)
    k = min(m, r, n)
    values = torch.linalg.svdvals(dense)
    assert close(factored.product_singular_values(left, right), values[..., :k], size)
    assert close(values[..., k:], torch.zeros_like(values[..., k:]), size)
    U, S, Vh = factored.product_svd(left, right)
    assert U.shape == (*batch, m, k) and S.shape == (*batch, k) and Vh.shape == (*batch, k, n)
    assert close(S, values[..., :k], size) and close(U * S[..., None, :] @ Vh, dense, size)
    eye = torch.eye(k, dtype=torch.float64).expand(*batch, k, k)
    assert torch.allclose(U.mT @ U, eye, atol=1e-12) and torch.allclose(Vh @ Vh.mT, eye, atol=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), batch=BATCHES, m=SIZES, r=SIZES, rank=st.sampled_from([None, 0, 1, 2]))
def test_traces_and_eigenvalues_equal_dense(seed: int, batch: tuple[int, ...], m: int, r: int, rank: int | None):
    left, right = factors(seed, batch, m, r, m, rank)
    dense = left @ right
    size = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    assert close(factored.product_trace(left, right), dense.diagonal(dim1=-2, dim2=-1).sum(-1), size)
    found, expected = factored.product_eigenvalues(left, right), torch.linalg.eigvals(dense)
    assert found.shape == (*batch, min(m, r)) and found.dtype == torch.complex128
    # A real m x m matrix's eigenvalues come in no fixed order, so the spectra are matched before they are compared.
    pairs = zip(found.reshape(-1, min(m, r)), expected.reshape(-1, m), strict=True)
    tolerance = 1e-10 * float(size.max()) + 1e-300
    assert all(eigenvalue_distance(a, b) <= tolerance for a, b in pairs)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), batch=BATCHES, m=SIZES, r=SIZES, d=SIZES, q=SIZES, n=SIZES)
def test_products_of_products_equal_dense_and_keep_the_smaller_rank(seed, batch, m, r, d, q, n):
    (A, B), (C, D) = factors(seed, batch, m, r, d), factors(seed + 1, batch, d, q, n)
    left, right = factored.compose(A, B, C, D)
    assert left.shape == (*batch, m, min(r, q)) and right.shape == (*batch, min(r, q), n)
    assert torch.allclose(left @ right, A @ B @ C @ D, rtol=1e-10, atol=1e-10)
    assert torch.allclose(factored.product_norm(left, right), torch.linalg.matrix_norm(A @ B @ C @ D), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("r", [2, 5, 12])
def test_zero_factors_give_zeros_and_no_nan(r: int):
    zero, other = torch.zeros(2, 6, r), torch.randn(2, r, 6, generator=torch.Generator().manual_seed(0))
    for left, right in ((zero, other), (other.mT, zero.mT), (zero, zero.mT)):
        assert factored.product_norm(left, right).tolist() == [0, 0]
        assert factored.product_trace(left, right).tolist() == [0, 0]
        assert not factored.product_eigenvalues(left, right).any()
        assert not factored.product_singular_values(left, right).any()
        U, S, Vh = factored.product_svd(left, right)
        assert not S.any() and torch.isfinite(U).all() and torch.isfinite(Vh).all()


def test_a_trace_that_rounding_makes_negative_is_clamped():
    # L R = 0 exactly, but the two Grams' entries are inexact and their products may sum to either side of 0.
    rng = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(500, 6, 6, generator=rng, dtype=torch.float64)).Q
    left, right = Q[..., :3].mT, Q[..., 3:]
    squares = ((left.mT @ left) * (right @ right.mT)).sum((-2, -1))
    assert (squares < 0).any()
    found = factored.product_norm(left, right)
    assert torch.isfinite(found).all() and (found < 1e-7).all()
    assert (factored.product_singular_values(left, right) < 1e-14).all()  # the precise twin, as the docstring says


def test_single_precision_comes_out_in_double():
    left, right = (x.float() for x in factors(0, (), 6, 3, 6))
    exact = torch.linalg.matrix_norm(left.double() @ right.double())
    found = factored.product_norm(left, right)
    assert found.dtype == torch.float64 and float(found) == pytest.approx(float(exact), rel=1e-13)
    assert factored.product_trace(left, right).dtype == torch.float64
    assert all(x.dtype == torch.float64 for x in factored.product_svd(left, right))


def test_transformer_lens_factored_matrix_holds_the_same_factors():
    left, right = factors(3, (2,), 7, 3, 7)
    theirs = FactoredMatrix(left, right)
    assert torch.allclose(factored.product_norm(theirs.A, theirs.B), theirs.norm(), rtol=1e-10)
    assert torch.allclose(factored.product_singular_values(theirs.A, theirs.B), theirs.S, rtol=1e-10)
    ours = np.sort_complex(factored.product_eigenvalues(theirs.A, theirs.B)[0].numpy())
    assert np.allclose(ours, np.sort_complex(theirs.eigenvalues[0].numpy()), rtol=1e-10)


@pytest.mark.usefixtures("unchecked")
def test_bad_factors_are_refused_with_a_sentence():
    left, right = factors(0, (), 6, 3, 5)
    with pytest.raises(ValueError, match=r"left \(6, 3\) and right \(5, 3\) do not multiply; need .* transpose with .mT"):
        factored.product_norm(left, right.mT)
    with pytest.raises(ValueError, match=r"expand the smaller batch"):
        factored.product_svd(left.expand(2, 6, 3), right)
    with pytest.raises(ValueError, match=r"not square; eigenvalues need m = n: use product_singular_values"):
        factored.product_eigenvalues(left, right)
    with pytest.raises(ValueError, match=r"not square; traces need m = n"):
        factored.product_trace(left, right)
    with pytest.raises(TypeError, match=r"factors are torch.float64 and ndarray; need two real tensors"):
        factored.product_norm(left, right.numpy())
    with pytest.raises(TypeError, match=r"complex64"):
        factored.product_norm(left.to(torch.complex64), right)
    with pytest.raises(ValueError, match=r"do not multiply"):
        factored.compose(left, right, left.mT, right)
