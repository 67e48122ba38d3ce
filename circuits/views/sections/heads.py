"""The table of heads: each with its best-supported role, the evidence, and when it formed."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.detectors.classify import NO_ROLE, THRESHOLD, Z_NEEDED, classify
from circuits.dynamics.detect import attention_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.formation import formation, last_measured
from circuits.views.html import count, decimal, paragraph, spread, table, with_error, z_score
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr


def measures(run: Checkpoints) -> list[Wanted]:
    return [Wanted(attention_measure(run))]


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """``head_roles``, the role of every head at every step, and ``formation``, when each score formed."""
    scores = results["attention_scores"]
    return {"head_roles": classify(scores), "formation": formation(scores)}


def render(run: Checkpoints, results: Results) -> str:
    """The table, heads with the clearest roles first."""
    step = last_measured(results["attention_scores"])
    roles = results["head_roles"].sel(step=step)
    formed = results["formation"]
    heads = [Head(int(layer), int(head)) for layer in roles["layer"].values for head in roles["head"].values]

    def row(head: Head) -> tuple[object, ...]:
        here = roles.sel(layer=head.layer, head=head.head)
        role, detector = str(here["role"].values), str(here["detector"].values)
        when = formed.sel(layer=head.layer, head=head.head, detector=detector)
        nearest = role if role != NO_ROLE else f"{NO_ROLE} (nearest: {detector.replace('_', ' ')})"
        return (
            Markup("<b>{}</b>").format(head),
            nearest,
            with_error(float(here["value"]), float(here["stderr"])),
            decimal(float(here["chance"])),
            f"{decimal(float(here['null_mean']))} (sd {spread(float(here['null_sd']))})",
            z_score(float(here["z"])),
            decimal(float(here["support"]), 2),
            decimal(float(here["margin"]), 2),
            formation_text(when) if role != NO_ROLE else "–",
        )

    def rank(head: Head) -> tuple[bool, float, Head]:
        here = roles.sel(layer=head.layer, head=head.head)
        return str(here["role"].values) == NO_ROLE, -float(here["support"]), head

    supported = int(np.sum(roles["role"].values != NO_ROLE))
    return paragraph(
        "{} of {} heads have a supported role at step {}. The rule: of the roles’ detectors, the one with the largest "
        "support, the share of the way from "
        "chance to perfect, (value − chance) / (1 − chance), if that is at least {}, exceeds 0 by two standard errors and "
        "lies more than {} sd above "
        "untrained heads. The margin is the distance to the runner-up: a small one means that two roles describe the head "
        "about equally well. A role says "
        "where a head attends, not what it does with what it finds there.",
        supported, len(heads), count(step), THRESHOLD, decimal(Z_NEEDED, 0),
    ) + table(
        ("head", "best-supported role", "score", "chance", "untrained", "z", "support", "margin", "formed at step"),
        [row(head) for head in sorted(heads, key=rank)],
        caption="Score ± standard error of the role’s detector. "
        "Formed: between which checkpoints the score passed half of its last excess over chance for good.",
        numeric=(2, 3, 4, 5, 6, 7, 8),
    )  # fmt: skip


def formation_text(when: "xr.Dataset") -> str:
    """``4 750–5 000``: not there at the first, there from the second on."""
    if not np.isfinite(float(when["value"])):
        return "–"
    if not np.isfinite(float(when["before"])):
        return f"from the first ({count(float(when['value']))})"
    return f"{count(float(when['before']))}–{count(float(when['value']))}"


SECTION = Section("heads", "Heads and their roles", 30, measures, render, derive)
