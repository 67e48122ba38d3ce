"""Figures from results: nothing is computed here, no global style is touched, and equal input gives equal bytes.

Every function takes labelled results and returns a matplotlib ``Figure``; give ``ax`` to draw into your own. Bands are
one standard error; dashed lines are chance levels. Training steps are on a symmetric-log axis, on which step 0 has a
place, or on a linear one. ``rendered`` turns a figure into PNG or SVG bytes.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.models.heads import Head
from circuits.views.figures import PALETTE, Scale, drawable, drawing, head_colour, label_ends, line_with_band, step_axis
from circuits.views.figures import rendered as rendered

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_curves(
    losses: "xr.Dataset", *, ax: "Axes | None" = None, scale: Scale = "symlog", title: str = "Loss on held-out text"
) -> "Figure":
    """Mean next-token loss over training, one curve per corpus.

    Args:
        losses: ``loss`` and ``loss_stderr``, dims ``step, corpus``, in nats.
    """
    return _by_corpus(losses, "loss", ax=ax, scale=scale, title=title, ylabel="loss (nats per token)")


def in_context_curves(losses: "xr.Dataset", *, ax: "Axes | None" = None, scale: Scale = "symlog") -> "Figure":
    """The in-context score over training, one curve per corpus; dashed at 0, where context is of no use.

    Args:
        losses: ``in_context_learning_score`` and ``in_context_learning_score_stderr``, dims ``step, corpus``, in nats.
    """
    return _by_corpus(
        losses,
        "in_context_learning_score",
        ax=ax,
        scale=scale,
        title="In-context score",
        ylabel="late − early loss (nats)",
        level=0.0,
    )


def _by_corpus(
    losses: "xr.Dataset", variable: str, *, ax: "Axes | None", scale: Scale, title: str, ylabel: str, level: float | None = None
) -> "Figure":
    with drawing(ax, width=5.2, height=3.3) as (axis,):
        ends = []
        for i, corpus in enumerate(losses["corpus"].values):
            name, colour = str(corpus).replace("_", " "), PALETTE[i % len(PALETTE)]
            ends += _curve(axis, losses.sel(corpus=corpus), variable, f"{variable}_stderr", name=name, colour=colour)
        if level is not None:
            axis.axhline(level, color="#777777", lw=0.9, ls="--")
        step_axis(axis, losses["step"].values, scale)
        axis.set_ylabel(ylabel)
        axis.set_title(title, loc="left")
        label_ends(axis, ends)
        return axis.figure  # type: ignore[return-value]


def loss_along_context(losses: "xr.Dataset", step: int, *, ax: "Axes | None" = None) -> "Figure":
    """Loss at every context index at one step, one curve per corpus: falling where context helps.

    Args:
        losses: ``value`` and ``stderr``, dims ``step, corpus, pos``, in nats.
    """
    here = losses.sel(step=step)
    with drawing(ax, width=5.2, height=3.3) as (axis,):
        ends = []
        for i, corpus in enumerate(here["corpus"].values):
            part, colour = here.sel(corpus=corpus), PALETTE[i % len(PALETTE)]
            line_with_band(axis, here["pos"].values, part["value"], part["stderr"], colour=colour, width=1.1, dots=False)
            ends.append((float(here["pos"].values[-1]), float(part["value"].values[-1]), str(corpus).replace("_", " "), colour))
        axis.set_xlabel("position in the context")
        axis.set_ylabel("loss (nats per token)")
        axis.set_title(f"Loss along the context, step {step}", loc="left")
        axis.set_xlim(0, float(here["pos"].values[-1]))
        label_ends(axis, ends)
        return axis.figure  # type: ignore[return-value]


def repeat_loss_curve(repeat: "xr.Dataset", *, ax: "Axes | None" = None, scale: Scale = "symlog") -> "Figure":
    """What an exact repeat is worth over training (bold), and the two drops it is the difference of (grey).

    Args:
        repeat: ``value, drop_exact, drop_shuffled`` and their errors, dim ``step``, in nats.
    """
    with drawing(ax, width=5.2, height=3.3) as (axis,):
        ends = []
        drawn = (
            ("drop_shuffled", "shuffled", "#999999", 1.0),
            ("drop_exact", "exact", "#777777", 1.0),
            ("value", "difference", PALETTE[0], 1.8),
        )
        for variable, name, colour, width in drawn:
            error = "stderr" if variable == "value" else f"{variable}_stderr"
            ends += _curve(axis, repeat, variable, error, name=name, colour=colour, width=width)
        axis.axhline(0.0, color="#777777", lw=0.9, ls="--")
        step_axis(axis, repeat["step"].values, scale)
        axis.set_ylabel("drop in loss (nats per token)")
        axis.set_title("Second copy of random tokens", loc="left")
        label_ends(axis, ends)
        return axis.figure  # type: ignore[return-value]


def transition(
    scores: "xr.Dataset",
    repeat: "xr.Dataset",
    picked: Sequence[tuple[str, Head]],
    *,
    axes: "Sequence[Axes] | None" = None,
    scale: Scale = "linear",
) -> "Figure":
    """A few heads' scores over training beside what an exact repeat is worth: one picture of how copying forms.

    Args:
        scores: dims ``step, layer, head, detector``. repeat: dim ``step``. picked: (detector, head) of each curve.
        axes: two.
    """
    with drawing(axes[0] if axes else None, width=10.4, height=3.2, columns=2) as made:
        left, right = axes or made
        ends = []
        for i, (detector, head) in enumerate(picked):
            data = scores.sel(layer=head.layer, head=head.head, detector=detector)
            name = f"{head} {detector.replace('_', ' ')}"
            ends += _curve(left, data, "value", "stderr", name=name, colour=PALETTE[i])
            left.axhline(float(data["chance"].mean()), color=PALETTE[i], lw=0.9, ls="--")
        left.set_ylim(0, 1)
        left.set_ylabel("score (attention mass)")
        right.axhline(0.0, color="#777777", lw=0.9, ls="--")
        gain = _curve(right, repeat, "value", "stderr", name="gain", colour=PALETTE[2])
        right.set_ylabel("gain from an exact repeat (nats)")
        for axis, labels in ((left, ends), (right, gain)):
            step_axis(axis, scores["step"].values, scale)
            label_ends(axis, labels)
        return left.figure  # type: ignore[return-value]


def _curve(
    axis: "Axes", data: "xr.Dataset", variable: str, error: str, *, name: str, colour: str, width: float = 1.6
) -> list[tuple[float, float, str, str]]:
    """Draw one curve over steps; its last point, for a label."""
    value = data[variable].values
    line_with_band(axis, data["step"].values, value, data[error].values, colour=colour, width=width)
    finite = np.flatnonzero(np.isfinite(value))
    return [(float(data["step"].values[finite[-1]]), float(value[finite[-1]]), name, colour)] if len(finite) else []


def head_scores(
    scores: "xr.Dataset", detector: str, *, strongest: int = 3, scale: Scale = "symlog", axes: "Sequence[Axes] | None" = None
) -> "Figure":
    """One detector's score of every head over training, one panel per layer.

    The strongest heads at the last measured step (for entropy the sharpest) are drawn bold and named if they are beyond
    chance by two standard errors; chance is dashed; the grey band is the mean and two standard deviations of the
    random-init null, where there is one.

    Args:
        scores: ``value`` and ``stderr`` (``chance``, ``null_mean``, ``null_sd`` if known), dims ``step, layer, head, detector``.
        axes: one for each layer.
    """
    data = scores.sel(detector=detector)
    layers, n_heads = data["layer"].values, data.sizes["head"]
    value = data["value"].transpose("step", "layer", "head").values
    steps = data["step"].values
    measured = np.flatnonzero(np.isfinite(value).any((1, 2)))
    last = int(measured[-1]) if len(measured) else 0
    final = value[last]
    bold = _standing_out(data.isel(step=last), strongest, sign=-1.0 if detector == "entropy" else 1.0)
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    with drawing(
        axes[0] if axes else None, width=min(10.4, 4.9 * columns + 0.6), height=2.9 * rows, columns=columns, rows=rows
    ) as made:
        panels = list(axes) if axes else made
        top = np.nanmax(value, initial=0.0)
        for i, layer in enumerate(layers):
            axis, here = panels[i], data.sel(layer=layer)
            stderr = here["stderr"].transpose("step", "head").values
            ends = []
            for h in range(n_heads):
                strong = i * n_heads + h in bold
                name, colour = str(Head(int(layer), int(here["head"].values[h]))), head_colour(h, n_heads)
                line_with_band(
                    axis,
                    steps,
                    value[:, i, h],
                    stderr[:, h],
                    colour=colour,
                    width=1.8 if strong else 0.8,
                    alpha=1.0 if strong else 0.5,
                    dots=strong,
                )
                if strong:
                    ends.append((float(steps[last]), float(final[i, h]), name, colour))
            _levels(axis, here, last)
            step_axis(axis, steps, scale)
            axis.set_ylim(0, max(1.0, top * 1.05) if detector != "entropy" else top * 1.05 or 1.0)
            axis.set_title(f"layer {int(layer)}", loc="left")
            label_ends(axis, ends)
        panels[0].set_ylabel(detector.replace("_", " ") + (" (nats)" if detector == "entropy" else ""))
        for spare in panels[len(layers) :]:
            spare.set_axis_off()
        return panels[0].figure  # type: ignore[return-value]


def _standing_out(end: "xr.Dataset", most: int, *, sign: float) -> set[int]:
    """Places (layer by layer) of the heads farthest beyond chance at one step, at least two standard errors from it."""
    value, stderr = (end[name].transpose("layer", "head").values for name in ("value", "stderr"))
    chance = float(end["chance"].mean()) if "chance" in end else 0.0
    excess = sign * (value - chance)
    ranked = np.argsort(-np.nan_to_num(excess, nan=-np.inf), axis=None, kind="stable")[:most]
    return {int(i) for i in ranked if excess.flat[i] > 2 * np.nan_to_num(stderr.flat[i])}


def _levels(axis: "Axes", layer: "xr.Dataset", last: int) -> None:
    """Chance as a dashed line and the null as a grey band; a level that varies over steps is taken at the last one."""

    def level(name: str) -> float:
        if name not in layer:
            return math.nan
        found = layer[name].isel(step=last) if "step" in layer[name].dims else layer[name]
        return float(found.mean())

    chance, mean, sd = level("chance"), level("null_mean"), level("null_sd")
    if math.isfinite(mean) and math.isfinite(sd):
        axis.axhspan(mean - 2 * sd, mean + 2 * sd, color="#999999", alpha=0.25, lw=0)
    if math.isfinite(chance):
        axis.axhline(chance, color="#555555", lw=0.9, ls="--")


def attention_maps(patterns: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """Attention patterns as heat maps, query down and key across; the future is grey.

    Args:
        patterns: ``value``, dims ``head, query, key``; coordinate ``token`` over ``key`` if the axes should name tokens.
    """
    value = patterns["value"].transpose("head", "query", "key").values
    n_heads, length, _ = value.shape
    columns = min(4, n_heads)
    rows = -(-n_heads // columns)
    alone = n_heads == 1
    side = min(9.0, max(4.2, 0.17 * length)) if alone else 2.7
    top = max(1.0, float(value.max())) if patterns.attrs.get("bounded", 1) else float(value.max()) or 1.0
    with drawing(ax, width=side * columns + (1.0 if alone else 0.6), height=side * rows, columns=columns, rows=rows) as panels:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("attention", ["#ffffff", "#0000ff"]).with_extremes(bad="#c8c8c8")
        future = np.triu(np.ones((length, length), dtype=bool), 1)
        for axis, pattern, name in zip(panels, value, patterns["head"].values, strict=False):
            shown = axis.imshow(
                np.ma.array(pattern, mask=future), cmap=colours, vmin=0, vmax=top, interpolation="nearest", aspect="equal"
            )
            axis.set_title(str(name), loc="left")
            _token_ticks(
                axis, [str(t) for t in patterns["token"].values] if "token" in patterns.coords and alone else None, length
            )
        panels[0].set_ylabel("query (attends)")
        panels[0].set_xlabel("key (is attended to)")
        for spare in panels[n_heads:]:
            spare.set_axis_off()
        if ax is None:
            bar = panels[0].figure.colorbar(shown, ax=panels[:n_heads], shrink=0.7 if alone else 0.9, aspect=30, pad=0.02)
            bar.set_label(str(patterns.attrs.get("measure", "attention")))
        return panels[0].figure  # type: ignore[return-value]


def _token_ticks(axis: "Axes", tokens: list[str] | None, length: int) -> None:
    """Every token where there is room (up to 64), else positions."""
    if tokens is None or length > 64:
        every = max(1, length // 8) if tokens is None else 16
        at = list(range(0, length, every))
        axis.set_xticks(at, [str(i) for i in at])
        axis.set_yticks(at, [str(i) for i in at])
        return
    size = 7.0 if length <= 40 else 5.5
    labels = [drawable(token) for token in tokens]
    axis.set_xticks(range(length), labels, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(range(length), labels, fontsize=size, parse_math=False)
    axis.tick_params(length=1.5)
