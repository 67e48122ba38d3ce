"""The cross-check as a whole: which curves it reads, what it writes, and runs that are no witnesses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from circuits.crosscheck.crosscheck import check_run, crosscheck, told_apart, write_crosscheck
from circuits.crosscheck.curves import head_curves, run_curves
from circuits.crosscheck.evidence import Evidence
from circuits.crosscheck.planted import planted_evidence

STEPS = [0, 10, 100]


def over(dims: tuple[str, ...], **columns: np.ndarray) -> xr.Dataset:
    """A result at three checkpoints, of which the second failed."""
    found = xr.Dataset({name: (("step", *dims), values) for name, values in columns.items()}, coords={"step": STEPS})
    return found.assign(status=("step", ["ok", "failed", "ok"]))


def test_curves_by_hand() -> None:
    """Of the run: the head with the highest last score. Of heads: their largest composition as writer or reader."""
    score = np.zeros((3, 2, 2, 2))
    score[2, 1, 0, 1], score[2, 0, 1, 0], score[0, 0, 0, 1] = 0.8, 0.3, 0.9
    scores = over(("layer", "head", "detector"), value=score, stderr=score / 10)
    pairs = np.full((3, 1, 2, 2, 2, 2), np.nan)
    pairs[..., 0, :, 1, :] = [[1.0, 4.0], [3.0, 2.0]]
    results = {
        "attention_scores": scores.assign_coords(detector=["previous_token", "induction"]),
        "composition": over(("mode", "src_layer", "src_head", "dst_layer", "dst_head"), value=pairs).assign_coords(mode=["K"]),
    }
    curves = run_curves(results)
    assert curves["strongest_induction"]["value"].values.tolist() == [0.0, 0.8]  # L1H0, not the head that began high
    assert curves["strongest_previous_token"]["value"].values.tolist() == [0.0, 0.3]
    assert curves["strongest_induction"]["step"].values.tolist() == [0, 100]
    heads = head_curves(results)
    assert list(heads) == ["k_composition", "attention_previous_token", "attention_induction"]
    assert heads["k_composition"]["value"].values.tolist() == [[[4.0, 3.0], [3.0, 4.0]]] * 2
    assert run_curves({}) == head_curves({}) == {}


def test_a_planted_circuit_is_seen_and_written(tmp_path: Path) -> None:
    found = crosscheck([Evidence("planted", 0, planted_evidence())], parts=["stages", "agreement"], progress=False)
    heads = found.results["agreement"]
    assert str(heads["verdict"].values[0, 6]) == str(heads["verdict"].values[1, 0]) == "agree"
    assert not (heads["verdict"] == "disagree").any() and found.claims == ()
    assert "stages" in found.absent  # none of the curves of the run was planted
    paths = write_crosscheck(found, tmp_path)
    assert [path.name for path in paths] == ["crosscheck.nc", "scorecard.csv", "scorecard.md"]
    with xr.open_dataset(paths[0], engine="h5netcdf") as stored:
        assert (stored["agreement_verdict"].values == heads["verdict"].values).all()


def test_a_run_is_one_witness() -> None:
    """Seeds of one name are told apart by seed; the same one twice, or none, is refused."""
    one = Evidence("mine", 0, {})
    assert [run.run for run in told_apart([one, replace(one, seed=2)])] == ["mine (seed 0)", "mine (seed 2)"]
    assert [run.run for run in told_apart([one, replace(one, run="other")])] == ["mine", "other"]
    for runs, says in (([one, one], r"mine \(seed 0\) is given more than once"), ([], "no runs were given")):
        with pytest.raises(ValueError, match=says) as caught:
            crosscheck(runs, progress=False)
        assert "\n" not in str(caught.value)


def test_what_is_wrong_is_said_before_any_work(tmp_path: Path, checkout: Path) -> None:
    """Nothing is measured for a cross-check that cannot be made."""
    run, store = checkout / "fixtures/stdlib-1l", tmp_path / "store"
    (tmp_path / "x.npz.xz").write_text("no evidence")
    calls: tuple[tuple[dict[str, Any], str], ...] = (
        ({"others": [tmp_path / "x.npz.xz"]}, "no whole file of evidence"),
        ({"others": [tmp_path / "gone"]}, "is no file; give evidence"),
        ({"others": [run]}, r"stdlib-1l \(seed 0\) is given more than once"),
        ({"one_layer": checkout / "fixtures/stdlib-2l"}, "has 2 layers; one_layer is a run of a single layer"),
    )
    for options, says in calls:
        with pytest.raises(ValueError, match=says) as caught:
            check_run(run, store=store, **options)
        assert "\n" not in str(caught.value)
    assert not store.exists()
