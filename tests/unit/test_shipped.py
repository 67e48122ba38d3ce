"""Results that come with a run in one file a measure: read as artefacts are, and by nobody if they are of something else."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from circuits.detectors.attention import AttentionScores
from circuits.dynamics.shipped import packed_one
from circuits.dynamics.sweep import Task, gather, has_artefact, run_task, sweep
from circuits.dynamics.together import ship
from circuits.models.checkpoints import Checkpoints
from circuits.models.hooked import HookedTransformer

CFG = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "attn_only": True}
STEPS = (0, 10, 20)


def exported(folder: Path, steps: tuple[int, ...] = STEPS, shift: int = 0) -> Checkpoints:
    states = {step: HookedTransformer(CFG | {"seed": step + shift}).state_dict() for step in steps}
    run = Checkpoints.from_states(states, HookedTransformer(CFG).cfg, name="tiny")
    return Checkpoints.from_dir(run.export(folder, dtype="float32"))


@pytest.fixture(scope="module")
def measure() -> AttentionScores:
    return AttentionScores(examples=2, groups=2, null_seeds=1)


@pytest.fixture
def run(tmp_path: Path, measure: AttentionScores) -> Checkpoints:
    """A run with the results of its first two checkpoints."""
    run = exported(tmp_path / "run")
    sweep(measure, run.select([0, 10]), store=tmp_path / "made", progress=False)
    assert run.path is not None
    (file,) = ship([(measure, run)], tmp_path / "made", run.path / "results")
    assert file.name == "attention_scores.npz.xz"
    return run


def test_what_ships_is_what_was_measured(run: Checkpoints, measure: AttentionScores, tmp_path: Path):
    own, read = gather(measure, run.select([0, 10]), tmp_path / "made"), gather(measure, run.select([0, 10]), tmp_path / "none")
    assert not (tmp_path / "none").exists() and read.attrs == own.attrs and read.sizes == own.sizes
    for name in own.variables:
        assert read[name].dtype == own[name].dtype and read[name].dims == own[name].dims, name
        if own[name].dtype.kind == "f":
            np.testing.assert_array_equal(read[name].values, own[name].values.astype(np.float32).astype(own[name].dtype))
        else:
            np.testing.assert_array_equal(read[name].values, own[name].values)


def test_the_store_comes_first_and_the_rest_is_measured(run: Checkpoints, measure: AttentionScores, tmp_path: Path):
    store = tmp_path / "store"
    assert [has_artefact(Task(measure, run, step, store)) for step in STEPS] == [True, True, False]
    partly = gather(measure, run, store)
    assert partly["status"].values.tolist() == ["ok", "ok", "missing"]
    sweep(measure, run, store=store, progress=False)
    assert [Task(measure, run, step, store).artefact.exists() for step in STEPS] == [False, False, True]
    whole = gather(measure, run, store)
    anew = gather(measure, run.without_results().select([20]), store)
    xr.testing.assert_equal(whole.isel(step=[2]), anew)
    xr.testing.assert_equal(whole.isel(step=[0, 1]), partly.isel(step=[0, 1]))
    task = Task(measure, run, 10, store)
    changed = packed_one(run.path / "results", measure.name, task.key)  # type: ignore[operator]
    changed["value"] = changed["value"] + 1
    changed.to_netcdf(task.artefact, engine="h5netcdf")
    assert float(gather(measure, run, store)["value"].sel(step=10).mean()) > float(whole["value"].sel(step=10).mean()) + 0.9


def test_nobody_reads_results_of_something_else(run: Checkpoints, measure: AttentionScores, tmp_path: Path):
    other_seed = AttentionScores(examples=2, groups=2, null_seeds=1, seed=1)
    other_weights = exported(tmp_path / "other", shift=1)
    (tmp_path / "other/results").symlink_to(tmp_path / "run/results")
    for task in (
        Task(other_seed, run, 0, tmp_path / "none"),
        Task(measure, other_weights, 0, tmp_path / "none"),
        Task(measure, run.without_results(), 0, tmp_path / "none"),
    ):
        assert not has_artefact(task) and task.read() is None


def test_a_damaged_file_is_as_good_as_none(run: Checkpoints, measure: AttentionScores, tmp_path: Path):
    file = tmp_path / "run/results/attention_scores.npz.xz"
    file.write_bytes(file.read_bytes()[:-20])
    task = Task(measure, run, 0, tmp_path / "store")
    assert not has_artefact(task) and run_task(task).status == "ok" and task.artefact.exists()


def test_equal_results_give_equal_bytes_and_gaps_are_refused(run: Checkpoints, measure: AttentionScores, tmp_path: Path):
    (again,) = ship([(measure, run)], tmp_path / "made", tmp_path / "again")
    assert again.read_bytes() == (tmp_path / "run/results/attention_scores.npz.xz").read_bytes()
    assert ship([(measure, run)], tmp_path / "empty", tmp_path / "again") == []
