"""Which clusterings the errors of curves leave open, and from them an interval for how clusters agree with roles.

What is estimated is the adjusted Rand index of the clustering of the *noise-free* curves ``m`` with the roles, for given ``k``;
given are ``x = m + e``. Clustering curves drawn anew around ``x`` has the noise twice and mostly misses it: with noise as
large as the curves' own range or twice that, percentile intervals held it in 0 to 27% of simulations, their hull with basic
ones in 6 to 41%.

Instead, a set of clusterings that holds the true one with a stated probability. Every decision of both methods is the smallest of
numbers that are linear in squared distances ``D``:

    kmeans          of all partitions, the least  C(P) = sum over clusters c of (sum of D within c) / |c|
    hierarchical    at each merge, the least  C(A u B) - C(A) - C(B)

Curves drawn anew give the covariance ``V`` of ``D``, and its bias by noise, which is taken off: ``D^ = 2 D(x) - mean D(drawn)``
(exact for raw curves, where noise adds a constant). An alternative ``a`` (a vector over pairs) to the least one ``b`` stays open
where

    (a - b) . D^  <=  q sqrt((a - b)' V (a - b)),   q the normal quantile at 1 - alpha / N

``N`` the number of partitions, or of merges on any path: by Bonferroni the true one is left out with probability alpha at most,
in the normal limit. All partitions are tried, and all paths of merges that stay open are followed. The interval runs from the
least to the largest index in the set: it over-covers, and says "anything" where curves are all noise. Two sets at alpha / 2 each
hold together whatever noise their curves share, so the difference of two indices runs from least to largest over both.

A curve that is mostly noise (``UNCLEAR`` of its variance over checkpoints) has no known shape. Scaling it blows its noise up to
the size of a shape, which drawing anew does not see; so once scaled, whatever involves it stays open.

Roles that are uncertain have a set of their own: the wrong roles of some heads are known but for which heads these are, so that
the most probable choices of heads, with probability 1 - alpha together, hold the true one. Percentiles of roles drawn anew would
not do: as with curves, what was once exchanged is seldom exchanged back.

Excluded: the choice of ``k`` (an interval takes it for given), and more than ``PARTITIONS`` partitions or open paths; the
interval is then all there is, [-1/2, 1].

Sources: subset selection (Gupta 1965) and confidence sets for the best (Hansen, Lunde & Nason 2011), here with known noise;
both methods as functions of distances: Ward 1963, Lance & Williams 1967.
"""

from itertools import product
from math import comb
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from circuits.crosscheck.clusters import (
    PARTITIONS,
    Method,
    Scaling,
    canonical_labels,
    every_partition,
    scaled,
    squared_distances,
    stirling,
    sums_of_squares,
)
from circuits.crosscheck.partitions import rand_indices

TOGETHER = 2_000
"""States whose merges are weighed at once."""
UNCLEAR = 0.75
WIDEST = (-0.5, 1.0)
"""Bounds of the adjusted Rand index."""


def drawn_curves(
    curves: Float[np.ndarray, "head step"], stderr: Float[np.ndarray, "head step"], draws: int = 400, seed: int = 0
) -> Float[np.ndarray, "draw head step"]:
    """Curves with noise of the size of their errors put on once more, normal and independent at every point."""
    return curves + stderr * np.random.default_rng(seed).standard_normal((draws, *curves.shape))


def drawn_from_units(
    units: Float[np.ndarray, "unit head step"], draws: int = 400, seed: int = 0
) -> Float[np.ndarray, "draw head step"]:
    """Curves drawn anew around the mean of independent measurements of them, such as chains, which share noise over checkpoints.

    ``mean + sqrt((n - 1) / (n - 3)) sum_u g_u (x_u - mean) / sqrt(n (n - 1))``, ``g`` normal: the covariance of the mean, widened
    as Student's t is for an error estimated from few.

    Raises:
        ValueError: fewer than four units.
    """
    n = len(units)
    if n < 4:
        raise ValueError(f"{n} units leave their spread unknown: pass four or more, such as chains or parts of chains")
    mean = units.mean(0)
    weights = np.random.default_rng(seed).standard_normal((draws, n)) / np.sqrt(n * (n - 3))
    return mean + np.tensordot(weights, units - mean, axes=1)


def open_partitions(
    curves: Float[np.ndarray, "head step"],
    drawn: Float[np.ndarray, "draw head step"],
    labels: Int[np.ndarray, "head"],
    *,
    method: Method,
    scaling: Scaling,
    weights: Float[np.ndarray, "step"],
    alpha: float,
) -> Int[np.ndarray, "partition head"] | None:
    """The set of clusterings that errors leave open; None where they are too many to tell.

    Args:
        curves: as measured. drawn: the same measured anew, each as far from ``curves`` as these may be from the truth; the mean
            of the draws does not count.
        labels: the clustering of ``curves``, which is in the set and says ``k``.
        method, scaling: as ``circuits.crosscheck.clusters.cluster``'s. weights: of checkpoints, adding up to 1.
        alpha: probability that the set does not hold the clustering of the noise-free curves.
    """
    n, k = len(curves), len(np.unique(labels))
    noise = drawn - drawn.mean(0)
    at, again = (squared_distances(scaled(x, weights, scaling)) for x in (curves, curves + noise))
    unbiased, spread = 2 * at - again.mean(0), np.atleast_2d(np.cov(again.T))
    if scaling != "raw":
        of_noise = _variance(noise, weights).mean(0)
        unclear = (of_noise > 0) & (of_noise >= UNCLEAR * _variance(curves, weights))
        first, second = np.triu_indices(n, 1)
        # So wide that no difference between distances, which are 4 at most, excludes what has another pair of it together.
        spread = spread + np.diag(np.where(unclear[first] | unclear[second], 1e9, 0.0))
    found = _kmeans_set(n, k, unbiased, spread, alpha) if method == "kmeans" else _ward_set(n, k, unbiased, spread, alpha)
    return None if found is None else np.unique(np.vstack([found, canonical_labels(labels)]), axis=0)


def open_roles(
    roles: Int[np.ndarray, "head"], confidence: Float[np.ndarray, "head"], alpha: float
) -> Int[np.ndarray, "set head"] | None:
    """Roles (numbers from 0) that may be the true ones; None where they are too many to tell.

    Each is right with its ``confidence``, on its own. Sets of heads whose roles are wrong are taken in, most probable first,
    until their probabilities add up to ``1 - alpha``, each with every other role for its heads.
    """
    number, unsure = int(roles.max()) + 1, np.flatnonzero(confidence < 1)
    if number ** len(unsure) > PARTITIONS:
        return None
    away = np.array(list(product(range(number), repeat=len(unsure))), dtype=np.int64)
    wrong = np.array(list(product((False, True), repeat=len(unsure))), dtype=bool)
    chance = np.where(wrong, 1 - confidence[unsure], confidence[unsure]).prod(1)
    order = np.argsort(-chance, kind="stable")
    before = np.cumsum(chance[order]) - chance[order]
    last = chance[order][before < 1 - alpha - 1e-12].min()
    # Sets as probable as the last one come in together: which of them is first in the list decides nothing.
    kept = chance >= last * (1 - 1e-9)
    found = np.tile(roles, (len(away), 1))
    found[:, unsure] = (roles[unsure] + away) % number
    return found[kept[(away > 0) @ (1 << np.arange(len(unsure))[::-1])]]


def index_bounds(
    found: Int[np.ndarray, "partition head"] | None, roles: Shaped[np.ndarray, "set head"] | None
) -> tuple[Float[np.ndarray, "set"], Float[np.ndarray, "set"]]:
    """The least and the largest adjusted Rand index in a set of clusterings, with each of the roles that may be the true ones."""
    if found is None or roles is None:
        number = 1 if roles is None else len(roles)
        return np.full(number, WIDEST[0]), np.full(number, WIDEST[1])
    parts = np.array_split(roles, len(found) * len(roles) // 2_000_000 + 1)
    low, high = zip(*((each.min(0), each.max(0)) for each in (rand_indices(found, part) for part in parts)), strict=True)
    return np.concatenate(low), np.concatenate(high)


def _variance(curves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.square(curves - (curves * weights).sum(-1, keepdims=True)) @ weights


def _left_open(
    options: Float[np.ndarray, "*state option pair"], distances: np.ndarray, spread: np.ndarray, q: float
) -> Bool[np.ndarray, "*state option"]:
    """Which options may be the least, given errors of the distances; ties stay open."""
    costs = options @ distances
    least = costs.argmin(-1)[..., None]
    gap = options - np.take_along_axis(options, least[..., None], -2)
    error = np.sqrt(np.maximum(np.einsum("...p,...p->...", gap @ spread, gap), 0.0))
    return costs - np.take_along_axis(costs, least, -1) <= q * error + 1e-12 * np.abs(distances).max()


def _kmeans_set(n: int, k: int, distances: np.ndarray, spread: np.ndarray, alpha: float) -> np.ndarray | None:
    number = stirling(n, k)
    if number > PARTITIONS:
        return None
    every, costs = every_partition(n, k)
    return every[_left_open(costs, distances, spread, NormalDist().inv_cdf(1 - alpha / max(number, 2)))]


def _ward_set(n: int, k: int, distances: np.ndarray, spread: np.ndarray, alpha: float) -> np.ndarray | None:
    """All ends of paths of merges of which every one may be the cheapest."""
    merges = sum(comb(left, 2) for left in range(k + 1, n + 1))
    q = NormalDist().inv_cdf(1 - alpha / max(merges, 2))
    states = np.arange(n, dtype=np.int64)[None]
    for left in range(n, k, -1):
        first, second = np.triu_indices(left, 1)
        following = []
        for some in np.array_split(states, len(states) // TOGETHER + 1):
            within = some[:, None, :] == np.arange(left)[:, None]
            a, b = within[:, first], within[:, second]
            options = sums_of_squares(a | b) - sums_of_squares(a) - sums_of_squares(b)
            at, merge = np.nonzero(_left_open(options, distances, spread, q))
            kept, gone = first[merge][:, None], second[merge][:, None]
            # Part ``gone`` joins the earlier ``kept`` and later ones move up: parts stay numbered by first appearance.
            joined = np.where(some[at] == gone, kept, some[at])
            following.append(joined - (joined > gone))
        # Rows as bytes: with numpy's unique rows this took twice as long as all the rest.
        rows = dict.fromkeys(row.tobytes() for row in np.vstack(following))
        states = np.frombuffer(b"".join(rows), dtype=np.int64).reshape(-1, n)
        if len(states) > PARTITIONS:
            return None
    return states
