"""The 19 claims about Scan & Snap as a scorecard: expected, measured, spread over seeds, and a verdict that is computed.

Nothing here knows how a claim comes out: experiments run, and the rules of ``scan_snap_verdicts`` decide. Claims 1 to 14, about
the theory's own model, take about a minute of one core; the fast subset has fewer seeds and sizes, and a corner of figure 6.
Claims 15 to 19 train on text and take some minutes more; they are judged by sign, as their text is not the source's.

Source: claims of Tian et al. 2023 and 2023b; the numbers beside them are of the authors' logs or a separate implementation.
"""

from collections.abc import Callable, Sequence

from circuits.dynamics import scan_snap_claims as data
from circuits.dynamics import scan_snap_claims_text as text
from circuits.dynamics import scan_snap_claims_theory as theory
from circuits.dynamics.scan_snap_claims import Evidence
from circuits.dynamics.scan_snap_verdicts import Claim, Scorecard
from circuits.progress import bar

CLAIMS: dict[int, Callable[[Evidence], Claim]] = {
    1: data.claim_1,
    2: data.claim_2,
    3: data.claim_3,
    4: data.claim_4,
    5: data.claim_5,
    6: data.claim_6,
    7: data.claim_7,
    8: theory.claim_8,
    9: theory.claim_9,
    10: theory.claim_10,
    11: theory.claim_11,
    12: theory.claim_12,
    13: theory.claim_13,
    14: theory.claim_14,
    15: text.claim_15,
    16: text.claim_16,
    17: text.claim_17,
    18: text.claim_18,
    19: text.claim_19,
}
"""By number; each takes the experiments and gives its checks."""
OF_THE_MODEL = tuple(range(1, 15))
"""Claims that need no text."""


def scorecard(
    claims: Sequence[int] | int | None = None,
    *,
    fast: bool = False,
    evidence: Evidence | None = None,
    progress: bool | None = None,
) -> Scorecard:
    """Run what the claims need and judge them.

    Args:
        claims: numbers, or one; None: all 19, or if it must be fast those of the theory's own model, 1 to 14.
        fast: fewer seeds and sizes, a quick look; verdicts say when that is too little, as it is for any claim on text.
        evidence: experiments to judge, such as an ``Evidence`` used before; None: new ones. progress: show a bar (default: where
            somebody watches).

    Returns:
        The claims in the order given; see ``Scorecard.summary``, ``to_dataframe`` and ``to_markdown``.

    Raises:
        ValueError: a number that is no claim, or none at all.
    """
    every = OF_THE_MODEL if fast or (evidence is not None and evidence.fast) else CLAIMS
    chosen = list(every) if claims is None else [claims] if isinstance(claims, int) else list(claims)
    unknown = [number for number in chosen if number not in CLAIMS]
    if unknown or not chosen:
        raise ValueError(f"claims={chosen}: give numbers from 1 to {max(CLAIMS)}, or None for all")
    seen = evidence or Evidence(fast=fast)
    return Scorecard(tuple(CLAIMS[number](seen) for number in bar(chosen, label="claims", on=progress)))
