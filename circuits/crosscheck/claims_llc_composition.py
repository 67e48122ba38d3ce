"""Claims C8 and C9: which heads of layer 0 write into the keys of which heads of layer 1.

    baseline   1 / sqrt(d), d the dimensions that are written and read: what random matrices have
    K(a -> b)  the score of ``circuits.weights.composition``, mode K, norms folded in, over the baseline

Weights are exact, so that a run by itself has no interval for K. C8 has a null within a run, the exchange of roles among the
heads of both layers; C9 has none, and needs runs.

Source of claims and of published numbers: Elhage et al. 2021 (scores); Wang et al. 2024 and the series that its authors
published with Hoogland et al. 2024.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.claims_llc_development import SERIES
from circuits.crosscheck.claims_llc_reading import each, final, heads, of, result, words_of
from circuits.crosscheck.claims_llc_statistics import exchanged_pairs
from circuits.crosscheck.claims_llc_times import first_head, half_maximum
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim, Lacking, Reading, decide
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr


def claim_c8(runs: Sequence[Evidence]) -> Claim:
    """K-composition of previous-token heads at the end."""
    return Claim(
        "C8",
        "Previous-token heads write into the keys of induction heads, and not of other heads of layer 1.",
        "At T the mean K(previous token -> induction) is at least 2, and the mean K(previous token -> all others of layer 1) "
        "at most 0.6; p of both is that of their difference, roles of both layers exchanged among their heads.",
        "Other heads of layer 1, from the same writers; exchanged roles.",
        "Elhage et al. 2021; Wang et al. 2024, section 4",
        (
            decide(
                "K(previous token -> induction)",
                each(runs, partial(_written, True)),
                least=2.0,
                published=f"2.1 to 2.4 ({SERIES}, 50k)",
                log=True,
            ),
            decide(
                "K(previous token -> others of layer 1)",
                each(runs, partial(_written, False)),
                most=0.6,
                published=f"0.5 ({SERIES}, 50k)",
                log=True,
            ),
        ),
    )


def claim_c9(runs: Sequence[Evidence]) -> Claim:
    """K-composition of multigram heads over training."""
    return Claim(
        "C9",
        "Multigram heads of layer 0 stop writing into keys of multigram heads of layer 1, and write again as induction forms.",
        "The mean K(multigram of layer 0 -> multigram of layer 1) is at most 0.5 at its lowest up to the half-maximum of the "
        "first induction head, and at least twice that later. C9b: the highest from current-token heads, reported.",
        "Previous-token heads writing into the same heads: what they recover from the same checkpoint on.",
        "Wang et al. 2024, section 5; numbers of the authors' series",
        (
            decide(
                "lowest K(multigram -> multigram)", each(runs, _lowest), most=0.5, published=f"0.31 at 7.9k ({SERIES})", log=True
            ),
            decide(
                "K(multigram -> multigram), highest since over lowest",
                each(runs, partial(_recovered, "multigram")),
                least=2.0,
                published=f"3.3 ({SERIES})",
                log=True,
            ),
            decide(
                "control: K(previous token -> multigram), highest since over that at the lowest",
                each(runs, partial(_recovered, "previous token")),
                published=f"1.8 ({SERIES})",
                role="report",
            ),
            decide(
                "C9b: highest K(current token -> multigram)",
                each(runs, _spike),
                published=f"3.5 at 15.1k, gone by 25k ({SERIES})",
                role="report",
            ),
            decide("lowest K, multigram in the wide sense", each(runs, partial(_lowest, wide=True)), role="report"),
            decide("highest since over lowest, wide", each(runs, partial(_recovered, "multigram", wide=True)), role="report"),
        ),
    )


def _written(inside: bool, run: Evidence) -> Reading:
    (writers, early), (readers, late) = words_of(run, "L0"), words_of(run, "L1")
    table = _over_baseline(final(run, "composition"), writers, readers)
    rows, columns = early == "previous token", late == "induction"
    if not rows.any() or not columns.any() or columns.all():
        which = "previous-token head in layer 0" if not rows.any() else "induction head with others beside it in layer 1"
        raise Lacking(f"there is no {which} at the last checkpoint")
    p, least_p = exchanged_pairs(table, rows, columns)
    return Reading(float(table[np.ix_(rows, columns if inside else ~columns)].mean()), p=p, least_p=least_p)


def _dip(run: Evidence, wide: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Steps, K from multigram to multigram heads, and the place of its lowest up to induction."""
    steps, mean = _curve(run, "multigram", wide)
    formed = first_head(run, "induction", "induction", half_maximum, "L1").at
    return steps, mean, int(np.where(steps <= formed, mean, np.inf).argmin())


def _lowest(run: Evidence, wide: bool = False) -> Reading:
    steps, mean, i = _dip(run, wide)
    return Reading(float(mean[i]), note=f"{run.run}: lowest at {steps[i]:g}")


def _recovered(role: str, run: Evidence, wide: bool = False) -> Reading:
    _, _, i = _dip(run, wide)
    steps, mean = _curve(run, role, wide)
    top = i + int(mean[i:].argmax())
    return Reading(float(mean[top] / mean[i]), note=f"{run.run}: highest since at {steps[top]:g}")


def _spike(run: Evidence) -> Reading:
    steps, mean = _curve(run, "current token", wide=False)
    return Reading(float(mean.max()), note=f"{run.run}: highest at {steps[mean.argmax()]:g}, {mean[-1]:.2f} at the end")


def _curve(run: Evidence, role: str, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean K from heads of layer 0 with a role to multigram heads of layer 1."""
    data = result(run, "composition")
    writers = heads(run, role, "L0", wide=wide and role == "multigram")
    return data["step"].values.astype(float), _over_baseline(data, writers, heads(run, "multigram", "L1", wide=wide)).mean(
        (-2, -1)
    )


def _over_baseline(data: "xr.Dataset", writers: Sequence[Head], readers: Sequence[Head]) -> np.ndarray:
    """K ``[*step, writer, reader]``."""
    read = of(
        data["value"].sel(mode="K").rename(dst_layer="layer", dst_head="head"), readers
    )  # [*step, src_layer, src_head, reader]
    places = [data[dim].values.tolist() for dim in ("src_layer", "src_head")]
    found = np.stack([read[..., places[0].index(one.layer), places[1].index(one.head), :] for one in writers], -2)
    if not np.isfinite(found).all() or not found.min() > 0:
        raise Lacking("composition has pairs without a score above 0")
    return found * math.sqrt(float(data.attrs["dims"]))
