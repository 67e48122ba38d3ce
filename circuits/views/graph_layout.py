"""Where the boxes and lines of a circuit's drawing go: rows in the order of computation, few crossings, lines between boxes.

Order within a row: barycentres of the neighbours, upwards and downwards in turn, then exchanges of neighbours, the order with
fewest crossings kept (after Sugiyama, Tagawa and Toda 1981). All lengths are in inches. Nothing is random.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.paths.wiring import EMBED, LOGITS, POS, Edge, Wiring, layer_of

BOX, TALL = 0.92, 0.46
PORT, PORT_AT = 0.19, {"q": -0.27, "k": 0.0, "v": 0.27}
GAP, LANE = 0.2, 0.085


class Layout(NamedTuple):
    """Where everything is, in inches.

    Attributes:
        rows: names of boxes, from the bottom row up, each from left to right. x: of each box's middle. y: of each row's middle.
        ways: of each edge, ``(row, x)`` where it leaves, passes rows and enters, upwards.
    """

    rows: list[list[str]]
    x: dict[str, float]
    y: list[float]
    ways: dict[Edge, list[tuple[int, float]]]


def layout(wiring: Wiring, edges: Sequence[Edge]) -> Layout:
    """Rows, order within rows, places and the ways of lines that pass rows."""
    rows = _ordered(_rows(wiring, edges), edges)
    level = {name: at for at, row in enumerate(rows) for name in row}
    near = _placed(rows, edges, [np.full(len(row) - 1, BOX + GAP) for row in rows])
    through = _lanes(rows, edges, near, level)
    passing = [np.zeros(len(row) + 1) for row in rows]
    for lanes in through.values():
        for at, lane in lanes:
            passing[at][sum(near[name] < lane for name in rows[at])] += 1
    x = _placed(rows, edges, [BOX + GAP + LANE * counts[1:-1] for counts in passing])
    y, at = [0.0], 0.0
    for low, high in pairwise(range(len(rows))):
        lines = sum(level[edge.source] <= low and level[_node(edge.destination)] >= high for edge in edges)
        at += TALL + min(1.35, 0.55 + 0.022 * lines)
        y.append(at)
    return Layout(rows, x, y, _ways(edges, x, level, _lanes(rows, edges, x, level)))


def _rows(wiring: Wiring, edges: Sequence[Edge]) -> list[list[str]]:
    """Names by row in the order of computation; rows without any are left out. A parallel MLP stands beside the heads."""

    def row(name: str) -> int:
        if name in (EMBED, POS, LOGITS):
            return -1 if name != LOGITS else 2 * wiring.cfg.n_layers
        return 2 * layer_of(name) + (name.endswith("MLP") and not wiring.cfg.parallel_attn_mlp)

    on = {name for edge in edges for name in (edge.source, _node(edge.destination))}
    found: dict[int, list[str]] = {}
    for name in (*wiring.sources, LOGITS):
        if name in on:
            found.setdefault(row(name), []).append(name)
    return [found[at] for at in sorted(found)]


def _ordered(rows: list[list[str]], edges: Sequence[Edge]) -> list[list[str]]:
    """The order within rows that has fewest crossings of those tried; see the module's docstring."""
    best, fewest = rows, _crossings(rows, edges)
    for sweep in range(12):
        upwards = sweep % 2 == 0
        for at in range(len(rows)) if upwards else reversed(range(len(rows))):
            pulled = _barycentres(rows[at], edges, _ranks(rows), below=upwards, above=not upwards)
            rows = [*rows[:at], sorted(rows[at], key=pulled.__getitem__), *rows[at + 1 :]]
        if (now := _crossings(rows, edges)) < fewest:
            best, fewest = rows, now
    improved = True
    while improved:
        improved = False
        for at, i in [(at, i) for at, row in enumerate(best) for i in range(len(row) - 1)]:
            row = best[at]
            trial = [*best[:at], [*row[:i], row[i + 1], row[i], *row[i + 2 :]], *best[at + 1 :]]
            if (now := _crossings(trial, edges)) < fewest:
                best, fewest, improved = trial, now, True
    return best


def _ranks(rows: list[list[str]]) -> dict[str, float]:
    return {name: (BOX + GAP) * (i - (len(row) - 1) / 2) for row in rows for i, name in enumerate(row)}


def _barycentres(
    row: Sequence[str], edges: Sequence[Edge], x: Mapping[str, float], *, below: bool = True, above: bool = True
) -> dict[str, float]:
    """Where each box of a row would be in the middle of its neighbours; where it is if it has none."""
    ends: dict[str, list[float]] = {name: [] for name in row}
    for edge in edges:
        low, high = edge.source, _node(edge.destination)
        if below and high in ends:
            ends[high].append(x[low])
        if above and low in ends:
            ends[low].append(x[high])
    return {name: float(np.mean(found)) if found else x[name] for name, found in ends.items()}


def _crossings(rows: list[list[str]], edges: Sequence[Edge]) -> int:
    """How many pairs of edges cross if all are straight."""
    x, level = _ranks(rows), {name: at for at, row in enumerate(rows) for name in row}
    start = np.array([x[edge.source] for edge in edges])
    end = np.array([x[_node(edge.destination)] + port_of(edge.destination) for edge in edges])
    low = np.array([level[edge.source] for edge in edges])
    high = np.array([level[_node(edge.destination)] for edge in edges])
    slope = (end - start) / (high - low)
    first, last = np.maximum(low[:, None], low), np.minimum(high[:, None], high)

    def apart(at: np.ndarray) -> np.ndarray:
        left = start[:, None] + slope[:, None] * (at - low[:, None])
        right = start[None, :] + slope[None, :] * (at - low[None, :])
        return np.round(left - right, 9)

    return int(((first < last) & (apart(first) * apart(last) < 0)).sum()) // 2


def _placed(rows: list[list[str]], edges: Sequence[Edge], least: list[np.ndarray]) -> dict[str, float]:
    """Boxes near their neighbours, in the order given and at the least distances given."""
    x = _ranks(rows)
    for _ in range(8):
        for row, distances in zip(rows, least, strict=True):
            wanted = _barycentres(row, edges, x)
            x |= dict(zip(row, _apart(np.array([wanted[name] for name in row]), distances).tolist(), strict=True))
    return x


def _apart(wanted: Float[np.ndarray, "n"], least: Float[np.ndarray, "n_less_1"]) -> Float[np.ndarray, "n"]:
    """Places in the order given, at least so far apart, near those wanted.

    Pushing all to the right and pushing all to the left both keep the distances, and so does the mean of the two.
    """
    shift = np.concatenate([[0.0], np.cumsum(least)])
    moved = wanted - shift
    return (np.maximum.accumulate(moved) + np.minimum.accumulate(moved[::-1])[::-1]) / 2 + shift


def _lanes(
    rows: list[list[str]], edges: Sequence[Edge], x: Mapping[str, float], level: Mapping[str, int]
) -> dict[Edge, list[tuple[int, float]]]:
    """Where lines pass rows: between two boxes or beside them all, near the straight way, apart from each other."""
    last = {edge: (level[edge.source], x[edge.source]) for edge in edges}
    found: dict[Edge, list[tuple[int, float]]] = {edge: [] for edge in edges}
    for at, row in enumerate(rows):
        gaps: dict[int, list[tuple[float, Edge]]] = {}
        clear = BOX / 2 + LANE
        lows = [-math.inf, *(x[name] + clear for name in row)]
        highs = [*(x[name] - clear for name in row), math.inf]
        for edge in edges:
            low, high = level[edge.source], level[_node(edge.destination)]
            if not low < at < high:
                continue
            before, start = last[edge]
            end = x[_node(edge.destination)] + port_of(edge.destination)
            straight = start + (end - start) * (at - before) / (high - before)
            ways = [min(max(straight, lows[i]), highs[i]) for i in range(len(row) + 1)]
            best = min(range(len(ways)), key=lambda i, ways=ways, straight=straight: abs(ways[i] - straight))
            gaps.setdefault(best, []).append((straight, edge))
        for i, lines in gaps.items():
            lines.sort(key=lambda line: line[0])
            room = (highs[i] - lows[i]) / max(1, len(lines) - 1)
            steps = min(LANE, max(room, 0.0)) * np.arange(len(lines))
            wanted = _apart(np.clip([straight for straight, _ in lines], lows[i], highs[i]), np.diff(steps))
            places = np.clip(wanted, lows[i] + steps, highs[i] - steps[::-1])
            for (_, edge), place in zip(lines, places.tolist(), strict=True):
                last[edge] = (at, place)
                found[edge].append((at, place))
    return found


def _ways(
    edges: Sequence[Edge], x: Mapping[str, float], level: Mapping[str, int], lanes: Mapping[Edge, list[tuple[int, float]]]
) -> dict[Edge, list[tuple[int, float]]]:
    """Lanes with both ends; lines that share a box's top or a port lie side by side, in the order of where they go."""
    tops: dict[str, list[Edge]] = {}
    ports: dict[str, list[Edge]] = {}
    for edge in edges:
        tops.setdefault(edge.source, []).append(edge)
        ports.setdefault(edge.destination, []).append(edge)
    middle = {name: x[_node(name)] + port_of(name) for name in (*tops, *ports)}
    ends: dict[tuple[Edge, int], float] = {}
    for shared, which, width in ((tops, 0, 0.8 * BOX), (ports, 1, 0.8 * PORT)):
        for name, lines in shared.items():
            near = {edge: lanes[edge][-which][1] if lanes[edge] else middle[edge[1 - which]] for edge in lines}
            step = min(LANE, width / max(1, len(lines) - 1))
            for i, edge in enumerate(sorted(lines, key=near.__getitem__)):
                ends[edge, which] = middle[name] + step * (i - (len(lines) - 1) / 2)
    return {
        edge: [(level[edge.source], ends[edge, 0]), *lanes[edge], (level[_node(edge.destination)], ends[edge, 1])]
        for edge in edges
    }


def _node(destination: str) -> str:
    """The box that a destination is on."""
    return destination.split(".")[0]


def port_of(destination: str) -> float:
    """How far right of its box's middle a destination is."""
    return PORT_AT.get(destination.partition(".")[2], 0.0)
