"""The kinds of contexts by hand: one corpus with a known bigram, trigram and skip-trigram, and texts for every kind."""

import numpy as np
import pytest
import torch

from circuits.data.contexts import KINDS, ContextOptions, classify_contexts
from circuits.data.ngrams import NgramTable
from circuits.data.token_classes import TokenClasses

# 0 BOS; brackets ( ) [ ] are 1 2 3 4, a quote 5, white space 6; words from 7, those from 30 in no pattern
VOCAB = 60
CLASSES = TokenClasses.by_hand(VOCAB, pairs=[(1, 2), (3, 4)], quotes=[5], whitespace=[6])
BI, GRAM, SKIP = (7, 8), (9, 10, 11), (13, 14, 15)
"""7 -> 8; 9 10 -> 11, while 10 is followed by anything; 13 ... 14 -> 15, while 14 is followed by anything; and 16 6, 17 2."""


def corpus(*pieces, times, seed=0):
    """Pieces one behind the other again and again, ``...`` a random word each time."""
    stream = [token for _ in range(times) for piece in pieces for token in piece]
    fill = iter(np.random.default_rng(seed).integers(20, VOCAB, len(stream)).tolist())
    return [np.array([next(fill) if token is ... else token for token in stream]), np.arange(VOCAB)]


@pytest.fixture(scope="module")
def table():
    between = [(13, *[...] * n, 14, 15, *[...] * 16) for n in (1, 2, 3, 4)]
    alone = [(10, ..., ..., 14, ..., ...)] * 30
    patterns = [BI, (..., ...), GRAM, (...,), (16, 6), (...,), (17, 2), (..., ...)] * 4
    return NgramTable.count(corpus(*patterns, *between, *alone, times=300), VOCAB, order=3)


def kinds(table, *text, **options):
    """What is known of the last token of a text behind BOS: its kind, its flags, and everything."""
    found = classify_contexts(torch.tensor([[0, *text]]), table, CLASSES, ContextOptions(**options))
    return KINDS[found.kind[0, -1]], {KINDS[k] for k in found.flags[:, 0, -1].nonzero()[0]}, found


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ([30, 1, 31, 2], {"bracket"}),
        ([30, 5, 31, 5], {"bracket"}),
        ([30, 1, 3, 31, 2], {"other"}),  # not the innermost
        ([30, 31, 32, 30, 31], {"induction"}),
        ([30, 31, 30, 32, 30, 31], {"induction"}),  # one of two earlier places agrees
        ([30, 31, 30, 32, 30, 33, 30, 31], {"other"}),  # one of three does not
        ([40, 30, 31, 30, 32, 30, 33, 40, 30, 31], {"induction"}),  # but the longest match is one place
        ([30, 30], {"other"}),
        ([35, *GRAM], {"ngram"}),
        ([35, 36, 10, 11], {"other"}),
        ([35, *BI], {"bigram"}),
        ([*BI, 35, *BI], {"bigram"}),  # repeated, and no surprise to the corpus
        ([13, 40, 14, 15], {"skip_ngram"}),
        ([13, 40, 41, 42, 43, 14, 15], {"skip_ngram"}),
        ([40, 14, 15], {"other"}),
        ([13, 14, 15], {"other"}),  # adjacent: no skip-n-gram, and as a trigram never seen
        ([30, 6], {"positional"}),
        ([30, 40], {"other"}),
    ],
)
def test_every_kind_by_hand(table, text, flags):
    assert kinds(table, *text)[:2] == (next(k for k in KINDS if k in flags), flags)


@pytest.mark.parametrize(
    ("text", "kind", "flags"),
    [
        ([1, 31, 2, 1, 31, 2], "bracket", {"bracket", "induction"}),
        ([1, 17, 2], "bracket", {"bracket", "bigram"}),
        ([30, 6, 31, 30, 6], "induction", {"induction", "positional"}),
        ([30, 16, 6], "bigram", {"bigram", "positional"}),
    ],
)
def test_the_first_of_several_flags_is_the_kind(table, text, kind, flags):
    assert kinds(table, *text)[:2] == (kind, flags)


def test_longer_contexts_go_first_and_a_bigram_that_suffices_is_no_ngram():
    """7 8 -> 9 always, 8 -> 9 in a third of places: bigram and trigram. 10 11 -> 12, 11 -> 12 in three of four: a bigram."""
    pieces = [
        (7, 8, 9, ...),
        (8, ..., ...),
        (8, ..., ...),
        (10, 11, 12, ...),
        (11, 12, ...),
        (11, 12, ...),
        (11, ..., ...),
        (...,) * 9,
    ]
    table = NgramTable.count(corpus(*pieces, times=500), VOCAB, order=3)
    kind, flags, found = kinds(table, 40, 7, 8, 9)
    assert (kind, flags, found.order[0, -1]) == ("ngram", {"ngram", "bigram"}, 3)
    kind, flags, found = kinds(table, 40, 10, 11, 12)
    assert (kind, flags, found.order[0, -1]) == ("bigram", {"bigram"}, 2)


def test_a_longer_context_that_denies_the_token_takes_the_flag_away():
    """9 10 -> 11, but never behind 8."""
    pieces = [(..., 9, 10, 11, ...), (8, 9, 10, ..., ...), *[(10, ..., ...)] * 6, (21,) * 12]
    table = NgramTable.count(corpus(*pieces, times=800), VOCAB, order=4)
    assert kinds(table, 40, 9, 10, 11)[1] == {"ngram"}
    assert kinds(table, 40, 8, 9, 10, 11)[1] == {"other"}


def test_where_the_evidence_stands_is_told(table):
    found = kinds(table, 30, 1, 3, 31, 4, 30, 1, 40, 2)[2]
    assert found.opener[0].tolist() == [-1, -1, -1, -1, 3, -1, -1, -1, 7] and found.nested[0].nonzero()[0].tolist() == [4, 8]
    assert found.match[0].tolist() == [-1] * 6 + [1, -1, -1] and found.repeated[0].nonzero()[0].tolist() == [6]
    found = kinds(table, 13, 40, 13, 41, 14, 15)[2]
    assert found.source[0].tolist() == [-1] * 5 + [3]
    assert found.order[0].tolist() == [0] * 6
    assert found.kind.dtype == np.int8 and found.kind.shape == (1, 6) and found.flags.shape == (7, 1, 6)


def test_bos_takes_no_part(table):
    first = classify_contexts(torch.tensor([[13, 40, 14, 15], [0, 40, 14, 15]]), table, CLASSES)
    assert not first.flags[KINDS.index("skip_ngram")].any()
    repeated = classify_contexts(torch.tensor([[0, 40, 0, 40, 0, 40]]), table, CLASSES)
    assert repeated.match[0].tolist() == [-1, -1, -1, 1, 2]


def test_thresholds_do_what_they_say(table):
    assert kinds(table, 35, *BI, probability=1.0)[1] == {"bigram"}
    assert kinds(table, 35, *GRAM, min_count=1200)[1] == {"ngram"} and kinds(table, 35, *GRAM, min_count=1300)[1] == {"other"}
    assert kinds(table, 35, *GRAM, ratio=1.9)[1] == {"ngram"} and kinds(table, 35, *GRAM, ratio=40.0)[1] == {"other"}
    assert kinds(table, 13, 40, 41, 42, 43, 14, 15, gap=4)[1] == {"other"}
    assert kinds(table, 30, 31, 30, 32, 30, 31, agreement=0.6)[1] == {"other"}
    options = ContextOptions(gap=8)
    assert options.spec() == {
        "probability": 0.2,
        "ratio": 2.0,
        "min_count": 5,
        "alpha": 1e-4,
        "gap": 8,
        "agreement": 0.5,
    }
    assert options.hash == ContextOptions(gap=8).hash != ContextOptions().hash


def test_shares_overlap_and_control(table):
    rng = np.random.default_rng(2)
    rows = [[0, 1, 30, *GRAM, 2, *BI, 16, 6, *rng.integers(30, VOCAB, 4), *GRAM] for _ in range(5)]
    found = classify_contexts(torch.tensor(rows), table, CLASSES)
    flat = found.flags.reshape(7, -1)
    assert (found.overlap == [[(a & b).sum() for b in flat] for a in flat]).all()
    shares = found.summary()
    assert shares.kind.values.tolist() == list(KINDS) and float(shares.value.sum()) == pytest.approx(1)
    assert (shares.value.sel(kind="ngram"), shares.value.sel(kind="bracket")) == (2 / 17, 1 / 17)
    assert (shares.stderr >= 0).all() and shares.stderr.sel(kind="ngram") == 0
    assert (shares.overlap.sel(kind="bigram", also="positional"), shares.overlap.sel(kind="bigram", also="bigram")) == (5, 20)
    assert float(shares.flagged.sel(kind="bigram")) == pytest.approx(4 / 17)  # 9 -> 10 twice, 7 -> 8, 16 -> 6
    control = classify_contexts(torch.from_numpy(np.pad(rng.integers(30, VOCAB, (5, 17)), ((0, 0), (1, 0)))), table, CLASSES)
    with_null = found.summary(control)
    assert with_null.null_mean.sel(kind="ngram") == 0 and with_null.null_mean.sel(kind="other") > 0.9
    hashes = {
        found.data_hash,
        control.data_hash,
        classify_contexts(torch.tensor(rows), table, CLASSES, ContextOptions(gap=3)).data_hash,
    }
    assert len(hashes) == 3 and classify_contexts(torch.tensor(rows), table, CLASSES).data_hash in hashes


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: ContextOptions(probability=0.0), r"probability=0.0: need a number above 0 and up to 1"),
        (lambda t: ContextOptions(alpha=float("nan")), r"alpha=nan: need a number above 0 and up to 1"),
        (lambda t: ContextOptions(ratio=1.0), r"ratio=1.0: need a number above 1, e.g. 2.0"),
        (lambda t: ContextOptions(gap=1), r"gap=1: need a whole number of at least 2"),
        (lambda t: ContextOptions(min_count=2.5), r"min_count=2.5: need a whole number of at least 1"),
        (lambda t: classify_contexts(torch.tensor([[0, 99]]), t, CLASSES), r"tokens: ids run from 0 to 99, the vocabulary is"),
        (
            lambda t: classify_contexts(torch.tensor([[0, 1]]), t, TokenClasses.by_hand(8)),
            r"classes are of 8 ids and the corpus of 60; make both for one vocabulary",
        ),
        (
            lambda t: classify_contexts(torch.tensor([[0, 30, 12, 18, 30]]), t, CLASSES),
            r"33% of the text's tokens occur 5 times in the corpus of [\d,]+ tokens and 50% are needed; count a larger corpus",
        ),
    ],
)
def test_bad_input_is_refused(table, call, message):
    with pytest.raises(ValueError, match=message):
        call(table)
