"""Which of many values are told from their nulls, and the sentence that says so: q values, and how few could have been told.

A value is *beyond* its null if its q, the Benjamini-Hochberg adjusted p, is below ``ALPHA``. An empirical p cannot be smaller
than the number of draws allows, so that one value alone may not be able to reach that q among many: then it takes several, and
a sentence that finds nothing says how many.
"""

from typing import TYPE_CHECKING

import numpy as np

from circuits.views.html import decimal, probability, z_score
from circuits.weights.composition import false_discovery

if TYPE_CHECKING:
    import xarray as xr

ALPHA = 0.05
LISTED = 6
"""Values that are named in a sentence."""


def judged(data: "xr.Dataset", *over: str) -> "xr.Dataset":
    """The same with ``q`` and ``beyond`` beside ``p``.

    Args:
        data: ``p``, NaN where there is no test. over: dims whose tests are adjusted together; any others are apart.
    """
    import xarray as xr

    dims = list(over)
    q = xr.apply_ufunc(false_discovery, data["p"], input_core_dims=[dims], output_core_dims=[dims], vectorize=True)
    q = q.transpose(*data["p"].dims)
    return data.assign(q=q, beyond=q < ALPHA)


def fewest(tests: int, smallest_p: float) -> int | None:
    """How many of so many tests must have the smallest p for a q below ``ALPHA``; None if all would not do."""
    return next((k for k in range(1, tests + 1) if smallest_p * tests / k < ALPHA), None)


def sides(here: "xr.Dataset") -> tuple[np.ndarray, np.ndarray]:
    """Which values are beyond their nulls, above and below."""
    beyond, above = here["beyond"].values, here["value"].values > here["null_mean"].values
    return beyond & above, beyond & ~above


def verdict(here: "xr.Dataset", names: list[str], *, one: str = "head", expected: str = "") -> str:
    """How many values are beyond their nulls and which; or that none is, and what could have been told.

    Args:
        here: ``value``, ``null_mean``, ``z``, ``p``, ``q``, ``beyond`` of values named in the order of their axes; attribute
            ``smallest_p``. one: what a value is of. expected: the side on which the theory has them, "above" or "below".
    """
    smallest, (above, below) = float(here.attrs["smallest_p"]), sides(here)
    z, p, q = (here[name].values.ravel() for name in ("z", "p", "q"))
    tests = int(np.isfinite(p).sum())
    if not tests:
        return f"No {one} has a value to test."
    needed = fewest(tests, smallest)
    if needed is None:
        return (
            f"Untestable here: p cannot be below {probability(smallest)}, and so no q over {tests} {one}s below {ALPHA}, however "
            "many differ from their nulls."
        )
    if not (above.any() or below.any()):
        first = int(np.lexsort((-np.abs(np.nan_to_num(z)), np.where(np.isfinite(q), p, np.inf)))[0])
        return (
            f"No {one} of {tests} is beyond its null: the smallest q is {probability(float(q[first]))} ({names[first]}, z "
            f"{z_score(float(z[first]))}, p {probability(float(p[first]), smallest)}). As p cannot be below "
            f"{probability(smallest)}, a q below {ALPHA} takes {needed} {one if needed == 1 else f'{one}s'} at that p."
        )
    told = []
    for side, which in (("above", above.ravel()), ("below", below.ravel())):
        ranked = sorted(np.flatnonzero(which), key=lambda i: -abs(np.nan_to_num(z[i])))
        more = f" and {len(ranked) - LISTED} more" if len(ranked) > LISTED else ""
        named = f" ({', '.join(names[i] for i in ranked[:LISTED])}{more})" if ranked else ""
        theory = ", as the theory has it" if side == expected and ranked else ""
        told.append(f"{len(ranked) or 'none'} {side}{theory}{named}")
    return f"{int(above.sum() + below.sum())} of {tests} {one}s are beyond their null (q < {ALPHA}): {' and '.join(told)}."


def medians(here: "xr.Dataset") -> str:
    """The middle of the values that have a test and of what their nulls have on average."""
    there = np.isfinite(here["p"].values)
    value, null = (decimal(float(np.median(here[name].values[there]))) if there.any() else "–" for name in ("value", "null_mean"))
    return f"median {value}, of their nulls {null}"
