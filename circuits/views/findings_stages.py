"""What happened when, in sentences.

Of all events of ``circuits.dynamics.stages`` the *key* events are emergences: one for every curve, so that nothing is picked.
Their order is told pair by pair, where the verdict on that pair is "before"; a pair that follows from two others is not told
again. Where they are listed it is in the order of the data, which says nothing of time.
"""

from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np

from circuits.views.finding import CROSSCHECK, RLLC, Finding, at_step, lacking, listed, some
from circuits.views.html import count, decimal, probability
from circuits.views.sections import Results

if TYPE_CHECKING:
    import xarray as xr

ANCHOR = "stages"
CURVES = {
    "loss": "the loss on held-out text",
    "in_context_score": "the in-context learning score",
    "llc": "the whole model’s coefficient",
    "repeat_gain": "the gain from an exact repeat",
    "strongest_previous_token": "the strongest previous-token attention",
    "strongest_induction": "the strongest induction attention",
}


def what_happened(results: Results) -> list[Finding]:
    """The key events with their intervals, their order as far as it is told, and the stages of the coefficient."""
    if "stages" not in results:
        return [lacking("What happened when", ANCHOR, CROSSCHECK)]
    stages = results["stages"]
    key = _of_kind(stages, "emergence")
    state = key["state"].values
    dated = key.isel(event=np.flatnonzero(state == "emerged"))
    found = [_dated(dated, stages)] if dated.sizes["event"] else []
    found += [_undated(event) for event in _events(key.isel(event=np.flatnonzero(state != "emerged")))]
    if dated.sizes["event"] > 1:
        found.append(_order(dated.sortby("value"), stages))
    return [*found, _pieces(stages)]


def _of_kind(stages: "xr.Dataset", kind: str) -> "xr.Dataset":
    return stages.isel(event=np.flatnonzero(stages["kind"].values == kind))


def _events(data: "xr.Dataset") -> "list[xr.Dataset]":
    return [data.isel(event=i) for i in range(data.sizes["event"])]


def _called(event: "xr.Dataset") -> str:
    curve = str(event["curve"].values)
    return CURVES.get(curve, curve)


def _intervals(stages: "xr.Dataset") -> str:
    return f"{100 * float(stages.attrs['level']):.0f}% intervals for errors within this run"


def _dated(dated: "xr.Dataset", stages: "xr.Dataset") -> Finding:
    told = listed([f"{_called(event)} at step {at_step(event)}" for event in _events(dated)])
    return Finding(f"When each curve had gone half of its way for good: {told}.", "found", ANCHOR, _intervals(stages))


def _undated(event: "xr.Dataset") -> Finding:
    state, name = str(event["state"].values), _called(event)
    if state == "from the start":
        first = count(float(event["value"]))
        text = f"When {name} had gone half of its way is not known: by step {first}, the first that was measured, it had."
        return Finding(text, "undecided", ANCHOR)
    if state == "not risen":
        text = f"No emergence of {name}: at the end it is not beyond its baseline by three errors."
        return Finding(text, "not found", ANCHOR)
    return Finding(f"Whether {name} emerged is not known: {state}.", "undecided", ANCHOR)


def _order(dated: "xr.Dataset", stages: "xr.Dataset") -> Finding:
    """Which pairs of dated events have an order, and how many have none."""
    names = [str(name) for name in dated["event"].values]
    called = {name: _called(event) for name, event in zip(names, _events(dated), strict=True)}
    verdict = {(a, b): str(stages["verdict"].sel(event=a, other=b).values) for a in names for b in names if a != b}
    first = {pair for pair, said in verdict.items() if said == "before"}
    every = list(combinations(names, 2))
    confidence = 100 * float(stages["order_confidence"])
    basis = f"the likeliest order of these is that of {decimal(confidence, 1)}% of draws"
    smallest = float(stages.attrs["smallest_p"])
    if not first:
        untestable = {verdict[pair] for pair in every} == {"untestable"}
        why = "too few draws to correct for so many pairs of events" if untestable else "their errors leave it open"
        text = f"In which order these came is undecided: {why}."
        return Finding(text, "undecided", ANCHOR, f"{basis}; smallest p to be had {probability(smallest)}")
    shown = [(a, b) for a, b in verdict if (a, b) in first and not any({(a, c), (c, b)} <= first for c in names)]
    chain = len(first) == len(every) and shown == list(pairwise(names))
    pairs = [f"{called[a]} before {called[b]}" for a, b in shown]
    order = ", then ".join(called.values()) if chain else "; ".join(pairs)
    left = len(every) - len(first)
    rest = f" Of {some(len(every), 'pair')}, {count(left)} {'is' if left == 1 else 'are'} not told apart." if left else ""
    worst = max(float(stages["p"].sel(event=a, other=b)) for a, b in first)
    p = f"p at most {probability(worst, smallest)}, which passes the correction for all pairs"
    return Finding(f"In this order, in this run: {order}.{rest}", "found", ANCHOR, f"{p}; {basis}")


def _pieces(stages: "xr.Dataset") -> Finding:
    """Where the whole model's coefficient changes its slope, and where it stands still."""
    own = stages.isel(event=np.flatnonzero(stages["curve"].values == "llc"))
    if not own.sizes["event"]:
        return lacking("Stages of the whole model’s coefficient", ANCHOR, RLLC)
    bends, still = (_of_kind(own, kind).sortby("value") for kind in ("boundary", "plateau"))
    bends = _events(bends.isel(event=np.flatnonzero(bends["state"].values == "clear")))
    still = _events(still.isel(event=np.flatnonzero(still["state"].values != "missing")))
    slopes = f"clearly changes its slope at step {listed([at_step(event) for event in bends])}"
    rests = f"stands still at step {listed([f'{at_step(event)}, a {event.state.values}' for event in still])}"
    text = (
        "The whole model’s coefficient "
        f"{slopes if bends else 'has no clear change of slope'}, and {rests if still else 'stands still nowhere'}."
    )
    return Finding(text, "found" if bends or still else "not found", ANCHOR, _intervals(stages))
