"""Stages of training: where curves of the run bend and rest, what emerged when, and in which order."""

from circuits.crosscheck.curves import run_curves
from circuits.models.checkpoints import Checkpoints
from circuits.views.html import paragraph
from circuits.views.sections import Results, Section, Wanted
from circuits.views.stage_part import stage_part


def measures(run: Checkpoints) -> list[Wanted]:
    return []


def render(run: Checkpoints, results: Results) -> str:
    if "stages" not in results:
        return paragraph("There are no stages: a curve of the run needs at least four checkpoints with data.")
    return stage_part(results["stages"], run_curves(results), results.get("function_emergence"))


SECTION = Section("stages", "Stages of training", -60, measures, render, reads=("stages",))
