"""What the report measures of what heads do: at how many checkpoints, and why a measure was left out.

The measures are those of ``dynamics.functions``, so that the report, ``circuits detect`` and a notebook share artefacts. All of
them together would take many minutes over a whole run, so the report computes most at a few checkpoints or at the last one and
reads what the store has beyond that.
"""

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from circuits.dynamics.functions import ROLE_MEASURES, function_measures
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure
from circuits.views.html import paragraph
from circuits.views.sections import Wanted

PLAN: dict[str, tuple[str, dict[str, Any]]] = {
    "attention_scores": ("attention", {}),
    "function_profile": ("effects", {"few": 3}),
    "multigrams": ("multigrams", {"last": True}),
    "bracket_scores": ("brackets", {"few": 3}),
    "nested_brackets": ("brackets", {"last": True}),
    "induction_cut": ("roles", {"few": 3}),
    "copying_scores": ("behaviour", {"last": True}),
    "in_context_ablation": ("behaviour", {"last": True}),
    "position_ablation": ("behaviour", {"last": True}),
    "token_losses": ("behaviour", {"few": 4}),
    "predictor_loss": ("behaviour", {"few": 6}),
}
"""By measure: the part of ``function_measures`` it belongs to, and where the report computes it."""
NEEDS = {
    "function_profile": "a text, a tokenizer, and training text to count n-grams in",
    "multigrams": "a text",
    "bracket_scores": "a tokenizer with brackets of one token each",
    "nested_brackets": "two layers, and a tokenizer with brackets of one token each",
    "in_context_ablation": "a text",
    "position_ablation": "a text",
    "token_losses": "a text",
    "predictor_loss": "training text to count n-grams in",
}


def available(run: Checkpoints, *names: str) -> tuple[dict[str, Measure], dict[str, str]]:
    """The named measures that a run has something for, and for each of the others the reason why not."""
    found: dict[str, Measure] = {}
    refused: dict[str, str] = {}
    for part in dict.fromkeys(PLAN[name][0] for name in names):
        try:
            found |= function_measures(run, (part,))
        except ValueError as error:
            refused[part] = str(error)
    lacking = {
        name: refused.get(PLAN[name][0], f"it needs {NEEDS.get(name, 'more')}, which this run does not have")
        for name in names
        if name not in found
    }
    return {name: found[name] for name in names if name in found}, lacking


def not_measured(run: Checkpoints, parts: Iterable[str]) -> dict[str, str]:
    """The measures of these parts of ``function_measures`` that a run has nothing for, and why."""
    parts = set(parts)
    names = [name for name, (part, _) in PLAN.items() if part in parts or ("roles" in parts and name in ROLE_MEASURES.values())]
    return available(run, *names)[1]


def wanted(run: Checkpoints, *names: str) -> list[Wanted]:
    """The named measures as a section asks for them; those that the run has nothing for are left out."""
    return [Wanted(measure, **PLAN[name][1]) for name, measure in available(run, *names)[0].items()]


def left_out(run: Checkpoints, *names: str) -> Markup:
    """A line for each of the named measures that the run has nothing for."""
    _, lacking = available(run, *names)
    return Markup("\n").join(
        paragraph("<b>Left out: {}.</b> {}.", name.replace("_", " "), _sentence(reason)) for name, reason in lacking.items()
    )


def _sentence(reason: str) -> str:
    return (reason[:1].upper() + reason[1:]).rstrip(".")
