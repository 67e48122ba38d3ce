"""Every reading of a run's trajectory at once: its snap, its bounce, and the law by which it grows after.

See ``circuits.dynamics.snap``, ``circuits.dynamics.bounce`` and ``circuits.dynamics.growth``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.dynamics.bounce import CLEAR, drop_and_bounce
from circuits.dynamics.growth import POINTS, growth_law
from circuits.dynamics.snap import DIFFUSED, SLOW, SUSTAINED, Snap, schedule_time, snap
from circuits.results import array_hash, labelled

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class _Readings:
    """What made a result of ``read_trajectory``: the schedule, by hash, and the rules."""

    schedule: str

    name = "snap"
    version = 1

    def spec(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "slow": SLOW, "sustained": SUSTAINED, "diffused": DIFFUSED, "clear": CLEAR}


def read_trajectory(data: "xr.Dataset", *, rates: Float[np.ndarray, "update"] | None = None) -> "xr.Dataset":
    """Every reading for each head (or whatever other dims there are) of a run.

    Args:
        data: over ``step`` and any other dims: ``distance``, that of each checkpoint from the one before (at the first: ignored);
        where known ``entropy`` with ``entropy_stderr`` (nats), and ``logit``, such as the largest attention logit. Steps whose
        ``status`` is not "ok" are left out. rates: of every update, see ``schedule_time``; None: constant.

    Returns:
        ``Dataset`` of the other dims: ``value``, the step of the snap; ``before``, ``peak``, ``freeze_ratio``, ``returns`` and
        ``state``, see ``Snap``; ``law`` of the logit after the snap and its ``margin``, see ``Growth`` ("none" and NaN without a
        snap, a logit, or 6 checkpoints after it); ``minimum``, the step of least entropy, ``drop``, ``bounce``, ``ratio``, their
        ``_stderr`` and ``bounce_state``, see ``Bounce``. No reading is NaN without a word beside it.

    Raises:
        ValueError: no ``distance`` over ``step``, fewer than 4 checkpoints with data, or a schedule that is too short.
    """
    import xarray as xr

    if "distance" not in data or "step" not in data["distance"].dims:
        raise ValueError(
            f"data has {', '.join(map(str, data)) or 'nothing'}; need 'distance' over 'step': see attention_distance"
        )
    if "status" in data:
        data = data.isel(step=np.flatnonzero(data["status"].values == "ok"))
    known = [name for name in ("distance", "entropy", "entropy_stderr", "logit") if name in data]
    whole = dict(zip(known, xr.broadcast(*(data[name].astype(float) for name in known)), strict=True))
    dims = tuple(str(dim) for dim in whole["distance"].dims if dim != "step")
    steps = data["step"].values
    table = {name: values.transpose("step", *dims).values.reshape(len(steps), -1) for name, values in whole.items()}
    unknown = np.full_like(table["distance"], np.nan)
    distance, entropy, errors, logit = (table.get(name, unknown) for name in ("distance", "entropy", "entropy_stderr", "logit"))
    time = None if rates is None else schedule_time(steps, rates)
    clock = steps.astype(float) if rates is None or time is None else time / rates.max()  # in steps at the largest rate
    columns: dict[str, list[Any]] = {}
    for i in range(distance.shape[1]):
        found, fall = snap(distance[1:, i], steps, time), drop_and_bounce(entropy[:, i], errors[:, i])
        law, margin = _law_after(found, steps, clock, logit[:, i])
        row = {"value": found.at, **found._asdict(), "law": law, "margin": margin, **fall._asdict()}
        row |= {"state": found.state, "bounce_state": fall.state, "minimum": float(steps[fall.at]) if fall.at >= 0 else np.nan}
        del row["at"]
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    per = "step, the learning rate taken for constant" if rates is None else "sum of learning rates"
    return labelled(
        {name: (dims, np.array(values).reshape([data.sizes[dim] for dim in dims])) for name, values in columns.items()},
        {dim: data[dim] for dim in dims if dim in data.coords},
        measure=_Readings("constant" if rates is None else array_hash(rates)),
        definition=f"first step after the fastest interval from which velocity (per {per}) is below {SLOW} of it for {SUSTAINED} "
        "intervals",
        source="circuits.dynamics.snap, after Tian et al. 2023 and 2023b",
        units="training steps",
    )


def _law_after(found: Snap, steps: np.ndarray, clock: np.ndarray, logit: np.ndarray) -> tuple[str, float]:
    after = (steps >= found.at) & (clock > 1)  # none where ``at`` is NaN
    if after.sum() < POINTS or np.isnan(logit[after]).any():
        return "none", np.nan
    growth = growth_law(clock[after], logit[after])
    return growth.law, growth.margin
