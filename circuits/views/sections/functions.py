"""What heads do: the role of each with its evidence and when it emerged, and which predictions its effect goes to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.detectors.roles import (
    ATTENTION,
    BRACKET_BAR,
    NONE,
    NOT_MEASURED,
    PATTERNS,
    ROLES,
    THRESHOLD,
    Z_NEEDED,
)
from circuits.dynamics.functions import ROLE_MEASURES, roles_of
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.curves import rendered
from circuits.views.emergence import emerged
from circuits.views.formation import last_measured
from circuits.views.function_figures import kind_colour, kind_name, profile_bars
from circuits.views.function_wanted import left_out, wanted
from circuits.views.html import count, decimal, evidence, image, paragraph, spread, table, with_error, z_score
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

MEASURES = (*ROLE_MEASURES.values(), "function_profile")
MOST_PANELS = 16
TWO_LINES = Markup("{}<br><small>{}</small>")


def measures(run: Checkpoints) -> list[Wanted]:
    return wanted(run, *MEASURES)


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """``head_functions``, the role of every head, and ``function_emergence``, when it became that."""
    found = roles_of(results)
    return {} if found is None else {"head_functions": found, "function_emergence": emerged(found)}


def render(run: Checkpoints, results: Results) -> str:
    """Roles and their evidence, then effects by kind of prediction."""
    parts = [left_out(run, *MEASURES)]
    if "head_functions" in results:
        parts += roles(results)
    else:
        parts.append(paragraph("Roles are named from attention and ablation together; the measures left out are part of that."))
    if "function_profile" in results:
        parts += profile(results["function_profile"])
    return Markup("\n").join(parts)


def heads_of(data: "xr.Dataset") -> list[Head]:
    return [Head(int(layer), int(head)) for layer in data["layer"].values for head in data["head"].values]


def at(data: "xr.Dataset", head: Head) -> "xr.Dataset":
    return data.sel(layer=head.layer, head=head.head)


# Roles -------------------------------------------------------------------------------------------------------------------


def roles(results: Results) -> list[Markup]:
    """The rule, how many heads have which role, and two tables: the roles, and the evidence for all of them."""
    found, when = results["head_functions"], results["function_emergence"]
    steps = [int(step) for step in found["step"].values]
    step = steps[-1]
    here = found.sel(step=step)
    data = {argument: results[name].sel(step=step) for argument, name in ROLE_MEASURES.items()}
    return [
        paragraph(
            "A role is named from where a head looks <em>and</em> from what its ablation does. It is the first of {} whose "
            "criteria all hold, each by {} standard errors (of previous, current and duplicate token the best supported "
            "comes first). By attention: a support of {}, the share of the way from chance to perfect, and above untrained "
            "heads. <b>Induction</b> also needs a cause: the loss of repeated tokens rises when attention to the targets is "
            "cut, more than when other keys are. <b>Bracket</b>: attention to the opener above that to other openers by {}, "
            "and an effect on the closer above that on other tokens of its depth. <b>Multigram</b>: at least {} memorised "
            "patterns, more than on shuffled text.",
            ", ".join(ROLES), decimal(Z_NEEDED, 0), THRESHOLD, BRACKET_BAR, PATTERNS,
        ),
        Markup('<div class="headline">{}</div>').format(counted(here, step)),
        table(
            ("head", "role", "evidence", "runner-up", "confidence", "emerged at step"),
            [role_row(head, at(here, head), at(when, head), data, steps) for head in heads_of(here)],
            caption=f"Step {count(step)}. Runner-up: the role that the rule gives without the first. Confidence: the share of "
            f"{count(found.attrs.get('draws', 0))} draws, every quantity drawn anew with its standard error, in which the head "
            "keeps its role; it says nothing about other thresholds or texts.",
            numeric=(4, 5),
        ),
        dated(steps),
        evidence_table(here, data, step),
    ]  # fmt: skip


def counted(here: "xr.Dataset", step: int) -> Markup:
    """How many heads have each role."""
    names = here["role"].values.flatten().tolist()
    said = [f"{names.count(role)} {role}" for role in (*ROLES, NONE, NOT_MEASURED) if role in names]
    return paragraph("<b>{} heads at step {}</b>: {}.", len(names), count(step), ", ".join(said))


def dated(steps: Sequence[int]) -> Markup:
    """Where roles were measured, and how to measure them elsewhere."""
    where = ", ".join(count(step) for step in steps) if len(steps) <= 12 else f"{len(steps)} checkpoints"
    return paragraph(
        "A role emerged between the two measured checkpoints between which it became, for good, what it is at the end. "
        "{} The report measures what roles rest on at few checkpoints and reads what else its store has: "
        "<code>circuits detect RUN --what roles</code> measures all, and the next report dates roles by them. When scores of "
        "attention alone formed is dated at every checkpoint under <a href=\"#heads\">Heads and their roles</a>.",
        f"Roles were measured at step {where} alone, so they are not dated here."
        if len(steps) == 1
        else f"Roles were measured at {'steps ' if len(steps) <= 12 else ''}{where}.",
    )  # fmt: skip


def role_row(head: Head, here: "xr.Dataset", when: "xr.Dataset", data: Results, steps: Sequence[int]) -> tuple[Any, ...]:
    role = str(here["role"].values)
    name = role if role in (NONE, NOT_MEASURED) else Markup("<b>{}</b>").format(role)
    confidence = decimal(float(here["confidence"]), 2)
    return (
        Markup("<b>{}</b>").format(head),
        name,
        why(role, {argument: at(found, head) for argument, found in data.items()}),
        str(here["runner_up"].values),
        confidence,
        emergence_text(when, steps),
    )


def why(role: str, data: Results) -> str:
    """The quantities that a role rests on, in words."""
    if role == "multigram":
        here = data["multigrams"]
        return f"{patterns_text(here)} memorised; on shuffled text {decimal(float(here['null_mean']), 0)}"
    if role == "bracket":
        here = data["brackets"].sel(condition="all")
        before = with_error(float(here["value"].sel(query="before")), float(here["stderr"].sel(query="before")))
        effect = with_error(float(here["effect"]), float(here["effect_stderr"]))
        return (
            f"attention to the opener above other openers {before}; effect on the closer above its depth {effect} nats (chance 0)"
        )
    if role not in ATTENTION:
        return "no role’s criteria all hold" if role == NONE else "–"
    said = f"attention {evidence(data['scores'].sel(detector=ATTENTION[role]))}"
    if role == "induction":
        cut = data["induction_cut"]
        cost = with_error(float(cut["value"]), float(cut["stderr"]))
        more = with_error(float(cut["difference"]), float(cut["difference_stderr"]))
        said += f"; cut, it costs {cost} nats, {more} more than other keys"
    return said


def patterns_text(here: "xr.Dataset") -> str:
    value = float(here["value"])
    return f"{decimal(value, 0)} ± {spread(float(here['stderr']), 1)} pattern{'' if value == 1 else 's'}"


def emergence_text(when: "xr.Dataset", steps: Sequence[int]) -> str:
    """``2 000–2 125``: not yet at the first, for good from the second on."""
    value, before = float(when["value"]), float(when["before"])
    if not np.isfinite(value):
        return "–"
    if np.isfinite(before):
        return f"{count(before)}–{count(value)}"
    return "one step measured" if len(steps) == 1 else f"from the first ({count(value)})"


def evidence_table(here: "xr.Dataset", data: Results, step: int) -> Markup:
    """Every quantity behind every role, of every head."""
    columns = [role for role in ROLES if role in ATTENTION]
    head = ("head", "induction", "cut, above other keys (nats)", *columns[1:-1], "bracket: to the opener",
            "bracket: effect (nats)", "patterns (shuffled)", columns[-1])  # fmt: skip
    rows, shades = [], []
    for which in heads_of(here):
        of = {argument: at(found, which) for argument, found in data.items()}
        holds, support = at(here, which)["holds"], at(here, which)["support"]
        cells = {role: score_cell(of["scores"].sel(detector=ATTENTION[role])) for role in columns}
        cut, bracket, grams = of["induction_cut"], of["brackets"].sel(condition="all"), of["multigrams"]
        before = bracket.sel(query="before")
        ordered = [
            ("induction", cells["induction"]),
            ("induction", two(float(cut["difference"]), float(cut["difference_stderr"]))),
            *((role, cells[role]) for role in columns[1:-1]),
            ("bracket", two(float(before["value"]), float(before["stderr"]))),
            ("bracket", two(float(bracket["effect"]), float(bracket["effect_stderr"]))),
            ("multigram", TWO_LINES.format(decimal(float(grams["value"]), 0), f"({decimal(float(grams['null_mean']), 0)})")),
            ("resting", cells["resting"]),
        ]
        bold = Markup("<b>{}</b>")
        rows.append((bold.format(which), *(bold.format(x) if int(holds.sel(role_name=role)) else x for role, x in ordered)))
        shades.append([0.0, *(float(np.nan_to_num(support.sel(role_name=role))) for role, _ in ordered)])
    scores, bracket = data["scores"], data["brackets"].sel(condition="all")

    def level(x: "xr.DataArray") -> str:
        return decimal(float(x.mean()))

    def untrained(mean: "xr.DataArray", sd: "xr.DataArray") -> Markup:
        return TWO_LINES.format(decimal(float(mean.mean())), f"sd {spread(float(sd.mean()))}")

    chance = {role: level(scores["chance"].sel(detector=ATTENTION[role])) for role in columns}
    null = {
        role: untrained(*(scores[name].sel(detector=ATTENTION[role]) for name in ("null_mean", "null_sd"))) for role in columns
    }
    of_brackets = [
        untrained(bracket["null_mean"].sel(query="before"), bracket["null_sd"].sel(query="before")),
        untrained(bracket["effect_null_mean"], bracket["effect_null_sd"]),
    ]
    middle = columns[1:-1]
    rows.append(("chance", chance["induction"], "0", *(chance[role] for role in middle), "0", "0", "–", chance["resting"]))
    untrained_patterns = decimal(float(data["multigrams"]["untrained_value"].mean()), 1)
    rows.append(
        ("untrained", null["induction"], "–", *(null[role] for role in middle), *of_brackets, untrained_patterns, null["resting"])
    )
    return table(
        head, rows, numeric=range(1, len(head)), shades=shades,
        caption=f"The evidence for every role at step {count(step)}: value ± standard error, bold where all criteria of the "
        "role hold, darker the more support. Below: chance, and heads of untrained models (mean over layers).",
    )  # fmt: skip


def score_cell(here: "xr.Dataset") -> Markup:
    return two(float(here["value"]), float(here["stderr"]))


def two(value: float, stderr: float) -> Markup:
    return TWO_LINES.format(decimal(value), f"± {spread(stderr)}")


# Function profile --------------------------------------------------------------------------------------------------------


def profile(found: "xr.Dataset") -> list[Markup]:
    """What effects go to, over training and at the end."""
    step = last_measured(found)
    end = found.sel(step=step)
    ranked = sorted(heads_of(end), key=lambda head: (-float(at(end, head)["total"]), head))
    shown = sorted(ranked[:MOST_PANELS])
    few = f" The {MOST_PANELS} heads with the largest effect at the end." if len(ranked) > MOST_PANELS else ""
    top = "; ".join(largest_kinds(head, at(end, head)) for head in ranked[:4])
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
    """A head's effect, and the two kinds with the largest shares, where it has any."""
    said = f"{head} {with_error(float(here['total']), float(here['total_stderr']))} nats per token"
    share = here["value"].values
    if not np.isfinite(share).any():
        return said
    first = np.argsort(-np.nan_to_num(share, nan=-np.inf), kind="stable")[:2]
    each = ", ".join(
        f"{kind_name(str(here['kind'].values[i]))} {decimal(float(share[i]), 2)} [{decimal(float(here['low'].values[i]), 2)}, "
        f"{decimal(float(here['high'].values[i]), 2)}]"
        for i in first
    )
    return f"{said} ({each})"


def shares_table(end: "xr.Dataset", kinds: Sequence[str], step: int) -> Markup:
    """Effects with their self-repair, and shares of kinds with interval and z; chance below."""
    rows, shades = [], []
    for head in heads_of(end):
        here = at(end, head)
        effects = [two(float(here[name]), float(here[f"{name}_stderr"])) for name in ("total", "direct", "repair")]
        cells, shade = [], []
        for i in range(len(kinds)):
            share, low, high, z = (float(here[name].values[i]) for name in ("value", "low", "high", "z"))
            interval = Markup("{} to {}<br>z {}").format(decimal(low, 2), decimal(high, 2), z_score(z))
            cells.append(TWO_LINES.format(decimal(share, 2), interval) if np.isfinite(share) else "–")
            shade.append(max(0.0, share - float(end["chance"].values[i])) if np.isfinite(share) else 0.0)
        rows.append((Markup("<b>{}</b>").format(head), *effects, *cells))
        shades.append([0.0, 0.0, 0.0, 0.0, *shade])
    rows.append(("share of tokens", "", "", "", *(decimal(float(x), 2) for x in end["chance"].values)))
    swatch = Markup('<span style="display:inline-block;width:9px;height:9px;background:{}"></span> {}')
    head = ("head", "effect", "direct", "self-repair")
    names = [swatch.format(kind_colour(kind, i), kind_name(kind)) for i, kind in enumerate(kinds)]
    return table(
        (*head, *names), rows, numeric=range(1, len(rows[0])), shades=shades,
        caption=f"Step {count(step)}, {count(float(end['n'].sum()))} tokens. Effect: nats per token ± standard error. Direct: "
        "the same if later layers did not notice; self-repair: direct less effect, positive where later layers make up for "
        "the head. Then the share of the effect that goes to each kind, 95% interval (bootstrap over blocks of text), and z "
        "against kinds shifted along the text. Chance is the share of tokens, last line; darker: above chance. –: the effect "
        "does not exceed zero by two standard errors.",
    )  # fmt: skip


SECTION = Section("functions", "What heads do", 32, measures, render, derive)
