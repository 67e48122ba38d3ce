"""The command line: parse, call, write, exit code. Everything it does is a public function of the library.

Exit codes: 0; 2 when the input was refused (one sentence on stderr); 130 after Ctrl-C.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from circuits.cli_options import Run, Store, Workers, argument, find_run, option, processes, reports
from circuits.crosscheck_cli import app as crosscheck_app
from circuits.scan_snap_cli import app as scan_snap_app

ATTENTION, ALL = "attention", "all"


class OneSentence(TyperGroup):
    """Commands whose refusals are sentences and not tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what the library refuses, and what the disk refuses, ends it with one line."""
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError) as error:
            typer.echo(f"circuits: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            typer.echo("circuits: stopped; the same command again goes on from what is saved", err=True)
            raise typer.Exit(130) from stop


app = typer.Typer(
    cls=OneSentence,
    name="circuits",
    help="What the heads of a small transformer do, and how they came to do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(scan_snap_app)
app.add_typer(crosscheck_app)


def read_steps(text: str) -> list[int]:
    """``"0,1,2"`` as step numbers.

    Raises:
        ValueError: not whole numbers with commas between them.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--steps is {text!r}; give whole numbers with commas between them, such as 0,512,10000") from error


def read_parts(text: str) -> list[str]:
    """``"effects,roles"`` as parts of ``circuits.dynamics.functions.WHAT``; ``"all"`` as all of them.

    Raises:
        ValueError: a name that is not among them.
    """
    from circuits.dynamics.functions import WHAT

    parts = [part.strip() for part in text.split(",")]
    unknown = [part for part in parts if part not in (*WHAT, ALL)]
    if unknown:
        raise ValueError(f"--what has {', '.join(map(repr, unknown))}; give {', '.join(WHAT)}, several with commas, or {ALL}")
    return list(WHAT) if ALL in parts else list(dict.fromkeys(parts))


def write_found(out: Path, found: Any, left_out: Mapping[str, str] | None = None) -> None:
    """Write what several measures found as one file, and name on stderr those that found nothing or were left out."""
    from circuits.dynamics.artefacts import write_dataset

    write_dataset(out, found.merged())
    for name, reason in {**found.absent, **(left_out or {})}.items():
        typer.echo(f"circuits: {name} has no data: {' '.join(reason.split())}", err=True)


def show_version(wanted: bool) -> bool:
    """Answer ``--version`` and stop."""
    if wanted:
        from circuits import __version__

        typer.echo(f"circuits {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it and exit.")] = False,
) -> None:
    """The options before any command."""


@app.command()
def report(
    run: Run = None,
    out: Annotated[Path | None, option("Folder for the two files; default: reports/<run>.")] = None,
    store: Store = None,
    workers: Workers = None,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Measure all anew, also what ships or is in the store; coefficients take hours."),
    ] = False,
) -> None:
    """Measure every head at every checkpoint; write one HTML page and one results file."""
    run = find_run(run)
    out = out or reports(run)
    from circuits.models.checkpoints import Checkpoints
    from circuits.views.report import report as write_report

    written = write_report(
        Checkpoints.from_dir(run), out, store or reports(run) / "store", workers=processes(workers), recompute=recompute
    )
    typer.echo(written.html)
    typer.echo(written.results)


@app.command()
def train(
    preset: Annotated[str, option("stdlib-2l, stdlib-1l or paper-2l.")],
    out: Annotated[Path, option("Folder of the run; one that was begun is gone on with.")],
    data: Annotated[str | None, option("stdlib, file:PATH or hf:NAME.")] = None,
    steps: Annotated[int | None, option("Length of the run.")] = None,
    seed: Annotated[int | None, option("Seed of initial weights and batches.")] = None,
    device: Annotated[str | None, option("auto, cpu or cuda.")] = None,
    threads: Annotated[int | None, option("CPU threads; a run repeats byte for byte at the same number.")] = None,
) -> None:
    """Train a small transformer and keep its checkpoints; resumes after a stop."""
    from circuits.dynamics.presets import preset as named
    from circuits.dynamics.train import train as run_training

    options = {"data": data, "steps": steps, "seed": seed, "device": device, "threads": threads}
    changes: dict[str, Any] = {field: value for field, value in options.items() if value is not None}
    if seed is not None:
        changes["model"] = named(preset).model.model_copy(update={"seed": seed})
    typer.echo(run_training(named(preset, **changes), out))


@app.command()
def detect(
    run: Annotated[Path, argument("Folder of a training run.")],
    what: Annotated[
        str, option("attention (default), behaviour, effects, multigrams, brackets, roles, several with commas, or all.")
    ] = ATTENTION,
    out: Annotated[Path | None, option("The netCDF file; default: reports/<run>/detect.nc.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Measure what every head attends to, or does, at every checkpoint; write one netCDF file."""
    parts = read_parts(what)
    out, store = out or reports(run) / "detect.nc", store or reports(run) / "store"
    from circuits.dynamics.artefacts import write_dataset
    from circuits.models.checkpoints import Checkpoints

    if parts == [ATTENTION]:
        from circuits.dynamics.detect import detect as score

        write_dataset(out, score(Checkpoints.from_dir(run), store=store, workers=processes(workers)))
    else:
        from circuits.dynamics.functions import functions
        from circuits.views.function_wanted import not_measured

        opened = Checkpoints.from_dir(run)
        found = functions(opened, parts, store=store, workers=processes(workers))
        write_found(out, found, not_measured(opened, parts))
    typer.echo(out)


@app.command()
def weights(
    run: Annotated[Path, argument("Folder of a training run.")],
    out: Annotated[Path | None, option("The netCDF file; default: reports/<run>/weights.nc.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Read the weights of every checkpoint: composition, eigenvalues, skip-trigrams, with nulls; write one netCDF file."""
    from circuits.dynamics.weigh import weigh
    from circuits.models.checkpoints import Checkpoints

    out = out or reports(run) / "weights.nc"
    found = weigh(Checkpoints.from_dir(run), store=store or reports(run) / "store", workers=processes(workers))
    write_found(out, found)
    typer.echo(out)


@app.command()
def paths(
    run: Annotated[Path, argument("Folder of a training run.")],
    out: Annotated[Path | None, option("The netCDF file; default: reports/<run>/paths.nc.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Measure which paths matter at every checkpoint: terms, every edge, attribution; write one netCDF file."""
    from circuits.dynamics.pathways import pathways
    from circuits.models.checkpoints import Checkpoints

    out = out or reports(run) / "paths.nc"
    found = pathways(Checkpoints.from_dir(run), store=store or reports(run) / "store", workers=processes(workers))
    write_found(out, found)
    typer.echo(out)


@app.command()
def rllc(
    run: Annotated[Path, argument("Folder of a training run.")],
    what: Annotated[str | None, option("mix, nulls, code, whole and so on, several with commas; default: all.")] = None,
    reference: Annotated[
        Path | None, option("Run whose last model is the reference of loss-refined coefficients; default: the one the run names.")
    ] = None,
    out: Annotated[Path | None, option("The netCDF file; default: reports/<run>/rllc.nc.")] = None,
    store: Store = None,
    workers: Workers = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Sample anew what comes with the run as a result.")] = False,
) -> None:
    """Sample the refined local learning coefficient of every head at every checkpoint, with nulls; write one netCDF file."""
    from circuits.dynamics.coefficients import coefficients
    from circuits.models.checkpoints import Checkpoints

    parts = None if what is None or what == "all" else [part.strip() for part in what.split(",")]
    opened = Checkpoints.from_dir(run)
    out = out or reports(run) / "rllc.nc"
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of a file, such as {out / 'rllc.nc'}")
    found = coefficients(
        opened.without_results() if fresh else opened,
        parts,
        reference=None if reference is None else Checkpoints.from_dir(reference),
        store=store or reports(run) / "store",
        workers=processes(workers),
    )
    write_found(out, found)
    bad, cells = found.not_ok()
    typer.echo(f"circuits: {bad} of {cells} sampled cells are not ok", err=True)
    typer.echo(out)


@scan_snap_app.command("measure")
def measure_scan_snap(
    run: Annotated[Path, argument("Folder of a training run.")],
    what: Annotated[str | None, option("spread, probe, rank, lift, bias, several with commas; default: all.")] = None,
    out: Annotated[Path | None, option("The netCDF file; default: reports/<run>/scan_snap.nc.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Measure how every head's attention moved, snapped and which tokens it came to prefer; write one netCDF file."""
    from circuits.dynamics.scan_snap_run import scan_snap
    from circuits.models.checkpoints import Checkpoints

    parts = None if what is None or what == "all" else [part.strip() for part in what.split(",")]
    out = out or reports(run) / "scan_snap.nc"
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of a file, such as {out / 'scan_snap.nc'}")
    found = scan_snap(Checkpoints.from_dir(run), parts, store=store or reports(run) / "store", workers=processes(workers))
    write_found(out, found)
    typer.echo(out)


@app.command()
def export(
    run: Annotated[Path, argument("Folder of a training run.")],
    out: Annotated[Path, argument("Folder for the smaller copy.")],
    steps: Annotated[str | None, option("Checkpoints to keep, such as 0,512,10000; default: all.")] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
) -> None:
    """Copy a run with chosen checkpoints, rounded to a smaller type."""
    chosen = None if steps is None else read_steps(steps)
    from circuits.models.checkpoints import Checkpoints

    typer.echo(Checkpoints.from_dir(run).export(out, steps=chosen, dtype=dtype))
