"""Verdicts on claims about training runs: what was to come out, what was measured, how small a p was to be had.

A *reading* is what one run says of a quantity: its value, an interval for errors within the run (of examples or draws, or the gap
between two checkpoints), and p with the smallest p there could be, where the run has a null of its own (roles exchanged among its
heads, say). A check lays the readings of all runs against bounds:

    one run         interval: the run's own; a number that has none, such as one of weights, is exact
                    p: of its null; else of a normal error against the bounds. A number with neither is a fact of that run and
                    says nothing of others: its smallest p is 1
    more runs       interval: mean +- t(.975, n - 1) sd / sqrt(n) of the runs' values, or of their logarithms where stated
                    p: where all have nulls, (largest p)^n, the chance that no run of n has a larger one; else of t
    in every run    interval: from the smallest end of the runs' own to the largest; one run that lies outside is enough to fail

    not testable here   the smallest p is above alpha, or the interval reaches across a bound, or no run has the data
    holds               the interval lies within the bounds, and p is at most alpha
    fails               it lies outside; or within, and chance gives as much (p above alpha)

Excluded: a bootstrap over runs. Runs that lack the data are left out and named in the reason.

Sources: t: Student 1908; largest p: Wilkinson 1951; the smallest p: ``circuits.crosscheck.partitions``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["holds", "fails", "not testable here", "reported"]
Role = Literal["claim", "number", "report"]
UNTESTABLE: Verdict = "not testable here"
ALPHA = 0.05


class Lacking(Exception):
    """A run lacks what a claim needs; the message says what, and what would make it."""


@dataclass(frozen=True)
class Reading:
    """What one run says of a quantity.

    Attributes:
        value: the number. low, high: 95% interval for errors within the run; NaN if it is exact. p, least_p: of the run's own
            null, and the smallest there could be; NaN without one. note: what a reader must know of this run.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    least_p: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        quantity: what. expected: the bounds, in words. published: the number of others, with its source; empty without one.
        values: one a run. measured: their mean, or geometric mean. low, high: the interval, of what ``rule`` says.
        p, least_p: of the null, and the smallest there could be. verdict: see the top of this module. role: whether the claim
            rests on it ("claim"), it is a number beside it, or it is reported alone. reason: why it does not hold, and notes of
            runs.
    """

    quantity: str
    expected: str
    published: str
    values: tuple[float, ...]
    measured: float
    low: float
    high: float
    p: float
    least_p: float
    rule: str
    verdict: Verdict
    role: Role = "claim"
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim with a name such as "C8", and its checks.

    Attributes:
        name: in the table that it is from. statement: in one sentence. definition: how its words are read here. control: what
            must not show the same. source: where it was made. checks: what was found.
    """

    name: str
    statement: str
    definition: str
    control: str
    source: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the checks that the claim rests on: fails if one does, else not testable if one is not, else holds."""
        found = [check.verdict for check in self.checks if check.role == "claim"]
        return "fails" if "fails" in found else UNTESTABLE if UNTESTABLE in found or not found else "holds"

    @property
    def least_p(self) -> float:
        """The smallest p that the checks the claim rests on could all have had: that of the least able."""
        return max((check.least_p for check in self.checks if check.role == "claim"), default=1.0)

    @property
    def reason(self) -> str:
        """Why it does not hold: the reasons of the checks it rests on that decided so, each once."""
        told = (f"{check.quantity}: {check.reason}" for check in self.checks if check.role == "claim" and self._decides(check))
        return "; ".join(dict.fromkeys(told))

    def _decides(self, check: Check) -> bool:
        return bool(check.reason) and check.verdict == self.verdict != "holds"


def decide(
    quantity: str,
    readings: Sequence[Reading | Lacking],
    *,
    least: float = -math.inf,
    most: float = math.inf,
    published: str = "",
    log: bool = False,
    every: bool = False,
    alpha: float = ALPHA,
    fewest: int = 1,
    role: Role = "claim",
) -> Check:
    """Lay what runs say of a quantity against bounds.

    Args:
        quantity: what it is called. readings: one a run, or what that run lacks. least, most: the bounds, themselves allowed.
        published: the number of others, with its source. log: take the interval over runs of logarithms. every: the claim is of
        each run, not of their mean. alpha: what p must not exceed. fewest: runs that the claim asks for. role: see ``Check``; a
        report has no verdict.
    """
    found = [one for one in readings if isinstance(one, Reading) and math.isfinite(one.value)]
    middle, ends, p, least_p, rule = math.nan, (math.nan, math.nan), math.nan, 1.0, "no data"
    if found:
        middle, ends, rule = _interval(found, log=log, every=every)
        p, least_p, of = _chance(found, ends, (least, most), log=log, every=every)
        rule = f"{rule}; p {of}"
    expected = "reported" if role == "report" else _bounds(least, most)
    apart = [_ends(one) for one in found] if every else [ends]
    inside, outside = least <= ends[0] and ends[1] <= most, any(high < least or low > most for low, high in apart)
    verdict, why = UNTESTABLE, ""
    if not found:
        lacks = any(isinstance(one, Lacking) for one in readings)
        why = "" if lacks else "it has no value here" if readings else "no run was given"
    elif role == "report":
        pass
    elif len(found) < fewest:
        why = f"{len(found)} of the {fewest} runs or more that the claim is about"
    elif not least_p <= alpha:
        seen = "as claimed" if inside else "not as claimed" if outside else "undecided"
        why = f"the smallest p to be had is {least_p:.2g}; in what there is it is {seen}"
    elif outside:
        verdict, why = "fails", f"{middle:.3g} is not {expected}"
    elif not inside:
        why = f"the interval, {ends[0]:.3g} to {ends[1]:.3g}, leaves open whether it is {expected}"
    elif p > alpha:
        verdict, why = "fails", f"it is {expected}, but chance gives as much: p = {p:.2g}"
    else:
        verdict = "holds"
    told = [why, *(one.note for one in found), *(str(one) for one in readings if isinstance(one, Lacking))]
    return Check(
        quantity,
        expected,
        published,
        tuple(one.value for one in found),
        middle,
        *ends,
        p,
        least_p,
        rule,
        "reported" if role == "report" else verdict,
        role,
        "; ".join(dict.fromkeys(filter(None, told))),
    )


def to_dataframe(claims: Sequence[Claim]) -> "pd.DataFrame":
    """A row for every check: name and statement of its claim, and every attribute of ``Check``."""
    import pandas as pd

    rows = [{"claim": claim.name, "statement": claim.statement} | vars(check) for claim in claims for check in claim.checks]
    return pd.DataFrame(rows)


def summary(claims: Sequence[Claim]) -> "pd.DataFrame":
    """A row for every claim: name, statement, verdict, the smallest p it could have had, its control, and why."""
    import pandas as pd

    names = ["name", "statement", "verdict", "least_p", "control", "reason"]
    return pd.DataFrame([[getattr(claim, name) for name in names] for claim in claims], columns=["claim", *names[1:]])


def _ends(one: Reading) -> tuple[float, float]:
    """A run's own interval; an exact number is its own."""
    return (one.value, one.value) if math.isnan(one.low) else (one.low, one.high)


def _interval(found: Sequence[Reading], *, log: bool, every: bool) -> tuple[float, tuple[float, float], str]:
    """The middle, the interval, and what it is of."""
    from scipy.special import stdtrit

    ends, values = [_ends(one) for one in found], np.array([one.value for one in found])
    if len(found) == 1:
        return found[0].value, ends[0], "exact in one run" if math.isnan(found[0].low) else "errors within one run"
    if every:
        return float(values.mean()), (min(low for low, _ in ends), max(high for _, high in ends)), "every run"
    scale = np.log(np.maximum(values, 1e-12)) if log else values
    reach = float(stdtrit(len(scale) - 1, 0.975)) * scale.std(ddof=1) / math.sqrt(len(scale))
    both = np.array([scale.mean() - reach, scale.mean(), scale.mean() + reach])
    low, middle, high = (np.exp(both) if log else both).tolist()
    return middle, (low, high), f"t interval over {len(scale)} runs{' of logarithms' if log else ''}"


def _chance(
    found: Sequence[Reading], ends: tuple[float, float], bounds: tuple[float, float], *, log: bool, every: bool
) -> tuple[float, float, str]:
    """p, the smallest p there could be, and what they are of."""
    from scipy.special import stdtr

    n = len(found)
    if not any(math.isnan(one.least_p) for one in found):
        p, least_p = (max(x) ** n for x in ([one.p for one in found], [one.least_p for one in found]))
        return p, least_p, "of the run's null" if n == 1 else f"the largest of {n} runs' to the power {n}"
    exact = any(math.isnan(one.low) for one in found)
    if (n == 1 or every) and exact:
        return math.nan, 1.0, "none: there is no null within a run"
    if every:
        each = [_chance([one], (one.low, one.high), bounds, log=False, every=False)[0] for one in found]
        return max(each) ** n, 0.0, f"of normal errors, the largest of {n} runs' to the power {n}"
    if n == 1:
        middle, error = found[0].value, (ends[1] - ends[0]) / (2 * NormalDist().inv_cdf(0.975))
        tails = [_upper(side, error, NormalDist().cdf) for side in (middle - bounds[0], bounds[1] - middle)]
        return max(tails), 0.0, "of a normal error"
    values = np.log(np.maximum([one.value for one in found], 1e-12)) if log else np.array([one.value for one in found])
    edge = [math.log(bound) if log and bound > 0 else -math.inf if log else bound for bound in bounds]
    error = float(values.std(ddof=1)) / math.sqrt(n)
    sides = (float(values.mean()) - edge[0], edge[1] - float(values.mean()))
    return max(_upper(side, error, lambda x: float(stdtr(n - 1, x))) for side in sides), 0.0, f"of t over {n} runs"


def _upper(side: float, error: float, cdf: Callable[[float], float]) -> float:
    """The chance of lying as far on the right side of a bound by an error alone."""
    if math.isinf(side):
        return 0.0
    return float(cdf(-side / error)) if error > 0 else float(side < 0)


def _bounds(least: float, most: float) -> str:
    if math.isinf(least):
        return f"<= {most:.3g}"
    return f">= {least:.3g}" if math.isinf(most) else f"{least:.3g} to {most:.3g}"
