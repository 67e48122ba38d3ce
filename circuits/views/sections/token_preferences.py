"""Token preferences: whether heads look for what often stands before a token, for what tells the next one, for rare tokens.

``PairBias`` takes seconds and a gigabyte a checkpoint, so that a report reads it from the store. What is cheap of the same kind
has a section of its own (``common_tokens``), as this one may be missing.
"""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from circuits.dynamics.scan_snap_run import scan_snap_measures
from circuits.dynamics.together import without_paths
from circuits.models.checkpoints import Checkpoints
from circuits.views.beyond import ALPHA, judged, medians, sides, verdict
from circuits.views.cells import at, heads_of
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, image, paragraph, probability, spread, table, with_error, z_score
from circuits.views.preference_figures import bias_curves
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficients import left_out
from circuits.views.sections.scan_snap import formation_of

if TYPE_CHECKING:
    import xarray as xr

CHECKPOINTS = 6
"""Checkpoints whose stable ranks are computed for a report."""
UNSETTLED = "not converged"
"""State of logits that are no solution, and so no evidence."""
CELL = Markup("{}<br><small>null {}, sd {}<br>z {}, p {}, q {}</small>")


class Bias(NamedTuple):
    """One statistic: its name, the label of its axis, and the side of the null on which the theory has heads."""

    title: str
    label: str
    expected: str


STATISTICS = {
    "frequency_pmi": Bias("Frequency bias", "ρ(z, PMI)", "above"),
    "discriminative_partial": Bias("Discriminative bias", "ρ(z, D | P)", "above"),
    "common_gap": Bias("Common gap", "common gap (sd)", "below"),
}


@lru_cache(maxsize=1)
def asked(run: Checkpoints) -> tuple[Mapping[str, Wanted], str]:
    """The measures of token preferences that a run has data for, by part; and why, where there is none at all.

    Found once for all sections: the pairs of the training text are counted anew each time.
    """
    try:
        parts = scan_snap_measures(run)
    except ValueError as error:
        return {}, without_paths(str(error))
    how: dict[str, dict[str, Any]] = {
        "bias": {"cheap": False, "command": f"circuits scan-snap measure {run.name} --what bias"},
        "lift": {"last": True},
        "rank": {"few": CHECKPOINTS},
    }
    found = {part: Wanted(parts[part], **options) for part, options in how.items() if part in parts}
    return found, "" if parts else "This run ships no text to read attention on"


def measures(run: Checkpoints) -> list[Wanted]:
    wants, _ = asked(run)
    return [wants["bias"]] if "bias" in wants else []


def render(run: Checkpoints, results: Results) -> Markup:
    """What the statistics are, a verdict on each, their course over training, and every head."""
    wants, why = asked(run)
    if "bias" not in wants:
        return left_out(why or "This run ships no training text to count pairs of tokens in")
    name, command = wants["bias"].measure.name, wants["bias"].command
    if name not in results:
        return left_out(f"{name} has no data; make it with {command}")
    bias = results[name]
    bias = judged(settled(bias.isel(step=np.flatnonzero(bias["status"].values == "ok"))), "layer", "head")
    step = last_measured(bias)
    end = bias.sel(step=step)
    heads = [str(head) for head in heads_of(end)]
    gained = f", as gained since step {count(run.steps[0])}," if len(run) > 1 else ""
    queries, keys = (count(float(end["n"].sel(statistic=statistic))) for statistic in ("frequency_pmi", "common_gap"))
    course = counted(bias)
    return Markup("\n").join(
        [
            paragraph(
                "Which tokens does a head look for? The logits z that a query token gives to key tokens{} are laid against the "
                "training text. The theory of one layer (Tian et al. 2023) has them larger for keys that stand before the query "
                "more often than elsewhere (<em>frequency bias</em>: rank correlation of z and PMI) and for keys that tell the "
                "next token (<em>discriminative bias</em>: of z and D, given log P of the key before the query), and smaller for "
                "common tokens (<em>common gap</em>: mean z of the commonest keys less that of all, in sd). Means are over {} "
                "queries, for the gap over {} keys; {} pairs of tokens.",
                gained, queries, keys, count(int(end.attrs["n_pairs"])),
            ),
            *(
                paragraph(
                    "<b>{}.</b> {} Over heads: {}.",
                    bias_of.title, verdict(here, heads, expected=bias_of.expected), medians(here),
                )
                for bias_of, here in ((STATISTICS[name], end.sel(statistic=name)) for name in STATISTICS)
            ),
            image(
                rendered(bias_curves(bias, {name: bias_of.label for name, bias_of in STATISTICS.items()}), "svg"),
                "image/svg+xml",
                alt=f"Biases of every head over training, less the means of their nulls. {course}",
                caption="Each statistic less the mean of its null. Grey: ± 2 sd of the null, mean over heads. Full dots are "
                f"beyond the null, by q over the heads of one checkpoint (q < {ALPHA}); that there are several is not adjusted "
                f"for. {course}",
            ),
            every_head(end, step, results),
        ]
    )  # fmt: skip


def settled(bias: "xr.Dataset") -> "xr.Dataset":
    """Without the numbers of heads whose logits did not converge."""
    kept = bias["state"] != UNSETTLED
    return bias.assign({name: bias[name].where(kept) for name in ("value", "stderr", "null_mean", "null_sd", "z", "p")})


def counted(bias: "xr.Dataset") -> str:
    """How many heads are beyond their nulls at the first and the last checkpoint that has values."""
    steps = bias["step"].values[np.isfinite(bias["p"].transpose("step", ...).values).any((1, 2, 3))]
    told = []
    for step in dict.fromkeys(int(step) for step in steps[[0, -1]]) if len(steps) else ():
        above, below = zip(*(sides(bias.sel(step=step, statistic=name)) for name in STATISTICS), strict=True)
        found = ", ".join(
            f"{bias_of.title.lower()} {int(up.sum())} above and {int(down.sum())} below"
            for bias_of, up, down in zip(STATISTICS.values(), above, below, strict=True)
        )
        told.append(f"At step {count(step)}: {found}.")
    return " ".join(told)


def every_head(end: "xr.Dataset", step: int, results: Results) -> Markup:
    """All statistics of every head, the strongest frequency bias first."""
    smallest = float(end.attrs["smallest_p"])
    first = end.sel(statistic="frequency_pmi")
    heads = sorted(heads_of(end), key=lambda head: -np.nan_to_num(float(at(first, head)["z"]), nan=-np.inf))
    off = end["value"] - end["null_mean"]
    largest = {name: float(np.abs(off.sel(statistic=name)).max()) for name in STATISTICS}
    rows, shades = [], []
    for head in heads:
        here = at(end, head)
        state, cells, shade = str(here["state"].values), [], [0.0, 0.0]
        for name in STATISTICS:
            one = here.sel(statistic=name)
            value, stderr, mean, sd, z, p, q = (
                float(one[part]) for part in ("value", "stderr", "null_mean", "null_sd", "z", "p", "q")
            )
            cells.append(
                CELL.format(
                    with_error(value, stderr), decimal(mean), spread(sd), z_score(z), probability(p, smallest), probability(q)
                )
                if np.isfinite(value)
                else state
                if state != "ok"
                else "–"
            )
            shade.append(abs(value - mean) / largest[name] if bool(one["beyond"]) else 0.0)
        shade.append(0.0)
        rows.append(
            (Markup("<b>{}</b>").format(head), formation_of(head, results)[0], *cells, decimal(float(here["reliability"]), 2))
        )
        shades.append(shade)
    odd = Counter(end["state"].values.astype(str).ravel().tolist())
    del odd["ok"]
    kinds = ", ".join(f"{n} {state}" for state, n in sorted(odd.items()))
    gone = f" Without values: {kinds}." if kinds else ""
    return table(
        ("head", "role", *(bias_of.title.lower() for bias_of in STATISTICS.values()), "reliability"),
        rows, numeric=range(2, 6), shades=shades,
        caption=f"Step {count(step)}: value ± standard error, its null, z, two-sided p (at least {probability(smallest)}: ≤) and "
        "q over heads for each statistic; darker: farther from the null, where it is beyond it. The null relabels keys within "
        "bins of nearly equal frequency; for the gap it draws other keys. It is a little too narrow: of random logits that are "
        "one number for each key, whatever the query, 7 to 11 in a hundred have p < 0.05, and logits that are the log frequency "
        "stand 1.3 sd above it for PMI (on the run that ships with this package). Read p and q near 0.05 with care. That of the "
        "gap is too wide (1 in a hundred). Standard errors are over queries, or keys, as if independent, and too small. "
        f"Reliability: the share of the variance of z that is no error of fitting it.{gone}",
    )  # fmt: skip


SECTION = Section("token_preferences", "Token preferences: what heads look for", 71, measures, render)
