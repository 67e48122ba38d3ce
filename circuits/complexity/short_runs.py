"""What a short run at one setting shows, and what speaks against that setting."""

import math
from typing import Any

import numpy as np
import torch

from circuits.complexity.acceptance import COUNTED, SETTLING, acceptance
from circuits.complexity.chains import Loss, run_chains
from circuits.complexity.config import STABLE, SamplerConfig
from circuits.complexity.diagnostics import ENOUGH, Estimate, estimate
from circuits.complexity.proposal import gradients

SPIKE = 6.0
"""A loss this many interquartile ranges above the upper quartile is a spike: twice Tukey's outer fence, as losses are skewed."""
SPARE = 1.5
"""Effective draws are themselves estimated: so many times the least number are asked for."""


def cell(loss: Loss, config: SamplerConfig, at: int, curvature: float, target: float) -> dict[str, Any]:
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


def departures(found: dict[str, np.ndarray], coords: dict[str, np.ndarray]) -> np.ndarray:
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


def verdict(cell: dict[str, Any], target: float) -> str:
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
