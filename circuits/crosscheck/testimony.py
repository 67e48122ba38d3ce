"""What is known of the heads of one run at its last checkpoint with roles, in the form that predictions are tested on.

Effects of weights and paths are read at that checkpoint. The curve of heads is ``rllc_mix``, the coefficient on what the run was
trained on, or else the first other text's that is neither shuffled nor a divergence from another model.

    window   the checkpoints between which a role emerged, start to end
    rise     mean of a curve in [end, AROUND end] less that in [start / AROUND, start], in log time; where no checkpoint lies
             there, the nearest further out

A stage that lasts a doubling, as induction's did in the published run (8,500 to 17,000 steps), and in which a role crosses its
threshold lies within. Means see a rise that is over before the doubling is, as differences of two checkpoints do not.

When a role emerged is read from all checkpoints that have attention scores and cut induction. Brackets and memorised patterns are
measured at few, and have no say in the roles that windows are asked of, which come before them (``circuits.detectors.roles``).

Source: stages: Wang et al. 2024; the window is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.timing import Curves, level, read_curves
from circuits.crosscheck.witnesses import (
    Effects,
    Finding,
    beside_random,
    composition_effects,
    edge_effects,
    k_term_effects,
    rise_effects,
)
from circuits.dynamics.emergence import emerged, roles_over_training
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr

AROUND = 2.0
SOURCES = {
    "k_composition": "composition",
    "k_term_copying": "k_term_copying",
    "ov_copying": "weight_spectra",
    "key_edge": "edge_effects_repeats",
}
"""The result that each effect is read from."""
Window = tuple[float, float]


@dataclass(frozen=True)
class Behaviour:
    """What heads do.

    Attributes:
        role: ``(layer, head)``. confidence: likewise, NaN where it is not known. step: of the checkpoint. history: roles with
            ``step``; None where only the last are known.
    """

    role: "xr.DataArray"
    confidence: "xr.DataArray"
    step: int
    history: "xr.DataArray | None"


@dataclass
class Testimony:
    """Everything that is known of one run.

    Attributes:
        behaviour: roles. effects: those of ``SOURCES``. absent: why there is none. curves: of heads. curve: their measure.
        dated: windows, by the role that emerged in them and the head.
    """

    behaviour: Behaviour
    effects: dict[str, Effects]
    absent: dict[str, str]
    curves: Curves | None
    curve: str
    dated: dict[str, dict[Head, Window]]
    _rises: dict[Window, tuple[Effects | str, str]] = field(default_factory=dict)

    def of_head(self, name: str, head: Head) -> Finding:
        """An effect of one head."""
        return self.effects[name].of_head(head) if name in self.effects else Finding(why=self.absent[name])

    def of_pairs(self, name: str, head: Head, role: str | None = None, *, into: bool = False) -> Finding:
        """An effect of one head with any earlier head that is called so, or with any later one (``into``); None: any role."""
        names = self.behaviour.role.values
        called = [Head(layer, other) for layer, other in np.ndindex(names.shape) if role in (None, names[layer, other])]
        partners = [other for other in called if (other.layer > head.layer if into else other.layer < head.layer)]
        if not partners:
            where = "a later" if into else "an earlier"
            return Finding(
                why=f"there is no head in {where} layer" if role is None else f"no head in {where} layer is called {role}"
            )
        if name not in self.effects:
            return Finding(why=self.absent[name])
        return self.effects[name].of_pairs(head, partners, into=into)

    def windows(self, role: str, head: Head | None = None) -> list[Window]:
        """When a role emerged: in a head whose last role it is, else in every such head."""
        dated = self.dated.get(role, {})
        return [dated[head]] if head in dated else sorted(set(dated.values()))

    def rise(self, head: Head, windows: Sequence[Window]) -> Finding:
        """Whether a head's curve rises more than others' in any of some windows."""
        if self.curves is None:
            return Finding(why=self.absent["rllc_rise"])
        found = []
        for window in sorted(set(windows)):
            if window not in self._rises:
                self._rises[window] = _rises(self.curves, window)
            effects, steps = self._rises[window]
            found.append(Finding(why=effects) if isinstance(effects, str) else effects.of_head(head)._replace(partner=steps))
        return any_of(found) if found else Finding(why="no such role emerged within the run")


def read_testimony(results: "Mapping[str, xr.Dataset]", roles: "xr.DataArray | xr.Dataset | None") -> Testimony:
    """Read results.

    Raises:
        TypeError, ValueError: no results, no roles, or results of other heads than the roles'.
    """
    if not isinstance(results, Mapping) or not all(hasattr(data, "data_vars") for data in results.values()):
        raise TypeError("results are no mapping from names to Datasets: pass Evidence.results")
    behaviour = _behaviour(results, roles)
    there = {name: _at(results, source, behaviour) for name, source in SOURCES.items()}
    absent = {name: at for name, at in there.items() if isinstance(at, str)}
    found = {name: at for name, at in there.items() if not isinstance(at, str)}
    effects: dict[str, Effects] = {}
    if "k_composition" in found:
        effects["k_composition"] = composition_effects(found["k_composition"])
    if "k_term_copying" in found and "k_composition" in found:
        effects["k_term_copying"] = k_term_effects(found["k_term_copying"], effects["k_composition"])
    elif "k_term_copying" in found:
        absent["k_term_copying"] = absent["k_composition"]
    if "ov_copying" in found:
        effects["ov_copying"] = beside_random(found["ov_copying"].sel(statistic="ov_copying"))
    if "key_edge" in found:
        effects["key_edge"] = edge_effects(found["key_edge"], *behaviour.role.shape)
    curve, curves = curve_of(results), None
    if curve:
        _check_heads(curve, results[curve], behaviour.role)
        curves = read_curves(results[curve])
    else:
        absent["rllc_rise"] = "no rllc_mix and no coefficient on another text"
    return Testimony(behaviour, effects, absent, curves, curve, _dated(results, behaviour))


def curve_of(results: "Mapping[str, xr.Dataset]") -> str:
    """The name of the coefficients that stand for the run; empty if there are none."""
    names = [name for name in results if name.startswith("rllc_") and "shuffled" not in name and not name.endswith("_kl")]
    return "rllc_mix" if "rllc_mix" in names else min(names, default="")


def _behaviour(results: "Mapping[str, xr.Dataset]", roles: "xr.DataArray | xr.Dataset | None") -> Behaviour:
    import xarray as xr

    measured = results.get("head_functions")
    given = measured if roles is None else roles
    if given is None:
        raise ValueError("results have no head_functions, the roles of heads: measure them (circuits detect), or give roles")
    role = given["role"] if isinstance(given, xr.Dataset) and "role" in given else given
    if not isinstance(role, xr.DataArray) or not {"layer", "head"} <= set(role.dims) <= {"step", "layer", "head"}:
        raise ValueError("roles must be words with dims layer, head and perhaps step, such as classify_functions(...).role")
    dims = tuple(dim for dim in ("step", "layer", "head") if dim in role.dims)
    role = role.transpose(*dims).astype("U")
    last = _last(role)
    if "step" in role.dims:
        step = int(role["step"].values[-1])
    else:
        step = max((int(data["step"].values[-1]) for data in results.values() if "step" in data.dims), default=0)
    confidence = xr.full_like(last, np.nan, dtype=float)
    if isinstance(given, xr.Dataset) and "confidence" in given:
        confidence = _last(given["confidence"]).transpose("layer", "head")
    elif measured is not None and "confidence" in measured:
        # The confidence is in a role: in another one it is not known.
        same = _last(measured["role"]).transpose("layer", "head") == last
        confidence = _last(measured["confidence"]).transpose("layer", "head").where(same)
    history = role if roles is not None and "step" in role.dims else None
    if history is None:
        history = roles_over_training({name: data for name, data in results.items() if name != "bracket_scores"})
    if history is None and measured is not None and "step" in measured["role"].dims:
        history = measured["role"]
    return Behaviour(last, confidence, step, history)


def any_of(found: Sequence[Finding]) -> Finding:
    """Findings of one head of which any will do: the strongest, with p times their number and the largest ``p_less``."""
    known = [one for one in found if not one.why]
    if not known:
        return found[0] if found else Finding(why="not measured")
    best = max(known, key=lambda one: (one.present, -one.p))
    return best._replace(p=float(np.minimum(1.0, len(known) * best.p)), p_less=float(np.max([one.p_less for one in known])))


def _last(data: "xr.DataArray") -> "xr.DataArray":
    return data.sortby("step").isel(step=-1, drop=True) if "step" in data.dims else data


def _at(results: "Mapping[str, xr.Dataset]", name: str, behaviour: Behaviour) -> "xr.Dataset | str":
    """A result at the checkpoint of the roles, or why there is none."""
    if name not in results:
        return f"no {name}"
    data = results[name]
    _check_heads(name, data, behaviour.role)
    if "step" not in data.dims:
        return data
    if behaviour.step not in data["step"].values:
        return f"no {name} at step {behaviour.step}"
    return data.sel(step=behaviour.step)


def _check_heads(name: str, data: "xr.Dataset", role: "xr.DataArray") -> None:
    sizes = {str(dim): size for dim, size in data.sizes.items() if str(dim).endswith(("layer", "head"))}
    if any(size != role.sizes["layer" if dim.endswith("layer") else "head"] for dim, size in sizes.items()):
        raise ValueError(f"{name} has {sizes}, roles {dict(role.sizes)}: measure both on the same run")


def _dated(results: "Mapping[str, xr.Dataset]", behaviour: Behaviour) -> dict[str, dict[Head, Window]]:
    """The window in which each head's last role emerged, by role."""
    found: dict[str, dict[Head, Window]] = {}
    if behaviour.history is None or "step" not in behaviour.history.dims or behaviour.history.sizes["step"] < 2:
        return found
    when, last = emerged(behaviour.history), _last(behaviour.history).transpose("layer", "head")
    for layer, head in np.argwhere(np.isfinite(when["value"].values)):
        before, value = (float(when[name].values[layer, head]) for name in ("before", "value"))
        # A head that had its role at the first checkpoint that tells got it at some time since step 0.
        window = (0.0 if np.isnan(before) else before, value)
        found.setdefault(str(last.values[layer, head]), {})[Head(int(layer), int(head))] = window
    return found


def _rises(curves: Curves, window: Window) -> tuple[Effects | str, str]:
    """How much heads' curves rise over a window, or why that is not known, and the steps compared; see the top of this module."""
    steps, (start, end) = curves.steps, window
    before, after = (steps <= start) & (steps >= start / AROUND), (steps >= end) & (steps <= end * AROUND)
    if not before.any():
        before = steps == steps[steps <= start].max(initial=-1)
    if not after.any():
        after = steps == steps[steps >= end].min(initial=np.inf)
    if not (before.any() and after.any()):
        return "coefficients do not reach around it", ""
    (low, low_error), (high, high_error) = level(curves, before), level(curves, after)
    named = " to ".join("-".join(f"{step:g}" for step in dict.fromkeys(steps[part][[0, -1]])) for part in (before, after))
    return rise_effects(high - low, np.hypot(low_error, high_error)), f"steps {named}"
