"""The one currency: labelled ``xarray.Dataset`` results with provenance, and the hashes that name them.

The main variable is ``value``; beside it stand ``stderr`` and, where they exist, ``chance``, ``null_mean``, ``null_sd``
and ``z = (value - null_mean) / null_sd``. Attributes are strings and numbers only, so a file reads back as it was.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


@runtime_checkable
class Described(Protocol):
    """What made a result, for its attributes.

    Attributes:
        name: what is measured. version: raised whenever the numbers change.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    def spec(self) -> dict[str, Any]:
        """Everything the numbers depend on beside the weights, JSON-able; data by hash."""
        ...


@runtime_checkable
class Measure(Described, Protocol):
    """A function of one model, named and versioned so that its results can be stored and found again."""

    def __call__(self, model: Any) -> "xr.Dataset":
        """Measure one model."""
        ...


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces: equal content, equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(content: Any) -> str:
    """A 24-digit hash of JSON-able content."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:24]


def array_hash(*arrays: Any) -> str:
    """A 16-digit hash of arrays or tensors, their types and shapes included."""
    sha = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(np.asarray(array))
        sha.update(f"{values.dtype.str}{values.shape}".encode())
        sha.update(values.tobytes())
    return sha.hexdigest()[:16]


def labelled(
    variables: Mapping[str, tuple[tuple[str, ...], Any]],
    coords: Mapping[str, Any],
    *,
    measure: Described,
    definition: str,
    source: str,
    **attrs: str | int | float,
) -> "xr.Dataset":
    """Build a result: variables by dims, with what was measured, how, and from which definition."""
    import xarray as xr

    data = {name: (dims, np.asarray(values)) for name, (dims, values) in variables.items()}
    about = {
        "measure": measure.name,
        "version": measure.version,
        "definition": definition,
        "source": source,
        "config": canonical(measure.spec()),
        **attrs,
    }
    return xr.Dataset(data, coords=dict(coords), attrs=about)


def check_whole(name: str, value: Any, least: int, hint: str = "") -> None:
    """Refuse an option that is no whole number, or too small.

    Raises:
        ValueError: it is not; ``hint`` says what else there is.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r}: need a whole number of at least {least}{hint and f', {hint}'}")


def mean_and_stderr(samples: Any, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean over independent examples and its standard error (sample sd / sqrt(n)); NaN error for a single example."""
    values = np.asarray(samples, dtype=np.float64)
    count = values.shape[axis]
    mean = np.asarray(values.mean(axis))
    if count < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.asarray(values.std(axis, ddof=1) / np.sqrt(count))
