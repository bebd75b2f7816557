"""Shards deleted after their conversion, one after the other, each compared with the finished store pixel by pixel.

A journal in the store says what was verified and deleted; an entry is on the disk before its shard goes. So a run that
was killed between two deletions is continued by the same command, and a shard that is merely missing stays an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from pipeline import schema
from pipeline.base import Progress, find_json, write_json
from pipeline.convert.ranges import ConversionPlan, convert_disk_errors
from pipeline.convert.sources import ConversionSettings, lock_work, run_tasks, source_key
from pipeline.convert.verify import RowVerifier, require_faulty, require_same_columns
from pipeline.errors import InputError, ResourceError
from pipeline.shards import PIXEL_PATHS, ShardInfo, ShardReader, find_shards, read_shard_info
from pipeline.store import MANIFEST_GROUP, SpectraStore

__all__ = ["delete_sources", "find_sources", "open_thinned", "require_deletable"]

#: The journal is the attributes of this empty group below the manifest's, which no fingerprint reads.
_JOURNAL: Final = f"{MANIFEST_GROUP}/deleted_sources/zarr.json"
#: Everything that a conversion reads of a shard.
_READ_PATHS: Final = (*PIXEL_PATHS.values(), schema.SHARD_WAVE, schema.SHARD_PARAMS_TABLE)


def find_sources(patterns: Sequence[str], base: Path, store: Path) -> tuple[Path, ...]:
    """Return the shards that the patterns name, counting those that ``--delete-source`` has deleted already.

    Parameters
    ----------
    patterns, base
        See :func:`pipeline.shards.reader.find_shards`, which does all there is to do while nothing was deleted.
    store
        The conversion's target, whose journal says what was.

    Raises
    ------
    InputError
        If a pattern names nothing that is there or was deleted, or a file that the store was not made of.
    """
    sources = [Path(path) for path in _read_journal(store).get("sources", ())]
    if all(os.path.lexists(source) for source in sources):
        return find_shards(patterns, base)
    named: set[Path] = set()
    for pattern in patterns:
        ours = {source for source in sources if _names(Path(os.path.abspath(base / pattern)), source)}
        try:
            here = {Path(os.path.abspath(shard)) for shard in find_shards([pattern], base)}
        except InputError:
            if not any(not os.path.lexists(source) for source in ours):
                raise
            here = set()  # an index, a folder or a glob whose shards are gone, some of them or all
        named |= here | ours
    if strangers := sorted(named - set(sources)):
        raise InputError(
            f"store {store} was made of {len(sources)} shards, some of them deleted since, but {strangers[0]} is none "
            "of them; name the shards as before, or another store"
        )
    return tuple(source for source in sources if source in named)


def open_thinned(store: Path, shards: Sequence[Path], wanted: ConversionSettings) -> SpectraStore | None:
    """Return the finished store of these shards and settings if an earlier run deleted some of the shards, else None.

    Raises
    ------
    InputError
        If the store was made of other shards or settings, or a shard is missing that no run deleted.
    """
    journal = _read_journal(store)
    absent = [k for k, shard in enumerate(shards) if not os.path.lexists(shard)]
    if not absent or not journal:
        return None
    made = SpectraStore.open(store)
    if [os.path.abspath(shard) for shard in shards] != journal["sources"]:
        raise InputError(
            f"store {store} was made of {len(journal['sources'])} shards, some of them deleted since, but "
            f"{len(shards)} or others are named; name them as before, {journal['sources'][0]} first"
        )
    for k in absent:
        if str(k) not in journal["deleted"]:
            raise InputError(f"shard {shards[k]} is missing, and no --delete-source run deleted it; put it back")
    sources = [made.manifest.sources[k] if k in absent else read_shard_info(shard) for k, shard in enumerate(shards)]
    layout = wanted.plan_layout(sum(source.n_spectra for source in sources), made.n_pixels)
    if source_key(sources, wanted.describe(layout)) != made.manifest.settings.get("key"):
        raise InputError(
            f"store {store} was made of other shards or settings ({dict(made.manifest.settings)}), and of its shards "
            f"{len(absent)} are deleted, so it cannot be rebuilt; give the settings that it was made with"
        )
    return made


def require_deletable(shards: Sequence[Path]) -> None:
    """Refuse shards that are not plain files with everything in them, before anything is done.

    Raises
    ------
    InputError
        For a symbolic link, or a shard whose arrays lie in other files.
    """
    for shard in shards:
        for link in (shard, shard.parent):
            if link.is_symlink():
                raise InputError(
                    f"shard {shard} must be a file of its own to be deleted, but {link} is a symbolic link to "
                    f"{link.resolve()}; name the file itself, or leave --delete-source out"
                )
        if not os.path.lexists(shard):
            continue  # deleted by an earlier run, or missed by the conversion with a message of its own
        with ShardReader(shard) as reader:
            file = reader.file
            for path in _READ_PATHS:
                dataset = file.get(path)
                if dataset is None:
                    continue
                elsewhere = dataset.file.filename != file.filename or bool(getattr(dataset, "external", None))
                if elsewhere or getattr(dataset, "is_virtual", False):
                    raise InputError(
                        f"{reader.name}: {path!r} must be stored in the file itself for the shard to be deleted, but "
                        "lies in another file; leave --delete-source out"
                    )


def delete_sources(store: SpectraStore, shards: Sequence[Path], workers: int, progress: Progress) -> None:
    """Compare every shard with its finished store, pixel by pixel, and delete it; one shard after the other.

    Parameters
    ----------
    store
        Finished and in place.
    shards
        All shards it was made of, in order; those that are gone were deleted by an earlier run.
    workers
        Processes that compare.
    progress
        Who watches.

    Raises
    ------
    InputError
        At the first difference; that shard and all later ones stay.
    ResourceError
        If a shard may not be deleted.
    """
    work = store.path.with_name(store.path.name + ".partial")
    left = [k for k, shard in enumerate(shards) if os.path.lexists(shard)]
    if not left:
        progress.note(f"all shards of store {store.path} were deleted before")
        return
    with convert_disk_errors(work), lock_work(work):
        require_deletable([shards[k] for k in left])
        _settle_on_disk(store.path)
        plan = _plan_verification(store, shards, left, work)
        bounds = list(accumulate(store.shard_lengths, initial=0))
        step = store.layout.range_rows
        tasks = [
            (k, low, min(low + step, bounds[k + 1])) for k in left for low in range(bounds[k], bounds[k + 1], step)
        ]
        pending = {k: bounds[k + 1] - bounds[k] for k in left}
        freed = 0
        records = run_tasks(partial(RowVerifier, store, plan), "verify_rows", tasks, workers)
        with progress.step("verify", sum(pending.values())) as advance, closing(records):
            for k in left:
                while pending[k]:
                    record = next(records)
                    pending[record["shard"]] -= record["stop"] - record["start"]
                    advance(record["stop"] - record["start"])
                freed += _delete(store, plan, k)
    progress.note(f"deleted {len(left)} shard(s), {freed / 2**30:.2f} GiB: the store holds the same, bit for bit")


def _plan_verification(store: SpectraStore, shards: Sequence[Path], left: Sequence[int], work: Path) -> ConversionPlan:
    """Check everything of the shards but their pixels, and return the plan by which these are compared."""
    sources = store.manifest.sources
    plan = ConversionPlan(
        shards=tuple(Path(os.path.abspath(shard)) for shard in shards),
        lengths=tuple(source.n_spectra for source in sources),
        stamps=tuple((source.size, source.mtime_ns) for source in sources),
        has_mask=tuple(False for _ in sources),
        dropped=tuple(source.dropped_rows for source in sources),
        layout=store.layout,
        variables=tuple(variable for variable in store.variables if variable != "mask"),
        work=work,
        key=str(store.manifest.settings.get("key")),
    )
    for k in left:
        info = read_shard_info(plan.shards[k])
        require_same_columns(store, plan, k, info)
        _require_no_more(store, plan, info)
        with ShardReader(plan.shards[k]) as reader:
            require_faulty(store, plan, {k: reader}, k)
        plan = replace(
            plan,
            stamps=(*plan.stamps[:k], info.stamp, *plan.stamps[k + 1 :]),
            has_mask=(*plan.has_mask[:k], info.has_mask, *plan.has_mask[k + 1 :]),
        )
    return plan


def _require_no_more(store: SpectraStore, plan: ConversionPlan, info: ShardInfo) -> None:
    lost = [name for name in info.variables if name not in (*plan.variables, "mask")]
    if lost:
        raise InputError(f"shard {info.path} has a {lost[0]!r} array that store {store.path} lacks; keep the shard")


def _delete(store: SpectraStore, plan: ConversionPlan, k: int) -> int:
    """Enter a verified shard in the journal, delete it, and return its size."""
    shard = plan.shards[k]
    plan.require_unchanged([k])
    require_deletable([shard])
    journal = _read_journal(store.path) or {"sources": [str(path) for path in plan.shards], "deleted": {}}
    size, mtime_ns = plan.stamps[k]
    verified = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    journal["deleted"][str(k)] = {"path": str(shard), "size": size, "mtime_ns": mtime_ns, "verified": verified}
    write_json(store.path / _JOURNAL, {"zarr_format": 3, "node_type": "group", "attributes": journal})
    for written in (store.path / _JOURNAL, *(store.path / _JOURNAL).parents[:2]):
        _flush(written)
    try:
        shard.unlink()
    except OSError as error:
        raise ResourceError(
            f"shard {shard} was verified but cannot be deleted ({error.strerror}); make its folder writable and run "
            "the same command again"
        ) from error
    return size


def _read_journal(store: Path) -> dict[str, Any]:
    journal: dict[str, Any] = (find_json(store / _JOURNAL) or {}).get("attributes", {})
    return journal


def _settle_on_disk(store: Path) -> None:
    """Bring a store to the disk and out of the memory, so that what is compared is what a power failure leaves."""
    for path in [store, *sorted(store.rglob("*"))]:
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system may know no such call for folders
            os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _names(pattern: Path, source: Path) -> bool:
    """Tell whether an index, a folder, a glob or a file names a shard that may be gone."""
    if (index := pattern / schema.SHARD_INDEX_NAME).is_file():
        pattern = index
    if pattern.suffix == ".txt" and pattern.is_file():
        lines = pattern.read_text(encoding="utf-8-sig").splitlines()
        entries = [pattern.parent / entry for line in lines if (entry := line.split("#", 1)[0].strip())]
        listed = {os.path.abspath(path) for entry in entries for path in (entry, entry / schema.SHARD_FILE_NAME)}
        return str(source) in listed
    return any(path == pattern or fnmatch(str(path), str(pattern)) for path in (source, *source.parents[:2]))
