"""Results that come with a run, all checkpoints of a measure in one packed file: ``results/<measure>.nc.xz``.

A run's folder of artefacts, one file each, has the same bytes as a store. This has the same numbers in a tenth of the room, and
is read at once: floats are rounded to single precision (by 6e-8 of themselves at most, less than any error stated), and what is
shared by checkpoints is packed once. In it is the key of every checkpoint, a hash of the measure, its settings and the weights,
so that a file made of anything else is read by nobody.
"""

import lzma
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.files import write_whole
from circuits.results import canonical

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".nc.xz"
OF_RUN = ("run", "corpora")
"""Attributes of a gathered result that are of the run and not of the measure."""


def pack_whole(data: "xr.Dataset", keys: "list[str]", into: Path) -> Path:
    """Write a gathered result and the keys of its checkpoints to ``<into>/<measure>.nc.xz``; equal results give equal bytes.

    Raises:
        ValueError: a checkpoint has no data.
    """
    if (data["status"].values != "ok").any():
        raise ValueError(f"{data.attrs['measure']} lacks data at some checkpoints; measure them first, or leave them out")
    wide = [str(name) for name, values in data.data_vars.items() if values.dtype == np.float64]
    kept = data.drop_encoding().drop_vars(["status", "reason"]).assign({name: data[name].astype(np.float32) for name in wide})
    kept = kept.assign(key=("step", np.array(keys, dtype=object).astype("U"))).assign_attrs(rounded=canonical(wide))
    buffer = BytesIO()
    kept.drop_attrs(deep=False).assign_attrs(kept.attrs).to_netcdf(buffer, engine="h5netcdf")
    content = lzma.compress(buffer.getvalue(), preset=9)
    return write_whole(into / f"{data.attrs['measure']}{SUFFIX}", lambda aside: aside.write_bytes(content))


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
    """A packed file, in double precision again; None where it is damaged, which is as good as absent: it is measured again."""
    import json

    import xarray as xr

    try:
        with xr.open_dataset(BytesIO(lzma.decompress(path.read_bytes())), engine="h5netcdf") as opened:
            data = opened.load()
        wide = json.loads(data.attrs.pop("rounded"))
        return data.assign({name: data[name].astype(np.float64) for name in wide}).drop_encoding()
    except Exception:
        return None
