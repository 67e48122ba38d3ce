"""Three witnesses of heads: planted disagreements are found where they were planted, noise convicts and acquits nobody."""

from collections import Counter

import numpy as np
import pytest
import xarray as xr

from circuits.crosscheck.agreement import agreement
from circuits.crosscheck.planted import INDUCTION_HEAD, PREVIOUS_HEAD, STEPS, planted_evidence
from circuits.crosscheck.timing import change_point, clock
from circuits.crosscheck.witnesses import rise_effects
from circuits.models.heads import Head

pytestmark = pytest.mark.science

SEEDS = range(3)
MANY = range(100)
OTHER = Head(1, 3)
"""A head without a part in the planted circuit."""


def flagged(found: xr.Dataset, flag: str = "detector_vs_") -> set[Head]:
    """Heads whose flag has these words."""
    return {Head(*at) for at in np.argwhere(np.char.find(found["flag"].values, flag) >= 0).tolist()}


def swapped(values: xr.DataArray, one: Head, two: Head) -> xr.DataArray:
    """The same with two heads' entries exchanged."""
    data = values.values.copy()
    data[..., one.layer, one.head], data[..., two.layer, two.head] = (
        values.values[..., two.layer, two.head],
        values.values[..., one.layer, one.head],
    )
    return values.copy(data=data)


def roles_of(results: dict[str, xr.Dataset], *, history: bool) -> xr.DataArray:
    """Roles, a multigram head among them."""
    role = results["head_functions"]["role"].astype("<U20").copy(deep=True)
    role[:, OTHER.layer, OTHER.head] = np.where(np.array(STEPS) >= 1000, "multigram", "none")
    return role if history else role.isel(step=-1, drop=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_heads_of_a_planted_circuit_agree(seed: int) -> None:
    """Control: with the same roles and without the circuit nobody does."""
    found = agreement(planted_evidence(seed))
    assert set(found["verdict"].values.ravel()) <= {"agree", "undecided"}
    assert all(found["verdict"].values[head.layer, head.head] == "agree" for head in (PREVIOUS_HEAD, INDUCTION_HEAD))
    without = planted_evidence(seed, circuit=False) | {"head_functions": planted_evidence(seed)["head_functions"]}
    assert (agreement(without)["verdict"] == "undecided").all()


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_exchanged_roles_flag_exactly_the_two(seed: int, history: bool) -> None:
    """The induction head and a multigram head; both by weights and by curves. Control: as it was, nobody is flagged."""
    results = planted_evidence(seed)
    role = roles_of(results, history=history)
    assert not flagged(agreement(results, role))
    found = agreement(results, swapped(role, INDUCTION_HEAD, OTHER))
    both = {INDUCTION_HEAD, OTHER}
    assert flagged(found) == both and flagged(found, "weights") == both and flagged(found, "curve") == both
    assert {Head(*at) for at in np.argwhere(found["verdict"].values == "disagree").tolist()} == both
    previous = agreement(results, swapped(role, PREVIOUS_HEAD, Head(0, 2)))
    assert flagged(previous, "weights") == {PREVIOUS_HEAD, Head(0, 2)}


@pytest.mark.parametrize("seed", SEEDS)
def test_another_heads_curve_flags_whoever_has_a_wrong_one(seed: int) -> None:
    """Curves alone are exchanged or given: curves alone speak against, and only of heads whose curve is another's."""
    results = planted_evidence(seed)
    curves = results["rllc_mix"]

    def with_curves(value: xr.DataArray) -> xr.Dataset:
        return agreement(results | {"rllc_mix": curves.assign(value=value)})

    exchanged = with_curves(swapped(curves["value"], INDUCTION_HEAD, OTHER))
    assert flagged(exchanged) == flagged(exchanged, "curve") == {INDUCTION_HEAD, OTHER}
    assert not flagged(exchanged, "weights")
    for taker, giver in ((OTHER, INDUCTION_HEAD), (INDUCTION_HEAD, OTHER)):
        given = curves["value"].copy(deep=True)
        given[:, taker.layer, taker.head] = curves["value"].values[:, giver.layer, giver.head]
        assert flagged(with_curves(given)) == {taker}
    # The two heads of the circuit rise alike: exchanging their curves is no error that a rise could show.
    assert not flagged(with_curves(swapped(curves["value"], INDUCTION_HEAD, PREVIOUS_HEAD)))


def noise_verdicts(seeds: range) -> list[Counter[str]]:
    """Verdicts on heads of runs without structure, whose roles are drawn, by run."""
    runs = [agreement(planted_evidence(seed, circuit=False)) for seed in seeds]
    return [Counter(found["verdict"].values.ravel().tolist()) for found in runs]


def test_noise_is_undecided_in_a_few_runs() -> None:
    found = sum(noise_verdicts(range(4)), Counter())
    assert found["undecided"] >= 0.95 * found.total()


@pytest.mark.slow
def test_noise_neither_convicts_nor_acquits() -> None:
    """At least 95% of heads are undecided; and a run with a false accusation is as rare as Holm's correction says."""
    runs = noise_verdicts(MANY)
    found = sum(runs, Counter())
    assert found["undecided"] >= 0.95 * found.total()
    accused = sum(run["disagree"] > 0 for run in runs)
    assert accused <= 0.05 * len(MANY) + 3 * np.sqrt(0.05 * 0.95 * len(MANY))


@pytest.mark.slow
def test_the_planted_circuit_accuses_nobody_in_many_runs() -> None:
    accused = sum((agreement(planted_evidence(seed))["verdict"] == "disagree").any().item() for seed in MANY)
    assert accused <= 0.05 * len(MANY) + 3 * np.sqrt(0.05 * 0.95 * len(MANY))


@pytest.mark.slow
@pytest.mark.parametrize("heads", [6, 16, 32])
def test_the_p_of_a_rise_is_one(heads: int) -> None:
    """Of heads with normal rises a share alpha or somewhat less has p at most alpha. Control: the normal p is too small."""
    rng = np.random.default_rng(heads)
    runs = [rise_effects(rng.standard_normal((1, heads)), np.full((1, heads), 1e-9)) for _ in range(800)]
    z = np.stack([one.effect / one.error for one in runs])[:, 0]
    p = np.stack([one.tail(one.effect / one.error) for one in runs])[:, 0]
    for alpha in (0.05, 0.01):
        # Heads of a run are compared with each other: runs are the unit of the error.
        share = (p <= alpha).mean(1)
        error = 3 * share.std() / np.sqrt(len(runs))
        assert alpha / 2 - error <= share.mean() <= alpha + error, alpha
    assert heads > 16 or (z > 2.326).mean() > 2 * 0.01


GRIDS = {
    "as shipped": np.array(STEPS, dtype=float),
    "doublings": np.concatenate([[0], 2.0 ** np.arange(4, 15)]),
    "even steps": np.arange(0, 20_001, 500.0),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("doublings", "noise"), [(0, 0.03), (1, 0.03), (-1, 0.15)])
def test_planted_lags_are_recovered(grid: str, noise: float, doublings: int) -> None:
    """A role at a random time, its curve so many doublings later: in the interval 95% of the time, and not two doublings off."""
    steps = GRIDS[grid]
    rng = np.random.default_rng([abs(doublings), round(100 * noise)])
    unit = float(steps[1])
    covered, wrong = [], []
    for seed in range(40):
        role = 2 ** rng.uniform(10, 12)
        centre = role * 2.0**doublings
        late = np.log2(steps + 1) - np.log2(centre + 1)
        value = 3 / (1 + np.exp(-12 * late)) + noise * rng.standard_normal(len(steps))
        change = change_point(steps, value, np.full(len(steps), noise), draws=100, seed=seed)
        after = int(np.searchsorted(steps, role))
        since, until = clock(steps[[after - 1, after]], unit)
        low, high = change.low - until, change.high - since
        truth = float(np.subtract(*clock(np.array([centre, role]), unit)))
        covered.append(low <= truth <= high)
        wrong.append(low <= truth + 2.5 <= high)
    # 95%, less three binomial errors.
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(covered))
    assert np.mean(wrong) <= 0.05


def test_flat_curves_do_not_change() -> None:
    """A share of at most alpha, within three binomial errors, has a rise beyond error."""
    steps, times = GRIDS["as shipped"], 100
    rng = np.random.default_rng(0)
    changed = [
        not change_point(steps, 1 + 0.1 * rng.standard_normal(len(steps)), np.full(len(steps), 0.1), draws=99, seed=seed).why
        for seed in range(times)
    ]
    assert np.mean(changed) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)
