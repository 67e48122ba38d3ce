"""Does held-out text speak for a head's skip-trigrams, and against the ones that it cannot help raising?

``measured_lift`` asks how much likelier ``out`` follows ``destination`` behind a ``source``, triple by triple, ``pooled_lift``
asks it of all triples together. Since a triple's value is a product, every head that raises ``s...d1 -> o1`` and
``s...d2 -> o2`` raises ``s...d1 -> o2`` too, wanted or not: ``bug_share`` asks how many of those the text speaks against.

Source: Elhage et al. 2021, "Skip-trigrams" and "bugs"; the estimators ours.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from circuits.models.protocol import check_tokens
from circuits.results import array_hash

if TYPE_CHECKING:
    import xarray as xr


def measured_lift(triples: "xr.Dataset", tokens: Int[Tensor, "example pos"]) -> "xr.Dataset":
    """How much likelier ``out`` follows ``destination`` where ``source`` stands earlier in the context, on held-out text.

    ``lift = log P(next = out | destination now, source earlier) - log P(next = out | destination now, source not earlier)``,
    each ``P = (count + 1/2) / (n + 1)``. It is an association in the text, of which the head is one possible user: no claim
    that the head causes it.

    Args:
        triples: what ``skip_trigrams`` gave: ``source, destination, out`` along ``triple``.
        tokens: ``[example, pos]``; each example is a context of its own, "earlier" is strictly before the destination.

    Returns:
        ``Dataset(triple)``: ``value`` in nats (chance 0), ``stderr`` by the delta method, ``sqrt(sum of (1 - P) / (P (n + 1)))``,
        which takes positions as independent and so is too small where one text repeats itself; ``n_with, count_with,
        n_without, count_without``. NaN where either condition is never met. The halves raise ``P`` where ``n`` is small: a mean
        of lifts over rare triples is positive without any association, so take ``pooled_lift`` for a claim about many.

    Raises:
        TypeError, ValueError: no triples, or not tokens of at least two positions.

    Source: skip-trigram statistics of Elhage et al. 2021; the estimator ours.
    """
    counts = np.zeros((4, len(_columns(triples)[0])), dtype=np.int64)
    for t, _, seen, hit in _occasions(triples, tokens):
        counts[:, t] = seen.sum(), (seen & hit).sum(), (~seen).sum(), (~seen & hit).sum()
    n_with, count_with, n_without, count_without = counts
    p_with, p_without = (count_with + 0.5) / (n_with + 1), (count_without + 0.5) / (n_without + 1)
    never = (n_with == 0) | (n_without == 0)
    lift = np.where(never, np.nan, np.log(p_with / p_without))
    variance = (1 - p_with) / (p_with * (n_with + 1)) + (1 - p_without) / (p_without * (n_without + 1))
    return _along(
        triples,
        {
            "value": lift,
            "stderr": np.where(never, np.nan, np.sqrt(variance)),
            "n_with": n_with,
            "count_with": count_with,
            "n_without": n_without,
            "count_without": count_without,
        },
        chance=0.0,
        units="nats",
        definition="log P(out | destination, source earlier) - log P(out | destination, source not earlier), add-half",
        data_hash=array_hash(tokens.cpu()),
    )


def pooled_lift(triples: "xr.Dataset", tokens: Int[Tensor, "example pos"]) -> "xr.Dataset":
    """How many more of a head's skip-trigrams a text completes than their destinations alone would: all triples as one.

    ``log(sum of count_with / sum of n_with * count_without / n_without)``, observed over expected, where the rate without the
    source is the triple's expectation for each occasion with it. Sums have no bias from small counts, logs of each have.

    Args:
        triples, tokens: as of ``measured_lift``; triples without an occasion of either kind count for nothing.

    Returns:
        Scalars: ``value`` in nats (chance 0; NaN where nothing is expected, -inf where nothing is observed), ``stderr`` by the
        jackknife over examples, rates without the source included (NaN where one example is all there is), ``observed``,
        ``expected``.

    Raises:
        TypeError, ValueError: as ``measured_lift``.

    Source: ratio of observed to expected counts (Mantel and Haenszel 1959); skip-trigrams of Elhage et al. 2021.
    """
    import xarray as xr

    n = len(tokens)
    whole, left_out = np.zeros(2), np.zeros((2, n))  # observed and expected; of all examples, and of all but one
    for _, example, seen, hit in _occasions(triples, tokens):
        of = [np.bincount(example[kind], minlength=n) for kind in (seen & hit, seen, ~seen & hit, ~seen)]
        whole += _observed_and_expected(*(counts.sum() for counts in of))
        left_out += _observed_and_expected(*(counts.sum() - counts for counts in of))
    observed, expected = whole
    with np.errstate(divide="ignore", invalid="ignore"):
        value, without = np.log(observed / expected), np.log(left_out[0] / left_out[1])
    stderr = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()) if n > 1 and np.isfinite(without).all() else np.nan
    scalars = {"value": value, "stderr": stderr, "chance": 0.0, "observed": observed, "expected": expected}
    return xr.Dataset(
        {name: ((), x) for name, x in scalars.items()},
        attrs={
            "definition": "log of completions after the source over those expected from the destination alone",
            "source": "Elhage et al. 2021, skip-trigrams; Mantel and Haenszel 1959",
            "units": "nats",
            "data_hash": array_hash(tokens.cpu()),
        },
    )


def bug_share(
    triples: "xr.Dataset", tokens: Int[Tensor, "example pos"], *, min_expected: float = 1.0, pmi_below: float = 0.0
) -> "xr.Dataset":
    """The share of crossed skip-trigrams that the text speaks against.

    Two triples of one source, ``(s, d1 -> o1)`` and ``(s, d2 -> o2)``, cross to ``(s, d1 -> o2)`` and ``(s, d2 -> o1)``. Both
    have a positive weight *by construction*, whatever the text says, so "is it raised too?" is no question. Here a crossed triple
    is a bug if ``o`` follows ``d`` in the text less often than chance, whatever the context:
    ``PMI(d, o) = log(n(d -> o) N / (n(d ->) n(-> o))) < pmi_below`` (-inf if never). This is a proxy: it cannot see that ``o``
    is wrong only after ``s``, nor that another head repairs it.

    Args:
        triples, tokens: as of ``measured_lift``.
        min_expected: a crossed triple counts only where independence expects this many ``d -> o``; below, zero says nothing.

    Returns:
        Scalars: ``value`` = bugs / measured in [0, 1]; ``stderr`` (binomial; crossed triples share tokens, so too small);
        ``n_crossed`` distinct crossed triples that are not among the triples themselves, ``n_measured`` of them with enough text,
        ``n_bugs``; ``chance``, the same share among the triples themselves (``n_chance`` measured): a head's bugs exceed it.
        NaN where nothing is measured.

    Raises:
        TypeError, ValueError: no triples, not tokens of at least two positions, or ``min_expected`` not positive.

    Source: Elhage et al. 2021, skip-trigram "bugs"; the definition against a text ours.
    """
    import xarray as xr

    source, destination, out = _columns(triples)
    check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=2, needed_by="a share of bugs")
    if not min_expected > 0:
        raise ValueError(f"min_expected is {min_expected}; it must be positive, e.g. 1.0")
    own = set(zip(source.tolist(), destination.tolist(), out.tolist(), strict=True))
    crossed: set[tuple[int, int, int]] = set()
    for s in np.unique(source).tolist():
        mine = np.flatnonzero(source == s)
        pairs = {(int(destination[t]), int(out[t])) for t in mine}
        # d1 -> o2 crosses two triples of s unless it is one itself: then it was ranked, and is no by-product.
        crossed |= {(s, d, o) for d, _ in pairs for _, o in pairs} - own
    text = tokens.cpu().numpy().astype(np.int64)
    bigrams = _Bigrams(text)

    def share(cells: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        pmi = [bigrams.pmi(d, o, min_expected) for _, d, o in cells]
        measured = [x for x in pmi if not math.isnan(x)]
        return sum(x < pmi_below for x in measured), len(measured)

    bugs, measured = share(sorted(crossed))
    own_bugs, own_measured = share(sorted(own))
    value = bugs / measured if measured else math.nan
    scalars = {
        "value": value,
        "stderr": math.sqrt(value * (1 - value) / measured) if measured else math.nan,
        "chance": own_bugs / own_measured if own_measured else math.nan,
        "n_crossed": len(crossed),
        "n_measured": measured,
        "n_bugs": bugs,
        "n_chance": own_measured,
    }
    return xr.Dataset(
        {name: ((), x) for name, x in scalars.items()},
        attrs={
            "definition": "crossed triples (s, d1 -> o2) with PMI(d1, o2) below pmi_below / those with enough text",
            "source": "Elhage et al. 2021, skip-trigram bugs; against a text ours",
            "min_expected": min_expected,
            "pmi_below": pmi_below,
            "data_hash": array_hash(tokens.cpu()),
        },
    )


def _observed_and_expected(count_with: Any, n_with: Any, count_without: Any, n_without: Any) -> np.ndarray:
    """Completions with the source, and as many as the rate without it would give; 0 and 0 without occasions of both kinds."""
    both = (np.asarray(n_with) > 0) & (np.asarray(n_without) > 0)
    rate = count_without / np.maximum(n_without, 1)
    return np.stack((np.where(both, count_with, 0.0), np.where(both, n_with * rate, 0.0)))


def _occasions(
    triples: "xr.Dataset", tokens: Int[Tensor, "example pos"]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each triple: the examples in which its destination stands (once for each place), whether the source stands earlier
    there, and whether ``out`` follows."""
    source, destination, out = _columns(triples)
    check_tokens(tokens, d_vocab=2**31, n_ctx=2**31, min_length=2, needed_by="a measured lift")
    text = tokens.cpu().numpy().astype(np.int64)
    length = text.shape[1]
    places = _Places(text)
    first: dict[int, np.ndarray] = {}
    for s in np.unique(source).tolist():
        example, pos = places.of(s)
        first[s] = np.full(len(text), length)
        np.minimum.at(first[s], example, pos)
    for d in np.unique(destination).tolist():
        example, pos = places.of(d)
        example, pos = example[pos < length - 1], pos[pos < length - 1]
        following = text[example, pos + 1]
        for t in np.flatnonzero(destination == d).tolist():
            yield t, example, first[int(source[t])][example] < pos, following == out[t]


class _Places:
    """Where each token stands in a text, by one sort."""

    def __init__(self, text: np.ndarray):
        self.length = text.shape[1]
        self.order = np.argsort(text, axis=None, kind="stable")
        self.sorted = text.ravel()[self.order]

    def of(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples and positions, in reading order."""
        low, high = np.searchsorted(self.sorted, [token, token + 1])
        return np.divmod(self.order[low:high], self.length)


class _Bigrams:
    """Counts of adjacent pairs in a text."""

    def __init__(self, text: np.ndarray):
        now, following = text[:, :-1].ravel(), text[:, 1:].ravel()
        self.base = int(text.max()) + 1
        self.total = len(now)
        self.pairs = dict(zip(*(x.tolist() for x in np.unique(now * self.base + following, return_counts=True)), strict=True))
        self.now, self.following = np.bincount(now, minlength=self.base), np.bincount(following, minlength=self.base)

    def pmi(self, d: int, o: int, min_expected: float) -> float:
        """``log(n(d -> o) N / (n(d ->) n(-> o)))``; NaN where fewer than ``min_expected`` pairs are expected."""
        if max(d, o) >= self.base:
            return math.nan
        expected = int(self.now[d]) * int(self.following[o]) / self.total
        if expected < min_expected:
            return math.nan
        count = self.pairs.get(d * self.base + o, 0)
        return math.log(count / expected) if count else -math.inf


def _columns(triples: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = ("source", "destination", "out")
    if not all(name in getattr(triples, "data_vars", ()) and triples[name].dims == ("triple",) for name in names):
        raise TypeError(
            f"triples are {type(triples).__name__} without ids along 'triple'; pass what "
            "circuits.weights.skip_trigrams.skip_trigrams gives, a Dataset with source, destination and out"
        )
    source, destination, out = (np.asarray(triples[name].values, dtype=np.int64) for name in names)
    if not len(source):
        raise ValueError("there are no triples; this head has no positive ones, take another head")
    return source, destination, out


def _along(triples: "xr.Dataset", variables: dict[str, np.ndarray], *, chance: float, **attrs: str) -> "xr.Dataset":
    import xarray as xr

    kept = [name for name in triples.data_vars if str(name).startswith(("source", "destination", "out"))]
    data = {name: ("triple", x) for name, x in variables.items()} | {"chance": ((), chance)}
    return triples[kept].assign(xr.Dataset(data)).assign_attrs(attrs)
