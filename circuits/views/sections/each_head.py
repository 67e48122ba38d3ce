"""Each head on its own: curves, what it sees, what it does, and its paths."""

from circuits.models.checkpoints import Checkpoints
from circuits.views.head_detail import head_details
from circuits.views.sections import Results, Section, Wanted


def measures(run: Checkpoints) -> list[Wanted]:
    return []


def render(run: Checkpoints, results: Results) -> str:
    return head_details(run, results)


SECTION = Section("each_head", "Each head", -20, measures, render, reads=("agreement",))
