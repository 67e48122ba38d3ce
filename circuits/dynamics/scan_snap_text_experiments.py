"""The papers' experiments on text, one call each; what is read stands with ``TextRuns``. Text is ``stdlib_words()`` unless given.

    text_bounce  claims 15 and 16: Adam with a ReLU or a linear feed-forward layer, or with neither that nor residual stream
    text_rates   claim 17 and figure 10: sparsity against the rate of SGD
    text_depths  figure 7: the lowest of one and of three layers under SGD at a constant rate

Source: Tian et al. 2023 ("Scan and Snap"), figures 7 and 10; Tian et al. 2024 (JoMA), figures 4 and 6.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from circuits.dynamics.scan_snap_text import Kind, TextRuns, chosen
from circuits.dynamics.scan_snap_text_model import Text
from circuits.results import canonical

if TYPE_CHECKING:
    import xarray as xr


def _along(dim: str, runs: dict[Any, TextRuns], progress: bool | None) -> "xr.Dataset":
    """Results of several runs side by side on a new axis, with the attributes of the first and the configuration of all."""
    import xarray as xr

    found = [one.run(progress=progress) for one in runs.values()]
    joined = xr.concat(found, dim=xr.DataArray(list(runs), dims=dim, name=dim), combine_attrs="override")
    joined.attrs["config"] = canonical([one.spec() for one in runs.values()])
    return joined


def text_bounce(
    text: Text | None = None,
    *,
    kinds: Sequence[Kind] = ("relu", "linear", "bare"),
    norm: Literal["after", "before"] = "after",
    start: Literal["torch", "scaled"] = "torch",
    seeds: int = 5,
    steps: int = 800,
    lr: float = 1e-3,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Attention under Adam by ``kind``: it drops, and bounces back where the feed-forward layer is nonlinear (claims 15, 16).

    Args:
        start: how weights begin, which matters to how much comes back: see ``TextRuns``.

    Returns:
        As ``TextRuns.run``, over ``kind`` too.

    Raises:
        ValueError: as ``TextRuns``.

    Source: Tian et al. 2024 (JoMA), theorem 3 and figure 6; theorem 2 for the linear case.
    """
    words, numbers = chosen(text, seeds)
    return _along(
        "kind", {kind: TextRuns(words, kind, "adam", lr, numbers, steps, norm, start=start) for kind in kinds}, progress
    )


def text_rates(
    text: Text | None = None,
    *,
    rates: Sequence[float] = (1.0, 2.0, 5.0, 10.0),
    kind: Kind = "bare",
    seeds: int = 5,
    steps: int = 800,
    progress: bool | None = None,
) -> "xr.Dataset":
    """Attention under SGD by its rate: the larger, the sparser (claim 17, figure 10).

    Returns:
        As ``TextRuns.run``, over ``lr`` too.

    Raises:
        ValueError: as ``TextRuns``.

    Source: Tian et al. 2023, figure 10.
    """
    words, numbers = chosen(text, seeds)
    return _along("lr", {lr: TextRuns(words, kind, "sgd", lr, numbers, steps) for lr in rates}, progress)


def text_depths(
    text: Text | None = None,
    *,
    depths: Sequence[int] = (1, 3),
    lr: float = 5.0,
    positions: Literal["none", "standard"] = "standard",
    seeds: int = 3,
    steps: int = 1000,
    progress: bool | None = None,
) -> "xr.Dataset":
    """The lowest layer's attention under SGD at a constant rate, by ``depth``: does it become sparse, and does it freeze?

    Args:
        depths: numbers of layers, with ReLU, residual stream and norms before (the paper's stand behind).
        positions: the paper's models have them, its theory has not.

    Returns:
        As ``TextRuns.run``, over ``depth`` too.

    Raises:
        ValueError: as ``TextRuns``.

    Source: Tian et al. 2023, figure 7.
    """
    words, numbers = chosen(text, seeds)
    runs = {n: TextRuns(words, "relu", "sgd", lr, numbers, steps, "before", n, positions) for n in depths}
    return _along("depth", runs, progress)
