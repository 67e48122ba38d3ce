"""Which pairs of heads compose more than chance, under every null that can say so: a reading of composition, by a stated rule.

A pair stands out if its q, the Benjamini-Hochberg adjusted p over all pairs and modes, is below ``ALPHA`` under random
orientation and under the layers' covariance. The latter asks for more than heads that write and read what their layers write
and read on the whole; real heads differ from each other more than that, so how far out a pair lies among the real pairs of its
layers (``p_layer``, ``z_layer``) is the sharper description, and no part of this rule.

A null that could not have brought any pair below ``ALPHA``, however large its score, says nothing and is left out of the rule.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

ALPHA = 0.01
NULLS = {
    "random orientation": ("p", "q", "smallest_p"),
    "the layers’ covariance": ("p_covariance", "q_covariance", "smallest_p_covariance"),
}
"""Each null that has q-values: its p, its q, and the attribute that says how small its p can be."""
GRID = ("mode", "src_layer", "src_head", "dst_layer", "dst_head")


def smallest_q(p: "np.ndarray", smallest_p: float) -> float:
    """The smallest q that any test could have had: of the best one, had its p been the smallest possible; NaN without tests."""
    p = np.sort(p[np.isfinite(p)])
    if not len(p) or not math.isfinite(smallest_p):
        return math.nan
    p[0] = min(p[0], smallest_p)
    return float(np.min(p * len(p) / np.arange(1, len(p) + 1)))


def standing_out(composition: "xr.Dataset") -> "xr.Dataset":
    """Which pairs stand out at each step.

    Args:
        composition: of a run, ``p, q, p_covariance, q_covariance`` with dims ``step`` and those of ``GRID``.

    Returns:
        ``Dataset(step, mode, src_layer, src_head, dst_layer, dst_head)``: ``value``, 1 or 0, NaN where there is no pair or no
        null can say so; and with dims ``step, null``: ``smallest_q`` that a null could have given, ``testable``, 1 if that is
        below ``ALPHA``.
    """
    import xarray as xr

    data = composition.transpose("step", *GRID, ...)
    shape = data["p"].shape
    passed, able = np.ones(shape, dtype=bool), np.zeros(shape[:1], dtype=bool)
    least = np.full((shape[0], len(NULLS)), np.nan)
    for n, (p, q, smallest_p) in enumerate(NULLS.values()):
        bound = float(data.attrs.get(smallest_p, math.nan))
        least[:, n] = [smallest_q(at, bound) for at in data[p].values]
        says = least[:, n] < ALPHA
        able |= says
        passed &= ~says.reshape(-1, *[1] * len(GRID)) | (data[q].values < ALPHA)
    known = np.isfinite(data["p"].values) & able.reshape(-1, *[1] * len(GRID))
    return xr.Dataset(
        {
            "value": (("step", *GRID), np.where(known, passed, np.nan)),
            "smallest_q": (("step", "null"), least),
            "testable": (("step", "null"), (least < ALPHA).astype(np.int64)),
        },
        coords={dim: data[dim] for dim in ("step", *GRID)} | {"null": list(NULLS)},
        attrs={
            "measure": "composition_standing_out",
            "definition": f"q < {ALPHA} under every null that could have given one below {ALPHA}",
            "source": "circuits.views.standing",
        },
    )
