"""Do they agree? Stages, clusters, the witnesses of every head, and the papers' claims, of one run and of others of its recipe.

Everything is computed from evidence (``circuits.crosscheck.evidence``). The first run is what the cross-check is about; others,
as seeds of the same recipe, have a say in claims. A part that a run has no data for is missing, and ``absent`` says why.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.crosscheck.agreement import agreement
from circuits.crosscheck.claims_circuits import claims_circuits
from circuits.crosscheck.claims_llc import claims_llc
from circuits.crosscheck.cluster_agreement import compare
from circuits.crosscheck.curves import FALLS, head_curves, run_curves
from circuits.crosscheck.evidence import Evidence, evidence_of, opened, seed_of, seeds_beside
from circuits.crosscheck.scorecard import scorecard
from circuits.crosscheck.timing import lag
from circuits.crosscheck.verdict import Claim, summary, to_dataframe
from circuits.dynamics.artefacts import write_dataset
from circuits.dynamics.coefficients import reference_of
from circuits.dynamics.emergence import emerged, roles_over_training
from circuits.dynamics.scan_snap_verdicts import markdown_table
from circuits.dynamics.stages import stages
from circuits.dynamics.together import merged
from circuits.files import write_whole
from circuits.models.checkpoints import Checkpoints
from circuits.progress import bar

if TYPE_CHECKING:
    import xarray as xr

CLUSTER_DRAWS = 100
"""Of curves and roles for the intervals of Rand indices; of these the extreme ones count, so that fewer would be too narrow."""

PARTS = ("stages", "clusters", "agreement", "lags", "scorecard")
ROW = ("claim", "role", "quantity", "expected", "published", "measured", "low", "high", "p", "least_p", "verdict", "reason")
"""Columns of the scorecard in Markdown; the table in CSV has all."""


@dataclass(frozen=True)
class CrossCheck:
    """What a cross-check found.

    Attributes:
        run: its name. runs: names of all runs that claims were checked on. results: datasets by part: ``stages`` (see
            ``circuits.dynamics.stages``), ``clusters`` (``cluster_agreement.compare``), ``agreement`` (of every head), ``lags``
            (``timing.lag``), ``scorecard`` (of that name). claims: of the papers, which the scorecard is of. absent: why a part
            is missing.
    """

    run: str
    runs: tuple[str, ...]
    results: "Mapping[str, xr.Dataset]"
    claims: tuple[Claim, ...]
    absent: Mapping[str, str]


def crosscheck(
    runs: Sequence[Evidence],
    *,
    one_layer: Evidence | None = None,
    parts: Sequence[str] = PARTS,
    progress: bool | None = None,
) -> CrossCheck:
    """Lay detectors, weights, paths and coefficients of a run against each other.

    Args:
        runs: the run, then others of the same recipe. one_layer: a run of one layer, for claims about what it cannot do.
        parts: which of ``PARTS``. progress: show a bar.

    Raises:
        ValueError: no runs, one of them twice, or a part that there is not.
    """
    runs = told_apart(runs)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"parts has {', '.join(map(repr, unknown))}; give some of {', '.join(PARTS)}")
    results: dict[str, xr.Dataset] = {}
    absent: dict[str, str] = {}
    claims: tuple[Claim, ...] = ()
    made: dict[str, Callable[[Evidence], xr.Dataset]] = {
        "stages": _stages, "clusters": _clusters, "agreement": lambda run: agreement(run.results), "lags": _lags
    }  # fmt: skip
    for part in bar([part for part in PARTS if part in parts], label=f"cross-check, {runs[0].run}", on=progress):
        if part == "scorecard":
            claims = (*claims_llc(runs), *claims_circuits(runs, one_layer))
            results[part] = scorecard(claims, [run.run for run in runs])
            continue
        try:
            results[part] = made[part](runs[0])
        except ValueError as error:
            absent[part] = str(error)
    return CrossCheck(runs[0].run, tuple(run.run for run in runs), results, claims, absent)


def told_apart(runs: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """The runs, those of one name called by their seeds as well.

    Raises:
        ValueError: there are none; or one is given twice, which would pass for agreement between seeds.
    """
    if not runs:
        raise ValueError("no runs were given; give one Evidence or more, such as [evidence_of(run, store)]")
    names = Counter(run.run for run in runs)
    called = tuple(replace(run, run=f"{run.run} (seed {run.seed})") if names[run.run] > 1 else run for run in runs)
    twice = [name for name, count in Counter(run.run for run in called).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given more than once, and is one witness; give each seed of the recipe once")
    return called


def _stages(run: Evidence) -> "xr.Dataset":
    """All events; pairs of emergences, one a curve and known beforehand, are a family of tests of their own."""
    curves = run_curves(run.results)
    falls = [name for name in FALLS if name in curves]
    found, first = stages(curves, falls=falls), stages(curves, falls=falls, kinds=("emergence",))
    places = {"event": first["event"].values, "other": first["other"].values}
    for name in ("before", "p", "verdict"):
        found[name].loc[places] = first[name].values
    families = "pairs of emergences, corrected for these alone; all other pairs, for all"
    found = found.assign(order=first["order"], order_confidence=first["order_confidence"])
    return found.assign_attrs(families=families, smallest_p_emergence=first.attrs["smallest_p"])


def _clusters(run: Evidence) -> "xr.Dataset":
    curves = head_curves(run.results)
    if "rllc" not in curves:
        raise ValueError(f"{run.run} has no coefficients at two checkpoints or more: circuits rllc {run.run}")
    if "head_functions" not in run.results:
        raise ValueError(f"{run.run} has no roles of heads: circuits detect {run.run} --what roles")
    roles = run.results["head_functions"]["role"].isel(step=-1, drop=True)
    return compare(curves, roles, draws=CLUSTER_DRAWS)


def _lags(run: Evidence) -> "xr.Dataset":
    roles, curves = roles_over_training({k: v for k, v in run.results.items() if k != "bracket_scores"}), head_curves(run.results)
    if roles is None or "rllc" not in curves:
        raise ValueError(f"{run.run} lacks roles over training or coefficients, which lags are between")
    return lag(emerged(roles), curves["rllc"])


def check_run(
    run: str | Path,
    others: Sequence[str | Path] = (),
    *,
    one_layer: str | Path | None = None,
    parts: Sequence[str] = PARTS,
    store: str | Path,
    workers: int = 0,
    progress: bool | None = None,
) -> CrossCheck:
    """Cross-check a run's folder, with the seeds that come with it.

    Args:
        run: the folder, or a file of evidence. others: folders or files of evidence of other seeds; a seed among them takes the
            place of the one that comes with the run. one_layer: of a run of one layer (default: the run's reference, if that has
            one layer). parts: which of ``PARTS``. store: folder of artefacts; what is cheap and missing is measured into it.
        workers, progress: see ``evidence_of``.

    Raises:
        ValueError: a folder or file is missing or broken, a seed is given twice, or one_layer has more; before any work is done.
    """
    first, given = opened(run), [opened(path) for path in others]
    folder = first if isinstance(first, Checkpoints) else None
    single = opened(one_layer) if one_layer is not None else reference_of(folder) if folder is not None else None
    layers = single.cfg.n_layers if isinstance(single, Checkpoints) else 1
    if one_layer is not None and layers != 1:
        raise ValueError(f"{one_layer} has {layers} layers; one_layer is a run of a single layer")
    told_apart([Evidence(one.name, seed_of(one), {}) if isinstance(one, Checkpoints) else one for one in (first, *given)])

    def gathered(one: Evidence | Checkpoints) -> Evidence:
        return one if isinstance(one, Evidence) else evidence_of(one, store, workers=workers, progress=progress)

    seeds = [gathered(one) for one in (first, *given)]
    known = {run.seed for run in seeds}
    seeds += [found for found in map(Evidence.load, [] if folder is None else seeds_beside(folder)) if found.seed not in known]
    alone = None if single is None or layers != 1 else gathered(single)
    return crosscheck(seeds, one_layer=alone, parts=parts, progress=progress)


def write_crosscheck(found: CrossCheck, out: str | Path) -> list[Path]:
    """Write ``crosscheck.nc``, all parts in one file, and the claims as tables, see ``write_scorecard``."""
    data = Path(out) / "crosscheck.nc"
    write_dataset(data, merged(found.results, title=f"circuits crosscheck: {found.run}"))
    return [data, *write_scorecard(found.claims, out)]


def write_scorecard(claims: Sequence[Claim], out: str | Path) -> list[Path]:
    """Write ``scorecard.csv``, a row a check with all there is of it, and ``scorecard.md``, claims and checks to be read."""
    out, rows = Path(out), to_dataframe(claims)
    table = rows.to_csv(index=False)
    page = f"{markdown_table(summary(claims))}\n\n{markdown_table(rows.reindex(columns=list(ROW)))}\n"
    return [
        write_whole(out / "scorecard.csv", lambda aside: aside.write_text(table, encoding="utf-8")),
        write_whole(out / "scorecard.md", lambda aside: aside.write_text(page, encoding="utf-8")),
    ]
