"""Do the nulls and scores of composition do what they say? Pairs whose answer is known.

``false_positives``: pairs in random orientation, of which a share ``level`` should have ``p < level`` whatever their spectra.
Beside it, on the same pairs, the constant of Gaussian heads that papers subtract: "more than its mean + z_level of its sd".
``channel_auc``: pairs in random orientation against such pairs of which a few directions are shared; how well each score of
``circuits.weights.pairs`` tells the two apart.

Spectra are of singular values: flat, ``1 / sqrt(i)``, ``1 / i``, ``1 / i^2``; those of trained heads lie in between.
"""

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.results import check_whole
from circuits.weights.haar import corner_blocks, count_largest, orthonormal, shares
from circuits.weights.interfaces import Side
from circuits.weights.pairs import compose_pairs, gaussian_baseline

if TYPE_CHECKING:
    import xarray as xr

Law = Literal["flat", "1/sqrt(i)", "1/i", "1/i^2"]
LAWS: tuple[Law, ...] = get_args(Law)
LEVELS = (0.05, 0.01, 0.001)
SCORES = ("squared", "by_writer", "by_reader", "strongest", "kernel")


def squared_spectrum(law: Law, r: int) -> Float[Tensor, "r"]:
    """Squared singular values of a law.

    Raises:
        ValueError: there is no such law.
    """
    if law not in LAWS:
        raise ValueError(f"law is {law!r}; need one of {', '.join(LAWS)}")
    power = {"flat": 0.0, "1/sqrt(i)": 1.0, "1/i": 2.0, "1/i^2": 4.0}[law]
    return torch.arange(1, r + 1, dtype=torch.float64) ** -power


def false_positives(law: Law, *, r: int = 16, dims: int = 64, pairs: int = 20_000, seed: int = 0) -> "xr.Dataset":
    """How often pairs in random orientation are called large, by the null's p-value and by the Gaussian constant.

    Args:
        law: of both spectra, ``r`` singular values each. dims: of the space they meet in.
        pairs: how many, and draws of the null. seed: of both, in separate streams.

    Returns:
        ``Dataset(level)``: ``value``, the share of pairs with ``p < level`` (chance: the level), its ``stderr`` (binomial), and
        ``gaussian``, the share above the constant of Gaussian heads at that level.

    Raises:
        ValueError: there is no such law.
    """
    import xarray as xr
    from scipy.stats import norm

    a = b = squared_spectrum(law, r)
    check_whole("pairs", pairs, 1)

    def scores(stream: int) -> Float[Tensor, "draw"]:
        rng = torch.Generator().manual_seed(2 * seed + stream)
        blocks = corner_blocks(r, r, dims, pairs, rng).double().square()
        return torch.einsum("i,kij,j->k", shares(a), blocks, shares(b))

    observed, null = scores(0), scores(1)
    p = (1 + count_largest(observed[None], null[None].float())[0]).double() / (1 + pairs)
    mean, sd = gaussian_baseline(dims, r)
    levels = np.array(LEVELS)
    found = [np.mean(p.numpy() < level) for level in levels]
    constant = [np.mean(observed.sqrt().numpy() > mean + norm.isf(level) * sd) for level in levels]
    return xr.Dataset(
        {
            "value": ("level", found),
            "stderr": ("level", np.sqrt(levels * (1 - levels) / pairs)),
            "chance": ("level", levels),
            "gaussian": ("level", constant),
        },
        coords={"level": levels},
        attrs={"definition": "share of pairs in random orientation with p < level", "law": law, "r": r, "dims": dims},
    )


def channels(
    law: Law,
    width: int,
    pairs: int,
    rng: torch.Generator,
    *,
    strength: float = 0.95,
    first: int = 4,
    r: int = 16,
    dims: int = 64,
) -> tuple[Side, Side]:
    """Writers and readers, paired, in random orientation but for ``width`` of a writer's directions, which its reader reads.

    Args:
        law: of both spectra. strength: cosine of each shared direction with the one that reads it.
        first: place of the channel in both spectra; not the strongest ones, where the score would see it.
    """
    frames = orthonormal(torch.randn(2 * pairs, dims, r, generator=rng, dtype=torch.float64)).mT.unflatten(0, (2, pairs))
    place = slice(first, first + width)
    frames[1][:, place] = strength * frames[0][:, place] + (1 - strength**2) ** 0.5 * frames[1][:, place]
    squares = squared_spectrum(law, r).expand(pairs, -1)
    return Side(squares, frames[0]), Side(squares, orthonormal(frames[1].mT).mT)


def channel_auc(law: Law, width: int, *, pairs: int = 200, seed: int = 0) -> "xr.Dataset":
    """How well each score tells pairs with a channel of ``width`` directions from pairs without: area under the ROC curve.

    Args:
        law: of the spectra. pairs: with a channel, and as many without. seed: of all of them.

    Returns:
        ``Dataset(score)``: ``value`` in [0, 1], chance .5, and ``stderr`` (Hanley and McNeil 1982).

    Raises:
        ValueError: there is no such law, or no room for such a channel.
    """
    import xarray as xr

    check_whole("width", width, 0)
    check_whole("pairs", pairs, 2)
    if width > 12:
        raise ValueError(f"width={width}: a channel begins behind the 4 strongest of 16 directions, so it has 12 at most")
    rng = torch.Generator().manual_seed(seed)
    made = [compose_pairs(*channels(law, w, pairs, rng), 64) for w in (width, 0)]
    areas = []
    for name in SCORES:
        found, without = (getattr(group, name).diagonal().numpy() for group in made)
        areas.append(np.mean(found[:, None] > without[None]) + np.mean(found[:, None] == without[None]) / 2)
    area = np.array(areas)
    one, other = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (pairs - 1) * (one - area**2 + other - area**2)) / pairs**2
    return xr.Dataset(
        {"value": ("score", area), "stderr": ("score", np.sqrt(variance)), "chance": ((), 0.5)},
        coords={"score": list(SCORES)},
        attrs={"definition": "area under the ROC curve, pairs with a channel against pairs without", "law": law, "width": width},
    )
