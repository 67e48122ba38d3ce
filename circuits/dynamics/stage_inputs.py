"""Labelled curves of one run or of several seeds, as arrays that stages are read from; and what cannot be read, refused."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuits.dynamics.stage_curves import Errors, check_curve, example_errors, independent_errors

if TYPE_CHECKING:
    import xarray as xr


class Curve(NamedTuple):
    """A curve of one seed at the checkpoints that have a value.

    Attributes:
        steps: ``[step]``. values: ``[step]`` or ``[example, step]``. stderr: ``[step]``, where known. chance: where known.
    """

    steps: np.ndarray
    values: np.ndarray
    stderr: np.ndarray | None
    chance: float | None

    @property
    def mean(self) -> np.ndarray:
        """The curve itself, ``[step]``."""
        return self.values.mean(0) if self.values.ndim == 2 else self.values

    def errors(self, unit: float, draws: int, joint: int, own: int) -> Errors:
        """What it might have been; ``joint``: the seed that all curves have in common, ``own``: this one's."""
        if self.values.ndim == 2:
            return example_errors(self.steps, self.values, unit=unit, draws=draws, seed=joint)
        return independent_errors(self.steps, self.values, self.stderr, unit=unit, draws=draws, seed=own)


def seeds_of(curves: "Mapping[str, xr.Dataset | xr.DataArray]") -> np.ndarray | None:
    """The training seeds that all curves have; None where they are of one run.

    Raises:
        ValueError: some have none, or others.
    """
    found = {name: data["seed"].values.tolist() if "seed" in data.dims else None for name, data in curves.items()}
    (first, seeds), *rest = found.items()
    for name, other in rest:
        if other != seeds:
            raise ValueError(f"{first!r} is of seeds {seeds}, {name!r} of {other}; give all curves for the same seeds")
    return None if seeds is None else np.array(seeds)


def curve_of(name: str, data: "xr.Dataset | xr.DataArray", run: int) -> Curve:
    """One curve of one seed, by its place.

    Raises:
        ValueError: no ``value``, other dims than ``example, seed, step``, a ``chance`` that changes, or see ``check_curve``.
    """
    import xarray as xr

    whole = data if isinstance(data, xr.Dataset) else data.to_dataset(name="value")
    if "value" not in whole or "step" not in whole["value"].dims:
        raise ValueError(f"{name!r} has {', '.join(map(str, whole)) or 'nothing'}; need a 'value' over 'step'")
    if "seed" in whole.dims:
        whole = whole.isel(seed=run)
    value = whole["value"]
    foreign = [str(dim) for dim in value.dims if dim not in ("example", "step")]
    if foreign:
        raise ValueError(f"{name!r} has dims {', '.join(map(str, value.dims))}; select one of each {', '.join(foreign)} first")
    by_example = "example" in value.dims
    values = value.transpose(*(("example", "step") if by_example else ("step",))).values.astype(np.float64)
    known = np.asarray(np.isfinite(values).reshape(-1, values.shape[-1]).all(axis=0))
    if "status" in whole:
        known = known & (whole["status"].values == "ok")
    stderr = None
    if not by_example and "stderr" in whole and np.isfinite(whole["stderr"].values).any():
        stderr = whole["stderr"].values.astype(np.float64)
        known = known & np.isfinite(stderr)
        stderr = stderr[known]
    steps = whole["step"].values[known]
    check_curve(steps, values[..., known], name=repr(name))
    return Curve(steps, values[..., known], stderr, _chance(name, whole, known))


def _chance(name: str, data: "xr.Dataset", known: np.ndarray) -> float | None:
    if "chance" not in data:
        return None
    chance: Any = data["chance"]
    levels = np.unique(chance.values[known] if "step" in chance.dims else chance.values)
    if len(levels) != 1:
        raise ValueError(
            f"the chance of {name!r} goes from {levels.min():g} to {levels.max():g}; give value less chance, without it"
        )
    return float(levels[0]) if np.isfinite(levels[0]) else None
