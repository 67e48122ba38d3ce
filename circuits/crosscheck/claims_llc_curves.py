"""Claims C10 to C12: do curves of weight-refined coefficients tell types of heads apart?

    Q / (n - 1)     sum_i (y_i - ybar)^2 / stderr_i^2 over heads, per degree: 1 where they differ by errors alone (``separation``)
    F               between roles over within roles, of the heads of one layer
    ARI             adjusted Rand index of the clusters of a layer's curves with its roles: k-means of standardised curves weighed
                    by log time, k the number of roles in the layer, fixed beforehand (``cluster_agreement``)
    rank-biserial   (pairs with a > b, less pairs with a < b) / all pairs

p is by exchange of roles among heads of a run; intervals within a run are for errors of sampling, as heads of a run are all
there are. Coefficients are those of the training mix; "none" is a role like others, and heads whose role is not known are left
out.

Source: Wang et al. 2024, section 4, figure 1; norms, traces, noise and ablation as rivals after its reviews. Its number of
clusters and its values per head are not public, so bounds are those of this package's table of claims.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.claims_llc_reading import LAYERS, coefficients, each, heads, known, of, result, roles, words_of
from circuits.crosscheck.claims_llc_statistics import above, f_ratio, redrawn
from circuits.crosscheck.cluster_agreement import compare
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.partitions import sign_test
from circuits.crosscheck.separation import rank_biserial, separation
from circuits.crosscheck.verdict import ALPHA, UNTESTABLE, Check, Claim, Lacking, Reading, Verdict, decide

if TYPE_CHECKING:
    import xarray as xr

RIVALS = ("weight_norm", "fisher_trace", "hessian_trace", "ablation_loss", "noise_loss")
"""Simpler measures of the same weights on the same text."""
DRAWS = 200
"""Of curves, for the intervals of clusterings."""
FIGURE = "stated without a number (Wang et al. 2024, figure 1)"


def claim_c10(runs: Sequence[Evidence]) -> Claim:
    """Differentiation."""
    end = (
        decide(f"F of roles at T, {layers}", each(runs, partial(_types, layers)), least=5.0, log=True, alpha=0.01)
        for layers in LAYERS
    )
    return Claim(
        "C10",
        "Coefficients of heads are alike at the start and differ by type at the end.",
        "At the first checkpoint heads of a layer differ by errors of sampling alone (Q, p at least .05); at T their roles "
        "are apart with F at least 5, p at most .01. How large the spread at the start is beside that at T is reported.",
        "Errors alone at the start; roles exchanged among the heads of a layer at T.",
        "Wang et al. 2024, section 4",
        (
            *(_alike(runs, layers) for layers in LAYERS),
            *end,
            *(
                decide(f"sd between heads, first checkpoint / T, {layers}", each(runs, partial(_spreads, layers)), role="report")
                for layers in LAYERS
            ),
        ),
    )


def claim_c11(runs: Sequence[Evidence]) -> Claim:
    """Clusters of curves."""
    made: dict[int, xr.Dataset] = {}

    def compared(layers: str, run: Evidence) -> "xr.Dataset":
        layer = words_of(run, layers)[0][0].layer
        if id(run) not in made:
            made[id(run)] = _compared(run)
        return made[id(run)].isel(clustering=0, scaling=0).sel(layer=layer)

    def recovered(layers: str, run: Evidence) -> Reading:
        found = compared(layers, run).isel(curve=0)
        if not np.isfinite(found["value"]):
            raise Lacking(f"curves of {layers} cannot be clustered: {found['state'].values!s}")
        value, low, high, p, least_p = (float(found[name]) for name in ("value", "low", "high", "p", "smallest_p"))
        return Reading(value, low, high, p, least_p, f"{run.run}: k = {int(found['k'])}")

    def beyond(layers: str, run: Evidence) -> Reading:
        found = compared(layers, run).isel(curve=slice(1, None))
        gap = found["difference"].values
        if not np.isfinite(gap).all():
            raise Lacking(f"curves of {layers} cannot be clustered by all rivals")
        return Reading(float(gap.min()), note=f"{run.run}: the best rival is {found['curve'].values[gap.argmin()]}")

    return Claim(
        "C11",
        "Clusters of curves of coefficients are the types of heads, and simpler curves give them less well.",
        "ARI is at least .6 in each layer, beyond exchanged roles; and above that of every rival's curves "
        f"({', '.join(RIVALS)}) in more runs than by the toss of a coin.",
        "The rivals' curves, clustered in the same way; exchanged roles.",
        "Wang et al. 2024, section 4, figure 1",
        (
            *(
                decide(
                    f"ARI of clusters with roles, {layers}", each(runs, partial(recovered, layers)), least=0.6, published=FIGURE
                )
                for layers in LAYERS
            ),
            *(
                _more_often(f"ARI less that of the best rival, {layers}", each(runs, partial(beyond, layers)))
                for layers in LAYERS
            ),
        ),
    )


def claim_c12(runs: Sequence[Evidence]) -> Claim:
    """Induction heads against multigram heads."""
    return Claim(
        "C12",
        "At the end induction heads have lower coefficients than the multigram heads of their layer.",
        "Rank-biserial of multigram heads over induction heads in layer 1 at T is at least .8.",
        "Roles exchanged among these heads.",
        "Wang et al. 2024, figure 1",
        (
            decide("rank-biserial, multigram over induction", each(runs, partial(_lower, False)), least=0.8, published=FIGURE),
            decide("the same, multigram in the wide sense", each(runs, partial(_lower, True)), role="report"),
        ),
    )


def _at_first(run: Evidence, layers: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients at the first checkpoint, their errors, and the heads' roles at the last."""
    asked, words = words_of(run, layers)
    data = result(run, "rllc_mix").isel(step=0)
    value, stderr = (known("rllc_mix", of(data[part], asked), asked) for part in ("value", "stderr"))
    if len(asked) < 2 or (stderr <= 0).any():
        raise Lacking(f"{layers} has no two heads with errors of sampling")
    return value, stderr, words


def _alike(runs: Sequence[Evidence], layers: str) -> Check:
    """Whether heads differ by errors alone at the first checkpoint: Q, added up over runs."""
    from scipy.stats import chi2

    total, degrees = 0.0, 0

    def spread(run: Evidence) -> Reading:
        nonlocal total, degrees
        value, stderr, words = _at_first(run, layers)
        found = separation(value, words, stderr)
        total, degrees = total + found.chi_square, degrees + found.degrees
        return Reading(found.chi_square / found.degrees)

    found = decide(f"Q / (n - 1) of heads at the first checkpoint, {layers}", each(runs, spread), every=True)
    if not degrees:
        return found
    p, bound = float(chi2.sf(total, degrees)), float(chi2.isf(ALPHA, degrees)) / degrees
    told = "" if p >= ALPHA else f"heads differ by more than errors: p = {p:.2g}"
    return replace(
        found,
        expected=f"<= {bound:.3g}",
        measured=total / degrees,
        low=np.nan,
        high=np.nan,
        p=p,
        least_p=0.0,
        rule=f"chi-square on {degrees} degrees: p at least {ALPHA:g}",
        verdict="fails" if told else "holds",
        reason=told,
    )


def _types(layers: str, run: Evidence) -> Reading:
    asked, words = words_of(run, layers)
    if not 1 < len(set(words.tolist())) < len(words):
        raise Lacking(
            f"the {len(words)} heads of {layers} have {len(set(words.tolist()))} roles, and F needs some alike and some not"
        )
    value, stderr = coefficients(run, "mix", asked)
    found = separation(value, words)
    low, high = redrawn(lambda x: f_ratio(x, words), (value, stderr))
    return Reading(float(f_ratio(value, words)), max(low, 0.0), high, found.p, found.smallest)


def _spreads(layers: str, run: Evidence) -> Reading:
    first, _, _ = _at_first(run, layers)
    last, _ = coefficients(run, "mix", words_of(run, layers)[0])
    if not np.ptp(last) > 0:
        raise Lacking(f"heads of {layers} have one coefficient at T")
    return Reading(float(first.std(ddof=1) / last.std(ddof=1)))


def _compared(run: Evidence) -> "xr.Dataset":
    """The clusterings of the coefficient's curves and of its rivals', on the checkpoints that both have."""
    own, nulls = result(run, "rllc_mix"), result(run, "nulls_mix")
    if lost := set(RIVALS) - set(nulls["kind"].values.tolist()):
        raise Lacking(f"nulls_mix has no {', '.join(sorted(lost))}")
    if len(np.intersect1d(own["step"], nulls["step"])) < 2:
        raise Lacking("rllc_mix and nulls_mix share fewer than two checkpoints")
    curves = {"rllc": own[["value", "stderr"]]}
    curves |= {kind: nulls[["value", "stderr"]].sel(kind=kind, drop=True) for kind in RIVALS}
    return compare(curves, roles(run).drop_vars("step"), methods=("kmeans",), scalings=("standardised",), draws=DRAWS)


def _more_often(quantity: str, readings: Sequence[Reading | Lacking]) -> Check:
    """Whether a difference is above 0 in more runs than by the toss of a coin."""
    found = decide(quantity, readings, least=0.0, every=True)
    if not found.values:
        return found
    signs = sign_test(found.values)
    verdicts: dict[str, Verdict] = {"above": "holds", "not above": "fails", "untestable": UNTESTABLE}
    why = f"above 0 in {signs.above} of {signs.seeds} runs, and the smallest p of so many is {signs.smallest:.2g}"
    notes = [one.note for one in readings if isinstance(one, Reading)]
    return replace(
        found,
        expected="> 0",
        p=signs.p,
        least_p=signs.smallest,
        rule="sign test over runs",
        verdict=verdicts[signs.verdict],
        reason="; ".join([why, *notes]),
    )


def _lower(wide: bool, run: Evidence) -> Reading:
    simple, memory = heads(run, "induction", "L1"), heads(run, "multigram", "L1", wide=wide)
    a, b = coefficients(run, "mix", memory), coefficients(run, "mix", simple)
    found = rank_biserial(a[0], b[0], alternative="greater")
    low, high = redrawn(above, a, b)
    means = f"{run.run}: {len(simple)} induction, mean {b[0].mean():.2f}; {len(memory)} multigram, mean {a[0].mean():.2f}"
    return Reading(found.value, max(low, -1.0), min(high, 1.0), found.p, found.smallest, means)
