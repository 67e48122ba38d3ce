"""Loss refinement: every head's coefficient for keeping away from, or near to, what a one-layer model predicts."""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.dynamics.coefficients import reference_of, without_reference
from circuits.models.checkpoints import Checkpoints
from circuits.views.coefficient_figures import ERRORS, coefficient_curves
from circuits.views.curves import rendered
from circuits.views.formation import last_common
from circuits.views.html import count, decimal, image, paragraph, with_error
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficient_nulls import closed_form, noise
from circuits.views.sections.coefficients import NULLS_ON, asked, below_zero, largest_by_chance, left_out, not_ok

if TYPE_CHECKING:
    import xarray as xr


def measures(run: Checkpoints) -> list[Wanted]:
    wants, _ = asked(run)
    return [wants[part] for part in ("kl", f"{NULLS_ON}kl") if part in wants]


def render(run: Checkpoints, results: Results) -> Markup:
    """When the mean over the heads of each layer is largest, and curves."""
    wants, why = asked(run)
    if "kl" not in wants:
        return left_out(why or f"No divergence: {without_reference(run)}")
    found, nulls = (results[wants[part].measure.name] for part in ("kl", f"{NULLS_ON}kl"))
    step = last_common(found, nulls)
    end, null = found.sel(step=step), nulls.sel(step=step)
    reference = reference_of(run)
    layers = " ".join(peak(found, int(layer)) for layer in found["layer"].values)
    return Markup("\n").join(
        [
            paragraph(
                "In place of the loss stands the divergence KL(reference || model) per token from the predictions of {}, at its "
                "last checkpoint: how far moving a head’s weights takes the model from what that simpler model says "
                "(loss-refined, Wang et al. 2024). Below 0, it brings the model nearer to it.",
                "the reference" if reference is None else reference.name,
            ),
            paragraph("{}", layers),
            image(
                rendered(coefficient_curves(found, names=False), "svg"), "image/svg+xml",
                alt=f"Coefficients of every head over training for the divergence from the reference. {layers}",
                caption=f"Bands are ± {ERRORS:.0f} standard errors of sampling. {not_ok(found)}"
                f"{below_zero(found, 'the divergence')}",
            ),
            paragraph("What nulls of the same divergence say, at step {}:", count(step)),
            closed_form(end, null),
            noise(end, null),
        ]
    )  # fmt: skip


def peak(found: "xr.Dataset", layer: int) -> str:
    """When the mean over a layer's heads is largest, and whether it has fallen since by more than error."""
    here = found.sel(layer=layer).transpose("step", ...)
    value, stderr = here["value"].values, here["stderr"].values
    known = np.flatnonzero(np.isfinite(value).all(1) & np.isfinite(stderr).all(1))
    if not len(known):
        return f"Layer {layer}: no checkpoint has all heads."
    mean, error = value[known].mean(1), np.sqrt(np.square(stderr[known]).sum(1)) / value.shape[1]
    steps, top = here["step"].values[known], int(mean.argmax())
    said = f"Layer {layer}: the mean over heads is largest at step {count(int(steps[top]))}, {with_error(mean[top], error[top])}"
    if top == len(mean) - 1:
        return f"{said}, the last that was measured."
    fallen, off = mean[top] - mean[-1], float(np.hypot(error[top], error[-1]))
    clear = f"a fall of {100 * fallen / mean[top]:.0f}%" if mean[-1] > 0 else "a fall below 0" if mean[top] > 0 else "a fall"
    bound = largest_by_chance(len(mean) - 1)
    verdict = clear if fallen > bound * off else f"no fall beyond the {decimal(bound, 1)} standard errors that chance bounds"
    return f"{said}, and {with_error(mean[-1], error[-1])} at step {count(int(steps[-1]))}: {verdict}."


SECTION = Section("coefficient_reference", "Complexity beyond a one-layer model", 63, measures, render)
