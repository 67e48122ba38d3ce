"""A corpus as token streams: flat arrays of ids without BOS, sampled in blocks where they are long, and checked.

Documents of one kind lie in a stream one behind the other, as training reads them. A long stream is sampled in whole blocks, so
that a sample is spread over all documents; the joins lie at multiples of ``BLOCK``, where ``split_blocks`` cuts again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

BLOCK = 4096
"""Tokens in one piece of a sampled stream."""


def sample_blocks(stream: np.ndarray, limit: int) -> np.ndarray:
    """The stream, or evenly spaced whole blocks of it in order, together at most ``limit`` tokens (``limit >= BLOCK``)."""
    if len(stream) <= limit:
        return stream
    kept, there = limit // BLOCK, len(stream) // BLOCK
    starts = np.arange(kept) * there // kept * BLOCK
    return np.concatenate([stream[start : start + BLOCK] for start in starts.tolist()])


def split_blocks(stream: np.ndarray) -> list[np.ndarray]:
    """The pieces of a stream between multiples of ``BLOCK``, so that no n-gram crosses a join of a sampled stream.

    A stream that was not sampled loses its n-grams at the cuts: of order n a share of ``(n - 1) / BLOCK``, 0.02% of bigrams.
    """
    return np.split(stream, np.arange(BLOCK, len(stream), BLOCK))


def check_text(tokens: Any, d_vocab: int) -> Int[np.ndarray, "example pos"]:
    """A text as an array of ids, int64.

    Raises:
        TypeError: not an integer tensor. ValueError: not of rank 2, fewer than two positions, or ids outside the vocabulary.
    """
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex():
        raise TypeError(f"tokens are {_kind(tokens)}, need an integer tensor [example, pos], e.g. run.evaluation['code']")
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; need [example, pos] with at least two positions")
    text = tokens.cpu().numpy().astype(np.int64)
    check_ids(text, d_vocab, "tokens")
    return text


def flat_streams(streams: Any, d_vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """All streams behind one another as int32, and where each begins; empty ones are left out.

    Raises:
        TypeError: no sequence of flat integer arrays. ValueError: no tokens, or ids outside the vocabulary.
    """
    if isinstance(streams, np.ndarray | Tensor) or not isinstance(streams, Sequence):
        raise TypeError(f"streams are {_kind(streams)}, need a sequence of flat integer arrays: pass [stream]")
    for stream in streams:
        if not isinstance(stream, np.ndarray) or stream.dtype.kind not in "iu" or stream.ndim != 1:
            raise TypeError(f"a stream is {_kind(stream)}, need a flat integer array of token ids: use np.array(ids)")
    kept = [stream for stream in streams if len(stream)]
    if not kept:
        raise ValueError("the corpus has no tokens; pass streams such as split_blocks(run.corpus['code_train'])")
    for stream in kept:
        check_ids(stream, d_vocab, "the corpus")
    return np.concatenate([s.astype(np.int32) for s in kept]), np.cumsum([0, *map(len, kept)])[:-1]


def check_ids(ids: np.ndarray, d_vocab: int, what: str) -> None:
    """Refuse ids outside the vocabulary; an empty array is fine.

    Raises:
        ValueError: one is.
    """
    if not ids.size:
        return
    if (low := int(ids.min())) < 0 or (high := int(ids.max())) >= d_vocab:
        raise ValueError(f"{what}: ids run from {low} to {high}, the vocabulary is 0..{d_vocab - 1}; use the same tokenizer")


def _kind(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return type(given).__name__ if shape is None else f"{type(given).__name__} {given.dtype} {list(shape)}"
