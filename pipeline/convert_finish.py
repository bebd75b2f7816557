"""The last phase of a conversion: put the small arrays and the manifest in, verify, rename. Safe to repeat."""

from __future__ import annotations

import base64
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr

from pipeline import schema
from pipeline.convert_pixels import cast_rows
from pipeline.convert_ranges import ConversionPlan, read_json
from pipeline.convert_sources import merge_columns, record_source
from pipeline.convert_work import remove_work
from pipeline.errors import InputError
from pipeline.shards import ShardInfo, ShardReader
from pipeline.store import SpectraStore
from pipeline.store_chunks import write_chunks
from pipeline.store_layout import MANIFEST_GROUP, write_columns
from pipeline.store_manifest import Manifest, RangeRecord, digest_array, digest_rows

__all__ = ["build_manifest", "put_in_place", "read_records", "verify_sample"]

#: Rows compared with their source before the store is put into place, evenly spread, first and last included.
_SAMPLE_ROWS: Final = 16


def read_records(plan: ConversionPlan) -> dict[int, dict[str, Any]]:
    """Return the records of the ranges that are finished, whose shards were not written to since, and whose chunk
    files are there, by first row."""
    records = {}
    for start, stop in plan.layout.iter_ranges():
        record = read_json(plan.record_path(start))
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
    )
    zarr.open_group(plan.store / MANIFEST_GROUP, mode="w", zarr_format=3, attributes=manifest.to_json())
    root = zarr.open_group(plan.store, mode="r+", zarr_format=3)
    root.attrs.update(
        {"format": schema.STORE_FORMAT, "version": schema.STORE_VERSION, "fingerprint": manifest.fingerprint}
    )
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
        readers = {
            shard: stack.enter_context(ShardReader(plan.shards[shard])) for shard in np.unique(shards[sample]).tolist()
        }
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
            record["file_bytes"]["mask"] = write_chunks(
                plan.store / "mask", plan.layout, start, itertools.repeat(zeros)
            )
            digests = (
                digest_rows(zeros[: stop - first], first) for first in range(start, stop, plan.layout.chunk_rows)
            )
            record["digests"]["mask"] = f"{sum(digests) % 2**64:016x}"
    return tuple(name for name in schema.PIXEL_VARIABLES if name in (*plan.variables, "mask"))
