"""Several measures of one run: measured in one go, gathered side by side, and merged into one dataset."""

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from circuits.dynamics.shipped import pack_whole
from circuits.dynamics.sweep import Task, gather, has_artefact, run_tasks
from circuits.models.checkpoints import Checkpoints
from circuits.progress import bar
from circuits.results import Measure, canonical

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Found:
    """What several measures found of a run.

    Attributes:
        run: the run's name. results: a dataset with ``step`` for each measure, by its name.
        absent: why a measure has no data at any checkpoint, for those that have none. command: that measures the same.
    """

    run: str
    results: "Mapping[str, xr.Dataset]"
    absent: Mapping[str, str]
    command: ClassVar[str]

    def merged(self) -> "xr.Dataset":
        """All in one dataset, ``<measure>_<variable>``; what is absent, and why, as JSON in the attribute ``absent``."""
        whole = merged(self.results, title=f"circuits {self.command}: {self.run}")
        return whole.assign_attrs(absent=canonical(dict(self.absent)))


def measured(
    wanted: "Sequence[tuple[Measure, Checkpoints]]", *, store: str | Path | None, workers: int, progress: bool | None
) -> "tuple[dict[str, xr.Dataset], dict[str, str]]":
    """Put measures over runs and gather them: results by name, and for a measure without data the reason.

    Args:
        wanted: each measure with the checkpoints it is for. store: folder of artefacts, made if need be; None keeps nothing.

    Raises:
        ValueError: ``store`` is a file, or no measure has data, with the first reason.
    """
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            return measured(wanted, store=folder, workers=workers, progress=progress)
    if Path(store).is_file():
        raise ValueError(f"store is {store}, a file; give a folder")
    measure_all(wanted, Path(store), workers=workers, progress=progress)
    results, absent = gather_all(wanted, Path(store))
    if not results:
        raise ValueError(next(iter(absent.values())))
    return results, absent


def measure_all(
    wanted: Iterable[tuple[Measure, Checkpoints]], store: Path, *, workers: int = 0, progress: bool | None = None
) -> None:
    """Put every measure over its checkpoints, all under one bar and in one pool; what the store has is kept."""
    tasks = [Task(measure, run, step, store) for measure, run in wanted for step in run.steps]
    with bar(total=len(tasks), label=tasks[0].run.name if tasks else "", on=progress, unit="task") as shown:
        failed = 0
        for outcome in run_tasks(tasks, workers=workers):
            failed += outcome.status == "failed"
            shown.update()
            if failed:
                shown.set_postfix(failed=failed)


def gather_all(wanted: Iterable[tuple[Measure, Checkpoints]], store: Path) -> "tuple[dict[str, xr.Dataset], dict[str, str]]":
    """What the store has of each measure, by name, and for a measure without any artefact the reason; no folder is named."""
    results: dict[str, xr.Dataset] = {}
    absent: dict[str, str] = {}
    for measure, run in wanted:
        try:
            results[measure.name] = clean(gather(measure, run, store))
        except ValueError as error:
            absent[measure.name] = without_paths(str(error))
    return results, absent


def with_stored(measure: Measure, part: Checkpoints, run: Checkpoints, store: Path) -> tuple[Measure, Checkpoints]:
    """A measure with the checkpoints it is computed at, and those of the whole run that the store has from elsewhere."""
    return measure, run.select(step for step in run.steps if step in part or has_artefact(Task(measure, run, step, store)))


def ship(wanted: Iterable[tuple[Measure, Checkpoints]], store: Path, into: Path) -> list[Path]:
    """Pack what a store has of each measure into a file that can come with the run, see ``circuits.dynamics.shipped``.

    Args:
        wanted: each measure with its run; those that the store lacks are left out. into: usually ``<run>/results``.
    """
    files = []
    for measure, run in wanted:
        own = run.without_results()
        tasks = [task for task in (Task(measure, own, step, store) for step in own.steps) if has_artefact(task)]
        if tasks:
            found = gather(measure, own.select(task.step for task in tasks), store)
            files.append(pack_whole(found, [task.key for task in tasks], into))
    return files


def without_paths(text: str) -> str:
    """Text without absolute folders: what a file is called matters to a reader, where it lay does not."""
    return re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>]+[/\\])+", "", text)


def clean(data: "xr.Dataset") -> "xr.Dataset":
    """A gathered result whose reasons name no folder of this machine."""
    reasons = [without_paths(str(reason)) for reason in data["reason"].values]
    return data.assign(reason=("step", np.array(reasons, dtype=object).astype("U")))


def merged(results: "Mapping[str, xr.Dataset]", *, title: str) -> "xr.Dataset":
    """All results as one dataset: ``<measure>_<variable>``, the measure's attributes on each of its variables.

    Dimensions are shared where their labels agree; where they do not, the later measure's is called ``<measure>_<dim>``.
    """
    import xarray as xr

    whole = xr.Dataset(attrs={"title": title, "measures": canonical(sorted(results))})
    for name, data in results.items():
        clash = {dim: f"{name}_{dim}" for dim in data.dims if dim in whole.dims and not _same(data, whole, str(dim))}
        spare = [c for c in data.coords if c not in data.dims]
        part = data.reset_coords(spare).rename(clash)
        about: dict[Any, Any] = dict(data.attrs)
        part = part.rename({variable: f"{name}_{variable}" for variable in part.data_vars})
        for variable in part.data_vars:
            part[variable].attrs = about
        whole = whole.merge(part.drop_attrs(deep=False), join="exact", compat="no_conflicts", combine_attrs="override")
    return whole


def _same(data: "xr.Dataset", whole: "xr.Dataset", dim: str) -> bool:
    return data.sizes[dim] == whole.sizes[dim] and np.array_equal(data[dim].values, whole[dim].values)
