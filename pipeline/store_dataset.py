"""Stores as one lazy xarray Dataset: pixels on disk, coordinates in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr

from pipeline import schema
from pipeline.errors import ConfigError
from pipeline.store import SpectraStore
from pipeline.store_set import JoinedStores, open_stores

__all__ = ["open_spectra"]

Chunks = str | int | Mapping[str, int] | None


def open_spectra(path: Path | str | Sequence[Path | str], *, chunks: Chunks = "store") -> xr.Dataset:
    """Open a store, or several as one, as a lazy xarray Dataset with dims (spectrum, wavelength).

    Pixel arrays stay on disk; all coordinates along ``spectrum`` (labels, ``snr``, ``shard``, ``row``, ...) are in
    memory, about 200 bytes for each spectrum, so that selecting by them is plain indexing. The pipeline itself does
    not hold them. ``xarray.open_zarr(path, consolidated=False)`` works too, but does not check that the store is
    complete.

    Parameters
    ----------
    path
        A store written by :func:`pipeline.convert.convert_shards`, or several, whose rows follow each other in the
        order given; see :func:`pipeline.store_set.open_stores`.
    chunks
        ``"store"``: Dask chunks of whole Zarr shards (of chunks where there are none). An integer: that many
        spectra, a multiple of the store's chunks. A mapping: as in xarray. None: no Dask, rows are read when
        indexed; of one store only.

    Raises
    ------
    InputError
        If a store does not open, see :meth:`SpectraStore.open`, or the stores do not fit together; ConfigError for
        chunks that cut the store's.
    """
    store = open_stores([path] if isinstance(path, str | Path) else path)
    parts = store.stores if isinstance(store, JoinedStores) else (store,)
    if chunks is None and len(parts) > 1:
        raise ConfigError(
            f"chunks=None reads one store, found {len(parts)}, and joining them without Dask would read every pixel; "
            "use chunks='store'"
        )
    lazy = [_open_one(part, store.variables, chunks) for part in parts]
    # the stores' wavelengths agree, in the last digits they may differ: those of the first one hold
    dataset = lazy[0] if len(lazy) == 1 else xr.concat(lazy, dim=schema.DIM_SPECTRUM, join="override")
    first = xr.open_zarr(parts[0].path, consolidated=False, chunks=None)
    columns = {name: (schema.DIM_SPECTRUM, values, first[name].attrs) for name, values in store.columns.items()}
    origin = (schema.DIM_WAVELENGTH, store.mean_flux, first[schema.STORE_ORIGIN].attrs)
    dataset = dataset.assign_coords(columns).assign({schema.STORE_ORIGIN: origin})
    return dataset.assign_attrs(fingerprint=store.fingerprint)


def _open_one(store: SpectraStore, variables: Sequence[str], chunks: Chunks) -> xr.Dataset:
    """Return the pixel arrays of one store, without coordinates."""
    sizes: Mapping[str, int] | None
    if chunks == "store":
        chunks = store.layout.file_rows
    if isinstance(chunks, int):
        if chunks < 1 or chunks % store.chunk_rows:
            raise ConfigError(
                f"chunks must be a multiple of the store's {store.chunk_rows} spectra, found {chunks}; other sizes "
                "would decode chunks twice"
            )
        sizes = {schema.DIM_SPECTRUM: chunks, schema.DIM_WAVELENGTH: -1}
    elif isinstance(chunks, str):
        raise ConfigError(f"chunks must be 'store', an integer, a mapping or None, found {chunks!r}")
    else:
        sizes = chunks
    dataset: xr.Dataset = xr.open_zarr(store.path, consolidated=False, chunks=None)[list(variables)].reset_coords(
        drop=True
    )
    if sizes is None:
        return dataset
    with warnings.catch_warnings():
        # the chunks asked for are multiples of the store's, whatever xarray prefers
        warnings.filterwarnings("ignore", message="The specified chunks separate")
        return dataset.chunk(sizes)
