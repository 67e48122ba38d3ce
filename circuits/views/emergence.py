"""When the role of a head emerged: between which measured checkpoints it became, for good, what it is at the end."""

from typing import TYPE_CHECKING

import numpy as np

from circuits.detectors.roles import NONE, NOT_MEASURED

if TYPE_CHECKING:
    import xarray as xr


def emerged(functions: "xr.Dataset") -> "xr.Dataset":
    """Between which two measured checkpoints each head's last role emerged.

    A role has *emerged* at the first measured checkpoint from which on the head has its last role at every measured one. The
    answer is a bracket of neighbouring measured checkpoints; nothing is interpolated, so few checkpoints give wide brackets.

    Args:
        functions: ``role`` with dims ``step, layer, head``, as ``classify_functions`` gives it.

    Returns:
        ``Dataset(layer, head)``: ``value``, the step at which the role had emerged, and ``before``, the measured step before that
        (NaN if the head had it from the first); both NaN for a head without a role, or without data at the last checkpoint.
    """
    import xarray as xr

    role = functions["role"].transpose("step", "layer", "head")
    steps, names = role["step"].values, role.values
    value, before = np.full(names.shape[1:], np.nan), np.full(names.shape[1:], np.nan)
    for at in np.ndindex(value.shape):
        history = names[:, *at]
        measured = np.flatnonzero(history != NOT_MEASURED)
        if history[-1] in (NONE, NOT_MEASURED):
            continue
        differs = np.flatnonzero(history[measured] != history[-1])
        first = int(differs[-1]) + 1 if len(differs) else 0
        value[at] = steps[measured[first]]
        before[at] = steps[measured[first - 1]] if first else np.nan
    dims = ("layer", "head")
    return xr.Dataset(
        {"value": (dims, value), "before": (dims, before)},
        coords={dim: role[dim] for dim in dims},
        attrs={
            "measure": "function_emergence",
            "definition": "first measured step from which on the head has its last role; before: the measured step before",
            "source": "circuits.views.emergence",
            "units": "training steps",
            "n_checkpoints": len(steps),
        },
    )
