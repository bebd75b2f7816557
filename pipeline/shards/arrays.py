"""Plain HDF5 files and netCDF-4 files, which are HDF5 too, as lazy xarray Datasets; h5py alone reads them.

A netCDF-4 file names the dimensions of its arrays by *dimension scales*. In a plain HDF5 file without scales, axes of
one length are taken for one dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from pipeline.errors import HeadroomError
from pipeline.schema import SHARD_FLUX
from pipeline.shards.layout import require_inside
from pipeline.shards.reader import ShardReader

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["is_plain_hdf5", "open_hdf5_arrays"]

#: What HDF5 and netCDF keep for themselves among the attributes; some are references, which mean nothing elsewhere.
_INTERNAL: Final = frozenset(
    {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"}
)
_NO_VARIABLE: Final = b"This is a netCDF dimension but not a netCDF variable"


def is_plain_hdf5(path: Path) -> bool:
    """Tell whether a file is HDF5 that holds arrays at its top, and not in the layout of a pfsspec shard.

    A file that cannot be read is none: who reads it as a shard says what is wrong with it.
    """
    try:
        with ShardReader(path) as reader:
            file = reader.file
            if SHARD_FLUX.split("/")[0] in file or "spectrumdataset" in file:
                return False
            # Of links nothing is opened to find out.
            own = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            return any(file.get(name, getclass=True) is h5py.Dataset for name in own)
    except (HeadroomError, OSError, RuntimeError, KeyError):
        return False


@contextmanager
def open_hdf5_arrays(path: Path) -> Iterator[xr.Dataset]:
    """Open the arrays at the top of an HDF5 or netCDF-4 file as a lazy Dataset; they can be read within the block.

    What CF attributes say of scales, offsets and fill values is applied. Text, structures and other kinds that are no
    numbers are left out.

    Raises
    ------
    InputError
        If the file is no HDF5 file, is damaged, or refers to other files.
    """
    import xarray as xr

    with ShardReader(path) as reader:
        file = reader.file
        with reader.explained():
            require_inside(file, reader.name, tuple(file), allow_external=False)
            arrays = {
                name: node
                for name, node in file.items()
                if isinstance(node, h5py.Dataset) and node.dtype.kind in "biuf" and not _is_bare_dimension(node)
            }
            variables = {name: _describe(name, array) for name, array in arrays.items()}
            dataset = xr.decode_cf(xr.Dataset(variables), decode_times=False, decode_coords=False)
        yield dataset


def _is_bare_dimension(array: h5py.Dataset) -> bool:
    return bytes(array.attrs.get("NAME", b"")).startswith(_NO_VARIABLE)


def _describe(name: str, array: h5py.Dataset) -> xr.Variable:
    import xarray as xr
    from xarray.core import indexing

    attributes = {key: _plain(array.attrs[key]) for key in array.attrs if key not in _INTERNAL}
    attributes = {key: value for key, value in attributes.items() if value is not None}
    dims = tuple(_name_axis(name, array, axis) for axis in range(array.ndim))
    encoding = {"preferred_chunks": dict(zip(dims, array.chunks, strict=True))} if array.chunks else {}
    return xr.Variable(dims, indexing.LazilyIndexedArray(_lazy(array)), attributes, encoding)


def _name_axis(name: str, array: h5py.Dataset, axis: int) -> str:
    """Return the name of the scale of an axis; one by its length if it has none."""
    if array.is_scale and array.ndim == 1:
        return name  # a coordinate is its own scale
    scales = list(array.dims[axis].values())
    if scales and scales[0].name:
        return str(scales[0].name).rpartition("/")[2]
    return f"axis of {array.shape[axis]}"


def _plain(value: Any) -> Any:
    """Return an attribute as a number, an array of numbers or a text; None if it is something else."""
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, h5py.Empty) or np.asarray(value).dtype.kind not in "biuf":
        return None
    numbers = np.asarray(value)
    return numbers.reshape(-1)[0] if numbers.size == 1 else numbers


def _lazy(array: h5py.Dataset) -> Any:
    """Return an array that xarray indexes lazily."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Hdf5Array(BackendArray):
        """Reads what is asked for from an open HDF5 file."""

        def __init__(self) -> None:
            self.shape, self.dtype = array.shape, array.dtype

        def __getitem__(self, key: Any) -> Any:
            support = indexing.IndexingSupport.OUTER_1VECTOR
            return indexing.explicit_indexing_adapter(key, self.shape, support, lambda at: array[at])

    return Hdf5Array()
