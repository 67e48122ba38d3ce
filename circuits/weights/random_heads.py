"""Random heads: what a statistic of weights is by chance, and where a value stands beside that.

A random head has Gaussian weights of the same shapes in place of the head's, with the norms' centring but not their gains, and
this model's own embeddings. It answers "does a head of random orientation do this?"; a trained head that has nothing to do
with copying may still beat it. Statistics of a spectrum do not depend on scale. What does is compared with random heads of the
head's own norms.

Source: Elhage et al. 2021 (random matrices of the same shapes); Ginibre 1965 for the sign symmetry of random spectra.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.folded import FoldedWeights

NULL = "random heads: Gaussian weights of the same shapes, the model's own embeddings"
HEADS = 32
"""Random heads drawn together. Another number draws others from the same seed: raise the versions of the measures with it."""

_KEPT: dict[str, dict[str, np.ndarray]] = {}


def random_heads(w: FoldedWeights, count: int, stream: tuple[int, int], *kinds: str) -> Iterator[list[Float[Tensor, "head _ _"]]]:
    """Gaussian weights of ``count`` heads, ``HEADS`` at a time; readers do not see the mean where the model's do not.

    Args:
        w: the model whose shapes and centring they have. stream: seed and purpose.
        kinds: the weights to draw for each, ``"W_V"``, ``"W_O"``, ...
    """
    d_model, d_head = w.W_V.shape[-2:]
    rng = torch.Generator().manual_seed(int(np.random.SeedSequence(stream).generate_state(1)[0]))
    for first in range(0, count, HEADS):
        heads = min(HEADS, count - first)
        drawn = [torch.randn(heads, d_head, d_model, generator=rng).double() for _ in kinds]  # float32 is drawn twice as fast
        yield [x if kind == "W_O" else w.writes(x).mT for kind, x in zip(kinds, drawn, strict=True)]


def remembered(key: str, sample: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The null of one model, sampled once; the last eight are kept."""
    if key not in _KEPT:
        if len(_KEPT) >= 8:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = sample()
    return _KEPT[key]


def check_null(null_seeds: int, seed: int) -> None:
    """Refuse a number of random heads, or a seed, that gives no null. Raises ValueError."""
    whole = isinstance(null_seeds, int) and isinstance(seed, int)
    if not whole or null_seeds < 0 or null_seeds == 1 or seed < 0:
        raise ValueError(
            f"null_seeds={null_seeds}, seed={seed}: need a whole seed of at least 0 and at least 2 random heads for a standard "
            "deviation; null_seeds=0 leaves the null out"
        )


def smallest_p(null_seeds: int) -> float:
    """The smallest two-sided p that so many random heads can give; NaN for none."""
    return 2 / (null_seeds + 1) if null_seeds else np.nan


def two_sided_p(value: Float[np.ndarray, "*shape"], null: Float[np.ndarray, "sample *#shape"]) -> Float[np.ndarray, "*shape"]:
    """Empirical p: ``2 (1 + number of null samples at least as far out on the nearer side) / (n + 1)``, at most 1.

    Args:
        value: what was measured. null: samples of it by chance, first axis; broadcast against the rest.

    Returns:
        In [2 / (n + 1), 1]; NaN where the value is.

    Source: Davison & Hinkley 1997, section 4.2.
    """
    beyond = np.minimum((null >= value).sum(0), (null <= value).sum(0))
    return np.where(np.isnan(value), np.nan, np.minimum(1.0, 2.0 * (1 + beyond) / (len(null) + 1)))


def beside(
    value: Float[np.ndarray, "*shape"], null: Float[np.ndarray, "sample *#shape"] | None
) -> dict[str, Float[np.ndarray, "*shape"]]:
    """A value with the mean and sd of its null, z and p; NaN without a null, z also where the null has no spread.

    Args:
        value: what was measured. null: samples of it by chance, first axis; broadcast against the rest.
    """
    nothing = np.full_like(value, np.nan)
    if null is None:
        return {"value": value, "null_mean": nothing, "null_sd": nothing, "z": nothing, "p": nothing}
    defined = ~np.isnan(value)
    mean = np.where(defined, null.mean(0), np.nan)
    sd = np.where(defined, null.std(0, ddof=1), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where((sd == 0) & (value == mean), 0.0, (value - mean) / sd)
    z[np.isinf(z)] = np.nan  # a null without spread has no unit to measure a distance in
    return {"value": value, "null_mean": mean, "null_sd": sd, "z": z, "p": two_sided_p(value, null)}
