"""When attention snaps: from which checkpoint on it has all but stopped to move.

*Scan and snap*: attention moves while the head chooses its tokens, and then all but stops: what drifts on is at most
logarithmic, so a snap is a fall of the velocity, not an equality.

    distance   mean over queries of |A(t + d) - A(t)|_1, of neighbouring checkpoints on a fixed probe
    time       s = sum of the learning rates so far: where they decay, steps would show a freeze that is the schedule's
    velocity   distance / time between the two
    peak       the fastest interval, after a median filter of 3
    snap       the first checkpoint after it from which velocity stays below 0.1 of the peak's for 3 intervals

Where attention diffuses, as under gradient noise, ``distance ~ sqrt(steps)``, and velocity is smaller between checkpoints that
are far apart. So a slow interval must also have moved less than half as far as diffusion at the peak's rate would in as many
steps; with even spacing that follows from the first. Jitter about a place, whose distances do not grow with spacing at all, falls
faster still: on log-spaced checkpoints it reads as a frozen head, and its ``at`` says nothing. Space them evenly where in doubt.

Planted, with noise of 30% or 50%, 200 runs each: a constant speed never snaps, nor does a decayed learning rate in its own time;
of random walks on log-spaced checkpoints 1 in 22 is taken for one that did, of decays to 1/e of the speed 1 in 50.

Source: Tian et al. 2023 (arXiv 2305.16380), theorem 4. It measures no freeze on a real run: the numbers of the rules are ours.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

SLOW = 0.1
"""Of the peak's velocity: below it attention counts as frozen."""
AGAIN = 2 * SLOW
"""Of the peak's velocity: from it on a frozen head moves again; apart from ``SLOW`` so that noise about that is no return."""
SUSTAINED = 3
"""Intervals in a row."""
DIFFUSED = 0.5
"""Of what diffusion would give: see above. Diffusion itself is at 1."""
CHECKPOINTS = 4
"""The fewest that leave velocities to compare."""


def attention_distance(
    before: Float[Tensor, "example *head query key"], after: Float[Tensor, "example *head query key"]
) -> Float[Tensor, "example *head"]:
    """How far attention has moved: ``|A' - A|_1``, mean over queries; 0 to 2 (nothing in common), whatever the number of keys.

    A query that sees one key counts with 0. Source: ours; Tian et al. 2023, figure 7, has it as pictures.
    """
    return (after - before).abs().sum(-1).mean(-1)


def velocity(
    distance: Float[np.ndarray, "interval *head"], time: Float[np.ndarray, "step"]
) -> Float[np.ndarray, "interval *head"]:
    """``distance / (t' - t)`` of neighbouring checkpoints; NaN where no time passed (a learning rate of 0).

    Args:
        distance: to the next checkpoint, see ``attention_distance``. time: of each checkpoint, in steps or of ``schedule_time``.

    Raises:
        ValueError: fewer than 4 checkpoints, not one distance between two, a negative one, or time that runs back.
    """
    check_checkpoints(len(time), len(distance), "distances", 1)
    if (distance < 0).any():
        raise ValueError(
            f"a distance is {np.nanmin(distance):g}; give attention_distance of neighbouring checkpoints, at least 0"
        )
    passed = np.diff(time)
    if not (passed >= 0).all():
        at = int(np.flatnonzero(~(passed >= 0))[0])
        raise ValueError(f"time goes from {time[at]:g} to {time[at + 1]:g}; give checkpoints in the order of training")
    passed = passed.reshape(-1, *[1] * (distance.ndim - 1))
    return np.divide(distance, passed, out=np.full(distance.shape, np.nan), where=passed > 0)


def schedule_time(steps: Int[np.ndarray, "step"], rates: Float[np.ndarray, "update"]) -> Float[np.ndarray, "step"]:
    """Time that a schedule of learning rates does not stretch: ``s(t) = sum over u < t of rates[u]``.

    Gradient flow depends on the steps through ``s`` alone. Momentum multiplies it by ``1 / (1 - momentum)``.

    Args:
        steps: of the checkpoints. rates: ``rates[u]`` is that of the update from step ``u`` to ``u + 1``.

    Raises:
        ValueError: a checkpoint beyond the schedule, or a rate that is negative or NaN.
    """
    if steps.min() < 0 or steps.max() > len(rates):
        raise ValueError(f"checkpoints are at steps {steps.min()}..{steps.max()}, rates {len(rates)}; give one for every update")
    if not (rates >= 0).all():
        raise ValueError(f"a learning rate is {rates[~(rates >= 0)][0]:g}; give the schedule's, at least 0")
    return np.concatenate([[0.0], rates.cumsum()])[steps]


class Snap(NamedTuple):
    """A snap and what surrounds it.

    Attributes:
        state: "frozen"; "recurrent" (frozen, and moved again); without a snap, all else but ``peak`` NaN: "moving", "late" (fewer
        than 3 intervals after the peak), "diffusive" (slower only as a random walk is at wider spacing), "still" (never moved),
        "missing" (NaN among the distances). at: the step from which attention is frozen, and ``before``, the checkpoint before
        it. peak: the middle of the fastest interval. freeze_ratio: path length after ``at`` / total, 0 to 1; motion at one speed
        would give the share of time that was left. returns: how often it moved again, at 0.2 of the peak's velocity or more.
    """

    state: str
    at: float = np.nan
    before: float = np.nan
    peak: float = np.nan
    freeze_ratio: float = np.nan
    returns: float = np.nan


def snap(
    distance: Float[np.ndarray, "interval"], steps: Int[np.ndarray, "step"], time: Float[np.ndarray, "step"] | None = None
) -> Snap:
    """When attention snapped, by the rule at the top of this module.

    Args:
        distance: of each checkpoint to the next. steps: of the checkpoints. time: theirs, of ``schedule_time``; None: the
        learning rate was constant.

    Returns:
        See ``Snap``. A sharp freeze is found within one interval of where it was.

    Raises:
        ValueError: see ``velocity``.
    """
    speed = velocity(distance, steps.astype(float) if time is None else time)
    if np.isnan(distance).any():
        return Snap("missing")
    timed = np.flatnonzero(~np.isnan(speed))
    smooth = _median3(speed[timed])
    if not (smooth > 0).any():
        return Snap("still")
    top = int(smooth.argmax())
    peak = float(steps[timed[top] : timed[top] + 2].mean())
    walked = smooth * np.sqrt(np.diff(steps)[timed])
    slow = smooth < SLOW * smooth[top]
    first = _first_run(slow & (walked < DIFFUSED * walked[top]), top)
    if first < 0:
        state = "late" if len(timed) - 1 - top < SUSTAINED else "diffusive" if _first_run(slow, top) >= 0 else "moving"
        return Snap(state, peak=peak)
    at, returns = int(timed[first]), _returns(smooth[first:] / smooth[top])
    ratio = float(distance[at:].sum() / distance.sum())
    return Snap("recurrent" if returns else "frozen", float(steps[at]), float(steps[at - 1]), peak, ratio, float(returns))


def check_checkpoints(checkpoints: int, given: int, what: str, fewer: int) -> None:
    """Refuse a trajectory too short to be read, or values that are not one for each checkpoint (or interval).

    Raises:
        ValueError: it is, or they are not.
    """
    if checkpoints < CHECKPOINTS:
        raise ValueError(f"{checkpoints} checkpoints cannot show a snap or a bounce; give at least {CHECKPOINTS} of the run")
    if given != checkpoints - fewer:
        raise ValueError(f"{given} {what} for {checkpoints} checkpoints; give {checkpoints - fewer}")


def _median3(values: np.ndarray) -> np.ndarray:
    """A median filter of 3 that leaves the ends as they are: a peak at the start of training is often real."""
    out = values.copy()
    if len(values) >= 3:
        out[1:-1] = np.median([values[:-2], values[1:-1], values[2:]], 0)
    return out


def _first_run(condition: np.ndarray, after: int) -> int:
    """The first index beyond ``after`` from which the condition holds ``SUSTAINED`` times in a row; -1 if there is none."""
    return next((i for i in range(after + 1, len(condition) - SUSTAINED + 1) if condition[i : i + SUSTAINED].all()), -1)


def _returns(relative: np.ndarray) -> int:
    """How often a velocity that starts slow reaches ``AGAIN``, having been below ``SLOW`` in between."""
    count, resting = 0, True
    for x in relative:
        if resting and x >= AGAIN:
            count, resting = count + 1, False
        elif x < SLOW:
            resting = True
    return count
