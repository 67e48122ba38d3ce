"""Local learning coefficients of a run: which texts they are measured on, and every curve in one call.

    mix            windows of the run's training text, with repeats as in training: the weight-refined coefficient proper
    code, prose    each kind of held-out text: data-refined
    shuffled_code  its control, the same tokens in another order
    <text>_kl      the divergence from a one-layer run's predictions instead of the loss: loss-refined
    grid           the first text under other settings of the sampler, at the last checkpoint: made where it is asked for

Every text is the same at every checkpoint, and so is the randomness of a head's chains: differences between checkpoints are
less noisy than the values themselves, and the errors of neighbouring points of a curve are not independent.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from circuits.complexity.config import SamplerConfig, sampler_config
from circuits.complexity.grid import BY_NORM, SettingsGrid
from circuits.complexity.nulls import ComplexityNulls
from circuits.complexity.rllc import LLC, RLLC, check_asked
from circuits.data.mixture import RepeatConfig, training_batch
from circuits.data.streams import BLOCK
from circuits.data.tokens import random_ids
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.sweep import THREADS_PER_TASK, check_checkpoints, check_workers, evenly
from circuits.dynamics.sweep import measured as swept
from circuits.dynamics.together import Found, measured
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure

if TYPE_CHECKING:
    import xarray as xr

WHAT = ("mix", "nulls", "code", "prose", "shuffled_code", "whole", "kl", "grid")
"""What ``coefficients`` can measure, beside every other text that the run ships."""
FEW = 8
"""Checkpoints of the controls: shuffled text, the divergence from a reference, and nulls on other texts than the mix."""
EXAMPLES = 128
"""Sequences of the training mix; held-out texts have as many as the run ships."""
MIX_SEED = 2**20
"""A step number that no training run reaches: windows of the mix are other ones than those of any batch."""


def training_mix(run: Checkpoints, examples: int = EXAMPLES) -> Tensor | None:
    """Sequences such as the run was trained on: windows of its training text, kinds in their proportions, repeats put in.

    Returns:
        ``[example, n_ctx]``, BOS first; None where the run ships no training text.
    """
    streams = {kind.removesuffix("_train"): stream for kind, stream in run.corpus.items() if kind.endswith("_train")}
    length = run.cfg.n_ctx - 1
    if not streams or any(len(stream) < length for stream in streams.values()):
        return None
    sizes = {part.get("kind"): part.get("characters", 0) for part in run.meta.get("data", [])}
    weights = np.array([sizes.get(kind, 0) for kind in streams], dtype=float)
    weights = weights / weights.sum() if weights.all() else np.full(len(streams), 1 / len(streams))
    # Streams were cut to one length; in proportion again, each is cut to its share of what the largest share allows.
    whole = min(len(stream) / weight for stream, weight in zip(streams.values(), weights, strict=True))
    kept = [
        stream[: max(int(weight * whole) // BLOCK * BLOCK, length)]
        for stream, weight in zip(streams.values(), weights, strict=True)
    ]
    ids = np.arange(1, run.cfg.d_vocab) if run.token_counts is None else random_ids(run.token_counts)
    return training_batch(
        np.concatenate(kept), step=MIX_SEED, seed=0, batch=examples, n_ctx=run.cfg.n_ctx, repeats=repeats_of(run), ids=ids
    )


def repeats_of(run: Checkpoints) -> RepeatConfig:
    """How the run's training text was mixed with repeats; none where it does not say."""
    path = run.beside("train.json")
    if path is None:
        return RepeatConfig(share=0.0)
    try:
        return RepeatConfig.model_validate(json.loads(path.read_text())["repeats"])
    except (ValidationError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not say how repeats were mixed in; mend or delete it") from error


def texts_of(run: Checkpoints) -> dict[str, Tensor]:
    """The texts that coefficients are measured on, by name: the training mix, and each evaluation text but bracket strings.

    Names are parts of files' names and of a command's, so that a text called "open-web" is "open_web" here, and one called as
    another part is, such as "whole", is "text_whole".

    Raises:
        ValueError: two texts would have one name.
    """
    mix = training_mix(run)
    found = {} if mix is None else {"mix": mix}
    for kind, tokens in run.evaluation.items():
        if kind != "brackets":
            name = named(kind)
            if name in found:
                raise ValueError(
                    f"two texts of {run.name} would be called {name!r}; rename {kind!r} in its evaluation.safetensors"
                )
            found[name] = tokens
    return found


def named(kind: str) -> str:
    """A text's name as a word of letters, digits and underscores that is no other part's."""
    name = re.sub(r"\W", "_", kind)
    return f"text_{name}" if name in ("mix", "nulls", "whole", "kl", "grid") or not name.isidentifier() else name


def coefficient_measures(
    run: Checkpoints, what: Iterable[str] | None = None, *, reference: Checkpoints | None = None
) -> dict[str, list[tuple[Measure, Checkpoints]]]:
    """What reports and ``circuits rllc`` measure, by part: each measure with the checkpoints it is for.

    The first text stands for the run (the mix where there is one): nulls, the whole model and the divergence from the reference's
    last checkpoint are measured on it. Controls are measured at ``FEW`` checkpoints. Other settings ("grid") are among the parts
    only where ``what`` names them.
    """
    texts = texts_of(run)
    few = run.select(evenly(run, FEW))
    found: dict[str, list[tuple[Measure, Checkpoints]]] = {}
    for on, tokens in texts.items():
        found[on] = [(RLLC(tokens, "laptop", on=on), few if on.startswith("shuffled") else run)]
    if texts:
        first = next(iter(texts))
        found["nulls"] = [(ComplexityNulls(text, "laptop", on=on), run if on == first else few) for on, text in texts.items()]
        found["whole"] = [(LLC(texts[first], "laptop-whole", on=first), run)]
        if reference is not None:
            other = reference.at(reference.steps[-1])
            found["kl"] = [
                (measure(texts[first], "laptop", on=f"{first}_kl", reference=other), few) for measure in (RLLC, ComplexityNulls)
            ]
    if what is None:
        return found
    what = [what] if isinstance(what, str) else list(what)
    found |= {"grid": grid} if (grid := grid_measures(run)) else {}
    unknown = [part for part in what if part not in found]
    if unknown:
        why = f"; 'kl': {without_reference(run)}" if "kl" in unknown else ""
        raise ValueError(f"{run.name} has no {', '.join(map(repr, unknown))} to measure, only {', '.join(found)}{why}")
    return {part: found[part] for part in what}


def grid_measures(run: Checkpoints) -> list[tuple[Measure, Checkpoints]]:
    """The first text under other settings of the sampler: at the last checkpoint, with gamma by norm at ``FEW``."""
    on, tokens = next(iter(texts_of(run).items()), ("", None))
    if tokens is None:
        return []
    few = run.select(evenly(run, FEW))
    return [
        (SettingsGrid(tokens, on=on), run.select([run.steps[-1]])),
        (SettingsGrid(tokens, BY_NORM, on=on, called="by_norm"), few),
    ]


def without_reference(run: Checkpoints) -> str:
    """Why there is nothing to measure a divergence from."""
    named = run.meta.get("reference")
    if named:
        return f"the run that meta.json names as its reference, {named}, is not beside it; give another as reference"
    return "it needs a reference run, of one layer say, and meta.json names none (reference)"


def reference_of(run: Checkpoints) -> Checkpoints | None:
    """The run that ``meta.json`` names as the reference of loss-refined coefficients, relative to the run's folder."""
    named = run.meta.get("reference")
    if not named or run.path is None or not (run.path / str(named)).is_dir():
        return None
    return Checkpoints.from_dir(run.path / str(named))


class Coefficients(Found):
    """What ``coefficients`` found."""

    command = "rllc"

    def not_ok(self) -> tuple[int, int]:
        """How many cells (a head, or all weights, at a checkpoint) whose sampling is not ok, and how many there are."""
        states = [data["state"].values.ravel() for name, data in self.results.items() if not name.startswith("nulls_")]
        every = np.concatenate([state[~np.isin(state, ("missing", "not asked"))] for state in states]) if states else np.array([])
        return int((every != "ok").sum()), len(every)


def coefficients(
    run: Checkpoints,
    what: Iterable[str] | None = None,
    *,
    reference: Checkpoints | None = None,
    store: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> Coefficients:
    """Every head's coefficient at every checkpoint, on every text, with nulls and the whole model's.

    Args:
        run: the training run. what: parts of ``coefficient_measures`` (default: all that the run has data for).
        reference: the run whose last model loss-refined coefficients are measured against (default: the one that
            ``meta.json`` names). store: folder of artefacts, made if need be (default: nothing is kept; what comes with the run
            is read in either case). workers: processes to spread checkpoints over; 0 works in this one. progress: show a bar.

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: an unknown part, ``store`` is a file, or nothing has data.
    """
    check_checkpoints(run)
    if reference is not None:
        check_checkpoints(reference)
    check_workers(workers)
    given = reference if reference is not None else reference_of(run)
    parts = coefficient_measures(run, what, reference=given)
    wanted = [pair for pairs in parts.values() for pair in pairs]
    if not wanted:
        raise ValueError(f"{run.name} ships no text to measure coefficients on: give it an evaluation.safetensors")
    results, absent = measured(wanted, store=store, workers=workers, progress=progress)
    if what is None and given is None and run.meta.get("reference"):
        absent["kl"] = without_reference(run)
    return Coefficients(run.name, results, absent)


def rllc(
    model_or_checkpoints: Any,
    tokens: Tensor | None = None,
    *,
    heads: Iterable[Any] | None = None,
    config: SamplerConfig | str = "paper",
    on: str | None = None,
    reference: Any = None,
    keep_tokens: bool = False,
    store: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> "xr.Dataset":
    """The refined local learning coefficient of heads: of one model, or over a run.

    ``rllc = nbeta (E[L(w)] - L(w*))``, ``w`` a head's weights drawn from ``exp(-nbeta L - gamma/2 |w - w*|^2)``.

    Args:
        model_or_checkpoints: a hooked model in evaluation mode, or a run as Checkpoints.
        tokens: the text, ``[example, pos]`` (default, for a run: its training mix).
        heads: names such as "L0H3" (default: all). config: "paper", "laptop" or a SamplerConfig; settings: fields of it to
            change, such as ``epsilon=1e-3, gamma=100.0``. on: what the text is called (default: "mix" for a run's training mix,
            else "text"); part of the name of results. reference: a model to measure the divergence from, in place of the loss.
            keep_tokens: also what the prediction of every token contributes.
        store, workers, progress: for a run, see ``circuits.sweep``. One model is sampled on one thread, so that results do not
            depend on how many there are.

    Returns:
        See ``circuits.complexity.rllc.RLLC``; for one model its ``state`` is called ``status``, for a run ``status`` is the
        checkpoint's.

    Raises:
        TypeError, ValueError: settings, heads, tokens or a model that do not fit.

    Source: Wang et al. 2024, equation 5.
    """
    settled = sampler_config(config, **settings)
    return _one_or_run(
        lambda text, name: RLLC(text, settled, name, heads, reference, keep_tokens, progress),
        *(model_or_checkpoints, tokens, on, store, workers, progress),
    )


def llc(
    model_or_checkpoints: Any,
    tokens: Tensor | None = None,
    *,
    weights: Any = "all",
    config: SamplerConfig | str = "paper",
    on: str | None = None,
    reference: Any = None,
    keep_tokens: bool = False,
    store: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> "xr.Dataset":
    """The local learning coefficient of all weights, or of any block of them: of one model, or over a run.

    Args:
        weights: "all", "L0", "embed", "unembed", a head, a list of these, or parameter names. The rest: see ``rllc``.

    Returns:
        See ``circuits.complexity.rllc.LLC``; ``status`` as for ``rllc``.

    Raises:
        TypeError, ValueError: as ``rllc``; weights that the model does not have.

    Source: Lau et al. 2023.
    """
    settled = sampler_config(config, **settings)
    return _one_or_run(
        lambda text, name: LLC(text, settled, name, weights, reference, keep_tokens, progress),
        *(model_or_checkpoints, tokens, on, store, workers, progress),
    )


def _one_or_run(
    make: Callable[[Tensor, str], RLLC | LLC],
    given: Any,
    tokens: Tensor | None,
    on: str | None,
    store: str | Path | None,
    workers: int,
    progress: bool | None,
) -> "xr.Dataset":
    if isinstance(given, Checkpoints):
        text = training_mix(given) if tokens is None else tokens
        if text is None:
            raise ValueError(f"{given.name} ships no training text: give tokens [example, pos], e.g. run.evaluation['code']")
        measure = make(text, on or ("mix" if tokens is None else "text"))
        check_workers(workers)
        # What is wrong with the text or the names is wrong at every checkpoint: said once, and before any work.
        check_asked(measure, given.at(given.steps[0]))
        return swept(measure, given, store=store, workers=workers, progress=progress)
    if tokens is None:
        raise ValueError("a model alone has no text: give tokens [example, pos] with BOS first, e.g. run.evaluation['code']")
    with deterministic(THREADS_PER_TASK):
        return make(tokens, on or "text")(given).rename(state="status")
