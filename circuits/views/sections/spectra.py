"""Token circuits: the eigenvalue plane, copying over training, and the statistics of every head."""

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.detectors.classify import ROLES
from circuits.dynamics.detect import attention_measure
from circuits.dynamics.weigh import weight_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.curves import rendered
from circuits.views.formation import last_common, roles_at, strongest
from circuits.views.html import count, decimal, image, paragraph, probability, spread, table, with_error, z_score
from circuits.views.sections import Results, Section, Wanted
from circuits.views.weight_figures import eigenvalue_plane, statistic_curves

if TYPE_CHECKING:
    import xarray as xr

CURVES = 5
COLUMNS = {
    "ov_copying": "OV copying",
    "ov_positive_fraction": "OV positive",
    "ov_top1": "OV top 1",
    "ov_top5": "OV top 5",
    "qk_matching": "QK matching",
    "qk_positive_fraction": "QK positive",
    "qk_trace": "QK trace",
}
CHECKPOINTS = 6


def measures(run: Checkpoints) -> list[Wanted]:
    names = ("weight_spectra", *(("k_term_copying",) if run.cfg.n_layers > 1 else ()))
    return [Wanted(attention_measure(run)), *(Wanted(weight_measure(run, name), few=CHECKPOINTS) for name in names)]


def render(run: Checkpoints, results: Results) -> str:
    """The plane, copying over training, and all statistics as a table."""
    spectra, k_term = results["weight_spectra"], results.get("k_term_copying")
    step = last_common(spectra, results["attention_scores"], *([] if k_term is None else [k_term]))
    end = spectra.sel(step=step)
    roles = roles_at(results, step)
    induction = [head for head, role in roles.items() if role == ROLES["induction"]]
    sources = {} if k_term is None else earlier_previous_token(results["attention_scores"].sel(step=step))
    corner = (
        "Upper right on the left: copies what it attends to, and attends behind copies of the current token, as an induction "
        "head does."
        if sources
        else "Upper right: copies what it attends to, and attends to the token that it is."
    )
    plane = image(
        rendered(eigenvalue_plane(end, None if k_term is None else k_term.sel(step=step), sources, induction), "svg"),
        "image/svg+xml",
        alt=plane_in_words(end, k_term, sources, induction, step),
        caption=f"Every head at step {count(step)}; ringed: induction heads by their detector scores. Grey: mean ± 2 sd of "
        f"random heads. {corner}",
    )
    copying = end["value"].sel(statistic="ov_copying")
    heads = sorted(roles, key=lambda head: (-_at(copying, head), head))[:CURVES]
    said = "; ".join(f"{head} {decimal(_at(copying, head), 2)}" for head in heads)
    curves = image(
        rendered(statistic_curves(spectra, "ov_copying", heads, title="OV copying"), "svg"), "image/svg+xml",
        alt=f"OV copying statistic of the heads that end highest, over training. At step {step}: {said}.",
        caption=f"OV copying of the heads that end highest, over training; grey: random heads. At step {count(step)}: {said}.",
    )  # fmt: skip
    return Markup("\n").join([explained(spectra, sources), plane, curves, all_statistics(end, roles, step)])


def explained(spectra: "xr.Dataset", sources: dict[int, Head]) -> Markup:
    """What the statistics and their null mean."""
    through = ", ".join(dict.fromkeys(map(str, sources.values())))
    return paragraph(
        "Each head has two circuits over tokens: OV, how attending to a token changes the logit of every token, and QK, how "
        "much each token attends to each. The <em>statistic</em> is Re Σλ / Σ|λ| over the eigenvalues of such a circuit, "
        "from −1 to 1: at 1, OV raises the token that is attended to (copying) and QK lets tokens attend to themselves "
        "(matching); at −1 the opposite; random heads lie about 0. "
        + (
            "The <em>K-term</em> is the QK circuit with keys that an earlier head moved, here the earlier head that attends "
            f"most to the previous token ({Markup.escape(through)}): at 1, a head attends to tokens that stand behind a copy "
            "of its own. "
            if sources
            else ""
        )
        + "It comes from the weights alone and has no standard error. <em>The null</em> has Gaussian weights in place of the "
        "head’s and this model’s own embeddings: does a head without any training do this? A trained head that has nothing "
        "to do with copying may still beat it, and positive eigenvalues do not prove copying; hence also the share of tokens "
        "that are the largest (or among the five largest) of their own OV row."
    )


def earlier_previous_token(scores: "xr.Dataset") -> dict[int, Head]:
    """For each layer above the first, the head of the earlier layers that attends most to the previous token."""
    layers = [int(layer) for layer in scores["layer"].values]
    return {
        layer: strongest(scores.sel(layer=[earlier for earlier in layers if earlier < layer]), "previous_token")
        for layer in layers[1:]
    }


def _at(values: "xr.DataArray", head: Head) -> float:
    """The value of a head; what is not there sorts last."""
    return float(np.nan_to_num(values.sel(layer=head.layer, head=head.head), nan=-np.inf))


def plane_in_words(
    end: "xr.Dataset", k_term: "xr.Dataset | None", sources: dict[int, Head], induction: list[Head], step: int
) -> str:
    """The plane for readers who cannot see it: where the induction heads are, or which head copies most."""
    copying, matching = (end["value"].sel(statistic=name) for name in ("ov_copying", "qk_matching"))
    shown = induction or [max((Head(int(x), int(h)) for x in end["layer"] for h in end["head"]), key=lambda h: _at(copying, h))]
    said = []
    for head in shown[:8]:
        source = sources.get(head.layer)
        text = f"{head} OV copying {decimal(_at(copying, head), 2)}"
        if source is None or k_term is None:
            said.append(f"{text}, QK matching {decimal(_at(matching, head), 2)}")
            continue
        term = k_term["value"].sel(step=step, src_layer=source.layer, src_head=source.head)
        value = float(term.sel(dst_layer=head.layer, dst_head=head.head))
        said.append(f"{text}, K-term with {source} {decimal(value, 2)}")
    kind = "Induction heads" if induction else "No induction head; highest OV copying"
    return f"Plane of OV copying and matching statistics of every head at step {step}. {kind}: {'; '.join(said)}."


def all_statistics(end: "xr.Dataset", roles: dict[Head, str], step: int) -> Markup:
    """Every statistic of every head with z and p; random heads below."""
    kept = [s for s in COLUMNS if s in end["statistic"].values and np.isfinite(end["value"].sel(statistic=s).values).any()]
    digits = {statistic: digits_of(end["value"].sel(statistic=statistic).values) for statistic in kept}
    smallest = float(end.attrs.get("smallest_p", np.nan))
    two_lines = Markup("{}<br><small>z {}, p {}</small>")
    rows: list[tuple[Any, ...]] = []
    shades: list[list[float]] = []
    for head, role in roles.items():
        row: list[Any] = [Markup("<b>{}</b><br><small>{}</small>").format(head, role)]
        shade = [0.0]
        for statistic in kept:
            cell = end.sel(layer=head.layer, head=head.head, statistic=statistic)
            value, stderr, z, p = (float(cell[name]) for name in ("value", "stderr", "z", "p"))
            # Functions of the weights alone have no error, as the caption says.
            text = with_error(value, stderr, digits[statistic]) if np.isfinite(stderr) else decimal(value, digits[statistic])
            row.append(two_lines.format(text, z_score(z), probability(p, smallest)) if np.isfinite(value) else "–")
            beyond = p <= max(0.01, smallest) and statistic != "qk_trace"
            shade.append(abs(value - float(cell["null_mean"])) if beyond else 0.0)
        rows.append(tuple(row))
        shades.append(shade)
    nulls = []
    for statistic in kept:
        mean, sd = (end[name].sel(statistic=statistic) for name in ("null_mean", "null_sd"))
        middle, wide = (float(x.mean()) if np.isfinite(x.values).any() else np.nan for x in (mean, sd))
        shown = decimal(middle, digits[statistic]), spread(wide, digits[statistic])
        nulls.append(Markup("{}<br><small>sd {}</small>").format(*shown))
    rows.append(("random heads", *nulls))
    trace = (
        " QK trace: prefix matching from weights, through earlier heads by their attention to the previous token on random "
        "tokens; not normalised, and its random heads have each head’s own norms."
        if "qk_trace" in kept
        else ""
    )
    return table(
        ("head", *(COLUMNS[statistic] for statistic in kept)), rows, numeric=range(1, len(kept) + 1), shades=shades,
        caption=f"Step {count(step)}: value, and z and two-sided p against random heads (below: their mean and sd); ≤: as "
        "small as p can be. Darker: farther from random heads, where p is .01 or less. Positive: share of eigenvalues with "
        f"positive real part. Top k: share of {end.attrs.get('n_tokens', 'the sampled')} tokens whose own logit is among the "
        f"k largest of their OV row; its error is over tokens.{trace}",
    )  # fmt: skip


def digits_of(values: "np.ndarray") -> int:
    """Decimals worth printing of numbers of this size."""
    largest = float(np.nanmax(np.abs(values)))
    return 0 if largest >= 100 else 1 if largest >= 10 else 3


SECTION = Section("spectra", "Eigenvalues of heads", 47, measures, render)
