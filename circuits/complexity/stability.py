"""How sharp the sharpest direction is, and whether a step size must diverge there.

A step on a quadratic loss contracts along a direction of curvature ``h`` up to ``SamplerConfig.limit``. The largest
``|h|`` is found by power iteration with differences of gradients; few iterations on few sequences give a lower bound, so a
block that is refused would diverge in the quadratic approximation, and one that is not may still. Preconditioned steps are not
predicted.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.chains import Loss
from circuits.complexity.config import SamplerConfig
from circuits.complexity.hessian import hessian_products

ITERATIONS, EXAMPLES = 6, 8


def largest_curvature(loss: Loss, examples: Int[Tensor, "example"], seed: int = 0, iterations: int = ITERATIONS) -> float:
    """A lower bound of the largest eigenvalue of the Hessian of the mean loss of these examples, at ``w*``."""
    v = torch.randn(1, len(loss.centre), generator=torch.Generator().manual_seed(seed), dtype=loss.centre.dtype)
    v = v.to(loss.centre.device)
    found = -torch.inf
    for _ in range(iterations):
        v = v / v.norm()
        product = hessian_products(loss, v, examples[None])
        found = max(found, float((v * product).sum()))
        if not float(product.norm()) > 0:  # flat, or not finite
            break
        v = product
    return found


def check_stable(name: str, curvature: float, gamma: float, config: SamplerConfig) -> None:
    """Refuse a step size that must diverge.

    Raises:
        ValueError: it must, and ``force`` is off.
    """
    if config.nbeta * curvature >= config.limit(gamma) and not config.force:
        raise ValueError(
            f"epsilon = {config.epsilon:g} must diverge for {name}: nbeta times its curvature reaches "
            f"{config.nbeta * curvature:.3g} and steps contract below {config.limit(gamma):.3g}: take a smaller epsilon, or "
            "force=True to see it happen"
        )
