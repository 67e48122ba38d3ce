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
from circuits.views.cells import TWO_LINES, at, heads_of, two_lines, untrained
from circuits.views.emergence import DECIDED, emerged, roles_over_training
from circuits.views.function_profile import profile
from circuits.views.function_wanted import left_out, wanted
from circuits.views.html import count, decimal, evidence, paragraph, spread, table, with_error
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

MEASURES = (*ROLE_MEASURES.values(), "function_profile")


def measures(run: Checkpoints) -> list[Wanted]:
    return wanted(run, *MEASURES)


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """``head_functions``, the role of every head, and ``function_emergence``, when it became that."""
    found, history = roles_of(results), roles_over_training(results)
    return {} if found is None or history is None else {"head_functions": found, "function_emergence": emerged(history)}


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
            "patterns, more than by its null (the head’s effects moved along the text).",
            ", ".join(ROLES), decimal(Z_NEEDED, 0), THRESHOLD, BRACKET_BAR, PATTERNS,
        ),
        Markup('<div class="headline">{}</div>').format(counted(here, step)),
        table(
            ("head", "role", "evidence", "runner-up", "confidence", "emerged at step"),
            [role_row(head, at(here, head), at(when, head), data) for head in heads_of(here)],
            caption=f"Step {count(step)}. Runner-up: the role that the rule gives without the first. Confidence: the share of "
            f"{count(found.attrs.get('draws', 0))} draws, every quantity drawn anew with its standard error, in which the head "
            "keeps its role; it says nothing about other thresholds or texts.",
            numeric=(4, 5),
        ),
        dated(steps, results),
        evidence_table(here, data, step),
    ]  # fmt: skip


def counted(here: "xr.Dataset", step: int) -> Markup:
    """How many heads have each role."""
    names = here["role"].values.flatten().tolist()
    said = [f"{names.count(role)} {role}" for role in (*ROLES, NONE, NOT_MEASURED) if role in names]
    return paragraph("<b>{} heads at step {}</b>: {}.", len(names), count(step), ", ".join(said))


def dated(found: Sequence[int], results: Results) -> Markup:
    """Where roles were measured, and how to measure them elsewhere."""
    others = [results[name] for argument, name in ROLE_MEASURES.items() if argument != "multigrams"]
    steps = sorted(set.intersection(*(set(data["step"].values[data["status"].values == "ok"].tolist()) for data in others)))
    where = f"steps {', '.join(map(count, steps))}" if 1 < len(steps) <= 12 else f"{count(len(steps))} checkpoints"
    partly = (
        ""
        if len(found) == len(steps)
        else f"Memorised patterns were counted at {count(len(found))} of them alone; elsewhere a head can be told to be one of "
        f"{', '.join(DECIDED)}, but not which of multigram, resting and none, so not all of these are dated. "
    )
    return paragraph(
        "A role emerged between the two measured checkpoints between which it became, for good, what it is at the end; what it "
        "rests on was measured at {}. {}The report measures at few checkpoints and reads what else its store has: after "
        "<code>circuits detect RUN --what roles</code>, which measures all, the next report dates roles by all. When the scores "
        'of attention formed is dated at every checkpoint under <a href="#heads">Heads and their roles</a>.',
        where, partly,
    )  # fmt: skip


def role_row(head: Head, here: "xr.Dataset", when: "xr.Dataset", data: Results) -> tuple[Any, ...]:
    role = str(here["role"].values)
    name = role if role in (NONE, NOT_MEASURED) else Markup("<b>{}</b>").format(unbroken(role))
    return (
        Markup("<b>{}</b>").format(head),
        name,
        why(role, {argument: at(found, head) for argument, found in data.items()}),
        unbroken(str(here["runner_up"].values)),
        decimal(float(here["confidence"]), 2),
        emergence_text(when),
    )


def unbroken(role: str) -> str:
    """A role on one line of a narrow column."""
    return role.replace(" ", "\N{NO-BREAK SPACE}")


def why(role: str, data: Results) -> str:
    """The quantities that a role rests on, in words."""
    if role == "multigram":
        here = data["multigrams"]
        return f"{patterns_text(here)} memorised; by the null {decimal(float(here['null_mean']), 0)}"
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


def emergence_text(when: "xr.Dataset") -> str:
    """``2 000–2 125``: not yet at the first, for good from the second on."""
    value, before = float(when["value"]), float(when["before"])
    if not np.isfinite(value):
        return "–" if int(when["n_checkpoints"]) > 1 else "not dated"
    return f"{count(before)}–{count(value)}" if np.isfinite(before) else f"from the first ({count(value)})"


def evidence_table(here: "xr.Dataset", data: Results, step: int) -> Markup:
    """Every quantity behind every role, of every head."""
    most = max(1.0, float(data["multigrams"]["value"].max()))
    middle = [role for role in ATTENTION if role not in ("induction", "resting")]
    columns = ["induction", "induction", *middle, "bracket", "bracket", "multigram", "resting"]
    rows, shades = [], []
    for which in heads_of(here):
        of = {argument: at(found, which) for argument, found in data.items()}
        holds, support = (
            {role: float(at(here, which)[name].sel(role_name=role)) for role in ROLES} for name in ("holds", "support")
        )
        cells = {role: score_cell(of["scores"].sel(detector=detector)) for role, detector in ATTENTION.items()}
        cut, bracket, number = of["induction_cut"], of["brackets"].sel(condition="all"), float(of["multigrams"]["value"])
        null = float(of["multigrams"]["null_mean"])
        ordered = [
            (cells["induction"], support["induction"]),
            (two_lines(float(cut["difference"]), float(cut["difference_stderr"])), float(cut["difference"])),
            *((cells[role], support[role]) for role in middle),
            (score_cell(bracket.sel(query="before")), support["bracket"]),
            (two_lines(float(bracket["effect"]), float(bracket["effect_stderr"])), float(bracket["effect"])),
            (TWO_LINES.format(decimal(number, 0), f"null {decimal(null, 0)}"), (number - null) / most),
            (cells["resting"], support["resting"]),
        ]
        bold = Markup("<b>{}</b>")
        shown = [bold.format(cell) if holds[role] else cell for role, (cell, _) in zip(columns, ordered, strict=True)]
        rows.append((bold.format(which), *shown))
        shades.append([0.0, *(float(np.nan_to_num(shade)) for _, shade in ordered)])
    names = ["induction", "cut, above other keys (nats)", *middle, "bracket: to the opener", "bracket: effect (nats)"]
    return table(
        ("head", *names, "patterns", "resting"), [*rows, *levels(data, middle)], numeric=range(1, len(columns) + 1),
        shades=shades,
        caption=f"The evidence for every role at step {count(step)}: value ± standard error, bold where all criteria of the "
        "role hold, darker the more of it. Below: chance, and heads of untrained models (mean over layers).",
    )  # fmt: skip


def levels(data: Results, middle: Sequence[str]) -> list[tuple[Any, ...]]:
    """Chance and untrained heads, below the table of evidence."""
    scores, bracket = data["scores"], data["brackets"].sel(condition="all")

    def null_of(mean: "xr.DataArray", sd: "xr.DataArray") -> Markup:
        return untrained(float(mean.mean()), float(sd.mean()))

    chance = {role: decimal(float(scores["chance"].sel(detector=detector).mean())) for role, detector in ATTENTION.items()}
    null = {
        role: null_of(*(scores[name].sel(detector=detector) for name in ("null_mean", "null_sd")))
        for role, detector in ATTENTION.items()
    }
    before = (bracket[name].sel(query="before") for name in ("null_mean", "null_sd"))
    grams = data["multigrams"]
    patterns = decimal(float(grams["untrained_value"].mean()), 1) if "untrained_value" in grams else "–"
    effect = null_of(bracket["effect_null_mean"], bracket["effect_null_sd"])
    return [
        ("chance", chance["induction"], "0", *(chance[role] for role in middle), "0", "0", "–", chance["resting"]),
        ("untrained", null["induction"], "–", *(null[r] for r in middle), null_of(*before), effect, patterns, null["resting"]),
    ]


def score_cell(here: "xr.Dataset") -> Markup:
    return two_lines(float(here["value"]), float(here["stderr"]))


SECTION = Section("functions", "What heads do", 32, measures, render, derive)
