"""Figures of what the weights say: composition maps, the eigenvalue plane, and both over training; from results alone.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, ``axes`` to draw into your own, equal bytes for equal input.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.models.heads import Head
from circuits.views.figures import PALETTE, Scale, drawing, head_colour, label_ends, label_points, line_with_band, step_axis
from circuits.views.standing import ALPHA

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READ_AS = {"Q": "Q: read as queries", "K": "K: read as keys", "V": "V: read as values"}
MOST_ROWS = 72
"""Heads on one side of a map; larger ones are pooled to layers."""
WIDTH = 10.4
MARKERS = "osD^vP"
"""One for each layer in a plane, over again from the seventh."""


def composition_maps(
    composition: "xr.Dataset", outlined: "xr.DataArray | None" = None, *, axes: "Sequence[Axes] | None" = None
) -> "Figure":
    """How far every pair's composition lies above or below random orientation, one map for each of Q, K and V.

    Rows write, columns read; colour is z, linear up to 3 and logarithmic beyond; grey is no pair. Models with more than 72
    heads on a side are shown layer by layer, each cell the largest z of its pairs.

    Args:
        composition: at one step: ``z``, dims ``mode, src_layer, src_head, dst_layer, dst_head``.
        outlined: where to draw a frame (default: ``q`` and ``q_covariance`` below .01); of a pooled cell, if any pair has one.
        axes: one for each mode.
    """
    if outlined is None:
        outlined = (composition["q"] < ALPHA) & (composition["q_covariance"] < ALPHA)
    z, framed, names = _squared(composition["z"], outlined)
    rows = len(names[0])
    side = max(2.9, 0.076 * rows + 0.55)
    columns = 3 if 3 * side <= WIDTH else 2
    across = max(WIDTH / columns, side) * columns
    high = -(-len(z) // columns)
    with drawing(
        axes[0] if axes else None, width=across, height=high * (across / columns + 0.35), columns=columns, rows=high
    ) as made:
        from matplotlib.colors import SymLogNorm

        panels = list(axes) if axes else made
        top = max(10.0, float(np.nanmax(np.abs(z), initial=0.0)))
        norm = SymLogNorm(linthresh=3.0, linscale=0.4, vmin=-top, vmax=top, base=10)
        for i, (axis, mode, values, frames) in enumerate(zip(panels, composition["mode"].values, z, framed, strict=False)):
            shown = axis.imshow(values, cmap=_signed(), norm=norm, interpolation="nearest", aspect="equal")
            _name_cells(axis, names, composition.sizes["dst_head"], rows=i % columns == 0)
            for row, column in np.argwhere(frames):
                axis.add_patch(_frame(int(row), int(column)))
                if rows <= 16:
                    axis.text(
                        column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=6.5,
                        color="white" if abs(values[row, column]) > 20 else "black",
                    )  # fmt: skip
            axis.set_title(READ_AS.get(str(mode), str(mode)), loc="left")
        panels[0].set_ylabel("writes")
        panels[0].set_xlabel("reads")
        for spare in panels[len(z) :]:
            spare.set_axis_off()
        if axes is None:
            ticks = [t for t in (-100, -30, -10, -3, 0, 3, 10, 30, 100) if abs(t) <= top]
            drawn = panels[0].figure.colorbar(shown, ax=panels, shrink=0.8 if high == 1 else 0.5, aspect=30, pad=0.02)
            drawn.set_ticks(ticks, labels=[str(t).replace("-", "−") for t in ticks])
            drawn.minorticks_off()
            drawn.set_label("z against random orientation")
        return panels[0].figure  # type: ignore[return-value]


def _squared(z: "xr.DataArray", outlined: "xr.DataArray") -> tuple[np.ndarray, np.ndarray, tuple[list[str], list[str]]]:
    """``[mode, source, destination]`` of z and frames without the layers that cannot write or read; pooled where large."""
    order = ("mode", "src_layer", "src_head", "dst_layer", "dst_head")
    z, outlined = z.transpose(*order)[:, :-1, :, 1:], outlined.transpose(*order)[:, :-1, :, 1:]
    values, frames = z.values, np.nan_to_num(outlined.values.astype(float)) > 0
    modes, sources, n_src, destinations, n_dst = values.shape
    if max(sources * n_src, destinations * n_dst) > MOST_ROWS:
        none = np.isnan(values).all((2, 4))
        pooled = np.where(none, np.nan, np.where(np.isnan(values), -np.inf, values).max((2, 4)))
        names = tuple([f"layer {int(layer)}" for layer in z[dim].values] for dim in ("src_layer", "dst_layer"))
        return pooled, frames.any((2, 4)), names  # type: ignore[return-value]
    sides = (("src_layer", "src_head"), ("dst_layer", "dst_head"))
    named = [[str(Head(int(x), int(h))) for x in z[layer].values for h in z[head].values] for layer, head in sides]
    shape = (modes, sources * n_src, destinations * n_dst)
    return values.reshape(shape), frames.reshape(shape), (named[0], named[1])


def _signed() -> Any:
    import matplotlib

    return matplotlib.colormaps["RdBu_r"].with_extremes(bad="#c8c8c8")


def _frame(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.1, clip_on=False)


def _name_cells(axis: "Axes", names: tuple[list[str], list[str]], heads: int, *, rows: bool) -> None:
    """Names of columns and, in the first panel of a line, of rows; thin lines between layers."""
    size = 7.5 if len(names[0]) <= 16 else 5.5 if len(names[0]) <= 40 else 4.5
    axis.set_xticks(range(len(names[1])), names[1], rotation=90, fontsize=size)
    axis.set_yticks(range(len(names[0])), names[0] if rows else [""] * len(names[0]), fontsize=size)
    axis.tick_params(bottom=False, left=False, pad=1.5)
    if names[0][0].startswith("L"):
        for at in range(heads, len(names[0]), heads):
            axis.axhline(at - 0.5, color="#555555", lw=0.6)
            axis.axvline(at - 0.5, color="#555555", lw=0.6)


def eigenvalue_plane(
    spectra: "xr.Dataset",
    k_term: "xr.Dataset | None" = None,
    sources: "Mapping[int, Head] | None" = None,
    marked: Sequence[Head] = (),
    *,
    axes: "Sequence[Axes] | None" = None,
) -> "Figure":
    """Heads by what their eigenvalues say: does it copy (across), does it match (up)?

    Where there are two layers, the left panel holds the heads above the first by the statistic of their K-term with one source,
    and the right one the heads of the first layer, which no head writes for, by that of their own QK circuit. The grey bands are
    mean and two standard deviations of random heads. Named are the marked heads, ringed, the sources, and heads outside both
    bands or beyond one half in either direction, the outermost first.

    Args:
        spectra: at one step: ``value, null_mean, null_sd``, dims ``layer, head, statistic``.
        k_term: at one step, dims ``src_layer, src_head, dst_layer, dst_head``; without it QK circuits alone are shown.
        sources: the head whose output each layer's K-term reads. marked: heads to ring and name.
        axes: two, or one without ``k_term``.
    """
    ov, qk = (spectra.sel(statistic=name) for name in ("ov_copying", "qk_matching"))
    layers = [int(layer) for layer in spectra["layer"].values]
    panels: list[tuple[str, str, list[tuple[Head, Any, Any]]]] = []
    if k_term is not None and sources:
        higher = []
        for layer in layers:
            if layer in sources:
                at = k_term.sel(src_layer=sources[layer].layer, src_head=sources[layer].head, dst_layer=layer)
                higher += [(Head(layer, int(h)), ov.sel(layer=layer, head=h), at.sel(dst_head=h)) for h in ov["head"].values]
        names = ", ".join(dict.fromkeys(str(sources[layer]) for layer in layers if layer in sources))
        panels.append(("Above the first layer", f"K-term statistic, source {names}", higher))
    first = layers[:1] if panels else layers
    lower = [
        (Head(layer, int(h)), ov.sel(layer=layer, head=h), qk.sel(layer=layer, head=h))
        for layer in first
        for h in ov["head"].values
    ]
    panels.append((f"Layer {layers[0]}" if len(first) == 1 else "All layers", "QK matching statistic", lower))
    with drawing(axes[0] if axes else None, width=5.0 * len(panels), height=4.4, columns=len(panels)) as made:
        given = list(axes) if axes else made
        for axis, (title, ylabel, heads) in zip(given, panels, strict=False):
            _plane(axis, heads, set(marked), set((sources or {}).values()), spectra.sizes["head"])
            axis.set_title(title, loc="left")
            axis.set_xlabel("OV copying statistic")
            axis.set_ylabel(ylabel)
        return given[0].figure  # type: ignore[return-value]


def _plane(axis: "Axes", heads: "list[tuple[Head, Any, Any]]", marked: set[Head], sources: set[Head], n_heads: int) -> None:
    """One panel: bands, a dot for each head, names of the ringed, the sources and the outlying."""
    axis.set_xlim(-1.08, 1.08)
    axis.set_ylim(-1.08, 1.08)
    for line in (axis.axhline, axis.axvline):
        line(0.0, color="#cccccc", lw=0.7, zorder=0)
    low_x, high_x = _null_band([x for _, x, _ in heads])
    low_y, high_y = _null_band([y for _, _, y in heads])
    if math.isfinite(low_x):
        axis.axvspan(low_x, high_x, color="#999999", alpha=0.22, lw=0, zorder=0)
    if math.isfinite(low_y):
        axis.axhspan(low_y, high_y, color="#999999", alpha=0.22, lw=0, zorder=0)
    dots, named = [], []
    for head, of_x, of_y in heads:
        x, y = float(of_x["value"]), float(of_y["value"])
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        colour = head_colour(head.head, n_heads)
        axis.plot([x], [y], marker=MARKERS[head.layer % len(MARKERS)], color=colour, ms=5.5, mew=0, ls="")
        if head in marked:
            axis.plot([x], [y], marker="o", mfc="none", mec="black", ms=11, mew=1.3, ls="")
        dots.append((x, y))
        outlying = not (low_x <= x <= high_x or low_y <= y <= high_y) or max(abs(x), abs(y)) > 0.5
        if outlying or head in marked or head in sources:
            named.append((x, y, str(head), colour, head in marked or head in sources))
    first = sorted(named, key=lambda one: (not one[4], -math.hypot(one[0], one[1]), one[2]))[:12]
    label_points(axis, [(x, y, name, colour) for x, y, name, colour, _ in first], dots)


def _null_band(sides: "list[Any]") -> tuple[float, float]:
    """Mean and two standard deviations, over the heads of a panel; NaN without a null."""
    mean = np.array([float(side["null_mean"]) for side in sides])
    sd = np.array([float(side["null_sd"]) for side in sides])
    if not np.isfinite(mean).any():
        return math.nan, math.nan
    middle, spread = float(np.nanmean(mean)), math.sqrt(float(np.nanmean(sd**2)))
    return middle - 2 * spread, middle + 2 * spread


def composition_curves(
    composition: "xr.Dataset",
    pairs: "Sequence[tuple[str, Head, Head]]",
    *,
    scale: Scale = "symlog",
    axes: "Sequence[Axes] | None" = None,
) -> "Figure":
    """Composition of chosen pairs over training: the score against random orientation, and z.

    Args:
        composition: ``value, null_mean, null_sd, z`` with dims ``step, mode, src_layer, src_head, dst_layer, dst_head``; the
            null is that of the squared score, so the band is drawn at the roots of its mean and two standard deviations, pooled
            over the pairs shown.
        pairs: (mode, source, destination). axes: two.
    """
    steps = composition["step"].values
    with drawing(axes[0] if axes else None, width=WIDTH, height=3.4, columns=2) as made:
        left, right = list(axes) if axes else made
        ends: tuple[list[Any], list[Any]] = ([], [])
        means, spreads = [], []
        for i, (mode, source, destination) in enumerate(pairs):
            data = of_pair(composition, mode, source, destination)
            means.append(data["null_mean"].values)
            spreads.append(data["null_sd"].values)
            for axis, name, found in ((left, "value", ends[0]), (right, "z", ends[1])):
                value, colour = data[name].values, PALETTE[i % len(PALETTE)]
                line_with_band(axis, steps, value, np.zeros(len(steps)), colour=colour)
                there = np.flatnonzero(np.isfinite(value))
                if len(there):
                    found.append((float(steps[there[-1]]), float(value[there[-1]]), f"{mode} {source}→{destination}", colour))
        if means:
            mean, sd = np.mean(means, 0), np.sqrt(np.mean(np.square(spreads), 0))
            low, high = np.sqrt(np.maximum(mean - 2 * sd, 0.0)), np.sqrt(mean + 2 * sd)
            left.fill_between(steps, low, high, color="#999999", alpha=0.3, lw=0)
            left.plot(steps, np.sqrt(mean), color="#555555", lw=0.9, ls="--")
        right.axhspan(-2, 2, color="#999999", alpha=0.25, lw=0)
        right.axhline(0.0, color="#555555", lw=0.9, ls="--")
        left.set_ylabel("composition score")
        right.set_ylabel("z against random orientation")
        left.set_ylim(bottom=0.0)
        for axis, found in ((left, ends[0]), (right, ends[1])):
            step_axis(axis, steps, scale)
            label_ends(axis, found)
        return left.figure  # type: ignore[return-value]


def of_pair(composition: "xr.Dataset", mode: str, source: Head, destination: Head) -> "xr.Dataset":
    """What was measured of one pair."""
    return composition.sel(
        mode=mode, src_layer=source.layer, src_head=source.head, dst_layer=destination.layer, dst_head=destination.head
    )


def statistic_curves(
    spectra: "xr.Dataset",
    statistic: str,
    heads: Sequence[Head],
    *,
    title: str = "",
    scale: Scale = "symlog",
    ax: "Axes | None" = None,
) -> "Figure":
    """A statistic of chosen heads' circuits over training; grey: mean and two standard deviations of random heads.

    Args:
        spectra: ``value, stderr, null_mean, null_sd``, dims ``step, layer, head, statistic``. heads: the curves.
    """
    data, n_heads = spectra.sel(statistic=statistic), spectra.sizes["head"]
    steps = data["step"].values
    with drawing(ax, width=5.4, height=3.3) as (axis,):
        ends = []
        for head in heads:
            here, colour = data.sel(layer=head.layer, head=head.head), head_colour(head.head, n_heads)
            value, stderr = here["value"].values, here["stderr"].values
            line_with_band(axis, steps, value, stderr, colour=colour)
            there = np.flatnonzero(np.isfinite(value))
            if len(there):
                ends.append((float(steps[there[-1]]), float(value[there[-1]]), str(head), colour))
        mean, sd = (data[name].mean(("layer", "head")).values for name in ("null_mean", "null_sd"))
        axis.fill_between(steps, mean - 2 * sd, mean + 2 * sd, color="#999999", alpha=0.25, lw=0)
        axis.axhline(0.0, color="#777777", lw=0.9, ls="--")
        step_axis(axis, steps, scale)
        axis.set_ylabel(statistic.replace("_", " ").replace("ov", "OV").replace("qk", "QK"))
        axis.set_title(title, loc="left")
        label_ends(axis, ends)
        return axis.figure  # type: ignore[return-value]
