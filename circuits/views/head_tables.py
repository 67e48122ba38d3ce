"""Tables of one head at the last checkpoint: what its ablation costs, what it memorised, its strongest edges, and its partners.

Every table has values with their errors and what there is by chance; what a head has nothing of is left out.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.detectors.pattern_statistics import KEYS
from circuits.detectors.sources import NONE
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.paths.edges import edge_list
from circuits.views.cells import at
from circuits.views.function_figures import kind_name
from circuits.views.html import count, decimal, probability, shortened, spread, table, token_labels, with_error, z_score
from circuits.views.measure_names import cited
from circuits.views.sections import Results
from circuits.views.sections.multigrams import LONGEST_LABEL, effect_text, kind_of, pattern_text
from circuits.views.sections.paths import rank_p
from circuits.views.witness_cells import at_end

if TYPE_CHECKING:
    import xarray as xr

EDGES = {"edge_effects_repeats": "repeats", "edge_effects_text": "text"}
MOST_EDGES, MOST_PATTERNS, MOST_PARTNERS = 3, 4, 5
"""Edges in and out each, patterns, and partners of composition."""


def tables(run: Checkpoints, head: Head, results: Results) -> Markup:
    """The tables of a head, as many as there is data for."""
    made = (profile(head, results), patterns(run, head, results), edges(head, results), partners(head, results))
    return Markup("\n").join(part for part in made if part)


def profile(head: Head, results: Results) -> Markup | None:
    """What ablating the head costs, by kind of prediction."""
    if "function_profile" not in results:
        return None
    end = at_end(results["function_profile"])
    here = at(end, head)
    rows = []
    for i, kind in enumerate(here["kind"].values):
        value = {name: float(here[name].values[i]) for name in ("effect", "effect_stderr", "value", "low", "high", "chance", "z")}
        share = f"{decimal(value['value'], 2)} ({decimal(value['low'], 2)} to {decimal(value['high'], 2)})"
        rows.append(
            (
                kind_name(str(kind)),
                with_error(value["effect"], value["effect_stderr"]),
                share if math.isfinite(value["value"]) else "–",
                decimal(value["chance"], 2),
                z_score(value["z"]),
            )
        )
    rows.append(("all", with_error(float(here["total"]), float(here["total_stderr"])), "", "", ""))
    return table(
        ("predictions", "cost of ablation", "share (95%)", "chance", "z"), rows, numeric=range(1, 5),
        caption=_caption(
            "function_profile", end, "nats per token of text by kind of prediction, ± standard error. Chance: the share of "
            "tokens; z: against kinds moved along the text. –: the cost does not exceed 0 by two errors.",
        ),
    )  # fmt: skip


def patterns(run: Checkpoints, head: Head, results: Results) -> Markup | None:
    """The memorised patterns with the largest total effect."""
    if "multigrams" not in results:
        return None
    end = at_end(results["multigrams"])
    here = at(end, head)
    ids = {name: np.nan_to_num(here[name].values, nan=NONE).astype(int) for name in KEYS}
    there = np.flatnonzero((ids["destination"] != NONE) & (here["memorised"].values == 1))[:MOST_PATTERNS]
    if not len(there):
        return None
    labels = {
        name: [shortened(label, LONGEST_LABEL) for label in token_labels(run.tokenizer, np.maximum(ids[name], 0)[there].tolist())]
        for name in KEYS
    }
    rows = []
    for row, i in enumerate(there):
        given = [name for name in KEYS if ids[name][i] != NONE]
        in_a_row = int(np.nan_to_num(here["contiguous"].values[i])) == 1
        rows.append(
            (
                pattern_text({name: labels[name][row] for name in given}, in_a_row),
                kind_of([name for name in ("far", "near") if name in given], in_a_row),
                effect_text(float(here["pattern_effect"].values[i]), float(here["pattern_stderr"].values[i])),
                decimal(float(here["pattern_others"].values[i]), 2),
                count(float(here["occurrences"].values[i])),
            )
        )
    number = f"{decimal(float(here['value']), 0)} ± {spread(float(here['stderr']), 1)}"
    return table(
        ("pattern", "kind", "effect", "others", "places"), rows, numeric=range(2, 5),
        caption=_caption(
            "multigrams", end, f"{number} patterns memorised, {decimal(float(here['null_mean']), 0)} by the null (its effects "
            f"moved along the text); the {len(rows)} of largest total effect. Effect: cost of ablation where it occurs, nats ± "
            "standard error; others: the same of the other heads of the layer.",
        ),
    )  # fmt: skip


def edges(head: Head, results: Results) -> Markup | None:
    """The strongest edges into the head and out of it, on repeated tokens and on text."""
    ends = {name: at_end(results[name]) for name in EDGES if name in results}
    rows: list[tuple[Any, ...]] = []
    for name, end in ends.items():
        listed = edge_list(end)
        value = end["value"].values
        for way, mine in (
            ("in", [i for i, edge in enumerate(listed) if edge.destination.partition(".")[0] == str(head)]),
            ("out", [i for i, edge in enumerate(listed) if edge.source == str(head)]),
        ):
            strongest = sorted((i for i in mine if np.isfinite(value[i])), key=lambda i: -abs(value[i]))[:MOST_EDGES]
            rows += [(way, str(listed[i]), EDGES[name], *_edge_cells(end.isel(edge=i))) for i in strongest]
    if not rows:
        return None
    steps = ", ".join(dict.fromkeys(count(int(end["step"])) for end in ends.values() if "step" in end.coords))
    return table(
        ("way", "edge", "on", "effect (nats)", "its kind: mean (sd)", "p"),
        sorted(rows, key=lambda row: row[0]),
        numeric=range(3, 6),
        caption=Markup(
            "{}, step {}: the {} strongest edges in and out on repeated tokens and on text, each cut alone: rise of the loss ± "
            "standard error, beside other edges of its kind; p by rank among these, not adjusted."
        ).format(cited(*ends), steps, MOST_EDGES),
    )


def _edge_cells(here: "xr.Dataset") -> tuple[str, str, str]:
    return (
        with_error(float(here["value"]), float(here["stderr"])),
        f"{decimal(float(here['null_mean']))} ({spread(float(here['null_sd']))})",
        rank_p(float(here["p"]), float(here["smallest_p"])),
    )


def partners(head: Head, results: Results) -> Markup | None:
    """The heads that it composes with most, by z against random orientation."""
    if "composition" not in results:
        return None
    end = at_end(results["composition"])
    smallest = float(end.attrs.get("smallest_p", math.nan))
    found = []
    for way, side, other in (("in", "dst", "src"), ("out", "src", "dst")):
        mine = end.sel({f"{side}_layer": head.layer, f"{side}_head": head.head})
        dims = ("mode", f"{other}_layer", f"{other}_head")
        grid = {name: mine[name].transpose(*dims).values for name in ("value", "null_mean", "null_sd", "z", "p", "q")}
        labels = [mine[dim].values for dim in dims]
        for place in np.argwhere(np.isfinite(grid["z"])):
            mode, layer, number = (labels[axis][i] for axis, i in enumerate(place))
            found.append((way, str(mode), Head(int(layer), int(number)), {name: float(grid[name][*place]) for name in grid}))
    if not found:
        return None
    rows = [
        (
            way,
            f"{mode} {f'{other}→{head}' if way == 'in' else f'{head}→{other}'}",
            decimal(cell["value"]),
            f"{decimal(cell['value'] ** 2, 4)}; {decimal(cell['null_mean'], 4)} ({spread(cell['null_sd'], 5)})",
            z_score(cell["z"]),
            f"{probability(cell['p'], smallest)}, q {probability(cell['q'])}",
        )
        for way, mode, other, cell in sorted(found, key=lambda one: -one[3]["z"])[:MOST_PARTNERS]
    ]
    return table(
        ("way", "pair", "composition", "squared; random: mean (sd)", "z", "p"), rows, numeric=range(2, 6),
        caption=_caption(
            "composition", end, f"the {len(rows)} pairs of largest z, a function of the weights alone and so without error. "
            "Null: random orientation, which many pairs of trained heads beat; q is adjusted for all pairs.",
        ),
    )  # fmt: skip


def _caption(name: str, end: "xr.Dataset", text: str) -> Markup:
    """``function_profile, step 10 000: …``, the name a link to its provenance."""
    step = f", step {count(int(end['step']))}" if "step" in end.coords else ""
    return Markup("{}{}: {}").format(cited(name), step, text)
