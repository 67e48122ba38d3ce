"""A circuit as a layered drawing: embeddings at the bottom, the logits at the top, edges read upwards.

Rows are in the order of computation; a node stands above all that it can read. A head is one box with an input port for each of
q, k and v; a line's colour is the input it enters, its width the modulus of its score, and it is dashed where the score is below
0 (without the edge the model would do better). Order within a row: barycentres of the neighbours, upwards and downwards in turn,
then exchanges of neighbours, the order with fewest crossings kept (after Sugiyama, Tagawa and Toda 1981). A line that passes a
row goes between its boxes. Nothing is random, no outside program is run, and equal input gives equal bytes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from circuits.paths.circuit import Circuit
from circuits.paths.edges import edge_list
from circuits.paths.wiring import CHANNELS, EMBED, LOGITS, POS, Edge, layer_of
from circuits.results import check_whole
from circuits.views.figures import drawable, drawing, rendered
from circuits.views.graph_layout import BOX, PORT, TALL, Layout, layout, port_of
from circuits.views.html import shortened

if TYPE_CHECKING:
    import xarray as xr
    from IPython.display import SVG
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INPUT_COLOURS = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", "MLP": "#CC79A7", LOGITS: "#333333"}
"""One for each kind of input, distinguishable with any kind of colour vision (after Okabe and Ito)."""
INPUT_NAMES = {"q": "into q", "k": "into k", "v": "into v", "MLP": "into an MLP", LOGITS: "into the logits"}
SOLID, DASHED, DOTTED = "-", (0, (3.0, 1.6)), (0, (1.0, 1.2))
SIDE, TOP, BOTTOM = 0.95, 0.5, 0.85
LEAST_WIDTH = 7.6


def input_kind(destination: str) -> str:
    """What an edge enters: ``"q"``, ``"k"``, ``"v"``, ``"MLP"`` or ``"logits"``."""
    return destination if destination == LOGITS else "MLP" if destination.endswith("MLP") else destination.split(".")[1]


def circuit_graph(
    circuit: Circuit,
    *,
    effects: "xr.Dataset | Mapping[Edge, float] | None" = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    most: int = 60,
) -> "Figure":
    """Draw a circuit's edges and the nodes that are on them; see the module's docstring.

    Args:
        circuit: whose edges are drawn. effects: scores for it, a result of ``EdgeEffects`` (its ``value``) or numbers by edge
            (default: the circuit's own). title: above the drawing. labels: a line more in the boxes, by the names of nodes
            (``{"L0H3": "previous token"}``). most: edges drawn; of more, those of largest modulus, and the caption says so.

    Raises:
        TypeError: no circuit. ValueError: ``most`` below 1, effects of other edges, or a label for what is no node.
    """
    _check(circuit, labels, most)
    edges, scores, caption = _chosen(circuit, effects, most)
    with drawing(None, width=LEAST_WIDTH, height=1.6) as (axis,):
        figure: Figure = axis.figure  # type: ignore[assignment]
        figure.set_layout_engine("none")
        axis.set_position((0, 0, 1, 1))
        axis.set_axis_off()
        if edges:
            plan = layout(circuit.wiring, edges)
            size = _sized(figure, axis, plan)
            _draw_rows(axis, plan, size[0])
            _draw_edges(axis, plan, edges, scores)
            _draw_boxes(axis, plan, edges, labels or {})
            _legend(axis, edges, scores, *size[:2])
        else:
            size = _sized(figure, axis, None)
            axis.text(size[0] + 0.5 * LEAST_WIDTH, size[1] + 0.8, "no edges", ha="center", va="center", color="#555555")
        left, low, high = size
        axis.text(
            left + 0.15, high - 0.15, shortened(_said(title or "Circuit"), int(11 * figure.get_figwidth())), fontsize=10, va="top"
        )
        axis.text(left + 0.15, low + 0.12, caption, fontsize=8, color="#444444")
        strongest = sorted(edges, key=lambda edge: -abs(scores.get(edge, 0.0)))
        listed = ", ".join(f"{edge} ({scores[edge]:+.3g})" if edge in scores else str(edge) for edge in strongest)
        figure.set_label(f"{caption}{f' {listed}.' if listed else ''}")
        return figure


def circuit_svg(
    circuit: Circuit,
    *,
    effects: "xr.Dataset | Mapping[Edge, float] | None" = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    most: int = 60,
) -> str:
    """``circuit_graph`` as SVG text; its description lists the edges for those who do not see them."""
    figure = circuit_graph(circuit, effects=effects, title=title, labels=labels, most=most)
    return to_svg(figure, title=title or "Circuit")


def to_svg(figure: "Figure", *, title: str = "Figure") -> str:
    """A figure as an SVG element that can stand in a page: no prolog, no address it would load, the same text every time.

    Args:
        figure: of this package. title: what it is called where it is not seen; the figure's own label becomes the description.
    """
    text = rendered(figure, "svg").decode()
    head, body = text[text.index("<svg") :].split(">", 1)
    described = str(figure.get_label())
    about = Markup(' role="img" aria-label="{0}">\n <title>{0}</title>').format(_printable(title))
    about += Markup("<desc>{}</desc>").format(_printable(described)) if described else ""
    return f"{head}{about}{body}"


def show(circuit: Circuit, **options: Any) -> "SVG":
    """``circuit_svg`` for a notebook, which shows it where this is the last expression of a cell."""
    from IPython.display import SVG

    return SVG(data=circuit_svg(circuit, **options))


def _check(circuit: Any, labels: Mapping[str, str] | None, most: int) -> None:
    if not isinstance(circuit, Circuit):
        raise TypeError(f"the circuit is a {type(circuit).__name__}; make one with threshold, ranked, greedy or Circuit.of")
    check_whole("most", most, 1)
    known = {*circuit.wiring.sources, LOGITS}
    if wrong := [name for name in labels or {} if name not in known]:
        raise ValueError(f"there is no node {wrong[0]!r} to label; nodes are {EMBED}, heads such as L0H0, MLPs and {LOGITS}")


def _chosen(circuit: Circuit, effects: Any, most: int) -> tuple[list[Edge], dict[Edge, float], str]:
    """The edges drawn, in the wiring's order, their scores where there are any, and what the caption says of them."""
    given: Mapping[Edge, float] = circuit.scores
    if effects is not None and not hasattr(effects, "data_vars"):
        given = effects
    elif effects is not None:
        if "value" not in effects or effects["value"].dims != ("edge",):
            raise ValueError("the effects have no `value` for each edge of one checkpoint: give a result of EdgeEffects")
        given = dict(zip(edge_list(effects), effects["value"].values.tolist(), strict=True))
    scores = {edge: float(given[edge]) for edge in circuit if edge in given and math.isfinite(given[edge])}
    if effects is not None and len(circuit) and not scores:
        raise ValueError(f"the effects have a number for none of the circuit's edges, such as {circuit.edges[0]}")
    kept = set(sorted(circuit, key=lambda edge: -abs(scores.get(edge, 0.0)))[:most])
    edges = [edge for edge in circuit if edge in kept]
    scores = {edge: scores[edge] for edge in edges if edge in scores}
    count = f"{len(edges)} edge{'s' * (len(edges) != 1)}" if edges else "The circuit is empty"
    if len(edges) < len(circuit):
        count = f"{len(edges)} of {len(circuit)} edges drawn, the {'strongest' if scores else 'first: they have no scores'}"
    width = f" Width: modulus of the score, at most {max(map(abs, scores.values())):.3g}." if scores else ""
    return edges, scores, f"{count}.{width}"


def _sized(figure: "Figure", axis: "Axes", plan: "Layout | None") -> tuple[float, float, float]:
    """Give the figure room for the plan, one unit an inch; its left, lower and upper end."""
    across = [0.0] if plan is None else [*plan.x.values(), *(x for way in plan.ways.values() for _, x in way)]
    middle, wide = (min(across) + max(across)) / 2, max(LEAST_WIDTH, max(across) - min(across) + BOX + 0.3 + SIDE)
    left, low, high = middle - (wide + SIDE) / 2 + 0.1, -TALL / 2 - BOTTOM, (plan.y[-1] if plan else 0.0) + TALL / 2 + TOP
    figure.set_size_inches(wide, high - low)
    axis.set_xlim(left, left + wide)
    axis.set_ylim(low, high)
    return left, low, high


def _draw_rows(axis: "Axes", plan: Layout, left: float) -> None:
    """A pale band and a name for each row."""
    for row, y in zip(plan.rows, plan.y, strict=True):
        named = {EMBED: "input", POS: "input", LOGITS: "output"}.get(row[0]) or f"layer {layer_of(row[0])}"
        named += ", MLP" if row[0].endswith("MLP") and len(row) == 1 else ""
        axis.axhspan(y - TALL / 2 - 0.06, y + TALL / 2 + 0.06, color="#f3f3f3", lw=0, zorder=0)
        axis.text(left + 0.15, y, named, fontsize=8, color="#666666", va="center", zorder=1)


def _draw_edges(axis: "Axes", plan: Layout, edges: Sequence[Edge], scores: Mapping[Edge, float]) -> None:
    """Lines with vertical ends, the weak ones below; those that share an end lie side by side at it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    top = max(map(abs, scores.values()), default=0.0) or 1.0
    for at, edge in enumerate(sorted(edges, key=lambda edge: abs(scores.get(edge, 0.0)))):
        (row, x), *others = plan.ways[edge]
        y = plan.y[row] + TALL / 2
        points, codes = [(x, y)], [Path.MOVETO]
        for row, to in others:
            arrived = row == others[-1][0]
            below, above = plan.y[row] - TALL / 2 - (PORT / 2 - 0.02) * arrived, plan.y[row] + TALL / 2
            points += [(x, (y + below) / 2), (to, (y + below) / 2), (to, below)]
            codes += [Path.CURVE4] * 3
            if not arrived:
                points.append((to, above))
                codes.append(Path.LINETO)
            x, y = to, above
        score = scores.get(edge)
        axis.add_patch(
            PathPatch(
                Path(points, codes),
                fill=False,
                edgecolor=INPUT_COLOURS[input_kind(edge.destination)],
                capstyle="butt",
                linewidth=1.0 if score is None else 0.5 + 4.0 * abs(score) / top,
                linestyle=_stroke(score, scores),
                alpha=0.85,
                zorder=2 + at / len(edges),
                gid=f"edge-{edge.source}-{edge.destination}",
            )
        )


def _stroke(score: float | None, scores: Mapping[Edge, float]) -> Any:
    if score is None:
        return DOTTED if scores else SOLID
    return DASHED if score < 0 else SOLID


def _draw_boxes(axis: "Axes", plan: Layout, edges: Sequence[Edge], labels: Mapping[str, str]) -> None:
    """Boxes with names; a head's three ports, pale where no line enters."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    entered = {edge.destination for edge in edges}
    for row, y in zip(plan.rows, plan.y, strict=True):
        for name in row:
            x, head = plan.x[name], name not in (EMBED, POS, LOGITS) and not name.endswith("MLP")
            axis.add_patch(
                FancyBboxPatch(
                    (x - BOX / 2 + 0.05, y - TALL / 2 + 0.05), BOX - 0.1, TALL - 0.1, boxstyle="round,pad=0.05",
                    facecolor="white", edgecolor="#444444", linewidth=0.9, zorder=4, gid=f"node-{name}",
                )
            )  # fmt: skip
            more = name in labels
            axis.text(x, y + 0.03 + 0.07 * more, name, ha="center", va="center", fontsize=8.5, zorder=5)
            if more:
                axis.text(x, y - 0.055, drawable(labels[name]), ha="center", va="center", fontsize=6, color="#555555", zorder=5)
            ports = [f"{name}.{c}" for c in CHANNELS] if head else [name] if name in entered else []
            for port in ports:
                colour = INPUT_COLOURS[input_kind(port)] if port in entered else "#dddddd"
                at = x + port_of(port)
                axis.add_patch(
                    Rectangle(
                        (at - PORT / 2, y - TALL / 2 - PORT / 2),
                        PORT,
                        PORT,
                        facecolor=colour,
                        edgecolor="white",
                        lw=0.7,
                        zorder=5,
                    )
                )
                if head:
                    axis.text(
                        at, y - TALL / 2 - 0.005, port[-1], ha="center", va="center_baseline", fontsize=7, zorder=6,
                        color="white" if port in entered else "#888888",
                    )  # fmt: skip


def _legend(axis: "Axes", edges: Sequence[Edge], scores: Mapping[Edge, float], left: float, low: float) -> None:
    """What colours and strokes mean, of those that are there."""
    from matplotlib.lines import Line2D

    there = {input_kind(edge.destination) for edge in edges}
    lines = [
        Line2D([], [], color=colour, lw=2.5, label=INPUT_NAMES[kind]) for kind, colour in INPUT_COLOURS.items() if kind in there
    ]
    if scores:
        strokes = ((SOLID, "helps"), (DASHED, "harms")) + (((DOTTED, "no score"),) if len(scores) < len(edges) else ())
        lines += [Line2D([], [], color="#777777", lw=1.8, ls=stroke, label=name) for stroke, name in strokes]
    axis.legend(
        handles=lines, ncol=len(lines), loc="lower left", bbox_to_anchor=(left + 0.1, low + 0.3), bbox_transform=axis.transData,
        frameon=False, fontsize=8, handlelength=2.2, columnspacing=1.2, borderpad=0.2,
    )  # fmt: skip


def _said(text: str) -> str:
    """Text of any length with what the font has no glyphs for as escapes."""
    return "".join(map(drawable, text))


def _printable(text: str) -> str:
    """Text without what XML cannot hold, which is shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
