"""What the papers on refined learning coefficients claim, checked on one run or several: claims C5 to C20.

    C5 to C7         events and stages of a run        ``claims_llc_development``
    C8, C9           composition of the layers         ``claims_llc_composition``
    C10 to C12       types of heads                    ``claims_llc_curves``
    C13, C16, C18    what heads have memorised         ``claims_llc_memory``
    C14, C15, C17    other texts, nested pairs         ``claims_llc_texts``
    C19, C20         settings, samplers, seeds         ``claims_llc_transfer``

C1 to C4 are about the estimator, on cases whose answers are known: they are tests of ``circuits.complexity``.

How a verdict comes about is said in ``circuits.crosscheck.verdict``: with one run, by its own errors and the exchange of roles
among its heads; with several, by t intervals over them. What a run lacks makes a claim not testable here, with the reason, and
is no error. Roles are those of the last checkpoint, and heads are matched by role.

Source: Wang et al. 2024, "Differentiation and Specialization of Attention Heads via the Refined Local Learning Coefficient";
Hoogland et al. 2024 (stages). Bounds are of this package's table of claims, fixed before these runs were measured.
"""

from collections.abc import Callable, Mapping, Sequence

from circuits.crosscheck.claims_llc_composition import claim_c8, claim_c9
from circuits.crosscheck.claims_llc_curves import claim_c10, claim_c11, claim_c12
from circuits.crosscheck.claims_llc_development import claim_c5, claim_c6, claim_c7
from circuits.crosscheck.claims_llc_memory import claim_c13, claim_c16, claim_c18
from circuits.crosscheck.claims_llc_texts import claim_c14, claim_c15, claim_c17
from circuits.crosscheck.claims_llc_transfer import claim_c19, claim_c20
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim

CLAIMS: Mapping[str, Callable[[Sequence[Evidence]], Claim]] = {
    "C5": claim_c5,
    "C6": claim_c6,
    "C7": claim_c7,
    "C8": claim_c8,
    "C9": claim_c9,
    "C10": claim_c10,
    "C11": claim_c11,
    "C12": claim_c12,
    "C13": claim_c13,
    "C14": claim_c14,
    "C15": claim_c15,
    "C16": claim_c16,
    "C17": claim_c17,
    "C18": claim_c18,
    "C19": claim_c19,
    "C20": claim_c20,
}


def claims_llc(runs: Sequence[Evidence]) -> tuple[Claim, ...]:
    """Check every claim on what is known of some runs.

    Args:
        runs: evidence of one run or more, such as several seeds of one recipe.

    Returns:
        The claims in the order of ``CLAIMS``. Each has a ``verdict`` ("holds", "fails", "not testable here") computed from its
        checks, which have their numbers, intervals, p and the smallest p to be had; ``circuits.crosscheck.verdict`` makes tables.

    Source: Wang et al. 2024; Hoogland et al. 2024.
    """
    return tuple(claim(runs) for claim in CLAIMS.values())
