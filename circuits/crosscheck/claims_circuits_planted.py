"""Claims 22 and 24 about circuits: detectors on models of which all is known, untrained and planted, live and in seconds.

    called    the support of some attention detector is at least .2, by two standard errors (``circuits.detectors.classify``)
    area      under the ROC curve: the share of pairs, one with and one without what is looked for, that a score has in this order

Untrained models have the layers and heads of ``claims_circuits_exact``; planted ones are those of ``models.planted``, and pairs
with a channel those of ``circuits.weights.calibration``. Tests of the library say the same of more cases:
``tests/science/test_planted.py``, ``test_nulls.py``, ``test_composition.py``.

Sources: Merullo et al. 2024 and Yamagiwa et al. 2026 (components, subspaces).
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom, binomtest

from circuits.crosscheck.claims_circuits_exact import ROUNDING, Shape, against, config, shapes
from circuits.crosscheck.claims_circuits_reading import NORMAL
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.partitions import tail
from circuits.crosscheck.verdict import Check, Claim, Reading, decide
from circuits.detectors.attention import DETECTORS, AttentionScores
from circuits.detectors.classify import NO_ROLE, classify
from circuits.models.planted import PLANTED, planted_model, uniform_model
from circuits.models.random_init import random_twins
from circuits.weights.calibration import channel_auc

if TYPE_CHECKING:
    import xarray as xr

RATE = 0.01
UNTRAINED = 368
"""Untrained heads: if none is called, their rate is below ``RATE`` by a two-sided interval of 95%."""
NOISES = (0.1, 0.2, 0.4)
WIDTHS = (1, 2, 4)
PAIRS = 100


def claim_22(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """What detectors say of nothing."""
    found = AttentionScores(examples=4, groups=4, null_seeds=0)(uniform_model())
    value, chance = found.value.sel(layer=0, head=0).values, found.chance.values
    off, wrong = np.abs(value[:, None] - chance), np.abs(chance[:, None] - chance) > ROUNDING  # two have one chance
    uniform = against(float(off.diagonal().max()), off[wrong].tolist(), ROUNDING)
    return Claim(
        "circuits 22",
        "Detectors call no head of an untrained model, and their chance levels are the scores of uniform attention.",
        f"Of untrained heads a share below {RATE:g} is called by any detector; scores of uniform attention are the stated "
        f"chance to {ROUNDING:g}.",
        "Chance levels of the other detectors.",
        "this package, on its own detectors",
        (
            *(_untrained(shape, UNTRAINED) for shape in shapes(seeds, one_layer)),
            decide(f"largest difference from chance over {len(DETECTORS)} scores, uniform attention", [uniform], most=ROUNDING),
        ),
    )


@lru_cache
def _untrained(shape: Shape, heads: int) -> Check:
    """How many of so many untrained heads, of models of this shape, are called something."""
    import xarray as xr

    cfg = config(shape, d_model=8 * shape.heads, n_ctx=64, d_vocab=256)
    measure = AttentionScores(examples=8, groups=4, null_seeds=0)
    models = ceil(heads / (shape.layers * shape.heads))
    scores: list[xr.Dataset] = [measure(model) for model in random_twins(cfg, models)]
    roles = classify(xr.concat(scores, "step", combine_attrs="override")).role.values.ravel()
    called, n = int((roles != NO_ROLE).sum()), len(roles)
    ends = binomtest(called, n).proportion_ci(0.95, "exact")
    p = Reading(called / n, float(ends.low), float(ends.high), float(binom.cdf(called, n, RATE)), (1 - RATE) ** n)
    return decide(f"share of {n} untrained heads that are called, {shape}", [p], most=RATE)


def claim_24(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Planted circuits, the same for all runs."""
    return _planted(PAIRS, NOISES)


@lru_cache(maxsize=1)
def _planted(pairs: int, noises: tuple[float, ...]) -> Claim:
    """The claim, by so many pairs for each channel, and with these noises of the model."""
    measure = AttentionScores(examples=4, groups=4, null_seeds=0)
    exact = measure(planted_model())
    found, expected = classify(exact).role.values.ravel(), _planted_roles()
    right = float(np.mean(found == expected))
    exchanged = np.random.default_rng(0).permuted(np.tile(expected, (9_999, 1)), axis=1)
    p, least_p = tail(right, (exchanged == found).mean(1), every=False)
    worst, places, kinds = float(_planted_areas(exact).min()), len(expected), len(set(PLANTED.values()))
    # All areas are as large where every planted head, placed anywhere, has at most the worst one's rank.
    rank = 1 + ceil((1 - worst) * (places - 1))
    best = Reading(worst, p=(rank / places) ** kinds, least_p=(1 / places) ** kinds)
    noisy = [(noise, _planted_areas(measure(planted_model(noise=noise)))) for noise in noises]
    channels = {width: channel_auc("1/sqrt(i)", width, pairs=pairs) for width in WIDTHS}

    def gain(name: str, width: int) -> Reading:
        data = channels[width]
        ours, plain = (data.sel(score=score) for score in (name, "squared"))
        value, error = float(ours.value - plain.value), float(np.hypot(ours.stderr, plain.stderr))
        return Reading(
            value, value - NORMAL * error, value + NORMAL * error, note=f"{float(ours.value):.3f} and {float(plain.value):.3f}"
        )

    narrow = [
        decide(f"area by {name} less area by the score, channel of {width}", [gain(name, width)], least=0.0)
        for width in WIDTHS
        for name in ("strongest", "kernel")
    ]
    return Claim(
        "circuits 24",
        "Detectors find the planted heads and no others; narrow channels show in single components and subspaces, not in the "
        "score.",
        "All heads of the planted model get their role, and each detector's planted head is above all others (area under the "
        "curve 1); of pairs with a channel of 1 to 4 shared directions, the strongest pair of components and the projection "
        "kernel tell more from pairs without than the score does.",
        "Heads of other kinds, a decoy that looks back; pairs without a channel; noise, which is reported.",
        "this package; Merullo et al. 2024; Yamagiwa et al. 2026",
        (
            decide("share of planted heads with the right role", [Reading(right, p=p, least_p=least_p)], least=1.0),
            decide("least area under the curve of a detector", [best], least=1.0),
            *(decide(f"mean area, noise {noise}", [Reading(float(area.mean()))], role="report") for noise, area in noisy),
            *narrow,
        ),
    )


def _planted_roles() -> np.ndarray:
    """The roles of ``planted_model``, by its docstring."""
    first = ["previous token", "duplicate token", "current token", "first token", "positional", NO_ROLE]
    return np.array([*first, "induction", *[NO_ROLE] * 5])


def _planted_areas(scores: "xr.Dataset") -> np.ndarray:
    """Area under the curve of every detector's planted head among all heads."""
    areas = []
    for detector, head in PLANTED.items():
        value = scores.value.sel(detector=detector)
        ours = float(value.sel(layer=head.layer, head=head.head))
        others = np.delete(value.values.ravel(), head.layer * value.sizes["head"] + head.head)
        areas.append(np.mean(others < ours) + np.mean(others == ours) / 2)
    return np.array(areas)
