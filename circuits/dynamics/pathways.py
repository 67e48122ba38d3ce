"""Which paths matter in a run, every measure in one call: terms of the path expansion, effects of every edge, attribution.

Two texts are read. On repeated random tokens the loss of the repeated half is what induction is worth; on the run's own held-out
text all predictions count. A write is replaced with its mean, position by position, over a reference of many other sequences, the
same ones at every checkpoint: with few, the mean's error would be larger than the one shown. The reference of repeated tokens is
in random order: means over sequences that repeat at one distance would still say where to look. Path expansion is
for attention-only models whose logits have no cap, and is left out of others.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits.data.tokens import repeated_random_tokens, shuffle_tokens
from circuits.dynamics.detect import attention_measure
from circuits.dynamics.functions import spread, text_of
from circuits.dynamics.sweep import check_checkpoints
from circuits.dynamics.together import Found, measured
from circuits.models.checkpoints import Checkpoints
from circuits.paths.attribution import EdgeAttribution
from circuits.paths.edges import EdgeEffects
from circuits.paths.path_terms import PathTerms, number_of_paths
from circuits.paths.term_importance import TermImportance
from circuits.results import Measure

if TYPE_CHECKING:
    pass

LONGEST_COPY = 50
REPEATS, TEXT, REFERENCE = 8, 16, 128
"""Examples of repeated tokens, of text, and of either at most behind a mean."""
MOST_PATHS = 2000
"""Paths that are listed in a result; of more, those of the highest order are taken together."""


def repeated(run: Checkpoints, examples: int = REPEATS, seed: int = 0) -> tuple[Tensor, Tensor] | None:
    """Random tokens twice over, and which predictions are of repeated tokens; None where there is no room for two."""
    ids = attention_measure(run).ids
    allowed = np.arange(1, run.cfg.d_vocab) if ids is None else np.asarray(ids)
    n = min(LONGEST_COPY, (run.cfg.n_ctx - 1) // 2, len(allowed))
    if n < 2:
        return None
    tokens = repeated_random_tokens(allowed, n=n, examples=examples, seed=seed).tokens
    count = torch.zeros(len(tokens), tokens.shape[1] - 1, dtype=torch.bool)
    count[:, n + 1 :] = True  # position n + 1 is the first that has been seen before; it predicts the second token of the copy
    return tokens, count


def path_measures(run: Checkpoints) -> tuple[Measure, ...]:
    """What reports and ``circuits paths`` measure of a run's paths: one configuration of each, so that they share artefacts."""
    found: list[Measure] = []
    if (copies := repeated(run)) is not None:
        others = repeated(run, REFERENCE, seed=1)
        assert others is not None  # there is room for the same layout
        reference = shuffle_tokens(others[0], seed=1)
        found.append(EdgeEffects(copies[0], "mean", reference=reference, count=copies[1], on="repeats"))
    if (text := text_of(run)) is None:
        return tuple(found)
    tokens, reference = apart(text.tokens)
    on_text = EdgeEffects(tokens, "mean", reference=reference, on="text")
    found += [on_text, EdgeAttribution(on_text, "inputs")]
    if run.cfg.attn_only and run.cfg.output_logits_soft_cap <= 0:
        found += [TermImportance(tokens), PathTerms(tokens, max_order=_listed_order(run))]
    return tuple(found)


def apart(tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Examples spread over a text, and others for the mean; None where there are fewer others than examples."""
    chosen = torch.zeros(len(tokens), dtype=torch.bool)
    chosen[torch.arange(TEXT) * len(tokens) // TEXT if len(tokens) > TEXT else torch.arange(len(tokens))] = True
    others = tokens[~chosen]
    return tokens[chosen], spread(others, REFERENCE) if len(others) >= TEXT else None


def _listed_order(run: Checkpoints) -> int | None:
    """The highest order up to which all paths may be listed; None if that is all of them."""
    counts = np.cumsum([number_of_paths(run.cfg, order) for order in range(run.cfg.n_layers + 1)])
    return None if counts[-1] <= MOST_PATHS else max(1, int(np.searchsorted(counts, MOST_PATHS, side="right")) - 1)


class Pathways(Found):
    """What ``pathways`` found."""

    command = "paths"


def pathways(run: Checkpoints, *, store: str | Path | None = None, workers: int = 0, progress: bool | None = None) -> Pathways:
    """Measure the paths of every checkpoint: edges on repeated tokens and on text, attribution, terms of the expansion.

    Args:
        run: the training run. store: folder of artefacts, made if need be (default: nothing is kept).
        workers: processes to spread checkpoints over; 0 works in this one. progress: show a bar (default: if watched).

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: ``store`` is a file, or no measure has data, with the first reason.
    """
    check_checkpoints(run)
    measures = path_measures(run)
    if not measures:
        raise ValueError(f"{run.name} has neither text nor room for repeated tokens: give the run a corpus.safetensors")
    results, absent = measured([(measure, run) for measure in measures], store=store, workers=workers, progress=progress)
    return Pathways(run.name, results, absent)
