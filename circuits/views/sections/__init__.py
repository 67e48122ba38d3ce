"""Sections of the report: each file in this folder declares one ``SECTION`` and needs no other file to know of it.

A section names the measures it reads. The report computes the cheap ones, prints the command of expensive ones that are
not in the store, and calls ``render`` once all of them have data. What ``derive`` returns (roles, formation steps) is
kept in the results file and is there for every section. Markup is built so that text is escaped (``views/html.py``);
a plain string returned by ``render`` is shown as text.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure

if TYPE_CHECKING:
    import xarray as xr

Results = Mapping[str, "xr.Dataset"]
"""Datasets with a ``step`` axis by measure name, and derived ones by theirs."""


class Wanted(NamedTuple):
    """A measure a section reads.

    Attributes:
        measure: of one model. cheap: whether the report computes it where it is missing.
        command: what to type for an expensive one. last: whether the last checkpoint is all that is read of it.
        few: at how many checkpoints the report computes it, first and last among them; what else is in the store is read too.
    """

    measure: Measure
    cheap: bool = True
    command: str | None = None
    last: bool = False
    few: int | None = None


def nothing(run: Checkpoints, results: Results) -> "dict[str, xr.Dataset]":
    """The ``derive`` of a section that derives nothing."""
    return {}


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        name: its anchor. title: its heading. order: its place (0 first).
        measures: what it reads of a run. render: its HTML, from the results of all sections.
        derive: further datasets, from the measures' results. reads: derived datasets that it shows, its own or of other sections.
        long: whether ``derive`` takes long, so that it is done in another process, beside the drawing of what does not read it.
    """

    name: str
    title: str
    order: int
    measures: Callable[[Checkpoints], Sequence[Wanted]]
    render: Callable[[Checkpoints, Results], str]
    derive: "Callable[[Checkpoints, Results], Mapping[str, xr.Dataset]]" = nothing
    reads: tuple[str, ...] = ()
    long: bool = False


def discover() -> tuple[Section, ...]:
    """Every section of this folder, in order.

    Raises:
        ValueError: a file declares none, or two share a name.
    """
    found: dict[str, Section] = {}
    for module in pkgutil.iter_modules(__path__):
        section = getattr(importlib.import_module(f"{__name__}.{module.name}"), "SECTION", None)
        if not isinstance(section, Section):
            raise ValueError(f"circuits/views/sections/{module.name}.py declares no section; give it SECTION = Section(...)")
        if section.name in found:
            raise ValueError(f"two sections are called {section.name!r}; rename one")
        found[section.name] = section
    return tuple(sorted(found.values(), key=lambda section: (section.order, section.name)))
