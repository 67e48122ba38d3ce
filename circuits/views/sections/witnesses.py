"""Every head with its three witnesses: what it does, what its weights and paths say, and how its coefficient moved."""

from circuits.models.checkpoints import Checkpoints
from circuits.views.html import paragraph
from circuits.views.sections import Results, Section, Wanted
from circuits.views.witness_part import witness_part


def measures(run: Checkpoints) -> list[Wanted]:
    return []


def render(run: Checkpoints, results: Results) -> str:
    if "agreement" not in results:
        return paragraph(
            "Witnesses are laid beside each other where heads have roles: <code>circuits detect {} --what roles</code>.", run.name
        )
    return witness_part(results["agreement"], results.get("lags"), results)


SECTION = Section("witnesses", "Heads, with three witnesses", -50, measures, render, reads=("agreement", "lags"))
