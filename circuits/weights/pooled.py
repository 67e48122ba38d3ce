"""Pooled directions: how strongly heads would compose if they drew their directions from all heads of their layers.

Writers' frames span Gaussian vectors whose covariance is the sum over earlier heads of ``sum_i s_i^2 v_i v_i^T / sum s^2``,
readers' likewise over the heads of one layer; the first direction of a frame lies along its first vector. A pair is compared with
what its own two spectra would score with such frames in place of its directions: ``p = (1 + count) / (1 + n)`` over all ``n``
pairs of a writers' and a readers' frame. Pairs of frames share frames, so the count varies more than one over as many
independent draws.

This null answers "more than heads that write and read what their layers write and read on the whole?". Real heads differ from
each other more than frames of one covariance do, so it is no match for the rank among real pairs. Source: covariance-matched
control for composition scores, ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.weights.haar import orthonormal, reached, shares, through_writers
from circuits.weights.interfaces import Side


def mixed(one: Side, frames: int, rng: torch.Generator) -> Float[Tensor, "frame r dims"]:
    """Gaussian vectors, ``r`` for each frame, whose covariance is the sum over heads of ``sum_i s_i^2 v_i v_i^T / sum s^2``."""
    heads, r = one.squares.shape
    # A Gaussian vector of a head's covariance is a random combination of its weighted directions.
    scaled = (shares(one.squares)[..., None].sqrt() * one.directions).flatten(0, 1).float()
    return (torch.randn(frames * r, heads * r, generator=rng) @ scaled).view(frames, r, -1)


def frames_of(vectors: Float[Tensor, "frame r dims"]) -> Float[Tensor, "frame r dims"]:
    """Orthonormal rows that span them, the first along the first."""
    return orthonormal(vectors.mT.double()).mT.float()


def frame_counts(
    squared: Float[Tensor, "src dst"],
    a: Float[Tensor, "src r"],
    b: Float[Tensor, "dst q"],
    writer: Float[Tensor, "frame r dims"],
    reader: Float[Tensor, "other q dims"],
) -> Int[Tensor, "src dst"]:
    """How many pairs of a writers' and a readers' frame, with a pair's own spectra, score at least what it does.

    Args:
        squared: observed squared scores. a, b: squared singular values of writers and readers.
    """
    blocks = (writer.transpose(0, 1).flatten(0, 1) @ reader.flatten(0, 1).T).square_()  # [r frame, other q]
    written = through_writers(a, blocks.view(writer.shape[1], len(writer), len(reader), -1))  # [src frame other q]
    scores = written @ shares(b).float().T
    return (scores >= reached(squared)[:, None, None]).sum((1, 2))
