"""Matched controls: the same paths through other heads of the same layers, and what an effect is beside theirs.

A set of paths names some heads. Its controls put other heads of their layers in their places, at least one of them, and keep the
rest: inputs, MLPs, embeddings. A control shares no path with the place. All of them are taken where there are few, else so many
drawn at random.

An effect's z is its distance from the mean of the controls' in their standard deviations: a description, as controls that do
nothing hardly vary. Its p is two-sided by rank, (1 + controls at least as far from the controls' median as the value) /
(1 + controls), and can be no smaller than 1 / (1 + controls): with one control for each of seven other heads it never falls below
.125. A place that names no head, or all heads of each layer it names, has no controls. What is not finite has no z and no p.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from circuits.models.heads import Head
from circuits.paths.places import Path
from circuits.paths.wiring import Edge, Wiring, by_kind

LISTED, DRAWN = 1000, 2000
"""As many arrangements are listed; of more, at most so many are drawn."""


def matched_sets(groups: Sequence[Sequence[Path]], wiring: Wiring, most: int, seed: int) -> list[list[tuple[Path, ...]]]:
    """Controls of some groups of paths, at most so many, each once: heads are exchanged alike in all groups."""
    if most == 0:
        return []
    heads = sorted({Head.parse(hop.split(".")[0]) for paths in groups for path in paths for hop in path if "H" in hop})
    by_layer: dict[int, list[int]] = {}
    for head in heads:
        by_layer.setdefault(head.layer, []).append(head.head)
    total = wiring.cfg.n_heads
    own_paths = frozenset(path for paths in groups for path in paths)
    names = {str(head): head for head in heads}
    choices = math.prod(math.perm(total, len(named)) for named in by_layer.values())
    rng = np.random.default_rng([seed, 50])
    found: dict[frozenset[frozenset[Path]], tuple[frozenset[Path], ...]] = {}  # groups are no order of groups
    for renamed in _arrangements(by_layer, total, rng, listed=choices <= LISTED, draws=min(20 * most, DRAWN)):
        other = tuple(frozenset(tuple(_renamed(hop, renamed, names) for hop in path) for path in paths) for paths in groups)
        if not own_paths & frozenset().union(*other):
            found.setdefault(frozenset(other), other)
    controls = list(found.values())
    if len(controls) > most:
        controls = [controls[at] for at in np.sort(rng.choice(len(controls), most, replace=False))]
    return [[tuple(sorted(paths)) for paths in control] for control in controls]


def _arrangements(
    by_layer: dict[int, list[int]], total: int, rng: np.random.Generator, *, listed: bool, draws: int
) -> Iterable[dict[Head, Head]]:
    """Which head stands in for which, layer by layer."""
    layers = list(by_layer)
    if listed:
        picks = product(*(permutations(range(total), len(by_layer[layer])) for layer in layers))
    else:
        picks = ([rng.permutation(total)[: len(by_layer[layer])] for layer in layers] for _ in range(draws))
    for pick in picks:
        yield {
            Head(layer, head): Head(layer, int(other))
            for layer, others in zip(layers, pick, strict=True)
            for head, other in zip(by_layer[layer], others, strict=True)
        }


def _renamed(hop: str, renamed: dict[Head, Head], names: dict[str, Head]) -> str:
    head, dot, channel = hop.partition(".")
    return f"{renamed[names[head]]}{dot}{channel}" if head in names else hop


class Beside(NamedTuple):
    """An effect beside those of its controls; NaN where there are fewer than two."""

    null_mean: float
    null_sd: float
    z: float
    p: float
    smallest_p: float


def beside(value: float, controls: Float[np.ndarray, "control"]) -> Beside:
    """Where an effect stands among its controls."""
    count = len(controls)
    if count < 2 or not (np.isfinite(value) and np.isfinite(controls).all()):
        return Beside(*[np.nan] * 5)
    mean, sd = float(controls.mean()), float(controls.std(ddof=1))
    z = (value - mean) / sd if sd > 0 else np.nan
    middle = np.median(controls)
    as_far = int((np.abs(controls - middle) >= abs(value - middle)).sum())
    return Beside(mean, sd, z, (1 + as_far) / (1 + count), 1 / (1 + count))


def edges_beside(effects: Float[np.ndarray, "edge"], edges: Sequence[Edge], wiring: Wiring) -> dict[str, np.ndarray]:
    """Each edge's effect beside those of the other given edges of its kind: same layers, same input."""
    at = {edge: index for index, edge in enumerate(edges)}
    found = {name: np.full(len(edges), np.nan) for name in Beside._fields}
    for group in by_kind(wiring, edges).values():
        rows = np.array([at[edge] for edge in group])
        for row in rows:
            for name, number in beside(float(effects[row]), effects[rows[rows != row]])._asdict().items():
                found[name][row] = number
    return found
