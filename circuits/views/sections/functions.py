"""What heads do: the role of each with its evidence and when it emerged, and which predictions its effect goes to."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

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
from circuits.dynamics.emergence import DECIDED, emerged, roles_over_training
from circuits.dynamics.functions import ROLE_MEASURES, roles_of
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.cells import TWO_LINES, at, heads_of, two_lines, untrained
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
    data = {argument: results[name].sel(step=step) for argument, name in ROLE_MEASURES.items() if name in results}
    return [
        paragraph(
            "A role is named from where a head looks <em>and</em> from what its ablation does. It is the first of {} whose "
            "criteria all hold, each by {} standard errors (of previous, current and duplicate token the best supported "
            "comes first). By attention: a support of {}, the share of the way from chance to perfect, and above untrained "
            "heads. <b>Induction</b> also needs a cause: the loss of repeated tokens rises when attention to the targets is "
            "cut, more than when other keys are, and also when what the targets bring is merely taken out. <b>Bracket</b>: "
            "attention to the opener above that to other openers by {}, and an effect on the closer above that on other "
            "tokens of its depth, both above untrained heads. <b>Multigram</b>: at least {} memorised patterns, and more than "
            "by its null (the head’s effects moved along the text).",
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
    others = [results[name] for argument, name in ROLE_MEASURES.items() if argument != "multigrams" and name in results]
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
        emergence_text(role, when),
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
        less = with_error(float(cut["removed"]), float(cut["removed_stderr"]))
        said += f"; cut, it costs {cost} nats, {more} more than other keys; merely taken out, {less} nats"
    return said


def patterns_text(here: "xr.Dataset") -> str:
    value = float(here["value"])
    return f"{decimal(value, 0)} ± {spread(float(here['stderr']), 1)} pattern{'' if value == 1 else 's'}"


def emergence_text(role: str, when: "xr.Dataset") -> str:
    """``2 000–2 125``: not yet at the first, for good from the second on."""
    value, before = float(when["value"]), float(when["before"])
    if not np.isfinite(value):
        return "–" if role in (NONE, NOT_MEASURED) else "not dated"
    return f"{count(before)}–{count(value)}" if np.isfinite(before) else f"from the first ({count(value)})"


def evidence_table(here: "xr.Dataset", data: Results, step: int) -> Markup:
    """Every quantity behind every role, of every head; chance and untrained heads below."""
    columns = evidence_columns(data)
    rows, shades = [], []
    for head in heads_of(here):
        role = at(here, head)
        holds = {str(name): bool(held) for name, held in zip(role["role_name"].values, role["holds"].values, strict=True)}
        cells = [column.cell({argument: at(found, head) for argument, found in data.items()}) for column in columns]
        bold = Markup("<b>{}</b>")
        shown = [bold.format(cell) if holds[c.role] else cell for c, (cell, _) in zip(columns, cells, strict=True)]
        rows.append((bold.format(head), *shown))
        shades.append([0.0, *(float(np.nan_to_num(shade)) for _, shade in cells)])
    rows += [("chance", *(column.chance for column in columns)), ("untrained", *(column.null for column in columns))]
    return table(
        ("head", *(column.name for column in columns)), rows, numeric=range(1, len(columns) + 1), shades=shades,
        caption=f"The evidence for every role at step {count(step)}: value ± standard error, bold where all criteria of the "
        "role hold, darker the more of it. Below: chance, and heads of untrained models (mean over layers).",
    )  # fmt: skip


class Column(NamedTuple):
    """One quantity: its name, the role it speaks for, a head's cell and its shade, and what stands below."""

    name: str
    role: str
    cell: Callable[[Results], tuple[Markup, float]]
    chance: str
    null: Markup | str


def evidence_columns(data: Results) -> list[Column]:
    """The quantities behind the roles, in the order of the roles."""
    of_scores = {role: score_column(role, detector, data["scores"]) for role, detector in ATTENTION.items()}
    found = [of_scores["induction"], Column("cut, above other keys (nats)", "induction", cut_cell, "0", "–")]
    found += [column for role, column in of_scores.items() if role not in ("induction", "resting")]
    if "brackets" in data:
        end = data["brackets"].sel(condition="all")
        looks = null_of(end.sel(query="before"), "null_mean", "null_sd")
        found.append(Column("bracket: to the opener", "bracket", opener_cell, "0", looks))
        found.append(
            Column("bracket: effect (nats)", "bracket", closer_cell, "0", null_of(end, "effect_null_mean", "effect_null_sd"))
        )
    grams = data["multigrams"]
    most = max(1.0, float(np.nan_to_num(grams["value"].values).max()))
    nobody = decimal(float(grams["untrained_value"].mean()), 1) if "untrained_value" in grams else "–"
    found.append(Column("patterns", "multigram", partial(patterns_cell, most=most), "–", nobody))
    return [*found, of_scores["resting"]]


def score_column(role: str, detector: str, scores: "xr.Dataset") -> Column:
    end = scores.sel(detector=detector)
    chance = float(end["chance"].mean())

    def cell(data: Results) -> tuple[Markup, float]:
        value, stderr = (float(data["scores"][name].sel(detector=detector)) for name in ("value", "stderr"))
        return two_lines(value, stderr), (value - chance) / (1 - chance)

    return Column(role, role, cell, decimal(chance), null_of(end, "null_mean", "null_sd"))


def cut_cell(data: Results) -> tuple[Markup, float]:
    value, stderr = (float(data["induction_cut"][name]) for name in ("difference", "difference_stderr"))
    return two_lines(value, stderr), value


def opener_cell(data: Results) -> tuple[Markup, float]:
    value, stderr = (float(data["brackets"][name].sel(condition="all", query="before")) for name in ("value", "stderr"))
    return two_lines(value, stderr), value


def closer_cell(data: Results) -> tuple[Markup, float]:
    value, stderr = (float(data["brackets"][name].sel(condition="all")) for name in ("effect", "effect_stderr"))
    return two_lines(value, stderr), value


def patterns_cell(data: Results, *, most: float) -> tuple[Markup, float]:
    value, null = (float(data["multigrams"][name]) for name in ("value", "null_mean"))
    return TWO_LINES.format(decimal(value, 0), f"null {decimal(null, 0)}"), (value - null) / most


def null_of(data: "xr.Dataset", mean: str, sd: str) -> Markup:
    """Untrained heads, over all layers."""
    return untrained(float(data[mean].mean()), float(data[sd].mean()))


SECTION = Section("functions", "What heads do", 32, measures, render, derive)
