"""What weights, paths and curves say of a head, each as one finding: is an effect there, or is it shown to be missing?

    present     beyond chance or error, and out among the others of its kind by ``OUT``
    missing     not present, and less than ``SHARE`` of what the strongest other head shows: p_less <= ``ALPHA``
    open        neither. Where no other head shows an effect, it is missing nowhere: the measure may not see it in this run

Another head shows an effect if it is present there beyond what one of that many heads has by chance: a rise with p times heads
at most ``ALPHA``, copying and K-terms with z >= ``ORIENTED`` (their p cannot get so small), pairs as they are.

    quantity          effect                  beyond chance or error                        others of its kind
    K-composition     z of the squared score  q <= ``ALPHA`` over all pairs and modes, and  scores of pairs of the same two
                                              q_covariance where there is one; z >=         layers
                                              ``ORIENTED`` where draws are too few for q
    key edge          nats of loss            q <= ``ALPHA`` over all key edges, p of       key edges of the same two layers
                                              t = value / stderr over examples
    copying, K-term   z beside random heads   z > 0 and two-sided p <= ``ALPHA``            none
    rise of a curve   rise less the median    rise >= ``ERRORS`` of its errors, and         heads of all layers
                      rise of other heads     p <= ``ALPHA``, see below

Out among others is ``x - median >= OUT hypot(1.4826 MAD, stderr)``, with median and MAD (the median of the moduli of differences
from the median) of the others alone. In a trained model half of all pairs of heads beat random orientation; few of them stand
out. (``z_layer`` of ``circuits.weights.composition`` takes out means of writers and of readers: three writers that compose with
three readers hide each other.) A few others that are out as well do not matter to a median; many would. The p of a rise is
Student's of that z over ``sqrt(1 + pi / 2n)`` at ``0.37 (n - 1)`` degrees, n the number of other heads, or the larger one of no
rise at all: 0.37 is the efficiency of the MAD, and where heads' rises are normal such z have these tails, by simulation from 5
others to 31 and down to 1e-4.

``p_less`` is that of an effect at least ``SHARE`` of the strongest that is present elsewhere, with the errors of both; the error
of a z is 1. A head that may show an effect with any of k partners has p times k (Bonferroni) and the largest ``p_less``: missing
is what is missing with every one.

Excluded: coefficients whose state is not "ok", fewer than ``FEWEST`` others (then nothing is out among them), edges without an
error. The effect of one edge misses what is redundant (``circuits.paths.edges``).

Sources: composition: Elhage et al. 2021; median and MAD: Rousseeuw & Croux 1993; the bars are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from circuits.crosscheck.partitions import ALPHA
from circuits.models.heads import Head
from circuits.paths.edges import edge_list
from circuits.weights.composition import false_discovery

if TYPE_CHECKING:
    import xarray as xr

OUT = 3.0
ERRORS = 2.0
ORIENTED = 5.0
SHARE = 0.5
FEWEST = 4
PAIR = ("src_layer", "src_head", "dst_layer", "dst_head")


class Finding(NamedTuple):
    """What one measure says of one head.

    Attributes:
        value, stderr: in the measure's units; functions of the weights alone have no error. p, smallest_p: of no effect, and the
            least there could be (NaN: no bound). p_less: of an effect at least ``SHARE`` of the strongest other's; NaN where no
            other shows it. present: see the top of this module. beyond: present, or a pair beyond chance or error.
            partner: the other head, or what else it was found with. why: there is no answer.
    """

    value: float = np.nan
    stderr: float = np.nan
    p: float = np.nan
    smallest_p: float = np.nan
    p_less: float = np.nan
    present: bool = False
    beyond: bool = False
    partner: str = ""
    why: str = ""

    @property
    def missing(self) -> bool:
        return not self.present and self.p_less <= ALPHA


@dataclass(frozen=True)
class Effects:
    """One effect of all heads ``[layer, head]``, or of all pairs ``[src_layer, src_head, dst_layer, dst_head]``; NaN: none.

    Attributes:
        value, stderr: as printed. effect, error: as compared. p: of no effect. beyond, present, shown: see ``Finding`` and the
            top of this module. tail: the chance of a larger error, in units of the error. smallest_p: NaN if p has no bound.
    """

    value: np.ndarray
    stderr: np.ndarray
    effect: np.ndarray
    error: np.ndarray
    p: np.ndarray
    beyond: np.ndarray
    present: np.ndarray
    shown: np.ndarray
    tail: Callable[[np.ndarray], np.ndarray]
    smallest_p: float = np.nan

    def of_head(self, at: Head) -> Finding:
        """What is found of one head."""
        own = np.zeros(self.effect.shape, dtype=bool)
        own[at.layer, at.head] = True
        return self._found([(at.layer, at.head)], [""], own)

    def of_pairs(self, at: Head, partners: Sequence[Head], *, into: bool) -> Finding:
        """What is found of one head with any of some partners: heads it writes to (``into``), or that write to it."""
        own = np.zeros(self.effect.shape, dtype=bool)
        own[at.layer, at.head] = own[:, :, at.layer, at.head] = True
        ends = [(at, other) if into else (other, at) for other in partners]
        places = [(src.layer, src.head, dst.layer, dst.head) for src, dst in ends]
        return self._found(places, [str(other) for other in partners], own)

    def _found(self, places: Sequence[tuple[int, ...]], names: Sequence[str], own: Bool[np.ndarray, "..."]) -> Finding:
        """The strongest of some places of a head; ``own`` are all of its places, which it is not compared with."""
        given = [(place, name) for place, name in zip(places, names, strict=True) if np.isfinite(self.effect[place])]
        if not given:
            alone = any(np.isfinite(self.value[place]) for place in places)
            return Finding(why="too few others to compare with" if alone else "not measured")
        best, partner = max(given, key=lambda one: (bool(self.present[one[0]]), float(self.effect[one[0]])))
        others = np.where(self.shown & ~own, self.effect, -np.inf)
        top = np.unravel_index(int(others.argmax()), others.shape)
        p_less = np.nan
        if np.isfinite(others[top]):
            needed, theirs = SHARE * self.effect[top], SHARE * self.error[top]
            gaps = [(needed - self.effect[place]) / np.hypot(self.error[place], theirs) for place, _ in given]
            p_less = float(self.tail(np.array(gaps)).max())
        p, smallest = (float(np.minimum(1.0, len(given) * x)) for x in (self.p[best], self.smallest_p))
        present, beyond = bool(self.present[best]), bool(self.beyond[best])
        return Finding(float(self.value[best]), float(self.stderr[best]), p, smallest, p_less, present, beyond, partner)


def standing(
    values: Float[np.ndarray, "head"], stderr: Float[np.ndarray, "head"]
) -> tuple[Float[np.ndarray, "head"], Float[np.ndarray, "head"]]:
    """How far each value is above the median of the others, and the unit of that: the others' spread with its own error.

    NaN where there are fewer than ``FEWEST`` others.
    """
    n = len(values)
    if n <= FEWEST:
        return np.full(n, np.nan), np.full(n, np.nan)
    others = np.broadcast_to(values, (n, n))[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    middle = np.median(others, 1)
    spread = 1.4826 * np.median(np.abs(others - middle[:, None]), 1)
    return values - middle, np.hypot(spread, stderr)


def _out(value: Float[np.ndarray, "_ _ _ _"], stderr: Float[np.ndarray, "_ _ _ _"]) -> Bool[np.ndarray, "_ _ _ _"]:
    """Which pairs of heads are out among those of the same two layers."""
    out = np.zeros(value.shape, dtype=bool)
    for src, dst in np.ndindex(value.shape[0], value.shape[2]):
        kind = np.isfinite(value[src, :, dst])
        far, unit = standing(value[src, :, dst][kind], stderr[src, :, dst][kind])
        out[src, :, dst][kind] = (far > 0) & (far >= OUT * unit)
    return out


def composition_effects(data: "xr.Dataset") -> Effects:
    """K-composition of every pair of heads at one checkpoint."""
    at = data.sel(mode="K").transpose(*PAIR)
    # The least q there could be is that of one pair alone at the smallest p.
    few = data.attrs.get("smallest_p", np.nan) * np.isfinite(data["p"].values).sum() > ALPHA
    beyond = at["z"].values >= ORIENTED if few else at["q"].values <= ALPHA
    beyond &= ~(at["q_covariance"].values > ALPHA)
    present = beyond & _out(at["value"].values, np.zeros(at["value"].shape))
    return _of_weights(at, beyond, present, present)


def edge_effects(data: "xr.Dataset", layers: int, heads: int) -> Effects:
    """Effects of the key edges of every pair of heads at one checkpoint; of two examples where the result does not say.

    Raises:
        ValueError: an edge between other heads.
    """
    from scipy.stats import t

    value, stderr, p = (np.full((layers, heads, layers, heads), np.nan) for _ in range(3))
    for edge, number, error in zip(edge_list(data), data["value"].values, data["stderr"].values, strict=True):
        reader, _, channel = edge.destination.partition(".")
        if channel == "k" and "H" in edge.source and error > 0:
            src, dst = Head.parse(edge.source), Head.parse(reader)
            if max(src.layer, dst.layer) >= layers or max(src.head, dst.head) >= heads:
                raise ValueError(f"there is an edge {edge}, and roles of {layers} layers of {heads} heads: measure the same run")
            value[src.layer, src.head, dst.layer, dst.head] = number
            stderr[src.layer, src.head, dst.layer, dst.head] = error
    degrees = int(data.attrs.get("n_examples", 2)) - 1
    there = np.isfinite(value)
    p[there] = t.sf(value[there] / stderr[there], degrees)
    beyond = false_discovery(p) <= ALPHA
    present = beyond & _out(value, stderr)
    return Effects(value, stderr, value, stderr, p, beyond, present, present, lambda x: t.sf(x, degrees))


def beside_random(data: "xr.Dataset") -> Effects:
    """A statistic of every head, with ``value``, ``z`` and ``p`` beside random heads, at one checkpoint."""
    at = data.transpose("layer", "head")
    z = at["z"].values
    present = (z > 0) & (at["p"].values <= ALPHA)
    return _of_weights(at, present, present, present & (z >= ORIENTED))


def _of_weights(at: "xr.Dataset", beyond: np.ndarray, present: np.ndarray, shown: np.ndarray) -> Effects:
    """Effects that are functions of the weights alone, so that only their z have an error."""
    from scipy.stats import norm

    value, z, p = (at[name].values for name in ("value", "z", "p"))
    none, one = np.full_like(value, np.nan), np.ones_like(value)
    return Effects(value, none, z, one, p, beyond, present, shown, norm.sf, float(at.attrs.get("smallest_p", np.nan)))


def k_term_effects(data: "xr.Dataset", composition: Effects) -> Effects:
    """The K-term's copying statistic of every head with the earlier head that it K-composes with most, at one checkpoint.

    The partner is chosen by size and tested by direction, so that there is one test a head.
    """
    import xarray as xr

    shape = composition.effect.shape[2:]
    strongest = np.nan_to_num(composition.effect, nan=-np.inf).reshape(-1, *shape).argmax(0)
    at = (*np.unravel_index(strongest, composition.effect.shape[:2]), *np.indices(shape))
    dims = ("layer", "head")
    of_partner = {name: (dims, data[name].transpose(*PAIR).values[at]) for name in ("value", "z", "p")}
    return beside_random(xr.Dataset(of_partner, attrs=data.attrs))


def rise_effects(rise: Float[np.ndarray, "layer head"], stderr: Float[np.ndarray, "layer head"]) -> Effects:
    """How much more each head's curve rises over a window than other heads' do; NaN where it is not known."""
    from scipy.stats import norm, t

    known = np.isfinite(rise) & np.isfinite(stderr)
    others = max(1, int(known.sum()) - 1)
    far, unit = np.full(rise.shape, np.nan), np.full(rise.shape, np.nan)
    far[known], unit[known] = standing(rise[known], stderr[known])
    wide, degrees = unit * np.sqrt(1 + np.pi / (2 * others)), max(0.37, 0.37 * (others - 1))

    def tail(x: Shaped[np.ndarray, "*any"]) -> Shaped[np.ndarray, "*any"]:
        return t.sf(x, degrees)

    with np.errstate(invalid="ignore", divide="ignore"):
        own = rise / stderr
        p = np.maximum(tail(far / wide), norm.sf(own))
        present = (far >= OUT * unit) & (own >= ERRORS) & (p <= ALPHA)
        shown = present & (p * known.sum() <= ALPHA)
    return Effects(rise, stderr, far, wide, p, present, present, shown, tail)
