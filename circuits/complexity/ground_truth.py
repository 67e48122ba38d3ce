"""Losses whose learning coefficient is known: monomials, deep linear networks, quadratics.

The learning coefficient ``lambda`` of a loss ``K >= 0`` at a zero ``w*`` is the exponent of the volume near it,
``Vol{K < e} ~ e^lambda (-log e)^(m - 1)`` with multiplicity ``m``; at inverse temperature ``nbeta`` the mean of
``nbeta K`` tends to ``lambda``, from below by ``(m - 1) / log nbeta``.

    1/2 sum_i w_i^p_i        lambda = sum_i 1 / p_i
    prod_i w_i^p_i           lambda = min_i 1 / p_i, m = how many attain it (normal crossing)
    deep linear network      Aoyagi's formula, ``dln_learning_coefficient``
    quadratic                half the number of curved directions; ``local_estimate`` is exact at any temperature

Targets of the linear networks carry no noise: ``y = f(w*, x)``. The coefficient is that of ``K``, the divergence of
``f(w)`` from the truth under unit noise, ``E 1/2 |f(w, x) - f(w*, x)|^2``, and this is then what is sampled, with ``w*``
its minimum. Noise would move the estimate at the true parameter by a random ``sqrt(lambda / 2 log n)`` or so (Watanabe
2013): that is an error of having ``n`` samples, and says nothing about a sampler.

Sources: Watanabe 2009; Aoyagi & Watanabe 2005 (two layers); Aoyagi 2024 (any depth); Lau et al. 2023 (as a test of estimators).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.complexity.config import STABLE, SamplerConfig

EXAMPLES = 128
"""Inputs of a deep linear network, all of them in every batch."""
SAMPLES_PER_UNIT = 500
"""``n`` for each unit of a layer's mean width, in ``settings``."""
GAINS = 0.75, 1.25
"""Between these lie the singular values of every layer of a true parameter that are not zero."""
STEP = 0.6
"""``epsilon`` times the sharpest curvature of the log posterior expected by ``settings``; ``STABLE`` is 4."""


class LocalEstimate(NamedTuple):
    """What sampling a quadratic loss tends to; NaN where the posterior is unbounded."""

    value: float
    bounded: bool


def local_estimate(
    h: Float[Tensor, "direction"], g: Float[Tensor, "direction"], nbeta: float, gamma: float, *, epsilon: float = 0.0
) -> LocalEstimate:
    """``nbeta (E[L(w)] - L(w*))`` of a quadratic loss under its local posterior.

    With ``a = nbeta h + gamma`` the posterior is normal around ``w* - nbeta g / a`` with variances ``1 / a``, so

        sum_i  nbeta h_i / 2 a_i - ((nbeta g_i)^2 / a_i) (1 - nbeta h_i / 2 a_i)

    Args:
        h: eigenvalues of the Hessian at ``w*``. g: gradient there, in the same basis.
        epsilon: step of plain SGLD with exact gradients, whose variances are ``1 / a (1 - epsilon a / 4)``; 0: the posterior's.

    Returns:
        The value, at most half the number of directions where ``epsilon`` is 0; negative where the gradient or negative
        curvature leads. ``bounded`` is False, and the value NaN, where some ``a <= 0`` or ``epsilon a >= 4``.

    Source: Lau et al. 2023 (the estimator); a Gaussian integral.
    """
    curvature, slope = nbeta * h.double(), nbeta * g.double()
    a = curvature + gamma
    shrink = 1 - epsilon * a / STABLE
    if not bool(((a > 0) & (shrink > 0)).all()):
        return LocalEstimate(math.nan, False)
    value = curvature / (2 * a * shrink) - slope.square() / a * (1 - curvature / (2 * a))
    return LocalEstimate(float(value.sum()), True)


class _Exact:
    """A loss that is a function of the weights alone: one example, which stands for all. ``w*`` is the origin, its loss 0."""

    def __init__(self, centre: Float[Tensor, "parameter"]):
        self.centre = centre
        self.base = centre.new_zeros(1)

    def _value(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain"]:
        raise NotImplementedError

    def _gradient(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain parameter"]:
        raise NotImplementedError

    def loss(self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]) -> Float[Tensor, "chain example"]:
        """The value, for every example."""
        return self._value(w)[:, None].expand(examples.shape)

    def loss_and_gradient(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> tuple[Float[Tensor, "chain example"], Float[Tensor, "chain parameter"]]:
        """The same, and its gradient."""
        return self.loss(w, examples), self._gradient(w)


class Quadratic(_Exact):
    """``g . w + 1/2 w H w``: what ``local_estimate`` is of. ``hessian [parameter, parameter]`` is symmetric."""

    def __init__(self, hessian: Float[Tensor, "parameter parameter"], gradient: Float[Tensor, "parameter"]):
        super().__init__(torch.zeros_like(gradient))
        self.hessian, self.gradient = hessian, gradient

    def _value(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain"]:
        return w @ self.gradient + (w @ self.hessian * w).sum(-1) / 2

    def _gradient(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain parameter"]:
        return self.gradient + w @ self.hessian


class Monomials(_Exact):
    """``1/2 sum_i w_i^p_i``, even powers: at ``gamma = 0`` the mean of ``nbeta`` times it is ``sum_i 1 / p_i`` at any ``nbeta``.

    Raises:
        ValueError: no powers, or one that is not even and positive.
    """

    def __init__(self, powers: Sequence[int]):
        self.powers = _even(powers)
        super().__init__(torch.zeros(len(self.powers), dtype=torch.float64))
        self.learning_coefficient = float((1 / self.powers).sum())

    def _value(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain"]:
        return (w**self.powers).sum(-1) / 2

    def _gradient(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain parameter"]:
        return self.powers * w ** (self.powers - 1) / 2


class NormalCrossing(_Exact):
    """``prod_i w_i^p_i``, even powers: what every analytic loss is in some coordinates (Hironaka; Watanabe 2009, chapter 2).

    Its zeros reach to infinity, so only ``gamma > 0`` gives a posterior. ``learning_coefficient`` is approached slowly: what is
    missing falls as ``(m - 1) / log nbeta``, or as ``nbeta`` to minus the difference of the two smallest ``1 / p_i``.

    Raises:
        ValueError: no powers, or one that is not even and positive.
    """

    def __init__(self, powers: Sequence[int]):
        self.powers = _even(powers)
        super().__init__(torch.zeros(len(self.powers), dtype=torch.float64))
        self.learning_coefficient = float(1 / self.powers.max())
        self.multiplicity = int((self.powers == self.powers.max()).sum())

    def _value(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain"]:
        return (w**self.powers).prod(-1)

    def _gradient(self, w: Float[Tensor, "chain parameter"]) -> Float[Tensor, "chain parameter"]:
        own = torch.eye(len(self.powers), dtype=torch.bool)
        others = torch.where(own, 1.0, (w**self.powers)[:, None]).prod(-1)
        return self.powers * w ** (self.powers - 1) * others


def dln_learning_coefficient(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """The learning coefficient and multiplicity of ``y = W_L ... W_1 x + N(0, I)`` where the true product has this rank.

    Of the spare widths ``M_i = H_i - rank`` the smallest ``l + 1`` count: those whose sum ``S`` is at least ``l`` times each of
    them and less than ``l`` times each other one. With ``a = S mod l``

        lambda = (rank (H_0 + H_L) - rank^2) / 2 + (S^2 + a (l - a)) / 4l - 1/4 sum M_i^2,     m = a (l - a) + 1

    Args:
        widths: ``H_0`` (inputs) to ``H_L`` (outputs), two or more. rank: 0 to the smallest width.

    Returns:
        ``lambda``, at most half the number of weights, and ``m``.

    Raises:
        ValueError: fewer than two widths, one below 1, or a rank they cannot have.

    Source: Aoyagi 2024, main theorem; its sum over pairs is written by the square of the sum here.

    Example:
        >>> dln_learning_coefficient([50, 50, 50, 50, 50], 20)
        (1081.5, 5)
    """
    _check_network(widths, rank)
    spare = sorted(width - rank for width in widths)
    layers = next(
        count
        for count in range(1, len(spare))
        if sum(spare[: count + 1]) >= count * spare[count]
        and all(spare[count] < other and sum(spare[: count + 1]) < count * other for other in spare[count + 1 :])
    )
    chosen = spare[: layers + 1]
    total = sum(chosen)
    a = total % layers  # the paper's is l where this is 0, with the same a (l - a); then l divides S^2 + a (l - a)
    quarters = (total**2 + a * (layers - a)) // layers - sum(m**2 for m in chosen)
    return (rank * (widths[0] + widths[-1]) - rank**2) / 2 + quarters / 4, a * (layers - a) + 1


class DeepLinearNetwork:
    """``mean over x of 1/2 |W_L ... W_1 x - W* x|^2`` at a true parameter of known learning coefficient; a ``chains.Loss``.

    Every layer of ``w*`` has the rank of the product, writes where the next one reads, and is oriented at random: of all
    parameters with this product the most singular kind. Aoyagi's coefficient is the smallest over all of them, and attained
    here; where a layer's rank is larger the coefficient may be (``[10, 10, 10]``, rank 0: 37.5 where both layers are 0, and 50
    where one is invertible).

    Inputs are Gaussian, then made white: the loss depends on them through their covariance alone, so with the identity it is
    ``1/2 |W - W*|^2`` whatever their number, and ``n`` need not be it.

    Args:
        widths, rank: see ``dln_learning_coefficient``. examples: inputs, at least ``H_0``. seed: of weights and inputs.

    Raises:
        ValueError: widths, rank or examples that do not fit.
    """

    def __init__(self, widths: Sequence[int], rank: int, *, examples: int = EXAMPLES, seed: int = 0):
        self.learning_coefficient, self.multiplicity = dln_learning_coefficient(widths, rank)
        if examples < widths[0]:
            raise ValueError(f"{examples} examples cannot span {widths[0]} inputs; give at least {widths[0]}")
        rng = torch.Generator().manual_seed(seed)
        self.shapes = [(rows, columns) for columns, rows in pairwise(widths)]
        spaces = [_frame(width, rank, rng) for width in widths]
        low, high = GAINS
        layers = [
            after @ _frame(rank, rank, rng) @ torch.diag(low + (high - low) * torch.rand(rank, generator=rng)) @ before.T
            for before, after in pairwise(spaces)
        ]
        self.centre = torch.cat([layer.flatten() for layer in layers])
        self.x: Float[Tensor, "example input"] = _frame(examples, widths[0], rng) * examples**0.5
        self.y: Float[Tensor, "example output"] = self._activations(self.layers(self.centre[None]), self.x[None])[-1][0]
        self.base = self.x.new_zeros(examples)

    def layers(self, w: Float[Tensor, "chain parameter"]) -> list[Float[Tensor, "chain _ _"]]:
        """``W_1`` to ``W_L`` of every chain."""
        parts = w.split([rows * columns for rows, columns in self.shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def loss(self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]) -> Float[Tensor, "chain example"]:
        """Half the squared distance from the target."""
        outputs = self._activations(self.layers(w), self.x[examples])[-1]
        return (outputs - self.y[examples]).square().sum(-1) / 2

    def loss_and_gradient(
        self, w: Float[Tensor, "chain parameter"], examples: Int[Tensor, "chain example"]
    ) -> tuple[Float[Tensor, "chain example"], Float[Tensor, "chain parameter"]]:
        """The same, and the gradient of each chain's mean, by backpropagation written out."""
        layers = self.layers(w)
        *inputs, outputs = self._activations(layers, self.x[examples])
        residual = outputs - self.y[examples]
        back, gradients = residual / examples.shape[1], []
        for layer, read in zip(reversed(layers), reversed(inputs), strict=True):
            gradients.append((back.mT @ read).flatten(1))
            back = back @ layer
        return residual.square().sum(-1) / 2, torch.cat(gradients[::-1], -1)

    @staticmethod
    def _activations(layers: list[Tensor], x: Float[Tensor, "chain example input"]) -> list[Float[Tensor, "chain example _"]]:
        found = [x]
        for layer in layers:
            found.append(found[-1] @ layer.mT)
        return found


def settings(widths: Sequence[int]) -> SamplerConfig:
    """One rule of sampling for all deep linear networks of this module, with nothing to tune.

    With ``H`` the mean width and ``L`` layers: ``n = 500 H``, ``nbeta = n / log n``, ``gamma = H`` and
    ``epsilon = 0.6 / (nbeta 1.5 2^L + gamma)``; plain SGLD, 2 chains of 2,000 steps of burn-in and 300 draws 5 steps apart.

    Localisation of ``H`` spreads a weight by ``1 / sqrt(H)``, as at an initialisation, so that a layer's singular values stay
    of order 1 at any width. Then the sharpest curvature depends on the depth alone, and is near ``1.5 2^L``: measured along
    chains it reaches 6 with 2 layers, 10 to 15 with 3, 7 to 30 with 4. At ``w*`` rank 0 has none that could be measured.
    ``nbeta / gamma`` is near 60: it keeps flat directions apart from others, and is also what walking along the flat ones
    costs in steps. So the chains do not cover the flat directions, and ``rhat`` of the distance says "not mixed"; along them
    the coefficient is nearly the same.

    Raises:
        ValueError: widths of no network.
    """
    _check_network(widths, 0)
    mean, depth = sum(widths) / len(widths), len(widths) - 1
    n = SAMPLES_PER_UNIT * mean
    nbeta = n / math.log(n)
    epsilon = STEP / (nbeta * 1.5 * 2**depth + mean)
    return SamplerConfig(epsilon=epsilon, gamma=mean, nbeta=nbeta, chains=2, burn_in=2_000, draws=300, thin=5, batch=EXAMPLES)


def _frame(rows: int, columns: int, rng: torch.Generator) -> Float[Tensor, "rows columns"]:
    """Orthonormal columns in random directions."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=rng))[0]


def _even(powers: Sequence[int]) -> Float[Tensor, "parameter"]:
    if not powers or any(power < 2 or power % 2 for power in powers):
        raise ValueError(f"powers are {list(powers)}; give some, each even and at least 2, such as [2, 4]")
    return torch.tensor(powers, dtype=torch.float64)


def _check_network(widths: Sequence[int], rank: int) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths are {list(widths)}; give those of the inputs and of each layer, at least 1, such as [5, 3, 5]")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank is {rank}; a product through widths {list(widths)} has one of 0..{min(widths)}")
