"""Samplers of a local posterior as pure functions: ``init`` makes a state, ``step`` the next one from a gradient and noise.

    SGLD           w <- w - epsilon/2 (nbeta g + gamma (w - w*)) + sqrt(epsilon) xi
    exponential    w <- w* + rho (w - w*) - (1 - rho) nbeta g / gamma + sqrt((1 - rho^2) / gamma) xi
                   rho = exp(-epsilon gamma / 2)
    RMSprop-SGLD   V <- a V + (1 - a) g^2,  G = 1 / (floor + sqrt V)
                   w <- w - epsilon/2 G (nbeta g + gamma (w - w*)) + sqrt(epsilon G) xi

``g`` is the gradient of the mean batch loss and ``xi`` standard normal. As in the literature on preconditioned SGLD the term with
the derivative of ``G`` is left out (Li et al. 2016); ``V`` starts at 1 (Hitchcock & Hoogland 2025) and follows the gradient of
the loss alone. The exact Gaussian is what both should find on a quadratic loss.

Sources: Welling & Teh 2011; Lau et al. 2023; Hitchcock & Hoogland 2025 (RMSprop-SGLD).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.complexity.config import SamplerConfig


class State(NamedTuple):
    """Where the chains are."""

    w: Float[Tensor, "chain parameter"]
    mean_square: Float[Tensor, "chain parameter"] | None  # of the gradient; None for plain SGLD


def init(centre: Float[Tensor, "parameter"], config: SamplerConfig) -> State:
    """Every chain at ``w*``."""
    w = centre.expand(config.chains, -1).clone()
    return State(w, torch.ones_like(w) if config.sampler == "rmsprop_sgld" else None)


def step(
    state: State,
    gradient: Float[Tensor, "chain parameter"],
    noise: Float[Tensor, "chain parameter"],
    *,
    centre: Float[Tensor, "parameter"],
    gamma: float,
    config: SamplerConfig,
) -> State:
    """The next state; ``noise`` is standard normal. Nothing that was given is changed."""
    if config.sampler == "exponential" and gamma > 0:
        forgotten = -math.expm1(-config.epsilon * gamma / 2)  # 1 - rho
        spread = math.sqrt(-math.expm1(-config.epsilon * gamma) / gamma)
        moved = torch.lerp(state.w, centre.expand_as(state.w), forgotten).add_(gradient, alpha=-forgotten * config.nbeta / gamma)
        return State(moved.add_(noise, alpha=spread), None)
    pull = torch.add(state.w, centre, alpha=-1).mul_(gamma).add_(gradient, alpha=config.nbeta)
    if state.mean_square is None:
        moved = torch.add(state.w, pull, alpha=-config.epsilon / 2)
        return State(moved.add_(noise, alpha=math.sqrt(config.epsilon)), None)
    mean_square = state.mean_square * config.rms_decay + gradient.square() * (1 - config.rms_decay)
    rate = 1 / (config.rms_floor + mean_square.sqrt())
    moved = state.w - config.epsilon / 2 * rate * pull + (config.epsilon * rate).sqrt() * noise
    return State(moved, mean_square)


def gaussian_draws(
    centre: Float[Tensor, "parameter"],
    hessian: Float[Tensor, "parameter parameter"],
    gradient: Float[Tensor, "parameter"],
    *,
    gamma: float,
    nbeta: float,
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, "draw parameter"]:
    """Independent draws from the local posterior of a quadratic loss: normal, precision ``A = nbeta H + gamma``, mean
    ``w* - A^-1 nbeta g``.

    Raises:
        ValueError: the precision is not positive definite, so that there is no such posterior.
    """
    precision = nbeta * hessian + gamma * torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
    factor, failed = torch.linalg.cholesky_ex(precision)
    if int(failed):
        least = float(torch.linalg.eigvalsh(precision)[0])
        raise ValueError(f"nbeta H + gamma has the eigenvalue {least:.3g}, so the posterior is unbounded: take a larger gamma")
    mean = centre - torch.cholesky_solve(nbeta * gradient[:, None], factor)[:, 0]
    normal = torch.randn(len(centre), draws, generator=generator, dtype=centre.dtype, device=centre.device)
    return mean + torch.linalg.solve_triangular(factor.T, normal, upper=True).T
