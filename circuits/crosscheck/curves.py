"""The curves of a run that a cross-check lays side by side, out of its results.

    of the run     loss on held-out text, in-context score on it, the whole model's coefficient, what an exact repeat is worth,
                   and the score of the head with the highest one at the end, for previous tokens and for induction
    of every head  the refined coefficient, and what would cost less: nulls of the coefficient; the largest K-composition with a
                   head of the layer below or above; scores of the detectors that roles by attention rest on

What was not measured is left out. Errors are standard errors over examples or draws; composition is exact.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.testimony import curve_of

if TYPE_CHECKING:
    import xarray as xr

NULLS = ("hessian_trace", "fisher_trace", "noise_loss", "weight_norm", "ablation_loss")
DETECTORS = ("previous_token", "current_token", "duplicate_token", "induction")
RISING = ("previous_token", "induction")
FALLS = ("loss", "in_context_score")
"""Curves of the run that fall as they emerge: the score is late less early loss."""
HEAD = ("step", "layer", "head")


def run_curves(results: "Mapping[str, xr.Dataset]") -> "dict[str, xr.Dataset]":
    """The curves of a run, each with ``value`` and ``stderr`` over ``step``."""
    found: dict[str, xr.Dataset] = {}
    if "loss_curves" in results:
        losses = _measured(results["loss_curves"])
        kinds = [str(kind) for kind in losses["corpus"].values]
        chosen = losses.sel(corpus="code" if "code" in kinds else kinds[0], drop=True)
        found["loss"] = _pair(chosen, "loss", "loss_stderr")
        found["in_context_score"] = _pair(chosen, "in_context_learning_score", "in_context_learning_score_stderr")
    whole = next((name for name in sorted(results) if name.startswith("llc_")), None)
    if whole is not None:
        found["llc"] = _pair(_measured(results[whole]), "value", "stderr")
    if "repeat_loss" in results:
        found["repeat_gain"] = _pair(_measured(results["repeat_loss"]), "value", "stderr")
    if "attention_scores" in results:
        scores = _measured(results["attention_scores"])
        for detector in RISING:
            of = scores.sel(detector=detector, drop=True)
            layer, head = np.unravel_index(
                np.nanargmax(of["value"].isel(step=-1).transpose(*HEAD[1:]).values), (of.sizes["layer"], of.sizes["head"])
            )
            found[f"strongest_{detector}"] = _pair(of.isel(layer=layer, head=head, drop=True), "value", "stderr")
    return {name: curve for name, curve in found.items() if curve.sizes["step"] > 1}


def head_curves(results: "Mapping[str, xr.Dataset]") -> "dict[str, xr.Dataset]":
    """The curves of every head, with ``value`` and where known ``stderr`` over ``step, layer, head``; ``rllc`` first."""
    found: dict[str, xr.Dataset] = {}
    name = curve_of(results)
    if name:
        found["rllc"] = _pair(_measured(results[name]), "value", "stderr")
        nulls = results.get(f"nulls_{name.removeprefix('rllc_')}")
        if nulls is not None:
            known = [kind for kind in NULLS if kind in nulls["kind"].values]
            found |= {kind: _pair(_measured(nulls).sel(kind=kind, drop=True), "value", "stderr") for kind in known}
    if "composition" in results:
        found["k_composition"] = _largest_composition(_measured(results["composition"]))
    if "attention_scores" in results:
        scores = _measured(results["attention_scores"])
        known = [detector for detector in DETECTORS if detector in scores["detector"].values]
        found |= {
            f"attention_{detector}": _pair(scores.sel(detector=detector, drop=True), "value", "stderr") for detector in known
        }
    return {name: curve for name, curve in found.items() if curve.sizes["step"] > 1}


def _measured(data: "xr.Dataset") -> "xr.Dataset":
    """A result at the checkpoints that have data."""
    return data.isel(step=np.flatnonzero(data["status"].values == "ok")) if "status" in data else data


def _pair(data: "xr.Dataset", value: str, stderr: str) -> "xr.Dataset":
    return data[[value, stderr]].rename({old: new for old, new in ((value, "value"), (stderr, "stderr")) if old != new})


def _largest_composition(data: "xr.Dataset") -> "xr.Dataset":
    """Each head's largest K-composition with any head of another layer, as reader or writer."""
    import xarray as xr

    pairs = data["value"].sel(mode="K", drop=True)
    writes = pairs.max(("dst_layer", "dst_head")).rename(src_layer="layer", src_head="head")
    reads = pairs.max(("src_layer", "src_head")).rename(dst_layer="layer", dst_head="head")
    largest = np.fmax(writes.transpose(*HEAD), reads.transpose(*HEAD))
    return xr.Dataset({"value": largest})
