"""How a page cites a measure: by a link to where it comes from, and where it is missing by the command that makes it.

The table of provenance has an anchor ``measure-NAME`` for every measure that has data.
"""

from collections.abc import Iterable

from markupsafe import Markup

from circuits.views.finding import RLLC, ROLES
from circuits.views.html import paragraph

WEIGHTS, PATHS = "circuits weights RUN", "circuits paths RUN"
COMMANDS = {
    "attention_scores": "circuits detect RUN",
    "head_functions": ROLES,
    "function_profile": "circuits detect RUN --what effects",
    "multigrams": "circuits detect RUN --what multigrams",
    "composition": WEIGHTS,
    "weight_spectra": WEIGHTS,
    "k_term_copying": WEIGHTS,
    "edge_effects_repeats": PATHS,
    "edge_effects_text": PATHS,
    "rllc": RLLC,
    "rllc on other texts": RLLC,
    "nulls": RLLC,
    "lags": f"{ROLES}, then {RLLC}",
}
"""What is typed for a measure, and for those that have a name for each text."""


def cited(*names: str) -> Markup:
    """Names of measures that have data, each a link to its provenance."""
    return Markup(", ").join(Markup('<a href="#measure-{0}">{0}</a>').format(name) for name in names)


def left_out(names: Iterable[str]) -> Markup:
    """A line that names missing measures of ``COMMANDS`` with their commands; nothing where none is missing."""
    by_command: dict[str, list[str]] = {}
    for name in names:
        by_command.setdefault(COMMANDS[name], []).append(name)
    said = [Markup("{} (<code>{}</code>)").format(", ".join(which), command) for command, which in by_command.items()]
    return paragraph("<b>Not measured, and left out:</b> {}.", Markup("; ").join(said)) if said else Markup("")
