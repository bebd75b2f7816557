"""The piece of a conversion that workers run: one range of rows from its shards into the store.

Rows are read straight from the file where HDF5 has nothing to decode, cast to float32 and checked tile by tile, and
written chunk by chunk.

A finished range leaves one small record beside the store being built. The record is written last and at once
(temporary name, then rename), so a range is either recorded and complete, or done again.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import numpy as np

from pipeline.base import seal, write_json
from pipeline.errors import InputError, ResourceError
from pipeline.schema import ABSURD
from pipeline.shards import PIXEL_PATHS, RowReader, ShardInfo, ShardReader, stamp_files
from pipeline.store import StoreLayout, digest_rows, fill_value, write_chunks

__all__ = [
    "FAULTS",
    "Bounds",
    "ConversionPlan",
    "Fault",
    "RangeWriter",
    "RowSource",
    "cast_rows",
    "convert_disk_errors",
    "describe_fault",
    "keep_freed_memory",
]

# --- Reading rows of a shard.
#
# The users' shards hold uncompressed float64 in chunks of whole rows. Such rows lie in the file one after the other, so
# they can be read in tiles that stay in the processor's cache until they are cast, which costs half as much as reading
# them through the library. What was read in this way is compared with what HDF5 reads before a store is put in place,
# row by row for a sample of rows, and all of them by ``headroom convert --verify``.

#: Source, float32 result and sums of a tile fit in the second-level cache together.
TILE_BYTES: Final = 1 << 19


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

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
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
        return largest if plain is None else min(largest, max(1, TILE_BYTES // plain.row_bytes))

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array.

        Parameters
        ----------
        variable, start, stop
            See :meth:`pipeline.shards.reader.ShardReader.read_rows`.
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


class WholeRows:
    """Reads rows through any reader, as many at a time as are asked for."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def tile_rows(self, variable: str, largest: int) -> int:
        """Return ``largest``."""
        del variable
        return largest

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Read rows, see :meth:`RowSource.read_rows`."""
        return self._reader.read_rows(variable, start, stop, None if variable == "mask" else out)


TiledReader: TypeAlias = RowSource | WholeRows


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


# --- Casting rows to float32, and finding every pixel that may not enter a store.

#: Values cast at a time: source, result and sums of a tile stay in the processor's cache.
_TILE_VALUES: Final = 1 << 16
#: Kinds of faults, all of which ``nonfinite="drop"`` leaves out.
FAULTS: Final = ("nonfinite", "absurd", "negative error", "all zero", "constant", "zero error", "unwritten error")


@dataclass(frozen=True)
class Bounds:
    """What the pixels of one shard are held against.

    Attributes
    ----------
    limit
        Flux and errors as large as this, or larger, are absurd.
    fill
        What errors read as that were never written.
    """

    limit: float = math.inf
    fill: float = 0.0

    @classmethod
    def of_flux(cls, typical: float, fill: float = 0.0) -> Bounds:
        """Return the bounds of spectra with this typical flux, NaN if it is not known."""
        return cls(ABSURD * typical if typical > 0 else math.inf, fill)

    @classmethod
    def of_shard(cls, info: ShardInfo) -> Bounds:
        """Return the bounds of a shard."""
        return cls.of_flux(info.typical_flux, info.fills.get("error", 0.0))


@dataclass(frozen=True)
class Fault:
    """A spectrum that may not enter the store: which row, why, and its first wrong pixel."""

    row: int
    kind: str
    pixel: int
    value: float


def cast_rows(
    variable: str,
    source: np.ndarray,
    out: np.ndarray,
    sums: np.ndarray | None = None,
    bounds: Bounds = Bounds(),
) -> tuple[int, list[Fault]]:
    """Cast rows to float32 in one pass that also checks and sums them.

    Parameters
    ----------
    variable
        ``flux``, ``error`` or ``noisy``. Errors that are NaN in the first or last pixel take the neighbour's value,
        in ``source`` itself; so does ``noisy``, which inherits the NaN of the errors it was drawn with.
    source
        Shape (n, P) float64.
    out
        Shape (n, P) float32, filled.
    sums
        Shape (P,) float64; the rows of ``out`` are added to it.
    bounds
        Of the shard.

    Returns
    -------
    tuple
        Number of repaired edge pixels, and the faults: non-finite and absurd pixels, negative errors, and what storage
        reads as that was never written: flux that is the same in all pixels, errors that are all zero or all the fill
        value. Masks are not looked at: the models use every pixel. Faulty rows are cast like the others.
    """
    repaired, faults = 0, []
    step = max(1, _TILE_VALUES // source.shape[1])
    clipped = np.empty((min(step, len(source)), source.shape[1])) if sums is not None else None
    for first in range(0, len(source), step):
        tile, cast = source[first : first + step], out[first : first + step]
        if variable in ("error", "noisy"):
            repaired += _repair_edges(tile)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(cast, tile, casting="same_kind")
        for row in _suspects(variable, cast, bounds):
            faults.append(_describe_fault(variable, tile[row], cast[row], first + row, bounds))
        if clipped is not None:
            # The clean flux of the noise model is max(flux, 0): a pixel that is never positive is 0 there, exactly.
            sums += np.maximum(cast, 0, out=clipped[: len(cast)]).sum(axis=0)
    return repaired, faults


def _repair_edges(tile: np.ndarray) -> int:
    """Give NaN at the first and last pixel the neighbour's value, as the shards' own loader does."""
    repaired = 0
    for edge, neighbour in ((0, 1), (-1, -2)):
        rows = np.flatnonzero(np.isnan(tile[:, edge]) & ~np.isnan(tile[:, neighbour]))
        if rows.size:
            tile[rows, edge] = tile[rows, neighbour]
            repaired += rows.size
    return repaired


def _suspects(variable: str, cast: np.ndarray, bounds: Bounds) -> list[int]:
    with np.errstate(invalid="ignore"):
        low, high = cast.min(axis=1), cast.max(axis=1)
        suspicious = ~((low > -bounds.limit) & (high < bounds.limit))  # NaN is neither
        equal = low == high
    if variable == "error":
        suspicious |= (low < 0) | (equal & ((high == 0) | (high == np.float32(bounds.fill))))
    else:
        suspicious |= equal if cast.shape[1] > 1 else (high == 0) & (variable == "flux")
    rows: list[int] = np.flatnonzero(suspicious).tolist()
    return rows


def _describe_fault(variable: str, source: np.ndarray, cast: np.ndarray, row: int, bounds: Bounds) -> Fault:
    with np.errstate(invalid="ignore"):
        found = {
            "nonfinite": ~np.isfinite(source),
            "absurd": ~(np.abs(cast) < bounds.limit),
            "negative error": (cast < 0) & (variable == "error"),
        }
    for kind, wrong in found.items():
        if wrong.any():
            pixel = int(np.argmax(wrong))
            return Fault(row, kind, pixel, float(source[pixel]))
    is_zero = not cast.any()
    if variable == "error":
        return Fault(row, "zero error" if is_zero else "unwritten error", 0, float(source[0]))
    return Fault(row, "all zero" if is_zero and variable == "flux" else "constant", 0, float(source[0]))


# --- The range: its plan, and its writer.

#: Bytes of float64 read from HDF5 at a time: bounded whatever the HDF5 chunks, and still in cache when cast.
BLOCK_BYTES: Final = 4 << 20
#: Just below the 32 MiB that glibc keeps at most.
_LARGEST_KEPT: Final = 31 << 20


@dataclass(frozen=True)
class ConversionPlan:
    """Which rows of which shards become which rows of the store; small, and sent to every worker.

    ``stamps`` are the shards' sizes and times of change (ns) when they were checked, :attr:`ShardInfo.stamp`, a size of
    0 if the spectra lie in memory; ``openers`` make readers of their rows;
    ``dropped`` are sorted rows per shard, ``bounds`` is what its pixels are held against; ``variables`` are the float
    arrays; ``has_mask`` says which shards carry a mask; ``key`` stands for sources and settings.
    """

    shards: tuple[Path, ...]
    lengths: tuple[int, ...]
    stamps: tuple[tuple[int, int], ...]
    others: tuple[tuple[Path, ...], ...]
    openers: tuple[Callable[[], RowReader], ...]
    has_mask: tuple[bool, ...]
    dropped: tuple[tuple[int, ...], ...]
    bounds: tuple[Bounds, ...]
    layout: StoreLayout
    variables: tuple[str, ...]
    work: Path
    key: str

    @property
    def store(self) -> Path:
        """The store being built."""
        return self.work / "store"

    @property
    def block_rows(self) -> int:
        """Rows read from HDF5 at a time."""
        return max(1, min(BLOCK_BYTES // (8 * self.layout.n_pixels), self.layout.chunk_rows))

    def record_path(self, start: int) -> Path:
        """File that records the finished range from row ``start``."""
        return self.work / "ranges" / f"{start:012d}.json"

    def scan_path(self, shard: int, start: int) -> Path:
        """File that records the faults found in a block of a shard's rows."""
        return self.work / "scan" / f"{shard:06d}-{start:012d}.json"

    @cached_property
    def _runs(self) -> list[tuple[int, int, int, int]]:
        """(first row in the store, shard, start, stop) of every run of kept rows, in order."""
        runs, row = [], 0
        for shard, (length, dropped) in enumerate(zip(self.lengths, self.dropped, strict=True)):
            bounds = [-1, *dropped, length]
            for before, after in pairwise(bounds):
                if after > before + 1:
                    runs.append((row, shard, before + 1, after))
                    row += after - before - 1
        return runs

    def iter_segments(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (shard, first row, end row, first row in the store) that make up rows start to stop of the store."""
        for first, shard, low, high in self._runs:
            begin, end = max(start, first), min(stop, first + high - low)
            if begin < end:
                yield shard, low + begin - first, low + end - first, begin

    def describe_range(self, start: int, stop: int) -> str:
        """Digest which rows of which files, in which state of the files, make up rows start to stop.

        A finished range counts only while this stays the same: the key is blind to most rows of a shard.
        """
        segments = [(*segment, *self.stamps[segment[0]]) for segment in self.iter_segments(start, stop)]
        return hashlib.sha256(repr(segments).encode()).hexdigest()

    def open_shard(self, shard: int) -> RowReader:
        """Return the reader of a shard, which reads no other files than those that it was found to refer to."""
        return self.openers[shard]()

    def open_rows(self, shard: int) -> TiledReader:
        """Return the same, with the fastest way to read many rows one after the other."""
        reader = self.open_shard(shard)
        return RowSource(reader) if isinstance(reader, ShardReader) else WholeRows(reader)

    def require_unchanged(self, shards: Iterable[int]) -> None:
        """Refuse shards that were written to since they were checked."""
        for shard in shards:
            path = self.shards[shard]
            if not self.stamps[shard][0]:
                continue  # it lies in the caller's memory
            try:
                stamp = stamp_files([path, *self.others[shard]])
            except OSError as error:
                raise InputError(
                    f"shard {error.filename or path} cannot be found any more ({error.strerror}); put it back and run "
                    "again"
                ) from error
            if stamp != tuple(self.stamps[shard]):
                raise InputError(
                    f"shard {path} must stay as it is while it is converted, but it was written to; wait until its "
                    "writer has finished, then run again: ranges of unchanged shards are kept"
                )


class RangeWriter:
    """Converts ranges one after another, chunk by chunk, with buffers that are allocated once."""

    def __init__(self, plan: ConversionPlan) -> None:
        self.plan = plan
        shape = (plan.layout.chunk_rows, plan.layout.n_pixels)
        self._chunk = np.empty(shape, np.float32)
        self._mask_chunk = np.empty(shape, np.uint8)
        self._block = np.empty((plan.block_rows, plan.layout.n_pixels))
        keep_freed_memory(self._chunk.nbytes)

    def convert_range(self, start: int) -> dict[str, Any]:
        """Write the range from row ``start`` of every variable, record it, and return the record.

        Raises
        ------
        InputError
            If a pixel may not enter the store; the message names file, row and pixel.
        ResourceError
            If the disk refuses.
        """
        plan = self.plan
        stop = min(start + plan.layout.range_rows, plan.layout.n_spectra)
        record: dict[str, Any] = {"key": plan.key, "start": start, "stop": stop, "repaired": {}, "flagged": 0}
        record |= {"digests": {}, "file_bytes": {}, "checksums": {}, "sources": plan.describe_range(start, stop)}
        sums = np.zeros(plan.layout.n_pixels)
        with convert_disk_errors(plan.work), ExitStack() as stack:
            readers: dict[int, TiledReader] = {}
            for shard, *_ in plan.iter_segments(start, stop):
                if shard not in readers:
                    source = plan.open_rows(shard)
                    readers[shard] = source
                    stack.enter_context(source)
            for variable in plan.variables:
                self._write(record, variable, self._iter_chunks(readers, variable, record, sums))
            if any(plan.has_mask[shard] for shard in readers):
                record["flagged"] = self._count_flagged(readers, start, stop)
            if record["flagged"]:
                self._write(record, "mask", self._iter_masks(readers, record))
            plan.require_unchanged(readers)
            record["flux_sums"] = base64.b64encode(sums.astype("<f8").tobytes()).decode()
            write_json(plan.record_path(start), seal(record))
        return record

    def scan_rows(self, task: tuple[int, int, int]) -> dict[str, Any]:
        """Find the faulty spectra among rows of one shard, given as (shard, start, stop), and record them."""
        shard, start, stop = task
        faults: dict[str, set[int]] = {kind: set() for kind in FAULTS}
        bounds = self.plan.bounds[shard]
        with convert_disk_errors(self.plan.work), self.plan.open_rows(shard) as reader:
            for variable in self.plan.variables:
                step = reader.tile_rows(variable, self.plan.block_rows)
                for low in range(start, stop, step):
                    rows = reader.read_rows(variable, low, min(low + step, stop), self._block)
                    for fault in cast_rows(variable, rows, self._chunk[: len(rows)], bounds=bounds)[1]:
                        faults[fault.kind].add(low + fault.row)
            record = {"key": self.plan.key, "shard": shard, "start": start, "stop": stop}
            self.plan.require_unchanged([shard])
            record["stamp"] = list(self.plan.stamps[shard])
            record["faults"] = {kind: sorted(rows) for kind, rows in faults.items()}
            write_json(self.plan.scan_path(shard, start), seal(record))
        return record

    def _write(self, record: dict[str, Any], variable: str, chunks: Iterator[np.ndarray]) -> None:
        """Write a variable's chunks, which add to its digest as they are made; record digest, file sizes, checksums."""
        plan, start = self.plan, record["start"]
        record["digests"][variable] = 0
        folder = plan.store / variable
        sizes, checksums = write_chunks(folder, plan.layout, start, chunks)
        record["file_bytes"][variable], record["checksums"][variable] = sizes, checksums
        record["digests"][variable] = f"{record['digests'][variable] % 2**64:016x}"

    def _iter_blocks(
        self, readers: Mapping[int, TiledReader], variable: str, start: int, stop: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield (shard, first row, end row, first row in the store) in pieces that fit the block buffer."""
        for shard, low, high, row in self.plan.iter_segments(start, stop):
            has_any = variable != "mask" or self.plan.has_mask[shard]
            step = readers[shard].tile_rows(variable, self.plan.block_rows) if has_any else self.plan.block_rows
            for first in range(low, high, step):
                yield shard, first, min(first + step, high), row + first - low

    def _iter_chunks(
        self, readers: Mapping[int, TiledReader], variable: str, record: dict[str, Any], sums: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Read, check and cast the chunks of a range; every one is the same buffer, padded with the fill value."""
        for start, stop in self._iter_bounds(record["start"], record["stop"]):
            self._chunk[stop - start :] = fill_value(variable)
            for shard, first, last, row in self._iter_blocks(readers, variable, start, stop):
                rows = readers[shard].read_rows(variable, first, last, self._block)
                target = self._chunk[row - start : row - start + len(rows)]
                own_sums = sums if variable == "flux" else None
                repaired, faults = cast_rows(variable, rows, target, own_sums, self.plan.bounds[shard])
                if faults:
                    raise _refuse(faults[0], variable, self.plan.shards[shard], first, self.plan.bounds[shard])
                record["repaired"][variable] = record["repaired"].get(variable, 0) + repaired
                record["digests"][variable] += digest_rows(target, row)  # while they are in the processor's cache
            yield self._chunk

    def _iter_masks(self, readers: Mapping[int, TiledReader], record: dict[str, Any]) -> Iterator[np.ndarray]:
        for low, high in self._iter_bounds(record["start"], record["stop"]):
            self._mask_chunk[high - low :] = fill_value("mask")
            for shard, first, last, row in self._iter_blocks(readers, "mask", low, high):
                flags = readers[shard].read_rows("mask", first, last, self._block) if self.plan.has_mask[shard] else 0
                target = self._mask_chunk[row - low : row - low + last - first]
                target[:] = flags
                record["digests"]["mask"] += digest_rows(target, row)
            yield self._mask_chunk

    def _count_flagged(self, readers: Mapping[int, TiledReader], start: int, stop: int) -> int:
        return sum(
            int(np.count_nonzero(readers[shard].read_rows("mask", first, last, self._block)))
            for shard, first, last, _ in self._iter_blocks(readers, "mask", start, stop)
            if self.plan.has_mask[shard]
        )

    def _iter_bounds(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for first in range(start, stop, self.plan.layout.chunk_rows):
            yield first, min(first + self.plan.layout.chunk_rows, stop)


def keep_freed_memory(size: int) -> None:
    """Let the allocator keep blocks of this size for the next ones, instead of returning each to the system.

    A chunk is compressed into memory of its own, which the system hands out page by page, each cleared first: a tenth
    of a conversion's time. glibc serves blocks up to the largest that was ever freed (32 MiB at most) from memory that
    it keeps; with other allocators this does nothing.
    """
    np.empty(min(2 * size, _LARGEST_KEPT), np.uint8)  # freed at once, and never touched


@contextmanager
def convert_disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing below ``path`` into a ResourceError that names it."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room or choose another disk" if full else "choose a place that can be written"
        raise ResourceError(
            f"cannot write {place}: {error.strerror or error}; {remedy}, then run again: finished ranges are kept"
        ) from error


def _refuse(fault: Fault, variable: str, shard: Path, first_row: int, bounds: Bounds) -> InputError:
    found = describe_fault(replace(fault, row=first_row + fault.row), variable, bounds)
    where = f"shard {Path(*shard.parts[-2:])}" if shard.exists() else f"the {shard.name}"  # which is in memory
    return InputError(
        f"{where}: {found}; re-run the simulation, or leave such spectra out: "
        "'data.nonfinite: drop' in a configuration, '--nonfinite drop' for headroom convert, nonfinite='drop' in Python"
    )


def describe_fault(fault: Fault, variable: str, bounds: Bounds) -> str:
    """Return what is required of the spectrum and what was found, for messages."""
    if fault.kind == "all zero":
        return f"spectrum {fault.row} must hold flux, but all its pixels are zero"
    if fault.kind in ("zero error", "constant", "unwritten error"):
        held = "1-sigma errors, but all its errors" if variable == "error" else f"{variable}, but all its pixels"
        value = "zero" if fault.value == 0 else f"{fault.value:g}"
        return f"spectrum {fault.row} must hold {held} are {value}, as if they were never written"
    wanted, even = "non-negative", ""
    if fault.kind != "negative error":
        limit = f"below {bounds.limit:.3g} (a million times the typical flux)" if math.isfinite(bounds.limit) else ""
        wanted = "finite" if fault.kind == "nonfinite" else limit or "within single precision"
        even = " (also where a mask flags the pixel, since models use every pixel)"
    return f"{variable} must be {wanted}, found {fault.value:g} at row {fault.row}, pixel {fault.pixel}{even}"
