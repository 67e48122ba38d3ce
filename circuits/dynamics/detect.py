"""Every attention detector over one model or a whole run, in one call."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.data.tokens import random_ids
from circuits.detectors.attention import AttentionScores
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.sweep import THREADS_PER_TASK, measured
from circuits.models.checkpoints import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import xarray as xr
    from torch import Tensor


def attention_measure(run: Checkpoints | None = None, **options: Any) -> AttentionScores:
    """The attention detectors as a measure; for a run that knows its token counts, random ids are those seen in training."""
    if run is not None and options.get("ids") is None and run.token_counts is not None:
        options["ids"] = random_ids(run.token_counts)
    return AttentionScores(**options)


def detect(
    model_or_checkpoints: Any,
    tokens: "Tensor | None" = None,
    *,
    examples: int = 16,
    seed: int = 0,
    null_seeds: int = 4,
    ids: "Sequence[int] | np.ndarray | Tensor | None" = None,
    store: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> "xr.Dataset":
    """What every head attends to: previous, current, first, duplicate and induction targets, fixed lags, entropy.

    Args:
        model_or_checkpoints: a hooked model, or a run as Checkpoints.
        tokens: what the detectors that need no repeats are measured on, ``[example, pos]`` with BOS first (default:
            random tokens). examples: sequences per token set. seed: of the random tokens. ids: ids to draw them from.
        null_seeds: untrained models behind the null. store, workers, progress: for a run, see ``sweep``.

    Returns:
        ``Dataset(layer, head, detector)``, with a leading ``step`` for a run: ``value``, ``stderr``, ``chance``,
        ``null_mean``, ``null_sd``, ``z``, and ``lag``, the distance behind ``fixed_lag``. Attention mass in [0, 1];
        ``entropy`` in nats.

    Raises:
        TypeError, ValueError: not a model or run, NaN weights, tokens or context that do not fit.

    Source: definitions in ``circuits.models.patterns``.
    """
    run = model_or_checkpoints if isinstance(model_or_checkpoints, Checkpoints) else None
    measure = attention_measure(run, tokens=tokens, examples=examples, seed=seed, null_seeds=null_seeds, ids=ids)
    if run is not None:
        return measured(measure, run, store=store, workers=workers, progress=progress)
    with deterministic(THREADS_PER_TASK):
        return measure(model_or_checkpoints)
