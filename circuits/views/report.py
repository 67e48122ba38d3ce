"""The report: one self-contained page and one results file for a training run.

Artefacts that are in the store are read, missing cheap measures are computed into it, missing expensive ones are named
with the command that makes them. The page holds no clock, host name or path: equal inputs give equal bytes. Both files
are written aside and moved, so an interruption leaves the old ones or the new ones, and the next call goes on from the
store.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from circuits.dynamics.artefacts import write_dataset
from circuits.dynamics.determinism import deterministic
from circuits.dynamics.sweep import THREADS_PER_TASK, Task, check_checkpoints, check_sweep, evenly
from circuits.dynamics.together import gather_all, measure_all, merged, with_stored, without_paths
from circuits.files import write_whole
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure, canonical
from circuits.views.html import POLICY, bundle, count, encoded, paragraph, table, template
from circuits.views.sections import Section, Wanted, discover

if TYPE_CHECKING:
    import xarray as xr

PAGE, RESULTS = "report.html", "results.nc"
ANEW = "recomputed"
"""Folder in the store of what is measured anew, until all is."""


@dataclass(frozen=True)
class ReportResult:
    """Where the report lies: ``html``, the page, and ``results``, netCDF4 that ``xr.open_dataset`` reads."""

    html: Path
    results: Path


def report(
    run: Checkpoints,
    out: str | Path,
    store: str | Path,
    *,
    sections: Sequence[Section] | None = None,
    workers: int = 0,
    recompute: bool = False,
    progress: bool | None = None,
) -> ReportResult:
    """Measure a run and write ``report.html`` and ``results.nc``.

    Args:
        run: the training run. out: folder of the two files. store: folder of artefacts; both are made if need be.
        sections: what the page shows (default: every file in ``circuits/views/sections``).
        workers: processes to spread checkpoints over; 0 works in this one. recompute: measure everything anew, coefficients
            too, whatever ships with the run or is in the store; stopped, the same call goes on, and the store changes at the end.
        progress: show a bar (default: if watched).

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: ``out`` or ``store`` is a file, or sections disagree on a measure.
    """
    check_checkpoints(run)
    out, store = Path(out), Path(store)
    sections = discover() if sections is None else tuple(sections)
    for folder, what in ((out, "out"), (store, "store")):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{what} is {folder}, a file; give a folder")
    run = run.without_results() if recompute else run
    wanted = measures_of(sections, run)
    with beside(workers if any(section.long for section in sections) else 0) as begin:
        results, absent = gathered(run, wanted, store, workers=workers, recompute=recompute, progress=progress)
        parts = parts_of(sections, run, results, absent, begin, out / RESULTS)
    page = template("report.html").render(
        policy=POLICY,
        name=run.name,
        sections=parts,
        bundle=bundle(),
        results=RESULTS,
        digest=hashlib.sha256((out / RESULTS).read_bytes()).hexdigest(),
    )
    content = encoded(page)
    return ReportResult(write_whole(out / PAGE, lambda aside: aside.write_bytes(content)), out / RESULTS)


def gathered(
    run: Checkpoints, wanted: Mapping[str, Wanted], store: Path, *, workers: int, recompute: bool, progress: bool | None
) -> "tuple[dict[str, xr.Dataset], dict[str, str]]":
    """Results by measure, what is cheap and missing measured before; and why a measure has none."""
    computed = {name: (want.measure, run.select(steps_of(want, run))) for name, want in wanted.items()}
    if recompute:
        measure_all(computed.values(), store / ANEW, workers=workers, progress=progress)
        replace_with(store / ANEW, store)
    measure_all((computed[name] for name, want in wanted.items() if want.cheap), store, workers=workers, progress=progress)
    results, absent = gather_all((read_at(*computed[name], run, store) for name in wanted), store)
    for name in absent:
        want = wanted[name]
        if not want.cheap and not any(Task(want.measure, run, step, store).record.exists() for step in run.steps):
            absent[name] = "It takes long and is not in the store."
    return results, absent


def parts_of(
    sections: Sequence[Section],
    run: Checkpoints,
    results: "dict[str, xr.Dataset]",
    absent: Mapping[str, str],
    begin: Callable[..., Callable[[], Any]],
    file: Path,
) -> list[dict[str, str]]:
    """What the page shows of every section; and the results file, with all that sections derive."""
    due = [section for section in sections if all(want.measure.name in results for want in section.measures(run))]
    for section in due:
        if not section.long:
            results.update(section.derive(run, results))
    slow = [section for section in due if section.long]
    waiting = {name for section in slow for name in section.reads}
    # What lists no measures tells of all results, and waits for all.
    at_once = [section for section in sections if section.measures(run) and not waiting & set(section.reads)]
    finish = begin(finished, slow, run, dict(results), file)
    with deterministic(THREADS_PER_TASK):
        drawn = {section.name: body(section, run, results) for section in at_once}
    results = finish()
    with deterministic(THREADS_PER_TASK):
        return [
            {
                "name": section.name,
                "title": section.title,
                "sources": sources(section, results, run),
                "notices": notices(section, results, absent, run),
                "body": drawn.get(section.name) or body(section, run, results),
            }
            for section in sections
        ]


def finished(
    sections: Sequence[Section], run: Checkpoints, results: "dict[str, xr.Dataset]", path: Path
) -> "dict[str, xr.Dataset]":
    """All results, with what sections derive that takes long; and written to a file, which takes as long as a drawing."""
    with deterministic(THREADS_PER_TASK):
        for section in sections:
            results.update(section.derive(run, results))
    write_results(path, results, title=f"circuits report: {run.name}")
    return results


@contextmanager
def beside(workers: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Begins work in another process, that is started now as this takes seconds; without workers it is done when it is needed."""
    if not workers:
        yield partial
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_ready)
        yield lambda work, *args: pool.submit(work, *args).result


def _ready() -> None:
    """Imports this module, in the process that does it."""


def replace_with(anew: Path, store: Path) -> None:
    """Move artefacts, and records of failures, into the store; what it has of their names gives way."""
    for file in sorted(anew.glob("*/*")):
        there = store / file.relative_to(anew)
        there.parent.mkdir(parents=True, exist_ok=True)
        file.replace(there)
    shutil.rmtree(anew, ignore_errors=True)


def measures_of(sections: Sequence[Section], run: Checkpoints) -> dict[str, Wanted]:
    """Every measure once, by name; cheap if any section says so, the last checkpoint or few if all of them do.

    Raises:
        TypeError: ``run`` is not Checkpoints, or a measure is none. ValueError: one name, two configurations.
    """
    found: dict[str, Wanted] = {}
    for section in sections:
        for want in section.measures(run):
            check_sweep(want.measure, run)
            known = found.setdefault(want.measure.name, want)
            if canonical([known.measure.version, known.measure.spec()]) != canonical([want.measure.version, want.measure.spec()]):
                raise ValueError(
                    f"section {section.name!r} measures {want.measure.name} with another configuration than an earlier "
                    "section; use one"
                )
            both = want._replace(cheap=want.cheap or known.cheap, command=known.command or want.command)
            few = None if want.few is None or known.few is None else max(want.few, known.few)
            found[want.measure.name] = both._replace(last=want.last and known.last, few=few)
    return found


def steps_of(want: Wanted, run: Checkpoints) -> list[int]:
    """The checkpoints a measure is computed at: all, the last, or a few that are evenly spread, first and last among them."""
    if want.last:
        return [run.steps[-1]]
    return evenly(run, len(run) if want.few is None else want.few)


def read_at(measure: Measure, part: Checkpoints, run: Checkpoints, store: Path) -> tuple[Measure, Checkpoints]:
    """A measure with the checkpoints that are read: also those that the store has, but for what is read at the last alone."""
    return (measure, part) if len(part) < 2 else with_stored(measure, part, run, store)


def body(section: Section, run: Checkpoints, results: "Mapping[str, xr.Dataset]") -> str:
    """What a section shows; nothing where a measure of its has no data, and the reason where it cannot be drawn."""
    if not all(want.measure.name in results for want in section.measures(run)):
        return ""
    try:
        return section.render(run, results)
    except ValueError as error:
        return paragraph("This section could not be drawn: {}", without_paths(str(error)))


def sources(section: Section, results: "Mapping[str, xr.Dataset]", run: Checkpoints) -> Markup:
    """Links to the definition and the configuration of what a section reads."""
    names = [want.measure.name for want in section.measures(run)]
    names += [name for name in section.reads if name not in names]
    links = [Markup('<a href="#measure-{}">{}</a>').format(name, name) for name in names if name in results]
    return Markup('<p class="quiet">Definitions and settings: {}.</p>').format(Markup(", ").join(links)) if links else Markup("")


def notices(section: Section, results: "Mapping[str, xr.Dataset]", absent: Mapping[str, str], run: Checkpoints) -> Markup:
    """What is missing from a section's measures, why, and how to get it."""
    said = []
    for want in section.measures(run):
        name = want.measure.name
        remedy = Markup("Make it with <code>{}</code>").format(want.command) if want.command else "The next report tries again."
        if name in absent:
            said.append(Markup('<p class="notice"><b>{} has no data.</b> {} {}</p>').format(name, absent[name], remedy))
            continue
        data = results[name]
        gone = np.flatnonzero(data["status"].values != "ok")
        if len(gone):
            rows = [
                (
                    count(int(data["step"].values[i])),
                    str(data["status"].values[i]),
                    str(data["reason"].values[i]) or "not computed",
                )
                for i in gone
            ]
            head = f"{name}: {len(gone)} of {data.sizes['step']} checkpoints have no data; they are left out below."
            said.append(
                Markup('<div class="notice">{}{}</div>').format(
                    table(("step", "status", "reason"), rows, caption=head, numeric=(0,)), remedy
                )
            )
    return Markup("\n").join(said)


def write_results(path: Path, results: "Mapping[str, xr.Dataset]", *, title: str) -> Path:
    """Write the merged results as netCDF4."""
    write_dataset(path, merged(results, title=title))
    return path
