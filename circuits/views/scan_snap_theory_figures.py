"""Figures of Scan & Snap's theory: how the leading token gains, the clock, growth, freezing, and one curve for all rates.

As in ``curves``: labelled results in, a matplotlib ``Figure`` out, equal bytes for equal input. Dotted lines are ``t0``, where
snapping begins; bands are two standard errors over seeds; what has no band has no noise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.views.figures import PALETTE, drawing, label_ends, line_with_band
from circuits.views.scan_snap_figures import ERRORS, GREY, require, write_decades

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCES = {
    "theorem": "theorem 4: e^(2 B)",
    "reduced": "lemma 4, slow attention",
    "flow": "the flow",
    "value": "SGD, T = 128",
}
"""Where a gain comes from, and what its panel is called."""


def gain_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """How the likeliest distinct token gains, ``chi(t)``: the paper's curve, the limit of slow attention, the flow, SGD.

    Sizes differ, so each has its own scale; in the second panel dashed: lemma 4 with the paper's ``beta``.

    Args:
        found: of ``gain_growth``. axes: four.
    """
    require(found, "gain_growth", value=("eta_y", "time"), flow=("eta_y", "time"), theorem=("eta_y", "time"))
    time = found["time"].values
    with drawing(axes[0] if axes else None, width=10.0, height=5.8, columns=2, rows=2) as made:
        panels = list(axes or made)
        for axis, (variable, title) in zip(panels, SOURCES.items(), strict=True):
            ends = []
            for i, eta in enumerate(found["eta_y"].values):
                here, colour = found.sel(eta_y=eta), PALETTE[i % len(PALETTE)]
                curve = here[variable].values
                error = ERRORS * here["stderr"].values if variable == "value" else np.zeros_like(curve)
                line_with_band(axis, time, curve, error, colour=colour, dots=False)
                if variable == "reduced":
                    axis.plot(time, here["paper"].values, color=colour, lw=1.0, ls="--")
                axis.axvline(float(here["snapping_begins"]), color=colour, lw=0.9, ls=":")
                ends.append((float(time[-1]), float(curve[-1]), f"η_Y = {eta:g}", colour))
            axis.set_xlim(0, float(time[-1]))
            axis.set_title(title, loc="left")
            axis.set_xlabel("step")
            axis.set_ylabel("χ")
            axis.ticklabel_format(useOffset=False)
            label_ends(axis, ends)
        return panels[0].figure  # type: ignore[return-value]


def decoder_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """The decoder's clock beside its two approximations, dashed while scanning, dotted once snapped; then its accuracy.

    Args:
        found: of ``decoder_phases``. axes: two.
    """
    require(found, "decoder_phases", value=("d_vocab", "tau"), scanning=("d_vocab", "tau"), probability=("d_vocab", "tau"))
    tau = found["tau"].values
    with drawing(axes[0] if axes else None, width=9.6, height=3.1, columns=2) as made:
        left, right = axes or made
        clocks, learned = [], []
        for i, size in enumerate(found["d_vocab"].values):
            here, colour, name = found.sel(d_vocab=size), PALETTE[i % len(PALETTE)], f"M = {int(size)}"
            left.plot(tau, here["value"].values, color=colour, lw=1.6)
            left.plot(tau, here["scanning"].values, color=colour, lw=1.0, ls="--")
            left.plot(tau, here["snapping"].values, color=colour, lw=1.0, ls=":")
            right.plot(tau, here["probability"].values, color=colour, lw=1.6)
            clocks.append((float(tau[-1]), float(here["value"].values[-1]), name, colour))
            learned.append((float(tau[-1]), float(here["probability"].values[-1]), name, colour))
        left.set_ylim(0, 1.15 * float(found["value"].max()))
        right.set_ylim(0, 1.03)
        for axis, ends, label in ((left, clocks, "M h (logits)"), (right, learned, "probability of the right label")):
            axis.set_xlim(0, float(tau[-1]))
            axis.set_xlabel("time (K ln M / η_Y)")
            axis.set_ylabel(label)
            label_ends(axis, ends)
        return left.figure  # type: ignore[return-value]


def growth_curves(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """``B_n(t)``, a panel for each ``eta_y / eta_z``: at ``t0`` (dots, dotted lines) it is the same for all rates.

    Args:
        found: of ``attention_growth``. axes: one for each ratio.
    """
    require(found, "attention_growth", value=("ratio", "eta_y", "time"), at_snap=("ratio", "eta_y"))
    ratios, time = found["ratio"].values, found["time"].values
    with drawing(axes[0] if axes else None, width=min(10.4, 2.6 * len(ratios) + 1.0), height=2.9, columns=len(ratios)) as made:
        panels = list(axes or made)
        for axis, ratio in zip(panels, ratios, strict=True):
            for i, eta in enumerate(found["eta_y"].values):
                here, colour = found.sel(ratio=ratio, eta_y=eta), PALETTE[i % len(PALETTE)]
                axis.plot(time, here["value"].values, color=colour, lw=1.6, label=f"η_Y = {eta:g}")
                axis.axvline(float(here["snapping_begins"]), color=colour, lw=0.9, ls=":")
                axis.plot(float(here["snapping_begins"]), float(here["at_snap"]), "o", color=colour, ms=5)
            axis.axhline(float(found["at_snap"].sel(ratio=ratio).mean()), color=GREY, lw=0.8, ls="--", zorder=0)
            axis.set_ylim(0, 1.05 * float(found["value"].max()))
            axis.set_xlim(0, float(time[-1]))
            axis.set_title(f"η_Y / η_Z = {ratio:g}", loc="left")
            axis.set_xlabel("step")
            axis.tick_params(labelleft=axis is panels[0])
        panels[0].set_ylabel("B (logits)")
        panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
        return panels[0].figure  # type: ignore[return-value]


def freeze_curve(found: "xr.Dataset", *, axes: "Sequence[Axes] | None" = None) -> "Figure":
    """The top logit, what each doubling of time adds to it, and the loss, from ``8.5 t0'`` on.

    Args:
        found: of ``freeze``. axes: three.
    """
    require(found, "freeze", value=("classes", "time"), loss=("classes", "time"))
    tau = found["tau"].values[1:]
    with drawing(axes[0] if axes else None, width=10.4, height=2.9, columns=3) as made:
        panels = list(axes or made)
        for i, name in enumerate(found["classes"].values):
            here, colour = found.sel(classes=name).isel(time=slice(1, None)), PALETTE[i % len(PALETTE)]
            style = {"color": colour, "lw": 1.6, "marker": "o", "ms": 4}
            panels[0].plot(tau, here["value"].values, label=str(name), **style)
            panels[1].plot(tau[1:], np.diff(here["value"].values), **style)
            panels[2].plot(tau, here["loss"].values, **style)
        for axis, label in zip(panels, ("top logit", "added per doubling of time", "loss (nats)"), strict=True):
            axis.set_xscale("log")
            write_decades(axis.xaxis, tau)
            axis.set_xlabel("time (K ln M / η_Y)")
            axis.set_ylabel(label)
        panels[1].set_ylim(bottom=0)
        panels[2].set_yscale("log")
        write_decades(panels[2].yaxis, found["loss"].values[:, 1:])
        panels[0].legend(frameon=False, fontsize=8)
        return panels[0].figure  # type: ignore[return-value]


def bounce_curve(found: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """JoMA's entropy: dropping and coming back if nonlinear (bold: mean over seeds), only dropping if linear; dashed: its limit.

    Args:
        found: of ``entropy_bounce``.
    """
    require(found, "entropy_bounce", value=("step",), nonlinear=("seed", "step"), linear=("seed", "step"))
    step = found["step"].values
    with drawing(ax, width=6.2, height=3.3) as (axis,):
        for i, variable in enumerate(("nonlinear", "linear")):
            axis.plot(step, found[variable].transpose("step", "seed").values, color=PALETTE[i], lw=0.6, alpha=0.35)
        line_with_band(axis, step, found["value"].values, ERRORS * found["stderr"].values, colour=PALETTE[0], dots=False)
        linear = found["linear"].mean("seed").values
        axis.plot(step, linear, color=PALETTE[1], lw=1.6)
        axis.axhline(float(found["limit"].mean()), color=GREY, lw=0.9, ls="--")
        axis.set_xlim(0, float(step[-1]))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("step")
        axis.set_ylabel("entropy of attention (nats)")
        ends = [(float(found["value"].values[-1]), "nonlinear", PALETTE[0]), (float(linear[-1]), "linear", PALETTE[1])]
        label_ends(axis, [(float(step[-1]), *end) for end in ends])
        return axis.figure  # type: ignore[return-value]


def rate_curves(found: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """The leading logit in scaled time at every rate of the decoder: one curve; dotted: where it moves fastest.

    Args:
        found: of ``rate_sweep``.
    """
    require(found, "rate_sweep", value=("eta_y", "tau"), peak=("eta_y",))
    tau = found["tau"].values
    with drawing(ax, width=5.6, height=3.3) as (axis,):
        for i, eta in enumerate(found["eta_y"].values):
            here, colour = found.sel(eta_y=eta), PALETTE[i % len(PALETTE)]
            axis.plot(tau, here["value"].values, color=colour, lw=1.4, label=f"η_Y = {eta:g}")
            axis.axvline(float(here["peak"]), color=colour, lw=0.9, ls=":")
        axis.set_xlim(0, float(tau[-1]))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("time (K ln M / η_Y)")
        axis.set_ylabel("z η_Y / η_Z")
        axis.legend(frameon=False, fontsize=8)
        return axis.figure  # type: ignore[return-value]


def transition_points(found: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """When attention moves fastest, for every size and overlap; dashes: when ``gamma`` peaks.

    Args:
        found: of ``transition_times``.
    """
    require(found, "transition_times", value=("size", "overlap"), predicted=("size",))
    sizes, overlaps = found["size"].values, found["overlap"].values
    at = np.arange(len(sizes))
    with drawing(ax, width=5.8, height=3.4) as (axis,):
        axis.hlines(found["predicted"].values, at - 0.35, at + 0.35, color=GREY, lw=1.2, ls="--", label="γ peaks")
        for i, overlap in enumerate(overlaps):
            place = at + 0.16 * (i - (len(overlaps) - 1) / 2)
            style = {"color": PALETTE[i % len(PALETTE)], "marker": "osD^"[i % 4], "ls": "", "ms": 5}
            axis.plot(place, found["value"].sel(overlap=overlap).values, label=f"ρ = {overlap:g}", **style)
        axis.set_xticks(at, [str(size) for size in sizes])
        axis.set_ylabel("attention moves fastest\n(K ln M / ((1 − ρ) η_Y))")
        axis.legend(frameon=False, fontsize=8)
        return axis.figure  # type: ignore[return-value]


def ratio_curves(found: "xr.Dataset", *, ax: "Axes | None" = None) -> "Figure":
    """How a label's tokens share the gain over what theorem 3 says, for every ``eta_z / eta_y``; on the dashed line it holds.

    Args:
        found: of ``gain_ratios``.
    """
    require(found, "gain_ratios", value=("ratio", "token"), theorem=("token",))
    with drawing(ax, width=4.8, height=3.6) as (axis,):
        axis.plot((0, 1), (0, 1), color=GREY, lw=0.9, ls="--", zorder=0)
        for i, ratio in enumerate(found["ratio"].values):
            style = {"color": PALETTE[i % len(PALETTE)], "lw": 1.2, "ms": 5, "marker": "osD^"[i % 4]}
            axis.plot(found["theorem"].values, found["value"].sel(ratio=ratio).values, label=f"η_Z / η_Y = {ratio:g}", **style)
        axis.set_xlabel("(P / P of the likeliest)²")
        axis.set_ylabel("z / z of the likeliest")
        axis.legend(frameon=False, fontsize=8)
        return axis.figure  # type: ignore[return-value]
