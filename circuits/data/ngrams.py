"""N-gram statistics of a corpus: counts to order 5, what follows a context, and how surprising held-out text is to them.

Orientation: an n-gram is ``(x_1 .. x_{n-1}, o)``, oldest token first; its *context* of order n is the ``n - 1`` tokens before
``o``. N-grams never cross from one stream to the next. Probabilities are relative frequencies with nothing added,

    P_n(o | c) = count(c o) / sum over o' of count(c o'),

where the denominator counts the context's occurrences that something follows. Lift is
``log P_n(o | x_1 .. x_{n-1}) / P_{n-1}(o | x_2 .. x_{n-1})``: what the oldest token adds. Held-out text needs probabilities that
are never zero: ``log_prob`` interpolates the orders by Witten-Bell down to ``1 / d_vocab``. All in nats.

How large a corpus must be: (1) ``TOKENS_PER_ID`` tokens for each id of the vocabulary, else the rates of single tokens and of
what follows them are mostly noise; (2) at every order, a share ``KNOWN_SHARE`` of its own places must have a context that occurs
``MIN_COUNT`` times elsewhere in it (what held-out places can hope for), else that order says nothing about the rest of the text.

Layout: an n-gram's id is its rank in lexicographic order, its key ``id of the context * d_vocab + o``. Ids fit int64 at any order
and vocabulary, what follows a context lies together, and memory is linear in the corpus. One radix sort counts all orders.

Source: Witten & Bell 1991, method C, interpolated as in Chen & Goodman 1998, section 2.6; Miller 1955 for the bias of entropies.
The layout and the two rules of size are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.lift import Lift, lift_of
from circuits.data.streams import check_text, flat_streams
from circuits.results import array_hash, check_whole

TOKENS_PER_ID = 10
"""Tokens a corpus needs for each id: a probability of 1/2 then has a standard error of .16 for an average token."""

MIN_COUNT = 5
KNOWN_SHARE = 0.1
"""A tenth of the places must have a context that occurs five times elsewhere, at every order."""


class Following(NamedTuple):
    """What follows each of several contexts: entries ``rows[i] : rows[i + 1]`` are those of context i, tokens ascending.

    Attributes:
        rows: ``[context + 1]``. outs: the tokens. counts: how often each follows. probs: ``P(o | context)``, 1 over a row.
    """

    rows: Int[np.ndarray, "context_plus_1"]
    outs: Int[np.ndarray, "entry"]
    counts: Int[np.ndarray, "entry"]
    probs: Float[np.ndarray, "entry"]


class Entropy(NamedTuple):
    """A conditional entropy in nats.

    Attributes:
        value: plug-in estimate. It is biased down: 0 where every context was seen once.
        stderr: standard deviation of ``-log P`` over the root of the places, taken as independent.
        correction: ``(distinct n-grams - distinct contexts) / (2 places)``, Miller's first-order bias, to be added to the value;
            where it is not small beside the value, the corpus is too small to say the entropy of this order.
    """

    value: float
    stderr: float
    correction: float


class Counts(NamedTuple):
    """Of every prediction in a text at orders 1, 2, ...; all ``[order, example, pos - 1]``, 0 where the context does not fit.

    Attributes:
        hits: occurrences of the n-gram. occasions: of its context with something after it. distinct: different tokens after it.
    """

    hits: Int[np.ndarray, "order example pos_minus_1"]
    occasions: Int[np.ndarray, "order example pos_minus_1"]
    distinct: Int[np.ndarray, "order example pos_minus_1"]


@dataclass(frozen=True, eq=False)
class NgramTable:
    """Every n-gram of a corpus up to some order, with its count; made by ``NgramTable.count``.

    Attributes:
        d_vocab: size of the vocabulary. order: length of the longest n-grams. tokens: all streams, one behind the other.
        starts: where each begins. bigrams: of each token, the place of the bigram that begins there among those of order 2, -1 at
            the end of a stream. data_hash: of streams and vocabulary.
        keys, counts: by order, of each distinct n-gram, ascending. rows: by order, where the n-grams of each context begin.
        totals: by order, the sum of the counts before each n-gram, and of all.
    """

    d_vocab: int
    order: int
    tokens: Int[np.ndarray, "token"]
    starts: Int[np.ndarray, "stream"]
    bigrams: Int[np.ndarray, "token"]
    keys: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]
    totals: tuple[np.ndarray, ...]
    data_hash: str

    @classmethod
    def count(cls, streams: Sequence[np.ndarray], d_vocab: int, *, order: int = 5) -> "NgramTable":
        """Count a corpus.

        Args:
            streams: token ids, e.g. ``split_blocks(run.corpus["code_train"])``; no n-gram crosses from one to the next.
            d_vocab: ids are ``0 .. d_vocab - 1``. order: length of the longest n-grams, at least 2.

        Raises:
            TypeError: the streams are no sequence of flat integer arrays.
            ValueError: an id lies outside the vocabulary, or the corpus is too small for it or for the order (see the module).
        """
        check_whole("d_vocab", d_vocab, 2)
        check_whole("order", order, 2)
        tokens, starts = flat_streams(streams, d_vocab)
        if len(tokens) < TOKENS_PER_ID * d_vocab:
            raise ValueError(
                f"the corpus has {len(tokens):,} tokens; n-grams over {d_vocab:,} ids need at least {TOKENS_PER_ID * d_vocab:,}, "
                f"{TOKENS_PER_ID} for each, which is {TOKENS_PER_ID * d_vocab - len(tokens):,} more: give more text"
            )
        if (longest := int(np.diff(starts, append=len(tokens)).max())) < order:
            raise ValueError(
                f"the longest stream has {longest} tokens and order is {order}: give longer streams, or order={longest}"
            )
        keys, counts, rows, bigrams = _counted(tokens, starts, d_vocab, order)
        totals = tuple(np.concatenate([[0], np.cumsum(number)]) for number in counts)
        table = cls(d_vocab, order, tokens, starts, bigrams, keys, counts, rows, totals, array_hash(tokens, starts, d_vocab))
        for n in range(3, order + 1):  # rule (1) implies this one at order 2: at most half of the tokens are of rare ids
            elsewhere = np.repeat(table.counts[n - 2] - 1, table.counts[n - 2])
            typical = float(np.quantile(elsewhere, 1 - KNOWN_SHARE))
            if typical < MIN_COUNT:
                raise ValueError(
                    f"the corpus is too small for order {n}: {(elsewhere >= MIN_COUNT).mean():.1%} of its {len(tokens):,} tokens "
                    f"follow {n - 1} tokens that occur {MIN_COUNT} times elsewhere, {KNOWN_SHARE:.0%} are needed, which takes at "
                    f"least {MIN_COUNT / max(typical, 1) * len(tokens):,.0f} tokens: give more text, or order={n - 1}"
                )
        return table

    def counts_of(self, ngrams: Int[np.ndarray, "*shape n"]) -> Int[np.ndarray, "*shape"]:
        """How often n-grams of one order occur, ``n`` from 1 to ``order``."""
        ids = self.ids_of(ngrams)
        return self._count(ngrams.shape[-1], ids)

    def ids_of(self, ngrams: Int[np.ndarray, "*shape n"]) -> Int[np.ndarray, "*shape"]:
        """The place of n-grams of one order in ``keys`` and ``counts``, -1 for one that does not occur."""
        return self._ids(ngrams, 1)

    def occasions(self, contexts: Int[np.ndarray, "*shape n"]) -> Int[np.ndarray, "*shape"]:
        """How often contexts of ``n`` tokens (0 to ``order - 1``) occur with something after them."""
        ids = self._ids(contexts, 0)
        return self._followed(contexts.shape[-1] + 1, ids)[2]

    def prob(self, contexts: Int[np.ndarray, "*shape n"], out: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """``P(out | context)`` in [0, 1]; NaN where the context was never seen."""
        occasions = self.occasions(contexts)
        hits = self.counts_of(np.concatenate([contexts, out[..., None]], axis=-1))
        return np.where(occasions > 0, hits / np.maximum(occasions, 1), np.nan)

    def lift(self, contexts: Int[np.ndarray, "*shape n"], out: Int[np.ndarray, "*shape"]) -> Lift:
        """How much likelier ``out`` is after the whole context than after it without its oldest token, nats.

        Args:
            contexts: of 1 to ``order - 1`` tokens. out: the token after each.
        """
        ngrams, shorter = np.concatenate([contexts, out[..., None]], axis=-1), contexts[..., 1:]
        everywhere = self.counts_of(ngrams[..., 1:]), self.occasions(shorter)
        return lift_of(self.counts_of(ngrams), self.occasions(contexts), *everywhere)

    def conditional_entropy(self, n: int) -> Entropy:
        """``H(o | n - 1 tokens)`` of the corpus: what the n-gram predictor of order n would lose on its own corpus.

        Raises:
            ValueError: there is no such order.
        """
        check_whole("n", n, 1)
        counts, rows, totals = self.counts[self._order(n) - 1], self.rows[n - 1], self.totals[n - 1]
        context = totals[rows[1:]] - totals[rows[:-1]]
        surprise, places = -np.log(counts / np.repeat(context, np.diff(rows))), int(totals[-1])
        value = float(counts @ surprise / places)
        deviation = float(counts @ (surprise - value) ** 2 / places)
        return Entropy(value, (deviation / places) ** 0.5, (len(counts) - int(np.count_nonzero(context))) / (2 * places))

    def next_distribution(self, contexts: Int[np.ndarray, "context n"]) -> Following:
        """All tokens that ever follow each context, for cross-entropies to the n-gram predictor; empty rows where never seen.

        Args:
            contexts: of 0 to ``order - 1`` tokens.
        """
        n = contexts.shape[-1] + 1
        low, high, occasions = self._followed(n, self._ids(contexts, 0))
        rows = np.concatenate([[0], np.cumsum(high - low)])
        entries = np.arange(rows[-1]) + np.repeat(low - rows[:-1], high - low)
        counts = self.counts[n - 1][entries]
        return Following(rows, self.keys[n - 1][entries] % self.d_vocab, counts, counts / np.repeat(occasions, high - low))

    def ngrams(self, n: int) -> Int[np.ndarray, "ngram n"]:
        """The distinct n-grams of one order in lexicographic order, as ``counts[n - 1]`` counts them."""
        ids = np.arange(len(self.keys[self._order(n) - 1]))
        found = []
        for order in range(n, 0, -1):
            ids, last = np.divmod(self.keys[order - 1][ids], self.d_vocab)
            found.append(last)
        return np.stack(found[::-1], axis=-1)

    def context_counts(self, tokens: Int[Tensor, "example pos"]) -> Counts:
        """Counts behind the prediction of every token 1.. of a text, from the tokens before it in the same example.

        Raises:
            TypeError, ValueError: not integer ids of this vocabulary of rank 2 with at least two positions.
        """
        text = check_text(tokens, self.d_vocab)
        found = np.zeros((3, self.order, text.shape[0], text.shape[1] - 1), dtype=np.int64)
        ids = np.zeros_like(text)  # of the n-gram that begins at each place, here the empty one
        for n in range(1, min(self.order, text.shape[1]) + 1):
            contexts = ids[:, : text.shape[1] - n + 1]
            ids = self._extended(n, contexts, text[:, n - 1 :])
            low, high, occasions = self._followed(n, contexts)
            of = np.stack([self._count(n, ids), occasions, high - low])
            found[:, n - 1, :, max(n - 2, 0) :] = of[:, :, max(2 - n, 0) :]  # one that begins at i predicts token i + n - 1
        return Counts(*found)

    def log_prob(self, tokens: Int[Tensor, "example pos"]) -> Float[np.ndarray, "order example pos_minus_1"]:
        """How likely each token 1.. is to the interpolated n-gram predictor of every order; always finite.

            p_n(o | c) = (count(c o) + T(c) p_{n-1}(o | c')) / (count(c .) + T(c)),   p_0 = 1 / d_vocab,

        T(c) the number of different tokens seen after c, c' the context without its oldest token; a context that was never seen
        or that does not fit leaves p_{n-1}. Sums to 1 over o.

        Returns:
            ``log p_n`` in nats, n = 1 first; ``-log_prob(tokens).mean((1, 2))`` are the predictors' losses, to be laid beside a
            model's.

        Raises:
            TypeError, ValueError: as ``context_counts``.

        Source: Witten & Bell 1991, method C; Chen & Goodman 1998, section 2.6.
        """
        counts = self.context_counts(tokens)
        p, found = np.full(counts.hits.shape[1:], 1 / self.d_vocab), []
        for hits, occasions, distinct in zip(*counts, strict=True):
            p = np.where(occasions > 0, (hits + distinct * p) / np.maximum(occasions + distinct, 1), p)
            found.append(np.log(p))
        return np.stack(found)

    def coverage(self, tokens: Int[Tensor, "example pos"], *, min_count: int = MIN_COUNT) -> Float[np.ndarray, "order"]:
        """The share of predictions in a text whose context of each order occurs at least ``min_count`` times, in [0, 1].

        Contexts that would reach back to position 0, which is BOS, do not count.
        """
        occasions = self.context_counts(tokens).occasions
        return np.array([float((x[:, n:] >= min_count).mean()) if x.shape[1] > n else np.nan for n, x in enumerate(occasions)])

    def _order(self, n: int) -> int:
        if not 1 <= n <= self.order:
            raise ValueError(f"the table holds n-grams of 1 to {self.order} tokens and {n} are asked for: count with order={n}")
        return n

    def _ids(self, ngrams: np.ndarray, least: int) -> np.ndarray:
        """The ids of n-grams of one order, -1 where they do not occur."""
        longest = self.order - 1 + least
        if not isinstance(ngrams, np.ndarray) or ngrams.dtype.kind not in "iu":
            raise TypeError(f"n-grams are {type(ngrams).__name__}, need an integer array [..., n]: use np.array(ids)")
        if not ngrams.ndim or not least <= ngrams.shape[-1] <= longest:
            raise ValueError(f"n-grams have shape {ngrams.shape}; this table looks up [..., n] with n from {least} to {longest}")
        ids = np.zeros(ngrams.shape[:-1], dtype=np.int64)
        for n in range(1, ngrams.shape[-1] + 1):
            ids = self._extended(n, ids, ngrams[..., n - 1])
        return ids

    def _extended(self, n: int, ids: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Ids of n-grams from the ids of their contexts and their last tokens."""
        known = (ids >= 0) & (last >= 0) & (last < self.d_vocab)
        key = np.where(known, ids * self.d_vocab + last, -1)
        place = np.minimum(np.searchsorted(self.keys[n - 1], key), len(self.keys[n - 1]) - 1)
        return np.where(self.keys[n - 1][place] == key, place, -1)

    def _count(self, n: int, ids: np.ndarray) -> np.ndarray:
        return np.where(ids >= 0, self.counts[n - 1][ids], 0)

    def _followed(self, n: int, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of contexts by id: the first n-gram of order n, the one behind the last, and how many occurrences these are."""
        known, rows = contexts >= 0, self.rows[n - 1]
        low, high = np.where(known, rows[contexts], 0), np.where(known, rows[np.maximum(contexts, 0) + 1], 0)
        return low, high, np.asarray(self.totals[n - 1][high] - self.totals[n - 1][low])


def _counted(
    tokens: np.ndarray, starts: np.ndarray, d_vocab: int, order: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
    """Keys, counts and rows of every order, and each place's bigram, by one sort of all places by the tokens that begin there.

    Past the end of a stream stands 0, and each token as 1 more, so an n-gram that does not fit sorts before all that share its
    beginning: those that fit stay together.
    """
    n_tokens = len(tokens)
    left = np.repeat(np.append(starts[1:], n_tokens), np.diff(starts, append=n_tokens)) - np.arange(n_tokens)
    padded = np.concatenate([tokens + 1, np.zeros(order, dtype=tokens.dtype)])
    columns = [np.where(left > n, padded[n : n + n_tokens], 0) for n in range(order)]
    by = np.arange(n_tokens)
    for column in reversed(columns):  # least significant first; numpy sorts 16 bits by radix
        for shift in range(0, d_vocab.bit_length(), 16):
            by = by[np.argsort((column[by] >> shift).astype(np.uint16), kind="stable")]
    keys, counts, rows = [], [], []
    new, ids, n_ids = np.zeros(n_tokens, dtype=bool), np.zeros(n_tokens, dtype=np.int64), 1
    bigrams = np.full(n_tokens, -1)
    for n, column in enumerate(columns, start=1):
        last = column[by]
        new |= np.diff(last, prepend=-1) != 0
        fits = last > 0
        first = np.flatnonzero(new & fits)
        keys.append(ids[first] * d_vocab + last[first] - 1)
        rows.append(np.concatenate([[0], np.cumsum(np.bincount(ids[first], minlength=n_ids))]))
        ids, n_ids = np.cumsum(new & fits) - 1, len(first)
        counts.append(np.bincount(ids[fits], minlength=n_ids))
        if n == 2:
            bigrams[by[fits]] = ids[fits]
    return tuple(keys), tuple(counts), tuple(rows), bigrams
