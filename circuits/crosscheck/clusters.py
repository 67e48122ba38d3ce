"""Which heads develop alike: the training curves of one layer's heads, clustered.

A curve ``x_i(t)``, one value a checkpoint, is scaled as a whole, and the distance weighs checkpoints:

    d(i, j)^2 = sum_t w_t (s_i(t) - s_j(t))^2,    sum_t w_t = 1

    raw             s = x
    standardised    s = (x - mean) / sd, mean and sd over checkpoints with the weights w; then d^2 = 2 (1 - r), r the correlation
    minmax          s = (x - min) / (max - min)

``w`` is each checkpoint's share of log time, by the trapezoid rule in ``log(1 + step)`` (so that step 0 has a place), or equal.
Scaling takes the height of a curve away: two heads whose curves differ by a factor or an offset alone are then one kind.

    kmeans          the k clusters with the least sum of squared distances from their means. Of up to ``PARTITIONS`` partitions
                    the best is found by trying all; of more, the best of ``N_INIT`` starts of scikit-learn's search is taken
    hierarchical    k clusters left when the two whose union adds least to that sum are merged, again and again (Ward)

Excluded and special: curves with missing values are refused. A curve that is constant has no shape: scaled, it is 0 throughout.
There is no time warping: a curve that is late is another curve, as when a head develops is part of what is asked.

``k`` is fixed beforehand, from how many roles a layer's heads have, or is the one with the largest mean silhouette over
``2 .. n - 1``, the smaller of equals. A silhouette is ``(b - a) / max(a, b)``: ``a`` a head's mean distance from its own cluster,
``b`` from the nearest other; 0 for a cluster of one.

Sources: Wang et al. 2024, section 4 (k-means of each layer's curves); Ward 1963; Rousseeuw 1987 (silhouettes). The number of
clusters and the weights are ours: the paper's are not public.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.results import check_whole

Method = Literal["kmeans", "hierarchical"]
Scaling = Literal["standardised", "minmax", "raw"]
METHODS: tuple[Method, ...] = get_args(Method)
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
PARTITIONS = 100_000
"""Partitions that are all tried: of 8 heads into any number of parts, of 12 into 3 or fewer, of 16 into 2."""
N_INIT = 100
"""Starts of k-means where there are more. With 8 heads the best of 10 missed the best there is in 28 of 225 cases, of 50 in 3."""
CONSTANT = 1e-9
"""A range of so small a share of the largest value is rounding."""


class Choice(NamedTuple):
    """A number of clusters, its mean silhouette, and that of every number from 2 on."""

    k: int
    silhouette: float
    silhouettes: tuple[float, ...]


def log_time_weights(steps: Sequence[int] | np.ndarray) -> Float[np.ndarray, "step"]:
    """Each checkpoint's share of log time: half the way, in ``log(1 + step)``, from its neighbour before to the one after.

    Raises:
        ValueError: fewer than two steps, one below 0, or not rising.
    """
    at = np.asarray(steps, dtype=np.float64)
    if at.ndim != 1 or len(at) < 2 or at[0] < 0 or (np.diff(at) <= 0).any():
        raise ValueError(f"steps are {at.tolist()}; need two or more, from 0 on and rising: sort them with .sortby('step')")
    gaps = np.diff(np.log1p(at))
    return (np.append(gaps, 0) + np.append(0, gaps)) / (2 * gaps.sum())


def scaled(
    curves: Float[np.ndarray, "*draw head step"], weights: Float[np.ndarray, "step"], scaling: Scaling
) -> Float[np.ndarray, "*draw head step"]:
    """Curves scaled each as a whole, times ``sqrt(w)``: the Euclidean distance between two is the distance above."""
    if scaling == "raw":
        return curves * np.sqrt(weights)
    low, high = curves.min(-1, keepdims=True), curves.max(-1, keepdims=True)
    flat = high - low <= CONSTANT * np.abs(curves).max(-1, keepdims=True)
    if scaling == "minmax":
        centre, size = low, high - low
    else:
        centre = (curves * weights).sum(-1, keepdims=True)
        size = np.sqrt((np.square(curves - centre) * weights).sum(-1, keepdims=True))
    return np.where(flat, 0.0, (curves - centre) / np.where(flat, 1.0, size)) * np.sqrt(weights)


def cluster(
    curves: Float[np.ndarray, "head step"],
    k: int,
    *,
    method: Method = "kmeans",
    scaling: Scaling = "standardised",
    weights: Float[np.ndarray, "step"] | None = None,
    seed: int = 0,
) -> Int[np.ndarray, "head"]:
    """Cluster the curves of one layer's heads.

    Args:
        curves: finite, one a head. k: how many clusters. method, scaling: see the top of this module.
        weights: of checkpoints, such as ``log_time_weights(steps)`` (default: equal). seed: of the starts of k-means, where
            not all partitions are tried.

    Returns:
        The cluster of each head, numbered by first appearance: head 0 is in cluster 0.

    Raises:
        ValueError: curves that are no table of finite numbers, an unknown method or scaling, weights that do not fit, or fewer
            than ``k`` curves that differ.

    Source: Wang et al. 2024, section 4.
    """
    points = _points(curves, weights, scaling)
    check_whole("k", k, 1)
    check_whole("seed", seed, 0)
    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    apart = different(points)
    if k > apart:
        raise ValueError(f"k={k}, but of {len(points)} curves {apart} differ once scaled ({scaling}): pass a smaller k")
    return _partition(points, k, method, seed)


def choose_k(
    curves: Float[np.ndarray, "head step"],
    *,
    method: Method = "kmeans",
    scaling: Scaling = "standardised",
    weights: Float[np.ndarray, "step"] | None = None,
    seed: int = 0,
) -> Choice:
    """The number of clusters with the largest mean silhouette; arguments as ``cluster``.

    Raises:
        ValueError: as ``cluster``; fewer than three curves that differ, which have no number between 2 and n - 1.

    Source: Rousseeuw 1987.
    """
    points = _points(curves, weights, scaling)
    most = min(len(points) - 1, different(points))
    if most < 2:
        raise ValueError(f"{len(points)} curves of which {most} differ have no silhouettes: pass three or more, or give k")
    found = tuple(
        silhouette(points, cluster(curves, k, method=method, scaling=scaling, weights=weights, seed=seed))
        for k in range(2, most + 1)
    )
    best = int(np.argmax(found))
    return Choice(best + 2, found[best], found)


def silhouette(points: Float[np.ndarray, "head step"], labels: Int[np.ndarray, "head"]) -> float:
    """The mean silhouette of a clustering of scaled curves: in [-1, 1], near 0 without clusters; NaN if k is 1 or n."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(labels)) < len(labels):
        return np.nan
    return float(silhouette_score(points, labels))


def different(points: Float[np.ndarray, "head step"]) -> int:
    """How many curves differ: no more clusters can be made of them."""
    return len(np.unique(points, axis=0))


def canonical_labels(labels: Sequence[object] | np.ndarray) -> Int[np.ndarray, "head"]:
    """The same partition, its parts numbered by first appearance."""
    _, first, part = np.unique(np.asarray(labels), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[part].astype(np.int64)


def squared_distances(points: Float[np.ndarray, "*draw head step"]) -> Float[np.ndarray, "*draw pair"]:
    """Squared distances between scaled curves, for pairs of heads (0, 1), (0, 2), ..."""
    first, second = np.triu_indices(points.shape[-2], 1)
    return np.square(points[..., first, :] - points[..., second, :]).sum(-1)


def sums_of_squares(members: Bool[np.ndarray, "*part head"]) -> Float[np.ndarray, "*part pair"]:
    """A cluster's sum of squared distances from its mean, as a vector over pairs of heads: those within it, over its size."""
    first, second = np.triu_indices(members.shape[-1], 1)
    return (members[..., first] & members[..., second]) / members.sum(-1, keepdims=True)


@lru_cache(maxsize=8)
def every_partition(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All partitions of n heads into k parts, canonical, and their sums of squares as vectors over pairs."""
    grown = np.zeros((1, 1), dtype=np.int64)
    for head in range(1, n):
        top = grown.max(1)
        wider = [np.column_stack([rows, np.full(len(rows), part)]) for part in range(k) if len(rows := grown[top + 1 >= part])]
        grown = np.vstack(wider)
        grown = grown[grown.max(1) + 1 + (n - 1 - head) >= k]
    costs = np.sum([sums_of_squares(grown == part) for part in range(k)], axis=0)
    grown.flags.writeable = costs.flags.writeable = False
    return grown, costs


def stirling(n: int, k: int) -> int:
    """In how many ways n heads fall into k parts (Stirling's number of the second kind)."""
    return 1 if k in (1, n) else 0 if k > n else stirling(n - 1, k - 1) + k * stirling(n - 1, k)


def _points(
    curves: Float[np.ndarray, "head step"], weights: Float[np.ndarray, "step"] | None, scaling: Scaling
) -> Float[np.ndarray, "head step"]:
    x = np.asarray(curves, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise ValueError(f"curves have shape {x.shape}; need [head, step] of two heads or more")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{int((~np.isfinite(x)).sum())} of {x.size} values are missing or infinite; leave out their heads or checkpoints"
        )
    if scaling not in SCALINGS:
        raise ValueError(f"scaling {scaling!r} is none of {', '.join(SCALINGS)}")
    w = np.full(x.shape[1], 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != x.shape[1:] or not (np.isfinite(w).all() and w.min() >= 0 and w.sum() > 0):
        raise ValueError(
            f"weights have shape {w.shape} for {x.shape[1]} checkpoints, or are below 0; pass log_time_weights(steps) or None"
        )
    return scaled(x, w / w.sum(), scaling)


def _partition(points: np.ndarray, k: int, method: Method, seed: int) -> np.ndarray:
    if k == 1:
        return np.zeros(len(points), dtype=np.int64)
    if method == "kmeans":
        if stirling(len(points), k) <= PARTITIONS:
            every, costs = every_partition(len(points), k)
            return every[np.argmin(costs @ squared_distances(points))].copy()
        from sklearn.cluster import KMeans

        # scikit-learn's annotation knows the default of n_init alone, "auto".
        return canonical_labels(KMeans(k, n_init=N_INIT, random_state=seed).fit_predict(points))  # pyright: ignore[reportArgumentType]
    from sklearn.cluster import AgglomerativeClustering

    return canonical_labels(AgglomerativeClustering(k, linkage="ward").fit_predict(points))
