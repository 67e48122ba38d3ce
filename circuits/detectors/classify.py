"""The best-supported role of a head, by a stated rule on its detector scores.

Roles and their detectors: previous token, current token, duplicate token, first token (resting), positional
(``fixed_lag``) and induction (the score over many lags; the two fixed-period readings give no role, since a head that
looks back a fixed distance fools them). For each, the *support* is the share of the way from chance to perfect,
``(value - chance) / (1 - chance)``. A head's role is the detector with the largest support if that is at least
``THRESHOLD``, exceeds zero by two standard errors, and lies above the untrained null; else "none supported". ``margin``
is the distance to the runner-up: a small one means that two roles describe the head about equally well.
"""

from typing import TYPE_CHECKING

import numpy as np

from circuits.detectors.roles import classify_functions

if TYPE_CHECKING:
    import xarray as xr

ROLES = {
    "previous_token": "previous token",
    "current_token": "current token",
    "duplicate_token": "duplicate token",
    "first_token": "first token",
    "fixed_lag": "positional",
    "induction": "induction",
}
NO_ROLE = "none supported"
NOT_MEASURED = "not measured"
"""Of a head at a checkpoint that has no scores."""
THRESHOLD = 0.2
Z_NEEDED = 2.0


def classify(
    scores: "xr.Dataset",
    *,
    threshold: float = THRESHOLD,
    induction_cut: "xr.Dataset | None" = None,
    multigrams: "xr.Dataset | None" = None,
    brackets: "xr.Dataset | None" = None,
) -> "xr.Dataset":
    """Name each head's role: by where it attends, or, given what its ablation does as well, by both.

    Args:
        scores: what ``detect`` returned, with or without ``step``.
        threshold: least support for a role by attention, in (0, 1).
        induction_cut, multigrams, brackets: what ``InductionCut``, ``Multigrams`` and ``BracketScores`` returned; with all three
            the roles are those of ``circuits.detectors.roles.classify_functions``, which has its own thresholds.

    Returns:
        By attention: ``Dataset([step,] layer, head)``: ``role``, the ``detector`` behind it, its ``value``, ``stderr``,
        ``chance``, ``null_mean``, ``null_sd``, ``z``, the ``support`` in [.., 1] and the ``margin`` to the runner-up. A head
        without scores (a checkpoint that failed) has the role "not measured".

    Raises:
        ValueError: ``scores`` is not a detector dataset, or the threshold is out of range.
    """
    if induction_cut is not None and multigrams is not None and brackets is not None:
        return classify_functions(scores, induction_cut, multigrams, brackets)
    causal = {"induction_cut": induction_cut, "multigrams": multigrams, "brackets": brackets}
    if any(data is not None for data in causal.values()):
        missing = ", ".join(sorted(name for name, data in causal.items() if data is None))
        raise ValueError(f"roles by attention and ablation need {missing} too: circuits.functions(run, 'roles') measures all")
    if not hasattr(scores, "data_vars"):
        raise TypeError(f"got a {type(scores).__name__}; pass what circuits.detect(model) returned")
    needed = ("value", "stderr", "chance", "null_mean", "null_sd", "z")
    if "detector" not in scores.dims or not set(needed) <= set(scores.data_vars):
        raise ValueError(f"got a dataset with dims {tuple(scores.dims)}; pass what circuits.detect(model) returned")
    if gone := sorted(set(ROLES) - set(scores.detector.values.tolist())):
        raise ValueError(f"the scores lack {', '.join(gone)}, which roles are told apart by; pass all that detect returned")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; it is a share between 0 and 1")
    chosen = scores.sel(detector=list(ROLES))
    support = (chosen.value - chosen.chance) / (1 - chosen.chance)
    support = support.transpose(..., "detector")
    measured = support.notnull().any("detector")
    ranked = np.sort(support.where(measured, 0.0).fillna(-np.inf).values, axis=-1)
    best = support.fillna(-np.inf).argmax("detector")
    picked = chosen.isel(detector=best)
    top = support.isel(detector=best)
    clear = (picked.value - picked.chance) > Z_NEEDED * picked.stderr.fillna(np.inf)
    # Without a null (null_seeds=0) the null cannot speak against a role; the z column then shows NaN.
    above_null = picked.z.isnull() | (picked.z > Z_NEEDED)
    supported = (top >= threshold) & clear & above_null
    names = np.array([ROLES[d] for d in chosen.detector.values])
    result = picked[["value", "stderr", "chance", "null_mean", "null_sd", "z"]].drop_vars("detector")
    result["support"] = top.drop_vars("detector")
    result["margin"] = (top.dims, np.where(measured, ranked[..., -1] - ranked[..., -2], np.nan))
    named = np.where(supported.values, names[best.values], NO_ROLE)
    result["role"] = (top.dims, np.where(measured, named, NOT_MEASURED))
    result["detector"] = (top.dims, np.where(measured, chosen.detector.values[best.values], ""))
    result.attrs = {
        "measure": "head_roles",
        "definition": "largest support (value - chance) / (1 - chance), "
        f"if >= {threshold}, > {Z_NEEDED:g} stderr and above the untrained null",
        "source": "circuits.detectors.classify",
    }
    return result
