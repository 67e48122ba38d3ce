"""Why a calibration proposes what it does: value, acceptance and autocorrelation time against the step size.

As in ``curves``: a labelled result in, a matplotlib ``Figure`` out, equal bytes for equal input.
"""

from typing import TYPE_CHECKING

import numpy as np

from circuits.complexity.proposal import proposal
from circuits.views.figures import PALETTE, drawing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TIMES = {"autocorrelation_loss": ("-", "of the loss"), "autocorrelation_distance": (":", "of the distance")}


def calibration_figure(calibration: "xr.Dataset") -> "Figure":
    """What every step size gave, one row of panels for each ``nbeta`` and one colour for each ``gamma``.

    Full dots are cells whose verdict is "ok", hollow ones have something against them. A ring marks what ``proposal`` takes at
    that ``gamma``; a cross at the foot is a cell whose chains all diverged. Whiskers are two standard errors, bands
    those of the smallest stable step size. Values at different ``gamma`` are different quantities: each curve is to be level.

    Args:
        calibration: of ``circuits.complexity.calibrate.calibrate``.

    Raises:
        ValueError: not a calibration.
    """
    missing = {"value", "stderr", "departure", "acceptance", "verdict", *TIMES} - set(map(str, calibration.data_vars))
    if missing:
        raise ValueError(f"there is no {min(missing)!r} in this dataset: give a result of circuits.complexity.calibrate")
    gammas, nbetas = (np.unique(calibration[name].values) for name in ("gamma", "nbeta"))
    with drawing(None, width=10.4, height=3.2 * len(nbetas), columns=3, rows=len(nbetas)) as axes:
        for row, nbeta in enumerate(nbetas):
            panels = axes[3 * row : 3 * row + 3]
            for at, gamma in enumerate(gammas):
                here = calibration.isel(cell=(calibration["nbeta"].values == nbeta) & (calibration["gamma"].values == gamma))
                _draw(panels, here, _chosen(calibration, float(gamma), float(nbeta)), PALETTE[at % len(PALETTE)])
            _finish(panels, float(nbeta))
        return axes[0].figure  # type: ignore[return-value]


def _chosen(calibration: "xr.Dataset", gamma: float, nbeta: float) -> float | None:
    """The step size that is proposed, None where none will do."""
    try:
        return proposal(calibration, gamma=gamma, nbeta=nbeta).epsilon
    except ValueError:
        return None


def _draw(panels: "list[Axes]", here: "xr.Dataset", chosen: float | None, colour: str) -> None:
    """One gamma's cells in all three panels."""
    epsilon, ok = here["epsilon"].values, here["verdict"].values == "ok"
    there = np.isfinite(here["value"].values)
    for axis, name in zip((*panels, panels[2]), ("value", "acceptance", *TIMES), strict=True):
        value = here[name].values
        axis.plot(epsilon, value, color=colour, ls=TIMES.get(name, "-")[0], lw=1.2)
        for some, face in ((ok, colour), (~ok, "white")):
            axis.plot(epsilon[some], value[some], "o", color=colour, mfc=face, ms=5, mew=1.0, zorder=3)
        at = epsilon == chosen
        axis.plot(epsilon[at], value[at], "o", color=colour, mfc="none", ms=11, mew=1.4, zorder=4)
        axis.plot(epsilon[~there], np.full((~there).sum(), 0.03), "x", color=colour, transform=axis.get_xaxis_transform())
    value, error = here["value"].values, 2 * np.nan_to_num(here["stderr"].values)
    panels[0].errorbar(epsilon, value, yerr=error, fmt="none", ecolor=colour, elinewidth=0.9)
    for first in np.flatnonzero(here["departure"].values == 0)[:1]:
        panels[0].fill_between(epsilon, value[first] - error[first], value[first] + error[first], color=colour, alpha=0.15, lw=0)
    if there.any():
        last = (epsilon[there][-1], value[there][-1])
        text = f"gamma {float(here['gamma'][0]):g}"
        panels[0].annotate(text, last, xytext=(9, 0), textcoords="offset points", color=colour, fontsize=8, va="center")


def _finish(panels: "list[Axes]", nbeta: float) -> None:
    """Scales, names and legends of one row."""
    values, acceptances, times = panels
    for axis in panels:
        axis.set_xlabel("epsilon")
        axis.set_xscale("log")
        axis.tick_params(axis="x", labelsize=7.5)
        _plain(axis.xaxis, (1.0, 3.0))
    if values.dataLim.y0 > 0:
        values.set_yscale("log")
        _plain(values.yaxis, (1.0, 2.0, 5.0))
    values.set_ylabel("coefficient (nbeta nats)")
    values.set_title(f"Value, nbeta {nbeta:g}", loc="left")
    acceptances.set_ylim(-0.03, 1.06)
    acceptances.set_ylabel("probability")
    acceptances.set_title("Metropolis acceptance", loc="left")
    for label, face, size in (("ok", "#555555", 5), ("not ok", "white", 5), ("proposed", "none", 11)):
        acceptances.plot([], [], "o", color="#555555", mfc=face, ms=size, label=label)
    times.axhline(1.0, color="#777777", lw=0.9, ls="--")
    times.set_yscale("log")
    _plain(times.yaxis, (1.0, 2.0, 5.0))
    times.set_ylabel("draws")
    times.set_title("Autocorrelation time", loc="left")
    for style, label in TIMES.values():
        times.plot([], [], style, color="#555555", label=label)
    for axis in (acceptances, times):
        axis.legend(loc="best", frameon=False, fontsize=8)


def _plain(axis: "Axis", places: tuple[float, ...]) -> None:
    """Ticks of a logarithmic axis at these multiples of powers of ten, as plain text: mathematics is not parsed."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=places))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
