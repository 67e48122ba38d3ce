"""What ships as measured is what is measured: every packed result of the fixtures, anew at the last checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from circuits.crosscheck.evidence import evidence_measures
from circuits.dynamics.shipped import packed_keys, packed_one
from circuits.dynamics.sweep import Task
from circuits.models.checkpoints import Checkpoints
from circuits.views.report import measures_of
from circuits.views.sections import discover

RUNS = ("stdlib-2l", "stdlib-1l")


def cheap(run: Checkpoints) -> dict[str, Task]:
    """The measures that reports and cross-checks compute, at the last checkpoint."""
    wanted = {name: want.measure for name, want in measures_of(discover(), run).items() if want.cheap}
    wanted |= {measure.name: measure for measure, _ in evidence_measures(run)}
    return {name: Task(measure, run, run.steps[-1], Path("none")) for name, measure in wanted.items()}


@pytest.mark.parametrize("name", RUNS)
def test_files_are_of_this_version(checkout: Path, name: str):
    """A file that nothing reads is dead weight: every one has the measures as they are now, of these weights."""
    run = Checkpoints.from_dir(checkout / "fixtures" / name)
    tasks, results = cheap(run), run.results
    assert results is not None
    packed = {file.name.split(".")[0] for file in results.glob("*.nc.xz")}
    assert packed and packed <= tasks.keys()
    for measure in packed:
        assert tasks[measure].key in packed_keys(results, measure), measure


@pytest.mark.science
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_measured_anew_they_are_the_same(checkout: Path, name: str):
    """To single precision and what machines differ by."""
    run = Checkpoints.from_dir(checkout / "fixtures" / name)
    model = run.at(run.steps[-1])
    for measure, task in cheap(run).items():
        if not task.is_packed or run.results is None:
            continue
        known, anew = packed_one(run.results, measure, task.key), task.measure(model)
        assert set(known.variables) == set(anew.variables), measure
        for variable in known.data_vars:
            if known[variable].dtype.kind == "f":
                scale = float(np.nanmax(np.abs(known[variable].values), initial=1e-6))
                np.testing.assert_allclose(
                    anew[variable].values, known[variable].values, rtol=1e-3, atol=2e-3 * scale, err_msg=f"{measure}: {variable}"
                )
