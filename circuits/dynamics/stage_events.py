"""When a score emerged, and where a curve over training stands still: readings of the smoothed curve.

    progress     (y - baseline) / (last value - baseline); the baseline is chance where that is known, else the first value
    emergence    the last time at which progress passes 1/2 from below, so that it stays above for good
    run          checkpoints between which the curve moves one way, faster than 0.1 of its mean |slope| in log time, and in all by
                 three errors of that change
    plateau      between two neighbouring runs: the highest point between a rise and a fall ("maximum"), the lowest between a fall
                 and a rise ("minimum"), the flattest between two rises or two falls ("pause"), if the mean slope from the end of
                 one to the start of the other is less than either's by three errors

Wang et al.'s stages of the LLC end at such critical points. Left out are the flat start and end of a curve, which have one
clear side. What is faster than checkpoints follow each other is known to lie between two of them, see ``stage_curves``.

Source: half of the way as in ``views/formation.py``, which gives checkpoints and no errors; critical points of the smoothed
curve as in Wang et al. 2024's notebook. Three errors, and 0.1, are ours.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Float, Real

from circuits.dynamics.bounce import CLEAR
from circuits.dynamics.stage_curves import (
    LEVEL,
    Errors,
    Event,
    check_curve,
    independent_errors,
    interval,
    log_time,
    steps_of,
    unit_of,
)
from circuits.dynamics.stage_smooth import Smooth, smooth

FLAT = 0.1
"""Of the mean slope."""


def emergence_time(
    steps: Real[np.ndarray, "step"],
    curve: Float[np.ndarray, "step"],
    *,
    baseline: float | None = None,
    falls: bool = False,
    errors: Errors | None = None,
    unit: float | None = None,
    kernel: str = "spline",
    level: float = LEVEL,
    seed: int = 0,
) -> Event:
    """When a score has passed half of its way for good, by the rule at the top of this module.

    Args:
        steps: rising. curve: the score, finite. baseline: chance; None: the first value. falls: whether it falls as it emerges,
        as losses do. errors: of ``example_errors`` or ``independent_errors``; None: the latter, with no errors known.
        unit: of log time (default: the first step after 0). kernel, seed: of smoothing, see ``smooth``. level: of the interval.

    Returns:
        State "emerged"; "from the start": above half at all checkpoints, ``at`` being the first and ``low`` NaN; "not risen": the
        last value is not beyond the baseline by three errors, all else NaN.

    Raises:
        ValueError: see ``check_curve``.
    """
    smoothed, clock = _prepared(steps, curve, errors, unit, kernel, seed)
    return emergence_of(smoothed, steps, clock, baseline=baseline, falls=falls, level=level)


def plateaus(
    steps: Real[np.ndarray, "step"],
    curve: Float[np.ndarray, "step"],
    *,
    flat: float = FLAT,
    errors: Errors | None = None,
    unit: float | None = None,
    kernel: str = "spline",
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[Event, ...]:
    """Where a curve stands still, by the rule at the top of this module.

    Args:
        flat: share of the mean slope. The rest: as in ``emergence_time``.

    Returns:
        In order of time, states "maximum", "minimum" or "pause"; ``start`` and ``end``: of what lies between the runs.

    Raises:
        ValueError: see ``check_curve``; a share that is not between 0 and 1.
    """
    smoothed, clock = _prepared(steps, curve, errors, unit, kernel, seed)
    return plateaus_of(smoothed, steps, clock, flat=flat, level=level)


def _prepared(
    steps: np.ndarray, curve: np.ndarray, errors: Errors | None, unit: float | None, kernel: str, seed: int
) -> tuple[Smooth, float]:
    check_curve(steps, curve)
    clock = unit or unit_of(steps)
    drawn = independent_errors(steps, curve, unit=clock, seed=seed) if errors is None else errors
    return smooth(log_time(steps, clock), curve, drawn, kernel=kernel, seed=seed), clock


def emergence_of(
    smoothed: Smooth, steps: Real[np.ndarray, "step"], unit: float, *, baseline: float | None, falls: bool, level: float
) -> Event:
    """``emergence_time`` of a curve that is smoothed already."""
    sign = -1.0 if falls else 1.0
    both = sign * np.concatenate([smoothed.value[None], smoothed.values])
    base = both[:, :1] if baseline is None else np.full((len(both), 1), sign * baseline)
    rise = both[:, -1] - base[:, 0]
    if not rise[0] > CLEAR * rise[1:].std(ddof=1):
        return Event("emergence", "not risen", np.nan, np.nan, np.nan, np.full(len(both) - 1, np.nan))
    crossed = _last_upward(smoothed.time, both - (base + both[:, -1:]) / 2)
    times = np.where(crossed == smoothed.time[0], steps[0], steps_of(crossed, unit))
    at, drawn = float(times[0]), times[1:]
    low, high = interval(drawn, at, steps, level)
    if crossed[0] == smoothed.time[0]:
        return Event("emergence", "from the start", float(steps[0]), np.nan, high, drawn)
    return Event("emergence", "emerged", at, low, high, drawn)


def _last_upward(time: np.ndarray, above: np.ndarray) -> np.ndarray:
    """When each row was last below 0, between the two times by a line; the first time for rows that never are, the last for
    rows that end there."""
    low = above < 0
    last = np.where(low.any(1), above.shape[1] - 1 - low[:, ::-1].argmax(1), -1)
    i = np.clip(last, 0, len(time) - 2)
    row = np.arange(len(above))
    a, b = above[row, i], above[row, i + 1]
    share = np.divide(-a, b - a, out=np.ones_like(a), where=b > a).clip(0, 1)
    return np.where(last < 0, time[0], time[i] + share * (time[i + 1] - time[i]))


def plateaus_of(
    smoothed: Smooth, steps: Real[np.ndarray, "step"], unit: float, *, flat: float, level: float
) -> tuple[Event, ...]:
    """``plateaus`` of a curve that is smoothed already."""
    if not 0 < flat < 1:
        raise ValueError(f"flat={flat!r}: need a share of the mean slope, between 0 and 1")
    time = smoothed.time
    slope, slopes = (np.gradient(values, time, axis=-1) for values in (smoothed.value, smoothed.values))
    found = []
    for one, other in pairwise(_runs(smoothed, slope, flat, (len(time) - 1) // (len(steps) - 1))):
        window = slice((one[0] + one[1]) // 2, (other[0] + other[1]) // 2 + 1)
        way = [np.sign(_change(smoothed, run)[0]) for run in (one, other)]
        if way[0] != way[1]:
            state, reading = "maximum" if way[0] > 0 else "minimum", (smoothed.value, smoothed.values)
        elif _flatter(smoothed, one, other):
            state, reading = "pause", (-slope, -slopes)
        else:
            continue
        of_curve, of_draws = (int(window.start) + (way[0] * values[..., window]).argmax(-1) for values in reading)
        at, times = float(steps_of(time[of_curve], unit)), steps_of(time[of_draws], unit)
        low, high = interval(times, at, steps, level)
        start, end = (float(steps_of(time[i], unit)) for i in (one[1], other[0]))
        found.append(Event("plateau", state, at, low, high, times, min(start, at), max(end, at)))
    return tuple(found)


def _runs(smoothed: Smooth, slope: np.ndarray, flat: float, parts: int) -> list[tuple[int, int]]:
    """The checkpoints next to where runs start and end, as indices of times, of which every ``parts``-th is a checkpoint."""
    least = flat * np.trapezoid(np.abs(slope), smoothed.time) / np.ptp(smoothed.time)
    moving = np.where(np.abs(slope) > least, np.sign(slope), 0)
    edges = np.r_[0, 1 + np.flatnonzero(np.diff(moving)), len(moving)]
    runs = [(round(a / parts) * parts, round((b - 1) / parts) * parts) for a, b in pairwise(edges.tolist()) if moving[a]]
    return [run for run in runs if run[0] < run[1] and _clear(*_change(smoothed, run))]


def _change(smoothed: Smooth, run: tuple[int, int]) -> tuple[float, np.ndarray]:
    """From the start of a stretch to its end: of the curve and of the drawn ones."""
    start, end = run
    return float(smoothed.value[end] - smoothed.value[start]), smoothed.values[:, end] - smoothed.values[:, start]


def _clear(one: float, drawn: np.ndarray) -> bool:
    return bool(abs(one) > CLEAR * drawn.std(ddof=1))


def _flatter(smoothed: Smooth, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the mean slope between two runs is less than in either, by three errors of the difference."""
    (gap, gaps), *sides = (
        [change / (smoothed.time[b] - smoothed.time[a]) for change in _change(smoothed, (a, b))]
        for a, b in ((one[1], other[0]), one, other)
    )
    return all(abs(gap) < abs(side) and _clear(side - gap, drawn - gaps) for side, drawn in sides)
