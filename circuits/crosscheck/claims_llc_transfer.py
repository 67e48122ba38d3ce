"""Claims C19 and C20: do coefficients hang on the settings of the sampler, on the sampler, on the seed?

    tau             Kendall's of the order of all heads' coefficients at T under two settings
    trend           mean coefficient of heads at T less that in LM2, at its last checkpoint at which both were sampled
    gamma by norm   gamma / (rms of a head's weights / 0.1)^2, so that noise stays the same share of weights as these grow
    quadratic       the coefficient if the loss were quadratic: ``local_estimate`` of ``circuits.complexity.nulls``

Settings are those of ``circuits.complexity.grid``, on the training mix: ``rllc_mix_grid`` at T, and ``rllc_mix_by_norm`` at a few
checkpoints. A head whose state under a setting is not ok is left out there, and named.

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
from jaxtyping import Float

from circuits.complexity.grid import BY_NORM, CELLS
from circuits.crosscheck.claims_llc_composition import claim_c8
from circuits.crosscheck.claims_llc_curves import claim_c12
from circuits.crosscheck.claims_llc_reading import coefficients, each, final, of, result, words_of
from circuits.crosscheck.claims_llc_statistics import normal, same_order
from circuits.crosscheck.claims_llc_texts import claim_c14
from circuits.crosscheck.claims_llc_times import stages
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import ALPHA, UNTESTABLE, Claim, Lacking, Reading, decide
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr

Measured = tuple[np.ndarray, np.ndarray]
"""Coefficients of heads and their errors, NaN where there is none."""
AROUND = (*(name for name in CELLS if name != "base"), "epsilon / 2")
CALL = "circuits rllc RUN --what grid makes it"
SEEDS, SHARE = 3, 0.75
"""Seeds that C20 asks for, and in what share of them a claim must hold: all of three, three of four."""
FEWEST = 0.5
"""Share of heads that a setting must have left."""


def claim_c19(runs: Sequence[Evidence]) -> Claim:
    """Settings of the sampler."""
    return Claim(
        "C19",
        "The order of heads does not hang on the settings of the sampler, nor the trend on the growth of weights.",
        "At T the least tau of the base setting with any other of gamma * (1/4, 1, 4) and nbeta * (1/3, 1, 3), and with half the "
        "epsilon, is at least .8; with gamma by norm the trend has the sign that it has at the base setting.",
        "Coefficients exchanged among heads.",
        "Table of claims of this package",
        (
            decide("least tau with the base setting", each(runs, _around), least=0.8),
            decide("trend with gamma by norm, in the direction of the base's", each(runs, _trend), least=0.0),
            decide("tau of the base setting sampled twice: what errors leave", each(runs, _twice), role="report"),
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


def _sampled(run: Evidence, name: str, step: int | None = None) -> "xr.Dataset":
    """A result with settings, at a step or at T; NaN where the state is not ok."""
    if name not in run.results:
        raise Lacking(run.absent.get(name, f"{name} was not sampled; {CALL}"))
    data = final(run, name) if step is None else result(run, name).sel(step=step)
    return data[["value", "stderr"]].where(data["state"] == "ok")


def _setting(run: Evidence, name: str) -> Measured:
    """Coefficients of all heads under a setting, at T."""
    data, asked = _sampled(run, "rllc_mix_grid"), words_of(run, "all")[0]
    if name not in data["setting"].values:
        raise Lacking(f"rllc_mix_grid has no {name}; {CALL}")
    data = data.sel(setting=name)
    found = of(data["value"], asked), of(data["stderr"], asked)
    lost = _lost(np.array(found), asked)
    if len(lost) > (1 - FEWEST) * len(asked):
        raise Lacking(f"under {name} {len(lost)} of {len(asked)} heads are not ok")
    return found


def _lost(table: Float[np.ndarray, "*number head"], asked: Sequence[Head]) -> list[str]:
    """Heads that lack a number."""
    missing = np.flatnonzero(~np.isfinite(table).reshape(-1, len(asked)).all(0))
    return [str(asked[place]) for place in missing.tolist()]


def _least(run: Evidence, pairs: Mapping[str, tuple[Measured, Measured]]) -> Reading:
    """The least tau of several pairs, with which it is and which heads it is without."""
    asked = words_of(run, "all")[0]

    notes = {name: _without(f"{run.run}: {name}", _lost(np.array(pair), asked)) for name, pair in pairs.items()}
    return min((same_order(*pair, notes[name]) for name, pair in pairs.items()), key=lambda one: one.value)


def _without(told: str, lost: Sequence[str]) -> str:
    """A note, with the heads that are left out."""
    return f"{told}, without {', '.join(lost)}" if lost else told


def _around(run: Evidence) -> Reading:
    base = _setting(run, "base")
    return _least(run, {name: (base, _setting(run, name)) for name in AROUND})


def _twice(run: Evidence) -> Reading:
    return same_order(_setting(run, "base"), coefficients(run, "mix", words_of(run, "all")[0]))


def _trend(run: Evidence) -> Reading:
    """Over heads that are ok at both checkpoints, the same at both settings."""
    (name,), asked, at = BY_NORM, words_of(run, "all")[0], _in_lm2(run)
    normed = _table([_sampled(run, "rllc_mix_by_norm", step).sel(setting=name) for step in (at, None)], asked)
    base = _table([result(run, "rllc_mix").sel(step=at), final(run, "rllc_mix")], asked)
    lost = _lost(normed, asked)
    if len(lost) > (1 - FEWEST) * len(asked):
        raise Lacking(f"with {name} {len(lost)} of {len(asked)} heads are not ok")
    there = np.array([str(head) not in lost for head in asked])
    (change, spread), (usual, error) = (_change(table[..., there]) for table in (normed, base))
    if abs(usual) <= 1.96 * error:
        raise Lacking("at the base setting there is no trend whose sign could be the same")
    note = _without(f"{run.run}: from {at}; {usual:+.2g} at the base setting", lost)
    return normal(float(np.copysign(1.0, usual)) * change, spread, note)


def _in_lm2(run: Evidence) -> int:
    """The last checkpoint of LM2 at which gamma by norm was sampled."""
    if "rllc_mix_by_norm" not in run.results:
        raise Lacking(run.absent.get("rllc_mix_by_norm", f"rllc_mix_by_norm was not sampled; {CALL}"))
    found, steps = stages(run), result(run, "rllc_mix_by_norm")["step"].values
    inside = steps[(found.bigrams <= steps) & (steps <= found.pause)]
    if not len(inside):
        raise Lacking(f"with gamma by norm no checkpoint of LM2, {found.bigrams:g} to {found.pause:g}, was sampled")
    return int(inside.max())


def _table(both: "Sequence[xr.Dataset]", asked: Sequence[Head]) -> Float[np.ndarray, "time part head"]:
    """Coefficients and errors at two checkpoints."""
    return np.array([[of(data[part], asked) for part in ("value", "stderr")] for data in both])


def _change(table: Float[np.ndarray, "time part head"]) -> tuple[float, float]:
    """The change of the mean over heads, and its error."""
    (first, a), (last, b) = table
    return float((last - first).mean()), math.sqrt(float(np.square([a, b]).sum())) / len(a)


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
