"""``circuits scan-snap``: the paper's experiments from the command line, each to a netCDF file, a PNG and an SVG.

``EXPERIMENTS`` says what there is: a name, the call that makes the result, what it is called with in a hurry, and its figure.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

ALL, SCORECARD = "all", "scorecard"

app = typer.Typer(
    name="scan-snap",
    help="How attention chooses its tokens: Scan & Snap and JoMA, simulated.",
    no_args_is_help=True,
    add_completion=False,
)


class Known(NamedTuple):
    """An experiment: modules below ``circuits`` and names in them, opened only when wanted.

    Attributes:
        home, figure: of the function that runs it, named as the experiment, and of the one that draws it. quick: options for a
            quick look. seeded: whether it has seeds. progress: whether it takes long enough for a bar.
    """

    home: str
    figure: str
    quick: dict[str, Any]
    seeded: bool = True
    progress: bool = True


SHORT: dict[str, Any] = {"seeds": 2, "steps": 100}
"""Of training on text, which takes minutes."""
EXPERIMENTS = {
    "gain_growth": Known("laws", "theory_figures.gain_curves", {"seeds": 2, "steps": 150}),
    "attention_by_iteration": Known("experiments", "figures.attention_heat_maps", {"seeds": 2}),
    "entropy_table": Known("sweeps", "figures.entropy_lines", {"seeds": 2, "queries": (1, 3)}),
    "decoder_phases": Known("laws", "theory_figures.decoder_curves", {}, seeded=False, progress=False),
    "attention_growth": Known("laws", "theory_figures.growth_curves", {}, seeded=False, progress=False),
    "recall_of_distinct": Known("sweeps", "figures.recall_curves", {"seeds": 2, "queries": 1}),
    "rate_sweep": Known("transitions", "theory_figures.rate_curves", {}, seeded=False),
    "transition_times": Known("transitions", "theory_figures.transition_points", {}, seeded=False),
    "gain_ratios": Known("transitions", "theory_figures.ratio_curves", {}, seeded=False),
    "freeze": Known("transitions", "theory_figures.freeze_curve", {"doublings": 2}, seeded=False),
    "norm_ablation": Known("experiments", "figures.ablation_curves", {"seeds": 2}),
    "peak_order": Known("experiments", "figures.scan_curves", {"seeds": 2}),
    "entropy_bounce": Known("experiments", "theory_figures.bounce_curve", {"seeds": 2}),
    "text_bounce": Known("text_experiments", "text_figures.text_bounce_curves", SHORT),
    "text_rates": Known("text_experiments", "text_figures.text_rate_curves", SHORT),
    "text_depths": Known("text_experiments", "text_figures.text_depth_maps", SHORT),
    "text_pairs": Known("text_pairs", "text_figures.text_pair_bars", SHORT),
    "text_null": Known("text_pairs", "text_figures.text_pair_bars", SHORT),
}


def read_names(text: str) -> list[str]:
    """``"freeze,scorecard"`` as names of experiments; ``"all"`` as all of them and the scorecard.

    Raises:
        ValueError: a name that is not among them.
    """
    every = [*EXPERIMENTS, SCORECARD]
    names = [name.strip().replace("-", "_") for name in text.split(",")]
    unknown = [name for name in names if name not in (*every, ALL)]
    if unknown:
        raise ValueError(f"--what has {', '.join(map(repr, unknown))}; give {', '.join(every)}, several with commas, or {ALL}")
    return every if ALL in names else list(dict.fromkeys(names))


def run_experiment(name: str, *, seeds: int | None = None, quick: bool = False) -> tuple[Any, Any]:
    """The result of one experiment, and its figure."""
    from importlib import import_module

    known = EXPERIMENTS[name]
    options: dict[str, Any] = dict(known.quick) if quick else {}
    if seeds is not None and known.seeded:
        options["seeds"] = seeds
    if known.progress:
        options["progress"] = None
    found = getattr(import_module(f"circuits.dynamics.scan_snap_{known.home}"), name)(**options)
    home, draw = known.figure.split(".")
    return found, getattr(import_module(f"circuits.views.scan_snap_{home}"), draw)(found)


def write_experiment(name: str, out: Path, found: Any, figure: Any) -> list[Path]:
    """Write a result and its figure: ``name.nc``, ``name.png``, ``name.svg``."""
    from circuits.dynamics.artefacts import write_dataset
    from circuits.files import write_whole
    from circuits.views.figures import rendered

    data = out / f"{name}.nc"
    write_dataset(data, found)
    png, svg = rendered(figure, "png"), rendered(figure, "svg")
    return [
        data,
        write_whole(out / f"{name}.png", lambda aside: aside.write_bytes(png)),
        write_whole(out / f"{name}.svg", lambda aside: aside.write_bytes(svg)),
    ]


def write_scorecard(out: Path, *, quick: bool) -> list[Path]:
    """Judge the claims; write ``scorecard.csv``, a row for every check, and ``scorecard.md``."""
    from circuits.dynamics.scan_snap_scorecard import scorecard
    from circuits.files import write_whole

    card = scorecard(fast=quick)
    table, page = card.to_dataframe().to_csv(index=False), card.to_markdown()
    return [
        write_whole(out / "scorecard.csv", lambda aside: aside.write_text(table, encoding="utf-8")),
        write_whole(out / "scorecard.md", lambda aside: aside.write_text(page, encoding="utf-8")),
    ]


@app.callback()
def main() -> None:
    """A group of commands, of which ``simulate`` is one."""


@app.command()
def simulate(
    what: Annotated[
        str,
        typer.Option(help=f"{', '.join(EXPERIMENTS)} or {SCORECARD}, several with commas, or {ALL}.", show_default=True),
    ] = ALL,
    out: Annotated[Path, typer.Option(help="Folder for the files.", show_default=True)] = Path("reports/scan-snap"),
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of every simulation that has noise; default: its own.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer seeds, sizes and steps: a quick look.")] = False,
) -> None:
    """Run the paper's experiments and judge its claims; write netCDF, PNG and SVG of each, and the scorecard.

    Those that train on text (text-bounce, -rates, -depths, -pairs, -null) and the scorecard take some minutes each.
    """
    for name in read_names(what):
        if name == SCORECARD:
            written = write_scorecard(out, quick=quick)
        else:
            written = write_experiment(name, out, *run_experiment(name, seeds=seeds, quick=quick))
        for path in written:
            typer.echo(path)
