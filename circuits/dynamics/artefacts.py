"""Files of results: netCDF4, written whole or not at all, believed only if they are what their name says.

Those that come with a run may be packed (``<key>.nc.xz``): half of a small artefact is the format's own padding.
"""

import lzma
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.files import write_whole

if TYPE_CHECKING:
    import xarray as xr


def write_dataset(path: Path, data: "xr.Dataset") -> None:
    """Write netCDF4 aside and move it into place."""
    write_whole(path, lambda aside: data.to_netcdf(aside, engine="h5netcdf"))


def pack(path: Path, into: Path) -> Path:
    """A packed copy of an artefact, ``<key>.nc.xz`` in another folder; equal bytes for equal artefacts."""
    packed = into / f"{path.name}.xz"
    write_whole(packed, lambda aside: aside.write_bytes(lzma.compress(path.read_bytes(), preset=9)))
    return packed


def is_whole(path: Path) -> bool:
    """Whether there is an artefact of this name and all of it can be read; forty times as fast as reading it as a dataset."""
    return _raw(path) is not None


def read_artefact(path: Path, like: "xr.Dataset | None" = None) -> "xr.Dataset | None":
    """A whole artefact, or None where there is none or it is not what its name says.

    Args:
        like: an artefact of the same measure. If this one has the same coordinates, and variables of the same shapes and types,
            only values and attributes are read: the same dataset, without decoding all that is known.
    """
    import xarray as xr

    raw = _raw(path)
    if raw is None:
        return None
    values, attrs = raw
    if like is not None and attrs.keys() == like.attrs.keys() and all(_fits(values, like, name) for name in like.variables):
        typed = {name: str if is_text(like[name]) else like[name].dtype for name in like.data_vars}  # texts of any length
        return like.copy(data={name: values[str(name)].astype(kind) for name, kind in typed.items()}).assign_attrs(attrs)
    try:
        with xr.open_dataset(_file(path), engine="h5netcdf") as opened:
            return opened.load()
    except Exception:
        # As in _raw.
        return None


def _raw(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Every array and attribute of an artefact as HDF5 has them; None where there is none, or it is not what its name says."""
    import h5py

    if not path.exists():
        return None
    try:
        with h5py.File(_file(path)) as file:
            text = {name: h5py.check_string_dtype(item.dtype) is not None for name, item in file.items()}
            values = {name: np.asarray(item.asstr()[()] if text[name] else item[()]) for name, item in file.items()}
            # netCDF's numbers are arrays of one.
            attrs = {name: value[0] if np.ndim(value) else value for name, value in file.attrs.items() if name[:3] != "_NC"}
    except Exception:
        # Damaged from outside (a full disk, a copy cut short): as good as absent, it is measured again.
        return None
    return (values, attrs) if attrs.get("key") == path.name.split(".")[0] else None


def _file(path: Path) -> Any:
    """What HDF5 opens: the file, or what is packed in it."""
    return BytesIO(lzma.decompress(path.read_bytes())) if path.suffix == ".xz" else path


def _fits(values: dict[str, np.ndarray], like: "xr.Dataset", name: Any) -> bool:
    """Whether a raw array is what the decoded one of this name was read from, but for the values of what is no coordinate."""
    found, known = values.get(str(name)), like.variables[name]
    if found is None or found.shape != known.shape:
        return False
    if name in like.coords:
        return np.array_equal(found, known.values)
    return found.dtype == known.dtype or (is_text(found) and is_text(known))


def is_text(array: Any) -> bool:
    """Whether an array holds texts, as HDF5 has them (objects) or as they are once decoded."""
    return array.dtype.kind in "OU"
