"""Every detector's score of every head over training."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.dynamics.detect import attention_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.curves import head_scores, rendered
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, evidence, image, paragraph, spread, table
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

MEANING = {
    "previous_token": "Attention on the token before",
    "current_token": "Attention on the token itself",
    "duplicate_token": "Attention on earlier copies of the current token",
    "first_token": "Attention that rests on the first token",
    "fixed_lag": "Attention at one fixed distance of at least 2, the distance that gets most: a look-back by position",
    "induction": "Attention on the token after earlier copies of the current one, over many periods and gaps",
    "induction_stripe": "The same on [BOS, r, r] alone: one fixed period, which a positional head can fool",
    "prefix_matching": "The same on 25 random tokens four times over (Olsson et al. 2022): likewise one fixed period",
    "entropy": "Mean entropy of the attention rows; low is sharp",
}


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(attention_measure(run))]


def render(run: Checkpoints, results: Results) -> str:
    """One figure for each detector, then all last values as a table."""
    scores = results["attention_scores"]
    step = last_measured(scores)
    end = scores.sel(step=step)
    detectors = [str(detector) for detector in scores["detector"].values]
    parts = [
        paragraph(
            "Scores are attention mass in [0, 1] (entropy: nats), mean and one standard error over {} sequences. Dashed: "
            "chance, the score of uniform "
            "attention on the same tokens. Grey band: mean ± 2 sd of the heads of untrained models of this shape. Bold and "
            "named: the highest scores at "
            "the last step.",
            scores.attrs.get("n_examples", "the"),
        )
    ]
    for detector in detectors:
        here = end.sel(detector=detector)
        which, sign = ("Lowest", 1.0) if detector == "entropy" else ("Highest", -1.0)
        ranked = sorted(
            (Head(int(layer), int(head)) for layer in here["layer"].values for head in here["head"].values),
            key=lambda h: sign * float(here["value"].sel(layer=h.layer, head=h.head)),
        )
        top = "; ".join(f"{h} {evidence(here.sel(layer=h.layer, head=h.head))}" for h in ranked[:2])
        parts += [
            Markup('<h3 id="{}">{}</h3>').format(f"score-{detector}", detector.replace("_", " ").capitalize()),
            image(
                rendered(head_scores(scores, detector), "svg"), "image/svg+xml",
                alt=f"{detector} score of every head over training. {which} at step {step}: {top}.",
                caption=f"{MEANING.get(detector, detector)}. {which} at step {count(step)}: {top}.",
            ),
        ]  # fmt: skip
    return Markup("\n").join([*parts, Markup("<h3>All scores at the last step</h3>"), _all_scores(end, detectors, step)])


def _all_scores(end: "xr.Dataset", detectors: list[str], step: int) -> Markup:
    """Every value with its error; chance and the untrained null below."""
    order = ("layer", "head", "detector")
    value, stderr, mean, sd = (end[name].transpose(*order).values for name in ("value", "stderr", "null_mean", "null_sd"))
    chance = np.array([float(end["chance"].sel(detector=detector).mean()) for detector in detectors])
    rows: list[tuple[object, ...]] = []
    shades: list[list[float]] = []
    two_lines = Markup("{}<br><small>± {}</small>")
    for i, layer in enumerate(end["layer"].values):
        for j, head in enumerate(end["head"].values):
            cells = [two_lines.format(decimal(v), spread(e)) for v, e in zip(value[i, j], stderr[i, j], strict=True)]
            rows.append((Markup("<b>{}</b>").format(Head(int(layer), int(head))), *cells))
            support = (value[i, j] - chance) / (1 - chance)
            shades.append(
                [0.0, *(0.0 if d == "entropy" else float(np.nan_to_num(s)) for d, s in zip(detectors, support, strict=True))]
            )
    rows.append(("chance", *map(decimal, chance)))
    for i, layer in enumerate(end["layer"].values):
        cells = [
            Markup("{}<br><small>sd {}</small>").format(decimal(m), spread(s))
            for m, s in zip(mean[i].mean(0), sd[i].mean(0), strict=True)
        ]
        rows.append((f"untrained, layer {int(layer)}", *cells))
    return table(
        ("head", *(detector.replace("_", " ") for detector in detectors)), rows,
        numeric=range(1, len(detectors) + 1), shades=shades,
        caption=f"Step {count(step)}: value ± standard error, darker the farther from chance towards 1; "
        "chance and untrained heads below.",
    )  # fmt: skip


SECTION = Section("scores", "Detector scores over training", 20, measures, render)
