"""Composition: which heads read what earlier heads write, each number beside its nulls."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.dynamics.detect import attention_measure
from circuits.dynamics.weigh import weight_measure
from circuits.models.checkpoints import Checkpoints
from circuits.models.heads import Head
from circuits.views.curves import rendered
from circuits.views.formation import last_common, roles_at
from circuits.views.html import count, decimal, image, paragraph, probability, spread, table, z_score
from circuits.views.sections import Results, Section, Wanted
from circuits.views.standing import ALPHA, GRID, standing_out
from circuits.views.weight_figures import composition_curves, composition_maps, of_pair

if TYPE_CHECKING:
    import xarray as xr

Pair = tuple[str, Head, Head]
"""Mode, source, destination."""
ROWS, CURVES, NAMED = 12, 5, 6
CHECKPOINTS = 6
FROM, TO = "previous token", "induction"


def measures(run: Checkpoints) -> list[Wanted]:
    names = ("composition", "composition_tokens") if run.cfg.n_layers > 1 else ()
    return [
        Wanted(attention_measure(run)),
        *(Wanted(weight_measure(run, name), last=name == "composition_tokens", few=CHECKPOINTS) for name in names),
    ]


def derive(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """``composition_standing_out``: which pairs stand out at every step."""
    return {"composition_standing_out": standing_out(results["composition"])} if "composition" in results else {}


def render(run: Checkpoints, results: Results) -> str:
    """Maps, the answer, the table of the strongest pairs and their curves."""
    if "composition" not in results:
        return paragraph(
            "This run has one layer. Composition is between a head that writes and a later head that reads, so there is none "
            "to measure, and its measures were left out."
        )
    composition, by_tokens = results["composition"], results["composition_tokens"]
    step = last_common(composition, by_tokens, results["attention_scores"])
    end, stands = composition.sel(step=step), results["composition_standing_out"].sel(step=step)
    pairs = ranked(end)
    top = "; ".join(f"{name(pair)} z = {z_score(float(of_pair(end, *pair)['z']))}" for pair in pairs[:3])
    figures = [
        image(
            rendered(composition_maps(end, stands["value"] > 0), "svg"), "image/svg+xml",
            alt=f"Composition of every pair of heads at step {step}, as z against random orientation. Largest: {top}.",
            caption=f"z of every pair at step {count(step)} against random orientation (linear up to 3, logarithmic beyond). "
            f"Framed: {rule(stands)}. Grey: no such pair.",
        ),
        image(
            rendered(composition_curves(composition, pairs[:CURVES]), "svg"), "image/svg+xml",
            alt=f"The {len(pairs[:CURVES])} pairs with the largest z over training. At step {step}: {top}.",
            caption=f"The pairs that end with the largest z, over training. Left: the score; dashed and grey, random "
            "orientation: its mean and two standard deviations (pooled over the pairs shown). Right: z. At step "
            f"{count(step)}: {top}.",
        ),
    ]  # fmt: skip
    answer = Markup('<div class="headline">{}</div>').format(verdict(end, stands, roles_at(results, step), step))
    strongest = strongest_pairs(end, by_tokens.sel(step=step), pairs[:ROWS], roles_at(results, step), step)
    return Markup("\n").join([meaning(end, stands), answer, figures[0], strongest, figures[1]])


def meaning(end: "xr.Dataset", stands: "xr.Dataset") -> Markup:
    """What the score is, and the question each null answers."""
    n, of_layers = int(np.isfinite(end["p"].values).sum()), float(end.attrs.get("smallest_p_layer", math.nan))
    rank = f"never below {probability(of_layers)}" + (
        f", so it cannot reach {ALPHA}: untestable at that level here" if of_layers > ALPHA else ""
    )
    questions = [
        paragraph(
            "<b>z, p, q: random orientation.</b> Would matrices with these very singular values, turned at random, compose "
            "as much? Their squared score is 1/d on average, so chance is 1/√d = {} (heads with Gaussian weights: {}). "
            "Trained heads share directions, so many pairs that do nothing together beat this null.",
            decimal(math.sqrt(float(np.nanmax(end["null_mean"].values)))),
            decimal(float(end["chance"])),
        ),
        paragraph(
            "<b>p, q of the covariance.</b> More than heads that write and read what their layers write and read on the "
            "whole? Null heads are Gaussian with the covariance of all that earlier heads write and of all that the heads of "
            "this layer read, weighed by the pair’s own spectra: they score as the pairs do on average. Its p errs to the "
            "careful side unless heads are nearly of rank one. "
            "It does not ask whether a pair is unusual among real heads, which differ from each other more "
            "than such null heads do."
        ),
        paragraph(
            "<b>Rank, and out.</b> Where does it stand among the real pairs of the same two layers? The sharper description. "
            "The p of a rank is rank / pairs, {}.",
            rank,
        ),
    ]
    return Markup("\n").join(
        [
            paragraph(
                "A head writes to the residual stream and a later head reads it as query, key or value. The score ‖A B‖ / "
                "(‖A‖ ‖B‖) says how much of what one writes (A) is what the other reads (B), from 0 to 1. It comes from the "
                "weights alone, norms folded in: no text is read, and there is no standard error. A large score is no "
                "evidence by itself and a small one no counter-evidence: it says nothing about how often either head is "
                "used. Beside it stand three nulls; q is p adjusted for all {} pairs and modes (Benjamini and Hochberg).",
                count(n),
            ),
            *questions,
            *(
                paragraph(
                    "Untestable at {} here: {} could have given no pair a smaller q than {}, so it takes no part in the verdict.",
                    ALPHA, null, probability(float(least)),
                )
                for null, least, able in zip(
                    stands["null"].values, stands["smallest_q"].values, stands["testable"].values, strict=True
                )
                if not able
            ),
        ]
    )  # fmt: skip


def rule(stands: "xr.Dataset") -> str:
    """What standing out means at a step."""
    able = [str(null) for null, yes in zip(stands["null"].values, stands["testable"].values, strict=True) if yes]
    return f"q < {ALPHA} under {' and '.join(able)}" if able else "nothing, as no null can say so"


def verdict(end: "xr.Dataset", stands: "xr.Dataset", roles: dict[Head, str], step: int) -> Markup:
    """Which K-composition pairs stand out under every null that can say so, and whether they are previous-token → induction."""
    if not bool(stands["testable"].any()):
        return paragraph("<b>Untestable here:</b> no null could have shown any pair at q < {}.", ALPHA)
    found = ranked(end[["z"]].where(stands["value"] == 1))
    keys, of_keys = [pair for pair in found if pair[0] == "K"], ranked(end.sel(mode=["K"]))
    expected = [pair for pair in of_keys if (roles[pair[1]], roles[pair[2]]) == (FROM, TO)]
    hits = [pair for pair in keys if pair in expected]
    each = "; ".join(
        f"{name(pair)} (z {z_score(float(of_pair(end, *pair)['z']))}, {roles[pair[1]]} → {roles[pair[2]]})"
        for pair in keys[:NAMED]
    )
    more = f"; and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    if not keys:
        answer = "no pair does"
    elif len(hits) == len(keys):
        answer = f"{each}{more}: {'it is a' if len(keys) == 1 else 'all are'} {FROM} → {TO} pair{'' if len(keys) == 1 else 's'}"
    else:
        answer = f"{each}{more}. {len(hits)} of them {'is a' if len(hits) == 1 else 'are'} {FROM} → {TO} pair"
        answer += "" if len(hits) == 1 else "s"
    others = "; ".join(f"{mode} {sum(pair[0] == mode for pair in found)}" for mode in end["mode"].values if mode != "K")
    z = ", ".join(z_score(float(of_pair(end, *pair)["z"])) for pair in expected[:NAMED])
    if not expected:
        converse = f"By their roles no {FROM} head stands before an {TO} head, so there is no such pair to look for"
    elif len(expected) == 1:
        converse = f"The one K pair from a {FROM} head to a later {TO} head {'does' if hits else 'does not'} stand out (z {z})"
    else:
        converse = f"Of the {len(expected)} K pairs from a {FROM} head to a later {TO} head {len(hits)} stand out (z {z}"
        converse += ", …)" if len(expected) > NAMED else ")"
    return paragraph(
        "<b>Which K-composition pairs stand out at step {}, under every null that can say so ({})?</b> {} of {}: {}. {}. For "
        "comparison, pairs that stand out in the other modes: {}.",
        count(step), rule(stands), len(keys), len(of_keys), answer, converse, others,
    )  # fmt: skip


def ranked(end: "xr.Dataset") -> list[Pair]:
    """All pairs of all modes at one step, the largest z first."""
    z = end["z"].transpose(*GRID)
    order = np.argsort(-np.nan_to_num(z.values, nan=-np.inf), axis=None, kind="stable")[: int(np.isfinite(z.values).sum())]
    labels = [end[dim].values for dim in GRID]
    places = np.stack(np.unravel_index(order, z.shape), 1)
    return [
        (str(labels[0][m]), Head(int(labels[1][a]), int(labels[2][b])), Head(int(labels[3][c]), int(labels[4][d])))
        for m, a, b, c, d in places
    ]


def name(pair: Pair) -> str:
    return f"{pair[0]} {pair[1]}→{pair[2]}"


def strongest_pairs(end: "xr.Dataset", by_tokens: "xr.Dataset", pairs: list[Pair], roles: dict[Head, str], step: int) -> Markup:
    """The table of pairs with the largest z, every number beside its null; ``by_tokens`` is the same where tokens come in."""
    of_layers = float(end.attrs.get("smallest_p_layer", math.nan))
    untestable = f" (untestable at {ALPHA} here)" if of_layers > ALPHA else ""
    head = ("pair", "score", "score²; random: mean", "z", "p, q: random", "p, q: covariance", "rank in its layers")
    return table(
        (*head, "strongest", "kernel", "by tokens: score (z)"),
        [pair_row(end, by_tokens, pair, roles) for pair in pairs], numeric=range(1, 10),
        caption=f"Step {count(step)}: the {len(pairs)} pairs with the largest z, of all modes. Chance of the score: "
        f"{decimal(float(end['chance']))}. ≤: as small as that p can be; of a rank {probability(of_layers)}{untestable}. Out: "
        "distance from the other pairs of these layers in robust sd, without what all pairs of the writer or of the reader "
        "share; a description, no test. Strongest: the largest squared cosine of one direction written and one read; kernel: "
        "the overlap of all that is written with all that is read; both from 0 to 1, whatever the singular values, with p "
        "against random orientation, not adjusted for the number of pairs. A channel of few dimensions shows there, also "
        "where spectra are steep and the score hardly sees it (by_writer and by_reader, in the results file, see it only "
        "where spectra are mild). By tokens: a score counts directions that nothing enters; this one counts what tokens "
        "bring, z against random orientation as before. Roles are those of the detectors.",
    )  # fmt: skip


def pair_row(end: "xr.Dataset", by_tokens: "xr.Dataset", pair: Pair, roles: dict[Head, str]) -> tuple[Any, ...]:
    """One pair's numbers; a p is marked where it is the smallest there could have been."""
    here = {str(key): float(value) for key, value in of_pair(end, *pair).data_vars.items() if value.dtype.kind == "f"}
    in_layers = end.sizes["src_head"] * end.sizes["dst_head"]
    two_lines = Markup("{}<br><small>{}</small>")

    def p(key: str) -> str:
        smallest = f"smallest_{key}" if key in ("p_covariance", "p_layer") else "smallest_p"
        return probability(here[key], float(end.attrs.get(smallest, math.nan)))

    of_tokens = of_pair(by_tokens, *pair)
    null = f"{decimal(here['null_mean'], 4)} (sd {spread(here['null_sd'], 5)})"
    return (
        Markup("<b>{}</b> {}→{}<br><small>{} → {}</small>").format(*pair, roles[pair[1]], roles[pair[2]]),
        decimal(here["value"]),
        two_lines.format(decimal(here["value"] ** 2, 4), null),
        z_score(here["z"]),
        two_lines.format(p("p"), f"q {probability(here['q'])}"),
        two_lines.format(p("p_covariance"), f"q {probability(here['q_covariance'])}"),
        two_lines.format(
            f"{round(here['p_layer'] * in_layers)} of {in_layers}", f"p {p('p_layer')}, out {decimal(here['z_layer'], 1)}"
        ),
        *(two_lines.format(decimal(here[key]), f"p {p(f'p_{key}')}") for key in ("strongest", "kernel")),
        f"{decimal(float(of_tokens['value']))} ({z_score(float(of_tokens['z']))})",
    )


SECTION = Section("composition", "Composition of heads", 45, measures, render, derive)
