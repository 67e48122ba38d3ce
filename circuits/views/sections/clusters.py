"""Do coefficients sort heads into roles, better than cheaper curves do; and do they change when roles emerge."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.views.cluster_part import cluster_part, lag_part
from circuits.views.html import paragraph
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

PARTS: "dict[str, tuple[str, Callable[[xr.Dataset, xr.DataArray | None], Markup]]]" = {
    "clusters": ("clusters", cluster_part),
    "lags": ("lags", lag_part),
}
LACKING = (
    "There are no {}: they need coefficients at two checkpoints or more, <code>circuits rllc {}</code>, and roles, "
    "<code>circuits detect {} --what roles</code>."
)


def measures(run: Checkpoints) -> list[Wanted]:
    return []


def render(run: Checkpoints, results: Results) -> str:
    """Rand indices beside those of the nulls, then lags; or what is missing for them."""
    roles = results["head_functions"]["role"].isel(step=-1, drop=True) if "head_functions" in results else None
    return Markup("\n").join(
        part(results[name], roles) if name in results else paragraph(LACKING, words, run.name, run.name)
        for name, (words, part) in PARTS.items()
    )


SECTION = Section("clusters", "Clusters of curves, and lags", -40, measures, render, reads=("clusters", "lags"))
