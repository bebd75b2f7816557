"""Several stores as one set of spectra, all of its shards or some; the set as an xarray Dataset; finding stores.

On a cluster every shard is converted to a store of its own, and a shard that comes later is one more store. Rows of a
set are those of its stores one after the other: absolute rows, by which noise is drawn, count through the whole set.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline import schema
from pipeline.base import PathLike, list_paths
from pipeline.bins import keep_rows, shard_ranges, spread_rows
from pipeline.errors import ConfigError, InputError, did_you_mean
from pipeline.shards import HDF5_SUFFIXES, match_spectra, natural_key
from pipeline.store.columns import LazyColumns
from pipeline.store.layout import SourceRecord
from pipeline.store.store import (
    SpectraStore,
    StoredSpectra,
    is_store,
    is_unfinished,
    require_same_wavelengths,
    work_folder,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "AnyStore",
    "JoinedStores",
    "SelectedStores",
    "count_selected",
    "cut_block",
    "find_kept",
    "find_left_out",
    "find_stores",
    "first_store",
    "flux_exponent",
    "list_parts",
    "match_shards",
    "open_spectra",
    "open_stores",
    "sample_rows",
    "select_shards",
]


class JoinedStores(StoredSpectra):
    """Several stores read as one, with the reading interface of :class:`SpectraStore`. Use :func:`open_stores`.

    Cheap to open and to pickle, and safe to share between threads: nothing is kept open or in memory between reads.

    Attributes
    ----------
    stores
        The parts, in the order of their rows.
    wavelength
        (P,) float64, Å, of the first store.
    mean_flux
        (P,) float64 holding float32 numbers: the mean clean spectrum over all rows (origins are the first store's).
    fingerprint
        Digest of the parts' fingerprints in their order.
    """

    def __init__(self, stores: Sequence[SpectraStore]) -> None:
        self.stores = tuple(stores)
        self.wavelength = self.stores[0].wavelength
        self.exponent = self.stores[0].exponent
        #: First absolute row of every part, and the end of the last.
        self._starts = tuple(itertools.accumulate((store.n_spectra for store in self.stores), initial=0))
        sums = np.zeros(len(self.wavelength))
        for store in self.stores:
            sums += store.n_spectra * store.mean_flux
        # As float32 sees it, like the mean of one store: kernels subtract the origin in single precision.
        self.mean_flux: np.ndarray = (sums / self.n_spectra).astype(np.float32).astype(np.float64)
        content = json.dumps([schema.STORE_FORMAT, [store.fingerprint for store in self.stores]])
        self.fingerprint: str = hashlib.sha256(content.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (tuple(map(str, self.paths)), self.fingerprint, self.exponent)

    def scaled(self, exponent: int) -> JoinedStores:
        """Return the same stores with all flux, error and noisy pixels times 2^exponent of what their files hold."""
        return self if exponent == self.exponent else JoinedStores([store.scaled(exponent) for store in self.stores])

    def __repr__(self) -> str:
        return f"JoinedStores({self.name}, {self.n_spectra:,} × {self.n_pixels}, {self.fingerprint[:12]})"

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{len(self.stores)} stores ({self.stores[0].name} to {self.stores[-1].name})"

    @property
    def parts(self) -> tuple[SpectraStore, ...]:
        """The stores, in the order of their rows."""
        return self.stores

    @property
    def n_spectra(self) -> int:
        """Spectra in all stores."""
        return self._starts[-1]

    @property
    def chunk_rows(self) -> int:
        """Spectra in the largest chunk of any part: what a buffer for one block must hold."""
        return max(store.chunk_rows for store in self.stores)

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays that all stores have."""
        return tuple(name for name in schema.PIXEL_VARIABLES if all(name in store.variables for store in self.stores))

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """What is known of the source shards, in the order of their rows."""
        return tuple(source for store in self.stores for source in store.sources)

    @property
    def direct_reads(self) -> bool:
        """Whether pixels are read past the page cache; see :class:`SpectraStore`."""
        return all(store.direct_reads for store in self.stores)

    @direct_reads.setter
    def direct_reads(self, value: bool) -> None:
        for store in self.stores:
            store.direct_reads = value

    @property
    def columns(self) -> LazyColumns:
        """Per-spectrum columns that all stores have, each (N,) and read-only, read whenever one is asked for.

        ``shard`` counts through the set, as :attr:`shard_names` does; ``row`` is that within the shard.
        """
        first, *others = (store.columns for store in self.stores)
        shared = [name for name in first if all(name in columns for columns in others)]
        return LazyColumns(shared, self._read_column)

    def read_columns(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Read spectra ``start`` to ``stop`` (exclusive) of some columns; see :meth:`SpectraStore.read_columns`.

        Returns
        -------
        dict
            One array of shape (stop − start,) for each name.

        Raises
        ------
        InputError
            If a store has no such column, or a chunk is missing or damaged.
        """
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
        # an empty range has a type, too
        for part, first, end in list(self._iter_parts(start, stop)) or [(0, 0, 0)]:
            for name, values in self.stores[part].read_columns(names, first, end).items():
                pieces[name].append(self._number_shards(part, name, values))
        return {name: _read_only(np.concatenate(found)) for name, found in pieces.items()}

    def iter_columns(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (first absolute row, columns) for one block of rows after the other, cut as the columns' chunks are.

        Raises
        ------
        InputError
            See :meth:`read_columns`.
        """
        for part, store in enumerate(self.stores):
            for first, columns in store.iter_columns(names):
                numbered = {name: self._number_shards(part, name, values) for name, values in columns.items()}
                yield self._starts[part] + first, numbered

    def iter_blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of consecutive rows from ``start`` to ``stop``, none across two chunks of a store."""
        for part, first, end in self._iter_parts(start, stop):
            for a, b in self.stores[part].iter_blocks(first, end):
                yield self._starts[part] + a, self._starts[part] + b

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array; see :meth:`SpectraStore.read_rows`.

        Parameters
        ----------
        variable
            One of :attr:`variables`.
        start, stop
            Absolute rows; those of :meth:`iter_blocks` are fastest.
        out
            C-ordered buffer of shape (≥ stop − start, P), float32 (mask: uint8).

        Returns
        -------
        numpy.ndarray
            Shape (stop − start, P), C-ordered; a view of ``out`` where given.

        Raises
        ------
        InputError
            If a store has no such array, or a chunk is missing or damaged.
        """
        for store in self.stores:
            if variable not in store.variables:
                raise InputError(f"store {store.path} has no {variable!r}, only {', '.join(store.variables)}")
        parts = list(self._iter_parts(start, stop))
        if out is None:
            out = np.empty((stop - start, self.n_pixels), np.uint8 if variable == "mask" else np.float32)
        filled = 0
        for part, first, end in parts:
            self.stores[part].read_rows(variable, first, end, out[filled : filled + end - first])
            filled += end - first
        rows: np.ndarray = out[:filled]
        return rows

    def _iter_parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (part, first, end) of the parts that absolute rows lie in, ``first`` and ``end`` being the part's
        own rows."""
        if not 0 <= start <= stop <= self.n_spectra:
            raise InputError(f"{self.name} have rows 0 to {self.n_spectra}, not {start} to {stop}")
        for part, (first, end) in enumerate(itertools.pairwise(self._starts)):
            low, high = max(start, first), min(stop, end)
            if low < high:
                yield part, low - first, high - first

    def _read_column(self, name: str) -> np.ndarray:
        values = np.empty(0)
        for part, store in enumerate(self.stores):
            found = self._number_shards(part, name, store.columns[name])
            # Filled part by part: concatenating would hold everything twice.
            dtype = np.result_type(values, found) if part else found.dtype
            values = values.astype(dtype, copy=False) if part else np.empty(self.n_spectra, dtype)
            values[self._starts[part] : self._starts[part + 1]] = found
        return _read_only(values)

    def _number_shards(self, part: int, name: str, values: np.ndarray) -> np.ndarray:
        """Count the column ``shard`` through the whole set."""
        if name != "shard":
            return values
        earlier = sum(len(store.sources) for store in self.stores[:part])
        numbered: np.ndarray = np.add(values, earlier, dtype=values.dtype)
        return numbered


#: What the pipeline reads spectra from.
AnyStore: TypeAlias = SpectraStore | JoinedStores


def open_stores(paths: PathLike | Sequence[PathLike]) -> AnyStore:
    """Open one store, or several as one set whose rows follow each other in the order given.

    Raises
    ------
    InputError
        If a store does not open (see :meth:`SpectraStore.open`), if two differ in wavelength, or if two are the same
        or hold spectra of the same shard; the message names both.
    """
    stores = [SpectraStore.open(path) for path in list_paths(paths)]
    if not stores:
        raise InputError("at least one store is required, found none; make one with headroom convert")
    if len(stores) == 1:
        return stores[0]
    folders: set[Path] = set()
    shards: dict[str, SpectraStore] = {}
    for store in stores:
        names = f"store {stores[0].path}", f"store {store.path}"
        remedy = "a set needs one wavelength grid, so give stores of one arm and resolution"
        require_same_wavelengths(names[0], stores[0].wavelength, names[1], store.wavelength, remedy)
        if store.path.resolve() in folders:
            raise InputError(f"store {store.path} is named twice; every spectrum may count once only, so remove one")
        folders.add(store.path.resolve())
        for source in store.sources:
            if shards.setdefault(source.fingerprint, store) is not store:
                raise InputError(
                    f"stores {shards[source.fingerprint].path} and {store.path} were both converted from shard "
                    f"{source.name} (fingerprint {source.fingerprint[:12]}); every spectrum may count once only, so "
                    "remove one of the two"
                )
    return JoinedStores(stores)


def find_stores(patterns: Sequence[Path | str]) -> tuple[Path, ...]:
    """Return the stores that patterns name, in the order stated; none if they name no store but, say, shards.

    A pattern is a store, a folder whose sub-folders are all stores, or a glob of either. What one folder or glob holds
    is sorted naturally (``train_2.zarr`` before ``train_10.zarr``).

    Raises
    ------
    InputError
        If stores are mixed with anything else, or one is unfinished; the message names both.
    """
    stores: list[Path] = []
    other: Path | None = None
    for pattern in patterns:
        matches = match_spectra(pattern)
        if Path(pattern).exists() or not matches:
            matches = [Path(pattern)]
        for match in matches:
            found = _expand(match)
            stores += found
            other = other if found else other or match
    if stores and other is not None:
        raise InputError(
            f"{stores[0]} is a store and {other} is not; give stores alone, or shards alone to be converted together"
        )
    return tuple(stores)


def _expand(path: Path) -> list[Path]:
    """Return a store, or the stores of a folder that holds nothing else; none for anything without stores."""
    if is_store(path):
        return [path]
    partial = path if path.suffix == ".partial" else work_folder(path)
    if is_unfinished(partial):
        raise InputError(f"{partial} is an unfinished store; run its conversion again, or delete it")
    if not path.is_dir():
        return []
    entries = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=natural_key)
    stores = [entry for entry in entries if is_store(entry)]
    for entry in entries if stores else ():
        if is_unfinished(entry):
            raise InputError(
                f"{entry} is an unfinished store beside finished ones such as {stores[0]}; run its conversion again, "
                "or delete it"
            )
        shards = entry.name == schema.SHARD_INDEX_NAME or entry.suffix.lower() in HDF5_SUFFIXES
        if entry not in stores and (entry.is_dir() or shards):
            raise InputError(
                f"folder {path} holds the store {stores[0].name} and {entry.name}, which is none; give a folder of "
                "stores alone, or name the stores"
            )
    return stores


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def _reopen(paths: tuple[str, ...], fingerprint: str, exponent: int = 0) -> AnyStore:
    joined = open_stores(paths).scaled(exponent)
    if joined.fingerprint != fingerprint:
        raise InputError(
            f"stores {', '.join(paths)} changed while they were in use (fingerprint {fingerprint[:12]} became "
            f"{joined.fingerprint[:12]}); run again"
        )
    return joined


# --- Some shards of a set. The others keep their rows, by which noise is drawn, but are counted nowhere else.


class SelectedStores(JoinedStores):
    """A set of stores without some of its shards, or some of its rows. Use :func:`select_shards`.

    Absolute rows, and what is read by row, are those of the whole set; :meth:`iter_columns` skips what is left out.

    Attributes
    ----------
    left_out
        Numbers of the shards that are left out, in order.
    kept
        The ranges of rows that are used.
    """

    def __init__(self, whole: AnyStore, left_out: Sequence[int], wanted: int | None = None) -> None:
        super().__init__(whole.parts)
        self._whole, self.left_out, self._wanted = whole, tuple(sorted(left_out)), wanted
        self.kept = keep_rows(whole.shard_lengths, self.left_out, wanted)
        self.fingerprint = whole.fingerprint

    def __reduce__(self) -> tuple[Any, ...]:
        return SelectedStores, (self._whole, self.left_out, self._wanted)

    def scaled(self, exponent: int) -> SelectedStores:
        """Return the same selection; see :meth:`JoinedStores.scaled`."""
        if exponent == self.exponent:
            return self
        return SelectedStores(self._whole.scaled(exponent), self.left_out, self._wanted)

    @property
    def name(self) -> str:
        """How messages call it."""
        n_out = len(self.left_out)
        if self._wanted is not None:
            return f"{count_selected(self):,} spectra of {self._whole.name}"
        return f"{self._whole.name} without {n_out} shard{'s' if n_out > 1 else ''}"

    def iter_columns(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (first absolute row, columns) for one block of selected rows after the other.

        Raises
        ------
        InputError
            See :meth:`JoinedStores.read_columns`.
        """
        for start, columns in super().iter_columns(names):
            yield from cut_block(start, columns, self.kept)


def cut_block(
    start: int, columns: Mapping[str, np.ndarray], kept: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield (first row, columns) of those parts of a block of rows that lie in some ranges of rows."""
    stop = start + len(next(iter(columns.values()))) if columns else start
    for first, end in kept:
        low, high = max(start, first), min(stop, end)
        if low < high:
            yield low, {name: values[low - start : high - start] for name, values in columns.items()}


def select_shards(store: AnyStore, excluded: Sequence[str], wanted: int | None = None) -> AnyStore:
    """Leave shards out of a store, or of several as one, and perhaps all but some spectra of the others.

    Parameters
    ----------
    store
        All shards.
    excluded
        Names of those that are left out, see :func:`match_shards`; none gives the store itself.
    wanted
        How many spectra of the other shards to keep, see :func:`pipeline.bins.keep_rows`; all by default.

    Raises
    ------
    InputError
        If a name belongs to none of the shards or to several, or if all are left out.
    """
    left_out = match_shards(excluded, store.shard_names)
    return SelectedStores(store, left_out, wanted) if left_out or wanted is not None else store


def match_shards(excluded: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the shards that names mean: ``train_2/dataset.h5``, or ``train_2`` for short.

    Raises
    ------
    InputError
        If a name belongs to none of the shards, whose names are listed, or to several; or if no shard is left.
    """
    numbers = set()
    for name in excluded:
        found = [k for k, full in enumerate(names) if name in (full, full.rpartition("/")[0])]
        if len(found) != 1:
            what = f"{len(found)} shards are called so" if found else f"there are {', '.join(names)}"
            raise InputError(
                f"data.exclude: the name of one training shard is required, found {name!r}, but {what}"
                f"{'' if found else did_you_mean(name, names)}"
            )
        numbers.add(found[0])
    if numbers and len(numbers) == len(names):
        raise InputError(
            f"data.exclude leaves out all {len(names)} training shards, at least one is required; take a name out of "
            "that list"
        )
    return tuple(sorted(numbers))


def find_left_out(store: AnyStore) -> tuple[int, ...]:
    """Return the numbers of the shards that a selection leaves out."""
    return store.left_out if isinstance(store, SelectedStores) else ()


def count_selected(store: AnyStore) -> int:
    """Return the spectra that a selection keeps."""
    return sum(stop - start for start, stop in find_kept(store))


def find_kept(store: AnyStore) -> tuple[tuple[int, int], ...]:
    """Return the ranges of rows that a selection keeps."""
    return store.kept if isinstance(store, SelectedStores) else keep_rows(store.shard_lengths)


def sample_rows(store: AnyStore, wanted: int, run_rows: int) -> list[tuple[int, int]]:
    """Choose ranges of rows that are evenly spread over all shards of a selection.

    See :func:`pipeline.bins.spread_rows`.
    """
    return spread_rows(find_kept(store), wanted, run_rows)


def first_store(store: AnyStore) -> SpectraStore:
    """Return the store that holds the first rows: origins are its means, which stay when other stores come or go."""
    return store.parts[0]


def flux_exponent(store: AnyStore) -> int:
    """Return the power of two by which flux and errors are multiplied before anything is computed from them.

    It brings the typical flux of a training set, the median of its first store's mean spectrum, between √½ and √2. So
    results do not depend on the unit of the flux: whatever power of two the files hold, the arithmetic sees the same
    bits, and no square of a flux leaves the range of single precision. It is 0 for median-normalised spectra.
    """
    first = first_store(store)
    seen = first.mean_flux[first.mean_flux > 0]
    if not seen.size:
        return 0
    mantissa, exponent = math.frexp(float(np.median(seen)))
    return first.exponent - exponent + (mantissa < math.sqrt(0.5))


def list_parts(store: AnyStore) -> tuple[tuple[str, int, int], ...]:
    """Return every store's fingerprint, first absolute row, and one past its last."""
    ranges = shard_ranges([one.n_spectra for one in store.parts])
    return tuple((one.fingerprint, *rows) for one, rows in zip(store.parts, ranges, strict=True))


# --- Stores as one lazy xarray Dataset: pixels on disk, coordinates in memory.


Chunks = str | int | Mapping[str, int] | None


def open_spectra(path: Path | str | Sequence[Path | str], *, chunks: Chunks = "store") -> xr.Dataset:
    """Open a store, or several as one, as a lazy xarray Dataset with dims (spectrum, wavelength).

    Pixel arrays stay on disk; all coordinates along ``spectrum`` (labels, ``snr``, ``shard``, ``row``, ...) are in
    memory, about 200 bytes for each spectrum, so that selecting by them is plain indexing. The pipeline itself does
    not hold them. ``xarray.open_zarr(path)`` works too, but does not check that the store is complete.

    Parameters
    ----------
    path
        A store written by :func:`pipeline.convert.convert.convert_shards`, or several, whose rows follow each other
        in the order given; see :func:`pipeline.store.joined.open_stores`.
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
    import xarray as xr  # which no run needs

    store = open_stores([path] if isinstance(path, str | Path) else path)
    parts = store.parts
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
    import xarray as xr

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
