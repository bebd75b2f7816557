"""What a store says of itself: sources, digests of its rows, and a fingerprint made of the content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c
import numpy as np

from pipeline import schema

__all__ = ["Manifest", "RangeRecord", "SourceRecord", "digest_array", "digest_rows"]

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
    """A finished range of rows: per variable the digest of the values and the sizes of the chunk files."""

    start: int
    stop: int
    digests: Mapping[str, str]
    file_bytes: Mapping[str, list[int]]


@dataclass(frozen=True)
class Manifest:
    """Everything needed to check a store without reading its pixels."""

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

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Manifest:
        """Build from :meth:`to_json`'s value; KeyError or TypeError where it is not one."""
        known = dict(plain)
        known["variables"] = tuple(known["variables"])
        known["sources"] = tuple(
            SourceRecord(**{**source, "remarks": tuple(source["remarks"])}) for source in known["sources"]
        )
        known["ranges"] = tuple(RangeRecord(**part) for part in known["ranges"])
        return cls(**known)


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
