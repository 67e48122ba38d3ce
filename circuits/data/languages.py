"""Synthetic languages whose structure is known exactly."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

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
