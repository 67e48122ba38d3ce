"""The scorecard on a page: verdicts in words, numbers of the checks, guesses only where a claim fails, and text as text."""

import math
import re

import pytest

from circuits.crosscheck.claims_circuits import CLAIMS
from circuits.crosscheck.verdict import UNTESTABLE, Check, Claim, Verdict
from circuits.views.findings_claims import OF_LIBRARY
from circuits.views.scorecard_table import SIGNS, WHY_DIFFERENT, anchor, chance, clause, number, scorecard_part, span, why

RUNS = ("toy (seed 0)", "toy (seed 2)")


def a_check(quantity: str = "rank", verdict: Verdict = "holds", reason: str = "", **changed: object) -> Check:
    given = {
        "expected": ">= 0.8", "published": "0.62 (A paper)", "values": (0.25, 0.75), "measured": 0.5, "low": 0.125, "high": 0.875,
        "p": 0.034, "least_p": 0.0021, "rule": "t interval over 2 runs",
    } | changed  # fmt: skip
    return Check(quantity, verdict=verdict, reason=reason, **given)  # pyright: ignore[reportArgumentType]


def a_claim(name: str, *checks: Check) -> Claim:
    return Claim(name, f"Statement of {name}.", "At least >= 3.", f"Control of {name}.", "A paper, 2020", checks or (a_check(),))


THREE = (
    a_claim("C5", a_check("order", "fails", "0 is not >= 1; toy: at 128 to 512")),
    a_claim("C8"),
    a_claim("C9", a_check("K", UNTESTABLE, "no heads")),
)


def test_the_summary_counts_claims_and_runs():
    assert "<b>3 claims</b>, checked on 2 runs (toy (seed 0), toy (seed 2)): ✓ 1 holds, ✗ 1 fails, – 1 not testable here." in (
        scorecard_part(THREE, RUNS)
    )
    assert "<b>1 claim</b>, checked on 1 run (toy): ✓ 1 holds, ✗ 0 fail, – 0 not" in scorecard_part(THREE[1:2], ["toy"])
    assert "runs without names" in scorecard_part(THREE, [])


def test_without_claims_the_command_is_named():
    assert "circuits crosscheck RUN" in scorecard_part([], RUNS)


@pytest.mark.parametrize(("claim", "said"), list(zip(THREE, ("✗ fails", "✓ holds", "– not testable here"), strict=True)))
def test_every_claim_has_a_row_and_details_with_its_verdict_in_words(claim: Claim, said: str):
    page = scorecard_part(THREE, RUNS)
    row = next(row for row in page.split("<tr>") if f'href="#{anchor(claim)}"' in row)
    assert said in row and f"Statement of {claim.name}." in row and f"Control of {claim.name}." in row
    details = page.split(f'<details id="{anchor(claim)}">')[1].split("</details>")[0]
    assert f"</b> {said}: Statement" in details and "At least ≥ 3." in details and "A paper, 2020" in details


def test_a_check_has_all_its_numbers():
    report = a_check("beside", "reported", p=math.nan, least_p=1.0, role="report", published="")
    number_ = a_check("other", "fails", "0.5 is not >= 0.8", role="number")
    page = scorecard_part([a_claim("C8", a_check(), report, number_)], RUNS)
    rows = [row for row in page.split("<details")[1].split("<tr>") if "<td" in row]
    assert len(rows) == 3
    for text in (
        "rank",
        "≥ 0.8",
        "0.62 (A paper)",
        "0.500 [0.125, 0.875]",
        "t interval over 2 runs",
        "0.250; 0.750",
        "0.034",
        "2e−3",
    ):
        assert text in rows[0], text
    assert "· reported" in rows[1] and ">–</td>" in rows[1] and "1.000" in rows[1]
    assert "✗ fails (beside the claim)" in rows[2] and "0.5 is not ≥ 0.8" in rows[2]


def test_a_guess_stands_only_where_a_claim_fails():
    assert (
        "Why this may differ" in scorecard_part(THREE[:1], RUNS)
        and WHY_DIFFERENT["C5"] in scorecard_part(THREE[:1], RUNS).unescape()
    )
    assert "Why this may differ" not in scorecard_part(THREE[1:], RUNS)
    unknown = a_claim("of mine", a_check("order", "fails", "0 is not >= 1"))
    assert "Why this may differ" not in scorecard_part([unknown], RUNS)


def test_guesses_are_hedged_name_the_runs_and_are_of_claims_that_runs_can_fail():
    known = {f"C{i}" for i in range(5, 21)} | set(CLAIMS)
    assert set(WHY_DIFFERENT) <= known - set(OF_LIBRARY) and {f"C{i}" for i in range(5, 21)} <= set(WHY_DIFFERENT)
    tested = ("3", "4", "6", "7", "8", "9", "10", "11", "12", "14", "16", "19", "20")
    assert {f"circuits {i}" for i in tested} <= set(WHY_DIFFERENT)
    for name, sentence in WHY_DIFFERENT.items():
        assert sentence.startswith("On the shipped runs it may be because ") and sentence.endswith(", which was not tested."), (
            name
        )


def test_text_is_text():
    bad = "<script>alert('x')</script>"
    check = a_check(bad, "fails", f"0 is not >= 1; {bad}: 3", published=bad, rule=bad, expected=bad)
    page = scorecard_part([Claim(f"C5{bad}", bad, bad, bad, bad, (check,))], [bad])
    assert "<script" not in page and "&lt;script&gt;" in page
    assert re.findall('<details id="([^"]*)">', page) == ["claim-c5-script-alert-x-script"]


def test_the_table_is_readable_on_a_phone_and_without_colours():
    page = scorecard_part(THREE, RUNS)
    assert page.count("<table") == page.count('<div class="scroll"><table') == 4
    assert "background" not in page and len(set(SIGNS.values())) == len(SIGNS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (math.nan, "–"), (3.0, "3"), (-2.0, "−2"), (0.4567, "0.457"), (12.345, "12.35"), (123.46, "123.5"),
        (4.2e-15, "4.20e−15"), (-4.2e-4, "−4.20e−4"), (1.12e11, "1.12e11"), (12_345.6, "12\N{NARROW NO-BREAK SPACE}346"),
    ],
)  # fmt: skip
def test_numbers_of_any_size(value: float, text: str):
    assert number(value) == text


def test_intervals_and_chances():
    assert span(a_check()) == "0.500 [0.125, 0.875]"
    assert span(a_check(low=0.5, high=0.5)) == span(a_check(low=math.nan, high=math.nan)) == "0.500"
    assert span(a_check(measured=math.nan)) == "–"
    assert [chance(0.0, 0.0), chance(0.25, 0.25), chance(math.nan, 1.0)] == ["<1e−16", "≤0.250", "–"]


def test_reasons_are_shortened_to_what_decided_and_told_once():
    why_not = "the smallest p to be had is 0.33; in what there is it is as claimed; toy: 1 head"
    assert clause(why_not) == "the smallest p to be had is 0.33; in what there is it is as claimed"
    checks = (
        a_check("a", UNTESTABLE, "no data; x"),
        a_check("b", UNTESTABLE, "no data; y"),
        a_check("c", UNTESTABLE, "few"),
        a_check("d"),
    )
    assert why(a_claim("C9", *checks)) == "a and b: no data; c: few"
    assert why(a_claim("C9")) == "" and why(THREE[0]) == "order: 0 is not ≥ 1"
    beside = a_claim("C9", a_check(), a_check("n", "fails", "no", role="number"))
    assert beside.verdict == "holds" and why(beside) == ""


def test_a_failing_claim_gives_no_reasons_of_checks_that_are_only_untestable():
    both = a_claim("C5", a_check("a", UNTESTABLE, "few"), a_check("b", "fails", "0 is not >= 1"))
    assert why(both) == "b: 0 is not ≥ 1"
