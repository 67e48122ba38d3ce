"""Claims C19 and C20: do coefficients hang on the settings of the sampler, on the sampler, on the seed?

    tau             Kendall's of the order of all heads' coefficients at T under two settings
    trend           mean coefficient of all heads at T less that at the end of LM2
    gamma by norm   gamma / (rms of a head's weights / 0.1)^2, so that noise stays the same share of weights as these grow
    quadratic       the coefficient if the loss were quadratic: ``local_estimate`` of ``circuits.complexity.nulls``

Both read ``rllc_mix_grid`` from the evidence: ``value`` and ``stderr`` on the training mix, ``(step, setting, layer, head)``,
settings by the names of ``SETTINGS``. No command makes it: ``sampled_grid`` does. C19's trend needs the end of LM2 among its
steps.

C20 asks the claims of each seed by itself. Where a claim holds of a seed by chance with probability .05 at most, it holds of k
of n by chance as often as a binomial of .05 has k.

Source: table of claims of this package; settings around those of Wang et al. 2024, appendix F; samplers: Hitchcock & Hoogland
2025.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.complexity.rllc import RLLC
from circuits.crosscheck.claims_llc_composition import claim_c8
from circuits.crosscheck.claims_llc_curves import claim_c12
from circuits.crosscheck.claims_llc_reading import coefficients, each, final, known, of, result, roles, words_of
from circuits.crosscheck.claims_llc_statistics import normal, same_order
from circuits.crosscheck.claims_llc_texts import claim_c14
from circuits.crosscheck.claims_llc_times import stages
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import ALPHA, UNTESTABLE, Claim, Lacking, Reading, decide
from circuits.dynamics.coefficients import training_mix
from circuits.models.checkpoints import Checkpoints
from circuits.results import canonical

if TYPE_CHECKING:
    import xarray as xr

_BASE = sampler_config("laptop")
SETTINGS: Mapping[str, SamplerConfig] = {
    "base": _BASE,
    "gamma / 4": _BASE.changed(gamma=_BASE.gamma / 4),
    "gamma * 4": _BASE.changed(gamma=_BASE.gamma * 4),
    "nbeta / 3": _BASE.changed(nbeta=_BASE.nbeta / 3),
    "nbeta * 3": _BASE.changed(nbeta=_BASE.nbeta * 3),
    "epsilon / 2": _BASE.changed(epsilon=_BASE.epsilon / 2, thin=2),
    "gamma by norm": _BASE.changed(gamma_at_rms=0.1),
    "sgld": sampler_config("paper", burn_in=20),
    "rmsprop_sgld": sampler_config("paper", sampler="rmsprop_sgld", epsilon=1e-4, burn_in=20),
}
"""The settings of the shipped curves, changed one at a time; and samplers at the paper's settings, with steps of one length where
gradients are small (``rms_floor`` is a tenth)."""
AROUND = ("gamma / 4", "gamma * 4", "nbeta / 3", "nbeta * 3", "epsilon / 2")
CALL = "sampled_grid(run, steps) of circuits.crosscheck.claims_llc_transfer makes it: put it into Evidence.results"
SEEDS, SHARE = 3, 0.75
"""Seeds that C20 asks for, and in what share of them a claim must hold: all of three, three of four."""


def claim_c19(runs: Sequence[Evidence]) -> Claim:
    """Settings of the sampler."""
    return Claim(
        "C19",
        "The order of heads does not hang on the settings of the sampler, nor the trend on the growth of weights.",
        f"At T the least tau of the base setting with {', '.join(AROUND)} is at least .8; with gamma by norm the trend has "
        "the sign that it has at the base setting.",
        "Coefficients exchanged among heads.",
        "Table of claims of this package",
        (
            decide("least tau with the base setting", each(runs, _around), least=0.8),
            decide("trend with gamma by norm, in the direction of the base's", each(runs, _trend), least=0.0),
        ),
    )


def claim_c20(runs: Sequence[Evidence]) -> Claim:
    """Seeds and samplers."""
    three = (("C8", claim_c8), ("C12", claim_c12), ("C14", claim_c14))
    return Claim(
        "C20",
        "What holds of one seed holds of others, and of other samplers.",
        f"C8, C12 and C14 each hold, by themselves, in at least {SHARE:.0%} of {SEEDS} or more seeds: three of three. At T "
        "the least tau between SGLD, SGLD preconditioned by RMSProp, and the quadratic is at least .7.",
        "Claims that hold of a seed by chance; coefficients exchanged among heads.",
        "Table of claims of this package; Hitchcock & Hoogland 2025 (samplers)",
        (
            *(decide(f"share of seeds in which {name} holds", _held(runs, claim), least=SHARE) for name, claim in three),
            decide("least tau between samplers", each(runs, _samplers), least=0.7),
            decide("tau of the shipped coefficients with the quadratic", each(runs, _shipped), role="report"),
        ),
    )


def sampled_grid(
    run: Checkpoints, steps: Sequence[int] | None = None, settings: Mapping[str, SamplerConfig] = SETTINGS
) -> "xr.Dataset":
    """Every head's coefficient on the training mix under several settings: what C19 and C20 read as ``rllc_mix_grid``.

    Args:
        run: with training text. steps: checkpoints (default: the last). settings: by name.

    Returns:
        ``value``, ``stderr`` and ``state``, ``(step, setting, layer, head)``; NaN and "refused" where chains would diverge.

    Raises:
        ValueError: the run has no training text, or no such step.
    """
    import xarray as xr

    mix = training_mix(run)
    if mix is None:
        raise ValueError(f"{run.name} ships no training text; give it a corpus.safetensors")
    asked = list(run.steps[-1:] if steps is None else steps)
    grid = {"layer": np.arange(run.cfg.n_layers), "head": np.arange(run.cfg.n_heads)}
    shape = tuple(len(places) for places in grid.values())
    nothing = {"value": np.full(shape, np.nan), "stderr": np.full(shape, np.nan), "state": np.full(shape, "refused")}
    refused = xr.Dataset({name: (tuple(grid), values) for name, values in nothing.items()}, grid)

    def sampled(step: int, config: SamplerConfig) -> "xr.Dataset":
        model = run.at(step)
        try:
            return RLLC(mix, config, "mix")(model)[list(nothing)].drop_attrs()
        except ValueError:  # of settings that would diverge for a head: all others were validated before
            return refused

    rows = [xr.concat([sampled(step, config) for config in settings.values()], "setting") for step in asked]
    found = xr.concat(rows, "step").assign_coords(step=asked, setting=list(settings))
    config = canonical({name: one.model_dump() for name, one in settings.items()})
    return found.assign_attrs(measure="rllc_mix_grid", run=run.name, config=config)


def _setting(run: Evidence, name: str, step: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of all heads and their errors under a setting, at a step or at T."""
    if "rllc_mix_grid" not in run.results:
        raise Lacking(f"other settings were not sampled; {CALL}")
    data, at = result(run, "rllc_mix_grid"), int(roles(run)["step"]) if step is None else int(step)
    if name not in data["setting"].values or at not in data["step"].values:
        raise Lacking(f"rllc_mix_grid has no {name} at step {at}; {CALL}")
    asked = words_of(run, "all")[0]
    data = data.sel(setting=name, step=at)
    value, stderr = (known(f"rllc_mix_grid at {name}", of(data[part], asked), asked) for part in ("value", "stderr"))
    return value, stderr


def _least(run: Evidence, pairs: Mapping[str, tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]]) -> Reading:
    """The least tau of several pairs."""
    return min((same_order(*pair, f"{run.run}: {name}") for name, pair in pairs.items()), key=lambda one: one.value)


def _around(run: Evidence) -> Reading:
    base = _setting(run, "base")
    return _least(run, {name: (base, _setting(run, name)) for name in AROUND})


def _trend(run: Evidence) -> Reading:
    change = {}
    for name in ("base", "gamma by norm"):
        (first, a), (last, b) = _setting(run, name, stages(run).pause), _setting(run, name)
        change[name] = float(last.mean() - first.mean()), math.sqrt(float(np.square([a, b]).sum())) / len(a)
    (base, error), (normed, spread) = change["base"], change["gamma by norm"]
    if abs(base) <= 1.96 * error:
        raise Lacking("at the base setting there is no trend whose sign could be the same")
    return normal(float(np.copysign(1.0, base)) * normed, spread)


def _quadratic(run: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The quadratic coefficients of all heads and their errors; NaN where they are unbounded."""
    data = final(run, "nulls_mix")
    if "local_estimate" not in data["kind"].values:
        raise Lacking("nulls_mix has no local_estimate")
    asked, data = words_of(run, "all")[0], data.sel(kind="local_estimate")
    return of(data["value"], asked), of(data["stderr"], asked)


def _samplers(run: Evidence) -> Reading:
    ways = {"sgld": _setting(run, "sgld"), "rmsprop_sgld": _setting(run, "rmsprop_sgld"), "quadratic": _quadratic(run)}
    return _least(run, {f"{a} and {b}": (ways[a], ways[b]) for a, b in combinations(ways, 2)})


def _shipped(run: Evidence) -> Reading:
    return same_order(coefficients(run, "mix", words_of(run, "all")[0]), _quadratic(run))


def _held(runs: Sequence[Evidence], claim: Callable[[Sequence[Evidence]], Claim]) -> list[Reading | Lacking]:
    """In what share of runs a claim holds by itself; what is lacking, if those that can tell are fewer than ``SEEDS``."""
    from scipy.stats import binom

    each_alone = [(run.run, claim([run])) for run in runs]
    lacks = [Lacking(f"{name}: {found.name} is not testable") for name, found in each_alone if found.verdict == UNTESTABLE]
    n, k = len(runs) - len(lacks), sum(found.verdict == "holds" for _, found in each_alone)
    if n < SEEDS:
        return [Lacking(f"{n} of {len(runs)} runs can tell, and {SEEDS} are needed"), *lacks]
    return [Reading(k / n, p=float(binom.sf(k - 1, n, ALPHA)), least_p=ALPHA**n, note=f"{k} of {n}"), *lacks]
