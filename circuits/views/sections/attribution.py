"""Attribution: how well derivatives rank the edges, against their exact effects on the same text."""

from markupsafe import Markup

from circuits.dynamics.pathways import path_measures
from circuits.models.checkpoints import Checkpoints
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, image, paragraph, spread
from circuits.views.path_figures import agreement_figure
from circuits.views.sections import Results, Section, Wanted

MEASURE = "edge_attribution_inputs_text"


def measures(run: Checkpoints) -> list[Wanted]:
    """It takes longer than the exact effects and its ranks: the report shows it where ``circuits paths`` has been run."""
    found = [measure for measure in path_measures(run) if measure.name == MEASURE]
    return [Wanted(measure, cheap=False, command=f"circuits paths {run.name}", last=True) for measure in found]


def render(run: Checkpoints, results: Results) -> str:
    """The scatter of estimates against exact effects, with their rank agreement."""
    if MEASURE not in results:
        return paragraph("<b>Left out.</b> This run has no text to measure attribution on.")
    step = last_measured(results[MEASURE])
    end = results[MEASURE].sel(step=step)
    said = [
        f"{decimal(float(end[name]))} [{decimal(float(end[f'{name}_low']))}, {decimal(float(end[f'{name}_high']))}; edges "
        f"of one kind exchanged: {decimal(float(end[f'{name}_null_mean']))}, sd {spread(float(end[f'{name}_null_sd']))}]"
        for name in ("agreement", "agreement_of_moduli")
    ]
    return Markup("\n").join(
        [
            paragraph(
                "Attribution estimates the effect of every edge from a few forward and backward passes: the change of the source "
                "times the derivative of the loss by what its reader reads, averaged over inputs on the way from the text to the "
                "mean (integrated gradients over inputs). Where attention is saturated its derivatives vanish and needed edges "
                "into queries and keys are missed."
            ),
            image(
                rendered(agreement_figure(end), "svg"),
                "image/svg+xml",
                alt=f"Estimated against exact effect of every edge at step {step}; rank correlation {said[0]}.",
                caption=f"Every edge at step {count(step)}, held-out text. Spearman’s rank correlation {said[0]}, of moduli "
                f"{said[1]} (in brackets: 95% interval over examples; null).",
            ),
        ]
    )


SECTION = Section("attribution", "Attribution of edges", 49, measures, render)
