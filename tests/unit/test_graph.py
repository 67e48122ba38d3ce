"""Drawings of circuits and figures of paths: what is drawn is what is there, text stays text, equal input gives equal bytes."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.models.config import HookedTransformerConfig
from circuits.paths.circuit import Circuit
from circuits.paths.wiring import Edge, Wiring
from circuits.views import graph, graph_layout, path_figures
from circuits.views.figures import rendered
from circuits.views.graph import circuit_graph, circuit_svg, show, to_svg
from circuits.views.graph_layout import layout

EVIL = '</title></svg><script>alert("1")</script> & $x$ \x00\ud800 中'
SVG = "{http://www.w3.org/2000/svg}"


def wiring(layers: int = 2, heads: int = 4, *, mlp: bool = False, parallel: bool = False) -> Wiring:
    return Wiring(
        HookedTransformerConfig(
            n_layers=layers, n_heads=heads, d_model=8, d_head=2, n_ctx=8, d_vocab=9, attn_only=not mlp,
            act_fn="relu" if mlp else None, positional_embedding_type="shortformer", parallel_attn_mlp=parallel,
        )
    )  # fmt: skip


def some(wires: Wiring, n: int, seed: int = 0) -> Circuit:
    rng = np.random.default_rng(seed)
    at = rng.choice(len(wires.edges), min(n, len(wires.edges)), replace=False)
    edges = tuple(wires.edges[i] for i in at)
    return Circuit(wires, edges, dict(zip(edges, rng.normal(size=len(edges)).tolist(), strict=True)))


def ids(svg: str, kind: str) -> list[str]:
    found = [part.get("id", "") for part in ElementTree.fromstring(svg).iter(f"{SVG}g")]
    return [name.removeprefix(f"{kind}-") for name in found if name.startswith(f"{kind}-")]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


INDUCTION = [
    Edge("embed", "L0H1.v"), Edge("pos", "L0H1.q"), Edge("L0H1", "L1H2.k"), Edge("embed", "L1H2.v"), Edge("L1H2", "logits"),
]  # fmt: skip


def test_every_node_on_an_edge_is_drawn_once_and_no_other():
    svg = circuit_svg(Circuit(wiring(), tuple(INDUCTION)))
    assert sorted(ids(svg, "node")) == ["L0H1", "L1H2", "embed", "logits", "pos"]
    assert sorted(ids(svg, "edge")) == sorted(f"{edge.source}-{edge.destination}" for edge in INDUCTION)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(1, 40), st.integers(0, 99))
def test_lines_go_up_from_box_to_port_and_meet_no_other_box(layers, heads, mlp, parallel, n, seed):
    wires = wiring(layers, heads, mlp=mlp, parallel=parallel and mlp)
    edges = some(wires, n, seed).edges
    plan = layout(wires, edges)
    level = {name: at for at, row in enumerate(plan.rows) for name in row}
    assert set(plan.x) == set(level) == {name for edge in edges for name in (edge.source, edge.destination.split(".")[0])}
    for row in plan.rows:
        assert all(np.diff([plan.x[name] for name in row]) >= graph_layout.BOX + graph_layout.GAP - 1e-9)
    assert all(np.diff(plan.y) > graph_layout.TALL)
    for edge, way in plan.ways.items():
        node, _, channel = edge.destination.partition(".")
        assert [at for at, _ in way] == list(range(level[edge.source], level[node] + 1)), "every row between, upwards"
        assert abs(way[0][1] - plan.x[edge.source]) <= graph_layout.BOX / 2
        assert abs(way[-1][1] - plan.x[node] - graph_layout.PORT_AT.get(channel, 0.0)) <= graph_layout.PORT / 2
        for at, x in way[1:-1]:
            assert all(abs(x - plan.x[name]) > graph_layout.BOX / 2 for name in plan.rows[at])


def test_rows_follow_the_computation_and_a_parallel_mlp_stands_beside_its_heads():
    every = wiring(2, 2, mlp=True)
    rows = layout(every, every.edges).rows
    assert [sorted(row) for row in rows] == [
        ["embed", "pos"], ["L0H0", "L0H1"], ["L0MLP"], ["L1H0", "L1H1"], ["L1MLP"], ["logits"],
    ]  # fmt: skip
    beside = wiring(1, 2, mlp=True, parallel=True)
    assert sorted(layout(beside, beside.edges).rows[1]) == ["L0H0", "L0H1", "L0MLP"]


def test_heads_in_a_row_are_exchanged_where_lines_would_cross():
    crossed = [Edge("L0H0", "L1H3.q"), Edge("L0H1", "L1H2.q"), Edge("L0H2", "L1H1.q"), Edge("L0H3", "L1H0.q")]
    plan = layout(wiring(), crossed)
    assert [row.split("H")[1] for row in plan.rows[0]] == [str(3 - int(row.split("H")[1])) for row in plan.rows[1]]


def test_no_exchange_of_neighbours_saves_a_crossing():
    assert graph_layout._crossings([["L0H0", "L0H1"], ["L1H0", "L1H1"]], [Edge("L0H0", "L1H1.q"), Edge("L0H1", "L1H0.q")]) == 1
    assert graph_layout._crossings([["L0H0", "L0H1"], ["L1H0", "L1H1"]], [Edge("L0H0", "L1H0.q"), Edge("L0H1", "L1H1.q")]) == 0
    for seed in range(4):
        edges = some(wiring(2, 5), 30, seed).edges
        rows = layout(wiring(2, 5), edges).rows
        least = graph_layout._crossings(rows, edges)
        for at, row in enumerate(rows):
            for i in range(len(row) - 1):
                turned = [*row[:i], row[i + 1], row[i], *row[i + 2 :]]
                assert graph_layout._crossings([*rows[:at], turned, *rows[at + 1 :]], edges) >= least


def test_the_strongest_edges_are_kept_and_the_caption_says_so():
    circuit = some(wiring(), 40)
    figure = circuit_graph(circuit, most=7)
    drawn = set(ids(to_svg(figure), "edge"))
    best = sorted(circuit.edges, key=lambda edge: -abs(circuit.scores[edge]))[:7]
    assert drawn == {f"{edge.source}-{edge.destination}" for edge in best}
    assert any(text.startswith("7 of 40 edges drawn, the strongest.") for text in texts(figure))
    assert any(text.startswith("40 edges. Width") for text in texts(circuit_graph(circuit)))


def lines_of(figure) -> dict[str, tuple[float, bool]]:
    """Width of each edge's line and whether it is solid."""
    patches = [patch for patch in figure.axes[0].patches if (patch.get_gid() or "").startswith("edge-")]
    return {patch.get_gid(): (patch.get_linewidth(), patch.get_linestyle() in ("-", "solid")) for patch in patches}


def test_width_is_the_modulus_and_dashes_the_sign():
    edges = tuple(INDUCTION[:3])
    made = Circuit(wiring(), edges, dict(zip(edges, (0.5, -1.0, 0.0), strict=True)))
    found = lines_of(circuit_graph(made))
    widths = [found[f"edge-{edge.source}-{edge.destination}"] for edge in edges]
    assert widths[1][0] > widths[0][0] > widths[2][0]
    assert [solid for _, solid in widths] == [True, False, True]
    assert np.isclose(widths[0][0] - widths[2][0], (widths[1][0] - widths[2][0]) / 2)


def test_scores_may_be_given_as_effects_and_missing_ones_are_dotted():
    circuit = Circuit(wiring(), tuple(INDUCTION))
    assert all(solid for _, solid in lines_of(circuit_graph(circuit)).values())
    effects = xr.Dataset({"value": ("edge", [-2.0, np.nan])}, {"edge": [str(INDUCTION[2]), str(INDUCTION[4])]})
    for given_effects in (effects, {INDUCTION[2]: -2.0}):
        figure = circuit_graph(circuit, effects=given_effects)
        assert sum(solid for _, solid in lines_of(figure).values()) == 0
        names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert names == ["into q", "into k", "into v", "into the logits", "helps", "harms", "no score"]
        assert "L0H1 -> L1H2.k (-2)" in figure.get_label()


def test_svg_is_well_formed_the_same_twice_and_text_stays_text():
    circuit = some(wiring(3, 3), 25)
    once, again = (circuit_svg(circuit, title=EVIL, labels={circuit.edges[0].source: EVIL}) for _ in range(2))
    assert once == again
    tree = ElementTree.fromstring(once)
    assert tree.tag == f"{SVG}svg" and tree.get("role") == "img" and tree[0].tag == f"{SVG}title" and tree[1].tag == f"{SVG}desc"
    assert tree.get("aria-label") == tree[0].text == EVIL.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
    assert str(circuit.edges[0]) in (tree[1].text or "")
    assert "<script" not in once and "DOCTYPE" not in once and not re.search(r"\b20\d\d-\d\d-\d\d", once)
    assert not [part for part in tree.iter() if part.tag == f"{SVG}image"]


def test_names_and_inputs_are_written_and_labels_stand_under_names():
    figure = circuit_graph(Circuit(wiring(), tuple(INDUCTION)), labels={"L0H1": "previous token", "L1H2": "$induction$"})
    found = texts(figure)
    assert found.count("L0H1") == found.count("L1H2") == found.count("embed") == 1
    assert [found.count(channel) for channel in "qkv"] == [2, 2, 2], "three ports for each of two heads"
    assert "previous token" in found and "$induction$" in found
    assert rendered(figure, "png") == rendered(figure, "png")


def test_an_empty_circuit_says_so():
    figure = circuit_graph(Circuit(wiring(), ()))
    assert "no edges" in texts(figure)
    assert ids(to_svg(figure), "node") == []
    assert to_svg(figure) == to_svg(figure)


def test_a_notebook_is_shown_the_same_svg():
    pytest.importorskip("IPython")
    circuit = some(wiring(), 5)
    shown = ElementTree.fromstring(show(circuit).data)
    assert [part.get("id") for part in shown.iter()] == [
        part.get("id") for part in ElementTree.fromstring(circuit_svg(circuit)).iter()
    ]


def test_what_is_refused():
    circuit = Circuit(wiring(), tuple(INDUCTION))
    with pytest.raises(TypeError, match="is a list; make one with"):
        graph._check(INDUCTION, None, 60)  # itself, as a type checker would refuse before it
    with pytest.raises(ValueError, match="most"):
        circuit_graph(circuit, most=0)
    with pytest.raises(ValueError, match="no node 'L9H9' to label"):
        circuit_graph(circuit, labels={"L9H9": "x"})
    with pytest.raises(ValueError, match="for none of the circuit's edges"):
        circuit_graph(circuit, effects={Edge("L0H0", "logits"): 1.0})
    with pytest.raises(ValueError, match="for each edge of one checkpoint"):
        circuit_graph(circuit, effects=xr.Dataset({"value": ("step", [1.0])}))


def effects_of(wires: Wiring, seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    n = len(wires.edges)
    exact = rng.standard_t(2, n) * 0.01
    return xr.Dataset(
        {
            "value": ("edge", exact * rng.uniform(0.3, 1.1, n) + rng.normal(size=n) * 1e-3),
            "stderr": ("edge", np.full(n, 1e-3)),
            "exact": ("edge", exact),
            "exact_stderr": ("edge", np.full(n, 2e-3)),
            "agreement": 0.91, "agreement_low": 0.8, "agreement_high": 0.95,
        },
        {"edge": [str(edge) for edge in wires.edges]},
    )  # fmt: skip


def over_steps(dim: str, names: list) -> xr.Dataset:
    steps = np.array([0, 1, 4, 16, 64, 256, 1000])
    value = np.tanh(np.outer(np.log1p(steps), np.linspace(-0.1, 0.3, len(names))))
    value[0, 0] = np.nan
    return xr.Dataset(
        {"value": (("step", dim), value), "stderr": (("step", dim), np.full(value.shape, 0.02))}, {"step": steps, dim: names}
    )


def a_curve(state: str = "ok") -> xr.Dataset:
    share = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    value = 1 - np.exp(-12 * share) if state == "ok" else np.full(len(share), np.nan)
    return xr.Dataset(
        {
            "value": ("size", value), "stderr": ("size", value * 0.03), "null_mean": ("size", value * share),
            "null_sd": ("size", value * 0.05), "share": ("size", share), "area": 0.912, "area_stderr": 0.01,
            "area_null_mean": 0.31, "state": state,
        },
        {"size": np.round(share * 257).astype(int)},
    )  # fmt: skip


EDGES = ["L0H1 -> L1H2.k", "embed -> L1H2.v", "L1H2 -> logits"]
MAKE = {
    "edge_table": lambda: path_figures.edge_table(effects_of(wiring(2, 4, mlp=True))),
    "edge_table_symlog": lambda: path_figures.edge_table(effects_of(wiring(3, 4)), scale="symlog"),
    "edge_curves": lambda: path_figures.edge_curves(over_steps("edge", EDGES), EDGES[:2], title="$x$"),
    "order_curves": lambda: path_figures.order_curves(over_steps("order", [0, 1, 2])),
    "faithfulness": lambda: path_figures.faithfulness_figure(a_curve()),
    "no_effect": lambda: path_figures.faithfulness_figure(a_curve("no effect")),
    "agreement": lambda: path_figures.agreement_figure(effects_of(wiring(2, 8))),
}


@pytest.mark.parametrize("name", MAKE)
def test_figures_are_well_formed_and_the_same_twice_whatever_the_users_style(name):
    import matplotlib

    before = to_svg(MAKE[name](), title=name)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert to_svg(MAKE[name](), title=name) == before
    assert ElementTree.fromstring(before)[0].text == name


def test_the_table_shows_each_edge_at_its_place_by_layer_and_input():
    wires = wiring(2, 2)
    effects = effects_of(wires)
    shuffled = effects.isel(edge=np.random.default_rng(1).permutation(effects.sizes["edge"]))
    axis = path_figures.edge_table(shuffled).axes[0]
    shown = axis.images[0].get_array()
    assert int((~np.ma.getmaskarray(shown)).sum()) == len(wires.edges)
    rows = [label.get_text() for label in axis.get_yticklabels()]
    for edge, value in zip(wires.edges, effects["value"].values, strict=True):
        assert shown[rows.index(edge.source), wires.destinations.index(edge.destination)] == value
    assert [text.get_text() for text in axis.texts] == ["L0.q", "L0.k", "L0.v", "L1.q", "L1.k", "L1.v", "logits"]
    low, high = axis.images[0].get_clim()
    assert low == -high
    assert axis.patch.get_hatch()


def test_curves_are_those_asked_for():
    data = over_steps("edge", EDGES)
    axis = path_figures.edge_curves(data, [Edge("L1H2", "logits")]).axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), data["value"].sel(edge="L1H2 -> logits").values)
    assert texts(axis.figure) == ["L1H2 → logits"]
    orders = texts(path_figures.order_curves(over_steps("order", [0, 1, 2])))
    assert sorted(orders) == ["1 head", "2 heads", "no head"]


def test_faithfulness_and_agreement_say_their_numbers():
    assert path_figures.faithfulness_figure(a_curve()).axes[0].get_title("left") == "Area 0.91 ± 0.01 (random 0.31)"
    assert "ablating every edge has no effect" in texts(path_figures.faithfulness_figure(a_curve("no effect")))
    axis = path_figures.agreement_figure(effects_of(wiring(2, 8))).axes[0]
    assert axis.get_title("left") == "Rank agreement 0.91 [0.80, 0.95]"
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert "0" in ticks and "−0.01" in ticks and not [text for text in ticks if "$" in text]
    assert [name.split(" (")[0] for name in names] == ["into q", "into k", "into v", "into the logits"]
    assert sum(int(name.split("(")[1][:-1]) for name in names) == len(wiring(2, 8).edges)


def test_figures_refuse_other_results():
    with pytest.raises(ValueError, match="need `value` by edge, there is step, edge"):
        path_figures.edge_table(over_steps("edge", EDGES))
    with pytest.raises(ValueError, match=r"'L0H0 -> L1H0\.k' was not measured"):
        path_figures.edge_curves(over_steps("edge", EDGES), ["L0H0 -> L1H0.k"])
    with pytest.raises(ValueError, match="by step and order"):
        path_figures.order_curves(over_steps("edge", EDGES))
