"""The graph of a model: who writes into the residual stream, who reads from it, and so which edges there are.

    sources        "embed"; "pos" where positions are learned; each head "L0H3" (what it writes, z W_O, without b_O);
                   each MLP "L0MLP" (with its output bias)
    destinations   a head's three inputs "L1H4.q", "L1H4.k", "L1H4.v"; an MLP's input "L0MLP"; "logits", the final stream

An edge ``source -> destination`` exists where the source writes before the destination reads. Standard positions are in the
stream and are read by all; shortformer positions reach queries and keys only, behind the norm; rotary ones are no source. Output
biases of attention are constants, not sources; they are terms of the path expansion.

With H heads, L layers, s = H (+ 1 with MLPs) sources a layer and one embedding, there are
``sum_l 3H(1 + l s) + [MLPs] sum_l (1 + l s + H) + (1 + L s)`` edges: 81 for 2 layers of 4 heads, 257 for 2 of 8, 1,281 for 4 of 8
(positions come on top). Source: the factorised graph of auto-circuit (Miller et al. 2024).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.models.own import own

CHANNELS = ("q", "k", "v")
EMBED, POS, LOGITS = "embed", "pos", "logits"


class Edge(NamedTuple):
    """One edge, by the names of its ends; ``str(edge)`` is ``"L0H3 -> L1H4.k"``."""

    source: str
    destination: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination}"


def mlp_name(layer: int) -> str:
    return f"L{layer}MLP"


def head_input(layer: int, head: int, channel: str) -> str:
    return f"{Head(layer, head)}.{channel}"


@dataclass(frozen=True)
class Wiring:
    """Sources, destinations and edges of one shape of model, each in the order of computation.

    Args:
        cfg: of the model.
    """

    cfg: HookedTransformerConfig

    @classmethod
    def of(cls, model: Any) -> "Wiring":
        """The wiring of a model of ours."""
        return _wiring(model.cfg.model_copy(update=dict.fromkeys(_FLAGS, False)))

    @cached_property
    def sources(self) -> tuple[str, ...]:
        cfg = self.cfg
        names = [EMBED] + ([POS] if cfg.positional_embedding_type in ("standard", "shortformer") else [])
        for layer in range(cfg.n_layers):
            names += [str(Head(layer, head)) for head in range(cfg.n_heads)]
            names += [] if cfg.attn_only else [mlp_name(layer)]
        return tuple(names)

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        cfg = self.cfg
        names: list[str] = []
        for layer in range(cfg.n_layers):
            names += [head_input(layer, head, channel) for channel in CHANNELS for head in range(cfg.n_heads)]
            names += [] if cfg.attn_only else [mlp_name(layer)]
        return (*names, LOGITS)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """By destination, then by source."""
        return tuple(Edge(source, dest) for dest in self.destinations for source in self.sources if self.has(source, dest))

    @cached_property
    def source_index(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.sources)}

    @cached_property
    def destination_index(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.destinations)}

    def has(self, source: str, destination: str) -> bool:
        """Whether the destination reads what the source writes."""
        if source not in self.source_index or destination not in self.destination_index:
            return False
        if source == POS and self.cfg.positional_embedding_type == "shortformer":
            return destination.endswith((".q", ".k"))
        return self._written(source) < self._read(destination)

    def _written(self, source: str) -> float:
        """When: embeddings at -1, the heads of layer l at l, its MLP at l + 1/2."""
        return -1.0 if source in (EMBED, POS) else layer_of(source) + 0.5 * source.endswith("MLP")

    def _read(self, destination: str) -> float:
        """When: a head of layer l just before it writes, its MLP too, and where both are parallel, at one time."""
        if destination == LOGITS:
            return float(self.cfg.n_layers)
        late = destination.endswith("MLP") and not self.cfg.parallel_attn_mlp
        return layer_of(destination) + 0.25 * late

    def edges_of(self, source: str) -> tuple[Edge, ...]:
        """Every edge that leaves a source: ablating them together is ablating the source."""
        return tuple(edge for edge in self.edges if edge.source == source)

    def sources_of_layer(self, layer: int) -> tuple[str, ...]:
        """What the heads of a layer can read."""
        return tuple(name for name in self.sources if self._written(name) < layer)

    def matched(self, edge: Edge) -> tuple[Edge, ...]:
        """The other edges of the same kind: heads exchanged for heads of their layers, the channel kept."""
        kind = self.kind(edge)
        return tuple(other for other in self.edges if other != edge and self.kind(other) == kind)

    def kind(self, edge: Edge) -> str:
        """What an edge has in common with those it is compared with, such as ``"L0H -> L1H.k"``."""
        return f"{_class(edge.source)} -> {_class(edge.destination)}"


def wiring_of(model: Any) -> Wiring:
    """The wiring of any model of the protocol.

    Raises:
        TypeError: not a hooked model. ValueError: one that cannot be represented in our class.
    """
    return Wiring.of(own(model))


_FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
"""Hook points that are switched on or off: the graph is the same."""


@lru_cache(maxsize=32)
def _wiring(cfg: HookedTransformerConfig) -> Wiring:
    """One object for each shape: its lists are made once."""
    return Wiring(cfg)


def layer_of(name: str) -> int:
    """The layer of a head, of one of its inputs, or of an MLP."""
    return int(name[1:].split("H")[0].split("M")[0])


def head_of(name: str) -> Head:
    """The head of ``"L1H4"`` or ``"L1H4.k"``."""
    return Head.parse(name.split(".")[0])


def _class(name: str) -> str:
    if name in (EMBED, POS, LOGITS) or name.endswith("MLP"):
        return name
    head, _, channel = name.partition(".")
    return head.split("H")[0] + "H" + (f".{channel}" if channel else "")


def by_kind(wiring: Wiring, edges: Iterable[Edge]) -> dict[str, list[Edge]]:
    """Edges by what they are compared with."""
    found: dict[str, list[Edge]] = {}
    for edge in edges:
        found.setdefault(wiring.kind(edge), []).append(edge)
    return found
