"""A curve over training as its stages are read: on log time, and with the curves that it might have been.

    clock        t = ln(1 + step / unit), unit the first checkpoint after step 0: step 0 has a place, and steps counted in
                 thousands or in tokens give the same t
    curves       as they might have been. Of examples: drawn anew, the same ones at all checkpoints, so that what an example adds
                 to all of them cancels in every difference. Of errors alone: normal and independent between checkpoints, which
                 ignores what they share: events are then less certain here than they are, and the height of a curve more
    noise        the part of a checkpoint's error that its neighbours do not share: the error of ``y_i - a y_(i-1) - b y_(i+1)``,
                 ``a`` and ``b`` those of the line through the neighbours, over ``sqrt(1 + a^2 + b^2)``
    interval     2.5% to 97.5% of the times in these curves; widened to the checkpoints around it where fewer than two lie within,
                 since nothing was seen between two checkpoints

Intervals know the error of measuring one run. That examples depend on each other, as parts of a document do, they do not know
(give means of documents), nor how another run would have gone (train other seeds).

Source: the bootstrap, Efron & Tibshirani 1993, chapter 13; its stretch, Hesterberg 2015. Noise: Gasser, Sroka and
Jennen-Steinmetz 1986.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from circuits.results import check_whole

FEWEST = 4
"""Checkpoints, and examples: with fewer there is no event to be seen, and no error."""
DRAWS = 2_000
LEVEL = 0.95


class Errors(NamedTuple):
    """What a curve might have been.

    Attributes:
        noise: of each checkpoint, see the top of this module. curves: drawn. kind: "examples"; "independent", of given errors;
        "residuals", independent and as large as neighbours differ, where no errors are known.
    """

    noise: Float[np.ndarray, "step"]
    curves: Float[np.ndarray, "draw step"]
    kind: str


class Event(NamedTuple):
    """Something that happened to a curve.

    Attributes:
        kind: "boundary", "plateau" or "emergence". state: in a word, see what found it. at, low, high: steps; NaN where there is
        no such time. start, end: of a plateau. times: the step of the event in each drawn curve.
    """

    kind: str
    state: str
    at: float
    low: float
    high: float
    times: Float[np.ndarray, "draw"]
    start: float = np.nan
    end: float = np.nan


def log_time(steps: Real[np.ndarray, "*any"] | float, unit: float) -> Float[np.ndarray, "*any"]:
    """``ln(1 + step / unit)``."""
    return np.asarray(np.log1p(np.asarray(steps, dtype=np.float64) / unit))


def steps_of(time: Float[np.ndarray, "*any"] | float, unit: float) -> Float[np.ndarray, "*any"]:
    """The steps of a log time."""
    return np.asarray(unit * np.expm1(time))


def unit_of(steps: Real[np.ndarray, "step"]) -> float:
    """The first step after 0, by which log time is counted."""
    return float(steps[steps > 0].min())


def check_curve(steps: Real[np.ndarray, "step"], curve: Float[np.ndarray, "*example step"], *, name: str = "the curve") -> None:
    """Refuse what has no stages.

    Raises:
        ValueError: fewer than 4 checkpoints, not one value for each, one that is not finite, or steps that are negative or do not
            rise.
    """
    given = curve.shape[-1]
    if given != len(steps):
        raise ValueError(f"{name} has {given} values for {len(steps)} steps; give one for each, with step as the last axis")
    if given < FEWEST:
        raise ValueError(f"{name} has values at {given} checkpoints; its stages need at least {FEWEST}")
    if not (steps[1:] > steps[:-1]).all() or steps[0] < 0:
        raise ValueError(f"steps of {name} go {', '.join(f'{x:g}' for x in steps[:6])}, ...; give them rising, from 0 or later")
    unknown = ~np.isfinite(curve).reshape(-1, given).all(0)
    if unknown.any():
        raise ValueError(
            f"{name} has no finite value at {unknown.sum()} of {given} checkpoints, the first at step "
            f"{steps[unknown.argmax()]:g}; leave those out that were not measured"
        )


def example_errors(
    steps: Real[np.ndarray, "step"],
    samples: Float[np.ndarray, "example step"],
    *,
    unit: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Errors:
    """Curves of examples drawn anew: the same ones at every checkpoint, and in every call with as many examples and this seed.

    So curves of one probe keep what they share. Where curves of equal size are of different probes, their examples meet by chance
    alone, which is what independence is. Deviations are stretched by ``sqrt(n / (n - 1)) t / z``, Student's and the normal's
    quantile of 97.5%: an interval of the mean of few normal examples then covers as Student's does.

    Args:
        steps: of the checkpoints. samples: the score of each example, finite. unit: of log time. draws: how many. seed: of them.

    Raises:
        ValueError: fewer than 4 examples, or see ``check_curve``.
    """
    from scipy import stats

    check_whole("draws", draws, 20)
    examples = len(samples)
    if examples < FEWEST:
        raise ValueError(f"{examples} examples cannot be drawn anew; give at least {FEWEST}, or their mean with its error")
    check_curve(steps, samples, name="the samples")
    mean = samples.mean(0)
    weights = np.random.default_rng(seed).multinomial(examples, np.full(examples, 1 / examples), draws) / examples
    stretch = np.sqrt(examples / (examples - 1)) * stats.t.ppf(0.975, examples - 1) / stats.norm.ppf(0.975)
    apart = _from_neighbours(log_time(steps, unit or unit_of(steps)), samples).std(0, ddof=1) / np.sqrt(examples)
    return Errors(np.r_[apart[0], apart, apart[-1]], mean + stretch * (weights @ samples - mean), "examples")


def independent_errors(
    steps: Real[np.ndarray, "step"],
    curve: Float[np.ndarray, "step"],
    stderr: Float[np.ndarray, "step"] | None = None,
    *,
    unit: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Errors:
    """Curves with normal errors that no two checkpoints share.

    Args:
        curve: finite. stderr: of each checkpoint; None: one for all, from how far checkpoints are from the line through their
        neighbours, in which what is bent there counts as noise. unit, draws, seed: as in ``example_errors``.

    Raises:
        ValueError: an error that is negative or not finite, or see ``check_curve``.
    """
    check_whole("draws", draws, 20)
    check_curve(steps, curve)
    if stderr is None:
        apart = _from_neighbours(log_time(steps, unit or unit_of(steps)), curve[None])[0]
        noise, kind = np.full(len(curve), np.sqrt((apart**2).mean())), "residuals"
    elif stderr.shape != curve.shape or not (np.isfinite(stderr) & (stderr >= 0)).all():
        raise ValueError("errors are one finite number of at least 0 for each value; leave out checkpoints without one")
    else:
        noise, kind = stderr.astype(np.float64), "independent"
    return Errors(noise, curve + noise * np.random.default_rng(seed).standard_normal((draws, len(curve))), kind)


def _from_neighbours(time: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """How far each inner checkpoint is from the line through its neighbours, in units of the error of one."""
    a = (time[2:] - time[1:-1]) / (time[2:] - time[:-2])
    return (curves[:, 1:-1] - a * curves[:, :-2] - (1 - a) * curves[:, 2:]) / np.sqrt(1 + a**2 + (1 - a) ** 2)


def interval(
    times: Float[np.ndarray, "draw"], at: float, checkpoints: Real[np.ndarray, "step"], level: float, *, outward: bool = False
) -> tuple[float, float]:
    """The percentile interval of a time, by the rule at the top of this module; ``outward``: widened in any case.

    On the scale of steps or of log time: a percentile does not see the difference.
    """
    low, high = np.quantile(times, [(1 - level) / 2, (1 + level) / 2])
    low, high = min(float(low), at), max(float(high), at)
    if outward or ((checkpoints > low) & (checkpoints < high)).sum() < 2:
        return around(low, checkpoints)[0], around(high, checkpoints)[1]
    return low, high


def around(time: float, checkpoints: Real[np.ndarray, "step"]) -> tuple[float, float]:
    """The last checkpoint before a time and the first after it; those at both sides of one that it falls on, to rounding."""
    before = max(int(np.searchsorted(checkpoints, time * (1 - 1e-9), side="left")) - 1, 0)
    after = min(int(np.searchsorted(checkpoints, time * (1 + 1e-9), side="right")), len(checkpoints) - 1)
    return float(checkpoints[before]), float(checkpoints[after])


def log_windows(
    steps: Real[np.ndarray, "step"], values: Float[np.ndarray, "step"], *, windows: int = 100
) -> tuple[Float[np.ndarray, "window"], Float[np.ndarray, "window"], Float[np.ndarray, "window"]]:
    """Means over windows of equal log time, for curves with a value at every step, such as the training loss.

    Returns:
        The step at the middle log time of each window that holds any, the mean and its error: half the mean square of the
        differences of neighbouring steps (of the 20 nearest at least), over the number of steps. That holds where batches are
        drawn independently; a trend within 20 steps counts as noise.

    Raises:
        ValueError: see ``check_curve``; fewer than 4 windows.
    """
    check_whole("windows", windows, FEWEST)
    check_curve(steps, values)
    unit = unit_of(steps)
    time = log_time(steps, unit)
    edges = np.linspace(time[0], time[-1], windows + 1)[1:-1]
    starts = np.unique(np.r_[0, np.searchsorted(time, edges)])
    starts = starts[starts < len(time)]
    ends = np.r_[starts[1:], len(time)]
    middle = [time[a:b].mean() for a, b in zip(starts, ends, strict=True)]
    mean = [values[a:b].mean() for a, b in zip(starts, ends, strict=True)]
    square = np.diff(values) ** 2 / 2
    centres = (starts + ends) // 2
    near = zip(np.minimum(starts, np.maximum(centres - 10, 0)), np.maximum(ends, centres + 10), strict=True)
    noise = np.array([square[a:b].mean() for a, b in near])
    return steps_of(np.array(middle), unit), np.array(mean), np.sqrt(noise / (ends - starts))
