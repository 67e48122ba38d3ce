"""What the effect of every head goes to, as parts of a page: a figure over training, and the shares at the end as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.models.heads import Head
from circuits.views.cells import TWO_LINES, at, heads_of, two_lines
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.function_figures import kind_colour, kind_name, profile_bars
from circuits.views.html import count, decimal, image, paragraph, table, with_error, z_score

if TYPE_CHECKING:
    import xarray as xr

MOST_PANELS = 16
"""Heads in the figure."""


def profile(found: "xr.Dataset") -> list[Markup]:
    """What effects go to, over training and at the end."""
    step = last_measured(found)
    end = found.sel(step=step)
    ranked = sorted(heads_of(end), key=lambda head: (-float(at(end, head)["total"]), head))
    shown = sorted(ranked[:MOST_PANELS])
    few = f" The {MOST_PANELS} heads with the largest effect at the end." if len(ranked) > MOST_PANELS else ""
    top = ". ".join(largest_kinds(head, at(end, head)) for head in ranked[:4])
    kinds = [str(kind) for kind in end["kind"].values]
    return [
        Markup("<h3>Which predictions each head serves</h3>"),
        paragraph(
            "Effect: the loss of a predicted token with the head’s output replaced by its mean, less the clean loss; nats per "
            "token of held-out text, positive where the head helps. Every prediction is of one kind: it closes a "
            "<b>bracket</b> or quote; else it repeats what followed earlier in this context (<b>induction</b>); else the last "
            "tokens explain it by the statistics of the training text (<b>n-gram</b>, <b>bigram</b>, or one token farther "
            "back: <b>skip-n-gram</b>); else it is <b>layout</b>; else <b>other</b>."
        ),
        image(
            rendered(profile_bars(found, shown), "svg"), "image/svg+xml",
            alt=f"Effect of each head by kind of prediction, at each measured checkpoint. Largest at step {step}: {top}.",
            caption="Effect by kind at each measured checkpoint (a bar each), stacked; what a head harms hangs below zero; "
            f"black: the sum, and one standard error. Each panel has its own scale.{few} Largest at step {count(step)}: {top}.",
        ),
        shares_table(end, kinds, step),
    ]  # fmt: skip


def largest_kinds(head: Head, here: "xr.Dataset") -> str:
    """A head's effect, and the two kinds whose shares exceed chance by most, where it has shares."""
    said = f"{head} {with_error(float(here['total']), float(here['total_stderr']))} nats per token"
    share = here["value"].values
    if not np.isfinite(share).any():
        return said
    first = np.argsort(-np.nan_to_num(share - here["chance"].values, nan=-np.inf), kind="stable")[:2]
    each = "; ".join(
        "{} {} [{}, {}], chance {}".format(
            kind_name(str(here["kind"].values[i])),
            *(decimal(float(here[name].values[i]), 2) for name in ("value", "low", "high", "chance")),
        )
        for i in first
    )
    return f"{said} ({each})"


def shares_table(end: "xr.Dataset", kinds: Sequence[str], step: int) -> Markup:
    """Effects with their self-repair, and shares of kinds with interval and z; chance below."""
    chance = end["chance"].values.tolist()
    rows, shades = [], []
    for head in heads_of(end):
        here = at(end, head)
        columns = zip(*(here[name].values.tolist() for name in ("value", "low", "high", "z")), chance, strict=True)
        effects = [two_lines(float(here[name]), float(here[f"{name}_stderr"])) for name in ("total", "direct", "repair")]
        cells, shade = [], []
        for share, low, high, z, by_chance in columns:
            interval = Markup("{} to {}<br>z {}").format(decimal(low, 2), decimal(high, 2), z_score(z))
            cells.append(TWO_LINES.format(decimal(share, 2), interval) if np.isfinite(share) else "–")
            shade.append(max(0.0, share - by_chance) if np.isfinite(share) else 0.0)
        rows.append((Markup("<b>{}</b>").format(head), *effects, *cells))
        shades.append([0.0, 0.0, 0.0, 0.0, *shade])
    rows.append(("share of tokens", "", "", "", *(decimal(x, 2) for x in chance)))
    swatch = Markup('<span style="display:inline-block;width:9px;height:9px;background:{}"></span> {}')
    head = ("head", "effect", "direct", "self-repair")
    names = [swatch.format(kind_colour(kind, i), kind_name(kind)) for i, kind in enumerate(kinds)]
    return table(
        (*head, *names), rows, numeric=range(1, len(rows[0])), shades=shades,
        caption=f"Step {count(step)}, {count(float(end['n'].sum()))} tokens. Effect: nats per token ± standard error. Direct: "
        "the same if later layers did not notice; self-repair: direct less effect, positive where later layers make up for "
        "the head, negative where they build on it, 0 in the last layer. Then the share of the effect that goes to each kind, "
        "its 95% interval (bootstrap over blocks of text), and z against kinds shifted along the text. Chance is the share of "
        "tokens, last line; darker: above chance. –: the effect does not exceed zero by two standard errors.",
    )  # fmt: skip
