"""Data refinement beside its nulls: whether simpler measures have the same ratio between two texts as coefficients do."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.views.coefficient_figures import ERRORS, PREDICTIONS
from circuits.views.formation import last_common
from circuits.views.html import count, decimal, paragraph, table
from circuits.views.ranks import Order, rank_correlation
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficient_texts import others, ratio, words
from circuits.views.sections.coefficients import NULLS_ON, asked, base_of, left_out
from circuits.views.sections.paths import rank_p

ALIKE = 0.15
"""Share of the ratio of coefficients within which the ratio of a null says the same."""


class Beside(NamedTuple):
    """Ratios of coefficients between two texts beside those of a null: medians, and how many heads differ by how much."""

    ours: float
    theirs: float
    alike: int
    beyond: int
    heads: int
    order: Order


def needed(wants: Mapping[str, Wanted]) -> dict[str, Wanted]:
    """Coefficients and nulls on the first text and on every other that has nulls."""
    texts = {text: want for text, want in others(wants).items() if f"{NULLS_ON}{text}" in wants}
    if not texts or "nulls" not in wants:
        return {}
    base = base_of(wants)[0]
    nulls = {f"{NULLS_ON}{text}": wants[f"{NULLS_ON}{text}"] for text in texts}
    return {base: wants[base], "nulls": wants["nulls"]} | texts | nulls


def measures(run: Checkpoints) -> list[Wanted]:
    return [want for part, want in needed(asked(run)[0]).items() if part.startswith(NULLS_ON)]


def render(run: Checkpoints, results: Results) -> Markup:
    """One row for each text and null, at the last checkpoint that has all of them."""
    wants, why = asked(run)
    parts = needed(wants)
    if not parts:
        return left_out(why or "Nulls are measured on one text alone")
    lacking = [want.measure.name for want in parts.values() if want.measure.name not in results]
    if lacking:
        return left_out(f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no data, which nulls are laid against")
    found = {part: results[want.measure.name] for part, want in parts.items()}
    step, base = last_common(*found.values()), base_of(wants)[0]
    here = {part: data.sel(step=step) for part, data in found.items()}
    rows, told = [], []
    for text in others(parts):
        value = ratio(here[text], here[base])
        for kind, title in PREDICTIONS.items():
            null, own = (here[part].sel(kind=kind) for part in (f"{NULLS_ON}{text}", "nulls"))
            seen = beside(*value, *ratio(null, own, "as_llc", "as_llc_stderr"))
            alike = f"{seen.alike} of {seen.heads}"
            rows.append((Markup("<b>{}</b>").format(words(text)), title, *numbers(seen, alike)))
            if kind == "local_estimate":
                told.append(f"on {words(text)} the closed form has the same ratio within {100 * ALIKE:.0f}% for {alike} heads")
    return Markup("\n").join(
        [
            paragraph(
                "A head may cost more on a text because the loss is steeper or more curved there, which cheaper measures see "
                "too. So each null is measured on the same texts, and its ratio laid against that of rllc: {}. What differs "
                "beyond error is what sampling alone can say of a text.",
                "; ".join(told),
            ),
            table(
                ("text", "null", "rllc", "null’s", "alike", "beyond error", "rank correlation", "95%", "p"),
                rows, numeric=range(2, 9),
                caption=f"Step {count(step)}: ratios to {words(base)}, the median over heads, of rllc and of the null. Alike: "
                f"heads for which the two are within {100 * ALIKE:.0f}%; beyond error: for which they differ by more than "
                f"{ERRORS:.0f} standard errors of all four values (one head in twenty by chance). Spearman’s rank correlation "
                "of both ratios over heads, 95% by drawing heads again, p by exchanging them. No ratio to what is 0 within its "
                "error.",
            ),
        ]
    )  # fmt: skip


def beside(value: np.ndarray, error: np.ndarray, expected: np.ndarray, off: np.ndarray) -> Beside:
    """Ratios ``[head]`` of coefficients with their errors, and of a null with its own."""
    both = np.isfinite(value) & np.isfinite(expected)
    gap = np.abs(np.where(both, value - expected, 0.0))
    alike = both & (gap <= ALIKE * np.abs(np.where(both, value, 1.0)))
    beyond = gap > ERRORS * np.nan_to_num(np.hypot(error, off))
    ours, theirs = (float(np.median(x[both])) if both.any() else np.nan for x in (value, expected))
    return Beside(ours, theirs, int(alike.sum()), int(beyond.sum()), int(both.sum()), rank_correlation(value, expected))


def numbers(seen: Beside, alike: str) -> tuple[str, ...]:
    """Cells of a row."""
    order = seen.order
    interval = f"[{decimal(order.low, 2)}, {decimal(order.high, 2)}]" if np.isfinite(order.low) else "–"
    medians = (decimal(middle, 2) for middle in (seen.ours, seen.theirs))
    return (*medians, alike, str(seen.beyond), decimal(order.value, 2), interval, rank_p(order.p, order.smallest))


SECTION = Section("coefficient_texts_nulls", "Complexity by text: what simpler measures already say", 62, measures, render)
