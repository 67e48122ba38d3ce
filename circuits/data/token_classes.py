"""Which tokens close what is open, and which are layout: brackets, quotes and white space, read in the text of tokens.

A token may hold several characters (``"):``), so a text is scanned by character. Opening brackets and quotes go on a stack; a
prediction *closes* if the first bracket or quote of the next token closes what is open within the same context, and is *nested*
if at least two were open. Quotes are told from apostrophes and from ends of quotes that began before the context:

- ``'`` between two letters is an apostrophe (``don't``), but for a string prefix (``b'...'``);
- a quote opens only where no letter, closing bracket or full stop stands before it;
- a quote closes the same quote whatever was opened inside (``"("``); a closing bracket closes nothing outside its quote, and
  one that skips an open bracket ends both but counts as neither's closing;
- a line break ends every quote but the triple ones; a backslash hides a quote.

It is a reading of fragments of code and prose, not a parser: a fragment has no start to parse from.

Source: Dyck language of matched brackets; the rules for quotes ours.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.data.streams import check_text
from circuits.results import digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAIRS = (("(", ")"), ("[", "]"), ("{", "}"))
QUOTES = ('"""', "'''", "``", '"', "'", "`")
_PREFIX = re.compile(r"(?<!\w)(?:[rRbBuUfF]|[rR][bBfF]|[bBfF][rR])\Z")
_NO_QUOTE_OPENS_BEHIND = re.compile(r"[\w)\]}.!?%]\Z")


class Closings(NamedTuple):
    """For each prediction of a token 1.. from those before it, ``[example, pos - 1]``.

    Attributes:
        closes: the next token closes the innermost bracket or quote that is open. nested: it does, and another stays open.
        opener: position of the token that opened it, -1 where none is closed.
    """

    closes: Bool[np.ndarray, "example pos_minus_1"]
    nested: Bool[np.ndarray, "example pos_minus_1"]
    opener: Int[np.ndarray, "example pos_minus_1"]


@dataclass(frozen=True)
class TokenClasses:
    """The text of every token, and what counts as bracket or quote in it.

    Attributes:
        texts: of each id; special tokens have none. pairs: (opening, closing) characters. quotes: longer ones first.
    """

    texts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = PAIRS
    quotes: tuple[str, ...] = QUOTES

    @classmethod
    def from_tokenizer(cls, tokenizer: "Tokenizer") -> "TokenClasses":
        """Brackets ``()[]{}``, quotes and white space of a tokenizer's own texts."""
        return cls(tuple(tokenizer.decode([i], skip_special_tokens=True) for i in range(tokenizer.get_vocab_size())))

    @classmethod
    def by_hand(
        cls,
        d_vocab: int,
        *,
        pairs: Iterable[tuple[int, int]] = (),
        quotes: Iterable[int] = (),
        whitespace: Iterable[int] = (),
    ) -> "TokenClasses":
        """Classes of a vocabulary without text.

        Args:
            pairs: (opening id, closing id). quotes: ids that open and close. whitespace: ids that are layout.

        Raises:
            ValueError: an id lies outside the vocabulary or has two classes.
        """
        pairs, quotes, whitespace = list(pairs), list(quotes), list(whitespace)
        named = [i for pair in pairs for i in pair] + quotes + whitespace
        if len(set(named)) < len(named) or not all(0 <= i < d_vocab for i in named):
            raise ValueError(f"brackets, quotes and white space are ids {named}; need different ids in 0..{d_vocab - 1}")
        texts = ["·"] * d_vocab
        # characters of the private use areas, so that no rule about letters applies
        characters = [(chr(0xE000 + 2 * i), chr(0xE001 + 2 * i)) for i in range(len(pairs))]
        marks = [chr(0xF0000 + i) for i in range(len(quotes))]
        for ids, pair in zip(pairs, characters, strict=True):
            texts[ids[0]], texts[ids[1]] = pair
        for i, mark in zip(quotes, marks, strict=True):
            texts[i] = mark
        for i in whitespace:
            texts[i] = " "
        return cls(tuple(texts), tuple(characters), tuple(marks))

    @property
    def hash(self) -> str:
        """Of the texts and of what counts as bracket and quote."""
        return digest([self.texts, self.pairs, self.quotes])

    @property
    def whitespace(self) -> Bool[np.ndarray, "d_vocab"]:
        """Ids whose text is white space and nothing else: line breaks and indentation."""
        return np.array([text.isspace() for text in self.texts])

    def closings(self, tokens: Int[Tensor, "example pos"]) -> Closings:
        """Where a text closes its brackets and quotes.

        Raises:
            TypeError, ValueError: not integer ids of this vocabulary of rank 2 with at least two positions.
        """
        text = check_text(tokens, len(self.texts))
        closes, nested = np.zeros(text.shape, dtype=bool), np.zeros(text.shape, dtype=bool)
        opener = np.full(text.shape, -1)
        for example, row in enumerate(text.tolist()):
            for at, (begin, others) in self._scan([self.texts[i] for i in row]).items():
                closes[example, at], nested[example, at], opener[example, at] = True, others > 0, begin
        return Closings(closes[:, 1:], nested[:, 1:], opener[:, 1:])

    def _scan(self, texts: Sequence[str]) -> dict[int, tuple[int, int]]:
        """Of each token that closes: which token opened, and how many others were open."""
        text = "".join(texts)
        token = np.repeat(np.arange(len(texts)), [len(t) for t in texts]).tolist()  # of each character
        closer, closing = dict(self.pairs), {end for _, end in self.pairs}
        marks = [*self.quotes, *closer, *closing, "\n"]
        pattern = re.compile(r"\\[\\'\"`]|" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
        found: dict[int, tuple[int, int]] = {}
        stack: list[tuple[str, int]] = []  # what would close it, and the token it stands in
        seen = -1  # the last token whose first bracket or quote has been read
        for match in pattern.finditer(text):
            mark, at = match[0], match.start()
            if mark == "\n":
                broken = next((i for i, (end, _) in enumerate(stack) if end in self.quotes and len(end) < 3), len(stack))
                del stack[broken:]
                continue
            if mark[0] == "\\" or (mark == "'" and _is_apostrophe(text, at)):
                continue
            closed = self._closed(stack, mark)
            if closed is None and mark in self.quotes and not _may_open(text, at):
                continue
            first, seen = token[at] != seen, token[at]
            if closed is not None:
                if first and (mark in self.quotes or closed == len(stack) - 1):
                    found[token[at]] = stack[closed][1], closed
                del stack[closed:]
            elif mark not in closing:
                stack.append((closer.get(mark, mark), token[at]))
        return found

    def _closed(self, stack: list[tuple[str, int]], mark: str) -> int | None:
        """The place on the stack that a mark closes or, from there up, ends; None if it closes nothing."""
        for place in range(len(stack) - 1, -1, -1):
            if stack[place][0] == mark:
                return place
            if mark not in self.quotes and stack[place][0] in self.quotes:
                break
        return None


def _is_apostrophe(text: str, at: int) -> bool:
    letters = text[max(at - 1, 0) : at].isalnum() and text[at + 1 : at + 2].isalnum()
    return letters and not _PREFIX.search(text[max(at - 3, 0) : at])


def _may_open(text: str, at: int) -> bool:
    ended = _NO_QUOTE_OPENS_BEHIND.search(text[max(at - 1, 0) : at])
    return not ended or bool(_PREFIX.search(text[max(at - 3, 0) : at]))
