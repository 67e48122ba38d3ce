"""Whether two measures order heads alike, and how much of one a linear fit by others foretells."""

from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np

DRAWS = 1999


class Order(NamedTuple):
    """A rank correlation with its 95% interval, a two-sided p, the smallest p there could be, and of how many pairs."""

    value: float
    low: float
    high: float
    p: float
    smallest: float
    pairs: int


def rank_correlation(ours: np.ndarray, theirs: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Order:
    """Spearman's correlation of the finite pairs, its interval by drawing pairs again, its p by exchanging them.

    All permutations of up to 6 pairs are counted, random ones of more; NaN where ranks do not vary.
    """
    from scipy.stats import rankdata

    both = np.isfinite(ours) & np.isfinite(theirs)
    x, y = ours[both], theirs[both]
    n, rng = len(x), np.random.default_rng(seed)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Order(np.nan, np.nan, np.nan, np.nan, np.nan, n)
    value = float(_correlation(rankdata(x), rankdata(y)))
    every = n <= 6
    orders = np.array(list(permutations(range(n)))) if every else np.argsort(rng.random((draws, n)), axis=1)
    as_far = int(np.count_nonzero(np.abs(_correlation(rankdata(x)[orders], rankdata(y))) >= abs(value) - 1e-12))
    p = as_far / len(orders) if every else (as_far + 1) / (draws + 1)
    smallest = 2 / factorial(n) if every else 1 / (draws + 1)
    again = rng.integers(0, n, (draws, n))
    drawn = _correlation(rankdata(x[again], axis=1), rankdata(y[again], axis=1))
    low, high = np.nanpercentile(drawn, (2.5, 97.5)) if n > 3 else (np.nan, np.nan)
    return Order(value, float(low), float(high), p, smallest, n)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's along the last axis; NaN where one side does not vary."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt(np.square(x).sum(-1) * np.square(y).sum(-1))
    return np.where(size > 0, (x * y).sum(-1) / np.where(size > 0, size, 1.0), np.nan)


def linear_fit(y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """R² of a least-squares fit of ``y [n]`` by ``x [n, k]`` and a constant, and of foretelling each from all others.

    The latter compares with the mean of the others, and is below 0 where that foretells better; NaN where a point alone
    decides a coefficient.
    """
    scale = x.std(0)
    design = np.column_stack([np.ones(len(y)), (x - x.mean(0)) / np.where(scale > 0, scale, 1.0)])
    hat = design @ np.linalg.pinv(design)
    off, centred, leverage = y - hat @ y, y - y.mean(), np.diag(hat)
    total = float(np.square(centred).sum())
    if total == 0:
        return np.nan, np.nan
    if leverage.max() > 1 - 1e-9:
        return 1 - float(np.square(off).sum()) / total, np.nan
    alone = float(np.square(off / (1 - leverage)).sum())
    return 1 - float(np.square(off).sum()) / total, 1 - alone / (total * (len(y) / (len(y) - 1)) ** 2)
