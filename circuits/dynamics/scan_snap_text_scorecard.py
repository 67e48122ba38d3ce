"""Claims 15 to 19 of Scan & Snap and JoMA on text, judged by sign: the text is the standard library, not WikiText-2.

A claim is one or more *parts*, each a number for every seed that must lie above a bound, below it, or within it of 0. With ``m``
the mean over seeds and ``w`` the half-width of its one-sided 95% t interval over seeds,

    above b    m - w > b: so     m + w < b: not so     else the seeds do not tell          below: the mirror image
    within b   |m| + w < b: so   |m| - w > b: not so   else the seeds do not tell

A claim holds if every part is so, fails if one is not so, and is not testable here otherwise, as it is with a single seed or a
run that diverged. The interval takes seeds to be normal; a sign test on three reaches p = .125 at best and would never decide.
What a single seed can be asked beside, it is: a bounce must exceed three of its bootstrap errors, a bias its null's mean.

Source: Tian et al. 2023, figure 10, theorems 2 to 4; Tian et al. 2024 (JoMA), theorems 2 and 3; the bounds are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.stats import t as student

from circuits.dynamics.bounce import CLEAR
from circuits.dynamics.scan_snap_text_experiments import text_bounce, text_rates
from circuits.dynamics.scan_snap_text_model import Text, stdlib_words
from circuits.dynamics.scan_snap_text_pairs import PairReader, PairRuns, text_null

if TYPE_CHECKING:
    import xarray as xr

Verdict = Literal["holds", "fails", "not testable here"]
LEVEL = 0.95
RESTORED = 0.2
"""Of a drop: less than so much coming back is no bounce. The pilots behind the claims had .14 without and .4 or more with one."""
VALLEY = 0.02
"""Of its first value that a stable rank must fall and rise by, to be a V."""
UNSEEN = 0.5
"""Of the (Y, Z) model's rank correlation with PMI on the same text, beyond the null's mean: less than so much counts as none."""


@dataclass(frozen=True)
class Part:
    """What a claim says of one number.

    Attributes:
        quantity: what. values: one a seed. side, bound: on which side of the bound they must lie; "within": of 0.
    """

    quantity: str
    values: tuple[float, ...]
    side: Literal["above", "below", "within"]
    bound: float = 0.0

    def judge(self) -> Verdict:
        """By the rule at the top of this module."""
        values = np.array(self.values)
        if len(values) < 2 or not np.isfinite(values).all():
            return "not testable here"
        mean = values.mean()
        wide = student.ppf(LEVEL, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        if self.side == "within":
            mean, side = abs(mean), -1.0
        else:
            side = 1.0 if self.side == "above" else -1.0
        beyond = side * (mean - self.bound)
        return "holds" if beyond > wide else "fails" if -beyond > wide else "not testable here"

    def __str__(self) -> str:
        values = np.array(self.values)
        spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        return f"{self.quantity} {values.mean():.3f}{spread} ({self.judge()})"


@dataclass(frozen=True)
class Claim:
    """A numbered claim, as judged.

    Attributes:
        number: in the project's table of claims. statement: what is claimed. expected: of each part, in words. measured: each
        part's mean and standard deviation over seeds, and its verdict. verdict: of all. rule: by which.
    """

    number: int
    statement: str
    expected: str
    measured: str
    verdict: Verdict
    rule: str


def judged(number: int, statement: str, parts: Sequence[Part]) -> Claim:
    """A claim from its parts; the rule stands at the top of this module."""
    found = [part.judge() for part in parts]
    verdict: Verdict = "fails" if "fails" in found else "not testable here" if "not testable here" in found else "holds"
    expected = "; ".join(f"{part.quantity} {part.side} {part.bound:.3g}" for part in parts)
    seeds = len(parts[0].values)
    rule = f"one-sided {LEVEL:.0%} t interval over {seeds} seed{'s' * (seeds != 1)}, every part"
    return Claim(number, statement, expected, "; ".join(map(str, parts)), verdict, rule)


def claim_15(bounced: "xr.Dataset") -> Claim:
    """Attention's entropy drops and bounces back with a ReLU, and the stable rank of ``W_in`` makes a V.

    Args:
        bounced: of ``text_bounce``, with kind "relu".
    """
    of = bounced.sel(kind="relu")
    rank = of["stable_rank"]
    first, least, last = rank.isel(step=0), rank.min("step"), rank.isel(step=-1)
    parts = [
        Part("drop of H/ln i less 3 errors", _seeds(of["drop"] - CLEAR * of["drop_stderr"]), "above"),
        Part("bounce less 3 errors", _seeds(of["bounce"] - CLEAR * of["bounce_stderr"]), "above"),
        Part("bounce / drop", _seeds(of["ratio"]), "above", RESTORED),
        Part("fall of stable rank / first", _seeds((first - least) / first), "above", VALLEY),
        Part("rise of stable rank / first", _seeds((last - least) / first), "above", VALLEY),
    ]
    return judged(15, "ReLU feed-forward, Adam: H/ln i drops then bounces, stable rank of W_in makes a V", parts)


def claim_16(bounced: "xr.Dataset") -> Claim:
    """Without feed-forward layer and residual stream attention gets sparser and does not bounce, nor with a linear one.

    Args:
        bounced: of ``text_bounce``, with all three kinds.
    """
    last = bounced["value"].isel(step=-1)
    bare, linear = bounced.sel(kind="bare"), bounced.sel(kind="linear")
    parts = [
        Part("last H/ln i, bare less ReLU", _seeds(last.sel(kind="bare") - last.sel(kind="relu")), "below"),
        Part("bounce / drop, bare", _seeds(bare["bounce"] / bare["drop"]), "within", RESTORED),
        Part("bounce / drop, linear", _seeds(linear["bounce"] / linear["drop"]), "within", RESTORED),
    ]
    return judged(16, "no feed-forward and no residual: sparser, no bounce; linear feed-forward: no bounce", parts)


def claim_17(rates: "xr.Dataset") -> Claim:
    """The larger SGD's rate, the sparser attention.

    Args:
        rates: of ``text_rates``.
    """
    last = rates["value"].isel(step=-1).transpose("lr", "seed").values
    lr = np.log(rates["lr"].values)
    slope = (lr - lr.mean()) @ last / ((lr - lr.mean()) ** 2).sum()
    steps = [
        Part(f"H/ln i, lr {b:g} less {a:g}", tuple(low - high), "below")
        for a, b, high, low in zip(rates["lr"].values, rates["lr"].values[1:], last, last[1:], strict=False)
    ]
    return judged(17, "SGD: the larger the rate, the sparser", [Part("slope of H/ln i in ln lr", tuple(slope), "below"), *steps])


def claim_18(pairs: "xr.Dataset") -> Claim:
    """The (Y, Z) model learns to look for what co-occurs and for what tells, away from common words, and gets sparser.

    Args:
        pairs: of ``PairRuns``, read in what Z gained: most pairs move by less than the random start.
    """
    above = (pairs["bias"] - pairs["null_mean"]).sel(stage="gained")
    value = pairs["value"]
    parts = [
        Part("rho(gain of z, PMI) less null", _seeds(above.sel(statistic="frequency_pmi")), "above"),
        Part("partial rho(gain of z, D) less null", _seeds(above.sel(statistic="discriminative_partial")), "above"),
        Part("common gap, sd", _seeds(pairs["bias"].sel(stage="gained", statistic="common_gap")), "below"),
        Part("H/ln i, end less start", _seeds(value.isel(step=-1) - value.isel(step=0)), "below"),
    ]
    return judged(18, "(Y, Z) model, SGD: frequency bias, discriminative bias, common words suppressed, sparser", parts)


def claim_19(null: "xr.Dataset", pairs: "xr.Dataset") -> Claim:
    """A null: with embeddings, Q and K no bias towards co-occurring keys is to be seen, and common words gain attention.

    Args:
        null: of ``text_null``. pairs: of ``PairRuns`` on the same text and pairs, which says how large a bias could be seen.
    """
    of = {"statistic": "frequency_pmi", "stage": "gained"}
    above, seen = ((runs["bias"] - runs["null_mean"]).sel(of) for runs in (null, pairs))
    bound = UNSEEN * float(seen.mean())
    lift = null["value"]
    parts = [
        Part(f"rho(gain of z, PMI) less null, {kind}", _seeds(above.sel(kind=kind)), "within", bound)
        for kind in null["kind"].values
    ]
    parts += [
        Part(
            f"lift of rank 10-29 less rank 300+, {kind}",
            _seeds(lift.sel(kind=kind, bin="rank 10+") - lift.sel(kind=kind, bin="rank 300+")),
            "above",
        )
        for kind in null["kind"].values
    ]
    return judged(19, "null: with embeddings, Q and K no pairwise bias; common words gain attention", parts)


def text_scorecard(
    text: Text | None = None, *, seeds: tuple[int, ...] = (0, 1, 2), share: float = 1.0, progress: bool | None = None
) -> list[Claim]:
    """Run and judge claims 15 to 19.

    Args:
        text: default ``stdlib_words()``. seeds: of every run. share: of the steps that each experiment takes by default; below 1
            training has less time than the claims are about. progress: show bars.

    Raises:
        ValueError: a share that is not in (0, 1], or as the experiments.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}; need a part of the steps above 0, and 1 for all of them")
    text = stdlib_words() if text is None else text
    steps = {name: max(64, round(share * n)) for name, n in {"bounce": 800, "rates": 800, "pairs": 700, "null": 1000}.items()}
    common: dict[str, Any] = {"seeds": seeds, "progress": progress}
    reader = PairReader(text)
    bounced = text_bounce(text, steps=steps["bounce"], **common)
    rates = text_rates(text, steps=steps["rates"], **common)
    pairs = PairRuns(text, seeds=seeds, steps=steps["pairs"]).run(reader, progress=progress)
    null = text_null(text, steps=steps["null"], reader=reader, **common)
    return [claim_15(bounced), claim_16(bounced), claim_17(rates), claim_18(pairs), claim_19(null, pairs)]


def _seeds(values: "xr.DataArray") -> tuple[float, ...]:
    """Numbers by seed."""
    return tuple(float(x) for x in values.values)
