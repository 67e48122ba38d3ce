"""When something happened in a run, between which two checkpoints; and the stages that its events make.

An event lies after ``before`` and by ``at``, two neighbouring measured checkpoints; ``point`` is between them by a straight
line. Events of a curve ``x`` are crossings: with ``i`` the place of its maximum, the first checkpoint from which on ``x`` stays
at or above a level up to ``i``.

    half-maximum   the level is x(i) / 2, literally (in the authors' series: 11.3k and 11.9k for previous-token heads, 13.8k and
                   14.5k for induction heads)
    half-rise      the level is halfway from the least x before i to x(i); *formed*: nine tenths of that way
    flattest span  of all pairs of checkpoints s < t from the minimum of the cross-entropy to bigrams to the first induction
                   head's half-maximum, with t >= 1.2 s, the one over which the whole model's coefficient rises least, as a share
                   of itself

Stages are those of Wang et al. by these events: LM1 ends at the minimum to bigrams, LM2 where the flattest span starts, LM3
where it ends, LM4 when the first induction head has formed, LM5 at T. In the authors' series the span is from 6.7k to 8.7k, a
fall of 1.1%; they end LM2 and LM3 at 6.5k and 8.5k.

Excluded: errors of examples in the time of an event, as all checkpoints share the examples.

Source: Wang et al. 2024; Hoogland et al. 2024, who read stages off the smoothed curve of the coefficient; events are ours.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits.crosscheck.claims_llc_reading import attention, result, text_in
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Lacking

if TYPE_CHECKING:
    import xarray as xr

HALF, FORMED = 0.5, 0.9
SPAN = 1.2
"""What a stretch must span in time to be a stage: the shortest of the paper's, LM3, spans 1.3."""


class When(NamedTuple):
    """An event: after ``before``, by ``at``; ``point`` by a straight line between the two."""

    before: float
    at: float
    point: float


class Stages(NamedTuple):
    """The ends of LM1 to LM4, each a measured checkpoint; and among how many spans the flattest was chosen."""

    bigrams: float
    pause: float
    resume: float
    formed: float
    spans: int


def crossing(steps: np.ndarray, curve: np.ndarray, level: float) -> When:
    """The first checkpoint from which on a curve stays at or above a level up to its maximum."""
    below = np.flatnonzero(curve[: int(curve.argmax()) + 1] < level)
    if not len(below):
        first = float(steps[0])
        return When(first, first, first)
    i = int(below[-1])
    before, at = float(steps[i]), float(steps[i + 1])
    return When(before, at, before + (at - before) * float((level - curve[i]) / (curve[i + 1] - curve[i])))


def half_maximum(steps: np.ndarray, curve: np.ndarray) -> When:
    """When a curve reached half of its maximum."""
    return crossing(steps, curve, float(curve.max()) / 2)


def risen(steps: np.ndarray, curve: np.ndarray, share: float) -> When:
    """When a curve had come a share of the way from its least value before the maximum."""
    low, high = float(curve[: int(curve.argmax()) + 1].min()), float(curve.max())
    if not low < high:
        raise Lacking("a curve that should rise never does")
    return crossing(steps, curve, low + share * (high - low))


def formed(steps: np.ndarray, curve: np.ndarray) -> When:
    """When a curve had come nine tenths of the way."""
    return risen(steps, curve, FORMED)


def first_head(run: Evidence, detector: str, role: str, when: Callable[[np.ndarray, np.ndarray], When], layers: str) -> When:
    """When the first of the heads with a role reached an event of its own curve."""
    steps, curves = attention(run, detector, role, layers)
    return min((when(steps, curve) for curve in curves.T), key=lambda event: event.point)


def bigram_minimum(run: Evidence) -> When:
    """When the cross-entropy to bigrams was least: between the checkpoints beside the one with the minimum."""
    data = result(run, "predictor_loss")
    if 2 not in data["order"].values:
        raise Lacking("predictor_loss has no bigrams")
    value = data["value"].sel(corpus=text_in(data), order=2).values.astype(np.float64)
    steps, value = data["step"].values[np.isfinite(value)].astype(float), value[np.isfinite(value)]
    if len(value) < 3:
        raise Lacking("the cross-entropy to bigrams was measured at fewer than three checkpoints")
    i = int(value.argmin())
    return When(float(steps[max(i - 1, 0)]), float(steps[min(i + 1, len(steps) - 1)]), float(steps[i]))


def whole(run: Evidence) -> "xr.Dataset":
    """The whole model's coefficient at the checkpoints that have one: on the training mix, or on the text there is."""
    names = [name for name in ("llc_mix", *sorted(run.results)) if name.startswith("llc_") and name in run.results]
    data = result(run, names[0] if names else "llc_mix")
    there = np.isfinite(data["value"].values) & np.isfinite(data["stderr"].values)
    return data.isel(step=np.flatnonzero(there))


def stages(run: Evidence) -> Stages:
    """The stages of a run, by the events at the top of this module."""
    start, half = bigram_minimum(run).point, first_head(run, "induction", "induction", half_maximum, "L1").at
    end = first_head(run, "induction", "induction", formed, "L1").at
    data = whole(run)
    at, value = data["step"].values.astype(float), data["value"].values.astype(np.float64)
    inside = (at >= start) & (at <= half)
    first, second = np.triu_indices(int(inside.sum()), 1)
    at, value = at[inside], value[inside]
    enough = at[second] >= SPAN * np.maximum(at[first], 1.0)
    first, second = first[enough], second[enough]
    if not len(first) or value.min() <= 0:
        why = "is not above 0" if len(first) else "was measured at too few checkpoints"
        raise Lacking(f"the whole model's coefficient {why} between {start:g} and {half:g}, the minimum to bigrams and induction")
    i = int((value[second] / value[first]).argmin())
    found = Stages(start, float(at[first[i]]), float(at[second[i]]), end, len(first))
    if not all(a <= b for a, b in pairwise(found[:4])):
        raise Lacking(f"its stages do not follow each other: they would end at {', '.join(f'{one:g}' for one in found[:4])}")
    return found
