"""Does entropy bounce: a curve over training that falls and rises again, by more than its errors.

    drop    first value less the lowest        bounce    last value less the lowest        index    bounce / drop

Source: Tian et al. 2023b (arXiv 2310.00535), figures 4 and 6 (attention's entropy drops, then bounces back); the index is ours.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.dynamics.snap import check_checkpoints

CLEAR = 3.0
"""Standard errors that a drop or a bounce must exceed."""


class Bounce(NamedTuple):
    """A fall and rise, in the units of what was given.

    Attributes:
        state: "bounced", "dropped" or "no drop" (each by 3 standard errors), "untested" (no errors given), "missing" (NaN among
        the values). at: index of the minimum. drop: first value less it. bounce: last value less it. ratio: bounce / drop, 0
        where the fall stays and 1 where all of it comes back; NaN without a clear drop.
    """

    state: str
    at: int = -1
    drop: float = np.nan
    drop_stderr: float = np.nan
    bounce: float = np.nan
    bounce_stderr: float = np.nan
    ratio: float = np.nan
    ratio_stderr: float = np.nan


def drop_and_bounce(value: Float[np.ndarray, "step"], stderr: Float[np.ndarray, "step"]) -> Bounce:
    """The bounce of a curve whose points have independent errors; on a shared probe ``bootstrap_bounce`` is sharper.

    The minimum is the lowest of many noisy points, which makes drop and bounce large by about two errors of a point: of curves
    that fall and stay, 1 in 77 (20 checkpoints) or 1 in 34 (60) is called a bounce.

    Raises:
        ValueError: lengths that differ, or fewer than 4 checkpoints.

    Source: Tian et al. 2023b, figures 4 and 6 (entropy drops, then bounces back); the index is ours.
    """
    check_checkpoints(len(value), len(stderr), "errors", 0)
    if np.isnan(value).any():
        return Bounce("missing")
    at, last = int(value.argmin()), len(value) - 1
    drop, bounce = value[0] - value[at], value[-1] - value[at]
    fell = np.hypot(stderr[0], stderr[at]) if at else 0.0  # of one point with itself
    rose = np.hypot(stderr[-1], stderr[at]) if at < last else 0.0
    ratio, spread = np.nan, np.nan
    if drop > 0:
        ratio = bounce / drop
        spread = np.sqrt(stderr[-1] ** 2 + (ratio * stderr[0]) ** 2 + ((1 - ratio) * stderr[at]) ** 2) / drop
    return _judged(at, drop, fell, bounce, rose, ratio, spread)


def bootstrap_bounce(samples: Float[np.ndarray, "step example"], *, draws: int = 1_000, seed: int = 0) -> Bounce:
    """``drop_and_bounce`` of the mean over examples, with errors from drawing examples anew: the same ones at every checkpoint.

    The minimum is found anew in each draw. What examples share, such as how hard their text is, then cancels in the differences.

    Args:
        samples: one value for each example of a probe that stays the same. draws: bootstrap samples. seed: of them.

    Raises:
        ValueError: fewer than 4 checkpoints.
    """
    steps, examples = samples.shape
    check_checkpoints(steps, steps, "errors", 0)
    if np.isnan(samples).any():
        return Bounce("missing")
    weights = np.random.default_rng(seed).multinomial(examples, [1 / examples] * examples, draws) / examples
    curves = np.concatenate([samples.mean(1)[None], weights @ samples.T])
    drop, bounce = curves[:, 0] - curves.min(1), curves[:, -1] - curves.min(1)
    ratio = np.divide(bounce, drop, out=np.full_like(drop, np.nan), where=drop > 0)
    spread = ratio[1:].std(ddof=1)
    return _judged(int(curves[0].argmin()), drop[0], drop[1:].std(ddof=1), bounce[0], bounce[1:].std(ddof=1), ratio[0], spread)


def _judged(at: int, drop: float, fell: float, bounce: float, rose: float, ratio: float, spread: float) -> Bounce:
    if np.isnan([fell, rose]).any():
        state = "untested"
    elif not drop > CLEAR * fell:
        state, ratio, spread = "no drop", np.nan, np.nan
    else:
        state = "bounced" if bounce > CLEAR * rose else "dropped"
    return Bounce(state, at, *(float(x) for x in (drop, fell, bounce, rose, ratio, spread)))
