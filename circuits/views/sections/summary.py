"""What the run is, and the headline: did previous-token and induction heads form, when, and on what evidence."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.detectors.classify import THRESHOLD, Z_NEEDED
from circuits.dynamics.detect import attention_measure
from circuits.dynamics.losses import loss_measures
from circuits.models.checkpoints import Checkpoints
from circuits.views.curves import rendered, transition
from circuits.views.formation import last_measured, strongest
from circuits.views.html import count, evidence, image, paragraph, with_error
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

HEADLINES = (("induction", "induction head"), ("previous_token", "previous-token head"))


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(measure) for measure in (attention_measure(run), *loss_measures(run))]


def render(run: Checkpoints, results: Results) -> str:
    """The run in a line, the headline numbers, and the transition as one picture."""
    scores = results["attention_scores"]
    step = last_measured(scores)
    end = scores.sel(step=step)
    picked = [(detector, strongest(end, detector)) for detector, _ in HEADLINES]
    lines = [headline(end, results["formation"], detector, name) for detector, name in HEADLINES]
    repeat = results["repeat_loss"].sel(step=last_measured(results["repeat_loss"]))
    gain = f"{with_error(float(repeat['value']), float(repeat['stderr']))} nats (chance 0)"
    lines.append(
        paragraph(
            "<b>Copying from context</b>: an exact repeat of random tokens lowers the loss by {} more than a shuffled one.", gain
        )
    )
    if "loss_curves" in results:
        lines.append(loss_line(results["loss_curves"]))
    picture = image(
        rendered(transition(scores, results["repeat_loss"], picked), "svg"), "image/svg+xml",
        alt=f"Scores of {' and '.join(str(h) for _, h in picked)} over training, "
        f"and the gain from an exact repeat: {gain} at step {step}.",
        caption="How it formed: the strongest previous-token and induction head (left), "
        "and what an exact repeat is worth to the model (right). "
        "Bands: one standard error. Dashed: chance.",
    )  # fmt: skip
    return about(run) + Markup('<div class="headline">{}</div>').format(Markup("\n").join(lines)) + picture


def about(run: Checkpoints) -> Markup:
    """The run in a sentence or two."""
    cfg = run.cfg
    kind = "attention-only" if cfg.attn_only else "attention and MLPs"
    text = (
        f"A {cfg.n_layers}-layer transformer ({kind}), {cfg.n_heads} heads of {cfg.d_head} dimensions per layer, d_model "
        f"{cfg.d_model}, "
        f"{cfg.positional_embedding_type} positions, vocabulary {count(cfg.d_vocab)}, context {cfg.n_ctx}; "
        f"{len(run)} checkpoints from step {count(run.steps[0])} to {count(run.steps[-1])}"
    )
    per_step = run.meta.get("tokens_per_step")
    if isinstance(per_step, int):
        text += f", {count(per_step)} tokens per step, {count(per_step * run.steps[-1])} in all"
    return paragraph("{}.", text)


def headline(end: "xr.Dataset", formed: "xr.Dataset", detector: str, name: str) -> Markup:
    """One head's score with its evidence, and when it formed; or that there is no such head."""
    head = strongest(end, detector)
    here = end.sel(layer=head.layer, head=head.head, detector=detector)
    excess = float(here["value"] - here["chance"])
    support = excess / (1 - float(here["chance"]))
    above = not np.isfinite(float(here["z"])) or float(here["z"]) > Z_NEEDED
    if not (support >= THRESHOLD and above and excess > 2 * float(here["stderr"])):
        return paragraph(
            "<b>No {}</b>: the highest {} score is {}’s, {}; a role needs a support of {} (share of the way from chance to "
            "perfect).",
            name, detector.replace("_", " "), head, evidence(here), THRESHOLD,
        )  # fmt: skip
    when = formed.sel(layer=head.layer, head=head.head, detector=detector)
    step, before = float(when["value"]), float(when["before"])
    time = (
        f"between steps {count(before)} and {count(step)}"
        if np.isfinite(before)
        else f"by step {count(step)}, the first that was measured"
    )
    return paragraph(
        "<b>Strongest {}: {}</b>, {} score {}. It formed {} (half of its last excess over chance, and above that ever after).",
        name, head, detector.replace("_", " "), evidence(here), time,
    )  # fmt: skip


def loss_line(losses: "xr.Dataset") -> Markup:
    """The last loss on each real corpus."""
    end = losses.sel(step=last_measured(losses))
    said = [
        f"{corpus} {with_error(float(here['loss']), float(here['loss_stderr']))}, "
        "in-context score "
        f"{with_error(float(here['in_context_learning_score']), float(here['in_context_learning_score_stderr']))}"
        for corpus, here in ((str(c), end.sel(corpus=c)) for c in end["corpus"].values)
        if corpus != "brackets" and not corpus.startswith("shuffled")
    ]
    return paragraph("<b>Loss</b> (nats; uniform guessing {}): {}.", f"{float(end['chance']):.3f}", "; ".join(said))


SECTION = Section("summary", "Summary", 0, measures, render)
