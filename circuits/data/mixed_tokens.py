"""What a mixed language is made of: the kinds of its tokens, its tables, and the sequences it gives.

The language itself is ``circuits.data.languages.MixedLanguage``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.data.contexts import KINDS

ITEMS = ("plain", "bigram", "ngram", "skip_ngram", "induction", "bracket")
PLAIN, PAIR, PHRASE, GAPPED, REPEAT, ENCLOSED = range(len(ITEMS))
SHORT = 3
"""The first three items hold no others."""


@dataclass(frozen=True, eq=False)
class Tables:
    """What a language knows by heart, in token ids.

    Attributes:
        pairs: ``[type, 2]`` opener and closer. bigrams: ``[n, 2]``. ngrams: one ``[n, order]`` for each order.
        skips: ``[destination, sharing, 3]`` source, destination, out. plain: ids by falling frequency. zipf: their probabilities.
    """

    pairs: Int[np.ndarray, "type 2"]
    bigrams: Int[np.ndarray, "n 2"]
    ngrams: tuple[np.ndarray, ...]
    skips: Int[np.ndarray, "destination sharing 3"]
    plain: Int[np.ndarray, "plain"]
    zipf: Float[np.ndarray, "plain"]


@dataclass(frozen=True, eq=False)
class MixedTokens:
    """Sequences and why each token came.

    Attributes:
        tokens: ``[example, pos]``, BOS first.
        kind: ``[example, pos - 1]``, index into ``KINDS`` of the reason for token ``t + 1``.
        nested: ``[example, pos - 1]``, token ``t + 1`` closes a pair inside another, as in ``circuits.data.contexts``.
        source: ``[example, pos - 1]``, the position that tells it: of the opener, the token copied, an n-gram's first token, the
            token before (bigram) or the skip-trigram's source; -1 where nothing does.
    """

    tokens: Int[Tensor, "example pos"]
    kind: Int[Tensor, "example pos_minus_1"]
    nested: Bool[Tensor, "example pos_minus_1"]
    source: Int[Tensor, "example pos_minus_1"]

    def rates(self) -> dict[str, float]:
        """The realised share of each kind among predicted tokens, and of nested closers, part of "bracket"."""
        counts = torch.bincount(self.kind.flatten().long(), minlength=len(KINDS)).double() / self.kind.numel()
        return dict(zip(KINDS, counts.tolist(), strict=True)) | {"nested": float(self.nested.double().mean())}
