"""When the role of a head emerged: between which measured checkpoints it became, for good, what it is at the end.

Roles need several measures at a checkpoint, and counting memorised patterns takes longest by far. Where that alone is missing,
the rule of ``detectors/roles.py`` still tells the roles that come before "multigram": these hold whatever the count. A head with
none of them is multigram, resting or none there, which is ``UNDECIDED``: enough to say that a head is not yet a previous-token
head, too little to date a multigram head.
"""

from typing import TYPE_CHECKING

import numpy as np

from circuits.detectors.roles import NONE, NOT_MEASURED, ROLES, classify_functions
from circuits.dynamics.functions import ROLE_MEASURES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr

UNDECIDED = "multigram, resting or none"
DECIDED = ROLES[: ROLES.index("multigram")]
"""Roles that come before those which the number of memorised patterns has a say in."""


def roles_over_training(results: "Mapping[str, xr.Dataset]") -> "xr.DataArray | None":
    """Roles at every checkpoint that has the other measures, ``UNDECIDED`` where only the count of patterns would tell.

    Args:
        results: what the report measured, by name. None where one of the measures is missing altogether; a run without brackets
            has roles without them.
    """
    given = {argument: results[name] for argument, name in ROLE_MEASURES.items() if name in results}
    if not set(ROLE_MEASURES) - {"brackets"} <= given.keys():
        return None
    measured = {name: set(data["step"].values[data["status"].values == "ok"].tolist()) for name, data in given.items()}
    counted = measured.pop("multigrams")
    steps = sorted(set.intersection(*measured.values()))
    if not steps:
        return None
    at = {name: data.reindex(step=steps) if name == "multigrams" else data.sel(step=steps) for name, data in given.items()}
    role = classify_functions(at["scores"], at["induction_cut"], at["multigrams"], at.get("brackets"), draws=1)["role"]
    unknown = ~role["step"].isin(list(counted)) & ~role.isin([*DECIDED, NOT_MEASURED])
    return role.where(~unknown, UNDECIDED)


def emerged(role: "xr.DataArray") -> "xr.Dataset":
    """Between which two measured checkpoints each head's last role emerged.

    A role has *emerged* at the first measured checkpoint from which on the head has its last role at every measured one. The
    answer is a bracket of neighbouring measured checkpoints; nothing is interpolated, so few checkpoints give wide brackets.
    Checkpoints that do not tell, because data or the count of patterns are missing there, are passed over.

    Args:
        role: names with dims ``step, layer, head``, of ``roles_over_training`` or of ``classify_functions``.

    Returns:
        ``Dataset(layer, head)``: ``value``, the step at which the role had emerged, ``before``, the measured step before that
        (NaN if the head had it from the first), and ``n_checkpoints`` that tell. The steps are NaN for a head without a role at
        the last checkpoint, and where fewer than two checkpoints tell.
    """
    import xarray as xr

    role = role.transpose("step", "layer", "head")
    steps, names = role["step"].values, role.values
    value, before = np.full(names.shape[1:], np.nan), np.full(names.shape[1:], np.nan)
    telling = np.zeros(names.shape[1:], dtype=np.int64)
    for at in np.ndindex(value.shape):
        history, last = names[:, *at], names[-1, *at]
        silent = (NOT_MEASURED,) if last in DECIDED else (NOT_MEASURED, UNDECIDED)
        tells = np.flatnonzero(~np.isin(history, silent))
        telling[at] = len(tells)
        if last in (NONE, NOT_MEASURED, UNDECIDED) or len(tells) < 2:
            continue
        differs = np.flatnonzero(history[tells] != last)
        first = int(differs[-1]) + 1 if len(differs) else 0
        value[at] = steps[tells[first]]
        before[at] = steps[tells[first - 1]] if first else np.nan
    dims = ("layer", "head")
    return xr.Dataset(
        {"value": (dims, value), "before": (dims, before), "n_checkpoints": (dims, telling)},
        coords={dim: role[dim] for dim in dims},
        attrs={
            "measure": "function_emergence",
            "definition": "first measured step from which on the head has its last role; before: the measured step before",
            "source": "circuits.dynamics.emergence",
            "units": "training steps",
        },
    )
