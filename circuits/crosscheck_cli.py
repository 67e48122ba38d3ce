"""``circuits crosscheck``, ``scorecard`` and ``evidence``: what is known of runs, laid against each other."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli_options import Run, Store, Workers, argument, find_run, option, processes, reports

app = typer.Typer(add_completion=False)
OneLayer = Annotated[Path | None, option("A run of one layer, or its evidence; default: the reference that the run names.")]


@app.command()
def evidence(
    run: Annotated[Path, argument("Folder of a training run.")],
    out: Annotated[Path | None, option("The packed file; default: reports/<run>/evidence.npz.xz.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Gather what a cross-check reads of a run into one small file, which takes part in others without the run's weights."""
    from circuits.crosscheck.evidence import evidence_of
    from circuits.models.checkpoints import Checkpoints

    out = out or reports(run) / "evidence.npz.xz"
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of a file, such as {out / 'evidence.npz.xz'}")
    found = evidence_of(Checkpoints.from_dir(run), store or reports(run) / "store", workers=processes(workers))
    for name, reason in found.absent.items():
        typer.echo(f"circuits: {name} has no data: {' '.join(reason.split())}", err=True)
    typer.echo(found.save(out))


@app.command()
def crosscheck(
    run: Run = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--other", help="Another seed of the recipe: a run's folder or a file of evidence; may be repeated."),
    ] = None,
    one_layer: OneLayer = None,
    out: Annotated[Path | None, option("Folder of the files; default: reports/<run>.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Lay detectors, weights, paths and coefficients against each other; write crosscheck.nc, scorecard.csv and scorecard.md.

    Coefficients are read and never sampled: circuits rllc RUN. Seeds that come with the run take part.
    """
    from circuits.crosscheck.crosscheck import check_run, write_crosscheck

    run = find_run(run)
    found = check_run(run, others or [], one_layer=one_layer, store=store or reports(run) / "store", workers=processes(workers))
    for name, reason in found.absent.items():
        typer.echo(f"circuits: {name} has no data: {' '.join(reason.split())}", err=True)
    for path in write_crosscheck(found, out or reports(run)):
        typer.echo(path)


@app.command()
def scorecard(
    runs: Annotated[
        list[Path] | None,
        argument("Seeds of one recipe, folders or files of evidence; default: fixtures/stdlib-2l of the checkout."),
    ] = None,
    one_layer: OneLayer = None,
    out: Annotated[Path | None, option("Folder of the files; default: reports/<first run>.")] = None,
    store: Store = None,
    workers: Workers = None,
) -> None:
    """Check the claims of the papers on runs, all as seeds of one recipe; write scorecard.csv and scorecard.md.

    Seeds that come with the first take part. Coefficients are read and never sampled: circuits rllc RUN.
    """
    from circuits.crosscheck.crosscheck import check_run, write_scorecard

    first, *others = runs or [find_run(None)]
    found = check_run(
        first,
        others,
        one_layer=one_layer,
        parts=["scorecard"],
        store=store or reports(first) / "store",
        workers=processes(workers),
    )
    for claim in found.claims:
        typer.echo(f"{claim.name:<12}{claim.verdict:<19}{claim.statement}")
    for path in write_scorecard(found.claims, out or reports(first)):
        typer.echo(path)
