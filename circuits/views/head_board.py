"""One drawing board for many small pictures: axes are made once and drawn on again for every head.

Making axes and their ticks, and finding a layout, takes most of the time that a small picture takes. Pictures are PNG of few
colours, a quarter of the bytes of true colour. Curves differ by dash and by name as well as by colour.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuits.views.curves import attention_maps
from circuits.views.figures import PALETTE, STYLE, drawable, label_ends, line_with_band, shown_figure, step_axis
from circuits.views.html import count, shortened

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

WIDE, SQUARE = (2.75, 1.9), (2.1, 2.1)
"""Inches; on a page an inch is ``SHOWN`` pixels."""
DPI, SHOWN, COLOURS = 130, 100, 64
DASHES = ("-", "--", ":", "-.")
LONGEST = 7
"""Characters of a token that have room."""


class Curve(NamedTuple):
    """A curve over training, where it was measured."""

    name: str
    steps: np.ndarray
    value: np.ndarray
    stderr: np.ndarray

    @classmethod
    def of(cls, name: str, data: "xr.Dataset", value: str = "value", stderr: str = "stderr") -> "Curve":
        there = np.isfinite(data[value].values)
        return cls(name, *(data[variable].values[there] for variable in ("step", value, stderr)))


class Board:
    """Axes that curves and attention patterns are drawn on; use it inside ``board()``."""

    def __init__(self) -> None:
        wide, square = (shown_figure()(figsize=size, dpi=DPI) for size in (WIDE, SQUARE))
        self.wide: Axes = wide.add_axes((0.17, 0.2, 0.58, 0.75))
        self.square: Axes = square.add_axes((0.24, 0.24, 0.75, 0.75))

    def curves(
        self,
        curves: Sequence[Curve],
        label: str,
        *,
        levels: Sequence[float] = (),
        grey: Sequence[Curve] = (),
        limits: tuple[float, float] | None = None,
    ) -> bytes:
        """Curves with bands of one standard error, named at their ends.

        Args:
            label: of the axis of values. levels: one of each curve or none, dotted in its colour. grey: curves without a name.
            limits: of the axis of values.
        """
        axis = self.wide
        for artist in (*axis.lines, *axis.collections, *axis.texts):
            artist.remove()
        for curve in grey:
            axis.plot(curve.steps, curve.value, color="#bbbbbb", lw=0.7, zorder=0)
        for i, curve in enumerate(curves):
            line_with_band(axis, curve.steps, curve.value, curve.stderr, colour=PALETTE[i], width=1.2, dots=False)
            axis.lines[-1].set_linestyle(DASHES[i])
        for i, level in enumerate(levels):
            axis.axhline(level, color=PALETTE[i], lw=0.7, ls=(0, (1, 3)))
        _step_ticks(axis, [step for curve in (*curves, *grey) for step in curve.steps.tolist()])
        axis.set_ylim(*(limits or _limits(curves)))
        axis.set_ylabel(label, fontsize=7)
        ends = [(curve, colour) for curve, colour in zip(curves, PALETTE, strict=False) if len(curve.steps)]
        # Places are found from the limits, so that these come first.
        label_ends(axis, [(float(c.steps[-1]), float(c.value[-1]), drawable(c.name), colour) for c, colour in ends], gap=0.1)
        return _png(axis)

    def pattern(self, pattern: "xr.Dataset") -> bytes:
        """The attention pattern of one head, tokens along both axes; every pattern drawn is on the same tokens."""
        axis = self.square
        if axis.images:
            value = pattern["value"].transpose("head", "query", "key").values[0]
            axis.images[0].set_data(np.ma.array(value, mask=np.triu(np.ones(value.shape, dtype=bool), 1)))
            return _png(axis)
        attention_maps(pattern, ax=axis)
        tokens = [drawable(shortened(str(token), LONGEST)) for token in pattern["token"].values]
        axis.set(title="", xlabel="", ylabel="")
        axis.set_title("", loc="left")
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=5.5)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=5.5)
        return _png(axis)


@contextmanager
def board() -> Iterator[Board]:
    """A board in the style of our figures; the caller's settings are untouched."""
    import matplotlib

    with matplotlib.rc_context(matplotlib.rcParamsDefault | STYLE):
        yield Board()


def _step_ticks(axis: "Axes", steps: list[Any]) -> None:
    """Ticks at 0 and at every other power of ten, the largest among them: there is no room for all."""
    step_axis(axis, steps)
    powers = sorted([int(tick) for tick in axis.get_xticks() if tick > 0][::-2])
    axis.set_xticks([0, *powers], ["0", *map(count, powers)])
    axis.tick_params(labelsize=6.5)
    axis.set_xlabel(axis.get_xlabel(), fontsize=7)


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the lowest to the highest end of a band, and a little more."""
    stderr = [np.nan_to_num(curve.stderr) for curve in curves]
    low = min((float((c.value - e).min()) for c, e in zip(curves, stderr, strict=True) if len(c.value)), default=0.0)
    high = max((float((c.value + e).max()) for c, e in zip(curves, stderr, strict=True) if len(c.value)), default=1.0)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _png(axis: "Axes") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image  # comes with matplotlib

    canvas = FigureCanvasAgg(axis.figure)  # type: ignore[arg-type]
    canvas.draw()
    out = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(
        COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(out, "PNG", optimize=True)
    return out.getvalue()
