"""The best places for a given number of boundaries between straight pieces that meet: least squares, for many curves at once.

    y(t) = a + b t + sum_k c_k (t - tau_k)_+ ,    chi2 = sum_i ((y_i - y(t_i)) / noise_i)^2

``ruptures`` gives the best partition into pieces that need not meet (dynamic programming). From there, and from the boundaries
found for one fewer with the best one added, each ``tau_k`` in turn is moved to its best place between its neighbours until none
moves: first over places on a grid, then to where the lines at both sides of it meet. Neither start alone finds all; a better
one than both is possible, for the misfit has many valleys. A piece has at least two checkpoints.

Source: ``ruptures``, Truong et al. 2020; pieces that meet, Hudson 1966.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ruptures.base import BaseCost

PIECE = 2
"""Checkpoints that a piece has at least."""
PLACES = 120
"""About as many places are tried for a boundary, before it is put where lines meet."""
SWEEPS = 6


class StraightPieces:
    """Least squares of straight pieces that meet, for many curves on one set of checkpoints."""

    def __init__(self, time: np.ndarray, weight: np.ndarray) -> None:
        self.time, self.weight = time, weight
        parts = max(PLACES // len(time), 1)
        places = (time[:-1, None] + np.diff(time)[:, None] * np.arange(parts) / parts).ravel()
        self.places = places[places >= time[PIECE - 1]]
        self.hinges = np.maximum(time[:, None] - self.places, 0) * weight[:, None]
        self.count = np.searchsorted(time, self.places, side="right")

    def basis(self, tau: np.ndarray) -> np.ndarray:
        """``[draw, step, 2 + boundary]``, weighted."""
        ramp = np.maximum(self.time[:, None] - tau[:, None, :], 0)
        line = np.broadcast_to(np.stack([np.ones_like(self.time), self.time], 1), (*ramp.shape[:2], 2))
        return np.concatenate([line, ramp], 2) * self.weight[:, None]

    def residual(self, curves: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is left of each weighted curve, and the orthonormal axes that were taken out, ``[draw, step, axis]``."""
        axes = np.linalg.qr(self.basis(tau))[0]
        y = (curves * self.weight)[:, :, None]
        return (y - axes @ (axes.transpose(0, 2, 1) @ y))[:, :, 0], axes

    def misfit(self, curves: np.ndarray, tau: np.ndarray) -> np.ndarray:
        return (self.residual(curves, tau)[0] ** 2).sum(1)

    def slopes(self, curves: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slopes of the pieces and their changes, ``[curve, ...]``."""
        coefficients = (curves * self.weight) @ np.linalg.pinv(self.basis(tau[None])[0]).T
        return coefficients[:, 1:].cumsum(1), coefficients[:, 2:]

    def gain(self, curves: np.ndarray, tau: np.ndarray) -> np.ndarray:
        """By how much a boundary more lowers chi2, at each place.

        The part of its hinge ``z`` that the others leave, ``z - Q Q'z``, is one axis more: ``(z'r)^2 / (|z|^2 - |Q'z|^2)``.
        """
        left, axes = self.residual(curves, tau)
        whole = (self.hinges**2).sum(0)
        rest = whole - ((axes.transpose(0, 2, 1) @ self.hinges) ** 2).sum(1)
        return np.divide((left @ self.hinges) ** 2, rest, out=np.zeros((len(curves), len(whole))), where=rest > 1e-9 * whole)

    def settle(self, curves: np.ndarray, tau: np.ndarray) -> np.ndarray:
        """Move each boundary in turn until none moves, first over places, then to where lines meet: the misfit never rises."""
        for move, sweeps in ((self.placed, SWEEPS), (self.met, SWEEPS // 2)):
            for _ in range(sweeps if tau.shape[1] > 1 else 1):
                before, tau = tau, tau.copy()
                for k in range(tau.shape[1]):
                    found = move(curves, tau, k)
                    tau[:, k] = np.where(np.isnan(found), tau[:, k], found)
                if np.allclose(tau, before, rtol=0, atol=1e-6):
                    break
        return tau

    def placed(self, curves: np.ndarray, tau: np.ndarray, k: int) -> np.ndarray:
        """The best place of one boundary that leaves a piece to both sides; NaN if there is none."""
        bounds = np.searchsorted(self.time, tau, side="right")
        low = bounds[:, k - 1] if k else np.zeros(len(tau), int)
        high = bounds[:, k + 1] if k < tau.shape[1] - 1 else np.full(len(tau), len(self.time))
        fits = (self.count >= low[:, None] + PIECE) & (self.count <= high[:, None] - PIECE)
        gain = np.where(fits, self.gain(curves, np.delete(tau, k, 1)), -1.0)
        return np.where(fits.any(1), self.places[gain.argmax(1)], np.nan)

    def met(self, curves: np.ndarray, tau: np.ndarray, k: int) -> np.ndarray:
        """The best boundary between the two checkpoints where one is; NaN if lines meet elsewhere.

        At checkpoints ``c (t - tau)_+`` is ``c t - c tau`` beyond the boundary: with both free, ``tau`` is less the second by the
        first, and no other has less misfit as long as no checkpoint lies between (Hudson 1966).
        """
        after = np.searchsorted(self.time, tau[:, k], side="right")
        beyond = np.arange(len(self.time)) >= after[:, None]
        columns = np.stack([beyond * self.time, beyond], 2) * self.weight[:, None]
        basis = np.concatenate([self.basis(np.delete(tau, k, 1)), columns], 2)
        slope, level = (np.linalg.pinv(basis)[:, -2:] @ (curves * self.weight)[:, :, None])[:, :, 0].T
        found = np.divide(-level, slope, out=np.full(len(tau), np.nan), where=slope != 0)
        last = np.minimum(after, len(self.time) - 1)
        return np.where((found >= self.time[after - 1]) & (found < self.time[last]), found, np.nan)

    def path(self, curve: np.ndarray, most: int) -> Iterator[np.ndarray]:
        """The boundaries found for every number of them, from 0 to ``most``."""
        found = np.empty(0)
        yield found
        partition = self.partition(curve)
        for number in range(1, most + 1):
            cuts = np.array(partition.predict(number)[:-1])
            starts = [self.added(curve, found), (self.time[cuts - 1] + self.time[cuts]) / 2]
            settled = [self.settle(curve[None], start[None])[0] for start in starts if len(start) == number]
            found = min(settled, key=lambda tau: self.misfit(curve[None], tau[None])[0])
            yield found

    def added(self, curve: np.ndarray, tau: np.ndarray) -> np.ndarray:
        """The boundaries and the best one more; as they were where there is no room."""
        bounds = np.r_[0, np.searchsorted(self.time, tau, side="right"), len(self.time)]
        gain = self.gain(curve[None], tau[None])[0]
        fits = (np.abs(self.count[:, None] - bounds) >= PIECE).all(1)
        return np.sort(np.r_[tau, self.places[np.where(fits, gain, -1.0).argmax()]]) if fits.any() else tau

    def partition(self, curve: np.ndarray) -> Any:
        """The dynamic programme of ``ruptures``, fitted."""
        from ruptures import Dynp

        jump = max(len(self.time) // 40, 1)
        return Dynp(custom_cost=_lines(self.time, self.weight), min_size=PIECE, jump=jump).fit(curve[:, None])


def _lines(time: np.ndarray, weight: np.ndarray) -> "BaseCost":
    """The cost of a piece for ``ruptures``: what a line of its own leaves, from running sums."""
    from ruptures.base import BaseCost

    class Lines(BaseCost):
        min_size = PIECE

        @property
        def model(self) -> str:
            return "line in log time"

        def fit(self, signal: np.ndarray) -> "Lines":
            self.signal = signal
            y, t, w = signal[:, 0] - signal.mean(), time - time.mean(), weight**2
            terms = w[:, None] * np.stack([np.ones_like(t), t, t * t, y, t * y, y * y], 1)
            self.sums = np.concatenate([np.zeros((1, 6)), np.cumsum(terms, 0)])
            return self

        def error(self, start: int, end: int) -> float:
            one, t, tt, y, ty, yy = self.sums[end] - self.sums[start]
            spread = tt - t * t / one
            return max(yy - y * y / one - ((ty - t * y / one) ** 2 / spread if spread > 0 else 0.0), 0.0)

    return Lines()
