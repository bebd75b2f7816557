"""What it costs to read flux and error of a warm store: our chunk reader, zarr-python, and the `zarrs` codec pipeline.

    python benchmarks/reading.py STORE.zarr [--repeats 5]

Prints µs of CPU (user and system, all threads) for one row of flux and error, median and range. Two threads read blocks
of one chunk each. `zarrs` is measured where it is installed (`pip install zarrs`), best into a virtual environment of
its own.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import zarr

from pipeline.store import SpectraStore

THREADS = 2
VARIABLES = ("flux", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    zarr_python = f"zarr-python {zarr.__version__}"
    readers = {"chunk reader": (read_chunks, {}), zarr_python: (read_zarr, {})}
    if find_spec("zarrs"):
        readers["zarrs codec pipeline"] = read_zarr, {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    store = SpectraStore.open(arguments.store)
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(arguments.repeats + 1):  # side by side; the first round warms the page cache and the memory
        for name, (read, settings) in readers.items():
            with zarr.config.set(settings):
                found[name].append(measure(store, read))
    for name, (_, *seconds) in found.items():
        micros = [one / store.n_spectra * 1e6 for one in seconds]
        print(f"{name:24} {median(micros):5.1f} µs a row ({min(micros):.1f} to {max(micros):.1f})")


def measure(store: SpectraStore, read: Callable[[SpectraStore, list[tuple[int, int]]], None]) -> float:
    """Return the CPU seconds of reading all rows with some threads."""
    blocks = list(store.iter_blocks(0, store.n_spectra))
    before = cpu_seconds()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda k: read(store, blocks[k::THREADS]), range(THREADS)))
    return cpu_seconds() - before


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read_chunks(store: SpectraStore, blocks: list[tuple[int, int]]) -> None:
    buffer = np.empty((store.chunk_rows, store.n_pixels), np.float32)
    for start, stop in blocks:
        for variable in VARIABLES:
            store.read_rows(variable, start, stop, buffer)


def read_zarr(store: SpectraStore, blocks: list[tuple[int, int]]) -> None:
    group = zarr.open_group(store.path, mode="r")
    arrays = [group[variable] for variable in VARIABLES]
    for start, stop in blocks:
        for array in arrays:
            array[start:stop]


if __name__ == "__main__":
    main()
