"""Byte-level BPE by the ``tokenizers`` library: train, save, load, and show single tokens.

Id 0 is ``<|bos|>``; ids 1..256 are the bytes, so every text can be encoded; the rest are merges in order of training.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS = "<|bos|>"


def train_bpe(documents: Iterable[str], *, vocab_size: int) -> "Tokenizer":
    """Train a byte-level BPE tokenizer with ``vocab_size`` ids in all.

    Raises:
        ValueError: the vocabulary cannot hold BOS and the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"vocab_size is {vocab_size}; byte-level BPE needs at least 257 (BOS and 256 bytes)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode_stream(tokenizer: "Tokenizer", documents: Sequence[str]) -> np.ndarray:
    """All documents as one stream of ids, ``uint16`` where the vocabulary allows."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return np.concatenate([np.asarray(e.ids, dtype=dtype) for e in encoded])


def token_strings(tokenizer: "Tokenizer | None", ids: Iterable[int]) -> list[str]:
    """How each id reads by itself; ids themselves where there is no tokenizer."""
    if tokenizer is None:
        return [str(int(i)) for i in ids]
    return [tokenizer.decode([int(i)], skip_special_tokens=False) for i in ids]
