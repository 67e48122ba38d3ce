"""Claims C5 to C20: verdicts by hand-computed numbers, and on evidence that is true, false or lacking by construction."""

import math

import numpy as np
import pytest

from circuits.crosscheck.claims_llc import CLAIMS, claims_llc
from circuits.crosscheck.claims_llc_reading import heads, upper
from circuits.crosscheck.claims_llc_statistics import (
    MOST_F,
    above,
    exchanged_pairs,
    f_ratio,
    kendall,
    redrawn,
    same_order,
    share_left,
    spearman,
)
from circuits.crosscheck.claims_llc_times import crossing, half_maximum, risen, stages
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.planted_coefficients import planted_run
from circuits.crosscheck.separation import rank_biserial, separation
from circuits.crosscheck.verdict import Check, Claim, Lacking, Reading, Verdict, decide, summary, to_dataframe

ONE_RUN_CANNOT = ("C9", "C11", "C16", "C20")
"""Claims that hold of several runs alone: three, and five for C11."""
READS = {
    "C5": "position_ablation",
    "C6": "loss_curves",
    "C7": "llc_mix",
    "C8": "composition",
    "C9": "composition",
    "C10": "rllc_mix",
    "C11": "nulls_mix",
    "C12": "rllc_mix",
    "C13": "multigrams",
    "C14": "rllc_prose",
    "C15": "rllc_shuffled_code",
    "C16": "rllc_mix_kl",
    "C17": "interaction_nested",
    "C18": "nulls_mix",
    "C19": "rllc_mix_grid",
    "C20": "rllc_mix_grid",
}


@pytest.fixture(scope="module")
def run() -> Evidence:
    """A run of which all claims are true."""
    return planted_run()


@pytest.fixture(scope="module")
def judged(run: Evidence) -> dict[str, Claim]:
    """What that run alone shows."""
    return {claim.name: claim for claim in claims_llc([run])}


def check(name: str, found: Claim) -> Check:
    """The check of a claim whose quantity has a name in it."""
    return next(one for one in found.checks if name in one.quantity)


# Verdicts


def test_one_exact_number_says_nothing_of_other_runs() -> None:
    found = decide("x", [Reading(3.0)], least=2.0)
    assert (found.verdict, found.low, found.high, found.least_p) == ("not testable here", 3.0, 3.0, 1.0)
    assert "as claimed" in found.reason and "not as claimed" not in found.reason


def test_one_run_is_judged_by_its_errors() -> None:
    """1 +- 0.5 standard errors: two of them from 0."""
    reading = Reading(1.0, 1 - 1.96 * 0.5, 1 + 1.96 * 0.5)
    found = decide("x", [reading], least=0.0)
    assert found.verdict == "holds" and found.p == pytest.approx(0.02275, abs=1e-4) and found.least_p == 0
    assert decide("x", [reading], least=0.1).verdict == "not testable here"
    assert decide("x", [reading], least=2.0).verdict == "fails"
    assert decide("x", [reading], least=-1.0, most=1.5).verdict == "not testable here"
    assert decide("x", [reading], least=-1.0, most=3.0).verdict == "holds"


def test_one_run_is_judged_by_its_null() -> None:
    """Outside fails; inside with a p that is no less than chance fails; what chance always gives is not testable."""
    assert decide("x", [Reading(1.0, p=0.01, least_p=0.01)], least=0.5).verdict == "holds"
    assert decide("x", [Reading(1.0, p=0.2, least_p=0.01)], least=0.5).verdict == "fails"
    assert decide("x", [Reading(0.0, p=1.0, least_p=0.01)], least=0.5).verdict == "fails"
    assert decide("x", [Reading(0.0, p=1.0, least_p=1 / 8)], least=0.5).verdict == "not testable here"
    assert decide("x", [Reading(1.0, p=0.02, least_p=0.02)], least=0.5, alpha=0.01).verdict == "not testable here"


def test_runs_are_judged_by_t() -> None:
    """1, 2, 3: 2 +- 4.303 / sqrt 3; one-sided p of 2 sqrt 3 on two degrees."""
    runs = [Reading(x) for x in (1.0, 2.0, 3.0)]
    found = decide("x", runs, least=0.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert found.verdict == "not testable here" and found.p == pytest.approx(0.0371, abs=1e-4)
    assert decide("x", runs, least=-0.5).verdict == "holds"
    assert decide("x", runs, least=4.5).verdict == "fails"
    logs = decide("x", [Reading(x) for x in (1.0, 10.0, 100.0)], least=0.01, log=True)
    assert logs.measured == pytest.approx(10) and logs.low == pytest.approx(10 ** (1 - 2.4841), rel=1e-3)
    assert logs.verdict == "holds" and logs.values == (1.0, 10.0, 100.0)


def test_the_largest_p_of_runs_counts() -> None:
    runs = [Reading(1.0, p=p, least_p=1 / 8) for p in (1 / 8, 1 / 8, 1 / 4)]
    found = decide("x", runs, least=0.5)
    assert (found.p, found.least_p, found.verdict) == (1 / 64, 1 / 512, "holds")


def test_a_claim_of_every_run_fails_with_one() -> None:
    runs = [Reading(1.0, 1.0, 1.0, 0.04, 0.04), Reading(1.0, 0.0, 1.0, 0.04, 0.04)]
    assert decide("x", runs, least=1.0, every=True).verdict == "not testable here"
    runs.append(Reading(0.0, 0.0, 0.0, 1.0, 0.04))
    assert decide("x", runs, least=1.0, every=True).verdict == "fails"


def test_what_is_lacking_is_told() -> None:
    found = decide("x", [Lacking("a: no text"), Reading(1.0, p=0.01, least_p=0.01), Reading(math.nan)], least=0.0)
    assert found.verdict == "holds" and found.values == (1.0,) and found.reason == "a: no text"
    assert decide("x", [], least=0.0).reason == "no run was given"
    few = decide("x", [Reading(1.0, p=0.01, least_p=0.01)], least=0.0, fewest=3)
    assert few.verdict == "not testable here" and "1 of the 3 runs" in few.reason
    report = decide("x", [Reading(1.0)], role="report")
    assert (report.verdict, report.expected, report.measured) == ("reported", "reported", 1.0)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "not testable here"), "not testable here"),
        (("fails", "not testable here"), "fails"),
        ((), "not testable here"),
    ],
)
def test_a_claim_rests_on_its_checks(verdicts: tuple[Verdict, ...], whole: Verdict) -> None:
    def one(verdict: Verdict, role: str) -> Check:
        return Check("x", "", "", (), 0.0, 0.0, 0.0, 0.0, 0.04, "", verdict, role, f"why {verdict}")  # pyright: ignore[reportArgumentType]

    claim = Claim("C0", "s", "d", "c", "", (*(one(verdict, "claim") for verdict in verdicts), one("fails", "number")))
    assert claim.verdict == whole
    assert claim.reason == ("" if whole == "holds" or not verdicts else f"x: why {whole}")
    assert claim.least_p == (0.04 if verdicts else 1.0)


# Statistics


def test_plain_statistics_are_those_of_their_modules() -> None:
    from scipy.stats import kendalltau, spearmanr

    rng = np.random.default_rng(0)
    x, y, words = rng.standard_normal(8), rng.standard_normal(8), np.array(list("aabbbccc"))
    assert float(f_ratio(x, words)) == pytest.approx(separation(x, words).value)
    assert float(f_ratio(np.array([1.0, 1, 2, 2, 2, 3, 3, 3]), words)) == MOST_F
    assert float(above(x[:3], x[3:])) == pytest.approx(rank_biserial(x[:3], x[3:]).value)
    assert float(spearman(x, y)) == pytest.approx(spearmanr(x, y)[0])
    assert float(kendall(x, y)) == pytest.approx(kendalltau(x, y)[0])
    assert spearman(x, np.ones(8)) == 0


def test_intervals_of_exact_numbers_are_points() -> None:
    x = np.array([3.0, 1.0, 2.0])
    assert redrawn(above, (x, 0 * x), (x - 5, 0 * x)) == (1.0, 1.0)
    low, high = redrawn(above, (x, 0 * x + 9), (x, 0 * x + 9))
    assert low < -0.5 and high > 0.5
    assert redrawn(above, (x, x * np.nan), (x, 0 * x)) == (-np.inf, np.inf)


def test_exchange_of_marks_is_counted() -> None:
    """One writer of three and one reader of four: of twelve places the marked one is the only one so high."""
    table = np.zeros((3, 4))
    table[1, 2] = 1.0
    p, least_p = exchanged_pairs(table, np.arange(3) == 1, np.arange(4) == 2)
    assert (p, least_p) == (1 / 12, 1 / 12)
    p, least_p = exchanged_pairs(table, np.arange(3) == 1, np.arange(4) == 0)
    assert p > 0.5 and least_p == 1 / 12


def test_a_control_vanishes_beside_an_effect() -> None:
    found = share_left((0.1, 0.01), (1.0, 0.1))
    assert found.value == pytest.approx(0.1) and found.high == pytest.approx(0.1 + 1.96 * math.hypot(0.01, 0.01))
    with pytest.raises(Lacking, match="no effect"):
        share_left((0.1, 0.01), (1.0, 0.6))
    with pytest.raises(Lacking, match="fewer than three"):
        same_order((np.array([1.0, np.nan, 2]), np.ones(3)), (np.ones(3), np.ones(3)))


# Times


def test_crossings() -> None:
    steps, curve = np.array([0.0, 10, 20, 30, 40]), np.array([0.0, 3, 1, 4, 3])
    assert half_maximum(steps, curve) == (20, 30, pytest.approx(20 + 10 / 3))
    assert crossing(steps, curve, 0.0) == (0, 0, 0)
    assert risen(steps, 1 + curve, 0.5) == half_maximum(steps, curve)
    with pytest.raises(Lacking, match="never"):
        risen(steps, np.ones(5), 0.5)


def test_stages_of_the_planted_run(run: Evidence) -> None:
    found = stages(run)
    assert (found.bigrams, found.pause, found.resume, found.formed) == (400, 1200, 2000, 4000)
    # 400, 600, ..., 2600 are nine checkpoints; of their 36 pairs one, (2400, 2600), is closer than 1.2.
    assert found.spans == 36 - 1
    with pytest.raises(Lacking, match="it was left out"):
        stages(planted_run(without=["llc_mix"]))


# Claims


@pytest.mark.parametrize("name", list(CLAIMS))
def test_what_one_run_can_show(name: str, judged: dict[str, Claim]) -> None:
    """True by construction: it holds, or needs runs and says so; never with a p it could not have."""
    found = judged[name]
    assert found.name == name and found.verdict == ("not testable here" if name in ONE_RUN_CANNOT else "holds")
    assert found.least_p <= 0.05 or found.verdict == "not testable here"
    assert found.definition and found.control and found.source and bool(found.reason) == (found.verdict != "holds")
    assert all(one.verdict != "fails" for one in found.checks)


@pytest.mark.parametrize("name", list(CLAIMS))
def test_what_is_false_fails(name: str) -> None:
    count = {"C9": 2, "C20": 3}.get(name, 1)
    runs = [planted_run(seed, wrong=["C8" if name == "C20" else name]) for seed in range(count)]
    found = CLAIMS[name](runs)
    assert found.verdict == "fails" and found.reason


@pytest.mark.parametrize("name", list(CLAIMS))
def test_what_is_lacking_is_not_testable(name: str) -> None:
    found = CLAIMS[name]([planted_run(without=[READS[name]])])
    assert found.verdict == "not testable here"
    assert "planted-0" in found.reason and ("it was left out" in found.reason or "makes it" in found.reason)


def test_nothing_at_all_is_no_error() -> None:
    """No run, a run of which nothing is known, and runs without roles."""
    for runs in ([], [Evidence("none", None, {})], [planted_run(without=["head_functions"])]):
        found = claims_llc(runs)
        assert [claim.name for claim in found] == list(CLAIMS)
        assert {claim.verdict for claim in found} == {"not testable here"}
        assert all(claim.reason for claim in found) and len(summary(found)) == len(CLAIMS)


def test_what_makes_it_is_told() -> None:
    bare = [planted_run(without=["rllc_mix_grid", "interaction_nested"])]
    bare = [Evidence(run.run, run.seed, run.results) for run in bare]
    assert "--what grid" in CLAIMS["C19"](bare).reason and "--what grid" in CLAIMS["C20"](bare).reason
    assert "circuits crosscheck" in CLAIMS["C17"](bare).reason


def test_numbers_of_the_planted_run(judged: dict[str, Claim]) -> None:
    """As its description has them."""
    found = judged
    assert check("-> induction", found["C8"]).measured == pytest.approx(2.3, abs=0.01)
    assert check("others", found["C8"]).measured == pytest.approx(0.5)
    # Two of eight heads in each layer.
    assert check("others", found["C8"]).least_p == pytest.approx(1 / 28**2)
    assert check("lowest", found["C9"]).measured == pytest.approx(0.3)
    assert check("highest since", found["C9"]).measured == pytest.approx(3)
    assert check("LM3", found["C7"]).measured == pytest.approx(139 / 140 - 1)
    assert check("Q / (n - 1)", found["C10"]).measured == pytest.approx(1)
    assert check("ARI of clusters with roles, L1", found["C11"]).measured == 1
    assert check("rank-biserial", found["C12"]).least_p == pytest.approx(1 / 21)
    assert check("Spearman of", found["C13"]).measured == pytest.approx(1)
    assert check("smallest ratio of", found["C14"]).measured == pytest.approx(0.5, abs=0.03)
    assert check("time of layer 0's peak", found["C16"]).measured == 1
    assert check("interaction on nested", found["C17"]).measured == 0.05
    assert check("least tau", found["C19"]).measured == 1
    table = to_dataframe(tuple(found.values()))
    assert set(table["claim"]) == set(CLAIMS) and {"low", "high", "least_p", "rule", "published"} <= set(table.columns)


def test_heads_are_matched_by_role(run: Evidence, judged: dict[str, Claim]) -> None:
    """Numbering the heads anew changes no number."""
    order = np.random.default_rng(5).permutation(8)

    def renumbered(data: "object") -> "object":
        dims = [dim for dim in ("head", "src_head", "dst_head") if dim in data.dims]  # pyright: ignore[reportAttributeAccessIssue]
        return data.isel(dict.fromkeys(dims, order)).assign_coords(dict.fromkeys(dims, range(8)))  # pyright: ignore[reportAttributeAccessIssue]

    other = Evidence(run.run, run.seed, {name: renumbered(data) for name, data in run.results.items()}, {})  # pyright: ignore[reportArgumentType]
    for name in ("C8", "C12", "C14"):
        before, after = judged[name], CLAIMS[name]([other])
        assert before.verdict == after.verdict
        np.testing.assert_allclose([x.measured for x in before.checks], [x.measured for x in after.checks])
        np.testing.assert_allclose([x.least_p for x in before.checks], [x.least_p for x in after.checks], rtol=1e-6)


def test_seeds_are_counted() -> None:
    """C8 is false of one of four: three quarters are enough, and come by chance with 4 * .05^3 * .95 + .05^4."""
    found = CLAIMS["C20"]([planted_run(seed, wrong=["C8"] if seed == 2 else []) for seed in range(4)])
    c8, c12 = (check(f"in which {name} holds", found) for name in ("C8", "C12"))
    assert (c8.values, c8.verdict, c8.reason) == ((0.75,), "holds", "3 of 4")
    assert c8.p == pytest.approx(4 * 0.05**3 * 0.95 + 0.05**4) and c8.least_p == pytest.approx(0.05**4)
    assert (c12.values, c12.verdict) == ((1.0,), "holds")


def test_heads_in_the_wide_sense(run: Evidence) -> None:
    """A current-token head that also meets the criteria of a multigram head counts, an induction head that does does not."""
    assert upper(run) == 1 and len(heads(run, "multigram")) == 9
    roles = run.results["head_functions"]
    more = roles["holds"].copy()
    more.loc[{"role_name": "multigram"}] = roles["role"].isin(["multigram", "current token", "induction"])
    changed = Evidence(run.run, 0, dict(run.results) | {"head_functions": roles.assign(holds=more)})
    assert len(heads(changed, "multigram", wide=True)) == 9 + 3 and len(heads(changed, "multigram")) == 9
    with pytest.raises(Lacking, match="no head of layer 0 is an induction head"):
        heads(run, "induction", "L0")


def test_missing_numbers_are_told(run: Evidence) -> None:
    mix = run.results["rllc_mix"]
    head = heads(run, "induction")[0]
    lost = mix["value"].where(~((mix["layer"] == head.layer) & (mix["head"] == head.head)))
    found = CLAIMS["C12"]([Evidence(run.run, 0, dict(run.results) | {"rllc_mix": mix.assign(value=lost)})])
    assert found.verdict == "not testable here" and f"no value for {head}" in found.reason


def test_one_induction_head_is_not_two(run: Evidence) -> None:
    """C14 needs two that differ; C12 is then one head against many, whose p is 1 over their number."""
    roles = run.results["head_functions"]
    first = heads(run, "induction")[0]
    role = roles["role"].where(~((roles["layer"] == first.layer) & (roles["head"] == first.head)), "none")
    one = [Evidence(run.run, 0, dict(run.results) | {"head_functions": roles.assign(role=role)})]
    assert "only induction head" in CLAIMS["C14"](one).reason
    found = CLAIMS["C12"](one)
    assert found.verdict == "not testable here" and found.least_p == pytest.approx(1 / 6)


@pytest.mark.slow
def test_runs_together_hold() -> None:
    """Three seeds, true by construction; C11's rivals need five."""
    found = {claim.name: claim.verdict for claim in claims_llc([planted_run(seed) for seed in range(3)])}
    assert found == dict.fromkeys(CLAIMS, "holds") | {"C11": "not testable here"}
    assert CLAIMS["C11"]([planted_run(seed) for seed in range(5)]).verdict == "holds"


def gridded(run: Evidence, **changed: np.ndarray) -> Evidence:
    """The run with other coefficients under some settings; NaN are heads that did not mix."""
    grid = run.results["rllc_mix_grid"]
    value = grid["value"].copy()
    for name, numbers in changed.items():
        value.loc[{"setting": name.replace("_by_", " / ")}] = numbers
    state = grid["state"].where(np.isfinite(value), "not mixed")
    return Evidence(run.run, 0, dict(run.results) | {"rllc_mix_grid": grid.assign(value=value, state=state)})


def test_an_order_that_is_planted_and_one_that_is_noise(run: Evidence, judged: dict[str, Claim]) -> None:
    """The same order everywhere is tau 1; an order of its own at one setting fails; large errors decide nothing."""
    found = check("least tau", judged["C19"])
    assert (found.measured, found.verdict) == (1.0, "holds")
    assert check("least tau between", judged["C20"]).measured == pytest.approx(0.9, abs=0.1)
    noise = np.random.default_rng(3).uniform(1, 5, (1, 2, 8))
    failed = check("least tau", CLAIMS["C19"]([gridded(run, gamma_by_4=noise)]))
    assert failed.verdict == "fails" and failed.measured < 0.5 and "gamma / 4" in failed.reason
    grid = run.results["rllc_mix_grid"]
    loose = dict(run.results) | {"rllc_mix_grid": grid.assign(stderr=grid["stderr"] * 0 + 9.0)}
    assert check("least tau", CLAIMS["C19"]([Evidence(run.run, 0, loose)])).verdict == "not testable here"


def test_heads_that_are_not_ok_are_left_out_and_named(run: Evidence) -> None:
    base = run.results["rllc_mix_grid"]["value"].sel(setting="nbeta / 3").values.copy()
    base[0, 1, 2] = np.nan
    found = check("least tau", CLAIMS["C19"]([gridded(run, nbeta_by_3=base)]))
    assert found.measured == 1 and found.least_p == pytest.approx(2 / math.factorial(16))
    base[0, 1] = base[0, 0, :1] = np.nan
    found = CLAIMS["C19"]([gridded(run, nbeta_by_3=base)])
    assert found.verdict == "not testable here" and "9 of 16 heads are not ok" in found.reason
    base = run.results["rllc_mix_grid"]["value"].sel(setting="gamma / 4").values.copy()
    base[0, 1, 2] = np.nan
    assert "gamma / 4, without L1H2" in check("least tau", CLAIMS["C19"]([gridded(run, gamma_by_4=-base)])).reason


def test_the_trend_with_gamma_by_norm(run: Evidence) -> None:
    """From the last checkpoint of LM2 (400 to 1,200) at which it was sampled; of the other sign it fails."""
    mix, normed = run.results["rllc_mix"]["value"], run.results["rllc_mix_by_norm"]
    found = check("trend", CLAIMS["C19"]([run]))
    assert found.measured == pytest.approx(0.3 * float((mix.sel(step=8000) - mix.sel(step=1200)).mean()))
    assert found.verdict == "holds" and "from 1200" in found.reason
    turned = Evidence(run.run, 0, dict(run.results) | {"rllc_mix_by_norm": normed.assign(value=-normed["value"])})
    assert check("trend", CLAIMS["C19"]([turned])).verdict == "fails"
    late = Evidence(run.run, 0, dict(run.results) | {"rllc_mix_by_norm": normed.sel(step=[1600, 8000])})
    assert "no checkpoint of LM2, 400 to 1200" in CLAIMS["C19"]([late]).reason
