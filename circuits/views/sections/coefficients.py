"""How complex each head is: its local learning coefficient over training, and at the end beside simpler measures.

Nothing is sampled for a report: results are read from the store or come with the run, and ``circuits rllc`` makes them. What
simpler measures say, other texts, the reference and the whole model have sections of their own, as each may be missing.
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.complexity.config import SamplerConfig
from circuits.complexity.diagnostics import ENOUGH, MIXED
from circuits.dynamics.coefficients import coefficient_measures, reference_of
from circuits.dynamics.together import without_paths
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.cells import at, heads_of
from circuits.views.coefficient_figures import ERRORS, UNASKED, coefficient_curves
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, image, paragraph, spread, table, with_error
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

NOT_TEXTS = ("nulls", "whole", "kl")
"""Parts of ``coefficient_measures`` that are no text."""
NULLS_ON = "nulls_"
"""Before the name of a text: nulls on another text than the first."""
LISTED = 6
"""Cells that are named where some are not ok."""
WORDS = {
    "not mixed": f"R-hat from {MIXED}",
    "few draws": f"an effective sample below {ENOUGH:.0f} draws",
    "unmoved": "no chain left the weights",
    "diverged": "a chain diverged and is not in the value",
}
COLUMNS = {
    "local_estimate": ("closed form", "as_llc"),
    "noise_loss": ("noise null", "as_llc"),
    "hessian_trace": ("Hessian null", "as_llc"),
    "fisher_trace": ("Fisher trace (nats)", "value"),
    "weight_norm": ("weight norm", "value"),
    "ablation_loss": ("ablation loss (nats)", "value"),
}
"""Nulls in the table: the heading, and which of their numbers."""


@lru_cache(maxsize=1)
def asked(run: Checkpoints) -> tuple[Mapping[str, Wanted], str]:
    """Every measure of coefficients by its part, the text that stands for the run first; or none, and why.

    Nulls of others than the first text are parts by their own names, such as "nulls_code" and "nulls_kl". Where a few checkpoints
    are enough by design the others are not asked for; what the store has of them is read. Found once for all sections:
    the texts are cut anew each time and the reference is opened.
    """
    try:
        parts = coefficient_measures(run, reference=reference_of(run))
    except ValueError as error:
        return {}, without_paths(str(error))
    base = next(iter(parts), "")
    found = {}
    for part, pairs in parts.items():
        for measure, steps in pairs:
            few = None if len(steps) == len(run) else len(steps)
            other = measure.name.startswith(NULLS_ON) and measure.name != f"{NULLS_ON}{base}"
            name = part if not other else f"{NULLS_ON}kl" if part == "kl" else measure.name
            found[name] = Wanted(measure, cheap=False, command=f"circuits rllc {run.name}", few=few)
    return found, "" if found else "This run has no text to measure coefficients on"


def base_of(wants: Mapping[str, Wanted]) -> tuple[str, str]:
    """The text that stands for the run, and the name of the coefficient on it."""
    base = next(iter(wants))
    return base, wants[base].measure.name


def left_out(why: str) -> Markup:
    return paragraph("<b>Left out.</b> {}.", why.rstrip("."))


def measures(run: Checkpoints) -> list[Wanted]:
    wants, _ = asked(run)
    return [wants[base_of(wants)[0]]] if wants else []


def render(run: Checkpoints, results: Results) -> Markup:
    """Curves, what is to be said of them, and the table at the last checkpoint."""
    wants, why = asked(run)
    if not wants:
        return left_out(why)
    base, name = base_of(wants)
    found = results[name]
    step = last_measured(found)
    end = found.sel(step=step)
    named = ranked(end)
    top = f"highest {said(end, named[0])}, lowest {said(end, named[-1])}" if named else "no head has a value"
    nulls = nulls_at(results, wants, step)
    return Markup("\n").join(
        [
            paragraph(
                "Move the weights of one head alone, at random around the trained ones but seldom where the loss is high: the "
                "<b>coefficient</b> is nβ times what the loss rises by on average (weight-refined, Wang et al. 2024). The "
                "steeper and the more curved the loss is in the head’s weights, the higher. {} Text: {}, {} sequences.",
                settings(found), base.replace("_", " "), found.attrs.get("n_examples", "some"),
            ),
            paragraph("At step {}: {}. {}", count(step), top, apart(found)),
            image(
                rendered(coefficient_curves(found), "svg"), "image/svg+xml",
                alt=f"Coefficient of every head over training. At step {step}: {top}.",
                caption=f"Bands are ± {ERRORS:.0f} standard errors of sampling. {not_ok(found)}{shared(found)}"
                f"{below_zero(found)}",
            ),
            heads_table(end, nulls, step),
        ]
    )  # fmt: skip


def settings(found: "xr.Dataset") -> str:
    """The sampler's settings, on which every value depends."""
    try:
        config = SamplerConfig.model_validate(json.loads(found.attrs["config"])["config"])
    except (KeyError, TypeError, ValueError):
        return "Values depend on the sampler’s settings."
    return (
        f"Values depend on the settings: {config.sampler} sampler, nβ {config.nbeta:g}, γ {config.gamma:g}, ε "
        f"{config.epsilon:g}, {config.chains} chains of {config.draws} draws from batches of {config.batch}."
    )


def ranked(end: "xr.Dataset") -> list[Head]:
    """Heads of a checkpoint by their value, highest first; those without one are left out."""
    value = {head: float(at(end, head)["value"]) for head in heads_of(end)}
    return sorted((head for head in value if np.isfinite(value[head])), key=lambda head: -value[head])


def said(end: "xr.Dataset", head: Head, name: str = "value") -> str:
    """``L0H6 2.581 ± 0.027``."""
    here = at(end, head)
    return f"{head} {with_error(float(here[name]), float(here['stderr' if name == 'value' else f'{name}_stderr']))}"


def apart(found: "xr.Dataset") -> str:
    """How far heads differ at the first and the last measured step, beside what errors alone would give."""
    steps = found["step"].values[found["status"].values == "ok"]
    told = []
    for step in dict.fromkeys((int(steps[0]), int(steps[-1]))):
        value, stderr = (found[name].sel(step=step).values.ravel() for name in ("value", "stderr"))
        there = np.isfinite(value) & np.isfinite(stderr)
        if np.count_nonzero(there) > 1:
            between, error = float(value[there].std(ddof=1)), float(np.sqrt(np.square(stderr[there]).mean()))
            told.append(f"{spread(between)} at step {count(step)}, where errors alone would give {spread(error)}")
    return f"The standard deviation between heads is {'; '.join(told)}." if told else ""


def not_ok(found: "xr.Dataset") -> str:
    """How many of the sampled cells are not ok, of which kind, and the first of them."""
    state = found["state"].transpose("step", ...).values.astype(str)
    bad = ~np.isin(state, ("ok", *UNASKED))
    total, places = int(np.count_nonzero(~np.isin(state, UNASKED))), np.argwhere(bad)
    if not len(places):
        cells = "The one cell is" if total == 1 else f"All {count(total)} cells are"
        return f"{cells} ok: R-hat below {MIXED}, an effective sample of at least {ENOUGH:.0f} draws. "
    kinds = Counter(state[bad].tolist())
    counted = ", ".join(f"{n} {kind} ({WORDS.get(kind, 'see its state')})" for kind, n in sorted(kinds.items()))
    names = [_cell(found, place) for place in places[:LISTED]]
    more = f" and {count(len(places) - LISTED)} more" if len(places) > LISTED else ""
    return (
        f"{count(len(places))} of {count(total)} cells are not ok: {counted}; hollow with a hatched band, a cross at the foot "
        f"where there is no value: {', '.join(names)}{more}. "
    )


def shared(found: "xr.Dataset") -> str:
    """Why cells of several checkpoints are not as many looks at how chains mix."""
    if found.sizes["step"] == 1:
        return ""
    return "Noise is the same at every checkpoint, and it is most of how chains mix: cells are fewer looks than their number. "


def largest_by_chance(count: int) -> float:
    """Standard errors that the largest of so many normal deviations stays below in 39 of 40 cases; 1.96 for one."""
    return NormalDist().inv_cdf((1 - 0.025) ** (1 / max(count, 1)))


def _cell(found: "xr.Dataset", place: np.ndarray) -> str:
    step = f"step {count(int(found['step'].values[place[0]]))}"
    if len(place) == 1:
        return step
    return f"{Head(int(found['layer'].values[place[1]]), int(found['head'].values[place[2]]))} at {step}"


def below_zero(found: "xr.Dataset", what: str = "the loss") -> str:
    """How many cells are below 0 by more than error, and what that means."""
    value, stderr = (found[name].transpose("step", ...).values for name in ("value", "stderr"))
    below = value < -ERRORS * np.nan_to_num(stderr)
    if not below.any():
        return ""
    steps = found["step"].values[below.reshape(len(below), -1).any(1)]
    ends = [count(int(step)) for step in (steps[0], steps[-1])]
    where = f"at step {ends[0]}" if len(steps) == 1 else f"between steps {ends[0]} and {ends[1]}"
    return (
        f"{count(int(below.sum()))} of {count(int(np.isfinite(value).sum()))} values are below 0 by more than {ERRORS:.0f} "
        f"standard errors ({where}): moving away lowers {what}, so that the weights are no minimum of it."
    )


def nulls_at(results: Results, wants: Mapping[str, Wanted], step: int) -> "xr.Dataset | None":
    """The nulls at a step; None where they were not measured."""
    nulls = results.get(wants["nulls"].measure.name) if "nulls" in wants else None
    if nulls is None or step not in nulls["step"].values[nulls["status"].values == "ok"]:
        return None
    return nulls.sel(step=step)


def heads_table(end: "xr.Dataset", nulls: "xr.Dataset | None", step: int) -> Markup:
    """Every head, highest coefficient first, with the nulls beside it."""
    columns = COLUMNS if nulls is not None else {}
    rows, numbers = [], []
    order = ranked(end)
    for head in [*order, *(head for head in heads_of(end) if head not in order)]:
        here = at(end, head)
        cells, values = [with_error(float(here["value"]), float(here["stderr"]))], [float(here["value"])]
        for kind, (_, variable) in columns.items():
            null = at(nulls, head).sel(kind=kind)  # type: ignore[arg-type]
            value, stderr = float(null[variable]), float(null["stderr" if variable == "value" else "as_llc_stderr"])
            exact = kind == "weight_norm"
            state = str(null["state"].values)
            cells.append(state if state != "ok" else decimal(value) if exact else with_error(value, stderr))
            values.append(value)
        rows.append((Markup("<b>{}</b>").format(head), *cells, str(here["state"].values)))
        numbers.append(values)
    filled = np.nan_to_num(np.array(numbers, dtype=float))
    shades = np.maximum(filled, 0) / np.maximum(filled.max(0), 1e-12)
    head_row = ("head", "rllc", *(heading for heading, _ in columns.values()), "state")
    beside = (
        "The closed form, the noise and the Hessian null are what each of these alone predicts for rllc; the others have units "
        "of their own."
        if columns
        else "The nulls beside it were not measured at this step."
    )
    return table(
        head_row, rows, numeric=range(1, len(head_row) - 1), shades=[[0.0, *row, 0.0] for row in shades.tolist()],
        caption=f"Step {count(step)}: value ± standard error, in each column darker the larger. {beside}",
    )  # fmt: skip


SECTION = Section("coefficients", "How complex each head is: local learning coefficients", -46, measures, render)
