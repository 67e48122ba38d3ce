"""Figures of Scan & Snap's simulations: heat maps of attention, entropy over rates, recall, the order of the scan, the norm.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, equal bytes for equal input. Bands and bars are two standard
errors over seeds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.views.figures import PALETTE, drawing, label_ends, line_with_band

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ERRORS = 2.0
"""Standard errors to either side of a value that bands and bars show."""
FIRST = 10
"""Steps that a heat map shows one by one, as the paper's do, before the last."""
GREY = "#777777"
ROUNDING = 1e-9
"""Of logarithms of powers of ten."""


def attention_heat_maps(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Attention on every token at steps 0 to 10 and the last: a row for each rate of the decoder, a column for each label.

    Left of the line stand the common tokens, right of it the distinct ones of all labels, each label's by rising probability.

    Args:
        found: of ``attention_by_iteration``. axes: one for each rate and label, row by row.
    """
    require(found, "attention_by_iteration", value=("eta_y", "time", "label", "token"), common=("token",))
    time = found["time"].values
    shown = np.flatnonzero((time <= FIRST) | (time == time[-1]))
    value = found["value"].transpose("eta_y", "label", "time", "token").values[:, :, shown]
    rates, labels = value.shape[:2]
    top = float(value.max())
    order = np.argsort(~found["common"].values, kind="stable")
    with drawing(_first(axes), width=10.4, height=2.7 * rates + 0.3, columns=labels, rows=rates) as made:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("attention", ["#ffffff", "#0000ff"])
        panels = list(axes or made)
        for i, axis in enumerate(panels):
            rate, label = divmod(i, labels)
            image = axis.imshow(
                value[rate, label][:, order], cmap=colours, vmin=0, vmax=top, interpolation="nearest", aspect="auto"
            )
            axis.axvline(found["common"].values.sum() - 0.5, color=GREY, lw=0.9, ls="--")
            axis.set_yticks(range(len(shown)), [str(int(time[at])) for at in shown])
            axis.set_title(f"η_Y = {found['eta_y'].values[rate]:g}, label {label}", loc="left")
            if label == 0:
                axis.set_ylabel("step")
            if rate == rates - 1:
                axis.set_xlabel("token: common | distinct")
        if not axes:
            bar = panels[0].figure.colorbar(image, ax=panels, shrink=0.8, aspect=30, pad=0.02)
            bar.set_label("attention")
        return panels[0].figure  # type: ignore[return-value]


def entropy_lines(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Entropy among distinct tokens over ``eta_y / eta_z``, a line for each ``eta_z``, a panel for each size; crosses: published.

    Args:
        found: of ``entropy_table``. axes: one for each size.
    """
    require(found, "entropy_table", value=("queries", "eta_z", "ratio"), published=("queries", "eta_z", "ratio"))
    queries, ratio = found["queries"].values, found["ratio"].values
    with drawing(_first(axes), width=min(10.4, 2.9 * len(queries) + 0.7), height=3.1, columns=len(queries)) as made:
        panels = list(axes or made)
        for axis, count in zip(panels, queries, strict=True):
            ends = []
            for i, eta in enumerate(found["eta_z"].values):
                here, colour = found.sel(queries=count, eta_z=eta), PALETTE[i % len(PALETTE)]
                line_with_band(axis, ratio, here["value"].values, ERRORS * here["stderr"].values, colour=colour)
                axis.plot(ratio, here["published"].values, "x", color="#222222", ms=5, mew=1.1, zorder=4)
                ends.append((float(ratio[-1]), float(here["value"].values[-1]), f"η_Z = {eta:g}", colour))
            axis.set_xscale("log")
            axis.set_xticks(ratio, [f"{one:g}" for one in ratio])
            axis.minorticks_off()
            axis.set_ylim(_limits(found["value"].values, found["published"].values))
            axis.set_title(f"{int(count)} last, {2 * int(count)} next", loc="left")
            axis.set_xlabel("η_Y / η_Z")
            if axis is panels[-1]:
                label_ends(axis, ends)
            if axis is not panels[0]:
                axis.tick_params(labelleft=False)
        panels[0].set_ylabel("entropy of distinct tokens (nats)")
        return panels[0].figure  # type: ignore[return-value]


def recall_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Recall of distinct tokens over the threshold, a panel for each ratio; dashed: attention that has learned nothing.

    Args:
        found: of ``recall_of_distinct``. axes: one for each ratio.
    """
    require(found, "recall_of_distinct", value=("eta_z", "ratio", "threshold"), start=("threshold",))
    ratios, threshold = found["ratio"].values, found["threshold"].values
    with drawing(_first(axes), width=min(10.4, 3.9 * len(ratios) + 1.0), height=3.1, columns=len(ratios)) as made:
        panels = list(axes or made)
        for axis, ratio in zip(panels, ratios, strict=True):
            axis.plot(threshold, found["start"].values, color=GREY, lw=0.9, ls="--", label="at the start")
            for i, eta in enumerate(found["eta_z"].values):
                here, colour = found.sel(ratio=ratio, eta_z=eta), PALETTE[i % len(PALETTE)]
                band = ERRORS * here["stderr"].values
                line_with_band(axis, threshold, here["value"].values, band, colour=colour, dots=False)
                axis.lines[-1].set_label(f"η_Z = {eta:g}")
            axis.set_xscale("log")
            write_decades(axis.xaxis, threshold)
            axis.set_ylim(-0.03, 1.03)
            axis.set_title(f"η_Y / η_Z = {ratio:g}", loc="left")
            axis.set_xlabel("threshold (1 / M)")
        panels[0].set_ylabel("recall of distinct tokens")
        panels[-1].legend(frameon=False, fontsize=8)
        return panels[0].figure  # type: ignore[return-value]


def scan_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Attention to each distinct token over training, the rare ones light, a panel for each rate.

    Dots stand at the step at which attention was largest, mean over seeds, with two standard errors to either side.

    Args:
        found: of ``peak_order``. axes: one for each rate.
    """
    require(found, "peak_order", attention=("eta", "time", "rank"), value=("eta", "rank"))
    eta, time = found["eta"].values, found["time"].values
    with drawing(_first(axes), width=min(10.4, 4.2 * len(eta) + 1.0), height=3.2, columns=len(eta)) as made:
        from matplotlib.colors import to_hex

        panels = list(axes or made)
        for axis, one in zip(panels, eta, strict=True):
            ends = []
            for rank in range(found.sizes["rank"]):
                curve, shade = found["attention"].sel(eta=one).values[:, rank], 0.72 - 0.67 * rank / (found.sizes["rank"] - 1)
                colour = to_hex((shade, shade, 0.55 + 0.45 * shade))
                axis.plot(time, curve, color=colour, lw=1.4)
                peak, error = (float(found[name].sel(eta=one).values[rank]) for name in ("value", "stderr"))
                height = np.interp(peak, time, curve)
                axis.plot(peak, height, "o", color=colour, ms=4)
                axis.hlines(height, max(0.0, peak - ERRORS * error), min(peak + ERRORS * error, time[-1]), color=colour, lw=0.9)
                if rank in (0, found.sizes["rank"] - 1):
                    name = f"P = {float(found['probability'].values[rank]):.3f}"
                    ends.append((float(time[-1]), float(curve[-1]), name, colour))
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(-0.1, time[-1] * 1.05)
            axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
            axis.set_xlim(-0.1, time[-1] * 1.05)
            axis.set_ylim(bottom=0)
            axis.set_title(f"η_Y = η_Z = {one:g}", loc="left")
            axis.set_xlabel("step")
            label_ends(axis, ends)
        panels[0].set_ylabel("attention")
        return panels[0].figure  # type: ignore[return-value]


def ablation_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """Entropy among distinct tokens and mass on common ones over training, with the l2 norm and without.

    Args:
        found: of ``norm_ablation``. axes: two.
    """
    require(found, "norm_ablation", value=("norm", "time"), mass=("norm", "time"))
    names = {"l2": "with the norm", "none": "without"}
    drawn = (("value", "stderr", "entropy of distinct tokens (nats)"), ("mass", "mass_stderr", "mass on common tokens"))
    with drawing(_first(axes), width=9.6, height=3.1, columns=2) as made:
        panels = list(axes or made)
        for axis, (variable, error, label) in zip(panels, drawn, strict=True):
            ends = []
            for i, norm in enumerate(found["norm"].values):
                here, colour = found.sel(norm=norm), PALETTE[i]
                curve = here[variable].values
                line_with_band(axis, here["time"].values, curve, ERRORS * here[error].values, colour=colour, dots=False)
                ends.append((float(here["time"].values[-1]), float(curve[-1]), names[str(norm)], colour))
            axis.set_ylim(bottom=0)
            axis.set_xlim(0, float(found["time"].values[-1]))
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            label_ends(axis, ends)
        return panels[0].figure  # type: ignore[return-value]


def require(found: "xr.Dataset", maker: str, **variables: tuple[str, ...]) -> None:
    """Refuse a result that has not what a figure draws.

    Raises:
        ValueError: a variable is missing or has other dims.
    """
    for name, dims in variables.items():
        if name not in found or set(found[name].dims) != set(dims):
            raise ValueError(f"need `{name}` by {', '.join(dims)}: give what {maker} gives")


def write_decades(axis: "Axis", values: np.ndarray) -> None:
    """Ticks of a logarithmic axis at powers of ten, written out: the style sets no formulas."""
    low, high = np.log10(values.min()) - ROUNDING, np.log10(values.max()) + ROUNDING
    at = 10.0 ** np.arange(np.ceil(low), np.floor(high) + 1)
    axis.set_ticks([], minor=True)
    axis.set_ticks(at, [f"{x:g}" for x in at])


def _first(axes: "Sequence[Axes] | None") -> "Axes | None":
    return axes[0] if axes else None


def _limits(*arrays: np.ndarray) -> tuple[float, float]:
    every = np.concatenate([array[np.isfinite(array)] for array in arrays])
    margin = 0.06 * float(np.ptp(every) or 1.0)
    return float(every.min()) - margin, float(every.max()) + margin
