"""Loss and in-context learning over training."""

from typing import TYPE_CHECKING

from markupsafe import Markup

from circuits.dynamics.losses import loss_measures
from circuits.models.checkpoints import Checkpoints
from circuits.views.curves import in_context_curves, loss_along_context, loss_curves, rendered, repeat_loss_curve
from circuits.views.formation import last_measured
from circuits.views.html import count, decimal, image, paragraph, table, with_error
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(measure) for measure in loss_measures(run)]


def render(run: Checkpoints, results: Results) -> str:
    """Curves over training and along the context, the last values as a table, and what an exact repeat is worth."""
    repeat = results["repeat_loss"]
    step = last_measured(repeat)
    end = repeat.sel(step=step)
    gain = f"{with_error(float(end['value']), float(end['stderr']))} nats at step {count(step)}, chance 0"
    figures = [(repeat_loss_curve(repeat), f"Gain from an exact repeat over training: {gain}.")]
    if "loss_curves" in results:
        figures = [*_held_out_figures(results["loss_curves"]), *figures]
    parts = [
        Markup('<div style="display:flex;flex-wrap:wrap;gap:0 16px">{}</div>').format(
            Markup("").join(image(rendered(figure, "svg"), "image/svg+xml", alt=alt) for figure, alt in figures)
        ),
        paragraph(
            "Bands: one standard error over sequences. Second copy of random tokens: a model that copies from context "
            "predicts the second copy of a random "
            "sequence better than the first; the difference is that drop in loss minus the drop when the second copy is "
            "shuffled, which is what the "
            "<em>order</em> of the first copy gives. It is {}.",
            gain,
        ),
    ]
    if "loss_curves" in results:
        parts.append(_held_out_table(results["loss_curves"]))
    return Markup("\n").join(parts)


def _last(end: "xr.Dataset", variable: str, corpus: str) -> str:
    here = end.sel(corpus=corpus)
    return with_error(float(here[variable]), float(here[f"{variable}_stderr"]))


def _held_out_figures(losses: "xr.Dataset") -> list[tuple["Figure", str]]:
    """Loss and in-context score over training, loss along the context; each with its key numbers in words."""
    step = last_measured(losses)
    end = losses.sel(step=step)
    corpora = [str(corpus) for corpus in losses["corpus"].values]
    said = "; ".join(f"{corpus} {_last(end, 'loss', corpus)}" for corpus in corpora)
    context = "; ".join(f"{corpus} {_last(end, 'in_context_learning_score', corpus)}" for corpus in corpora)
    return [
        (
            loss_curves(losses),
            f"Loss over training, nats per token, at step {step}: {said}; chance {decimal(float(end['chance']))}.",
        ),
        (in_context_curves(losses), f"In-context learning score over training, nats, at step {step}: {context}; chance 0."),
        (loss_along_context(losses, step), f"Loss by position in the context at step {step}; its mean: {said}."),
    ]


def _held_out_table(losses: "xr.Dataset") -> Markup:
    """The first and last values: the first checkpoint, where it is untrained, is the null of the last."""
    steps = losses["step"].values[losses["status"].values == "ok"]
    first, last = int(steps[0]), int(steps[-1])
    start, end = losses.sel(step=first), losses.sel(step=last)
    rows = [
        (
            corpus.replace("_", " "),
            *(_last(at, variable, corpus) for variable in ("loss", "in_context_learning_score") for at in (start, end)),
            count(float(end["n"].sel(corpus=corpus))),
        )
        for corpus in (str(c) for c in losses["corpus"].values)
    ]
    caption = (
        "Next-token loss in nats, mean ± standard error over held-out sequences; uniform guessing gives "
        f"{decimal(float(end['chance']))}. The in-context "
        "score is late minus early loss: negative means that context helps, 0 is chance."
    )
    columns = [f"{what}, step {count(step)}" for what in ("loss", "in-context score") for step in (first, last)]
    return table(("corpus", *columns, "sequences"), rows, caption=caption, numeric=range(1, 6))


SECTION = Section("losses", "Loss and in-context learning", 10, measures, render)
