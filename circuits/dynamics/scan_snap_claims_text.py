"""Claims 15 to 19 of Scan & Snap and JoMA on text, judged by sign: the text is the standard library, not WikiText-2.

What is asked of every seed is asked first: a bounce must exceed three of its bootstrap errors, a bias its null's mean. What is
left is a number for each seed whose mean must lie on its side of a bound, by the rules of ``scan_snap_verdicts``.

Source: Tian et al. 2023, figure 10, theorems 2 to 4; Tian et al. 2024 (JoMA), theorems 2 and 3; the bounds are ours.
"""

import numpy as np

from circuits.dynamics.bounce import CLEAR
from circuits.dynamics.scan_snap_claims import Evidence
from circuits.dynamics.scan_snap_verdicts import Check, Claim, sided

RESTORED = 0.2
"""Of a drop: less than so much coming back is no bounce. The pilots behind the claims had .14 without and .4 or more with one."""
VALLEY = 0.02
"""Of its first value that a stable rank must fall and rise by, to be a V."""
UNSEEN = 0.5
"""Of the (Y, Z) model's rank correlation with PMI on the same text, beyond the null's mean: less than so much counts as none."""


def claim_15(evidence: Evidence) -> Claim:
    """Attention's entropy drops and bounces back with a ReLU, and the stable rank of ``W_in`` makes a V."""
    of = evidence.bounced.sel(kind="relu")
    rank = of["stable_rank"]
    first, least, last = rank.isel(step=0), rank.min("step"), rank.isel(step=-1)
    checks = (
        sided("drop of H/ln i less 3 errors of its own", of["drop"] - CLEAR * of["drop_stderr"], "above"),
        sided("bounce of H/ln i less 3 errors of its own", of["bounce"] - CLEAR * of["bounce_stderr"], "above"),
        sided("bounce / drop", of["ratio"], "above", RESTORED),
        sided("fall of the stable rank / first", (first - least) / first, "above", VALLEY),
        sided("rise of the stable rank / first", (last - least) / first, "above", VALLEY),
    )
    return Claim(15, "Text, Adam, ReLU: entropy drops then bounces, the stable rank of W_in makes a V", checks)


def claim_16(evidence: Evidence) -> Claim:
    """Without feed-forward layer and residual stream attention gets sparser and does not bounce, nor with a linear one."""
    last = evidence.bounced["value"].isel(step=-1)
    back = evidence.bounced["bounce"] / evidence.bounced["drop"]
    checks = (
        sided("last H/ln i, bare less ReLU", last.sel(kind="bare") - last.sel(kind="relu"), "below"),
        sided("bounce / drop, bare", back.sel(kind="bare"), "within", RESTORED),
        sided("bounce / drop, linear feed-forward layer", back.sel(kind="linear"), "within", RESTORED),
        sided("bounce / drop, linear less ReLU", back.sel(kind="linear") - back.sel(kind="relu"), "below"),
    )
    return Claim(
        16, "Text, no feed-forward layer and no residual stream: sparser, no bounce; nor with a linear feed-forward layer", checks
    )


def claim_17(evidence: Evidence) -> Claim:
    """The larger SGD's rate, the sparser attention."""
    rates = evidence.text_rates
    last = rates["value"].isel(step=-1).transpose("lr", "seed").values
    lr = np.log(rates["lr"].values)
    slope = (lr - lr.mean()) @ last / ((lr - lr.mean()) ** 2).sum()
    steps = [
        sided(f"last H/ln i, lr {b:g} less lr {a:g}", after - before, "below")
        for a, b, before, after in zip(rates["lr"].values, rates["lr"].values[1:], last, last[1:], strict=False)
    ]
    return Claim(
        17, "Text, SGD: the larger the rate, the sparser", (sided("slope of the last H/ln i in ln lr", slope, "below"), *steps)
    )


def claim_18(evidence: Evidence) -> Claim:
    """The (Y, Z) model learns to look for what co-occurs and for what tells, away from common words, and gets sparser.

    Read in what Z gained: most pairs move by less than the random start.
    """
    pairs = evidence.pairs
    above = (pairs["bias"] - pairs["null_mean"]).sel(stage="gained")
    value = pairs["value"]
    checks = (
        sided("rho(gain of z, PMI) less its null", above.sel(statistic="frequency_pmi"), "above"),
        sided("partial rho(gain of z, D) less its null", above.sel(statistic="discriminative_partial"), "above"),
        sided("gap of common words, sd of the gain", pairs["bias"].sel(stage="gained", statistic="common_gap"), "below"),
        sided("H/ln i, end less start", value.isel(step=-1) - value.isel(step=0), "below"),
    )
    return Claim(
        18, "Text, (Y, Z) model, SGD: frequency bias, discriminative bias, common words suppressed, sparser attention", checks
    )


def claim_19(evidence: Evidence) -> Claim:
    """A null: with embeddings, Q and K no bias towards co-occurring keys is to be seen, and common words gain attention.

    What a bias would look like is said by the (Y, Z) model on the same text and pairs.
    """
    of = {"statistic": "frequency_pmi", "stage": "gained"}
    above, seen = ((runs["bias"] - runs["null_mean"]).sel(of) for runs in (evidence.text_null, evidence.pairs))
    bound = UNSEEN * float(seen.mean())
    lift, kinds = evidence.text_null["value"], evidence.text_null["kind"].values
    checks: list[Check] = [
        sided(f"rho(gain of z, PMI) less its null, {kind}", above.sel(kind=kind), "within", bound) for kind in kinds
    ]
    checks += [
        sided(
            f"lift of ranks 10 to 29 less that of 300 and above, {kind}",
            lift.sel(kind=kind, bin="rank 10+") - lift.sel(kind=kind, bin="rank 300+"),
            "above",
        )
        for kind in kinds
    ]
    return Claim(19, "Text, a null: with embeddings, Q and K no pairwise bias; common words gain attention", tuple(checks))
