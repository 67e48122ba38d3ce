"""Synthetic languages whose structure is known exactly: balanced brackets, and a language with a bit of everything.

**Mixed language.** It is known why every token came. A text is a run of *items*, each drawn with its weight; to the right, why
each of its tokens came:

    plain        x           a plain token, by Zipf's law                                        other
    bigram       a b         a uniform; its b with ``bigram_probability``, else a plain token     other bigram (other)
    ngram        c m1 .. o   of an order n from ``orders``; each m follows from the token         other bigram .. ngram
                             before with certainty, o from all n - 1: another c before the
                             same m's has another o
    skip_ngram   s .. d o    g short items between s and d; o follows from both: each d has       other .. other skip_ngram
                             several s, each with its own o
    induction    r .. r      a span r of different plain tokens, p short items, r again           other .. other induction ..
    bracket      ( .. )      m items, but no induction, between opener and closer                 other .. bracket

Short items are the first three; g, p and m are uniform; brackets hold brackets up to ``max_depth``. Tokens a, c, m, s and d occur
nowhere else, so these are the conditional probabilities of the language. b, o and r are plain tokens. No d of a skip-trigram is
used twice in a sequence until all have been. ``kind[..., t]`` is why token t + 1 came; "other" is what nothing before it
determines. A closer comes with certainty when its items are over, but how many there are is unknown: its loss cannot go to 0. It
is *nested* if its pair stands in another.

Sequences are cut at their length. The expected shares, cuts included, are exact: ``circuits.data.mixed_rates``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.data.contexts import KINDS
from circuits.data.mixed_rates import expected_shares
from circuits.data.mixed_tokens import ITEMS, PLAIN, MixedTokens, Tables
from circuits.data.mixed_writer import Writer

BRACKETS = ("()", "[]", "{}")


@dataclass(frozen=True)
class Dyck:
    """Balanced brackets of several types.

    Attributes:
        tokens: ``[example, pos]``, BOS first.
        opener: ``[example, pos]``, at each closing bracket the position of its opener, elsewhere -1.
    """

    tokens: Int[Tensor, "example pos"]
    opener: Int[Tensor, "example pos"]


def dyck(pairs: list[tuple[int, int]], *, length: int, examples: int, seed: int = 0, max_depth: int = 6, bos: int = 0) -> Dyck:
    """Random balanced bracket strings of an even ``length`` behind BOS.

    At each place a bracket opens with probability 1/2 (uniform type) where depth and room allow, else the innermost
    closes.

    Args:
        pairs: (opening id, closing id) of each bracket type.

    Raises:
        ValueError: the length is odd or no type is given.
    """
    if not pairs or length < 2 or length % 2:
        raise ValueError(f"length={length} with {len(pairs)} bracket types: need an even length of at least 2 and one type")
    rng = np.random.default_rng([seed, 4])
    tokens = np.full((examples, length + 1), bos)
    opener = np.full((examples, length + 1), -1)
    for e in range(examples):
        stack: list[tuple[int, int]] = []
        for p in range(1, length + 1):
            room = length - p + 1
            must_close = len(stack) >= max_depth or len(stack) >= room
            if not stack or (not must_close and rng.random() < 0.5):
                kind = int(rng.integers(len(pairs)))
                stack.append((kind, p))
                tokens[e, p] = pairs[kind][0]
            else:
                kind, opener[e, p] = stack.pop()
                tokens[e, p] = pairs[kind][1]
    return Dyck(torch.from_numpy(tokens), torch.from_numpy(opener))


@dataclass(frozen=True)
class MixedLanguage:
    """A language with known shares of kinds; see the module's docstring.

    Args:
        d_vocab: ids, 0 is BOS. bracket_types, bigrams: how many.
        orders, ngrams: of n-grams, and how many of each order (an even number: they come in pairs that differ in first and last).
        skip_trigrams, sharing: how many, and sources to a destination. bigram_probability: of b after a.
        zipf: exponent of the background. gap: items between a skip-trigram's source and destination, at least 1. span: shortest
            and longest repeated span. pause: items between the two. content: items in a bracket. max_depth: of brackets.
        weights: of the six items, in the order of ``ITEMS``, relative to each other.
        seed: of the tables: which tokens do what.

    Raises:
        ValueError: the vocabulary is too small, or a number makes no sense.
    """

    d_vocab: int = 160
    bracket_types: int = 3
    bigrams: int = 16
    bigram_probability: float = 0.9
    orders: tuple[int, ...] = (3, 4, 5)
    ngrams: int = 6
    skip_trigrams: int = 24
    sharing: int = 3
    zipf: float = 1.0
    gap: tuple[int, int] = (1, 5)
    span: tuple[int, int] = (8, 14)
    pause: tuple[int, int] = (0, 3)
    content: tuple[int, int] = (1, 3)
    max_depth: int = 3
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 2.0, 3.0, 2.0)
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {
            name: getattr(self, name) for name in ("bracket_types", "bigrams", "ngrams", "skip_trigrams", "sharing", "max_depth")
        }
        if min(counts.values()) < 1 or self.ngrams % 2 or self.skip_trigrams % self.sharing:
            raise ValueError(f"{counts}: need at least 1 of each, ngrams even and skip_trigrams a multiple of sharing")
        if not self.orders or min(self.orders) < 3:
            raise ValueError(f"orders={self.orders}: need at least one, from 3 up (bigrams are apart)")
        for name, least in (("gap", 1), ("span", 2), ("pause", 0), ("content", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"{name}={(low, high)}: need {least} <= shortest <= longest")
        if len(self.weights) != len(ITEMS) or min(self.weights) < 0 or self.weights[PLAIN] <= 0:
            raise ValueError(f"weights={self.weights}: need six numbers for {ITEMS}, none negative and the first positive")
        if not 0 <= self.bigram_probability <= 1 or not self.zipf >= 0:
            raise ValueError(f"bigram_probability={self.bigram_probability}, zipf={self.zipf}: need one in [0, 1], one from 0 up")
        needed = self._reserved() + 2 * max(self.span[1], self.sharing, 2)
        if self.d_vocab < needed:
            raise ValueError(f"d_vocab={self.d_vocab} and this language needs {needed} ids: use a larger one, or fewer patterns")

    def _reserved(self) -> int:
        """Ids that are not plain tokens."""
        phrases = sum(self.ngrams // 2 * order for order in self.orders)
        return 1 + 2 * self.bracket_types + self.bigrams + phrases + self.skip_trigrams + self.skip_trigrams // self.sharing

    def spec(self) -> dict[str, Any]:
        return asdict(self)

    @cached_property
    def tables(self) -> Tables:
        """Which tokens do what, drawn from ``seed``."""
        rng = np.random.default_rng([self.seed, 33])
        ids = np.arange(1 + 2 * self.bracket_types, self.d_vocab)
        taken = iter(rng.permutation(ids)[: self._reserved() - 1 - 2 * self.bracket_types].tolist())

        def take(n: int) -> np.ndarray:
            return np.asarray([next(taken) for _ in range(n)])

        firsts = take(self.bigrams)
        stems = [[(take(2), take(order - 2)) for _ in range(self.ngrams // 2)] for order in self.orders]
        sources, destinations = take(self.skip_trigrams), take(self.skip_trigrams // self.sharing)
        used = {*firsts.tolist(), *sources.tolist(), *destinations.tolist()}
        used |= {int(i) for order in stems for c, middle in order for i in (*c, *middle)}
        plain = rng.permutation([i for i in ids.tolist() if i not in used])
        zipf = np.arange(1, len(plain) + 1) ** -self.zipf

        def outs(n: int) -> np.ndarray:  # different ones
            return rng.choice(plain, size=n, replace=False)

        ngrams = tuple(
            np.asarray([[first, *middle, out] for c, middle in order for first, out in zip(c, outs(2), strict=True)])
            for order in stems
        )
        skips = [
            [(s, d, o) for s, o in zip(group, outs(self.sharing), strict=True)]
            for d, group in zip(destinations, sources.reshape(-1, self.sharing), strict=True)
        ]
        pairs = np.arange(1, 1 + 2 * self.bracket_types).reshape(-1, 2)
        bigrams = np.stack([firsts, rng.choice(plain, size=self.bigrams)], axis=1)
        return Tables(pairs, bigrams, ngrams, np.asarray(skips), plain, zipf / zipf.sum())

    def rates(self, length: int) -> dict[str, float]:
        """The expected share of each kind among the predicted tokens of sequences of this length, BOS counted; exact.

        Also "nested", the share of closers of pairs inside another (part of "bracket").
        """
        return dict(zip((*KINDS, "nested"), expected_shares(self, length).tolist(), strict=True))

    def sample(self, examples: int, *, length: int = 64, seed: int | Sequence[int] = 0) -> MixedTokens:
        """Random sequences with the reason for every token.

        Raises:
            ValueError: no examples, or sequences of less than two tokens.
        """
        if examples < 1 or length < 2:
            raise ValueError(f"examples={examples}, length={length}: need at least 1 and 2")
        return Writer(self, examples, length, np.random.default_rng([*np.atleast_1d(seed).tolist(), 34])).write()
