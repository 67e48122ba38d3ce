"""When a head's score formed, and which heads stand out: readings of detector scores over training, by stated rules."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from circuits.detectors.classify import classify
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr


def last_measured(data: "xr.Dataset") -> int:
    """The last step of a swept result that has data.

    Raises:
        ValueError: no step has.
    """
    measured = data["step"].values[data["status"].values == "ok"]
    if not len(measured):
        raise ValueError("no checkpoint was measured; see the reasons beside each step")
    return int(measured[-1])


def last_common(*results: "xr.Dataset") -> int:
    """The last step at which every one of several swept results has data.

    Raises:
        ValueError: there is none.
    """
    steps = [set(data["step"].values[data["status"].values == "ok"].tolist()) for data in results]
    common = set.intersection(*steps)
    if not common:
        raise ValueError("no checkpoint has all that is needed here; see the reasons beside each step")
    return int(max(common))


def formation(scores: "xr.Dataset") -> "xr.Dataset":
    """Between which two checkpoints each score formed.

    A score has *formed* at the first measured step from which on it stays at or above halfway between chance and its
    value at the last measured step. The answer is a bracket of neighbouring checkpoints; nothing is interpolated.

    Args:
        scores: what ``detect`` returned for a run: ``value`` and ``chance``, dims ``step, layer, head, detector``.

    Returns:
        ``Dataset(layer, head, detector)``: ``value``, the step at which it has formed, and ``before``, the measured step
        before that (NaN if it was there from the first); both NaN where the last value does not exceed chance by two
        standard errors.
    """
    import xarray as xr

    kept = scores.isel(step=np.flatnonzero(scores["status"].values == "ok")).transpose("step", "layer", "head", "detector", ...)
    steps, value = kept["step"].values, kept["value"].values
    chance = kept["chance"].broadcast_like(kept["value"]).transpose("step", "layer", "head", "detector").values
    excess = value - chance
    high = excess >= excess[-1] / 2
    stays = np.flip(np.logical_and.accumulate(np.flip(high, 0), 0), 0)
    first = stays.argmax(0)
    clear = excess[-1] > 2 * np.nan_to_num(kept["stderr"].values[-1], nan=np.inf)
    dims = ("layer", "head", "detector")
    return xr.Dataset(
        {
            "value": (dims, np.where(clear, steps[first], np.nan)),
            "before": (dims, np.where(clear & (first > 0), steps[np.maximum(first - 1, 0)], np.nan)),
        },
        coords={dim: kept[dim] for dim in dims},
        attrs={
            "measure": "formation",
            "definition": "first step from which the score stays at or above halfway between chance and its last value; "
            "before: the step before",
            "source": "circuits.views.formation",
            "units": "training steps",
        },
    )


def roles_at(results: "Mapping[str, xr.Dataset]", step: int) -> dict[Head, str]:
    """Every head's role at a step, from the derived ``head_roles`` or, without them, from the detector scores."""
    found = results["head_roles"] if "head_roles" in results else classify(results["attention_scores"])
    role = found["role"].sel(step=step)
    return {
        Head(int(x), int(h)): str(role.sel(layer=x, head=h).values) for x in role["layer"].values for h in role["head"].values
    }


def strongest(scores: "xr.Dataset", detector: str) -> Head:
    """The head with the largest score of a detector, in a result without ``step``."""
    value = scores["value"].sel(detector=detector).transpose("layer", "head")
    layer, head = np.unravel_index(int(np.nan_to_num(value.values, nan=-np.inf).argmax()), value.shape)
    return Head(int(value["layer"].values[layer]), int(value["head"].values[head]))
