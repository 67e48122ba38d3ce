"""Settings read off a calibration, and how precise and how long a run at them would be."""

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.results import check_whole

if TYPE_CHECKING:
    import xarray as xr

LOSS_COST = 0.5
"""A loss's work beside that of a loss with its gradient: weights that stay need none, so the way back costs as the way there."""
SLOW = ("not mixed", "few draws", "within error of 0")
"""Verdicts that more draws may mend."""


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
    return settings(fields, *(float(best[name]) for name in ("nbeta", "gamma", "epsilon")), draws=int(best["draws_needed"]))


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


def settings(
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
