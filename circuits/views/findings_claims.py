"""Which claims of the papers hold, fail or cannot be tested, in sentences; and on how many seeds that rests.

Claims that have a sentence of their own elsewhere in the lead are counted here and not told twice. Five are about this library on
small models, not about any run (``circuits.crosscheck.claims_circuits``), and are named as such.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from circuits.crosscheck.partitions import ALPHA
from circuits.crosscheck.scorecard import claims_of
from circuits.crosscheck.verdict import UNTESTABLE, Check, Claim
from circuits.views.finding import CROSSCHECK, Finding, Verdict, lacking, listed
from circuits.views.html import count
from circuits.views.scorecard_table import bounds, chance, deciding, number, span, why
from circuits.views.sections import Results

ANCHOR = "scorecard"
VERDICTS: Mapping[str, Verdict] = {"holds": "found", "fails": "not found", UNTESTABLE: "undecided"}
BEYOND, SIZE, TEXTS = ("C11", "C18"), ("C12", "C13"), ("C14", "C15")
TOLD = {*BEYOND, *SIZE, *TEXTS}
OF_LIBRARY = ("circuits 1", "circuits 13", "circuits 22", "circuits 23", "circuits 24")
EXPLAINED = "R^2 by simpler measures, all heads"
"""What a check of C18 is called."""


def seeds(results: Results) -> list[Finding]:
    """On how many runs claims rest, and on which all else does."""
    if "scorecard" not in results:
        return []
    runs = runs_of(results)
    if len(runs) > 1:
        text = f"Claims were checked on {count(len(runs))} runs: {listed(runs)}. All that is not a claim is of the first."
        return [Finding(text, "found", ANCHOR)]
    text = f"All is of a single run{f', {runs[0]}' if runs else ''}: nothing here says what another seed of the recipe would do."
    return [Finding(text, "undecided", ANCHOR)]


def runs_of(results: Results) -> list[str]:
    """Names of the runs that claims were checked on."""
    return [name for name in str(results["scorecard"].attrs.get("runs", "")).split("; ") if name]


def told_apart_from_cheaper(results: Results) -> list[Finding]:
    """C11 and C18, and how much of coefficients simpler measures explain."""
    found = _own(results, BEYOND)
    for check in (check for claim in _claims(results) for check in claim.checks if check.quantity == EXPLAINED):
        if np.isfinite(check.measured):
            found.append(_explained(check))
    return found


def size_and_texts(results: Results) -> list[Finding]:
    """C12 and C13, about how large coefficients are; C14 and C15, about what they are on other texts."""
    if "scorecard" not in results:
        return [lacking("What the size of a coefficient says, and what it says on other texts", ANCHOR, CROSSCHECK)]
    return _own(results, (*SIZE, *TEXTS))


def of_papers(results: Results) -> list[Finding]:
    """How many claims hold, fail and cannot be tested; and each that fails, with why."""
    if "scorecard" not in results:
        return [lacking("Which claims of the papers hold", ANCHOR, CROSSCHECK)]
    claims = _claims(results)
    failed = [claim for claim in claims if claim.verdict == "fails" and claim.name not in TOLD]
    return [*_counts(claims), *map(_told, failed)]


def _claims(results: Results) -> tuple[Claim, ...]:
    return claims_of(results["scorecard"]) if "scorecard" in results else ()


def _own(results: Results, names: Sequence[str]) -> list[Finding]:
    return [_told(claim) for claim in _claims(results) if claim.name in names]


def _told(claim: Claim) -> Finding:
    """A claim, its verdict and why; its numbers beside."""
    reason = why(claim)
    text = f"{claim.name} {claim.verdict}. The claim: {claim.statement}{f' Here: {reason}.' if reason else ''}"
    numbers = [_numbers(check) for check in claim.checks if check.role == "claim" and np.isfinite(check.measured)]
    return Finding(text, VERDICTS[claim.verdict], ANCHOR, "; ".join([*numbers, *_notes(claim)]))


def _numbers(check: Check) -> str:
    p = f", p {chance(check.p, check.least_p)}" if np.isfinite(check.p) else ""
    return f"{check.quantity} {span(check)}, expected {bounds(check.expected)}{p}"


def _notes(claim: Claim) -> list[str]:
    """What a claim that fails says of single runs."""
    if claim.verdict != "fails":
        return []
    return list(dict.fromkeys(part for check in deciding(claim) for part in check.reason.split("; ")[1:]))


def _explained(check: Check) -> Finding:
    beyond = check.p <= ALPHA
    text = f"Measures that cost less explain the heads’ coefficients to R² = {number(check.measured)}"
    text += "." if beyond else ", which chance gives as well."
    basis = f"{span(check)}, p {chance(check.p, check.least_p)}; {check.reason}"
    return Finding(text, "found" if beyond else "undecided", ANCHOR, basis)


def _counts(claims: Sequence[Claim]) -> list[Finding]:
    """The count of verdicts, and which claims hold: those about runs apart from those about the library."""
    by = {verdict: [claim.name for claim in claims if claim.verdict == verdict] for verdict in VERDICTS}
    holds, fails, untested = (by[verdict] for verdict in VERDICTS)
    runs, library = ([name for name in holds if (name in OF_LIBRARY) == own] for own in (False, True))
    text = (
        f"Claims of the papers, {count(len(claims))}: {count(len(holds))} held up ({count(len(library))} of these about this "
        f"library, not about a run), {count(len(fails))} failed, {count(len(untested))} could not be tested here."
    )
    parts = [
        f"hold of these runs: {listed(runs)}",
        f"hold of this library, on any run: {listed(library)}",
        f"fail: {listed(fails)}",
    ]
    return [Finding(text, "found" if holds or fails else "undecided", ANCHOR, "; ".join(parts))]
