"""Small pictures of one head: its coefficient beside nulls, its scores of attention, its coefficient on other texts, its pattern.

Each is an image of its own, so that they stand side by side where there is room and below each other on a phone. Bands are one
standard error; what is at the last checkpoint stands below each in numbers.
"""

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from circuits.crosscheck.testimony import curve_of
from circuits.models.heads import Head
from circuits.views.attention import AttentionView
from circuits.views.cells import at
from circuits.views.head_board import DASHES, SHOWN, SQUARE, WIDE, Board, Curve
from circuits.views.html import count, data_uri, evidence, with_error
from circuits.views.measure_names import cited
from circuits.views.sections import Results
from circuits.views.witness_cells import SCALED, at_end, scaled_nulls

if TYPE_CHECKING:
    import xarray as xr

NAMED = 3
"""Detectors whose curves are named: those farthest above chance at the end."""
BESIDES = ("entropy", "induction_stripe", "fixed_lag")
"""Detectors that no role rests on."""
UNIT = "rLLC (nβ nats)"


def panels(head: Head, results: Results, pattern: "xr.Dataset", text: str, board: Board) -> Markup:
    """The pictures of a head, as many as there is data for.

    Args:
        pattern: of all heads, see ``circuits.views.attention.patterns_of``. text: what it was read on.
    """
    made = (
        coefficient_panel(head, results, board),
        scores_panel(head, results, board),
        texts_panel(head, results, board),
        attention_panel(head, pattern, text, board),
    )
    return Markup('<div style="display:flex;flex-wrap:wrap;gap:4px 8px">{}</div>').format(Markup("\n").join(filter(None, made)))


def coefficient_panel(head: Head, results: Results, board: Board) -> Markup | None:
    """The coefficient over training, and what nulls on its scale predict it to be."""
    name = curve_of(results)
    if not name:
        return None
    null_name = f"nulls_{name.removeprefix('rllc_')}"
    nulls = results.get(null_name)
    kinds = [] if nulls is None else [kind for kind in SCALED if kind in nulls["kind"].values]
    curves = [Curve.of("rLLC", at(results[name], head))]
    curves += [Curve.of(SCALED[kind], at(nulls, head).sel(kind=kind), "as_llc", "as_llc_stderr") for kind in kinds]  # type: ignore[arg-type]
    step = int(at_end(results[name])["step"])
    beside = [f"{SCALED[kind]} {with_error(value, error)}" for kind, value, error in scaled_nulls(nulls, head, step)]
    return _panel(
        board.curves(curves, UNIT), f"Coefficient of {head} over training, beside its nulls.",
        f"Step {count(step)}: {', '.join([f'rLLC {_at_end(results[name], head)}', *beside])}.",
        cited(name, *([null_name] if kinds else [])),
    )  # fmt: skip


def scores_panel(head: Head, results: Results, board: Board) -> Markup | None:
    """Scores of attention over training; those that end farthest above chance are named, their chance dotted."""
    if "attention_scores" not in results:
        return None
    scores = at(results["attention_scores"], head)
    end = at_end(scores)
    excess = dict(zip(end["detector"].values.tolist(), (end["value"] - end["chance"]).values.tolist(), strict=True))
    ranked = sorted((name for name in excess if name not in BESIDES), key=lambda name: -np.nan_to_num(excess[name], nan=-9.0))
    named, others = ranked[:NAMED], ranked[NAMED:]
    picture = board.curves(
        [Curve.of(name.removesuffix("_token").removesuffix("_matching"), scores.sel(detector=name)) for name in named],
        "attention score",
        levels=[float(end["chance"].sel(detector=name)) for name in named],
        grey=[Curve.of(name, scores.sel(detector=name)) for name in others],
        limits=(0.0, 1.03),
    )
    told = "; ".join(f"{name.replace('_', ' ')} {evidence(end.sel(detector=name), 2)}" for name in named)
    caption = f"Step {count(int(end['step']))}: {told}. Dotted: chance; grey: other detectors."
    return _panel(picture, f"Attention scores of {head} over training.", caption, cited("attention_scores"))


def other_texts(results: Results) -> list[str]:
    """Coefficients on other texts than the one that stands for the run, shuffled text last."""
    base = curve_of(results)
    names = [name for name in results if name.startswith("rllc_") and name != base and not name.endswith("_kl")]
    return sorted(names, key=lambda name: ("shuffled" in name, name))


def texts_panel(head: Head, results: Results, board: Board) -> Markup | None:
    """The coefficient on other texts than the run's mix, shuffled text as the control."""
    names = other_texts(results)[: len(DASHES)]
    if not names:
        return None
    called = [name.removeprefix("rllc_").replace("_", " ") for name in names]
    curves = [
        Curve.of(text.replace("shuffled", "shuf."), at(results[name], head)) for name, text in zip(names, called, strict=True)
    ]
    said = [f"{text} {_at_end(results[name], head)}" for name, text in zip(names, called, strict=True)]
    steps = ", ".join(dict.fromkeys(count(int(at_end(results[name])["step"])) for name in names))
    control = " Shuffled text is the control." if any("shuffled" in name for name in names) else ""
    return _panel(
        board.curves(curves, UNIT), f"Coefficient of {head} over training, by text.",
        f"Step {steps}, by text: {', '.join(said)}.{control}", cited(*names),
    )  # fmt: skip


def attention_panel(head: Head, pattern: "xr.Dataset", text: str, board: Board) -> Markup:
    """Where the head attends on a short text."""
    here = pattern.sel(head=[str(head)])
    caption = f"Attention on {text}; query down, key across, white 0, blue 1; chance: 1 / (keys so far)."
    return _panel(board.pattern(here), AttentionView(here).alt, caption, Markup(""), SQUARE)


def _at_end(data: "xr.Dataset", head: Head) -> str:
    here = at(at_end(data), head)
    return with_error(float(here["value"]), float(here["stderr"]))


def _panel(picture: bytes, alt: str, caption: str, measures: Markup, size: tuple[float, float] = WIDE) -> Markup:
    """A picture, what it says in numbers, and links to its measures."""
    width = round(size[0] * SHOWN)
    return Markup(
        '<figure style="margin:4px 0;flex:0 1 {0}px"><img src="{1}" alt="{2}" width="{0}" style="max-width:100%;height:auto">'
        '<figcaption style="font-size:12px">{3} {4}</figcaption></figure>'
    ).format(width, data_uri(picture, "image/png"), alt, caption, measures)
