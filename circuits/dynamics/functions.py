"""What the heads of a run do, every measure in one call: behaviour, effects by kind, multigrams, brackets, and roles.

The text is the run's own held-out text (``run.corpus``, else its evaluation tokens), cut into windows that share nothing; what is
counted is its training text. Both are of one kind, code where the run has it.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from circuits.data.bracket_set import bracket_ids, bracket_set
from circuits.data.brackets import BracketTokens
from circuits.data.contexts import KINDS, classify_contexts
from circuits.data.ngrams import NgramTable
from circuits.data.streams import split_blocks
from circuits.data.token_classes import TokenClasses
from circuits.data.tokens import consecutive_windows
from circuits.detectors.brackets import BracketScores
from circuits.detectors.copying import CopyingScores
from circuits.detectors.in_context_ablation import InContextAblation
from circuits.detectors.induction_cut import InductionCut
from circuits.detectors.multigram_measure import Multigrams
from circuits.detectors.nested_brackets import NestedBrackets
from circuits.detectors.positions import PositionAblation
from circuits.detectors.predictors import PredictorLoss
from circuits.detectors.profile import FunctionProfile
from circuits.detectors.roles import classify_functions
from circuits.detectors.token_losses import TokenLosses
from circuits.dynamics.detect import attention_measure
from circuits.dynamics.sweep import check_checkpoints
from circuits.dynamics.together import Found, measured
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure, array_hash

if TYPE_CHECKING:
    import xarray as xr

PROFILE_EXAMPLES, MULTIGRAM_EXAMPLES, IN_CONTEXT_EXAMPLES = 96, 128, 64
BEHAVIOUR_EXAMPLES, PREDICTED_EXAMPLES, BRACKET_EXAMPLES = 32, 64, 64
WHAT = ("attention", "behaviour", "effects", "multigrams", "brackets", "roles")
"""What can be asked for; "roles" includes the measures that roles rest on."""
ROLE_MEASURES = {
    "scores": "attention_scores",
    "induction_cut": "induction_cut",
    "multigrams": "multigrams",
    "brackets": "bracket_scores",
}


class Text(NamedTuple):
    """A run's text to measure on.

    Attributes:
        kind: of the text, e.g. ``"code"``. tokens: ``[example, pos]``, windows in the order of the text that share nothing.
        counted: the text that n-grams are counted in; empty where the run ships none.
    """

    kind: str
    tokens: Tensor
    counted: list[np.ndarray]


def text_of(run: Checkpoints) -> Text | None:
    """The run's held-out text and the training text to count in; None where the run ships neither text nor evaluation tokens."""
    kinds = [kind for kind in run.corpus if not kind.endswith("_train")]
    if kinds:
        kind = "code" if "code" in kinds else kinds[0]
        trained = run.corpus.get(f"{kind}_train")
        counted = [] if trained is None else split_blocks(trained)
        if len(run.corpus[kind]) >= run.cfg.n_ctx - 1:
            return Text(kind, consecutive_windows(run.corpus[kind], n_ctx=run.cfg.n_ctx), counted)
    kinds = [kind for kind in run.evaluation if kind != "brackets" and not kind.startswith("shuffled")]
    if not kinds:
        return None
    kind = "code" if "code" in kinds else kinds[0]
    return Text(kind, run.evaluation[kind], [])


def spread(tokens: Tensor, examples: int) -> Tensor:
    """So many examples, evenly spread over the text; all where there are fewer."""
    if len(tokens) <= examples:
        return tokens
    return tokens[torch.arange(examples) * len(tokens) // examples]


def table_of(run: Checkpoints) -> NgramTable | None:
    """N-gram counts of the run's training text; None where it ships none."""
    text = text_of(run)
    if text is None or not text.counted or run.path is None:
        return None
    return _table(run.path, array_hash(*text.counted), run.cfg.d_vocab)


@lru_cache(maxsize=2)
def _table(path: Path, digest: str, d_vocab: int) -> NgramTable:
    """Counted once for each text: every section of a report asks for it."""
    text = text_of(Checkpoints.from_dir(path))
    assert text is not None  # table_of saw it
    return NgramTable.count(text.counted, d_vocab)


def profile_text(run: Checkpoints) -> tuple[Tensor, Tensor, str] | None:
    """The text of the function profile, the kind of each of its predictions, and a hash of the rule.

    None where the run has no text, no tokenizer, or nothing to count n-grams in.
    """
    text, table = text_of(run), table_of(run)
    if text is None or table is None or run.tokenizer is None or run.path is None:
        return None
    return _profile_text(run.path, table.data_hash, PROFILE_EXAMPLES)


@lru_cache(maxsize=2)
def _profile_text(path: Path, counted: str, examples: int) -> tuple[Tensor, Tensor, str]:
    run = Checkpoints.from_dir(path)
    text, table = text_of(run), table_of(run)
    assert text is not None and table is not None and run.tokenizer is not None  # profile_text saw them
    tokens = spread(text.tokens, examples)
    found = classify_contexts(tokens, table, TokenClasses.from_tokenizer(run.tokenizer))
    return tokens, torch.from_numpy(found.kind.astype(np.int64)), found.data_hash


def bracket_tokens(run: Checkpoints) -> BracketTokens | None:
    """Bracketed sequences of the run's own tokens; None where its tokenizer has no single brackets, or there is none."""
    if run.tokenizer is None:
        return None
    try:
        pairs, quotes, filler = bracket_ids(run.tokenizer)
    except ValueError:
        return None
    return bracket_set(pairs, filler, quotes=quotes, examples=BRACKET_EXAMPLES, length=min(64, run.cfg.n_ctx))


def function_measures(run: Checkpoints, what: Iterable[str] = WHAT) -> dict[str, Measure]:
    """The measures of what heads do, by name: one configuration of each, so that report and command line share artefacts.

    A measure that the run has nothing for (no text, no tokenizer, no training text) is left out.

    Raises:
        ValueError: something is asked for that is not in ``WHAT``.
    """
    asked = set(what)
    if unknown := asked - set(WHAT):
        raise ValueError(f"what={', '.join(sorted(unknown))}: choose of {', '.join(WHAT)}")
    text, ids = text_of(run), attention_measure(run).ids
    brackets = bracket_tokens(run) if asked & {"brackets", "roles"} else None
    found: list[Measure] = []
    if asked & {"attention", "roles"}:
        found.append(attention_measure(run))
    if "behaviour" in asked:
        found += _behaviour(run, text, ids)
    if "effects" in asked and (profiled := profile_text(run)) is not None:
        tokens, kinds, rule = profiled
        found.append(FunctionProfile(tokens, kinds, names=KINDS, rule=rule))
    if asked & {"multigrams", "roles"} and text is not None:
        found.append(Multigrams(spread(text.tokens, MULTIGRAM_EXAMPLES)))
    if brackets is not None:
        found.append(BracketScores(brackets))
        found += [NestedBrackets(brackets)] if "brackets" in asked and run.cfg.n_layers > 1 else []
    if "roles" in asked:
        found.append(InductionCut(ids=ids))
    return {measure.name: measure for measure in found}


def _behaviour(run: Checkpoints, text: Text | None, ids: Any) -> list[Measure]:
    """Behavioural scores; those of text where the run has some."""
    table = table_of(run)
    if text is None:
        return [CopyingScores(ids=ids)]
    natural = {kind: tokens for kind, tokens in run.evaluation.items() if kind != "brackets" and not kind.startswith("shuffled")}
    short = {text.kind: spread(text.tokens, BEHAVIOUR_EXAMPLES)}
    found: list[Measure] = [
        CopyingScores(ids=ids, tokens=short[text.kind]),
        PositionAblation(short),
        InContextAblation(spread(text.tokens, IN_CONTEXT_EXAMPLES)),
        TokenLosses(natural or short),
    ]
    return found if table is None else [*found, PredictorLoss(table, {text.kind: spread(text.tokens, PREDICTED_EXAMPLES)})]


def roles_of(results: "Mapping[str, xr.Dataset]") -> "xr.Dataset | None":
    """The role of every head at the checkpoints that all measures behind it have; None where one is missing."""
    given = {argument: results[name] for argument, name in ROLE_MEASURES.items() if name in results}
    if not set(ROLE_MEASURES) - {"brackets"} <= given.keys():
        return None
    steps = [set(data["step"].values[data["status"].values == "ok"].tolist()) for data in given.values()]
    common = sorted(set.intersection(*steps))
    if not common:
        return None
    at = {argument: data.sel(step=common) for argument, data in given.items()}
    return classify_functions(at["scores"], at["induction_cut"], at["multigrams"], at.get("brackets"))


class Functions(Found):
    """What ``functions`` found; among the results are ``head_functions``, the roles, if they were asked for."""

    command = "detect"


def functions(
    run: Checkpoints,
    what: Iterable[str] = WHAT,
    *,
    store: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> Functions:
    """Measure what the heads do at every checkpoint.

    Args:
        run: the training run. what: parts of ``WHAT``: "attention", "behaviour", "effects" (function profiles), "multigrams",
            "brackets", "roles". store: folder of artefacts, made if need be (default: nothing is kept).
        workers: processes to spread checkpoints over; 0 works in this one. progress: show a bar (default: if watched).

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: an unknown part, ``store`` is a file, or nothing has data, with the
            first reason.
    """
    check_checkpoints(run)
    what = (what,) if isinstance(what, str) else tuple(what)
    measures = function_measures(run, what)
    if not measures:
        raise ValueError(f"{run.name} has neither text nor tokenizer to measure this on: give the run a corpus.safetensors")
    results, absent = measured([(measure, run) for measure in measures.values()], store=store, workers=workers, progress=progress)
    if "roles" in what and (roles := roles_of(results)) is not None:
        results["head_functions"] = roles
    return Functions(run.name, results, absent)
