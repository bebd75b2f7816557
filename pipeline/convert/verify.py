"""Whether a finished store is what its shards hold.

:func:`verify_store` compares every pixel and every column, for users who want to delete their shards afterwards.
:func:`compare_changed` compares the rows of shards that were written anew since the store was made, by digests alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pipeline.base import Progress, SilentProgress, available_cores, find_json, seal, write_json
from pipeline.convert.datasets import read_source_info
from pipeline.convert.processes import run_in_processes
from pipeline.convert.ranges import Bounds, ConversionPlan, cast_rows
from pipeline.convert.sources import store_column_name
from pipeline.errors import InputError
from pipeline.shards import RowReader, ShardInfo
from pipeline.store import (
    MANIFEST_GROUP,
    Manifest,
    RangeRecord,
    SpectraStore,
    digest_rows,
    find_other_wavelengths,
    work_folder,
)

__all__ = ["RowVerifier", "compare_changed", "find_changed", "record_stamps", "verify_store"]

Readers: TypeAlias = Mapping[int, RowReader]


def verify_store(
    store: SpectraStore,
    shards: Sequence[Path | ShardInfo] | Path | str,
    *,
    workers: int | None = None,
    allow_external: bool = False,
    progress: Progress | None = None,
) -> None:
    """Compare a finished store with all shards that it was made of, bit for bit.

    Compared are wavelengths, every column that a store keeps, and every pixel as a conversion would write it, with what
    lies on the disk and not with what the system remembers of it. Nothing is changed. A shard may have more than a
    store keeps: text columns and the edges of pixels.

    Parameters
    ----------
    store
        Finished and in place.
    shards
        All shards it was made of, in order; paths, or what has been read of their headers already.
    workers
        Processes that compare, this one included; by default one per processor.
    allow_external
        As at the conversion.
    progress
        Who watches.

    Raises
    ------
    InputError
        At the first difference, naming the shard, the variable, and the row and pixel that differ; or if a shard or the
        store is written to meanwhile.
    """
    progress = progress or SilentProgress()
    shards = [Path(shards)] if isinstance(shards, str | Path) else shards
    if len(shards) != len(store.sources):
        raise InputError(
            f"store {store.path} was made of {len(store.sources)} shards, found {len(shards)} to compare it with; name "
            "all of them, in the same order"
        )
    _settle_on_disk(store.path)
    infos = [
        one if isinstance(one, ShardInfo) else read_source_info(one, allow_external=allow_external) for one in shards
    ]
    plan = _plan_verification(store, infos)
    bounds = list(accumulate(store.shard_lengths, initial=0))
    step = store.layout.range_rows
    tasks = [
        (shard, low, min(low + step, bounds[shard + 1]))
        for shard in range(len(shards))
        for low in range(bounds[shard], bounds[shard + 1], step)
    ]
    with progress.step("verify", store.n_spectra) as advance:
        make_verifier = partial(RowVerifier, store, plan)
        for record in run_in_processes(make_verifier, "verify_rows", tasks, workers or available_cores()):
            advance(record["stop"] - record["start"])
    plan.require_unchanged(range(len(shards)))
    if SpectraStore.open(store.path).fingerprint != store.fingerprint:
        raise InputError(f"store {store.path} was replaced while it was compared with its shards; run again")


def _plan_verification(store: SpectraStore, infos: Sequence[ShardInfo]) -> ConversionPlan:
    """Check everything of the shards but their pixels, and return the plan by which these are compared."""
    plan = ConversionPlan(
        shards=tuple(Path(os.path.abspath(info.path)) for info in infos),
        lengths=tuple(source.n_spectra for source in store.sources),
        stamps=tuple(info.stamp for info in infos),
        others=tuple(info.others for info in infos),
        openers=tuple(info.opener for info in infos),
        has_mask=tuple(info.has_mask for info in infos),
        dropped=tuple(source.dropped_rows for source in store.sources),
        bounds=tuple(map(Bounds.of_shard, infos)),
        layout=store.layout,
        variables=tuple(variable for variable in store.variables if variable != "mask"),
        work=work_folder(store.path),
        key=str(store.manifest.settings.get("key")),
    )
    for number, info in enumerate(infos):
        _require_same_columns(store, plan, number, info)
        lost = [name for name in info.variables if name not in (*plan.variables, "mask")]
        if lost:
            raise _differs(store, info.path, f"it has a {lost[0]!r} array that the store lacks")
        with plan.open_shard(number) as reader:
            _require_faulty(store, plan, {number: reader}, number)
    return plan


def _settle_on_disk(store: Path) -> None:
    """Bring a store to the disk and out of the memory, so that what is compared is what a power failure leaves."""
    for path in [store, *sorted(store.rglob("*"))]:
        handle = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a network file system may know no such call for folders
                os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def find_changed(manifest: Manifest, infos: Sequence[ShardInfo]) -> tuple[int, ...]:
    """Return which shards were written to, or copied, since the store was made of them."""
    pairs = enumerate(zip(infos, manifest.sources, strict=True))
    return tuple(shard for shard, (info, source) in pairs if info.stamp != (source.size, source.mtime_ns))


def compare_changed(store: SpectraStore, plan: ConversionPlan, changed: Sequence[int], progress: Progress) -> None:
    """Compare all rows of some shards with the digests that the store's conversion recorded.

    Parameters
    ----------
    store
        Finished store whose columns and wavelengths agree with the shards.
    plan
        The conversion as it would be done now; dropped rows and layout are taken from the store.
    changed
        Shards to compare, see :func:`find_changed`.
    progress
        Who watches.

    Raises
    ------
    InputError
        Naming the shard and the first row that differs.
    """
    dropped = tuple(source.dropped_rows for source in store.manifest.sources)
    plan = replace(plan, layout=store.layout, dropped=dropped)
    total = sum(plan.lengths[shard] - len(dropped[shard]) for shard in changed)
    with ExitStack() as stack, progress.step("compare changed shards", total) as advance:
        readers = {shard: stack.enter_context(plan.open_shard(shard)) for shard in changed}
        for shard in changed:
            _require_faulty(store, plan, readers, shard)
        for part in store.manifest.ranges:
            segments = list(plan.iter_segments(part.start, part.stop))
            compared = sum(high - low for shard, low, high, _ in segments if shard in readers)
            if compared:
                _compare_range(store, plan, readers, part, segments)
                advance(compared)
    names = ", ".join(store.shard_names[shard] for shard in changed)
    progress.note(f"{names}: written anew since {store.path} was made, but all rows are the same")


def record_stamps(store: SpectraStore, infos: Sequence[ShardInfo], work: Path) -> None:
    """Record the shards' times of change in the manifest, so that they are not compared again; ``work`` is locked."""
    path = store.path / MANIFEST_GROUP / "zarr.json"
    plain = find_json(path)
    if plain is None:
        return
    for source, info in zip(plain["attributes"]["sources"], infos, strict=True):
        source["size"], source["mtime_ns"] = info.stamp
    if store.manifest.metadata:  # those of the first version have no checksum
        plain["attributes"] = seal(plain["attributes"])
    with suppress(OSError):  # a store that may only be read is compared every time
        write_json(work / "manifest.json", plain)
        (work / "manifest.json").replace(path)
    (work / "manifest.json").unlink(missing_ok=True)


class RowVerifier:
    """Compares rows of shards with those of a finished store, pixel by pixel, in buffers that are allocated once.

    Parameters
    ----------
    store
        The finished store.
    plan
        Its conversion, with the layout and the dropped rows of the store.
    """

    def __init__(self, store: SpectraStore, plan: ConversionPlan) -> None:
        self.store, self.plan = store, plan
        shape = (store.chunk_rows, store.n_pixels)
        self._rows = {dtype: (np.empty(shape, dtype), np.empty(shape, dtype)) for dtype in (np.float32, np.uint8)}
        self._block = np.empty((plan.block_rows, store.n_pixels))

    def verify_rows(self, task: tuple[int, int, int]) -> dict[str, Any]:
        """Compare rows of the store that come from one shard, given as (shard, start, stop), and return them named.

        Raises
        ------
        InputError
            Naming the shard, the variable, and the row and pixel that differ.
        """
        shard, start, stop = task
        with self.plan.open_shard(shard) as reader:
            for variable in (*self.plan.variables, "mask"):
                for low, high in self.store.iter_blocks(start, stop):
                    self._compare(reader, variable, low, high)
        return {"shard": shard, "start": start, "stop": stop}

    def _compare(self, reader: RowReader, variable: str, start: int, stop: int) -> None:
        expected, kept = (rows[: stop - start] for rows in self._rows[np.uint8 if variable == "mask" else np.float32])
        if variable in self.store.variables:
            try:
                self.store.read_rows(variable, start, stop, kept)
            except InputError as error:
                raise InputError(f"{reader.name} cannot be compared with its store: {error}") from error
        else:
            kept[:] = 0  # a store without a mask says: nothing is flagged
        for shard, low, high, row in self.plan.iter_segments(start, stop):
            for first in range(low, high, self.plan.block_rows):
                last = min(first + self.plan.block_rows, high)
                target = expected[row + first - low - start : row + last - low - start]
                if variable != "mask":
                    cast_rows(variable, reader.read_rows(variable, first, last, self._block), target)
                else:
                    target[:] = reader.read_rows("mask", first, last) if self.plan.has_mask[shard] else 0
        # as bits: 0 and -0, or two NaN, are different contents
        bits = np.uint8 if variable == "mask" else np.uint32
        if not np.array_equal(expected.view(bits), kept.view(bits)):
            place, pixel = np.argwhere(expected.view(bits) != kept.view(bits))[0]
            shard, row, *_ = next(self.plan.iter_segments(start + place, start + place + 1))
            raise _differs(
                self.store,
                self.plan.shards[shard],
                f"{variable} of row {row}, pixel {pixel} is {expected[place, pixel]!s} when converted, and "
                f"{kept[place, pixel]!s} in row {start + place} of the store",
            )


def _require_same_columns(store: SpectraStore, plan: ConversionPlan, shard: int, info: ShardInfo) -> None:
    """Compare a shard's wavelengths and its columns, labels first of all, with the store bit for bit.

    Raises
    ------
    InputError
        Naming the shard, the column and the first row that differs.
    """
    source = store.manifest.sources[shard]
    if (info.n_spectra, info.n_pixels) != (source.n_spectra, store.n_pixels):
        found = f"{info.n_spectra} × {info.n_pixels}, was {source.n_spectra} × {store.n_pixels}"
        raise _differs(store, info.path, f"its shape is {found}")
    if find_other_wavelengths(info.wavelength, store.wavelength).size:
        raise _differs(store, info.path, "its wavelengths are others")
    keep = np.ones(info.n_spectra, bool)
    keep[list(plan.dropped[shard])] = False
    rows = np.flatnonzero(keep)
    first = sum(other.n_kept for other in store.manifest.sources[:shard])
    expected = {store_column_name(name): values[keep] for name, values in info.columns.items()}
    expected |= {"shard": np.full(len(rows), shard, np.int32), "row": rows}
    for name in store.columns:
        if name not in expected:
            raise _differs(store, info.path, f"it has no column {name!r} any more")
        kept = store.read_columns([name], first, first + len(rows))[name]
        values = np.ascontiguousarray(expected[name].astype(kept.dtype))
        differs = values.view(np.uint8).reshape(len(rows), -1) != kept.view(np.uint8).reshape(len(rows), -1)
        if differs.any():
            place = int(np.argmax(differs.any(axis=1)))
            found = f"{values[place]!s}, and {kept[place]!s} in row {first + place} of the store"
            raise _differs(store, info.path, f"{name} of row {rows[place]} is {found}")
    for name in set(expected) - set(store.columns):
        # a conversion leaves out what is no number in any shard
        if expected[name].dtype.kind in "fiub" and not (
            expected[name].dtype.kind == "f" and np.isnan(expected[name]).all()
        ):
            raise _differs(store, info.path, f"the store lacks its column {name!r}")


def _compare_range(
    store: SpectraStore,
    plan: ConversionPlan,
    readers: Readers,
    part: RangeRecord,
    segments: Sequence[tuple[int, int, int, int]],
) -> None:
    """Digest a range anew, rows of changed shards from the shards and all others from the store."""
    for variable in store.variables:
        total = 0
        for shard, first, last, row in _iter_blocks(plan, segments):
            if shard in readers:
                rows = _read_source(plan, readers, variable, shard, first, last)
            else:
                rows = store.read_rows(variable, row, row + last - first)
            total += digest_rows(rows, row)
        if f"{total % 2**64:016x}" != part.digests[variable]:
            _refuse_difference(store, plan, readers, variable, segments)
    if "mask" not in store.variables:
        for shard, first, last, _ in _iter_blocks(plan, segments):
            if shard in readers and _read_source(plan, readers, "mask", shard, first, last).any():
                raise _changed(store, plan, shard, f"it flags pixels of rows {first} to {last - 1}")


def _refuse_difference(
    store: SpectraStore,
    plan: ConversionPlan,
    readers: Readers,
    variable: str,
    segments: Sequence[tuple[int, int, int, int]],
) -> None:
    for shard, first, last, row in _iter_blocks(plan, segments):
        if shard in readers:
            found = _read_source(plan, readers, variable, shard, first, last)
            kept = store.read_rows(variable, row, row + last - first)
            # as bytes: 0 and -0, or two NaN, are different contents
            differs = (found.view(np.uint8) != kept.view(np.uint8)).any(axis=1)
            if differs.any():
                raise _changed(store, plan, shard, f"{variable} of row {first + int(np.argmax(differs))} differs")
    raise InputError(
        f"store {store.path} is damaged: {variable} does not match its digests though the shards have the same rows; "
        f"delete the folder and run again, or rebuild it: headroom convert SHARDS {store.path} --overwrite"
    )


def _require_faulty(store: SpectraStore, plan: ConversionPlan, readers: Readers, shard: int) -> None:
    """Refuse a shard with a spectrum that was left out and is right now."""
    for row in plan.dropped[shard]:
        cast = np.empty((1, plan.layout.n_pixels), np.float32)
        if not any(
            cast_rows(variable, readers[shard].read_rows(variable, row, row + 1), cast, bounds=plan.bounds[shard])[1]
            for variable in plan.variables
        ):
            raise _changed(store, plan, shard, f"row {row} was faulty and is not any more")


def _iter_blocks(
    plan: ConversionPlan, segments: Sequence[tuple[int, int, int, int]]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (shard, first row, end row, first row in the store) in pieces that fit in memory."""
    for shard, low, high, row in segments:
        for first in range(low, high, plan.block_rows):
            yield shard, first, min(first + plan.block_rows, high), row + first - low


def _read_source(
    plan: ConversionPlan, readers: Readers, variable: str, shard: int, first: int, last: int
) -> np.ndarray:
    """Read rows of a shard as a conversion would write them."""
    if variable == "mask":
        if not plan.has_mask[shard]:
            return np.zeros((last - first, plan.layout.n_pixels), np.uint8)
        return readers[shard].read_rows("mask", first, last)
    cast = np.empty((last - first, plan.layout.n_pixels), np.float32)
    cast_rows(variable, readers[shard].read_rows(variable, first, last), cast)
    return cast


def _differs(store: SpectraStore, shard: Path, what: str) -> InputError:
    return InputError(
        f"shard {shard} must be what store {store.path} holds, but {what}; keep the shard, and find out which of the "
        f"two is right; to rebuild the store: headroom convert SHARDS {store.path} --overwrite"
    )


def _changed(store: SpectraStore, plan: ConversionPlan, shard: int, what: str) -> InputError:
    return InputError(
        f"shard {plan.shards[shard]} must be what store {store.path} was made of, but it changed since: {what}; delete "
        "the store's folder and run again, rebuild it with headroom convert --overwrite, or choose another folder for "
        "stores ('data.stores' in a configuration)"
    )
