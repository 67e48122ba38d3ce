"""Figures of token preferences: bias of every head over training, attention by frequency of the key, stable rank of circuits.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, equal bytes for equal input. A dot is full where the value is
told from its null (``beyond``), else hollow. Grey bands are two standard deviations of the null.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.models.heads import Head
from circuits.views.figures import Scale, drawing, head_colour, label_ends, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = 2.0
"""Standard errors of bands about curves, and standard deviations of those of nulls."""
LEVEL: dict[str, Any] = {"color": "#777777", "lw": 0.9, "ls": "--", "zorder": 0}
NULL: dict[str, Any] = {"color": "#999999", "alpha": 0.25, "lw": 0, "zorder": 0}


def bias_curves(bias: "xr.Dataset", titles: Mapping[str, str], *, scale: Scale = "symlog") -> "Figure":
    """What is left of every head's biases without their nulls' means, over training: a row a statistic, a column a layer.

    Args:
        bias: ``value``, ``null_mean``, ``null_sd`` and ``beyond``, dims ``step, layer, head, statistic``. titles: what the
            axis of each statistic is called.

    Raises:
        ValueError: a variable or a statistic is missing.
    """
    _check(bias, "step")
    absent = [name for name in titles if name not in bias["statistic"].values]
    if absent or not titles:
        raise ValueError(f"there is no {', '.join(absent) or 'statistic'} to draw: name some that a swept PairBias has")
    excess = bias.assign(value=bias["value"] - bias["null_mean"])

    def null(axis: "Axes", layer: "xr.Dataset") -> None:
        # A band for each head would hide the curves; which dots are full says where each stands to its own null.
        wide = ERRORS * layer["null_sd"].mean("head").values
        axis.fill_between(layer["step"].values, -wide, wide, **NULL)
        axis.axhline(0.0, **LEVEL)

    rows = [(f"{title}\nless null", excess.sel(statistic=name)) for name, title in titles.items()]
    return _over_steps(rows, null, scale=scale)


def rank_curves(rank: "xr.Dataset", *, scale: Scale = "symlog") -> "Figure":
    """Stable rank of every head's circuits over training: a row a circuit, a column a layer.

    Args:
        rank: ``value``, ``null_mean``, ``null_sd`` and ``beyond``, dims ``step, layer, head, component``.

    Raises:
        ValueError: a variable is missing.
    """
    _check(rank, "step")

    def null(axis: "Axes", layer: "xr.Dataset") -> None:
        mean, sd = (layer[name].mean("head").values for name in ("null_mean", "null_sd"))
        axis.fill_between(layer["step"].values, mean - ERRORS * sd, mean + ERRORS * sd, **NULL)
        axis.set_ylim(bottom=0)

    rows = [(f"stable rank of {name}", rank.sel(component=name)) for name in rank["component"].values]
    return _over_steps(rows, null, scale=scale)


def lift_bins(lift: "xr.Dataset") -> "Figure":
    """Attention on the keys of every bin of tokens by frequency, a panel a layer; dashed: uniform attention.

    Args:
        lift: ``value``, ``stderr``, ``null_mean``, ``null_sd``, ``chance`` and ``beyond`` of one checkpoint, dims ``layer, head,
            bin``.

    Raises:
        ValueError: a variable is missing.
    """
    _check(lift, "bin")
    places = np.arange(lift.sizes["bin"])
    chance = float(np.ravel(lift["chance"].values)[0])

    def draw(axis: "Axes", head: "xr.Dataset", colour: str) -> tuple[float, float] | None:
        value, wide = head["value"].values, ERRORS * head["stderr"].values
        axis.fill_between(places, value - wide, value + wide, color=colour, alpha=0.2, lw=0)
        return _dotted(axis, places, head, colour)

    def finish(axis: "Axes", layer: "xr.Dataset") -> None:
        axis.axhline(chance, **LEVEL)
        axis.set_xticks(places, [str(name).removeprefix("rank ") for name in layer["bin"].values])
        axis.set_xlabel("rank of the key token, 0 the commonest")

    return _panels([("attention / uniform", lift)], draw, finish, height=3.2)


def _over_steps(rows: "list[tuple[str, xr.Dataset]]", null: "Callable[[Axes, xr.Dataset], None]", *, scale: Scale) -> "Figure":
    steps = rows[0][1]["step"].values

    def draw(axis: "Axes", head: "xr.Dataset", colour: str) -> tuple[float, float] | None:
        return _dotted(axis, steps, head, colour)

    def finish(axis: "Axes", layer: "xr.Dataset") -> None:
        null(axis, layer)
        step_axis(axis, steps, scale)

    return _panels(rows, draw, finish, height=2.5)


def _dotted(axis: "Axes", x: np.ndarray, head: "xr.Dataset", colour: str) -> tuple[float, float] | None:
    """A curve with full and hollow dots; its last point, None where it has none."""
    value, beyond = head["value"].values, head["beyond"].values.astype(bool)
    known = np.isfinite(value)
    axis.plot(x, value, color=colour, lw=1.1)
    # Not clipped, so that dots on the frame are whole; none at all would count for the layout, at the corner of the figure.
    for which, inside in ((beyond & known, colour), (~beyond & known, "white")):
        if which.any():
            axis.plot(x[which], value[which], "o", color=colour, ms=3.2, mew=0.8, markerfacecolor=inside, clip_on=False, zorder=3)
    there = np.flatnonzero(known)
    return (float(x[there[-1]]), float(value[there[-1]])) if len(there) else None


def _panels(
    rows: "list[tuple[str, xr.Dataset]]",
    draw: "Callable[[Axes, xr.Dataset, str], tuple[float, float] | None]",
    finish: "Callable[[Axes, xr.Dataset], None]",
    *,
    height: float,
) -> "Figure":
    """Rows of one scale each, a column for each layer, a curve for each head, named at its end."""
    layers, heads = rows[0][1]["layer"].values, rows[0][1]["head"].values
    size = {"width": min(10.4, 4.9 * len(layers) + 0.6), "height": len(rows) * max(height, 0.2 * len(heads))}
    with drawing(None, **size, columns=len(layers), rows=len(rows)) as axes:
        for r, (label, data) in enumerate(rows):
            panels, ends = axes[r * len(layers) : (r + 1) * len(layers)], []
            for axis, layer in zip(panels, layers, strict=True):
                drawn = []
                for h, head in enumerate(heads):
                    colour = head_colour(h, len(heads))
                    end = draw(axis, data.sel(layer=layer, head=head), colour)
                    drawn += [(*end, str(Head(int(layer), int(head))), colour)] if end else []
                ends.append(drawn)
                finish(axis, data.sel(layer=layer))
                if r == 0:
                    axis.set_title(f"layer {int(layer)}", loc="left")
                if r < len(rows) - 1:
                    axis.set_xlabel("")
            low, high = min(axis.get_ylim()[0] for axis in panels), max(axis.get_ylim()[1] for axis in panels)
            for axis, named in zip(panels, ends, strict=True):
                axis.set_ylim(low, high)
                label_ends(axis, named, gap=min(0.09, 0.95 / max(1, len(named))))
                axis.tick_params(labelleft=axis is panels[0])
            panels[0].set_ylabel(label)
        return axes[0].figure  # type: ignore[return-value]


def _check(data: "xr.Dataset", along: str) -> None:
    """Refuse what lacks a variable or is not by head."""
    needed = {"value", "null_mean", "null_sd", "beyond"}
    absent = sorted(needed - set(map(str, data.data_vars))) or sorted(
        {along, "layer", "head"} - set(map(str, data["value"].dims))
    )
    if absent:
        raise ValueError(f"there is no {absent[0]!r} in this dataset: give what the report's sections make of a measure")
