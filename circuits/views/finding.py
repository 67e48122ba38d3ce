"""One thing that was looked for, whether it was found, and words that sentences about it share.

found       a measured verdict carries the sentence
not found   it was measured, and the verdict is against it
undecided   the measurement cannot tell, or there is none
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from circuits.models.heads import Head
from circuits.views.html import count, decimal

if TYPE_CHECKING:
    import xarray as xr

Verdict = Literal["found", "not found", "undecided"]

RLLC = "circuits rllc RUN"
ROLES = "circuits detect RUN --what roles"
CROSSCHECK = "circuits crosscheck RUN"
MANY = 12
"""Names of heads that a sentence can take."""


@dataclass(frozen=True)
class Finding:
    """A sentence of the report's lead.

    Attributes:
        text: the sentence, as plain text. verdict: see the top of this module. anchor: name of the section with the evidence.
        basis: the numbers that the sentence rests on.
    """

    text: str
    verdict: Verdict
    anchor: str
    basis: str = ""


def lacking(what: str, anchor: str, *commands: str) -> Finding:
    """Nothing is known of ``what``, until these commands are typed."""
    return Finding(f"{what}: not measured. To measure it: {', then '.join(commands)}.", "undecided", anchor)


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def some(n: int, one: str) -> str:
    """``1 head``, ``3 heads``."""
    return f"{count(n)} {one}{'' if n == 1 else 's'}"


def at_step(event: "xr.Dataset") -> str:
    """``2 159 (2 125 to 2 250)``, of a dataset with ``value``, ``low`` and ``high`` in steps."""
    value, low, high = (float(event[name]) for name in ("value", "low", "high"))
    return f"{count(value)} ({count(low)} to {count(high)})"


def within(data: "xr.Dataset", value: str = "value", low: str = "low", high: str = "high") -> str:
    """``0.30 (0.16 to 0.30)``, of the variables with these names."""
    middle, least, most = (decimal(float(data[name]), 2) for name in (value, low, high))
    return f"{middle} ({least} to {most})"


def heads_where(found: "xr.DataArray") -> list[Head]:
    """The heads at which an array ``(layer, head)`` is true."""
    found = found.transpose("layer", "head")
    layers, heads = found["layer"].values, found["head"].values
    return [Head(int(layers[i]), int(heads[j])) for i, j in np.argwhere(found.values)]


def named(heads: Sequence[Head]) -> str:
    """``L0H1, L0H3 and L1H0``; beyond ``MANY`` the rest is counted."""
    rest = [f"{count(len(heads) - MANY)} more"] if len(heads) > MANY else []
    return listed([str(head) for head in heads[:MANY]] + rest)
