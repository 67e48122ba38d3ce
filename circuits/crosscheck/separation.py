"""Do types of heads differ in a number that every head has?

    F               (sum_c n_c (mean_c - mean)^2 / (g - 1)) / (sum_i (y_i - mean_c(i))^2 / (n - g)) of n heads of g types; near 1
                    by chance
    Q               sum_i (y_i - ybar)^2 / stderr_i^2, ybar weighted by 1 / stderr^2: chi-square on n - 1 degrees if all heads
                    have one value and differ by their errors alone
    rank-biserial   (pairs with a > b, less pairs with a < b) / all pairs = 2 U / (n m) - 1 of two groups: in [-1, 1], 0 by chance

F and rank-biserial have their p by exchanging types among heads, all arrangements where they are few (see
``circuits.crosscheck.partitions``), and beside it the smallest p that any arrangement of these values could have. F of one type,
or of as many types as heads, does not exist.

Q takes errors for normal, known and independent between heads. Where heads share noise (the same batches) they differ by less,
and Q finds too little; where errors are estimated from few draws it finds too much.

The interval of rank-biserial is about heads as a sample of their types, not about the errors of their values. With
``theta = P(a > b) + P(a = b) / 2 = (1 + r) / 2``, it is all theta with

    (theta - theta^)^2 <= z^2 theta (1 - theta) / (n m) (1 + (N - 1) ((1 - theta) / (2 - theta) + theta / (1 + theta))),
    N = (n + m) / 2

Sources: F: Fisher 1925; Q: Cochran 1954; rank-biserial: Cureton 1956, Kerby 2014; interval: Newcombe 2006, method 5.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.crosscheck.clusters import canonical_labels
from circuits.crosscheck.partitions import arrangements, tail, verdict

Alternative = Literal["two-sided", "greater", "less"]
DRAWN = ("separated", "not separated")
GRID = 20_001
"""Values of theta that are tried for an interval: ends are good to 1 / 20,000."""


class Separation(NamedTuple):
    """Whether types of heads differ.

    Attributes:
        value: F; NaN where there is none, inf where heads of a type are all equal. p, smallest: by exchange of types.
        verdict: separated, not separated, untestable. spread: standard deviation between heads. error: what errors alone would
            give. chi_square, degrees, chi_square_p: of heads differing by errors alone; NaN without errors.
    """

    value: float
    p: float
    smallest: float
    verdict: str
    spread: float
    error: float
    chi_square: float
    degrees: int
    chi_square_p: float


class RankBiserial(NamedTuple):
    """A rank-biserial correlation, its 95% interval, p, the smallest p there could be, and the verdict."""

    value: float
    low: float
    high: float
    p: float
    smallest: float
    verdict: str


def separation(
    values: Float[np.ndarray, "head"],
    types: Sequence[object] | np.ndarray,
    stderr: Float[np.ndarray, "head"] | None = None,
    *,
    seed: int = 0,
) -> Separation:
    """How far types of heads are apart, against exchanged types; and all heads, against their errors.

    At the first checkpoint heads should differ by errors alone, at the last by type.

    Args:
        values: one a head. types: any names, one a head. stderr: of the values. seed: of random exchanges.

    Raises:
        ValueError: values, types and errors that do not fit, or are missing; errors that are not above 0.

    Source: Wang et al. 2024, section 4 (heads differentiate); the tests are ours.
    """
    from scipy.stats import chi2

    y, names = _numbers("values", values), canonical_labels(types)
    if y.shape != names.shape or len(y) < 2:
        raise ValueError(f"values have shape {y.shape} and types {names.shape}; need one of each for two heads or more")
    n, g = len(y), int(names.max()) + 1
    f, p, smallest = np.nan, np.nan, 1.0
    if 1 < g < n and np.ptp(y) > 0:
        dealt = arrangements(names, seed=seed)
        null = _between(dealt.labels, y)
        share = float(_between(names[None], y)[0])
        # F rises with the share of the sum of squares that lies between types.
        p, smallest = tail(share, null, every=dealt.every)
        f = share / (1 - share) * (n - g) / (g - 1) if share < 1 - 1e-12 else np.inf
    q, q_p, error = np.nan, np.nan, np.nan
    if stderr is not None:
        e = _numbers("stderr", stderr)
        if e.shape != y.shape or (e <= 0).any():
            raise ValueError(f"stderr has shape {e.shape} for {n} heads, or is not above 0; leave it out where values are exact")
        centre = np.average(y, weights=e**-2)
        q = float(np.square((y - centre) / e).sum())
        q_p, error = float(chi2.sf(q, n - 1)), float(np.sqrt(np.square(e).mean()))
    return Separation(f, p, smallest, verdict(p, smallest, DRAWN), float(y.std(ddof=1)), error, q, n - 1, q_p)


def rank_biserial(
    a: Float[np.ndarray, "first"],
    b: Float[np.ndarray, "second"],
    *,
    alternative: Alternative = "two-sided",
    seed: int = 0,
) -> RankBiserial:
    """Whether heads of one group have larger values than those of another.

    Args:
        a, b: values of the two groups. alternative: "greater" tests ``a > b`` alone, as a claim made beforehand may; the smallest
            p is then ``1 / C(n + m, n)``, half of the two-sided one. seed: of random exchanges.

    Raises:
        ValueError: a group that is empty or has missing values; an unknown alternative.

    Source: Cureton 1956; interval: Newcombe 2006, method 5.
    """
    first, second = _numbers("a", a), _numbers("b", b)
    if not len(first) or not len(second):
        raise ValueError(f"a has {len(first)} values and b {len(second)}; need one or more of each")
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative {alternative!r} is none of two-sided, greater, less")
    y = np.concatenate([first, second])
    above = np.sign(y[:, None] - y)
    groups = np.repeat([0, 1], [len(first), len(second)])

    def ranks(labels: np.ndarray) -> np.ndarray:
        return np.einsum("ai,ij,aj->a", labels == 0, above, labels == 1, optimize=True) / (len(first) * len(second))

    value = float(ranks(groups[None])[0])
    dealt = arrangements(groups, seed=seed)
    null = ranks(dealt.labels)
    facing = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}[alternative]
    p, smallest = tail(float(facing(value)), facing(null), every=dealt.every)
    low, high = _newcombe(value, len(first), len(second))
    return RankBiserial(value, low, high, p, smallest, verdict(p, smallest, DRAWN))


def _numbers(name: str, given: object) -> np.ndarray:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"{name} {values.tolist()} must be finite numbers, one a head: leave out heads that have none")
    return values


def _between(labels: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of the sum of squares that lies between groups, for each arrangement of labels."""
    centred = y - y.mean()
    found = np.zeros(len(labels))
    for group in range(int(labels.max()) + 1):
        own = labels == group
        found += np.square(own @ centred) / own.sum(1)
    return found / np.square(centred).sum()


def _newcombe(value: float, n: int, m: int) -> tuple[float, float]:
    theta, at = np.linspace(0, 1, GRID), (1 + value) / 2
    both = (n + m) / 2 - 1
    variance = theta * (1 - theta) / (n * m) * (1 + both * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
    z = NormalDist().inv_cdf(0.975)
    inside = theta[np.square(theta - at) <= z**2 * variance + 0.25 / GRID**2]
    return float(2 * inside[0] - 1), float(2 * inside[-1] - 1)
