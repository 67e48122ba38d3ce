"""Scan and snap: how every head's attention moved and froze, beside when its detector scores formed."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.detectors.attention_probe import AttentionProbe
from circuits.detectors.attention_spread import AttentionSpread
from circuits.detectors.classify import NO_ROLE
from circuits.dynamics.scan_snap_run import EXAMPLES, LENGTH, rates_of, read, text_of
from circuits.dynamics.snap import SLOW, SUSTAINED
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.cells import at, heads_of
from circuits.views.curves import rendered
from circuits.views.html import count, decimal, image, paragraph, table, with_error
from circuits.views.movement_figures import spread_curves, velocity_curves
from circuits.views.ranks import rank_correlation
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficients import left_out
from circuits.views.sections.heads import formation_text
from circuits.views.sections.paths import rank_p

if TYPE_CHECKING:
    import xarray as xr

STOPPED = 0.5
"""Share of a head's whole movement that may come after its snap, if that is to be the end of its way."""
FEWEST = 4
"""Checkpoints that a snap is read from."""


def measures(run: Checkpoints) -> list[Wanted]:
    text = text_of(run)
    if text is None or len(run) < FEWEST:
        return []
    return [Wanted(AttentionSpread(text[:EXAMPLES])), Wanted(AttentionProbe(text, length=LENGTH))]


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """``movement`` and ``snap``."""
    return read(run, dict(results))


def render(run: Checkpoints, results: Results) -> Markup:
    """Entropy and velocity over training, and every head's snap and bounce beside its formation."""
    if "snap" not in results:
        return left_out(f"A snap is read from at least {FEWEST} checkpoints with attention on a text")
    spread, movement, snap = results["attention_spread"], results["movement"], results["snap"]
    states = snap["state"].values.astype(str)
    froze = np.isin(states, ("frozen", "recurrent"))
    clock = "the sum of learning rates" if rates_of(run) is not None else "steps, as the run does not say its learning rates"
    kinds = ", ".join(f"{int((states == state).sum())} {state}" for state in sorted(set(states.ravel().tolist())))
    return Markup("\n").join(
        [
            paragraph(
                "The theory of one layer (Tian et al. 2023) has attention scan its tokens and then snap: from some step on "
                "it all but stops. Attention is read on {} sequences of {} held-out tokens; a head has snapped where its "
                "velocity, in {}, stays below a {}th of its peak for {} intervals. Here {} of {} heads have ({}).",
                results["attention_probe"].sizes["example"], LENGTH, clock, f"{1 / SLOW:.0f}", SUSTAINED,
                int(froze.sum()), froze.size, kinds,
            ),
            paragraph("{} {} {}", left_to_go(snap), bounced(snap), against_formation(snap, results)),
            image(
                rendered(spread_curves(spread), "svg"), "image/svg+xml",
                alt="Normalised entropy of every head’s attention over training.",
                caption="Entropy over its ceiling ln i, mean over queries with i > 1 keys; 1 is uniform attention, dashed. "
                "Bands are ± 2 standard errors over sequences.",
            ),
            image(
                rendered(velocity_curves(movement, snap), "svg"), "image/svg+xml",
                alt=f"Velocity of every head’s attention over training. {int(froze.sum())} of {froze.size} heads snapped.",
                caption="Distance between the attention of neighbouring checkpoints over the steps between them, mean over "
                "queries; a dot where a head snapped. Where checkpoints lie closer, noise of training counts for more.",
            ),
            rows(snap, spread, results),
        ]
    )  # fmt: skip


def left_to_go(snap: "xr.Dataset") -> Markup:
    """Whether what is called frozen has stopped: how much of all movement comes after."""
    ratio = snap["freeze_ratio"].values
    ratio = ratio[np.isfinite(ratio)]
    if not len(ratio):
        return Markup("")
    middle, most = float(np.median(ratio)), int((ratio > STOPPED).sum())
    verdict = (
        Markup("<b>So the fall of velocity is no freeze: attention slows down after its first steps and goes on moving.</b>")
        if 2 * most > len(ratio)
        else "For most heads the snap is the end of their way."
    )
    return Markup(
        "Of all movement a share of {} (median) comes after the snap; it is more than half in {} of {} heads. {}"
    ).format(decimal(middle, 2), most, len(ratio), verdict)


def bounced(snap: "xr.Dataset") -> str:
    """How many heads' entropy fell, and how many came back."""
    states = snap["bounce_state"].values.astype(str)
    fell, back = int(np.isin(states, ("dropped", "bounced")).sum()), int((states == "bounced").sum())
    ratio = snap["ratio"].values[states == "bounced"]
    by = f", by {decimal(float(np.median(ratio)), 2)} of the fall in the median" if back else ""
    return f"Entropy falls by more than 3 standard errors in {fell} of {states.size} heads and comes back in {back}{by}."


def formation_of(head: Head, results: Results) -> "tuple[str, xr.Dataset | None]":
    """A head's role at the end, and when its score formed; no dataset without a role."""
    if not {"head_roles", "formation"} <= set(results):
        return "–", None
    here = at(results["head_roles"].isel(step=-1), head)
    role, detector = str(here["role"].values), str(here["detector"].values)
    return role, None if role == NO_ROLE else at(results["formation"], head).sel(detector=detector)


def against_formation(snap: "xr.Dataset", results: Results) -> str:
    """Whether heads whose scores form late snap late."""
    heads = heads_of(snap)
    formed = [formation_of(head, results)[1] for head in heads]
    when = np.array([np.nan if one is None else float(one["value"]) for one in formed])
    snapped = np.array([float(at(snap, head)["value"]) for head in heads])
    order = rank_correlation(snapped, when)
    if order.pairs < 3:
        return f"Only {order.pairs} heads have both a role that formed and a snap: whether they go together is untestable here."
    return (
        f"Over the {order.pairs} heads that have both, steps of the snap and of the role’s formation have a rank correlation of "
        f"{decimal(order.value, 2)} (p {rank_p(order.p, order.smallest)})."
    )


def rows(snap: "xr.Dataset", spread: "xr.Dataset", results: Results) -> Markup:
    """Every head, those that snapped last first."""
    last = spread.isel(step=np.flatnonzero(spread["status"].values == "ok")[-1]).sel(statistic="normalised_entropy")
    heads = sorted(heads_of(snap), key=lambda head: -np.nan_to_num(float(at(snap, head)["value"]), nan=-1.0))
    body = []
    for head in heads:
        here, wide = at(snap, head), at(last, head)
        role, formed = formation_of(head, results)
        state, froze = str(here["state"].values), np.isfinite(float(here["value"]))
        body.append(
            (
                Markup("<b>{}</b>").format(head),
                role,
                "–" if formed is None else formation_text(formed),
                count(float(here["peak"])) if np.isfinite(float(here["peak"])) else "–",
                f"{count(float(here['before']))}–{count(float(here['value']))}" if froze else state,
                decimal(float(here["freeze_ratio"]), 2) if froze else "–",
                with_error(float(wide["value"]), float(wide["stderr"])),
                with_error(float(here["drop"]), float(here["drop_stderr"]), 2),
                str(here["bounce_state"].values),
                with_error(float(here["ratio"]), float(here["ratio_stderr"]), 2) if np.isfinite(float(here["ratio"])) else "–",
            )
        )
    return table(
        ("head", "role", "formed", "fastest at", "snapped", "path left", "H / ln i", "drop (nats)", "entropy", "bounce"),
        body, numeric=(2, 3, 4, 5, 6, 7, 9),
        caption="Formed: between which checkpoints the role’s score passed half of its last excess over chance. Snapped: "
        "between which checkpoints attention froze, or why it did not (moving; diffusive: slower only as a random walk is "
        "between checkpoints that lie farther apart; late: too near the end). Path left: the share of all movement after the "
        "snap. Drop and bounce of entropy; bounce is the share of the drop that comes back.",
    )  # fmt: skip


SECTION = Section("scan_snap", "Scan and snap: how attention moved and froze", 70, measures, render, derive)
