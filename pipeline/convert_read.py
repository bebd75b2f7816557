"""Rows of a shard for its conversion: straight from the file where HDF5 has nothing to decode, else through HDF5.

The users' shards hold uncompressed float64 in chunks of whole rows. Such rows lie in the file one after the other, so
they can be read in tiles that stay in the processor's cache until they are cast, which costs half as much as reading
them through the library. What was read in this way is compared with what HDF5 reads before a store is put in place,
row by row for a sample of rows, and all of them before a shard is deleted.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from pipeline.shard_layout import PIXEL_PATHS
from pipeline.shards import ShardReader

__all__ = ["RowSource"]

#: Source, float32 result and sums of a tile fit in the second-level cache together.
_TILE_BYTES: Final = 1 << 19


@dataclass
class _PlainArray:
    """An array whose rows are plain bytes of the file: its HDF5 identifier, and the chunk that was located last."""

    identifier: Any
    dtype: np.dtype[Any]
    row_bytes: int
    chunk_rows: int
    is_chunked: bool
    located: tuple[int, int] = (-1, -1)

    def locate(self, row: int) -> tuple[int, int] | None:
        """Return the byte offset of a row and the first row after its chunk, None where HDF5 has to look itself."""
        first = row - row % self.chunk_rows
        if self.located[0] != first:
            if self.is_chunked:
                chunk = self.identifier.get_chunk_info_by_coord((first, 0))
                if chunk.size != self.chunk_rows * self.row_bytes or chunk.byte_offset is None:
                    return None
                self.located = first, chunk.byte_offset
            else:
                self.located = first, self.identifier.get_offset()
        return self.located[1] + (row - first) * self.row_bytes, first + self.chunk_rows


class RowSource:
    """Reads rows of one shard into the caller's buffer; a context manager, with the errors of its ``ShardReader``."""

    def __init__(self, path: Path) -> None:
        self._reader = ShardReader(path)
        self._stack = ExitStack()
        self._handle = -1
        self._plain: dict[str, _PlainArray | None] = {}
        self._mask = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._reader)
            self._handle = os.open(self._reader.path, os.O_RDONLY)
            stack.callback(os.close, self._handle)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plain.clear()
        self._stack.close()

    def tile_rows(self, variable: str, largest: int) -> int:
        """Return how many rows, at most ``largest``, are read best at a time."""
        plain = self._find(variable)
        return largest if plain is None else min(largest, max(1, _TILE_BYTES // plain.row_bytes))

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array.

        Parameters
        ----------
        variable, start, stop
            See :meth:`pipeline.shards.ShardReader.read_rows`.
        out
            C-ordered float64 buffer of at least ``stop - start`` rows; masks have one of their own.

        Returns
        -------
        numpy.ndarray
            Shape (stop − start, P): a view of ``out``; for ``mask`` uint8, 1 = flagged.
        """
        plain = self._find(variable)
        if plain is not None and variable != "mask":
            rows = out[: stop - start]
            if self._fill(plain, start, stop, rows.reshape(-1).view(np.uint8).data):
                return rows
        elif plain is not None:
            size = (stop - start) * plain.row_bytes
            rows_shape = (stop - start, plain.row_bytes // plain.dtype.itemsize)
            if self._mask.size < size:
                self._mask = np.empty(size, np.uint8)
            if self._fill(plain, start, stop, self._mask[:size].data):
                values = self._mask[:size].view(plain.dtype).reshape(rows_shape)
                flagged: np.ndarray = (values != 0).view(np.uint8)
                return flagged
        return self._reader.read_rows(variable, start, stop, None if variable == "mask" else out)

    def _fill(self, plain: _PlainArray, start: int, stop: int, target: memoryview) -> bool:
        """Read the bytes of rows; False if that fails, so that HDF5 reads them, or finds out what is wrong."""
        row = start
        with suppress(OSError, RuntimeError, ValueError):
            while row < stop:
                located = plain.locate(row)
                if located is None:
                    return False
                end = min(stop, located[1])
                piece = target[(row - start) * plain.row_bytes : (end - start) * plain.row_bytes]
                if os.preadv(self._handle, [piece], located[0]) != len(piece):
                    return False
                row = end
        return row == stop

    def _find(self, variable: str) -> _PlainArray | None:
        if variable not in self._plain:
            self._plain[variable] = _describe(self._reader, variable)
        return self._plain[variable]


def _describe(reader: ShardReader, variable: str) -> _PlainArray | None:
    """Return how an array lies in the file if all its rows are plain bytes there, in this machine's order."""
    file = reader.file
    dataset = file[PIXEL_PATHS[variable]]
    wanted = dataset.dtype.kind in "iu" if variable == "mask" else dataset.dtype == np.float64
    if not (wanted and dataset.dtype.isnative and file.driver == "sec2" and file.userblock_size == 0):
        return None
    if dataset.file.filename != file.filename or dataset.is_virtual or dataset.external:
        return None
    n_spectra, n_pixels = dataset.shape
    if dataset.chunks is None:
        chunk_rows = n_spectra if dataset.id.get_offset() is not None else 0
    else:
        whole = dataset.chunks[1] == n_pixels and not dataset.id.get_create_plist().get_nfilters()
        chunk_rows = dataset.chunks[0] if whole else 0
    if not chunk_rows:
        return None
    return _PlainArray(
        dataset.id, dataset.dtype, n_pixels * dataset.dtype.itemsize, chunk_rows, dataset.chunks is not None
    )
