"""How sharp the sharpest direction is, and whether chains would diverge there.

A step on a quadratic loss contracts along a direction of curvature ``h`` up to ``SamplerConfig.limit``, and there is a posterior
only where ``nbeta h + gamma > 0``. The largest ``h`` is found by power iteration and the smallest by Lanczos, both with
differences of gradients on a few sequences; what looks too sharp there is looked at on many before it is refused, as single
sequences are sharper than a text. Both are bounds from inside: what is refused would diverge were the loss quadratic, and what is
not refused may still. Preconditioned steps are not predicted.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.chains import Loss
from circuits.complexity.config import SamplerConfig
from circuits.complexity.hessian import hessian_products, lanczos

ITERATIONS, DEPTH, EXAMPLES, MANY = 6, 4, 8, 64
NEAR = 0.25
"""Of the localisation: where the largest curvature of either sign is below it, no direction falls as steeply as that."""


class Sharpness(NamedTuple):
    """A lower bound of the largest eigenvalue of the Hessian, and of the largest of either sign."""

    curvature: float
    reach: float


def spaced(loss: Loss, count: int) -> Int[Tensor, "example"]:
    """So many examples of the pool, evenly spaced; all where there are fewer."""
    count = min(count, len(loss.base))
    return torch.arange(count, device=loss.centre.device) * len(loss.base) // count


def sharpness(loss: Loss, examples: Int[Tensor, "example"], seed: int = 0, iterations: int = ITERATIONS) -> Sharpness:
    """How sharp the mean loss of these examples is at ``w*``, by power iteration."""
    v = torch.randn(1, len(loss.centre), generator=torch.Generator().manual_seed(seed), dtype=loss.centre.dtype)
    v = v.to(loss.centre.device)
    found, reach = -torch.inf, 0.0
    for _ in range(iterations):
        v = v / v.norm()
        product = hessian_products(loss, v, examples[None])
        found, reach = max(found, float((v * product).sum())), max(reach, float(product.norm()))
        if not float(product.norm()) > 0:  # flat, or not finite
            break
        v = product
    return Sharpness(found, reach)


def smallest_curvature(loss: Loss, examples: Int[Tensor, "example"], seed: int = 0) -> float:
    """An upper bound of the smallest eigenvalue of the same; infinite where the loss is flat or not finite."""
    v = torch.randn(1, len(loss.centre), generator=torch.Generator().manual_seed(seed), dtype=loss.centre.dtype)
    products = hessian_products(loss, v.to(loss.centre.device), examples[None])
    if not 0 < float(products.norm()) < torch.inf:
        return torch.inf
    return float(lanczos(loss, products, examples[None], min(DEPTH, len(loss.centre))).ritz.min())


def check_stable(name: str, loss: Loss, found: Sharpness, gamma: float, config: SamplerConfig) -> None:
    """Refuse settings at which chains would diverge were the loss quadratic.

    Args:
        found: of ``EXAMPLES`` sequences.

    Raises:
        ValueError: they would, and ``force`` is off.
    """
    if config.force or config.epsilon == 0:
        return
    limit = config.limit(gamma)
    if config.nbeta * found.curvature >= limit:
        sharp = config.nbeta * sharpness(loss, spaced(loss, MANY), config.seed).curvature
        if sharp >= limit:
            raise ValueError(
                f"epsilon = {config.epsilon:g} is too large for {name}: nbeta times its curvature reaches {sharp:.3g} and steps "
                f"contract below {limit:.3g}: take a smaller epsilon, or force=True to see what happens"
            )
    if config.nbeta * found.reach < NEAR * gamma:
        return
    if config.nbeta * smallest_curvature(loss, spaced(loss, EXAMPLES), config.seed) + gamma <= 0:
        lowest = config.nbeta * smallest_curvature(loss, spaced(loss, MANY), config.seed)
        if lowest + gamma <= 0:
            raise ValueError(
                f"gamma = {gamma:g} does not hold {name}: along some direction the loss falls, with nbeta times a curvature of "
                f"{lowest:.3g}: take gamma above {-lowest:.3g}, or force=True to see what happens"
            )
