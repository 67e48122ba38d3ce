"""Put a measure over a training run: one artefact per checkpoint, found again by what made it.

A task is one checkpoint. Its artefact is one netCDF file named by a hash of the measure's name, version and spec and of
the checkpoint's weights, written aside and moved: a run of tasks can be killed at any moment and goes on where it was,
to the same bytes. A task that fails leaves a record with the reason and is tried again by the next sweep. A task fixes
its own thread count, so results do not depend on whether it ran here or in a pool of processes.

A run may come with results of its own (``Checkpoints.results``), artefacts of the same names or all of a measure in one file
(``circuits.dynamics.shipped``): they are read where the store has none, and never written to; they may be packed (``.nc.xz``). As
the name is a hash of all that the numbers depend on, results of other weights, data or settings have other names.
"""

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from circuits.dynamics.artefacts import is_whole, read_artefact, write_dataset
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.shipped import OF_RUN, packed, packed_keys, packed_one
from circuits.files import read_json, write_json
from circuits.models.checkpoints import Checkpoints
from circuits.progress import bar
from circuits.results import Measure, canonical, digest

if TYPE_CHECKING:
    import xarray as xr

THREADS_PER_TASK = 1

Status = Literal["ok", "failed", "missing"]

OF_STEPS = {"step", "status", "reason", "model_hash"}
"""What ``gather`` adds; a measure has no variable of these names."""


@dataclass(frozen=True)
class Task:
    """One checkpoint under one measure, and where its artefact belongs."""

    measure: Measure
    run: Checkpoints
    step: int
    store: Path

    @cached_property
    def key(self) -> str:
        return digest(
            {
                "measure": self.measure.name,
                "version": self.measure.version,
                "spec": self.measure.spec(),
                "weights": self.run.weights_hash(self.step),
            }
        )

    @property
    def artefact(self) -> Path:
        return self.store / self.measure.name / f"{self.key}.nc"

    @property
    def found(self) -> Path:
        """Where the artefact is: in the store, or else among the results that come with the run; the store's if in neither."""
        shipped = self.run.results
        there = self.artefact
        if shipped is None or there.exists():
            return there
        plain = shipped / self.measure.name / there.name
        return next((file for file in (plain, plain.with_suffix(".nc.xz")) if file.exists()), there)

    @property
    def is_packed(self) -> bool:
        """Whether the run's one file of this measure has it, and no artefact comes before that."""
        return not self.found.exists() and self.key in packed_keys(self.run.results, self.measure.name)

    def read(self, like: "xr.Dataset | None" = None) -> "xr.Dataset | None":
        """The result, from wherever it is; None where there is none. ``like``: see ``read_artefact``."""
        if self.is_packed and self.run.results is not None:
            return packed_one(self.run.results, self.measure.name, self.key)
        return read_artefact(self.found, like)

    @property
    def record(self) -> Path:
        """Where the reason is kept if the task failed."""
        return self.artefact.with_suffix(".failed.json")


@dataclass(frozen=True)
class Outcome:
    """How one task ended: ``ok`` (with its artefact) or ``failed`` (with the reason)."""

    step: int
    status: Status
    reason: str = ""


def run_task(task: Task) -> Outcome:
    """Do one task unless its artefact is there; never raises for what the measure or the checkpoint did wrong."""
    try:
        if not (task.is_packed or is_whole(task.found)):
            with deterministic(THREADS_PER_TASK):
                result = task.measure(task.run.at(task.step))
            check_names(task.measure, result)
            result.attrs["key"] = task.key
            write_dataset(task.artefact, result)
        task.record.unlink(missing_ok=True)
        return Outcome(task.step, "ok")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        # Weights that cannot be read have no hash to name a record by; the outcome still says what was wrong.
        with suppress(ValueError):
            write_json(task.record, {"step": task.step, "measure": task.measure.name, "reason": reason})
        return Outcome(task.step, "failed", reason)


def check_names(measure: Measure, result: "xr.Dataset") -> None:
    """Refuse a result with a variable that ``gather`` would replace.

    Raises:
        ValueError: it has one.
    """
    taken = sorted(str(name) for name in OF_STEPS & set(result.variables))
    if taken:
        raise ValueError(f"{measure.name} gives {', '.join(taken)}, which a run has of its own; name it otherwise, e.g. 'state'")


def sweep(
    measure: Measure, checkpoints: Checkpoints, *, store: str | Path, workers: int = 0, progress: bool | None = None
) -> dict[int, Outcome]:
    """Measure every checkpoint of a run that has no artefact yet.

    Args:
        measure: a measure of one model. checkpoints: the run. store: folder of artefacts, made if need be.
        workers: processes to spread checkpoints over; 0 works in this one. progress: show a bar (default: if watched).

    Returns:
        The outcome of every step; ``gather`` reads the results.

    Raises:
        TypeError: not a measure, or not Checkpoints.
    """
    check_sweep(measure, checkpoints)
    if Path(store).is_file():
        raise ValueError(f"store is {store}, a file; give a folder")
    tasks = [Task(measure, checkpoints, step, Path(store)) for step in checkpoints.steps]
    with bar(total=len(tasks), label=measure.name, on=progress) as shown:
        outcomes = {}
        for outcome in run_tasks(tasks, workers=workers):
            outcomes[outcome.step] = outcome
            shown.update()
            failed = Counter(o.status for o in outcomes.values())["failed"]
            if failed:
                shown.set_postfix(failed=failed)
    return outcomes


def run_tasks(tasks: list[Task], *, workers: int = 0) -> Iterator[Outcome]:
    """Outcomes as they come, from this process or a pool of spawned ones."""
    check_workers(workers)
    # What is in the store is read here: a pool takes seconds to start.
    here, there = [], []
    for task in tasks:
        (there if workers and not has_artefact(task) else here).append(task)
    yield from map(run_task, here)
    if not there:
        return
    with ProcessPoolExecutor(min(workers, len(there)), mp_context=get_context("spawn"), initializer=_serve) as pool:
        futures = [pool.submit(run_task, task) for task in there]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died: in a script, put the call under if __name__ == '__main__', as processes start by "
                "importing it; where memory ran out, use fewer workers. What was computed is in the store"
            ) from error
        finally:
            for future in futures:
                future.cancel()


def has_artefact(task: Task) -> bool:
    """Whether the store, or the run itself, has a file of this task's name; what is in it is looked at when it is read."""
    with suppress(ValueError):  # weights that cannot be read name no artefact
        return task.found.exists() or task.is_packed
    return False


def _serve() -> None:
    """Begin a worker: Ctrl-C is the parent's business, and a worker whose parent was killed ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def evenly(run: Checkpoints, count: int) -> list[int]:
    """So many steps of a run, evenly spread over its checkpoints, first and last among them; all where there are no more."""
    if count >= len(run):
        return list(run.steps)
    return [run.steps[i] for i in np.linspace(0, len(run) - 1, max(count, 2)).round().astype(int)]


def check_sweep(measure: Any, checkpoints: Any) -> None:
    """Refuse what is not a measure, or not a run.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(measure, type) or not isinstance(measure, Measure):
        raise TypeError(f"got {type(measure).__name__}, need a measure (name, version, spec(), call), e.g. AttentionScores()")
    try:
        canonical(measure.spec())
    except TypeError as error:
        raise TypeError(f"the spec of {measure.name} is not JSON ({error}); give plain numbers, strings and lists") from error
    check_checkpoints(checkpoints)


def check_workers(given: Any) -> None:
    """Refuse what is no number of processes.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ValueError(f"workers is {given!r}; give 0 for this process or the number of processes")


def check_checkpoints(given: Any) -> None:
    """Refuse what is not a run.

    Raises:
        TypeError: it is not Checkpoints.
    """
    if not isinstance(given, Checkpoints):
        raise TypeError(
            f"got {type(given).__name__}, need Checkpoints: Checkpoints.from_dir(path) or from_states({{step: state}}, cfg)"
        )


def gather(measure: Measure, checkpoints: Checkpoints, store: str | Path) -> "xr.Dataset":
    """Read what a sweep left: the artefacts along a ``step`` axis, and what is missing.

    Returns:
        The measure's dataset with a leading ``step`` dimension, NaN where a checkpoint has no artefact, and ``status``
        and ``reason`` per step. Provenance that differs between checkpoints (the model's hash) becomes a variable.

    Raises:
        ValueError: there is no artefact at all.
    """
    check_sweep(measure, checkpoints)
    tasks = {step: Task(measure, checkpoints, step, Path(store)) for step in checkpoints.steps}
    shipped = checkpoints.results
    with suppress(ValueError):  # weights that cannot be read name no result
        if shipped is not None and all(task.is_packed for task in tasks.values()):
            whole = packed(shipped, measure.name, [task.key for task in tasks.values()])
            ok: list[Status] = ["ok"] * len(tasks)
            return _of_run(whole, checkpoints, whole["model_hash"].values.tolist(), ok, [""] * len(tasks))
    return _joined(tasks, checkpoints)


def _joined(tasks: Mapping[int, Task], checkpoints: Checkpoints) -> "xr.Dataset":
    """What ``gather`` returns, from artefacts one by one."""
    import xarray as xr

    found: dict[int, xr.Dataset] = {}
    status: list[Status] = []
    reasons = []
    for step, task in tasks.items():
        result, reason = None, ""
        try:
            result = task.read(next(iter(found.values()), None))
            if task.record.exists():
                reason = read_json(task.record, what="a failure record")["reason"]
        except ValueError as error:
            reason = str(error)
        if result is not None:
            found[step] = result
        status.append("ok" if result is not None else "failed" if reason else "missing")
        reasons.append("" if result is not None else reason)
    if not found:
        first = next(iter(tasks.values()))
        nothing = f"nothing was computed; run sweep(measure, checkpoints, store={str(first.store)!r})"
        why = next((r for r in reasons if r), nothing)
        raise ValueError(f"no checkpoint of {checkpoints.name} has an artefact of {first.measure.name}: {why}")
    hashes = [found[step].attrs.get("model_hash", "") if step in found else "" for step in tasks]
    pieces = [data.drop_attrs(deep=False).assign_coords(step=step) for step, data in found.items()]
    # Variables that do not depend on the weights (chance levels) still get the step axis: one rule, no surprises.
    combined = xr.concat(pieces, dim="step", data_vars="all", coords="minimal", compat="equals", join="exact")
    # Counts of a missing step are NaN, so no longer the integers that the artefacts' encoding promises; words say "missing".
    words = {name: "missing" for name, variable in combined.data_vars.items() if variable.dtype.kind in "UO"}
    combined = combined.reindex(step=list(tasks), fill_value=words).drop_encoding()
    return _of_run(combined.assign_attrs(next(iter(found.values())).attrs), checkpoints, hashes, status, reasons)


def _of_run(
    data: "xr.Dataset", checkpoints: Checkpoints, hashes: Sequence[str], status: Sequence[Status], reasons: Sequence[str]
) -> "xr.Dataset":
    """With what is known of every step, and of the run."""
    each = {"status": status, "reason": reasons, "model_hash": hashes}
    found = data.assign({name: ("step", np.array(told, dtype=object).astype("U")) for name, told in each.items()})
    found.attrs = {name: value for name, value in data.attrs.items() if name not in ("model_hash", "key")} | dict(
        zip(OF_RUN, (checkpoints.name, canonical(checkpoints.meta.get("data", []))), strict=True)
    )
    return found


def measured(
    measure: Measure, checkpoints: Checkpoints, *, store: str | Path | None = None, workers: int = 0, progress: bool | None = None
) -> "xr.Dataset":
    """``sweep`` and ``gather`` in one; without a store the artefacts live in a temporary folder."""
    if store is not None:
        sweep(measure, checkpoints, store=store, workers=workers, progress=progress)
        return gather(measure, checkpoints, store)
    with tempfile.TemporaryDirectory() as folder:
        sweep(measure, checkpoints, store=folder, workers=workers, progress=progress)
        return gather(measure, checkpoints, folder)
