"""What ships as measured is what is measured: every packed result of the fixtures, anew at the last checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from circuits.crosscheck.evidence import evidence_measures
from circuits.dynamics.coefficients import coefficient_measures, grid_measures, reference_of
from circuits.dynamics.scan_snap_run import scan_snap_measures
from circuits.dynamics.shipped import SUFFIX, packed_keys, packed_one
from circuits.dynamics.sweep import Task
from circuits.models.checkpoints import Checkpoints
from circuits.results import Measure
from circuits.views.report import measures_of
from circuits.views.sections import discover

RUNS = ("stdlib-2l", "stdlib-1l")


def cheap(run: Checkpoints) -> dict[str, Measure]:
    """The measures that reports and cross-checks compute."""
    wanted = {name: want.measure for name, want in measures_of(discover(), run).items() if want.cheap}
    return wanted | {measure.name: measure for measure, _ in evidence_measures(run)}


def every(run: Checkpoints) -> dict[str, Measure]:
    """Those, and the ones that take long."""
    sampled = [pair for pairs in coefficient_measures(run, reference=reference_of(run)).values() for pair in pairs]
    found = {measure.name: measure for measure, _ in [*sampled, *grid_measures(run), (scan_snap_measures(run)["bias"], run)]}
    return cheap(run) | found


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_every_file_is_read(checkout: Path, name: str):
    """All that is in it is of these weights, and of measures and settings as they are now; the last checkpoint is among it."""
    run = Checkpoints.from_dir(checkout / "fixtures" / name)
    measures, results = every(run), run.results
    assert results is not None
    files = [file for file in results.rglob("*") if file.is_file()]
    assert files and {file.name.removesuffix(SUFFIX) for file in files} <= measures.keys()
    for measure in (file.name.removesuffix(SUFFIX) for file in files):
        keys = [Task(measures[measure], run, step, Path("none")).key for step in run.steps]
        assert packed_keys(results, measure).keys() <= set(keys) and keys[-1] in packed_keys(results, measure), measure


@pytest.mark.science
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_measured_anew_they_are_the_same(checkout: Path, name: str):
    """To single precision and what machines differ by."""
    run = Checkpoints.from_dir(checkout / "fixtures" / name)
    model = run.at(run.steps[-1])
    for measure, task in ((name, Task(measure, run, run.steps[-1], Path("none"))) for name, measure in cheap(run).items()):
        if not task.is_packed or run.results is None:
            continue
        known, anew = packed_one(run.results, measure, task.key), task.measure(model)
        assert set(known.variables) == set(anew.variables), measure
        for variable in known.data_vars:
            if known[variable].dtype.kind == "f":
                scale = float(np.abs(np.nan_to_num(known[variable].values)).max(initial=1e-6))
                np.testing.assert_allclose(
                    anew[variable].values, known[variable].values, rtol=1e-3, atol=2e-3 * scale, err_msg=f"{measure}: {variable}"
                )
