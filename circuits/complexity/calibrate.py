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

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.complexity.acceptance import COUNTED, SETTLING, acceptance
from circuits.complexity.blocks import Block
from circuits.complexity.chains import Loss, run_chains
from circuits.complexity.config import STABLE, SamplerConfig, sampler_config
from circuits.complexity.diagnostics import ENOUGH, Estimate, estimate
from circuits.complexity.general import GeneralLoss
from circuits.complexity.pool import check_text
from circuits.complexity.rllc import head_losses
from circuits.complexity.stability import EXAMPLES, largest_curvature
from circuits.models.heads import Head
from circuits.models.protocol import check_evaluated, check_finite, check_model, model_hash, named_parameters
from circuits.progress import bar
from circuits.results import array_hash, check_whole, labelled

if TYPE_CHECKING:
    import xarray as xr

VERSION = 1
FORGOTTEN = (0.05, 0.1, 0.25, 0.5)
"""Shares that a step forgets at the default step sizes."""
SPIKE = 6.0
"""A loss this many interquartile ranges above the upper quartile is a spike: twice Tukey's outer fence, as losses are skewed."""
SPARE = 1.5
"""Effective draws are themselves estimated: so many times the least number are asked for."""
LOSS_COST = 0.5
"""A loss's work beside that of a loss with its gradient: weights that stay need none, so the way back costs as the way there."""
SLOW = ("not mixed", "few draws", "within error of 0")
"""Verdicts that more draws may mend."""


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
    """Run short chains over a grid of settings and say what each shows; ``proposal`` reads settings off it.

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
        _settings(fields, nbeta, gamma, epsilon, draws=draws, force=True)
        for nbeta in _positive("nbetas", nbetas, (30.0,))
        for gamma in _positive("gammas", gammas, (50.0, 200.0, 800.0))
        for epsilon in _positive("epsilons", epsilons, [-2 * math.log1p(-share) / gamma for share in FORGOTTEN])
    ]
    check_text(tokens, model.cfg, batch)
    loss, text = _loss_of(model, tokens, weights)
    few = torch.linspace(0, len(tokens) - 1, min(EXAMPLES, len(tokens))).long().to(loss.centre.device)
    curvature = largest_curvature(loss, few, seed)
    with bar(configs, label="calibrate", on=progress, unit="cell") as shown:
        cells = [_cell(loss, config, at, curvature, target_stderr) for at, config in enumerate(shown)]
    found = {name: np.array([cell[name] for cell in cells]) for name in cells[0]}
    coords = {name: np.array([getattr(config, name) for config in configs]) for name in ("nbeta", "gamma", "epsilon")}
    found["departure"] = _departures(found, coords)
    each = ({name: values[at] for name, values in found.items()} for at in range(len(cells)))
    found["verdict"] = np.array([_verdict(cell, target_stderr) for cell in each])
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


def proposal(calibration: "xr.Dataset", *, gamma: float = 200.0, nbeta: float = 30.0) -> SamplerConfig:
    """The settings that a calibration speaks for, at a chosen ``gamma`` and ``nbeta``, which define what is measured.

    Found are ``epsilon``, the largest whose verdict is "ok": stable, without spikes, mixed, and with a value within two combined
    standard errors of that at the smallest step size (short runs see no smaller differences); the burn-in; and the draws.
    The largest of the grid says only that nothing in the grid is too large.

    Args:
        calibration: of ``calibrate``. gamma, nbeta: of its grid; the defaults are the paper's.

    Raises:
        ValueError: not in the grid, or no step size will do; the sentence says what to change.
    """
    here = calibration.isel(cell=np.isclose(calibration["gamma"], gamma) & np.isclose(calibration["nbeta"], nbeta))
    if not here.sizes["cell"]:
        pairs = sorted({(float(b), float(g)) for b, g in zip(calibration["nbeta"], calibration["gamma"], strict=True)})
        known = ", ".join(f"({b:g}, {g:g})" for b, g in pairs)
        raise ValueError(f"nbeta {nbeta:g} with gamma {gamma:g} was not calibrated; the grid has (nbeta, gamma) = {known}")
    good = np.flatnonzero(here["verdict"].values == "ok")
    if not len(good):
        seen = ", ".join(f"{e:.3g} ({v})" for e, v in zip(here["epsilon"].values, here["verdict"].values, strict=True))
        raise ValueError(f"no epsilon will do at nbeta {nbeta:g} and gamma {gamma:g}, of {seen}: {_advice(here)}")
    best = here.isel(cell=good[-1])
    asked = json.loads(calibration.attrs["config"])
    fields = {name: asked[name] for name in ("sampler", "chains", "batch", "gradient_batch", "seed")}
    return _settings(fields, *(float(best[name]) for name in ("nbeta", "gamma", "epsilon")), draws=int(best["draws_needed"]))


def predicted_stderr(calibration: "xr.Dataset", draws: int) -> "xr.DataArray":
    """The standard error of each cell's value from so many draws of each chain: ``stderr sqrt(draws here / draws)``."""
    check_whole("draws", draws, 1)
    return calibration["stderr"] * (json.loads(calibration.attrs["config"])["draws"] / draws) ** 0.5


def gradients(config: SamplerConfig) -> float:
    """A run's work in gradients of one sequence; a loss without its gradient counts as half of one."""
    first = config.batch if config.gradient_batch is None else config.gradient_batch
    return config.chains * (config.steps * first + LOSS_COST * config.draws * (config.batch - first))


def predicted_seconds(config: SamplerConfig, seconds_per_gradient: float) -> float:
    """How long a run of one block of weights takes.

    A calibration holds no times, so that equal calls give equal bytes; clock the call, and divide by its work:

        start = time.perf_counter()
        calibration = calibrate(model, tokens)
        seconds = (time.perf_counter() - start) / float(calibration["gradients"].sum())
        predicted_seconds(proposal(calibration), seconds)
    """
    return gradients(config) * seconds_per_gradient


@dataclass(frozen=True)
class _Asked:
    """What a calibration was asked for, for its attributes."""

    asked: dict[str, Any]
    name: str = "calibration"
    version: int = VERSION

    def spec(self) -> dict[str, Any]:
        return self.asked


def _settings(
    fields: dict[str, Any], nbeta: float, gamma: float, epsilon: float, *, draws: int, force: bool = False
) -> SamplerConfig:
    """Settings of a run; while calibrating (``force``) burn-in is at most twice the draws."""
    burn_in = math.ceil(-math.log(0.05) / (epsilon * gamma))  # exp(-epsilon gamma t): what is missing of a free weight's variance
    changes = {
        "epsilon": epsilon,
        "gamma": gamma,
        "nbeta": nbeta,
        "draws": draws,
        "burn_in": min(burn_in, 2 * draws) if force else burn_in,
        "superchains": 1 if fields["chains"] % 2 else 2,
        "force": force,
    }
    return sampler_config("paper", **fields, **changes)


def _advice(here: "xr.Dataset") -> str:
    """What to change where no step size will do, by what stands against the smallest one."""
    verdicts = here["verdict"].values
    if verdicts[0] == "still training":
        return "take a larger gamma, or a text and a step at which these weights are nearer a minimum"
    if verdicts[0] not in SLOW:
        return "take smaller epsilons"
    needed = np.nanmin(here["draws_needed"].values[np.isin(verdicts, SLOW)])
    return f"take at least {needed:.0f} draws, or larger epsilons where those are stable"


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


def _cell(loss: Loss, config: SamplerConfig, at: int, curvature: float, target: float) -> dict[str, Any]:
    """What one setting shows; ``at`` keeps its randomness apart from other cells', so that their values are independent."""
    traces = run_chains(loss, config, gamma=config.gamma, stream=(at,))
    found = estimate(traces, config)
    slow = estimate(traces._replace(loss=traces.distance, base=torch.zeros_like(traces.base)), config).ess
    paired = traces.paired[~traces.diverged].cpu().numpy()
    low, high = np.quantile(paired, (0.25, 0.75)).tolist() if len(paired) else (math.nan, math.nan)
    limit, kept = config.limit(config.gamma), 1 - config.epsilon * config.gamma / STABLE
    return {
        **found._asdict(),
        "margin": config.nbeta * curvature / limit if limit > 0 else math.inf,
        "inflation": 0.0 if config.sampler == "exponential" else 1 / kept - 1 if kept > 0 else math.inf,
        "spike": (float(paired.max()) - high) / (high - low) if high > low else math.nan,
        "below": float((paired < 0).mean()) if len(paired) else math.nan,
        "acceptance": acceptance(loss, config),
        "autocorrelation_loss": paired.size / found.ess if found.ess > 0 else math.nan,
        "autocorrelation_distance": paired.size / slow if slow > 0 else math.nan,
        "draws_needed": _draws_needed(found, slow, config, target),
        "gradients": gradients(config) + (SETTLING + COUNTED + 1) * config.batch,
    }


def _draws_needed(found: Estimate, slow: float, config: SamplerConfig, target: float) -> float:
    """Draws of each chain for the target, and for enough effective draws of loss and distance; NaN without a value."""
    if not (np.isfinite(found.stderr) and min(found.ess, slow) > 0 and found.value):
        return math.nan
    precise = (found.stderr / (target * abs(found.value))) ** 2
    return float(math.ceil(config.draws * max(precise, SPARE * ENOUGH / min(found.ess, slow))))


def _departures(found: dict[str, np.ndarray], coords: dict[str, np.ndarray]) -> np.ndarray:
    """Every value less that at the smallest stable step size with the same nbeta and gamma, in widened combined errors."""
    departures = np.full(len(found["value"]), np.nan)
    slower = found["autocorrelation_distance"] / found["autocorrelation_loss"]
    errors = found["stderr"] * np.sqrt(np.fmax(slower, 1.0))
    for at in range(len(departures)):
        alike = (coords["nbeta"] == coords["nbeta"][at]) & (coords["gamma"] == coords["gamma"][at])
        stable = np.flatnonzero(alike & (found["margin"] < 1) & (found["n_diverged"] == 0))
        if len(stable):
            first = stable[0]
            error = math.hypot(errors[at], errors[first])
            departures[at] = 0.0 if at == first else (found["value"][at] - found["value"][first]) / error if error else np.nan
    return departures


def _verdict(cell: dict[str, Any], target: float) -> str:
    """The first of what stands against a cell, or "ok"."""
    value, error = cell["value"], 2 * cell["stderr"]
    against = {
        "unstable": cell["margin"] >= 1,
        "diverged": cell["n_diverged"] > 0,
        "spikes": cell["spike"] > SPIKE,
        "still training": value < -error,
        "within error of 0": not abs(value) > error,
        str(cell["state"]): cell["state"] != "ok",
        "departs": abs(cell["departure"]) > 2 or cell["inflation"] > 2 * target,
    }
    return next((word for word, holds in against.items() if holds), "ok")
