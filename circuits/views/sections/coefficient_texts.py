"""Data refinement: every head's coefficient on each kind of text, and its ratio to that on the run's own mix."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.cells import at, heads_of
from circuits.views.coefficient_figures import ERRORS, text_curves
from circuits.views.curves import rendered
from circuits.views.formation import last_common
from circuits.views.html import count, image, paragraph, table, with_error
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficients import NOT_TEXTS, NULLS_ON, asked, base_of, left_out, not_ok

if TYPE_CHECKING:
    import xarray as xr

BESIDE = 3
"""Texts that stand side by side in one figure."""
SHUFFLED = "shuffled_"


def others(wants: Mapping[str, Wanted]) -> dict[str, Wanted]:
    """The texts that coefficients are measured on beside the first; a text's shuffled control last."""
    texts = [part for part in list(wants)[1:] if part not in NOT_TEXTS and not part.startswith(NULLS_ON)]
    return {text: wants[text] for text in sorted(texts, key=lambda text: text.startswith(SHUFFLED))}


def measures(run: Checkpoints) -> list[Wanted]:
    return list(others(asked(run)[0]).values())


def render(run: Checkpoints, results: Results) -> Markup:
    """Curves side by side, then ratios at the last checkpoint that has all texts."""
    wants, why = asked(run)
    texts = others(wants)
    if not texts:
        return left_out(why or "This run has one text alone")
    base, name = base_of(wants)
    by_text = {text: results[want.measure.name] for text, want in texts.items()}
    parts = [
        paragraph(
            "The same heads, with the loss on another text than {}: a head that works on that text costs more there when it is "
            "disturbed (data-refined, Wang et al. 2024). The control is shuffled text, the same tokens in another order: what is "
            "higher there too is owed to the tokens and not to their order. Below 0 the weights are no minimum of the loss on "
            "that text.",
            words(base),
        )
    ]
    named = list(by_text)
    for start in range(0, len(named), BESIDE):
        shown = {text: by_text[text] for text in named[start : start + BESIDE]}
        cells = " ".join(f"{words(text).capitalize()}. {not_ok(found)}" for text, found in shown.items())
        parts.append(
            image(
                rendered(text_curves(shown), "svg"), "image/svg+xml",
                alt=f"Coefficients of every head over training on {', '.join(map(words, shown))}.",
                caption=f"Bands are ± {ERRORS:.0f} standard errors of sampling. {cells}",
            )
        )  # fmt: skip
    return Markup("\n").join([*parts, *ratios(base, results.get(name), by_text)])


def words(text: str) -> str:
    return text.replace("_", " ")


def ratios(base: str, found: "xr.Dataset | None", by_text: "Mapping[str, xr.Dataset]") -> list[Markup]:
    """What coefficients on other texts are of those on the first, in words and as a table."""
    if found is None:
        return [left_out(f"There are no ratios: rllc_{base} has no data")]
    try:
        step = last_common(found, *by_text.values())
    except ValueError as error:
        return [left_out(f"There are no ratios: {error}")]
    own = found.sel(step=step)
    ends = {text: data.sel(step=step) for text, data in by_text.items()}
    heads = heads_of(own)
    of = {text: list(zip(*ratio(end, own), strict=True)) for text, end in ends.items()}
    first = next(iter(of))
    order = sorted(range(len(heads)), key=lambda i: -np.nan_to_num(of[first][i][0], nan=-np.inf))
    rows = [
        (
            Markup("<b>{}</b>").format(heads[i]),
            cell(at(own, heads[i])),
            *(cell(at(end, heads[i])) for end in ends.values()),
            *(with_error(*of[text][i], digits=2) for text in of),
        )
        for i in order
    ]
    columns = ("head", words(base), *map(words, ends), *(f"{words(text)} / {words(base)}" for text in of))
    return [
        *(sentence(text, base, step, heads, of) for text in of if not text.startswith(SHUFFLED)),
        table(
            columns, rows, numeric=range(1, len(columns)),
            caption=f"Step {count(step)}: rllc ± standard error on each text, and ratios to {words(base)} with the errors of "
            "both; no ratio to what is 0 within its error. A value whose sampling is not ok says so.",
        ),
    ]  # fmt: skip


def ratio(there: "xr.Dataset", own: "xr.Dataset", value: str = "value", stderr: str = "stderr") -> tuple[np.ndarray, np.ndarray]:
    """Values over others, head by head, with errors as if both were independent; NaN where the other is 0 within its error."""
    a, da, b, db = (here[name].transpose("layer", "head").values.ravel() for here in (there, own) for name in (value, stderr))
    known = np.isfinite(a) & np.isfinite(b) & (np.abs(b) > ERRORS * np.nan_to_num(db))
    under = np.where(known, b, 1.0)
    return np.where(known, a / under, np.nan), np.where(known, np.hypot(da, a / under * db) / np.abs(under), np.nan)


def cell(here: "xr.Dataset") -> Any:
    value, state = with_error(float(here["value"]), float(here["stderr"])), str(here["state"].values)
    return value if state == "ok" else Markup("{}<br><small>{}</small>").format(value, state)


def sentence(text: str, base: str, step: int, heads: list[Head], of: Mapping[str, list[tuple[float, float]]]) -> Markup:
    """The range of ratios on a text, and for how many heads they differ from those on its shuffled control."""
    value, stderr = np.array(of[text]).T
    known = np.flatnonzero(np.isfinite(value))
    if not len(known):
        return paragraph("<b>{}.</b> No head has a ratio at step {}.", words(text).capitalize(), count(step))
    low, high = known[value[known].argmin()], known[value[known].argmax()]
    control = f"{SHUFFLED}{text}"
    against: Any = ""
    if control in of:
        other, other_stderr = np.array(of[control]).T
        both = np.isfinite(value) & np.isfinite(other)
        clear = both & (np.abs(value - other) > ERRORS * np.hypot(stderr, other_stderr))
        above = int(np.count_nonzero(clear & (value > other)))
        below = int(np.count_nonzero(clear & (value < other)))
        against = (
            f" It is above the ratio on {words(control)} for {above} of {int(both.sum())} heads and below for {below}, by more "
            f"than {ERRORS:.0f} standard errors; for the others the order of tokens makes no difference beyond error."
        )
    return paragraph(
        "<b>{}.</b> At step {} rllc on {} is between {} ({}) and {} ({}) times that on {}.{}",
        words(text).capitalize(), count(step), words(text), with_error(value[low], stderr[low], 2), heads[low],
        with_error(value[high], stderr[high], 2), heads[high], words(base), against,
    )  # fmt: skip


SECTION = Section("coefficient_texts", "Complexity by text", 62, measures, render)
