"""The cross-check of a run as its report has it: from what the report measured and read, and from what comes with the run.

Seeds that come with a run take part, and its one-layer reference where that comes with results; nothing is measured for either.
A part that there are no data for is missing.
"""

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from circuits.crosscheck.crosscheck import crosscheck
from circuits.crosscheck.evidence import Evidence, evidence_of, seed_of, seeds_beside
from circuits.dynamics.coefficients import reference_of
from circuits.dynamics.functions import roles_of
from circuits.models.checkpoints import Checkpoints

if TYPE_CHECKING:
    import xarray as xr

DERIVED = ("stages", "clusters", "agreement", "lags", "scorecard")


def crosschecked(run: Checkpoints, results: "Mapping[str, xr.Dataset]") -> "dict[str, xr.Dataset]":
    """``stages``, ``clusters``, ``agreement``, ``lags`` and ``scorecard``, as far as there are data, by those names."""
    roles = roles_of(results)
    own = Evidence(run.name, seed_of(run), dict(results) if roles is None else {**results, "head_functions": roles})
    seeds = [found for found in map(Evidence.load, seeds_beside(run)) if found.seed != own.seed]
    found = crosscheck([own, *seeds], one_layer=one_layer_of(run), progress=False)
    return {name: found.results[name] for name in DERIVED if name in found.results}


def one_layer_of(run: Checkpoints) -> Evidence | None:
    """What comes with the run's reference, if that has one layer."""
    reference = reference_of(run)
    if reference is None or reference.cfg.n_layers != 1:
        return None
    with tempfile.TemporaryDirectory() as nothing:
        try:
            return evidence_of(reference, nothing, compute=False)
        except ValueError:
            return None
