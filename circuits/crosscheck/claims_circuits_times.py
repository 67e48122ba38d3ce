"""When a curve over training changes: its steepest rise, its least value, and where a loss begins to fall faster again.

    u        log2(1 + step / unit), doublings of training; unit is the first checkpoint after step 0
    rise     at u: y(u + WIDTH / 2) - y(u - WIDTH / 2), y straight in u between checkpoints
    change   where the rise is largest; of a stretch with equal rises, as between two checkpoints that are far apart, the middle
    bump     of a loss y, which falls: where the fall is fastest behind a lull, a place that falls more slowly than some place
             before it and some place after. Of all lulls the deepest counts; its depth, ``min(fastest before, fastest after) -
             fall there``, is the bump's size. A loss whose fall sets in and then only slows down has none
    least    the checkpoint with the least value

Checkpoints scatter about the curve, as examples and batches do. The scatter's variance is the median over checkpoints of the
square of ``y_i - (line through its neighbours)``, over what it is for noise of variance 1; a curve that bends everywhere has
rather too large a one. Intervals are 2.5% to 97.5% of curves with as much noise added, and reach on to the checkpoints around:
between two checkpoints nothing was seen, and two events between the same two are not in order.

Together by chance: of ``k`` changes anywhere in ``U`` doublings a span of ``s`` or less has probability ``k x^(k-1) - (k-1)
x^k``, ``x = s / U``. In order by chance: each of ``k!`` orders has the same probability.

Sources: Olsson et al. 2022, argument 1 (the bump is the only place where the loss is not convex); change as the largest
derivative in log steps: ``docs/decisions/0012``; scatter: Gasser, Sroka & Jennen-Steinmetz 1986.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from circuits.crosscheck.verdict import Lacking, Reading

WIDTH = 0.5
"""Half a doubling."""
DRAWS = 400
PLACES = 400
FEWEST = 5
"""Checkpoints that a curve must have."""


class Event(NamedTuple):
    """When something happened, in doublings, its interval, and when in curves with noise added; ``size`` of a bump."""

    at: float
    low: float
    high: float
    drawn: Float[np.ndarray, "draw"]
    size: float = 0.0


def doublings(steps: Real[np.ndarray, "step"]) -> Float[np.ndarray, "step"]:
    """``log2(1 + step / unit)``."""
    later = np.asarray(steps, dtype=np.float64)[np.asarray(steps) > 0]
    if len(steps) < FEWEST or len(later) < 2:
        raise Lacking(f"a change over training needs {FEWEST} checkpoints, and there are {len(steps)}")
    return np.log2(1 + np.asarray(steps, dtype=np.float64) / later.min())


def change(steps: Real[np.ndarray, "step"], curve: Float[np.ndarray, "step"], *, seed: int = 0) -> Event:
    """Where a curve rises most."""
    u = doublings(steps)
    middle, rises = _rises(u, _drawn(u, curve, seed))
    return _event(u, [_middle_of_ties(middle, rise) for rise in rises])


def least(steps: Real[np.ndarray, "step"], curve: Float[np.ndarray, "step"], *, seed: int = 0) -> Event:
    """Where a curve is lowest."""
    u = doublings(steps)
    return _event(u, u[_drawn(u, curve, seed).argmin(1)].tolist())


def bump(steps: Real[np.ndarray, "step"], loss: Float[np.ndarray, "step"], *, seed: int = 0) -> Event:
    """Where a loss falls faster again."""
    u = doublings(steps)
    middle, rises = _rises(u, _drawn(u, loss, seed))
    found = [_behind_lull(middle, -rise) for rise in rises]
    return _event(u, [at for at, _ in found])._replace(size=found[0][1])


def together(u: Float[np.ndarray, "step"], events: Sequence[Event], note: str = "") -> Reading:
    """How far apart changes are, as a share of the run's doublings."""
    whole, k = float(u[-1] - u[0]), len(events)
    span = float(np.ptp([event.at for event in events]))
    low, high = np.quantile(np.ptp([event.drawn for event in events], axis=0), [0.025, 0.975])
    seen = max(_gap_at(u, event.at) for event in events)

    def chance(s: float) -> float:
        x = min(s / whole, 1.0)
        return k * x ** (k - 1) - (k - 1) * x**k

    nearest, farthest = max(0.0, min(float(low), span) - seen), min(whole, max(float(high), span) + seen)
    return Reading(span / whole, nearest / whole, farthest / whole, chance(max(span, seen)), chance(seen), note)


def in_order(u: Float[np.ndarray, "step"], events: Sequence[Event], note: str = "") -> Reading:
    """How many pairs of events come in the order in which they are given, and between which numbers for all that is known."""
    points = np.array([[event.at, *event.drawn] for event in events])
    first, second = np.triu_indices(len(events), 1)
    before = points[first] < points[second]
    gap = np.searchsorted(u, points)
    untold = gap[first] == gap[second]
    surely, perhaps = (before & ~untold).sum(0), (before | untold).sum(0)
    value = int(before[:, 0].sum())
    low, high = min(float(np.quantile(surely, 0.025)), value), max(float(np.quantile(perhaps, 0.975)), value)
    orders = np.array(list(permutations(range(len(events)))))
    counts = (orders[:, first] < orders[:, second]).sum(1)
    return Reading(float(value), low, high, float(np.mean(counts >= value)), 1 / len(orders), note)


def scatter(u: Float[np.ndarray, "step"], curve: Float[np.ndarray, "step"]) -> float:
    """The standard deviation of checkpoints about the curve."""
    right = (u[1:-1] - u[:-2]) / (u[2:] - u[:-2])
    off = curve[1:-1] - (1 - right) * curve[:-2] - right * curve[2:]
    # The median of the square of a normal number of variance 1 is .4549.
    return float(np.sqrt(np.median(np.square(off) / (1 + (1 - right) ** 2 + right**2)) / 0.4549))


def _drawn(u: np.ndarray, curve: np.ndarray, seed: int) -> Float[np.ndarray, "draw step"]:
    """The curve, and as it might have been."""
    if not np.isfinite(curve).all():
        raise Lacking("a curve over training has checkpoints without a value")
    noise = np.random.default_rng([seed, 12]).standard_normal((DRAWS, len(u)))
    return np.concatenate([curve[None], curve + scatter(u, curve) * noise])


def _rises(u: np.ndarray, curves: Float[np.ndarray, "draw step"]) -> tuple[np.ndarray, np.ndarray]:
    half = min(WIDTH, float(u[-1] - u[0]) / 4) / 2
    middle = np.linspace(u[0] + half, u[-1] - half, PLACES)
    rises = [np.interp(middle + half, u, curve) - np.interp(middle - half, u, curve) for curve in curves]
    return middle, np.array(rises)


def _middle_of_ties(middle: np.ndarray, rise: np.ndarray) -> float:
    tied = middle[rise >= rise.max() - 1e-9 * np.ptp(rise)]
    return float((tied[0] + tied[-1]) / 2)


def _behind_lull(middle: np.ndarray, fall: np.ndarray) -> tuple[float, float]:
    """Where the fall is fastest behind the deepest lull, and how deep that is."""
    before, after = np.maximum.accumulate(fall), np.maximum.accumulate(fall[::-1])[::-1]
    depth = np.minimum(before, after) - fall
    lull = int(depth.argmax())
    return float(middle[lull + int(fall[lull:].argmax())]), float(depth[lull])


def _event(u: np.ndarray, found: Sequence[float]) -> Event:
    """The first is the curve's own, the others are of drawn curves."""
    low, high = np.quantile(found[1:], [0.025, 0.975])
    low, high = min(float(low), found[0]), max(float(high), found[0])
    before, after = u[u <= low + 1e-9], u[u >= high - 1e-9]
    return Event(found[0], float(before[-1]), float(after[0]), np.array(found[1:]))


def _gap_at(u: np.ndarray, point: float) -> float:
    right = int(np.clip(np.searchsorted(u, point), 1, len(u) - 1))
    return float(u[right] - u[right - 1])
