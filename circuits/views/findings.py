"""What was found: the lead of a report that cross-checks, in plain words, for readers who have never seen the run.

Every sentence is made from a measured verdict, and says "undecided" where that does; see ``circuits.views.finding``. What was not
measured is named with the command that measures it. Which datasets are read: ``stages``, ``agreement`` (what
``circuits.crosscheck.agreement`` returns), ``lags``, ``clusters`` and ``scorecard``.
"""

from collections import Counter
from collections.abc import Callable

from markupsafe import Markup

from circuits.views.finding import Finding as Finding
from circuits.views.findings_claims import of_papers, seeds, size_and_texts, told_apart_from_cheaper
from circuits.views.findings_coefficients import more_than_cheaper
from circuits.views.findings_heads import lags, what_heads_are
from circuits.views.findings_stages import what_happened
from circuits.views.html import count, paragraph
from circuits.views.sections import Results

SIGNS = {"found": "✓", "not found": "✗", "undecided": "?"}
GROUPS: dict[str, tuple[Callable[[Results], list[Finding]], ...]] = {
    "What this rests on": (seeds,),
    "What happened when": (what_happened,),
    "What heads are, and whether three witnesses agree": (what_heads_are,),
    "When coefficients change beside roles": (lags,),
    "Whether coefficients say more than cheaper measures": (more_than_cheaper, told_apart_from_cheaper),
    "What coefficients say by their size, and on other texts": (size_and_texts,),
    "Claims of the papers": (of_papers,),
}


def findings(results: Results) -> list[Finding]:
    """What was found, not found and left undecided, in the order of the report.

    Args:
        results: datasets by name; any may be absent.
    """
    return [finding for group in grouped(results).values() for finding in group]


def grouped(results: Results) -> dict[str, list[Finding]]:
    """Findings by the question that they answer."""
    every = {title: [finding for made in makers for finding in made(results)] for title, makers in GROUPS.items()}
    return {title: found for title, found in every.items() if found}


def findings_part(results: Results) -> Markup:
    """The findings as the headline of a report, each with a link to its evidence."""
    groups = grouped(results)
    n = Counter(finding.verdict for found in groups.values() for finding in found)
    lead = paragraph(
        "<b>What was found</b>, in sentences: {} {} found, {} {} not found (measured, with a verdict against it), {} {} "
        "undecided (the data cannot tell).",
        *(part for verdict, sign in SIGNS.items() for part in (sign, count(n[verdict]))),
    )
    parts = [
        Markup('<h3>{}</h3>\n<ul style="list-style:none;padding-left:0">\n{}\n</ul>').format(
            title, Markup("\n").join(map(_item, found))
        )
        for title, found in groups.items()
    ]
    return Markup('<div class="headline">\n{}\n{}\n</div>').format(lead, Markup("\n").join(parts))


def _item(finding: Finding) -> Markup:
    basis = Markup('<br><small class="quiet">{}</small>').format(finding.basis) if finding.basis else ""
    return Markup('<li style="margin:6px 0"><b>{} {}.</b> {} <a href="#{}">evidence</a>{}</li>').format(
        SIGNS[finding.verdict], finding.verdict, finding.text, finding.anchor, basis
    )
