"""Shards into a store: checked, parallel over whole ranges, resumable, and put into place only when complete.

Three phases, as a folder shows them: *plan* (``STORE.partial/plan.json``), *ranges* (one record each below
``STORE.partial/ranges``), *finish* (idempotent; ends with a rename). A run that was
killed, in whatever phase, is resumed by running it again.
"""

from __future__ import annotations

import base64
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np

from pipeline import schema
from pipeline.base import Progress, SilentProgress, available_cores, find_json, hash_file, is_sealed
from pipeline.convert.datasets import describe_dataset, read_source_info
from pipeline.convert.processes import run_in_processes
from pipeline.convert.ranges import FAULTS, Bounds, ConversionPlan, RangeWriter, cast_rows, convert_disk_errors
from pipeline.convert.sources import (
    ConversionSettings,
    StoreShape,
    claim_work,
    is_work_of,
    kept_if_refused,
    lock_work,
    merge_columns,
    read_sources,
    record_source,
    remove_work,
    source_key,
)
from pipeline.convert.verify import compare_changed, find_changed, record_stamps
from pipeline.errors import ConfigError, InputError, ResourceError, require_kind
from pipeline.shards import HDF5_SUFFIXES, ShardInfo
from pipeline.store import (
    Manifest,
    RangeRecord,
    SpectraStore,
    StoreLayout,
    create_store,
    digest_array,
    digest_rows,
    is_store,
    work_folder,
    write_chunks,
    write_columns,
    write_manifest,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["build_manifest", "convert_shards", "put_in_place", "read_records", "verify_sample", "write_store"]

#: Share of the uncompressed float32 size that is required free: noise-free spectra compress to 0.5 to 0.75.
_DISK_SHARE: Final = 0.8


def convert_shards(
    shards: Sequence[Path | str | ShardInfo] | Path | str,
    store: Path | str,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    allow_external: bool = False,
    progress: Progress | None = None,
    **shape: Unpack[StoreShape],
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
        Files, e.g. from :func:`pipeline.shards.find_shards`, which are opened read-only; or what has been read of their
        headers already. A single path is one file. Files of other layouts are taken as by :func:`write_store`.
    store
        Folder to create. Work happens in ``<store>.partial`` beside it.
    workers
        Processes, this one included, by default one per processor. Each holds one range of one variable in
        memory (128 MiB at the default sizes) and about as much again while compressing it.
    overwrite
        Replace an existing store or other work folder, once the new store is complete.
    allow_external
        Read what shards have in other files, too, by external links or external storage.
    progress
        Who watches.
    **shape
        ``chunk_rows``, ``shard_rows`` and ``nonfinite``, see :class:`pipeline.convert.sources.StoreShape`.

    Raises
    ------
    InputError
        If shards are broken or disagree, or changed since the store was made, or the target is something else;
        ConfigError for wrong settings.
    ResourceError
        If the disk is full or cannot be written; finished ranges are kept.
    """
    if "delete_sources" in shape:
        raise ConfigError(
            "convert_shards deletes no shards any more: compare them with the finished store by "
            "pipeline.convert.verify_store, then delete them yourself"
        )
    wanted = ConversionSettings(**shape)
    listed = [shards] if isinstance(shards, str | Path) else shards
    return _convert(
        read_sources(listed, allow_external),
        Path(store),
        wanted,
        _count_workers(workers),
        overwrite,
        progress or SilentProgress(),
    )


def write_store(
    dataset: xr.Dataset | Path | str | Sequence[Path | str],
    path: Path | str,
    *,
    names: Mapping[str, str] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **shape: Unpack[StoreShape],
) -> SpectraStore:
    """Write spectra of your own to a store: checked, with the same manifest and digests as a converted shard.

    Variables are found by name: ``flux``, ``error``, ``wavelength`` and the labels ``T_eff``, ``log_g`` and ``M_H``
    (also ``Teff``, ``logg``, ``feh`` and other usual spellings; case and underscores do not matter). ``flux`` and
    ``error`` have one dimension along spectra and one along wavelengths, in either order. Wavelengths are in Å, or in
    the unit that their attribute ``units`` states: nm, µm or m. All other columns of numbers along the spectra are
    kept, too. ``mask`` (whole numbers, 0 = good) and ``noisy`` are taken if they are there.

    Parameters
    ----------
    dataset
        An xarray Dataset, in memory or lazy. Or the path of a Zarr folder, a netCDF file, or an HDF5 file with such
        arrays at its top; or several of these, whose rows follow each other.
    path
        Folder to create.
    names
        Your names of variables where they are others, such as ``{"T_eff": "temperature"}``.
    workers
        Processes for files, one per processor by default. A Dataset is written by this process.
    overwrite, progress, **shape
        See :func:`convert_shards`.

    Raises
    ------
    InputError
        If a variable is missing, has another shape, or holds what no store may hold; or if the target is something
        else; ConfigError for wrong settings.
    ResourceError
        If the disk is full or cannot be written.

    Examples
    --------
    >>> pipeline.write_store(dataset, "train.zarr")
    >>> pipeline.write_store("mine.nc", "train.zarr", names={"T_eff": "temperature"}, nonfinite="drop")
    """
    wanted = ConversionSettings(**shape)
    if isinstance(dataset, str | Path):
        dataset = [dataset]
    require_kind("path", path, (str, os.PathLike), "the path of the store")
    require_kind("names", names or {}, Mapping, "a dictionary, such as {'T_eff': 'temperature'},")
    if isinstance(dataset, Sequence):
        for one in dataset:
            require_kind("dataset", one, (str, os.PathLike), "one xarray.Dataset, a path, or a list of paths")
        infos = [read_source_info(one, names=names) for one in dataset]
    elif hasattr(dataset, "data_vars"):
        described = describe_dataset(dataset, names)
        # Named by its store, as a shard is by its folder: `data.exclude` tells the spectra of several stores apart.
        infos, workers = [replace(described, path=Path(path).stem / described.path)], 1
    else:
        raise ConfigError(
            f"write_store takes an xarray.Dataset or a path, found {type(dataset).__name__}; put your arrays into "
            "xarray.Dataset({'flux': (('spectrum', 'wavelength'), flux), ...}, coords={'wavelength': ...})"
        )
    infos = read_sources(infos)
    watcher = progress or SilentProgress()
    return _convert(infos, Path(path), wanted, _count_workers(workers), overwrite, watcher)


def _convert(
    infos: Sequence[ShardInfo],
    store: Path,
    wanted: ConversionSettings,
    workers: int,
    overwrite: bool,
    progress: Progress,
) -> SpectraStore:
    if store.suffix.lower() in HDF5_SUFFIXES:
        raise ConfigError(
            f"store {store}: a store is a folder of many files, found the name of an HDF5 file; give a name such as "
            f"{store.with_suffix('.zarr').name}"
        )
    for folder in store.resolve().parents:
        if is_store(folder):
            raise ConfigError(
                f"store {store}: {folder} is a store already, and none may lie within it; name another target"
            )
    layout = wanted.plan_layout(sum(info.n_spectra for info in infos), infos[0].n_pixels)
    settings = wanted.describe(layout)
    key = source_key(infos, settings)
    work = work_folder(store)
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
        description = _describe_conversion(key, settings, infos)
        claim_work(work, description, overwrite)
        with kept_if_refused(work, description):
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
    attributes = (find_json(store / "zarr.json") or {}).get("attributes", {})
    if attributes.get("format") != schema.STORE_FORMAT:  # whatever it is, it is not ours to replace
        raise InputError(f"{store} exists and is not a store; name another target")
    if overwrite:
        return None
    existing = SpectraStore.open(store)
    if existing.manifest.settings.get("key") == key:
        return existing
    n_more = len(existing.shard_names) - 3
    names = ", ".join(existing.shard_names[:3]) + (f" and {n_more} more" if n_more > 0 else "")
    sizes = ", ".join(f"{key} {value}" for key, value in existing.manifest.settings.items() if key != "key")
    raise InputError(
        f"store {store} exists, made of other spectra or settings (it is made of {names}; {sizes}); name another "
        f"target, or replace it: headroom convert SHARDS {store} --overwrite, or overwrite=True in Python"
    )


def _confirm_finished(
    store: SpectraStore, plan: ConversionPlan, infos: Sequence[ShardInfo], progress: Progress
) -> SpectraStore:
    """Return a finished store if its shards are still what it was made of, and tidy up behind its conversion."""
    complete = f"store {store.path} is complete already, made of the same shards and settings"
    changed = find_changed(store.manifest, infos)
    if changed and not os.access(plan.work.parent, os.W_OK):  # nothing may be written, so there is nothing to lock
        compare_changed(store, plan, changed, progress)
    elif changed:
        with convert_disk_errors(plan.work), lock_work(plan.work):
            compare_changed(store, plan, changed, progress)
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
        others=tuple(info.others for info in infos),
        openers=tuple(info.opener for info in infos),
        has_mask=tuple(info.has_mask for info in infos),
        dropped=tuple(() for _ in infos),
        bounds=tuple(map(Bounds.of_shard, infos)),
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
    faults: list[dict[str, list[int]]] = [{kind: [] for kind in FAULTS} for _ in plan.lengths]
    for record in found:
        for kind, rows in record["faults"].items():
            faults[record["shard"]][kind] += rows
    for kinds in faults:
        known: set[int] = set()
        for kind in FAULTS:  # a spectrum with several faults is listed under the first
            kinds[kind] = sorted(set(kinds[kind]) - known)
            known |= set(kinds[kind])
    dropped = tuple(tuple(sorted(row for rows in kinds.values() for row in rows)) for kinds in faults)
    n_kept = sum(plan.lengths) - sum(len(rows) for rows in dropped)
    if n_kept == 0:
        raise InputError("every spectrum of the shards is faulty, so nothing is left to convert; check the shards")
    if n_kept < sum(plan.lengths):
        progress.note(f"faulty spectra left out: {sum(plan.lengths) - n_kept:,}; the manifest lists them")
    return replace(plan, dropped=dropped, layout=replace(plan.layout, n_spectra=n_kept)), faults


def _convert_ranges(plan: ConversionPlan, workers: int, progress: Progress) -> None:
    variables = (*plan.variables, "mask") if any(plan.has_mask) else plan.variables
    shape = (find_json(plan.store / "flux" / "zarr.json") or {}).get("shape")
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
        for record in run_in_processes(partial(RangeWriter, plan), method, tasks, workers):
            advance(record["stop"] - record["start"])
            yield record


def _read_scan(plan: ConversionPlan, shard: int, start: int, stop: int) -> dict[str, Any] | None:
    """Return what an earlier run found in these rows, if the shard was not written to since."""
    record = _find_record(plan.scan_path(shard, start)) or {}
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


# --- The last phase: put the small arrays and the manifest in, verify a sample, rename. Safe to repeat.

#: Rows compared with their source before the store is put into place, evenly spread, first and last included.
_SAMPLE_ROWS: Final = 16


def _find_record(path: Path) -> dict[str, Any] | None:
    """Return what an earlier run recorded of a piece of work; None where it has to be done again."""
    record = find_json(path)
    try:
        return record if record is not None and is_sealed(record) else None
    except ValueError:
        return None


def read_records(plan: ConversionPlan) -> dict[int, dict[str, Any]]:
    """Return the records of the ranges that are finished, whose shards were not written to since, and whose chunk
    files are there, by first row."""
    records = {}
    for start, stop in plan.layout.iter_ranges():
        record = _find_record(plan.record_path(start))
        if record is None or (record.get("key"), record.get("stop")) != (plan.key, stop):
            continue
        if record.get("sources") == plan.describe_range(start, stop):
            sizes = record["file_bytes"]
            if all(_sizes(plan, variable, start, stop) == sizes[variable] for variable in sizes):
                records[start] = record
    return records


def build_manifest(
    plan: ConversionPlan,
    infos: Sequence[ShardInfo],
    faults: Sequence[Mapping[str, Sequence[int]]],
    settings: Mapping[str, Any],
) -> Manifest:
    """Write columns, mean spectrum and manifest from the records of all ranges.

    The mean adds the ranges' float64 sums in row order, whatever the order in which they finished.
    """
    found = read_records(plan)
    records = [found[start] for start, _ in plan.layout.iter_ranges() if start in found]
    n_recorded = sum(record["stop"] - record["start"] for record in records)
    if n_recorded != plan.layout.n_spectra:
        raise InputError(
            f"{plan.work} has records of {n_recorded} rows instead of {plan.layout.n_spectra}, so files in it were "
            "changed while it was being finished; convert again"
        )
    variables = _settle_mask(plan, records)
    sums = np.zeros(plan.layout.n_pixels)
    for record in records:
        sums += np.frombuffer(base64.b64decode(record["flux_sums"]), "<f8")
    # As float32 sees it: the last bits of a float64 sum depend on the ranges, and with them on the chunk sizes.
    mean_flux = (sums / plan.layout.n_spectra).astype(np.float32).astype(np.float64)
    columns = merge_columns(infos, plan.dropped)
    write_columns(plan.store, infos[0].wavelength, mean_flux, columns)
    manifest = Manifest(
        n_spectra=plan.layout.n_spectra,
        n_pixels=plan.layout.n_pixels,
        chunk_rows=plan.layout.chunk_rows,
        shard_rows=plan.layout.shard_rows,
        variables=variables,
        sources=tuple(record_source(info, rows) for info, rows in zip(infos, faults, strict=True)),
        ranges=tuple(
            RangeRecord(
                record["start"],
                record["stop"],
                {variable: record["digests"][variable] for variable in variables},
                {variable: record["file_bytes"][variable] for variable in variables},
                {variable: record["checksums"][variable] for variable in variables},
            )
            for record in records
        ),
        wavelength=digest_array(infos[0].wavelength),
        mean_flux=digest_array(mean_flux),
        columns={name: digest_array(values) for name, values in columns.items()},
        settings={**settings, "key": plan.key},
        counts={
            **{
                f"repaired_{variable}_pixels": sum(record["repaired"].get(variable, 0) for record in records)
                for variable in plan.variables
                if variable != "flux"
            },
            "flagged_pixels": sum(record["flagged"] for record in records),
            **{
                f"dropped_{kind.replace(' ', '_')}": sum(len(f.get(kind, ())) for f in faults)
                for kind in _kinds(faults)
            },
        },
        metadata={
            name: hash_file(plan.store / name / "zarr.json")
            for name in (*variables, "wavelength", schema.STORE_ORIGIN, *columns)
        },
    )
    write_manifest(plan.store, manifest)
    return manifest


def verify_sample(plan: ConversionPlan, workers: int) -> None:
    """Open the new store and compare a fixed sample of its rows, bit for bit, with the shards, in some threads.

    Raises
    ------
    InputError
        If they differ, or a shard was written to meanwhile: it changed during the conversion, or the disk does not
        keep what it is given.
    """
    store = SpectraStore.open(plan.store)
    store.direct_reads = True  # what lies on the disk, not what the page cache remembers of it
    shards, source_rows = store.columns["shard"], store.columns["row"]
    sample = np.unique(np.linspace(0, store.n_spectra - 1, min(_SAMPLE_ROWS, store.n_spectra)).astype(int))

    def compare(place: tuple[int, str]) -> None:
        row, variable = place
        reader, source = readers[shards[row]], int(source_rows[row])
        expected = np.empty((1, store.n_pixels), np.float32)
        cast_rows(variable, reader.read_rows(variable, source, source + 1), expected)
        if not np.array_equal(store.read_rows(variable, row, row + 1), expected):
            raise InputError(
                f"{reader.name}: {variable} of row {source} differs from row {row} of the new store; the shard changed "
                f"while it was converted, or the disk is failing: delete {plan.work} and run again"
            )

    with ExitStack() as stack:
        readers = {shard: stack.enter_context(plan.open_shard(shard)) for shard in np.unique(shards[sample]).tolist()}
        with ThreadPoolExecutor(workers, "verify") as threads:
            list(threads.map(compare, itertools.product(sample.tolist(), plan.variables)))
    plan.require_unchanged(range(len(plan.shards)))


def put_in_place(plan: ConversionPlan, store: Path) -> None:
    """Rename the finished store to its target, moving an older store out of the way first, and clean up."""
    old = plan.work / "old"
    if store.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(store, old)
    os.rename(plan.store, store)
    remove_work(plan.work)


def _sizes(plan: ConversionPlan, variable: str, start: int, stop: int) -> list[int]:
    files = [plan.store / variable / name for name, _, _ in plan.layout.iter_files(start, stop)]
    return [file.stat().st_size if file.is_file() else -1 for file in files]


def _kinds(faults: Sequence[Mapping[str, Sequence[int]]]) -> list[str]:
    return sorted({kind for rows in faults for kind in rows})


def _settle_mask(plan: ConversionPlan, records: list[dict[str, Any]]) -> tuple[str, ...]:
    """Keep a mask only if a pixel is flagged anywhere, and then write the ranges that had none."""
    if not any(record["flagged"] for record in records):
        shutil.rmtree(plan.store / "mask", ignore_errors=True)
        return plan.variables
    zeros = np.zeros((plan.layout.chunk_rows, plan.layout.n_pixels), np.uint8)
    for record in records:
        if "mask" not in record["digests"]:
            start, stop = record["start"], record["stop"]
            sizes, checksums = write_chunks(plan.store / "mask", plan.layout, start, itertools.repeat(zeros))
            record["file_bytes"]["mask"], record["checksums"]["mask"] = sizes, checksums
            digests = (
                digest_rows(zeros[: stop - first], first) for first in range(start, stop, plan.layout.chunk_rows)
            )
            record["digests"]["mask"] = f"{sum(digests) % 2**64:016x}"
    return tuple(name for name in schema.PIXEL_VARIABLES if name in (*plan.variables, "mask"))
