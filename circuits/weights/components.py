"""One pair of heads, singular component by singular component: a channel of 1 to 4 dimensions, which the score hardly sees.

With the singular value decompositions of what the earlier head writes and the later one reads, and ``C_ij`` the cosines between
their directions (``circuits.weights.composition``),

    read_i    = sum_j t_j^2 C_ij^2 / sum t^2      how strongly the writer's i-th direction is read
    written_j = sum_i s_i^2 C_ij^2 / sum s^2      how strongly the reader's j-th direction is written

each in [0, 1], ``1 / d`` for a direction of random orientation. Weighted by the shares ``s_i^2 / sum s^2`` (``t_j^2 / sum t^2``)
they add up to the squared score. Source: Merullo et al. 2024, "Talking Heads" (component-wise composition).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.heads import Head
from circuits.models.own import own
from circuits.models.protocol import model_hash
from circuits.results import check_whole
from circuits.weights.composition import check_incoming, check_remove_mean
from circuits.weights.folded import folded
from circuits.weights.haar import corner_blocks, count_largest, shares
from circuits.weights.interfaces import MODES, Incoming, Side, interfaces

if TYPE_CHECKING:
    import xarray as xr


def components(
    model: Any,
    mode: str,
    src: Any,
    dst: Any,
    *,
    incoming: Incoming = "everything",
    tokens: Int[Tensor, "example pos"] | None = None,
    remove_mean: bool = False,
    draws: int = 10_000,
    seed: int = 0,
) -> "xr.Dataset":
    """How strongly each direction that one head writes is read by another, and each that is read is written.

    Args:
        model: a HookedTransformer, or a transformer-lens model that converts to one; left as found.
        mode: ``"Q"``, ``"K"`` or ``"V"``. src, dst: the earlier and the later head, ``"L0H6"`` or ``(0, 6)``.
        incoming, tokens, remove_mean: as of ``Composition``.
        draws: random directions behind the p-values, which are never below ``1 / (1 + draws)``. seed: of them.

    Returns:
        ``Dataset(component)``, strongest singular value first: ``writer_share, read, p_read, reader_share, written, p_written``;
        p is the share of random directions that reach as much, one component at a time; ``chance`` is ``1 / d``.

    Raises:
        TypeError, ValueError: not a hooked model, NaN weights, no such mode or head, or ``src`` not in an earlier layer.

    Source: the module's docstring.
    """
    import xarray as xr

    check_incoming(incoming, tokens)
    check_remove_mean(remove_mean)
    check_whole("draws", draws, 1)
    check_whole("seed", seed, 0)
    weights = folded(model := own(model))
    earlier, later = Head.parse(src, weights.cfg), Head.parse(dst, weights.cfg)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; need 'Q', 'K' or 'V'")
    if earlier.layer >= later.layer:
        raise ValueError(f"{earlier} is not in an earlier layer than {later}; a head can only read what was written before it")
    faces = interfaces(model, weights, incoming, tokens, remove_mean=remove_mean)
    writer, reader = _one(faces.writers(earlier.layer), earlier.head), _one(faces.readers(later.layer, mode), later.head)
    a, b = shares(writer.squares)[0], shares(reader.squares)[0]
    squares = (writer.directions[0] @ reader.directions[0].T).double().square()
    read, written = squares @ b, a @ squares
    rng = torch.Generator().manual_seed(seed)
    directions = corner_blocks(len(a), 1, faces.dims, draws, rng)[..., 0].square()  # [draw r]
    data = {
        "writer_share": a,
        "read": read,
        "p_read": _tail(read, directions @ b.float(), draws),
        "reader_share": b,
        "written": written,
        "p_written": _tail(written, directions @ a.float(), draws),
    }
    return xr.Dataset(
        {name: ("component", values.numpy()) for name, values in data.items()} | {"chance": ((), 1 / faces.dims)},
        coords={"component": np.arange(len(a))},
        attrs={
            "pair": f"{earlier} -> {later}.{mode.lower()}",
            "definition": "sum_j t_j^2 C_ij^2 / sum t^2 of each singular direction of the writer, and the converse",
            "source": "Merullo et al. 2024; null of circuits.weights.haar",
            "model_hash": model_hash(model),
            "seed": seed,
            "smallest_p": 1 / (1 + draws),
        },
    )


def _one(side: Side, head: int) -> Side:
    return Side(side.squares[head : head + 1], side.directions[head : head + 1])


def _tail(observed: Float[Tensor, "r"], samples: Float[Tensor, "draw"], draws: int) -> Float[Tensor, "r"]:
    return (1 + count_largest(observed[None], samples[None])[0]).double() / (1 + draws)
