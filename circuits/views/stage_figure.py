"""The figure of stages: a run's curves one under the other on log time, and what happened to each.

    line, solid or dotted    a boundary, clear or unclear; the shade around it is its interval
    hatched span, with mark  a plateau from its start to its end: up a maximum, down a minimum, square a pause
    diamond with bar         the emergence and its interval; a triangle to the left if the score was there from the start

Log time is that of ``circuits.dynamics.stage_curves``: even up to the first checkpoint after step 0, from there on logarithmic.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuits.dynamics.stage_curves import log_time, unit_of
from circuits.views.figures import PALETTE, drawable, drawing, line_with_band, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "loss": ("loss", "nats per token"),
    "in_context_score": ("in-context score", "late − early loss, nats"),
    "llc": ("whole-model llc", "nβ × nats"),
    "repeat_gain": ("repeat gain", "nats per token"),
    "strongest_previous_token": ("previous token", "strongest head, attention mass"),
    "strongest_induction": ("induction", "strongest head, attention mass"),
}
"""What the curves of ``circuits.crosscheck.curves.run_curves`` are called, and what they are in."""
CURVE, EMERGENCE, BOUNDARY, PLATEAU = PALETTE[0], PALETTE[1], PALETTE[7], PALETTE[6]
MARKS = {"maximum": "^", "minimum": "v", "pause": "s"}


class Happened(NamedTuple):
    """A row of what ``stages`` found; steps, NaN where there is none."""

    name: str
    curve: str
    kind: str
    at: float
    low: float
    high: float
    start: float
    end: float
    state: str


def happened(found: "xr.Dataset") -> list[Happened]:
    """The rows of ``stages``, in its order.

    Raises:
        ValueError: it is of several seeds, or no such dataset.
    """
    if "event" not in found.dims or "seed" in found.dims:
        raise ValueError(f"stages have dims {', '.join(map(str, found.dims))}; give those of one run: stages(...).isel(seed=0)")
    columns = (
        found[name].values.tolist() for name in ("event", "curve", "kind", "value", "low", "high", "start", "end", "state")
    )
    return [Happened(*row) for row in zip(*columns, strict=True)]


def title_of(curve: str) -> str:
    """What a curve is called in words."""
    return TITLES[curve][0] if curve in TITLES else curve.replace("_", " ")


def stage_figure(found: "xr.Dataset", curves: "Mapping[str, xr.Dataset]", emergence: "xr.Dataset | None" = None) -> "Figure":
    """A run's curves with their boundaries, plateaus and emergences; below them, how many heads had their last role.

    Args:
        found: of ``circuits.dynamics.stages.stages``, one run. curves: by name, ``value`` and ``stderr`` over ``step``.
        emergence: of ``circuits.dynamics.emergence.emerged``.

    Raises:
        ValueError: no curves, or stages of several seeds.
    """
    if not curves:
        raise ValueError("there are no curves to draw; give what run_curves(results) returned")
    rows = happened(found)
    steps = np.unique(np.concatenate([curve["step"].values for curve in curves.values()]))
    panels = len(curves) + (emergence is not None)
    height = 1.0 + 1.12 * panels
    with drawing(None, width=7.2, height=height, rows=panels) as axes:
        figure: Any = axes[0].figure
        # Measuring every tick for a layout takes longer than drawing; what stands beside these axes is known.
        figure.set_layout_engine(None)
        figure.subplots_adjust(left=0.075, right=0.955, bottom=0.45 / height, top=1 - 0.72 / height, hspace=0.42)
        for axis, (name, curve) in zip(axes, curves.items(), strict=False):
            _log_time_axis(axis, steps)
            _panel(axis, curve, [row for row in rows if row.curve == name])
            what, unit = TITLES.get(name, (drawable(title_of(name)), ""))
            axis.set_title(f"{what} ({unit})" if unit else what, loc="left", fontsize=9, pad=3)
        if emergence is not None:
            _log_time_axis(axes[-1], steps)
            _roles(axes[-1], emergence, steps)
        for axis in axes[:-1]:
            axis.set_xlabel("")
            axis.tick_params(labelbottom=False)
        figure.legend(*_legend(rows, roles=emergence is not None), loc="upper left", ncols=4, frameon=False, fontsize=7.5)
        return figure


def _log_time_axis(axis: "Axes", steps: np.ndarray) -> None:
    """``step_axis``, even up to the first checkpoint: on its own scale steps before that would take a quarter of the width."""
    step_axis(axis, steps)
    unit, last = unit_of(steps), float(steps[-1])
    ticks = [
        (float(x), label.get_text())
        for x, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
        if x == 0 or x >= unit
    ]
    axis.set_xscale("symlog", linthresh=unit, linscale=0.5)
    axis.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlim(-0.2 * unit, 1.1 * last)


def _panel(axis: "Axes", curve: "xr.Dataset", rows: Sequence[Happened]) -> None:
    steps, value = curve["step"].values.astype(float), curve["value"].values.astype(float)
    line_with_band(axis, steps, value, curve["stderr"].values, colour=CURVE, width=1.2)
    known = np.isfinite(value)
    unit = unit_of(steps)

    def height(step: float) -> float:
        return float(np.interp(log_time(step, unit), log_time(steps[known], unit), value[known]))

    for row in rows:
        if not np.isfinite(row.at):
            axis.text(0.01, 0.9, row.state, transform=axis.transAxes, color=EMERGENCE, fontsize=8, va="top")
        elif row.kind == "boundary":
            axis.axvspan(row.low, row.high, color=BOUNDARY, alpha=0.12, lw=0.8, label="_boundary")
            axis.axvline(row.at, color=BOUNDARY, lw=1.0, ls="-" if row.state == "clear" else ":", zorder=1)
        elif row.kind == "plateau":
            axis.axvspan(row.start, row.end, facecolor=PLATEAU, alpha=0.35, ec=PALETTE[4], lw=0.8, hatch="////", label="_plateau")
            axis.plot(row.at, height(row.at), MARKS[row.state], color=PALETTE[4], mec="white", mew=0.6, ms=6.5, zorder=4)
        else:
            _emergence(axis, row, height(row.at))


def _emergence(axis: "Axes", row: Happened, y: float) -> None:
    open_start = not np.isfinite(row.low)
    if not open_start:
        axis.plot([row.low, row.high], [y, y], color=EMERGENCE, lw=2.2, zorder=4, label="_emergence", solid_capstyle="butt")
    axis.plot(row.at, y, "<" if open_start else "D", color=EMERGENCE, mec="white", mew=0.8, ms=7, zorder=5, clip_on=False)


def _roles(axis: "Axes", emergence: "xr.Dataset", steps: np.ndarray) -> None:
    """How many heads had their last role: at least those by then, at most those that had it between two checkpoints too."""
    by = emergence["value"].values.ravel()
    before = np.nan_to_num(emergence["before"].values.ravel()[np.isfinite(by)], nan=-1.0)
    surely, perhaps = (np.array([np.count_nonzero(at <= step) for step in steps]) for at in (by[np.isfinite(by)], before))
    axis.plot(steps, surely, color=CURVE, lw=1.2, drawstyle="steps-post")
    axis.fill_between(steps, surely, perhaps, step="post", color=CURVE, alpha=0.2, lw=0, label="_roles")
    axis.set_title(f"heads that had their last role (of {emergence['value'].size})", loc="left", fontsize=9, pad=3)
    axis.set_ylim(0, max(1.0, 1.08 * emergence["value"].size))


def _legend(rows: Sequence[Happened], *, roles: bool) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def line(colour: str, **style: Any) -> Line2D:
        return Line2D([], [], color=colour, **style)

    seen = {(row.kind, row.state) for row in rows if np.isfinite(row.at)}
    kinds = {kind for kind, _ in seen}
    handles: list[tuple[Any, str]] = [(line(CURVE, marker="o", ms=2.5, lw=1.2), "curve ± 1 standard error")]
    if "emergence" in kinds:
        handles.append((line(EMERGENCE, marker="D", ms=6, mec="white", lw=2.2), "emergence, 95% interval"))
    if "boundary" in kinds:
        handles.append((line(BOUNDARY, lw=1.0), "boundary, 95% interval shaded"))
    if ("boundary", "unclear") in seen:
        handles.append((line(BOUNDARY, lw=1.0, ls=":"), "unclear boundary"))
    if "plateau" in kinds:
        handles.append((Patch(facecolor=PLATEAU, alpha=0.35, ec=PALETTE[4], hatch="////"), "plateau"))
        states = [state for state in MARKS if ("plateau", state) in seen]
        handles += [(line(PALETTE[4], marker=MARKS[state], ls="", ms=6), state) for state in states]
    if roles:
        handles.append((Patch(facecolor=CURVE, alpha=0.2), "roles between two checkpoints"))
    return [handle for handle, _ in handles], [text for _, text in handles]
