"""Random token sequences whose structure is known: repeats, gaps and their controls.

Every sequence starts with BOS at position 0. Ids are drawn as ids, never decoded and encoded again (which would break
the repeat), without replacement inside one period, from ids the caller allows: special, unused and very rare tokens do
not belong in a test of attention (Olsson et al. 2022 exclude the most and least common).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Repeats:
    """Repeated random tokens ``[BOS, r, gap, r, gap, r, ...]``.

    Attributes:
        tokens: ``[example, pos]``.
        n: length of the repeated part ``r``.
        lag: distance between a token and its next occurrence (``n`` plus the gap).
        second: first position of the second copy.
    """

    tokens: Int[Tensor, "example pos"]
    n: int
    lag: int

    @property
    def second(self) -> int:
        return 1 + self.lag


def random_ids(counts: np.ndarray | Tensor, *, trim: float = 0.04, exclude: tuple[int, ...] = (0,)) -> np.ndarray:
    """Ids fit for random sequences: seen in training, without the most and least common share.

    Args:
        counts: how often each id occurs in the training data, ``[d_vocab]``.
        trim: share cut off at either end of the frequency ranking.
        exclude: ids never used (BOS and other specials).
    """
    counts = np.asarray(counts).astype(np.int64).copy()
    counts[list(exclude)] = 0
    seen = np.flatnonzero(counts)
    ranked = seen[np.argsort(-counts[seen], kind="stable")]
    cut = int(len(ranked) * trim)
    return np.sort(ranked[cut : len(ranked) - cut])


def check_ids(ids: Any, *, bos: int = 0) -> np.ndarray:
    """Ids that random sequences may be drawn from without replacement.

    Raises:
        TypeError: they are not integers. ValueError: not a flat list, none, repeated, negative, or BOS among them.
    """
    pool = np.asarray(ids)
    if pool.dtype.kind not in "iu":
        raise TypeError(f"ids have dtype {pool.dtype}, need integer token ids, e.g. np.arange(1, d_vocab)")
    if pool.ndim != 1 or len(pool) == 0 or pool.min() < 0:
        raise ValueError(f"ids have shape {pool.shape}; need a flat list of token ids from 0 up, e.g. np.arange(1, d_vocab)")
    if len(np.unique(pool)) < len(pool) or bos in pool:
        raise ValueError(f"ids name a token twice, or BOS ({bos}), which would break the repeat: pass np.setdiff1d(ids, [{bos}])")
    return pool


def repeated_random_tokens(
    ids: np.ndarray | Tensor | int,
    *,
    n: int = 50,
    repeats: int = 2,
    gap: int = 0,
    length: int | None = None,
    examples: int = 16,
    seed: int = 0,
    bos: int = 0,
) -> Repeats:
    """Random tokens repeated, ``gap`` fresh random tokens between the copies.

    No token occurs twice but by the repeat itself.

    Args:
        ids: the ids to draw from, or a vocabulary size (then all ids but ``bos``).
        n: length of one copy. ``repeats``: number of copies. ``gap``: filler between copies. ``examples``: sequences.
        length: of the whole sequence; what is left behind the last copy is filled with fresh random tokens.

    Raises:
        ValueError: too few ids to fill one period without replacement, or sizes that are not positive.
    """
    if isinstance(ids, int | np.integer):
        pool = np.setdiff1d(np.arange(ids), [bos])
    else:
        pool = check_ids(ids, bos=bos)
    if n < 1 or repeats < 2 or gap < 0 or examples < 1:
        raise ValueError(
            f"n={n}, repeats={repeats}, gap={gap}, examples={examples}: need n >= 1, repeats >= 2, gap >= 0, examples >= 1"
        )
    used = 1 + n * repeats + gap * (repeats - 1)
    tail = 0 if length is None else length - used
    if tail < 0:
        raise ValueError(f"n={n}, repeats={repeats}, gap={gap} make {used} tokens and length is {length}: use a smaller n or gap")
    drawn = n + gap * (repeats - 1) + tail
    if drawn > len(pool):
        raise ValueError(
            f"{drawn} different tokens are needed and {len(pool)} ids are allowed: use a smaller n or gap, or allow more ids"
        )
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(examples):
        fresh = rng.permutation(pool)[:drawn]
        copy, filler = fresh[:n], fresh[n : drawn - tail].reshape(repeats - 1, gap)
        parts = [np.array([bos]), copy]
        for between in filler:
            parts += [between, copy]
        rows.append(np.concatenate([*parts, fresh[drawn - tail :]]))
    return Repeats(torch.from_numpy(np.stack(rows)).long(), n=n, lag=n + gap)


def shuffle_second_copy(repeats: Repeats, *, seed: int = 0) -> Int[Tensor, "example pos"]:
    """The control for in-context copying: the second copy holds the same tokens in a random order."""
    rng = np.random.default_rng([seed, 1])
    tokens = repeats.tokens.clone()
    for row in tokens:
        order = torch.from_numpy(rng.permutation(repeats.n))
        row[repeats.second : repeats.second + repeats.n] = row[1 : 1 + repeats.n][order]
    return tokens


def shuffle_tokens(tokens: Int[Tensor, "example pos"], *, seed: int = 0) -> Int[Tensor, "example pos"]:
    """Each sequence's tokens in a random order behind its first one: same unigrams, no structure."""
    rng = np.random.default_rng([seed, 2])
    out = tokens.clone()
    for row in out:
        row[1:] = row[1:][torch.from_numpy(rng.permutation(len(row) - 1))]
    return out


def windows(stream: np.ndarray, *, n_ctx: int, examples: int, seed: int, bos: int = 0) -> Int[Tensor, "example pos"]:
    """``examples`` windows of a token stream at random places, BOS in front of each.

    Raises:
        ValueError: the stream is shorter than one window.
    """
    if len(stream) < n_ctx - 1:
        raise ValueError(
            f"the token stream has {len(stream)} tokens, one window needs {n_ctx - 1}: give more text or a smaller n_ctx"
        )
    rng = np.random.default_rng([seed, 3])
    starts = rng.integers(0, len(stream) - (n_ctx - 1) + 1, size=examples)
    body = stream[starts[:, None] + np.arange(n_ctx - 1)].astype(np.int64)
    return torch.from_numpy(np.concatenate([np.full((examples, 1), bos), body], axis=1))


def consecutive_windows(
    stream: np.ndarray, *, n_ctx: int, examples: int | None = None, bos: int = 0
) -> Int[Tensor, "example pos"]:
    """A token stream cut into windows one after the other, BOS in front of each: none shares a token with another.

    Args:
        examples: the most to return, evenly spread over the stream (default: all).

    Raises:
        ValueError: the stream is shorter than one window.
    """
    whole = len(stream) // (n_ctx - 1)
    if whole < 1:
        raise ValueError(
            f"the token stream has {len(stream)} tokens, one window needs {n_ctx - 1}: give more text or a smaller n_ctx"
        )
    rows = np.asarray(stream[: whole * (n_ctx - 1)]).reshape(whole, n_ctx - 1).astype(np.int64)
    if examples is not None and examples < whole:
        rows = rows[np.arange(examples) * whole // examples]
    return torch.from_numpy(np.concatenate([np.full((len(rows), 1), bos), rows], axis=1))
