"""N-gram tables by hand: counts, lifts, entropies, the interpolated predictor, skip-n-grams, and corpora that are too small."""

import numpy as np
import pytest
import torch
from scipy import stats

from circuits.data.lift import lift_of, tail_chance
from circuits.data.ngrams import NgramTable
from circuits.data.skip_ngrams import skip_lift
from circuits.data.streams import split_blocks

# 0 1 2 0 1 3 again and again: behind "0 1" stands 2 or 3 by turns, which "2 0 1" or "3 0 1" tells
TURNS = np.tile([0, 1, 2, 0, 1, 3], 50)


@pytest.fixture(scope="module")
def turns():
    return NgramTable.count([TURNS[:150], TURNS[150:]], 4, order=4)


def ids(*ngram):
    return np.array(ngram, dtype=int)


def test_counts_do_not_cross_streams(turns):
    assert [int(turns.counts_of(ids(i))) for i in range(4)] == [100, 100, 50, 50]
    assert turns.counts_of(np.array([[0, 1], [1, 2], [2, 0], [3, 0], [0, 3]])).tolist() == [100, 50, 50, 48, 0]
    assert turns.counts_of(ids(3, 0, 1, 2)) == 48 and turns.counts_of(ids(2, 0, 1, 2)) == 0
    assert turns.occasions(ids(3)) == 48 and turns.occasions(ids()) == 300 and turns.occasions(ids(1, 3)) == 48
    assert turns.bigrams[149] == turns.bigrams[299] == -1
    assert (turns.ngrams(2) == [[0, 1], [1, 2], [1, 3], [2, 0], [3, 0]]).all()
    assert turns.bigrams[:3].tolist() == [0, 1, 3]


def test_probabilities_and_what_follows(turns):
    assert turns.prob(np.array([[0, 1], [2, 0], [3, 3]]), ids(2, 1, 0)).tolist()[:2] == [0.5, 1.0]
    assert np.isnan(turns.prob(ids(3, 3), np.array(0)))
    found = turns.next_distribution(np.array([[0, 1], [3, 3], [1, 2]]))
    assert found.rows.tolist() == [0, 2, 2, 3] and found.outs.tolist() == [2, 3, 0]
    assert found.counts.tolist() == [50, 50, 50] and found.probs.tolist() == [0.5, 0.5, 1.0]
    everything = turns.next_distribution(np.zeros((1, 0), dtype=int))
    assert everything.outs.tolist() == [0, 1, 2, 3] and everything.probs.tolist() == [1 / 3, 1 / 3, 1 / 6, 1 / 6]


def test_lift_is_what_the_oldest_token_adds(turns):
    lift = turns.lift(np.array([[3, 0, 1], [2, 0, 1]]), ids(2, 2))
    assert lift.value.tolist() == [pytest.approx(np.log(2)), -np.inf]
    assert (lift.hits.tolist(), lift.occasions.tolist()) == ([48, 0], [48, 50])
    assert lift.all_hits.tolist() == [50, 50] and lift.all_occasions.tolist() == [100, 100]
    assert lift.z[0] > 9 and lift.z[1] < -9 and np.isnan(lift.stderr[1])
    assert turns.lift(ids(0), np.array(1)).value == pytest.approx(np.log(3))


def test_a_lift_has_the_moments_of_its_null_and_the_error_of_its_counts():
    lift = lift_of(*map(np.array, (8, 10, 20, 100)))
    null = stats.hypergeom(100, 20, 10)
    assert lift.value == pytest.approx(np.log(4)) and lift.z == pytest.approx((8 - null.mean()) / null.std()) == pytest.approx(
        4.97, abs=0.01
    )
    assert lift.p == pytest.approx(stats.binom.sf(7, 10, 0.2)) and lift.p > null.sf(7)
    assert tail_chance(*map(np.array, (0, 10, 20, 100))) == 1
    always = lift_of(*map(np.array, (20, 100, 20, 100)))
    assert always.value == 0 and always.stderr == 0 and np.isnan(always.z)
    assert np.isnan(lift_of(*map(np.array, (0, 0, 20, 100))).value)
    rng = np.random.default_rng(0)
    inside, outside = rng.binomial(400, 0.3, 20_000), rng.binomial(1600, 0.1, 20_000)
    drawn = lift_of(inside, np.full(20_000, 400), inside + outside, np.full(20_000, 2000))
    assert drawn.value.std() == pytest.approx(drawn.stderr.mean(), rel=0.03)


def test_entropies_of_known_sources():
    cycle = NgramTable.count([np.tile([0, 1, 2], 40)], 3)
    assert [cycle.conditional_entropy(n).value for n in (1, 2, 5)] == [pytest.approx(np.log(3)), 0, 0]
    assert cycle.conditional_entropy(2).stderr == 0 and cycle.conditional_entropy(2).correction == 0
    coins = NgramTable.count([np.random.default_rng(0).integers(0, 4, 40_000)], 4)
    for n in range(1, 6):
        found = coins.conditional_entropy(n)
        assert abs(found.value + found.correction - np.log(4)) < 4 * found.stderr + 1e-4
    assert coins.conditional_entropy(5).correction == pytest.approx((4**5 - 4**4) / (2 * (40_000 - 4)))
    with pytest.raises(ValueError, match=r"the table holds n-grams of 1 to 5 tokens and 6 are asked for: count with order=6"):
        coins.conditional_entropy(6)


def test_counts_along_a_text_stand_at_the_right_places(turns):
    found = turns.context_counts(torch.tensor([[3, 0, 1, 2, 2]]))
    assert found.hits.shape == (4, 1, 4)
    assert found.hits[:, 0].tolist() == [[100, 100, 50, 50], [48, 100, 50, 0], [0, 48, 50, 0], [0, 0, 48, 0]]
    assert found.occasions[:, 0].tolist() == [[300] * 4, [48, 100, 100, 50], [0, 48, 100, 50], [0, 0, 48, 50]]
    assert found.distinct[:, 0].tolist() == [[4] * 4, [1, 1, 2, 1], [0, 1, 2, 1], [0, 0, 1, 1]]
    short = turns.context_counts(torch.tensor([[3, 0]]))
    assert short.hits[:, 0].tolist() == [[100], [48], [0], [0]]
    assert turns.coverage(torch.tensor([[3, 0, 1, 2, 2, 2]]), min_count=50).tolist() == [1, 1, 2 / 3, 1 / 2]


def test_the_interpolated_predictor_by_hand(turns):
    p = np.exp(turns.log_prob(torch.tensor([[3, 0, 1, 2, 2]])))[:, 0, 3]  # 2 behind (0, 1, 2): never
    unigram = (50 + 4 / 4) / 304
    bigram = (0 + 1 * unigram) / 51
    assert p.tolist() == pytest.approx([unigram, bigram, bigram / 51, bigram / 51 / 51])
    unseen = np.exp(turns.log_prob(torch.tensor([[3, 3, 3, 3, 1]])))[:, 0, 3]
    assert unseen[1:].tolist() == pytest.approx([(0 + 1 * unseen[0]) / 49] * 3)  # no trigram context (3, 3): backed off to


def test_the_predictor_is_a_distribution_and_finds_the_entropy_of_a_markov_chain():
    rng = np.random.default_rng(1)
    chain = rng.dirichlet(np.full(6, 0.5), size=6)
    walk = [0]
    for u in rng.random(60_000):
        walk.append(int(np.searchsorted(chain[walk[-1]].cumsum(), u).clip(0, 5)))
    seen, held_out = np.array(walk[:40_000]), torch.tensor(walk[40_000:]).reshape(1, -1)
    table = NgramTable.count([seen], 6)
    every = torch.cat([torch.tensor([[2, 5, 1, 0]]).repeat(6, 1), torch.arange(6)[:, None]], dim=1)
    assert np.exp(table.log_prob(every))[:, :, -1].sum(axis=1).tolist() == pytest.approx([1.0] * 5)
    loss = -table.log_prob(held_out)
    truth = -np.log(chain[held_out[0, :-1], held_out[0, 1:]])
    error = (loss[1, 0] - truth).std() / truth.size**0.5
    assert abs(loss[1].mean() - truth.mean()) < 4 * error + 36 / 40_000  # and a nat for each parameter, over the tokens seen
    assert loss[0].mean() > loss[1].mean() + 0.2
    shuffled = held_out[:, torch.from_numpy(rng.permutation(held_out.shape[1]))]
    assert -table.log_prob(shuffled)[1].mean() > loss[0].mean() + 0.1


def test_skip_ngrams_by_hand():
    # the source 5 stands 2 or 3 before the destination 1 in half of the places, and then 2 follows, else 3
    table = NgramTable.count([np.tile([5, 0, 1, 2, 4, 4, 0, 1, 3, 4, 5, 4, 0, 1, 2, 4, 4, 0, 1, 3, 4, 4], 10)], 6)
    found = skip_lift(table, np.array([[5, 1, 2], [5, 1, 3], [4, 1, 2], [0, 1, 2], [5, 1, 0]]), gap=3)
    assert found.all_occasions.tolist() == [40] * 5 and found.all_hits.tolist() == [20, 20, 20, 20, 0]
    assert found.occasions.tolist() == [20, 20, 39, 0, 20] and found.hits.tolist() == [20, 0, 19, 0, 0]
    assert found.value[0] == pytest.approx(np.log(2)) and found.value[1] == -np.inf and np.isnan(found.value[3:]).all()
    # at distance 2 alone only the first of the two patterns is left
    assert skip_lift(table, np.array([5, 1, 2]), gap=2).occasions == 10
    # a source that stands twice within the gap counts once, and one in another stream not at all
    streams = [np.array([5, 5, 5, 0, 1, 2] * 20), *[np.array([5, 4, 4]), np.array([0, 1, 2])] * 20]
    both = skip_lift(NgramTable.count(streams, 6, order=3), np.array([5, 1, 2]), gap=4)
    assert (both.occasions, both.hits, both.all_hits) == (20, 20, 40)


def test_streams_of_a_large_vocabulary_take_memory_in_tokens_alone():
    rng = np.random.default_rng(0)
    stream = np.sort(rng.integers(0, 90_000, 900_000).reshape(-1, 9), axis=1).ravel()
    stream[:700_000] = np.tile(rng.integers(0, 90_000, 7_000), 100)
    table = NgramTable.count([stream], 90_000)
    assert table.counts_of(stream[None, 100:105]).item() >= 100
    held = sum(array.nbytes for part in (table.keys, table.counts, table.rows, table.totals) for array in part)
    assert held + table.tokens.nbytes + table.bigrams.nbytes < 5 * 4 * 8 * len(stream) + 8 * 90_000
    pairs, counts = np.unique(np.stack([stream[:-1], stream[1:]]), axis=1, return_counts=True)
    assert (table.ngrams(2) == pairs.T).all() and (table.counts[1] == counts).all()


def test_blocks_are_cut_at_their_joins():
    pieces = split_blocks(np.arange(10_000))
    assert [len(piece) for piece in pieces] == [4096, 4096, 1808] and pieces[1][0] == 4096
    assert [len(piece) for piece in split_blocks(np.arange(8192))] == [4096, 4096]


def test_a_corpus_that_is_too_small_says_so_and_by_how_much():
    rng = np.random.default_rng(0)
    with pytest.raises(
        ValueError,
        match=r"the corpus has 9,000 tokens; n-grams over 1,024 ids need at least 10,240, 10 for each, which is 1,240 more: give",
    ):
        NgramTable.count([rng.integers(0, 1024, 9000)], 1024)
    with pytest.raises(
        ValueError,
        match=r"too small for order 3: 0\.\d% of its 12,000 tokens follow 2 tokens that occur 5 times elsewhere, 10% are needed, "
        r"which takes at least 60,000 tokens: give more text, or order=2",
    ):
        NgramTable.count([rng.integers(0, 1024, 12_000)], 1024)
    assert NgramTable.count([rng.integers(0, 1024, 12_000)], 1024, order=2).order == 2
    with pytest.raises(ValueError, match=r"the longest stream has 3 tokens and order is 5: give longer streams, or order=3"):
        NgramTable.count([np.array([0, 1, 0])] * 20, 2)


def test_the_identity_is_that_of_streams_and_vocabulary():
    tables = [([TURNS], 4), ([TURNS[:150], TURNS[150:]], 4), ([TURNS], 5), ([TURNS.astype(np.uint16)], 4)]
    hashes = [NgramTable.count(streams, d_vocab, order=2).data_hash for streams, d_vocab in tables]
    assert len(set(hashes)) == 3 and hashes[0] == hashes[3]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda t: NgramTable.count(TURNS, 4),
            TypeError,
            r"streams are ndarray int64 \[300\], need a sequence .* pass \[stream\]",
        ),
        (
            lambda t: NgramTable.count([TURNS / 2], 4),
            TypeError,
            r"a stream is ndarray float64 \[300\], need a flat integer array",
        ),
        (lambda t: NgramTable.count([[0, 1]], 4), TypeError, r"a stream is list, need a flat integer array of token ids"),
        (lambda t: NgramTable.count([], 4), ValueError, r"the corpus has no tokens; pass streams such as split_blocks"),
        (
            lambda t: NgramTable.count([TURNS], 3),
            ValueError,
            r"the corpus: ids run from 0 to 3, the vocabulary is 0\.\.2; use the",
        ),
        (lambda t: NgramTable.count([TURNS], 4, order=1), ValueError, r"order=1: need a whole number of at least 2"),
        (lambda t: t.counts_of(np.zeros((2, 5), dtype=int)), ValueError, r"shape \(2, 5\); .* \[..., n\] with n from 1 to 4"),
        (lambda t: t.occasions(np.zeros((2, 4), dtype=int)), ValueError, r"shape \(2, 4\); .* \[..., n\] with n from 0 to 3"),
        (lambda t: t.counts_of([0, 1]), TypeError, r"n-grams are list, need an integer array \[..., n\]: use np.array"),
        (lambda t: t.log_prob(torch.zeros(2, 3)), TypeError, r"tokens are Tensor torch.float32 \[2, 3\], need an integer tensor"),
        (lambda t: t.log_prob(TURNS), TypeError, r"tokens are ndarray int64 \[300\], need an integer tensor"),
        (lambda t: t.log_prob(torch.zeros(4, 1).long()), ValueError, r"shape \(4, 1\); need \[example, pos\] with at least two"),
        (lambda t: t.log_prob(torch.tensor([[0, 7]])), ValueError, r"tokens: ids run from 0 to 7, the vocabulary is 0\.\.3"),
        (lambda t: skip_lift(t, np.array([[0, 1]])), ValueError, r"triples have shape \(1, 2\), need \[..., 3\]: source"),
        (lambda t: skip_lift(t, np.array([0.0, 1, 2])), TypeError, r"triples are ndarray, need an integer array \[..., 3\]"),
        (lambda t: skip_lift(t, np.array([0, 1, 9])), ValueError, r"triples: ids run from 0 to 9, the vocabulary is 0\.\.3"),
        (lambda t: skip_lift(t, np.array([0, 1, 2]), gap=1), ValueError, r"gap=1: need a whole number of at least 2, since at"),
    ],
)
def test_bad_input_is_refused(turns, call, error, message):
    with pytest.raises(error, match=message):
        call(turns)
