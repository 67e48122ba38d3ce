"""The claims of the papers, checked on this run and on the seeds that come with it."""

from circuits.crosscheck.scorecard import claims_of
from circuits.models.checkpoints import Checkpoints
from circuits.views.html import paragraph
from circuits.views.scorecard_table import scorecard_part
from circuits.views.sections import Results, Section, Wanted


def measures(run: Checkpoints) -> list[Wanted]:
    return []


def render(run: Checkpoints, results: Results) -> str:
    if "scorecard" not in results:
        return paragraph("No claim was checked, as nothing was measured of what heads attend to.")
    found = results["scorecard"]
    return scorecard_part(claims_of(found), [name for name in str(found.attrs["runs"]).split("; ") if name])


SECTION = Section("scorecard", "Scorecard: what the papers claim", -30, measures, render, reads=("scorecard",))
