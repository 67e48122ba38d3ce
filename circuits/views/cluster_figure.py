"""Figures of a cross-check: do a measure's curves sort heads into their roles, and does a curve change when the role emerges.

clusters   a dot for each measure, the adjusted Rand index of its clusters with roles, with its interval; dashed at 0, chance.
           Square: the coefficient; dot: what would cost less; diamond: curves that roles themselves rest on. Hollow where
           no arrangement of these roles could have been significant
lags       a mark for each head, from the emergence of its role to the change of its curve, with its interval; dashed at 0,
           shaded where both are close. Dot: the interval holds 0; triangles point to the one that came first
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.partitions import ALPHA
from circuits.views.cells import heads_of
from circuits.views.figures import PALETTE, drawable, drawing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DETECTED = "attention_"
"""How names of curves begin that are scores of the detectors roles rest on."""
NAMES = {
    "rllc": "rLLC",
    "hessian_trace": "Hessian trace",
    "fisher_trace": "Fisher trace",
    "noise_loss": "noise loss",
    "weight_norm": "weight norm",
    "ablation_loss": "ablation loss",
    "k_composition": "K-composition",
}
LAGS = {"together": ("o", PALETTE[0]), "curve first": ("<", PALETTE[1]), "role first": (">", PALETTE[2])}


def called(curve: str) -> str:
    """What a measure's curves are called in words."""
    if curve.startswith(DETECTED):
        return f"detector: {curve.removeprefix(DETECTED).replace('_', ' ')}"
    return NAMES.get(curve, curve.replace("_", " "))


def by_default(found: "xr.Dataset") -> "xr.Dataset":
    """The clustering and the scaling that ``compare`` puts first."""
    return found.isel(clustering=0, scaling=0)


def cluster_figure(found: "xr.Dataset") -> "Figure":
    """Adjusted Rand index of every measure's clusters with roles, a panel for each layer, by the first clustering and scaling.

    Args:
        found: of ``circuits.crosscheck.cluster_agreement.compare``.
    """
    here = by_default(found)
    curves = [str(name) for name in here["curve"].values]
    layers = here["layer"].values
    with drawing(None, width=1.9 + 2.7 * len(layers), height=0.9 + 0.26 * len(curves), columns=len(layers)) as axes:
        for i, (axis, layer) in enumerate(zip(axes, layers, strict=True)):
            _indices(axis, here.sel(layer=layer), curves)
            axis.set_title(f"layer {int(layer)}", loc="left")
            axis.set_xlabel("adjusted Rand index with roles")
            axis.set_yticks(range(len(curves)), [_label(curve) for curve in curves] if i == 0 else [])
        return axes[0].figure  # type: ignore[return-value]


def _label(curve: str) -> str:
    """In a figure, the name of a detector is shortened and not that it is one."""
    if curve.startswith(DETECTED):
        return f"detector: {drawable(called(curve).removeprefix('detector: '))}"
    return drawable(called(curve))


def _indices(axis: "Axes", here: "xr.Dataset", curves: Sequence[str]) -> None:
    for y, curve in enumerate(curves):
        row = here.sel(curve=curve)
        value, low, high, smallest = (float(row[name]) for name in ("value", "low", "high", "smallest_p"))
        if not np.isfinite(value):
            axis.text(0.02, y, str(row["state"].values), color="#555555", fontsize=8, va="center")
            continue
        marker, colour = ("s", PALETTE[0]) if y == 0 else ("D", PALETTE[4]) if curve.startswith(DETECTED) else ("o", PALETTE[1])
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [y, y], color=colour, lw=1.6, alpha=0.75, label="_interval")
        inside = "white" if not smallest <= ALPHA else colour
        axis.plot(value, y, marker, mfc=inside, mec=colour, mew=1.3, ms=6, zorder=3)
    axis.axvline(0.0, color="#777777", lw=0.9, ls="--", zorder=0)
    axis.set_xlim(-0.55, 1.05)
    axis.set_ylim(len(curves) - 0.4, -0.6)


def lag_figure(lags: "xr.Dataset", near: float) -> "Figure":
    """How long after the emergence of its role each head's curve changes, in doublings of training.

    Args:
        lags: of ``circuits.crosscheck.timing.lag``. near: half the width of the band around 0, in doublings.
    """
    heads = heads_of(lags)
    with drawing(None, width=6.4, height=0.9 + 0.21 * len(heads)) as (axis,):
        axis.axvspan(-near, near, color=PALETTE[7], alpha=0.15, lw=0, label="_near")
        axis.axvline(0.0, color="#777777", lw=0.9, ls="--", zorder=0)
        seen = []
        for y, head in enumerate(heads):
            row = lags.sel(layer=head.layer, head=head.head)
            value, low, high, state = *(float(row[name]) for name in ("value", "low", "high")), str(row["state"].values)
            if not np.isfinite(value):
                where = axis.get_yaxis_transform()
                axis.text(0.99, y, state, transform=where, ha="right", va="center", fontsize=8, color="#555555")
                continue
            marker, colour = LAGS[state]
            axis.plot([low, high], [y, y], color=colour, lw=1.6, alpha=0.75, label="_interval")
            axis.plot(value, y, marker, color=colour, ms=6, zorder=3, label="_again" if state in seen else state)
            seen.append(state)
        axis.set_yticks(range(len(heads)), [str(head) for head in heads])
        axis.set_ylim(len(heads) - 0.4, -0.6)
        axis.set_xlabel("doublings of training from role to change of curve")
        if seen:
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8)
        return axis.figure  # type: ignore[return-value]
