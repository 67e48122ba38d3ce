"""The decoder of Scan & Snap as a clock: how far it has learned, and how hard it drives attention.

Where labels' features hardly overlap, the decoder's logits are ``F^T Y = (M - 1) h(t) zeta`` with one number ``h`` (lemmas 5, 6):

    e^{M h} + (M - 1) M h = M eta_y t / K + 1

Attention is driven at the speed ``gamma = (M - 1)^2 h / (M - 1 + e^{M h})`` (theorem 1): it grows while the decoder learns, and
falls as ``1 / t`` once it has, the *snap*. Its integral needs no integration:

    Gamma(t) = eta_z int_0^t gamma = eta_z / eta_y K (M - 1)^2 h(t)^2 / 2

Features that do overlap slow the decoder down: with equal ``f_n . f_n' = rho`` its rate is ``(1 - rho) eta_y`` (remark 1).

The paper has other labels push by ``beta_nn' = f_n . f_n'``, from an ``F^T Y`` of that form whatever ``F``. From ``Y(0) = 0`` the
gradient keeps ``Y = F A``, and for equal overlaps ``A`` has three different entries, which ``frozen_push`` follows: what drives
attention is at first ``gamma / M``, whatever the overlap, and stays nearer to that than to ``gamma rho``.

Source: Tian et al. 2023, section 4. Theorem 4's ``B`` is given here with the constant that makes ``B(0) = 0``.
"""

import math
from typing import NamedTuple

import numpy as np

from circuits.data.classes import SequenceClasses

RTOL, ATOL = 1e-10, 1e-13
"""Of integrators; logits are of order 1, their first moves some 1e-8."""


class Phases(NamedTuple):
    """Times of the theory, in steps.

    Attributes:
        scanning_ends: ``t0' = K ln M / eta_y``. peak: where ``gamma`` peaks. snapping_begins: ``t0 = 2 K ln M / eta_y``, without
            the paper's ``1 + O(ln ln M / ln M)``.
    """

    scanning_ends: float
    peak: float
    snapping_begins: float


def decoder_clock(times: np.ndarray, *, eta_y: float, labels: int, d_vocab: int) -> np.ndarray:
    """``h(t)``, the decoder's clock: solved for ``M h`` by bisection, to rounding.

    Args:
        times: steps, from 0 up. eta_y: the decoder's rate; ``(1 - rho) eta_y`` where features overlap. labels, d_vocab: ``K, M``.

    Returns:
        ``h`` at each time; ``e^{M h} / (M - 1 + e^{M h})`` is the probability of the right label.

    Source: Tian et al. 2023, lemmas 5 and 6.
    """
    right = d_vocab * eta_y * np.asarray(times, dtype=np.float64) / labels
    # Both terms on the left, e^x - 1 and (M - 1) x, are at most the right-hand side.
    low, high = np.zeros_like(right), np.minimum(np.log1p(right), right / max(d_vocab - 1, 1))
    for _ in range(100):
        middle = (low + high) / 2
        below = np.expm1(middle) + (d_vocab - 1) * middle < right
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high / d_vocab


def speed(h: np.ndarray, *, d_vocab: int) -> np.ndarray:
    """``gamma``, how fast attention is driven when the decoder stands at ``h`` (theorem 1); 0 at both ends."""
    return (d_vocab - 1) ** 2 * h / (d_vocab - 1 + np.exp(d_vocab * h))


def driven(h: np.ndarray, *, eta_y: float, eta_z: float, labels: int, d_vocab: int) -> np.ndarray:
    """``Gamma``: ``eta_z`` times the integral of ``gamma`` up to the time at which the decoder stands at ``h``."""
    return eta_z / eta_y * labels * (d_vocab - 1) ** 2 * np.square(h) / 2


def growth(gamma_total: np.ndarray, *, constant: float) -> np.ndarray:
    """``B_n = 1/4 ln(1 + 4 Gamma / C0)``: how far attention has moved where one common token leads, ``z_common = -B_n``.

    A distinct token's ``z`` rises by ``f^2 / K`` for each unit of ``B_n``. The paper writes ``1/4 ln(C0 + 4 Gamma)``, which is
    not 0 at ``t = 0``.

    Args:
        gamma_total: ``Gamma``. constant: ``C0``, the paper's ``rho_0^4 / K``; see ``growth_constant``.

    Source: Tian et al. 2023, theorem 4.
    """
    return np.log1p(4 * np.asarray(gamma_total) / constant) / 4


def growth_constant(classes: SequenceClasses) -> float:
    """``C0`` of theorem 4 without its ``K - 1 ~ K``: ``1 / ((K - 1) rho^2)``, where one common token makes up ``rho = f_c^2``.

    Raises:
        ValueError: features that do not overlap: by theorem 4 attention then never moves.
    """
    if classes.n_labels < 2 or not classes.overlap > 0:
        raise ValueError("these classes share no tokens, so theorem 4 has nothing to suppress: give them a common token")
    return 1 / ((classes.n_labels - 1) * classes.overlap**2)


def phases(*, eta_y: float, labels: int, d_vocab: int, overlap: float = 0.0) -> Phases:
    """When attention moves fastest, and between which times.

    ``gamma`` peaks where ``(x - 1) e^x = M - 1`` with ``x = M h``, that is at ``x = 1 + W((M - 1) / e)``.

    Args:
        eta_y: the decoder's rate. labels, d_vocab: ``K, M``. overlap: ``rho``, which makes all three later by ``1 / (1 - rho)``.

    Returns:
        The times; the peak is 0.82 to 0.93 of ``scanning_ends`` for ``M`` from 1000 down to 34.

    Raises:
        ValueError: a rate that is not positive, fewer than two outputs, or an overlap outside [0, 1).

    Example:
        >>> [round(at, 1) for at in phases(eta_y=0.5, labels=10, d_vocab=1000)]
        [138.2, 112.8, 276.3]
    """
    if not eta_y > 0 or d_vocab < 2 or not 0 <= overlap < 1:
        raise ValueError(
            f"eta_y={eta_y}, d_vocab={d_vocab}, overlap={overlap}: need a positive rate, 2 outputs, overlap in [0, 1)"
        )
    from scipy.special import lambertw

    rate = (1 - overlap) * eta_y
    x = 1 + float(lambertw((d_vocab - 1) / math.e).real)
    unit = labels * math.log(d_vocab) / rate
    return Phases(unit, labels / rate * (math.expm1(x) + (d_vocab - 1) * x) / d_vocab, 2 * unit)


def frozen_push(learned: np.ndarray, *, labels: int, d_vocab: int, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """What drives attention while features stand still, exactly, for labels that all overlap by ``rho``.

    The decoder is ``Y = F A`` with ``A`` ``a`` at the right label, ``-b`` at the other labels and ``-u`` at unused outputs. In
    units ``s = eta_y t / K``

        da/ds = 1 - alpha_right        db/ds = alpha_other        du/ds = alpha_unused

    and ``Y (e_n - alpha_n)`` is, but for a multiple of ``f_n``, ``-push sum_{n' != n} f_n'`` with

        push = a alpha_other + b (1 - alpha_right) - (K - 2) b alpha_other - (M - K) u alpha_unused

    Args:
        learned: ``s``, rising, from 0 up. labels, d_vocab: ``K, M``. overlap: ``rho``.

    Returns:
        ``push``, the theory's ``gamma beta``, and its integral over ``s``.

    Source: lemma 1 of Tian et al. 2023, with ``Z`` held; not in the paper.
    """
    from scipy.integrate import solve_ivp

    others, unused = labels - 1, d_vocab - labels

    def push(state: np.ndarray) -> np.ndarray:
        """``alpha`` of another label and of an unused output, and the push."""
        a, b, u = state[:3]
        shared = overlap * (a - others * b)
        logits = np.stack([(1 - overlap) * a + shared, shared - (1 - overlap) * b, -(1 - overlap + overlap * labels) * u])
        weight = np.exp(logits - logits.max(0))
        _, other, none = weight / (weight[0] + others * weight[1] + unused * weight[2])
        wrong = others * other + unused * none  # 1 - alpha_right, which rounding would spoil
        return np.stack([other, none, a * other + b * wrong - (labels - 2) * b * other - unused * u * none])

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        other, none, pushing = push(state)
        return np.array([others * other + unused * none, other, none, pushing])

    end = max(float(learned[-1]), np.finfo(float).tiny)
    found = solve_ivp(slope, (0.0, end), np.zeros(4), method="DOP853", t_eval=learned, rtol=RTOL, atol=ATOL).y
    return push(found)[2], found[3]
