"""How a store lies on disk: chunk and shard sizes, array metadata, files of a row range, and the manifest of all of it.

A *range* is the unit of writing: the rows of one whole Zarr shard (or, unsharded, of eight chunks). Every
chunk file therefore has exactly one writer, which matters because two writers inside one Zarr shard lose rows
silently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import zarr
from pydantic import TypeAdapter
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline import schema
from pipeline.base import is_sealed, parse_object, read_file, seal, write_json
from pipeline.errors import ConfigError, InputError

__all__ = [
    "COMPRESSION_LEVEL",
    "MANIFEST_GROUP",
    "Manifest",
    "RangeRecord",
    "SourceRecord",
    "StoreLayout",
    "create_store",
    "damaged_store",
    "digest_array",
    "digest_rows",
    "fill_value",
    "open_group",
    "plan_layout",
    "rebuild_remedy",
    "write_columns",
    "write_manifest",
]

#: The manifest is the attributes of this empty sub-group: an ordinary file in a store makes zarr warn.
MANIFEST_GROUP: Final = "manifest"

_CHUNK_BYTES: Final = 16 << 20
_CHUNKS_PER_RANGE: Final = 8
#: Rows of a column's chunk: a task reads the columns of its own rows, half a MiB each, not of all.
_COLUMN_CHUNK_ROWS: Final = 65_536
#: What every chunk is compressed with; :mod:`pipeline.store.chunks` encodes by it and zarr's metadata says so.
COMPRESSION_LEVEL: Final = 5
#: zarr's own concurrency, small because several workers use it at once.
_CONCURRENCY: Final = {"async.concurrency": 4, "threading.max_workers": 4}
_TITLES: Final = {
    "flux": "flux",
    "error": "1-sigma error of the flux",
    "mask": "1 where the pixel is flagged",
    "noisy": "flux with noise",
}


#: What CF asks of an array of flags.
_FLAGS: Final[dict[str, Any]] = {"mask": {"flag_values": [0, 1], "flag_meanings": "good flagged"}}


@dataclass(frozen=True)
class StoreLayout:
    """Shape and division of a store's pixel arrays; ``shard_rows`` is 0 where there are no Zarr shards."""

    n_spectra: int
    n_pixels: int
    chunk_rows: int
    shard_rows: int

    @property
    def range_rows(self) -> int:
        """Rows of a range: one writer, one digest, one step of a resumed conversion."""
        return self.shard_rows or self.chunk_rows * _CHUNKS_PER_RANGE

    @property
    def file_rows(self) -> int:
        """Rows of one chunk file."""
        return self.shard_rows or self.chunk_rows

    def iter_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of every range, in order."""
        for start in range(0, self.n_spectra, self.range_rows):
            yield start, min(start + self.range_rows, self.n_spectra)

    def iter_files(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Yield (path below the array's folder, first row, end row) of the chunk files of rows start to
        stop."""
        for number in range(start // self.file_rows, -(-stop // self.file_rows)):
            first = number * self.file_rows
            yield f"c/{number}/0", first, min(first + self.file_rows, self.n_spectra)


def plan_layout(n_spectra: int, n_pixels: int, chunk_rows: int | None, shard_rows: int | None) -> StoreLayout:
    """Choose chunk and shard sizes: chunks of whole spectra near 16 MiB, eight of them to a shard.

    Parameters
    ----------
    n_spectra, n_pixels
        Shape of the arrays.
    chunk_rows
        Spectra per chunk, or None for the power of two nearest below 16 MiB of float32.
    shard_rows
        Spectra per Zarr shard, a multiple of ``chunk_rows``; 0 for no shards; None for the default.

    Raises
    ------
    ConfigError
        If the sizes are not positive or not multiples.
    """
    if chunk_rows is None:
        chunk_rows = 1 << max(0, int(math.log2(max(1, _CHUNK_BYTES // (4 * n_pixels)))))
        # chunks are padded to full size on disk and in memory: no larger than the data need
        chunk_rows = min(chunk_rows, 1 << (n_spectra - 1).bit_length())
    if chunk_rows < 1:
        raise ConfigError(f"chunk_rows must be at least 1, found {chunk_rows}; leave it out for the default")
    if shard_rows is None:
        shard_rows = chunk_rows * min(_CHUNKS_PER_RANGE, -(-n_spectra // chunk_rows))
    if shard_rows < 0 or shard_rows % chunk_rows:
        raise ConfigError(
            f"shard_rows must be 0 or a multiple of chunk_rows ({chunk_rows}), found {shard_rows}; use "
            f"{chunk_rows * _CHUNKS_PER_RANGE} or leave it out"
        )
    return StoreLayout(n_spectra, n_pixels, chunk_rows, shard_rows)


def open_group(path: Path) -> zarr.Group:
    """Open a store's root group for reading."""
    return zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)


def create_store(path: Path, layout: StoreLayout, variables: tuple[str, ...]) -> None:
    """Create the group and its empty pixel arrays; arrays that exist already are left alone."""
    root = zarr.open_group(path, mode="a", zarr_format=3)
    for variable in variables:
        if (path / variable / "zarr.json").exists():
            continue
        root.create_array(
            variable,
            shape=(layout.n_spectra, layout.n_pixels),
            dtype=np.uint8 if variable == "mask" else np.float32,
            chunks=(layout.chunk_rows, layout.n_pixels),
            shards=(layout.shard_rows, layout.n_pixels) if layout.shard_rows else None,
            compressors=_compressors(1 if variable == "mask" else 4),
            # a chunk that got lost after opening reads as NaN (mask: flagged), never as a plausible zero
            fill_value=fill_value(variable),
            dimension_names=(schema.DIM_SPECTRUM, schema.DIM_WAVELENGTH),
            attributes={"units": "1", "long_name": _TITLES[variable], **_FLAGS.get(variable, {})},
        )


def fill_value(variable: str) -> float:
    """What stands where there are no spectra: NaN, and 255 in a mask."""
    return 255 if variable == "mask" else math.nan


def write_columns(path: Path, wavelength: np.ndarray, mean_flux: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
    """Write the small arrays: wavelengths, mean spectrum and one array per column, replacing older ones."""
    root = zarr.open_group(path, mode="r+", zarr_format=3)
    spectrum, pixel = (schema.DIM_SPECTRUM,), (schema.DIM_WAVELENGTH,)
    attributes = {"units": "angstrom", "long_name": "wavelength", "standard_name": "radiation_wavelength"}
    _write_vector(root, "wavelength", wavelength, pixel, attributes)
    attributes = {"units": "1", "long_name": "mean clean spectrum of the store, origin of all moments"}
    _write_vector(root, schema.STORE_ORIGIN, mean_flux, pixel, attributes)
    for name, values in columns.items():
        attributes = {"long_name": schema.COLUMN_TITLES.get(name, name)}
        if name in schema.COLUMN_UNITS:
            attributes["units"] = schema.COLUMN_UNITS[name]
        _write_vector(root, name, values, spectrum, attributes)
    for variable in schema.PIXEL_VARIABLES:
        if variable in root:
            root[variable].attrs["coordinates"] = " ".join(columns)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write what makes a store of the arrays of a folder: the manifest, and what the root group says.

    The root group repeats the metadata of all arrays. So xarray opens the store by one file, and without a warning.
    This program reads the arrays' own files, whose digests the manifest holds.
    """
    zarr.open_group(path / MANIFEST_GROUP, mode="w", zarr_format=3, attributes=manifest.to_json())
    root = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
    root.attrs.update(
        {
            "format": schema.STORE_FORMAT,
            "version": schema.STORE_VERSION,
            "fingerprint": manifest.fingerprint,
            "title": "stellar spectra with labels",
            "Conventions": schema.CONVENTIONS,
        }
    )
    plain = parse_object(read_file(path / "zarr.json"))
    arrays = {name: parse_object(read_file(path / name / "zarr.json")) for name in manifest.metadata}
    plain["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    write_json(path / "zarr.json", plain)


def _write_vector(
    root: zarr.Group, name: str, values: np.ndarray, dims: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    with zarr.config.set({**_CONCURRENCY, "array.write_empty_chunks": True}):
        root.create_array(
            name,
            data=values,
            chunks=(max(1, min(len(values), _COLUMN_CHUNK_ROWS)),),
            compressors=_compressors(values.dtype.itemsize),
            fill_value=np.nan if values.dtype.kind == "f" else None,
            dimension_names=dims,
            attributes=attributes,
            overwrite=True,
        )


def _compressors(itemsize: int) -> tuple[BloscCodec, Crc32cCodec]:
    return BloscCodec(typesize=itemsize, cname="lz4", clevel=COMPRESSION_LEVEL, shuffle="shuffle"), Crc32cCodec()


# --- What a store says of itself: sources, digests of its rows, and a fingerprint made of the content alone.

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class SourceRecord:
    """One HDF5 shard a store was made of; rows are the shard's own.

    ``size`` (bytes) and ``mtime_ns`` (time of the last change, ns) tell whether the file may have changed since; the
    ``fingerprint`` is of its labels, wavelengths and five spectra only.
    """

    name: str
    size: int
    n_spectra: int
    fingerprint: str
    dropped: Mapping[str, list[int]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    mtime_ns: int = 0

    @property
    def dropped_rows(self) -> tuple[int, ...]:
        """Rows that were left out, for whatever reason, in order."""
        return tuple(sorted(row for rows in self.dropped.values() for row in rows))

    @property
    def n_kept(self) -> int:
        """Spectra that entered the store."""
        return self.n_spectra - sum(len(rows) for rows in self.dropped.values())


@dataclass(frozen=True)
class RangeRecord:
    """A finished range of rows: per variable the digest of the values, the sizes of the chunk files, and the crc32c of
    every chunk as it is encoded. Stores of the first version lack the last."""

    start: int
    stop: int
    digests: Mapping[str, str]
    file_bytes: Mapping[str, list[int]]
    checksums: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything needed to check a store: its small parts when it is opened, every chunk and column when it is read.

    ``metadata`` holds the SHA-256 of every array's ``zarr.json``; stores of the first version lack it.
    """

    n_spectra: int
    n_pixels: int
    chunk_rows: int
    shard_rows: int
    variables: tuple[str, ...]
    sources: tuple[SourceRecord, ...]
    ranges: tuple[RangeRecord, ...]
    wavelength: str
    mean_flux: str
    columns: Mapping[str, str]
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def list_checksums(self, variable: str) -> list[int] | None:
        """Return the crc32c of every chunk of a pixel array, in order; None where they are not known."""
        known = [part.checksums.get(variable) for part in self.ranges]
        return [checksum for own in known for checksum in own or ()] if all(known) else None

    @property
    def fingerprint(self) -> str:
        """sha256 of the content: wavelengths, origin, columns and rows; not of paths, chunks or
        compression."""
        totals = {
            variable: f"{sum(int(part.digests[variable], 16) for part in self.ranges) & _MASK64:016x}"
            for variable in self.variables
        }
        shape = [self.n_spectra, self.n_pixels]
        content = [schema.STORE_FORMAT, shape, self.wavelength, self.mean_flux, dict(self.columns), totals]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all pixel arrays on disk."""
        return sum(sum(sizes) for part in self.ranges for sizes in part.file_bytes.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts, with a checksum over all of them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return seal(plain)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Manifest:
        """Build from :meth:`to_json`'s value; ValueError where it is not one, or not what was written."""
        if not is_sealed(plain) and "metadata" in plain:
            raise ValueError("it has no checksum")
        return _MANIFEST.validate_python(plain)


_MANIFEST: Final = TypeAdapter(Manifest)


def digest_rows(rows: np.ndarray, first_row: int) -> int:
    """Digest rows so that digests of parts add up to that of the whole, however it is divided.

    ``Σ mix(row << 32 | crc32c(row's bytes)) mod 2^64`` with splitmix64 as ``mix``: a commutative monoid like
    the moments themselves, so a store's fingerprint does not depend on its chunks or on the order of writing.

    Parameters
    ----------
    rows
        Shape (n, P), C-ordered.
    first_row
        Row of ``rows[0]`` in the store.
    """
    crcs = np.fromiter((google_crc32c.value(row) for row in rows), np.uint64, len(rows))
    index = np.arange(first_row, first_row + len(rows), dtype=np.uint64)
    z = (index << np.uint64(32) | crcs) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return int((z ^ z >> np.uint64(31)).sum(dtype=np.uint64))


def digest_array(values: np.ndarray) -> str:
    """Return the sha256 of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{values.dtype.str} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)  # no copy: columns may be long
    return digest.hexdigest()


def damaged_store(path: Path, what: str) -> InputError:
    """Return the error that says what of a store is damaged, and what to do."""
    return InputError(f"store {path} is damaged: {what}; {rebuild_remedy(path)}")


def rebuild_remedy(path: Path) -> str:
    """Return what to do where a store cannot be read, for the end of a message."""
    return f"delete the folder and run again, or rebuild it: headroom convert SHARDS {path} --overwrite"
