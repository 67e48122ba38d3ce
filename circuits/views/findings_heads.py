"""What heads are, whether three witnesses agree about them, and when their coefficients change beside their roles, in sentences.

Lags (``circuits.crosscheck.timing``) know when a role emerged: u of the checkpoint by which it had is u of ``change_low`` less
``low``, that of the checkpoint before is u of ``change_high`` less ``high``. Neither of these says anything of roles:

    the role was there at the first checkpoint that tells, or was by the next: it has no time of its own
    the coefficient rises most between step 0 and the first checkpoint after it: so does any curve that rises once training starts

Of the others, those whose interval excludes 0 are said to lead or to lag. An interval that holds 0 means "at the same time" only
where it reaches no further than ``NEAR`` to either side, and how far it does is said; else nothing.
"""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.agreement import AGAINST, AGREE, DISAGREE, FLAGS, INDUCTION, PREVIOUS, SURE, THERE, UNDECIDED
from circuits.crosscheck.timing import STATES, WIDTH, clock
from circuits.detectors.roles import NONE, NOT_MEASURED
from circuits.models.heads import Head
from circuits.views.finding import RLLC, ROLES, Finding, Verdict, heads_where, lacking, listed, named, some, within
from circuits.views.html import count, decimal, probability
from circuits.views.sections import Results

if TYPE_CHECKING:
    import xarray as xr

ANCHOR, LAGS = "witnesses", "clusters"
NEAR = WIDTH
"""Doublings: the stretch over which a curve's change is read."""
TOGETHER, CURVE_FIRST, ROLE_FIRST, UNTESTABLE = STATES
WITHOUT = {NONE: "without a role", NOT_MEASURED: "not measured"}
FLAG_WORDS = {
    flag: f"{witness} {'speak' if ' and ' in witness else 'speaks'} against what behaviour says"
    for witness, flag in FLAGS.items()
}


def what_heads_are(results: Results) -> list[Finding]:
    """The roles, how many heads the witnesses agree about, and each head that is flagged."""
    if "agreement" not in results:
        return [lacking("What heads are, and whether three witnesses agree", ANCHOR, ROLES, RLLC)]
    data = results["agreement"]
    flagged = heads_where(data["verdict"] == DISAGREE)
    return [_roles(data), *_without(data), _witnesses(data), *(_flagged(data, head) for head in flagged)]


def _roles(data: "xr.Dataset") -> Finding:
    roles = [str(role) for role in data["role"].values.ravel()]
    told = {role for role in roles if role not in (NONE, NOT_MEASURED)}
    ranked = sorted(Counter(roles).items(), key=lambda item: (item[0] not in told, item[0] != INDUCTION, item[0] != PREVIOUS))
    counts = [
        f"{count(n)} {role if role in told else WITHOUT[role]} ({named(heads_where(data['role'] == role))})" for role, n in ranked
    ]
    unsure = heads_where((data["confidence"] < SURE) & data["role"].isin(list(told)))
    note = f" Kept in fewer than half of draws, so that they predict nothing: {named(unsure)}." if unsure else ""
    least = float(data["confidence"].where(data["role"].isin(list(told))).min())
    basis = f"by behaviour alone; the least sure keeps its role in {decimal(100 * least, 0)}% of draws" if told else ""
    step = count(float(data.attrs["step"]))
    text = f"By what they do at step {step}, of {some(len(roles), 'head')} there are: {', '.join(counts)}.{note}"
    return Finding(text, "found" if told else "not found", ANCHOR, basis)


def _without(data: "xr.Dataset") -> list[Finding]:
    missing = [role for role in (INDUCTION, PREVIOUS) if not (data["role"] == role).any()]
    unknown = heads_where(data["role"] == NOT_MEASURED)
    verdict: Verdict = "undecided" if unknown else "not found"
    rest = f", though {some(len(unknown), 'head')} had no role measured" if unknown else ""
    return [Finding(f"No head is called “{role}” by what it does{rest}.", verdict, ANCHOR) for role in missing]


def _witnesses(data: "xr.Dataset") -> Finding:
    """How many heads the three witnesses agree about, and what that rests on."""
    agree, disagree, undecided = (heads_where(data["verdict"] == verdict) for verdict in (AGREE, DISAGREE, UNDECIDED))
    open_ = f" ({named(undecided)})" if undecided else ""
    flagged = f"{some(len(disagree), 'head')} flagged: {named(disagree)}." if disagree else "No head is flagged."
    text = (
        f"What a head does, what its weights and paths say, and how its coefficient grew agree for {some(len(agree), 'head')}, "
        f"disagree for {count(len(disagree))} and leave {count(len(undecided))} undecided{open_}. {flagged}"
    )
    present = heads_where((data["verdict"] == AGREE) & (data["expected"] == THERE).any("prediction"))
    tests = some(int(data.attrs["n_tested"]), "test")
    basis = (
        f"agreeing by what is there: {count(len(present))} ({named(present)}); by the absence of an induction circuit: "
        f"{count(len(agree) - len(present))}; {tests} that could speak against, corrected (Holm)"
    )
    return Finding(text, "not found" if disagree else "found" if agree else "undecided", ANCHOR, basis)


def _flagged(data: "xr.Dataset", head: Head) -> Finding:
    """A head about which the witnesses disagree: who is against, and by which numbers."""
    here = data.sel(layer=head.layer, head=head.head)
    flags = [FLAG_WORDS[flag] for flag in str(here["flag"].values).split(", ")]
    against = here.isel(prediction=np.flatnonzero(here["says"].values == AGAINST))
    tests = [against.isel(prediction=i) for i in range(against.sizes["prediction"])]
    basis = "; ".join(
        f"{test['prediction'].values} was to be {test['expected'].values}: {decimal(float(test['value']))}, corrected p "
        f"{probability(float(test['corrected']))}"
        for test in tests
    )
    return Finding(f"{head} ({here['role'].values}): {listed(flags)}; flagged {here['flag'].values}.", "not found", ANCHOR, basis)


def lags(results: Results) -> list[Finding]:
    """Heads whose coefficient leads or lags their role, those where both come together, and those that cannot tell."""
    if "lags" not in results:
        return [lacking("When coefficients change beside roles", LAGS, ROLES, RLLC)]
    data = results["lags"]
    unit, state = float(data.attrs["unit"]), data["state"]
    measured = state != UNTESTABLE
    later = data["change_high"].copy(data=clock(data["change_high"].values, unit))
    start = (data["change_low"] == 0) & (data["change_high"] <= unit) & (state == CURVE_FIRST)
    undated = (later - data["high"] < 1e-6) & measured
    telling, near = measured & ~start & ~undated, (data["low"] >= -NEAR) & (data["high"] <= NEAR)
    together = (state == TOGETHER) & telling
    furthest = max(float(abs(data[end]).where(together & near).max()) for end in ("low", "high"))
    same = f"Coefficient and role come at the same time, to within {decimal(np.ceil(100 * furthest) / 100, 2)} of a doubling"
    said = [
        _lag(
            data,
            telling & (state == CURVE_FIRST),
            "The coefficient rises before the role emerges (which does not make it the cause)",
            "found",
        ),
        _lag(
            data,
            telling & (state == ROLE_FIRST),
            "The role emerges before the coefficient rises (which does not make it the cause)",
            "found",
        ),
        _lag(data, together & near, same, "found"),
        _lag(data, together & ~near, "Which of the two came first is undecided", "undecided"),
    ]
    return [*filter(None, said), *_silent(data, start & ~undated, undated)]


def _lag(data: "xr.Dataset", where: "xr.DataArray", text: str, verdict: Verdict) -> Finding | None:
    chosen = heads_where(where)
    if not chosen:
        return None
    rows = [data.sel(layer=head.layer, head=head.head) for head in chosen]
    numbers = [f"{head} {within(row)}" for head, row in zip(chosen, rows, strict=True)]
    basis = f"doublings of training by which the coefficient is later: {', '.join(numbers)}"
    return Finding(f"{text}: {named(chosen)}.", verdict, LAGS, basis)


def _silent(data: "xr.Dataset", start: "xr.DataArray", undated: "xr.DataArray") -> list[Finding]:
    """Heads whose lag says nothing of their role, with why."""
    found = []
    if early := heads_where(start):
        first = count(float(data.attrs["unit"]))
        text = (
            f"In {some(len(early), 'head')} ({named(early)}) the coefficient rises most by step {first}, the first checkpoint "
            "after the start, before the role emerged: no sign that it foretells roles."
        )
        found.append(Finding(text, "undecided", LAGS))
    if there := heads_where(undated):
        text = f"When the role of {named(there)} emerged is not known, as it was there by the first checkpoint or the next."
        found.append(Finding(text, "undecided", LAGS))
    return found + _untestable(data)


def _untestable(data: "xr.Dataset") -> list[Finding]:
    reasons: dict[str, list[Head]] = {}
    for head in heads_where(data["state"] == UNTESTABLE):
        reasons.setdefault(str(data["reason"].sel(layer=head.layer, head=head.head).values), []).append(head)
    return [Finding(f"No lag for {named(heads)}: {why}.", "undecided", LAGS) for why, heads in reasons.items()]
