"""Scan and snap on a training run: how every head's attention moved, when it froze, and which tokens it came to prefer.

    spread, probe    how widely attention is spread, and where it was on a small fixed batch: movement, snap, bounce
    rank             stable ranks of the heads' circuits
    bias, lift       whether token-pair logits follow co-occurrence (frequency bias) and what tells the next token apart
                     (discriminative bias), as gained since the run's first checkpoint; attention on common and rare tokens

What is read off a trajectory is in ``circuits.dynamics.readings``. The clock is the sum of learning rates where the run says how
it was trained (``train.json``): a learning rate that decays would else be taken for a snap.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from circuits.data.pairs import pair_statistics
from circuits.detectors.attention_lift import AttentionLift
from circuits.detectors.attention_probe import AttentionProbe
from circuits.detectors.attention_spread import AttentionSpread
from circuits.detectors.pair_bias import PairBias
from circuits.dynamics.readings import read_trajectory
from circuits.dynamics.sweep import check_checkpoints
from circuits.dynamics.together import Found, measured
from circuits.dynamics.train import TrainConfig, learning_rate
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure
from circuits.weights.stable_rank import StableRank

if TYPE_CHECKING:
    import xarray as xr

EXAMPLES = 16
"""Sequences of the spread: its errors are small beside the differences between heads."""
LENGTH = 40
"""Tokens of each of the probe's sequences: sixteen bytes and more go to each of their pairs at every checkpoint."""


def text_of(run: Checkpoints) -> Tensor | None:
    """The text that attention is read on: held-out code, or the first evaluation text; None where the run ships none."""
    texts = {kind: tokens for kind, tokens in run.evaluation.items() if kind != "brackets"}
    return texts.get("code", next(iter(texts.values()), None))


def scan_snap_measures(run: Checkpoints) -> dict[str, Measure]:
    """The measures by part; none for a run without text, and no bias for one without a stream to count pairs in."""
    text = text_of(run)
    if text is None:
        return {}
    found: dict[str, Measure] = {
        "spread": AttentionSpread(text[:EXAMPLES]),
        "probe": AttentionProbe(text, length=LENGTH),
        "rank": StableRank(reference=run.at(run.steps[0])) if len(run) > 1 else StableRank(),
    }
    streams = [stream for kind, stream in run.corpus.items() if kind.endswith("_train")] or list(run.corpus.values())
    if run.token_counts is not None:
        found["lift"] = AttentionLift(text, run.token_counts)
    if streams:
        reference = run.at(run.steps[0]) if len(run) > 1 else None
        # Pairs of tokens are many: every text in its own order counts here.
        texts = [tokens for kind, tokens in run.evaluation.items() if kind != "brackets" and not kind.startswith("shuffled")]
        read = torch.cat([tokens for tokens in texts if tokens.shape[1] == text.shape[1]])
        found["bias"] = PairBias(pair_statistics(streams, run.cfg.d_vocab), read, reference)
    return found


def rates_of(run: Checkpoints) -> np.ndarray | None:
    """The learning rate of every update up to the last checkpoint; None where the run does not say how it was trained."""
    path = run.beside("train.json")
    if path is None:
        return None
    try:
        config = TrainConfig.model_validate(json.loads(path.read_text()))
    except (ValidationError, json.JSONDecodeError, TypeError):
        return None
    return np.array([learning_rate(config, step) for step in range(run.steps[-1])])


def movement(probe: "xr.Dataset", spread: "xr.Dataset", bias: "xr.Dataset | None" = None) -> "xr.Dataset":
    """What ``read_trajectory`` reads: ``distance`` from the checkpoint before, ``entropy`` with its error, and ``logit``.

    Args:
        probe, spread: of a sweep, the same checkpoints. bias: of a sweep, whose spread of token-pair logits is the logit that
            grows; left out, none is.

    Returns:
        Over ``step, layer, head``; ``distance`` (mean over the probe of ``|A' - A|_1``, 0 to 2) with its error over sequences,
        NaN at the first checkpoint that has attention.

    Raises:
        ValueError: checkpoints that differ.
    """
    import xarray as xr

    if not np.array_equal(probe["step"].values, spread["step"].values):
        raise ValueError("probe and spread are of different checkpoints: measure both on one run")
    ok = (probe["status"].values == "ok") & (spread["status"].values == "ok")
    kept = probe.isel(step=np.flatnonzero(ok))
    attention = kept["value"].transpose("step", "layer", "head", "example", "query", "key").values
    moved = np.full((2, *attention.shape[:3]), np.nan)
    for i in range(1, len(attention)):
        by_example = np.abs(attention[i].astype(np.float32) - attention[i - 1]).sum(-1).mean(-1)
        moved[:, i] = by_example.mean(-1), by_example.std(-1, ddof=1) / np.sqrt(by_example.shape[-1])
    dims = ("step", "layer", "head")
    entropy = spread.isel(step=np.flatnonzero(ok)).sel(statistic="entropy")
    found = xr.Dataset(
        {"distance": (dims, moved[0]), "distance_stderr": (dims, moved[1])},
        coords={dim: kept[dim] for dim in dims},
    )
    found["entropy"], found["entropy_stderr"] = entropy["value"].drop_vars("statistic"), entropy["stderr"].drop_vars("statistic")
    if bias is not None and set(kept["step"].values) <= set(bias["step"].values):
        found["logit"] = bias["logit_sd"].sel(step=kept["step"])
    return found


class ScanSnap(Found):
    """What ``scan_snap`` found."""

    command = "scan-snap"


def scan_snap(
    run: Checkpoints,
    what: Iterable[str] | None = None,
    *,
    store: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> ScanSnap:
    """Every quantity of scan and snap that a run has data for, of every head at every checkpoint, and what is read off them.

    Args:
        run: the training run. what: parts of ``scan_snap_measures`` (default: all that the run has data for).
        store: folder of artefacts, made if need be (default: nothing is kept). workers: processes to spread checkpoints over; 0
            works in this one. progress: show a bar.

    Returns:
        ``results`` by measure, and among them ``movement`` and ``snap`` (see ``movement`` and ``read_trajectory``) where there
        are probe and spread at four checkpoints or more.

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: an unknown part, a run without text, or ``store`` is a file.

    Source: Tian et al. 2023; Tian et al. 2023b.
    """
    check_checkpoints(run)
    parts = scan_snap_measures(run)
    if not parts:
        raise ValueError(f"{run.name} ships no text to read attention on: give it an evaluation.safetensors")
    asked = list(parts) if what is None else [what] if isinstance(what, str) else list(what)
    unknown = [part for part in asked if part not in parts]
    if unknown:
        raise ValueError(f"{run.name} has no {', '.join(map(repr, unknown))} to measure, only {', '.join(parts)}")
    results, absent = measured([(parts[part], run) for part in asked], store=store, workers=workers, progress=progress)
    return ScanSnap(run.name, {**results, **read(run, results)}, absent)


def read(run: Checkpoints, results: "dict[str, xr.Dataset]") -> "dict[str, xr.Dataset]":
    """``movement`` and ``snap`` of what was measured; nothing where probe or spread are missing or too few."""
    if not {"attention_probe", "attention_spread"} <= set(results):
        return {}
    moved = movement(results["attention_probe"], results["attention_spread"], results.get("pair_bias"))
    if moved.sizes["step"] < 4:
        return {}
    return {"movement": moved, "snap": read_trajectory(moved, rates=rates_of(run))}
