"""Bracket pairs in token sequences: which closer belongs to which opener, and what to compare them with.

Rules. Brackets nest; a closer that does not fit the innermost open bracket is passed over. A quote, one id for both sides, closes
the innermost open pair if that is of its own kind and opens one otherwise. The *depth* of a pair is 1 for an outermost one. A
pair is *nested* if another pair lies inside it, so that its opener is not the last bracket before the closer: what a head that
only knows the last bracket cannot close. (``TokenClasses`` calls a closer nested if its pair lies inside another.)

Controls share what a bracket head might see by accident. Control keys of a closer: earlier openers of the same type and depth
that do not match it, because they are closed. Control tokens: tokens without brackets at the same depth in the same example.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.data.token_classes import TokenClasses


@dataclass(frozen=True, eq=False)
class BracketTokens:
    """Token sequences and every closed pair in them, one entry per closer.

    Attributes:
        tokens: ``[example, pos]``, BOS first.
        example: the sequence of each closer. closer, opener: positions. depth: of the pair. nested: another pair lies inside.
        controls: ``[closer, pos]``, the control keys of each closer.
        level: ``[example, pos]``, pairs open before each token; -1 on BOS and brackets, which are nobody's control tokens.
    """

    tokens: Int[Tensor, "example pos"]
    example: Int[np.ndarray, "closer"]
    closer: Int[np.ndarray, "closer"]
    opener: Int[np.ndarray, "closer"]
    depth: Int[np.ndarray, "closer"]
    nested: Bool[np.ndarray, "closer"]
    controls: Bool[np.ndarray, "closer pos"]
    level: Int[np.ndarray, "example pos"]


def match_brackets(
    tokens: Int[Tensor, "example pos"], pairs: Iterable[Sequence[int]], quotes: Iterable[int] = ()
) -> BracketTokens:
    """Find the pairs in token sequences, by the rules of the module's docstring; a bracket that stays open adds to the depth.

    Args:
        tokens: ``[example, pos]``, BOS first. pairs: (opening id, closing id) of each type. quotes: ids that open and close.

    Raises:
        ValueError: no pairs and no quotes, or an id named twice.
    """
    closes, opens = check_bracket_ids(pairs, quotes)
    found: list[tuple[int, int, int, int, int]] = []  # example, closer, opener, type, depth
    level = np.full(tuple(tokens.shape), -1, dtype=np.int64)
    for e, row in enumerate(tokens.tolist()):
        stack: list[tuple[int, int]] = []  # id and position of every open bracket
        for p, token in enumerate(row[1:], start=1):
            if stack and closes.get(token) == stack[-1][0]:
                found.append((e, p, stack[-1][1], token, len(stack)))
                stack.pop()
            elif token in opens:
                stack.append((token, p))
            elif token not in closes:
                level[e, p] = len(stack)
    example, closer, opener, type_, depth = np.asarray(found, dtype=np.int64).reshape(-1, 5).T
    return _with_controls(tokens, example, closer, opener, type_, depth, level)


def annotate(tokens: Int[Tensor, "example pos"], classes: TokenClasses) -> BracketTokens:
    """The pairs that ``classes`` finds in the text of the tokens, such as real code, where a token may hold several brackets.

    A pair's type is the bracket or quote that closes it. What the text leaves open does not count for the depth.

    Args:
        tokens: ``[example, pos]``, BOS first. classes: of the tokens' vocabulary.

    Raises:
        TypeError, ValueError: tokens that are no integer ids of this vocabulary.
    """
    found = classes.closings(tokens)
    example, at = np.nonzero(found.closes)
    closer, opener = at + 1, found.opener[example, at]
    begins = np.zeros((*found.closes.shape[:1], found.closes.shape[1] + 2), dtype=np.int64)
    np.add.at(begins, (example, opener + 1), 1)
    np.add.at(begins, (example, closer), -1)
    level = begins.cumsum(1)[:, :-1]  # pairs with opener < pos < closer
    depth = level[example, closer] + 1  # its own pair ends there
    marks = [*classes.quotes, *(mark for pair in classes.pairs for mark in pair)]
    first = {i: _first_mark(text, marks) for i, text in enumerate(classes.texts)}
    ids = tokens.numpy()
    type_ = np.asarray([first[i] for i in ids[example, closer].tolist()], dtype=np.int64)
    bracket = np.asarray([first[i] >= 0 for i in range(len(classes.texts))])[ids]
    level = np.where(bracket, -1, level)
    level[:, 0] = -1
    return _with_controls(tokens, example, closer, opener, type_, depth, level)


def _first_mark(text: str, marks: Sequence[str]) -> int:
    """Which of the marks comes first in a text, -1 for none; of two at one place the longer."""
    places = [(text.find(mark), -len(mark), i) for i, mark in enumerate(marks) if mark in text]
    return min(places)[2] if places else -1


def _with_controls(
    tokens: Int[Tensor, "example pos"],
    example: Int[np.ndarray, "closer"],
    closer: Int[np.ndarray, "closer"],
    opener: Int[np.ndarray, "closer"],
    type_: Int[np.ndarray, "closer"],
    depth: Int[np.ndarray, "closer"],
    level: Int[np.ndarray, "example pos"],
) -> BracketTokens:
    """Which pairs hold others, and every closer's control keys."""
    length = tokens.shape[1]
    ended = np.zeros(tuple(tokens.shape), dtype=np.int64)
    ended[example, closer] = 1
    ended = ended.cumsum(1)
    nested = ended[example, closer - 1] > ended[example, opener]  # pairs do not cross: what ends inside lies inside
    # A control key is the opener of another closed pair, so it is found among the pairs alike in example, type and depth.
    controls = np.zeros((len(example), length), dtype=bool)
    order = np.lexsort((example, type_, depth))
    keys = np.stack([example, type_, depth])[:, order]
    for alike in np.split(order, np.flatnonzero((np.diff(keys) != 0).any(0)) + 1):
        controls[np.ix_(alike, opener[alike])] = True
    controls[np.arange(len(example)), opener] = False
    controls &= np.arange(length)[None] < closer[:, None]
    return BracketTokens(tokens.long(), example, closer, opener, depth, nested, controls, level)


def check_bracket_ids(pairs: Iterable[Sequence[int]], quotes: Iterable[int]) -> tuple[dict[int, int], set[int]]:
    """What each closing id closes, and the ids that open; a quote does both.

    Raises:
        ValueError: none are given, a pair is no pair, or an id is named twice.
    """
    made, marks = [tuple(map(int, pair)) for pair in pairs], [int(q) for q in quotes]
    if any(len(pair) != 2 for pair in made) or not (made or marks):
        raise ValueError(f"pairs={made[:3]}, quotes={marks[:3]}: need (opening id, closing id) pairs, or ids of quotes")
    flat = [i for pair in made for i in pair] + marks
    if len(set(flat)) < len(flat):
        raise ValueError(f"bracket ids {flat} name one twice; each id opens or closes one type, and quotes are given apart")
    return {c: o for o, c in made} | {q: q for q in marks}, {o for o, _ in made} | set(marks)
