"""Claims 9 and 10 about circuits: which heads compose.

    score    ||A B|| / (||A|| ||B||) of what one head writes and what another reads (``circuits.weights.composition``)
    z        of its square, under random orientation of matrices with the two heads' own spectra
    chance   the mean score of heads with Gaussian weights, about 1 / sqrt(d): the constant that papers subtract

Pairs of claim 9 are those of the layers of the previous-token head and the induction heads, Q, K and V. Scores are functions of
the weights and have no error within a run. Their ranks are judged among other pairs, shares of pairs by leaving out heads.
Excluded: pairs with a layer in which neither a previous-token nor an induction head was found (claim 9).

Sources: Elhage et al. 2021, Two-layer models (with the erratum on the figure); bounds that are ours: ``docs/decisions/0012``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from circuits.crosscheck.claims_circuits_reading import at_end, circuit, jackknifed, number
from circuits.crosscheck.claims_llc_reading import each, final
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim, Lacking, Reading, decide

if TYPE_CHECKING:
    import xarray as xr

MODES = ("Q", "K", "V")
OUTSTANDING = 5.0
FRAMEWORK = "Elhage et al. 2021"


def claim_9(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """The pair that stands out."""

    def pairs(run: Evidence) -> tuple["xr.Dataset", np.ndarray, float, str]:
        """All pairs of the two layers, which are ours ``[mode, src_head, dst_head]``, the smallest p, and names."""
        previous, found = circuit(run)
        data = final(run, "composition")
        layers = data.sel(src_layer=previous.layer, dst_layer=found[0].layer).transpose("mode", "src_head", "dst_head")
        reader = np.isin(layers["dst_head"].values, [head.head for head in found])
        ours = (layers["mode"].values == "K")[:, None, None] & (layers["src_head"].values == previous.head)[:, None] & reader
        told = f"{previous} -> {', '.join(map(str, found))}"
        return layers, ours, number(data.attrs.get("smallest_p", np.nan)), told

    def rank(run: Evidence) -> Reading:
        data, ours, _, told = pairs(run)
        score = data["value"].values.astype(np.float64)
        best, among = float(score[ours].max()), score[data["mode"].values == "K"]
        return _rank(int((among >= best).sum()), among.size, int(ours.sum()), f"{told}: {best:.3f}")

    def z(run: Evidence) -> Reading:
        data, ours, least_p, told = pairs(run)
        at = data["z"].values[ours].argmax()
        p = min(1.0, int(ours.sum()) * number(data["p"].values[ours][at]))
        return Reading(number(data["z"].values[ours][at]), p=p, least_p=int(ours.sum()) * least_p, note=told)

    def margin(run: Evidence) -> Reading:
        data, ours, _, _ = pairs(run)
        best = number(data["z"].values[ours].max())
        rest = data["z"].values[data["mode"].values != "K"].astype(np.float64)
        found = _rank(1 + int((rest >= best).sum()), 1 + rest.size, int(ours.sum()))
        return replace(found, value=best - float(rest.max()))

    def areas(run: Evidence) -> Reading:
        data, ours, _, _ = pairs(run)
        by_z, by_score = (_area(data[name].values[ours], data[name].values[~ours]) for name in ("z", "value"))
        return Reading(by_z - by_score, note=f"area under the curve {by_z:.3f} by z, {by_score:.3f} by the score less a constant")

    return Claim(
        "circuits 9",
        "K-composition of the previous-token head into induction heads is the one that stands out.",
        f"It is the largest K-composition of the two layers; its z under random orientation is at least {OUTSTANDING:g}, and "
        "larger than every z of Q- and V-composition there. The constant of Gaussian heads, which papers subtract, ranks "
        "pairs as their plain score does.",
        "All other pairs of the two layers; random orientation with the same spectra.",
        f"{FRAMEWORK}, Two-layer models, figure on composition (corrected)",
        (
            decide(
                "rank of the pair among K pairs", each(seeds, rank), most=1.0, every=True, published=f"the only one ({FRAMEWORK})"
            ),
            decide("z of the pair", each(seeds, z), least=OUTSTANDING),
            decide("z of the pair less the largest of Q and V", each(seeds, margin), least=0.0),
            decide("area under the curve by z less that by the score", each(seeds, areas), role="report"),
        ),
    )


def claim_10(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Most pairs compose less than random ones."""

    def below(modes: Sequence[str], run: Evidence) -> Reading:
        data = at_end(run, "composition").sel(mode=list(modes))
        chance = number(data["chance"])
        values = data["value"].transpose("mode", "src_layer", "src_head", "dst_layer", "dst_head").values.astype(np.float64)
        known = np.argwhere(np.isfinite(values).any((0, 2, 4)))
        if len(known) != 1:
            return _share_below(values, chance)
        src, dst = known[0]
        pairs = values[:, src, :, dst]
        return jackknifed((pairs < chance).astype(float), f"median over chance {np.median(pairs) / chance:.2f}")

    def of(*modes: str) -> list[Reading | Lacking]:
        return each(seeds, lambda run: below(modes, run))

    return Claim(
        "circuits 10",
        "Most pairs of heads compose less than random heads of their shapes.",
        "More than half of all pairs, Q, K and V together, have scores below the mean score of Gaussian heads, about 1 / "
        "sqrt(d).",
        "Gaussian heads; half of all pairs.",
        f"{FRAMEWORK}, footnote on composition (most heads have a much smaller composition than random)",
        (
            decide("share of pairs below random", of(*MODES), least=0.5, published="most, without a number"),
            *(decide(f"share of pairs below random, {mode}", of(mode), role="report") for mode in MODES),
        ),
    )


def _share_below(values: np.ndarray, chance: float) -> Reading:
    """Over several pairs of layers, whose heads take part in many pairs: the share, without an error."""
    known = values[np.isfinite(values)]
    if not len(known):
        raise Lacking("composition has no pair of heads with a value")
    return Reading(float((known < chance).mean()))


def _rank(rank: int, of: int, ours: int, note: str = "") -> Reading:
    """A rank, and p for the best of ``ours`` pairs: at most the sum of each one's."""
    return Reading(float(rank), p=min(1.0, ours * rank / of), least_p=min(1.0, ours / of), note=note)


def _area(inside: np.ndarray, outside: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([inside, outside]))
    return float((ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))
