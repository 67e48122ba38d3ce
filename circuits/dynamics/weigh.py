"""What the weights of a run say, every measure in one call: spectra, skip-trigrams and, from two layers on, composition."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.data.tokens import repeated_random_tokens
from circuits.dynamics.detect import attention_measure
from circuits.dynamics.sweep import check_checkpoints
from circuits.dynamics.together import Found, measured
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure
from circuits.weights.composition import Composition
from circuits.weights.embedding_composition import EmbeddingComposition
from circuits.weights.k_term import KTermCopying
from circuits.weights.skip_trigrams import SkipTrigrams
from circuits.weights.weight_spectra import WeightSpectra

if TYPE_CHECKING:
    from torch import Tensor


LONGEST_COPY = 50
EXAMPLES = 16


def weight_measures(run: Checkpoints) -> tuple[Measure, ...]:
    """What reports and ``circuits weights`` measure of a run's weights: one configuration of each, so that they share artefacts.

    Composition, of all directions and of what tokens bring (``composition_tokens``), and K-terms need an earlier and a later head
    and are left out of a run with one layer. The QK trace weighs earlier
    heads by their attention to the previous token, on random tokens.
    """
    several = run.cfg.n_layers > 1
    pairs = (Composition(), Composition("tokens", draws=2_000, pooled_heads=0), KTermCopying()) if several else ()
    spectra = WeightSpectra(tokens=trace_tokens(run), diagonal_tokens=256)
    return (spectra, SkipTrigrams(k=20), EmbeddingComposition(draws=1_000), *pairs)


def weight_measure(run: Checkpoints, name: str) -> Measure:
    """The one of them with this name."""
    return next(measure for measure in weight_measures(run) if measure.name == name)


def trace_tokens(run: Checkpoints) -> "Tensor | None":
    """Random tokens twice over, of ids that the detectors use too; None where there is no trace: one layer, or no room."""
    ids = attention_measure(run).ids
    allowed = np.arange(1, run.cfg.d_vocab) if ids is None else np.asarray(ids)
    n = min(LONGEST_COPY, (run.cfg.n_ctx - 1) // 2, len(allowed))
    if run.cfg.n_layers < 2 or n < 1:
        return None
    return repeated_random_tokens(allowed, n=n, examples=EXAMPLES, seed=0).tokens


class Weighed(Found):
    """What ``weigh`` found."""

    command = "weights"


def weigh(run: Checkpoints, *, store: str | Path | None = None, workers: int = 0, progress: bool | None = None) -> Weighed:
    """Measure the weights of every checkpoint: spectra, skip-trigrams, composition with embeddings and between heads.

    Args:
        run: the training run. store: folder of artefacts, made if need be (default: nothing is kept).
        workers: processes to spread checkpoints over; 0 works in this one. progress: show a bar (default: if watched).

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: ``store`` is a file, or no measure has data, with the first reason.
    """
    check_checkpoints(run)
    results, absent = measured(
        [(measure, run) for measure in weight_measures(run)], store=store, workers=workers, progress=progress
    )
    return Weighed(run.name, results, absent)
