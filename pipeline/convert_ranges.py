"""The piece of a conversion that workers run: one range of rows from its shards into the store.

A finished range leaves one small record beside the store being built. The record is written last and at once
(temporary name, then rename), so a range is either recorded and complete, or done again.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.convert_pixels import DROPPABLE, Fault, cast_rows
from pipeline.convert_read import RowSource
from pipeline.errors import InputError, ResourceError
from pipeline.store_chunks import write_chunks
from pipeline.store_layout import StoreLayout, fill_value
from pipeline.store_manifest import digest_rows

__all__ = ["ConversionPlan", "RangeWriter", "convert_disk_errors", "keep_freed_memory", "read_json", "write_json"]

#: Bytes of float64 read from HDF5 at a time: bounded whatever the HDF5 chunks, and still in cache when cast.
_BLOCK_BYTES: Final = 4 << 20
#: Just below the 32 MiB that glibc keeps at most.
_LARGEST_KEPT: Final = 31 << 20


@dataclass(frozen=True)
class ConversionPlan:
    """Which rows of which shards become which rows of the store; small, and sent to every worker.

    ``stamps`` are the shards' sizes and times of change (ns) when they were checked, :attr:`ShardInfo.stamp`;
    ``dropped`` are sorted rows per shard; ``variables`` are the float arrays; ``has_mask`` says which shards carry a
    mask; ``key`` stands for sources and settings.
    """

    shards: tuple[Path, ...]
    lengths: tuple[int, ...]
    stamps: tuple[tuple[int, int], ...]
    has_mask: tuple[bool, ...]
    dropped: tuple[tuple[int, ...], ...]
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
        return max(1, min(_BLOCK_BYTES // (8 * self.layout.n_pixels), self.layout.chunk_rows))

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

    def require_unchanged(self, shards: Iterable[int]) -> None:
        """Refuse shards that were written to since they were checked."""
        for shard in shards:
            path = self.shards[shard]
            try:
                status = path.stat()
            except OSError as error:
                raise InputError(
                    f"shard {path} cannot be found any more ({error.strerror}); put it back and run again"
                ) from error
            if (status.st_size, status.st_mtime_ns) != tuple(self.stamps[shard]):
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
        record |= {"digests": {}, "file_bytes": {}, "sources": plan.describe_range(start, stop)}
        sums = np.zeros(plan.layout.n_pixels)
        with convert_disk_errors(plan.work), ExitStack() as stack:
            readers: dict[int, RowSource] = {}
            for shard, *_ in plan.iter_segments(start, stop):
                if shard not in readers:
                    readers[shard] = stack.enter_context(RowSource(plan.shards[shard]))
            for variable in plan.variables:
                self._write(record, variable, self._iter_chunks(readers, variable, record, sums))
            if any(plan.has_mask[shard] for shard in readers):
                record["flagged"] = self._count_flagged(readers, start, stop)
            if record["flagged"]:
                self._write(record, "mask", self._iter_masks(readers, record))
            plan.require_unchanged(readers)
            record["flux_sums"] = base64.b64encode(sums.astype("<f8").tobytes()).decode()
            write_json(plan.record_path(start), record)
        return record

    def scan_rows(self, task: tuple[int, int, int]) -> dict[str, Any]:
        """Find the faulty spectra among rows of one shard, given as (shard, start, stop), and record them."""
        shard, start, stop = task
        faults: dict[str, set[int]] = {kind: set() for kind in DROPPABLE}
        with convert_disk_errors(self.plan.work), RowSource(self.plan.shards[shard]) as reader:
            for variable in self.plan.variables:
                step = reader.tile_rows(variable, self.plan.block_rows)
                for low in range(start, stop, step):
                    rows = reader.read_rows(variable, low, min(low + step, stop), self._block)
                    for fault in cast_rows(variable, rows, self._chunk[: len(rows)])[1]:
                        if fault.kind not in DROPPABLE:
                            raise _refuse(fault, variable, self.plan.shards[shard], low)
                        faults[fault.kind].add(low + fault.row)
            record = {"key": self.plan.key, "shard": shard, "start": start, "stop": stop}
            self.plan.require_unchanged([shard])
            record["stamp"] = list(self.plan.stamps[shard])
            record["faults"] = {kind: sorted(rows) for kind, rows in faults.items()}
            write_json(self.plan.scan_path(shard, start), record)
        return record

    def _write(self, record: dict[str, Any], variable: str, chunks: Iterator[np.ndarray]) -> None:
        """Write a variable's chunks, which add to its digest as they are made; record digest and file sizes."""
        plan, start = self.plan, record["start"]
        record["digests"][variable] = 0
        folder = plan.store / variable
        record["file_bytes"][variable] = write_chunks(folder, plan.layout, start, chunks)
        record["digests"][variable] = f"{record['digests'][variable] % 2**64:016x}"

    def _iter_blocks(
        self, readers: Mapping[int, RowSource], variable: str, start: int, stop: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield (shard, first row, end row, first row in the store) in pieces that fit the block buffer."""
        for shard, low, high, row in self.plan.iter_segments(start, stop):
            has_any = variable != "mask" or self.plan.has_mask[shard]
            step = readers[shard].tile_rows(variable, self.plan.block_rows) if has_any else self.plan.block_rows
            for first in range(low, high, step):
                yield shard, first, min(first + step, high), row + first - low

    def _iter_chunks(
        self, readers: Mapping[int, RowSource], variable: str, record: dict[str, Any], sums: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Read, check and cast the chunks of a range; every one is the same buffer, padded with the fill value."""
        for start, stop in self._iter_bounds(record["start"], record["stop"]):
            self._chunk[stop - start :] = fill_value(variable)
            for shard, first, last, row in self._iter_blocks(readers, variable, start, stop):
                rows = readers[shard].read_rows(variable, first, last, self._block)
                target = self._chunk[row - start : row - start + len(rows)]
                repaired, faults = cast_rows(variable, rows, target, sums if variable == "flux" else None)
                if faults:
                    raise _refuse(faults[0], variable, self.plan.shards[shard], first)
                record["repaired"][variable] = record["repaired"].get(variable, 0) + repaired
                record["digests"][variable] += digest_rows(target, row)  # while they are in the processor's cache
            yield self._chunk

    def _iter_masks(self, readers: Mapping[int, RowSource], record: dict[str, Any]) -> Iterator[np.ndarray]:
        for low, high in self._iter_bounds(record["start"], record["stop"]):
            self._mask_chunk[high - low :] = fill_value("mask")
            for shard, first, last, row in self._iter_blocks(readers, "mask", low, high):
                flags = readers[shard].read_rows("mask", first, last, self._block) if self.plan.has_mask[shard] else 0
                target = self._mask_chunk[row - low : row - low + last - first]
                target[:] = flags
                record["digests"]["mask"] += digest_rows(target, row)
            yield self._mask_chunk

    def _count_flagged(self, readers: Mapping[int, RowSource], start: int, stop: int) -> int:
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


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # unique on every host; what a killed run leaves is removed by pipeline.convert_work
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def _refuse(fault: Fault, variable: str, shard: Path, first_row: int) -> InputError:
    row = first_row + fault.row
    name = f"shard {Path(*shard.parts[-2:])}"
    if fault.kind == "overflow":
        return InputError(
            f"{name}: {variable} at row {row}, pixel {fault.pixel} is {fault.value:g}, beyond float32; pixels must "
            "be median-normalised flux, check the units of this shard"
        )
    if fault.kind == "all zero":
        what = f"spectrum {row} must hold flux, but all its pixels are zero"
    elif fault.kind == "zero error":
        what = f"spectrum {row} must hold 1-sigma errors, but all its errors are zero, as if they were never written"
    else:
        wanted = "finite" if fault.kind == "nonfinite" else "non-negative"
        what = f"{variable} must be {wanted}, found {fault.value:g} at row {row}, pixel {fault.pixel}"
    return InputError(
        f"{name}: {what}; re-run the simulation, or leave such spectra out: 'data.nonfinite: drop' in a "
        "configuration, '--nonfinite drop' for headroom convert"
    )
