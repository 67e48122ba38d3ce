"""Verdicts: a claim, what was expected, what was measured, and by which rule it holds.

    near       |mean - expected| <= the larger of a stated tolerance and 3 standard errors of the difference
    within     every value lies in a stated interval
    ordered    every mean difference is above 0 by 3 standard errors; below it by as many: fails; else not testable here
    sided      the same of one number's distance to a bound that it must lie above, below, or within of 0

The rule stands beside its verdict. A check is of the *claim* itself or of a *number* that somebody else measured; a claim holds
if all checks of the claim do, and its numbers are counted beside it. A sign test on ``n`` seeds reaches ``p = 2^-n`` at best:
below 5 seeds that is above .05, and no order is testable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["holds", "fails", "not testable here"]
Role = Literal["claim", "number"]
ERRORS = 3.0
"""Standard errors that a difference must exceed to be one."""
ROUNDING = 1e-9
"""Of a difference that lies on the edge of what is allowed."""
SEEDS = 5
"""The fewest whose sign test can reach .05."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        quantity: what. expected: in words. measured: mean over seeds, or of several values the one that decides. stderr: over
            seeds; NaN without noise. least_p: the smallest that a sign test over seeds could reach; NaN without noise. rule: by
            which the verdict was found. role: whether the claim rests on it.
    """

    quantity: str
    expected: str
    measured: float
    stderr: float
    least_p: float
    rule: str
    verdict: Verdict
    role: Role = "claim"


@dataclass(frozen=True)
class Claim:
    """A numbered claim and its checks."""

    number: int
    statement: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the checks that the claim rests on: fails if one does, else not testable if one is not, else holds."""
        found = [check.verdict for check in self.checks if check.role == "claim"]
        return "fails" if "fails" in found else "not testable here" if "not testable here" in found or not found else "holds"

    @property
    def numbers(self) -> str:
        """How many of the numbers that others measured came out: ``"3 of 4"``; empty without any."""
        found = [check.verdict == "holds" for check in self.checks if check.role == "number"]
        return f"{sum(found)} of {len(found)}" if found else ""


@dataclass(frozen=True)
class Scorecard:
    """Claims with their verdicts."""

    claims: tuple[Claim, ...]

    def to_dataframe(self) -> "pd.DataFrame":
        """A row for every check: the claim's number and statement, and every attribute of ``Check``."""
        import pandas as pd

        rows = [
            {"claim": claim.number, "statement": claim.statement} | vars(check) for claim in self.claims for check in claim.checks
        ]
        return pd.DataFrame(rows)

    def summary(self) -> "pd.DataFrame":
        """A row for every claim: its number, statement, verdict, and how many numbers of others came out."""
        import pandas as pd

        rows = [[claim.number, claim.statement, claim.verdict, claim.numbers] for claim in self.claims]
        return pd.DataFrame(rows, columns=["claim", "statement", "verdict", "numbers"])

    def to_markdown(self) -> str:
        """Both tables as Markdown: claims, then checks."""
        wanted = ["claim", "role", "quantity", "expected", "measured", "stderr", "verdict", "rule"]
        return f"{markdown_table(self.summary())}\n\n{markdown_table(self.to_dataframe().reindex(columns=wanted))}\n"


def near(
    quantity: str,
    values: Any,
    expected: float,
    tolerance: float,
    *,
    expected_stderr: float | None = None,
    role: Role = "number",
) -> Check:
    """Whether a mean is the expected number.

    Args:
        values: one a seed, or a single number without noise. tolerance: stated by the source, such as its last digit.
        expected_stderr: of the expected number; None: taken to be as large as ours.
    """
    samples = np.atleast_1d(np.asarray(values, dtype=float))
    mean, error = float(samples.mean()), _stderr(samples)
    both = 0.0 if math.isnan(error) else ERRORS * math.hypot(error, error if expected_stderr is None else expected_stderr)
    allowed = max(tolerance, both)
    rule = f"|difference| <= {allowed:.2g}: " + (
        "stated tolerance" if tolerance >= both else "3 standard errors of the difference"
    )
    verdict: Verdict = "holds" if abs(mean - expected) <= allowed * (1 + ROUNDING) else "fails"
    return Check(quantity, f"{expected:.5g}", mean, error, math.nan, rule, verdict, role)


def within(quantity: str, values: Any, low: float, high: float, *, why: str = "stated interval", role: Role = "claim") -> Check:
    """Whether every value lies in ``[low, high]``; the one farthest out, or nearest to an end, is shown."""
    flat = np.ravel(np.asarray(values, dtype=float))
    inside = np.minimum(flat - low, high - flat)
    worst = int(np.argmin(np.where(np.isnan(inside), -math.inf, inside)))
    verdict: Verdict = "holds" if bool((inside >= 0).all()) else "fails"
    return Check(quantity, _interval(low, high), float(flat[worst]), math.nan, math.nan, f"every value: {why}", verdict, role)


def ordered(quantity: str, differences: Any, expected: str = "> 0", *, least: float = ERRORS, role: Role = "claim") -> Check:
    """Whether every difference is positive, given seed by seed.

    Args:
        differences: ``[seed]`` or ``[seed, comparison]``. least: standard errors that each must exceed; ``-ERRORS``: none may be
            negative by more.
    """
    samples = np.asarray(differences, dtype=float).reshape(len(differences), -1)
    count, mean = len(samples), samples.mean(0)
    error = samples.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full_like(mean, math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        in_errors = np.where(mean == 0, 0.0, mean / error)
    worst = int(np.argmin(np.where(np.isnan(in_errors), -math.inf, in_errors)))
    if count < SEEDS or np.isnan(in_errors).any():
        verdict: Verdict = "not testable here"
    elif (in_errors < -ERRORS).any():
        verdict = "fails"
    else:
        verdict = "holds" if bool((in_errors > least).all()) else "not testable here"
    means = "the mean" if len(mean) == 1 else f"each of {len(mean)} means"
    rule = f"{means} above {least:g} standard errors of {count} seeds"
    return Check(quantity, expected, float(mean[worst]), float(error[worst]), 0.5**count, rule, verdict, role)


def sided(
    quantity: str, values: Any, side: Literal["above", "below", "within"], bound: float = 0.0, *, role: Role = "claim"
) -> Check:
    """Whether a mean lies above a bound, below it, or ``within`` it of 0 (on both sides), by ``ordered``'s errors and seeds.

    Args:
        values: one a seed; NaN, as of a run that diverged, decides nothing.
    """
    samples = np.asarray(values, dtype=float)
    room = {"above": [samples - bound], "below": [bound - samples], "within": [bound - samples, bound + samples]}[side]
    expected = {"above": f"> {bound:.3g}", "below": f"< {bound:.3g}", "within": f"within ± {bound:.3g}"}[side]
    found = ordered(quantity, np.stack(room, 1), expected, role=role)
    rule = f"the mean {expected} by {ERRORS:g} standard errors of {len(samples)} seeds"
    return replace(found, measured=float(samples.mean()), rule=rule)


def _stderr(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.nan


def _interval(low: float, high: float) -> str:
    if math.isinf(high):
        return f">= {low:.4g}"
    return f"<= {high:.4g}" if math.isinf(low) else f"{low:.4g} to {high:.4g}"


def markdown_table(frame: "pd.DataFrame") -> str:
    """A data frame in Markdown, numbers to four digits, NaN empty."""

    def row(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(_cell(cell) for cell in cells)} |"

    head = [row(list(frame.columns)), row(["---"] * len(frame.columns))]
    return "\n".join([*head, *(row(list(values)) for values in frame.itertuples(index=False))])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value).replace("|", "\\|")
