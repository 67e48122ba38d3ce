"""Rotary positions as matrices: by how much a query is turned against a key at a distance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.config import HookedTransformerConfig
from circuits.models.layers import rotary_tables


def rotations(cfg: HookedTransformerConfig, offsets: Sequence[int]) -> Float[Tensor, "offset d_head d_head"]:
    """Rotary matrices: ``q R_i (k R_j)^T = q R_{i-j} k^T``, since each ``R`` turns planes and ``R_j^T = R_{-j}``.

    The angles are the model's own (``circuits.models.layers.rotary_tables``), in float64; dimensions beyond
    ``rotary_dim`` stay.
    """
    turned = cfg.rotary_dim
    assert turned is not None
    sin, cos = rotary_tables(cfg.model_copy(update={"dtype": "float64"}))
    eye = torch.eye(turned, dtype=torch.float64)
    if cfg.rotary_adjacent_pairs:
        quarter = torch.stack((-eye[:, 1::2], eye[:, ::2]), dim=-1).flatten(-2)
    else:
        first, second = eye.chunk(2, dim=-1)
        quarter = torch.cat((-second, first), dim=-1)
    at = list(offsets)
    out = torch.eye(cfg.d_head, dtype=torch.float64).repeat(len(at), 1, 1)
    out[:, :turned, :turned] = eye * cos[at][:, None] + quarter * sin[at][:, None]
    return out
