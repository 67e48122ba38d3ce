"""The random-orientation null: exact moments, sampled blocks that are Haar, and p-values that are what they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits.weights.calibration import LAWS, Law, false_positives, squared_spectrum
from circuits.weights.haar import corner_blocks, count_largest, shares, squared_score_moments, upper_tails


def haar(dims: int, draws: int, rng: torch.Generator) -> torch.Tensor:
    """The slow, literal twin: whole orthogonal matrices, by QR with the signs set right."""
    q, r = torch.linalg.qr(torch.randn(draws, dims, dims, generator=rng, dtype=torch.float64))
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]


def scores(a: torch.Tensor, b: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    return torch.einsum("i,kij,j->k", shares(a), blocks.double().square(), shares(b))


@pytest.mark.science
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("r", "q", "dims"), [(4, 4, 12), (3, 5, 7), (6, 6, 6), (8, 8, 20)])
def test_exact_moments_are_those_of_sampled_matrices(law: Law, r: int, q: int, dims: int):
    """Within 3 standard errors of 8,000 whole Haar matrices and of 20,000 corner blocks, mean and standard deviation."""
    a, b = squared_spectrum(law, r), squared_spectrum("1/i", q)
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
@pytest.mark.parametrize("law", LAWS)
def test_p_values_are_calibrated_where_the_gaussian_constant_is_not(law: Law):
    """Of 20,000 pairs of random orientation 5 +- 1% have p < .05, 1 +- .3% p < .01 and .1 +- .1% p < .001.

    The control is the constant of Gaussian heads at the same levels, on the same pairs.
    """
    found = false_positives(law)
    for level, slack in ((0.05, 0.01), (0.01, 0.003), (0.001, 0.001)):
        assert float(found.value.sel(level=level)) == pytest.approx(level, abs=slack)
    if law != "flat":
        assert float(found.gaussian.sel(level=0.01)) > 0.03, "the constant would be good enough, and this null needless"


@pytest.mark.science
def test_fast_tails_are_the_literal_ones():
    """One pair after the other, against sorted scores of other draws: they differ by their sampling errors alone."""
    r, dims, count = 16, 64, 20_000
    a = b = squared_spectrum("1/i", r)
    observed = scores(a, b, corner_blocks(r, r, dims, 50, torch.Generator().manual_seed(2)))
    ordered = scores(a, b, corner_blocks(r, r, dims, count, torch.Generator().manual_seed(3))).sort().values
    literal = (1 + count - torch.searchsorted(ordered, observed * (1 - 1e-6))).double() / (1 + count)
    whole = [(slice(0, 50), slice(0, 1))]
    rng = torch.Generator().manual_seed(4)
    fast = upper_tails(observed[:, None], a.expand(50, -1), b[None], whole, dims, count, rng)["p"][:, 0]
    error = (2 * literal * (1 - literal) / count).sqrt()
    assert bool(((fast - literal).abs() <= 4 * error + 2 / count).all())


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
def test_tails_are_counts_over_the_very_blocks():
    """Scores and strongest components of every draw, one by one, against the batched counts; three readers, two writers."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, generator=rng, dtype=torch.float64), torch.rand(3, 4, generator=rng, dtype=torch.float64)
    squares = corner_blocks(3, 4, 10, 50, torch.Generator().manual_seed(1)).double().square()
    score = torch.einsum("mi,kij,nj->kmn", shares(a), squares, shares(b))
    read = torch.einsum("kij,nj->kin", squares, shares(b)).amax(1)
    written = torch.einsum("mi,kij->kmj", shares(a), squares).amax(2)
    largest = squares.amax((1, 2))
    overlap = squares.sum((1, 2)) / 3
    observed = [torch.full((2, 3), level, dtype=torch.float64) for level in (0.1, 0.2, 0.15, 0.5, 0.4)]
    found = upper_tails(
        observed[0], a, b, [(slice(0, 2), slice(0, 3))], 10, 50, torch.Generator().manual_seed(1),
        by_writer=observed[1], by_reader=observed[2],
        strongest=observed[3], kernel=observed[4],
    )  # fmt: skip
    expected = {
        "p": (1 + (score >= 0.1).sum(0)).double() / 51,
        "p_by_writer": ((1 + (read >= 0.2).sum(0)).double() / 51).expand(2, 3),
        "p_kernel": ((1 + (overlap >= 0.4).sum()).double() / 51).expand(2, 3),
        "p_strongest": ((1 + (largest >= 0.5).sum()).double() / 51).expand(2, 3),
        "p_by_reader": ((1 + (written >= 0.15).sum(0)).double() / 51)[:, None].expand(2, 3),
    }
    for name, p in expected.items():
        torch.testing.assert_close(found[name], p, rtol=0, atol=1e-12)


@pytest.mark.science
def test_the_largest_of_three_samples_by_hand():
    counts = count_largest(torch.tensor([[0.5, 0.09, 1.1]]).double(), torch.tensor([[1.0, 0.25, 0.09]]))
    assert counts.tolist() == [[1, 3, 0]]


@pytest.mark.science
def test_zero_matrices_and_too_many_dimensions():
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert [float(x) for x in squared_score_moments(zero, one, 8)] == [0.0, 0.0]
    with pytest.raises(ValueError, match="3 and 3 singular values in 2 dimensions; need at most 2"):
        squared_score_moments(one, one, 2)
