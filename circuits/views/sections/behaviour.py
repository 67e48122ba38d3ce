"""Copying and context: what heads do with what they attend to, what context brings, and how near the model is to n-grams."""

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.detectors.loss_pca import loss_pca
from circuits.detectors.positions import NO_EMBEDDING
from circuits.models.checkpoints import Checkpoints
from circuits.views.cells import at, heads_of, two_lines, untrained
from circuits.views.curves import rendered
from circuits.views.formation import last_measured
from circuits.views.function_figures import loss_plane, order_name, predictor_curves
from circuits.views.function_wanted import left_out, wanted
from circuits.views.html import count, decimal, image, paragraph, probability, spread, table, with_error, z_score
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

MEASURES = ("copying_scores", "in_context_ablation", "position_ablation", "token_losses", "predictor_loss")
DRAWS = 100
"""Of the bootstrap of principal components and of its null: p is at least 1/101."""
DETECTORS = {
    "copying": "copying",
    "anti_copying": "anti-copying",
    "ov_induction": "OV induction",
    "copy_suppression": "copy suppression",
}


def measures(run: Checkpoints) -> list[Wanted]:
    return wanted(run, *MEASURES)


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """``loss_pca``, the principal components of per-token losses; none where there are too few checkpoints or tokens."""
    if "token_losses" not in results:
        return {}
    try:
        return {"loss_pca": loss_pca(results["token_losses"], draws=DRAWS)}
    except ValueError:
        return {}


def render(run: Checkpoints, results: Results) -> str:
    """What there is of: copying by head, n-gram predictors, positions, and the plane of per-token losses."""
    parts = [left_out(run, *MEASURES)]
    if "copying_scores" in results:
        parts += copying(results["copying_scores"], results.get("in_context_ablation"))
    if "predictor_loss" in results:
        parts += predictors(results["predictor_loss"])
    if "position_ablation" in results:
        parts += positions(results["position_ablation"])
    if "token_losses" in results:
        parts += plane(results["token_losses"], results.get("loss_pca"))
    return Markup("\n").join(parts)


def copying(found: "xr.Dataset", in_context: "xr.Dataset | None") -> list[Markup]:
    """Every head's copying scores with their nulls, and what in-context learning loses with the head."""
    step = last_measured(found)
    end = found.sel(step=step)
    names = [str(detector) for detector in end["detector"].values]
    chance = [float(end["chance"].sel(detector=name)) for name in names]
    rows, shades = [], []
    for head in heads_of(end):
        here = [at(end, head).sel(detector=name) for name in names]
        rows.append([Markup("<b>{}</b>").format(head), *map(score_cell, here)])
        shades.append([0.0, *(max(0.0, float(x["value"]) - c) / (1 - c) for x, c in zip(here, chance, strict=True))])
    rows.append(["chance", *(decimal(c) for c in chance)])
    for layer in end["layer"].values:
        mean, sd = (end[name].sel(layer=layer).mean("head") for name in ("null_mean", "null_sd"))
        nulls = [untrained(float(mean.sel(detector=name)), float(sd.sel(detector=name))) for name in names]
        rows.append([f"untrained, layer {int(layer)}", *nulls])
    columns = ["head", *(DETECTORS.get(name, name.replace("_", " ")) for name in names)]
    said = ""
    if in_context is not None:
        columns.append("in-context learning lost")
        said = add_lost(rows, shades, in_context.sel(step=last_measured(in_context)))
    return [
        Markup("<h3>Copying, by head</h3>"),
        paragraph(
            "From direct effects on the logits, source by source and weighed by attention, from −1 to 1. <b>Copying</b>: of what "
            "the head raises among 25 random tokens, the share that falls on what it attends to; <b>anti-copying</b>: of what it "
            "lowers. <b>OV induction</b>: on repeats, attention to what followed before, times how much that raises it: "
            "attention and effect together. <b>Copy suppression</b>: where an earlier token is already predicted, attention to "
            "it times how much that lowers it; negative: copies what is predicted. They are ratios: of a head that writes "
            "little they say what kind of little it does.",
        ),
        table(
            columns, rows, numeric=range(1, len(columns)), shades=shades,
            caption=f"Step {count(step)}: value ± standard error over sequences, and z against heads of untrained models; chance "
            f"and untrained heads below. Darker: farther from chance towards 1.{said}",
        ),
    ]  # fmt: skip


def add_lost(rows: list[list[Any]], shades: list[list[float]], lost: "xr.Dataset") -> str:
    """A column of what in-context learning loses with each head, added to the table; what the caption says of it."""
    clean = float(lost["clean"])
    for row, shade, head in zip(rows, shades, heads_of(lost), strict=False):
        here = at(lost, head)
        row.append(two_lines(float(here["value"]), float(here["stderr"]), f"z {z_score(float(here['z_layer']))}"))
        shade.append(max(0.0, float(here["value"])) / max(abs(clean), 1e-9))
    for row in rows[len(shades) :]:
        row.append("0" if row[0] == "chance" else "–")
    score = with_error(clean, float(lost["clean_stderr"]))
    return (
        f" In-context learning lost: how much the in-context score (late minus early loss, {score} nats on this text) rises "
        "towards 0 when the head is ablated with all patterns kept; z against the other heads of its layer."
    )


def score_cell(here: "xr.Dataset") -> Markup:
    """A score over its error and its z, where there is a null."""
    z = float(here["z"])
    return two_lines(float(here["value"]), float(here["stderr"]), f"z {z_score(z)}" if np.isfinite(z) else "")


def predictors(found: "xr.Dataset") -> list[Markup]:
    """How far the model is from each order's predictor over training, and the numbers at the end."""
    step = last_measured(found)
    parts = [
        Markup("<h3>How near to n-gram predictors?</h3>"),
        paragraph(
            "At every held-out place whose last tokens are known from the training text: the model’s cross-entropy to what "
            "follows them there, less the least it could be. KL 0 is a model that <em>is</em> that predictor and uses nothing "
            "more; a model that passes through it has a minimum there, and rises from it as it uses more than that many "
            "tokens. Counts are noisy: a model that knew the true rates would lie at the dashed lines."
        ),
    ]
    for corpus in found["corpus"].values:
        end = found.sel(step=step, corpus=corpus)
        lowest = "; ".join(lowest_kl(found.sel(corpus=corpus, order=order), int(order)) for order in found["order"].values)
        parts += [
            image(
                rendered(predictor_curves(found, str(corpus)), "svg"), "image/svg+xml",
                alt=f"KL of the model to the n-gram predictors of {corpus} over training. Least: {lowest}.",
                caption=f"{corpus}: bands, one standard error; dots, measured checkpoints. Least: {lowest}.",
            ),
            predictors_table(end, str(corpus), step),
        ]  # fmt: skip
    return parts


def lowest_kl(data: "xr.Dataset", order: int) -> str:
    """Where the KL to a predictor is least, and how much it is there."""
    value = data["kl"].values
    if not np.isfinite(value).any():
        return f"{order_name(order)} –"
    i = int(np.nanargmin(value))
    least = with_error(float(value[i]), float(data["kl_stderr"].values[i]))
    return f"{order_name(order)} {least} at step {count(int(data['step'].values[i]))}"


def predictors_table(end: "xr.Dataset", corpus: str, step: int) -> Markup:
    rows = []
    for order in end["order"].values:
        here = end.sel(order=order)
        cells = [
            with_error(float(here[name]), float(here["stderr" if name == "value" else f"{name}_stderr"]))
            for name in ("value", "kl", "loss", "ngram_loss")
        ]
        rows.append(
            (
                order_name(int(order)), f"{100 * float(here['share']):.0f}%", cells[0], decimal(float(here["floor"])), cells[1],
                decimal(float(here["kl_noise"])), decimal(float(here["null_mean"])), *cells[2:],
            )
        )  # fmt: skip
    return table(
        ("predictor", "places", "cross-entropy", "floor", "KL", "noise", "one order less", "model’s loss", "n-gram’s loss"), rows,
        numeric=range(1, 9),
        caption=f"{corpus}, step {count(step)}; nats ± standard error over sequences. KL: cross-entropy less floor. Noise: KL of "
        "a model that knew the true rates. One order less: cross-entropy of the shorter predictor, the null; uniform guessing "
        f"has {decimal(float(end['chance']))}. Losses at the same places: of the model, and of the interpolated n-grams.",
    )  # fmt: skip


def positions(found: "xr.Dataset") -> list[Markup]:
    """What the embedding of positions is worth."""
    step = last_measured(found)
    end = found.sel(step=step)
    title = Markup("<h3>Without positions</h3>")
    if str(end["state"].values) == NO_EMBEDDING:
        return [title, paragraph("This model has no embedding of positions to take out.")]
    rows = [
        (
            str(corpus).replace("_", " "),
            with_error(float(end["loss"].sel(corpus=corpus)), float(end["loss_stderr"].sel(corpus=corpus))),
            *(
                with_error(float(cost["value"]), float(cost["stderr"]))
                for cost in (end.sel(corpus=corpus, kind=kind) for kind in end["kind"].values)
            ),
        )
        for corpus in end["corpus"].values
    ]
    return [
        title,
        table(
            ("corpus", "loss", *(f"{kind}: added loss" for kind in end["kind"].values)), rows,
            numeric=range(1, 2 + end.sizes["kind"]),
            caption=f"Step {count(step)}; nats per token ± standard error over sequences. Loss, and what is added to it when "
            "position embeddings are taken out (zero) or every position has their mean (only order is lost). Chance 0.",
        ),
    ]  # fmt: skip


def plane(losses: "xr.Dataset", found: "xr.Dataset | None") -> list[Markup]:
    """Per-token losses over checkpoints in the plane of their first principal components."""
    title = Markup("<h3>Per-token losses over training</h3>")
    if found is None:
        measured = int((losses["status"].values == "ok").sum())
        return [title, paragraph("{} checkpoints with losses are too few for principal components.", measured)]
    least = float(found.attrs["smallest_p"])
    said = []
    for component in found["component"].values:
        here = found.sel(component=component)
        share = with_error(float(here["explained"]), float(here["explained_stderr"]))
        walks = f"{decimal(float(here['explained_null_mean']))}, sd {spread(float(here['explained_null_sd']))}"
        said.append(f"component {int(component)} {share} (walks {walks}; p {probability(float(here['explained_p']), least)})")
    shares = "; ".join(said)
    return [
        title,
        image(
            rendered(loss_plane(found), "svg"), "image/svg+xml",
            alt=f"Trajectory of {found.attrs['n_tokens']} per-token losses over {found.attrs['n_snapshots']} checkpoints in the "
            f"plane of two principal components. Explained variance: {shares}.",
            caption=f"The losses of {count(int(found.attrs['n_tokens']))} tokens at {found.attrs['n_snapshots']} checkpoints, "
            "which count alike; crosses: one standard error, over sequences. Explained variance: "
            f"{shares}. Walks: the null, tokens that take the same steps each by itself; after a first component larger than "
            "theirs, later ones have less left. A walk draws a curve that turns, too: a turn alone is no sign of a transition.",
        ),
    ]  # fmt: skip


SECTION = Section("behaviour", "Copying and context", 36, measures, render, derive)
