"""What the claims about circuits read of a run, and with which errors.

    circuit       the induction heads of layer 1, and of an earlier layer the previous-token head that attends to the previous
                  token most; by role at the last checkpoint, never by number (layers as in ``claims_llc_reading``)
    measured      value and standard error over n examples: the interval is t's with n - 1 degrees of freedom
    ratio         a / b; se^2 = (se_a / b)^2 + (a se_b / b^2)^2, as though the two were unrelated: too wide where one is part of
                  the other, as here, since evidence keeps no covariances
    share         k of n heads: Clopper and Pearson's interval, heads as a sample; p by a fair coin for each head
    correlated    Pearson's r over heads: Fisher's interval; p by exchange of one measure's heads within their layers
    jackknifed    a mean over pairs of heads, which share heads: each head left out in turn, writers and readers apart

Sources: Clopper & Pearson 1934; Fisher 1921; Owen 2007 (two-way layouts: variances of both ways are added).
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from math import atanh, factorial, isfinite, prod, sqrt, tanh
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuits.crosscheck.claims_llc_reading import each, final, heads, result
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.partitions import DRAWS, EVERY, tail
from circuits.crosscheck.verdict import Lacking, Reading
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr

NORMAL = 1.959964
NO_ONE_LAYER = "no run of one layer was given"


def at_end(run: Evidence, name: str) -> "xr.Dataset":
    """A result at the run's last checkpoint."""
    data = result(run, name)
    last = max(int(found["step"].max()) for found in run.results.values() if found.sizes.get("step"))
    if last not in data["step"].values:
        raise Lacking(f"{name} was not measured at the last checkpoint, {last}")
    return data.sel(step=last)


def circuit(run: Evidence) -> tuple[Head, list[Head]]:
    """The strongest previous-token head below layer 1, and the induction heads of layer 1."""
    found, earlier = heads(run, "induction", "L1"), heads(run, "previous token", "L0")
    score = final(run, "attention_scores")["value"].sel(detector="previous_token")
    return max(earlier, key=lambda head: number(score.sel(layer=head.layer, head=head.head))), found


def of_one_layer(one_layer: Evidence | None, read: Callable[[Evidence], Reading]) -> list[Reading | Lacking]:
    """What the run of one layer says, or that there is none."""
    if one_layer is None:
        return [Lacking(NO_ONE_LAYER)]
    return each([one_layer], lambda run: read(_of_depth_one(run)))


def beside_one_layer(
    seeds: Sequence[Evidence], one_layer: Evidence | None, read: Callable[[Evidence, Evidence], Reading]
) -> list[Reading | Lacking]:
    """What every run says beside the run of one layer, or that there is none."""
    if one_layer is None:
        return [Lacking(NO_ONE_LAYER)]
    return each(seeds, lambda run: read(run, _of_depth_one(one_layer)))


def _of_depth_one(run: Evidence) -> Evidence:
    layers = result(run, "attention_scores").sizes["layer"]
    if layers != 1:
        raise Lacking(f"{run.run} was given as the run of one layer and has {layers}")
    return run


def untold(reason: str) -> list[Reading | Lacking]:
    """What no evidence has, and what would be needed."""
    return [Lacking(reason)]


def examples_of(data: "xr.Dataset") -> int:
    """How many examples errors are over."""
    if "n_examples" not in data.attrs:
        raise Lacking("a result does not say how many examples its errors are over")
    return int(data.attrs["n_examples"])


def number(value: object) -> float:
    """One number, finite."""
    found = float(np.asarray(value, dtype=np.float64))
    if not isfinite(found):
        raise Lacking("a number that it needs is missing")
    return found


def measured(value: float, stderr: float, n: int, note: str = "") -> Reading:
    """A mean over examples; without an error it is exact."""
    from scipy.stats import t

    if not isfinite(stderr) or n < 2:
        return Reading(value, note=note)
    reach = float(t.ppf(0.975, n - 1)) * stderr
    return Reading(value, value - reach, value + reach, note=note)


def ratio(a: tuple[float, float], b: tuple[float, float], n: int, note: str = "") -> Reading:
    """``a / b``, each with its standard error."""
    if b[0] == 0:
        raise Lacking("what it should be compared with is 0")
    return measured(a[0] / b[0], float(np.hypot(a[1] / b[0], a[0] * b[1] / b[0] ** 2)), n, note)


def share(hits: int, of: int, note: str = "") -> Reading:
    """So many heads of so many."""
    from scipy.stats import binomtest

    if not of:
        raise Lacking("there are no such heads")
    found = binomtest(hits, of, alternative="two-sided").proportion_ci(0.95, "exact")
    p = float(binomtest(hits, of, alternative="greater").pvalue)
    return Reading(hits / of, float(found.low), float(found.high), p, 0.5**of, note)


def correlated(x: Float[np.ndarray, "layer head"], y: Float[np.ndarray, "layer head"], *, seed: int = 0) -> Reading:
    """Pearson's correlation over heads; those without a value are left out."""
    from scipy.stats import rankdata

    kept = [np.flatnonzero(np.isfinite(a) & np.isfinite(b)) for a, b in zip(x, y, strict=True)]
    a, b = (np.concatenate([row[at] for row, at in zip(table, kept, strict=True)]) for table in (x, y))
    if len(a) < 4 or not (np.ptp(a) and np.ptp(b)):
        raise Lacking(f"{len(a)} heads have both measures, or all have one value; a correlation needs 4 that differ")
    ours, theirs = ((values - values.mean()) / np.linalg.norm(values - values.mean()) for values in (a, b))
    r = float(np.clip(ours @ theirs, -1, 1))
    orders, every = _orders([len(at) for at in kept], seed)
    p, least_p = tail(r, theirs[orders] @ ours, every=every)
    at, reach = atanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), NORMAL / sqrt(len(a) - 3)
    note = f"{len(a)} heads, Spearman {np.corrcoef(rankdata(a), rankdata(b))[0, 1]:.2f}"
    return Reading(r, tanh(at - reach), tanh(at + reach), p, least_p, note)


def _orders(sizes: Sequence[int], seed: int) -> tuple[np.ndarray, bool]:
    """Orders of heads in which each stays in its layer, ``[order, head]``, and whether these are all."""
    starts = np.cumsum([0, *sizes[:-1]])
    if prod(factorial(size) for size in sizes) <= EVERY:
        whole = np.zeros((1, 0), dtype=int)
        for start, n in zip(starts, sizes, strict=True):
            layer = start + np.array(list(permutations(range(n))), dtype=int).reshape(-1, n)
            whole = np.hstack([np.repeat(whole, len(layer), 0), np.tile(layer, (len(whole), 1))])
        return whole, True
    rng = np.random.default_rng([seed, 20])
    parts = [rng.permuted(np.tile(start + np.arange(n), (DRAWS, 1)), axis=1) for start, n in zip(starts, sizes, strict=True)]
    return np.concatenate(parts, axis=1), False


def jackknifed(values: Float[np.ndarray, "mode src dst"], note: str = "") -> Reading:
    """The mean over pairs of heads."""
    if min(values.shape[1:]) < 2:
        raise Lacking("a layer has one head, which cannot be left out")
    deviations = []
    for axis in (1, 2):
        without = np.array([np.delete(values, i, axis).mean() for i in range(values.shape[axis])])
        deviations.append((len(without) - 1) * np.square(without - without.mean()).mean())
    return measured(float(values.mean()), sqrt(sum(deviations)), min(values.shape[1:]), note)
