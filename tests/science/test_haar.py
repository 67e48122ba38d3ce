"""The random-orientation null: exact moments, sampled blocks that are Haar, and p-values that are what they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits.weights.haar import corner_blocks, largest_component_tail, shares, squared_score_moments, upper_tail

SPECTRA = {
    "flat": lambda i: torch.ones_like(i),
    "1/sqrt(i)": lambda i: 1 / i,
    "1/i": lambda i: 1 / i**2,
    "1/i^2": lambda i: 1 / i**4,
}
"""Squared singular values of each law of the singular values."""


def spectrum(law: str, size: int) -> torch.Tensor:
    return SPECTRA[law](torch.arange(1, size + 1, dtype=torch.float64))


def haar(dims: int, draws: int, rng: torch.Generator) -> torch.Tensor:
    """The slow, literal twin: whole orthogonal matrices, by QR with the signs set right."""
    q, r = torch.linalg.qr(torch.randn(draws, dims, dims, generator=rng, dtype=torch.float64))
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]


def scores(a: torch.Tensor, b: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    return torch.einsum("i,kij,j->k", shares(a), blocks.double().square(), shares(b))


@pytest.mark.science
@pytest.mark.parametrize("law", SPECTRA)
@pytest.mark.parametrize(("r", "q", "dims"), [(4, 4, 12), (3, 5, 7), (6, 6, 6), (8, 8, 20)])
def test_exact_moments_are_those_of_sampled_matrices(law: str, r: int, q: int, dims: int):
    """Within 3 standard errors of 8,000 whole Haar matrices and of 20,000 corner blocks, mean and standard deviation."""
    a, b = spectrum(law, r), spectrum("1/i", q)
    mean, sd = squared_score_moments(a, b, dims)
    assert float(mean) == pytest.approx(1 / dims)
    rng = torch.Generator().manual_seed(1)
    for blocks in (haar(dims, 8_000, rng)[:, :r, :q], corner_blocks(r, q, dims, 20_000, rng)):
        found = scores(a, b, blocks)
        count, centred = len(found), found - found.mean()
        error = found.std() / count**0.5
        # The standard deviation's own error, from the fourth moment.
        error_sd = ((centred**4).mean() - found.var() ** 2).clamp_min(0).sqrt() / (2 * found.std() * count**0.5)
        assert abs(float(found.mean() - mean)) <= 3 * float(error) + 1e-8  # blocks are float32
        assert abs(float(found.std() - sd)) <= 3 * float(error_sd) + 1e-6


@pytest.mark.science
def test_a_square_block_in_as_many_dimensions_is_orthogonal():
    block = corner_blocks(5, 5, 5, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(block @ block.transpose(1, 2), torch.eye(5).expand(8, -1, -1), rtol=0, atol=1e-3)


@pytest.mark.science
@pytest.mark.parametrize("law", SPECTRA)
def test_p_values_are_calibrated_where_the_gaussian_constant_is_not(law: str):
    """Of 20,000 pairs of random orientation 5 +- 1% have p < .05, 1 +- .3% p < .01 and .1 +- .1% p < .001.

    The control is the constant of Gaussian heads: 'more than mean + 1.645 sd of Gaussian scores' on the same pairs.
    """
    r, dims, count = 16, 64, 20_000
    a = b = spectrum(law, r)
    observed = scores(a, b, corner_blocks(r, r, dims, count, torch.Generator().manual_seed(2)))
    null = corner_blocks(r, r, dims, 20_000, torch.Generator().manual_seed(3))
    # Every pair is a row of its own, but all have one spectrum: one writer, and the reader's spectrum once.
    ordered = scores(a, b, null).sort().values
    literal = (1 + count - torch.searchsorted(ordered, observed * (1 - 1e-6))).double() / (1 + count)
    fast = upper_tail(observed[:50, None], a.expand(50, -1), b[None], null)[:, 0]
    torch.testing.assert_close(fast, literal[:50], rtol=0, atol=3 / count)
    shares_below = [float((literal < level).double().mean()) for level in (0.05, 0.01, 0.001)]
    assert shares_below[0] == pytest.approx(0.05, abs=0.01)
    assert shares_below[1] == pytest.approx(0.01, abs=0.003)
    assert shares_below[2] == pytest.approx(0.001, abs=0.001)

    gaussian_mean, gaussian_sd = 0.1255, 0.0068  # d = 64, r = 16: test_composition recomputes both
    false_positives = float((observed.sqrt() > gaussian_mean + 1.645 * gaussian_sd).double().mean())
    if law in ("1/i", "1/i^2"):
        assert false_positives > 0.15, "the constant would be good enough, and this null needless"


@pytest.mark.science
@given(seed=st.integers(0, 10_000), r=st.integers(1, 5), q=st.integers(1, 5))
def test_scores_lie_between_zero_and_one_and_order_of_spectra_does_not_matter(seed: int, r: int, q: int):
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.rand(r, generator=rng, dtype=torch.float64), torch.rand(q, generator=rng, dtype=torch.float64)
    forward, backward = squared_score_moments(a, b, 9), squared_score_moments(b, a, 9)
    torch.testing.assert_close(forward, backward)
    torch.testing.assert_close(squared_score_moments(a.flip(0), 3 * b, 9), forward)
    assert 0 <= float(forward[1]) <= 1


@pytest.mark.science
def test_component_tail_by_counting():
    """Two directions, cosines by hand: the strongest is 1, .25 and .09 in three draws."""
    blocks = torch.tensor([[[1.0], [0.0]], [[0.5], [0.1]], [[0.2], [0.3]]])
    found = largest_component_tail(torch.tensor([[0.5], [0.09], [1.1]]).double(), torch.ones(1, 1), blocks)
    assert found[:, 0].tolist() == [2 / 4, 4 / 4, 1 / 4]


@pytest.mark.science
def test_zero_matrices_and_too_many_dimensions():
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert [float(x) for x in squared_score_moments(zero, one, 8)] == [0.0, 0.0]
    with pytest.raises(ValueError, match="3 and 3 singular values in 2 dimensions; need at most 2"):
        squared_score_moments(one, one, 2)
