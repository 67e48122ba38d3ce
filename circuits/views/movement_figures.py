"""Figures of scan and snap on a run: how widely every head attends over training, and how fast its attention moves.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, equal bytes for equal input. Bands are two standard errors
over sequences.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.models.heads import Head
from circuits.views.figures import Scale, drawing, head_colour, label_ends, line_with_band, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = 2.0
LEVEL: dict[str, Any] = {"color": "#777777", "lw": 0.9, "ls": "--", "zorder": 0}


def spread_curves(spread: "xr.Dataset", statistic: str = "normalised_entropy", *, scale: Scale = "symlog") -> "Figure":
    """One statistic of every head's attention over training, a panel per layer; dashed: uniform attention.

    Args:
        spread: of ``AttentionSpread`` over a run. statistic: one of its.

    Raises:
        ValueError: no such statistic, or not over steps.
    """
    known = [str(name) for name in spread["statistic"].values] if "statistic" in spread.coords else []
    if statistic not in known or "step" not in spread.dims:
        raise ValueError(
            f"need {statistic!r} over steps; there is {', '.join(known) or 'no statistic'}: give a swept AttentionSpread"
        )
    here = spread.sel(statistic=statistic).isel(step=np.flatnonzero(spread["status"].values == "ok"))
    chance = float(np.ravel(here["chance"].values)[0])

    def draw(axis: "Axes", layer: "xr.Dataset", colour: str) -> tuple[float, float]:
        steps, value = layer["step"].values, layer["value"].values
        line_with_band(axis, steps, value, ERRORS * np.nan_to_num(layer["stderr"].values), colour=colour, width=1.4)
        return float(steps[-1]), float(value[-1])

    figure = _by_layer(here, draw, steps=here["step"].values, label=statistic.replace("_", " "), scale=scale)
    for axis in figure.axes:
        axis.axhline(chance, **LEVEL)
    return figure


def velocity_curves(movement: "xr.Dataset", snap: "xr.Dataset | None" = None) -> "Figure":
    """How fast every head's attention moves, the logarithm of attention mass a step, a panel per layer; dots: where it snapped.

    Args:
        movement: of ``circuits.dynamics.scan_snap_run.movement``. snap: of ``read_trajectory``.

    Raises:
        ValueError: fewer than two checkpoints.
    """
    steps = movement["step"].values
    if len(steps) < 2:
        raise ValueError(f"{len(steps)} checkpoint has no velocity; give at least 2")
    middles, passed = (steps[1:] + steps[:-1]) / 2, np.diff(steps)

    def draw(axis: "Axes", layer: "xr.Dataset", colour: str) -> tuple[float, float]:
        moved = layer["distance"].values[1:]
        speed = np.log10(np.where(moved > 0, moved, np.nan) / passed)
        axis.plot(middles, speed, color=colour, lw=1.4)
        if snap is not None:
            at = float(snap["value"].sel(layer=layer["layer"], head=layer["head"]))
            near = np.flatnonzero(steps[:-1] == at)
            axis.plot(middles[near], speed[near], "o", color=colour, ms=5, zorder=3)
        return float(middles[-1]), float(speed[-1])

    return _by_layer(movement, draw, steps=middles, label="log10 of attention mass moved a step", scale="symlog")


def _by_layer(
    data: "xr.Dataset",
    draw: "Callable[[Axes, xr.Dataset, str], tuple[float, float]]",
    *,
    steps: np.ndarray,
    label: str,
    scale: Scale,
) -> "Figure":
    """A panel for each layer on one scale, a curve for each head, named at its end."""
    layers, heads = data["layer"].values, data["head"].values
    with drawing(None, width=min(10.4, 4.9 * len(layers) + 0.6), height=max(2.9, 0.24 * len(heads)), columns=len(layers)) as axes:
        ends = []
        for axis, layer in zip(axes, layers, strict=True):
            ends.append([])
            for h, head in enumerate(heads):
                colour = head_colour(h, len(heads))
                end = draw(axis, data.sel(layer=layer, head=head), colour)
                ends[-1].append((*end, str(Head(int(layer), int(head))), colour))
            axis.set_title(f"layer {int(layer)}", loc="left")
            step_axis(axis, steps, scale)
        low, high = min(axis.get_ylim()[0] for axis in axes), max(axis.get_ylim()[1] for axis in axes)
        for axis, own in zip(axes, ends, strict=True):
            axis.set_ylim(low, high)
            label_ends(axis, own, gap=min(0.07, 0.95 / max(1, len(own))))
            axis.tick_params(labelleft=axis is axes[0])
        axes[0].set_ylabel(label)
        return axes[0].figure  # type: ignore[return-value]
