"""How the local posterior is sampled: one validated object, with the settings of the paper and of the shipped curves.

The local posterior around weights ``w*`` (Lau et al. 2023; Wang et al. 2024, section 3) is

    p(w) ~ exp(-nbeta L(w) - gamma/2 |w - w*|^2)

where ``L`` is the mean loss per token in nats, ``nbeta`` the inverse temperature times the number of samples, and ``gamma`` the
localisation: without a loss each weight would spread by ``1 / sqrt(gamma)``. A step of SGLD is

    w <- w - epsilon/2 (nbeta grad L_batch(w) + gamma (w - w*)) + sqrt(epsilon) N(0, 1)

On a quadratic loss of curvature ``h`` it is stable where ``epsilon (nbeta h + gamma) < 4``, and its stationary variance is
``1 / (1 - epsilon (nbeta h + gamma) / 4)`` times the posterior's, a little more with batches' noise: the step size is a part of
what is estimated, so estimates are compared at one ``epsilon``, ``gamma`` and ``nbeta`` only.

Where localisation dominates (``nbeta h << gamma``, the case at the paper's settings) that factor is paid for in every
direction, and small steps mix slowly: weights forget by ``1 - epsilon gamma / 2``, a tenth, a step. The "exponential" sampler
integrates localisation and noise exactly (exponential Euler) and holds only the loss's gradient over a step: with ``rho =
exp(-epsilon gamma / 2)``

    w <- w* + rho (w - w*) - (1 - rho) nbeta grad L_batch(w) / gamma + sqrt((1 - rho^2) / gamma) N(0, 1)

Without a loss it is exact at any step size; along curvature ``h`` the variance is that of ``2 rho / (1 + rho) h`` to first
order, and it is stable where ``nbeta h < gamma (1 + rho) / (1 - rho)``.

Sources: settings of Wang et al. 2024's published configurations: epsilon 1e-3, gamma 200, nbeta 30, 4 chains of 200 draws.
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

from circuits.models.config import describe

STABLE = 4.0
"""``epsilon`` times curvature of the log posterior at which a step of SGLD no longer contracts."""

Sampler = Literal["sgld", "exponential", "rmsprop_sgld"]


class SamplerConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings of a sampling run.

    Attributes:
        sampler: "sgld"; "exponential", the same with exact localisation; "rmsprop_sgld", whose steps are divided by a running
            root mean square of the gradient.
        epsilon: step size. gamma: localisation. nbeta: inverse temperature times samples; of the mean loss in nats per token.
        chains, draws: kept draws of each chain; every chain starts at ``w*``, which is never a draw.
        burn_in: steps before the first kept draw, left out. thin: steps between kept draws.
        batch: sequences a loss is taken of. gradient_batch: how many of them the gradient is taken of (default: all). Its
            noise adds ``epsilon nbeta^2 s^2 / 4`` to a direction's share, ``s^2`` the batch gradient's variance there.
        seed: of batches and noise.
        superchains: groups of chains that share their first ``burn_in // 2`` steps, for the nested R-hat; divides ``chains``.
            Default: two, or one where the number of chains is odd.
        gamma_at_rms: None, or the root mean square of the weights at which ``gamma`` counts as given: elsewhere it is
            ``gamma (gamma_at_rms / rms)^2``, so that the spread stays the same share of the weights.
        rms_decay, rms_floor: of "rmsprop_sgld": ``V <- rms_decay V + (1 - rms_decay) grad^2``; steps are ``epsilon /
            (rms_floor + sqrt V)``. Where gradients are far below ``rms_floor`` that is ``epsilon / rms_floor``: a step size found
            for "sgld" is ten times too long here.
        force: sample even where the settings are predicted to diverge.
    """

    sampler: Sampler = "sgld"
    epsilon: float = 1e-3
    gamma: float = 200.0
    nbeta: float = 30.0
    chains: int = 4
    draws: int = 200
    burn_in: int = 0
    thin: int = 1
    batch: int = 32
    gradient_batch: int | None = None
    seed: int = 0
    superchains: int | None = None
    gamma_at_rms: float | None = None
    rms_decay: float = 0.99
    rms_floor: float = 0.1
    force: bool = False

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(f"sampler settings: {describe(error)}") from error

    @model_validator(mode="after")
    def _check(self) -> "SamplerConfig":
        for field, least in (("epsilon", 0.0), ("gamma", 0.0)):
            if not least <= getattr(self, field) < math.inf:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be a number of at least 0")
        for field in ("nbeta", "rms_floor", "gamma_at_rms"):
            if (value := getattr(self, field)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{field} is {value}; it must be positive")
        for field, least in (("chains", 1), ("draws", 2), ("burn_in", 0), ("thin", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {least}")
        if self.gradient_batch is not None and not 0 < self.gradient_batch <= self.batch:
            raise ValueError(f"gradient_batch is {self.gradient_batch}; it must be 1..{self.batch} of the batch, or None for all")
        if self.superchains is not None and (not 0 < self.superchains <= self.chains or self.chains % self.superchains):
            raise ValueError(f"superchains is {self.superchains}; it must divide the {self.chains} chains into equal groups")
        if not 0 <= self.rms_decay < 1:
            raise ValueError(f"rms_decay is {self.rms_decay}; it must lie in [0, 1)")
        if self.sampler == "sgld" and self.gamma_at_rms is None and not self.force and self.epsilon * self.gamma >= STABLE:
            raise ValueError(
                f"epsilon * gamma is {self.epsilon * self.gamma:g}, from {STABLE:g} on every chain diverges even without a loss: "
                f"take epsilon below {STABLE / self.gamma:g}, or force=True to see it happen"
            )
        if self.sampler == "rmsprop_sgld" and self.gamma_at_rms is None and not self.force:
            longest = STABLE * self.rms_floor / self.gamma if self.gamma else math.inf
            if self.epsilon >= longest:
                raise ValueError(
                    f"epsilon * gamma / rms_floor is {self.epsilon * self.gamma / self.rms_floor:g}, from {STABLE:g} on chains "
                    f"diverge where gradients are small: take epsilon below {longest:g}, or force=True to see it happen"
                )
        return self

    @property
    def groups(self) -> int:
        """Superchains."""
        return self.superchains or (1 if self.chains % 2 else 2)

    @property
    def steps(self) -> int:
        """Steps of a chain, each of one gradient of a batch."""
        return self.burn_in + self.draws * self.thin

    def limit(self, gamma: float) -> float:
        """The curvature of ``nbeta L`` up to which steps contract on a quadratic loss; infinite where it is not predicted."""
        if self.sampler == "rmsprop_sgld" or self.epsilon == 0:
            return math.inf
        if self.sampler == "sgld" or gamma == 0:
            return STABLE / self.epsilon - gamma
        return gamma / math.tanh(self.epsilon * gamma / 4)  # (1 + rho) / (1 - rho)

    def gamma_for(self, rms: float) -> float:
        """The localisation of weights with this root mean square."""
        if self.gamma_at_rms is None:
            return self.gamma
        if not rms > 0:
            raise ValueError("gamma_at_rms scales gamma by the weights' size, and all of these are 0: give gamma alone")
        return self.gamma * (self.gamma_at_rms / rms) ** 2

    def changed(self, **fields: Any) -> "SamplerConfig":
        """The same settings but for these fields, validated again.

        Raises:
            ValueError: an unknown field, or a value that does not fit.
        """
        return sampler_config(self, **fields)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "laptop": {"sampler": "exponential", "epsilon": 7e-3, "draws": 50, "burn_in": 10, "batch": 16, "gradient_batch": 2},
    "laptop-whole": {
        "sampler": "exponential",
        "epsilon": 1.4e-3,
        "gamma": 1000.0,
        "nbeta": 100.0,
        "draws": 50,
        "burn_in": 10,
        "batch": 16,
        "gradient_batch": 4,
    },
}
"""``paper``: Wang et al. 2024's configuration for heads. ``laptop``: the same posterior by the exponential sampler, which
halves what weights remember with every step, so that fewer draws from smaller batches do; the shipped curves of heads are made
with it. It is exact where the loss is flat; along curvature ``h`` variances are ``(1 + rho) / (1 + rho - (1 - rho) x)`` times the
posterior's, ``x = nbeta h / gamma``: 1.2 at ``x = 1/2`` and 1.5 at 1, where "paper" has 1.08 and 1.11.
``laptop-whole``: for all weights of a small model at once, five times as near: noise that a head shrugs off undoes a whole
model."""


def sampler_config(base: "SamplerConfig | str" = "paper", **fields: Any) -> SamplerConfig:
    """Settings by name, or given ones, with fields changed by keyword.

    Raises:
        TypeError: neither a name nor a SamplerConfig. ValueError: no such preset, or a change that does not validate.

    Example:
        >>> sampler_config("laptop", gamma=100.0).steps
        60
    """
    if isinstance(base, SamplerConfig):
        known = base.model_dump()
    elif isinstance(base, str):
        if base not in PRESETS:
            raise ValueError(
                f"there are no sampler settings {base!r}; choose one of {', '.join(PRESETS)}, or give a SamplerConfig"
            )
        known = PRESETS[base]
    else:
        raise TypeError(f"sampler settings are a {type(base).__name__}; give a name ({', '.join(PRESETS)}) or a SamplerConfig")
    return SamplerConfig(**(known | fields))
