"""Training batches: windows of text, some with an earlier span repeated, drawn for each step from the step's number.

Files repeat themselves; a small model that sees 10^8 tokens instead of 10^9 meets too few repeats to learn induction
from. So a share of the sequences gets a span copied from an earlier place to a later one at a random gap: spans of the
text itself, or of random tokens (which no n-gram statistics can predict). The batch of step ``s`` depends on the seed
and ``s`` alone: the step number is the whole data cursor.
"""

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, model_validator
from torch import Tensor


class RepeatConfig(BaseModel, frozen=True, extra="forbid"):
    """How many sequences carry a repeat, and of what.

    Attributes:
        share: share of sequences with a repeated span.
        random_share: share of those whose span is random tokens.
        shortest, longest: length of the span in tokens.
    """

    share: float = 0.5
    random_share: float = 0.5
    shortest: int = 10
    longest: int = 50

    @model_validator(mode="after")
    def _check(self) -> "RepeatConfig":
        if not (0 <= self.share <= 1 and 0 <= self.random_share <= 1):
            raise ValueError(f"share={self.share} and random_share={self.random_share} must lie in [0, 1]")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"spans of {self.shortest}..{self.longest} tokens: need 1 <= shortest <= longest")
        return self


def training_batch(
    stream: np.ndarray,
    *,
    step: int,
    seed: int,
    batch: int,
    n_ctx: int,
    repeats: RepeatConfig,
    ids: np.ndarray,
    bos: int = 0,
) -> Int[Tensor, "batch pos"]:
    """The batch of one training step, ``[BOS, n_ctx - 1 tokens of text]`` each.

    Args:
        stream: the training text as token ids. ids: what random spans are drawn from.
    """
    rng = np.random.default_rng([seed, 0, step])
    starts = rng.integers(0, len(stream) - (n_ctx - 1) + 1, size=batch)
    rows = np.empty((batch, n_ctx), dtype=np.int64)
    rows[:, 0] = bos
    rows[:, 1:] = stream[starts[:, None] + np.arange(n_ctx - 1)]
    longest = min(repeats.longest, (n_ctx - 1) // 2)
    for index in np.flatnonzero(rng.random(batch) < repeats.share):
        row = rows[index]
        length = int(rng.integers(min(repeats.shortest, longest), longest + 1))
        source = int(rng.integers(1, n_ctx - 2 * length + 1))
        target = int(rng.integers(source + length, n_ctx - length + 1))
        if rng.random() < repeats.random_share:
            row[source : source + length] = rng.choice(ids, size=length)
        row[target : target + length] = row[source : source + length]
    return torch.from_numpy(rows)
