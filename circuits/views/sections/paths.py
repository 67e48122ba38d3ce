"""Paths: what each order of paths is worth, which edges carry what a repeat is worth, and the circuit they make."""

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.dynamics.pathways import path_measures
from circuits.models.checkpoints import Checkpoints
from circuits.models.own import own
from circuits.paths.circuit import Circuit, ranking
from circuits.paths.edges import edge_list
from circuits.paths.wiring import Edge, Wiring
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.graph import circuit_graph
from circuits.views.html import count, decimal, image, paragraph, probability, spread, table, with_error, z_score
from circuits.views.path_figures import edge_curves, edge_table, order_curves
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

ROWS, CURVES, DRAWN = 10, 6, 40
ALPHA = 0.05
REPEATS, TEXT = "edge_effects_repeats", "edge_effects_text"
PLAN: dict[str, dict[str, Any]] = {
    REPEATS: {"few": 2},
    TEXT: {"last": True},
    "term_importance": {"few": 3},
    "path_terms": {"last": True},
}


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(measure, **PLAN[measure.name]) for measure in path_measures(run) if measure.name in PLAN]


def render(run: Checkpoints, results: Results) -> str:
    """Orders, then edges on repeated tokens and on text, then terms, each where the run has what it needs."""
    parts = [
        paragraph(
            "A head writes into the residual stream and later heads, as query, key or value, and the logits read it there. A "
            "<b>path</b> is one way from the token to the logits; an <b>edge</b> is one step of it."
        )
    ]
    parts += orders(results["term_importance"]) if "term_importance" in results else []
    for name, what in ((REPEATS, "repeated random tokens (the loss of the repeated half)"), (TEXT, "the run’s held-out text")):
        parts += edges(run, name, results[name], what) if name in results else []
    parts += terms(results["path_terms"]) if "path_terms" in results else []
    if len(parts) == 1:
        parts.append(paragraph("<b>Left out.</b> This run has neither a text nor room for repeated tokens."))
    return Markup("\n").join(parts)


def orders(found: "xr.Dataset") -> list[Markup]:
    """Marginal effects of paths by the number of heads in them."""
    step = last_measured(found)
    end = found.sel(step=step)
    rows = []
    for order in end["order"].values:
        here = end.sel(order=order)
        rows.append(
            (
                f"{int(order)} (no head)" if order == 0 else f"{int(order)}",
                with_error(float(here["value"]), float(here["stderr"])),
                decimal(float(here["null_mean"])),
                with_error(float(here["excess"]), float(here["excess_stderr"])),
                with_error(float(here["loss"]), float(here["loss_stderr"])),
            )
        )
    by_layer = "; ".join(
        f"layer {int(layer)}: {with_error(float(here['alone']), float(here['alone_stderr']))} nats against the direct path only, "
        f"{with_error(float(here['given_rest']), float(here['given_rest_stderr']))} given everything else"
        for layer in end["layer"].values
        for here in [end.sel(layer=layer)]
    )
    parts = [
        Markup("<h3>Paths by the number of heads in them</h3>"),
        paragraph(
            "With attention patterns and the scales of norms kept from the run itself, the logits are a sum over paths, biases "
            "as terms of their own. The marginal effect of an order is what the loss falls by when its paths are added to all "
            "shorter ones (Elhage et al. 2021), above 0 where they help. The null adds the paths of other examples instead: what "
            "such paths do without having read this text. Order 0 is against the uniform prediction."
        ),
        table(
            ("heads in the path", "marginal effect (nats)", "null", "less its null", "loss with all up to it"),
            rows, numeric=range(1, 5),
            caption=f"Step {count(step)}, held-out text, ± standard error over {end.attrs.get('n_examples', '')} examples. "
            f"Paths through one head, by its layer: {by_layer}.",
        ),
    ]  # fmt: skip
    if found.sizes["step"] > 1:
        parts.append(
            image(
                rendered(order_curves(found), "svg"),
                "image/svg+xml",
                alt="Marginal effect of paths by order over training.",
                caption="Marginal effect by order over the measured checkpoints, nats; bands are ± one standard error.",
            )
        )
    return parts


def edges(run: Checkpoints, name: str, found: "xr.Dataset", what: str) -> list[Markup]:
    """The table of the strongest edges, all of them as a map, the circuit of the strongest, and curves."""
    step = last_measured(found)
    end = found.sel(step=step)
    scores = dict(zip(edge_list(end), end["value"].values.tolist(), strict=True))
    best = ranking(scores)
    rows = [edge_row(end, edge) for edge in best[:ROWS]]
    top = "; ".join(f"{edge} {decimal(scores[edge])}" for edge in best[:3])
    base = with_error(float(end["base"]), float(end["base_stderr"]))
    parts = [
        Markup("<h3>Edges on {}</h3>").format(what),
        paragraph(
            "Each edge alone: what the loss rises by (nats) when its reader gets the source’s mean over many other sequences in "
            "place of the source, and everything behind the reader reacts. Redundant edges hide each other here. Clean loss: {}.",
            base,
        ),
        table(
            ("edge", "effect (nats)", "its kind: mean (sd)", "distance (sd)", "p"), rows, numeric=range(1, 5),
            caption=f"Step {count(step)}: the {len(rows)} edges of largest effect, of {len(scores)}, ± standard error over "
            f"{end.attrs.get('n_examples', '')} examples. Its kind: the other edges between heads of the same two layers, into "
            "the same input. The distance from them, in their sd, describes and is no test, since edges that do nothing hardly "
            "vary; p is two-sided by rank among them, ≤ where as small as it can be, “untestable” where that is above .05, and "
            "not adjusted for the number of edges.",
        ),
        image(
            rendered(edge_table(end, scale="symlog"), "svg"), "image/svg+xml",
            alt=f"Effect of every edge at step {step}, by source and destination. Largest: {top}.",
            caption=f"Every edge at step {count(step)} (linear near 0, logarithmic beyond). Hatched: no such edge.",
        ),
    ]  # fmt: skip
    if name == REPEATS:  # of text the strongest edges lead everywhere
        parts.append(drawn(run, scores, best, step))
    if found.sizes["step"] > 2:
        parts.append(
            image(
                rendered(edge_curves(found, [str(edge) for edge in best[:CURVES]]), "svg"),
                "image/svg+xml",
                alt=f"The strongest edges over training. At step {step}: {top}.",
                caption="The edges that end strongest, over the measured checkpoints; bands are ± one standard error. "
                "“circuits paths RUN” measures every checkpoint.",
            )
        )
    return parts


def edge_row(end: "xr.Dataset", edge: Edge) -> tuple[Any, ...]:
    here = end.sel(edge=str(edge))
    kind = f"{decimal(float(here['null_mean']))} ({spread(float(here['null_sd']))})"
    return (
        Markup("<b>{}</b>").format(str(edge)),
        with_error(float(here["value"]), float(here["stderr"])),
        kind,
        z_score(float(here["z"])),
        rank_p(float(here["p"]), float(here["smallest_p"])),
    )


def rank_p(p: float, smallest: float) -> str:
    """A p by rank, or that it could never have been small."""
    if not np.isfinite(p) or smallest > ALPHA:
        return "untestable" + (f" ({probability(p, smallest)})" if np.isfinite(p) else "")
    return probability(p, smallest)


def drawn(run: Checkpoints, scores: dict[Edge, float], best: list[Edge], step: int) -> Markup:
    """The strongest edges as a circuit: those on a way from the embeddings to the logits."""
    wiring = Wiring.of(own(run.at(step)))
    circuit = Circuit(wiring, tuple(best[:DRAWN]), scores).connected()
    return image(
        rendered(circuit_graph(circuit, title=f"The strongest edges at step {count(step)}"), "svg"), "image/svg+xml",
        alt=f"A drawing of {len(circuit)} edges.",
        caption=f"Of the {min(DRAWN, len(best))} strongest edges at step {count(step)}, the {len(circuit)} that are on a way "
        "from an embedding to the logits. A drawing, not a verified circuit: circuits.paths.faithfulness verifies one.",
    )  # fmt: skip


def terms(found: "xr.Dataset") -> list[Markup]:
    """The paths with the largest shares of the loss."""
    step = last_measured(found)
    end = found.sel(step=step)
    order = np.argsort(-np.abs(end["value"].values), kind="stable")[:ROWS]
    rows = [
        (
            Markup("<b>{}</b>").format(str(end["edge"].values[at])),
            with_error(float(end["value"][at]), float(end["stderr"][at])),
            decimal(float(end["null_mean"][at])),
            with_error(float(end["excess"][at]), float(end["excess_stderr"][at])),
        )
        for at in order
    ]
    loss, uniform = (float(end.attrs.get(name, np.nan)) for name in ("loss", "uniform"))
    of = f" of {decimal(loss - uniform)}" if np.isfinite(loss) else ""
    return [
        Markup("<h3>Terms of the path expansion</h3>"),
        table(
            ("path", "share of the loss (nats)", "other targets", "less that"), rows, numeric=(1, 2, 3),
            caption=f"Step {count(step)}: the {len(rows)} paths with the largest shares; all shares add up to the loss less that "
            f"of the uniform prediction{of}. Below 0: the path lowers the loss. The null reads the same term against the "
            "targets of other examples: what a path does whatever comes next, such as raising frequent tokens, it does there "
            "too. These are value paths, patterns given; what shapes patterns is in the edges above.",
        ),
    ]  # fmt: skip


SECTION = Section("paths", "Paths and edges", 47, measures, render)
