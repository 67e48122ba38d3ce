"""In which order events happened, as far as their errors tell.

In each draw every event has a time, drawn together with the others. ``a`` is before ``b`` in a draw where the first checkpoint
after ``a``, of its curve, is not later than the last one before ``b``, of its: between two checkpoints nothing was seen.

    p        2 (1 + draws in which a is not before b) / (1 + draws), or with a and b exchanged if that is less; at most 1
    verdict  "before" or "after" where p passes Holm's correction for the number of pairs, else "undecided"; "untestable" where
             the smallest p that so many draws can give would not pass it
    order    the one that most draws have, "=" between neighbours in time that are not told apart

These are errors of measurement within one run. Whether another run has the same order is asked of seeds: ``order_over_seeds``.

Source: Holm 1979; bootstrap tests, Efron & Tibshirani 1993, chapter 16. The papers on these events give no errors of an
order.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

LEVEL = 0.05


class Order(NamedTuple):
    """What draws say of the order.

    Attributes:
        before: ``[a, b]``, the share of draws in which ``a`` is before ``b``, 0 to 1; both may be small, for events that are not
        told apart. p: of each pair, NaN for pairs that were not tested. verdict: of ``a`` against ``b``. smallest_p: that could
        have been. order: the most probable, in names. confidence: the share of draws that have it.
    """

    before: Float[np.ndarray, "event other"]
    p: Float[np.ndarray, "event other"]
    verdict: np.ndarray
    smallest_p: float
    order: str
    confidence: float


def order_of_events(
    times: Float[np.ndarray, "draw event"],
    names: Sequence[str],
    checkpoints: Sequence[Real[np.ndarray, "_"]] | None = None,
    *,
    groups: Sequence[object] | None = None,
    level: float = LEVEL,
) -> Order:
    """The order of events, by the rule at the top of this module.

    Args:
        times: steps, from draws in which all events were drawn together; independent events in any pairing. names: of them.
        checkpoints: of each event's curve; None: times are known as they are. groups: events of one group are in order by
        construction, such as the boundaries of one curve: their verdict is "given", and they do not count as pairs.
        level: of all verdicts together, the chance of a wrong one.

    Raises:
        ValueError: fewer than two events, names that are not one for each or not different, or a time that is NaN.
    """
    draws, events = times.shape
    if events < 2 or len(names) != events or len(set(names)) != events:
        raise ValueError(f"{events} events and {len(set(names))} different names; give at least two events, and a name for each")
    if np.isnan(times).any():
        lost = [names[i] for i in range(events) if np.isnan(times[:, i]).any()]
        raise ValueError(f"{', '.join(lost)} has draws without a time; leave out events that did not happen")
    early, late = times.copy(), times.copy()
    for i, grid in enumerate(checkpoints or ()):
        early[:, i] = np.r_[-np.inf, grid][np.searchsorted(grid, times[:, i], side="right")]
        early[times[:, i] <= grid[0], i] = -np.inf  # there from the start, or since before
        late[:, i] = grid[np.minimum(np.searchsorted(grid, times[:, i], side="left"), len(grid) - 1)]
    # Late is never before early, so only where both are one time do the two differ.
    apart = (late[:, :, None] <= early[:, None, :]) & (times[:, :, None] < times[:, None, :])
    before = apart.mean(0)
    pairs = [(a, b) for a, b in combinations(range(events), 2) if groups is None or groups[a] != groups[b]]
    p, verdict = np.full((events, events), np.nan), np.full((events, events), "given", dtype="<U10")
    np.fill_diagonal(verdict, "same")
    smallest = 2 / (1 + draws)
    one_sided = (1 + draws - apart.sum(0)) / (1 + draws)
    values = np.array([min(1.0, 2 * one_sided[a, b], 2 * one_sided[b, a]) for a, b in pairs])
    passed = _holm(values, level)
    for (a, b), value, clear in zip(pairs, values, passed, strict=True):
        p[a, b] = p[b, a] = value
        unclear = "untestable" if smallest > level / len(pairs) else "undecided"
        first = before[a, b] > before[b, a]
        verdict[a, b], verdict[b, a] = (("before", "after") if first else ("after", "before")) if clear else (unclear, unclear)
    orders = Counter(_written(row, apart[d], names) for d, row in enumerate(times))
    order, count = min(orders.items(), key=lambda item: (-item[1], item[0]))
    return Order(before, p, verdict, smallest, order, count / draws)


def order_over_seeds(times: Float[np.ndarray, "seed event"]) -> tuple[np.ndarray, np.ndarray]:
    """In how many training seeds each event is before each other, ``[a, b]``, and p of a two-sided sign test.

    Seeds in which one of the two is missing (NaN), or both are at one time, do not count. Of ``n`` seeds the smallest p is
    ``2^(1 - n)``: three give 0.25 at best, so that no order is testable with fewer than six.
    """
    from scipy import stats

    counts = (times[:, :, None] < times[:, None, :]).sum(0)
    p = np.full(counts.shape, np.nan)
    for a, b in combinations(range(len(counts)), 2):
        told = int(counts[a, b] + counts[b, a])
        p[a, b] = p[b, a] = stats.binomtest(int(counts[a, b]), told).pvalue if told else 1.0
    return counts, p


def _holm(p: np.ndarray, level: float) -> np.ndarray:
    """Which hypotheses fall: in order of p, the k-th at ``level / (m - k + 1)``, until the first that stands."""
    rank = p.argsort(kind="stable")
    falls = np.logical_and.accumulate(p[rank] <= level / np.arange(len(p), 0, -1))
    out = np.zeros(len(p), bool)
    out[rank[falls]] = True
    return out


def _written(times: np.ndarray, apart: np.ndarray, names: Sequence[str]) -> str:
    """Names in order of time, those that are not told apart from their neighbour in order of name: "a = b < c"."""
    rank = times.argsort(kind="stable")
    groups = [[rank[0]]]
    for i in rank[1:]:
        if apart[groups[-1][-1], i]:
            groups.append([i])
        else:
            groups[-1].append(i)
    return " < ".join(" = ".join(sorted(str(names[i]) for i in group)) for group in groups)
