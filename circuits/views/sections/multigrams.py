"""Memorised patterns: how many n-grams and skip-n-grams each head holds, the strongest of them, and where they stood in text."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.detectors.pattern_statistics import KEYS, pattern_statistics
from circuits.detectors.sources import NONE
from circuits.dynamics.functions import table_of
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.cells import at, heads_of
from circuits.views.formation import last_measured
from circuits.views.function_figures import order_name
from circuits.views.function_wanted import available, left_out, wanted
from circuits.views.html import count, decimal, paragraph, shortened, spread, table, token_labels, with_error, z_score
from circuits.views.passages import legend, passage, places_of
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

HEADS, ROWS, EXAMPLES = 4, 8, 2
"""Heads whose patterns are listed, patterns of each, and patterns of each that are shown in text."""
LONGEST_LABEL = 24
CODE = Markup("<code>{}</code>")
NULL_NAMES = {"shifted": "effects shifted", "shuffled": "shuffled text", "untrained": "untrained"}
NULL_MEANINGS = {
    "shifted": "the head’s own effects, moved along each sequence by a random distance",
    "shuffled": "text whose tokens are shuffled within each sequence",
    "untrained": "a model that never learned",
}


def measures(run: Checkpoints) -> list[Wanted]:
    return wanted(run, "multigrams")


def render(run: Checkpoints, results: Results) -> str:
    """Counts of every head, then the patterns of the heads with the most."""
    if "multigrams" not in results:
        return left_out(run, "multigrams")
    found = results["multigrams"]
    step = last_measured(found)
    end = found.sel(step=step)
    heads = shown_heads(end)
    parts = [meaning(found), counts_table(end, step)]
    if not heads:
        return Markup("\n").join([*parts, paragraph("No head has memorised a pattern at step {}.", count(step))])
    parts.append(reading(run, step, heads))
    text = getattr(available(run, "multigrams")[0]["multigrams"], "tokens", None)
    for head in heads:
        parts += patterns_of(run, head, at(end, head), text)
    return Markup("\n").join(parts)


def meaning(found: "xr.Dataset") -> Markup:
    """What a pattern is and when it counts as memorised, with the thresholds that were used."""
    rule = json.loads(found.attrs["config"])["rule"]
    return paragraph(
        "A pattern [far … near … destination → out] is found where ablating the head costs at least {} nats, from the tokens "
        "that carried the effect (value-weighted attention), on one half of {} held-out sequences; what repeats the context is "
        "set aside, since induction could do it. It is <b>memorised</b> if on the other half it occurs in at least {} sequences "
        "and, wherever it occurs, the head’s mean effect there is at least {} nats and exceeds the head’s mean effect by two "
        "standard errors. The number is a lower bound: patterns too rare for the text are not counted, so compare it at one "
        "size of text only.",
        rule["threshold"], count(int(found.attrs.get("n_examples", 0))), rule["min_examples"], rule["threshold"] / 2,
    )  # fmt: skip


def shown_heads(end: "xr.Dataset") -> list[Head]:
    """The heads with the most memorised patterns, those with none left out."""
    number = {head: float(at(end, head)["value"]) for head in heads_of(end)}
    return sorted((head for head in number if number[head] > 0), key=lambda head: (-number[head], head))[:HEADS]


def counts_table(end: "xr.Dataset", step: int) -> Markup:
    """Every head that has memorised something: the count beside its nulls, and the share of its effect."""
    nulls = [null for null in NULL_NAMES if f"{null}_value" in end]
    rows, none = [], []
    for head in heads_of(end):
        here = at(end, head)
        number = float(here["value"])
        if not number > 0:
            none.append(str(head))
            continue
        cells = [
            f"{decimal(number, 0)} ± {spread(float(here['stderr']), 1)}",
            *(decimal(float(here[f"{null}_value"]), 0) for null in nulls),
            z_score(float(here["z"])),
            decimal(float(here["with_source"]), 0),
            count(float(here["found"])),
            with_error(float(here["share"]), float(here["share_stderr"])),
            decimal(float(here["share_chance"])),
        ]
        rows.append((number, head, (Markup("<b>{}</b>").format(head), *cells)))
    rows.sort(key=lambda row: (-row[0], row[1]))
    meanings = "; ".join(f"{name}: {NULL_MEANINGS[null]}" for null, name in NULL_NAMES.items() if null in nulls)
    columns = ("head", "memorised", *(NULL_NAMES[null] for null in nulls), "z", "with a source", "recurring", "share of effect",
               "its chance")  # fmt: skip
    made = table(
        columns,
        [row for _, _, row in rows],
        caption=f"Step {count(step)}. Memorised: distinct patterns ± the error of a count. The same procedure under nulls: "
        f"{meanings}; z is against the first. With a source: those that are more than a bigram. Recurring: patterns found, "
        "before they are held to other text. Share: of the head’s positive effect, what lies where patterns of the other half "
        "occur; its chance, the share of places that they cover.",
        numeric=range(1, len(columns)),
    )
    return made + (paragraph("No pattern: {}.", ", ".join(none)) if none else Markup(""))


def reading(run: Checkpoints, step: int, heads: list[Head]) -> Markup:
    """How to read the tables of patterns."""
    trained = (
        "<em>training text</em>: how often out followed, of how often the rest of the pattern stood there, and the lift, how "
        "much likelier that made out than the destination alone (nats, chance 0; sources of a skip pattern within 16 tokens; "
        "of [destination → out], against out’s frequency; errors take places as independent and are too small)."
        if table_of(run) is not None
        else "This run has no training text to look patterns up in."
    )
    return paragraph(
        "Below, the heads with the most at step {} ({}), and of each the patterns with the largest total effect. "
        "<em>Effect</em>: mean cost of ablating the head wherever the pattern occurs in a half of the text that it was not found "
        "on, ± standard error (– if it was found on neither half alone); <em>others</em>: the same of the other heads of its "
        "layer, the null “is it this head?”; {} In the text: {}",
        count(step), ", ".join(map(str, heads)), Markup(trained), legend(),
    )  # fmt: skip


def patterns_of(run: Checkpoints, head: Head, here: "xr.Dataset", text: "Tensor | None") -> list[Markup]:
    """One head's strongest patterns, and some of them in text."""
    ids = {name: np.nan_to_num(here[name].values, nan=NONE).astype(int) for name in KEYS}
    there = np.flatnonzero(ids["destination"] != NONE)[:ROWS]
    counted = table_of(run)
    statistics = None if counted is None else pattern_statistics(here.isel(pattern=there), counted)
    labels = {
        name: [shortened(label, LONGEST_LABEL) for label in token_labels(run.tokenizer, np.maximum(ids[name], 0).tolist())]
        for name in KEYS
    }
    rows: list[tuple[Any, ...]] = []
    for row, i in enumerate(there):
        one = here.isel(pattern=i)
        in_a_row = int(np.nan_to_num(float(one["contiguous"]))) == 1
        cells: list[Any] = [
            pattern_text({name: labels[name][i] for name in KEYS if ids[name][i] != NONE}, in_a_row),
            kind_of([name for name in ("far", "near") if ids[name][i] != NONE], in_a_row),
            effect_text(float(one["pattern_effect"]), float(one["pattern_stderr"])),
            decimal(float(one["pattern_others"]), 2),
            count(float(one["occurrences"])),
        ]
        if statistics is not None:
            cells += trained_cells(statistics.isel(pattern=row))
        rows.append((*cells, "yes" if int(np.nan_to_num(float(one["memorised"]))) else "no"))
    trained = () if statistics is None else ("out in training text", "lift")
    made = [
        Markup("<h3>{}</h3>").format(f"{head}: {decimal(float(here['value']), 0)} memorised"),
        table(
            ("pattern", "kind", "effect", "others", "places", *trained, "memorised"), rows,
            caption=f"The {len(rows)} patterns with the largest total effect.",
            numeric=range(2, 7 if trained else 5),
        ),
    ]  # fmt: skip
    if text is not None:
        made += [example(run, here.isel(pattern=i), ids, i, text) for i in illustrated(here, ids["near"], there.tolist())]
    return made


def illustrated(here: "xr.Dataset", near: np.ndarray, there: list[int]) -> list[int]:
    """Which patterns are shown in text: the first memorised one, and the first with a source or else the next."""
    best = sorted(there, key=lambda i: (here["memorised"].values[i] != 1, i))
    sourced = [i for i in best[1:] if near[i] != NONE and here["memorised"].values[i] == 1]
    return list(dict.fromkeys([*best[:1], *sourced, *best[1:]]))[:EXAMPLES]


def kind_of(sources: list[str], in_a_row: bool) -> str:
    """``bigram``, ``trigram``, ``4-gram``, or ``skip`` where the tokens do not stand in a row."""
    return order_name(len(sources) + 2) if in_a_row or not sources else "skip"


def pattern_text(labels: dict[str, str], in_a_row: bool) -> Markup:
    """``far … near … destination → out``, without the dots where the tokens stand in a row."""
    gap = Markup(" ") if in_a_row else Markup(" … ")
    before = gap.join(CODE.format(labels[name]) for name in KEYS[:3] if name in labels)
    return Markup("{} → {}").format(before, CODE.format(labels["out"]))


def effect_text(value: float, stderr: float) -> str:
    return with_error(value, stderr, 2) if np.isfinite(value) else "–"


def trained_cells(here: "xr.Dataset") -> list[str]:
    """Frequency and lift of a pattern in the training text."""
    lift = effect_text(float(here["value"]), float(here["stderr"]))
    return [f"{count(float(here['hits']))} of {count(float(here['occasions']))}", lift]


def example(run: Checkpoints, here: "xr.Dataset", ids: dict[str, np.ndarray], i: int, text: "Tensor") -> Markup:
    """A pattern where it stood: the first of its places that are kept."""
    places = [(int(e), int(q)) for e, q in zip(here["example"].values, here["query"].values, strict=True) if e >= 0 and q >= 0]
    if not places or places[0][0] >= len(text):
        return Markup("")
    tokens = text[places[0][0]].tolist()
    sources = [int(ids[name][i]) for name in ("near", "far") if ids[name][i] != NONE]
    contiguous = int(np.nan_to_num(float(here["contiguous"]))) == 1
    return passage(token_labels(run.tokenizer, tokens), places_of(tokens, places[0][1], sources, contiguous=contiguous))


SECTION = Section("multigrams", "Memorised patterns", 34, measures, render)
