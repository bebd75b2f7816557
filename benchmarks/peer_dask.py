"""What a careful Dask user writes today for the moments of every bin: lazy arrays, masks and products.

    python benchmarks/peer_dask.py STORE.zarr

Flux and error from Zarr, noise from ``dask.array.random``, and for every bin the rows of a mask and their products, all
computed together so that a chunk is read once; one worker process with a thread for each core and, as Dask's
workers have it by default, BLAS on one thread. The moments stay in memory: nothing is written. Prints one line of
JSON: seconds, spectra, the summed trace of the Gram matrices (for a check, since the noise is another draw).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import compute
from distributed import Client

from pipeline import BinGrid, SpectraStore
from pipeline.base import available_cores, available_memory
from pipeline.config import REFERENCE_EDGES
from pipeline.schema import LABELS

SEED = 42


def plan_moments(store: SpectraStore) -> list[tuple[Any, ...]]:
    """Return the lazy sums of every cell: of pixels, of their products, and of those with the labels."""
    chunks = (store.chunk_rows, store.n_pixels)  # a task for each chunk; a whole Zarr shard would be a large one
    flux, error = (da.from_zarr(str(store.path), component=name, chunks=chunks) for name in ("flux", "error"))
    noise = da.random.default_rng(SEED).standard_normal(flux.shape, chunks=flux.chunks, dtype=np.float32)
    x = da.maximum(da.maximum(flux, 0) + error * noise, 0) - store.mean_flux.astype(np.float32)
    y = np.column_stack([store.columns[label] for label in LABELS]).astype(np.float32)
    y = da.from_array(y - y.mean(axis=0), chunks=(flux.chunks[0], -1))
    grid = BinGrid(REFERENCE_EDGES)
    cells = grid.cells(store.columns)
    moments = []
    for cell in range(grid.n_cells):
        mask = cells == cell
        of_cell, labels = x[mask], y[mask]
        moments.append((of_cell.sum(axis=0), of_cell.T @ of_cell, of_cell.T @ labels))
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    options = parser.parse_args()
    store = SpectraStore.open(options.store)
    settings = {
        "distributed.logging": {"distributed": "error"},
        "distributed.scheduler.active-memory-manager.start": False,
    }
    with (
        dask.config.set(settings),
        Client(
            n_workers=1,
            threads_per_worker=available_cores(),
            memory_limit=int(0.9 * available_memory()),
            dashboard_address=None,
            host="127.0.0.1",
        ) as client,
    ):
        client.wait_for_workers(1)
        started = time.perf_counter()
        moments = compute(*plan_moments(store))
        seconds = time.perf_counter() - started
    trace = float(sum(np.trace(gram, dtype=np.float64) for _, gram, _ in moments))
    facts = {"seconds": seconds, "spectra": store.n_spectra, "trace": trace, "load": os.getloadavg()[0]}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
