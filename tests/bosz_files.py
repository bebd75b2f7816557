"""A folder of BOSZ 2024 files, named and shaped as MAST serves them, of spectra by the compact model."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np

from pipeline.simulate.spectra import Labels, SpectrumModel, plan_wavelengths

WAVE, WAVE_EDGES = plan_wavelengths((7000.0, 9000.0), 400)
TEFF, LOGG, MH = (4000, 5000, 6000), (1.0, 3.0, 5.0), (-2.0, -1.0, 0.5)
_MODEL = SpectrumModel(WAVE_EDGES)


def render(nodes: Iterable[tuple[float, float, float]], edges: np.ndarray = WAVE_EDGES) -> np.ndarray:
    teff, logg, mh = np.array(list(nodes), dtype=float).T
    zero = np.zeros(len(teff))
    return (_MODEL if edges is WAVE_EDGES else SpectrumModel(edges)).render(Labels(teff, logg, mh, zero, zero))


def name_file(t: float, g: float, m: float, *, atmosphere: str = "mp", kind: str = "a+0.00_c+0.00_v2") -> str:
    return f"bosz2024_{atmosphere}_t{t:.0f}_g{g:+.1f}_m{m:+.2f}_{kind}_r2000_resam.txt.gz"


def write_spectrum(path: Path, flux: np.ndarray) -> None:
    """Two columns, H and the continuum, and no header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as stream:
        np.savetxt(stream, np.column_stack([1e6 * flux, np.full_like(flux, 1e6)]), fmt="%14.7E")


def write_bosz(folder: Path, wave: np.ndarray = WAVE, edges: np.ndarray = WAVE_EDGES) -> Path:
    """Write a folder in MAST's layout: one sub-folder for each metallicity, the wavelengths beside them."""
    nodes = list(product(TEFF, LOGG, MH))
    for (t, g, m), flux in zip(nodes, render(nodes, edges), strict=True):
        write_spectrum(folder / f"m{m:+.2f}" / name_file(t, g, m), flux)
    np.savetxt(folder / "bosz2024_wave_r2000.txt", wave, fmt="%.6f")
    return folder
