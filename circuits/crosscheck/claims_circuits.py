"""Claims 1 to 25 about circuits of small transformers, judged on the evidence of runs.

    1, 13, 23            equalities of the library, shown live on small models          ``claims_circuits_exact``
    22, 24               detectors on models of which all is known, live                ``claims_circuits_planted``
    4, 6, 7, 8           copying and matching, by weights and in use                    ``claims_circuits_weights``
    9, 10                which heads compose                                            ``claims_circuits_composition``
    11, 12, 19, 20       which paths and heads carry predictions and induction          ``claims_circuits_paths``
    3, 14, 16, 17        what a second layer brings, and when                           ``claims_circuits_training``
    2, 5, 15, 18, 21, 25 need runs or measures that there are not: said here, with what is needed

How readings of runs become a verdict, and which p there could be at best, is in ``circuits.crosscheck.verdict``. Claims are
about two-layer runs, ``seeds``, that differ in their seeds, and about a one-layer run of the same recipe. What one run can show
is judged in it: over its examples, over its heads by exchange. What evidence lacks makes a claim untestable, never an error.

Source: Elhage et al. 2021; Olsson et al. 2022; others beside each claim; bounds that are ours: ``docs/decisions/0012``.
"""

from collections.abc import Callable, Sequence

from circuits.crosscheck.claims_circuits_composition import claim_9, claim_10
from circuits.crosscheck.claims_circuits_exact import claim_1, claim_13, claim_23
from circuits.crosscheck.claims_circuits_paths import claim_11, claim_12, claim_19, claim_20
from circuits.crosscheck.claims_circuits_planted import claim_22, claim_24
from circuits.crosscheck.claims_circuits_reading import untold
from circuits.crosscheck.claims_circuits_training import claim_3, claim_14, claim_16, claim_17
from circuits.crosscheck.claims_circuits_weights import claim_4, claim_6, claim_7, claim_8
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim, decide


def claim_2(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """No layers."""
    return Claim(
        "circuits 2",
        "A model without layers becomes the bigrams of its text.",
        "KL from the smoothed bigrams to the model is at most 0.02 nats, and its loss at least their entropy.",
        "The same of a one-layer model, which must be further away.",
        "Elhage et al. 2021, Zero-layer transformers",
        (decide("KL to bigrams, nats", untold("a run without layers is needed: n_layers is at least 1 here"), most=0.02),),
    )


def claim_5(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Skip-trigrams."""
    needed = "the run's weights and held-out text are needed: circuits.skip_trigrams, then circuits.weights.lift on the text"
    return Claim(
        "circuits 5",
        "Skip-trigrams read off one layer's weights foretell what held-out text does, bugs among them.",
        "Spearman's correlation of a triple's value with its lift in held-out text is at least .5; triples that come as a bug "
        "of two others are spoken against more often than others.",
        "Exchanged triples; the text's own association of destination and output.",
        "Elhage et al. 2021, Skip-trigrams; the bound is this package's",
        (decide("correlation of value and lift", untold(needed), least=0.5),),
    )


def claim_15(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Smeared keys."""
    needed = "pairs of runs with and without smeared keys, of one and two layers, are needed (smeared_keys=True), 5 seeds or more"
    return Claim(
        "circuits 15",
        "With smeared keys one layer is enough for the phase change, and with two it comes earlier.",
        "With smeared keys a head of one layer does induction, its share of the key before being above a half; in two layers the "
        "change comes earlier than without, in every pair of runs.",
        "The same seeds without smeared keys.",
        "Olsson et al. 2022, argument 2",
        (decide("change with smeared keys less change without, doublings", untold(needed), most=0.0),),
    )


def claim_18(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Redundant induction heads."""
    needed = "runs on few-shot classification are needed (2 exemplars, 50 classes), and accuracies with one head left"
    return Claim(
        "circuits 18",
        "Induction heads add up: what a head does alone follows its strength, and none is needed.",
        "Pearson's correlation over heads of the accuracy with this head alone and its attention to the right label is at "
        "least .9.",
        "Heads exchanged.",
        "Singh et al. 2024",
        (decide("correlation over heads", untold(needed), least=0.9, published="0.959 (Singh et al. 2024, 8 heads)"),),
    )


def claim_21(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Out of distribution."""
    needed = (
        "induction scores on repeats of the run's own text are needed, to lay those on random tokens against: AttentionScores "
        "with tokens of such repeats, on the weights"
    )
    return Claim(
        "circuits 21",
        "Induction works on tokens that no text has in this order.",
        "The induction score on uniform random tokens is at least .8 of that on repeats of text. In the shipped runs random "
        "repeats were in training, which makes this easier.",
        "Tokens shuffled in the second copy.",
        "Elhage et al. 2021, How induction heads work (random repeated tokens)",
        (decide("score on random tokens over score on text", untold(needed), least=0.8),),
    )


def claim_25(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Causal scrubbing."""
    needed = "resampling by hypothesis was not measured: it needs the run's weights, and induction on text (Redwood 2022)"
    return Claim(
        "circuits 25",
        "The simple account of induction explains a part of it, the extended one most.",
        "Of the loss that scrubbing everything costs, the hypothesis of previous-token and induction heads recovers at most a "
        "half, and with other keys and queries at least .8.",
        "Scrubbing everything.",
        "Redwood 2022, causal scrubbing of induction heads",
        (
            decide("share of the loss recovered, simple", untold(needed), most=0.5, published="0.35 (Redwood 2022)"),
            decide("share of the loss recovered, extended", untold(needed), least=0.8, published="0.89 (Redwood 2022)"),
        ),
    )


CLAIMS: dict[str, Callable[[Sequence[Evidence], Evidence | None], Claim]] = {
    "circuits 1": claim_1,
    "circuits 2": claim_2,
    "circuits 3": claim_3,
    "circuits 4": claim_4,
    "circuits 5": claim_5,
    "circuits 6": claim_6,
    "circuits 7": claim_7,
    "circuits 8": claim_8,
    "circuits 9": claim_9,
    "circuits 10": claim_10,
    "circuits 11": claim_11,
    "circuits 12": claim_12,
    "circuits 13": claim_13,
    "circuits 14": claim_14,
    "circuits 15": claim_15,
    "circuits 16": claim_16,
    "circuits 17": claim_17,
    "circuits 18": claim_18,
    "circuits 19": claim_19,
    "circuits 20": claim_20,
    "circuits 21": claim_21,
    "circuits 22": claim_22,
    "circuits 23": claim_23,
    "circuits 24": claim_24,
    "circuits 25": claim_25,
}
"""By name; each takes the evidence of two-layer runs and, if there is one, of a one-layer run."""


def claims_circuits(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> tuple[Claim, ...]:
    """Judge all of them.

    Args:
        seeds: evidence of runs of one recipe, each with its own seed; may be empty. one_layer: of a run with one layer less.

    Returns:
        The claims in order; see ``circuits.crosscheck.verdict.summary`` and ``to_dataframe``.
    """
    return tuple(claim(seeds, one_layer) for claim in CLAIMS.values())
