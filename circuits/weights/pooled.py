"""Pooled directions: how strongly heads would compose if they drew their directions from all heads of their layers.

``Sigma_W`` is the sum over earlier heads of ``sum_i s_i^2 v_i v_i^T / sum s^2``, ``Sigma_R`` likewise over the heads of one
layer. A null pair has as many independent Gaussian vectors ``v_i ~ N(0, Sigma_W)``, ``w_j ~ N(0, Sigma_R)`` as the pair has
singular directions, weighted by the pair's own squared singular values, and scores as it does:

    S = sum_ij a_i b_j (v_i . w_j)^2 / (sum_i a_i |v_i|^2  sum_j b_j |w_j|^2)

The vectors are not made orthogonal: that would flatten what they span, and with it the covariance they are drawn from. So the
mean of ``S`` is close to ``tr(Sigma_W Sigma_R) / (tr Sigma_W tr Sigma_R)``, which is the mean over all pairs of the real heads,
and since the vectors of one head may repeat each other its spread is, if anything, too large: p-values of unrelated heads that do
share a covariance err to the careful side. Only nearly rank-one heads (singular values as 1/i^2), of which a handful makes a
poor estimate of what they share, fall below .05 up to twice as often.
``p = (1 + count) / (1 + n)`` over all ``n`` pairs of a drawn writer and a drawn reader; these pairs share heads, so the count
varies more than one over as many independent draws.

This null answers "more than heads that write and read what their layers write and read on the whole?". Source: covariance-matched
control for composition scores, ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.weights.haar import reached, shares, through_writers
from circuits.weights.interfaces import Side


def drawn_heads(one: Side, heads: int, rng: torch.Generator) -> Float[Tensor, "drawn r dims"]:
    """Gaussian vectors, ``r`` for each drawn head, of covariance ``sum over heads of sum_i s_i^2 v_i v_i^T / sum s^2``."""
    real, r = one.squares.shape
    # A Gaussian vector of a head's covariance is a random combination of its weighted directions.
    scaled = (shares(one.squares)[..., None].sqrt() * one.directions).flatten(0, 1).float()
    return (torch.randn(heads * r, real * r, generator=rng) @ scaled).view(heads, r, -1)


def pooled_counts(
    squared: Float[Tensor, "src dst"],
    a: Float[Tensor, "src r"],
    b: Float[Tensor, "dst q"],
    writer: Float[Tensor, "drawn r dims"],
    reader: Float[Tensor, "other q dims"],
) -> Int[Tensor, "src dst"]:
    """How many pairs of a drawn writer and a drawn reader, with a pair's own spectra, score at least what it does.

    Args:
        squared: observed squared scores. a, b: squared singular values of writers and readers.
    """
    a, b = shares(a).float(), shares(b).float()
    read, sizes = reader.flatten(0, 1).T.contiguous(), torch.einsum("nq,gq->gn", b, reader.square().sum(-1))
    counts = torch.zeros(squared.shape, dtype=torch.int64)
    for some in writer.split(16):  # as many as stay in a processor's cache
        blocks = (some.transpose(0, 1).flatten(0, 1) @ read).square_()  # [r drawn, other q]
        written = through_writers(a, blocks.view(some.shape[1], len(some), len(reader), -1))  # [src drawn other q]
        bound = torch.einsum("mn,mf,gn->mfgn", reached(squared), a @ some.square().sum(-1).T, sizes)
        counts += (written @ b.T >= bound).sum((1, 2))
    return counts
