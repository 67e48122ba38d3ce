"""A noisy curve over training, smoothed in log time; and every curve that it might have been, smoothed alike.

    y(t_i) = m(t_i) + g(t_i) + e_i,    e_i ~ N(0, noise_i^2)

    spline    m = c + d t, g the integral of a random walk: A (m^2 (3 M - m)) / 6, m and M the earlier and the later of two times
    rbf       m = c,       g ~ A exp(-(t - t')^2 / 2 l^2)

Coefficients of ``m`` have no prior; ``A`` (and ``l``) maximise the restricted likelihood, over a grid. The noise is what is
known of the errors and is not fitted: with it free, a wild curve without noise explains few checkpoints just as well. Smoothing
is then linear, ``S y``, and drawn curves are smoothed by the same ``S``.

The spline is the default and the papers' kernel the other, for checkpoints lie where something happens: a length scale short
enough for a sharp rise pulls the curve to its mean in the wide gaps elsewhere, which a spline crosses without a bend.

What smoothing flattens is an error too, which no bootstrap sees. So each drawn curve gets ``p - S p`` of a path ``p`` of the
fitted process: the spread of ``S e + (p - S p)`` is the posterior's, which for curves as smooth as the process covers on
average over time (Nychka 1988).

Source: ``rbf`` in log time is that of Wang et al. 2024's notebook for the stages of the LLC; ``spline``, Wahba 1978. The fixed
noise and ``p - S p`` are ours. Equations: Rasmussen & Williams 2006, sections 2.7, 5.4 and 6.3.1.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.dynamics.stage_curves import Errors

KERNELS = ("spline", "rbf")
SCALES, AMPLITUDES = 16, 60
"""Points of the grid: ``l`` from the median spacing of checkpoints to twice the whole time. ``A``, in variances and for the whole
time, from 0.01 to 100 (rbf), or from 0.001 to 1e9 (spline): from a line to a bend at every other of 100 checkpoints."""
POINTS = 240
"""About as many times as the smoothed curve is given at, checkpoints among them."""


class Smooth(NamedTuple):
    """A smoothed curve.

    Attributes:
        time: log times, those of the checkpoints among them. value: there. values: of each drawn curve.
    """

    time: Float[np.ndarray, "time"]
    value: Float[np.ndarray, "time"]
    values: Float[np.ndarray, "draw time"]


def smooth(
    time: Float[np.ndarray, "step"], curve: Float[np.ndarray, "step"], errors: Errors, *, kernel: str = "spline", seed: int = 0
) -> Smooth:
    """Smooth a curve and what it might have been.

    Args:
        time: log times of the checkpoints. curve: finite. errors: see there. kernel: "spline" or "rbf". seed: of the paths ``p``,
        another one for each of several curves: what smoothing does to one says nothing of the other.

    Raises:
        ValueError: an unknown kernel.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}: need one of {', '.join(KERNELS)}")
    centre = float(curve.mean())
    size = float(curve.std()) or float(errors.noise.max()) or 1.0  # a curve that never moves is smooth at any amplitude
    # Of all of it 1e-3 at least: keeps the equations solvable where errors are next to none.
    noise = np.maximum(errors.noise / size, 1e-3)
    span = float(np.ptp(time))
    u = (time - time[0]) / span
    scale, amplitude, axes, variance = _likeliest(u, (curve - centre) / size, noise, kernel)
    parts = max(POINTS // len(time), 2)
    at = np.r_[(u[:-1, None] + np.diff(u)[:, None] * np.arange(parts) / parts).ravel(), 1.0]
    inverse = (axes / variance) @ axes.T / np.outer(noise, noise)
    fixed = _fixed(u, kernel)
    coefficients = np.linalg.solve(fixed.T @ inverse @ fixed, fixed.T @ inverse)
    rest = inverse @ (np.eye(len(u)) - fixed @ coefficients)
    smoother = _fixed(at, kernel) @ coefficients + amplitude * _kernel(at, u, scale) @ rest
    lam, axes = np.linalg.eigh(amplitude * _kernel(at, at, scale))
    kept = lam > 1e-12 * lam[-1]
    normal = np.random.default_rng([seed, 1]).standard_normal((len(errors.curves), int(kept.sum())))
    paths = size * normal @ (axes[:, kept] * np.sqrt(lam[kept])).T
    values = centre + (errors.curves - centre - paths[:, ::parts]) @ smoother.T + paths
    return Smooth(time[0] + span * at, centre + smoother @ (curve - centre), values)


def _fixed(u: np.ndarray, kernel: str) -> np.ndarray:
    return np.stack([np.ones_like(u), u][: 2 if kernel == "spline" else 1], 1)


def _kernel(a: np.ndarray, b: np.ndarray, scale: float | None) -> np.ndarray:
    """For variance 1: of the path at the end (spline), or anywhere (rbf, which has a length scale)."""
    if scale is not None:
        return np.exp(-0.5 * ((a[:, None] - b) / scale) ** 2)
    first, second = np.minimum(a[:, None], b), np.maximum(a[:, None], b)
    return first**2 * (3 * second - first) / 2


def _likeliest(
    u: np.ndarray, y: np.ndarray, noise: np.ndarray, kernel: str
) -> tuple[float | None, float, np.ndarray, np.ndarray]:
    """``l`` and ``A`` of largest restricted likelihood; the axes on which ``y / noise`` is independent, its variances there."""
    if kernel == "spline":
        scales, amplitudes = [None], np.geomspace(1e-3, 1e9, AMPLITUDES)
    else:
        scales, amplitudes = list(np.geomspace(np.median(np.diff(u)), 2, SCALES)), np.geomspace(0.01, 100, AMPLITUDES)
    best, least = None, np.inf
    for scale in scales:
        lam, axes = np.linalg.eigh(_kernel(u, u, scale) / np.outer(noise, noise))
        z, x = axes.T @ (y / noise), axes.T @ (_fixed(u, kernel) / noise[:, None])
        variance = 1 + amplitudes[:, None] * np.maximum(lam, 0)
        information = np.einsum("na,nb,kn->kab", x, x, 1 / variance)
        mean = np.linalg.solve(information, np.einsum("na,n,kn->ka", x, z, 1 / variance)[:, :, None])[:, :, 0]
        misfit = ((z - mean @ x.T) ** 2 / variance + np.log(variance)).sum(1) + np.linalg.slogdet(information)[1]
        i = int(misfit.argmin())
        if misfit[i] < least:
            best, least = (scale, float(amplitudes[i]), axes, variance[i]), float(misfit[i])
    assert best is not None
    return best
