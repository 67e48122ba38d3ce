"""N-gram and skip-n-gram tables against literal loops and counters, and a context's matches against their definition."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.data import ngrams
from circuits.data.matches import longest_matches
from circuits.data.ngrams import NgramTable
from circuits.data.skip_ngrams import next_same, skip_lift, sources

VOCAB = 4
streams = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=5).filter(
    lambda drawn: max(map(len, drawn)) >= 4
)
texts = st.integers(2, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1, max_size=4)
)


def counted(drawn, order=4):
    """A table of any corpus, however small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "TOKENS_PER_ID", 0)
        patch.setattr(ngrams, "MIN_COUNT", 0)
        return NgramTable.count([np.array(stream) for stream in drawn], VOCAB, order=order)


def literal_counts(drawn, n):
    return Counter(tuple(stream[i : i + n]) for stream in drawn for i in range(len(stream) - n + 1))


@given(streams)
@settings(max_examples=100)
def test_every_order_is_counted_as_a_counter_would(drawn):
    table = counted(drawn)
    for n in range(1, 5):
        literal = literal_counts(drawn, n)
        assert list(map(tuple, table.ngrams(n).tolist())) == sorted(literal)
        assert table.counts[n - 1].tolist() == [literal[key] for key in sorted(literal)]
        every = np.stack(np.meshgrid(*[np.arange(VOCAB)] * n, indexing="ij"), axis=-1)
        assert table.counts_of(every).ravel().tolist() == [literal[tuple(key)] for key in every.reshape(-1, n).tolist()]
        followed = Counter(key[:-1] for key in literal.elements())
        contexts = every[..., 0, :-1].reshape(VOCAB ** (n - 1), n - 1)
        assert table.occasions(contexts).tolist() == [followed[tuple(key)] for key in contexts.tolist()]
        found = table.next_distribution(contexts)
        for i, key in enumerate(contexts.tolist()):
            row = slice(found.rows[i], found.rows[i + 1])
            assert dict(zip(found.outs[row].tolist(), found.counts[row].tolist(), strict=True)) == {
                o: literal[(*key, o)] for o in range(VOCAB) if literal[(*key, o)]
            }
    places = [(stream[i], stream[i + 1]) if i + 1 < len(stream) else None for stream in drawn for i in range(len(stream))]
    assert [tuple(table.ngrams(2)[i].tolist()) if i >= 0 else None for i in table.bigrams] == places


@given(streams, texts)
@settings(max_examples=100)
def test_a_text_is_read_and_predicted_as_by_loops(drawn, rows):
    table, n_pos = counted(drawn), len(rows[0])
    found, log_p = table.context_counts(torch.tensor(rows)), table.log_prob(torch.tensor(rows))
    literal = {n: literal_counts(drawn, n) for n in range(1, 5)}
    for e, row in enumerate(rows):
        for t in range(n_pos - 1):
            p = 1 / VOCAB
            for n in range(1, 5):
                hits = occasions = distinct = 0
                if t + 2 - n >= 0:
                    context = tuple(row[t + 2 - n : t + 1])
                    after = {o: literal[n][(*context, o)] for o in range(VOCAB) if literal[n][(*context, o)]}
                    hits, occasions, distinct = after.get(row[t + 1], 0), sum(after.values()), len(after)
                assert (found.hits[n - 1, e, t], found.occasions[n - 1, e, t], found.distinct[n - 1, e, t]) == (
                    hits,
                    occasions,
                    distinct,
                )
                p = (hits + distinct * p) / (occasions + distinct) if occasions else p
                assert log_p[n - 1, e, t] == pytest.approx(np.log(p))


@given(streams, st.integers(2, 6), st.sampled_from([5, 1_000_000]))
@settings(max_examples=100)
def test_skip_ngrams_are_counted_as_by_loops(drawn, gap, pairs):
    """Also when the pairs do not fit into one part."""
    triples = np.stack(np.meshgrid(*[np.arange(VOCAB)] * 3, indexing="ij"), axis=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuits.data.skip_ngrams.PAIRS", pairs)
        found = skip_lift(counted(drawn), triples, gap=gap)
    for s, d, o in triples.reshape(-1, 3).tolist():
        places = [(stream, t) for stream in drawn for t in range(len(stream) - 1) if stream[t] == d]
        near = [(stream, t) for stream, t in places if s in stream[max(t - gap, 0) : max(t - 1, 0)]]
        assert found.all_occasions[s, d, o] == len(places) and found.occasions[s, d, o] == len(near)
        assert found.all_hits[s, d, o] == sum(stream[t + 1] == o for stream, t in places)
        assert found.hits[s, d, o] == sum(stream[t + 1] == o for stream, t in near)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=30), st.integers(2, 8))
def test_each_source_within_the_gap_is_met_once_at_its_nearest(tokens, gap):
    text, places = np.array(tokens), np.arange(len(tokens))
    begin = np.where(places < 4, 1, 4)  # two contexts, and a BOS before the first
    met = [(p, int(a)) for of, at in sources(next_same(text), begin, places, gap) for p, a in zip(of.tolist(), at, strict=True)]
    wanted = []
    for p in places.tolist():
        nearest = {}
        for at in range(p - 2, max(p - gap, begin[p]) - 1, -1):
            nearest.setdefault(tokens[at], at)
        wanted += [(p, at) for at in nearest.values()]
    assert sorted(met) == sorted(wanted)


@given(texts)
@settings(max_examples=200)
def test_matches_are_those_of_the_definition(rows):
    found = longest_matches(np.array(rows))
    for e, row in enumerate(rows):
        for t in range(len(row) - 1):
            lengths = {}
            for j in range(1, t):
                length = 0
                while j - length >= 1 and row[j - length] == row[t - length]:
                    length += 1
                lengths[j] = length
            longest = max(lengths.values(), default=0)
            places = [j for j, length in lengths.items() if longest and length == longest]
            hits = [j for j in places if row[j + 1] == row[t + 1]]
            assert (found.length[e, t], found.places[e, t], found.hits[e, t]) == (longest, len(places), len(hits))
            assert found.latest[e, t] == max(hits, default=-1)
            assert found.repeated[e, t] == any(row[j] == row[t] and row[j + 1] == row[t + 1] for j in range(1, t))
