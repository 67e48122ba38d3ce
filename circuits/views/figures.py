"""The drawing room: one style, bytes that depend on the picture alone, and the parts that figures share.

Figures are made without pyplot and inside ``matplotlib.rc_context``: no global setting is touched and nothing has to be
closed.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from circuits.views.html import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A6761D", "#56B4E9", "#E6AB02", "#333333")
"""One colour for each head of a layer, distinguishable with any kind of colour vision (after Okabe and Ito)."""

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "svg.hashsalt": "circuits",
    "svg.fonttype": "path",
    "text.parse_math": False,
}
Scale = Literal["symlog", "linear"]


@contextmanager
def drawing(ax: "Axes | None", *, width: float, height: float, columns: int = 1, rows: int = 1) -> "Iterator[list[Axes]]":
    """Axes to draw on, the caller's or new ones, in this module's style; the caller's settings are untouched."""
    import matplotlib

    with matplotlib.rc_context(matplotlib.rcParamsDefault | STYLE if ax is None else {}):
        if ax is not None:
            yield [ax]
            return
        figure = shown_figure()(figsize=(width, height), layout="constrained", dpi=110)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)  # type: ignore[union-attr]
        yield list(figure.subplots(rows, columns, squeeze=False).flat)


@lru_cache(maxsize=1)
def shown_figure() -> "type[Figure]":
    """The class of our figures: one that a notebook shows by itself, which matplotlib's own does only once pyplot is imported."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            return rendered(self, "png")

    return ShownFigure


def rendered(figure: "Figure", kind: Literal["png", "svg"]) -> bytes:
    """The figure's bytes; no date, software version or random id is in them."""
    import matplotlib

    blank = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None, "Format": None, "Type": None}}[kind]
    out = io.BytesIO()
    with matplotlib.rc_context(matplotlib.rcParamsDefault | STYLE):
        if (layout := figure.get_layout_engine()) is not None:
            # Saving would draw everything once more to find the layout.
            layout.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(out, format=kind, metadata=blank)
    return out.getvalue()


def head_colour(head: int, n_heads: int) -> str:
    """The colour of head ``head`` of any layer: the same in every figure of a model."""
    if n_heads <= len(PALETTE):
        return PALETTE[head]
    from matplotlib.colors import hsv_to_rgb, to_hex

    red, green, blue = hsv_to_rgb((head / n_heads, 0.75, 0.45 + 0.35 * (head % 2)))
    return to_hex((red, green, blue))


def step_axis(ax: "Axes", steps: Any, scale: Scale = "symlog") -> None:
    """Label the axis of training steps; ticks at 0 and powers of ten."""
    last = max([1, *(int(s) for s in steps)])
    ax.set_xlabel("training step")
    if scale == "linear":
        ax.set_xlim(-0.01 * last, last * 1.01)
        return
    ax.set_xscale("symlog", linthresh=1)
    powers = [10**p for p in range(math.floor(math.log10(last)) + 1)]
    ax.set_xticks([0, *powers], ["0", *(f"{p:,}".replace(",", "\N{THIN SPACE}") for p in powers)])
    ax.set_xlim(-0.1, last * 1.05)


def line_with_band(
    ax: "Axes", x: Any, value: Any, stderr: Any, *, colour: str, width: float = 1.6, alpha: float = 1.0, dots: bool = True
) -> None:
    """A curve, dots where it was measured, one standard error around it; gaps where it was not."""
    x, value, stderr = np.asarray(x), np.asarray(value, dtype=float), np.nan_to_num(np.asarray(stderr, dtype=float))
    ax.plot(x, value, color=colour, lw=width, alpha=alpha, marker="o" if dots else "", ms=width + 0.8, mew=0)
    ax.fill_between(x, value - stderr, value + stderr, color=colour, alpha=0.2 * alpha, lw=0)


def label_ends(ax: "Axes", ends: Sequence[tuple[float, float, str, str]], *, gap: float = 0.07) -> None:
    """Write names beside the right ends of curves, moved apart where they would overlap and kept inside the axis.

    Args:
        ends: (x, y, text, colour) of each curve. gap: least distance as a share of the axis.
    """
    low, high = ax.get_ylim()
    ranked = sorted(ends, key=lambda end: (end[1], end[2]))
    heights = [(y - low) / (high - low) for _, y, _, _ in ranked]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for (x, y, text, colour), height in zip(ranked, heights, strict=True):
        ax.annotate(
            text, (x, y), xytext=(1.02, height), textcoords="axes fraction", color=colour, fontsize=8, va="center",
            annotation_clip=False,
            # From the left of the name and not clipped to it: finding where a line leaves a box takes a third of all drawing.
            arrowprops={
                "arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 0, "patchA": None, "relpos": (0, 0.5)
            },
        )  # fmt: skip


_PLACES = [
    (radius * math.cos(turn), radius * math.sin(turn)) for radius in (9.0, 17.0, 27.0) for turn in np.arange(8) * math.pi / 4
]
"""Where a point's name may go, in typographic points from it, nearest first."""


def label_points(
    ax: "Axes", points: Sequence[tuple[float, float, str, str]], dots: Sequence[tuple[float, float]], *, size: float = 8.0
) -> None:
    """Write names beside points, each at the first place that is inside the axis and clear of dots and of other names.

    Args:
        points: (x, y, text, colour), the most important first. dots: all points drawn.
    """
    page, dpi = ax.figure.bbox, ax.figure.dpi
    rows, columns = ax.get_subplotspec().get_gridspec().get_geometry() if ax.get_subplotspec() else (1, 1)  # type: ignore[union-attr]
    # The layout is not known before drawing; the axis takes about four fifths of its share of the figure.
    width, height = 0.8 * 72 * page.width / dpi / columns, 0.8 * 72 * page.height / dpi / rows
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * width, (y - low) / (high - low) * height

    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in (place(x, y) for x, y in dots)]
    for x, y, text, colour in points:
        px, py = place(x, y)
        half, tall = 0.32 * size * len(text), 0.6 * size
        best, least = (0.0, 0.0), math.inf
        for dx, dy in _PLACES:
            cx, cy = px + dx + math.copysign(half, dx) * (abs(dx) > 1), py + dy
            box = (cx - half, cy - tall, cx + half, cy + tall)
            outside = sum(max(0.0, d) for d in (-box[0], -box[1], box[2] - width, box[3] - height)) * 100
            cost = outside + sum(_overlap(box, other) for other in taken)
            if cost < least:
                best, least, kept = (cx - px, cy - py), cost, box
        taken.append(kept)
        far = math.hypot(*best) - half > 12
        ax.annotate(
            text, (x, y), xytext=best, textcoords="offset points", color=colour, fontsize=size, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 1, "shrinkB": 3} if far else None,
        )  # fmt: skip


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area that two boxes (left, low, right, high) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


@lru_cache(maxsize=1)
def _font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return FT2Font(findfont(FontProperties(family="DejaVu Sans")))


def drawable(text: str) -> str:
    """Short text the figure font has glyphs for; other characters as escapes."""
    return shortened("".join(c if _font().get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text))
