"""Results that come with a run, all checkpoints of a measure in one packed file: ``results/<measure>.npz.xz``.

A run's folder of artefacts, one file each, has the same bytes as a store. This has the same numbers in a tenth of the room, and
is read at once: floats are rounded to single precision (by 6e-8 of themselves at most, less than any error stated), and what is
shared by checkpoints is packed once. In it is the key of every checkpoint, a hash of the measure, its settings and the weights,
so that a file made of anything else is read by nobody.

The file is numpy's: an array for every variable and coordinate, and one of text, ``about``, with their dimensions and the
attributes as JSON. It is read many times as fast as netCDF is, and the page of a report waits for forty of these.
"""

import json
import lzma
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.files import write_whole
from circuits.results import canonical

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".npz.xz"
ABOUT = "about"
OF_RUN = ("run", "corpora")
"""Attributes of a gathered result that are of the run and not of the measure."""


def pack_whole(data: "xr.Dataset", keys: "list[str]", into: Path) -> Path:
    """Write a gathered result and the keys of its checkpoints to ``<into>/<measure>.npz.xz``; equal results give equal bytes.

    Raises:
        ValueError: a checkpoint has no data.
    """
    if (data["status"].values != "ok").any():
        raise ValueError(f"{data.attrs['measure']} lacks data at some checkpoints; measure them first, or leave them out")
    kept = data.drop_vars(["status", "reason"]).assign(key=("step", np.array(keys, dtype=object).astype("U")))
    content = packed_datasets({"": kept}, {})
    return write_whole(into / f"{data.attrs['measure']}{SUFFIX}", lambda aside: aside.write_bytes(content))


def packed_datasets(datasets: "Mapping[str, xr.Dataset]", about: Mapping[str, Any]) -> bytes:
    """Datasets by name, and what is to be said of them all (as JSON has it), packed."""
    arrays, told = {}, {}
    for at, (name, data) in enumerate(datasets.items()):
        of = {str(key): values for key, values in data.variables.items()}
        wide = [key for key, values in of.items() if values.dtype == np.float64]
        told[name] = {
            "dims": {key: values.dims for key, values in of.items()},
            "coords": [str(key) for key in data.coords],
            "attrs": {key: value.item() if isinstance(value, np.generic) else value for key, value in data.attrs.items()},
            "wide": wide,
        }
        arrays |= {f"{at} {key}": _plain(values.values, key in wide) for key, values in of.items()}
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **{ABOUT: np.array(canonical([told, about]))} | arrays)
    return lzma.compress(buffer.getvalue(), preset=9)


def unpacked_datasets(content: bytes) -> "tuple[dict[str, xr.Dataset], dict[str, Any]]":
    """What ``packed_datasets`` packed, in double precision again.

    Raises:
        ValueError: it is something else, or damaged.
    """
    import xarray as xr

    found = {}
    try:
        with np.load(BytesIO(lzma.decompress(content)), allow_pickle=False) as file:
            told, about = json.loads(file[ABOUT].item())
            for at, (name, known) in enumerate(told.items()):
                wide, dims = set(known["wide"]), known["dims"]
                of = {key: (tuple(dims[key]), file[f"{at} {key}"]) for key in dims}
                of = {key: (dim, values.astype(np.float64) if key in wide else values) for key, (dim, values) in of.items()}
                coords = {key: of.pop(key) for key in known["coords"]}
                found[name] = xr.Dataset(of, coords, known["attrs"])
    except Exception as error:
        raise ValueError(f"no whole file of packed results ({type(error).__name__})") from error
    return found, about


def _plain(array: np.ndarray, wide: bool) -> np.ndarray:
    """Floats in single precision, and texts of any length as such of one length, which numpy writes without pickling."""
    return array.astype(np.float32) if wide else array.astype("U") if array.dtype.kind == "O" else array


def packed_keys(results: Path | None, measure: str) -> "dict[str, int]":
    """Which checkpoints a run's packed file has, as places by key; none where there is no such file, or it is broken."""
    data = None if results is None else _opened(results / f"{measure}{SUFFIX}")
    return {} if data is None else {str(key): at for at, key in enumerate(data["key"].values)}


def packed(results: Path, measure: str, keys: "list[str]") -> "xr.Dataset":
    """A measure at several checkpoints as ``gather`` joins them, without ``status`` and ``reason``.

    Raises:
        KeyError: the file lacks one of them.
    """
    data, places = _opened(results / f"{measure}{SUFFIX}"), packed_keys(results, measure)
    if data is None:
        raise KeyError(measure)
    return data.isel(step=[places[key] for key in keys]).drop_vars("key")


def packed_one(results: Path, measure: str, key: str) -> "xr.Dataset":
    """A measure at one checkpoint, as its artefact would be.

    Raises:
        KeyError: the file lacks it.
    """
    found = packed(results, measure, [key]).isel(step=0, drop=True)
    own = {name: value for name, value in found.attrs.items() if name not in OF_RUN}
    return found.drop_vars("model_hash").assign_attrs(own | {"model_hash": str(found["model_hash"].item()), "key": key})


def _opened(path: Path) -> "xr.Dataset | None":
    try:
        stamp = path.stat()
    except OSError:
        return None
    return _read(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int, size: int) -> "xr.Dataset | None":
    """A packed file; None where it is damaged, which is as good as absent: it is measured again."""
    try:
        return unpacked_datasets(path.read_bytes())[0][""]
    except (ValueError, KeyError):
        return None
