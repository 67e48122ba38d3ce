"""What is known of one training run: the results that the cross-check reads, from the run itself or from a file.

A run's weights are large and can be made anew; what was measured of them is small. So evidence can be kept in one file, floats
rounded to single precision and samplers' draws left out, and read back where the weights are not: other seeds of a run take part
in a cross-check by it.

Measures are those of ``circuits detect``, ``weights``, ``paths`` and ``rllc``, with the same artefacts. What is cheap is measured
at every checkpoint, the rest at a few that are evenly spread, and coefficients where they were sampled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.dynamics.coefficients import FEW, coefficient_measures, grid_measures, reference_of
from circuits.dynamics.functions import function_measures, roles_of
from circuits.dynamics.losses import loss_measures
from circuits.dynamics.nested_pairs import interaction_measures
from circuits.dynamics.pathways import path_measures
from circuits.dynamics.shipped import packed_datasets, unpacked_datasets
from circuits.dynamics.sweep import Task, check_checkpoints, evenly, has_artefact
from circuits.dynamics.together import gather_all, measure_all, with_stored
from circuits.dynamics.weigh import weight_measures
from circuits.files import write_whole
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure

if TYPE_CHECKING:
    import xarray as xr

SPARSE = {"multigrams", "bracket_scores", "nested_brackets", "function_profile", "edge_effects_repeats", "edge_effects_text"}
"""Measured at ``FEW`` checkpoints: seconds each."""
LAST = {"in_context_ablation", "copying_scores", "term_importance"} | {
    f"interaction_{condition}{edges}" for condition in ("nested", "flat") for edges in ("", "_keys")
}
"""Measured at the last checkpoint alone."""
UNREAD = {"token_losses", "edge_attribution_inputs_text", "path_terms", "skip_trigrams", "embedding_composition"}
"""Measures of the run's other commands that no witness and no claim reads."""
FORMAT = 1
"""Of the file; raised when what is in it means something else."""


@dataclass(frozen=True)
class Evidence:
    """Results of one run by the names of their measures, each with ``step``.

    Attributes:
        run: its name. seed: of its training; None where the run does not say. results: what was measured; ``head_functions`` are
            the roles. absent: why a measure has no data, for those that have none.
    """

    run: str
    seed: int | None
    results: "Mapping[str, xr.Dataset]"
    absent: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write everything to one packed file (``.npz.xz``), whole or not at all; equal evidence gives equal bytes."""
        about = {"run": self.run, "seed": self.seed, "absent": dict(self.absent), "format": FORMAT}
        kept = {name: self.results[name].drop_dims("draw", errors="ignore") for name in sorted(self.results)}
        content = packed_datasets(kept, about)
        return write_whole(Path(path), lambda aside: aside.write_bytes(content))

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read a file of ``save``.

        Raises:
            ValueError: it is missing, broken, or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} is no file; give evidence that Evidence.save wrote, or a run folder")
        try:
            results, about = unpacked_datasets(path.read_bytes())
            known = about.get("format")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no whole file of evidence ({type(error).__name__}); make it again") from error
        if known != FORMAT:
            raise ValueError(f"{path} has format {known}, this version reads {FORMAT}; make it again")
        return cls(about["run"], about["seed"], results, about["absent"])


def opened(path: str | Path) -> "Evidence | Checkpoints":
    """What a path holds: evidence, in a file of ``Evidence.save``, or a run of which it is still to be gathered, in a folder.

    Raises:
        ValueError: neither, or broken.
    """
    return Checkpoints.from_dir(path) if Path(path).is_dir() else Evidence.load(path)


def seeds_beside(run: Checkpoints) -> list[Path]:
    """Files of evidence that come with a run, of other seeds of its recipe: ``seeds/*.npz.xz`` in its folder."""
    return [] if run.path is None else sorted((run.path / "seeds").glob("*.npz.xz"))


def evidence_measures(run: Checkpoints) -> list[tuple[Measure, Checkpoints]]:
    """What a cross-check reads of a run, each measure with the checkpoints it is computed at; coefficients are not among them."""
    few, last = run.select(evenly(run, FEW)), run.select([run.steps[-1]])
    every = [*loss_measures(run), *function_measures(run).values(), *weight_measures(run), *path_measures(run)]
    every += interaction_measures(run)
    found = {measure.name: measure for measure in every if measure.name not in UNREAD}
    return [(measure, few if name in SPARSE else last if name in LAST else run) for name, measure in found.items()]


def evidence_of(
    run: Checkpoints, store: str | Path, *, compute: bool = True, workers: int = 0, progress: bool | None = None
) -> Evidence:
    """Gather what is known of a run: from the store, from what ships with it, and measured anew where that is cheap.

    Args:
        run: the training run. store: folder of artefacts, made if need be. compute: measure what is missing of
            ``evidence_measures``; coefficients are sampled by ``circuits rllc`` alone. workers: processes to spread checkpoints
            over; 0 works in this one. progress: show a bar.

    Raises:
        TypeError: ``run`` is not Checkpoints. ValueError: ``store`` is a file, or nothing is known.
    """
    check_checkpoints(run)
    store = Path(store)
    if store.is_file():
        raise ValueError(f"store is {store}, a file; give a folder")
    cheap = evidence_measures(run)
    if compute:
        measure_all(cheap, store, workers=workers, progress=progress)
    results, absent = gather_all((with_stored(*pair, run, store) for pair in cheap), store)
    sampled = [(*pair, "") for pairs in coefficient_measures(run, reference=reference_of(run)).values() for pair in pairs]
    sampled += [(*pair, " --what grid") for pair in grid_measures(run)]
    for measure, part, asked in sampled:
        there = [step for step in part.steps if has_artefact(Task(measure, run, step, store))]
        if not there:
            absent[measure.name] = f"It takes long and is not in the store: circuits rllc {run.name}{asked}"
            continue
        found, failed = gather_all([(measure, run.select(there))], store)
        results, absent = results | found, absent | failed
    if (roles := roles_of(results)) is not None:
        results["head_functions"] = roles
    if not results:
        raise ValueError(f"nothing is known of {run.name}: {next(iter(absent.values()), 'it has no text')}")
    return Evidence(run.name, seed_of(run), results, absent)


def seed_of(run: Checkpoints) -> int | None:
    """The seed of a run's training; None where it does not say."""
    seed = run.meta.get("seed")
    return seed if isinstance(seed, int) else None
