"""What simpler measures already say of a head's coefficient: the closed form, noise of that size, and ranks over heads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.views.cells import heads_of
from circuits.views.coefficient_figures import ERRORS, PREDICTIONS, predicted
from circuits.views.curves import rendered
from circuits.views.formation import last_common
from circuits.views.html import count, decimal, image, paragraph, table, with_error
from circuits.views.ranks import Order, linear_fit, rank_correlation
from circuits.views.sections import Results, Section, Wanted
from circuits.views.sections.coefficients import asked, base_of, left_out
from circuits.views.sections.paths import rank_p

if TYPE_CHECKING:
    import xarray as xr

CLOSE = 0.15
"""Share of the closed form within which a coefficient is called explained by it (a quadratic is estimated to a few percent)."""
MOST = 0.9
"""Share of heads that must be within errors of noise before it is said that the coefficient says what noise would."""
QUADRATIC = 0.1
"""Share within which noise and the trace of the Hessian agree where the loss counts as quadratic: closer than is then asked of
the coefficient, as the noise null has errors of a few percent."""
MEANING = {
    "local_estimate": "closed form of a quadratic loss, from curvature and gradient",
    "noise_loss": "rise of the loss under noise of sd 1 / √γ, as localisation alone would give",
    "hessian_trace": "trace of the Hessian of the head’s weights",
    "fisher_trace": "trace of the Fisher information, labels drawn from the model",
    "weight_norm": "norm of the head’s weights",
    "ablation_loss": "rise of the loss when the head’s output is its mean",
}
FITTED = tuple(kind for kind in MEANING if kind != "local_estimate")
"""Nulls of the joint fit; the closed form is made of the same quantities as the coefficient."""


def measures(run: Checkpoints) -> list[Wanted]:
    wants, _ = asked(run)
    return [wants["nulls"]] if "nulls" in wants else []


def render(run: Checkpoints, results: Results) -> Markup:
    """Closed form, noise, ranks and the joint fit, at the last checkpoint that has both."""
    wants, why = asked(run)
    if "nulls" not in wants:
        return left_out(why or "No text of this run has nulls")
    name = base_of(wants)[1]
    if name not in results:
        return left_out(f"{name} has no data, which the nulls are laid against")
    found, nulls = results[name], results[wants["nulls"].measure.name]
    step = last_common(found, nulls)
    end, null = found.sel(step=step), nulls.sel(step=step)
    orders = {kind: order_of(end, null, kind) for kind in MEANING}
    alike = ", ".join(f"{title} {decimal(orders[kind].value, 2)}" for kind, title in PREDICTIONS.items())
    return Markup("\n").join(
        [
            paragraph(
                "Is a coefficient worth its sampling? Each null is a simpler measure of the same weights on the same text; three "
                "of them predict a value, all of them an order of heads. Step {}; of {} heads one in twenty is beyond {} "
                "standard errors by chance.",
                count(step), len(heads_of(end)), f"{ERRORS:.0f}",
            ),
            closed_form(end, null),
            regime(found, nulls),
            noise(end, null),
            image(
                rendered(predicted(end, null), "svg"), "image/svg+xml",
                alt=f"Coefficient of every head over what nulls predict, step {step}. Rank correlations: {alike}.",
                caption=f"Every head at step {count(step)}; bars are ± {ERRORS:.0f} standard errors, on the dashed line both are "
                "equal. Colours are heads, marks layers (dot: the first, square: the second); hollow: sampling is not ok.",
            ),
            ranks(orders),
            joint(end, null),
        ]
    )  # fmt: skip


def closed_form(end: "xr.Dataset", null: "xr.Dataset") -> Markup:
    """How far coefficients are from those of a quadratic with the same curvature and gradient."""
    (value, stderr), (form, form_stderr), names = laid(end, null, "local_estimate")
    error = np.hypot(stderr, form_stderr)
    # A ratio to a closed form that is 0 within its error says nothing.
    known = np.isfinite(value) & np.isfinite(form) & (np.abs(form) > ERRORS * form_stderr)
    state = null["state"].sel(kind="local_estimate").transpose("layer", "head").values.ravel()
    unbounded = int(np.count_nonzero(state == "unbounded"))
    more = (
        f" {unbounded} of {len(value)} have no closed form: along some direction the loss falls faster than localisation holds."
        if unbounded
        else ""
    )
    if not known.any():
        return paragraph("<b>Closed form.</b> No head has one that is clear of 0.{}", more)
    gap = np.where(known, value - form, 0.0) / np.where(known, form, 1.0)
    widest = int(np.abs(gap).argmax())
    beyond = int(np.count_nonzero(known & (np.abs(value - form) > ERRORS * error)))
    return paragraph(
        "<b>Closed form.</b> Were the loss quadratic around the weights, curvature and gradient would give the coefficient. It "
        "is within {}% of that for {} of {} heads, and differs by more than {} standard errors for {}; the largest gap is that "
        "of {}, {}% ({} against {}). The gap is the part a quadratic does not explain, and what sampling in steps adds.{}",
        f"{100 * CLOSE:.0f}", int(np.count_nonzero(known & (np.abs(gap) <= CLOSE))), int(known.sum()), f"{ERRORS:.0f}", beyond,
        names[widest], signed(100 * gap[widest]), with_error(value[widest], stderr[widest]),
        with_error(form[widest], form_stderr[widest]), more,
    )  # fmt: skip


def regime(found: "xr.Dataset", nulls: "xr.Dataset") -> Markup:
    """Over all checkpoints: how many heads are near the closed form where the loss is quadratic at noise's size, and elsewhere.

    A quadratic loss rises under noise by ``tr H / 2 gamma`` exactly: whether it does is told by two nulls, without sampling.
    """
    measured, others = (data["step"].values[data["status"].values == "ok"] for data in (found, nulls))
    steps = np.intersect1d(measured, others)
    value = found["value"].sel(step=steps).transpose("step", "layer", "head").values
    form, flat, trace = (
        nulls["as_llc"].sel(step=steps, kind=kind).transpose("step", "layer", "head").values
        for kind in ("local_estimate", "noise_loss", "hessian_trace")
    )
    known = np.isfinite(value) & np.isfinite(form) & np.isfinite(flat) & (form > 0) & (flat > 0)
    quadratic = known & (np.abs(trace - flat) <= QUADRATIC * np.abs(flat))
    gap = np.where(known, value, 1.0) / np.where(known, form, 1.0) - 1
    told = []
    for where, cells in (
        (f"Where noise and the trace agree within {QUADRATIC:.0%}", quadratic),
        ("Elsewhere", known & ~quadratic),
    ):
        here = gap[cells]
        middle = f", median gap {signed(100 * float(np.median(here)))}%" if len(here) else ""
        within = int(np.count_nonzero(np.abs(here) <= CLOSE))
        told.append(f"{where}, {count(len(here))} cells: {count(within)} within {CLOSE:.0%}{middle}")
    return paragraph(
        "<b>Where it holds.</b> A quadratic loss rises under noise by tr H / 2γ and no more. {}. {} checkpoints; cells without a "
        "closed form, and those where it or the noise null is not above 0, are left out.",
        ". ".join(told), count(len(steps)),
    )  # fmt: skip


def noise(end: "xr.Dataset", null: "xr.Dataset") -> Markup:
    """Whether coefficients differ from what noise of the size of localisation would give."""
    (value, stderr), (flat, flat_stderr), names = laid(end, null, "noise_loss")
    known = np.isfinite(value) & np.isfinite(flat)
    if not known.any():
        return paragraph("<b>Noise.</b> No head has a coefficient and a noise null.")
    off = np.where(known, value - flat, 0.0)
    beyond = known & (np.abs(off) > ERRORS * np.nan_to_num(np.hypot(stderr, flat_stderr)))
    n, within = int(known.sum()), int(known.sum() - beyond.sum())
    widest = int(np.abs(off).argmax())
    verdict = (
        Markup(" <b>Here the coefficient says what noise of that size would.</b>")
        if within >= MOST * n
        else f" {int(np.count_nonzero(beyond & (off < 0)))} are below it and {int(np.count_nonzero(beyond & (off > 0)))} above."
    )
    return paragraph(
        "<b>Noise.</b> Localisation alone would spread each weight by 1 / √γ, whatever the loss. For {} of {} heads rllc is "
        "within {} standard errors of what noise of that size costs.{} The largest difference is that of {}, {} against {}.",
        within, n, f"{ERRORS:.0f}", verdict, names[widest], with_error(value[widest], stderr[widest]),
        with_error(flat[widest], flat_stderr[widest]),
    )  # fmt: skip


def laid(
    end: "xr.Dataset", null: "xr.Dataset", kind: str
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], list[str]]:
    """Values and errors of coefficients and of what a null predicts, head by head, and the names of heads."""
    ours = tuple(end[name].transpose("layer", "head").values.ravel() for name in ("value", "stderr"))
    theirs = tuple(null[name].sel(kind=kind).transpose("layer", "head").values.ravel() for name in ("as_llc", "as_llc_stderr"))
    return (ours[0], ours[1]), (theirs[0], theirs[1]), [str(head) for head in heads_of(end)]


def signed(value: float) -> str:
    """Per cent with a sign: ``+35``, ``−4``."""
    return ("+" if value > 0 else "") + decimal(value, 0)


def order_of(end: "xr.Dataset", null: "xr.Dataset", kind: str) -> Order:
    """The rank correlation of the coefficient with a null over heads."""
    ours, theirs = (x.transpose("layer", "head").values.ravel() for x in (end["value"], null["value"].sel(kind=kind)))
    return rank_correlation(ours, theirs)


def ranks(orders: Mapping[str, Order]) -> Markup:
    """Rank correlation of the coefficient with every null over heads."""
    rows = []
    for kind, found in orders.items():
        interval = f"[{decimal(found.low, 2)}, {decimal(found.high, 2)}]" if np.isfinite(found.low) else "–"
        p, n = rank_p(found.p, found.smallest), count(found.pairs)
        rows.append((kind.replace("_", " "), MEANING[kind], decimal(found.value, 2), interval, p, n))
    closest = max(orders, key=lambda kind: np.nan_to_num(abs(orders[kind].value)))
    most, named = orders[closest].value, closest.replace("_", " ")
    lead = f"The order of heads is closest to that by {named}, {decimal(most, 2)}. " if np.isfinite(most) else ""
    return table(
        ("null", "what it is", "rank correlation", "95%", "p", "heads"), rows, numeric=(2, 3, 4, 5),
        caption=f"{lead}Spearman’s rank correlation with rllc over heads of all layers; 95% by drawing heads again; p is "
        "two-sided, by exchanging heads, ≤ where as small as it can be, “untestable” where that is above .05. Near 1 (or −1): "
        "the null orders heads as the coefficient does, or the other way round, and costs less.",
    )  # fmt: skip


def joint(end: "xr.Dataset", null: "xr.Dataset") -> Markup:
    """The share of the variance between heads that a linear fit by all nulls explains, and predicts."""
    columns = [null["value"].sel(kind=kind).transpose("layer", "head").values.ravel() for kind in FITTED]
    value = end["value"].transpose("layer", "head").values.ravel()
    there = np.isfinite(value) & np.isfinite(columns).all(0)
    n, k = int(there.sum()), len(columns)
    names = ", ".join(kind.replace("_", " ") for kind in FITTED)
    if n < k + 3:
        return paragraph("<b>All together.</b> {} heads are too few to fit {} nulls to: untestable here.", n, k)
    explained, foretold = linear_fit(value[there], np.array(columns)[:, there].T)
    return paragraph(
        "<b>All together.</b> A linear fit by {} explains {} of the variance of rllc between {} heads (R²; as many columns of "
        "random numbers would explain {} on average); with each head foretold from the others, {}. What is left is error, and "
        "what sampling alone can say.",
        names, decimal(explained, 2), n, decimal(k / (n - 1), 2), decimal(foretold, 2),
    )  # fmt: skip


SECTION = Section("coefficient_nulls", "Complexity: what simpler measures already say", -45, measures, render)
