"""The language of places: what it says, what it refuses and in which words, and that text and places are one to one."""

import re
from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from circuits.models.config import HookedTransformerConfig
from circuits.models.heads import Head
from circuits.paths.places import Place, edges_in, read
from circuits.paths.wiring import Edge, Wiring

SIZES = {"d_model": 8, "n_heads": 8, "d_head": 4, "n_ctx": 8, "d_vocab": 11}


def wiring(layers=2, positions="shortformer", heads=8, **more):
    more = more or {"attn_only": True}
    return Wiring(
        HookedTransformerConfig(**SIZES | {"n_layers": layers, "n_heads": heads, "positional_embedding_type": positions} | more)
    )


MLP = {"act_fn": "relu"}
SHORT = wiring()
DEEP = wiring(3, "standard", heads=2, **MLP)


def test_paths_of_each_form():
    assert Place.parse("L0H3 -> L1H4.k").paths(SHORT) == (("L0H3", "L1H4.k"),)
    assert Place.parse("L0H3 -> L1H4").paths(SHORT) == tuple(("L0H3", f"L1H4.{c}") for c in "qkv")
    assert Place.parse("L0H3 -> L1H4.vk").paths(SHORT) == tuple(("L0H3", f"L1H4.{c}") for c in "kv")
    assert Place.parse("L0H3 -> L1H4.v -> logits").paths(SHORT) == (("L0H3", "L1H4.v", "logits"),)
    assert Place.parse("embed -> L0MLP -> logits").paths(DEEP) == (("embed", "L0MLP", "logits"),)
    assert Place.parse("{L0H5, L0H3} -> L1H4.k").paths(SHORT) == (("L0H3", "L1H4.k"), ("L0H5", "L1H4.k"))
    assert Place.parse("L0H[0-3] -> L1H*.k").paths(SHORT) == tuple((f"L0H{u}", f"L1H{v}.k") for v in range(8) for u in range(4))
    assert Place.parse("L*H1 -> L1MLP").paths(DEEP) == (("L0H1", "L1MLP"), ("L1H1", "L1MLP"))
    # a glob with all three inputs is heads only, "*" is everything
    assert all("." in path[1] for path in Place.parse("L0H1 -> *.qkv").paths(DEEP))
    assert Place.parse("L0H1 -> *").paths(DEEP) == tuple(DEEP.edges_of("L0H1"))


def test_lone_nodes_are_all_that_they_write():
    for graph in (SHORT, DEEP):
        for name in graph.sources:
            assert edges_in(Place.parse(name), graph) == graph.edges_of(name)
        assert edges_in(Place.parse("*"), graph) == graph.edges
        assert edges_in(Place.parse("* -> L1H1.k"), graph) == tuple(e for e in graph.edges if e.destination == "L1H1.k")
    # shortformer positions reach no values; a union keeps each path once
    assert {edge.destination[-1] for edge in edges_in(Place.parse("pos -> *"), SHORT)} == {"q", "k"}
    assert edges_in(Place.parse("pos -> L0H3"), SHORT) == (Edge("pos", "L0H3.q"), Edge("pos", "L0H3.k"))
    assert edges_in(Place.parse("L0H5, L0H3 -> L1H4.k, L0H5 -> logits"), SHORT) == tuple(
        edge for edge in SHORT.edges if edge.source == "L0H5" or edge == ("L0H3", "L1H4.k")
    )


def test_middle_hops_take_what_exists():
    """Of "*" in the middle only what lies between is left, by hand for a model of 3 layers of 2 heads with MLPs."""
    found = Place.parse("L0H1 -> L*MLP -> L1H0.q").paths(DEEP)
    assert found == (("L0H1", "L0MLP", "L1H0.q"),)
    found = Place.parse("L1H0 -> * -> L2H1.v").paths(DEEP)
    assert found == (("L1H0", "L1MLP", "L2H1.v"),)
    found = Place.parse("L0H0 -> L1H*.qv -> L2H1.k, L0H0 -> logits").paths(DEEP)
    assert found == (("L0H0", "logits"), *(("L0H0", f"L1H{h}.{c}", "L2H1.k") for c in "qv" for h in range(2)))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("  l0h3->1:4.K ", "L0H3 -> L1H4.k"),
        ("0.3 -> L1.4.vq, L00H03", "L0H3 -> L1H4.qv, L0H3"),
        ("L0H3 -> L1H4.qkv -> LOGITS", "L0H3 -> L1H4 -> logits"),
        ("{L0H3,0:3} -> *.qkv", "L0H3 -> *.qkv"),
        ("{ L0H3 , l1mlp }, L0H3, l0h3", "{L0H3, L1MLP}, L0H3"),
        ("l0h[0-3] -> *mlp -> l*", "L0H[0-3] -> *MLP -> L*"),
        ("Em* -> L1H?", "em* -> L1H?"),
    ],
)
def test_spellings_normalise(text, canonical):
    assert str(Place.parse(text)) == canonical
    assert Place.parse(canonical) == Place.parse(text)


def test_what_read_takes(unchecked):
    place = Place.parse("L0H3 -> L1H4.k")
    assert read(place) is place
    assert read("L0H3->L1H4.k") == read(Edge("L0H3", "L1H4.k")) == read([Edge("L0H3", "L1H4.k")]) == place
    assert str(read(Head(0, 3))) == "L0H3"
    assert str(read(("0:5, 0:6", Head(0, 3), Edge("embed", "logits"), place, place))) == (
        "L0H5, L0H6, L0H3, embed -> logits, L0H3 -> L1H4.k"
    )
    assert hash(read("0:3")) == hash(read("L0H3"))
    for wrong in (3, None, (0, 3), [["L0H3"]], {"L0H3"}):
        with pytest.raises(TypeError, match="is no place: pass text such as"):
            read(wrong)
    with pytest.raises(ValueError, match="the sequence is empty"):
        read([])
    with pytest.raises(TypeError, match="got a int"):
        Place.parse(3)
    with pytest.raises(TypeError, match=r"got a str: pass Wiring\.of\(model\)"):
        place.paths("L0H3")


ROTARY = wiring(positions="rotary")
ONE = wiring(1, heads=1)
WRONG = [
    (SHORT, "L0H9 -> L1H4.k", "L0H9 -> L1H4.k: there is no L0H9; heads of layer 0 are L0H0..L0H7"),
    (SHORT, "L0H3 -> L2H4.k", "L0H3 -> L2H4.k: there is no L2H4; heads are L0H0..L1H7"),
    (SHORT, "{L0H3, L0H9} -> L1H4.k", "{L0H3, L0H9} -> L1H4.k: there is no L0H9; heads of layer 0 are L0H0..L0H7"),
    (ONE, "L0H9", "L0H9: there is no L0H9; heads of layer 0 are L0H0"),
    (SHORT, "L0MLP", "L0MLP: there is no L0MLP; the model is attention-only"),
    (DEEP, "embed -> L5MLP", "embed -> L5MLP: there is no L5MLP; MLPs are L0MLP..L2MLP"),
    (ROTARY, "pos", "pos: there is no pos; rotary positions write nothing, there are embed, L0H0..L1H7"),
    (SHORT, "L1H4 -> L0H3.q", "L1H4 -> L0H3.q goes backwards: L0H3.q is read before L1H4 writes"),
    (SHORT, "L0H4, L0H4 -> L0H3", "L0H4 -> L0H3 goes backwards: L0H3 reads before L0H4 writes"),
    (
        SHORT,
        "L0H3 -> L1H4.k -> L1H5.q",
        "L0H3 -> L1H4.k -> L1H5.q: L1H4.k -> L1H5.q goes backwards: L1H5.q is read before L1H4 writes",
    ),
    (SHORT, "L1H* -> L0H*", "L1H* -> L0H* goes backwards: all of L0H* reads before any of L1H* writes"),
    (
        SHORT,
        "pos -> L0H3.v",
        "pos -> L0H3.v: with shortformer positions, pos reaches queries and keys only: name inputs .q or .k, as 'pos -> L0H*.qk'",
    ),
    (SHORT, "L3H* -> logits", "L3H* -> logits: L3H* matches nothing; there are embed, pos, L0H0..L1H7"),
    (DEEP, "embed -> x*", "embed -> x*: x* matches nothing; there are L0H0..L2H1, L0MLP..L2MLP, logits"),
    (DEEP, "embed -> *MLP.k", "embed -> *MLP.k: *MLP.k matches nothing; there are L0H0..L2H1"),
    (SHORT, "logits", "logits: logits are read and write nothing: write '* -> logits' for all that reaches them"),
    (
        SHORT,
        "logits -> L1H4.k",
        "logits -> L1H4.k: logits are read and write nothing: write '* -> logits' for all that reaches them",
    ),
    (SHORT, "L1H4.k", "L1H4.k names an input, not a writer: write '* -> L1H4.k' for all it reads"),
    (
        SHORT,
        "L0H4.k -> L1H3",
        "L0H4.k -> L1H3: L0H4.k names an input, not a writer: write '* -> L0H4.k -> L1H3' for all it reads",
    ),
    (SHORT, "L0H3 -> embed", "L0H3 -> embed: embed reads nothing, so no path leads to it: start with it, as 'embed -> logits'"),
    (SHORT, " \n", "the place is empty: name a node such as 'L0H3', or a path such as 'L0H3 -> L1H4.k'"),
    (SHORT, "L0H3 -> L1H4.x", "'L0H3 -> L1H4.x': '.x' is no input of a head; its inputs are .q, .k, .v, or several, such as .qk"),
    (SHORT, "L0H3 -> L1H4.", "'L0H3 -> L1H4.': '.' is no input of a head; its inputs are .q, .k, .v, or several, such as .qk"),
    (DEEP, "L0H1 -> L1MLP.k", "'L0H1 -> L1MLP.k': L1MLP has no input .k; only heads have inputs .q, .k, .v: write 'L1MLP'"),
    (SHORT, "{L0H3, L0H5}.k -> logits", "write inputs inside the braces"),
    (SHORT, "{{L0H3}, L0H5}", "braces must pair and not nest"),
    (SHORT, "{L0H3, L0H5", "braces must pair and not nest"),
    (SHORT, "L0H3}", "braces must pair and not nest"),
    (SHORT, "L0H3 -> ", "has an empty part"),
    (SHORT, "L0H3,,L0H5", "has an empty part"),
    (SHORT, "{} -> logits", "has an empty part"),
    (SHORT, "L0H3 L0H5", "'L0H3 L0H5' is no node; nodes are embed, pos, heads such as L0H3"),
    (SHORT, "L0H[0", "'L0H[0' is no node"),
    (SHORT, "L0H3 > L1H4", "is no node"),
]


@pytest.mark.parametrize(("graph", "text", "sentence"), WRONG, ids=[text.strip() or "empty" for _, text, _ in WRONG])
def test_refusals(graph, text, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        Place.parse(text).paths(graph)
    assert "\n" not in str(error.value)


def test_edges_only():
    with pytest.raises(ValueError, match=r"^L0H3 -> L1H4\.v -> logits has 2 hops.*name one, such as 'L0H3 -> L1H4\.v'$"):
        edges_in(Place.parse("L0H3, L0H3 -> L1H4.v -> logits"), SHORT)


GRAPHS = [SHORT, DEEP, ROTARY, ONE, wiring(3, "shortformer", heads=2, act_fn="relu", parallel_attn_mlp=True)]
HEADS = st.builds("L{}H{}".format, st.integers(0, 2), st.integers(0, 2))
GLOBS = st.sampled_from(["*", "L0H*", "L*H1", "L?H[0-2]", "L1*", "L*MLP"])
INPUTS = st.sampled_from(["", ".q", ".k", ".v", ".qk", ".kv"])
SOURCES = st.one_of(HEADS, st.sampled_from(["embed", "pos", "L0MLP", "L1MLP"]), GLOBS)
READERS = st.one_of(st.builds(str.__add__, st.one_of(HEADS, GLOBS), INPUTS), st.sampled_from(["L0MLP", "L2MLP"]))


def hops(stops):
    """One stop, or a set of two or three."""
    several = st.lists(stops, min_size=2, max_size=3, unique=True).map(lambda given: "{" + ", ".join(given) + "}")
    return st.one_of(stops, stops, several)


@st.composite
def routes(draw):
    parts = [draw(hops(SOURCES)), *draw(st.lists(hops(READERS), max_size=2))]
    return " -> ".join(parts + (["logits"] if draw(st.booleans()) else []))


PLACES = st.lists(routes(), min_size=1, max_size=3, unique=True).map(", ".join)


@settings(max_examples=80, deadline=None)
@given(text=PLACES, spaces=st.sampled_from(["", " ", "\t  "]))
def test_text_and_places_are_one_to_one(text, spaces):
    place = Place.parse(text)
    assert str(place) == text
    assert Place.parse(text.lower().replace(" ", "").replace("->", f"{spaces}->{spaces}")) == place


def fits(stop, name, *, reads):
    """Whether a stop means a source or a destination, from the words of the module's docstring."""
    node, _, channel = name.partition(".")
    wanted, _, channels = stop.partition(".")
    return fnmatchcase(node, wanted) and (not reads or not channels or (channel != "" and channel in channels))


@settings(max_examples=80, deadline=None)
@given(text=routes(), graph=st.sampled_from(GRAPHS))
def test_paths_are_all_that_fit_and_made_of_edges(text, graph):
    """Against every path of the graph of this length, one after another."""
    parts = [part.strip("{}").split(", ") for part in text.split(" -> ")]
    parts = parts if len(parts) > 1 else [*parts, ["*"]]
    expected = [(name,) for name in graph.sources]
    for _ in parts[1:]:
        expected = [(*path, e.destination) for path in expected for e in graph.edges if e.source == path[-1].split(".")[0]]
        assume(len(expected) < 20_000)
    expected = {
        path
        for path in expected
        if all(any(fits(stop, name, reads=at > 0) for stop in parts[at]) for at, name in enumerate(path))
    }
    nodes = {name.split(".")[0] for name in (*graph.sources, *graph.destinations)}
    stops = [stop.split(".")[0] for part in parts for stop in part]
    known = all(any(fnmatchcase(node, stop) for node in nodes) for stop in stops)
    if not (known and expected):
        with pytest.raises(ValueError, match=r"there is no|matches nothing|goes backwards|shortformer"):
            Place.parse(text).paths(graph)
        return
    found = Place.parse(text).paths(graph)
    assert len(set(found)) == len(found)
    assert set(found) == expected
    assert all(graph.has(a.split(".")[0], b) for path in found for a, b in pairwise(path))
