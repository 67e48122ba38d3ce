"""Claims 4 and 6 to 8 about circuits: do heads copy and match by their weights, and in use?

    copying       sum of eigenvalues / sum of their moduli of the token circuit W_E W_V W_O W_U (``circuits.weights.spectra``)
    K-term        the same of W_E W_Q^l (W_E W_V^e W_O^e W_K^l)^T, e the strongest previous-token head, l a head of layer 1
    QK trace      traces of the K-terms of all earlier heads, weighed by their attention to the previous token

Everything is read at the last checkpoint. These are functions of the weights and have no error within a run: their intervals are
of heads as a sample where that is said, their p come from random heads or from exchange of heads.

Sources: Elhage et al. 2021 (copying, "How induction heads work"); Olsson et al. 2022, argument 4 and "trace of QK eigenvalues";
bounds: ``docs/decisions/0012``.
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from circuits.crosscheck.claims_circuits_reading import (
    at_end,
    circuit,
    correlated,
    examples_of,
    measured,
    number,
    of_one_layer,
)
from circuits.crosscheck.claims_llc_reading import each, final, result
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim, Lacking, Reading, decide

if TYPE_CHECKING:
    import xarray as xr

COPIES = 5.0
"""Standard deviations of random heads."""
CORNER = 0.7
FRAMEWORK = "Elhage et al. 2021"


def claim_4(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Heads of one layer copy."""

    def copiers(run: Evidence, choose: Callable[[np.ndarray], int]) -> Reading:
        data = result(run, "weight_spectra").sel(statistic="ov_copying")
        z = data["z"].transpose("step", "layer", "head").values.astype(np.float64).reshape(data.sizes["step"], -1)
        if not np.isfinite(z).all():
            raise Lacking("copying of its weights was measured without random heads")
        beyond = (z > COPIES).sum(1)
        at = choose(beyond)
        hits, n, p = int(beyond[at]), z.shape[1], number(data.attrs.get("smallest_p", np.nan))
        told = f"z at step {int(data['step'].values[at])}: {', '.join(f'{x:.1f}' for x in np.sort(z[at])[::-1])}"
        # None of the random heads lies beyond, so that another does with at most this p.
        return Reading(float(2 * hits - n), p=float(binom.sf(hits - 1, n, p)), least_p=float(p**n), note=told)

    def last(run: Evidence) -> Reading:
        at_end(run, "weight_spectra")
        return copiers(run, lambda beyond: -1)

    quantity = "heads that copy less heads that do not"
    return Claim(
        "circuits 4",
        "Most heads of a one-layer model copy.",
        f"At the last checkpoint more heads than not have copying above {COPIES:g} standard deviations of random heads.",
        "Random heads of the same shapes with the model's own embeddings; the first checkpoint.",
        f"{FRAMEWORK}, Copying / primitive in-context learning",
        (
            decide(quantity, of_one_layer(one_layer, last), least=1.0, published=f"8: 10 of 12 heads copy ({FRAMEWORK})"),
            decide(
                f"{quantity}, first checkpoint", of_one_layer(one_layer, lambda run: copiers(run, lambda _: 0)), role="report"
            ),
            decide(
                f"{quantity}, when most do",
                of_one_layer(one_layer, lambda run: copiers(run, lambda beyond: int(beyond.argmax()))),
                role="report",
            ),
        ),
    )


def claim_6(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Copying in weights and in use."""

    def read(run: Evidence) -> Reading:
        weights = at_end(run, "weight_spectra")["value"].sel(statistic="ov_copying")
        use = at_end(run, "copying_scores")["value"].sel(detector="copying")
        return correlated(_table(weights), _table(use))

    return Claim(
        "circuits 6",
        "Copying of the OV circuit goes with copying in use.",
        "Pearson's correlation over heads of copying of the weights with the copying score on random tokens is at least .7.",
        "Heads exchanged within their layers.",
        "Olsson et al. 2022, model analysis table (copying evaluator)",
        (decide("correlation over heads", each(seeds, read), least=0.7, published='"strong" (Olsson et al. 2022)'),),
    )


def claim_7(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Prefix matching in weights and in use."""

    def both(run: Evidence) -> tuple[np.ndarray, "xr.Dataset"]:
        trace = at_end(run, "weight_spectra")["value"].sel(statistic="qk_trace").isel(layer=slice(1, None))
        if not trace.sizes["layer"]:
            raise Lacking("it has one layer, whose heads have no earlier ones to weigh")
        return _table(trace), at_end(run, "attention_scores").sel(detector="prefix_matching").isel(layer=slice(1, None))

    def correlation(run: Evidence) -> Reading:
        trace, scores = both(run)
        return correlated(trace, _table(scores["value"]))

    def negative(run: Evidence) -> Reading:
        trace, scores = both(run)
        below = trace < 0
        if not below.any():
            raise Lacking("no head has a negative trace")
        value, stderr = (_table(scores[name])[below] for name in ("value", "stderr"))
        worst, chance = int(value.argmax()), number(scores["chance"])
        told = f"{int(below.sum())} heads"
        return measured(float(value[worst]) / chance, float(stderr[worst]) / chance, examples_of(scores), told)

    return Claim(
        "circuits 7",
        "The trace of the QK circuit behind previous-token attention foretells prefix matching.",
        "Pearson's correlation over heads of layer 1 and later is at least .7; heads with a negative trace have at most three "
        "times the prefix matching of uniform attention.",
        "Heads exchanged within their layers; uniform attention.",
        "Olsson et al. 2022, model analysis table (trace of QK eigenvalues)",
        (
            decide("correlation over heads", each(seeds, correlation), least=0.7),
            decide("largest prefix matching of heads with a negative trace, over chance", each(seeds, negative), most=3.0),
        ),
    )


def claim_8(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """The corner of both spectra."""

    def corner(run: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """The lesser statistic and the larger p of every head of the layer, which are induction heads, and the smallest p."""
        previous, found = circuit(run)
        ov = final(run, "weight_spectra").sel(statistic="ov_copying", layer=found[0].layer)
        term = final(run, "k_term_copying").sel(src_layer=previous.layer, src_head=previous.head, dst_layer=found[0].layer)
        both, p = (np.stack([ov[name].values, term[name].values]).astype(np.float64) for name in ("value", "p"))
        least_p = max(number(data.attrs.get("smallest_p", np.nan)) for data in (ov, term))
        return both.min(0), p.max(0), np.isin(ov["head"].values, [head.head for head in found]), least_p

    def inside(run: Evidence) -> Reading:
        lesser, p, ours, least_p = corner(run)
        return Reading(float(lesser[ours].min()), p=float(p[ours].max()), least_p=least_p)

    def others(run: Evidence) -> Reading:
        lesser, _, ours, _ = corner(run)
        if ours.all():
            raise Lacking("all heads of the layer are induction heads")
        return _among(float(lesser[~ours].max()), lesser, ours)

    return Claim(
        "circuits 8",
        "Induction heads, and no others, copy and match what the previous-token head moved, by both spectra.",
        f"Of copying and K-term the lesser is at least {CORNER} for every induction head and less for every other head of its "
        "layer.",
        "Random heads for the induction heads; which heads of the layer are induction heads, exchanged, for the others.",
        f"{FRAMEWORK}, How induction heads work",
        (
            decide("lesser of copying and K-term, least of the induction heads", each(seeds, inside), least=CORNER, every=True),
            decide("lesser of copying and K-term, largest of the others", each(seeds, others), most=CORNER, every=True),
        ),
    )


def _table(data: "xr.DataArray") -> np.ndarray:
    return data.transpose("layer", "head").values.astype(np.float64)


def _among(value: float, scores: np.ndarray, ours: np.ndarray) -> Reading:
    """How often exchanged labels keep those without them as low: only where labels lie on the largest scores."""
    n, k = len(scores), int(ours.sum())
    # The others are at most this low where every larger score is labelled.
    larger = int((scores > value).sum())
    p = comb(n - larger, k - larger) / comb(n, k) if larger <= k else 1.0
    return Reading(value, p=p, least_p=1 / comb(n, k))
