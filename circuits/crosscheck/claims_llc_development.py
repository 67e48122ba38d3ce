"""Claims C5 to C7: in which order things happen while a two-layer model trains, and how its whole coefficient goes.

    order, by chance      four events in a random order are in the one claimed with probability 1/24
    nearness, by chance   one event anywhere in log time: within a share x of the other's time with probability
                          log((1 + x) / (1 - x)) / log(1 + T), T the last step
    change over a span    LLC(t) / LLC(s) - 1; errors of two checkpoints count as independent, and as they share their randomness
                          the error is less. That of the flattest span is widened, by Bonferroni, for the spans it was chosen from

Times and stages: ``circuits.crosscheck.claims_llc_times``.

Source of claims and of published numbers: Wang et al. 2024 and the series that its authors published with Hoogland et al. 2024
(model L2W256, seed 1, 501 checkpoints of 50,000 steps).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from circuits.crosscheck.claims_llc_reading import attention, each, result, text_in
from circuits.crosscheck.claims_llc_statistics import Z
from circuits.crosscheck.claims_llc_times import (
    HALF,
    When,
    bigram_minimum,
    crossing,
    first_head,
    half_maximum,
    risen,
    stages,
    whole,
)
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import ALPHA, Claim, Lacking, Reading, decide

SERIES = "authors' series of L2W256"
TAUGHT = "in the shipped runs induction was taught, by repeats put into the training data"
POSITIONS = 0.1
"""Nats that position embeddings are worth when they count as used."""
NEAR = 0.2
PLATEAU = 0.01
"""Share of the coefficient by which a plateau may rise."""


def claim_c5(runs: Sequence[Evidence]) -> Claim:
    """The order of events."""
    return Claim(
        "C5",
        f"Bigrams, then positions, then attention to the previous token, then induction ({TAUGHT}).",
        f"In every run the minimum of the cross-entropy to bigrams, the loss without positions {POSITIONS} nats above that "
        "with them, and the half-maxima of the first previous-token head in layer 0 and of the first induction head in layer "
        "1 come in this order. Events between the same checkpoints have none.",
        "Four events in a random order.",
        "Hoogland et al. 2024, section 4; Wang et al. 2024, section 4",
        (
            decide(
                "events in the claimed order",
                each(runs, _order),
                least=1.0,
                published=f"700, 1.3k, 11.3k to 11.9k, 13.8k to 14.5k ({SERIES})",
                every=True,
            ),
        ),
    )


def claim_c6(runs: Sequence[Evidence]) -> Claim:
    """In-context learning and induction."""
    return Claim(
        "C6",
        f"Loss falls along the context when induction heads form ({TAUGHT}).",
        "The half-rise of early less late loss on text, and the half-maximum of the induction heads' mean attention to induction "
        f"targets, are within {NEAR:.0%} of the latter. The gain from an exact repeat of random tokens is reported beside.",
        "An event anywhere in log time.",
        "Olsson et al. 2022, argument 1; Wang et al. 2024, section 4",
        (
            decide(
                "time of in-context learning over that of induction, less 1",
                each(runs, partial(_together, _in_context)),
                least=-NEAR,
                most=NEAR,
                published=f"-0.14, by these definitions ({SERIES})",
            ),
            decide("the same for the gain from a repeat", each(runs, partial(_together, _repeats)), role="report"),
        ),
    )


def claim_c7(runs: Sequence[Evidence]) -> Claim:
    """Stages of the whole model's coefficient."""
    published = ("+0.21", "+0.15", "-0.01: -1.6 of 172", "+0.05")
    bounds = ((0.0, math.inf), (0.0, math.inf), (-math.inf, PLATEAU), (0.0, math.inf))
    return Claim(
        "C7",
        f"The whole model's coefficient rises while bigrams, n-grams and induction are learned, and pauses before ({TAUGHT}).",
        f"It rises in LM1, LM2 and LM4, and in LM3, the flattest span before induction's half-maximum, by {PLATEAU:.0%} at "
        "most. The pause of the reference would need an error of 0.3% to be seen; here the interval decides.",
        "The pause: a coefficient that grows steadily has none.",
        "Hoogland et al. 2024, section 4; Wang et al. 2024, section 4",
        tuple(
            decide(
                f"relative change of the coefficient in LM{stage + 1}",
                each(runs, partial(_change, stage)),
                least=bounds[stage][0],
                most=bounds[stage][1],
                published=f"{published[stage]} ({SERIES}, their stages)",
            )
            for stage in range(4)
        ),
    )


def _order(run: Evidence) -> Reading:
    data = result(run, "position_ablation")
    value = data["value"].sel(corpus=text_in(data), kind="zero").values.astype(np.float64)
    if not np.isfinite(value).all():
        raise Lacking("it has no position embedding to take out")
    if value.max() < POSITIONS:
        raise Lacking(f"taking positions out never costs {POSITIONS} nats")
    events = (
        bigram_minimum(run),
        crossing(data["step"].values.astype(float), value, POSITIONS),
        first_head(run, "previous_token", "previous token", half_maximum, "L0"),
        first_head(run, "induction", "induction", half_maximum, "L1"),
    )
    certain = all(a.at <= b.before for a, b in pairwise(events))
    against = any(b.at <= a.before for a, b in pairwise(events))
    value = float(all(a.point < b.point for a, b in pairwise(events)))
    told = ", ".join(f"{event.before:g} to {event.at:g}" for event in events)
    chance = 1 / math.factorial(len(events))
    note = f"{run.run}: bigrams, positions, previous token, induction at {told}"
    return Reading(value, float(certain), float(not against), chance if value else 1.0, chance, note)


def _in_context(run: Evidence) -> When:
    data = result(run, "loss_curves")
    score = data["in_context_learning_score"].sel(corpus=text_in(data)).values.astype(np.float64)
    return risen(data["step"].values.astype(float), -score, HALF)


def _repeats(run: Evidence) -> When:
    data = result(run, "repeat_loss")
    return risen(data["step"].values.astype(float), data["value"].values.astype(np.float64), HALF)


def _together(read: Callable[[Evidence], When], run: Evidence) -> Reading:
    ours = read(run)
    steps, curves = attention(run, "induction", "induction")
    theirs = half_maximum(steps, curves.mean(1))
    if theirs.before <= 0:
        raise Lacking("induction is there from the first checkpoints on")
    apart, width = ours.point / theirs.point - 1, (theirs.at - theirs.before) / (2 * theirs.at)
    low, high = ours.before / theirs.at - 1, ours.at / theirs.before - 1
    p, least_p = (_nearness(share, float(steps[-1])) for share in (abs(apart), width))
    note = f"{run.run}: in-context learning at {ours.point:.0f}, induction at {theirs.point:.0f}"
    return Reading(apart, min(low, apart), max(high, apart), max(p, least_p), least_p, note)


def _nearness(share: float, last: float) -> float:
    return min(1.0, math.log((1 + share) / (1 - share)) / math.log1p(last)) if share < 1 else 1.0


def _change(stage: int, run: Evidence) -> Reading:
    data, ends = whole(run), stages(run)
    steps = data["step"].values.astype(float)
    start, end = (steps[0], *ends[:4])[stage : stage + 2]
    if lost := {start, end} - set(steps.tolist()):
        raise Lacking(f"the whole model's coefficient was not measured at {', '.join(f'{one:g}' for one in sorted(lost))}")
    if not start < end:
        raise Lacking(f"LM{stage + 1} has no two checkpoints: it starts and ends at {start:g}")
    value, stderr = (data[part].sel(step=[start, end]).values.astype(np.float64) for part in ("value", "stderr"))
    if value[0] <= 0:
        raise Lacking(f"the whole model's coefficient is not above 0 at {start:g}")
    ratio = float(value[1] / value[0])
    error = math.hypot(float(stderr[1]), ratio * float(stderr[0])) / float(value[0])
    reach = NormalDist().inv_cdf(1 - ALPHA / (2 * ends.spans)) if stage == 2 else Z
    return Reading(ratio - 1, ratio - 1 - reach * error, ratio - 1 + reach * error, note=f"{run.run}: {start:g} to {end:g}")
