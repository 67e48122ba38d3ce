"""Languages of known truth: the reasons they give for tokens, their shares, and text with planted patterns."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from circuits.data.contexts import BIGRAM, BRACKET, INDUCTION, KINDS, NGRAM, OTHER, SKIP_NGRAM
from circuits.data.languages import MixedLanguage
from circuits.data.pattern_corpus import pattern_corpus
from circuits.dynamics.language_run import language_model, train_on_language

SMALL = MixedLanguage(
    d_vocab=64,
    bracket_types=2,
    bigrams=3,
    bigram_probability=0.7,
    orders=(3, 4),
    ngrams=2,
    skip_trigrams=4,
    sharing=2,
    span=(3, 4),
    gap=(1, 3),
    pause=(1, 3),
    content=(1, 2),
    max_depth=2,
    weights=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
)
ONLY_PLAIN = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_reasons_in_a_sequence_read_by_hand():
    tables = SMALL.tables
    assert tables.pairs.tolist() == [[1, 2], [3, 4]]
    assert tables.bigrams.tolist() == [[53, 35], [22, 35], [16, 7]]
    assert [table.tolist() for table in tables.ngrams] == [
        [[20, 29, 52], [12, 29, 34]],
        [[55, 56, 37, 15], [11, 56, 37, 38]],
    ]
    assert tables.skips.tolist() == [[[50, 48, 43], [5, 48, 15]], [[27, 63, 52], [54, 63, 31]]]
    made = SMALL.sample(3, length=40, seed=4)
    #         ( holds ( and 16 7;  50 ... 48 -> 43 with 22 35 and 20 29 52 between;  two n-grams of order 4 in brackets
    first = [0, 16, 59, 3, 16, 30, 1, 16, 7, 2, 4, 50, 22, 35, 20, 29, 52, 62, 48, 43, 3, 3, 22, 35, 30, 4, 4]
    assert made.tokens[0, :27].tolist() == first
    reasons = {8: (BIGRAM, 7), 9: (BRACKET, 6), 10: (BRACKET, 3), 13: (BIGRAM, 12), 15: (BIGRAM, 14), 16: (NGRAM, 14)}
    reasons |= {19: (SKIP_NGRAM, 11), 23: (BIGRAM, 22), 25: (BRACKET, 21), 26: (BRACKET, 20)}
    for place in range(1, 27):  # at 2 and 5 a bigram of probability 0.7 did not come
        found = (int(made.kind[0, place - 1]), int(made.source[0, place - 1]))
        assert found == reasons.get(place, (OTHER, -1)), place
    assert np.flatnonzero(made.nested[0]).tolist()[:2] == [8, 24]
    #         in the second, 24 10 23 comes again, and 28 38 46 57
    assert made.tokens[1, 9:18].tolist() == [24, 10, 23, 57, 53, 35, 24, 10, 23]
    assert made.kind[1, 14:17].tolist() == [OTHER, INDUCTION, INDUCTION] and made.source[1, 14:17].tolist() == [-1, 10, 11]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_reason_holds_in_the_text(seed: int):
    """Read back from the tokens alone, by a slow reader that knows the tables."""
    language = dataclasses.replace(SMALL, seed=seed, max_depth=3)
    made, tables = language.sample(200, length=50, seed=seed), language.tables
    bigrams = {tuple(b) for b in tables.bigrams.tolist()}
    ngrams = {tuple(row) for table in tables.ngrams for row in table.tolist()}
    chains = {pair for row in ngrams for pair in pairwise(row[:-1])}
    skips = {tuple(triple) for triple in tables.skips.reshape(-1, 3).tolist()}
    opens = dict(tables.pairs.tolist())
    for row, kinds, sources, nested in zip(
        *(x.tolist() for x in (made.tokens, made.kind, made.source, made.nested)), strict=True
    ):
        assert row[0] == 0
        stack: list[int] = []
        for p, (token, kind, source, inside) in enumerate(zip(row[1:], kinds, sources, nested, strict=True), start=1):
            assert (source == -1) == (kind == OTHER) and source < p
            if token in opens:
                stack.append(p)
            if token in opens.values():
                start = stack.pop()
                assert (kind, source, inside) == (BRACKET, start, len(stack) > 0) and opens[row[start]] == token
            assert not inside or kind == BRACKET
            if kind == BIGRAM:
                assert source == p - 1 and (row[p - 1], token) in bigrams | chains
            elif kind == NGRAM:
                assert tuple(row[source : p + 1]) in ngrams
            elif kind == SKIP_NGRAM:
                assert (row[source], row[p - 1], token) in skips
            elif kind == INDUCTION:
                assert row[source] == token and row[source - 1] == row[p - 1]
    assert set(made.kind.unique().tolist()) == {BRACKET, INDUCTION, NGRAM, BIGRAM, SKIP_NGRAM, OTHER}


@pytest.mark.science
@pytest.mark.parametrize(
    "language",
    [
        MixedLanguage(),
        SMALL,
        dataclasses.replace(SMALL, content=(2, 5), gap=(1, 9), pause=(0, 9), weights=(2.0, 1.0, 0.5, 3.0, 2.0, 6.0)),
    ],
)
@pytest.mark.parametrize("length", [12, 64])
def test_realised_shares_are_the_expected_ones_within_their_errors(language: MixedLanguage, length: int):
    made, expected = language.sample(4000, length=length, seed=length), language.rates(length)
    realised = made.rates()
    assert sum(expected[kind] for kind in KINDS) == pytest.approx(1.0) and realised.keys() == expected.keys()
    for name in expected:
        there = made.nested if name == "nested" else made.kind == KINDS.index(name)
        share = there.double().mean(1)
        assert realised[name] == pytest.approx(float(share.mean()))
        assert abs(realised[name] - expected[name]) < 4 * float(share.std()) / len(share) ** 0.5 + 1e-12, name


def test_expected_shares_done_by_hand():
    """Two predicted tokens, plain or a sure bigram with equal weight: the second is a bigram's half the time."""
    half = dataclasses.replace(SMALL, bigram_probability=1.0, weights=(1.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    assert half.rates(3)["bigram"] == pytest.approx(0.25) and half.rates(3)["other"] == pytest.approx(0.75)
    # of three: plain-bigram or bigram-plain 1/4 + 1/2 for one bigram token in either second or third place
    assert half.rates(4)["bigram"] == pytest.approx((0.5 + 0.25) / 3)
    assert dataclasses.replace(SMALL, weights=ONLY_PLAIN).rates(9)["other"] == pytest.approx(1.0)
    # one bracket in sight of the start: ( x ) with one item, and never nested in three tokens
    bracket = dataclasses.replace(SMALL, content=(1, 1), weights=(1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    assert bracket.rates(4)["bracket"] == pytest.approx(0.25 / 3) and bracket.rates(4)["nested"] == 0.0
    # ( ( x ), where x must be plain at this depth, and x ( ( x )
    assert bracket.rates(6)["nested"] == pytest.approx((0.25 + 0.125) / 5)


@pytest.mark.science
def test_the_conditional_probabilities_are_those_of_the_language():
    language = MixedLanguage()
    made, tables = language.sample(4000, seed=5), language.tables
    before, after = made.tokens[:, :-1].flatten().numpy(), made.tokens[:, 1:].flatten().numpy()
    follows = dict(tables.bigrams.tolist())
    at = np.isin(before, tables.bigrams[:, 0])
    share = np.mean([follows[b] == a for b, a in zip(before[at], after[at], strict=True)])
    by_chance = 0.1 * np.mean([tables.zipf[tables.plain == b].sum() for b in follows.values()])
    assert share == pytest.approx(0.9 + by_chance, abs=4 * (0.09 / at.sum()) ** 0.5)
    for table in tables.ngrams:  # the last n - 2 tokens before it leave two outs, the n - 1 leave one
        suffixes, stems = {}, {}
        for row in table.tolist():
            suffixes.setdefault(tuple(row[1:-1]), set()).add(row[-1])
            stems.setdefault(tuple(row[:-1]), set()).add(row[-1])
        assert {len(outs) for outs in suffixes.values()} == {2} and {len(outs) for outs in stems.values()} == {1}
    for group in tables.skips:  # one destination, as many outs as sources
        assert len(set(group[:, 1])) == 1 and len(set(group[:, 0])) == len(set(group[:, 2])) == language.sharing
    parts = [tables.pairs, tables.bigrams[:, :1], tables.skips[..., :1], tables.skips[:, :1, 1], tables.plain]
    parts += [np.unique(table[:, :-1]) for table in tables.ngrams]
    ids = np.concatenate([part.flatten() for part in parts])
    assert sorted(ids.tolist()) == list(range(1, language.d_vocab))  # nobody plays two parts


def test_a_sample_depends_on_its_seed_and_the_tables_on_theirs():
    first, again, other = (SMALL.sample(5, seed=s).tokens for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    moved = dataclasses.replace(SMALL, seed=1)
    assert not np.array_equal(moved.tables.plain, SMALL.tables.plain)
    assert SMALL.spec() == {**moved.spec(), "seed": 0}


def test_no_destination_comes_twice_before_all_have():
    made = MixedLanguage(weights=(1.0, 0.0, 0.0, 5.0, 0.0, 0.0), gap=(1, 1)).sample(50, seed=3)
    for row in made.tokens.numpy():
        used = row[np.isin(row, MixedLanguage().tables.skips[:, 0, 1])]
        assert len(set(used[:8])) == min(len(used), 8)


@pytest.mark.parametrize("gap", [(1, 1), (2, 6)])
def test_a_pattern_corpus_holds_each_pattern_at_its_gap_and_decoys_without_source(gap: tuple[int, int]):
    patterns = [(1, 2, 3), (4, 2, 5), (6, 7, 8)]
    made = pattern_corpus(patterns, d_vocab=40, gap=gap, decoys=0.5, length=40, examples=300, seed=2)
    tokens, real = made.tokens.numpy(), made.pattern.numpy() >= 0
    e, t = np.nonzero(real)
    table = np.asarray(patterns)[made.pattern.numpy()[real]]
    assert np.array_equal(np.stack([tokens[e, made.source.numpy()[real]], tokens[e, t], tokens[e, t + 1]], 1), table)
    distance = t - made.source.numpy()[real]
    assert distance.min() == gap[0] and distance.max() == gap[1]
    ends = np.isin(tokens, [2, 7])
    assert real.sum() / ends.sum() == pytest.approx(0.5, abs=4 * 0.5 / ends.sum() ** 0.5)
    assert np.isin(tokens, [1, 4, 6]).sum() == np.isin(tokens, [3, 5, 8]).sum() == real.sum()
    assert ((tokens == 2).sum(1) <= 1).all()


def test_training_on_a_language_is_deterministic_and_learns_its_bigrams():
    language = dataclasses.replace(SMALL, weights=(1.0, 4.0, 0.0, 0.0, 0.0, 0.0), bigram_probability=1.0)
    cfg = language_model(language, d_model=16, n_heads=2, d_head=8, n_ctx=16)
    options = {"batch": 8, "lr": 2e-2, "threads": 1, "progress": False}
    one, two = (train_on_language(language, cfg, steps=5, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.W_E, train_on_language(language, cfg, steps=5, seed=1, **options).W_E)
    model = train_on_language(language, cfg, steps=100, **options)
    assert not model.training
    made = language.sample(50, length=16, seed=77)
    with torch.no_grad():
        losses = model(made.tokens, return_type="loss", loss_per_token=True)
    assert losses[made.kind == BIGRAM].mean() < 0.5 < 2 < losses[made.kind == OTHER].mean()


WRONG = {
    "no kind of bracket": (lambda: MixedLanguage(bracket_types=0), "need at least 1 of each"),
    "odd n-grams": (lambda: MixedLanguage(ngrams=5), "ngrams even"),
    "order of a bigram": (lambda: MixedLanguage(orders=(2, 3)), "from 3 up"),
    "unequal sharing": (lambda: MixedLanguage(skip_trigrams=10, sharing=3), "a multiple of sharing"),
    "span of one": (lambda: MixedLanguage(span=(1, 4)), "need 2 <= shortest <= longest"),
    "a gap of nothing": (lambda: MixedLanguage(gap=(0, 4)), "gap=.* need 1 <= shortest <= longest"),
    "empty brackets": (lambda: MixedLanguage(content=(0, 4)), "need 1 <= shortest <= longest"),
    "nothing plain": (lambda: MixedLanguage(weights=(0.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "the first positive"),
    "probability above one": (lambda: MixedLanguage(bigram_probability=1.5), r"need one in \[0, 1\]"),
    "small vocabulary": (lambda: MixedLanguage(d_vocab=100), "d_vocab=100 and this language needs 1"),
    "no examples": (lambda: SMALL.sample(0), "need at least 1 and 2"),
    "no patterns": (lambda: pattern_corpus([], d_vocab=20), "0 patterns leave 19 of 20 ids"),
    "no room": (lambda: pattern_corpus([(1, 2, 3)], d_vocab=20, length=8), "at least 11 tokens"),
    "another vocabulary": (
        lambda: train_on_language(SMALL, language_model(MixedLanguage())),
        "reads 160 ids and the language has 64",
    ),
    "no learning rate": (lambda: train_on_language(SMALL, lr=0.0), "positive learning rate"),
    "no steps": (lambda: train_on_language(SMALL, steps=0), "steps=0: need a whole number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_language_is_refused_in_one_sentence(case: str):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
