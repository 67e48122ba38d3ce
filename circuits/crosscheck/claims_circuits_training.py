"""Claims 3, 14, 16 and 17 about circuits: what a second layer brings, and how it comes about in training.

    losses        on held-out text, code where there is some; of two runs, read on the same tokens
    induction     attention to induction targets on repeats at many lags (``circuits.detectors.attention``), over that of uniform
                  attention on the same tokens, where "over chance" is said
    changes       largest rise over half a doubling of training (``claims_circuits_times``): of minus the in-context-learning
                  score, of the best head's prefix matching, and of attention of heads with a role; the bump of the loss
    predictors    KL from the n-gram predictor of the training text to the model (``circuits.detectors.predictors``), least where
                  the model is closest to it

No run has 0 layers; in its place stands the bigram predictor of the training text on the same positions, the best such a model
can be but for smoothing. In the shipped runs induction was taught, by repeats that were put into the training data.

Sources: Elhage et al. 2021; Olsson et al. 2022, argument 1; Hoogland et al. 2024 (order of stages); Bietti et al. 2023 (probes).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.claims_circuits_reading import (
    at_end,
    beside_one_layer,
    circuit,
    examples_of,
    measured,
    number,
    of_one_layer,
    untold,
)
from circuits.crosscheck.claims_circuits_times import bump, change, doublings, in_order, least, together
from circuits.crosscheck.claims_llc_reading import each, final, heads, of, result, text_in
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Claim, Lacking, Reading, decide
from circuits.dynamics.functions import PREDICTED_EXAMPLES

if TYPE_CHECKING:
    import xarray as xr

TAUGHT = "in the shipped runs induction was taught, by repeats in the training data"
CHANCES = 3.0
"""Times uniform attention that no head of one layer exceeds."""
INDUCES = 0.4
STAGES = "LM1 to LM4 in this order (Hoogland et al. 2024)"
APART = 0.15
"""Share of a run's doublings."""


def claim_3(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """What layers bring."""

    def second_layer(run: Evidence, shallow: Evidence) -> Reading:
        deep, flat = at_end(run, "loss_curves"), at_end(shallow, "loss_curves")
        if deep.attrs.get("data_hash") != flat.attrs.get("data_hash"):
            raise Lacking("the run of one layer was measured on other tokens")
        corpus = text_in(deep)
        (a, da), (b, db) = (_at_corpus(data, corpus, "loss") for data in (flat, deep))
        return measured(
            a - b, float(np.hypot(da, db)), int(number(deep["n"].sel(corpus=corpus))), f"{a:.3f} and {b:.3f} on {corpus}"
        )

    def first_layer(run: Evidence) -> Reading:
        data = at_end(run, "predictor_loss")
        corpus = text_in(data)
        at = data.sel(order=2)
        (a, da), (b, db) = (_at_corpus(at, corpus, name) for name in ("ngram_loss", "loss"))
        # The result does not keep the number of its examples; runs are measured on so many.
        return measured(a - b, float(np.hypot(da, db)), PREDICTED_EXAMPLES, f"{a:.3f} and {b:.3f} on {corpus}")

    def best(run: Evidence) -> tuple[float, float, float, int]:
        """The largest induction score, its error, chance, and the number of examples."""
        data = at_end(run, "attention_scores")
        at = data.sel(detector="induction")
        value, stderr = (at[name].values.astype(np.float64).ravel() for name in ("value", "stderr"))
        return float(value.max()), float(stderr[value.argmax()]), number(at["chance"]), examples_of(data)

    def shallow_score(run: Evidence) -> Reading:
        value, stderr, chance, n = best(run)
        return measured(value / chance, stderr / chance, n)

    def deep_score(run: Evidence) -> Reading:
        value, stderr, _, n = best(run)
        return measured(value, stderr, n)

    return Claim(
        "circuits 3",
        "A first layer improves on bigrams, a second one on that, and only with the second is there induction.",
        "Loss of one layer is less than that of the bigram predictor of the training text (in place of 0 layers) and more "
        f"than that of two; no head of one layer has an induction score above {CHANCES:g} times chance, one of two layers at "
        f"least {INDUCES}.",
        "Uniform attention; the run of one layer.",
        "Elhage et al. 2021; bound of the score ARENA 1.2",
        (
            decide("loss of bigrams less loss of one layer, nats", of_one_layer(one_layer, first_layer), least=0.0),
            decide(
                "loss of one layer less loss of two, nats",
                beside_one_layer(seeds, one_layer, second_layer),
                least=0.0,
                published="0.37 (replication on Arabic text, one seed)",
            ),
            decide("largest induction score over chance, one layer", of_one_layer(one_layer, shallow_score), most=CHANCES),
            decide("largest induction score, two layers", each(seeds, deep_score), least=INDUCES),
        ),
    )


def claim_14(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """The phase change."""

    def changes(run: Evidence) -> Reading:
        losses, scores = result(run, "loss_curves"), result(run, "attention_scores")
        steps = np.intersect1d(losses["step"].values, scores["step"].values)
        text = losses.sel(step=steps, corpus=text_in(losses))
        prefix = scores["value"].sel(step=steps, detector="prefix_matching").max(("layer", "head"))
        u = doublings(steps)
        events = {
            "in-context learning": change(steps, -_floats(text["in_context_learning_score"]), seed=1),
            "prefix matching": change(steps, _floats(prefix), seed=2),
            "bump": bump(steps, _floats(text["loss"]), seed=3),
        }
        unit = float(steps[steps > 0].min())
        told = ", ".join(f"{name} {unit * (2**event.at - 1):.0f}" for name, event in events.items())
        if not events["bump"].size:
            raise Lacking("its loss has no bump")
        return together(u, list(events.values()), f"{run.run}: steps {told}; bump of {events['bump'].size:.3f} nats")

    def flat(run: Evidence) -> Reading:
        data = result(run, "attention_scores")
        at = data.sel(detector="prefix_matching").stack(place=("step", "layer", "head"))
        worst = at.isel(place=int(at["value"].argmax("place")))
        chance = number(worst["chance"])
        return measured(number(worst["value"]) / chance, number(worst["stderr"]) / chance, examples_of(data))

    losses_needed = "losses by token were not kept: TokenLosses on the run's weights, then loss_pca"
    return Claim(
        "circuits 14",
        f"In-context learning, prefix matching and a bump of the loss come at one time, and not with one layer ({TAUGHT}).",
        f"The three change within {APART:g} of the run's doublings of training; with one layer prefix matching of no head "
        f"exceeds {CHANCES:g} times chance at any checkpoint. The turn of the losses' principal components, the fourth, is not "
        "in evidence.",
        "Changes anywhere in log time; the run of one layer.",
        "Olsson et al. 2022, argument 1",
        (
            decide(
                "span of the three changes, share of doublings",
                each(seeds, changes),
                most=APART,
                published="one window, 2.5e9 to 5e9 tokens",
            ),
            decide("largest prefix matching over chance, one layer", of_one_layer(one_layer, flat), most=CHANCES),
            decide("turn of the principal components of losses", untold(losses_needed), role="report"),
        ),
    )


def claim_16(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """The order of what is learnt."""

    def order(run: Evidence) -> Reading:
        previous, found = circuit(run)
        losses, scores = result(run, "predictor_loss"), result(run, "attention_scores")
        steps = np.intersect1d(losses["step"].values, scores["step"].values)
        kl = losses["kl"].sel(step=steps, corpus=text_in(losses))
        attention = scores["value"].sel(step=steps)
        events = [least(steps, _floats(kl.sel(order=n)), seed=n) for n in (2, 3)]
        for detector, asked, seed in (("previous_token", [previous], 4), ("induction", found, 5)):
            events.append(change(steps, of(attention.sel(detector=detector), asked).mean(1), seed=seed))
        unit = float(steps[steps > 0].min())
        told = ", ".join(f"{unit * (2**event.at - 1):.0f}" for event in events)
        return in_order(doublings(steps), events, f"{run.run}: steps {told}")

    markov = "a run on in-context Markov data is needed, and one without its unigram signal (Edelman et al. 2024)"
    return Claim(
        "circuits 16",
        f"Bigrams, then n-grams, then attention to the previous token, then induction ({TAUGHT}).",
        "The model is closest to the bigram predictor, then to the trigram predictor, then the previous-token head's "
        "attention rises fastest, then the induction heads': all six pairs in this order.",
        "The four in a random order.",
        "Hoogland et al. 2024, section 4",
        (
            decide("pairs in the claimed order, of 6", each(seeds, order), least=6.0, every=True, published=STAGES),
            decide("uniform, unigram and bigram plateaus", untold(markov), role="report"),
        ),
    )


def claim_17(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Probes of associative memories."""

    def output(run: Evidence) -> Reading:
        found = heads(run, "induction", "L1")
        data = final(run, "weight_spectra")
        at = data.sel(statistic="ov_top1")
        values, errors = (of(at[name], found) for name in ("value", "stderr"))
        best = int(values.argmax())
        return measured(float(values[best]), float(errors[best]), int(data.attrs.get("n_tokens", 0)), str(found[best]))

    probes = "probes wk1 and wk0 were not measured: they need the weights of every checkpoint, of 5 seeds or more"
    return Claim(
        "circuits 17",
        "Output and key memories of the induction head form before the previous-token head's.",
        "Accuracy of wo1 (a token is its own largest output) and wk1 (a query finds the key behind its copy) exceed .9 before "
        "that of wk0 (a position finds the one before); wo1 is the OV circuit's diagonal, which is reported.",
        "The order over seeds, by a sign test.",
        "Bietti et al. 2023; the order as recollected",
        (
            decide("step of wk0 less the later of wo1 and wk1", untold(probes), least=0.0),
            decide("wo1 of the induction head, last checkpoint", each(seeds, output), published="above 0.9", role="report"),
        ),
    )


def _at_corpus(data: "xr.Dataset", corpus: str, name: str) -> tuple[float, float]:
    at = data.sel(corpus=corpus)
    return number(at[name]), number(at[f"{name}_stderr"])


def _floats(data: "xr.DataArray") -> np.ndarray:
    return data.values.astype(np.float64)
