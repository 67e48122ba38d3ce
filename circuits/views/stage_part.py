"""The part of a report on stages: what happened to a run's curves, when, and in which order, beside what was published.

The order is told for emergences first: there is one for each curve, whatever the run did, so that these pairs are chosen before
looking. A pair is in order where its p passes Holm's correction for the pairs of emergences; all others are "not told apart", or
"not testable" where the smallest p there could be would not pass. Boundaries and plateaus are as many as the curves have: of
them the verdicts of ``circuits.dynamics.stage_order`` count, which correct for every pair of events.

Source: Holm 1979; p and draws, ``circuits.dynamics.stage_order``.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from circuits.views.figures import rendered
from circuits.views.html import count, decimal, image, paragraph, probability, table
from circuits.views.published import MODEL, MOMENTS, PAPERS, SERIES, STAGES
from circuits.views.stage_figure import Happened, happened, stage_figure, title_of

if TYPE_CHECKING:
    import xarray as xr

BEFORE, AFTER, UNTOLD, UNTESTABLE = "before", "after", "not told apart", "not testable"


class Pair(NamedTuple):
    """Two events, the first in time first: the share of draws in which it is before the other, p, and what that says."""

    first: Happened
    other: Happened
    share: float
    p: float
    verdict: str


def stage_part(found: "xr.Dataset", curves: "Mapping[str, xr.Dataset]", emergence: "xr.Dataset | None" = None) -> Markup:
    """The figure of stages, the order of emergences in words, tables of all events, and the published ones.

    Args:
        found: of ``circuits.dynamics.stages.stages``, of one run. curves: what it was given, by name; one at least. emergence:
            when heads had their roles, of ``circuits.dynamics.emergence.emerged``.

    Raises:
        ValueError: see ``stage_figure``.
    """
    rows = happened(found)
    pairs = emergence_pairs(found)
    smallest, level = float(found.attrs["smallest_p"]), float(found.attrs["level"])
    emergences = sorted((row for row in rows if row.kind == "emergence"), key=lambda row: (math.isnan(row.at), row.at))
    others = [row for row in rows if row.kind != "emergence"]
    parts = [
        image(
            rendered(stage_figure(found, curves, emergence), "svg"), "image/svg+xml", alt=described(rows, curves),
            caption="Curves on log time (even up to the first checkpoint after step 0); bands are one standard error. "
            f"Boundary: where a curve, in straight pieces in log time, changes its slope; shaded, its {level:.0%} interval. "
            "Plateau: where it stands still. Emergence: when it has passed half of its way, from chance or its first value to "
            "its last, for good."
            + (" Last panel: solid, the heads that had their last role by then; shaded, those that got it between two "
               "checkpoints." if emergence is not None else ""),
        ),
        *order_of_emergences(emergences, pairs, smallest, level),
        events_table(emergences, f"Emergences, the earliest first, with {level:.0%} intervals, which know the error of measuring "
                     "this run and not how another seed would have gone."),
    ]  # fmt: skip
    if pairs:
        parts.append(folded(f"Each pair of emergences ({len(pairs)})", pairs_table(pairs, smallest)))
    if others:
        caption = f"Boundaries and plateaus, curve by curve, with {level:.0%} intervals. Of plateaus also their start and end."
        told = other_orders(found, others, smallest, level)
        parts.append(folded(f"Boundaries and plateaus ({len(others)})", told, events_table(others, caption)))
    return Markup("\n").join([*parts, *published(pairs)])


def emergence_pairs(found: "xr.Dataset") -> list[Pair]:
    """Pairs of emergences that happened, by the rule at the top of this module, in order of time."""
    rows = [row for row in happened(found) if row.kind == "emergence" and math.isfinite(row.at)]
    pairs = list(combinations(sorted(rows, key=lambda row: row.at), 2))
    if not pairs:
        return []
    read = {name: np.array([float(found[name].sel(event=a.name, other=b.name)) for a, b in pairs]) for name in ("before", "p")}
    back = np.array([float(found["before"].sel(event=b.name, other=a.name)) for a, b in pairs])
    alpha = 1 - float(found.attrs["level"])
    rank = read["p"].argsort(kind="stable")
    passed = np.zeros(len(pairs), dtype=bool)
    passed[rank] = np.logical_and.accumulate(read["p"][rank] <= alpha / np.arange(len(pairs), 0, -1))
    unclear = UNTESTABLE if float(found.attrs["smallest_p"]) > alpha / len(pairs) else UNTOLD
    return [
        Pair(a, b, share, p, (BEFORE if share > other else AFTER) if clear else unclear)
        for (a, b), share, p, other, clear in zip(pairs, *read.values(), back, passed, strict=True)
    ]


def order_of_emergences(rows: Sequence[Happened], pairs: Sequence[Pair], smallest: float, level: float) -> list[Markup]:
    """The order in words: who is beyond error before whom, and who is not told apart."""
    came = [row for row in rows if math.isfinite(row.at)]
    never = [f"{title_of(row.curve)} ({row.state})" for row in rows if not math.isfinite(row.at)]
    lacking = f" Without an emergence: {', '.join(never)}." if never else ""
    if len(came) < 2:
        only = f"Only {title_of(came[0].curve)} emerged" if came else "No curve emerged"
        return [paragraph("<b>Order of emergences.</b> {}; there is no order to tell.{}", only, lacking)]
    by = {(pair.first.name, pair.other.name): pair for pair in pairs}
    said = [dated(came[0])]
    for a, b in pairwise(came):
        pair = by[a.name, b.name]
        if pair.verdict == BEFORE:
            said.append(f", then {dated(b)}, later in {share_of(pair)} of draws (p {probability(pair.p, smallest)})")
        else:
            said.append(f"; {pair.verdict} from it: {dated(b)}" if pair.verdict == UNTOLD else f"; {pair.verdict}: {dated(b)}")
    neighbours = {(a.name, b.name) for a, b in pairwise(came)}
    far = [pair for key, pair in by.items() if pair.verdict != BEFORE and key not in neighbours]
    more = f" Nor are in order: {'; '.join(both(pair) for pair in far)}." if far else ""
    ordered = sum(pair.verdict == BEFORE for pair in pairs)
    return [
        paragraph(
            "<b>Order of emergences.</b> {}.{}{} {} of {} pairs are in order beyond error: p, shown as it is, passes at {} when "
            "corrected by Holm for these pairs. The smallest p there could be is {}. Errors are of measuring this run, not of "
            "training another.",
            "".join(said), more, lacking, ordered, len(pairs), decimal(1 - level, 2), probability(smallest),
        )
    ]  # fmt: skip


def dated(row: Happened) -> str:
    """An event with its step and interval."""
    return f"{title_of(row.curve)} ({interval_of(row)})"


def share_of(pair: Pair) -> str:
    """Rounding makes no share all or none of the draws."""
    return "all" if pair.share == 1 else f"{min(pair.share, 0.999):.1%}" if pair.share > 0.5 else f"{pair.share:.1%}"


def both(pair: Pair) -> str:
    return f"{title_of(pair.first.curve)} and {title_of(pair.other.curve)}"


def interval_of(row: Happened) -> str:
    """``step 1 613 [1 500, 1 750]``; what was there from the start has no lower end."""
    if not math.isfinite(row.at):
        return "–"
    if not math.isfinite(row.low):
        return f"by step {count(row.at)}"
    return f"step {count(row.at)} [{count(row.low)}, {count(row.high)}]"


def events_table(rows: Sequence[Happened], caption: str) -> Markup:
    def stretch(row: Happened) -> str:
        return f" ({count(row.start)} to {count(row.end)})" if row.kind == "plateau" else ""

    return table(
        ("curve", "kind", "step with interval", "state"),
        [(title_of(row.curve), row.kind, interval_of(row), row.state + stretch(row)) for row in rows],
        caption=caption,
    )


def pairs_table(pairs: Sequence[Pair], smallest: float) -> Markup:
    rows = [
        (title_of(one.first.curve), title_of(one.other.curve), share_of(one), probability(one.p, smallest), one.verdict)
        for one in pairs
    ]
    return table(
        ("earlier", "later", "draws in this order", "p", "order"),
        rows,
        caption="Draws: the curves as they might have been; a draw has an order where a checkpoint lies between the two events.",
        numeric=(2, 3),
    )


def other_orders(found: "xr.Dataset", rows: Sequence[Happened], smallest: float, level: float) -> Markup:
    """How many pairs of boundaries and plateaus the dataset's own verdicts put in order, and which are neighbours in time."""
    came = sorted((row for row in rows if math.isfinite(row.at)), key=lambda row: row.at)
    verdict = found["verdict"].sel(event=[row.name for row in came], other=[row.name for row in came]).values
    words = verdict[np.triu_indices(len(came), 1)].tolist()
    tested = [word for word in words if word not in ("given", "missing")]
    every = found["verdict"].values[np.triu_indices(found.sizes["event"], 1)]
    size = int((~np.isin(every, ("given", "missing"))).sum())
    why = f" The smallest p there could be is {probability(smallest)}, and {count(size)} pairs of events are tested at once"
    limit = f"; a pair would need {probability((1 - level) / size)}" if size and smallest > (1 - level) / size else ""
    first = [f"{named(a)} before {named(b)}" for i, (a, b) in enumerate(pairwise(came)) if verdict[i, i + 1] == BEFORE]
    neighbours = f" Neighbours in time that are in order: {'; '.join(first)}." if first else ""
    return paragraph(
        "Of {} pairs from different curves or of different kinds {} are in order beyond error; the others are not told "
        "apart.{}{}.{} Events of one kind on one curve are in order by construction.",
        count(len(tested)), count(sum(word in (BEFORE, AFTER) for word in tested)), why, limit, neighbours,
    )  # fmt: skip


def named(row: Happened) -> str:
    return f"{title_of(row.curve)}, {row.kind} at {count(row.at)}"


def published(pairs: Sequence[Pair]) -> list[Markup]:
    """What was published of another model, and whether the one order that can be compared is the same here."""
    moments = [(one.what, count(one.first) if one.first == one.last else f"{count(one.first)} to {count(one.last)}")
               for one in MOMENTS]  # fmt: skip
    stages = [
        (f"{one.name}: {one.what}", " to ".join(map(count, one.steps)), " → ".join(decimal(x) for x in one.loss),
         " → ".join(decimal(x, 1) for x in one.llc), decimal(one.llc[1] - one.llc[0], 1))
        for one in STAGES
    ]  # fmt: skip
    return [
        paragraph("<b>Published, another model</b>: {}. {} Sources: {}; {}.", MODEL, compared(pairs), PAPERS, SERIES),
        table(("event", "step"), moments, caption="Published, another model: events in order.", numeric=(1,)),
        table(
            ("stage", "steps", "loss, nats", "llc", "change of llc"), stages,
            caption="Published, another model: stages, with loss and whole-model llc at their ends. Steps and sizes are of that "
            "model, corpus and n beta, and predict none here.",
            numeric=(1, 2, 3, 4),
        ),
    ]  # fmt: skip


def compared(pairs: Sequence[Pair]) -> str:
    """Whether previous-token heads come before induction heads here too."""
    there = "There, previous-token heads pass half of their maximum before induction heads do"
    curves = ("strongest_previous_token", "strongest_induction")
    pair = next((one for one in pairs if {one.first.curve, one.other.curve} == set(curves)), None)
    if pair is None:
        return f"{there}; here both are not dated."
    if pair.verdict != BEFORE:
        return f"{there}; here the two are {pair.verdict}."
    if pair.first.curve != curves[0]:
        return f"{there}; here it is the other way round."
    return f"{there}, by a factor of {MOMENTS[3].first / MOMENTS[2].last:.2f} or more in steps; here too, by a factor of " \
        f"{pair.other.at / pair.first.at:.2f}."  # fmt: skip


def described(rows: Sequence[Happened], curves: "Mapping[str, xr.Dataset]") -> str:
    """The figure's key numbers, for readers who cannot see it."""
    parts = []
    for name in curves:
        here = [row for row in rows if row.curve == name]
        came = [
            f"emergence {interval_of(row) if math.isfinite(row.at) else row.state}" for row in here if row.kind == "emergence"
        ]
        for kind, many in (("boundary", "boundaries"), ("plateau", "plateaus")):
            at = [count(row.at) for row in here if row.kind == kind]
            came += [f"{many} at {', '.join(at)}"] if at else []
        parts.append(f"{title_of(name)}: {', '.join(came) or 'no event'}")
    return f"Curves over training and their events, in steps. {'; '.join(parts)}."


def folded(summary: str, *content: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>\n{}\n</details>").format(summary, Markup("\n").join(content))
