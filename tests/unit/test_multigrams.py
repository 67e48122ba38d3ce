"""Patterns from events, where they occur, and what holds on the other half: against literal loops and hand-made numbers."""

import tracemalloc
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.detectors import event_store
from circuits.detectors.event_store import EventStore
from circuits.detectors.multigram_measure import Multigrams
from circuits.detectors.multigrams import KEY, HeldOut, MultigramRule, found_patterns, held_out, memorised, occurrences
from circuits.detectors.sources import COLUMNS, NONE, Events, events, repeats_in_context, value_weights
from circuits.models.hooked import HookedTransformer

CFG = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "attn_only": True}
TOKENS = torch.randint(1, 40, (12, 24), generator=torch.Generator().manual_seed(0))


def store_of(path: Path, columns: list[tuple[int, ...]], effect: list[float], examples: int = 8, queries: int = 6) -> EventStore:
    store = EventStore.create(path / "events.h5", examples, queries, 2)
    store.add(0, np.zeros((2, examples, queries), np.float32), Events(np.array(columns), np.array(effect), np.zeros(2, int)))
    return store


def event(example: int, far: int = NONE, near: int = 5, destination: int = 7, out: int = 9, gaps: tuple[int, int] = (0, 1)):
    return (0, example, 3, far, near, *gaps, destination, out)


def test_events_of_a_pattern_in_enough_examples_make_it_found(tmp_path: Path):
    columns = [event(0), event(1), event(1), event(2), event(3, near=6), event(4, near=6)]
    with store_of(tmp_path, columns, [1.0, 2.0, 3.0, 4.0, 9.0, 9.0]) as store:
        found = found_patterns(store, 0, range(8), MultigramRule())
        assert found[[*KEY, "events", "examples", "total", "contiguous"]].values.tolist() == [[NONE, 5, 7, 9, 4, 3, 10.0, True]]
        assert len(found_patterns(store, 0, range(2), MultigramRule(min_examples=2))) == 1
        assert len(found_patterns(store, 1, range(8), MultigramRule())) == 0


def test_a_second_source_that_adds_nothing_is_dropped(tmp_path: Path):
    """[6 ... 5 ... 7 -> 9] holds [5 ... 7 -> 9]; [6 ... 4 ... 7 -> 9] holds neither, [8 ... 7 -> 2] has another out."""
    two = [event(i, far=6, gaps=(4, 1)) for i in range(3)]
    other = [event(i, far=6, near=4, gaps=(4, 1)) for i in range(3)]
    one = [event(i) for i in range(3)] + [event(i, near=8, out=2, gaps=(0, 3)) for i in range(3)]
    columns = two + other + one
    with store_of(tmp_path, columns, [1.0] * len(columns)) as store:
        found = found_patterns(store, 0, range(8), MultigramRule())
        kept = {tuple(row) for row in found[[*KEY, "contiguous"]].values.tolist()}
    assert kept == {(NONE, 5, 7, 9, True), (6, 4, 7, 9, False), (NONE, 8, 7, 2, False)}
    bare = columns + [event(i, near=NONE, gaps=(0, 0)) for i in range(3)]
    (tmp_path / "again").mkdir()
    with store_of(tmp_path / "again", bare, [1.0] * len(bare)) as store:
        found = found_patterns(store, 0, range(8), MultigramRule())
    assert {tuple(row) for row in found[KEY].values.tolist()} == {(NONE, NONE, 7, 9), (NONE, 8, 7, 2)}


def test_buckets_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    columns = [
        event(int(rng.integers(8)), near=int(rng.integers(4)), destination=int(rng.integers(3)), out=int(rng.integers(3)))
        for _ in range(300)
    ]
    with store_of(tmp_path, columns, rng.random(300).tolist()) as store:
        whole = found_patterns(store, 0, range(8), MultigramRule())
        monkeypatch.setattr(event_store, "EVENTS", 40)
        parts = found_patterns(store, 0, range(8), MultigramRule())
    pd.testing.assert_frame_equal(whole, parts)
    assert len(whole) > 5


def literal_occurrences(patterns: pd.DataFrame, tokens: torch.Tensor) -> set[tuple[int, int, int]]:
    found = set()
    for p, row in enumerate(patterns.itertuples()):
        for e, ids in enumerate(tokens.tolist()):
            for q in range(1, len(ids) - 1):
                if (ids[q], ids[q + 1]) != (row.destination, row.out):
                    continue
                if any((ids[i], ids[i + 1]) == (row.destination, row.out) for i in range(1, q)):
                    continue
                sources = [s for s in (row.near, row.far) if s != NONE]
                if row.contiguous:
                    holds = all(q - g >= 1 and ids[q - g] == s for g, s in zip((1, 2), sources, strict=False))
                else:
                    holds = all(s in ids[1:q] for s in sources)
                if holds:
                    found.add((p, e, q))
    return found


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_occurrences_are_those_of_a_literal_search(seed: int):
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(1, 5, size=(4, 14)))
    tokens[:, 0] = 0
    patterns = pd.DataFrame(rng.integers(1, 5, size=(12, 4)), columns=KEY).assign(contiguous=rng.random(12) < 0.5)
    patterns.loc[:3, "far"] = NONE
    patterns.loc[:1, "near"] = NONE
    found = occurrences(patterns, tokens)
    assert set(map(tuple, found.values.tolist())) == literal_occurrences(patterns, tokens)


def test_held_out_sums_are_means_and_cluster_errors(tmp_path: Path):
    rng = np.random.default_rng(1)
    tokens = torch.from_numpy(rng.integers(1, 4, size=(40, 10)))
    tokens[:, 0] = 0
    effect = rng.normal(size=(4, 40, 9)).astype(np.float32)
    patterns = pd.DataFrame(
        {"head": [1, 2], "far": NONE, "near": [1, 2], "destination": [2, 3], "out": [3, 1], "contiguous": False}
    )
    with EventStore.create(tmp_path / "e.h5", 40, 9, 4) as store:
        store.add(0, effect, Events(np.zeros((0, len(COLUMNS)), int), np.zeros(0), np.zeros(4, int)))
        sums = held_out(store, patterns, tokens, range(5, 40), layers=2)
    for p, head in enumerate((1, 2)):
        places = [(e + 5, q) for i, e, q in literal_occurrences(patterns, tokens[5:]) if i == p]
        own = np.array([effect[head, e, q] for e, q in places])
        by_example = defaultdict(list)
        for (e, _), x in zip(places, own, strict=True):
            by_example[e].append(x)
        m, k = own.mean(), len(by_example)
        spread = sum((sum(x) - m * len(x)) ** 2 for x in by_example.values())
        assert sums.n[p] == len(own) and sums.clusters[p] == k > 3
        assert sums.mean[p] == pytest.approx(m, rel=1e-5)
        assert sums.stderr[p] == pytest.approx(np.sqrt(spread * k / (k - 1)) / len(own), rel=1e-5)
        other = {0: 1, 1: 0, 2: 3, 3: 2}[head]
        assert sums.others[p] / sums.n[p] == pytest.approx(np.mean([effect[other, e, q] for e, q in places]), rel=1e-5)
    usable = ~repeats_in_context(tokens[5:]).numpy()
    usable[:, 0] = False
    assert sums.positive == pytest.approx((np.maximum(effect[:, 5:], 0) * usable).sum((1, 2)), rel=1e-5)


@pytest.mark.parametrize(("usual", "expected"), [(0.0, [True, False, False, False]), (0.9, [False] * 4)])
def test_memorised_needs_examples_size_and_certainty(usual: float, expected: list[bool]):
    """Effects 1.1 .9 1.0 | 1 1 | .2 .2 .2 | 3 0 0: too few examples, too small, too uncertain; and all no more than usual."""
    effects = [[1.1, 0.9, 1.0], [1.0, 1.0], [0.2, 0.2, 0.2], [3.0, 0.0, 0.0]]
    count, total, squares = (np.array([f(e) for e in effects], float) for f in (len, sum, lambda e: sum(x * x for x in e)))
    places, zero = np.full(1, 100.0), np.zeros(1)
    sums = HeldOut(count, count, total, squares, total, count, total, zero, zero, usual * places, zero, places)
    assert memorised(sums, np.zeros(4, int), MultigramRule(threshold=0.5)).tolist() == expected
    # With 3 examples the quantile at .0228 is 4.53 standard errors, .058 each.
    assert memorised(sums_at(sums, 1.0 - 4.4 * 0.0577), np.zeros(4, int), MultigramRule(threshold=0.5)).tolist() == [False] * 4


def sums_at(sums: HeldOut, usual: float) -> HeldOut:
    """The same with another usual effect of the head."""
    return replace(sums, net=usual * sums.places)


def test_pairs_that_stood_earlier_are_repeats():
    tokens = torch.tensor([[0, 1, 2, 1, 2, 3, 0, 1]])
    assert repeats_in_context(tokens).tolist() == [[False, False, False, True, False, False, False]]


def test_sources_carry_the_weight_and_equal_tokens_add_up():
    """Keys that hold the query's own token are no sources; two equal tokens are one source at the nearer place."""
    tokens = torch.tensor([[0, 1, 2, 1, 3]])
    weight = torch.zeros(1, 1, 5, 5)
    weight[0, 0, 3] = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0])  # query 3 is token 1: its own share is 0.3
    effect = torch.zeros(1, 1, 1, 4)
    effect[0, 0, 0, 3] = 1.5
    found = events([weight], tokens, effect, effect > 0, min_share=0.25)
    assert found.columns.tolist() == [[0, 0, 3, NONE, 2, 0, 1, 1, 3]] and found.effect.tolist() == [1.5]
    spread = torch.tensor([[0, 1, 1, 1, 1, 2, 3]])  # .6 on token 1, spread over four places
    weight = torch.zeros(1, 1, 7, 7)
    weight[0, 0, 5, :6] = torch.tensor([0.2, 0.15, 0.15, 0.15, 0.15, 0.2])
    effect = torch.zeros(1, 1, 1, 6)
    effect[0, 0, 0, 5] = 1.0
    assert events([weight], spread, effect, effect > 0, min_share=0.5).columns.tolist() == [[0, 0, 5, NONE, 1, 0, 1, 2, 3]]
    longer = torch.tensor([[0, 1, 2, 1, 3, 4]])
    weight = torch.zeros(1, 1, 6, 6)
    weight[0, 0, 4] = torch.tensor([0.2, 0.2, 0.3, 0.3, 0.0, 0.0])
    effect = torch.zeros(1, 1, 1, 5)
    effect[0, 0, 0, 4] = 1.0
    found = events([weight], longer, effect, effect > 0, min_share=0.25)
    assert found.columns.tolist() == [[0, 0, 4, 2, 1, 2, 1, 3, 4]]
    assert events([weight], longer, effect, effect > 0, min_share=0.6).unattributed.tolist() == [1]


def test_value_weights_are_shares_of_attention_times_what_it_brings():
    model = HookedTransformer(CFG).eval()
    found = value_weights(model, TOKENS)
    _, cache = model.run_with_cache(TOKENS)
    for layer in range(2):
        size = torch.einsum("bphd,hdm->bphm", cache["v", layer], model.W_O[layer]).norm(dim=-1).transpose(1, 2)
        weight = cache["pattern", layer] * size[:, :, None]
        torch.testing.assert_close(found[layer], weight / weight.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Grouping and scoring four times the corpus peaks at about the same memory."""
    monkeypatch.setattr(event_store, "EVENTS", 10_000)

    def peak(examples: int) -> int:
        rng = np.random.default_rng(0)
        with EventStore.create(tmp_path / f"{examples}.h5", examples, 40, 1) as store:
            tokens = torch.from_numpy(rng.integers(1, 300, size=(examples, 41)))
            for start in range(0, examples, 100):
                columns = np.stack([np.zeros(10_000), start + rng.integers(0, 100, 10_000), *rng.integers(1, 40, (7, 10_000))], 1)
                effect = rng.random((1, 100, 40)).astype(np.float32)
                store.add(start, effect, Events(columns.astype(int), rng.random(10_000), np.zeros(1, int)))
            tracemalloc.start()
            found = found_patterns(store, 0, range(examples), MultigramRule())
            held_out(store, found.assign(head=0).head(20), tokens, range(examples), 1)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    peak(100)
    assert peak(800) < 1.3 * peak(200)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Multigrams(TOKENS[:4]), "the corpus has 4 examples.*recur in 3 of each half: 2 more are needed"),
        (lambda: Multigrams(TOKENS, k=0), "k=0"),
        (lambda: Multigrams(TOKENS, nulls=("none",)), "there are shifted, shuffled, untrained"),
        (lambda: MultigramRule(threshold=0), "threshold=0"),
        (lambda: MultigramRule(threshold="0.5"), "threshold='0.5': need a number"),
        (lambda: MultigramRule(min_share=0.01), "min_share=0.01"),
        (lambda: MultigramRule(min_examples=1), "min_examples=1"),
        (lambda: MultigramRule(ablation="most"), "there is no ablation 'most'"),
    ],
)
def test_wrong_calls_get_one_sentence(call, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call()
