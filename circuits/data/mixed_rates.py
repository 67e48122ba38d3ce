"""The expected share of each kind of token in a mixed language, exactly.

A *piece* is something random that is written from left to right. All that matters of it is ``length[l]``, the probability that
it has ``l`` tokens, and ``emit[k, o]``, the probability that it has a token of kind ``k`` at offset ``o``, both up to a horizon.
Two pieces one after the other have lengths convolved, and the second's emissions moved by the first's length; a choice is the
mean of its pieces. Items are drawn independently of each other's lengths, so brackets are built from the inside out, and a
text is a renewal process: if ``u[t]`` is the probability that an item begins at ``t``, ``u[t] = [t = 0] + sum_l length[l] u[t -
l]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuits.data.contexts import BIGRAM, BRACKET, INDUCTION, KINDS, NGRAM, OTHER, SKIP_NGRAM
from circuits.data.mixed_tokens import SHORT

if TYPE_CHECKING:
    from circuits.data.languages import MixedLanguage

NESTED = len(KINDS)
"""The row of nested closers, behind those of the kinds; "bracket" counts them too."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Length and emissions of a random piece of text."""

    length: Float[np.ndarray, "l"]
    emit: Float[np.ndarray, "kind offset"]

    def then(self, other: "Piece") -> "Piece":
        """This and, behind it, the other, independent of it."""
        moved = np.stack([_convolve(self.length, row) for row in other.emit])
        return Piece(_convolve(self.length, other.length), self.emit + moved)


def _convolve(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.convolve(a, b)[: len(a)]


def _fixed(kinds: Sequence[int], horizon: int) -> Piece:
    """Tokens of these kinds, surely."""
    length, emit = np.zeros(horizon), np.zeros((NESTED + 1, horizon))
    length[len(kinds) : len(kinds) + 1] = 1.0
    for offset, kind in enumerate(kinds[:horizon]):
        emit[kind, offset] = 1.0
    return Piece(length, emit)


def _choice(pieces: Sequence[Piece], weights: Sequence[float]) -> Piece:
    """One of these, by weight."""
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    length, emit = (np.tensordot(shares, [getattr(p, of) for p in pieces], axes=1) for of in ("length", "emit"))
    return Piece(length, emit)


def _several(piece: Piece, bounds: tuple[int, int]) -> Piece:
    """As many of one kind of piece as a uniform number says."""
    power, powers = _fixed([], len(piece.length)), []
    for number in range(bounds[1] + 1):
        if number >= bounds[0]:
            powers.append(power)
        power = power.then(piece)
    return _choice(powers, [1.0] * len(powers))


def expected_shares(language: "MixedLanguage", length: int) -> Float[np.ndarray, "kind"]:
    """The expected share of each kind, and of nested closers, among the tokens behind BOS of sequences of ``length``."""
    horizon = length - 1

    def fixed(*kinds: int) -> Piece:
        return _fixed(kinds, horizon)

    p = language.bigram_probability
    phrases = [fixed(OTHER, *[BIGRAM] * (order - 2), NGRAM) for order in language.orders]
    short = [
        fixed(OTHER),
        _choice([fixed(OTHER, BIGRAM), fixed(OTHER, OTHER)], [p, 1 - p]),
        _choice(phrases, [1.0] * len(phrases)),
    ]
    weights = list(language.weights)
    item = _choice(short, weights[:SHORT])
    gapped = fixed(OTHER).then(_several(item, language.gap)).then(fixed(OTHER, SKIP_NGRAM))
    pause = _several(item, language.pause)
    spans = range(language.span[0], language.span[1] + 1)
    repeats = [fixed(*[OTHER] * n).then(pause).then(fixed(OTHER, *[INDUCTION] * (n - 1))) for n in spans]
    held, held_weights = [*short, gapped], weights[: SHORT + 1]
    enclosed = None  # the innermost brackets hold none
    for depth in range(language.max_depth, 0, -1):
        inner, inner_weights = (held, held_weights) if enclosed is None else ([*held, enclosed], [*held_weights, weights[-1]])
        before = fixed(OTHER).then(_several(_choice(inner, inner_weights), language.content))
        enclosed = before.then(fixed(BRACKET))
        if depth > 1:
            enclosed.emit[NESTED] += before.length
    assert enclosed is not None
    any_item = _choice([*held, _choice(repeats, [1.0] * len(repeats)), enclosed], weights)
    begins = np.zeros(horizon)
    for t in range(horizon):
        begins[t] = float(t == 0) + begins[:t] @ any_item.length[t:0:-1]
    return np.stack([_convolve(begins, row) for row in any_item.emit]).mean(1)
