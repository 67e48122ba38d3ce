"""How a mixed language is written: all sequences side by side, position by position.

Every sequence has a queue of tokens that are decided and a stack of frames: items that wait for their second part (a skip-trigram
for its destination, a repeat for its copy, a bracket for its closer) and how many items they still hold. Where the queue is
empty, a frame with nothing left writes its second part, and otherwise a new item begins. Either puts at least one token into
the queue, so each position takes one turn.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from circuits.data.contexts import BIGRAM, BRACKET, INDUCTION, NGRAM, OTHER, SKIP_NGRAM
from circuits.data.mixed_tokens import ENCLOSED, GAPPED, PAIR, PHRASE, PLAIN, REPEAT, SHORT, MixedTokens

if TYPE_CHECKING:
    from circuits.data.languages import MixedLanguage


class Writer:
    """The state of all sequences while they are written."""

    def __init__(self, language: "MixedLanguage", examples: int, length: int, rng: np.random.Generator):
        self.language, self.tables, self.rng = language, language.tables, rng
        self.length, self.position = length, 0
        room = max(language.span[1], *language.orders)
        frames = language.max_depth + 2  # brackets in brackets, and a skip-trigram or a repeat in the innermost
        self.queue = np.zeros((examples, room, 4), dtype=np.int64)  # token, kind, nested, source
        self.waiting, self.first = np.zeros(examples, dtype=np.int64), np.zeros(examples, dtype=np.int64)
        self.frames = np.zeros(examples, dtype=np.int64)
        self.what, self.left, self.begun, self.data = (np.zeros((examples, frames), dtype=np.int64) for _ in range(4))
        # Destinations come in a random order of each sequence's own, so that none comes twice before all have.
        self.order = rng.permuted(np.tile(np.arange(len(self.tables.skips)), (examples, 1)), axis=1)
        self.skips = np.zeros(examples, dtype=np.int64)
        self.written = np.zeros((examples, length, 4), dtype=np.int64)

    def write(self) -> MixedTokens:
        every = np.arange(len(self.written))
        for position in range(1, self.length):
            self.position = position
            self._fill(np.flatnonzero(self.first == self.waiting))
            self.written[:, self.position] = self.queue[every, self.first]
            self.first += 1
        tokens, kind, nested, source = (torch.from_numpy(self.written[..., i].copy()) for i in range(4))
        return MixedTokens(tokens, kind[:, 1:].to(torch.int8), nested[:, 1:].bool(), source[:, 1:])

    def _put(self, rows: np.ndarray, *columns: tuple[np.ndarray | int, ...]) -> None:
        """Begin the queues of these sequences anew: one (token, kind, nested, source) a place."""
        for place, column in enumerate(columns):
            for i, values in enumerate(column):
                self.queue[rows, place, i] = values
        self.first[rows], self.waiting[rows] = 0, len(columns)

    def _fill(self, rows: np.ndarray) -> None:
        top = self.frames[rows] - 1
        done = (top >= 0) & (self.left[rows, top] == 0)
        self._finish(rows[done])
        rows, top = rows[~done], top[~done]
        held = top >= 0
        self.left[rows[held], top[held]] -= 1
        weights = np.tile(np.asarray(self.language.weights), (len(rows), 1))
        inside = np.where(held, self.what[rows, top], -1)
        weights[(inside == GAPPED) | (inside == REPEAT), SHORT:] = 0
        weights[inside == ENCLOSED, REPEAT] = 0
        weights[self.frames[rows] >= self.language.max_depth, ENCLOSED] = 0  # brackets are held by brackets alone
        bounds = weights.cumsum(1)
        item = (self.rng.random(len(rows))[:, None] * bounds[:, -1:] >= bounds).sum(1)
        for kind, begin in (
            (PLAIN, self._plain), (PAIR, self._pair), (PHRASE, self._phrase),
            (GAPPED, self._gapped), (REPEAT, self._repeat), (ENCLOSED, self._enclosed),
        ):  # fmt: skip
            begin(rows[item == kind])

    def _draw(self, bounds: tuple[int, int], n: int) -> np.ndarray:
        return self.rng.integers(bounds[0], bounds[1] + 1, size=n)

    def _push(self, rows: np.ndarray, what: int, items: tuple[int, int], data: np.ndarray) -> None:
        top = self.frames[rows]
        self.what[rows, top], self.begun[rows, top], self.data[rows, top] = what, self.position, data
        self.left[rows, top] = self._draw(items, len(rows))
        self.frames[rows] += 1

    def _plain(self, rows: np.ndarray) -> None:
        self._put(rows, (self._background(len(rows)), OTHER, 0, -1))

    def _background(self, n: int) -> np.ndarray:
        return self.rng.choice(self.tables.plain, size=n, p=self.tables.zipf)

    def _pair(self, rows: np.ndarray) -> None:
        chosen = self.tables.bigrams[self.rng.integers(len(self.tables.bigrams), size=len(rows))]
        follows = self.rng.random(len(rows)) < self.language.bigram_probability
        second = np.where(follows, chosen[:, 1], self._background(len(rows)))
        kind, source = np.where(follows, BIGRAM, OTHER), np.where(follows, self.position, -1)
        self._put(rows, (chosen[:, 0], OTHER, 0, -1), (second, kind, 0, source))

    def _phrase(self, rows: np.ndarray) -> None:
        order = self.rng.integers(len(self.tables.ngrams), size=len(rows))
        for i, table in enumerate(self.tables.ngrams):
            here = rows[order == i]
            tokens = table[self.rng.integers(len(table), size=len(here))]
            middle = [(tokens[:, k], BIGRAM, 0, self.position + k - 1) for k in range(1, tokens.shape[1] - 1)]
            self._put(here, (tokens[:, 0], OTHER, 0, -1), *middle, (tokens[:, -1], NGRAM, 0, self.position))

    def _gapped(self, rows: np.ndarray) -> None:
        destination = self.order[rows, self.skips[rows] % self.order.shape[1]]
        self.skips[rows] += 1
        sharing = self.tables.skips.shape[1]
        chosen = self.rng.integers(sharing, size=len(rows))
        self._push(rows, GAPPED, self.language.gap, destination * sharing + chosen)
        self._put(rows, (self.tables.skips[destination, chosen, 0], OTHER, 0, -1))

    def _repeat(self, rows: np.ndarray) -> None:
        longest = self.language.span[1]
        shuffled = self.rng.random((len(rows), len(self.tables.plain))).argpartition(longest - 1, axis=1)
        tokens, span = self.tables.plain[shuffled[:, :longest]], self._draw(self.language.span, len(rows))
        self._push(rows, REPEAT, self.language.pause, span)
        self._put(rows, *((tokens[:, k], OTHER, 0, -1) for k in range(longest)))
        self.waiting[rows] = span

    def _enclosed(self, rows: np.ndarray) -> None:
        type_ = self.rng.integers(len(self.tables.pairs), size=len(rows))
        self._push(rows, ENCLOSED, self.language.content, type_)
        self._put(rows, (self.tables.pairs[type_, 0], OTHER, 0, -1))

    def _finish(self, rows: np.ndarray) -> None:
        """The second part of each sequence's innermost frame."""
        top = self.frames[rows] - 1
        self.frames[rows] -= 1
        what, data, begun = (x[rows, top] for x in (self.what, self.data, self.begun))
        here = what == ENCLOSED
        nested = top[here] > 0  # what holds a bracket is a bracket
        self._put(rows[here], (self.tables.pairs[data[here], 1], BRACKET, nested, begun[here]))
        here = what == GAPPED
        skips = self.tables.skips.reshape(-1, 3)[data[here]]
        self._put(rows[here], (skips[:, 1], OTHER, 0, -1), (skips[:, 2], SKIP_NGRAM, 0, begun[here]))
        here = what == REPEAT
        places = np.minimum(begun[here][:, None] + np.arange(self.language.span[1]), self.length - 1)
        copied = self.written[rows[here][:, None], places, 0]
        later = ((copied[:, k], INDUCTION, 0, places[:, k]) for k in range(1, copied.shape[1]))
        self._put(rows[here], (copied[:, 0], OTHER, 0, -1), *later)
        self.waiting[rows[here]] = data[here]
