"""The lead of the report: every sentence says what its verdict says, in every branch, with the numbers of the data."""

from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr

from circuits.crosscheck.agreement import AGAINST, PREDICTIONS
from circuits.crosscheck.claims_circuits import CLAIMS
from circuits.crosscheck.claims_llc_curves import RIVALS
from circuits.crosscheck.scorecard import scorecard
from circuits.crosscheck.timing import clock
from circuits.crosscheck.verdict import UNTESTABLE, Check, Claim, Verdict
from circuits.dynamics.emergence import emerged
from circuits.models.heads import Head
from circuits.views.finding import MANY, Finding, listed, named
from circuits.views.findings import GROUPS, findings, findings_part, grouped
from circuits.views.findings_claims import OF_LIBRARY
from circuits.views.findings_coefficients import CHEAPER

STEPS, COEFFICIENTS, ROLES, LAGS, ORDER = "What happened when", "Whether", "What heads are", "When coefficients", "order"


def of(results: dict[str, xr.Dataset], title: str) -> list[Finding]:
    """The findings of the group whose title begins so."""
    return next(found for name, found in grouped(results).items() if name.startswith(title))


def saying(found: Sequence[Finding], words: str) -> Finding:
    chosen = [finding for finding in found if words in finding.text]
    assert len(chosen) == 1, f"{words!r} in {[finding.text for finding in found]}"
    return chosen[0]


def a_stages(
    events: Sequence[tuple[str, str, str, float]] = (
        ("loss", "emergence", "emerged", 100),
        ("llc", "emergence", "emerged", 500),
        ("strongest_induction", "emergence", "emerged", 2_000),
    ),
    before: Sequence[tuple[int, int]] = (),
    other: str = "undecided",
) -> xr.Dataset:
    """Events (curve, kind, state, step); ``before``: pairs that the test tells apart, all others are ``other``."""
    n, names = len(events), [f"{curve}: {kind} {i}" for i, (curve, kind, _, _) in enumerate(events)]
    verdict, p = np.full((n, n), other, dtype="<U10"), np.full((n, n), 0.4)
    for a, b in before:
        verdict[a, b], verdict[b, a], p[a, b], p[b, a] = "before", "after", 0.002, 0.002
    value = np.array([float(step) for *_, step in events])
    return xr.Dataset(
        {
            "value": ("event", value),
            "low": ("event", value * 0.5),
            "high": ("event", value * 2),
            "state": ("event", [state for _, _, state, _ in events]),
            "p": (("event", "other"), p),
            "verdict": (("event", "other"), verdict),
            "order_confidence": ((), 0.25),
        },
        coords={
            "event": names,
            "other": names,
            "kind": ("event", [kind for _, kind, _, _ in events]),
            "curve": ("event", [curve for curve, *_ in events]),
        },
        attrs={"level": 0.95, "smallest_p": 0.001},
    )


def an_agreement(
    verdicts: Sequence[str] = ("agree", "agree", "undecided", "agree"),
    roles: Sequence[str] = ("previous token", "current token", "induction", "none"),
    confidence: Sequence[float] = (1.0, 0.4, 0.9, 1.0),
    flags: Sequence[str] = ("none",) * 4,
) -> xr.Dataset:
    """Two layers of two heads; a head that disagrees has its rise against it, 0.125 with p .01."""
    shape, rise = (2, 2, len(PREDICTIONS)), list(PREDICTIONS).index("rllc_rise")
    numbers = {name: np.full(shape, np.nan) for name in ("value", "corrected")}
    words = {name: np.full(shape, "", dtype="<U9") for name in ("says", "expected")}
    for at, verdict in zip(np.ndindex(2, 2), verdicts, strict=True):
        words["expected"][*at, rise] = "there" if at in ((0, 0), (1, 0)) else "none"
        words["says"][*at, rise] = AGAINST if verdict == "disagree" else "for"
        numbers["value"][*at, rise], numbers["corrected"][*at, rise] = 0.125, 0.01
    dims = ("layer", "head")

    def square(values: Sequence[str] | Sequence[float]) -> tuple[tuple[str, str], np.ndarray]:
        return dims, np.array(values).reshape(2, 2)

    return xr.Dataset(
        {name: ((*dims, "prediction"), values) for name, values in (numbers | words).items()}
        | {"verdict": square(verdicts), "role": square(roles), "confidence": square(confidence), "flag": square(flags)},
        coords={"layer": [0, 1], "head": [0, 1], "prediction": list(PREDICTIONS)},
        attrs={"step": 10_000, "n_tested": 12},
    )


def a_lag(rows: Sequence[tuple[tuple[float, float], tuple[float, float]] | str], unit: float = 16.0) -> xr.Dataset:
    """Heads of one layer: between which steps the role emerged and the curve changed, or why there is no lag."""
    names = ("value", "low", "high", "change", "change_low", "change_high")
    numbers, state, reason = {name: np.full((1, len(rows)), np.nan) for name in names}, [], []
    for at, row in enumerate(rows):
        reason.append(row if isinstance(row, str) else "")
        if isinstance(row, str):
            state.append("untestable")
            continue
        role, change = (clock(np.array(steps), unit) for steps in row)
        low, high = change[0] - role[1], change[1] - role[0]
        state.append("curve first" if high < 0 else "role first" if low > 0 else "together")
        found = (change.mean() - role.mean(), low, high, np.mean(row[1]), *row[1])
        for name, number in zip(names, found, strict=True):
            numbers[name][0, at] = number
    return xr.Dataset(
        {name: (("layer", "head"), values) for name, values in numbers.items()}
        | {"state": (("layer", "head"), [state]), "reason": (("layer", "head"), [reason])},
        coords={"layer": [0], "head": range(len(rows))},
        attrs={"unit": unit},
    )


def a_clustering(
    verdict: str = "agree", *, state: str = "ok", high: float = 0.9, gap: tuple[float, float] = (0.1, 0.5), rivals: int = 2
) -> xr.Dataset:
    """One layer of coefficients with an index of 0.7, and rivals of 0.4, the last of which differs by ``gap``."""
    curves = ["rllc", *RIVALS[:rivals], "attention_induction"]
    n = len(curves)

    def grid(first: float, rest: float) -> tuple[tuple[str, ...], np.ndarray]:
        return ("curve", "layer", "clustering", "scaling"), np.array([first, *[rest] * (n - 1)]).reshape(n, 1, 1, 1)

    data = xr.Dataset(
        {
            "value": grid(0.7, 0.4),
            "low": grid(0.3, 0.2),
            "high": grid(high, 0.6),
            "p": grid(0.0123, 0.2),
            "smallest_p": grid(0.001, 0.001),
            "difference": grid(0.0, 0.3),
            "difference_low": grid(0.0, 0.1),
            "difference_high": grid(0.0, 0.5),
            "verdict": (grid(0, 0)[0], np.full((n, 1, 1, 1), verdict, dtype="<U12")),
            "state": (grid(0, 0)[0], np.full((n, 1, 1, 1), state, dtype="<U8")),
        },
        coords={"curve": curves, "layer": [1], "clustering": ["kmeans"], "scaling": ["standardised"]},
    )
    if rivals:
        data["difference_low"][rivals, ...], data["difference_high"][rivals, ...] = gap
    return data


def a_check(quantity: str = "rank", verdict: Verdict = "holds", reason: str = "", **changed: object) -> Check:
    given = {
        "expected": ">= 0.8", "published": "", "values": (0.25, 0.75), "measured": 0.5, "low": 0.125, "high": 0.875, "p": 0.034,
        "least_p": 0.0021, "rule": "t interval over 2 runs",
    } | changed  # fmt: skip
    return Check(quantity, verdict=verdict, reason=reason, **given)  # pyright: ignore[reportArgumentType]


def a_claim(name: str, *checks: Check) -> Claim:
    return Claim(name, f"Statement of {name}.", "How.", "Nothing.", "A paper", checks or (a_check(),))


def a_scorecard(*claims: Claim, runs: Sequence[str] = ("toy (seed 0)", "toy (seed 2)")) -> dict[str, xr.Dataset]:
    return {"scorecard": scorecard(claims, runs)}


# --- nothing measured -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_the_command_that_makes_it():
    found = findings({})
    assert {finding.verdict for finding in found} == {"undecided"}
    assert len(found) == len(GROUPS) - 1, "a sentence for each question; without claims there are no runs to tell"
    assert all("not measured. To measure it: circuits " in finding.text for finding in found)
    for words in ("What heads are", "When coefficients", "Whether coefficients"):
        said = saying(found, words).text
        assert "circuits rllc RUN" in said and "circuits detect RUN --what roles" in said


def test_a_run_without_coefficients_keeps_its_other_findings():
    found = findings({"stages": a_stages([("loss", "emergence", "emerged", 100)]), "agreement": an_agreement()})
    assert {finding.anchor for finding in found if "not measured" in finding.text} == {"stages", "clusters", "scorecard"}
    assert "circuits rllc RUN" in saying(found, "Stages of the whole model").text


# --- what happened when ---------------------------------------------------------------------------------------------------------


def test_events_are_told_with_their_intervals_and_in_no_order_of_time():
    events = [("strongest_induction", "emergence", "emerged", 2_000), ("loss", "emergence", "emerged", 100)]
    told = saying(of({"stages": a_stages(events)}, STEPS), "half of its way")
    narrow = "\N{NARROW NO-BREAK SPACE}"
    assert f"induction attention at step 2{narrow}000 (1{narrow}000 to 4{narrow}000) and the loss on" in told.text
    assert "at step 100 (50 to 200)" in told.text and "95%" in told.basis


@pytest.mark.parametrize(("state", "words"), [("untestable", "too few draws"), ("undecided", "errors leave it open")])
def test_an_order_that_no_pair_carries_is_undecided(state: str, words: str):
    told = saying(of({"stages": a_stages(other=state)}, STEPS), ORDER)
    assert told.verdict == "undecided" and words in told.text and "before" not in told.text
    assert "25.0% of draws" in told.basis and "1e−3" in told.basis


def test_an_order_that_all_pairs_carry_is_told():
    told = saying(of({"stages": a_stages(before=[(0, 1), (1, 2), (0, 2)])}, STEPS), ORDER)
    assert told.verdict == "found" and "not told apart" not in told.text and "p at most 2e−3" in told.basis
    assert "the loss on held-out text, then the whole model’s coefficient, then the strongest induction attention." in told.text


def test_of_an_order_only_the_pairs_that_are_told_apart_are_told():
    told = saying(of({"stages": a_stages(before=[(0, 2)])}, STEPS), ORDER)
    assert "the loss on held-out text before the strongest induction attention." in told.text
    assert "Of 3 pairs, 2 are not told apart." in told.text and "coefficient" not in told.text


def test_a_pair_that_follows_from_two_others_is_told_once():
    events = [(name, "emergence", "emerged", step) for name, step in (("a", 1), ("b", 2), ("c", 3), ("d", 3.5))]
    told = saying(of({"stages": a_stages(events, before=[(0, 1), (1, 2), (0, 2)])}, STEPS), ORDER)
    assert "a before b; b before c." in told.text and "a before c" not in told.text


def test_the_order_follows_the_verdict_and_not_the_middle():
    told = saying(of({"stages": a_stages(before=[(2, 0)])}, STEPS), ORDER)
    assert "the strongest induction attention before the loss on held-out text" in told.text


@pytest.mark.parametrize(
    ("state", "verdict", "words"),
    [
        ("from the start", "undecided", "by step 100, the first"),
        ("not risen", "not found", "No emergence of the gain"),
        ("missing", "undecided", "not known"),
    ],
)
def test_curves_without_a_time_say_why(state: str, verdict: str, words: str):
    found = of({"stages": a_stages([("repeat_gain", "emergence", state, 100)])}, STEPS)
    assert saying(found, words).verdict == verdict
    assert not [finding for finding in found if ORDER in finding.text]


def test_stages_of_the_coefficient():
    events = [("llc", "boundary", "clear", 300), ("llc", "boundary", "unclear", 700), ("llc", "plateau", "minimum", 900)]
    told = saying(of({"stages": a_stages(events)}, STEPS), "slope")
    assert told.verdict == "found" and "slope at step 300 (150 to 600), and" in told.text and "700" not in told.text
    assert "still at step 900 (450 to 1" in told.text and "a minimum" in told.text
    none = saying(of({"stages": a_stages([("llc", "boundary", "unclear", 700)])}, STEPS), "slope")
    assert none.verdict == "not found" and "no clear change of slope, and stands still nowhere" in none.text


# --- heads and witnesses --------------------------------------------------------------------------------------------------------


def test_roles_are_counted_and_named():
    told = saying(of({"agreement": an_agreement()}, ROLES), "By what they do")
    assert "of 4 heads there are: 1 induction (L1H0), 1 previous token (L0H0), 1 current token (L0H1), 1 without" in told.text
    assert "predict nothing: L0H1" in told.text and "40% of draws" in told.basis and told.verdict == "found"


def test_roles_that_no_head_has():
    found = of({"agreement": an_agreement(roles=("none",) * 4)}, ROLES)
    assert saying(found, "“induction”").verdict == saying(found, "“previous token”").verdict == "not found"
    assert saying(found, "By what they do").verdict == "not found"
    unknown = of({"agreement": an_agreement(roles=("none", "none", "none", "not measured"))}, ROLES)
    assert saying(unknown, "“induction”").verdict == "undecided"


def test_agreement_without_flags_is_said():
    told = saying(of({"agreement": an_agreement()}, ROLES), "flagged")
    assert told.verdict == "found" and "agree for 3 heads, disagree for 0 and leave 1 undecided (L1H0). No head is" in told.text
    assert "by what is there: 1 (L0H0); by the absence of an induction circuit: 2; 12 tests" in told.basis


def test_a_planted_disagreement_is_named_with_its_flag_and_its_numbers():
    data = an_agreement(("agree", "agree", "disagree", "agree"), flags=("none", "none", "detector_vs_curve", "none"))
    found = of({"agreement": data}, ROLES)
    told = saying(found, "L1H0 (induction)")
    assert told.verdict == "not found" and "complexity speaks against" in told.text and "detector_vs_curve" in told.text
    assert told.basis == "rllc_rise was to be there: 0.125, corrected p 0.010"
    assert saying(found, "1 head flagged: L1H0").verdict == "not found"


def test_both_witnesses_may_speak_against_a_head():
    both = "detector_vs_weights, detector_vs_curve"
    data = an_agreement(("disagree", "agree", "agree", "agree"), flags=(both, "none", "none", "none"))
    told = saying(of({"agreement": data}, ROLES), "L0H0 (previous token)")
    assert "weights and paths speak against" in told.text and "complexity speaks against" in told.text and both in told.text


def test_no_flag_where_nothing_agrees_is_undecided():
    told = saying(of({"agreement": an_agreement(("undecided",) * 4)}, ROLES), "flagged")
    assert told.verdict == "undecided" and "agree for 0 heads" in told.text


# --- lags -----------------------------------------------------------------------------------------------------------------------


def test_only_lags_whose_interval_excludes_0_lead_or_lag():
    data = a_lag(
        [((2_000, 2_100), (200, 300)), ((200, 300), (2_000, 2_100)), ((1_900, 2_100), (2_000, 2_200)), ((100, 4_000), (900, 999))]
    )
    found = of({"lags": data}, LAGS)
    first, role, both, wide = (saying(found, f"{words}: L0H{i}.") for i, words in enumerate(
        ("coefficient rises before the role emerges (which does not make it the cause)",
         "role emerges before the coefficient rises (which does not make it the cause)",
         f"at the same time, to within {np.ceil(100 * data['high'].item(2)) / 100:.2f} of a doubling", "is undecided")
    ))  # fmt: skip
    assert [one.verdict for one in (first, role, both, wide)] == ["found", "found", "found", "undecided"]
    for head, one in enumerate((first, role, both, wide)):
        here = data.sel(layer=0, head=head)
        numbers = [f"{float(here[name]):.2f}".replace("-", "−") for name in ("value", "low", "high")]
        assert f"L0H{head} {numbers[0]} ({numbers[1]} to {numbers[2]})" in one.basis
    assert len(found) == 4


def test_a_rise_at_the_very_start_foretells_nothing():
    told = saying(of({"lags": a_lag([((2_000, 2_100), (0, 16))])}, LAGS), "no sign that it foretells roles")
    assert told.verdict == "undecided" and "1 head (L0H0)" in told.text and "step 16" in told.text


@pytest.mark.parametrize("change", [(2_000, 2_100), (0, 16)])
def test_a_role_that_was_there_at_the_first_checkpoint_has_no_lag(change: tuple[int, int]):
    found = of({"lags": a_lag([((0, 16), change)])}, LAGS)
    assert [finding.verdict for finding in found] == ["undecided"] and "When the role of L0H0 emerged is not known" in found[
        0
    ].text


def test_roles_from_the_first_checkpoint_are_read_off_emergence_as_it_is():
    roles = xr.DataArray([[["resting"]], [["resting"]]], dims=("step", "layer", "head"), coords={"step": [16, 64]})
    when = emerged(roles)
    assert np.isnan(when["before"].item()), "timing takes this as step 0, which is what the test above plants"


def test_heads_without_a_lag_are_named_with_why():
    no_role, flat = "no role emerged within the run", "the curve does not rise beyond its errors"
    found = of({"lags": a_lag([no_role, flat, no_role])}, LAGS)
    assert [finding.text for finding in found] == [
        "No lag for L0H0 and L0H2: no role emerged within the run.",
        "No lag for L0H1: the curve does not rise beyond its errors.",
    ]


# --- coefficients beside cheaper measures ---------------------------------------------------------------------------------------


def layer_and_all(data: xr.Dataset) -> tuple[Finding, Finding]:
    found = of({"clusters": data}, COEFFICIENTS)
    return saying(found, "Layer 1:"), found[0]


def test_coefficients_that_beat_every_cheaper_measure():
    layer, every = layer_and_all(a_clustering())
    assert layer.verdict == every.verdict == "found" and "better than those of every cheaper measure" in layer.text
    assert "0.70 (0.30 to 0.90), p 0.012" in layer.basis
    assert "Fisher trace and norm of weights, 0.40, p 0.200; the coefficient’s less that: 0.30 (0.10 to 0.50)" in layer.basis
    assert "better than Fisher trace and norm of weights in layer 1 of 1." in every.text


@pytest.mark.parametrize(
    ("data", "verdict", "words"),
    [
        (a_clustering(gap=(-0.1, 0.5)), "undecided", "better than those of Fisher trace is not shown"),
        (a_clustering(gap=(0.0, 0.5)), "undecided", "better than those of Fisher trace is not shown"),
        (a_clustering(gap=(-0.5, -0.1)), "not found", "but those of Fisher trace agree better"),
        (a_clustering(rivals=0), "undecided", "no cheaper measure is there"),
        (a_clustering("no agreement", high=0.5), "not found", "do not agree with roles beyond chance."),
        (a_clustering("no agreement", high=0.71), "undecided", "up to 0.71 open"),
        (a_clustering("untestable"), "undecided", "smallest p to be had is 1e−3"),
        (a_clustering(state="one role"), "undecided", "one role"),
    ],
)
def test_where_nothing_is_better_it_is_said_plainly(data: xr.Dataset, verdict: str, words: str):
    layer, every = layer_and_all(data)
    assert layer.verdict == verdict and words in layer.text
    assert every.verdict == verdict and every.text.startswith("In no layer is it shown that")


def test_attention_which_roles_rest_on_is_no_rival():
    data = a_clustering()
    data["difference_low"].loc[{"curve": "attention_induction"}] = -1.0
    assert layer_and_all(data)[0].verdict == "found"
    assert set(CHEAPER) == set(RIVALS), "the lead compares with what claim C11 does"


# --- claims ---------------------------------------------------------------------------------------------------------------------


def test_counts_and_the_claims_that_fail():
    failing = a_claim("C5", a_check("order", "fails", "0 is not >= 1; toy: at 128 to 512"))
    results = a_scorecard(a_claim("circuits 1"), a_claim("C8"), failing, a_claim("C9", a_check("K", UNTESTABLE, "no heads")))
    found = of(results, "Claims")
    counts = saying(found, "held up")
    assert "Claims of the papers, 4: 2 held up (1 of these about this library, not about a run), 1 failed, 1 could" in counts.text
    assert counts.basis == "hold of these runs: C8; hold of this library, on any run: circuits 1; fail: C5"
    told = saying(found, "C5 fails")
    assert told.verdict == "not found" and told.text.endswith("The claim: Statement of C5. Here: order: 0 is not ≥ 1.")
    assert "order 0.500 [0.125, 0.875], expected ≥ 0.8, p 0.034" in told.basis and "toy: at 128 to 512" in told.basis
    assert len(found) == 2


def test_where_nothing_could_be_tested_that_is_undecided():
    found = of(a_scorecard(a_claim("C5", a_check("order", UNTESTABLE, "no data"))), "Claims")
    assert [finding.verdict for finding in found] == ["undecided"] and "fail: none" in found[0].basis


@pytest.mark.parametrize(
    ("verdict", "reason", "judged"),
    [("holds", "", "found"), ("fails", "0.1 is not >= 0.8", "not found"), (UNTESTABLE, "few", "undecided")],
)
@pytest.mark.parametrize("name", ["C11", "C12", "C13", "C14", "C15", "C18"])
def test_claims_with_a_sentence_of_their_own(name: str, verdict: Verdict, reason: str, judged: str):
    found = findings(a_scorecard(a_claim(name, a_check("rank", verdict, reason))))
    told = saying(found, f"{name} {verdict}. The claim: Statement of {name}.")
    assert told.verdict == judged and ("Here: rank: " in told.text) == bool(reason)
    assert "rank 0.500 [0.125, 0.875], expected ≥ 0.8, p 0.034" in told.basis


def test_what_an_untestable_check_looks_like_is_not_left_out():
    reason = "the smallest p to be had is 0.33; in what there is it is not as claimed; toy (seed 0): 1 head"
    told = saying(findings(a_scorecard(a_claim("C12", a_check("rank", UNTESTABLE, reason)))), "C12")
    assert told.text.endswith("Here: rank: the smallest p to be had is 0.33; in what there is it is not as claimed.")


@pytest.mark.parametrize(("p", "verdict", "words"), [(1e-8, "found", "R² = 0.999."), (0.3, "undecided", "chance gives as well")])
def test_how_much_cheaper_measures_explain(p: float, verdict: str, words: str):
    report = a_check("R^2 by simpler measures, all heads", "reported", "chance 0.33", measured=0.999, role="report", p=p)
    told = saying(findings(a_scorecard(a_claim("C18", a_check(), report))), "Measures that cost less")
    assert told.verdict == verdict and words in told.text and "chance 0.33" in told.basis


def test_runs_are_counted():
    many = saying(findings(a_scorecard(a_claim("C5"))), "checked on 2 runs")
    assert "toy (seed 0) and toy (seed 2)" in many.text and many.verdict == "found"
    one = saying(findings(a_scorecard(a_claim("C5"), runs=["toy"])), "a single run, toy")
    assert one.verdict == "undecided" and "another seed" in one.text


def test_claims_about_the_library_are_claims():
    assert set(OF_LIBRARY) <= set(CLAIMS)


# --- the page -------------------------------------------------------------------------------------------------------------------


def everything(run: str) -> dict[str, xr.Dataset]:
    parts = {"stages": a_stages(), "agreement": an_agreement(), "lags": a_lag(["no role"]), "clusters": a_clustering()}
    return parts | a_scorecard(a_claim("C5", a_check("order", "fails", f"0 is not >= 1; {run}: at 128")), runs=[run])


def test_the_page_has_every_sentence_once_with_a_link_and_nothing_runs():
    results = everything("<script>alert(1)</script>")
    page = findings_part(results)
    assert "<script" not in page and page.count("&lt;script&gt;") == 2
    assert page.startswith('<div class="headline">') and page.count("<li") == len(findings(results))
    for anchor in ("stages", "witnesses", "clusters", "scorecard"):
        assert f'href="#{anchor}"' in page
    assert "✓ found" in page and "✗ not found" in page and "? undecided" in page


def test_the_lead_counts_its_sentences():
    results = everything("toy")
    said = [finding.verdict for finding in findings(results)]
    assert f"✓ {said.count('found')} found, ✗ {said.count('not found')} not found" in findings_part(results)


def test_words_for_lists():
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["none", "a", "a and b", "a, b and c"]
    assert named([Head(0, i) for i in range(MANY + 3)]).endswith("L0H11 and 3 more")
