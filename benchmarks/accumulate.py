"""The hot loop against the machine's own `ssyrk`, side by side in one run.

    python benchmarks/accumulate.py STORE.zarr [--rows 32768] [--repeats 5]

Prints, for each repeat, the rate of one large multi-threaded `ssyrk` (N·P² operations for N rows) and that of the
hot loop on the store's first rows (10 cells, noise level 1 with clipping), and the medians. Make a store with

    headroom sample spectra --train 100000 --shards 2 --pixels 4096
    headroom convert spectra/train STORE.zarr
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from scipy.linalg.blas import ssyrk

from pipeline import NoiseDraw, SpectraStore
from pipeline.bins import BinGrid
from pipeline.config import REFERENCE_EDGES
from pipeline.hotloop import CellRows, LoopSettings, Workspace, accumulate_rows, available_threads
from pipeline.schema import LABELS, STREAM_TRAIN

FLOOR_ROWS = 8192


def first_rows(store: SpectraStore, n: int) -> CellRows:
    grid = BinGrid(REFERENCE_EDGES)
    columns = {name: values[:n] for name, values in store.columns.items()}
    labels = np.column_stack([columns[label] for label in LABELS])
    return CellRows(0, grid.cells(columns), grid.n_cells, labels, LABELS, store.mean_flux, labels.mean(axis=0))


def measure_floor(x: np.ndarray, total: np.ndarray) -> float:
    started = time.perf_counter()
    ssyrk(1.0, x.T, beta=1, c=total, lower=1, overwrite_c=1)
    return x.shape[0] * x.shape[1] ** 2 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    store = SpectraStore.open(options.store)
    n, p = min(options.rows, store.n_spectra), store.n_pixels
    x = np.random.default_rng(0).standard_normal((FLOOR_ROWS, p), dtype=np.float32)
    total = np.zeros((p, p), np.float32, order="F")
    rows, draws = first_rows(store, n), [NoiseDraw(1.0, 42, STREAM_TRAIN)]
    settings, workspace = LoopSettings(threads=available_threads()), Workspace()
    measure_floor(x, total)
    accumulate_rows(store, rows, draws, settings, workspace=workspace)  # compiles, and touches the memory
    print(f"{n:,} × {p:,}, {settings.threads} threads, one-minute load {os.getloadavg()[0]:.1f}")
    floors, rates = [], []
    for _ in range(options.repeats):
        floors.append(max(measure_floor(x, total) for _ in range(3)))
        started = time.perf_counter()
        accumulate_rows(store, rows, draws, settings, workspace=workspace)
        rates.append(n * p**2 / (time.perf_counter() - started))
        print(f"  ssyrk {floors[-1] / 1e9:6.0f}  loop {rates[-1] / 1e9:6.0f} Gflop/s  {rates[-1] / floors[-1]:.2f}")
    ratio = statistics.median(rate / floor for rate, floor in zip(rates, floors, strict=True))
    print(
        f"medians: ssyrk {statistics.median(floors) / 1e9:.0f}, loop {statistics.median(rates) / 1e9:.0f}, {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
