"""An evaluation set of random bracketed sequences, and the ids of a tokenizer to make it from."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from circuits.data.brackets import BracketTokens, check_bracket_ids, match_brackets

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS = ("()", "[]", "{}")
QUOTES = ('"', "'")


def bracket_set(
    pairs: Sequence[tuple[int, int]],
    filler: Iterable[int],
    *,
    quotes: Iterable[int] = (),
    length: int = 64,
    examples: int = 256,
    max_depth: int = 3,
    seed: int = 0,
    bos: int = 0,
) -> BracketTokens:
    """Random bracketed sequences whose closers have controls: nested, of mixed types, with quotes and distractors.

    Behind BOS each token is a filler (uniform) with probability 1/2, else a bracket: inside a pair that holds a token already it
    closes with probability 1/2 or at ``max_depth``, otherwise one opens, with probability 1/2 of the type that closed last at
    this depth in this sequence (a distractor: its opener is a control key) and of any type otherwise. A quote does not open
    inside a pair of its own. Sequences are cut at ``length``: pairs still open there count for nothing.

    Args:
        pairs: (opening id, closing id) of each type. filler: ids of tokens that are no brackets.
        quotes: ids that open and close.
        length: tokens of a sequence with BOS. max_depth: most pairs open at once.

    Raises:
        ValueError: fewer than two types (there is no wrong one), no filler, filler that is a bracket or BOS, or sizes too small.
    """
    closes, opens = check_bracket_ids(pairs, quotes)
    fill = np.unique(np.asarray(list(filler), dtype=np.int64))
    if len(opens) < 2 or len(fill) == 0 or set(fill.tolist()) & ({bos} | opens | set(closes)):
        raise ValueError(
            f"{len(opens)} bracket types and {len(fill)} filler ids: need two types or more, and filler that is neither bracket "
            f"nor BOS ({bos})"
        )
    if length < 8 or examples < 1 or max_depth < 1:
        raise ValueError(f"length={length}, examples={examples}, max_depth={max_depth}: need at least 8, 1 and 1")
    rng = np.random.default_rng([seed, 32])
    first = np.asarray(sorted(opens))
    closer_of = {o: c for c, o in closes.items()}
    last = np.asarray([closer_of[o] for o in first.tolist()])
    is_quote = first == last
    every = np.arange(examples)
    tokens = np.full((examples, length), bos, dtype=np.int64)
    depth = np.zeros(examples, dtype=np.int64)
    holds = np.zeros((examples, max_depth + 1), dtype=bool)  # whether the pair open at this depth has a token inside
    kind = np.zeros((examples, max_depth + 1), dtype=np.int64)
    closed = np.full((examples, max_depth + 1), -1)  # the type that closed last at each depth
    for p in range(1, length):
        token = rng.choice(fill, size=examples)
        bracket = rng.random(examples) < 0.5
        may_close = (depth > 0) & holds[every, depth]
        close = bracket & may_close & ((rng.random(examples) < 0.5) | (depth == max_depth))
        deeper = np.minimum(depth + 1, max_depth)
        before = closed[every, deeper]
        again = (before >= 0) & (rng.random(examples) < 0.5)
        type_ = np.where(again, before, rng.integers(len(first), size=examples))
        within = (
            (kind == type_[:, None]) & (np.arange(max_depth + 1)[None] >= 1) & (np.arange(max_depth + 1)[None] <= depth[:, None])
        )
        open_ = bracket & ~close & (depth < max_depth) & ~(is_quote[type_] & within.any(1))
        token[close] = last[kind[every, depth][close]]
        token[open_] = first[type_[open_]]
        tokens[:, p] = token
        holds[every, depth] = True  # of the pair around this token; index 0 is nobody's
        closed[every[close], depth[close]] = kind[every, depth][close]
        depth = depth - close + open_
        kind[every[open_], depth[open_]] = type_[open_]
        holds[every[open_], depth[open_]] = False
    return match_brackets(torch.from_numpy(tokens), pairs, quotes)


def bracket_ids(tokenizer: "Tokenizer") -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """The brackets, quotes and filler of a tokenizer: ``(pairs, quotes, filler)``, ready for ``bracket_set``.

    A bracket or quote counts if its character by itself is one token; filler is every token of letters only, with at most a
    space in front.

    Raises:
        ValueError: fewer than two of ``( ) [ ] { } " '`` are single tokens, or no token is a word.
    """

    def single(character: str) -> int | None:
        ids = tokenizer.encode(character, add_special_tokens=False).ids
        return ids[0] if len(ids) == 1 else None

    pairs = [(single(o), single(c)) for o, c in CHARACTERS]
    whole = [(o, c) for o, c in pairs if o is not None and c is not None]
    quotes = [q for q in map(single, QUOTES) if q is not None]
    texts = {i: tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())}
    filler = [i for i, text in texts.items() if text.removeprefix(" ").isalpha()]
    if len(whole) + len(quotes) < 2 or not filler:
        raise ValueError(
            f"{len(whole)} bracket pairs, {len(quotes)} quotes and {len(filler)} words are single tokens here, and a bracket set "
            "needs two types and a word: pass ids to bracket_set yourself"
        )
    return whole, quotes, filler
