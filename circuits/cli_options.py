"""What commands share: how options are told, where a run is found, and where its results go."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

SHIPPED_RUN = Path("fixtures/stdlib-2l")


def option(text: str) -> Any:
    """An option whose default is told in words, if it has one worth telling."""
    return typer.Option(help=text, show_default=False)


def argument(text: str) -> Any:
    """A positional argument, likewise."""
    return typer.Argument(help=text, show_default=False)


Run = Annotated[Path | None, argument("Folder of a training run; default: fixtures/stdlib-2l of the checkout.")]
Store = Annotated[Path | None, option("Folder of cached artefacts; default: reports/<run>/store.")]
Workers = Annotated[
    int | None, option("Processes to measure in, 0 for this one; default: one for each core. The numbers are the same.")
]


def find_run(given: Path | None) -> Path:
    """The run that was named, or the shipped one of the checkout that holds the working directory.

    Raises:
        ValueError: none was named and there is no checkout here.
    """
    if given is not None:
        return given
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / SHIPPED_RUN / "config.json").is_file():
            return folder / SHIPPED_RUN
    raise ValueError(f"no run was named and {here} is not in a checkout that has {SHIPPED_RUN}: name one, circuits report RUN")


def reports(run: Path) -> Path:
    """Where the results of a run go unless the user says otherwise, relative to the working directory."""
    return Path("reports") / run.resolve().name


def processes(asked: int | None) -> int:
    """How many processes to measure in: as asked, else one for each core, which on a single core is this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked if asked is not None else cores if cores > 1 else 0
