"""Figures of local learning coefficients: every head over training, on several texts, beside predictions, and all weights.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, equal bytes for equal input. Bands and bars are two standard
errors of sampling. Nothing is dropped: a point whose state is not "ok" is hollow and its band hatched, and a head of which no
chain gave a value has a cross at the foot of its panel.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.models.heads import Head
from circuits.views.figures import PALETTE, Scale, drawing, head_colour, label_ends, label_points, line_with_band, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = 2.0
"""Standard errors to either side of a value that bands and bars show."""
UNITS = "rllc (nβ × nats)"
UNASKED = ("missing", "not asked")
"""States of cells that nobody sampled."""
MARKS = "osD^v"
"""Marks of layers where they share a panel."""
ZERO: dict[str, Any] = {"color": "#777777", "lw": 0.9, "ls": "--", "zorder": 0}
PREDICTIONS = {
    "local_estimate": "closed form of a quadratic loss",
    "noise_loss": "noise alone",
    "hessian_trace": "trace of the Hessian alone",
}
"""Nulls on the scale of the coefficient, and what their panels are called."""


def coefficient_curves(
    found: "xr.Dataset", *, scale: Scale = "symlog", names: bool = True, axes: "Sequence[Axes] | None" = None
) -> "Figure":
    """Every head's coefficient over training, one panel per layer on one scale; dashed at 0.

    Args:
        found: ``value, stderr, state`` of ``RLLC``, dims ``step, layer, head``. names: beside the ends of curves; else there is
            a legend of colours. axes: one for each layer.

    Raises:
        ValueError: not by step, layer and head.
    """
    _check(found)
    panels = [(f"layer {int(layer)}", found.sel(layer=layer)) for layer in found["layer"].values]
    return _grid(panels, columns=min(4, len(panels)), width=4.9, scale=scale, names=names, axes=axes)


def text_curves(
    by_text: "Mapping[str, xr.Dataset]", *, scale: Scale = "symlog", axes: "Sequence[Axes] | None" = None
) -> "Figure":
    """Every head's coefficient over training on several texts: a column for each text, a row for each layer, one scale.

    Args:
        by_text: what ``coefficient_curves`` takes, by the name of the text, of the same heads. axes: row by row.

    Raises:
        ValueError: no text, or one that is not by step, layer and head.
    """
    if not by_text:
        raise ValueError("there is no text to draw; give {'code': rllc(run, ...)}")
    for found in by_text.values():
        _check(found)
    layers = next(iter(by_text.values()))["layer"].values
    panels = [
        (f"{text.replace('_', ' ')}, layer {int(layer)}", found.sel(layer=layer))
        for layer in layers
        for text, found in by_text.items()
    ]
    return _grid(panels, columns=len(by_text), width=3.5, scale=scale, names=False, axes=axes)


def whole_curve(found: "xr.Dataset", *, scale: Scale = "symlog", ax: "Axes | None" = None) -> "Figure":
    """The coefficient of all weights over training.

    Args:
        found: ``value, stderr, state`` of ``LLC``, dim ``step``.

    Raises:
        ValueError: not by step.
    """
    _check(found, ("step",))
    with drawing(ax, width=5.2, height=3.3) as (axis,):
        axis.axhline(0.0, **ZERO)
        _curve(axis, found, PALETTE[0])
        step_axis(axis, found["step"].values, scale)
        axis.set_ylabel("llc (nβ × nats)")
        return axis.figure  # type: ignore[return-value]


def predicted(end: "xr.Dataset", nulls: "xr.Dataset", *, named: int = 4, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Every head's coefficient over what a null alone predicts, one panel per null; on the dashed line both are equal.

    Colours are heads, marks layers. The heads farthest from the line in each panel have names.

    Args:
        end: ``value, stderr, state`` of ``RLLC``, dims ``layer, head``. nulls: ``as_llc, as_llc_stderr`` of
            ``ComplexityNulls``, dims ``kind, layer, head``. named: how many heads. axes: one for each of ``PREDICTIONS``.

    Raises:
        ValueError: not of one checkpoint.
    """
    _check(end, ("layer", "head"))
    if "as_llc" not in nulls or set(nulls["as_llc"].dims) != {"kind", "layer", "head"}:
        raise ValueError("need `as_llc` by kind, layer and head: give what ComplexityNulls gives of one checkpoint")
    with drawing(axes[0] if axes else None, width=10.4, height=3.6, columns=len(PREDICTIONS)) as made:
        for axis, (kind, title) in zip(axes or made, PREDICTIONS.items(), strict=True):
            _scatter(axis, end, nulls.sel(kind=kind), named)
            axis.set_title(title, loc="left")
            axis.set_xlabel("predicted")
        first = (axes or made)[0]
        first.set_ylabel(UNITS)
        return first.figure  # type: ignore[return-value]


def _scatter(axis: "Axes", end: "xr.Dataset", null: "xr.Dataset", named: int) -> None:
    """One panel: points with bars, hollow where sampling is not ok, names beside the farthest from the line."""
    y, dy = (end[name].transpose("layer", "head").values for name in ("value", "stderr"))
    x, dx = (null[name].transpose("layer", "head").values for name in ("as_llc", "as_llc_stderr"))
    state = end["state"].transpose("layer", "head").values
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        axis.text(0.5, 0.5, "no head has both", transform=axis.transAxes, ha="center", color="#555555")
        return
    layers, heads = np.nonzero(there)
    colours = [head_colour(int(h), there.shape[1]) for h in heads]
    inside: Any = np.where(state[there] == "ok", colours, "white")
    edges: Any = np.array(colours)
    x, y, dx, dy = x[there], y[there], *(ERRORS * np.nan_to_num(error[there]) for error in (dx, dy))
    axis.hlines(y, x - dx, x + dx, colors=colours, lw=0.8, alpha=0.6)
    axis.vlines(x, y - dy, y + dy, colors=colours, lw=0.8, alpha=0.6)
    for i in np.unique(layers):
        here = layers == i
        axis.scatter(x[here], y[here], s=20, marker=MARKS[i % len(MARKS)], c=inside[here], edgecolors=edges[here], zorder=3)
    names = [str(Head(int(end["layer"].values[i]), int(end["head"].values[h]))) for i, h in zip(layers, heads, strict=True)]
    points = list(zip(x.tolist(), y.tolist(), names, colours, strict=True))
    low, high = (float(f([f(x), f(y)])) for f in (np.min, np.max))
    margin = 0.08 * (high - low or 1.0)
    axis.plot((low - margin, high + margin), (low - margin, high + margin), color="#777777", lw=0.9, ls="--", zorder=0)
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(low - margin, high + margin)
    far = sorted(points, key=lambda point: -abs(point[1] - point[0]))
    label_points(axis, far[:named], [point[:2] for point in points], size=7.5)


def _grid(
    panels: "Sequence[tuple[str, xr.Dataset]]",
    *,
    columns: int,
    width: float,
    scale: Scale,
    names: bool,
    axes: "Sequence[Axes] | None",
) -> "Figure":
    """Panels of curves, one for each head, all on one scale."""
    rows, most = -(-len(panels) // columns), max(here.sizes["head"] for _, here in panels)
    height = max(2.9, 0.24 * most)
    limits, steps = _limits([here for _, here in panels]), [step for _, here in panels for step in here["step"].values]
    with drawing(
        axes[0] if axes else None, width=min(10.4, width * columns + 0.6), height=height * rows, columns=columns, rows=rows
    ) as made:
        from matplotlib.lines import Line2D

        drawn = list(axes) if axes else made
        for i, (axis, (title, here)) in enumerate(zip(drawn, panels, strict=False)):
            axis.set_ylim(*limits)
            axis.axhline(0.0, **ZERO)
            ends = []
            for h, head in enumerate(here["head"].values):
                colour = head_colour(h, here.sizes["head"])
                end = _curve(axis, here.sel(head=head), colour)
                ends += [(*end, str(Head(int(here["layer"]), int(head))), colour)] if end else []
            for artist in (*axis.lines, *axis.collections):
                artist.set_in_layout(False)  # they end at the axis, and measuring them takes longer than drawing them
            step_axis(axis, steps, scale)
            axis.set_title(title, loc="left", parse_math=False)
            if names:
                label_ends(axis, ends, gap=min(0.07, 0.95 / max(1, len(ends))))
            if i % columns == 0:
                axis.set_ylabel(UNITS)
            if i + columns < len(panels) and not axes:
                axis.set_xlabel("")
            axis.tick_params(labelleft=i % columns == 0 or bool(axes), labelbottom=i + columns >= len(panels) or bool(axes))
        for spare in drawn[len(panels) :]:
            spare.set_axis_off()
        figure = drawn[0].figure
        if not names:
            heads = panels[0][1]["head"].values
            lines = [Line2D([], [], color=head_colour(h, most), label=f"H{int(head)}") for h, head in enumerate(heads)]
            figure.legend(handles=lines, loc="outside right center", frameon=False, fontsize=8, title="head", title_fontsize=8)
        return figure  # type: ignore[return-value]


def _curve(axis: "Axes", here: "xr.Dataset", colour: str) -> tuple[float, float] | None:
    """One curve with its band; what is not ok is hollow and hatched. Its last point."""
    steps, value, state = here["step"].values, here["value"].values, here["state"].values.astype(str)
    spread = ERRORS * np.nan_to_num(here["stderr"].values)
    line_with_band(axis, steps, value, spread, colour=colour, width=1.4)
    there = np.isfinite(value)
    # A point without neighbours has neither line nor band.
    joined = np.zeros_like(there)
    joined[:-1] |= there[1:]
    joined[1:] |= there[:-1]
    alone = there & ~joined
    if alone.any():
        axis.vlines(steps[alone], (value - spread)[alone], (value + spread)[alone], color=colour, lw=0.9)
    bad = ~np.isin(state, ("ok", *UNASKED))
    for at in np.flatnonzero(bad & there):
        near = slice(max(0, at - 1), at + 2)
        low, high = value[near] - spread[near], value[near] + spread[near]
        axis.fill_between(steps[near], low, high, facecolor="none", edgecolor=colour, hatch="//////", lw=0.0)
    if bad.any():
        axis.plot(steps[bad & there], value[bad & there], "o", mfc="white", mec=colour, mew=1.2, ms=5, zorder=3)
        foot = np.full(np.count_nonzero(bad & ~there), 0.02)
        axis.plot(steps[bad & ~there], foot, "x", color=colour, ms=5, transform=axis.get_xaxis_transform(), zorder=3)
    last = np.flatnonzero(there)
    return (float(steps[last[-1]]), float(value[last[-1]])) if len(last) else None


def _limits(found: "Sequence[xr.Dataset]") -> tuple[float, float]:
    """One range for all panels: every value with its error, and 0."""
    ends: list[Any] = [np.zeros(1)]
    for here in found:
        value, spread = here["value"].values, ERRORS * np.nan_to_num(here["stderr"].values)
        ends += [side[np.isfinite(side)] for side in (value - spread, value + spread)]
    every = np.concatenate([np.ravel(end) for end in ends])
    low, high = float(every.min()), float(every.max())
    margin = 0.04 * (high - low or 1.0)
    return low - margin, high + margin


def _check(found: "xr.Dataset", dims: tuple[str, ...] = ("step", "layer", "head")) -> None:
    lacking = [name for name in ("value", "stderr", "state") if name not in found or set(found[name].dims) != set(dims)]
    if lacking:
        raise ValueError(f"need `{lacking[0]}` by {', '.join(dims)}: give what {'LLC' if len(dims) == 1 else 'RLLC'} gives")
