"""A measure over a run: artefacts by hash, resumed, repeated to the same bytes, failures kept as records."""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from circuits.detectors.attention import AttentionScores
from circuits.dynamics import sweep as sweep_module
from circuits.dynamics.artefacts import read_artefact, write_dataset
from circuits.dynamics.detect import detect
from circuits.dynamics.sweep import Task, gather, run_task, sweep
from circuits.models.checkpoints import Checkpoints
from circuits.models.hooked import HookedTransformer
from circuits.results import labelled
from circuits.weights.composition import Composition
from circuits.weights.skip_trigrams import SkipTrigrams
from circuits.weights.weight_spectra import WeightSpectra

CFG = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 32, "d_vocab": 40, "attn_only": True}


@dataclass(frozen=True)
class WeightNorm:
    """A measure for these tests: the norm of W_Q of every head, and how often it was asked."""

    scale: float = 1.0
    name: str = field(default="weight_norm", init=False)
    version: int = field(default=1, init=False)

    def spec(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def __call__(self, model: Any) -> Any:
        CALLS.append(self.scale)
        norms = self.scale * model.W_Q.detach().norm(dim=(-1, -2))
        if not torch.isfinite(norms).all():
            raise ValueError("the weights are not finite; load another checkpoint")
        return labelled(
            {"value": (("layer", "head"), norms), "chance": ((), 0.5)},
            {"layer": [0], "head": [0, 1]},
            measure=self,
            definition="Frobenius norm",
            source="this test",
            model_hash=str(float(norms.sum())),
        )


CALLS: list[float] = []


def make_run(steps: tuple[int, ...] = (0, 10, 20)) -> Checkpoints:
    states = {step: HookedTransformer(CFG | {"seed": step}).state_dict() for step in steps}
    return Checkpoints.from_states(states, HookedTransformer(CFG).cfg)


def test_values_carry_the_step_axis(tmp_path: Path):
    run = make_run()
    assert {o.status for o in sweep(WeightNorm(), run, store=tmp_path).values()} == {"ok"}
    found = gather(WeightNorm(), run, tmp_path)
    assert found.value.dims == ("step", "layer", "head") and found.step.values.tolist() == [0, 10, 20]
    for step, model in run:
        assert np.allclose(found.value.sel(step=step), model.W_Q.detach().norm(dim=(-1, -2)))
    assert found.chance.dims == ("step",)
    assert len(set(found.model_hash.values)) == 3 and found.attrs["measure"] == "weight_norm"


def test_a_second_sweep_does_nothing_and_another_spec_does_everything(tmp_path: Path):
    run = make_run()
    CALLS.clear()
    sweep(WeightNorm(), run, store=tmp_path)
    sweep(WeightNorm(), run, store=tmp_path)
    assert len(CALLS) == 3
    sweep(WeightNorm(scale=2.0), run, store=tmp_path)
    assert len(CALLS) == 6
    assert np.allclose(gather(WeightNorm(scale=2.0), run, tmp_path).value, 2 * gather(WeightNorm(), run, tmp_path).value)


def test_equal_sweeps_give_equal_bytes_here_and_in_a_pool(tmp_path: Path):
    run = make_run((0, 10))
    for place, workers in (("here", 0), ("again", 0), ("pool", 1)):
        outcomes = sweep(DETECT, run, store=tmp_path / place, workers=workers)
        assert {o.status for o in outcomes.values()} == {"ok"}, outcomes
    files = sorted(p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*.nc"))
    assert len(files) == 2
    for file in files:
        content = (tmp_path / "here" / file).read_bytes()
        assert content == (tmp_path / "again" / file).read_bytes()
        assert content == (tmp_path / "pool" / file).read_bytes()


def test_no_pool_is_started_for_what_is_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run()
    sweep(WeightNorm(), run, store=tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pool was started")

    monkeypatch.setattr(sweep_module, "ProcessPoolExecutor", refuse)
    assert {outcome.status for outcome in sweep(WeightNorm(), run, store=tmp_path, workers=2).values()} == {"ok"}
    with pytest.raises(AssertionError, match="a pool was started"):
        sweep(WeightNorm(scale=2.0), run, store=tmp_path, workers=2)


def make_detect() -> Any:
    from circuits.detectors.attention import AttentionScores

    return AttentionScores(examples=4, groups=2, null_seeds=1)


DETECT = make_detect()


def test_a_failure_is_a_record_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run()
    healthy, middle = WeightNorm.__call__, run.at(10).W_Q

    def fails_once(self: WeightNorm, model: Any) -> Any:
        if torch.equal(model.W_Q, middle):
            raise ValueError("the weights are not finite; load another checkpoint")
        return healthy(self, model)

    monkeypatch.setattr(WeightNorm, "__call__", fails_once)
    outcomes = sweep(WeightNorm(), run, store=tmp_path)
    assert [outcomes[s].status for s in run.steps] == ["ok", "failed", "ok"]
    found = gather(WeightNorm(), run, tmp_path)
    assert found.status.values.tolist() == ["ok", "failed", "ok"]
    assert "not finite" in str(found.reason.sel(step=10).values) and np.isnan(found.value.sel(step=10)).all()
    monkeypatch.setattr(WeightNorm, "__call__", healthy)
    assert sweep(WeightNorm(), run, store=tmp_path)[10].status == "ok"
    assert gather(WeightNorm(), run, tmp_path).status.values.tolist() == ["ok"] * 3
    assert not list(tmp_path.rglob("*.failed.json"))


def test_gather_lists_what_is_missing_and_computes_nothing(tmp_path: Path):
    run = make_run()
    sweep(WeightNorm(), run.select([0, 20]), store=tmp_path)
    CALLS.clear()
    found = gather(WeightNorm(), run, tmp_path)
    assert found.status.values.tolist() == ["ok", "missing", "ok"] and not CALLS
    with pytest.raises(
        ValueError, match="no checkpoint of states has an artefact of weight_norm: nothing was computed; run sweep"
    ):
        gather(WeightNorm(), run, tmp_path / "empty")


@dataclass(frozen=True)
class Worded(WeightNorm):
    """One that says of every head how it went."""

    name: str = field(default="worded", init=False)

    def __call__(self, model: Any) -> Any:
        return super().__call__(model).assign(state=("head", ["ok", "zero"]))


@dataclass(frozen=True)
class Taking(WeightNorm):
    """One that has a variable of a name that belongs to a run."""

    name: str = field(default="taking", init=False)

    def __call__(self, model: Any) -> Any:
        return super().__call__(model).assign(status=("head", ["ok", "zero"]))


def test_words_of_a_missing_checkpoint_say_so_and_can_be_written(tmp_path: Path):
    run = make_run()
    for step in (0, 20):
        run_task(Task(Worded(), run, step, tmp_path))
    found = gather(Worded(), run, tmp_path)
    assert found["state"].values.tolist() == [["ok", "zero"], ["missing", "missing"], ["ok", "zero"]]
    write_dataset(tmp_path / "all.nc", found)
    with xr.open_dataset(tmp_path / "all.nc", engine="h5netcdf") as again:
        assert again["state"].values.tolist() == found["state"].values.tolist()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not netCDF at all"])
def test_a_damaged_artefact_is_never_read_and_is_made_again(tmp_path: Path, damage: Any):
    run = make_run((0,))
    sweep(WeightNorm(), run, store=tmp_path)
    (artefact,) = tmp_path.rglob("*.nc")
    whole = artefact.read_bytes()
    artefact.write_bytes(damage(whole))
    assert read_artefact(artefact) is None
    sweep(WeightNorm(), run, store=tmp_path)
    assert artefact.read_bytes() == whole


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "measure",
    [
        AttentionScores(examples=2, null_seeds=2),
        WeightSpectra(null_seeds=2, diagonal_tokens=4),
        Composition(draws=5, pooled_heads=2),
        SkipTrigrams(k=3),
    ],
    ids=lambda measure: measure.name,
)
def test_an_artefact_read_like_another_is_the_same_dataset(measure: Any, tmp_path: Path):
    """The fast reading against xarray's own, names, types, coordinates and attributes included; text and integers too."""
    cfg = CFG | {"n_layers": 2, "n_ctx": 128, "d_vocab": 120}
    states = {step: HookedTransformer(cfg | {"seed": step}).state_dict() for step in (0, 1)}
    run = Checkpoints.from_states(states, HookedTransformer(cfg).cfg)
    tasks = [Task(measure, run, step, tmp_path) for step in run.steps]
    assert [run_task(task).reason for task in tasks] == ["", ""]
    first, literal = (read_artefact(task.artefact) for task in tasks)
    fast = read_artefact(tasks[1].artefact, like=first)
    xr.testing.assert_identical(fast, literal)
    assert {name: x.dtype for name, x in fast.variables.items()} == {name: x.dtype for name, x in literal.variables.items()}
    assert list(fast.variables) == list(literal.variables) and list(fast.attrs) == list(literal.attrs)


def test_a_measure_with_a_runs_own_names_fails_with_the_reason(tmp_path: Path):
    run = make_run((0,))
    outcome = run_task(Task(Taking(), run, 0, tmp_path))
    assert outcome.status == "failed" and "taking gives status, which a run has of its own" in outcome.reason


def test_an_artefact_under_another_name_is_not_believed(tmp_path: Path):
    run = make_run((0,))
    sweep(WeightNorm(), run, store=tmp_path)
    (artefact,) = tmp_path.rglob("*.nc")
    other = artefact.with_name("0" * 24 + ".nc")
    artefact.replace(other)
    assert read_artefact(other) is None


SLOW_SWEEP = """
import sys
from circuits import Checkpoints, HookedTransformer, sweep
from circuits.detectors.attention import AttentionScores

model = HookedTransformer(dict(n_layers=1, d_model=8, n_heads=2, d_head=4, n_ctx=64, d_vocab=80, attn_only=True))
run = Checkpoints.from_states({step: {k: w + step for k, w in model.state_dict().items()} for step in range(40)}, model.cfg)
measure = AttentionScores(examples=64, null_seeds=1)
if __name__ == "__main__":
    sweep(measure, run, store=sys.argv[1], workers=int(sys.argv[2]))
"""


def start_sweep(folder: Path, workers: int) -> "subprocess.Popen[bytes]":
    """A sweep of 40 checkpoints in another process, once it has its first artefact."""
    (folder / "run.py").write_text(SLOW_SWEEP)
    started = subprocess.Popen([sys.executable, str(folder / "run.py"), str(folder / "killed"), str(workers)])
    deadline = time.monotonic() + 120
    while not list(folder.rglob("killed/*/*.nc")) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started.poll() is None
    return started


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_a_killed_sweep_resumes_to_the_same_bytes(tmp_path: Path, delay: float):
    """SIGKILL at some moment after the first artefact; what is there is whole, and the rest follows."""
    started = start_sweep(tmp_path, workers=0)
    time.sleep(delay)
    started.kill()
    started.wait()
    told: dict[str, Any] = {"__name__": "told"}
    exec(SLOW_SWEEP, told)
    run, measure = told["run"], told["measure"]
    before = gather(measure, run, tmp_path / "killed").status.values.tolist()
    assert 1 <= before.count("ok") < 40 and before.count("failed") == 0
    sweep(measure, run, store=tmp_path / "killed")
    sweep(measure, run, store=tmp_path / "whole")
    artefacts = list((tmp_path / "whole").rglob("*.nc"))
    assert len(artefacts) == 40
    for artefact in artefacts:
        assert artefact.read_bytes() == (tmp_path / "killed" / artefact.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    """A sweep in another process is killed outright; nobody is left to tell its workers to stop."""
    import psutil

    started = start_sweep(tmp_path, workers=2)
    workers = psutil.Process(started.pid).children(recursive=True)
    assert len(workers) >= 2
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_a_task_leaves_thread_count_and_determinism_as_found(tmp_path: Path):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert run_task(Task(WeightNorm(), make_run((0,)), 0, tmp_path)).status == "ok"
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_detect_over_a_run_equals_detect_at_each_model():
    run = make_run((0, 10))
    over = detect(run, examples=4, null_seeds=1)
    assert over.value.dims == ("step", "layer", "head", "detector")
    for step, model in run:
        alone = detect(model, examples=4, null_seeds=1)
        assert np.array_equal(over.value.sel(step=step), alone.value)
        assert np.array_equal(over.z.sel(step=step), alone.z)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sweep(print, make_run((0,)), store="x"), TypeError, "need a measure"),
        (lambda: sweep(WeightNorm(), [1, 2], store="x"), TypeError, "need Checkpoints"),  # type: ignore[arg-type]
        (lambda: list(sweep_module.run_tasks([], workers=-1)), ValueError, "workers is -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_sweeps_are_refused(call: Any, error: type, message: str):
    with pytest.raises(error, match=message):
        call()
