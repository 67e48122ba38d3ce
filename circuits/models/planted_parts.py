"""What planted models are put together from: one-hot slots in a residual stream without norm, and heads that do one thing.

A slot is a range of residual dimensions. Every model has ``token`` (what was read), ``out`` (what the unembedding reads:
logits are written there and nothing else is) and ``position`` (shortformer: added to what queries and keys read, never to the
stream); further slots by name. All other weights are zero, so a head that is not set attends uniformly and writes nothing.
"""

import torch

from circuits.models.config import HookedTransformerConfig
from circuits.models.hooked import HookedTransformer
from circuits.models.layers import Attention


def blank(
    *,
    n_layers: int,
    n_heads: int,
    d_head: int,
    d_vocab: int,
    n_ctx: int,
    slots: dict[str, int] | None = None,
    dtype: str = "float32",
) -> tuple[HookedTransformer, dict[str, slice]]:
    """An attention-only model of zeros but for one-hot embeddings and unembeddings, and its slots.

    Args:
        slots: sizes of further slots by name.
    """
    sizes = {"token": d_vocab, "out": d_vocab, "position": n_ctx} | (slots or {})
    places, end = {}, 0
    for name, size in sizes.items():
        places[name] = slice(end, end + size)
        end += size
    cfg = HookedTransformerConfig.parse(
        {
            "n_layers": n_layers,
            "d_model": end,
            "n_heads": n_heads,
            "d_head": d_head,
            "n_ctx": n_ctx,
            "d_vocab": d_vocab,
            "attn_only": True,
            "normalization_type": None,
            "positional_embedding_type": "shortformer",
            "use_attn_scale": False,
            "dtype": dtype,
        }
    )
    model = HookedTransformer(cfg).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.W_E[:, places["token"]] = torch.eye(d_vocab, dtype=model.W_E.dtype)
    model.W_pos[:, places["position"]] = torch.eye(n_ctx, dtype=model.W_E.dtype)
    model.W_U[places["out"]] = torch.eye(d_vocab, dtype=model.W_E.dtype)
    return model, places


def finished(model: HookedTransformer, noise: float, seed: int) -> HookedTransformer:
    """The model with its noise, and gradients on as in any other.

    Every weight of every head gets Gaussian noise of ``noise`` times the root mean square of its matrix' non-zero weights.
    """
    rng = torch.Generator().manual_seed(seed)
    for block in model.blocks if noise else ():
        for weight in (block.attn.W_Q, block.attn.W_K, block.attn.W_V, block.attn.W_O):
            if bool((weight != 0).any()):
                scale = weight[weight != 0].pow(2).mean().sqrt()
                weight.add_(torch.randn(weight.shape, generator=rng, dtype=weight.dtype) * scale, alpha=noise)
    return model.requires_grad_(True)


def rest(attn: Attention, head: int, token: slice, dim: int, score: float) -> None:
    """Every query of the head gives BOS (token 0) this score, in one dimension of the head."""
    attn.b_Q[head, dim] = 1.0
    attn.W_K[head, token.start, dim] = score


def look_back(attn: Attention, head: int, position: slice, first: int, distance: int, score: float) -> None:
    """Query ``i`` gives key ``i - distance`` this score, in ``n_ctx`` dimensions of the head from ``first`` on.

    Query i carries e_{i - distance} and key j carries e_j; ``tril`` drops what ``roll`` carried round the end.
    """
    size = position.stop - position.start
    dims, eye = slice(first, first + size), torch.eye(size, dtype=attn.W_Q.dtype)
    attn.W_Q[head, position, dims] = score**0.5 * eye.roll(-distance, dims=1).tril()
    attn.W_K[head, position, dims] = score**0.5 * eye


def check_noise(noise: float, strength: float) -> None:
    """Refuse a scale that is no scale.

    Raises:
        ValueError: ``noise`` is negative or ``strength`` is not positive.
    """
    if not noise >= 0 or not strength > 0:
        raise ValueError(f"noise={noise}, strength={strength}: need noise >= 0 (0 is the exact circuit) and strength > 0")
