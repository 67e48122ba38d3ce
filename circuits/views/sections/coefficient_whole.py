"""The local learning coefficient of all weights of the model over training."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.views.coefficient_figures import ERRORS, whole_curve
from circuits.views.curves import rendered
from circuits.views.html import count, decimal, image, paragraph, with_error
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficients import asked, below_zero, largest_by_chance, left_out, not_ok, settings

if TYPE_CHECKING:
    import xarray as xr


def measures(run: Checkpoints) -> list[Wanted]:
    wants, _ = asked(run)
    return [wants["whole"]] if "whole" in wants else []


def render(run: Checkpoints, results: Results) -> Markup:
    """First and last value, the largest fall, and the curve."""
    wants, why = asked(run)
    if "whole" not in wants:
        return left_out(why)
    found = results[wants["whole"].measure.name]
    lead = course(found)
    return Markup("\n").join(
        [
            paragraph(
                "All weights move at once. {} Heads were sampled at other settings: compare the course, not the height.",
                settings(found),
            ),
            paragraph("{}", lead),
            image(
                rendered(whole_curve(found), "svg"), "image/svg+xml",
                alt=f"Coefficient of all weights over training. {lead}",
                caption=f"The band is ± {ERRORS:.0f} standard errors of sampling. {not_ok(found)}{below_zero(found)}",
            ),
        ]
    )  # fmt: skip


def course(found: "xr.Dataset") -> str:
    """Where the curve starts and ends, and its largest fall between neighbouring measured checkpoints."""
    value, stderr = found["value"].values, found["stderr"].values
    known = np.flatnonzero(np.isfinite(value))
    if not len(known):
        return "No checkpoint has a value."
    value, stderr, steps = value[known], stderr[known], found["step"].values[known]
    ends = [f"{with_error(value[i], stderr[i], 2)} at step {count(int(steps[i]))}" for i in (0, -1)]
    if len(value) == 1:
        return f"The coefficient is {ends[0]}."
    change, error = np.diff(value), np.hypot(stderr[1:], stderr[:-1])
    at = int(change.argmin())
    between = f"from step {count(int(steps[at]))} to {count(int(steps[at + 1]))}"
    if change[at] >= 0:
        fall = "It never falls between neighbouring checkpoints."
    else:
        bound = largest_by_chance(len(change))
        clear = "more" if -change[at] > bound * error[at] else "not more"
        fall = (
            f"Its largest fall between neighbouring checkpoints is {decimal(-change[at], 2)} ± {decimal(error[at], 2)} "
            f"{between}, {clear} than the {decimal(bound, 1)} standard errors that bound the largest of {len(change)} by chance."
        )
    return f"The coefficient is {ends[0]} and {ends[1]}. {fall}"


SECTION = Section("coefficient_whole", "Complexity of the whole model", 64, measures, render)
