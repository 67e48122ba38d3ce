"""What is left of a relation between heads once other measures are taken into account.

    partial Spearman    Pearson's correlation of what ranks of x and ranks of y leave over when fitted by ranks of the others and
                        a constant: in [-1, 1], 0 by chance
    explained share     R^2 = 1 - sum (y - fit)^2 / sum (y - mean)^2 of a least-squares fit by k columns and a constant; for
                        columns of random numbers k / (n - 1) on average
    foretold share      the same with each head's fit, and mean, from all other heads: below 0 where the mean foretells better

Ranks are fitted as if their effects added up. Others that decide x and y closely, and together, are taken off in part only: with
two of them and noise a third of their sum a correlation of .3 was left over among 14 heads, and p at most .05 in 21% of cases;
with one of them .08 and 7%, with noise as large as their sum .03 and 5%.

p of the partial correlation: what the ranks of y leave over is exchanged among heads, fitted anew and laid against x (Freedman &
Lane 1983). All exchanges are counted for up to ``EVERY_ORDER`` heads, else ``DRAWS`` are drawn. Without fitting anew the
exchanged would vary less than the real, and p be too small. The interval is by Fisher's transformation, ``atanh r +-
1.96 sqrt((1 + r^2 / 2) / (n - g - 3))`` for g others: heads as a sample, errors of their values aside. p of the explained share:
y is exchanged.

Too few heads for an answer give NaN, and ``reason`` says so: fewer than ``g + 4`` for a partial correlation, ``k + 3`` for a fit.
A share is not foretold where one head alone decides a coefficient.

Sources: Freedman & Lane 1983; Winkler et al. 2014 (exchanges under nuisances); interval: Bonett & Wright 2000.
"""

from itertools import permutations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.crosscheck.partitions import DRAWS, tail

EVERY_ORDER = 7


class Partial(NamedTuple):
    """A partial rank correlation, its 95% interval, two-sided p, the smallest p there could be, how many heads; why, if NaN."""

    value: float
    low: float
    high: float
    p: float
    smallest: float
    heads: int
    reason: str


class Explained(NamedTuple):
    """The share of the variance between heads that a linear fit explains.

    Attributes:
        value: R^2. foretold: with each head left out in turn. chance: R^2 of as many random columns on average.
        p, smallest: of so large an R^2 when values are exchanged among heads. heads: how many. reason: why, where something is
        NaN.
    """

    value: float
    foretold: float
    chance: float
    p: float
    smallest: float
    heads: int
    reason: str


def partial_spearman(
    x: Float[np.ndarray, "head"],
    y: Float[np.ndarray, "head"],
    given: Float[np.ndarray, "head other"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Partial:
    """The rank correlation of two measures of heads, others held fixed; heads with a missing value are left out.

    Raises:
        ValueError: not one row for each head.

    Source: Freedman & Lane 1983; Bonett & Wright 2000.
    """
    from scipy.stats import rankdata

    (one, two), others = _together(x=x, y=y, given=given)
    n, g = others.shape
    if n < g + 4:
        why = f"{n} heads are too few to hold {g} others fixed: {g + 4} or more"
        return Partial(np.nan, np.nan, np.nan, np.nan, 1.0, n, why)
    hat = _hat(rankdata(others, axis=0) if g else others)
    left = [ranks - hat @ ranks for ranks in (rankdata(one), rankdata(two))]
    if min(float(np.square(part).sum()) for part in left) <= 1e-9 * n**3:
        return Partial(np.nan, np.nan, np.nan, np.nan, 1.0, n, "the others, or ties, leave nothing of x or y over")
    ours, theirs = (part / np.linalg.norm(part) for part in left)
    value = float(np.clip(ours @ theirs, -1, 1))
    every = n <= EVERY_ORDER
    rng = np.random.default_rng(seed)
    orders = np.array(list(permutations(range(n)))) if every else rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
    exchanged = theirs[orders]
    exchanged = exchanged - exchanged @ hat
    size = np.linalg.norm(exchanged, axis=1)
    null = np.abs(exchanged @ ours) / np.where(size > 0, size, 1.0)
    p, smallest = tail(abs(value), null, every=every)
    reach = NormalDist().inv_cdf(0.975) * np.sqrt((1 + value**2 / 2) / (n - g - 3))
    at = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return Partial(value, float(np.tanh(at - reach)), float(np.tanh(at + reach)), p, smallest, n, "")


def explained_share(
    y: Float[np.ndarray, "head"], x: Float[np.ndarray, "head column"], *, draws: int = DRAWS, seed: int = 0
) -> Explained:
    """How much of a measure of heads a linear fit by others explains, and foretells; heads with a missing value are left out.

    Raises:
        ValueError: not one row for each head.

    Source: R^2: least squares; each left out in turn: Allen 1974 (PRESS).
    """
    (values,), columns = _together(y=y, given=x)
    n, k = columns.shape
    if n < k + 3:
        why = f"{n} heads are too few for {k} columns: {k + 3} or more"
        return Explained(np.nan, np.nan, np.nan, np.nan, 1.0, n, why)
    centred = values - values.mean()
    total = float(np.square(centred).sum())
    if total == 0:
        return Explained(np.nan, np.nan, k / (n - 1), np.nan, 1.0, n, "all heads have one value: there is nothing to explain")
    hat = _hat(columns)
    leverage, off = np.diag(hat), values - hat @ values
    value = 1 - float(np.square(off).sum()) / total
    exchanged = np.random.default_rng(seed).permuted(np.tile(centred, (draws, 1)), axis=1)
    p, smallest = tail(value, np.square(exchanged @ hat).sum(1) / total, every=False)
    if leverage.max() > 1 - 1e-9:
        return Explained(value, np.nan, k / (n - 1), p, smallest, n, "one head alone decides a coefficient: none foretold")
    # Left out, a head is off by its residual over 1 - leverage, and from the mean of the others by n / (n - 1) of its own.
    alone = float(np.square(off / (1 - leverage)).sum())
    return Explained(value, 1 - alone / (total * (n / (n - 1)) ** 2), k / (n - 1), p, smallest, n, "")


def _hat(columns: Float[np.ndarray, "head column"]) -> Float[np.ndarray, "head head"]:
    """The projection on columns and a constant; columns are standardised first, so that none is lost beside a larger one."""
    scale = columns.std(0)
    design = np.column_stack([np.ones(len(columns)), (columns - columns.mean(0)) / np.where(scale > 0, scale, 1.0)])
    return design @ np.linalg.pinv(design)


def _together(*, given: object, **named: object) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows without a missing value, of vectors and of a table."""
    vectors = {name: np.asarray(vector, dtype=np.float64) for name, vector in named.items()}
    table = np.asarray(given, dtype=np.float64)
    shapes = {name: vector.shape for name, vector in vectors.items()}
    if table.ndim != 2 or any(shape != table.shape[:1] for shape in shapes.values()):
        told = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"{told} beside a table of shape {table.shape}; need [head] and [head, column] of the same heads")
    there = np.isfinite(table).all(1) & np.logical_and.reduce([np.isfinite(vector) for vector in vectors.values()])
    return [vector[there] for vector in vectors.values()], table[there]
