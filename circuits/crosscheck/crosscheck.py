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

ROW = ("claim", "role", "quantity", "expected", "published", "measured", "low", "high", "p", "least_p", "verdict", "reason")
"""Columns of the scorecard in Markdown; the table in CSV has all."""


@dataclass(frozen=True)
class CrossCheck:
    """What a cross-check found.

    Attributes:
        run: its name. runs: names of all runs that claims were checked on. results: datasets by part: ``stages`` (see
            ``circuits.dynamics.stages``), ``clusters`` (``cluster_agreement.compare``), ``heads`` (``agreement``), ``lags``
            (``timing.lag``). claims: of the papers. absent: why a part is missing.
    """

    run: str
    runs: tuple[str, ...]
    results: "Mapping[str, xr.Dataset]"
    claims: tuple[Claim, ...]
    absent: Mapping[str, str]


def crosscheck(
    runs: Sequence[Evidence], *, one_layer: Evidence | None = None, claims: bool = True, progress: bool | None = None
) -> CrossCheck:
    """Lay detectors, weights, paths and coefficients of a run against each other.

    Args:
        runs: the run, then others of the same recipe. one_layer: a run of one layer, for claims about what it cannot do.
        claims: also check the claims of the papers. progress: show a bar.

    Raises:
        ValueError: no runs, or one of them twice.
    """
    runs = told_apart(runs)
    results: dict[str, xr.Dataset] = {}
    absent: dict[str, str] = {}
    first = runs[0]
    parts: dict[str, Callable[[], xr.Dataset]] = {
        "stages": lambda: _stages(first),
        "clusters": lambda: _clusters(first),
        "heads": lambda: agreement(first.results),
        "lags": lambda: _lags(first),
    }
    judged: tuple[Claim, ...] = ()
    asked = [*parts, *(["claims"] if claims else [])]
    for part in bar(asked, label=f"cross-check, {first.run}", on=progress):
        if part == "claims":
            judged = (*claims_llc(runs), *claims_circuits(runs, one_layer))
            continue
        try:
            results[part] = parts[part]()
        except ValueError as error:
            absent[part] = str(error)
    return CrossCheck(first.run, tuple(run.run for run in runs), results, judged, absent)


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
    curves = run_curves(run.results)
    return stages(curves, falls=[name for name in FALLS if name in curves])


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
    store: str | Path,
    workers: int = 0,
    progress: bool | None = None,
) -> CrossCheck:
    """Cross-check a run's folder, with the seeds that come with it.

    Args:
        run: the folder. others: folders or files of evidence of other seeds; a seed among them takes the place of the one that
            comes with the run. one_layer: of a run of one layer (default: the
            run's reference, if that has one layer). store: folder of artefacts; what is cheap and missing is measured into it.
        workers, progress: see ``evidence_of``.

    Raises:
        ValueError: a folder or file is missing or broken, a seed is given twice, or one_layer has more; before any work is done.
    """
    first = Checkpoints.from_dir(run)
    given, single = [opened(path) for path in others], reference_of(first) if one_layer is None else opened(one_layer)
    layers = single.cfg.n_layers if isinstance(single, Checkpoints) else 1
    if one_layer is not None and layers != 1:
        raise ValueError(f"{one_layer} has {layers} layers; one_layer is a run of a single layer")
    told_apart([Evidence(one.name, seed_of(one), {}) if isinstance(one, Checkpoints) else one for one in (first, *given)])

    def gathered(one: Evidence | Checkpoints) -> Evidence:
        return one if isinstance(one, Evidence) else evidence_of(one, store, workers=workers, progress=progress)

    seeds = [gathered(one) for one in (first, *given)]
    known = {run.seed for run in seeds}
    seeds += [found for found in map(Evidence.load, seeds_beside(first)) if found.seed not in known]
    alone = None if single is None or layers != 1 else gathered(single)
    return crosscheck(seeds, one_layer=alone, progress=progress)


def write_crosscheck(found: CrossCheck, out: str | Path) -> list[Path]:
    """Write ``crosscheck.nc``, all parts in one file, and the claims: ``scorecard.csv``, a row a check, and ``scorecard.md``."""
    out = Path(out)
    data = out / "crosscheck.nc"
    write_dataset(data, merged(found.results, title=f"circuits crosscheck: {found.run}"))
    rows = to_dataframe(found.claims)
    claims, checks = markdown_table(summary(found.claims)), markdown_table(rows.reindex(columns=list(ROW)))
    table, page = rows.to_csv(index=False), f"{claims}\n\n{checks}\n"
    return [
        data,
        write_whole(out / "scorecard.csv", lambda aside: aside.write_text(table, encoding="utf-8")),
        write_whole(out / "scorecard.md", lambda aside: aside.write_text(page, encoding="utf-8")),
    ]
