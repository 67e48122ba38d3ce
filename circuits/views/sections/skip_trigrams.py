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
from circuits.weights.lift import bug_share, measured_lift, pooled_lift

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

HEADS, MANY_LAYERS = 2, 4
"""Heads shown of each layer, and the most layers of which that many are shown: beyond, one of each."""
ROWS = 8
LONGEST_LABEL = 28


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(attention_measure(run)), Wanted(weight_measure(run, "skip_trigrams"), last=True)]


def render(run: Checkpoints, results: Results) -> str:
    """What the numbers mean, then a table for each of the heads with the largest values of their layer."""
    found = results["skip_trigrams"]
    step = last_common(found, results["attention_scores"])
    end = found.sel(step=step)
    kind, text = held_out(run)
    lift = (
        "<em>lift</em>, in nats, asks held-out {}: how much likelier out follows destination where source stands earlier "
        "than where it does not (chance 0; – where the text never has the one or the other). It is an association in the "
        "text, which the head may or may not serve; its error takes positions as independent and is too small. Below each "
        "table, of all best triples of the head that were kept: how often the text completes them, and how often it would "
        "if out followed destination as where source does not stand earlier (error over texts); and the crossed triples "
        "(s … d → p below) whose out follows their destination less often than chance, whatever the context, beside the "
        "share of that among the triples themselves."
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
    roles, heads = roles_at(results, step), shown_heads(end)
    tables = [trigrams(run, end.sel(layer=head.layer, head=head.head), f"{head} ({roles[head]})", text) for head in heads]
    if not tables:
        return Markup("\n").join([*parts, paragraph("No head has a positive triple at step {}.", count(step))])
    n, without = per_layer(end), [str(x) for x in end["layer"].values if not any(head.layer == x for head in heads)]
    parts.append(
        paragraph(
            "Step {}: of each layer the {} with the largest mean value of {} {} best triples{}, and {} triples of each. "
            "A head that raises s … d → o and s … e → p raises s … d → p too, wanted or not.",
            count(step), *(("head", "its") if n == 1 else (f"{n} heads", "their")), end.sizes["rank"],
            f" (none has a positive one: layer {', '.join(without)})" if without else "", ROWS,
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


def per_layer(end: "xr.Dataset") -> int:
    return 1 if end.sizes["layer"] > MANY_LAYERS else HEADS


def shown_heads(end: "xr.Dataset") -> list[Head]:
    """Of each layer the heads with the largest mean value."""
    mean = end["value"].fillna(0.0).mean("rank").transpose("layer", "head")
    heads = []
    for i, layer in enumerate(mean["layer"].values):
        order = np.argsort(-mean.values[i], kind="stable")[: per_layer(end)]
        heads += [Head(int(layer), int(mean["head"].values[h])) for h in order if mean.values[i, h] > 0]
    return heads


def trigrams(run: Checkpoints, here: "xr.Dataset", caption: str, text: "Tensor | None") -> Markup:
    """One head's best triples and, given a text, what it says of all that are kept of this head together."""
    import xarray as xr

    whole = here.isel(rank=np.flatnonzero(np.nan_to_num(here["source"].values, nan=-1) >= 0))
    kept = whole.isel(rank=slice(ROWS))
    ids = {name: kept[name].values.astype(int) for name in ("source", "destination", "out")}
    labels = {
        name: [shortened(label, LONGEST_LABEL) for label in token_labels(run.tokenizer, at.tolist())] for name, at in ids.items()
    }
    lifts, said = None, Markup("")
    if text is not None and len(ids["source"]):
        triples = xr.Dataset({name: ("triple", whole[name].values.astype(int)) for name in ids})
        lifts = measured_lift(triples.isel(triple=slice(ROWS)), text.long())
        said = together(triples, text.long())
    rows: list[tuple[Any, ...]] = []
    code = Markup("<code>{}</code>")
    for i in range(kept.sizes["rank"]):
        tokens = (code.format(labels[name][i]) for name in ("source", "destination", "out"))
        numbers = (decimal(float(kept[name].values[i]), 1) for name in ("qk", "ov", "value"))
        rows.append((*tokens, *numbers, *(() if lifts is None else (_lift(lifts, i),))))
    columns = ("source …", "destination", "→ out", "qk", "ov", "value")
    made = table(
        columns if lifts is None else (*columns, "lift"), rows, caption=caption, numeric=range(3, 7 if lifts is not None else 6)
    )
    return Markup("<div>{}{}</div>").format(made, said)


def together(triples: "xr.Dataset", text: "Tensor") -> Markup:
    """All triples of a head as one, and what they raise unasked, on a text."""
    pooled, bugs = pooled_lift(triples, text), bug_share(triples, text)
    value, stderr, observed, expected = (float(pooled[name]) for name in ("value", "stderr", "observed", "expected"))
    if not expected > 0:
        lift = f"observed {count(observed)}, expected 0: too few"
    else:
        size = with_error(value, stderr, 2) if observed else "−∞"
        lift = f"observed {count(observed)}, expected {decimal(expected, 1)}: lift {size} nats (chance 0)"
    measured = int(bugs["n_measured"])
    crossed = f"{count(int(bugs['n_bugs']))} of {count(measured)} crossed triples speak against the text"
    own = decimal(float(bugs["chance"]), 2)
    return paragraph(
        "<small>All triples together ({}): {}. {}.</small>", count(triples.sizes["triple"]), lift,
        f"{crossed} (of the triples themselves a share of {own})" if measured else "Crossed triples: too few",
    )  # fmt: skip


def _lift(lifts: "xr.Dataset", i: int) -> str:
    value = float(lifts["value"].values[i])
    return with_error(value, float(lifts["stderr"].values[i]), 1) if np.isfinite(value) else "–"


SECTION = Section("skip_trigrams", "Skip-trigrams", 48, measures, render)
