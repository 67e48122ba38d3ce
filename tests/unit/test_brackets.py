"""Bracket pairs read by hand, the evaluation set, and what the bracket detector makes of patterns and losses that are known."""

import numpy as np
import pytest
import torch

from circuits.data.bracket_set import bracket_ids, bracket_set
from circuits.data.brackets import BracketTokens, annotate, match_brackets
from circuits.data.token_classes import TokenClasses
from circuits.data.tokenizer import train_bpe
from circuits.detectors.brackets import BracketScores, above_controls, attention_to_opener, per_condition
from circuits.detectors.nested_brackets import NestedBrackets
from circuits.models.hooked import HookedTransformer

PAIRS, QUOTES, FILLER = [(1, 2), (3, 4), (5, 6)], [7, 8], range(10, 40)


def rows(found: BracketTokens):
    """(closer, opener, depth, nested, control keys) of every closer, in order of the text."""
    order = np.lexsort((found.closer, found.example))
    keys = [np.flatnonzero(found.controls[i]).tolist() for i in order]
    listed = (found.closer, found.opener, found.depth, found.nested)
    return [(*values, control) for *values, control in zip(*(x[order].tolist() for x in listed), keys, strict=True)]


def test_pairs_read_by_hand():
    # the place:            0  1  2   3  4   5  6   7  8   9  10 11  12 13
    # the text:             B  (  a   [  b   ]  c   )  d   (  (  e   )  )
    tokens = torch.tensor([[0, 1, 20, 3, 21, 4, 22, 2, 23, 1, 1, 24, 2, 2]])
    found = match_brackets(tokens, PAIRS)
    assert rows(found) == [(5, 3, 2, False, []), (7, 1, 1, True, []), (12, 10, 2, False, []), (13, 9, 1, True, [1])]
    assert found.level[0].tolist() == [-1, -1, 1, -1, 2, -1, 1, -1, 0, -1, -1, 2, -1, -1]


def test_a_control_key_is_an_earlier_closed_opener_of_the_same_type_and_depth():
    # the place:            0  1  2   3  4  5   6  7  8   9  10 11 12  13 14
    # the text:             B  (  a   )  [  b   ]  (  c   )  (  [  d   ]  )
    tokens = torch.tensor([[0, 1, 20, 2, 3, 21, 4, 1, 22, 2, 1, 3, 23, 4, 2]])
    assert [(closer, control) for closer, *_, control in rows(match_brackets(tokens, PAIRS))] == [
        (3, []),
        (6, []),
        (9, [1]),
        (13, []),  # the other [ stood at depth 1
        (14, [1, 7]),
    ]


def test_quotes_close_their_own_kind_and_open_otherwise():
    # the place:            0  1  2   3  4   5  6   7  8   9  10
    # the text:             B  "  a   '  b   '  c   "  d   "  e
    tokens = torch.tensor([[0, 7, 20, 8, 21, 8, 22, 7, 23, 7, 24]])
    found = match_brackets(tokens, PAIRS, QUOTES)
    assert rows(found) == [(5, 3, 2, False, []), (7, 1, 1, True, [])]
    assert found.level[0, [2, 4, 6, 8, 10]].tolist() == [1, 2, 1, 0, 1]  # the last quote opens


def test_closers_that_fit_nothing_are_passed_over():
    tokens = torch.tensor([[0, 2, 1, 20, 4, 21, 2, 2]])  # ) ( a ] b ) )
    assert rows(match_brackets(tokens, PAIRS)) == [(6, 2, 1, False, [])]


def test_text_is_annotated_by_its_characters():
    tokenizer = train_bpe(["f(x)) ([]) \"a\" 'b' ()[]"] * 20, vocab_size=270)
    classes = TokenClasses.from_tokenizer(tokenizer)
    text = 'a(b[1]) (c) "d"'
    ids = [0, *tokenizer.encode(text, add_special_tokens=False).ids]
    found = annotate(torch.tensor([ids]), classes)
    texts = [classes.texts[i] for i in ids]
    pairs = [(texts[o], texts[c]) for c, o, *_ in rows(found)]
    assert all(any(q in a and p in b for q, p in (("(", ")"), ("[", "]"), ('"', '"'))) for a, b in pairs)
    assert found.depth.max() == 2 and found.nested.sum() == 1
    marks = set("()[]\"'")
    assert [(level >= 0) for level in found.level[0, 1:].tolist()] == [not marks & set(t) for t in texts[1:]]


def test_text_and_ids_agree_where_tokens_are_single_brackets():
    made = bracket_set(PAIRS, FILLER, examples=40, length=48)
    found = annotate(made.tokens, TokenClasses.by_hand(40, pairs=PAIRS))
    for one, other in zip(*([x.closer, x.opener, x.nested] for x in (made, found)), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("quotes", [[], QUOTES])
def test_the_evaluation_set_has_nested_and_flat_pairs_with_controls(quotes: list[int]):
    made = bracket_set(PAIRS, FILLER, quotes=quotes, examples=200, length=64, max_depth=3, seed=1)
    assert made.tokens.shape == (200, 64) and (made.tokens[:, 0] == 0).all()
    opens, closes = dict(PAIRS) | {q: q for q in quotes}, made.tokens.numpy()[made.example, made.closer]
    assert np.array_equal(closes, [opens[i] for i in made.tokens.numpy()[made.example, made.opener].tolist()])
    assert 0.2 < made.nested.mean() < 0.6 and made.depth.min() == 1 and made.depth.max() == 3
    for nested in (False, True):
        assert made.controls[made.nested == nested].any(1).mean() > 0.3
    assert (made.closer - made.opener >= 2).all()  # no empty pairs
    for q in quotes:
        assert (closes == q).sum() > 50
    again, other = (bracket_set(PAIRS, FILLER, quotes=quotes, examples=200, seed=s).tokens for s in (1, 2))
    assert torch.equal(made.tokens, again) and not torch.equal(again, other)


def test_the_ids_of_a_tokenizer():
    tokenizer = train_bpe(["the cat (and) the dog"] * 50, vocab_size=270)
    pairs, quotes, filler = bracket_ids(tokenizer)
    shown = [tuple(tokenizer.decode([i]) for i in pair) for pair in pairs]
    assert shown == [("(", ")"), ("[", "]"), ("{", "}")]
    assert [tokenizer.decode([q]) for q in quotes] == ['"', "'"]
    assert " the" in {tokenizer.decode([i]) for i in filler} and not {i for pair in pairs for i in pair} & set(filler)


def test_attention_to_the_opener_and_its_controls_by_hand():
    row = torch.tensor([[[0.1, 0.4, 0.2, 0.3], [0.0, 0.0, 1.0, 0.0]]])  # one closer, two heads, four keys
    controls = torch.tensor([[True, False, False, True]])
    found = attention_to_opener(row, torch.tensor([1]), controls)
    assert found[:, 0].tolist() == [pytest.approx([0.4, 0.0]), pytest.approx([0.2, 0.0])]
    assert attention_to_opener(row, torch.tensor([1]), controls & False)[1].isnan().all()


def test_effects_are_taken_at_the_predicting_position_and_from_control_tokens_of_the_same_depth():
    #                       0  1  2   3  4   5  6   7
    # the text:             B  (  a   [  b   ]  c   )
    found = match_brackets(torch.tensor([[0, 1, 20, 3, 21, 4, 22, 2]]), PAIRS)
    effect = np.arange(7.0)[None, None]  # entry t is about token t + 1
    at, control = above_controls(found, effect)
    order = np.argsort(found.closer)
    assert at[0, order].tolist() == [4.0, 6.0]
    assert control[0, order].tolist() == [3.0, 3.0]  # b; a and c: (1 + 5) / 2
    nothing = match_brackets(torch.tensor([[0, 1, 3, 21, 4, 2]]), PAIRS)  # no token at depth 1
    assert np.isnan(above_controls(nothing, np.zeros((1, 1, 5)))[1]).tolist() == [[False, True]]


def test_means_are_over_examples_and_not_over_closers():
    made = match_brackets(torch.tensor([[0, 1, 9, 2, 1, 9, 2, 9], [0, 1, 3, 9, 4, 2, 9, 9], [0, 9, 9, 9, 9, 9, 1, 2]]), PAIRS)
    values = np.where(made.example == 0, 1.0, np.where(made.nested, 5.0, 3.0))[None]
    values[0, made.example == 2] = np.nan
    mean, stderr, n = per_condition(made, values)
    assert mean[0].tolist() == [2.5, 2.0, 5.0]  # all: (1, 4); flat: (1, 3); nested: (5)
    assert n.tolist() == [2, 2, 1]
    assert stderr[0, :2].tolist() == pytest.approx([1.5, 1.0]) and np.isnan(stderr[0, 2])


def small(**changes):
    cfg = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 64, "d_vocab": 60, "attn_only": True}
    return HookedTransformer(cfg | changes)


WRONG = {
    "no brackets": (lambda: match_brackets(torch.zeros(1, 4).long(), []), ValueError, "need .opening id, closing id. pairs"),
    "an id twice": (lambda: match_brackets(torch.zeros(1, 4).long(), [(1, 2), (2, 3)]), ValueError, "name one twice"),
    "one type": (lambda: bracket_set([(1, 2)], FILLER), ValueError, "1 bracket types and 30 filler ids"),
    "no filler": (lambda: bracket_set(PAIRS, []), ValueError, "0 filler ids"),
    "filler that closes": (lambda: bracket_set(PAIRS, [2, 20]), ValueError, "filler that is neither bracket nor BOS"),
    "too short": (lambda: bracket_set(PAIRS, FILLER, length=5), ValueError, "need at least 8"),
    "plain tokens": (lambda: BracketScores(torch.zeros(2, 8).long()), TypeError, "needs BracketTokens: use bracket_set"),
    "nothing to compare": (
        lambda: BracketScores(match_brackets(torch.tensor([[0, 1, 9, 2, 9, 9]] * 3), PAIRS)),
        ValueError,
        "0 examples have a closer with control keys and control tokens",
    ),
    "negative nulls": (lambda: BracketScores(bracket_set(PAIRS, FILLER), null_seeds=-1), ValueError, "null_seeds=-1"),
    "one null": (lambda: NestedBrackets(bracket_set(PAIRS, FILLER), null_seeds=1), ValueError, "has no spread"),
    "another vocabulary": (
        lambda: BracketScores(bracket_set(PAIRS, FILLER))(small(d_vocab=20)),
        ValueError,
        "the vocabulary is 0..19",
    ),
    "attention and MLP in parallel": (
        lambda: NestedBrackets(bracket_set(PAIRS, FILLER, examples=8))(
            small(attn_only=False, act_fn="relu", parallel_attn_mlp=True)
        ),
        ValueError,
        "parallel_attn_mlp",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_gets_one_sentence(case: str):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
