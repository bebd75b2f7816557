"""Where a shard keeps its arrays, and every check of them that needs no pixels.

What would otherwise end as silent zeros or shifted rows is refused here; messages name the shard and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import h5py
import numpy as np

from pipeline import schema
from pipeline.errors import InputError

__all__ = ["PIXEL_PATHS", "find_pixel_arrays", "list_remarks", "read_wavelength", "require_written"]

PIXEL_PATHS: Final[Mapping[str, str]] = {
    "flux": schema.SHARD_FLUX,
    "error": schema.SHARD_ERROR,
    "mask": schema.SHARD_MASK,
    "noisy": schema.SHARD_NOISY,
}


def find_pixel_arrays(file: h5py.File, name: str) -> dict[str, h5py.Dataset]:
    """Return the pixel arrays by variable, all of one shape; mask and noisy where there are any."""
    datasets: dict[str, h5py.Dataset] = {}
    for variable, dataset_path in PIXEL_PATHS.items():
        dataset = file.get(dataset_path)
        if dataset is None and variable in ("mask", "noisy"):
            continue
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(
                f"{name}: {dataset_path!r} is missing, so this is no pfsspec shard or its writer did not finish; "
                "re-run the simulation or leave this shard out"
            )
        allowed = "biu" if variable == "mask" else "f"
        if dataset.ndim != 2 or dataset.dtype.kind not in allowed or 0 in dataset.shape:
            wanted = "integers or booleans" if variable == "mask" else "floats"
            raise InputError(
                f"{name}: {dataset_path!r} must hold {wanted} of shape (spectra, pixels), found {dataset.dtype} "
                f"{dataset.shape}; re-run the simulation or leave this shard out"
            )
        datasets[variable] = dataset
    shape = datasets["flux"].shape
    for variable, dataset in datasets.items():
        if dataset.shape != shape:
            raise InputError(
                f"{name}: all pixel arrays must have one shape, but flux has {shape} and {variable} has "
                f"{dataset.shape}; re-run the simulation or leave this shard out"
            )
    return datasets


def read_wavelength(file: h5py.File, name: str, n_pixels: int) -> np.ndarray:
    """Return the wavelengths (n_pixels,) in Å, float64, finite and strictly increasing."""
    dataset = file.get(schema.SHARD_WAVE)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (n_pixels,) or dataset.dtype.kind not in "fiu":
        found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "nothing"
        raise InputError(
            f"{name}: {schema.SHARD_WAVE!r} must hold {n_pixels} wavelengths, one per pixel of the flux, found "
            f"{found}; re-run the simulation or leave this shard out"
        )
    wavelength: np.ndarray = dataset[()].astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(wavelength))
    if not wrong.size:
        wrong = np.flatnonzero(np.diff(wavelength) <= 0) + 1
    if wrong.size:
        raise InputError(
            f"{name}: {schema.SHARD_WAVE!r} must be finite and strictly increasing, found {wavelength[wrong[0]]} at "
            f"pixel {wrong[0]}; sort the pixels or re-run the simulation"
        )
    return wavelength


def require_written(dataset: h5py.Dataset, variable: str, name: str) -> None:
    """Refuse storage that was never written: HDF5 reads it as zeros without a word."""
    if dataset.is_virtual:
        raise InputError(
            f"{name}: {PIXEL_PATHS[variable]!r} must be stored in the file itself, found a virtual dataset, whose "
            "missing parts read as zeros without a word; name the files that it is made of"
        )
    if dataset.chunks is None:
        n_missing, first = (0 if dataset.id.get_storage_size() else 1), (0, 0)
    else:
        steps = dataset.chunks
        expected = math.prod(-(-size // step) for size, step in zip(dataset.shape, steps, strict=True))
        written = dataset.id.get_num_chunks()
        if written == expected or (written == 0 and variable == "mask" and dataset.dtype != bool):
            return  # an integer mask that was never written says: nothing is flagged
        offsets = {dataset.id.get_chunk_info(i).chunk_offset for i in range(written)}
        grid = ((r, p) for r in range(0, dataset.shape[0], steps[0]) for p in range(0, dataset.shape[1], steps[1]))
        n_missing, first = (
            max(1, expected - written),
            next((offset for offset in grid if offset not in offsets), (0, 0)),
        )
    if n_missing:
        row, pixel = first
        raise InputError(
            f"{name}: {PIXEL_PATHS[variable]!r} has {n_missing} unwritten chunk(s), the first at row {row}, pixel "
            f"{pixel}; they would read as zeros, so the simulation did not finish: re-run it or leave this shard out"
        )


def list_remarks(file: h5py.File, n_pixels: int) -> tuple[str, ...]:
    """Return what a reader should know of a shard that is otherwise right."""
    remarks = [schema.SIMULATED_REMARK] if schema.SHARD_SIMULATED in file.attrs else []
    edges = file.get(schema.SHARD_WAVE_EDGES)
    if isinstance(edges, h5py.Dataset) and edges.shape != (n_pixels + 1,):
        remarks.append(
            f"{schema.SHARD_WAVE_EDGES!r} has shape {edges.shape} where ({n_pixels + 1},) is right; it is ignored, "
            "edges follow from the wavelengths"
        )
    return tuple(remarks)
