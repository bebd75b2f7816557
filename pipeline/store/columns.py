"""Per-spectrum columns that stay on disk until one is asked for: labels, magnitudes, identities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import DAMAGE, refuse_environment
from pipeline.errors import InputError, did_you_mean
from pipeline.store.layout import damaged_store, digest_array, open_group

__all__ = ["LazyColumns", "StoreColumns"]


class LazyColumns(Mapping[str, np.ndarray]):
    """Columns by name, each read whole when it is asked for and not kept: memory is the caller's to spend."""

    def __init__(self, names: Sequence[str], read: Callable[[str], np.ndarray]) -> None:
        self._names, self._read = tuple(names), read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one would read the column

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class StoreColumns(LazyColumns):
    """The columns of one store. Each is compared with its digest in the manifest: the checksums of its chunks are those
    of another column, too, whose file has taken its place.

    Parameters
    ----------
    path
        The store's folder.
    digests
        Names, and what :func:`digest_array` says of each column.
    n_spectra
        N.
    chunk_rows
        Rows of a column that are decoded together; all of them in stores of old.
    """

    def __init__(self, path: Path, digests: Mapping[str, str], n_spectra: int, chunk_rows: int) -> None:
        super().__init__(tuple(digests), self._read_whole)
        self.chunk_rows = chunk_rows
        self._path, self._digests, self._n_spectra = path, digests, n_spectra
        self._opened: dict[str, Any] = {}
        self._compared: set[str] = set()

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read rows ``start`` to ``stop`` (exclusive) of a column, shape (stop − start,), read-only.

        The first time, the whole column is compared with its digest, chunk by chunk.

        Raises
        ------
        InputError
            If there is no such column, or a chunk is missing or damaged; the message names the store and the column.
        """
        if name not in self._compared:
            self._compare(name)
        return self._read_rows(name, start, stop)

    def iter_blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of all rows, cut as the chunks are."""
        for start in range(0, self._n_spectra, self.chunk_rows):
            yield start, min(start + self.chunk_rows, self._n_spectra)

    def _read_whole(self, name: str) -> np.ndarray:
        values = self._read_rows(name, 0, self._n_spectra)
        self._require_digest(name, digest_array(values))
        return values

    def _compare(self, name: str) -> None:
        digest = None
        for start, stop in self.iter_blocks():
            values = self._read_rows(name, start, stop)
            digest = digest or hashlib.sha256(f"{values.dtype.str} {(self._n_spectra,)}".encode())  # see digest_array
            digest.update(values.data)
        if digest is not None:
            self._require_digest(name, digest.hexdigest())

    def _require_digest(self, name: str, digest: str) -> None:
        if digest != self._digests[name]:
            raise damaged_store(self._path, f"column {name!r} cannot be read (it differs from the manifest)")
        self._compared.add(name)

    def _read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._digests:
            raise InputError(
                f"store {self._path} has no column {name!r}{did_you_mean(name, self._digests)}; present: "
                f"{', '.join(self._digests)}"
            )
        try:
            # Opened once: zarr reads and parses two files for it.
            if name not in self._opened:
                self._opened[name] = open_group(self._path)[name]
            array = self._opened[name]
            rows = array.chunks[0]
            values = np.empty(stop - start, array.dtype)
            # Chunk by chunk: zarr would hold several beside the result.
            for number in range(start // rows, -(-stop // rows)):
                if not (self._path / name / "c" / str(number)).is_file():
                    # zarr would take fill values for it
                    raise ValueError(f"its chunk c/{number} is missing")
                first, end = max(start, number * rows), min(stop, (number + 1) * rows)
                values[first - start : end - start] = array[first:end]
        except DAMAGE as error:
            refuse_environment(self._path, error)
            raise damaged_store(self._path, f"column {name!r} cannot be read ({error})") from error
        values.flags.writeable = False
        return values
