"""What shards or a store hold, before anything is converted: layout, ranges, faults, spectra per bin.

Pixels are streamed in small blocks, so a 19 GB shard needs no more memory than a test file. A broken file is
reported as such and the others are still inspected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from pipeline import schema
from pipeline.base import Progress, SilentProgress
from pipeline.config import REFERENCE_EDGES
from pipeline.convert.datasets import DatasetInfo, find_converted, find_sources, read_source_info
from pipeline.convert.ranges import Bounds, cast_rows, describe_fault
from pipeline.errors import HeadroomError, InputError
from pipeline.shards import find_typical_flux
from pipeline.store import SpectraStore

__all__ = ["Inspection", "inspect_path", "render_inspection", "render_total"]

_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_BLOCK_BYTES: Final = 4 << 20

ReadRows = Callable[[str, int, int], np.ndarray]


@dataclass(frozen=True)
class Inspection:
    """What one file holds, or the ``problem`` that kept it from being inspected.

    ``wavelength`` is (first, last, smallest step, largest step) in Å; ``layout`` describes each array; ``labels`` are
    (least, greatest) by column; ``counts`` are pixels or spectra by what is odd about them; ``snr`` are the 5, 25,
    50, 75 and 95 % quantiles and ``snr_source`` says of what; ``bin_counts`` are spectra by bin and "outside".
    ``refused`` says of the first spectrum that conversion refuses why, and how many there are; None if there are none.
    """

    path: Path
    problem: str | None = None
    kind: str = "shard"
    n_spectra: int = 0
    n_pixels: int = 0
    wavelength: tuple[float, float, float, float] = (np.nan, np.nan, np.nan, np.nan)
    layout: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    snr: tuple[float, ...] = ()
    snr_source: str = ""
    bin_counts: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    refused: str | None = None


def inspect_path(
    path: Path | str,
    *,
    bins: Mapping[str, Sequence[float]] = REFERENCE_EDGES,
    allow_external: bool = False,
    progress: Progress | None = None,
) -> list[Inspection]:
    """Inspect every store that a path, folder or glob names, or every shard that a file, folder, glob or index does.

    Parameters
    ----------
    path
        Anything :func:`pipeline.store.joined.find_stores` or :func:`pipeline.convert.datasets.find_sources` takes.
    bins
        Edges by column, half-open with the last edge closed.
    allow_external
        Read what shards have in other files, too, by external links or external storage.
    progress
        Who watches; all pixels are read once.

    Returns
    -------
    list
        One inspection per file, in order; a broken file, or a path that names nothing, has ``problem`` set instead of
        contents, so that the next path is inspected all the same.
    """
    progress = progress or SilentProgress()
    try:
        stores = find_converted([path])
        shards = () if stores else find_sources([path], Path())
    except InputError as error:
        return [Inspection(Path(path), problem=str(error))]
    if stores:
        return [_inspect_safely(store, _inspect_store, bins, progress) for store in stores]
    inspect_shard = partial(_inspect_shard, allow_external=allow_external)
    return [_inspect_safely(shard, inspect_shard, bins, progress) for shard in shards]


def render_inspection(inspection: Inspection) -> str:
    """Return an inspection as one paragraph of text for a terminal."""
    if inspection.problem is not None:
        return f"{inspection.path}\n  broken: {inspection.problem}"
    first, last, least, most = inspection.wavelength
    step = f"step {least:.4g}" if most - least < 1e-6 * most else f"steps {least:.4g} to {most:.4g}"
    lines = [
        f"{inspection.path} ({inspection.kind})",
        f"  {inspection.n_spectra:,} spectra × {inspection.n_pixels:,} pixels, {first:.2f} to {last:.2f} Å, {step} Å",
        *(f"  {name}: {text}" for name, text in inspection.layout.items()),
    ]
    for name, (low, high) in inspection.labels.items():
        unit = schema.COLUMN_UNITS.get(name, "")
        lines.append(f"  {schema.COLUMN_SYMBOLS.get(name, name)}: {low:.6g} to {high:.6g} {unit}")
    if inspection.snr:
        quantiles = ", ".join(f"{100 * q:.0f} % {v:.3g}" for q, v in zip(_QUANTILES, inspection.snr, strict=True))
        lines.append(f"  SNR ({inspection.snr_source}): {quantiles}")
    odd = [f"  {name}: {count:,}" for name, count in inspection.counts.items() if count]
    lines += odd or ["  no NaN, masked, negative or all-zero pixels"]
    lines += [f"  {remark}" for remark in inspection.remarks]
    lines += [f"  refused: {inspection.refused}"] if inspection.refused else []
    return "\n".join([*lines, *_render_bins(inspection.bin_counts, inspection.n_spectra)])


def render_total(inspections: Sequence[Inspection]) -> str:
    """Return how many spectra several files hold together, and in which bins; what is broken is not counted."""
    whole = [one for one in inspections if one.problem is None]
    n_spectra = sum(one.n_spectra for one in whole)
    counts: dict[str, int] = {}
    for one in whole:
        for name, count in one.bin_counts.items():
            counts[name] = counts.get(name, 0) + count
    broken = f", {len(inspections) - len(whole)} broken" if len(whole) < len(inspections) else ""
    lines = [f"together: {len(whole)} files{broken}, {n_spectra:,} spectra"]
    return "\n".join([*lines, *_render_bins(counts, n_spectra)] if counts else lines)


def _render_bins(counts: Mapping[str, int], n_spectra: int) -> list[str]:
    width = max(len(name) for name in counts)
    share = 100 / max(n_spectra, 1)
    rows = [f"    {name:<{width}}  {count:>9,}  {share * count:5.1f} %" for name, count in counts.items()]
    return ["  spectra per bin:", *rows]


def _inspect_safely(
    path: Path,
    inspect: Callable[[Path, Mapping[str, Sequence[float]], Progress], Inspection],
    bins: Mapping[str, Sequence[float]],
    progress: Progress,
) -> Inspection:
    try:
        return inspect(path, bins, progress)
    except HeadroomError as error:
        return Inspection(path, problem=str(error))


def _inspect_shard(
    path: Path, bins: Mapping[str, Sequence[float]], progress: Progress, *, allow_external: bool
) -> Inspection:
    info = read_source_info(path, allow_external=allow_external)
    is_shard = not isinstance(info, DatasetInfo)
    layout = {
        variable: f"{info.dtypes[variable]}, "
        + (f"chunks {info.chunks[variable]}" if info.chunks[variable] else "contiguous" if is_shard else "own layout")
        + (", true = valid" if variable == "mask" and info.mask_is_boolean else "")
        for variable in info.variables
    }
    with info.opener() as reader:
        return _inspect_pixels(
            Inspection(path, kind="shard" if is_shard else "own layout", layout=layout, remarks=info.remarks),
            info.wavelength,
            info.columns,
            info.variables,
            reader.read_rows,
            Bounds.of_shard(info),
            bins,
            progress,
        )


def _inspect_store(path: Path, bins: Mapping[str, Sequence[float]], progress: Progress) -> Inspection:
    store = SpectraStore.open(path)
    division = f"chunks of {store.chunk_rows:,} spectra" + (
        f" in shards of {store.shard_rows:,}" if store.shard_rows else ""
    )
    layout = {name: f"{'uint8' if name == 'mask' else 'float32'}, {division}" for name in store.variables}
    sources = ", ".join(f"{name} ({kept:,})" for name, kept in zip(store.shard_names, store.shard_lengths, strict=True))
    remarks = (
        f"fingerprint {store.fingerprint}",
        f"made of {sources}",
        *tuple(
            f"{name.replace('_', ' ')} at conversion: {count:,}"
            for name, count in store.manifest.counts.items()
            if count
        ),
    )
    return _inspect_pixels(
        Inspection(path, kind="store", layout=layout, remarks=remarks),
        store.wavelength,
        store.columns,
        store.variables,
        store.read_rows,
        Bounds.of_flux(find_typical_flux(store.read_rows, store.n_spectra)),
        bins,
        progress,
    )


def _inspect_pixels(
    described: Inspection,
    wavelength: np.ndarray,
    columns: Mapping[str, np.ndarray],
    variables: Sequence[str],
    read_rows: ReadRows,
    bounds: Bounds,
    bins: Mapping[str, Sequence[float]],
    progress: Progress,
) -> Inspection:
    """Complete an inspection with what the columns and one pass over the pixels tell."""
    n_spectra, n_pixels = len(columns["T_eff"]), len(wavelength)
    counts: dict[str, int] = {}
    snr = np.empty(n_spectra)
    step_rows = max(1, _BLOCK_BYTES // (8 * n_pixels))
    cast, first_fault, n_refused = np.empty((step_rows, n_pixels), np.float32), "", 0
    # Shards all have one name: their folders tell them apart.
    path = described.path
    name = f"{path.parent.name}/{path.name}" if path.name == schema.SHARD_FILE_NAME else path.name
    with progress.step(f"inspect {name}", n_spectra) as advance:
        for start in range(0, n_spectra, step_rows):
            stop = min(start + step_rows, n_spectra)
            block = {variable: read_rows(variable, start, stop) for variable in variables}
            for name, count in _iter_counts(block):
                counts[name] = counts.get(name, 0) + count
            snr[start:stop] = _measure_snr(block["flux"], block["error"])
            # Last, because it repairs the edges of the block.
            faults = [
                (replace(fault, row=start + fault.row), variable)
                for variable in block
                if variable != "mask"
                for fault in cast_rows(variable, block[variable], cast[: stop - start], bounds=bounds)[1]
            ]
            n_refused += len({fault.row for fault, _ in faults})
            if faults and not first_fault:
                first_fault = describe_fault(*min(faults, key=lambda found: found[0].row), bounds)
            advance(stop - start)
    given = columns.get("snr")
    use_given = given is not None and given.dtype.kind in "fiu" and bool(np.isfinite(given).any())
    values = given if given is not None and use_given else snr
    values = values[np.isfinite(values)]
    steps = np.diff(wavelength) if n_pixels > 1 else np.array([np.nan])
    return Inspection(
        path=described.path,
        kind=described.kind,
        n_spectra=n_spectra,
        n_pixels=n_pixels,
        wavelength=(wavelength[0], wavelength[-1], steps.min(), steps.max()),
        layout=described.layout,
        labels={name: _measure_range(columns[name]) for name in schema.LABELS},
        counts=counts,
        snr=tuple(np.quantile(values, _QUANTILES).tolist()) if values.size else (),
        snr_source="column snr" if use_given else "median flux / median error",
        bin_counts=_count_bins(columns, bins),
        remarks=described.remarks,
        refused=_describe_refused(n_refused, first_fault) if n_refused else None,
    )


def _describe_refused(count: int, first_fault: str) -> str:
    return f"{count:,} spectr{'a, the first because' if count > 1 else 'um, because'} {first_fault}"


def _iter_counts(block: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int]]:
    flux, error = block["flux"], block["error"]
    yield "non-finite flux pixels", int(np.count_nonzero(~np.isfinite(flux)))
    yield from _iter_repairs("error", error)
    yield "negative error pixels", int(np.count_nonzero(error < 0))
    yield "all-zero spectra", int(np.count_nonzero(~flux.any(axis=1)))
    yield "all-zero error vectors", int(np.count_nonzero(~error.any(axis=1)))
    if "noisy" in block:
        yield from _iter_repairs("noisy", block["noisy"])
    if "mask" in block:
        yield "masked pixels", int(np.count_nonzero(block["mask"]))


def _iter_repairs(variable: str, values: np.ndarray) -> Iterator[tuple[str, int]]:
    """Count NaN as conversion takes them: repaired at an edge beside a number, refused elsewhere."""
    pairs = ((0, 1), (-1, -2)) if values.shape[1] > 1 else ()
    edges = sum(int(np.count_nonzero(np.isnan(values[:, at]) & ~np.isnan(values[:, beside]))) for at, beside in pairs)
    yield f"{variable} pixels that are NaN at an edge (repaired by conversion)", edges
    yield f"other non-finite {variable} pixels", int(np.count_nonzero(~np.isfinite(values))) - edges


def _measure_snr(flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Median flux over median error of each spectrum: (n,), NaN where either is not a number."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ratio: np.ndarray = np.median(flux, axis=1) / np.median(error[:, 1:-1] if error.shape[1] > 2 else error, axis=1)
    return ratio


def _measure_range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _count_bins(columns: Mapping[str, np.ndarray], bins: Mapping[str, Sequence[float]]) -> dict[str, int]:
    from pipeline.bins import BinGrid

    grid = BinGrid({name: tuple(edges) for name, edges in bins.items()})
    assigned = grid.assign(columns)
    counts = {grid.describe(k): int(np.count_nonzero(assigned == k)) for k in range(grid.n_bins)}
    return {**counts, "outside": int(np.count_nonzero(assigned < 0))}
