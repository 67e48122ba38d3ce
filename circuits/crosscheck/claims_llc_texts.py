"""Claims C14, C15 and C17: what other texts do to coefficients, and which paths nested pairs need.

    ratio         a head's coefficient on a text over that on prose, both at T
    effect        mean ratio of induction heads less mean ratio of multigram heads
    gap           the largest difference between two induction heads' coefficients on a text
    interaction   loss with edges ablated together, less the sum of their single effects (``circuits.paths.joint``), nats

Prose is the text of C14: the training mix is three quarters code itself, with repeats put in, which induction heads serve; the
ratio to it is reported. A head whose coefficient on prose is not above 0 by two errors has no ratio, and is named.

Errors are those of sampling, independent between texts. A control has *vanished* where its interval lies within half of the
effect; without an effect nothing can vanish, and it is not testable here.

C17 reads ``interaction_nested`` and ``interaction_flat`` of ``circuits.dynamics.nested_pairs``: edges out of each head of layer 0
into all of layer 1, on closers of nested pairs in held-out text and on closers of pairs with none inside that are matched to
them. It reads all heads because few have the role of a multigram head, though more do its work beside another. ``_keys`` are the
same of the strongest edges from previous-token into induction heads.

Source: Wang et al. 2024, sections 4 and 5; controls: table of claims of this package.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from circuits.crosscheck.claims_llc_reading import coefficients, each, final, heads
from circuits.crosscheck.claims_llc_statistics import VANISHED, margin, normal, redrawn, share_left
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.separation import rank_biserial
from circuits.crosscheck.verdict import Claim, Lacking, Reading, decide

GITHUB = "stated without a number, of GitHub code (Wang et al. 2024)"
PAIR_CALL = "circuits crosscheck makes it where a run has two layers, a tokenizer and a text with nested pairs"


def claim_c14(runs: Sequence[Evidence]) -> Claim:
    """Code against text."""
    return Claim(
        "C14",
        "On code induction heads become more complex than on text, more so than any multigram head, and differ from each other.",
        "The smallest ratio of an induction head, code over prose, is above the largest of a multigram head; the gap between "
        "induction heads on code is at least 3 of its errors, and above that on prose.",
        "C15; roles exchanged between induction and multigram heads.",
        "Wang et al. 2024, section 4",
        (
            decide(
                "smallest ratio of induction less largest of multigram, code / prose",
                each(runs, partial(_larger, "prose")),
                least=0.0,
                published=GITHUB,
            ),
            decide("gap between induction heads on code, in errors", each(runs, _separate), least=3.0, published=GITHUB),
            decide("gap on code less gap on prose", each(runs, _more), least=0.0, published=GITHUB),
            decide("smallest ratio less largest, code / mix", each(runs, partial(_larger, "mix")), role="report"),
        ),
    )


def claim_c15(runs: Sequence[Evidence]) -> Claim:
    """Shuffled code."""
    return Claim(
        "C15",
        "What code does to induction heads is gone once its tokens are shuffled.",
        f"The effect on shuffled code over that on code lies within {VANISHED:g} of 0.",
        "It is the control of C14. Shuffled code is the only one: the runs have no other domain of as large a loss.",
        "Table of claims of this package",
        (decide("effect on shuffled code / effect on code", each(runs, _shuffled), least=-VANISHED, most=VANISHED),),
    )


def claim_c17(runs: Sequence[Evidence]) -> Claim:
    """Paths for nested pairs."""
    return Claim(
        "C17",
        "Multigram heads of both layers work together on nested pairs.",
        "Edges from heads of layer 0 into those of layer 1, ablated together, cost closers of nested pairs more than the sum of "
        "their single effects (bootstrap over examples); the same on matched closers of pairs with none inside lies within "
        f"{VANISHED:g} of it. Beside that, what closers lose when layer 0 is cut out of later attention, nested less flat.",
        "Closers of pairs with none inside, of the same sequences and depths.",
        "Wang et al. 2024, section 5",
        (
            decide("interaction on nested closers (nats)", each(runs, _nested), least=0.0),
            decide("interaction on matched closers / on nested ones", each(runs, _flat), least=-VANISHED, most=VANISHED),
            decide(
                "layer 0 cut out of attention: nested less flat closers (nats)", each(runs, _contrast), least=0.0, role="number"
            ),
            *(
                decide(
                    f"interaction of the strongest key edges on {kind} closers (nats)",
                    each(runs, partial(_interaction, kind=f"{kind}_keys")),
                    role="report",
                )
                for kind in ("nested", "flat")
            ),
        ),
    )


def _ratios(run: Evidence, text: str, base: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Ratios and errors of induction and of multigram heads, and which heads have none."""
    found, lost = [], []
    for role in ("induction", "multigram"):
        asked = heads(run, role)
        (x, a), (y, b) = coefficients(run, text, asked), coefficients(run, base, asked)
        there = y > 2 * b
        lost += [str(head) for head, kept in zip(asked, there, strict=True) if not kept]
        if not there.any():
            raise Lacking(f"no {role} head has a coefficient above 0 on {base}")
        ratio = x[there] / y[there]
        found.append((ratio, np.hypot(a[there], ratio * b[there]) / y[there]))
    return found, f"{run.run}: no ratio for {', '.join(lost)}" if lost else ""


def _larger(base: str, run: Evidence) -> Reading:
    (simple, memory), note = _ratios(run, "code", base)
    found = rank_biserial(simple[0], memory[0], alternative="greater")
    return Reading(float(margin(simple[0], memory[0])), *redrawn(margin, simple, memory), found.p, found.smallest, note)


def _gap(run: Evidence, text: str) -> tuple[float, float]:
    """The largest difference between two induction heads, and its error."""
    asked = heads(run, "induction")
    if len(asked) < 2:
        raise Lacking(f"{asked[0]} is the only induction head, and two are to differ")
    value, stderr = coefficients(run, text, asked)
    low, high = int(value.argmin()), int(value.argmax())
    error = math.hypot(float(stderr[low]), float(stderr[high]))
    if not error > 0:
        raise Lacking(f"coefficients on {text} have no errors")
    return float(value[high] - value[low]), error


def _separate(run: Evidence) -> Reading:
    gap, error = _gap(run, "code")
    return normal(gap / error, 1.0)


def _more(run: Evidence) -> Reading:
    (code, a), (prose, b) = _gap(run, "code"), _gap(run, "prose")
    return normal(code - prose, math.hypot(a, b))


def _effect(run: Evidence, text: str) -> tuple[tuple[float, float], str]:
    """The mean ratio of induction heads less that of multigram heads, and its error."""
    ((simple, a), (memory, b)), note = _ratios(run, text, "prose")
    error = math.hypot(float(np.linalg.norm(a)) / len(a), float(np.linalg.norm(b)) / len(b))
    return (float(simple.mean() - memory.mean()), error), note


def _shuffled(run: Evidence) -> Reading:
    (effect, note), (control, _) = _effect(run, "code"), _effect(run, "shuffled_code")
    return share_left(control, effect, note)


def _interaction(run: Evidence, kind: str) -> Reading:
    name = f"interaction_{kind}"
    if name not in run.results:
        raise Lacking(run.absent.get(name, f"{name} was not measured; {PAIR_CALL}"))
    data = final(run, name)
    value, low, high = (float(data[part]) for part in ("value", "low", "high"))
    if not np.isfinite([value, low, high]).all():
        raise Lacking(f"{name} has no value or no interval")
    return Reading(value, low, high)


def _nested(run: Evidence) -> Reading:
    return _interaction(run, "nested")


def _flat(run: Evidence) -> Reading:
    effect, control = (_interaction(run, kind) for kind in ("nested", "flat"))
    (one, two) = ((found.value, (found.high - found.low) / (2 * 1.96)) for found in (control, effect))
    return share_left(one, two)


def _contrast(run: Evidence) -> Reading:
    data = final(run, "nested_brackets").sel(cut="composition")
    value, error = float(data["contrast"]), float(data["contrast_stderr"])
    if not np.isfinite([value, error]).all():
        raise Lacking("no text has nested and flat pairs, or there is one layer")
    return normal(value, error)
