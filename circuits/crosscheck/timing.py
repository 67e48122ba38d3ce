"""Does a head's coefficient rise when its role emerges? How far apart the two are, in doublings of training.

    u             log2(1 + step / unit), unit the first checkpoint after step 0
    role          emerged between two neighbouring checkpoints, ``before`` and ``value`` of ``circuits.dynamics.emergence``
    change point  where the curve, straight in u between checkpoints, rises most over ``WIDTH`` of u: the middle of that stretch
    lag           u of the change point less u of the role; above 0 the role came first

Both are intervals. Nothing was seen between two checkpoints, so a change point is known no better than to the checkpoints around
it, and the role than to its two. A curve's interval is that in curves drawn anew, each checkpoint on its own, from the 2.5%
quantile of lower ends to the 97.5% quantile of upper ones; as neighbouring points share randomness, it is rather too wide. The
lag's interval has every difference of a point of one and a point of the other.

    together      the interval holds 0
    curve first, role first
    untestable    no role, fewer than ``FEWEST`` checkpoints, or no rise beyond error: flat curves with these errors rise as much
                  over ``WIDTH`` in more than ``ALPHA`` of draws

A role emerges where a threshold is crossed, a curve changes where it is steepest: a role whose score is early at its threshold
comes first without being its cause. A rise from step 0 to the first checkpoint counts as any other.

Source: change point as the largest rise in log time, Olsson et al. 2022 (phase change); intervals ours.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from circuits.crosscheck.clusters import log_time_weights
from circuits.crosscheck.partitions import ALPHA
from circuits.results import array_hash, check_whole, labelled

if TYPE_CHECKING:
    import xarray as xr

WIDTH = 0.5
"""Half a doubling: stages of the published run last a doubling (8,500 to 17,000 steps; Wang et al. 2024)."""
FEWEST = 4
DRAWS = 1_000
STATES = ("together", "curve first", "role first", "untestable")
DIMS = ("step", "layer", "head")


class Curves(NamedTuple):
    """Coefficients of all heads over training; NaN where sampling was not ok.

    Attributes:
        steps: of the checkpoints. value, stderr: ``[step, layer, head]``.
    """

    steps: Real[np.ndarray, "step"]
    value: Float[np.ndarray, "step layer head"]
    stderr: Float[np.ndarray, "step layer head"]


class Change(NamedTuple):
    """Where a curve rises most, in u: the ends of an interval, its middle without errors; ``why`` there is none."""

    at: float = np.nan
    low: float = np.nan
    high: float = np.nan
    why: str = ""


@dataclass(frozen=True)
class Lag:
    """How lags are measured.

    Attributes:
        draws: of curves. seed: of them.
    """

    draws: int = DRAWS
    seed: int = 0

    name = "role_curve_lag"
    version = 1

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, 20)
        check_whole("seed", self.seed, 0)

    def spec(self) -> dict[str, Any]:
        return {"draws": self.draws, "seed": self.seed, "width": WIDTH}


def lag(emergence: "xr.Dataset", curves: "xr.Dataset", *, draws: int = DRAWS, seed: int = 0) -> "xr.Dataset":
    """By how many doublings of training a head's curve changes after its role emerged.

    Args:
        emergence: of ``circuits.dynamics.emergence.emerged``. curves: ``value`` and ``stderr`` with dims ``step, layer, head``,
            such as ``results["rllc_mix"]``. draws, seed: of curves drawn anew.

    Returns:
        ``Dataset(layer, head)``: ``value``, ``low``, ``high``, in doublings; ``state`` and ``reason``, see the top of this
        module; steps ``change``, ``change_low``, ``change_high`` of the curve.

    Raises:
        TypeError, ValueError: something else was given, or other heads.

    Source: Olsson et al. 2022 for what a phase change is.
    """
    how = Lag(draws, seed)
    if not hasattr(emergence, "data_vars") or not {"value", "before"} <= set(emergence.data_vars):
        raise TypeError("emergence has no value and before; pass what emerged(roles) returned")
    known = read_curves(curves)
    heads = {dim: emergence[dim].values for dim in DIMS[1:]}
    if any(not np.array_equal(curves[dim].values, names) for dim, names in heads.items()):
        raise ValueError("curves and emergence have other layers or heads: measure both on the same run")
    unit = _unit(known.steps)
    shape = known.value.shape[1:]
    numbers = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "change", "change_low", "change_high")}
    state, reason = np.full(shape, STATES[3], dtype=object), np.full(shape, "", dtype=object)
    times = clock(np.stack([emergence[name].transpose(*DIMS[1:]).values for name in ("before", "value")]), unit)
    for at in np.ndindex(shape):
        found = change_point(known.steps, known.value[:, *at], known.stderr[:, *at], draws=draws, seed=seed)
        for name, u in (("change", found.at), ("change_low", found.low), ("change_high", found.high)):
            numbers[name][at] = unit * (2**u - 1)
        before, after = times[:, *at]
        reason[at] = found.why or ("" if np.isfinite(after) else "no role emerged within the run")
        if reason[at]:
            continue
        # A head that had its role at the first checkpoint that tells got it at some time since step 0.
        before = 0.0 if np.isnan(before) else before
        low, high = found.low - after, found.high - before
        numbers["value"][at], numbers["low"][at], numbers["high"][at] = found.at - (before + after) / 2, low, high
        state[at] = STATES[1] if high < 0 else STATES[2] if low > 0 else STATES[0]
    dims = DIMS[1:]
    return labelled(
        {name: (dims, values) for name, values in numbers.items()}
        | {"state": (dims, state.astype("U")), "reason": (dims, reason.astype("U"))},
        heads,
        measure=how,
        definition="log2(1 + step / unit) of the largest rise of a head's curve less that of the emergence of its role",
        source="largest rise in log time: Olsson et al. 2022; intervals: circuits.crosscheck.timing",
        data_hash=array_hash(known.steps, known.value, known.stderr, times),
        units="doublings of training",
        unit=unit,
    )


def read_curves(data: "xr.Dataset") -> Curves:
    """Values and errors of heads over training, without those whose ``state`` is not "ok".

    Raises:
        TypeError, ValueError: no Dataset with ``value`` and ``stderr`` of dims ``step, layer, head``.
    """
    if not hasattr(data, "data_vars"):
        raise TypeError(f"curves are a {type(data).__name__}; pass a Dataset with value and stderr, such as results['rllc_mix']")
    if not {"value", "stderr"} <= set(data.data_vars) or set(data["value"].dims) != set(DIMS):
        raise ValueError("curves need value and stderr with dims step, layer, head: select one of any other dim")
    data = data.sortby("step")
    value, stderr = (data[name].transpose(*DIMS).values.astype(np.float64) for name in ("value", "stderr"))
    if "state" in data:
        value = np.where(data["state"].transpose(*DIMS).values == "ok", value, np.nan)
    return Curves(data["step"].values.astype(np.float64), value, np.where(np.isnan(value), np.nan, stderr))


def level(
    curves: Curves, part: Bool[np.ndarray, "step"]
) -> tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]:
    """The mean of each curve in log time, and an error as if errors were the same at all checkpoints: they share randomness."""
    steps = curves.steps[part]
    value, stderr = curves.value[part], curves.stderr[part]
    shares = log_time_weights(steps) if len(steps) > 1 else np.ones(1)
    weights = shares[:, None, None] * np.isfinite(value)
    total = np.where(weights.any(0), weights.sum(0), np.nan)
    return np.nansum(weights * value, 0) / total, np.nansum(weights * stderr, 0) / total


def clock(steps: Real[np.ndarray, "*any"], unit: float) -> Float[np.ndarray, "*any"]:
    """``log2(1 + step / unit)``."""
    return np.log2(1 + np.asarray(steps, dtype=np.float64) / unit)


def change_point(
    steps: Real[np.ndarray, "step"],
    value: Float[np.ndarray, "step"],
    stderr: Float[np.ndarray, "step"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Change:
    """Where a curve rises most; checkpoints without a value are left out."""
    known = np.isfinite(value) & np.isfinite(stderr)
    if known.sum() < FEWEST:
        return Change(why=f"the curve has {known.sum()} checkpoints, its change needs {FEWEST}")
    u, value, stderr = clock(steps, _unit(steps))[known], value[known], stderr[known]
    noise = np.random.default_rng(seed).standard_normal((draws, len(u))) * stderr
    middle, rise = _rises(u, np.concatenate([value[None], value + noise, noise]))
    most = rise.max(1)
    if (1 + (most[draws + 1 :] >= most[0]).sum()) / (draws + 1) > ALPHA:
        return Change(why="the curve does not rise beyond its errors")
    # Where both ends lie between the same two checkpoints all middles rise alike: ties are one stretch.
    tied = rise >= most[:, None] - 1e-9 * np.abs(most[:, None]).max()
    first, last = tied.argmax(1), len(middle) - 1 - tied[:, ::-1].argmax(1)
    lows, highs = middle[first[1 : draws + 1]], middle[last[1 : draws + 1]]
    low, high = np.quantile(lows, 0.025, method="lower"), np.quantile(highs, 0.975, method="higher")
    low, high = min(low, middle[first[0]]), max(high, middle[last[0]])
    # Out to the checkpoints around: between them nothing was seen.
    around = u[max(0, np.searchsorted(u, low) - 1)], u[min(len(u) - 1, np.searchsorted(u, high, side="right"))]
    return Change(float(middle[first[0]] + middle[last[0]]) / 2, float(around[0]), float(around[1]))


def _unit(steps: Real[np.ndarray, "step"]) -> float:
    later = steps[steps > 0]
    if not len(later):
        raise ValueError("curves have no checkpoint after step 0; give the run's results at several steps")
    return float(later.min())


def _rises(
    u: Float[np.ndarray, "step"], curves: Float[np.ndarray, "draw step"]
) -> tuple[Float[np.ndarray, "middle"], Float[np.ndarray, "draw middle"]]:
    """Rises over ``WIDTH`` around every middle at which the largest may be.

    A curve that is straight between checkpoints rises by a function of the middle that is straight between those whose ends are
    checkpoints, so its largest value is at one of them.
    """
    half = min(WIDTH, float(u[-1] - u[0])) / 2
    middle = np.unique(np.concatenate([u - half, u + half]))
    middle = middle[(middle >= u[0] + half - 1e-12) & (middle <= u[-1] - half + 1e-12)]

    def at(place: np.ndarray) -> np.ndarray:
        right = np.clip(np.searchsorted(u, place), 1, len(u) - 1)
        share = np.clip((place - u[right - 1]) / (u[right] - u[right - 1]), 0, 1)
        return curves[:, right - 1] * (1 - share) + curves[:, right] * share

    return middle, at(middle + half) - at(middle - half)
