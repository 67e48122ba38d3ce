"""Circuits as sets of edges, and three ways to choose one.

    threshold   every edge whose effect (its modulus by default) is at least tau
    ranked      the n edges of largest effect or attribution
    greedy      from the whole model, edges are removed one by one, late destinations first and weak edges of a destination
                before strong ones; an edge stays away where that moves the metric by less than tau, up or down, given what is
                gone already (after ACDC, Conmy et al. 2023). One run of the model for each edge

An edge not in the circuit is ablated, all of them together, with current values (``circuits.paths.edited``). A circuit may hold
edges that lead nowhere; ``connected()`` leaves out those that are on no way from an embedding to the logits.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.paths.edges import edge_list
from circuits.paths.intervention import Intervention
from circuits.paths.places import Place, edges_in, read
from circuits.paths.wiring import EMBED, LOGITS, POS, Edge, Wiring, wiring_of
from circuits.progress import bar
from circuits.results import check_whole

if TYPE_CHECKING:
    import networkx as nx
    import xarray as xr


@dataclass(frozen=True)
class Circuit:
    """A set of edges of one wiring.

    Args:
        wiring: of the model. edges: in the wiring's order. scores: what each was chosen by, if anything.
    """

    wiring: Wiring
    edges: tuple[Edge, ...]
    scores: dict[Edge, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        known = set(self.wiring.edges)
        if wrong := [edge for edge in self.edges if edge not in known]:
            what = " -> ".join(wrong[0]) if isinstance(wrong[0], tuple) else repr(wrong[0])
            raise ValueError(f"{what} is no edge of this model: list(circuit.wiring.edges) has them, Circuit.of takes text")
        asked = set(self.edges)
        object.__setattr__(self, "edges", tuple(edge for edge in self.wiring.edges if edge in asked))

    @classmethod
    def of(cls, model: Any, place: "Place | str | list[Any]") -> "Circuit":
        """The circuit whose edges a place names.

        Raises:
            TypeError, ValueError: no place of this model, or one with paths of several hops.
        """
        wiring = wiring_of(model)
        return cls(wiring, edges_in(read(place), wiring))

    def __len__(self) -> int:
        return len(self.edges)

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def __repr__(self) -> str:
        return f"Circuit({len(self)} of {len(self.wiring.edges)} edges)"

    @property
    def complement(self) -> tuple[Edge, ...]:
        """The edges that are not in it."""
        own = set(self.edges)
        return tuple(edge for edge in self.wiring.edges if edge not in own)

    def without(self, edges: Iterable[Edge]) -> "Circuit":
        gone = set(edges)
        return Circuit(self.wiring, tuple(edge for edge in self.edges if edge not in gone), self.scores)

    def graph(self) -> "nx.DiGraph":
        """As a networkx graph: nodes are sources, heads' inputs (``"L1H4.k"``) and the logits, edges carry ``score``.

        From each input of a head that something reaches leads an edge without a score to the head.
        """
        import networkx as nx

        graph = nx.DiGraph()
        for edge in self.edges:
            graph.add_edge(edge.source, edge.destination, score=self.scores.get(edge, np.nan))
            if "." in edge.destination:
                graph.add_edge(edge.destination, edge.destination.split(".")[0])
        return graph

    def connected(self) -> "Circuit":
        """Without edges that are on no way from an embedding to the logits."""
        import networkx as nx

        graph = self.graph()
        starts = [name for name in (EMBED, POS) if name in graph]
        after = set(starts).union(*(nx.descendants(graph, name) for name in starts)) if starts else set()
        before = nx.ancestors(graph, LOGITS) | {LOGITS} if LOGITS in graph else set()
        kept = tuple(edge for edge in self.edges if edge.source in after and edge.destination in before)
        return Circuit(self.wiring, kept, self.scores)


def threshold(model: Any, effects: "xr.Dataset", tau: float, *, variable: str = "value", modulus: bool = True) -> Circuit:
    """The edges whose effect reaches ``tau``.

    Args:
        model: whose edges these are. effects: of ``EdgeEffects`` or ``EdgeAttribution``. tau: in nats. variable: which of its
        numbers. modulus: whether edges that harm the model count as those that help it.

    Raises:
        ValueError: ``tau`` is no number, or there is no such variable.
    """
    check_tau(tau)
    scores = _scores(effects, variable)
    chosen = [edge for edge, score in scores.items() if (abs(score) if modulus else score) >= tau]
    return Circuit(wiring_of(model), tuple(chosen), scores)


def ranked(model: Any, effects: "xr.Dataset", n: int, *, variable: str = "value", modulus: bool = True) -> Circuit:
    """The ``n`` edges of largest effect; options as in ``threshold``.

    Raises:
        ValueError: ``n`` is no whole number.
    """
    check_whole("n", n, 0)
    scores = _scores(effects, variable)
    return Circuit(wiring_of(model), tuple(ranking(scores, modulus=modulus)[:n]), scores)


def ranking(scores: dict[Edge, float], *, modulus: bool = True) -> list[Edge]:
    """Edges by score, the largest first; equal ones in the order given."""
    return sorted(scores, key=lambda edge: -(abs(scores[edge]) if modulus else scores[edge]))


def greedy(made: Intervention, tau: float, *, scores: dict[Edge, float] | None = None, progress: bool | None = None) -> Circuit:
    """Remove edges one by one where that costs less than ``tau``; see the module's docstring.

    Args:
        made: the intervention; ``EdgeEffects(...).intervention(model)``. tau: how far the metric may move with one edge, up or
        down. scores: effects that say which edges are tried first (default: their exact effects). progress: show a bar
        (default: if watched).

    Returns:
        The circuit that is left; ``scores`` are what removing each edge did when it was tried, in the unit of the metric.

    Raises:
        ValueError: ``tau`` is no number.
    """
    if not isinstance(made, Intervention):
        raise TypeError(f"got a {type(made).__name__}, need an Intervention: EdgeEffects(tokens, ...).intervention(model)")
    check_tau(tau)
    wiring = made.wiring
    if scores is None:
        scores = dict(zip(wiring.edges, made.one_by_one().mean(-1).tolist(), strict=True))
    late = {name: -at for at, name in enumerate(wiring.destinations)}
    order = sorted(wiring.edges, key=lambda edge: (late[edge.destination], abs(scores.get(edge, 0.0))))
    gone: list[Edge] = []
    now = 0.0
    cost: dict[Edge, float] = {}
    for edge in bar(order, label="greedy: edges", on=progress):
        then = float(made.together([[*gone, edge]])[0].double().mean())
        cost[edge] = then - now
        if abs(then - now) < tau:
            gone.append(edge)
            now = then
    removed = set(gone)
    return Circuit(wiring, tuple(edge for edge in wiring.edges if edge not in removed), cost)


def check_tau(tau: Any) -> None:
    """Refuse a threshold that is no number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(tau, bool) or not isinstance(tau, int | float | np.number) or not np.isfinite(tau):
        raise ValueError(f"tau={tau!r}: need a number of nats, or in the unit of the metric")


def _scores(effects: "xr.Dataset", variable: str) -> dict[Edge, float]:
    import xarray as xr

    if not isinstance(effects, xr.Dataset):
        raise TypeError(f"effects are a {type(effects).__name__}, need their result: EdgeEffects(tokens, ...)(model)")
    fit = [str(name) for name, found in effects.data_vars.items() if found.dims == ("edge",) and found.dtype.kind == "f"]
    if variable not in fit:
        raise ValueError(
            f"there is no number {variable!r} for each edge of one checkpoint in these effects; there are "
            f"{', '.join(fit) or 'none'}"
        )
    if np.isnan(effects[variable].values).any():
        raise ValueError(f"{variable!r} is NaN for some edges, which cannot be ranked: choose another variable")
    return dict(zip(edge_list(effects), effects[variable].values.tolist(), strict=True))
