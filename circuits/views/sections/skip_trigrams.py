"""Skip-trigrams: what heads say about pairs of tokens, as tables, and whether held-out text agrees."""

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.dynamics.detect import attention_measure
from circuits.dynamics.weigh import weight_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.formation import last_common, roles_at
from circuits.views.html import count, decimal, paragraph, shortened, table, token_labels, with_error
from circuits.views.sections import Results, Section, Wanted
from circuits.weights.lift import measured_lift

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

MOST_HEADS, IN_FIRST_LAYER, IN_LATER_LAYERS = 8, 4, 2
ROWS = 8
LONGEST_LABEL = 28


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(attention_measure(run)), Wanted(weight_measure(run, "skip_trigrams"))]


def render(run: Checkpoints, results: Results) -> str:
    """What the numbers mean, then a table for each of the heads with the largest values of their layer."""
    found = results["skip_trigrams"]
    step = last_common(found, results["attention_scores"])
    end = found.sel(step=step)
    kind, text = held_out(run)
    lift = (
        "<em>lift</em>, in nats, asks held-out {}: how much likelier out follows destination where source stands earlier "
        "than where it does not (chance 0; – where the text never has the one or the other). It is an association in the "
        "text, which the head may or may not serve; its error takes positions as independent and is too small."
        if text is not None
        else "This run has no held-out text to check them on.{}"
    )
    parts = [
        paragraph(
            "A triple [source … destination → out] says: with source earlier in the context, this head’s query at "
            "destination attends to it, and attending to it raises out. <em>qk</em> is how much more destination attends to "
            "source than to the average token, <em>ov</em> how much source raises out above the average token, and a "
            "triple’s value is qk × ov. They are scores and logits up to the norms’ scales, and compare within a layer only; "
            "the largest of all triples of a vocabulary "
            "are shown, and the largest of so many is large for any head, trained or not. " + lift,
            kind,
        )
    ]
    roles = roles_at(results, step)
    tables = [
        trigrams(run, end.sel(layer=head.layer, head=head.head), f"{head} ({roles[head]})", text) for head in shown_heads(end)
    ]
    if not tables:
        return Markup("\n").join([*parts, paragraph("No head has a positive triple at step {}.", count(step))])
    parts.append(
        paragraph(
            "Step {}: of each layer the heads with the largest mean value of their {} best triples, and {} triples of each. "
            "A head that raises s … d → o and s … e → p raises s … d → p too, wanted or not.",
            count(step), end.sizes["rank"], ROWS,
        )
    )  # fmt: skip
    parts.append(
        Markup(
            '<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,490px),1fr));gap:0 28px">{}</div>'
        ).format(Markup("\n").join(tables))
    )
    return Markup("\n").join(parts)


def held_out(run: Checkpoints) -> "tuple[str, Tensor | None]":
    """The run's first evaluation text (code, where it has that), and its name."""
    kinds = [kind for kind in run.evaluation if kind != "brackets" and not kind.startswith("shuffled")]
    if not kinds:
        return "", None
    kind = "code" if "code" in kinds else kinds[0]
    return kind, run.evaluation[kind]


def shown_heads(end: "xr.Dataset") -> list[Head]:
    """Of each layer the heads with the largest mean value; the first layer has the most, as its triples are read most "
    "directly."""
    mean = end["value"].fillna(0.0).mean("rank").transpose("layer", "head")
    heads = []
    for i, layer in enumerate(mean["layer"].values):
        order = np.argsort(-mean.values[i], kind="stable")[: IN_LATER_LAYERS if i else IN_FIRST_LAYER]
        heads += [Head(int(layer), int(mean["head"].values[h])) for h in order if mean.values[i, h] > 0]
    return heads[:MOST_HEADS]


def trigrams(run: Checkpoints, here: "xr.Dataset", caption: str, text: "Tensor | None") -> Markup:
    """One head's best triples."""
    import xarray as xr

    kept = here.isel(rank=np.flatnonzero(np.nan_to_num(here["source"].values, nan=-1) >= 0)[:ROWS])
    ids = {name: kept[name].values.astype(int) for name in ("source", "destination", "out")}
    labels = {
        name: [shortened(label, LONGEST_LABEL) for label in token_labels(run.tokenizer, at.tolist())] for name, at in ids.items()
    }
    lifts = None
    if text is not None and len(ids["source"]):
        lifts = measured_lift(xr.Dataset({name: ("triple", at) for name, at in ids.items()}), text.long())
    rows: list[tuple[Any, ...]] = []
    code = Markup("<code>{}</code>")
    for i in range(kept.sizes["rank"]):
        tokens = (code.format(labels[name][i]) for name in ("source", "destination", "out"))
        numbers = (decimal(float(kept[name].values[i]), 1) for name in ("qk", "ov", "value"))
        rows.append((*tokens, *numbers, *(() if lifts is None else (_lift(lifts, i),))))
    columns = ("source …", "destination", "→ out", "qk", "ov", "value")
    return table(
        columns if lifts is None else (*columns, "lift"), rows, caption=caption, numeric=range(3, 7 if lifts is not None else 6)
    )


def _lift(lifts: "xr.Dataset", i: int) -> str:
    value = float(lifts["value"].values[i])
    return with_error(value, float(lifts["stderr"].values[i]), 1) if np.isfinite(value) else "–"


SECTION = Section("skip_trigrams", "Skip-trigrams", 48, measures, render)
