"""How well a step of a sampler keeps the posterior: the probability that a Metropolis test accepts it.

With ``U = nbeta L + gamma/2 |w - w*|^2`` a step ``w -> v`` is accepted with probability ``min(1, alpha)``,

    alpha = exp(U(w) - U(v)) q(w | v) / q(v | w),   q(v | w) = N(m(w), s^2)
    SGLD          m(w) = w - epsilon/2 (nbeta g + gamma (w - w*)),           s^2 = epsilon
    exponential   m(w) = w* + rho (w - w*) - (1 - rho) nbeta g / gamma,      s^2 = (1 - rho^2) / gamma

Localisation alone gives SGLD ``log alpha = epsilon gamma^2 / 8 (|w - w*|^2 - |v - w*|^2)``, over ``d`` weights about normal with
standard deviation ``x = sqrt(d) (epsilon gamma)^(3/2) / 4``, so that a share ``2 Phi(-x/2)`` of steps is accepted: with 16,000
weights 0.16 at the paper's ``epsilon gamma = 0.2``, where variances are 5% too large, and 0 soon after. One test of all weights
sees what none shows alone: acceptance is reported and decides nothing. The exponential sampler has ``log alpha = 0`` without a
loss: its localisation is exact, and acceptance is of the loss's part only. Acceptance is that of a chain that obeys the test.
Along one that does not, half of SGLD's steps lead back inwards and would be accepted however large they are.

Source: Roberts & Tweedie 1996 (acceptance of a Langevin step).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.complexity.chains import Loss, mean_of
from circuits.complexity.config import SamplerConfig
from circuits.complexity.samplers import State, step

SETTLING, COUNTED = 4, 8
"""Steps before those whose acceptance counts, and those that count."""


class Point(NamedTuple):
    """Where chains are on one fixed batch: weights, mean loss, its gradient."""

    w: Float[Tensor, "chain parameter"]
    loss: Float[Tensor, "chain"]
    gradient: Float[Tensor, "chain parameter"]


def metropolis_acceptance(
    before: Point, after: Point, *, centre: Float[Tensor, "parameter"], gamma: float, config: SamplerConfig
) -> Float[Tensor, "chain"]:
    """The probability with which a Metropolis test would accept a step of the sampler: ``min(1, alpha)``, see above.

    Args:
        before, after: both ends of the step, losses and gradients of the same batch. centre: ``w*``. gamma: the localisation.
        config: "sgld" or "exponential", with its epsilon and nbeta.

    Returns:
        In [0, 1]; 1 as epsilon goes to 0; 0 where the loss is not finite.
    """
    before, after = (Point(*(part.double() for part in point)) for point in (before, after))
    centre = centre.double()
    exact = config.sampler == "exponential" and gamma > 0
    variance = -math.expm1(-config.epsilon * gamma) / gamma if exact else config.epsilon

    def potential(point: Point) -> Tensor:
        return config.nbeta * point.loss + gamma / 2 * (point.w - centre).square().sum(-1)

    def log_proposal(start: Point, end: Point) -> Tensor:
        quiet = torch.zeros_like(start.w)
        mean = step(State(start.w, None), start.gradient, quiet, centre=centre, gamma=gamma, config=config).w
        return -(end.w - mean).square().sum(-1) / (2 * variance)

    log_alpha = potential(before) - potential(after) + log_proposal(after, before) - log_proposal(before, after)
    return log_alpha.clamp(max=0.0).exp().nan_to_num(0.0)


def acceptance(loss: Loss, config: SamplerConfig) -> float:
    """Mean acceptance along a chain that obeys the test, on one fixed batch.

    It starts from a draw of localisation alone; steps of the exponential sampler, which keep that, then bring in the loss.
    """
    centre, generator = loss.centre, torch.Generator().manual_seed(config.seed)
    noise = torch.randn(1 + SETTLING + COUNTED, 1, len(centre), generator=generator, dtype=centre.dtype).to(centre.device)
    chance = torch.rand(COUNTED, generator=generator)
    examples = torch.linspace(0, len(loss.base) - 1, config.batch).long().to(centre.device)[None]

    def seen_at(w: Tensor) -> Point:
        losses, gradient = loss.loss_and_gradient(w, examples)
        return Point(w, mean_of(losses), gradient)

    def moved(point: Point, config: SamplerConfig, noise: Tensor) -> Point:
        return seen_at(step(State(point.w, None), point.gradient, noise, centre=centre, gamma=config.gamma, config=config).w)

    point, found = seen_at(centre + noise[0] / math.sqrt(config.gamma)), []
    for at in range(SETTLING):
        point = moved(point, config.changed(sampler="exponential"), noise[1 + at])
    for at in range(COUNTED):
        proposed = moved(point, config, noise[1 + SETTLING + at])
        found.append(float(metropolis_acceptance(point, proposed, centre=centre, gamma=config.gamma, config=config)))
        point = proposed if float(chance[at]) < found[-1] else point
    return sum(found) / COUNTED
