"""Places: a small language for parts of a model's graph, read the same way by every measure of paths.

    node       "embed", "pos", a head "L0H3" (also "l0h3", "0:3", "0.3", "L0.3"), an MLP "L0MLP"; "logits" is read, never writes
    path       hops joined by "->": "L0H3 -> L1H4.k", "L0H3 -> L1H4.v -> logits", "embed -> L0MLP -> logits"
    inputs     a head that reads may say by what: ".q", ".k", ".v", several (".qk"), or none, which is all three
    globs      "*", "L0H*", "L*H3", "L0H[0-3]", "L1H*.k": every node (with such an input) of which the name fits
    sets       "{L0H3, L0H5} -> L1H4.k": any of these hops
    unions     "L0H3 -> L1H4.k, L0H5": all paths of the parts
    lone node  "L0H3": every edge out of it: ablating the place is ablating the node; "* -> L1H4.k" is all that is read there

A place is text until it meets a wiring: its concrete paths are those whose every hop is an edge. Of sets and globs only what
exists is kept, as long as each part of the union has one path left; a name that does not exist is always an error. Globs are
those of the shell (Python's ``fnmatch``).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from circuits.models.heads import Head
from circuits.paths.wiring import CHANNELS, EMBED, LOGITS, POS, Edge, Wiring, head_input, head_of, layer_of, mlp_name

Path = tuple[str, ...]
"""A concrete path: a source, then destinations, such as ``("L0H3", "L1H4.k", "logits")``."""

_INPUT = re.compile(r"(.+?)(?:\.([^\d.\]]*))?", re.DOTALL)
_HEAD = re.compile(r"(?:l(\d+)[h:.]|(\d+)[:.])(\d+)", re.ASCII)
_MLP = re.compile(r"l(\d+)mlp", re.ASCII)
_GLOB = re.compile(r"(?:[a-z0-9*?]|\[[a-z0-9!-]+\])*", re.ASCII)
_CAPITALS = ("l", "h", "m", "ml", "lp", "mlp")
_FORMS = "nodes are embed, pos, heads such as L0H3, MLPs such as L0MLP, and logits; globs are such as L0H* or L0H[0-3]"


class Stop(NamedTuple):
    """One member of a hop: a node's name or a glob, and the inputs named (empty: all that there are)."""

    name: str
    channels: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.channels}" if self.channels else self.name

    @property
    def is_glob(self) -> bool:
        return any(mark in self.name for mark in "*?[")


Hop = tuple[Stop, ...]
Route = tuple[Hop, ...]


@dataclass(frozen=True)
class Place:
    """A set of paths, by name; ``str(place)`` is its canonical text and parses back to an equal place.

    Args:
        routes: the parts of the union; each is a sequence of hops, each hop a set of stops. Use ``Place.parse(text)``.

    Example:
        >>> str(Place.parse("0:3->l1h4.kq,L0H5"))
        'L0H3 -> L1H4.qk, L0H5'
    """

    routes: tuple[Route, ...]

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read a place; see the module's docstring for the language.

        Raises:
            TypeError: not text. ValueError: it is empty or malformed, starts at an input, or goes on from the logits; the
            part is named.
        """
        if not isinstance(text, str):
            raise TypeError(f"a place is text such as 'L0H3 -> L1H4.k', got a {type(text).__name__}")
        if not text.strip():
            raise ValueError("the place is empty: name a node such as 'L0H3', or a path such as 'L0H3 -> L1H4.k'")
        return cls(tuple(dict.fromkeys(_route(part) for part in _split(text))))

    def __str__(self) -> str:
        return ", ".join(map(_route_text, self.routes))

    def paths(self, wiring: Wiring) -> tuple[Path, ...]:
        """The concrete paths, each once: shorter ones first, then by destinations from the last to the first, then by source.

        Paths of one hop are thus in the order of ``wiring.edges``.

        Raises:
            TypeError: not a wiring. ValueError: a part of the place names what does not exist, or has no path.
        """
        if not isinstance(wiring, Wiring):
            raise TypeError(f"paths are those of a Wiring, got a {type(wiring).__name__}: pass Wiring.of(model)")

        def order(path: Path) -> tuple[int, ...]:
            return len(path), *(wiring.destination_index[name] for name in path[:0:-1]), wiring.source_index[path[0]]

        return tuple(sorted({path for route in self.routes for path in _walk(route, wiring)}, key=order))


def read(given: Place | str | Head | Edge | Sequence[Place | str | Head | Edge]) -> Place:
    """The place that is meant: a Place, its text, a head (all that it writes), an edge, or a sequence of those (their union).

    Raises:
        TypeError: something else. ValueError: an empty sequence, or text that is no place.
    """
    if isinstance(given, Place):
        return given
    if isinstance(given, str):
        return Place.parse(given)
    if isinstance(given, Head | Edge):
        return Place.parse(str(given))
    parts = given if isinstance(given, Sequence) else [given]
    if parts is not given or not all(isinstance(part, Place | str | Head | Edge) for part in parts):
        raise TypeError(f"{given!r} is no place: pass text such as 'L0H3 -> L1H4.k', a Head, an Edge, or a sequence of those")
    if not given:
        raise ValueError("no place is given, the sequence is empty: pass one place or more")
    return Place(tuple(dict.fromkeys(route for part in given for route in read(part).routes)))


def edges_in(place: Place, wiring: Wiring) -> tuple[Edge, ...]:
    """The edges of a place, in the wiring's order.

    Raises:
        ValueError: the place holds a path of two hops or more.
    """
    paths = place.paths(wiring)
    if longer := [path for path in paths if len(path) > 2]:
        raise ValueError(
            f"{' -> '.join(longer[0])} has {len(longer[0]) - 1} hops, this measure takes single edges: "
            f"name one, such as '{' -> '.join(longer[0][:2])}'"
        )
    return tuple(Edge(*path) for path in paths)


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside braces."""
    if re.search(r"\{[^{}]*\{|^[^{]*\}|\}[^{]*\}|\{[^}]*$", text):
        raise ValueError(f"{text.strip()!r}: braces must pair and not nest: write '{{L0H3, L0H5}} -> L1H4.k'")
    yield from re.split(r",(?![^{}]*\})", text)


def _route(text: str) -> Route:
    hops = tuple(_hop(part.strip(), text.strip()) for part in text.split("->"))
    source, shown = hops[0], _route_text(hops)
    for hop in hops[:-1] if len(hops) > 1 else hops:
        if any(stop.name == LOGITS for stop in hop):
            raise ValueError(f"{shown}: logits are read and write nothing: write '* -> logits' for all that reaches them")
    if named := [stop for stop in source if stop.channels]:
        rest = _route_text(hops[1:]) if len(hops) > 1 else ""
        meant = f"* -> {named[0]}" + (f" -> {rest}" if rest else "")
        at = f"{shown}: " if rest else ""
        raise ValueError(f"{at}{named[0]} names an input, not a writer: write '{meant}' for all it reads")
    for stop in (stop for hop in hops[1:] for stop in hop):
        if stop.name in (EMBED, POS):
            raise ValueError(
                f"{shown}: {stop.name} reads nothing, so no path leads to it: start with it, as '{stop.name} -> logits'"
            )
    return hops


def _hop(text: str, route: str) -> Hop:
    inner = text
    if "{" in text or "}" in text:
        if not (text.startswith("{") and text.endswith("}")):
            raise ValueError(f"{route!r}: {text!r} is no hop: write inputs inside the braces, as in {{L1H4.k, L1H5.k}}")
        inner = text[1:-1]
    return tuple(dict.fromkeys(_stop(part.strip(), route) for part in inner.split(",")))


def _stop(text: str, route: str) -> Stop:
    if not text:
        raise ValueError(f"{route!r} has an empty part; {_FORMS}")
    match = _INPUT.fullmatch(text)
    given, channels = match.groups() if match else (text, None)
    name = _canonical(given)
    if name is None:
        raise ValueError(f"{route!r}: {text!r} is no node; {_FORMS}")
    if channels is None:
        return Stop(name)
    if not channels or set(channels.lower()) - set(CHANNELS):
        raise ValueError(
            f"{route!r}: {'.' + channels!r} is no input of a head; its inputs are .q, .k, .v, or several, such as .qk"
        )
    if name in (EMBED, POS, LOGITS) or _MLP.fullmatch(name.lower()):
        raise ValueError(f"{route!r}: {name} has no input .{channels}; only heads have inputs .q, .k, .v: write {name!r}")
    kept = "".join(channel for channel in CHANNELS if channel in channels.lower())
    stop = Stop(name, kept)
    # All three of one head is what no input says; of a glob it is not, since "*" fits MLPs and the logits too.
    return Stop(name) if kept == "".join(CHANNELS) and not stop.is_glob else stop


def _canonical(given: str) -> str | None:
    """A node's or a glob's one spelling."""
    name = given.lower()
    if name in (EMBED, POS, LOGITS):
        return name
    if match := _HEAD.fullmatch(name):
        return str(Head(int(match[1] or match[2]), int(match[3])))
    if match := _MLP.fullmatch(name):
        return mlp_name(int(match[1]))
    if _GLOB.fullmatch(name) and Stop(name).is_glob:
        return re.sub("[a-z]+", lambda letters: letters[0].upper() if letters[0] in _CAPITALS else letters[0], name)
    return None


def _hop_text(hop: Hop) -> str:
    return str(hop[0]) if len(hop) == 1 else "{" + ", ".join(map(str, hop)) + "}"


def _route_text(route: Route) -> str:
    return " -> ".join(map(_hop_text, route))


def _walk(route: Route, wiring: Wiring) -> list[Path]:
    """All concrete paths of one route."""
    text = _route_text(route)
    paths: list[Path] = [(name,) for stop in route[0] for name in _nodes(stop, wiring, text, wiring.sources)]
    for before, hop in zip(route, route[1:] or ((Stop("*"),),), strict=False):
        readers = [name for stop in hop for name in _readers(stop, wiring, text)]
        longer = [(*path, name) for path in paths for name in readers if wiring.has(path[-1].split(".")[0], name)]
        if not longer:
            raise ValueError(_why_not(wiring, text, before, hop, {path[-1] for path in paths}))
        paths = longer
    return paths


def _readers(stop: Stop, wiring: Wiring, text: str) -> list[str]:
    """The destinations that one stop names."""
    nodes = tuple(dict.fromkeys(name.split(".")[0] for name in wiring.destinations))
    fitting = _nodes(stop, wiring, text, tuple(name for name in nodes if "H" in name) if stop.channels else nodes)
    found: list[str] = []
    for name in fitting:
        head = head_of(name) if "H" in name else None
        found += [name] if head is None else [head_input(head.layer, head.head, c) for c in stop.channels or CHANNELS]
    return found


def _nodes(stop: Stop, wiring: Wiring, text: str, existing: Sequence[str]) -> list[str]:
    """Which of the existing nodes a stop names."""
    found = [name for name in existing if (fnmatchcase(name, stop.name) if stop.is_glob else name == stop.name)]
    if found:
        return found
    if stop.is_glob:
        raise ValueError(f"{text}: {stop} matches nothing; there {_listed(existing)}")
    raise ValueError(f"{text}: there is no {stop.name}; {_instead(stop.name, wiring, existing)}")


def _instead(name: str, wiring: Wiring, existing: Sequence[str]) -> str:
    """What there is of the kind that was asked for."""
    cfg = wiring.cfg
    if name == POS:
        return f"{cfg.positional_embedding_type} positions write nothing, there {_listed(existing)}"
    if name.endswith("MLP"):
        return "the model is attention-only" if cfg.attn_only else f"MLPs are {_span(mlp_name(0), mlp_name(cfg.n_layers - 1))}"
    if (layer := layer_of(name)) < cfg.n_layers:
        return f"heads of layer {layer} are {_span(str(Head(layer, 0)), str(Head(layer, cfg.n_heads - 1)))}"
    return f"heads are {_span(str(Head(0, 0)), str(Head(cfg.n_layers - 1, cfg.n_heads - 1)))}"


def _listed(existing: Sequence[str]) -> str:
    groups = ([name for name in existing if kind in name] for kind in ("H", "MLP"))
    spans = [_span(group[0], group[-1]) for group in groups if group]
    named = [name for name in existing if name in (EMBED, POS)] + spans + [name for name in existing if name == LOGITS]
    return f"are {', '.join(named)}"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}..{last}"


def _why_not(wiring: Wiring, text: str, before: Hop, hop: Hop, writers: set[str]) -> str:
    """Why two hops have no edge between them."""
    if writers == {POS} and wiring.cfg.positional_embedding_type == "shortformer":
        return f"{text}: with shortformer positions, pos reaches queries and keys only: name inputs .q or .k, as 'pos -> L0H*.qk'"
    step = f"{_hop_text(before)} -> {_hop_text(hop)}"
    at = "" if step == text else f"{text}: "
    if len(before) == len(hop) == 1 and not before[0].is_glob and not hop[0].is_glob:
        reads = "is read" if hop[0].channels else "reads"
        return f"{at}{step} goes backwards: {hop[0]} {reads} before {before[0].name} writes"
    return f"{at}{step} goes backwards: all of {_hop_text(hop)} reads before any of {_hop_text(before)} writes"
