"""What was found, in sentences made from verdicts; and the cross-check that these and the sections after it read."""

from typing import TYPE_CHECKING

from circuits.dynamics.detect import attention_measure
from circuits.models.checkpoints import Checkpoints
from circuits.views.crosschecked import DERIVED, crosschecked
from circuits.views.findings import findings_part
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.summary import about

if TYPE_CHECKING:
    import xarray as xr


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(attention_measure(run))]


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """The parts of the cross-check that there are data for."""
    return crosschecked(run, results)


def render(run: Checkpoints, results: Results) -> str:
    """The run in a line, then the findings."""
    return about(run) + findings_part(results)


SECTION = Section("findings", "What was found", -70, measures, render, derive, reads=DERIVED, long=True)
