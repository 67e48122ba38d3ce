"""Figures of what heads do: effects by kind, distance to n-gram predictors, per-token losses in their plane, brackets.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, ``axes`` to draw into your own, equal bytes for equal input.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.models.heads import Head
from circuits.views.figures import (
    PALETTE,
    Scale,
    drawing,
    label_ends,
    label_points,
    line_with_band,
    step_axis,
)
from circuits.views.html import count

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_COLOURS = {
    "bracket": "#CC79A7",
    "induction": "#D55E00",
    "ngram": "#0072B2",
    "bigram": "#56B4E9",
    "skip_ngram": "#009E73",
    "positional": "#E6AB02",
    "other": "#AAAAAA",
}
KIND_NAMES = {"ngram": "n-gram", "skip_ngram": "skip-n-gram", "positional": "layout"}
"""What kinds are called where people read; the others are called as they are."""
WIDTH = 10.4
COLUMNS = 4


def kind_colour(kind: str, place: int) -> str:
    """The colour of a kind of predictions: the same on every page; by its place for a kind of one's own."""
    return KIND_COLOURS.get(kind, PALETTE[place % len(PALETTE)])


def kind_name(kind: str) -> str:
    return KIND_NAMES.get(kind, kind.replace("_", " "))


def profile_bars(profile: "xr.Dataset", heads: Sequence[Head], *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """What each head's effect goes to, one small panel a head: a bar for each measured checkpoint, stacked by kind.

    The height of a segment is the nats per token of text that predictions of its kind owe to the head; what it harms hangs below
    zero. The whisker is one standard error of the sum, at the sum. Panels have scales of their own.

    Args:
        profile: ``effect, total, total_stderr`` of ``FunctionProfile``, dims ``step, layer, head[, kind]``.
        heads: those shown. axes: one for each.
    """
    measured = np.flatnonzero(
        np.isfinite(profile["total"].transpose("step", ...).values).reshape(profile.sizes["step"], -1).any(1)
    )
    data = profile.isel(step=measured)
    steps, kinds = data["step"].values, [str(kind) for kind in data["kind"].values]
    columns = min(COLUMNS, max(len(heads), 1))
    rows = -(-len(heads) // columns)
    with drawing(
        axes[0] if axes else None, width=2.55 * columns + 0.2, height=1.55 * rows + 0.75, columns=columns, rows=rows
    ) as made:
        panels = list(axes) if axes else made
        places = np.arange(len(steps))
        for axis, head in zip(panels, heads, strict=False):
            here = data.sel(layer=head.layer, head=head.head)
            effect = here["effect"].transpose("step", "kind").values
            axis.add_collection(_stacked(places, effect, [kind_colour(kind, i) for i, kind in enumerate(kinds)]))
            axis.autoscale_view()
            axis.errorbar(places, here["total"].values, here["total_stderr"].values, fmt="_", color="black", ms=5, lw=0.9)
            axis.axhline(0.0, color="#555555", lw=0.6)
            shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 4)).round().astype(int))
            axis.set_xticks(places[shown], [count(int(steps[i])) for i in shown], fontsize=7)
            axis.tick_params(axis="y", labelsize=7)
            axis.locator_params(axis="y", nbins=4)
            axis.set_title(str(head), loc="left", pad=3)
        if panels:
            panels[0].set_ylabel("nats per token", fontsize=8)
        for spare in panels[len(heads) :]:
            spare.set_axis_off()
        figure = panels[0].figure
        if axes is None:
            _legend(figure, kinds)
        return figure  # type: ignore[return-value]


def _stacked(places: np.ndarray, effect: np.ndarray, colours: Sequence[str]) -> Any:
    """Bars of the parts ``effect [place, part]`` at these places: positive ones stacked up from zero, negative ones down."""
    from matplotlib.collections import PolyCollection

    top = np.where(effect > 0, np.maximum(effect, 0).cumsum(1), np.minimum(effect, 0).cumsum(1))
    low, high, half = top - effect, top, 0.39
    x = np.broadcast_to(places[:, None], effect.shape)
    corners = [(x - half, low), (x + half, low), (x + half, high), (x - half, high)]
    vertices = np.stack([np.stack(corner, -1) for corner in corners], axis=2)  # [place, part, corner, 2]
    shown = effect != 0
    which = np.broadcast_to(np.asarray(colours, dtype=object), effect.shape)[shown]
    return PolyCollection(list(vertices[shown]), facecolors=list(which), linewidths=0)


def _legend(figure: Any, kinds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=kind_colour(kind, i), label=kind_name(kind)) for i, kind in enumerate(kinds)]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(kinds), frameon=False, fontsize=8.5, handlelength=1.2)


def predictor_curves(predictor: "xr.Dataset", corpus: str, *, scale: Scale = "symlog", ax: "Axes | None" = None) -> "Figure":
    """How far the model is from each n-gram predictor of its corpus over training: KL, and dashed what counting noise gives.

    Args:
        predictor: ``kl, kl_stderr, kl_noise`` of ``PredictorLoss``, dims ``step, corpus, order``, in nats. corpus: which.
    """
    data = predictor.sel(corpus=corpus)
    steps = data["step"].values
    with drawing(ax, width=5.4, height=3.5) as (axis,):
        ends = []
        for i, order in enumerate(data["order"].values):
            here, colour = data.sel(order=order), PALETTE[i % len(PALETTE)]
            value = here["kl"].values
            line_with_band(axis, steps, value, here["kl_stderr"].values, colour=colour)
            noise = here["kl_noise"].values
            there = np.flatnonzero(np.isfinite(value))
            if len(there):
                axis.axhline(float(noise[there[-1]]), color=colour, lw=0.8, ls="--", alpha=0.7)
                ends.append((float(steps[there[-1]]), float(value[there[-1]]), order_name(int(order)), colour))
        step_axis(axis, steps, scale)
        axis.set_ylim(bottom=0.0)
        axis.set_ylabel("KL to the predictor (nats)")
        axis.set_title("Distance to n-gram predictors", loc="left")
        label_ends(axis, ends)
        return axis.figure  # type: ignore[return-value]


def order_name(order: int) -> str:
    """``unigram``, ``bigram``, ``trigram``, ``4-gram``."""
    return {1: "unigram", 2: "bigram", 3: "trigram"}.get(order, f"{order}-gram")


def loss_plane(pca: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """Where a run's per-token losses lie at each checkpoint in the plane of their first two principal components.

    Args:
        pca: of ``loss_pca``: ``value, stderr`` with dims ``step, component``, ``explained`` with ``component``.
    """
    value, stderr = (pca[name].transpose("step", "component").values for name in ("value", "stderr"))
    kept = np.flatnonzero(np.isfinite(value).all(1))
    steps, x, y = pca["step"].values[kept], value[kept, 0], value[kept, 1]
    explained = [float(share) for share in pca["explained"].values]
    with drawing(ax, width=5.4, height=3.9) as (axis,):
        from matplotlib import colormaps

        shade = [colormaps["viridis"](0.92 * i / max(len(steps) - 1, 1)) for i in range(len(steps))]
        axis.plot(x, y, color="#999999", lw=1.0, zorder=1)
        axis.errorbar(x, y, xerr=stderr[kept, 0], yerr=stderr[kept, 1], fmt="none", ecolor="#999999", lw=0.8, zorder=1)
        axis.scatter(x, y, c=shade, s=28, zorder=2)
        axis.margins(0.12)
        # The limits are read by label_points, so they are fixed before.
        axis.set_xlim(axis.get_xlim())
        axis.set_ylim(axis.get_ylim())
        dots = list(zip(x.tolist(), y.tolist(), strict=True))
        order = [*range(0, len(steps), max(1, len(steps) // 10))]
        order = sorted({*order, len(steps) - 1} & set(range(len(steps))), key=lambda i: (i not in (0, len(steps) - 1), i))
        label_points(axis, [(*dots[i], count(int(steps[i])), "#222222") for i in order], dots)
        axis.set_xlabel(f"component 1 (nats; {100 * explained[0]:.0f}% of the variance)")
        axis.set_ylabel(f"component 2 (nats; {100 * explained[1]:.0f}%)")
        axis.set_title("Per-token losses over training, labelled by step", loc="left")
        return axis.figure  # type: ignore[return-value]


def bracket_curves(
    brackets: "xr.Dataset", heads: Sequence[Head], *, scale: Scale = "symlog", axes: "Sequence[Axes] | None" = None
) -> "Figure":
    """Chosen heads on brackets over training: attention to the opener and effect on the closer, each above its controls.

    Args:
        brackets: of ``BracketScores``, dims ``step, layer, head, condition[, query]``. heads: the curves. axes: two.
    """
    data = brackets.sel(condition="all")
    steps = data["step"].values
    with drawing(axes[0] if axes else None, width=WIDTH, height=3.2, columns=2) as made:
        left, right = list(axes) if axes else made
        attention = data.sel(query="before")
        for axis, value, stderr, null in (
            (left, attention["value"], attention["stderr"], ("null_mean", "null_sd")),
            (right, data["effect"], data["effect_stderr"], ("effect_null_mean", "effect_null_sd")),
        ):
            ends = []
            of_null = attention if axis is left else data
            mean, sd = (float(of_null[name].isel(step=-1).mean()) for name in null)
            if math.isfinite(mean) and math.isfinite(sd):
                axis.axhspan(mean - 2 * sd, mean + 2 * sd, color="#999999", alpha=0.25, lw=0)
            for i, head in enumerate(heads):
                colour = PALETTE[i % len(PALETTE)]
                y, error = (x.sel(layer=head.layer, head=head.head).values for x in (value, stderr))
                line_with_band(axis, steps, y, error, colour=colour)
                there = np.flatnonzero(np.isfinite(y))
                if len(there):
                    ends.append((float(steps[there[-1]]), float(y[there[-1]]), str(head), colour))
            axis.axhline(0.0, color="#777777", lw=0.9, ls="--")
            step_axis(axis, steps, scale)
            label_ends(axis, ends)
        left.set_ylabel("attention above controls")
        left.set_title("To the opener, before the closer", loc="left")
        right.set_ylabel("effect above controls (nats)")
        right.set_title("On predicting the closer", loc="left")
        return left.figure  # type: ignore[return-value]
