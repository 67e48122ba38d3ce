"""The part of a report on the three witnesses of every head: a table of what each of them says, and by which rule they agree.

    for, against, undecided     of a prediction: ✓, ✗, ?
    agree, disagree, undecided  of a head: ✓, ✗, ?; see ``circuits.crosscheck.agreement``
    p                           of no effect
    p½                          of an effect at least half of the strongest other head's: small where it is shown to be missing

Agreement is by what is there where a prediction "there" is for, else by absence: nothing was to be there, and nothing is.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.crosscheck.agreement import AGREE, CURVE, DISAGREE, FOR, THERE, UNDECIDED, WEIGHTS
from circuits.crosscheck.testimony import SOURCES
from circuits.models.heads import Head
from circuits.views.cells import TWO_LINES, heads_of
from circuits.views.finding import heads_where, named, some
from circuits.views.html import count, decimal, paragraph, table
from circuits.views.measure_names import left_out
from circuits.views.sections import Results
from circuits.views.witness_cells import (
    SIGNS,
    contradiction,
    head_link,
    lag_cell,
    predicted,
    standing_text,
)

if TYPE_CHECKING:
    import xarray as xr

COLUMNS = ("head", "role by behaviour", "weights and paths", "complexity", "lag, doublings", "verdict", "against, or open")
CAPTION = (
    "values ± standard error; what depends on weights alone has none. ✓ for, ✗ against, ? undecided. p: of no effect. p½: of "
    "an effect at least half of the strongest other head’s; where it is small, the effect is shown to be missing. Edges in "
    "nats of loss on repeated tokens; coefficients in nβ nats, above or below a null by more than two errors of both. Lag: "
    "from the role’s emergence to the largest rise of the coefficient, with its interval; above 0 the role came first. It "
    "says nothing of the role at the start, where the coefficient rises most before the first checkpoint, as any may; nor "
    "undated, where the role was there by the first checkpoints; nor where its interval holds 0 and is too wide."
)
RULE = (
    "<b>The rule.</b> Behaviour names a role, which predicts what the other witnesses find. <em>Induction</em>: an earlier "
    "head in its keys (K-composition, key edge), copying, and a coefficient that rises more than other heads’ when the role "
    "emerges. <em>Previous token</em>: K-composition and a key edge into an induction head, and such a rise. <em>Any other "
    "role</em>: none of these. An effect is there if it is beyond chance or error and stands out by {} robust standard "
    "deviations among others of its kind; it is none if p½ ≤ {}. A prediction is against where the opposite is shown at level"
    " {} after Holm’s correction for {} that could speak against any head. The witnesses <b>agree</b> if weights and paths "
    "have a prediction for, complexity has one, and none is against; they <b>disagree</b> if one is against; else the head is"
    " <b>undecided</b>. For is not corrected, as it takes both witnesses. A role kept in fewer than {}% of draws predicts "
    "nothing. Agreement by absence means only that a head which is called no part of an induction circuit shows no sign of "
    "one."
)
ORDER = (DISAGREE, UNDECIDED, AGREE)


def witness_part(agreement: "xr.Dataset", lags: "xr.Dataset | None" = None, results: Results | None = None) -> Markup:
    """How many heads the witnesses agree about, the table of all heads, and the rule.

    Args:
        agreement: of ``circuits.crosscheck.agreement.agreement``. lags: of ``circuits.crosscheck.timing.lag``, of the same run.
        results: of the run, for coefficients at the end beside their nulls; any may be absent.
    """
    results = {} if results is None else results
    heads = sorted(heads_of(agreement), key=lambda head: (ORDER.index(str(_at(agreement, head)["verdict"].values)), head))
    curve = str(agreement.attrs["curve"])
    rows = [row(head, _at(agreement, head), None if lags is None else _at(lags, head), curve, results) for head in heads]
    return Markup("\n").join(
        [
            Markup('<div class="headline">{}</div>').format(summary(agreement)),
            left_out(missing(agreement, lags, results)),
            table(COLUMNS, rows, caption=f"Step {count(float(agreement.attrs['step']))}, {CAPTION}"),
            rule(agreement),
        ]
    )


def _at(data: "xr.Dataset", head: Head) -> "xr.Dataset":
    return data.sel(layer=head.layer, head=head.head)


def missing(agreement: "xr.Dataset", lags: "xr.Dataset | None", results: Results) -> list[str]:
    """What the table lacks."""
    reasons = set(agreement["reason"].values.ravel().tolist())
    found = [source for source in SOURCES.values() if any(reason.startswith(f"no {source}") for reason in reasons)]
    curve = str(agreement.attrs["curve"])
    if curve == "none":
        return [*found, "rllc", "lags"]
    nulls = [] if f"nulls_{curve.removeprefix('rllc_')}" in results or curve not in results else ["nulls"]
    return [*found, *nulls, *(["lags"] if lags is None else [])]


def summary(agreement: "xr.Dataset") -> Markup:
    """How many heads have which verdict, and which of them are flagged by whom."""
    agree, disagree, undecided = (heads_where(agreement["verdict"] == verdict) for verdict in (AGREE, DISAGREE, UNDECIDED))
    there = heads_where((agreement["verdict"] == AGREE) & agreed_by_presence(agreement))
    flagged = "; ".join(f"{head} ({_at(agreement, head)['flag'].values})" for head in disagree)
    return paragraph(
        "<b>Do three witnesses agree?</b> Of {}: {} {} agree{} ({} by what is there, {} by absence), {} {} disagree{}, {} {} "
        "undecided{}. {}",
        some(agreement["verdict"].size, "head"),
        SIGNS[AGREE], count(len(agree)), "s" if len(agree) == 1 else "", count(len(there)), count(len(agree) - len(there)),
        SIGNS[DISAGREE], count(len(disagree)), "s" if len(disagree) == 1 else "",
        SIGNS[UNDECIDED], count(len(undecided)), f" ({named(undecided)})" if undecided else "",
        f"Flagged: {flagged}." if flagged else "No head is flagged.",
    )  # fmt: skip


def agreed_by_presence(data: "xr.Dataset") -> "xr.DataArray":
    """Whether a prediction "there" is for."""
    return ((data["expected"] == THERE) & (data["says"] == FOR)).any("prediction")


def row(head: Head, here: "xr.Dataset", lag: "xr.Dataset | None", curve: str, results: Results) -> tuple[Any, ...]:
    """One head: the witnesses, the lag, the verdict, and what speaks against it."""
    confidence, verdict = float(here["confidence"]), str(here["verdict"].values)
    kept = f"kept in {decimal(100 * confidence, 0)}% of draws" if np.isfinite(confidence) else "no confidence known"
    how = ("by what is there" if bool(agreed_by_presence(here)) else "by absence") if verdict == AGREE else ""
    lines = {witness: predicted(here, witness) for witness in (WEIGHTS, CURVE)}
    standing = standing_text(results, curve, head)
    return (
        head_link(head),
        TWO_LINES.format(str(here["role"].values), kept),
        _wide(lines[WEIGHTS] or ["no prediction"]),
        _wide([*(lines[CURVE] or ["no prediction"]), *([standing] if standing else [])]),
        "–" if lag is None else lag_cell(lag, float(lag.attrs["unit"])),
        TWO_LINES.format(f"{SIGNS[verdict]} {verdict}", how),
        contradiction(here),
    )


def _wide(lines: Sequence[Markup | str]) -> Markup:
    """Lines of a cell that keeps its width on a phone, where the table scrolls."""
    return Markup('<div style="min-width:16em">{}</div>').format(Markup("<br>").join(lines))


def rule(agreement: "xr.Dataset") -> Markup:
    """What agreement takes."""
    config = json.loads(agreement.attrs["config"])
    return paragraph(
        RULE, decimal(config["out"], 0), config["alpha"], config["alpha"], some(int(agreement.attrs["n_tested"]), "test"),
        decimal(100 * config["sure"], 0),
    )  # fmt: skip
