"""The scorecard as a page has it: claims of papers, their verdicts, and under each claim how it was checked.

    ✓ holds   ✗ fails   – not testable here   · reported

A verdict is told by its sign and its words, never by a colour. What a number means, and when a verdict is reached:
``circuits.crosscheck.verdict``.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from circuits.crosscheck.verdict import UNTESTABLE, Check, Claim
from circuits.views.html import count, decimal, paragraph, probability, table
from circuits.views.why_different import WHY_DIFFERENT as WHY_DIFFERENT

SIGNS = {"holds": "✓", "fails": "✗", UNTESTABLE: "–", "reported": "·"}
LIKELY = "in what there is it is"
"""How a verdict says what an untestable check looks like."""


def scorecard_part(claims: Sequence[Claim], runs: Sequence[str]) -> Markup:
    """The claims in a table, and each with its checks in a part that opens.

    Args:
        claims: of the papers. runs: names of the runs that they were checked on.
    """
    if not claims:
        return paragraph("No claims were checked. To check them: <code>circuits crosscheck RUN</code>.")
    head = ("claim", "what it says", "verdict", "smallest p to be had", "control", "why")
    rows = [
        (
            Markup('<a href="#{}">{}</a>').format(anchor(claim), claim.name),
            _wide(claim.statement),
            verdict_words(claim.verdict),
            probability(claim.least_p) if claim.least_p > 0 else "no bound",
            _wide(claim.control),
            _wide(why(claim) or "–"),
        )
        for claim in claims
    ]
    caption = "Claims of the papers. Where the smallest p that could have come out is above .05, a claim is not testable here."
    details = Markup("\n").join(_details(claim, runs) for claim in claims)
    return Markup("\n").join([_counts(claims, runs), table(head, rows, caption=caption), details])


def verdict_words(verdict: str) -> str:
    """``✓ holds``."""
    return f"{SIGNS[verdict]} {verdict}"


def anchor(claim: Claim) -> str:
    """What a link to a claim points at."""
    return f"claim-{re.sub('[^a-z0-9]+', '-', claim.name.lower()).strip('-')}"


def why(claim: Claim) -> str:
    """The reasons that decided, each without its notes on single runs; the same reason once."""
    told: dict[str, list[str]] = {}
    for check in deciding(claim):
        told.setdefault(clause(check.reason), []).append(check.quantity)
    return bounds("; ".join(f"{' and '.join(quantities)}: {reason}" for reason, quantities in told.items()))


def deciding(claim: Claim) -> list[Check]:
    """The checks that make a claim fail, or leave it untestable."""
    found = [check for check in claim.checks if check.role == "claim" and check.reason]
    return [check for check in found if check.verdict == claim.verdict != "holds"]


def clause(reason: str) -> str:
    """The first clause of a reason; with the second where that is what an untestable check looks like."""
    first, *rest = reason.split("; ")
    return "; ".join([first, *(part for part in rest[:1] if part.startswith(LIKELY))])


def number(value: float) -> str:
    """A number of any size to three digits or so."""
    size = abs(value)
    if not np.isfinite(value) or value == 0:
        return decimal(value, 0)
    if not 1e-3 <= size < 1e6:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")
    return count(value) if size >= 1000 or value == round(value) else decimal(value, 1 if size >= 100 else 2 if size >= 10 else 3)


def chance(p: float, least_p: float) -> str:
    """A p; one of a distribution's tail that is 0 in doubles is less than these can tell."""
    return "<1e−16" if p == 0 else probability(p, least_p)


def span(check: Check) -> str:
    """``0.30 [0.16, 0.44]``; what is exact has no interval."""
    if not np.isfinite(check.measured):
        return "–"
    if not np.isfinite(check.low) or check.low == check.high:
        return number(check.measured)
    return f"{number(check.measured)} [{number(check.low)}, {number(check.high)}]"


def bounds(text: str) -> str:
    """Bounds in the signs of print."""
    return text.replace(">=", "≥").replace("<=", "≤")


def _wide(text: str) -> Markup:
    """Text in a table that scrolls sideways on a phone: without a width, columns would be a word wide."""
    return Markup('<div style="min-width:15em">{}</div>').format(text)


def _counts(claims: Sequence[Claim], runs: Sequence[str]) -> Markup:
    n = Counter(claim.verdict for claim in claims)
    where = f"{count(len(runs))} run{'' if len(runs) == 1 else 's'} ({', '.join(runs)})" if runs else "runs without names"
    return paragraph(
        "<b>{} claim{}</b>, checked on {}: {} {} hold{}, {} {} fail{}, {} {} not testable here.",
        count(len(claims)), "" if len(claims) == 1 else "s", where,
        SIGNS["holds"], count(n["holds"]), "s" if n["holds"] == 1 else "",
        SIGNS["fails"], count(n["fails"]), "s" if n["fails"] == 1 else "",
        SIGNS[UNTESTABLE], count(n[UNTESTABLE]),
    )  # fmt: skip


def _details(claim: Claim, runs: Sequence[str]) -> Markup:
    """A claim with how it is read here, where it is from, and all its checks."""
    guess = ""
    if claim.verdict == "fails" and claim.name in WHY_DIFFERENT:
        guess = paragraph("<b>Why this may differ</b>. {}", WHY_DIFFERENT[claim.name])
    return Markup('<details id="{}"><summary><b>{}</b> {}: {}</summary>\n{}{}{}{}</details>').format(
        anchor(claim), claim.name, verdict_words(claim.verdict), claim.statement,
        paragraph("<b>How it is checked</b>: {}", bounds(claim.definition)), paragraph("<b>Source</b>: {}", claim.source),
        guess, _checks(claim, runs),
    )  # fmt: skip


def _checks(claim: Claim, runs: Sequence[str]) -> Markup:
    head = ("quantity", "expected", "published", "measured", "by run", "p", "smallest p", "verdict", "reason and notes")
    lacks = f"; of {count(len(runs))} runs, those without the data are left out" if len(runs) > 1 else ""
    caption = f"Checks of {claim.name}. Measured: value [interval], and what the interval and p are of{lacks}."
    return table(head, [_check(check) for check in claim.checks], caption=caption, numeric=(5, 6))


def _check(check: Check) -> tuple[object, ...]:
    beside = " (beside the claim)" if check.role == "number" else ""
    return (
        check.quantity,
        bounds(check.expected),
        check.published or "–",
        Markup('{}<br><small class="quiet">{}</small>').format(span(check), check.rule),
        "; ".join(map(number, check.values)) or "–",
        chance(check.p, check.least_p),
        probability(check.least_p) if check.least_p > 0 else "no bound",
        f"{verdict_words(check.verdict)}{beside}",
        _wide(bounds(check.reason) or "–"),
    )
