"""Shards into a store: checked, parallel over whole ranges, resumable, and put into place only when complete.

Three phases, as a folder shows them: *plan* (``STORE.partial/plan.json``), *ranges* (one record each below
``STORE.partial/ranges``), *finish* (:mod:`pipeline.convert_finish`, idempotent, ends with a rename). A run that was
killed, in whatever phase, is resumed by running it again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from pipeline import schema
from pipeline.convert_delete import delete_sources as delete_verified
from pipeline.convert_delete import open_thinned, require_deletable
from pipeline.convert_finish import build_manifest, put_in_place, read_records, verify_sample
from pipeline.convert_pixels import DROPPABLE
from pipeline.convert_ranges import ConversionPlan, RangeWriter, convert_disk_errors, read_json
from pipeline.convert_sources import ConversionSettings, read_sources, source_key
from pipeline.convert_verify import find_changed, record_stamps, verify_sources
from pipeline.convert_work import claim_work, is_work_of, lock_work, remove_work
from pipeline.convert_workers import run_tasks
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.memory import available_cores
from pipeline.progress import Progress, SilentProgress
from pipeline.shards import ShardInfo
from pipeline.store import SpectraStore
from pipeline.store_layout import StoreLayout, create_store

__all__ = ["convert_shards"]

#: Share of the uncompressed float32 size that is required free: noise-free spectra compress to 0.5 to 0.75.
_DISK_SHARE: Final = 0.8


def convert_shards(
    shards: Sequence[Path],
    store: Path,
    *,
    workers: int | None = None,
    chunk_rows: int | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    nonfinite: Literal["refuse", "drop"] = "refuse",
    delete_sources: bool = False,
    progress: Progress | None = None,
) -> SpectraStore:
    """Convert HDF5 shards to one store, in the order given.

    Every spectrum is read once, cast to float32, checked, compressed, digested and written; only
    ``nonfinite="drop"`` reads everything twice, because which rows are left out decides where all later ones go.
    The result depends on the shards and the settings, never on the number of workers or on interruptions.

    A complete store of the same shards and settings is returned at once while the shards' sizes and times of change
    are those it was made with; shards that were written anew are compared with it row by row first.

    Parameters
    ----------
    shards
        Files, e.g. from :func:`pipeline.shards.find_shards`; opened read-only.
    store
        Folder to create. Work happens in ``<store>.partial`` beside it.
    workers
        Processes, this one included, by default one per processor. Each holds one range of one variable in
        memory (128 MiB at the default sizes) and about as much again while compressing it.
    chunk_rows, shard_rows
        Spectra per chunk and per Zarr shard, see :func:`pipeline.store_layout.plan_layout`.
    overwrite
        Replace an existing store or other work folder, once the new store is complete.
    nonfinite
        ``"refuse"`` spectra with NaN or infinite pixels, all-zero flux or errors, or negative errors, or ``"drop"``
        them and list them in the manifest. An error (or noisy flux) that is NaN in the first or last pixel takes its
        neighbour's value either way.
    delete_sources
        Once the store is complete and in place, compare every shard with it, pixel by pixel, and delete the shard if
        all is the same; one after the other. Afterwards, only what the store keeps of them is left. Where a run was
        killed in between, the next one accepts the shards that are gone and goes on with the rest.
    progress
        Who watches.

    Raises
    ------
    InputError
        If shards are broken or disagree, changed since the store was made, may not be deleted or differ from the
        store (they stay then), or the target is something else; ConfigError for wrong settings.
    ResourceError
        If the disk is full or cannot be written; finished ranges are kept.
    """
    store, progress = Path(store), progress or SilentProgress()
    workers = _count_workers(workers)
    if nonfinite not in ("refuse", "drop"):
        raise ConfigError(f"nonfinite must be 'refuse' or 'drop', found {nonfinite!r}")
    shards = [Path(shard) for shard in shards]
    if delete_sources:
        require_deletable(shards)
    wanted = ConversionSettings(chunk_rows, shard_rows, nonfinite)
    made = None if overwrite else open_thinned(store, shards, wanted)
    if made is None:
        made = _convert(shards, store, wanted, workers, overwrite, progress)
    if delete_sources:
        delete_verified(made, shards, workers, progress)
    return made


def _convert(
    shards: Sequence[Path],
    store: Path,
    wanted: ConversionSettings,
    workers: int,
    overwrite: bool,
    progress: Progress,
) -> SpectraStore:
    infos = read_sources(shards)
    layout = wanted.plan_layout(sum(info.n_spectra for info in infos), infos[0].n_pixels)
    settings = wanted.describe(layout)
    key = source_key(infos, settings)
    work = store.with_name(store.name + ".partial")
    plan = _plan_conversion(infos, layout, work, key)
    finished = _find_finished(store, key, overwrite)
    if finished is not None:
        return _confirm_finished(finished, plan, infos, progress)
    with convert_disk_errors(work), lock_work(work):
        # another conversion may have finished between the look above and the lock
        finished = _find_finished(store, key, overwrite)
        if finished is not None and not find_changed(finished.manifest, infos):
            progress.note(f"store {store} is complete already, made of the same shards and settings")
            return finished
        if finished is not None:
            raise InputError(f"store {store} was just made by another conversion, of shards that changed; run again")
        claim_work(work, _describe_conversion(key, settings, infos), overwrite)
        if wanted.nonfinite == "drop":
            plan, dropped = _plan_without_faults(plan, workers, progress)
        else:
            dropped = [{} for _ in infos]
        _convert_ranges(plan, workers, progress)
        build_manifest(plan, infos, dropped, settings)
        verify_sample(plan, workers)
        put_in_place(plan, store)
    return SpectraStore.open(store)


def _count_workers(workers: int | None) -> int:
    if workers is None:
        return available_cores()
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, found {workers}; leave it out for one per processor")
    return workers


def _find_finished(store: Path, key: str, overwrite: bool) -> SpectraStore | None:
    """Return the target if it is this very conversion's result; refuse whatever else is there."""
    if not store.exists() and not store.is_symlink():
        return None
    if store.is_dir() and not any(store.iterdir()):
        return None
    attributes = (read_json(store / "zarr.json") or {}).get("attributes", {})
    if attributes.get("format") != schema.STORE_FORMAT:  # whatever it is, it is not ours to replace
        raise InputError(f"{store} exists and is not a store; name another target or remove it yourself")
    if overwrite:
        return None
    existing = SpectraStore.open(store)
    if existing.manifest.settings.get("key") == key:
        return existing
    names = ", ".join(existing.shard_names[:3])
    raise InputError(
        f"store {store} exists, made of other shards or settings ({len(existing.shard_names)} shard(s): {names}; "
        f"{dict(existing.manifest.settings)}); name another target or rebuild it: "
        f"headroom convert SHARDS {store} --overwrite"
    )


def _confirm_finished(
    store: SpectraStore, plan: ConversionPlan, infos: Sequence[ShardInfo], progress: Progress
) -> SpectraStore:
    """Return a finished store if its shards are still what it was made of, and tidy up behind its conversion."""
    complete = f"store {store.path} is complete already, made of the same shards and settings"
    changed = find_changed(store.manifest, infos)
    if changed and not os.access(plan.work.parent, os.W_OK):  # nothing may be written, so there is nothing to lock
        verify_sources(store, plan, changed, progress)
    elif changed:
        with convert_disk_errors(plan.work), lock_work(plan.work):
            verify_sources(store, plan, changed, progress)
            record_stamps(store, infos, plan.work)
            store = SpectraStore.open(store.path)
    if is_work_of(plan.work, plan.key):
        # an earlier run was killed between its last rename and its end, or one that replaces the store is running:
        # the lock tells
        with suppress(InputError, OSError), lock_work(plan.work):
            remove_work(plan.work)
    progress.note(complete)
    return store


def _plan_conversion(infos: Sequence[ShardInfo], layout: StoreLayout, work: Path, key: str) -> ConversionPlan:
    return ConversionPlan(
        shards=tuple(info.path.absolute() for info in infos),
        lengths=tuple(info.n_spectra for info in infos),
        stamps=tuple(info.stamp for info in infos),
        has_mask=tuple(info.has_mask for info in infos),
        dropped=tuple(() for _ in infos),
        layout=layout,
        variables=tuple(name for name in infos[0].variables if name != "mask"),
        work=work.absolute(),
        key=key,
    )


def _describe_conversion(key: str, settings: dict[str, Any], infos: Sequence[ShardInfo]) -> dict[str, Any]:
    return {
        "key": key,
        "settings": settings,
        "shards": [f"{info.path.name} ({info.n_spectra} spectra, {info.fingerprint[:12]})" for info in infos],
    }


def _plan_without_faults(
    plan: ConversionPlan, workers: int, progress: Progress
) -> tuple[ConversionPlan, list[dict[str, list[int]]]]:
    """Scan all spectra for faults, and return a plan that leaves the faulty ones out."""
    step = plan.layout.range_rows
    tasks = [
        (shard, start, min(start + step, length))
        for shard, length in enumerate(plan.lengths)
        for start in range(0, length, step)
    ]
    records = [_read_scan(plan, *task) for task in tasks]
    missing = [task for task, record in zip(tasks, records, strict=True) if record is None]
    found = [record for record in records if record is not None]
    found += _watch(plan, "scan_rows", missing, workers, progress, "scan", sum(plan.lengths))
    faults: list[dict[str, list[int]]] = [{kind: [] for kind in DROPPABLE} for _ in plan.lengths]
    for record in found:
        for kind, rows in record["faults"].items():
            faults[record["shard"]][kind] += rows
    for kinds in faults:
        known: set[int] = set()
        for kind in DROPPABLE:  # a spectrum with several faults is listed under the first
            kinds[kind] = sorted(set(kinds[kind]) - known)
            known |= set(kinds[kind])
    dropped = tuple(tuple(sorted(row for rows in kinds.values() for row in rows)) for kinds in faults)
    n_kept = sum(plan.lengths) - sum(len(rows) for rows in dropped)
    if n_kept == 0:
        raise InputError("every spectrum of the shards is faulty, so nothing is left to convert; check the shards")
    if n_kept < sum(plan.lengths):
        progress.note(f"left out {sum(plan.lengths) - n_kept:,} faulty spectra; the manifest lists them")
    return replace(plan, dropped=dropped, layout=replace(plan.layout, n_spectra=n_kept)), faults


def _convert_ranges(plan: ConversionPlan, workers: int, progress: Progress) -> None:
    variables = (*plan.variables, "mask") if any(plan.has_mask) else plan.variables
    shape = (read_json(plan.store / "flux" / "zarr.json") or {}).get("shape")
    if shape not in (None, [plan.layout.n_spectra, plan.layout.n_pixels]):
        shutil.rmtree(plan.store)  # an earlier run dropped other spectra, of shards that were written anew since
    finished = read_records(plan)
    todo = [start for start, _ in plan.layout.iter_ranges() if start not in finished]
    _require_free_disk(plan, len(todo))
    if not (finished and not todo):
        create_store(plan.store, plan.layout, variables)
    for _ in _watch(plan, "convert_range", todo, workers, progress, "convert", plan.layout.n_spectra):
        pass


def _watch(
    plan: ConversionPlan, method: str, tasks: list[Any], workers: int, progress: Progress, title: str, total: int
) -> Iterator[dict[str, Any]]:
    """Run tasks under a progress step that counts what earlier runs finished."""
    with progress.step(title, total) as advance:
        rows = plan.layout.range_rows
        pending = sum(
            task[2] - task[1] if isinstance(task, tuple) else min(rows, plan.layout.n_spectra - task) for task in tasks
        )
        if pending < total:
            advance(total - pending)
        for record in run_tasks(partial(RangeWriter, plan), method, tasks, workers):
            advance(record["stop"] - record["start"])
            yield record


def _read_scan(plan: ConversionPlan, shard: int, start: int, stop: int) -> dict[str, Any] | None:
    """Return what an earlier run found in these rows, if the shard was not written to since."""
    record = read_json(plan.scan_path(shard, start)) or {}
    wanted = (plan.key, stop, list(plan.stamps[shard]))
    return record if (record.get("key"), record.get("stop"), record.get("stamp")) == wanted else None


def _require_free_disk(plan: ConversionPlan, n_ranges: int) -> None:
    rows = min(n_ranges * plan.layout.range_rows, plan.layout.n_spectra)
    bytes_per_pixel = sum(np.dtype(np.float32).itemsize for _ in plan.variables)
    required = int(_DISK_SHARE * rows * plan.layout.n_pixels * bytes_per_pixel)
    free = shutil.disk_usage(plan.work).free
    if free < required:
        raise ResourceError(
            f"the store needs about {required / 2**30:.1f} GiB but the disk of {plan.work} has {free / 2**30:.1f} "
            "GiB free; make room or choose another disk"
        )
