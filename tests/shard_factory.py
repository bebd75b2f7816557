"""Tiny shards in the pfsspec layout; the labels are written by pandas and PyTables, as users' files are."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

ARRAYS = "dataset/arrays"


def make_frame(n_spectra: int, seed: int = 0) -> pd.DataFrame:
    """Labels like the users': ranges wider than the bins, a string, a boolean, and a column that is all NaN."""
    rng = np.random.default_rng([seed, 1])
    return pd.DataFrame(
        {
            "id": np.arange(n_spectra, dtype=np.int64) + 1000 * seed,
            "T_eff": rng.uniform(3750, 6000, n_spectra),
            "log_g": rng.uniform(1, 5, n_spectra),
            "M_H": rng.uniform(-2.5, 0.75, n_spectra),
            "a_M": rng.uniform(0, 0.4, n_spectra),
            "C_M": 0.1,
            "mag": rng.uniform(20.5, 22.5, n_spectra),
            "snr": rng.uniform(3, 20, n_spectra),
            "redshift": np.nan,
            "is_giant": rng.random(n_spectra) < 0.5,
            "interp_param": ["T_eff" if i % 2 else "log_g" for i in range(n_spectra)],
        }
    )


def make_pixels(n_spectra: int, n_pixels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Flux near 1 and errors near 0.1, float64."""
    rng = np.random.default_rng([seed, 2])
    flux = 1 + 0.1 * rng.standard_normal((n_spectra, n_pixels))
    return flux, rng.uniform(0.05, 0.15, (n_spectra, n_pixels))


def write_shard(
    path: Path,
    n_spectra: int = 40,
    n_pixels: int = 16,
    *,
    seed: int = 0,
    arrays: dict[str, np.ndarray] | None = None,
    frame: pd.DataFrame | None = None,
    wavelength: np.ndarray | None = None,
    chunks: tuple[int, int] | None = (8, 16),
    data_columns: Sequence[str] | None = None,
    storage: dict[str, Any] | None = None,
) -> Path:
    """Write one shard; ``arrays`` replaces or adds pixel arrays, None as a value leaves one out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flux, error = make_pixels(n_spectra, n_pixels, seed)
    pixels: dict[str, Any] = {"flux": flux, "error": error, "mask": np.zeros((n_spectra, n_pixels), np.int64)}
    pixels |= arrays or {}
    frame = make_frame(n_spectra, seed) if frame is None else frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame.to_hdf(path, key="dataset/params", format="table", mode="w", data_columns=data_columns)
    with h5py.File(path, "a") as file:
        for name, values in pixels.items():
            if values is not None:
                tiles = None if chunks is None else tuple(map(min, chunks, values.shape))
                file.create_dataset(f"{ARRAYS}/{name}/value", data=values, chunks=tiles, **(storage or {}))
        wave = np.linspace(7100, 8850, n_pixels) if wavelength is None else wavelength
        file["spectrumdataset/wave"] = wave
        steps = np.diff(wave).mean() / 2 if len(wave) > 1 else 1.0
        file["spectrumdataset/wave_edges"] = np.append(wave - steps, wave[-1] + steps)
    return path


def make_first_version(store: Path) -> Path:
    """Take from a store what those of the first version did not have: checksums of its manifest, chunks and arrays."""
    for folder in (store, store / "manifest"):
        content = json.loads((folder / "zarr.json").read_text())
        attributes = content["attributes"]
        if folder == store:
            attributes["version"] = 1
        else:
            del attributes["checksum"], attributes["metadata"]
            for part in attributes["ranges"]:
                del part["checksums"]
        (folder / "zarr.json").write_text(json.dumps(content))
    return store
