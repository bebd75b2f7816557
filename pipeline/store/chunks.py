"""Encode and decode a store's chunk files, straight from and into the caller's buffers.

zarr decodes into memory of its own and copies; fresh memory costs more than the decompression itself (page
faults). A store's codecs are fixed by its format version (bytes, blosc, crc32c, optionally in Zarr shards),
so its chunks can be decoded in place. Unlike zarr, nothing here turns a missing chunk into fill values.
Writing goes chunk by chunk: zarr would hold a whole Zarr shard in memory, raw and compressed, and took twice the time.
"""

from __future__ import annotations

import os
import struct
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipeline.base import BLOCK, BlockFile, BlockWriter, aligned_buffer
from pipeline.store.layout import COMPRESSION_LEVEL, StoreLayout

__all__ = ["ChunkError", "read_chunk_rows", "write_chunks"]

_CRC_BYTES = 4
_ENTRY_BYTES = 16
_ABSENT = (1 << 64) - 1
#: Twice the bytes that are written at a time, which hold a whole chunk, so that compression never waits for the disk.
_STAGING_BYTES = 32 << 20
#: Bytes that are read at a time from the page cache: the processor still has them when their crc32c is taken.
_PIECE_BYTES = 1 << 19


class ChunkError(Exception):
    """A chunk is missing or damaged; the caller adds which store and rows."""


class _Scratch(threading.local):
    """Buffers that live as long as the thread, so that no read pays for fresh memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int) -> np.ndarray:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = aligned_buffer(size)
        return buffer[:size]


_scratch = _Scratch()


def read_chunk_rows(
    folder: Path,
    layout: StoreLayout,
    start: int,
    stop: int,
    out: np.ndarray,
    checksums: Sequence[int] | None = None,
    *,
    direct: bool = False,
) -> None:
    """Fill ``out`` with rows ``start`` to ``stop`` of the array in ``folder``.

    Parameters
    ----------
    folder
        The array's folder.
    out
        Shape (stop − start, P), C-ordered, of the array's dtype.
    checksums
        The crc32c that every chunk of the array must have, in order. A file that was taken from another array, or from
        another place of this one, is sound by its own checksums. None where nobody knows.
    direct
        Read past the page cache, where the system can.

    Raises
    ------
    ChunkError
        If a chunk is missing, does not match its checksum, or cannot be decoded.
    """
    for name, first, end in layout.iter_files(start, stop):
        low, high = max(start, first), min(stop, end)
        try:
            file = BlockFile(folder / name, direct=direct)
        except OSError as error:
            raise ChunkError(f"{folder.name}/{name} cannot be opened: {error.strerror}") from error
        try:
            with file:
                rows = out[low - start : high - start]
                _read_file(file, f"{folder.name}/{name}", layout, first, low, rows, checksums)
        except OSError as error:
            raise ChunkError(f"{folder.name}/{name} cannot be read: {error.strerror}") from error


def write_chunks(
    folder: Path, layout: StoreLayout, start: int, chunks: Iterator[np.ndarray]
) -> tuple[list[int], list[int]]:
    """Write the chunk files of one whole range; return the files' sizes in bytes, and the crc32c of every chunk.

    Parameters
    ----------
    folder
        The array's folder.
    start
        First row of the range.
    chunks
        The range's chunks in order, each (chunk_rows, P) and C-ordered; rows past the last spectrum are padding. A
        buffer may be reused from one chunk to the next.
    """
    # two writers in one Zarr shard would lose rows silently: whole ranges only
    assert start % layout.range_rows == 0, (start, layout)
    stop = min(start + layout.range_rows, layout.n_spectra)
    sizes, checksums = [], []
    for name, first, end in layout.iter_files(start, stop):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # unique on every host; what a killed run leaves is removed before a conversion goes on
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        with BlockWriter(temporary, _scratch.take("written", _STAGING_BYTES)) as file:
            checksums += _write_file(file, layout, -(-(end - first) // layout.chunk_rows), chunks)
        os.replace(temporary, path)
        sizes.append(path.stat().st_size)
    return sizes, checksums


def _write_file(file: BlockWriter, layout: StoreLayout, n_chunks: int, chunks: Iterator[np.ndarray]) -> list[int]:
    checksums = []
    index = np.full((layout.file_rows // layout.chunk_rows, 2), _ABSENT, "<u8")
    offset = 0
    for number in range(n_chunks):
        chunk = next(chunks)
        assert chunk.shape == (layout.chunk_rows, layout.n_pixels), (chunk.shape, layout)
        encoded = blosc.compress(chunk, b"lz4", COMPRESSION_LEVEL, blosc.SHUFFLE)
        checksums.append(google_crc32c.value(encoded))
        file.write(encoded)
        file.write(struct.pack("<I", checksums[-1]))
        index[number] = offset, len(encoded) + _CRC_BYTES
        offset += len(encoded) + _CRC_BYTES
    if layout.shard_rows:
        file.write(index.tobytes())
        file.write(struct.pack("<I", google_crc32c.value(index.tobytes())))
    return checksums


def _read_file(
    file: BlockFile,
    name: str,
    layout: StoreLayout,
    first: int,
    low: int,
    out: np.ndarray,
    checksums: Sequence[int] | None,
) -> None:
    """Read rows ``low`` onwards from the file whose first row is ``first``."""
    entries = _read_index(file, name, layout)
    high = low + len(out)
    for number in range((low - first) // layout.chunk_rows, -(-(high - first) // layout.chunk_rows)):
        chunk_first = first + number * layout.chunk_rows
        offset, size = entries[number]
        if offset == _ABSENT:
            raise ChunkError(f"{name} lacks the chunk of rows from {chunk_first}")
        encoded, checksum = _read_checked(file, name, int(offset), int(size))
        if checksums is not None and checksum != checksums[chunk_first // layout.chunk_rows]:
            raise ChunkError(f"{name} holds other spectra from row {chunk_first} on than the manifest says")
        rows = slice(max(low, chunk_first), min(high, chunk_first + layout.chunk_rows))
        target = out[rows.start - low : rows.stop - low]
        chunk_bytes = layout.chunk_rows * layout.n_pixels * out.dtype.itemsize
        if len(target) == layout.chunk_rows:
            _decode(encoded, target, chunk_bytes, name)
            continue
        whole = _scratch.take("chunk", chunk_bytes)
        _decode(encoded, whole, chunk_bytes, name)
        chunk = whole.view(out.dtype).reshape(layout.chunk_rows, layout.n_pixels)
        target[:] = chunk[rows.start - chunk_first : rows.stop - chunk_first]


def _read_index(file: BlockFile, name: str, layout: StoreLayout) -> np.ndarray:
    """Offsets and sizes of the chunks in one file, shape (chunks, 2): the index that ends a Zarr shard."""
    size = file.size
    if not layout.shard_rows:
        return np.array([[0, size]], np.uint64)
    length = layout.shard_rows // layout.chunk_rows * _ENTRY_BYTES + _CRC_BYTES
    if size < length:
        raise ChunkError(f"{name} is cut off ({size} bytes)")
    index, _ = _read_checked(file, name, size - length, length)
    return index.copy().view("<u8").reshape(-1, 2)


def _read_checked(file: BlockFile, name: str, offset: int, size: int) -> tuple[np.ndarray, int]:
    """Read bytes that end in their crc32c, and return them and it."""
    if size <= _CRC_BYTES or offset + size > file.size:
        raise ChunkError(f"{name} is cut off (no {size} bytes at {offset})")
    # From block to block, as reading past the page cache requires.
    first = offset // BLOCK * BLOCK
    end = -(-(offset + size) // BLOCK) * BLOCK
    blocks = _scratch.take("encoded", end - first)
    begin, wanted, crc = offset - first, offset + size - first, 0
    step = len(blocks) if file.is_direct else _PIECE_BYTES
    for low in range(0, len(blocks), step):
        piece = blocks[low : low + step]
        if low + file.read(first + low, piece) < min(low + len(piece), wanted):
            raise ChunkError(f"{name} is cut off (no {size} bytes at {offset})")
        crc = google_crc32c.extend(crc, blocks[max(low, begin) : min(low + len(piece), wanted - _CRC_BYTES)])
    content, last = blocks[begin : wanted - _CRC_BYTES], blocks[wanted - _CRC_BYTES : wanted]
    checksum = int.from_bytes(last.tobytes(), "little")
    if crc != checksum:
        raise ChunkError(f"{name} does not match its checksum (crc32c of {size} bytes at {offset})")
    return content, checksum


def _decode(encoded: np.ndarray, target: np.ndarray, expected: int, name: str) -> None:
    # blosc's header holds the decoded size; a smaller one would leave old values in the buffer
    if len(encoded) < 16 or int(encoded[4:8].view("<u4")[0]) != expected:
        raise ChunkError(f"{name} holds a chunk of another size than {expected} bytes")
    try:
        blosc.decompress(encoded, target.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"{name} cannot be decoded: {error}") from error
