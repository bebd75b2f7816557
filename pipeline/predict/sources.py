"""Where spectra to be labelled come from: stores, or files as they are, with labels in them or without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter
from scipy.sparse import csr_array

from pipeline import schema
from pipeline.bins import shard_ranges
from pipeline.convert import cast_rows, find_converted, find_sources, read_unlabelled_info
from pipeline.errors import InputError
from pipeline.shards import RowReader, ShardReader, find_pixel_arrays, read_columns, read_wavelength, require_written
from pipeline.store import AnyStore, open_stores, require_same_wavelengths

__all__ = [
    "BLOCK_ROWS",
    "Resampling",
    "ShardSource",
    "SpectraSource",
    "StoreSource",
    "open_spectra_source",
    "pixel_bounds",
]

#: Rows read together, at least; a store's chunks are read whole.
BLOCK_ROWS = 1024
#: What tells one spectrum from another, where a table has it.
_IDENTITY = ("id",)


class SpectraSource(Protocol):
    """What predicting needs of spectra. Rows are counted through all files, in the order given."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def fingerprint(self) -> str:
        """A text that differs for different spectra."""

    @property
    def n_spectra(self) -> int:
        """N."""

    @property
    def wavelength(self) -> NDArray[np.float64]:
        """Shape (P,), Å."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays that all files have."""

    @property
    def block_rows(self) -> int:
        """Rows that are best read together."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that are known of them."""

    def read_rows(self, variable: str, start: int, stop: int, out: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Read one pixel array, shape (stop − start, P), float32 (mask: uint8, 1 = flagged).

        ``out`` is memory to read into, C-ordered and of at least so many rows. Masks do not take it.
        """

    def read_columns(self, names: Sequence[str], start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Read some of :attr:`labels`, each (stop − start,)."""

    def identify(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return ``id`` where there is one, ``shard`` (a name) and ``row`` within it, each (stop − start,)."""


def open_spectra_source(patterns: Sequence[str | Path], base: Path, *, allow_external: bool = False) -> SpectraSource:
    """Open stores, or shards and files of other layouts without converting them.

    Parameters
    ----------
    patterns
        Stores, their folders or globs. Or what a conversion takes: shards, their folders or globs, a
        ``shard_index.txt``, netCDF files, plain HDF5 files and Zarr folders of other programs. Not both.
    base
        Folder that relative patterns of shards start at.
    allow_external
        Read what shards have in other files, too, by external links or external storage.

    Raises
    ------
    InputError
        If there are none, one cannot be read, or their pixels or wavelengths differ.
    """
    if stores := find_converted([base / pattern for pattern in patterns]):
        return StoreSource(open_stores(stores))
    return ShardSource([_probe(path, allow_external) for path in find_sources(list(patterns), base)])


@dataclass(frozen=True, eq=False)
class StoreSource:
    """Spectra of a store, or of several."""

    store: AnyStore

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"store {self.store.name}"

    @property
    def fingerprint(self) -> str:
        """The store's own."""
        return self.store.fingerprint

    @property
    def n_spectra(self) -> int:
        """N."""
        return self.store.n_spectra

    @property
    def wavelength(self) -> NDArray[np.float64]:
        """Shape (P,), Å."""
        return self.store.wavelength

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays that all stores have."""
        return self.store.variables

    @property
    def block_rows(self) -> int:
        """Whole chunks."""
        return self.store.chunk_rows * max(1, BLOCK_ROWS // self.store.chunk_rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that are known of them."""
        return tuple(label for label in schema.LABELS if label in self.store.columns)

    def read_rows(self, variable: str, start: int, stop: int, out: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Read one pixel array; see :class:`SpectraSource`."""
        return self.store.read_rows(variable, start, stop, out)

    def read_columns(self, names: Sequence[str], start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Read some columns; see :class:`SpectraSource`."""
        return self.store.read_columns(names, start, stop)

    def identify(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return what tells the spectra apart; see :class:`SpectraSource`."""
        known = [name for name in _IDENTITY if name in self.store.columns]
        found = self.store.read_columns([*known, "shard", "row"], start, stop)
        return {**found, "shard": np.asarray(self.store.shard_names)[found["shard"]]}


@dataclass(frozen=True, eq=False)
class _Shard:
    """One shard whose arrays were checked to be there and written, or a file of another layout.

    ``columns`` are those of its table, each (N,); empty without a table. ``stamp`` is its size and its time of change.
    ``opening`` makes a reader of its rows.
    """

    path: Path
    name: str
    n_spectra: int
    wavelength: NDArray[np.float64]
    variables: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    stamp: tuple[int, int]
    opening: Callable[[], RowReader]

    @property
    def label(self) -> str:
        """Its name without the word for what it is: messages say ``shard night_1/dataset.h5``."""
        return self.name.partition(" ")[2]


class ShardSource:
    """Spectra of shards and other files, read as conversion reads them: in float32, with the outer errors mended.

    Unlike conversion it asks for no labels, and it takes spectra with bad pixels.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = tuple(shards)
        first = self._shards[0]
        for other in self._shards[1:]:
            remedy = "predict them one after the other"
            require_same_wavelengths(first.name, first.wavelength, other.name, other.wavelength, remedy)
        self._ranges = shard_ranges([shard.n_spectra for shard in self._shards])

    @property
    def name(self) -> str:
        """How messages call it."""
        more = f" and {len(self._shards) - 1} more" if len(self._shards) > 1 else ""
        return f"{self._shards[0].name}{more}"

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the shards' names, sizes, times of change and wavelengths. No pixels are read for it."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(json.dumps([shard.path.name, shard.n_spectra, *shard.stamp]).encode())
            digest.update(shard.wavelength.tobytes())
        return digest.hexdigest()

    @property
    def n_spectra(self) -> int:
        """N."""
        return sum(shard.n_spectra for shard in self._shards)

    @property
    def wavelength(self) -> NDArray[np.float64]:
        """Shape (P,), Å."""
        return self._shards[0].wavelength

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays that all shards have."""
        return tuple(n for n in schema.PIXEL_VARIABLES if all(n in shard.variables for shard in self._shards))

    @property
    def block_rows(self) -> int:
        """Rows that are best read together."""
        return BLOCK_ROWS

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that all shards have, as numbers."""
        return tuple(
            label
            for label in schema.LABELS
            if all(label in one.columns and one.columns[label].dtype.kind in "fiu" for one in self._shards)
        )

    def read_rows(self, variable: str, start: int, stop: int, out: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """Read one pixel array; see :class:`SpectraSource`."""
        mask = variable == "mask"
        if out is None:
            out = np.empty((stop - start, len(self.wavelength)), np.uint8 if mask else np.float32)
        rows: NDArray[Any] = out[: stop - start]
        filled = 0
        for shard, first, end in self._parts(start, stop):
            part = rows[filled : filled + end - first]
            with shard.opening() as reader:
                found = reader.read_rows(variable, first, end)
            if mask:
                part[:] = found
            else:
                cast_rows(variable, found, part)
            filled += end - first
        return rows

    def read_columns(self, names: Sequence[str], start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Read some columns; see :class:`SpectraSource`."""
        parts = self._parts(start, stop)
        return {name: np.concatenate([one.columns[name][a:b] for one, a, b in parts]) for name in names}

    def identify(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return what tells the spectra apart; see :class:`SpectraSource`."""
        parts = self._parts(start, stop)
        known = [name for name in _IDENTITY if all(name in shard.columns for shard in self._shards)]
        return {
            **self.read_columns(known, start, stop),
            "shard": np.concatenate([np.full(b - a, shard.label) for shard, a, b in parts]),
            "row": np.concatenate([np.arange(a, b) for _, a, b in parts]),
        }

    def _parts(self, start: int, stop: int) -> list[tuple[_Shard, int, int]]:
        """Return the shards that rows lie in, and the shards' own rows."""
        return [
            (shard, max(start, first) - first, min(stop, end) - first)
            for shard, (first, end) in zip(self._shards, self._ranges, strict=True)
            if max(start, first) < min(stop, end)
        ]


def describe_grid(wavelength: NDArray[np.float64]) -> str:
    """Return a wavelength grid in words."""
    return f"{len(wavelength)} pixels, {wavelength[0]:.2f} to {wavelength[-1]:.2f} Å"


def _probe(path: Path, allow_external: bool) -> _Shard:
    """Check what can be checked without reading all pixels."""
    info = read_unlabelled_info(path)
    if info is not None:
        return _Shard(
            path,
            f"file {path.name}",
            info.n_spectra,
            info.wavelength,
            tuple(info.dtypes),
            info.columns,
            (info.size, info.mtime_ns),
            info.opener,
        )
    with ShardReader(path, allow_external=allow_external) as reader, reader.explained():
        return _describe(reader)


def _describe(reader: ShardReader) -> _Shard:
    file, name, stamp = reader.file, reader.name, reader.stamp
    datasets = find_pixel_arrays(file, name)
    n_spectra, n_pixels = datasets["flux"].shape
    for variable, dataset in datasets.items():
        require_written(dataset, variable, name)
    # Observed spectra have no labels, hence perhaps no table.
    columns = read_columns(file, name)[0] if schema.SHARD_PARAMS in file else {}
    for column, values in columns.items():
        if len(values) != n_spectra:
            raise InputError(
                f"{name}: the pixel arrays have {n_spectra} spectra but column {column!r} of "
                f"{schema.SHARD_PARAMS_TABLE} has {len(values)} rows; write the table again, or leave it out"
            )
    wavelength = read_wavelength(file, name, n_pixels)
    opening = partial(ShardReader, reader.path, allow_external=bool(reader.others))
    return _Shard(reader.path, name, n_spectra, wavelength, tuple(datasets), columns, stamp, opening)


# --- Spectra on another wavelength grid: rebinned so that flux is conserved.
#
# A spectrum is taken as constant within each of its pixels. The value of an output pixel is the mean of that step
# function over it: each input pixel is weighted by the part of the output pixel that it overlaps::
#
#     f'_j = Σ_i |pixel_j ∩ pixel_i| f_i / |pixel_j|        σ'_j² = Σ_i (|pixel_j ∩ pixel_i| / |pixel_j|)² σ_i²
#
# So ``Σ f' Δλ'`` over output pixels that tile a range is the integral of the input over that range. Neighbouring output
# pixels that share an input pixel have correlated errors, which σ' does not tell.


FloatArray = NDArray[np.float64]
#: By rounding alone, so large a part of an output pixel may lie beyond the input, or on bad pixels.
_ROUNDING = 1e-9


#: A step between pixels that is so many times those around it is a gap, such as that between two chips.
_GAP = 1.75
_STEPS_AROUND = 11


def pixel_bounds(wavelength: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the lower and the upper ends of pixels, each (P,), from their centres, shape (P,), all in Å.

    Neighbours meet half-way between their centres. Pixels beside a gap, the first and the last one are symmetrical
    about their centres, so that no pixel reaches into a gap.

    Raises
    ------
    InputError
        If there are fewer than two centres, or they are not finite and increasing.
    """
    centres = np.asarray(wavelength, dtype=np.float64)
    if centres.ndim != 1 or centres.size < 2 or not np.isfinite(centres).all() or not (np.diff(centres) > 0).all():
        raise InputError(
            f"a wavelength grid needs at least two finite, increasing wavelengths, found shape {centres.shape}"
        )
    steps = np.diff(centres)
    middles = (centres[1:] + centres[:-1]) / 2
    usual = median_filter(steps, _STEPS_AROUND, mode="reflect")
    middles[steps > _GAP * usual] = np.nan
    lower, upper = np.append(np.nan, middles), np.append(middles, np.nan)
    # A pixel between two gaps is as wide as those around it.
    alone = np.isnan(lower) & np.isnan(upper)
    lower[alone] = (centres - np.append(usual, usual[-1]) / 2)[alone]
    return (
        np.where(np.isnan(lower), 2 * centres - upper, lower),
        np.where(np.isnan(upper), 2 * centres - lower, upper),
    )


@dataclass(frozen=True, eq=False)
class Resampling:
    """Takes spectra from one wavelength grid to another; see the module for the definition.

    Attributes
    ----------
    source, target
        Wavelengths of the pixels' centres before and after, shapes (P,) and (P',), Å.
    """

    source: FloatArray
    target: FloatArray

    @cached_property
    def shares(self) -> csr_array:
        """Which part of every output pixel each input pixel covers, shape (P', P); rows add up to 1 or less."""
        (low, high), (lower, upper) = pixel_bounds(self.source), pixel_bounds(self.target)
        first = np.searchsorted(high, lower, side="right")
        last = np.searchsorted(low, upper, side="left")
        counts = np.maximum(last - first, 0)
        rows = np.repeat(np.arange(len(self.target)), counts)
        steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = np.repeat(first, counts) + steps
        overlap = np.minimum(high[columns], upper[rows]) - np.maximum(low[columns], lower[rows])
        values = np.maximum(overlap, 0) / (upper - lower)[rows]
        kept = values > 0
        return csr_array((values[kept], (rows[kept], columns[kept])), shape=(len(self.target), len(self.source)))

    @cached_property
    def covered(self) -> NDArray[np.bool_]:
        """Output pixels that lie within the input's pixels, hence in none of its gaps, shape (P',)."""
        return np.asarray(self.shares.sum(axis=1)) >= 1 - _ROUNDING

    def flux(self, flux: ArrayLike, bad: NDArray[np.bool_] | None = None) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Rebin flux densities.

        Parameters
        ----------
        flux
            Shape (N, P).
        bad
            Pixels that may not be used, same shape. Pixels that are not finite are never used.

        Returns
        -------
        flux : (N, P')
            The mean over each output pixel; 0 where that is bad.
        bad : (N, P')
            Output pixels that lie beyond the input, in a gap of it or on bad pixels, wholly or in part.
        """
        values = np.asarray(flux, dtype=np.float64)
        wrong = ~np.isfinite(values) if bad is None else ~np.isfinite(values) | bad
        if not wrong.any():
            spoiled = np.broadcast_to(~self.covered, (len(values), len(self.target)))
            return np.where(spoiled, 0.0, self._apply(values)), spoiled
        clean = np.where(wrong, 0.0, values)
        usable = self._apply((~wrong).astype(np.float64))
        spoiled = usable < 1 - _ROUNDING
        return np.where(spoiled, 0.0, self._apply(clean)), spoiled

    def error(self, error: ArrayLike) -> FloatArray:
        """Return the 1σ errors of rebinned flux, shape (N, P'), from independent errors (N, P) of the input's pixels.

        Output pixels beyond the input get what their overlap gives, which means nothing. :meth:`flux` tells which
        pixels are bad.
        """
        squares = np.asarray(error, dtype=np.float64) ** 2
        variances: FloatArray = (self.shares.power(2) @ squares.T).T
        return np.sqrt(variances)

    def _apply(self, values: FloatArray) -> FloatArray:
        rebinned: FloatArray = np.ascontiguousarray((self.shares @ values.T).T)
        return rebinned
