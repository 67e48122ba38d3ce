"""Where the numbers come from: the run, its data, every measure's definition, configuration and hashes."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from circuits.models.checkpoints import Checkpoints
from circuits.views.html import count, paragraph, table
from circuits.views.sections import Results, Section, Wanted

if TYPE_CHECKING:
    import xarray as xr

LIBRARIES = ("circuits-interp", "torch", "transformer-lens", "circuitsvis", "numpy", "xarray", "matplotlib")


def measures(run: Checkpoints) -> list[Wanted]:
    return []


def render(run: Checkpoints, results: Results) -> str:
    """Tables of the run, the measures, the checkpoints and the software."""
    return Markup("\n").join(
        [
            Markup("<h3>The run</h3>"),
            table(("field", "value"), list(run_facts(run)), caption="What the run's own description and configuration say."),
            Markup("<h3>Measures</h3>"),
            table(
                ("measure", "version", "definition", "source", "seed", "data hash", "configuration"),
                [measure_facts(name, data.attrs) for name, data in results.items()],
                caption="Derived results name the rule they follow; hashes are the first digits of sha256.",
            ),
            Markup("<h3>Checkpoints</h3>"),
            table(
                ("step", "weights hash", *(n for n, d in results.items() if "status" in d)),
                list(checkpoint_facts(run, results)),
                caption="The hash covers the configuration and every stored weight; then whether each measure has data.",
                numeric=(0,),
            ),
            Markup("<h3>Software</h3>"),
            paragraph("{}.", ", ".join(f"{name} {version}" for name, version in versions())),
            paragraph(
                "Attention views are drawn by CircuitsVis (MIT licence; its bundle holds React and Chart.js, MIT, and "
                "TensorFlow.js, Apache 2.0), "
                "which is part of this page. The page loads nothing."
            ),
        ]
    )


def run_facts(run: Checkpoints) -> "list[tuple[str, Any]]":
    """The run's description, flat: one row for each entry, nested ones as JSON."""
    facts: list[tuple[str, Any]] = [
        ("name", run.name),
        ("checkpoints", f"{len(run)}, steps {count(run.steps[0])} to {count(run.steps[-1])}"),
    ]
    facts += [(f"{key}", shown(value)) for key, value in run.meta.items() if key not in ("name", "steps", "sha256")]
    facts.append(
        (
            "model",
            Markup("<code>{}</code>").format(
                json.dumps(run.cfg.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
            ),
        )
    )
    facts += [
        (f"evaluation: {kind}", f"{tokens.shape[0]} sequences of {tokens.shape[1]} tokens")
        for kind, tokens in run.evaluation.items()
    ]
    return facts


def shown(value: Any) -> Any:
    """Plain values as they are, structures as JSON."""
    return Markup("<code>{}</code>").format(json.dumps(value, ensure_ascii=False)) if isinstance(value, Mapping | list) else value


def measure_facts(name: str, attrs: Mapping[Any, Any]) -> tuple[Any, ...]:
    config = Markup("<code>{}</code>").format(attrs["config"]) if "config" in attrs else "–"
    return (
        Markup('<span id="measure-{}">{}</span>').format(name, name),
        *(attrs.get(key, "–") for key in ("version", "definition", "source", "seed", "data_hash")),
        config,
    )


def checkpoint_facts(run: Checkpoints, results: Results) -> "list[tuple[str, ...]]":
    """One row for each step; a checkpoint that cannot be read has no hash."""
    rows = []
    swept = [data for data in results.values() if "status" in data]
    for step in run.steps:
        try:
            weights = run.weights_hash(step)
        except ValueError:
            weights = "unreadable"
        rows.append((count(step), weights, *(status_at(data, step) for data in swept)))
    return rows


def status_at(data: "xr.Dataset", step: int) -> str:
    """How a measure went at a step; ``–`` where the report reads only the last."""
    return str(data["status"].sel(step=step).values) if step in data["step"].values else "–"


def versions() -> list[tuple[str, str]]:
    """The installed versions the numbers and pictures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in LIBRARIES:
        try:
            found.append((name, version(name).split("+")[0]))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return found


SECTION = Section("provenance", "Provenance", 90, measures, render)
