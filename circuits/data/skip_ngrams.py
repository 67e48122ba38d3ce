"""Skip-n-grams: does a token a little way back make the next one likelier than the present token alone does?

Orientation: ``source ... destination -> out``, the source ``2 .. gap`` tokens before the destination, ``out`` right behind it. At
distance 1 the three would be a contiguous trigram. A source counts once for a destination, however often it stands there. The
lift is ``log P(out | destination, source within the gap) / P(out | destination)``, so what the destination says is divided out;
contiguous trigrams and topics are not, and neither is a claim that a model uses the source.

Counts are made for the triples asked for, in passes over ``(destination, source)`` pairs of the corpus of bounded size: memory
is linear in the corpus and in the triples, never vocabulary squared.

Source: skip-trigrams of Elhage et al. 2021; the estimator ours.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from circuits.data.lift import Lift, lift_of
from circuits.data.ngrams import NgramTable
from circuits.data.streams import check_ids
from circuits.results import check_whole

GAP = 16
"""How far back a source may stand, in tokens."""

PAIRS = 8_000_000
"""Pairs held at once; at most 64 MB."""


def skip_lift(table: NgramTable, triples: Int[np.ndarray, "*shape triple"], *, gap: int = GAP) -> Lift:
    """The lift of each triple in the table's corpus, nats.

    Args:
        table: of the corpus.
        triples: ``[..., 3]``: source, destination, out; they may repeat.
        gap: the farthest a source may stand before the destination, at least 2 tokens.

    Returns:
        ``[...]``: value (chance 0), stderr, z and p against sources dealt out at random among the destination's places, and the
        counts: ``occasions`` of the destination with the source, ``hits`` of those followed by out, ``all_occasions`` and
        ``all_hits`` of the destination anywhere.

    Raises:
        TypeError: the triples are no integers.
        ValueError: not ``[..., 3]``, ids outside the vocabulary, or the gap is below 2.
    """
    check_whole("gap", gap, 2, "since at distance 1 the three tokens are a trigram")
    if not isinstance(triples, np.ndarray) or triples.dtype.kind not in "iu":
        raise TypeError(f"triples are {type(triples).__name__}, need an integer array [..., 3] of source, destination, out")
    if not triples.ndim or triples.shape[-1] != 3:
        raise ValueError(f"triples have shape {triples.shape}, need [..., 3]: source, destination, out")
    check_ids(triples, table.d_vocab, "triples")
    # d_vocab^3 fits int64 to two million ids; each triple is counted once, in the order in which the tables lie
    key = (triples[..., 1].astype(np.int64) * table.d_vocab + triples[..., 2]) * table.d_vocab + triples[..., 0]
    distinct, back = np.unique(key, return_inverse=True)
    bigrams, source = np.divmod(distinct, table.d_vocab)
    destination, out = np.divmod(bigrams, table.d_vocab)
    asked = table.ids_of(np.stack([destination, out], axis=-1))
    following = next_same(table.tokens)
    counts = (
        _with_source(table, table.bigrams, following, asked, source, gap),
        _with_source(table, np.where(table.bigrams < 0, -1, table.tokens), following, destination, source, gap),
        np.where(asked >= 0, table.counts[1][asked], 0),
        table.occasions(destination[:, None]),
    )
    return lift_of(*(np.asarray(number[back]).reshape(key.shape) for number in counts))


def _with_source(
    table: NgramTable, group: np.ndarray, following: np.ndarray, asked: np.ndarray, source: np.ndarray, gap: int
) -> np.ndarray:
    """How many places of the corpus have the group asked for and the source within the gap.

    Args:
        group: of each place of the corpus, -1 for none. asked: groups, -1 for one that does not occur. source: to be found there.
    """
    found = np.zeros(asked.shape, dtype=np.int64)
    if not (asked >= 0).any():
        return found
    groups, rank = np.unique(asked[asked >= 0], return_inverse=True)
    small = np.uint32 if len(groups) * table.d_vocab < 2**32 else np.int64  # numpy sorts 32 bits three times as fast
    queries, back = np.unique((rank * table.d_vocab + source[asked >= 0]).astype(small), return_inverse=True)
    ranks = np.full(max(int(group.max()), int(groups[-1])) + 2, -1)
    ranks[groups] = np.arange(len(groups))
    here = ranks[group]  # group -1 reads the last entry, which stays -1
    places = np.flatnonzero(here >= 0)
    counts = np.zeros(len(queries), dtype=np.int64)
    for pairs in _pairs(table, following, places, (here[places] * table.d_vocab).astype(small), gap):
        counts += np.searchsorted(pairs, queries, side="right") - np.searchsorted(pairs, queries, side="left")
    found[asked >= 0] = counts[back]
    return found


def _pairs(table: NgramTable, following: np.ndarray, places: np.ndarray, base: np.ndarray, gap: int) -> Iterator[np.ndarray]:
    """``base + source`` for every place and every different token within the gap before it, in sorted parts."""
    begin = np.repeat(table.starts, np.diff(table.starts, append=len(table.tokens)))
    step = max(PAIRS // (gap - 1), 1)
    for low in range(0, len(places), step):
        part, of_part = places[low : low + step], base[low : low + step]
        found = [of_part[of] + table.tokens[at].astype(base.dtype) for of, at in sources(following, begin[part], part, gap)]
        yield np.sort(np.concatenate(found))


def next_same(tokens: Int[np.ndarray, "token"]) -> Int[np.ndarray, "token"]:
    """Where the same token stands next in a text, its length where it does not."""
    order = np.argsort(tokens.astype(np.uint16) if tokens.max() < 2**16 else tokens, kind="stable")  # 16 bits by radix
    following = np.full(len(tokens), len(tokens))
    same = tokens[order[1:]] == tokens[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    return following


def sources(
    following: Int[np.ndarray, "token"], begin: Int[np.ndarray, "place"], places: Int[np.ndarray, "place"], gap: int
) -> Iterator[tuple[Int[np.ndarray, "source"], Int[np.ndarray, "source"]]]:
    """Every different token that stands 2 to ``gap`` tokens before each place, nearest first and once each.

    Args:
        following: ``next_same`` of the text. begin: where each place's context begins. places: the destinations.

    Yields:
        For each distance: which of the places have a source there, and where it stands.
    """
    for distance in range(2, gap + 1):
        of = np.flatnonzero(places - distance >= begin)
        of = of[following[places[of] - distance] > places[of] - 2]  # one that stands again nearer is met there
        yield of, places[of] - distance
