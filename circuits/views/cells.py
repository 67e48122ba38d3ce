"""Cells of tables that have a row for each head."""

from typing import TYPE_CHECKING

from markupsafe import Markup

from circuits.models.heads import Head
from circuits.views.html import decimal, spread

if TYPE_CHECKING:
    import xarray as xr

TWO_LINES = Markup("{}<br><small>{}</small>")


def heads_of(data: "xr.Dataset") -> list[Head]:
    """Every head of a result, layer by layer."""
    return [Head(int(layer), int(head)) for layer in data["layer"].values for head in data["head"].values]


def at(data: "xr.Dataset", head: Head) -> "xr.Dataset":
    """What was measured of one head."""
    return data.sel(layer=head.layer, head=head.head)


def two_lines(value: float, stderr: float, below: str = "") -> Markup:
    """A value over its error, and what else stands beside it."""
    return TWO_LINES.format(decimal(value), Markup("± {}{}").format(spread(stderr), below and Markup("<br>{}").format(below)))


def untrained(mean: float, sd: float) -> Markup:
    """The null's mean over its standard deviation."""
    return TWO_LINES.format(decimal(mean), f"sd {spread(sd)}")
