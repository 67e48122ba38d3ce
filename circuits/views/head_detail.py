"""Everything that is known of each head, folded away under its name: pictures over training, then tables at the end.

The anchor of a head is ``head-L1H0``. A measure that no head has is named once, with the command that makes it.
"""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.crosscheck.testimony import curve_of
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.attention import patterns_of
from circuits.views.cells import at
from circuits.views.formation import last_measured
from circuits.views.head_board import board
from circuits.views.head_panels import other_texts, panels
from circuits.views.head_tables import EDGES, tables
from circuits.views.html import count, decimal, paragraph, token_labels
from circuits.views.measure_names import left_out
from circuits.views.sections import Results
from circuits.views.sections.attention import sequences
from circuits.views.witness_cells import SIGNS, at_end

if TYPE_CHECKING:
    import xarray as xr

LENGTH = 16
"""Tokens of the text that attention is shown on: as many as have room for their names."""
NEEDED = ("attention_scores", "head_functions", "function_profile", "multigrams", *EDGES)


def head_details(run: Checkpoints, results: Results) -> Markup:
    """A folded part for every head of a run, layer by layer.

    Args:
        results: of the run, by name; any may be absent. ``agreement`` gives verdicts.
    """
    heads = [Head(layer, head) for layer in range(run.cfg.n_layers) for head in range(run.cfg.n_heads)]
    pattern, text = pattern_of(run, results, heads)
    with board() as drawn_on:
        parts = [detail(run, head, results, panels(head, results, pattern, text, drawn_on)) for head in heads]
    return Markup("\n").join([left_out(missing(run, results)), *parts])


def missing(run: Checkpoints, results: Results) -> list[str]:
    """What details are made of and the run's results lack."""
    names = [name for name in NEEDED if name not in results]
    names += ["composition"] if run.cfg.n_layers > 1 and "composition" not in results else []
    curve = curve_of(results)
    if not curve:
        return [*names, "rllc"]
    nulls = [] if f"nulls_{curve.removeprefix('rllc_')}" in results else ["nulls"]
    return [*names, *nulls, *([] if other_texts(results) else ["rllc on other texts"])]


def pattern_of(run: Checkpoints, results: Results, heads: list[Head]) -> "tuple[xr.Dataset, str]":
    """Where all heads attend on the start of a text, from one forward pass, and what the text is."""
    scores = results.get("attention_scores")
    step = run.steps[-1] if scores is None or "status" not in scores else last_measured(scores)
    *_, (title, tokens) = sequences(run)
    tokens = tokens[:, :LENGTH]
    labels = token_labels(run.tokenizer, tokens[0].tolist())
    return patterns_of(run.at(step), tokens, heads, labels), f"{title[:1].lower()}{title[1:]}, step {count(step)}"


def detail(run: Checkpoints, head: Head, results: Results, pictures: Markup) -> Markup:
    """One head: its role and verdict as the summary, and all else below."""
    parts = [facts(head, results), pictures, tables(run, head, results)]
    return Markup(
        '<details id="head-{0}" style="border-top:1px solid #ddd;padding:4px 0">\n<summary><b>{0}</b> {1}</summary>\n'
        "{2}\n</details>"
    ).format(head, " · ".join(filter(None, standing(head, results))), Markup("\n").join(filter(None, parts)))


def standing(head: Head, results: Results) -> tuple[str, str]:
    """A head's role and the verdict on it, as far as they are known."""
    if "agreement" in results:
        here = at(results["agreement"], head)
        verdict = str(here["verdict"].values)
        return str(here["role"].values), f"{SIGNS[verdict]} {verdict}"
    if "head_functions" in results:
        return str(at(at_end(results["head_functions"]), head)["role"].values), ""
    return "role not measured", ""


def facts(head: Head, results: Results) -> Markup | None:
    """How sure its role is and which would be next, and who speaks against it."""
    said = []
    if "head_functions" in results:
        here = at(at_end(results["head_functions"]), head)
        role, second, confidence = str(here["role"].values), str(here["runner_up"].values), float(here["confidence"])
        kept = f", kept in {decimal(100 * confidence, 0)}% of draws" if np.isfinite(confidence) else ""
        said.append(f"By behaviour at step {count(int(here['step']))}: {role}{kept}; without it {second}.")
    if "agreement" in results:
        flag = str(at(results["agreement"], head)["flag"].values)
        said.append("No witness is against it." if flag == "none" else f"Flagged: {flag}.")
    return paragraph("{}", " ".join(said)) if said else None
