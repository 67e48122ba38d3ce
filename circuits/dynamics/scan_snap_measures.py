"""What is read off a trajectory of Scan & Snap: attention, its sparsity, who gains, how fast it moves.

All follow from the attention logits ``z`` and the classes. Attention here is that of long sequences, ``c_l|n ~ P(l | n) e^{z}``
with the query of label ``n``: no sample of sequences adds its noise, for SGD either (the authors' analysis does the same).

Source: Tian et al. 2023, equation 5 and theorem 3; figures 4 and 6.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.data.classes import SequenceClasses
from circuits.results import labelled

if TYPE_CHECKING:
    import xarray as xr

SAME = 1e-9
"""Two tokens whose ``P`` differ by no more, relatively, have no gain to compare."""


def attention_mass(
    z: Float[Tensor, "*time query token"], p: Float[Tensor, "label token"], psi: Int[Tensor, "label"]
) -> Float[Tensor, "*time label token"]:
    """``c_l|n``, the share of attention that a label's query gives each context token in long sequences.

    Args:
        z: attention logits. p: ``P(l | n)``. psi: the query of each label.

    Returns:
        Shares in [0, 1] that sum to 1; ``P(l | n)`` itself at ``z = 0``, the chance level.

    Source: Tian et al. 2023, equation 5 (lemma 2).
    """
    weight = p * (z - z.amax(-1, keepdim=True)).exp()[..., psi, :]
    return weight / weight.sum(-1, keepdim=True)


def distinct_entropy(
    c: Float[Tensor, "*time label token"], distinct: Bool[Tensor, "label token"]
) -> Float[Tensor, "*time label"]:
    """Entropy of attention among a label's distinct tokens: ``-sum q ln q`` with ``q = c / sum of c`` over them.

    Returns:
        Nats, 0 (one token has all) to the log of how many there are; 2.1513 at ``z = 0`` for the paper's classes. NaN for a label
        without distinct tokens.

    Source: Tian et al. 2023, figure 6. The paper does not define it; this is what gives its published numbers.
    """
    own = c * distinct
    q = own / own.sum(-1, keepdim=True)
    return torch.special.entr(q).sum(-1)


def common_mass(c: Float[Tensor, "*time label token"], common: Bool[Tensor, "token"]) -> Float[Tensor, "*time label"]:
    """Share of attention on tokens that several labels have, in [0, 1]; 0.645 at ``z = 0`` for the paper's classes."""
    return (c * common).sum(-1)


def feature_overlap(c: Float[Tensor, "*time label token"], *, norm: bool = True) -> Float[Tensor, "*time"]:
    """``rho``, the mean of ``f_n . f_n'`` over pairs of labels; NaN for a single label.

    Args:
        c: attention. norm: of features with l2 norm 1, as the model has them.
    """
    f = c / c.norm(dim=-1, keepdim=True) if norm else c
    products = f @ f.mT
    labels = c.shape[-2]
    off = products.sum((-1, -2)) - products.diagonal(dim1=-1, dim2=-2).sum(-1)
    return off / (labels * (labels - 1)) if labels > 1 else torch.full_like(off, torch.nan)


def relative_gain(
    c: Float[Tensor, "*time label token"], distinct: Bool[Tensor, "label token"], leader: Int[Tensor, "label"]
) -> Float[Tensor, "*time label token"]:
    """``r_{l0/l|n} = f_l0^2 / f_l^2 - 1``: how far a label's leading token is ahead of its others.

    Args:
        c: attention. distinct: tokens of one label alone. leader: ``l0``, one distinct token a label.

    Returns:
        0 and more where the leader leads, -1 at the least; NaN for tokens that are not distinct.

    Source: Tian et al. 2023, theorem 3.
    """
    lead = c.gather(-1, leader[:, None].expand(*c.shape[:-1], 1))
    return torch.where(distinct, (lead / torch.where(distinct, c, 1.0)).square() - 1, torch.nan)


def gain_residual(
    z: Float[Tensor, "time query token"],
    p: Float[Tensor, "label token"],
    psi: Int[Tensor, "label"],
    distinct: Bool[Tensor, "label token"],
) -> Float[Tensor, "time label token"]:
    """``r_{l0/l}(t) / (r_{l0/l}(0) e^{2 (z_l0(t) - z_l0(0))})`` with ``l0`` the label's likeliest token: 1 where theorem 3 holds.

    Args:
        z: attention logits; the first time is 0 of the theorem. p, psi, distinct: see ``SequenceClasses``.

    Returns:
        The ratio; NaN for the leader itself, for tokens as likely as it, and for tokens that are not distinct. Above 1: ``l`` has
        lost more to the leader than the theorem allows it; below: less.

    Source: Tian et al. 2023, theorem 3, which needs the reduced attention of lemma 4; the full gradient flow leaves it.
    """
    leader = torch.where(distinct, p, 0.0).argmax(1)
    gain = relative_gain(attention_mass(z, p, psi), distinct, leader)
    moved = z[:, psi, leader] - z[:1, psi, leader]
    return torch.where(gain[:1] > SAME, gain / gain[:1] / (2 * moved).exp()[..., None], torch.nan)


def logit_velocity(z: Float[Tensor, "time query token"], times: Float[Tensor, "time"]) -> Float[Tensor, "time"]:
    """``max |z(t') - z(t)| / (t' - t)`` to the next time, over queries and tokens: logits a step; NaN at the last time."""
    return _padded(z.diff(dim=0).abs().amax((-1, -2)) / times.diff())


def attention_velocity(c: Float[Tensor, "time label token"], times: Float[Tensor, "time"]) -> Float[Tensor, "time"]:
    """``sum_l |c_l(t') - c_l(t)| / (t' - t)`` to the next time, mean over labels: attention mass a step, NaN at the last time."""
    return _padded(c.diff(dim=0).abs().sum(-1).mean(-1) / times.diff())


def scan_order(
    c: Float[Tensor, "time label token"], distinct: Bool[Tensor, "label token"], times: Float[Tensor, "time"]
) -> Float[Tensor, "label token"]:
    """The time at which attention to each distinct token was largest, NaN for others.

    Attention scans where this rises with ``P(l | n)``: rare tokens are dropped first, and the likeliest one last or never.

    Source: Tian et al. 2023, section 6 (figure 4).
    """
    return torch.where(distinct, times[c.argmax(0)], torch.nan)


class Observed:
    """What ``observe`` reads off a trajectory; names and versions its results."""

    name = "scan_snap_observed"
    version = 1

    def __init__(self, classes: SequenceClasses, trajectory: "xr.Dataset"):
        self.classes, self.of = classes, trajectory.attrs["config"]

    def spec(self) -> dict[str, Any]:
        """The classes, and what made the trajectory."""
        return {"classes": self.classes.spec(), "of": self.of}


def observe(trajectory: "xr.Dataset", classes: SequenceClasses) -> "xr.Dataset":
    """Every measure of this module along every run of a trajectory.

    Args:
        trajectory: of ``Sgd``, ``Flow`` or ``Reduced``, with ``z``; its first time is the theorem's 0. classes: what it was made
            of.

    Returns:
        ``attention`` and ``gain_residual`` (``run, time, label, token``), ``distinct_entropy`` and ``common_mass``
        (``run, time, label``), ``overlap``, ``logit_velocity`` and ``attention_velocity`` (``run, time``; velocities NaN at the
        last time) and ``peak_time`` (``run, label, token``): ranges and chance levels stand with each function.

    Raises:
        ValueError: a trajectory of other classes.
    """
    sizes = trajectory.sizes["query"], trajectory.sizes["token"]
    if sizes != (classes.n_queries, classes.n_tokens):
        raise ValueError(
            f"z has {sizes[0]} queries and {sizes[1]} tokens, the classes {classes.n_queries} and {classes.n_tokens}: "
            "give the classes that the trajectory was made of"
        )
    times = torch.as_tensor(trajectory["time"].values.astype(float))
    found: dict[str, list[Tensor]] = {}
    for values in trajectory["z"].values:
        z = torch.from_numpy(values)
        c = attention_mass(z, classes.p, classes.psi)
        one = {
            "attention": c,
            "distinct_entropy": distinct_entropy(c, classes.distinct),
            "common_mass": common_mass(c, classes.common),
            "overlap": feature_overlap(c),
            "gain_residual": gain_residual(z, classes.p, classes.psi, classes.distinct),
            "logit_velocity": logit_velocity(z, times),
            "attention_velocity": attention_velocity(c, times),
            "peak_time": scan_order(c, classes.distinct, times),
        }
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    dims = {
        "attention": ("time", "label", "token"),
        "gain_residual": ("time", "label", "token"),
        "distinct_entropy": ("time", "label"),
        "common_mass": ("time", "label"),
        "peak_time": ("label", "token"),
    }
    return labelled(
        {name: (("run", *dims.get(name, ("time",))), np.stack([x.numpy() for x in values])) for name, values in found.items()},
        {str(name): coord for name, coord in trajectory.coords.items()},
        measure=Observed(classes, trajectory),
        definition="attention c_l|n of long sequences, and what follows from it; see each measure",
        source="Tian et al. 2023, equation 5, theorem 3, figures 4 and 6",
        units="attention mass; nats; logits or attention mass a step; steps",
    )


def _padded(velocity: Float[Tensor, "interval"]) -> Float[Tensor, "time"]:
    """NaN where no later time is known."""
    return torch.cat([velocity, velocity.new_full((1,), torch.nan)])
