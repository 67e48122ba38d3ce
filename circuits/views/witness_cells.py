"""Cells of the table of witnesses: predictions, how a coefficient stands to its nulls, the lag, and what is against or open.

A lag says nothing of a role where it is

    undated        the role was there at the first checkpoint that tells, or was by the next
    at the start   the coefficient rises most between step 0 and the first checkpoint after it, as any may
    too wide       the interval holds 0 and reaches more than ``WIDTH`` of ``circuits.crosscheck.timing`` to either side

A coefficient is above or below a null if they differ by more than ``ERRORS`` standard errors, those of both taken as independent.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.crosscheck.agreement import AGAINST, AGREE, CURVE, DISAGREE, FOR, NONE, THERE, UNDECIDED, WEIGHTS
from circuits.crosscheck.timing import STATES, WIDTH, clock
from circuits.crosscheck.witnesses import ERRORS
from circuits.models.heads import Head
from circuits.views.cells import TWO_LINES, at
from circuits.views.finding import within
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, probability, with_error
from circuits.views.sections import Results

if TYPE_CHECKING:
    import xarray as xr

SIGNS = {AGREE: "✓", DISAGREE: "✗", FOR: "✓", AGAINST: "✗", UNDECIDED: "?"}
WORDS = {
    "k_composition_from": "K-composition from",
    "key_edge_from": "key edge from",
    "ov_copying": "copying (value)",
    "k_term_copying": "copying (K-term)",
    "k_composition_into": "K-composition into",
    "key_edge_into": "key edge into",
    "rllc_rise": "rise over",
}
SCALED = {"local_estimate": "closed form", "noise_loss": "noise null"}
"""Nulls on the coefficient's scale: what each alone predicts it to be."""
LEAST_P = 1e-12
"""Below it a p says nothing that the assumptions behind it bear out."""
TOGETHER, CURVE_FIRST, _, UNTESTABLE = STATES


def head_link(head: Head) -> Markup:
    """A head's name, leading to what is known of it."""
    return Markup('<a href="#head-{0}"><b>{0}</b></a>').format(head)


def at_end(data: "xr.Dataset") -> "xr.Dataset":
    """A result at the last checkpoint that has data; its own where it has one alone."""
    if "step" not in data.dims:
        return data
    return data.sel(step=last_measured(data)) if "status" in data else data.isel(step=-1)


def tiny(p: float, smallest: float = math.nan) -> str:
    """A p; one too small to be believed as a number is below ``LEAST_P``."""
    return f"<{probability(LEAST_P)}" if p < LEAST_P else probability(p, smallest)


def predicted(here: "xr.Dataset", witness: str) -> list[Markup]:
    """A line for each prediction of a witness about a head."""
    names = here["prediction"].values[here["witness"].values == witness]
    tests = [here.sel(prediction=name) for name in names]
    return [_line(test) for test in tests if str(test["says"].values)]


def _line(test: "xr.Dataset") -> Markup:
    """``✓ key edge from L0H6: 7.749 ± 0.237 nats, p 3e−8``; ``no`` before what was to be none."""
    says, expected, reason = (str(test[name].values) for name in ("says", "expected", "reason"))
    known = f": {number(test)}" if np.isfinite(float(test["value"])) else ""
    p_less = float(test["p_less"])
    more = f", p½ {tiny(p_less)}" if np.isfinite(p_less) and known and (expected == NONE or says == AGAINST) else ""
    why = f" ({reason})" if reason else ""
    return Markup("{} {}{}{}{}{}").format(SIGNS[says], "no " if expected == NONE else "", what(test), known, more, why)


def what(test: "xr.Dataset") -> str:
    """``key edge from L0H6``; without a partner ``key edge``."""
    words, partner = WORDS[str(test["prediction"].values)], str(test["partner"].values)
    return f"{words} {partner}" if partner else words.removesuffix(" from").removesuffix(" into").removesuffix(" over")


def number(test: "xr.Dataset") -> str:
    """The effect with its error and p of no effect."""
    value, stderr, p, smallest = (float(test[name]) for name in ("value", "stderr", "p", "smallest_p"))
    unit = " nats" if str(test["prediction"].values).startswith("key_edge") else ""
    return f"{with_error(value, stderr) if np.isfinite(stderr) else decimal(value)}{unit}, p {tiny(p, smallest)}"


def standing_text(results: Results, curve: str, head: Head) -> Markup | None:
    """The coefficient at the end, and whether it is above or below what its nulls on that scale predict."""
    if curve not in results:
        return None
    end = at_end(results[curve])
    here, nulls = at(end, head), results.get(f"nulls_{curve.removeprefix('rllc_')}")
    value, stderr = float(here["value"]), float(here["stderr"])
    state = str(here["state"].values) if "state" in here else "ok"
    said = [f"rLLC {with_error(value, stderr)} at step {count(int(end['step']))}{'' if state == 'ok' else f' ({state})'}"]
    for kind, null, error in scaled_nulls(nulls, head, int(end["step"])):
        gap = (value - null) / math.hypot(stderr, error)
        stands = "above" if gap > ERRORS else "below" if gap < -ERRORS else "within error" if math.isfinite(gap) else "not known"
        said.append(f"{SCALED[kind]} {with_error(null, error)} ({stands})")
    return Markup("<small>{}</small>").format("; ".join(said))


def scaled_nulls(nulls: "xr.Dataset | None", head: Head, step: int) -> list[tuple[str, float, float]]:
    """Kind, value and error of the nulls on the coefficient's scale at a step; none where that was not measured."""
    if nulls is None or step not in nulls["step"].values:
        return []
    here = at(nulls.sel(step=step), head)
    kinds = [kind for kind in SCALED if kind in here["kind"].values]
    return [(kind, float(here["as_llc"].sel(kind=kind)), float(here["as_llc_stderr"].sel(kind=kind))) for kind in kinds]


def lag_cell(lag: "xr.Dataset", unit: float) -> Markup:
    """The lag with its interval, when role and curve changed, and whether that says anything of the role."""
    state = str(lag["state"].values)
    if state == UNTESTABLE:
        return TWO_LINES.format(state, str(lag["reason"].values))
    low, high, change_low, change_high = (float(lag[name]) for name in ("low", "high", "change_low", "change_high"))
    had, before = _step(change_low, low, unit), _step(change_high, high, unit)
    beside = (
        f"role emerged {count(before)}–{count(had)}, curve changed {count(float(lag['change']))} ({count(change_low)} to "
        f"{count(change_high)})"
    )
    if before < 0.5:
        state += " (undated)"
    elif change_low == 0 and change_high <= unit and state == CURVE_FIRST:
        state += " (at the start)"
    elif state == TOGETHER and max(-low, high) > WIDTH:
        state += " (too wide to tell)"
    return TWO_LINES.format(f"{state}: {within(lag)}", beside)


def _step(changed: float, gap: float, unit: float) -> float:
    """The step so many doublings before a change; a role is known by its lag alone."""
    return unit * (2 ** (float(clock(np.array([changed]), unit)[0]) - gap) - 1)


def contradiction(here: "xr.Dataset") -> Markup | str:
    """Who speaks against the role and by what, or which witness leaves it open and why."""
    verdict, role = str(here["verdict"].values), str(here["role"].values)
    if verdict == AGREE:
        return "–"
    tests = [here.isel(prediction=i) for i in range(here.sizes["prediction"])]
    if verdict == DISAGREE:
        said = [_against(tests, expected) for expected in (THERE, NONE)]
        return Markup("<b>{}</b>: called {}, {}").format(str(here["flag"].values), role, "; ".join(filter(None, said)))
    return "; ".join(f"{witness}: {_open(tests, witness)}" for witness in (WEIGHTS, CURVE) if not _is_for(tests, witness))


def _against(tests: "list[xr.Dataset]", expected: str) -> str:
    """``was to be there, and is missing: rise over steps 4-8 to 16-32 (corrected p 0.003)``."""
    against = [test for test in tests if (str(test["says"].values), str(test["expected"].values)) == (AGAINST, expected)]
    named = ", ".join(f"{what(test)} (corrected p {tiny(float(test['corrected']))})" for test in against)
    return f"was to be {expected}, and is {'there' if expected == NONE else 'missing'}: {named}" if against else ""


def _is_for(tests: "list[xr.Dataset]", witness: str) -> bool:
    return any(str(test["says"].values) == FOR for test in tests if str(test["witness"].values) == witness)


def _open(tests: "list[xr.Dataset]", witness: str) -> str:
    """Why a witness has nothing for a role."""
    reasons = [str(test["reason"].values) for test in tests if str(test["witness"].values) == witness]
    return ", ".join(dict.fromkeys(filter(None, reasons))) or "the role predicts nothing of it"
