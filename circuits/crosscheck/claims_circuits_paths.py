"""Claims 11, 12, 19 and 20 about circuits: which paths and heads carry predictions, and which carry induction.

    marginal effect of order n    L(paths of order < n) - L(paths of order <= n), patterns and norm scales frozen
                                  (``circuits.paths.term_importance``); of a layer given the rest: L(all but its paths of order 1)
                                  - L(all)
    lost share                    change of the in-context-learning score (late - early loss) by pattern-preserving ablation of a
                                  head, over minus the score of the whole model; of several heads the sum, one ablated at a time
    worth of an edge              rise of the loss of repeated random tokens where this edge alone reads a mean (``paths.edges``)

Induction and previous-token heads are those by role (``claims_circuits_reading``), everything is at the last checkpoint. Errors
are over examples; a ratio's are too wide (see there).

Sources: Elhage et al. 2021, Term Importance Analysis; Olsson et al. 2022, arguments 3 and 5; ARENA 1.2 (head ablation).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.crosscheck.claims_circuits_reading import at_end, circuit, examples_of, measured, number, ratio, share, untold
from circuits.crosscheck.claims_llc_reading import each, final, heads
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.verdict import Check, Claim, Lacking, Reading, decide
from circuits.models.heads import Head

if TYPE_CHECKING:
    import xarray as xr

TENTH = 0.1
MOST_OF_IT = 0.8
FIGURE = "recollected from a figure of Elhage et al. 2021"
ORDERS = {0: "1.8", 1: "5.2", 2: "0.3"}


def claim_11(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Terms of the path expansion."""

    def terms(run: Evidence) -> "xr.Dataset":
        data = at_end(run, "term_importance")
        if data.sizes["order"] < 3:
            raise Lacking("it has one layer, and no paths of order 2")
        return data

    def virtual(run: Evidence) -> Reading:
        data = terms(run)
        second, first = (_with_error(data.sel(order=order)) for order in (2, 1))
        return ratio(second, first, examples_of(data))

    def layers(run: Evidence) -> Reading:
        data = terms(run)
        first, last = (_with_error(data.isel(layer=layer), "given_rest", "given_rest_stderr") for layer in (0, -1))
        return ratio(first, last, examples_of(data), f"{first[0]:.2f} and {last[0]:.2f} nats")

    def of_order(order: int) -> Callable[[Evidence], Reading]:
        def read(run: Evidence) -> Reading:
            data = terms(run)
            return measured(*_with_error(data.sel(order=order)), examples_of(data))

        return read

    reported = [
        decide(f"marginal effect of order {n}, nats", each(seeds, of_order(n)), published=f"{nats} ({FIGURE})", role="report")
        for n, nats in ORDERS.items()
    ]
    return Claim(
        "circuits 11",
        "Paths through two heads matter little beside paths through one, and those of the first layer little given the rest; "
        "composition by keys matters all the same.",
        "The marginal effect of order 2 is at most a tenth of that of order 1; of single heads, the first layer's effect "
        "given the rest is at most a tenth of the last layer's; the edge from the previous-token head to an induction head's "
        f"keys is worth at least {MOST_OF_IT:g} of what that head writes.",
        "The other order, the other layer; values and queries (circuits 19).",
        "Elhage et al. 2021, Term Importance Analysis",
        (
            decide("order 2 over order 1", each(seeds, virtual), most=TENTH, published=f"0.06 ({FIGURE})"),
            decide(
                "first layer over last, given the rest",
                each(seeds, layers),
                most=TENTH,
                published=f"first layer 0.05 nats ({FIGURE})",
            ),
            _key_edge(seeds),
            *reported,
        ),
    )


def claim_12(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """In-context learning without induction heads."""

    def lost(run: Evidence) -> Reading:
        data, found = final(run, "in_context_ablation"), heads(run, "induction")
        values = [_with_error(data.sel(layer=head.layer, head=head.head)) for head in found]
        together = sum(value for value, _ in values), float(np.linalg.norm([error for _, error in values]))
        return ratio(together, (-number(data["clean"]), number(data["clean_stderr"])), examples_of(data), _names(found))

    def others(most: float) -> Callable[[Evidence], Reading]:
        def read(run: Evidence) -> Reading:
            data, found = final(run, "in_context_ablation"), heads(run, "induction")
            every = [Head(int(layer), int(head)) for layer in data["layer"].values for head in data["head"].values]
            rest = [number(data["value"].sel(layer=one.layer, head=one.head)) for one in every if one not in found]
            return share(sum(value <= -most * number(data["clean"]) for value in rest), len(rest))

        return read

    full = "full ablation was not measured: InContextAblation(tokens, 'zero') on the run's weights"
    return Claim(
        "circuits 12",
        "In an attention-only model nearly all in-context learning passes through induction heads.",
        f"Pattern-preserving ablation of the induction heads takes away at least {MOST_OF_IT:g} of the score on held-out text; "
        "of the other heads more than half take away at most a tenth, or improve it.",
        "The other heads of the model.",
        "Olsson et al. 2022, argument 3",
        (
            decide("lost share, induction heads", each(seeds, lost), least=MOST_OF_IT, published="nearly all, without a number"),
            decide("share of other heads that take at most a tenth", each(seeds, others(TENTH)), least=0.5),
            decide("share of other heads that improve it", each(seeds, others(0.0)), role="report", published="most, slightly"),
            decide("lost share, full ablation less pattern-preserving", untold(full), role="report"),
        ),
    )


def claim_19(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """The previous-token head and induction."""
    ablated = "attention of the model with that head ablated was not measured: it needs the run's weights"
    return Claim(
        "circuits 19",
        "Induction hangs on the previous-token head, through keys and not through values.",
        f"The edge from the previous-token head to an induction head's keys is worth at least {MOST_OF_IT:g} of what that head "
        "writes to the logits, on repeated random tokens; the edge to its values at most a tenth of the edge to its keys.",
        "The edge to values; that to queries is reported.",
        "ARENA 1.2; Elhage et al. 2021, Two-layer models; edges ours",
        (
            _key_edge(seeds),
            decide("edge to values over edge to keys", each(seeds, _beside_keys("v")), least=-TENTH, most=TENTH),
            decide("edge to queries over edge to keys", each(seeds, _beside_keys("q")), role="report"),
            decide(
                "induction score without that head",
                untold(ablated),
                most=TENTH,
                published="0.68 to about 0 (ARENA 1.2)",
                role="number",
            ),
        ),
    )


def claim_20(seeds: Sequence[Evidence], one_layer: Evidence | None = None) -> Claim:
    """Pointer arithmetic."""

    def queries(run: Evidence) -> Reading:
        data, (previous, found) = final(run, "edge_effects_repeats"), circuit(run)
        names = [str(name) for name in data["edge"].values]
        if "pos -> logits" in names or not any(name.startswith("pos -> ") for name in names):
            raise Lacking("it has no positions, or has them in the residual stream: this half is about positions outside it")
        parts: list[Reading] = []
        for head in found:
            keys = _edge(data, f"{previous} -> {head}.k")
            into = [name for name in names if name.startswith("L") and name.endswith(f" -> {head}.q")]
            parts += [ratio(_edge(data, name), keys, examples_of(data), name) for name in into]
        return max(parts, key=lambda part: abs(part.value))

    stream = "a run of the recipe with positions in the residual stream is needed (positional_embedding_type='standard')"
    return Claim(
        "circuits 20",
        "Induction by moved positions, through queries, is found only where positions are in the residual stream.",
        "In a shortformer model no edge from an earlier head to queries of an induction head is worth more than a tenth of "
        "the edge from the previous-token head to its keys; with positions in the stream one is.",
        "The edge to keys.",
        "Olsson et al. 2022, argument 5; Elhage et al. 2021 (positions outside the stream)",
        (
            decide("largest edge to queries over edge to keys", each(seeds, queries), least=-TENTH, most=TENTH),
            decide("the same, positions in the stream", untold(stream), least=TENTH),
        ),
    )


def _key_edge(seeds: Sequence[Evidence]) -> Check:
    """The edge from the previous-token head to keys; of several induction heads the one for which it is worth least."""

    def read(run: Evidence) -> Reading:
        data, (previous, found) = final(run, "edge_effects_repeats"), circuit(run)
        parts = [
            ratio(
                _edge(data, f"{previous} -> {head}.k"),
                _edge(data, f"{head} -> logits"),
                examples_of(data),
                f"{previous} -> {head}",
            )
            for head in found
        ]
        return min(parts, key=lambda part: part.value)

    return decide("edge to keys over the induction head's write", each(seeds, read), least=MOST_OF_IT)


def _beside_keys(channel: str) -> Callable[[Evidence], Reading]:
    """Another edge between the same two heads, over that to keys; of several induction heads the largest."""

    def read(run: Evidence) -> Reading:
        data, (previous, found) = final(run, "edge_effects_repeats"), circuit(run)
        parts = [
            ratio(_edge(data, f"{previous} -> {head}.{channel}"), _edge(data, f"{previous} -> {head}.k"), examples_of(data))
            for head in found
        ]
        return max(parts, key=lambda part: abs(part.value))

    return read


def _edge(data: "xr.Dataset", name: str) -> tuple[float, float]:
    if name not in data["edge"].values:
        raise Lacking(f"the edge {name} was not measured")
    return _with_error(data.sel(edge=name))


def _with_error(data: "xr.Dataset", value: str = "value", stderr: str = "stderr") -> tuple[float, float]:
    return number(data[value]), number(data[stderr])


def _names(found: Sequence[Head]) -> str:
    return ", ".join(map(str, found))
