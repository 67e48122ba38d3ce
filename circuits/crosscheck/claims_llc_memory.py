"""Claims C13, C16 and C18: do coefficients measure what heads have memorised, and when?

    count              multigrams that ``circuits.detectors.multigrams`` finds on one half of the text and holds to the other,
                       at T; the rule is frozen and ours, as the paper's is not public; a count has the error of a count
    partial            correlation of ranks with others held fixed; R^2 of a least-squares fit across heads (``explained``)
    peaks, by chance   of two curves, at checkpoints drawn at random: the share of pairs of checkpoints that are as claimed

p of correlations is by exchange among heads of a run. A peak lies between the checkpoints beside the highest one, and its time is
known no better than that. The end of LM2: ``claims_llc_times``.

Source: Wang et al. 2024, sections 4 and 5, figure 1, appendix B; C16 after J. Hoogland (AXRP); rivals after the paper's reviews.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from circuits.crosscheck.claims_llc_curves import FIGURE, RIVALS
from circuits.crosscheck.claims_llc_reading import coefficients, counted, each, heads, known, of, result, simpler, words_of
from circuits.crosscheck.claims_llc_statistics import normal, redrawn, spearman
from circuits.crosscheck.claims_llc_times import stages
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.explained import explained_share, partial_spearman
from circuits.crosscheck.verdict import Claim, Lacking, Reading, decide
from circuits.models.heads import Head

OTHERS = ("ablation_loss", "weight_norm")
"""Held fixed in C13."""


def claim_c13(runs: Sequence[Evidence]) -> Claim:
    """Memorised multigrams."""
    return Claim(
        "C13",
        "The more multigrams a head has memorised, the larger its coefficient.",
        "Across multigram heads of both layers Spearman's correlation of the coefficient at T with the count is at least .6; "
        "and above 0 with the loss by ablation and the norm of weights held fixed.",
        "Counts exchanged among these heads; ablation loss and norm as other explanations; all heads, whatever their roles.",
        "Wang et al. 2024, figure 1 and appendix B",
        (
            decide("Spearman of coefficient and count", each(runs, partial(_ranks, _multigram)), least=0.6, published=FIGURE),
            decide("the same given ablation loss and norm", each(runs, partial(_given, OTHERS, _multigram)), least=0.0),
            decide("Spearman, multigram in the wide sense", each(runs, partial(_ranks, _wide)), role="report"),
            decide("control: Spearman, all heads", each(runs, partial(_ranks, _every)), role="report"),
        ),
    )


def claim_c16(runs: Sequence[Evidence]) -> Claim:
    """Coefficients against the one-layer model."""
    parts: tuple[tuple[str, Callable[[bool, Evidence], Reading], tuple[float, float]], ...] = (
        ("time of layer 0's peak over the end of LM2", _peak, (0.5, 1.5)),
        ("share by which layer 0 declines from its peak to T", _decline, (0.1, np.inf)),
        ("time of layer 1's peak over that of layer 0", _later, (1.5, np.inf)),
    )
    return Claim(
        "C16",
        "Measured against a one-layer model, multigram heads of layer 0 are most complex when LM2 ends, those of layer 1 later.",
        "Mean coefficients, over multigram heads, of the divergence from the one-layer run: layer 0 peaks within .5 to 1.5 "
        "of the end of LM2 and ends at least a tenth lower; layer 1 peaks at least 1.5 times later.",
        "Both peaks at checkpoints drawn at random.",
        "Wang et al. 2024, section 5; J. Hoogland, AXRP",
        (
            *(decide(name, each(runs, partial(read, False)), least=low, most=high) for name, read, (low, high) in parts),
            *(decide(f"{name}, wide", each(runs, partial(read, True)), role="report") for name, read, _ in parts),
        ),
    )


def claim_c18(runs: Sequence[Evidence]) -> Claim:
    """What simpler measures leave over."""
    return Claim(
        "C18",
        "Coefficients say something of memorising that simpler measures do not.",
        f"Across multigram heads the coefficient at T correlates with the count once {', '.join(RIVALS)} are held fixed: partial "
        "Spearman above 0, p at most .05. R^2 of the coefficient by these, across all heads, is reported.",
        "What is left of the counts exchanged among heads; random columns for R^2.",
        "Reviews of Wang et al. 2024",
        (
            decide("partial Spearman with count, multigram heads", each(runs, partial(_given, RIVALS, _multigram)), least=0.0),
            decide("R^2 by simpler measures, all heads", each(runs, _explained), role="report"),
            decide("partial Spearman with count, all heads", each(runs, partial(_given, RIVALS, _every)), role="report"),
        ),
    )


def _multigram(run: Evidence) -> list[Head]:
    return heads(run, "multigram")


def _wide(run: Evidence) -> list[Head]:
    return heads(run, "multigram", wide=True)


def _every(run: Evidence) -> list[Head]:
    return words_of(run, "all")[0]


def _ranks(which: Callable[[Evidence], list[Head]], run: Evidence) -> Reading:
    asked = which(run)
    x, y = coefficients(run, "mix", asked), counted(run, asked)
    found = partial_spearman(x[0], y[0], np.empty((len(asked), 0)))
    if not np.isfinite(found.value):
        raise Lacking(f"{len(asked)} heads are too few for a correlation" if len(asked) < 4 else found.reason)
    low, high = redrawn(spearman, x, y)
    return Reading(found.value, max(low, -1.0), min(high, 1.0), found.p, found.smallest, f"{run.run}: {len(asked)} heads")


def _given(kinds: Sequence[str], which: Callable[[Evidence], list[Head]], run: Evidence) -> Reading:
    asked = which(run)
    (x, _), (y, _) = coefficients(run, "mix", asked), counted(run, asked)
    found = partial_spearman(x, y, simpler(run, asked, kinds))
    if not np.isfinite(found.value):
        raise Lacking(found.reason)
    return Reading(found.value, p=found.p, least_p=found.smallest, note=f"{run.run}: {len(asked)} heads")


def _explained(run: Evidence) -> Reading:
    asked = _every(run)
    found = explained_share(coefficients(run, "mix", asked)[0], simpler(run, asked, RIVALS))
    if not np.isfinite(found.value):
        raise Lacking(found.reason)
    note = f"{run.run}: foretold {found.foretold:.2f}, chance {found.chance:.2f}"
    return Reading(found.value, p=found.p, least_p=found.smallest, note=note)


def _mean_curve(run: Evidence, layers: str, wide: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, the mean coefficient of multigram heads against the one-layer run, and its error."""
    asked, data = heads(run, "multigram", layers, wide=wide), result(run, "rllc_mix_kl")
    value, stderr = (known("rllc_mix_kl", of(data[part], asked), asked) for part in ("value", "stderr"))
    return data["step"].values.astype(float), value.mean(1), np.sqrt(np.square(stderr).sum(1)) / len(asked)


def _peaks(wide: bool, run: Evidence) -> tuple[np.ndarray, int, int, float, tuple[float, float]]:
    """Steps, the places of both layers' peaks, the end of LM2, p and the smallest p."""
    steps, early, _ = _mean_curve(run, "L0", wide)
    _, late, _ = _mean_curve(run, "L1", wide)
    i, j, end = int(early.argmax()), int(late.argmax()), stages(run).pause
    as_claimed = (steps >= 0.5 * end) & (steps <= 1.5 * end)
    fits = as_claimed[:, None] & (steps >= 1.5 * steps[:, None])
    chance = float(fits.mean())
    # Where no pair of checkpoints is as claimed, none could have shown it.
    return steps, i, j, end, (chance if fits[i, j] else 1.0, chance or 1.0)


def _around(steps: np.ndarray, i: int) -> tuple[float, float]:
    return float(steps[max(i - 1, 0)]), float(steps[min(i + 1, len(steps) - 1)])


def _peak(wide: bool, run: Evidence) -> Reading:
    steps, i, _, end, (p, least_p) = _peaks(wide, run)
    before, after = _around(steps, i)
    note = f"{run.run}: peak at {steps[i]:g}, LM2 ends at {end:g}"
    return Reading(float(steps[i] / end), before / end, after / end, p, least_p, note)


def _decline(wide: bool, run: Evidence) -> Reading:
    _, value, error = _mean_curve(run, "L0", wide)
    i = int(value.argmax())
    if value[i] <= 0:
        raise Lacking("the coefficient against the one-layer run is never above 0")
    left = float(value[-1] / value[i])
    spread = float(np.hypot(error[-1], left * error[i]) / value[i]) if i < len(value) - 1 else 0.0
    return normal(1 - left, spread)


def _later(wide: bool, run: Evidence) -> Reading:
    steps, i, j, _, (p, least_p) = _peaks(wide, run)
    if steps[i] <= 0:
        raise Lacking("layer 0 peaks at step 0")
    (before, after), (from_, to) = _around(steps, i), _around(steps, j)
    note = f"{run.run}: peaks at {steps[i]:g} and {steps[j]:g}"
    return Reading(float(steps[j] / steps[i]), from_ / after, to / max(before, 1.0), p, least_p, note)
