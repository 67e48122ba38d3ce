"""Where a curve over training changes its slope: straight pieces in log time, joined at boundaries.

    y(t) = a + b t + sum_k c_k (t - tau_k)_+ ,    chi2 = sum_i ((y_i - y(t_i)) / noise_i)^2

How the best places are found: ``stage_pieces``. The number of boundaries is given, or minimises

    n ln phi + chi2 / phi + penalty p n / (n - p - 1),    phi = max(1, chi2 / n),    p = 2 + 2 K,    penalty = ln n

This is BIC with noise no smaller than it is said to be, and larger where pieces are not straight; where the noise is not known,
``phi = chi2 / n``, which is one parameter more. The factor ``n / (n - p - 1)`` is that of AICc: without it few checkpoints bend
at every whim. On noise alone at most 1 in 60 curves gets a boundary (8 to 100 checkpoints), at most 1 in 25 where the noise is
not known. A random walk gets some, for it does bend: a boundary says where, not that something caused it.

The interval is for the number of boundaries settled on: each drawn curve has its own best places. It always reaches to
checkpoints. A boundary is "clear" where its change of slope exceeds three errors, what examples share included; else "unclear".

Source: BIC and its like for the number of pieces, Yao 1988; the bound on the noise, the factor and the intervals are ours.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from circuits.dynamics.bounce import CLEAR
from circuits.dynamics.stage_curves import (
    LEVEL,
    Errors,
    Event,
    check_curve,
    independent_errors,
    interval,
    log_time,
    steps_of,
    unit_of,
)
from circuits.dynamics.stage_pieces import PIECE, StraightPieces
from circuits.results import check_whole

MOST = 6
"""Boundaries that are tried where their number is not given, ..."""
PATIENCE = 3
"""... until as many more are no better: a bump takes three, of which the first two may gain little."""
ROOM = 20
"""Boundaries that can be asked for."""


class Pieces(NamedTuple):
    """Straight pieces.

    Attributes:
        events: the boundaries, in order of time. slopes: of the pieces, per unit of log time. criterion: by number of boundaries,
        from 0 to the most that were tried; the least was taken where the number was not given.
    """

    events: tuple[Event, ...]
    slopes: Float[np.ndarray, "piece"]
    criterion: tuple[float, ...]


def change_points(
    steps: Real[np.ndarray, "step"],
    curve: Float[np.ndarray, "step"],
    *,
    n: int | None = None,
    penalty: float | None = None,
    errors: Errors | None = None,
    unit: float | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Pieces:
    """Boundaries of a curve, by the rule at the top of this module.

    Args:
        steps: rising. curve: finite. n: how many boundaries; None: by the criterion, at most 6. penalty: of each parameter
        (default: ln of the number of checkpoints). errors, unit, level, seed: as in ``emergence_time``.

    Raises:
        ValueError: see ``check_curve``; ``n`` and ``penalty`` both given, or more boundaries than checkpoints allow.
    """
    check_curve(steps, curve)
    if n is not None and penalty is not None:
        raise ValueError("n and penalty are both given; a number that is fixed needs no penalty")
    room = min(len(steps) // PIECE - 1, ROOM)
    if n is not None:
        check_whole("n", n, 0)
        if n > room:
            raise ValueError(f"{len(steps)} checkpoints have room for {room} boundaries, not {n}; give fewer")
    if penalty is not None and not penalty > 0:
        raise ValueError(f"penalty={penalty!r}: need a number above 0, such as ln of the number of checkpoints")
    clock = unit or unit_of(steps)
    time = log_time(steps, clock)
    drawn = independent_errors(steps, curve, unit=clock, seed=seed) if errors is None else errors
    size = float(np.ptp(curve)) or float(drawn.noise.max()) or 1.0
    fit = StraightPieces(time, 1 / np.maximum(drawn.noise, 1e-4 * size))
    known = drawn.kind != "residuals"
    price = float(np.log(len(time))) if penalty is None else penalty
    path, scores = [], []
    for tau in fit.path(curve, min(room, MOST) if n is None else n):
        path.append(tau)
        scores.append(_criterion(float(fit.misfit(curve[None], tau[None])[0]), len(time), len(tau), known, price))
        if n is None and len(scores) > int(np.argmin(scores)) + PATIENCE:
            break
    tau = path[int(np.argmin(scores))] if n is None else path[n]
    slopes, changes = fit.slopes(np.concatenate([curve[None], drawn.curves]), tau)
    spread = changes[1:].std(0, ddof=1)
    places = fit.settle(drawn.curves, np.tile(tau, (len(drawn.curves), 1)))
    events = []
    for k, when in enumerate(steps_of(tau, clock)):
        times = steps_of(places[:, k], clock)
        low, high = interval(times, float(when), steps, level, outward=True)
        state = "clear" if abs(changes[0, k]) > CLEAR * spread[k] else "unclear"
        events.append(Event("boundary", state, float(when), low, high, times))
    return Pieces(tuple(events), slopes[0], tuple(scores))


def _criterion(chi2: float, n: int, boundaries: int, known: bool, penalty: float) -> float:
    p = 2 + 2 * boundaries + (not known)
    if n - p - 1 <= 0:
        return np.inf if boundaries else 0.0
    phi = max(float(known), chi2 / n, np.finfo(float).tiny)
    return float(n * np.log(phi) + chi2 / phi + penalty * p * n / (n - p - 1))
