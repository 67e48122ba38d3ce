"""Which keys co-occur with a query token, and which of them tell the next token? Statistics of a corpus, window by window.

A *query* is a token ``m = x_t`` with one after it, a *key* any token ``l = x_{t-d}`` at most ``window`` tokens before it in the
same stream, the *next* token is ``n = x_{t+1}``. Every key position counts, as every one gets attention: ``N(m, l, n)`` is the
number of ``(t, d)`` that show the three, and letters left out are summed over.

    log P(l|m)   = log N(m, l) / N(m)
    PMI          = log P(l|m) - log P(l)                             > 0: l is commoner before m than elsewhere
    P~(n|l, m)   = (N(m, l, n) + alpha P(n|m)) / (N(m, l) + alpha)   shrunk towards what the query says alone
    D_{l|m}      = KL(P~(n|l, m) || P(n|m))                          what the key says beyond the query, nats
    D_l          = KL(P~(n|l) || P(n)),   P~(n|l) = (N(l, n) + alpha P(n)) / (N(l) + alpha)
    E_l          = 1 - H~(n|l) / H(n)                                H~ the entropy of P~(n|l)

Shrinkage is essential: of a key seen five times every distribution looks distinct. It makes D and E small where there is little
text, so that they grow with frequency; ask for their part given ``log P(l|m)``. Successive occasions are not independent.

A null for what keys have to do with a query relabels keys, within bins of nearly equal frequency. Of a query only some keys are
known; the permutation is then followed until it meets a known one. This first return is a permutation of the known keys, again
uniform, and its next key is the next one in the same cycle: sorting a query's pairs by cycle gives it for all of them at once.

Counts are made query by query in sorted parts of bounded size (one query token's occasions lie together): memory is linear in
the pairs that occur, and never in triples.

Source: Tian et al. 2023 ("Scan and Snap"), distinct and common tokens; the shrinkage ours. Church & Hanks 1990 for PMI;
Foata 1968 for the cycles of a uniform permutation, read off a shuffled row that is cut before every record.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from circuits.data.streams import flat_streams
from circuits.results import array_hash, check_whole

HELD = 4_000_000
"""Occasions held at once: about 200 MB while they are worked on."""
BIN_SIZE, BIN_RATIO = 16, 1.12
"""Most tokens of a bin, and the most their frequencies differ by: within a bin, frequency itself must say next to nothing."""


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """All (query, key) pairs of a corpus, sorted by query, then key; made by ``pair_statistics``.

    Attributes:
        query, key, count: the pairs that occur, and N(m, l) of each.
        log_p, pmi: of each pair, nats; PMI is 0 where they are independent.
        discriminativeness: D_{l|m} of each pair, nats, at least 0; 0 where the key says nothing.
        unigram: how often each token is a key, N(l).
        key_discriminativeness, exclusivity: D_l (nats, at least 0) and E_l (at most 1) of each token, NaN where it is no key; 0
            where it says nothing. E is below 0 where the next token is less certain than at large.
        d_vocab, window, alpha, data_hash: what they were made from.
    """

    query: Int[np.ndarray, "pair"]
    key: Int[np.ndarray, "pair"]
    count: Int[np.ndarray, "pair"]
    log_p: Float[np.ndarray, "pair"]
    pmi: Float[np.ndarray, "pair"]
    discriminativeness: Float[np.ndarray, "pair"]
    unigram: Int[np.ndarray, "d_vocab"]
    key_discriminativeness: Float[np.ndarray, "d_vocab"]
    exclusivity: Float[np.ndarray, "d_vocab"]
    d_vocab: int
    window: int
    alpha: float
    data_hash: str

    def matrix(self, values: Float[np.ndarray, "pair"] | Int[np.ndarray, "pair"]) -> csr_array:
        """Values of the pairs as a sparse matrix ``[query, key]``, e.g. ``matrix(pairs.count)``."""
        return csr_array((values, (self.query, self.key)), shape=(self.d_vocab, self.d_vocab))

    def find(self, query: Int[np.ndarray, "*asked"], key: Int[np.ndarray, "*asked"]) -> Int[np.ndarray, "*asked"]:
        """The places of pairs, -1 for those that do not occur."""
        known, asked = (m.astype(np.int64) * self.d_vocab + n for m, n in ((self.query, self.key), (query, key)))
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        return np.where(known[place] == asked, place, -1)


def pair_statistics(streams: Sequence[np.ndarray], d_vocab: int, *, window: int = 32, alpha: float = 100.0) -> PairStatistics:
    """Count the pairs of a corpus and what follows them; definitions in the module.

    Args:
        streams: token ids, e.g. ``split_blocks(run.corpus["code_train"])``; no pair crosses from one to the next.
        d_vocab: ids are ``0 .. d_vocab - 1``. window: how far back keys may stand, in tokens.
        alpha: occasions the prior is worth; 50 to 200 for text, 0 for none.

    Raises:
        TypeError: the streams are no sequence of flat integer arrays.
        ValueError: ids outside the vocabulary, no stream of three tokens, a window below 1 or a negative alpha.

    Source: Tian et al. 2023; see the module.
    """
    check_whole("d_vocab", d_vocab, 2)
    check_whole("window", window, 1)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < np.inf:
        raise ValueError(f"alpha={alpha!r}: need a number of occasions of at least 0, e.g. 100")
    tokens, starts = flat_streams(streams, d_vocab)
    lengths = np.diff(starts, append=len(tokens))
    if lengths.max() < 3:
        raise ValueError(
            f"the longest stream has {lengths.max()} tokens; a key, a query and a next token are 3: give longer streams"
        )
    before = np.arange(len(tokens)) - np.repeat(starts, lengths)
    places = np.flatnonzero((before > 0) & (before < np.repeat(lengths, lengths) - 1))
    text = _Occasions(tokens.astype(np.int64), places, np.minimum(before[places], window), d_vocab)
    parts = [_of_pairs(part, text.d_vocab, alpha) for part in text.triples()]
    query, key, count, kl = (np.concatenate(column) for column in zip(*parts, strict=True))
    of_query, of_key = (np.bincount(ids, count, d_vocab) for ids in (query, key))
    log_p = np.log(count / of_query[query])
    D, E = _of_keys(text, alpha)
    return PairStatistics(
        query=query,
        key=key,
        count=count,
        log_p=log_p,
        pmi=log_p - np.log(of_key[key] / count.sum()),
        discriminativeness=kl,
        unigram=of_key.astype(np.int64),
        key_discriminativeness=D,
        exclusivity=E,
        d_vocab=d_vocab,
        window=window,
        alpha=float(alpha),
        data_hash=array_hash(tokens, starts, np.array([d_vocab, window]), np.array(alpha, dtype=np.float64)),
    )


def frequency_bins(
    counts: Int[np.ndarray, "d_vocab"], *, size: int = BIN_SIZE, ratio: float = BIN_RATIO
) -> Int[np.ndarray, "d_vocab"]:
    """Bins of tokens of nearly equal frequency, the commonest in bin 0.

    Args:
        counts: of each token. size: most tokens of a bin. ratio: most that frequencies in a bin may differ by, as a factor.
    """
    by, bins, number, first = np.argsort(-counts, kind="stable"), np.zeros(len(counts), dtype=np.int64), -1, 0
    for place, token in enumerate(by.tolist()):
        if number < 0 or place - first == size or counts[by[first]] > ratio * counts[token]:
            number, first = number + 1, place
        bins[token] = number
    return bins


def permuted_keys(
    query: Int[np.ndarray, "pair"], key: Int[np.ndarray, "pair"], bins: Int[np.ndarray, "d_vocab"], rng: np.random.Generator
) -> Int[np.ndarray, "pair"]:
    """A random relabelling of keys inside bins: for each pair, the pair of the same query whose values it is given.

    Args:
        query, key: the known pairs, each once. bins: of every token.

    Returns:
        A permutation of the pairs within each query and bin, uniform over all, and one relabelling for all queries as far as they
        know the same keys.
    """
    row = np.lexsort([rng.random(len(bins)), bins])  # tokens shuffled, bin by bin
    height = bins[row].astype(np.int64) * len(bins) + row
    record = np.append(True, height[1:] > np.maximum.accumulate(height)[:-1])
    place, cycle = np.empty((2, len(bins)), dtype=np.int64)
    place[row], cycle[row] = np.arange(len(bins)), np.cumsum(record)
    order = np.argsort(query.astype(np.int64) * len(bins) + place[key])
    group = np.append(True, (np.diff(query[order]) != 0) | (np.diff(cycle[key[order]]) != 0))
    first = np.flatnonzero(group)
    following = np.append(order[1:], 0)
    following[np.append(first[1:], len(order)) - 1] = order[first]
    found = np.empty_like(order)
    found[order] = following
    return found


class _Triples(NamedTuple):
    """Distinct triples of some queries, ascending by ``pair = query * d_vocab + key``, then next token, and their counts; and
    ``P(n|m)`` of each."""

    pair: np.ndarray
    count: np.ndarray
    base: np.ndarray


class _Occasions(NamedTuple):
    """The queries of a corpus: where they stand, and how many keys each sees."""

    tokens: np.ndarray
    places: np.ndarray
    seen: np.ndarray
    d_vocab: int

    def triples(self) -> Iterator[_Triples]:
        """Counts of all triples, some query tokens at a time."""
        m, V = self.tokens[self.places], self.d_vocab
        by = np.argsort(m, kind="stable")
        held = np.cumsum(self.seen[by])
        ends = np.append(np.flatnonzero(np.diff(m[by])), len(by) - 1) + 1  # of each query token's places
        low, done = 0, 0
        for end, following in zip(ends, [*ends[1:], None], strict=True):
            if following is not None and held[following - 1] - done <= HELD:
                continue
            part, done = by[low:end], int(held[end - 1])
            first, low = int(m[part[0]]), end
            places, seen, query = self.places[part], self.seen[part], m[part] - first
            small = (int(query[-1]) + 1) * V**2 < 2**32  # numpy sorts 32 bits several times as fast
            then = self.tokens[places + 1]
            triple = _distinct(self._keys(places, seen, query * V, then, np.uint32 if small else np.int64))
            pairs, n = np.divmod(triple[0].astype(np.int64), V)
            follow, where = np.unique(query * V + then, return_inverse=True)
            of_next, of_query = np.bincount(where, seen), np.bincount(query, seen)
            rate = of_next / of_query[follow // V]
            yield _Triples(pairs + first * V, triple[1], rate[np.searchsorted(follow, pairs // V * V + n)])

    def by_key(self) -> csr_array:
        """``N(l, n)``."""
        V, total = self.d_vocab, csr_array((self.d_vocab, self.d_vocab), dtype=np.int64)
        step = max(1, HELD // int(self.seen.max()))
        for low in range(0, len(self.places), step):
            places, seen = self.places[low : low + step], self.seen[low : low + step]
            keys, counts = _distinct(self._keys(places, seen, np.zeros_like(places), self.tokens[places + 1], np.int64))
            total = total + csr_array((counts, np.divmod(keys, V)), shape=(V, V))
        return total

    def _keys(self, places: np.ndarray, seen: np.ndarray, base: np.ndarray, then: np.ndarray, kind: type) -> np.ndarray:
        """``(base + key) * d_vocab + next`` of every occasion."""
        found = []
        for distance in range(1, int(seen.max()) + 1):
            at = np.flatnonzero(seen >= distance)
            found.append(((base[at] + self.tokens[places[at] - distance]) * self.d_vocab + then[at]).astype(kind))
        return np.concatenate(found)


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different keys, ascending, and how often each occurs."""
    keys.sort()
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.diff(first, append=len(keys))


def _of_pairs(triples: _Triples, d_vocab: int, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query, key, N(m, l) and D_{l|m} of the pairs in some triples."""
    first = np.flatnonzero(np.append(True, np.diff(triples.pair) != 0))
    count, kl = _shrunk_kl(triples.count, triples.base, first, alpha)
    query, key = np.divmod(triples.pair[first], d_vocab)
    return query, key, count, kl


def _shrunk_kl(count: np.ndarray, base: np.ndarray, first: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each group of next tokens: its count, and KL of its shrunk distribution to the base; groups begin at ``first``.

    A token that never follows has ``c = alpha / (N + alpha)`` times its base rate, so all of them together add
    ``(1 - base rate of those that follow) c log c``.
    """
    total = np.add.reduceat(count, first)
    of = np.repeat(np.arange(len(first)), np.diff(first, append=len(count)))
    ratio = (count / base + alpha) / (total[of] + alpha)
    c = alpha / (total + alpha)
    rest = np.maximum(1 - np.add.reduceat(base, first), 0)
    kl = np.add.reduceat(base * ratio * np.log(ratio), first) + rest * c * np.log(np.where(c > 0, c, 1))
    return total, np.maximum(kl, 0)  # rounding around 0


def _of_keys(text: _Occasions, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """``D_l`` and ``E_l`` of every token, NaN for one that is no key."""
    counts = text.by_key()
    known = np.flatnonzero(np.diff(counts.indptr))
    first = counts.indptr[known]
    rates = np.asarray(np.bincount(counts.indices, counts.data, text.d_vocab) / counts.data.sum(), dtype=np.float64)
    base = rates[counts.indices]
    total, kl = _shrunk_kl(counts.data, base, first, alpha)
    # KL = -H~ - sum P~ log P(n), and P~ mixes the counts with P(n), whose own cross-entropy is H(n).
    H = -float(rates[rates > 0] @ np.log(rates[rates > 0]))
    surprise = -np.log(base) * np.asarray(counts.data, dtype=np.float64)
    crossed = (np.add.reduceat(surprise, first) + alpha * H) / (total + alpha)
    found = np.full((2, text.d_vocab), np.nan)
    found[0, known] = kl
    if H > 0:
        found[1, known] = 1 - (crossed - kl) / H
    return found[0], found[1]
