"""How much likelier is a token where a condition holds, and could that be chance?

Among all occasions (say, all places where ``d`` stands) a condition holds in some (``s`` stands shortly before). With ``hits`` of
``occasions`` followed by ``o`` where it holds, and ``all_hits`` of ``all_occasions`` everywhere, its lift is

    log((hits / occasions) / (all_hits / all_occasions))  nats,  chance 0.

The null is the condition dealt out at random among the occasions: hits are then hypergeometric. ``p`` bounds its upper tail by
the binomial one, which is heavier. Both take occasions as independent; text repeats itself, so they are lenient.

Source: pointwise mutual information as in Church & Hanks 1990, conditioned on d; Hoeffding 1963, section 6, for the bound.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Lift(NamedTuple):
    """A lift with its error, its null, and the counts that it is made of.

    Attributes:
        value: nats; chance 0, -inf where ``o`` never followed, NaN where the condition never held.
        stderr: by the delta method, occasions with and without the condition as two independent binomials. 0 where the condition
            always holds, NaN where the value is not finite.
        z: hits against their hypergeometric mean and variance; NaN where nothing can vary.
        hits, occasions, all_hits, all_occasions: the counts.
    """

    value: Float[np.ndarray, "*shape"]
    stderr: Float[np.ndarray, "*shape"]
    z: Float[np.ndarray, "*shape"]
    hits: Int[np.ndarray, "*shape"]
    occasions: Int[np.ndarray, "*shape"]
    all_hits: Int[np.ndarray, "*shape"]
    all_occasions: Int[np.ndarray, "*shape"]

    @property
    def p(self) -> Float[np.ndarray, "*shape"]:
        """An upper bound of the chance of so many hits or more, in (0, 1]."""
        return tail_chance(self.hits, self.occasions, self.all_hits, self.all_occasions)


def lift_of(
    hits: Int[np.ndarray, "*shape"],
    occasions: Int[np.ndarray, "*shape"],
    all_hits: Int[np.ndarray, "*shape"],
    all_occasions: Int[np.ndarray, "*shape"],
) -> Lift:
    """The lift that belongs to these counts; those of the condition are among all.

    A worked value: 8 hits in 10 occasions, 20 in 100 over all: ``log(.8 / .2)`` = 1.39, z = 4.97.
    """
    rest = all_occasions - occasions
    with np.errstate(divide="ignore", invalid="ignore"):
        share, inside, base = occasions / all_occasions, hits / occasions, all_hits / all_occasions
        value = np.log(inside / base)
        outside = np.where(rest > 0, (all_hits - hits) / np.maximum(rest, 1), 0.0)
        # value = log(inside) - log(share * inside + (1 - share) * outside), so both binomials enter, the shared part once
        variance = inside * (1 - inside) / occasions * (1 / inside - share / base) ** 2
        variance += outside * (1 - outside) / np.maximum(rest, 1) * ((1 - share) / base) ** 2
        spread = occasions * base * (1 - base) * rest / (all_occasions - 1)
        z = np.where(spread > 0, (hits - occasions * base) / np.sqrt(spread), np.nan)
        stderr = np.where(np.isfinite(value), np.sqrt(variance), np.nan)
    return Lift(value, stderr, z, hits, occasions, all_hits, all_occasions)


def tail_chance(
    hits: Int[np.ndarray, "*shape"],
    occasions: Int[np.ndarray, "*shape"],
    all_hits: Int[np.ndarray, "*shape"],
    all_occasions: Int[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """``P(Binomial(occasions, all_hits / all_occasions) >= hits)``, in (0, 1]; 1 where there are no hits."""
    from scipy.special import betainc

    rate = np.clip(all_hits / np.maximum(all_occasions, 1), 0.0, 1.0)
    some = np.maximum(hits, 1)
    return np.where(hits > 0, betainc(some, np.maximum(occasions - some, 0) + 1, rate), 1.0)
