"""The shipped runs are what their READMEs say: whole, small, and with the circuits that tests and notebooks rely on."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
import xarray as xr

from circuits import Checkpoints, detect
from circuits.crosscheck.evidence import Evidence, evidence_measures, seeds_beside
from circuits.detectors.in_context import RepeatLoss
from circuits.dynamics.detect import attention_measure
from circuits.files import read_json

RUNS = {"stdlib-2l": range(24, 29), "stdlib-1l": range(8, 9)}


def opened(checkout: Path, name: str) -> Checkpoints:
    return Checkpoints.from_dir(checkout / "fixtures" / name)


@pytest.fixture(scope="module")
def ends(checkout: Path) -> dict[str, tuple[xr.Dataset, xr.Dataset]]:
    """Detector scores and the worth of an exact repeat at each run's last checkpoint."""
    found = {}
    for name in RUNS:
        run = opened(checkout, name)
        model, ids = run.at(run.steps[-1]), attention_measure(run).ids
        found[name] = detect(model, ids=ids), RepeatLoss(ids=ids)(model)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_every_file_is_the_one_that_was_exported(checkout: Path, name: str):
    folder = checkout / "fixtures" / name
    meta, readme = read_json(folder / "meta.json", what="the run"), (folder / "README.md").read_text()
    run = opened(checkout, name)
    assert len(run) in RUNS[name] and list(run.steps) == meta["steps"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    measured = ("results/", "seeds/")
    assert {file for file in there if not file.startswith(measured)} == {*meta["sha256"], "meta.json", "README.md"}
    for file, digest in meta["sha256"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, file
    last = meta["sha256"][f"checkpoints/step_{run.steps[-1]:09d}.safetensors"]
    for said in (last[:16], f"circuits train --preset {name}", meta["versions"]["torch"], meta["versions"]["python"], "seed 0"):
        assert said in readme, said
    assert re.search("repeat", readme)


def test_evidence_of_other_seeds_is_of_the_same_recipe(checkout: Path):
    """Another seed, heads and measures as here, at the same checkpoints; versions are those of today's measures."""
    run = opened(checkout, "stdlib-2l")
    now = {measure.name: measure.version for measure, _ in evidence_measures(run)}
    for path in seeds_beside(run):
        found = Evidence.load(path)
        assert found.seed not in (None, run.meta["seed"]) and f"seed-{found.seed}" in path.name
        assert now.keys() <= found.results.keys() and {"rllc_mix", "nulls_mix", "head_functions"} <= found.results.keys()
        assert found.results["attention_scores"]["step"].values.tolist() == list(run.steps)
        assert {name: found.results[name].attrs["version"] for name in now} == now


def test_all_fixtures_together_are_small(checkout: Path):
    files = [path for path in (checkout / "fixtures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 48e6


@pytest.mark.parametrize("name", RUNS)
def test_evaluation_tokens_and_tokenizer_come_along(checkout: Path, name: str):
    run = opened(checkout, name)
    assert list(run.evaluation) == ["brackets", "code", "prose", "shuffled_code"]
    for tokens in run.evaluation.values():
        assert tokens.shape[0] == 128 and int(tokens.max()) < run.cfg.d_vocab and bool((tokens[:, 0] == 0).all())
    code, shuffled = run.evaluation["code"], run.evaluation["shuffled_code"]
    assert torch.equal(code.sort(1).values, shuffled.sort(1).values) and not torch.equal(code, shuffled)
    assert run.tokenizer is not None and run.tokenizer.get_vocab_size() == run.cfg.d_vocab
    assert run.token_counts is not None and run.token_counts.sum() > 10**6


@pytest.mark.science
def test_the_two_layer_run_has_an_induction_circuit(ends: dict[str, tuple[xr.Dataset, xr.Dataset]]):
    """A layer-1 head with stripe >= .3, a layer-0 previous-token head >= .3, an exact repeat worth >= 1 nat: by 5 errors."""
    scores, gain = ends["stdlib-2l"]
    low = scores.value - 5 * scores.stderr
    assert float(low.sel(layer=1, detector="induction_stripe").max()) >= 0.3
    assert float(low.sel(layer=1, detector="induction").max()) >= 0.3
    assert float(low.sel(layer=0, detector="previous_token").max()) >= 0.3
    assert float(gain.value - 5 * gain.stderr) >= 1.0


@pytest.mark.science
def test_the_one_layer_run_has_none(ends: dict[str, tuple[xr.Dataset, xr.Dataset]]):
    """The control: the same text and the same repeats, one layer less."""
    scores, gain = ends["stdlib-1l"]
    stripe = scores.sel(detector="induction_stripe")
    assert bool((stripe.value - 2 * stripe.stderr <= stripe.chance).all())
    assert abs(float(gain.value)) <= 2 * float(gain.stderr)


@pytest.mark.science
def test_the_two_layer_run_shows_the_transition(checkout: Path):
    """Induction is absent at step 1,500 and there at 2,500, with at least 6 checkpoints between: enough to see it form."""
    run = opened(checkout, "stdlib-2l")
    scores = detect(run.select([0, 1500, 2500]), examples=8, null_seeds=0).value.sel(layer=1, detector="induction").max("head")
    assert float(scores.sel(step=0)) < 0.05 and float(scores.sel(step=1500)) < 0.1 and float(scores.sel(step=2500)) > 0.5
    assert len([step for step in run.steps if 1500 < step < 2500]) >= 6
