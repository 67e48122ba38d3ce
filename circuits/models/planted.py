"""Models whose circuits are known by construction: ground truth for every attention detector.

Here are the heads that look somewhere; what heads do is planted in ``planted_functions`` (memorised skip-trigrams, copy
suppression, two roles in one head) and ``planted_brackets`` (closing brackets), all of them to be had as ``circuits.planted.X``.

The residual stream has a one-hot slot for the token and a one-hot slot for the previous token; positions are one-hot
and, as in shortformer models, seen by queries and keys only. There is no norm. Scores are ``strength`` on the intended
keys and 0 elsewhere, so at the default strength attention is exact to rounding: softmax(60) leaves less than 1e-23
per other key. A head with nothing to match attends uniformly.

    layer 0   H0 previous token (writes the previous token into its slot), H1 duplicate token, H2 current token,
              H3 resting on BOS, H4 look-back at a fixed distance (a decoy for induction), H5 uniform
    layer 1   H0 induction (matches the current token with the previous-token slot, copies the token), others uniform
"""

import torch

from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Attention
from circuits.models.planted_brackets import bracket_closer as bracket_closer
from circuits.models.planted_functions import Pattern as Pattern
from circuits.models.planted_functions import copy_suppressor as copy_suppressor
from circuits.models.planted_functions import memoriser as memoriser
from circuits.models.planted_functions import planted_loss as planted_loss
from circuits.models.planted_functions import random_patterns as random_patterns
from circuits.models.planted_functions import superposed as superposed

PLANTED: dict[str, Head] = {
    "previous_token": Head(0, 0),
    "duplicate_token": Head(0, 1),
    "current_token": Head(0, 2),
    "first_token": Head(0, 3),
    "fixed_lag": Head(0, 4),
    "induction": Head(1, 0),
    "induction_stripe": Head(1, 0),
    "prefix_matching": Head(1, 0),
}
"""The planted head of each detector."""


def planted_model(
    *, noise: float = 0.0, seed: int = 0, lag: int = 7, strength: float = 60.0, d_vocab: int = 101, n_ctx: int = 101
) -> HookedTransformer:
    """A two-layer attention-only model with one head of every kind.

    Args:
        noise: standard deviation of Gaussian noise added to every score weight, relative to ``strength``'s square root;
            0 is the exact circuit, near 1 nothing is left of it.
        seed: of that noise.
        lag: distance of the look-back head; choose it equal to a detector's own offset to make the decoy bite.

    Raises:
        ValueError: ``lag`` does not fit the context, or ``noise`` is negative.
    """
    if not 2 <= lag < n_ctx or noise < 0:
        raise ValueError(f"lag={lag}, noise={noise}: need 2 <= lag < n_ctx = {n_ctx} and noise >= 0")
    token, previous, position = slice(0, d_vocab), slice(d_vocab, 2 * d_vocab), slice(2 * d_vocab, 2 * d_vocab + n_ctx)
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=2 * d_vocab + n_ctx,
        n_heads=6,
        d_head=d_vocab + n_ctx,
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="shortformer",
        use_attn_scale=False,
    )
    model = HookedTransformer(cfg).eval()
    eye = torch.eye
    root = strength**0.5  # queries and keys carry the square root of the score each
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, token] = eye(d_vocab)
        model.W_pos[:, position] = eye(n_ctx)
        model.W_U[token] = eye(d_vocab)
        first, second = model.blocks[0].attn, model.blocks[1].attn
        in_tokens, in_positions = slice(0, d_vocab), slice(d_vocab, d_vocab + n_ctx)

        # Query i carries e_{i-d} and key j carries e_j, so the score is `strength` where j = i - d and 0 elsewhere.
        for head, distance in ((0, 1), (2, 0), (4, lag)):
            first.W_Q[head, position, in_positions] = root * eye(n_ctx).roll(-distance, dims=1).tril()
            first.W_K[head, position, in_positions] = root * eye(n_ctx)
        _copy(first, 0, token, previous)

        # Equal tokens score `strength`; the position part takes 2 * strength off the query's own key, which always matches.
        first.W_Q[1, token, in_tokens] = first.W_K[1, token, in_tokens] = root * eye(d_vocab)
        first.W_Q[1, position, in_positions] = -2 * root * eye(n_ctx)
        first.W_K[1, position, in_positions] = root * eye(n_ctx)

        # Every query asks for token 0, which is BOS.
        first.b_Q[3, 0] = root
        first.W_K[3, token, in_tokens] = root * eye(d_vocab)

        # The current token is matched with each key's previous token; what is found there is copied.
        second.W_Q[0, token, in_tokens] = root * eye(d_vocab)
        second.W_K[0, previous, in_tokens] = root * eye(d_vocab)
        _copy(second, 0, token, token)
        if noise:
            rng = torch.Generator().manual_seed(seed)
            for attn in (first, second):
                for weight in (attn.W_Q, attn.W_K):
                    weight.add_(torch.randn(weight.shape, generator=rng), alpha=noise * root)
    return model


def uniform_model(*, n_layers: int = 1, n_heads: int = 2, d_vocab: int = 101, n_ctx: int = 101) -> HookedTransformer:
    """All weights zero: every head attends uniformly, every logit is 0."""
    cfg = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=8,
        n_heads=n_heads,
        d_head=4,
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="shortformer",
    )
    model = HookedTransformer(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def _copy(attn: Attention, head: int, source: slice, target: slice) -> None:
    """OV of one head: what stands in ``source`` at the attended key goes to ``target``."""
    size = source.stop - source.start
    attn.W_V[head, source, :size] = torch.eye(size)
    attn.W_O[head, :size, target] = torch.eye(size)
