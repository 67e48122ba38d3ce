"""Figures of paths and edges: effects as a table and over training, effects by order, faithfulness, attribution beside exact.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, ``ax`` to draw into your own, equal bytes for equal input.
Bands around curves are one standard error, grey bands the null's mean and two standard deviations. An effect above 0 helps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.paths.edges import edge_list, matrix
from circuits.paths.wiring import CHANNELS, LOGITS, head_of, layer_of
from circuits.views.figures import PALETTE, Scale, drawing, label_ends, line_with_band, step_axis
from circuits.views.graph import INPUT_COLOURS, INPUT_NAMES, input_kind
from circuits.views.html import decimal, with_error

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def edge_table(effects: "xr.Dataset", *, scale: Scale = "linear", ax: "Axes | None" = None) -> "Figure":
    """Every edge's effect as a heat map: sources down, destinations across, by layer and input; hatched where no edge is.

    Args:
        effects: ``value``, dim ``edge``, of one checkpoint, in nats. scale: of colours; "symlog" is linear up to a hundredth of
            the largest modulus and shows weak edges beside strong ones.

    Raises:
        ValueError: no number for each edge of one checkpoint.
    """
    _check_edges(effects, ("edge",))
    table = matrix(effects)
    table = table.sel(destination=sorted((str(name) for name in table["destination"].values), key=_by_input))
    sources, destinations = ([str(name) for name in table[side].values] for side in ("source", "destination"))
    values = table.values
    top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    cell = 0.2 if len(destinations) <= 40 else 0.12
    with drawing(ax, width=max(5.0, cell * len(destinations) + 2.4), height=max(2.6, cell * len(sources) + 1.5)) as (axis,):
        import matplotlib
        from matplotlib.colors import Normalize, SymLogNorm

        colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad=(0, 0, 0, 0))
        norm = SymLogNorm(linthresh=top / 100, vmin=-top, vmax=top) if scale == "symlog" else Normalize(-top, top)
        axis.patch.set(facecolor="#dddddd", edgecolor="#bbbbbb", hatch="////", linewidth=0)
        shown = axis.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, interpolation="nearest", aspect="equal")
        size = 7.0 if cell == 0.2 else 5.0
        axis.set_yticks(range(len(sources)), sources, fontsize=size)
        axis.set_xticks(range(len(destinations)), [_within_group(name) for name in destinations], fontsize=size)
        axis.tick_params(bottom=False, left=False, pad=1.5)
        _groups(axis, [_group(name) for name in destinations], size)
        for at in _borders([name.split("H")[0] for name in sources]):
            axis.axhline(at, color="#555555", lw=0.6)
        axis.set_ylabel("source")
        axis.set_xlabel("destination: the head, or what is named above")
        if ax is None:
            bar = axis.figure.colorbar(shown, ax=axis, shrink=0.8, aspect=30, pad=0.02)
            bar.set_label("effect (nats): red helps, blue harms")
            if scale == "symlog":
                ticks, names = _powers(top / 100, top)
                bar.set_ticks(ticks, labels=names)
            bar.minorticks_off()
        return axis.figure  # type: ignore[return-value]


def edge_curves(
    over_steps: "xr.Dataset", edges: Sequence[Any], *, scale: Scale = "symlog", title: str = "", ax: "Axes | None" = None
) -> "Figure":
    """The effects of chosen edges over training.

    Args:
        over_steps: ``value`` and ``stderr``, dims ``step, edge``, in nats. edges: those shown, such as ``"L0H3 -> L1H4.k"``.

    Raises:
        ValueError: not over steps, or an edge that was not measured.
    """
    _check_edges(over_steps, ("step", "edge"))
    names, known = [str(edge) for edge in edges], {str(name) for name in over_steps["edge"].values}
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"{missing[0]!r} was not measured; edges are those of over_steps['edge'], such as {min(known)!r}")
    curves = [(name.replace("->", "→"), over_steps.sel(edge=name), PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)]
    return _over_steps(over_steps["step"].values, curves, "effect (nats)", title, scale, ax)


def order_curves(
    term_importance: "xr.Dataset", *, scale: Scale = "symlog", title: str = "Paths by order", ax: "Axes | None" = None
) -> "Figure":
    """What paths through 0, 1, 2, ... heads are worth over training.

    Args:
        term_importance: ``value`` and ``stderr`` of ``TermImportance`` over a run, dims ``step, order``, in nats.

    Raises:
        ValueError: not by step and order.
    """
    if "value" not in term_importance or set(term_importance["value"].dims) != {"step", "order"}:
        raise ValueError("need `value` by step and order: put the TermImportance of every checkpoint together")
    curves = []
    for i, order in enumerate(term_importance["order"].values):
        name = "no head" if order == 0 else "1 head" if order == 1 else f"{int(order)} heads"
        curves.append((name, term_importance.sel(order=order), PALETTE[i % len(PALETTE)]))
    return _over_steps(term_importance["step"].values, curves, "marginal effect (nats)", title, scale, ax)


def _over_steps(
    steps: Any, curves: "list[tuple[str, xr.Dataset, str]]", ylabel: str, title: str, scale: Scale, ax: "Axes | None"
) -> "Figure":
    """Curves with bands and names at their ends; dashed at 0, where nothing changes."""
    with drawing(ax, width=6.2, height=3.5) as (axis,):
        ends = []
        for name, here, colour in curves:
            value = here["value"].values
            stderr = here["stderr"].values if "stderr" in here else np.full(len(value), np.nan)
            line_with_band(axis, steps, value, stderr, colour=colour)
            there = np.flatnonzero(np.isfinite(value))
            if len(there):
                ends.append((float(steps[there[-1]]), float(value[there[-1]]), name, colour))
        axis.axhline(0.0, color="#777777", lw=0.9, ls="--")
        step_axis(axis, steps, scale)
        axis.set_ylabel(ylabel)
        axis.set_title(title, loc="left", parse_math=False)
        label_ends(axis, ends)
        return axis.figure  # type: ignore[return-value]


def faithfulness_figure(curve: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """Faithfulness of a ranking's best edges by the share of edges kept; grey: exchanged rankings.

    Dashed at 1, the whole model, and at 0, no edge. The title has the area under the curve, of the ranking and of random ones.

    Args:
        curve: of ``faithfulness_curve``.
    """
    share = curve["share"].values
    with drawing(ax, width=5.4, height=3.5) as (axis,):
        mean, sd = curve["null_mean"].values, curve["null_sd"].values
        axis.fill_between(share, mean - 2 * sd, mean + 2 * sd, color="#999999", alpha=0.25, lw=0)
        axis.plot(share, mean, color="#777777", lw=0.9, label="scores exchanged within kinds")
        line_with_band(axis, share, curve["value"].values, curve["stderr"].values, colour=PALETTE[0])
        axis.lines[-1].set_label("this ranking")
        for level in (0.0, 1.0):
            axis.axhline(level, color="#777777", lw=0.9, ls="--")
        axis.set_xscale("symlog", linthresh=0.01, linscale=0.5)
        ticks = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
        axis.set_xticks(ticks, ["0", "1%", "2%", "5%", "10%", "20%", "50%", "100%"])
        axis.minorticks_off()
        axis.set_xlim(-0.001, 1.05)
        axis.set_xlabel("share of edges kept")
        axis.set_ylabel("faithfulness")
        ok = str(curve["state"].values) == "ok"
        axis.set_title(_area(curve) if ok else "", loc="left")
        if ok:
            axis.legend(loc="best", frameon=False, fontsize=8)
        else:
            axis.text(0.5, 0.5, "ablating every edge has no effect", transform=axis.transAxes, ha="center", color="#555555")
        return axis.figure  # type: ignore[return-value]


def _area(curve: "xr.Dataset") -> str:
    area = with_error(float(curve["area"]), float(curve["area_stderr"]), 2)
    return f"Area {area} (random {decimal(float(curve['area_null_mean']), 2)})"


def agreement_figure(attribution: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """Each edge's estimated effect over its exact one, coloured by the input it enters; on the dashed line both are equal.

    Both axes are linear up to the median standard error of the exact effects and logarithmic beyond. Whiskers are one standard
    error. The title has the rank agreement with its 95% interval.

    Args:
        attribution: of ``EdgeAttribution``: ``value, stderr, exact, exact_stderr``, dim ``edge``, and ``agreement``.

    Raises:
        ValueError: no number for each edge of one checkpoint.
    """
    _check_edges(attribution, ("edge",))
    exact, estimate = attribution["exact"].values, attribution["value"].values
    spread, off = attribution["exact_stderr"].values, attribution["stderr"].values
    kinds = np.array([input_kind(edge.destination) for edge in edge_list(attribution)])
    there = np.isfinite(exact) & np.isfinite(estimate)
    top = float(np.abs([exact[there], estimate[there]]).max(initial=0.0)) or 1.0
    usual = float(np.median(spread[np.isfinite(spread)])) if np.isfinite(spread).any() else 0.0
    linear = min(max(usual, top / 1000), top / 3)
    with drawing(ax, width=5.6, height=5.0) as (axis,):
        for kind, colour in INPUT_COLOURS.items():
            chosen = there & (kinds == kind)
            if not chosen.any():
                continue
            x, y = exact[chosen], estimate[chosen]
            errors = [np.nan_to_num(error[chosen]) for error in (spread, off)]
            axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="none", ecolor=colour, elinewidth=0.5, alpha=0.35)
            axis.plot(x, y, "o", color=colour, ms=4, mew=0, alpha=0.8, label=f"{INPUT_NAMES[kind]} ({len(x)})")
        ends = (-1.6 * top, 1.6 * top)
        axis.plot(ends, ends, color="#777777", lw=0.9, ls="--", zorder=0)
        for line in (axis.axhline, axis.axvline):
            line(0.0, color="#cccccc", lw=0.7, zorder=0)
        axis.set_xscale("symlog", linthresh=linear, linscale=0.6)
        axis.set_yscale("symlog", linthresh=linear, linscale=0.6)
        axis.set_xlim(*ends)
        axis.set_ylim(*ends)
        ticks, names = _powers(linear, top)
        axis.set_xticks(ticks, names, fontsize=7.5)
        axis.set_yticks(ticks, names, fontsize=7.5)
        axis.minorticks_off()
        axis.set_aspect("equal")
        axis.set_xlabel("exact effect (nats)")
        axis.set_ylabel("estimate (nats)")
        found, low, high = (float(attribution[name]) for name in ("agreement", "agreement_low", "agreement_high"))
        axis.set_title(f"Rank agreement {decimal(found, 2)} [{decimal(low, 2)}, {decimal(high, 2)}]", loc="left")
        axis.legend(loc="upper left", frameon=False, fontsize=8)
        return axis.figure  # type: ignore[return-value]


def _powers(linear: float, top: float) -> tuple[list[float], list[str]]:
    """Ticks of a symmetric logarithmic scale: 0 and powers of ten of either sign, as plain text (mathematics is not parsed)."""
    powers = [10.0**p for p in range(math.ceil(math.log10(linear)), math.floor(math.log10(top)) + 1)]
    ticks = [*(-p for p in reversed(powers)), 0.0, *powers]
    return ticks, [f"{tick:g}".replace("-", "−") for tick in ticks]


def _check_edges(result: "xr.Dataset", dims: tuple[str, ...]) -> None:
    if "value" not in result or set(result["value"].dims) != set(dims):
        found = ", ".join(map(str, result["value"].dims)) or "no dims" if "value" in result else "none"
        raise ValueError(
            f"need `value` by {' and '.join(dims)}, there is {found}: give a result of EdgeEffects or EdgeAttribution"
        )


def _by_input(destination: str) -> tuple[int, int, int]:
    """Layer by layer: queries, keys, values of the heads, then the MLP; the logits last."""
    if destination == LOGITS:
        return 2**31, 0, 0
    if destination.endswith("MLP"):
        return layer_of(destination), len(CHANNELS), 0
    return layer_of(destination), CHANNELS.index(input_kind(destination)), head_of(destination).head


def _group(destination: str) -> str:
    """What is named above the columns: ``"L1.q"``, ``"L1 MLP"``, ``"logits"``."""
    if destination == LOGITS:
        return LOGITS
    return f"L{layer_of(destination)}{' ' if destination.endswith('MLP') else '.'}{input_kind(destination)}"


def _within_group(destination: str) -> str:
    return str(head_of(destination).head) if "." in destination else ""


def _borders(groups: Sequence[str]) -> list[float]:
    return [i - 0.5 for i in range(1, len(groups)) if groups[i] != groups[i - 1]]


def _groups(axis: "Axes", groups: Sequence[str], size: float) -> None:
    """Lines between groups of columns and their names above; upright where a group is a single column."""
    borders = [-0.5, *_borders(groups), len(groups) - 0.5]
    for low, high in pairwise(borders):
        name, narrow = groups[round(low + 0.5)], high - low < 3
        axis.annotate(
            name, ((low + high) / 2, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", fontsize=size + 0.5, rotation=90 if narrow else 0, annotation_clip=False,
        )  # fmt: skip
    for at in borders[1:-1]:
        axis.axvline(at, color="#555555", lw=0.6)
