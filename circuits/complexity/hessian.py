"""The Hessian of a loss at ``w*`` by products with vectors: its trace, and functions of its spectrum, without ever holding it.

    H v  ~  (grad L(w* + s v) - grad L(w* - s v)) / 2 s          for unit v; s is a thousandth of the weights' norm

Hutchinson: for ``v`` of random signs ``E[v^T H v] = tr H``. Stochastic Lanczos quadrature (Ubaru et al. 2017): ``k`` Lanczos
steps from ``v`` give a small tridiagonal ``T`` with ``v^T f(H) v ~ |v|^2 f(T)_{00}``, exact for polynomials ``f`` of degree
below ``2 k``; the same from the gradient gives ``g^T f(H) g``. Two steps see the bulk and one outlier, three also one on the
other side of the bulk.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.complexity.chains import Loss

SHARE = 1e-3
"""Length of a difference as a share of the weights' norm: far above rounding, small against the weights."""
AT_ONCE = 8
"""Examples of each vector in one call of the loss, for memory's sake."""


class Quadrature(NamedTuple):
    """Ritz values of some vectors and their weights: ``v^T f(H) v ~ sum over ritz of weight f(ritz)``."""

    ritz: Float[Tensor, "vector step"]
    weight: Float[Tensor, "vector step"]

    def of(self, f: Callable[[Tensor], Tensor]) -> Float[Tensor, "vector"]:
        """``v^T f(H) v`` of every vector."""
        return (self.weight * f(self.ritz)).sum(-1)


def hessian_products(
    loss: Loss, v: Float[Tensor, "vector parameter"], examples: Int[Tensor, "vector example"]
) -> Float[Tensor, "vector parameter"]:
    """``H v`` of several vectors, each with the Hessian of the mean loss of its own examples."""
    norm = v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    moved = SHARE * max(float(loss.centre.norm()), 1e-6) * v / norm
    both, total = torch.cat([loss.centre + moved, loss.centre - moved]), torch.zeros_like(v)
    for some in examples.split(AT_ONCE, 1):
        _, gradient = loss.loss_and_gradient(both, some.repeat(2, 1))
        plus, minus = gradient.chunk(2)
        total += (plus - minus) * (some.shape[1] / examples.shape[1])
    return total * norm / (2 * moved.norm(dim=1, keepdim=True)).clamp_min(torch.finfo(v.dtype).tiny)


def lanczos(loss: Loss, v: Float[Tensor, "vector parameter"], examples: Int[Tensor, "vector example"], steps: int) -> Quadrature:
    """Gauss quadrature of the spectrum as seen from each vector, all its past directions kept orthogonal."""
    square = v.double().square().sum(1)
    basis = [v / v.norm(dim=1, keepdim=True)]
    diagonal, beside = [], []
    for step in range(steps):
        w = hessian_products(loss, basis[-1], examples)
        size = w.norm(dim=1, keepdim=True)
        diagonal.append((w.double() * basis[-1].double()).sum(1))
        for _ in range(2):  # once more for what rounding left
            for known in basis:
                w = w - (w * known).sum(1, keepdim=True) * known
        length = w.norm(dim=1, keepdim=True)
        if step + 1 < steps:
            # Where rounding is all that is left there are no more directions: further Ritz values are 0, with weight 0.
            more = length > torch.finfo(w.dtype).eps ** 0.5 * size
            beside.append(torch.where(more, length, 0.0)[:, 0].double())
            basis.append(torch.where(more, w / length, 0.0))
    T = torch.diag_embed(torch.stack(diagonal, 1))
    if beside:
        side = torch.stack(beside, 1)
        T = T + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    ritz, vectors = torch.linalg.eigh(T)
    return Quadrature(ritz, square[:, None] * vectors[:, 0].square())


def mean_gradient(loss: Loss, together: int) -> Float[Tensor, "parameter"]:
    """The gradient of the mean loss over the whole pool, so many examples at a time."""
    total = torch.zeros_like(loss.centre)
    for some in torch.arange(len(loss.base), device=loss.centre.device).split(together):
        _, gradient = loss.loss_and_gradient(loss.centre[None], some[None])
        total += gradient[0] * len(some) / len(loss.base)
    return total


def random_signs(count: int, size: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "count size"]:
    """Vectors of independent +1 and -1."""
    return (torch.randint(0, 2, (count, size), generator=generator) * 2 - 1).to(like)
