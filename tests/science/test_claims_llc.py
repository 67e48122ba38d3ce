"""Claims about refined coefficients: how often verdicts come out by chance, and how far their intervals can be trusted."""

import math

import numpy as np
import pytest

from circuits.crosscheck.claims_llc_composition import claim_c8
from circuits.crosscheck.claims_llc_curves import claim_c11, claim_c12
from circuits.crosscheck.claims_llc_development import claim_c5
from circuits.crosscheck.claims_llc_memory import claim_c13, claim_c16
from circuits.crosscheck.claims_llc_statistics import above, exchanged_pairs, redrawn, spearman
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.planted_coefficients import STEPS, planted_run, rise
from circuits.crosscheck.verdict import Reading, decide

pytestmark = pytest.mark.science


def often(share: float, of: int) -> float:
    """What a share may come out as in so many trials, by three standard errors."""
    return share + 3 * math.sqrt(share * (1 - share) / of)


def shuffled(run: Evidence, seed: int) -> Evidence:
    """The same evidence with roles exchanged among the heads of each layer."""
    rng = np.random.default_rng([seed, 77])
    roles = run.results["head_functions"]
    words = roles["role"].values.copy()
    for row in words[0]:
        rng.shuffle(row)
    return Evidence(run.run, run.seed, dict(run.results) | {"head_functions": roles.assign(role=(roles["role"].dims, words))})


@pytest.mark.slow
@pytest.mark.parametrize("claim", [claim_c12, claim_c13, claim_c8])
def test_shuffled_roles_show_nothing(claim) -> None:
    """Claim: with roles dealt out anew at most 5% of runs hold. Control: with roles as they are all do."""
    seeds = 60
    held = [claim([shuffled(planted_run(seed), seed)]).verdict == "holds" for seed in range(seeds)]
    assert np.mean(held) <= often(0.05, seeds)
    assert all(claim([planted_run(seed)]).verdict == "holds" for seed in range(3))


@pytest.mark.slow
def test_shuffled_roles_are_no_clusters() -> None:
    """The same of C11's clusters, layer by layer; its rivals cannot be beaten in one run, so that checks are looked at."""
    seeds = 40

    def held(run: Evidence) -> list[bool]:
        return [check.verdict == "holds" for check in claim_c11([run]).checks if "ARI of clusters" in check.quantity]

    found = np.array([held(shuffled(planted_run(seed), seed)) for seed in range(seeds)])
    assert found.shape == (seeds, 2) and (found.mean(0) <= often(0.05, seeds)).all() and found.all(1).mean() <= 0.05
    assert np.array([held(planted_run(seed)) for seed in range(3)]).all()


@pytest.mark.slow
def test_shuffled_roles_show_nothing_in_five_seeds() -> None:
    """Whole claims over runs: C11, with its sign test, and C12 never hold of shuffled roles, and do of real ones."""
    runs = [planted_run(seed) for seed in range(15)]
    mixed = [shuffled(run, seed) for seed, run in enumerate(runs)]
    for first in range(0, 15, 5):
        assert claim_c11(mixed[first : first + 5]).verdict != "holds"
        assert claim_c12(mixed[first : first + 5]).verdict != "holds"
    assert claim_c11(runs[:5]).verdict == claim_c12(runs[:5]).verdict == "holds"


@pytest.mark.slow
def test_shuffled_counts_show_nothing() -> None:
    """C13 with counts dealt out anew among all multigram heads."""
    seeds, held = 60, 0
    for seed in range(seeds):
        run = planted_run(seed)
        counts = run.results["multigrams"]["value"]
        values = counts.values.copy()
        memory = values > 5
        values[memory] = np.random.default_rng([seed, 78]).permutation(values[memory])
        changed = dict(run.results) | {"multigrams": run.results["multigrams"].assign(value=(counts.dims, values))}
        held += claim_c13([Evidence(run.run, seed, changed)]).verdict == "holds"
    assert held / seeds <= often(0.05, seeds)


@pytest.mark.slow
def test_events_in_a_random_order() -> None:
    """C5: four events in random order are in the claimed one as often as the p says, once in 24."""
    trials, held = 300, 0
    rng = np.random.default_rng(4)
    base = planted_run()
    scores = base.results["attention_scores"]["value"]
    words = base.results["head_functions"]["role"].values[0]
    steps = np.array(STEPS)
    for _ in range(trials):
        at = rng.permutation([200, 600, 1200, 2400])
        curves = np.full(scores.shape, 0.01)
        curves[:, words == "previous token", 0] += 0.5 * rise(STEPS, float(at[2]), 60.0)[:, None]
        curves[:, words == "induction", 1] += 0.5 * rise(STEPS, float(at[3]), 60.0)[:, None]
        bigrams, positions = base.results["predictor_loss"], base.results["position_ablation"]
        away = np.broadcast_to(np.abs(np.log((steps + 1) / (at[0] + 1)))[:, None, None], bigrams["value"].shape)
        later = np.broadcast_to(np.where(steps >= at[1], 0.3, 0.01)[:, None, None], positions["value"].shape)
        changed = {
            "attention_scores": base.results["attention_scores"].assign(value=(scores.dims, curves)),
            "predictor_loss": bigrams.assign(value=(bigrams["value"].dims, away)),
            "position_ablation": positions.assign(value=(positions["value"].dims, later)),
        }
        found = claim_c5([Evidence("random", 0, dict(base.results) | changed)])
        held += found.verdict == "holds"
        assert found.least_p == pytest.approx(1 / 24)
    # An event between the same checkpoints as another has no order, so that some right orders are left open.
    assert 0 < held / trials <= often(1 / 24, trials)


def test_exchange_of_marks_is_a_test() -> None:
    """p of random scores is at most .05 in 5% of tables, and of planted ones always."""
    rng = np.random.default_rng(0)
    rows, columns = np.arange(8) < 2, np.arange(8) < 2
    tables = rng.standard_normal((400, 8, 8))
    assert np.mean([exchanged_pairs(table, rows, columns)[0] <= 0.05 for table in tables]) <= often(0.05, 400)
    tables[:, :2, :2] += 6
    assert all(exchanged_pairs(table, rows, columns)[0] <= 0.05 for table in tables[:20])


def test_t_of_three_runs_is_a_test() -> None:
    """Of runs whose mean is the bound 2.5% lie clearly above it; a percentile bootstrap of three would say so of 12%."""
    rng = np.random.default_rng(1)
    trials = 400
    x = rng.standard_normal((trials, 3))
    held = np.mean([decide("x", [Reading(float(one)) for one in row], least=0.0).verdict == "holds" for row in x])
    assert abs(held - 0.025) <= 3 * math.sqrt(0.025 * 0.975 / trials)
    drawn = x[np.arange(trials)[:, None, None], rng.integers(0, 3, (trials, 400, 3))].mean(2)
    assert np.mean(np.quantile(drawn, 0.025, axis=1) >= 0) > 0.1


def test_the_largest_p_is_a_p() -> None:
    """(largest p)^n of uniform p is at most .05 in 5% of cases."""
    p = np.random.default_rng(2).uniform(size=(400, 3))
    held = [decide("x", [Reading(1.0, p=float(a), least_p=0.0) for a in row], least=0.0).verdict == "holds" for row in p]
    assert abs(np.mean(held) - 0.05) <= 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_intervals_hold_what_is_true(noise: float) -> None:
    """``redrawn`` holds a statistic of noise-free values in 95% of cases, with errors of up to 0.3 of their spread."""
    rng = np.random.default_rng(3)
    trials = 200
    error = np.full(8, noise)

    inside = 0
    for _ in range(trials):
        x, y = rng.standard_normal((2, 8))
        y = 0.8 * x + 0.6 * y
        seen = [(values + error * rng.standard_normal(8), error) for values in (x, y)]
        low, high = redrawn(spearman, *seen, draws=400)
        inside += low <= float(spearman(x, y)) <= high
    assert inside / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.slow
def test_peaks_at_random_checkpoints() -> None:
    """C16 of curves without a peak of their own holds in no more runs than its p says; one run can never show it."""
    seeds, held = 30, 0
    rng = np.random.default_rng(6)
    for seed in range(seeds):
        runs = []
        for one in range(3):
            run = planted_run(3 * seed + one)
            data = run.results["rllc_mix_kl"]
            values = 3 + rng.standard_normal(data["value"].shape)
            runs.append(
                Evidence(run.run, one, dict(run.results) | {"rllc_mix_kl": data.assign(value=(data["value"].dims, values))})
            )
        held += claim_c16(runs).verdict == "holds"
        assert claim_c16(runs[:1]).verdict != "holds"
    assert held / seeds <= often(0.05, seeds)


def test_rank_biserial_in_an_interval() -> None:
    """The same of two groups that overlap."""
    rng = np.random.default_rng(7)
    trials, inside = 200, 0
    for _ in range(trials):
        a, b = rng.standard_normal(5) + 1, rng.standard_normal(3)
        errors = np.full(5, 0.4), np.full(3, 0.4)
        seen = [x + e * rng.standard_normal(len(x)) for x, e in zip((a, b), errors, strict=True)]
        low, high = redrawn(above, *zip(seen, errors, strict=True), draws=400)
        inside += low <= float(above(a, b)) <= high
    assert inside / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
