"""Do two partitions of the same heads agree, more than if roles were dealt out by chance?

With ``n_ij`` heads in cluster ``i`` and of role ``j``, and pairs counted as ``C(n, 2)``, the adjusted Rand index is

    ARI = (S - E) / (M - E),   S = sum_ij C(n_ij, 2),   A = sum_i C(n_i., 2),   B = sum_j C(n_.j, 2),
                               E = A B / C(n, 2),       M = (A + B) / 2

1 for equal partitions, 0 on average when roles are exchanged among heads, never below -1/2. Names of clusters and roles do not
count. Where both partitions are one part, or both all singles, it is 1 and says nothing: every exchange gives that.

``p`` is the share of arrangements of the same roles among the heads that agree at least as well. Up to ``EVERY`` different
arrangements are all counted (eight heads have at most 40,320); of more, ``DRAWS`` are drawn, and ``p = (as good + 1) / (DRAWS +
1)``. The smallest p is that of the best arrangement there is: two partitions of given sizes can do no better. Where it is above
``ALPHA`` no data could have shown agreement, and the verdict is "untestable": one head apart from seven, right, has p = 1/8.

Sources: Hubert & Arabie 1985 (equation 5); exchanges: Fisher 1935; ``+ 1``: Phipson & Smyth 2010.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import comb, factorial, prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from circuits.crosscheck.clusters import canonical_labels
from circuits.results import check_whole

ALPHA = 0.05
EVERY = 50_000
"""Arrangements that are all counted."""
DRAWS = 9_999
"""Arrangements drawn where there are more."""
AGREE, NOT, UNTESTABLE = "agree", "no agreement", "untestable"


class Agreement(NamedTuple):
    """How two partitions agree.

    Attributes:
        value: the adjusted Rand index; chance is 0. p: of so good an agreement or a better one by exchange of roles.
        smallest: the least p there could be. null_mean, null_sd: of the index over exchanges. verdict: see ``verdict``.
    """

    value: float
    p: float
    smallest: float
    null_mean: float
    null_sd: float
    verdict: str


class Signs(NamedTuple):
    """Of how many seeds the difference is above 0, the one-sided p of the sign test, the smallest there could be, the verdict."""

    above: int
    seeds: int
    p: float
    smallest: float
    verdict: str


class Arrangements(NamedTuple):
    """Labels ``[arrangement, head]`` exchanged among heads, and whether these are all different arrangements, each once."""

    labels: np.ndarray
    every: bool


def adjusted_rand(
    labels: Sequence[object] | np.ndarray, roles: Sequence[object] | np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> Agreement:
    """The adjusted Rand index of clusters with roles, and its p by exchanging roles among heads.

    Args:
        labels, roles: one a head; any names. draws, seed: of random exchanges, where there are too many to count all.

    Raises:
        ValueError: not one label and one role for each of two heads or more.

    Source: Hubert & Arabie 1985.
    """
    from sklearn.metrics import adjusted_rand_score

    check_whole("draws", draws, 1)
    ours, theirs = np.asarray(labels), np.asarray(roles)
    if ours.ndim != 1 or ours.shape != theirs.shape or len(ours) < 2:
        raise ValueError(
            f"labels have shape {ours.shape} and roles {theirs.shape}; need one of each for two heads or more, in the same order"
        )
    value = float(adjusted_rand_score(theirs, ours))
    dealt = arrangements(theirs, draws=draws, seed=seed)
    null = rand_indices(dealt.labels, ours)
    p, smallest = tail(value, null, every=dealt.every)
    return Agreement(value, p, smallest, float(null.mean()), float(null.std()), verdict(p, smallest))


def rand_indices(
    partitions: Shaped[np.ndarray, "partition head"], roles: Shaped[np.ndarray, "*role head"]
) -> Float[np.ndarray, "partition *role"]:
    """The adjusted Rand index of each of many partitions with one or more: as scikit-learn's, all at once."""
    first, second = np.triu_indices(roles.shape[-1], 1)
    together = (partitions[:, first] == partitions[:, second]).astype(np.float64)
    alike = (roles[..., first] == roles[..., second]).astype(np.float64)
    both, theirs = together @ alike.T, alike.sum(-1)
    ours = together.sum(1).reshape(-1, *[1] * (roles.ndim - 1))
    expected, most = ours * theirs / len(first), (ours + theirs) / 2
    # The two are equal only where both partitions are one part, or both all singles: then they are the same.
    trivial = most == expected
    return np.where(trivial, 1.0, (both - expected) / np.where(trivial, 1.0, most - expected))


def arrangements(labels: Sequence[object] | np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Arrangements:
    """The same labels exchanged among heads: every different arrangement where they are at most ``EVERY``, else random ones."""
    names = canonical_labels(labels)
    sizes = np.bincount(names)
    if factorial(len(names)) // prod(factorial(int(size)) for size in sizes) <= EVERY:
        return Arrangements(_every(tuple(sizes.tolist())), every=True)
    return Arrangements(np.random.default_rng(seed).permuted(np.tile(names, (draws, 1)), axis=1), every=False)


def tail(value: float, null: Float[np.ndarray, "arrangement"], *, every: bool) -> tuple[float, float]:
    """The share of arrangements with a statistic as large as ``value``, and as the largest: p, and the smallest p."""
    slack = 1e-9 * max(1.0, float(np.abs(null).max()))  # sums in another order differ in their last digits
    largest = max(value, float(null.max()))
    as_large, best = (int(np.count_nonzero(null >= bar - slack)) for bar in (value, largest))
    if every:
        return as_large / len(null), best / len(null)
    return (as_large + 1) / (len(null) + 1), (best + 1) / (len(null) + 1)


def verdict(p: float, smallest: float, words: tuple[str, str] = (AGREE, NOT)) -> str:
    """ "untestable" where the smallest p is above ``ALPHA`` (or there is none), else the word for a p of at most that, or not."""
    if not smallest <= ALPHA:
        return UNTESTABLE
    return words[0] if p <= ALPHA else words[1]


def sign_test(differences: Sequence[float] | Float[np.ndarray, "seed"]) -> Signs:
    """Whether a difference is above 0 in more seeds than by the toss of a coin; a tie counts as not above.

    ``p = sum_{i >= above} C(n, i) / 2^n``, at least ``2^-n``: 1/8 for three seeds, which is untestable.

    Raises:
        ValueError: no seeds, or a difference that is missing.

    Source: Dixon & Mood 1946; one-sided, as what is claimed is that one measure does better.
    """
    given = np.asarray(differences, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
        raise ValueError(f"differences are {given.tolist()}; need one finite number for each seed")
    n, above = len(given), int(np.count_nonzero(given > 0))
    p, smallest = sum(comb(n, i) for i in range(above, n + 1)) / 2**n, 2.0**-n
    return Signs(above, n, p, smallest, verdict(p, smallest, ("above", "not above")))


@lru_cache(maxsize=32)
def _every(sizes: tuple[int, ...]) -> np.ndarray:
    found = np.array(list(_dealt(list(sizes))), dtype=np.int64)
    found.flags.writeable = False
    return found


def _dealt(left: list[int]) -> Iterator[list[int]]:
    """Every order of labels of which ``left[i]`` are ``i``."""
    if not any(left):
        yield []
    for label, count in enumerate(left):
        if count:
            rest = [*left[:label], count - 1, *left[label + 1 :]]
            yield from ([label, *more] for more in _dealt(rest))
