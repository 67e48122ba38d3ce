"""Common tokens: how much attention they get beside rare ones, and how many directions the heads' circuits use."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.views.beyond import ALPHA, judged, medians, sides, verdict
from circuits.views.cells import at, heads_of
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, image, paragraph, probability, spread, table, with_error, z_score
from circuits.views.preference_figures import lift_bins, rank_curves
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficients import left_out
from circuits.views.sections.token_preferences import asked

if TYPE_CHECKING:
    import xarray as xr

CELL = Markup("{}<br><small>null {}, sd {}<br>z {}, q {}</small>")


def measures(run: Checkpoints) -> list[Wanted]:
    wants, _ = asked(run)
    return [wants[part] for part in ("lift", "rank") if part in wants]


def render(run: Checkpoints, results: Results) -> Markup:
    """Attention by bin of tokens at the last checkpoint, stable ranks over training, and both of every head."""
    wants, why = asked(run)
    if not wants:
        return left_out(why)
    data = {part: results[wants[part].measure.name] for part in ("lift", "rank") if part in wants}
    parts = lifted(data["lift"]) if "lift" in data else [left_out("Attention by frequency: this run ships no token counts")]
    return Markup("\n").join([*parts, *ranked(run, data["rank"])])


def lifted(lift: "xr.Dataset") -> list[Markup]:
    """Attention on common and rare keys at the last checkpoint."""
    step = last_measured(lift)
    end = lift.sel(step=step)
    end = judged(end.isel(bin=np.flatnonzero(end["keys"].values > 0)), "layer", "head", "bin")
    cells = [f"{head} at {name}" for head in heads_of(end) for name in end["bin"].values]
    ends = [str(end["bin"].values[i]) for i in sorted({0, end.sizes["bin"] - 1})]
    said = " ".join(of_bin(end.sel(bin=name), name) for name in ends)
    return [
        paragraph(
            "<b>Attention by frequency</b> at step {}. Attention times the number of visible keys, mean over the keys of a bin "
            "of tokens by how common they are in the training text; uniform attention has 1. The null deals the tokens of each "
            "sequence out anew among its positions: does attention depend on which token a key is at all? A cell "
            "is one head and bin. {} {}",
            count(step), verdict(end, cells, one="cell"), said,
        ),
        image(
            rendered(lift_bins(end), "svg"), "image/svg+xml",
            alt=f"Attention of every head on keys by frequency at step {step}. {said}",
            caption=f"Step {count(step)}. Dashed: uniform attention. Bands are ± 2 standard errors over sequences; full dots are "
            f"beyond the null of their head and bin (q < {ALPHA} over all cells). A bin ends where the next begins.",
        ),
        lift_table(end, step),
    ]  # fmt: skip


def of_bin(here: "xr.Dataset", name: str) -> str:
    """In how many heads attention to the keys of a bin is beyond its null."""
    above, below = (int(side.sum()) for side in sides(here))
    return f"Tokens of {name}: of {here['value'].size} heads {above} are above their null and {below} below ({medians(here)})."


def lift_table(end: "xr.Dataset", step: int) -> Markup:
    """Every head and bin."""
    names = [str(name) for name in end["bin"].values]
    smallest = float(end.attrs["smallest_p"])
    rows, shades = [], []
    for head in heads_of(end):
        here = [at(end, head).sel(bin=name) for name in names]
        values = [with_error(float(one["value"]), float(one["stderr"]), 2) for one in here]
        cells = [beside_null(value, one) for value, one in zip(values, here, strict=True)]
        rows.append((Markup("<b>{}</b>").format(head), *cells))
        shades.append([0.0, *map(shade, here)])
    rows.append(("key positions", *(count(float(n)) for n in end["keys"].values)))
    return table(
        ("head", *names), rows, numeric=range(1, len(names) + 1), shades=shades,
        caption=f"Step {count(step)}: attention over uniform ± standard error over sequences, the null of the head and bin, z, "
        f"and q over all cells of the two-sided p (at least {probability(smallest)}); darker: farther from the null, where "
        "it is beyond it. The first position is no key: a head that attends to it has less than 1 everywhere, and so has its "
        "null.",
    )  # fmt: skip


def beside_null(value: str, one: "xr.Dataset") -> Markup:
    """A cell of a table: a value over its null."""
    mean, sd, z, q = (float(one[name]) for name in ("null_mean", "null_sd", "z", "q"))
    return CELL.format(value, decimal(mean, 2), spread(sd, 2), z_score(z), probability(q))


def shade(one: "xr.Dataset") -> float:
    """How dark a cell is: by how large a part of its null's mean it is off, where it is beyond it."""
    return abs(float(one["value"]) / float(one["null_mean"]) - 1) if bool(one["beyond"]) else 0.0


def ranked(run: Checkpoints, rank: "xr.Dataset") -> list[Markup]:
    """Stable ranks over training and of every head at the last checkpoint."""
    # A matrix of zeros, as of what a reference gained on itself, uses no direction and is no evidence of few.
    rank = rank.assign({name: rank[name].where(rank["value"] > 0) for name in ("value", "null_mean", "null_sd", "z", "p")})
    rank = judged(rank.isel(step=np.flatnonzero(rank["status"].values == "ok")), "layer", "head")
    step = last_measured(rank)
    end = rank.sel(step=step)
    heads = [str(head) for head in heads_of(end)]
    circuits = [str(name) for name in end["component"].values]
    whose = f"what the heads’ circuits gained since step {count(run.steps[0])}" if len(run) > 1 else "the heads’ circuits"
    said = " ".join(course(rank.sel(component=name), name) for name in circuits)
    smallest = float(end.attrs["smallest_p"])
    rows = []
    for head in heads_of(end):
        here = [at(end, head).sel(component=name) for name in circuits]
        cells = [beside_null(decimal(float(one["value"]), 2), one) for one in here]
        rows.append((Markup("<b>{}</b>").format(head), *cells))
    return [
        paragraph(
            "<b>Stable rank</b> of {}: the sum of squared singular values over the largest of them, that is how many directions "
            "are used, weighted by how much. The null is products of random matrices of the same shapes.",
            whose,
        ),
        *(
            paragraph("<b>{}</b> at step {}. {}", name, count(step), verdict(end.sel(component=name), heads))
            for name in circuits
        ),
        *mlps(end, smallest),
        image(
            rendered(rank_curves(rank), "svg"), "image/svg+xml",
            alt=f"Stable rank of every head’s circuits over training. {said}",
            caption=f"Grey: random matrices, mean ± 2 sd. Full dots are beyond them, by q over the heads of one checkpoint (q < "
            f"{ALPHA}). {said}",
        ),
        table(
            ("head", *circuits), rows, numeric=range(1, len(circuits) + 1),
            caption=f"Step {count(step)}: stable rank, that of random matrices, z, and q over heads of the two-sided p (at least "
            f"{probability(smallest)}). Functions of the weights alone have no standard error.",
        ),
    ]  # fmt: skip


def course(rank: "xr.Dataset", name: str) -> str:
    """The median over heads at the first checkpoint that has one, at its lowest and at the last."""
    value = rank["value"].transpose("step", "layer", "head").values.reshape(rank.sizes["step"], -1)
    there = np.flatnonzero(np.isfinite(value).any(1))
    if not len(there):
        return f"{name} has no value at any checkpoint."
    steps, middle = rank["step"].values[there], np.nanmedian(value[there], axis=1)
    told = dict.fromkeys((0, int(middle.argmin()), len(there) - 1))
    return f"{name}, median over heads: {', '.join(f'{decimal(middle[i], 2)} at step {count(int(steps[i]))}' for i in told)}."


def mlps(end: "xr.Dataset", smallest: float) -> list[Markup]:
    """The stable rank of each MLP's input matrix, where there are MLPs."""
    if "mlp" not in end:
        return []
    told = [
        f"layer {int(layer)} {decimal(float(here['mlp']), 2)} (random matrices {decimal(float(here['mlp_null_mean']), 2)}, sd "
        f"{spread(float(here['mlp_null_sd']), 2)}, p {probability(float(here['mlp_p']), smallest)})"
        for layer, here in ((layer, end.sel(layer=layer)) for layer in end["layer"].values)
    ]
    return [paragraph("<b>W_in</b> of the MLPs: {}.", "; ".join(told))]


SECTION = Section("common_tokens", "Attention to common tokens, and the rank of circuits", 72, measures, render)
