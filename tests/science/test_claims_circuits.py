"""Claims about circuits where the answer is known: the library's own, the shipped runs', and the errors that verdicts rest on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import qmc

from circuits import Checkpoints
from circuits.crosscheck import claims_circuits_planted
from circuits.crosscheck.claims_circuits import CLAIMS
from circuits.crosscheck.claims_circuits_planted import claim_22, claim_24
from circuits.crosscheck.claims_circuits_reading import correlated, jackknifed
from circuits.crosscheck.claims_circuits_times import Event, change, scatter, together
from circuits.crosscheck.evidence import Evidence, evidence_measures
from circuits.crosscheck.verdict import Claim, Reading
from circuits.detectors.classify import classify
from circuits.dynamics.functions import roles_of
from circuits.dynamics.together import measured
from circuits.models.planted import planted_model

STEPS = np.array([0, *np.unique(np.geomspace(16, 10_000, 40).round().astype(int))])
U = np.log2(1 + STEPS / 16)
NEEDED = {
    "attention_scores",
    "induction_cut",
    "multigrams",
    "bracket_scores",
    "weight_spectra",
    "composition",
    "k_term_copying",
    "copying_scores",
    "term_importance",
    "in_context_ablation",
    "edge_effects_repeats",
}
FOUND = {
    "6": "not testable here",
    "7": "holds",
    "8": "not testable here",
    "9": "holds",
    "10": "not testable here",
    "11": "fails",
    "12": "not testable here",
    "19": "holds",
    "20": "not testable here",
}
"""What the shipped two-layer run says of its last checkpoint."""


def at_steps(checkout: Path, name: str, steps: list[int], names: set[str], store: Path) -> Evidence:
    run = Checkpoints.from_dir(checkout / "fixtures" / name)
    part = run.select(steps)
    wanted = [(measure, part) for measure, _ in evidence_measures(run) if measure.name in names]
    results, absent = measured(wanted, store=store, workers=0, progress=False)
    roles = roles_of(results)
    return Evidence(name, 0, results if roles is None else results | {"head_functions": roles}, absent)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def shipped(checkout: Path, store: Path) -> Evidence:
    return at_steps(checkout, "stdlib-2l", [10_000], NEEDED, store)


def judged(number: str, run: Evidence, one_layer: Evidence | None = None) -> Claim:
    return CLAIMS[f"circuits {number}"]([run], one_layer)


@pytest.mark.science
@pytest.mark.slow
def test_what_the_shipped_run_says(shipped: Evidence):
    """Induction hangs on K-composition; two-head paths matter more than in the papers' models; one head proves little."""
    assert {number: judged(number, shipped).verdict for number in FOUND} == FOUND
    (pair, *_) = judged("9", shipped).checks
    assert "L0H6 -> L1H0" in pair.reason and pair.least_p == pair.p == 1 / 64
    order = judged("11", shipped).checks[0]
    assert 0.3 < order.low < order.measured < order.high < 0.6
    keys, values = judged("19", shipped).checks[:2]
    assert keys.low > 0.8 and abs(values.measured) < 0.05


@pytest.mark.science
@pytest.mark.slow
def test_with_another_previous_token_head_the_circuit_is_gone(shipped: Evidence):
    """The control: the role is given to each other head of layer 0 in turn."""
    for head in (0, 1, 2, 3, 4, 5, 7):
        functions = shipped.results["head_functions"].copy(deep=True)
        functions["role"].loc[{"layer": 0, "head": [6, head]}] = np.array(["none", "previous token"])
        changed = replace(shipped, results=dict(shipped.results) | {"head_functions": functions})
        assert {judged(number, changed).verdict for number in ("9", "19")} == {"fails"}, head


@pytest.mark.science
@pytest.mark.slow
def test_before_training_there_is_nothing_to_test(checkout: Path, store: Path):
    start = at_steps(checkout, "stdlib-2l", [0], NEEDED, store)
    for number in ("8", "9", "11", "12", "19"):
        assert judged(number, start).verdict != "holds", number
    assert judged("7", start).verdict != "holds" and judged("6", start).verdict != "holds"


@pytest.mark.science
@pytest.mark.slow
def test_heads_of_the_shipped_one_layer_run_copy_early_and_most_do_not_at_the_end(checkout: Path, store: Path):
    """All eight beyond 5 standard deviations of random heads at step 128, three at the end, none at the start."""
    run = at_steps(checkout, "stdlib-1l", [0, 128, 10_000], {"attention_scores", "weight_spectra"}, store)
    claim = CLAIMS["circuits 4"]([], run)
    assert claim.verdict == "fails"
    assert [check.measured for check in claim.checks] == [2 * 3 - 8, -8, 8]


@pytest.mark.science
def test_untrained_heads_are_not_called_and_would_be_by_a_detector_that_calls_anything(monkeypatch: pytest.MonkeyPatch):
    assert claim_22([]).verdict == "holds"
    claims_circuits_planted._untrained.cache_clear()
    monkeypatch.setattr(claims_circuits_planted, "UNTRAINED", 32)
    monkeypatch.setattr(claims_circuits_planted, "classify", lambda scores: classify(scores, threshold=1e-6))
    assert claim_22([]).checks[0].low > claims_circuits_planted.RATE
    claims_circuits_planted._untrained.cache_clear()


@pytest.mark.science
def test_planted_heads_are_found_and_are_not_where_noise_has_buried_them(monkeypatch: pytest.MonkeyPatch):
    assert claim_24([]).verdict == "holds"
    claims_circuits_planted._planted.cache_clear()
    monkeypatch.setattr(claims_circuits_planted, "PAIRS", 20)
    monkeypatch.setattr(claims_circuits_planted, "planted_model", lambda noise=0.0: planted_model(noise=1.0))
    assert claim_24([]).verdict == "fails"
    claims_circuits_planted._planted.cache_clear()


@pytest.mark.science
def test_changes_anywhere_are_together_as_often_as_p_says():
    """Of triples spread evenly over all there are, 5% have p of at most .05; in one place they have the smallest p to be had."""
    nothing = np.zeros(1)

    def read(points: np.ndarray) -> Reading:
        return together(U, [Event(float(x), float(x), float(x), x + nothing) for x in points])

    anywhere = np.array([read(U[-1] * points).p for points in qmc.Halton(3, scramble=False).random(1_025)[1:]])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(anywhere <= level) == pytest.approx(level, abs=0.01)  # of a Halton sequence: (log n)^3 / n
    for x in np.linspace(U[0], U[-1], 20):
        one_place = read(np.full(3, x))
        assert one_place.p == one_place.least_p < 0.05


@pytest.mark.science
def test_intervals_of_changes_cover_and_scatter_is_what_was_put_in():
    """A rise at 6.3 doublings under noise of a tenth of its height: the interval has it 95 times in 100, by 3 errors at least."""
    rng, truth = np.random.default_rng(1), 6.3
    curve = 1 / (1 + np.exp(-(U - truth) / 0.3))
    covered, sizes, narrow = [], [], []
    for seed in range(60):
        noisy = curve + 0.1 * rng.standard_normal(len(U))
        found = change(STEPS, noisy, seed=seed)
        covered.append(found.low <= truth <= found.high)
        sizes.append(scatter(U, noisy))
        narrow.append(abs(found.at - truth) <= 0.02)  # the control: an interval that is too short
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 60) > np.mean(narrow)
    assert np.mean(sizes) == pytest.approx(0.1, rel=0.25)


@pytest.mark.science
def test_leaving_out_heads_covers_where_pairs_share_them():
    """Scores of pairs are a writer's and a reader's part: 95% of intervals have the mean, of binomial ones fewer."""
    rng = np.random.default_rng(2)
    ours, binomial = [], []
    for _ in range(300):
        below = rng.standard_normal((8, 1)) + rng.standard_normal(8) + 0.5 * rng.standard_normal((8, 8)) < 0
        found = jackknifed(below[None].astype(float))
        ours.append(found.low <= 0.5 <= found.high)
        binomial.append(abs(below.mean() - 0.5) <= 1.96 * 0.5 / 8)
    error = np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(ours) >= 0.95 - 3 * error > np.mean(binomial)


@pytest.mark.science
@pytest.mark.parametrize("draw", [np.random.default_rng(3).standard_normal, np.random.default_rng(4).standard_cauchy])
def test_p_of_a_correlation_is_right_also_where_one_head_is_far_out(draw: Callable[[tuple[int, int]], np.ndarray]):
    """Of unrelated measures 5% have p of at most .05, by 3 errors."""
    p = [correlated(draw((1, 6)), draw((1, 6))).p for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 400))
