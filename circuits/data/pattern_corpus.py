"""Text in which given skip-trigrams occur, at known places and distances, among tokens that belong to none of them.

Each occurrence is ``source, gap - 1 tokens, destination, out``; with ``gap=(1, 1)`` it is a contiguous trigram. A *decoy* has
another token in the source's and the out's place, so that the destination alone tells nothing. No destination comes twice in a
sequence: two sources of one destination in one context would share a head's attention.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PatternTokens:
    """Sequences and where patterns end in them.

    Attributes:
        tokens: ``[example, pos]``, BOS first.
        pattern: ``[example, pos - 1]``, the pattern whose out is token ``t + 1`` (its destination is token ``t``), -1 elsewhere.
        source: ``[example, pos - 1]``, the position of its source, -1 elsewhere.
    """

    tokens: Int[Tensor, "example pos"]
    pattern: Int[Tensor, "example pos_minus_1"]
    source: Int[Tensor, "example pos_minus_1"]


def pattern_corpus(
    patterns: Iterable[Sequence[int]],
    *,
    d_vocab: int,
    gap: tuple[int, int] = (1, 8),
    decoys: float = 0.2,
    length: int = 64,
    examples: int = 256,
    seed: int = 0,
    bos: int = 0,
) -> PatternTokens:
    """Random text with as many occurrences of random patterns as fit, none of them twice in a sequence.

    A sequence is cut into blocks of ``gap[1] + 2`` tokens behind BOS, each with one occurrence or decoy at a random place;
    other tokens are uniform over the ids in no pattern.

    Args:
        patterns: (source, destination, out) ids. gap: smallest and largest distance from source to destination, uniform between.
        decoys: share of occurrences that are decoys.

    Raises:
        ValueError: no patterns, none of the vocabulary left for other tokens, or sequences too short for one occurrence.
    """
    table = np.asarray([tuple(map(int, p)) for p in patterns], dtype=np.int64).reshape(-1, 3)
    others = np.setdiff1d(np.arange(d_vocab), [bos, *table.flatten().tolist()])
    if len(table) == 0 or table.min() < 0 or table.max() >= d_vocab or bos in table or len(others) < 2:
        raise ValueError(
            f"{len(table)} patterns leave {len(others)} of {d_vocab} ids for other tokens: need patterns of ids in it, "
            "without BOS, and two ids that are in none"
        )
    if not 1 <= gap[0] <= gap[1] or length < gap[1] + 3 or examples < 1 or not 0 <= decoys < 1:
        raise ValueError(
            f"gap={gap}, length={length}, examples={examples}, decoys={decoys}: need 1 <= shortest <= longest gap, "
            f"sequences of at least {gap[1] + 3} tokens, an example and decoys in [0, 1)"
        )
    rng = np.random.default_rng([seed, 35])
    destinations, index = np.unique(table[:, 1], return_inverse=True)
    blocks = min((length - 1) // (gap[1] + 2), len(destinations))
    # Patterns in a random order, without those whose destination has come before.
    shuffled = rng.random((examples, len(table))).argsort(1)
    first = np.stack(
        [_first_of_each(index[row], blocks) for row in shuffled]
    )  # places of the first patterns with new destinations
    chosen = np.take_along_axis(shuffled, first, axis=1)
    width = (length - 1) // blocks
    distance = rng.integers(gap[0], gap[1] + 1, size=chosen.shape)
    start = 1 + np.arange(blocks) * width + rng.integers(0, width - distance - 1)
    real = rng.random(chosen.shape) >= decoys
    tokens = rng.choice(others, size=(examples, length))
    tokens[:, 0] = bos
    every = np.arange(examples)[:, None]
    tokens[every, start + distance] = table[chosen, 1]
    for column, places in ((0, start), (2, start + distance + 1)):
        tokens[every, places] = np.where(real, table[chosen, column], tokens[every, places])
    pattern, source = np.full((examples, length - 1), -1), np.full((examples, length - 1), -1)
    pattern[every, start + distance] = np.where(real, chosen, -1)
    source[every, start + distance] = np.where(real, start, -1)
    return PatternTokens(*(torch.from_numpy(x) for x in (tokens, pattern, source)))


def _first_of_each(labels: Int[np.ndarray, "n"], count: int) -> Int[np.ndarray, "count"]:
    """Where the first ``count`` different labels come for the first time."""
    return np.sort(np.unique(labels, return_index=True)[1])[:count]
