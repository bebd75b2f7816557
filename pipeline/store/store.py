"""The store: a million spectra as Zarr v3, read by rows and by columns; nothing of either is kept.

A store that opens is complete: every chunk file is there in its recorded size. A chunk that is damaged, or
lost later, is an error that names the rows and never a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline import schema
from pipeline.base import DAMAGE, hash_file, parse_object, read_file, refuse_environment
from pipeline.errors import InputError, enumerate_words
from pipeline.store.chunks import ChunkError, read_chunk_rows
from pipeline.store.columns import StoreColumns
from pipeline.store.layout import (
    MANIFEST_GROUP,
    Manifest,
    SourceRecord,
    StoreLayout,
    damaged_store,
    digest_array,
    digest_rows,
    open_group,
    rebuild_remedy,
)

__all__ = [
    "SpectraStore",
    "StoredSpectra",
    "find_other_wavelengths",
    "is_store",
    "require_same_wavelengths",
    "work_folder",
]

# --- What one store and several joined ones have in common.

#: Relative difference of wavelengths that is rounding, not another grid.
_SAME_WAVELENGTH: Final = 1e-9


class StoredSpectra:
    """Base of what spectra are read from; tells what follows from its stores and their source shards.

    Attributes
    ----------
    wavelength
        (P,) float64, Å.
    exponent
        All flux, error and noisy pixels, and ``mean_flux``, are given times 2^exponent; 0 is what the files hold. See
        :func:`pipeline.store.joined.flux_exponent`.
    """

    wavelength: np.ndarray
    exponent: int

    @property
    def parts(self) -> tuple[SpectraStore, ...]:
        """The stores that it is made of, in the order of their rows."""
        raise NotImplementedError

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays present: flux, error, and mask and noisy where there are any."""
        raise NotImplementedError

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """What is known of the source shards, in the order of their rows."""
        raise NotImplementedError

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders it is read from, in the order of their rows."""
        return tuple(part.path for part in self.parts)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of each part."""
        return tuple(itertools.accumulate((part.n_spectra for part in self.parts[:-1]), initial=0))

    @property
    def n_pixels(self) -> int:
        """Pixels per spectrum."""
        return len(self.wavelength)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all pixel arrays on disk."""
        return sum(part.manifest.pixel_bytes for part in self.parts)

    @property
    def flagged_pixels(self) -> int:
        """Pixels that a mask flags."""
        return sum(int(part.manifest.counts.get("flagged_pixels", 0)) for part in self.parts)

    @property
    def has_noisy(self) -> bool:
        """Whether noise drawn by the simulation is there for every spectrum."""
        return "noisy" in self.variables

    @property
    def shard_lengths(self) -> tuple[int, ...]:
        """Spectra from each source shard, in order; they add up to ``n_spectra``."""
        return tuple(source.n_kept for source in self.sources)

    @property
    def source_lengths(self) -> tuple[int, ...]:
        """Spectra in each source shard, those that were dropped included."""
        return tuple(source.n_spectra for source in self.sources)

    @property
    def shard_names(self) -> tuple[str, ...]:
        """Names of the source shards, in order."""
        return tuple(source.name for source in self.sources)


def find_other_wavelengths(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the pixels whose wavelengths differ by more than rounding between two grids of shape (P,)."""
    return np.flatnonzero(np.abs(first - other) > _SAME_WAVELENGTH * np.abs(first))


def require_same_wavelengths(
    first_name: str, first: np.ndarray, other_name: str, other: np.ndarray, remedy: str
) -> None:
    """Refuse spectra whose wavelengths (Å) differ by more than rounding.

    Parameters
    ----------
    first_name, other_name
        How the message calls the spectra.
    first, other
        Their wavelengths, each (P,).
    remedy
        What to do instead.

    Raises
    ------
    InputError
        Naming both, and the numbers of their pixels or the first wavelength that differs.
    """
    required = f"{first_name} and {other_name} must have equal"
    if len(first) != len(other):
        raise InputError(f"{required} pixels, found {len(first)} and {len(other)}; {remedy}")
    apart = find_other_wavelengths(first, other)
    if apart.size:
        pixel = int(apart[0])
        raise InputError(
            f"{required} wavelengths, found {first[pixel]:.6f} and {other[pixel]:.6f} Å at pixel {pixel}, the first of "
            f"{apart.size} that differ; {remedy}"
        )


def is_store(path: Path | str) -> bool:
    """Tell whether a path looks like a Zarr v3 group; :meth:`SpectraStore.open` tells whether it is a
    store."""
    return (Path(path) / "zarr.json").is_file()


def work_folder(path: Path) -> Path:
    """Return where a conversion into a store works until it is finished. The name of ``.`` is that of its folder."""
    named = path if path.name else path.absolute()
    return named.with_name(named.name + ".partial")


def is_unfinished(path: Path) -> bool:
    """Tell whether a path is the work folder of a conversion, and not a file of that name that somebody downloads."""
    return path.suffix == ".partial" and (path / "plan.json").is_file()


class SpectraStore(StoredSpectra):
    """A checked store, cheap to open and to pickle; reads rows into the caller's buffers.

    Use :meth:`open`. Safe to share between threads: nothing is kept open between reads.

    Attributes
    ----------
    path
        The store's folder.
    manifest
        What the conversion recorded: sources, digests, counts.
    wavelength
        (P,) float64, Å, strictly increasing.
    mean_flux
        (P,) float64, mean clean spectrum; the origin of all moments of a set that begins with this store.
    columns
        Per-spectrum columns by name, each (N,) and read-only: labels, ``shard``, ``row`` and all other numbers.
        Every time that one is asked for it is read and compared with the manifest, so keep what you need again.
    direct_reads
        Whether pixels are read past the page cache: for stores that are larger than memory. False until set.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        wavelength: np.ndarray,
        mean_flux: np.ndarray,
        columns: StoreColumns,
        exponent: int = 0,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.wavelength = wavelength
        self.mean_flux = mean_flux
        self.columns = columns
        self.exponent = exponent
        self.layout = StoreLayout(manifest.n_spectra, manifest.n_pixels, manifest.chunk_rows, manifest.shard_rows)
        self.fingerprint: str = manifest.fingerprint
        self.direct_reads = False
        self._checksums = {name: manifest.list_checksums(name) for name in manifest.variables}
        #: Variable and first row of ranges that were compared with the manifest.
        self._compared: set[tuple[str, int]] = set()

    @classmethod
    def open(cls, path: Path | str) -> SpectraStore:
        """Open a store and check its format, its manifest and the presence of every chunk file.

        Pixels and columns are not read: a flipped bit, or a file of another array, shows when its rows are read.

        Raises
        ------
        InputError
            If the path is no store, was written by another version, or lacks anything; the message names it.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            _require_regular(path)
            for name, digest in manifest.metadata.items():
                if hash_file(path / name / "zarr.json") != digest:
                    raise ValueError(f"{name}/zarr.json is not what was written")
            group = open_group(path)
            wavelength = _read_vector(group, "wavelength", manifest.n_pixels)
            mean_flux = _read_vector(group, schema.STORE_ORIGIN, manifest.n_pixels)
            layouts = [_describe_array(group, variable) for variable in manifest.variables]
            of_rows: Any = group["row"]
            columns = StoreColumns(path, manifest.columns, manifest.n_spectra, int(of_rows.chunks[0]))
            store = cls(path, manifest, wavelength, mean_flux, columns)
        except DAMAGE as error:
            refuse_environment(path, error)
            raise damaged_store(path, f"its arrays cannot be read ({error})") from error
        if (digest_array(wavelength), digest_array(mean_flux)) != (manifest.wavelength, manifest.mean_flux):
            raise damaged_store(path, "its wavelengths or mean spectrum differ from the manifest")
        if any(layout != store.layout for layout in layouts):
            raise damaged_store(path, f"its arrays are {layouts}, the manifest says {store.layout}")
        _require_files(store)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.fingerprint, self.exponent)

    def scaled(self, exponent: int) -> SpectraStore:
        """Return the same store with all flux, error and noisy pixels times 2^exponent of what its files hold."""
        if exponent == self.exponent:
            return self
        mean_flux = np.ldexp(self.mean_flux, exponent - self.exponent)
        other = SpectraStore(self.path, self.manifest, self.wavelength, mean_flux, self.columns, exponent)
        other.direct_reads = self.direct_reads
        return other

    def __repr__(self) -> str:
        shape = f"{self.n_spectra:,} × {self.n_pixels}"
        return f"SpectraStore({str(self.path)!r}, {shape}, {self.fingerprint[:12]})"

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.path.name

    @property
    def parts(self) -> tuple[SpectraStore, ...]:
        """The store itself."""
        return (self,)

    @property
    def n_spectra(self) -> int:
        """Spectra in the store."""
        return self.manifest.n_spectra

    @property
    def chunk_rows(self) -> int:
        """Spectra per chunk, the smallest piece that is decoded."""
        return self.manifest.chunk_rows

    @property
    def shard_rows(self) -> int:
        """Spectra per Zarr shard, 0 where there are none."""
        return self.manifest.shard_rows

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays present: flux, error, and mask and noisy where the shards had them."""
        return self.manifest.variables

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """What is known of the source shards, in order."""
        return self.manifest.sources

    def read_columns(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Read spectra ``start`` to ``stop`` (exclusive) of some columns, in memory for these rows only.

        The first time, the whole column is compared with the manifest, chunk by chunk.

        Parameters
        ----------
        names
            Some of :attr:`columns`.
        start, stop
            Rows, ``0 <= start <= stop <= n_spectra``.

        Returns
        -------
        dict
            One array of shape (stop − start,) for each name.

        Raises
        ------
        InputError
            If there is no such column, or a chunk is missing or damaged; the message names the store and the column.
        """
        self._require_range(start, stop)
        return {name: self.columns.read(name, start, stop) for name in names}

    def iter_columns(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (first row, columns) for one block of rows after the other, cut as the columns' chunks are.

        Raises
        ------
        InputError
            See :meth:`read_columns`.
        """
        for start, stop in self.columns.iter_blocks():
            yield start, self.read_columns(names, start, stop)

    def iter_blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of consecutive rows from ``start`` to ``stop``, none across two chunks."""
        for first in range(start - start % self.chunk_rows, stop, self.chunk_rows):
            yield max(first, start), min(first + self.chunk_rows, stop)

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array.

        Pass ``out`` in loops: reading into fresh memory costs several times the decompression.

        Parameters
        ----------
        variable
            One of :attr:`variables`.
        start, stop
            Rows, ``0 <= start <= stop <= n_spectra``; chunk-aligned ones are fastest.
        out
            C-ordered buffer of shape (≥ stop − start, P), float32 (mask: uint8); filled from its first row
            on.

        Returns
        -------
        numpy.ndarray
            Shape (stop − start, P), C-ordered; a view of ``out`` where given.

        Raises
        ------
        InputError
            If a chunk is missing, damaged or undecodable, naming the store, the variable and the rows.
        """
        if variable not in self.variables:
            raise InputError(f"store {self.path} has no {variable!r}, only {', '.join(self.variables)}")
        self._require_range(start, stop)
        dtype = np.dtype(np.uint8 if variable == "mask" else np.float32)
        if out is None:
            out = np.empty((stop - start, self.n_pixels), dtype)
        rows: np.ndarray = out[: stop - start]
        if rows.shape != (stop - start, self.n_pixels) or out.dtype != dtype or not rows.flags.c_contiguous:
            found = f"{out.dtype} {out.shape}"
            raise ValueError(f"out must be C-ordered {dtype} (≥ {stop - start}, {self.n_pixels}), is {found}")
        try:
            if self._checksums[variable] is None:
                self._compare_ranges(variable, start, stop)
            self._read_pixels(variable, start, stop, rows)
        except ChunkError as error:
            refuse_environment(self.path, error.__cause__ or error)
            raise damaged_store(
                self.path, f"rows {start} to {stop - 1} of {variable!r} cannot be read: {error}"
            ) from error
        if self.exponent and variable != "mask":
            with np.errstate(over="ignore"):
                rows *= np.float32(2.0**self.exponent)  # exact: no digit of a normal number changes
        return rows

    def _read_pixels(self, variable: str, start: int, stop: int, out: np.ndarray) -> None:
        folder, checksums = self.path / variable, self._checksums[variable]
        read_chunk_rows(folder, self.layout, start, stop, out, checksums, direct=self.direct_reads)

    def _compare_ranges(self, variable: str, start: int, stop: int) -> None:
        """Compare the ranges that rows lie in with their digests, once: no checksums of their chunks are known."""
        for part in self.manifest.ranges:
            if part.stop <= start or stop <= part.start or (variable, part.start) in self._compared:
                continue
            total, dtype = 0, np.uint8 if variable == "mask" else np.float32
            for first, end in self.iter_blocks(part.start, part.stop):
                rows = np.empty((end - first, self.n_pixels), dtype)
                self._read_pixels(variable, first, end, rows)
                total += digest_rows(rows, first)
            if f"{total % 2**64:016x}" != part.digests[variable]:
                raise ChunkError(f"rows {part.start} to {part.stop - 1} differ from the manifest")
            self._compared.add((variable, part.start))

    def _require_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_spectra:
            raise InputError(f"store {self.path} has rows 0 to {self.n_spectra}, not {start} to {stop}")


def _require_regular(path: Path) -> None:
    """Refuse pipes and devices where zarr would open files, and wait for ever."""
    for file in (*path.glob("*/zarr.json"), *path.glob("*/c/*")):
        if not (file.is_file() or file.is_dir()):
            raise ValueError(f"{file.relative_to(path)} is not a regular file")


def _require_files(store: SpectraStore) -> None:
    """Refuse a store that lacks a chunk file, or has one of another size than was written."""
    for part in store.manifest.ranges:
        for variable in store.variables:
            files = store.layout.iter_files(part.start, part.stop)
            for (name, first, end), size in zip(files, part.file_bytes[variable], strict=True):
                file = store.path / variable / name
                found = file.stat().st_size if file.is_file() else None
                if found != size:
                    state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                    raise damaged_store(store.path, f"{variable}/{name} (rows {first} to {end - 1}) {state}")


def _reopen(path: str, fingerprint: str, exponent: int = 0) -> SpectraStore:
    store = SpectraStore.open(path).scaled(exponent)
    if store.fingerprint != fingerprint:
        raise InputError(
            f"store {path} changed while it was in use (fingerprint {fingerprint[:12]} became "
            f"{store.fingerprint[:12]}); run again"
        )
    return store


def _read_manifest(path: Path) -> Manifest:
    if not is_store(path):
        partial = work_folder(path)
        if is_unfinished(partial):
            raise InputError(f"store {path} is unfinished (only {partial.name} is there); run what made it again")
        found = "no zarr.json in it" if path.is_dir() else "a file" if path.exists() else "nothing there"
        raise InputError(f"{path} must be a store, found {found}; make one with headroom convert")
    try:
        attributes = _read_attributes(path)
    except (ValueError, OSError) as error:
        refuse_environment(path, error)
        raise InputError(
            f"{path} must be a store, but its zarr.json cannot be read ({error}); make another with headroom convert"
        ) from error
    if attributes.get("format") != schema.STORE_FORMAT:
        raise InputError(
            f"{path} is a Zarr folder of another program and not a store (format {attributes.get('format')!r}, "
            f"required {schema.STORE_FORMAT!r}); make one with headroom convert"
        )
    if attributes.get("version") not in schema.READABLE_STORE_VERSIONS:
        readable = enumerate_words(list(map(str, schema.READABLE_STORE_VERSIONS)))
        raise InputError(
            f"store {path} has version {attributes.get('version')!r} but this program reads versions {readable}; use "
            f"the program that wrote it, or {rebuild_remedy(path)}"
        )
    try:
        manifest = Manifest.from_json(_read_attributes(path / MANIFEST_GROUP))
        if attributes.get("fingerprint") != manifest.fingerprint:
            raise ValueError("its digests do not give the store's fingerprint")
        if attributes["version"] == schema.STORE_VERSION and not manifest.metadata:
            raise ValueError("it is one of another version")
    except (ValueError, KeyError, TypeError, OSError) as error:
        refuse_environment(path, error)
        raise damaged_store(path, f"its manifest cannot be read ({error!r})") from error
    return manifest


def _read_attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of a Zarr group."""
    attributes = parse_object(read_file(folder / "zarr.json")).get("attributes")
    if not isinstance(attributes, dict):
        raise ValueError("it has no attributes")
    return attributes


def _read_vector(group: Any, name: str, length: int) -> np.ndarray:
    array = group[name]
    if array.shape != (length,):  # before so much is read
        raise ValueError(f"{name} has shape {array.shape}")
    return np.asarray(array[...])


def _describe_array(group: Any, variable: str) -> StoreLayout:
    array = group[variable]
    codecs = [type(codec).__name__ for codec in array.compressors]
    if codecs != ["BloscCodec", "Crc32cCodec"] or array.dtype != (np.uint8 if variable == "mask" else np.float32):
        raise ValueError(f"{variable} is {array.dtype} with codecs {codecs}")
    n_spectra, n_pixels = array.shape
    return StoreLayout(n_spectra, n_pixels, array.chunks[0], array.shards[0] if array.shards else 0)
