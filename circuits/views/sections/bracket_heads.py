"""Brackets: which heads look for the opener and help the closer, and whether nested pairs need both layers."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.cells import TWO_LINES, at, heads_of, two_lines, untrained
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.function_figures import bracket_curves
from circuits.views.function_wanted import left_out, wanted
from circuits.views.html import count, decimal, image, paragraph, spread, table, with_error, z_score
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

CURVES = 5
CUTS = {
    "composition": "layer 0 does not inform later attention",
    "later_heads": "no heads behind layer 0",
}


def measures(run: Checkpoints) -> list[Wanted]:
    names = ("bracket_scores", "nested_brackets") if run.cfg.n_layers > 1 else ("bracket_scores",)
    return wanted(run, *names)


def render(run: Checkpoints, results: Results) -> str:
    """Heads over training and at the end, then the test of nested pairs."""
    if "bracket_scores" not in results:
        return left_out(run, "bracket_scores")
    found = results["bracket_scores"]
    step = last_measured(found)
    end = found.sel(step=step)
    heads = strongest(end)
    top = "; ".join(in_words(at(end, head), head) for head in heads[:3])
    parts = [
        paragraph(
            "On sequences of brackets and quotes of several types among other tokens. <b>Attention</b>: from the position "
            "before a closer, which predicts it, to its opener, less that to other openers of its type and depth that are "
            "closed already. <b>Effect</b>: what zeroing the head adds to the loss of the closer, less what it adds to other "
            "tokens of the same depth. So a head that likes openers, or helps every token inside brackets, gets 0, which is "
            "chance. Nested: another pair lies inside; flat: none does."
        ),
        image(
            rendered(bracket_curves(found, heads[:CURVES]), "svg"), "image/svg+xml",
            alt="Attention to the opener and effect on the closer over training, of the heads with the largest effect. At step "
            f"{step}: {top}.",
            caption="The heads with the largest effect on closers, over the measured checkpoints. Grey: heads of untrained "
            f"models, mean ± 2 sd. Dashed: chance. At step {count(step)}: {top}.",
        ),
        heads_table(end, step),
    ]  # fmt: skip
    if "nested_brackets" in results:
        parts += both_layers(results["nested_brackets"])
    elif run.cfg.n_layers == 1:
        parts.append(paragraph("Whether nested pairs need two layers cannot be asked of a model with one."))
    return Markup("\n").join(parts)


def strongest(end: "xr.Dataset") -> list[Head]:
    """Heads by their effect on closers, the largest first."""
    number = {head: float(at(end, head)["effect"].sel(condition="all")) for head in heads_of(end)}
    return sorted(number, key=lambda head: (-np.nan_to_num(number[head], nan=-np.inf), head))


def in_words(here: "xr.Dataset", head: Head) -> str:
    all_ = here.sel(condition="all")
    before = with_error(float(all_["value"].sel(query="before")), float(all_["stderr"].sel(query="before")))
    return f"{head} attention {before}, effect {with_error(float(all_['effect']), float(all_['effect_stderr']))} nats"


def heads_table(end: "xr.Dataset", step: int) -> Markup:
    """Every head: attention at both queries, and effects, flat and nested; nulls below."""
    columns = [
        ("before the closer", "value", "stderr", "z", {"condition": "all", "query": "before"}),
        ("before, flat", "value", "stderr", "", {"condition": "flat", "query": "before"}),
        ("before, nested", "value", "stderr", "", {"condition": "nested", "query": "before"}),
        ("at the closer", "value", "stderr", "z", {"condition": "all", "query": "at"}),
        ("effect (nats)", "effect", "effect_stderr", "effect_z", {"condition": "all"}),
        ("effect, flat", "effect", "effect_stderr", "", {"condition": "flat"}),
        ("effect, nested", "effect", "effect_stderr", "", {"condition": "nested"}),
    ]
    rows, shades = [], []
    for head in heads_of(end):
        here = at(end, head)
        cells, shade = [], []
        for _, value, stderr, z, where in columns:
            number, beyond = float(here[value].sel(where)), float(here[z].sel(where)) if z else np.nan
            below = f"z {z_score(beyond)}" if np.isfinite(beyond) else ""
            cells.append(two_lines(number, float(here[stderr].sel(where)), below))
            shade.append(max(0.0, float(np.nan_to_num(number))))
        rows.append((Markup("<b>{}</b>").format(head), *cells))
        shades.append([0.0, *shade])
    rows.append(("chance", *("0" for _ in columns)))
    for layer in end["layer"].values:
        cells = []
        for _, value, _, _, where in columns:
            names = ("null_mean", "null_sd") if value == "value" else ("effect_null_mean", "effect_null_sd")
            mean, sd = (float(end[name].sel(where).sel(layer=layer).mean()) for name in names)
            cells.append(untrained(mean, sd))
        rows.append((f"untrained, layer {int(layer)}", *cells))
    n = {str(c): int(end["n"].sel(condition=c, score="effect")) for c in end["condition"].values}
    sizes = ", ".join(f"{name} {number}" for name, number in n.items())
    return table(
        ("head", *(name for name, *_ in columns)), rows, numeric=range(1, len(columns) + 1), shades=shades,
        caption=f"Step {count(step)}: attention to the opener and effect on the closer, each above its controls, ± standard "
        f"error over sequences ({sizes}); z against heads of untrained models of the same layer, which hardly vary in effect.",
    )  # fmt: skip


def both_layers(found: "xr.Dataset") -> list[Markup]:
    """Whether nested pairs need both layers: two cuts, flat and nested closers, and their contrast."""
    step = last_measured(found)
    end = found.sel(step=step)
    title = Markup("<h3>Do nested pairs need both layers?</h3>")
    if str(end["state"].values) != "ok":
        return [title, paragraph("Untestable here: {}.", str(end["state"].values))]
    rows = []
    for cut in end["cut"].values:
        here = end.sel(cut=cut)
        cells = [
            TWO_LINES.format(
                with_error(float(here["value"].sel(condition=c)), float(here["stderr"].sel(condition=c))),
                f"untrained {decimal(float(here['null_mean'].sel(condition=c)))}, sd "
                f"{spread(float(here['null_sd'].sel(condition=c)))}, z {z_score(float(here['z'].sel(condition=c)))}",
            )
            for c in ("flat", "nested")
        ]
        contrast = with_error(float(here["contrast"]), float(here["contrast_stderr"]))
        rows.append((CUTS.get(str(cut), str(cut)), *cells, contrast))
    return [
        title,
        Markup('<div class="headline">{}</div>').format(verdict(end, step)),
        table(
            ("cut", "flat closers", "nested closers", "nested − flat"), rows, numeric=(1, 2, 3),
            caption=f"Step {count(step)}: what the cut adds to the loss of closers, above what it adds to other tokens of their "
            f"depth; nats ± standard error (chance 0). The contrast is over the {int(end['n_both'])} sequences that have both.",
        ),
    ]  # fmt: skip


def verdict(end: "xr.Dataset", step: int) -> Markup:
    """The rule of ``detectors/nested_brackets.py``, applied at two standard errors."""
    nested, errors = (end[name].sel(condition="nested") for name in ("value", "stderr"))
    costly = {str(cut): bool(nested.sel(cut=cut) > 2 * errors.sel(cut=cut)) for cut in end["cut"].values}
    more = float(end["contrast"].sel(cut="composition")), float(end["contrast_stderr"].sel(cut="composition"))
    rule = (
        "both cuts cost nested closers something, and cutting composition costs them more than flat ones, each by two "
        "standard errors"
    )
    holds = all(costly.values()) and more[0] > 2 * more[1]
    if holds:
        return paragraph("<b>Nested pairs need both layers at step {}</b>: {}.", count(step), rule)
    free = [
        f"“{CUTS.get(cut, cut)}” adds {with_error(float(nested.sel(cut=cut)), float(errors.sel(cut=cut)))} nats to nested closers"
        for cut, yes in costly.items()
        if not yes
    ]
    why = "; ".join(free) or f"nested less flat is {with_error(*more)} nats"
    return paragraph("<b>Not shown at step {}</b>: {}. It would be if {}.", count(step), why, rule)


SECTION = Section("bracket_heads", "Brackets", 38, measures, render)
