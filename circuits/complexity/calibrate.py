"""Settings for local learning coefficients from short runs: how long a step may be, how many draws there must be, and why.

``gamma`` and ``nbeta`` are a choice: they say how far from ``w*`` and how finely the loss is looked at, and each pair has a
coefficient of its own. A calibration shows what they do and prefers none. ``epsilon``, burn-in and draws are found. A step
forgets ``1 - exp(-epsilon gamma / 2)`` of where a weight was along a direction without curvature: at small ``epsilon`` draws are
alike, at large ``epsilon`` the sampler settles on another posterior than it should, or diverges. Wanted is the longest step that
does neither.

Acceptance is reported and decides nothing: see ``circuits.complexity.acceptance``.

Sources: Lau et al. 2023 (estimator); devinterp's calibration notebook (what is looked at: plateaus, spikes, losses below that of
``w*``, acceptance).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.blocks import Block
from circuits.complexity.chains import Loss
from circuits.complexity.general import GeneralLoss
from circuits.complexity.pool import check_text
from circuits.complexity.proposal import settings
from circuits.complexity.rllc import head_losses
from circuits.complexity.short_runs import cell, departures, verdict
from circuits.complexity.stability import EXAMPLES, sharpness, spaced
from circuits.models.heads import Head
from circuits.models.protocol import check_evaluated, check_finite, check_model, model_hash, named_parameters
from circuits.progress import bar
from circuits.results import array_hash, check_whole, labelled

if TYPE_CHECKING:
    import xarray as xr

VERSION = 1
FORGOTTEN = (0.05, 0.1, 0.25, 0.5)
"""Shares that a step forgets at the default step sizes."""


def calibrate(
    model: Any,
    tokens: Int[Tensor, "example pos"],
    *,
    weights: Any = "L0H0",
    sampler: str = "exponential",
    epsilons: Sequence[float] | None = None,
    gammas: Sequence[float] | None = None,
    nbetas: Sequence[float] | None = None,
    chains: int = 4,
    draws: int = 30,
    batch: int = 16,
    gradient_batch: int | None = 2,
    seed: int = 0,
    target_stderr: float = 0.05,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Run short chains over a grid of settings and say what each shows; ``circuits.complexity.proposal`` reads settings off it.

    A run leaves out the steps until a free weight's variance is within a twentieth of its last, at most twice ``draws``. What is
    found holds for this text, checkpoint and block of weights: calibrate where the loss is sharpest.

    Args:
        model, tokens: what is sampled. weights: a head or any block, see ``circuits.complexity.blocks``.
        sampler: "exponential" or "sgld".
        epsilons: step sizes (default: those that forget 5, 10, 25 and 50% a step). gammas: localisations (default 50, 200, 800).
        nbetas: inverse temperatures times samples (default 30).
        chains, draws, batch, gradient_batch, seed: of the runs, and of the proposal but for ``draws``; see ``SamplerConfig``.
        target_stderr: the standard error that is wanted, as a share of the value.

    Returns:
        Dataset(cell), with ``nbeta``, ``gamma`` and ``epsilon`` as coordinates:
        ``value``, ``stderr``, ``rhat``, ``ess``, ``state``, ``distance``, ``n_diverged``: see ``diagnostics.Estimate``;
        ``margin``: ``nbeta`` times the largest curvature over the sampler's limit; from 1 on steps grow where the loss is
        sharpest, and below 1 they may (``curvature ()`` is a lower bound);
        ``inflation``: by which share the variance of weights without curvature is too large, ``1 / (1 - epsilon gamma / 4) - 1``
        with "sgld", else 0;
        ``spike``: how far the highest loss of a draw is above the upper quartile, in interquartile ranges;
        ``below``: the share of draws whose loss is below that of ``w*`` on the same batch;
        ``acceptance``: ``metropolis_acceptance``, mean over 8 steps of a Metropolis chain on one fixed batch;
        ``autocorrelation_loss``, ``autocorrelation_distance``: integrated times, in draws, of paired loss and squared distance;
        ``departure``: of the value from that at the smallest stable step size with the same ``nbeta`` and ``gamma``, in combined
        standard errors, each widened by the root of how much longer the time of the distance is than that of the loss (short
        runs of slow draws hide their slowness from the loss's own error);
        ``draws_needed``: of each chain, for the target and for one and a half times the effective draws that "ok" needs;
        ``gradients``: the cell's work, in gradients of one sequence;
        ``verdict``: "ok", or what first stands against it: "unstable", "diverged", "spikes", "still training" (a negative
        value), "within error of 0", the state ("not mixed", "few draws"), "departs" (by more than 2 errors, or an inflation of
        more than 2 target errors).

    Raises:
        TypeError, ValueError: not a model or tokens that can be sampled, unknown weights, settings that are no settings.

    Source: see the module.
    """
    check_model(model)
    check_evaluated(model)
    check_finite(model)
    check_whole("draws", draws, 4, "so that their autocorrelation can be seen")
    if sampler not in ("sgld", "exponential"):
        raise ValueError(f"sampler={sampler!r}: need 'exponential' or 'sgld', whose steps have one size that can be calibrated")
    if isinstance(target_stderr, bool) or not isinstance(target_stderr, int | float) or not 0 < target_stderr < math.inf:
        raise ValueError(f"target_stderr={target_stderr!r}: need a share of the value, such as 0.05")
    fields = {"sampler": sampler, "chains": chains, "batch": batch, "gradient_batch": gradient_batch, "seed": seed}
    configs = [
        settings(fields, nbeta, gamma, epsilon, draws=draws, force=True)
        for nbeta in _positive("nbetas", nbetas, (30.0,))
        for gamma in _positive("gammas", gammas, (50.0, 200.0, 800.0))
        for epsilon in _positive("epsilons", epsilons, [-2 * math.log1p(-share) / gamma for share in FORGOTTEN])
    ]
    check_text(tokens, model.cfg, batch)
    loss, text = _loss_of(model, tokens, weights)
    curvature = sharpness(loss, spaced(loss, EXAMPLES), seed).curvature
    with bar(configs, label="calibrate", on=progress, unit="cell") as shown:
        cells = [cell(loss, config, at, curvature, target_stderr) for at, config in enumerate(shown)]
    found = {name: np.array([cell[name] for cell in cells]) for name in cells[0]}
    coords = {name: np.array([getattr(config, name) for config in configs]) for name in ("nbeta", "gamma", "epsilon")}
    found["departure"] = departures(found, coords)
    each = ({name: values[at] for name, values in found.items()} for at in range(len(cells)))
    found["verdict"] = np.array([verdict(one, target_stderr) for one in each])
    asked = _Asked(
        {**fields, "draws": draws, "weights": text, "target_stderr": target_stderr, "tokens": array_hash(tokens.cpu())}
    )
    return labelled(
        {name: (("cell",), values) for name, values in found.items()} | {"curvature": ((), curvature)},
        {name: ("cell", values) for name, values in coords.items()},
        measure=asked,
        definition="what short chains show at each nbeta, gamma and epsilon: value, stability, mixing, acceptance, draws needed",
        source="Lau et al. 2023; Roberts & Tweedie 1996; devinterp's calibration notebook",
        model_hash=model_hash(model),
        n_examples=len(tokens),
        units="nbeta nats",
    )


@dataclass(frozen=True)
class _Asked:
    """What a calibration was asked for, for its attributes."""

    asked: dict[str, Any]
    name: str = "calibration"
    version: int = VERSION

    def spec(self) -> dict[str, Any]:
        return self.asked


def _positive(name: str, given: Sequence[float] | None, default: Sequence[float]) -> list[float]:
    """Numbers above 0 in order, none twice.

    Raises:
        ValueError: they are not.
    """
    try:
        values = [float(value) for value in (default if given is None else given)]
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 < value < math.inf for value in values) or len(set(values)) < len(values):
        raise ValueError(
            f"{name}={given!r}: need different numbers above 0 in a list, such as {[float(f'{d:.3g}') for d in default]}"
        )
    return sorted(values)


def _loss_of(model: Any, tokens: Tensor, weights: Any) -> tuple[Loss, str]:
    """The loss of these weights, of a head by the engine, and what they are called."""
    block = Block(weights, dict(named_parameters(model)), model.cfg)
    try:
        head = Head.parse(weights, model.cfg)
    except (TypeError, ValueError):
        return GeneralLoss(model, tokens, weights), block.text
    return head_losses(model, tokens, None)(head), str(head)
