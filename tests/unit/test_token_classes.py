"""Brackets and quotes in the text of tokens: what closes, what is nested, and what only looks like a quote."""

import pytest
import torch

from circuits.data.languages import dyck
from circuits.data.token_classes import TokenClasses
from circuits.models.demo import demo_tokenizer


def read(*texts):
    """Closings of one text given as tokens: the token that each closing token's opener is in, and which are nested."""
    distinct = ["", *dict.fromkeys(texts)]
    found = TokenClasses(tuple(distinct)).closings(torch.tensor([[0, *map(distinct.index, texts)]]))
    closed = {int(t): int(found.opener[0, t]) - 1 for t in found.closes[0].nonzero()[0]}
    assert (found.opener[0] >= 0).tolist() == found.closes[0].tolist()
    return closed, [int(t) for t in found.nested[0].nonzero()[0]]


@pytest.mark.parametrize(
    ("texts", "closed", "nested"),
    [
        (["f", "(", "a", ")"], {3: 1}, []),
        (["f", "(", "[", "a", "]", ",", "{", "}", ")"], {4: 2, 7: 6, 8: 1}, [4, 7]),
        (["f", '("', "a", '"):', "b"], {3: 1}, [3]),  # the token's first mark decides, here the quote inside the bracket
        (["f", "(", "a", "[", "0", "])"], {5: 3}, [5]),
        (["f", "()", ")"], {}, []),  # what opens within the token closes nothing before it
        (["(", "]", ")"], {2: 0}, []),  # a closer of another type closes nothing
        (["a", ")", "(", ")"], {3: 2}, []),  # nor one whose opener stands before the context
        (["(", "[", ")", "]"], {}, []),  # one that skips an open bracket is no closing, and both are given up
    ],
)
def test_brackets_close_the_innermost(texts, closed, nested):
    assert read(*texts) == (closed, nested)


@pytest.mark.parametrize(
    ("texts", "closed", "nested"),
    [
        ([" '", "a", "'"], {2: 0}, []),
        (["don", "'t", " '", "a", "'"], {4: 2}, []),  # an apostrophe opens nothing
        ([" '", "don", "'t", " go", "'"], {4: 0}, []),  # and closes nothing
        (["b", "'", "a", "'"], {3: 1}, []),  # but a string prefix stands before a quote
        (["(", "rb", '"', "a", '"', ")"], {4: 2, 5: 0}, [4]),
        (['"', "(", '"', ")"], {2: 0}, []),  # a quote closes whatever was opened in it
        (["(", '"', ")", '"', ")"], {3: 1, 4: 0}, [3]),  # and a bracket in it closes nothing outside
        (["'", '"', "'", "a"], {2: 0}, []),
        (['"', "it's", '"'], {2: 0}, []),
        ([" '", "\\'", "'"], {2: 0}, []),  # a backslash hides a quote
        ([" '", "a", "\n", "'"], {}, []),  # a line break ends a quote
        (["(", "'", "\n", "a", ")"], {4: 0}, []),  # but no bracket
        (['"""', "a", "\n", "'s", '"""'], {4: 0}, []),  # nor a triple quote
        (["a", '"', ",", ' "', "b", '"'], {5: 3}, []),  # behind a letter a quote ends what began before the context
        ([" ``", "a", "``", " `", "b", "`"], {2: 0, 5: 3}, []),
        ([' "', '"', "x"], {1: 0}, []),
    ],
)
def test_quotes_are_told_from_apostrophes_and_ends(texts, closed, nested):
    assert read(*texts) == (closed, nested)


def test_classes_by_hand_read_dyck_strings_as_they_were_made():
    pairs = [(1, 2), (3, 4), (7, 5)]
    made = dyck(pairs, length=40, examples=20)
    found = TokenClasses.by_hand(8, pairs=pairs).closings(made.tokens)
    assert (found.opener == made.opener[:, 1:].numpy()).all()
    depth = torch.isin(made.tokens, torch.tensor([1, 3, 7])).long().mul(2).sub(1)
    depth[:, 0] = 0
    assert (found.nested == (found.closes & (depth.cumsum(1)[:, 1:].numpy() > 0))).all()
    # quotes and white space too
    classes = TokenClasses.by_hand(9, pairs=[(1, 2)], quotes=[3, 4], whitespace=[5])
    assert classes.whitespace.nonzero()[0].tolist() == [5]
    found = classes.closings(torch.tensor([[0, 3, 1, 3, 8, 3, 5, 3, 4, 6, 4]]))
    assert found.opener.tolist() == [[-1, -1, 1, -1, -1, -1, 5, -1, -1, 8]]


def test_classes_of_a_tokenizer_and_their_identity():
    classes = TokenClasses.from_tokenizer(demo_tokenizer())
    assert len(classes.texts) == 1024 and classes.texts[0] == "" and classes.texts.count("(") == 1
    white = {classes.texts[i] for i in classes.whitespace.nonzero()[0]}
    assert {"\n", "\n       ", "    "} <= white and " the" not in white
    hashes = {TokenClasses.by_hand(9, pairs=pairs).hash for pairs in ([(1, 2)], [(2, 1)], [])}
    assert len(hashes) == 3 and TokenClasses.by_hand(9, pairs=[(1, 2)]).hash in hashes


def test_bad_classes_and_tokens_are_refused():
    with pytest.raises(ValueError, match=r"are ids \[1, 2, 2\]; need different ids in 0\.\.8"):
        TokenClasses.by_hand(9, pairs=[(1, 2)], quotes=[2])
    with pytest.raises(ValueError, match=r"are ids \[1, 9\]; need different ids in 0\.\.8"):
        TokenClasses.by_hand(9, pairs=[(1, 9)])
    with pytest.raises(ValueError, match=r"tokens: ids run from 0 to 9, the vocabulary is 0\.\.8"):
        TokenClasses.by_hand(9).closings(torch.tensor([[0, 9]]))
