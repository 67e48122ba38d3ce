"""Pair statistics against a literal loop, a corpus done by hand, and relabellings of keys."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from circuits.data import pairs
from circuits.data.pairs import frequency_bins, pair_statistics, permuted_keys

RNG = np.random.default_rng(0)
STREAMS = [RNG.integers(0, 7, 60), RNG.integers(0, 5, 2), RNG.integers(2, 7, 41), np.array([], dtype=np.int64)]
V, WINDOW, ALPHA = 8, 5, 3.0
FLAT: Any = np.array([0, 1, 2])


def loop(streams: list[np.ndarray], window: int) -> Counter[tuple[int, int, int]]:
    """N(m, l, n), one occasion after the other."""
    found: Counter[tuple[int, int, int]] = Counter()
    for stream in streams:
        for t in range(1, len(stream) - 1):
            for d in range(1, min(window, t) + 1):
                found[int(stream[t]), int(stream[t - d]), int(stream[t + 1])] += 1
    return found


def table(streams: list[np.ndarray], window: int) -> np.ndarray:
    N = np.zeros((V, V, V))
    for triple, count in loop(streams, window).items():
        N[triple] = count
    return N


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("held", [1, 50, 10**6])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_against_the_loop(held: int, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few occasions are held at once."""
    monkeypatch.setattr(pairs, "HELD", held)
    found, N = pair_statistics(STREAMS, V, window=WINDOW, alpha=alpha), table(STREAMS, WINDOW)
    assert found.matrix(found.count).toarray() == pytest.approx(N.sum(2))
    assert (np.diff(found.query * V + found.key) > 0).all()
    for place, (m, other) in enumerate(zip(found.query, found.key, strict=True)):
        P_n = N[m].sum(0) / N[m].sum()
        log_p = np.log(N[m, other].sum() / N[m].sum())
        shrunk = (N[m, other] + alpha * P_n) / (N[m, other].sum() + alpha)
        assert found.log_p[place] == pytest.approx(log_p)
        assert found.pmi[place] == pytest.approx(log_p - np.log(N[:, other].sum() / N.sum()), abs=1e-12)
        assert found.discriminativeness[place] == pytest.approx(kl(shrunk, P_n), abs=1e-12)
    P_n = N.sum((0, 1)) / N.sum()
    H = -kl(P_n, np.ones(V))
    for token in range(V):
        of = N[:, token].sum(0)
        assert found.unigram[token] == of.sum()
        if not of.sum():
            assert np.isnan(found.key_discriminativeness[token]) and np.isnan(found.exclusivity[token])
            continue
        shrunk = (of + alpha * P_n) / (of.sum() + alpha)
        assert found.key_discriminativeness[token] == pytest.approx(kl(shrunk, P_n), abs=1e-12)
        assert found.exclusivity[token] == pytest.approx(1 + kl(shrunk, np.ones(V)) / H, abs=1e-12)


def test_by_hand() -> None:
    """0 1 2 | 0 1 2 | 3 1 4 | 3 1 4: key 0 before query 1 foretells 2, key 3 foretells 4; each is one bit, log 2."""
    found = pair_statistics([np.array([a, 1, b]) for a, b in ((0, 2), (0, 2), (3, 4), (3, 4))], 5, alpha=0.0)
    assert found.query.tolist() == [1, 1] and found.key.tolist() == [0, 3] and found.count.tolist() == [2, 2]
    assert found.log_p == pytest.approx(np.log(0.5)) and found.pmi == pytest.approx(0)
    assert found.discriminativeness == pytest.approx(np.log(2))
    assert found.exclusivity[[0, 3]] == pytest.approx(1)
    assert pair_statistics([np.array([0, 1, 2])] * 3 + [np.array([3, 1, 2])] * 3, 5).discriminativeness == pytest.approx(0)
    assert found.find(np.array([1, 1, 2]), np.array([3, 2, 0])).tolist() == [1, -1, -1]


def test_shrinkage_keeps_rare_keys_from_seeming_distinct() -> None:
    """The next token is drawn at random: no key says anything, and unshrunk rare ones seem to say most."""
    rng = np.random.default_rng(1)
    stream = np.minimum(rng.geometric(0.08, 20000), 60)
    plain, shrunk = (pair_statistics([stream], 61, window=8, alpha=alpha) for alpha in (0.0, 100.0))
    rare = (plain.count >= 5) & (plain.count <= 10)
    assert plain.discriminativeness[rare].mean() > 1 and shrunk.discriminativeness[rare].mean() < 0.03
    assert np.nanmax(shrunk.exclusivity) < 0.05


def test_equal_calls_have_equal_hashes() -> None:
    first, second = (pair_statistics(STREAMS, V, window=WINDOW) for _ in range(2))
    assert first.data_hash == second.data_hash != pair_statistics(STREAMS, V, window=4).data_hash


def test_bins_are_narrow_and_in_order() -> None:
    counts = np.array([5, 100, 99, 98, 50, 49, 0, 0, 48])
    assert frequency_bins(counts, size=3, ratio=1.1).tolist() == [2, 0, 0, 0, 1, 1, 3, 3, 1]
    assert frequency_bins(counts, size=2, ratio=1.1).tolist() == [4, 0, 0, 1, 2, 2, 5, 5, 3]
    assert frequency_bins(counts, size=9, ratio=3.0).tolist() == [1, 0, 0, 0, 0, 0, 2, 2, 0]


def test_relabelling_permutes_within_queries_and_bins() -> None:
    query, key = np.divmod(np.unique(RNG.integers(0, 144, 80)), 12)
    bins = np.arange(12) // 4
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = permuted_keys(query, key, bins, rng)
        assert np.array_equal(np.sort(moved), np.arange(len(query)))
        assert np.array_equal(query[moved], query) and np.array_equal(bins[key[moved]], bins[key])


def test_relabelling_is_uniform_and_shared_by_queries() -> None:
    """Three keys known of four: all six permutations, equally often. Queries that know the same keys are given the same."""
    query, key = np.repeat([0, 1], 3), np.array([0, 2, 3, 0, 2, 3])
    rng, seen = np.random.default_rng(0), Counter()
    for _ in range(3000):
        moved = permuted_keys(query, key, np.zeros(4, dtype=np.int64), rng)
        assert np.array_equal(moved[:3] + 3, moved[3:])
        seen[tuple(moved[:3].tolist())] += 1
    assert len(seen) == 6
    assert max(abs(count - 500) for count in seen.values()) < 4 * (3000 * 5 / 36) ** 0.5


def test_queries_that_know_different_keys_follow_one_relabelling() -> None:
    """All four keys of one query, three of the other: where a key goes is the same but for a detour around the unknown one."""
    query, key = np.repeat([0, 1], [4, 3]), np.array([0, 1, 2, 3, 0, 1, 2])
    rng = np.random.default_rng(0)
    for _ in range(50):
        moved = permuted_keys(query, key, np.zeros(4, dtype=np.int64), rng)
        whole, part = key[moved[:4]], key[moved[4:]]
        assert [whole[k] if whole[k] != 3 else whole[3] for k in range(3)] == part.tolist()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: pair_statistics([np.array([0, 1])], 5), ValueError, "longest stream has 2 tokens"),
        (lambda: pair_statistics([np.array([0, 1, 9])], 5), ValueError, "vocabulary is 0..4"),
        (lambda: pair_statistics(FLAT, 5), TypeError, r"pass \[stream\]"),
        (lambda: pair_statistics([np.array([0.0, 1, 2])], 5), TypeError, "integer array"),
        (lambda: pair_statistics([], 5), ValueError, "no tokens"),
        (lambda: pair_statistics(STREAMS, V, window=0), ValueError, "window=0"),
        (lambda: pair_statistics(STREAMS, V, alpha=-1.0), ValueError, "alpha=-1"),
        (lambda: pair_statistics(STREAMS, V, alpha=np.nan), ValueError, "alpha=nan"),
    ],
)
def test_bad_input(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
