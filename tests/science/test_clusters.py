"""Clusters of curves against roles: planted types are found, chance is not, and intervals hold what they should."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from circuits import Checkpoints
from circuits.crosscheck.cluster_agreement import compare
from circuits.crosscheck.clusters import METHODS, SCALINGS, choose_k, cluster, log_time_weights
from circuits.crosscheck.explained import explained_share, partial_spearman
from circuits.crosscheck.partitions import ALPHA, adjusted_rand, arrangements, rand_indices
from circuits.crosscheck.plausible import drawn_curves, drawn_from_units, index_bounds, open_partitions, open_roles
from circuits.crosscheck.separation import rank_biserial, separation
from circuits.dynamics.coefficients import coefficient_measures
from circuits.dynamics.sweep import gather

pytestmark = pytest.mark.science

ROLES = np.array([0, 0, 0, 1, 1, 1, 2, 2])
STEPS = np.array([0, *np.unique(np.geomspace(4, 10_000, 12).astype(int))])
WEIGHTS = log_time_weights(STEPS)
AT = np.linspace(0, 1, len(STEPS))
SHAPES = np.stack([1 / (1 + np.exp(-12 * (AT - 0.5))), np.exp(-(((AT - 0.45) / 0.15) ** 2)), 1 - AT])
TIMES = 400
NEEDED = 0.92


def family(rng: np.random.Generator, spread: float) -> np.ndarray:
    """Noise-free curves of eight heads: a rise, a hump or a fall, of differing size, with bends of each head's own."""
    bends = rng.standard_normal((8, 4)) @ np.cos(np.pi * np.arange(4)[:, None] * AT) / 2
    return (1 + 0.1 * rng.standard_normal((8, 1))) * SHAPES[ROLES] + spread * bends


def within(rate: float, expected: float, times: int = TIMES) -> bool:
    """Whether a rate is within three binomial standard errors."""
    return abs(rate - expected) <= 3 * np.sqrt(expected * (1 - expected) / times)


# Planted and chance


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", METHODS)
def test_planted_families_are_recovered(method: str, scaling: str) -> None:
    """All eight heads of every family, and the number of families; with as much noise as signal they are not."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = family(rng, 0.02)
        options = {"method": method, "scaling": scaling, "weights": WEIGHTS}
        found = adjusted_rand(cluster(truth + 0.03 * rng.standard_normal(truth.shape), 3, **options), ROLES)
        assert (found.value, found.verdict) == (1, "agree") and found.p == found.smallest == pytest.approx(1 / 280)
        assert choose_k(truth, **options).k == 3
    lost = [
        adjusted_rand(cluster(truth + 2 * np.random.default_rng(seed).standard_normal(truth.shape), 3, **options), ROLES).value
        for seed in range(10)
    ]
    assert np.mean(lost) < 0.4


def test_shuffled_roles_agree_by_chance() -> None:
    """The index is 0 on average, and p is as small as any value that it can have just as often as that value says."""
    rng = np.random.default_rng(0)
    labels = cluster(family(rng, 0.3), 3, weights=WEIGHTS)
    found = [adjusted_rand(labels, rng.permutation(ROLES)) for _ in range(TIMES)]
    values, p = np.array([one.value for one in found]), np.array([one.p for one in found])
    assert abs(values.mean()) < 3 * found[0].null_sd / np.sqrt(TIMES)
    assert values.std() == pytest.approx(found[0].null_sd, rel=0.15)
    for level in np.unique(p)[:-1]:
        assert within(float((p <= level).mean()), level), f"p <= {level:.3f}"
    assert (p <= ALPHA).mean() <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / TIMES)


def test_noise_does_not_agree() -> None:
    rng = np.random.default_rng(1)
    verdicts = [adjusted_rand(cluster(rng.standard_normal((8, 13)), 3, weights=WEIGHTS), ROLES).verdict for _ in range(TIMES)]
    assert np.mean([verdict != "agree" for verdict in verdicts]) >= 0.95
    assert np.mean([verdict == "untestable" for verdict in verdicts]) < 0.5, "clusters of some sizes cannot agree; most could"


# Intervals


def held(truth: np.ndarray, stderr: np.ndarray, method: str, scaling: str, seed: int, again: int = 1) -> dict[str, bool]:
    """Whether intervals hold the index of noise-free curves: of the set, and percentiles of so many curves drawn again."""
    rng = np.random.default_rng(seed)
    x = truth + stderr * rng.standard_normal(truth.shape)
    options = {"method": method, "scaling": scaling, "weights": WEIGHTS}
    labels, drawn = cluster(x, 3, **options), drawn_curves(x, stderr, 200, seed)
    low, high = index_bounds(open_partitions(x, drawn, labels, **options, alpha=ALPHA), ROLES[None])
    true = rand_indices(cluster(truth, 3, **options)[None], ROLES)[0]
    redrawn = rand_indices(np.array([cluster(one, 3, **options) for one in drawn[:again]]), ROLES)
    bottom, top = np.quantile(redrawn, (0.025, 0.975))
    return {"set": low[0] - 1e-9 <= true <= high[0] + 1e-9, "percentile": bottom - 1e-9 <= true <= top + 1e-9}


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_index_of_noise_free_curves(method: str) -> None:
    """In short: one scaling, some noise and much; the whole table is the slow test below."""
    for noise in (0.15, 0.5):
        found = [
            held(family(np.random.default_rng([2, seed]), 0.2), np.full((8, 13), noise), method, "standardised", seed)["set"]
            for seed in range(12)
        ]
        assert np.mean(found) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", METHODS)
def test_coverage_at_every_noise_level(method: str, scaling: str, noise: float) -> None:
    """Of families whose own bends blur their types by more or less; errors differ between heads by up to three times."""
    found = []
    for seed in range(TIMES):
        rng = np.random.default_rng([3, seed])
        stderr = noise * np.geomspace(0.5, 1.5, 8)[rng.permutation(8), None] * np.ones(13)
        found.append(held(family(rng, rng.choice([0.05, 0.2, 0.4])), stderr, method, scaling, seed)["set"])
    assert np.mean(found) >= NEEDED


@pytest.mark.slow
def test_percentiles_would_not_hold_it() -> None:
    """The control: curves drawn anew have their noise twice, and at this noise their clusters are mostly others."""
    found = [
        held(
            family(np.random.default_rng([4, seed]), 0.05), np.full((8, 13), 0.6), "hierarchical", "standardised", seed, again=60
        )
        for seed in range(60)
    ]
    assert np.mean([one["set"] for one in found]) >= NEEDED and np.mean([one["percentile"] for one in found]) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.15, 0.4])
def test_coverage_with_shared_noise_of_differences_and_of_uncertain_roles(noise: float) -> None:
    """Heads and checkpoints share noise, known from eight units; two measures share it too; a role is right in 90% of cases."""
    found = {"units": [], "difference": [], "roles": []}
    options = {"method": "kmeans", "scaling": "standardised", "weights": WEIGHTS}
    for seed in range(TIMES):
        rng = np.random.default_rng([5, seed])
        truths = [family(rng, 0.2), family(rng, 0.6)]
        errors = noise * np.sqrt(8 / 2) * (rng.standard_normal((8, 8, 1)) + rng.standard_normal((8, 8, 13)))
        wrong = rng.random(8) < 0.1
        given = np.where(wrong, (ROLES + rng.integers(1, 3, 8)) % 3, ROLES)
        may_be = open_roles(given, np.full(8, 0.9), ALPHA / 3)
        bounds, true = [], []
        for truth in truths:
            units = truth + errors
            x = units.mean(0)
            labels = cluster(x, 3, **options)
            open_ = open_partitions(x, drawn_from_units(units, 200, seed), labels, **options, alpha=ALPHA / 3)
            bounds.append([index_bounds(open_, some) for some in (ROLES[None], may_be)])
            true.append(rand_indices(cluster(truth, 3, **options)[None], ROLES)[0])
        (ours, unsure), (theirs, _) = bounds
        gap = true[0] - true[1]
        found["units"].append(ours[0][0] - 1e-9 <= true[0] <= ours[1][0] + 1e-9)
        found["difference"].append(ours[0][0] - theirs[1][0] - 1e-9 <= gap <= ours[1][0] - theirs[0][0] + 1e-9)
        found["roles"].append(unsure[0].min() - 1e-9 <= true[0] <= unsure[1].max() + 1e-9)
    assert {name: bool(np.mean(each) >= NEEDED) for name, each in found.items()} == dict.fromkeys(found, True)


# Other tests of types


@pytest.mark.slow
def test_sizes_of_the_other_tests() -> None:
    """Each finds chance at .05 no more often than .05, and not much less where p has many values."""
    rng = np.random.default_rng(6)
    f, chi, partial, share, rank = [], [], [], [], []
    stderr = np.geomspace(0.5, 2, 8)
    for seed in range(TIMES):
        y = rng.standard_normal(8)
        f.append(separation(y, ROLES).p)
        chi.append(separation(stderr * y, ROLES, stderr).chi_square_p)
        rank.append(rank_biserial(y[:3], y[3:], alternative="greater").p)
        z = rng.standard_normal((14, 2))
        x, other = z.sum(1) + rng.standard_normal(14), z.sum(1) + rng.standard_normal(14)
        partial.append(partial_spearman(x, other, z, draws=199, seed=seed).p)
        share.append(explained_share(x, rng.standard_normal((14, 3)), draws=199, seed=seed).p)
    for name, p in {"f": f, "chi": chi, "partial": partial, "share": share}.items():
        assert within(float((np.array(p) <= ALPHA).mean()), ALPHA), name
    assert within(float((np.array(rank) <= 2 / 56 + 1e-9).mean()), 2 / 56)


def test_without_holding_the_others_fixed_chance_is_found() -> None:
    """The control of partial correlation: x and y share z alone, and plainly correlate."""
    rng = np.random.default_rng(7)
    found = []
    for seed in range(60):
        z = rng.standard_normal((14, 1))
        x, y = (z[:, 0] + 0.5 * rng.standard_normal(14) for _ in range(2))
        found.append([partial_spearman(x, y, given, draws=199, seed=seed).p <= ALPHA for given in (z, z[:, :0])])
    held_fixed, plain = np.mean(found, 0)
    assert held_fixed < 0.2 < 0.8 < plain


def test_differentiation_is_seen() -> None:
    """C10: heads that differ by errors alone at the start, and by type at the end."""
    rng = np.random.default_rng(8)
    stderr = np.full(8, 0.1)
    start, end = stderr * rng.standard_normal(8), np.array([3.0, 1, 0])[ROLES] + stderr * rng.standard_normal(8)
    first, last = separation(start, ROLES, stderr), separation(end, ROLES, stderr)
    assert first.chi_square_p > ALPHA and first.value < 5 and first.verdict == "not separated"
    assert last.chi_square_p < 1e-6 and last.value > 5 and last.p < 0.01 and last.verdict == "separated"


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "shift"), [(2, 6, 0.0), (2, 6, 1.5), (4, 4, 1.0), (6, 8, 0.5), (6, 8, 2.0)])
def test_coverage_of_rank_biserial(n: int, m: int, shift: float) -> None:
    """Of normal values, whose P(a > b) is the normal distribution at shift / sqrt 2."""
    from statistics import NormalDist

    true = 2 * NormalDist().cdf(shift / np.sqrt(2)) - 1
    rng = np.random.default_rng([9, n, m])
    found = [rank_biserial(shift + rng.standard_normal(n), rng.standard_normal(m)) for _ in range(TIMES)]
    assert np.mean([one.low <= true <= one.high for one in found]) >= NEEDED


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_coverage_of_partial_spearman(rho: float) -> None:
    """Of normal values; what is covered is Spearman's of what is left, 6 / pi arcsin(rho / 2), to which ranks add a little."""
    rng = np.random.default_rng([10, int(10 * rho)])
    true = 6 / np.pi * np.arcsin(rho / 2)
    found = []
    for _ in range(TIMES):
        z, a, b = rng.standard_normal((3, 16))
        x, y = 0.3 * z + a, 0.3 * z + rho * a + np.sqrt(1 - rho**2) * b
        found.append(partial_spearman(x, y, z[:, None], draws=9))
    assert np.mean([one.low <= true <= one.high for one in found]) >= NEEDED


# The shipped run


def test_shipped_curves_sort_heads_as_simpler_measures_do(checkout: Path) -> None:
    """Layer 1: the induction head is apart for the coefficient, and just as well for the norm of the weights.

    Layer 0, by shape: the previous-token head is apart for the norm, and not for the coefficient; by height the other way round.
    One head of eight with a role of its own is untestable either way.
    """
    run = Checkpoints.from_dir(checkout / "fixtures/stdlib-2l")
    parts = coefficient_measures(run, ["mix", "nulls"])
    mix, nulls = (gather(parts[part][0][0], run, checkout / "no store") for part in ("mix", "nulls"))
    words = np.full((2, 8), "multigram", dtype="<U20")
    words[0, 6], words[1, 0] = "previous token", "induction"
    roles = xr.DataArray(words, dims=("layer", "head"), coords={"layer": [0, 1], "head": range(8)})
    curves = {"rllc": mix, "weight_norm": nulls.sel(kind="weight_norm", drop=True)}
    found = compare(curves, roles, scalings=["standardised", "raw"])
    assert (found["verdict"] == "untestable").all() and (found["smallest_p"] >= 1 / 8).all()
    assert (found["value"].sel(layer=1) == 1).all() and (found["low"].sel(layer=1) == 1).all()
    shape = found.sel(layer=0, scaling="standardised")
    assert (shape["value"].sel(curve="weight_norm") == 1).all() and (shape["value"].sel(curve="rllc") < 0.5).all()
    height = found.sel(layer=0, scaling="raw")
    assert (height["value"].sel(curve="rllc") == 1).all() and (height["value"].sel(curve="weight_norm") < 0.5).all()
    end = mix["value"].sel(step=10_000, layer=1).values
    rest = rank_biserial(end[1:], end[:1], alternative="greater")
    assert rest.value == -1 and rest.p == 1, "C12 the other way round: the induction head has the largest coefficient"
    assert len(arrangements(words[1]).labels) == 8
