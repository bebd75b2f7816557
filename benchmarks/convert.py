"""Conversion against its two floors and against naive Dask, side by side in one run.

    python benchmarks/convert.py SHARDS_FOLDER [--repeats 5] [--workers 2] [--out FOLDER] [--no-naive]

For each repeat it prints rates in thousand spectra per second, with the CPU time per spectrum (user + system, of all
processes; the honest figure on a shared machine) in brackets:

* ``convert``: :func:`pipeline.convert_shards`, from the call to the finished store, start of the workers included;
* ``read``: floor (a), every pixel array read once with ``read_direct`` into one reused buffer per process;
* ``write``: floor (b), the store's own compress-and-write functions on data that are in memory already, but written
  through the page cache, as ordinary programs do;
* ``direct``: the same past the page cache, as a conversion writes where it can: what would be left of a conversion if
  reading, casting, checking, summing and digesting cost nothing;
* ``naive``: ``dask.array.from_array(dataset, chunks=dataset.chunks).astype(float32).to_zarr(...)``, as threads.

The ratios are of wall times and of CPU times: convert to the slower of the floors (a) and (b), and to the naive way.
The shards are read before each of them, so that none pays for a cold disk. Make shards with

    headroom sample spectra --train 100000 --shards 2 --pixels 4096
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
from measure import warm_up

from pipeline import convert_shards, find_shards
from pipeline.base import direct_io as files_direct
from pipeline.convert.ranges import keep_freed_memory
from pipeline.shards import PIXEL_PATHS, ShardReader, read_shard_info
from pipeline.store import StoreLayout, plan_layout, write_chunks

READ_ROWS = 128
FLOATS = ("flux", "error", "noisy")


def convert(shards: list[Path], target: Path, workers: int) -> None:
    convert_shards(shards, target / "store", workers=workers)


def convert_naively(shards: list[Path], target: Path, workers: int) -> None:
    import dask
    import dask.array as da

    with warnings.catch_warnings(), dask.config.set(scheduler="threads", num_workers=workers):
        warnings.simplefilter("ignore")
        for number, shard in enumerate(shards):
            with h5py.File(shard, "r") as file:
                for variable, path in PIXEL_PATHS.items():
                    if path in file:
                        dtype = np.float32 if variable in FLOATS else np.uint8
                        array = da.from_array(file[path], chunks=file[path].chunks or "auto")
                        array.astype(dtype).to_zarr(str(target / f"{variable}_{number}"))


def read_share(shards: list[Path], share: int, shares: int) -> None:
    """Floor (a): one process's share of all rows, into a buffer that is reused."""
    for shard in shards:
        with h5py.File(shard, "r") as file:
            for path in PIXEL_PATHS.values():
                if path in file:
                    dataset = file[path]
                    n = dataset.shape[0]
                    buffer = np.empty((READ_ROWS, dataset.shape[1]), dataset.dtype)
                    for first in range(n * share // shares, n * (share + 1) // shares, READ_ROWS):
                        last = min(first + READ_ROWS, n * (share + 1) // shares)
                        dataset.read_direct(buffer, np.s_[first:last], np.s_[0 : last - first])


class Writer:
    """Floor (b): chunks of one real range, cast beforehand, written as often as the share needs."""

    def __init__(self, shard: Path, layout: StoreLayout, target: Path) -> None:
        self.layout, self.target = layout, target
        self.chunks: dict[str, np.ndarray] = {}
        keep_freed_memory(layout.chunk_rows * layout.n_pixels * 4)  # as a conversion does
        with ShardReader(shard) as reader:
            variables = [name for name in FLOATS if PIXEL_PATHS[name] in reader.file]
            n = min(layout.range_rows, len(reader.file[PIXEL_PATHS["flux"]]))
            for variable in variables:
                chunks = np.zeros((layout.range_rows // layout.chunk_rows, layout.chunk_rows, layout.n_pixels), "f4")
                flat = chunks.reshape(-1, layout.n_pixels)
                for first in range(0, n, READ_ROWS):
                    last = min(first + READ_ROWS, n)
                    flat[first:last] = reader.read_rows(variable, first, last)
                flat[n:] = flat[: layout.range_rows - n]
                self.chunks[variable] = chunks

    def write(self, starts: list[int]) -> None:
        for start in starts:
            for variable, chunks in self.chunks.items():
                write_chunks(self.target / variable, self.layout, start, iter(chunks))


def run_writer(
    shard: Path, layout: StoreLayout, target: Path, starts: list[int], direct: bool, ready: Any, answers: Any
) -> None:
    from numcodecs import blosc

    if not direct:
        files_direct._O_DIRECT = 0
    blosc.set_nthreads(1)  # as in the workers of a conversion
    writer = Writer(shard, layout, target)
    ready.wait()
    answers.put(measure(lambda: writer.write(starts)))


def run_reader(shards: list[Path], share: int, shares: int, ready: Any, answers: Any) -> None:
    ready.wait()
    answers.put(measure(lambda: read_share(shards, share, shares)))


def run_alone(work: Callable[..., None], shards: list[Path], target: Path, workers: int, answers: Any) -> None:
    answers.put(measure(lambda: work(shards, target, workers)))


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall and CPU seconds, of this process and of the children that it waited for."""
    before, started = cpu_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run_together(tasks: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> tuple[float, float]:
    """Start processes, let them begin together, and return the longest wall time and the sum of their CPU times."""
    os.sync()  # what was written before is not to be paid for now
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(len(tasks)), context.SimpleQueue()
    processes = [context.Process(target=task, args=(*given, ready, answers)) for task, given in tasks]
    for process in processes:
        process.start()
    times = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return max(wall for wall, _ in times), sum(cpu for _, cpu in times)


def run_watched(
    work: Callable[..., None], shards: list[Path], target: Path, workers: int
) -> tuple[float, float, float]:
    """Run in a process of its own, and return wall and CPU seconds and the peak memory of it and its children."""
    target.mkdir()
    os.sync()
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=run_alone, args=(work, shards, target, workers, answers))
    process.start()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], sum(unshared_bytes(one) for one in family(process.pid or 0)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = answers.get()
    process.join()
    done.set()
    watcher.join()
    shutil.rmtree(target)
    return wall, cpu, peak[0]


def family(pid: int) -> Iterator[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        yield from [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return


def unshared_bytes(process: psutil.Process) -> int:
    """Resident bytes without the shared ones, which are libraries and mapped files."""
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="where stores are written and removed; the temporary folder by default"
    )
    parser.add_argument("--no-naive", action="store_true", help="leave naive Dask out, which takes longest")
    options = parser.parse_args()
    shards = list(find_shards([options.shards], Path.cwd()))
    infos = [read_shard_info(shard) for shard in shards]
    n, n_pixels = sum(info.n_spectra for info in infos), infos[0].n_pixels
    layout = plan_layout(n, n_pixels, None, None)
    starts = [start for start, _ in layout.iter_ranges()]
    size = sum(n * n_pixels * np.dtype(dtype).itemsize for dtype in infos[0].dtypes.values())
    print(
        f"{n:,} × {n_pixels:,}: {', '.join(infos[0].variables)}, {size / 2**30:.1f} GiB, {options.workers} processes, "
        f"one-minute load {os.getloadavg()[0]:.1f}"
    )
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        for _ in range(options.repeats):
            warm_up(Path(options.shards))
            wall, cpu, peak = run_watched(convert, shards, Path(folder) / "ours", options.workers)
            warm_up(Path(options.shards))
            read = run_together([(run_reader, (shards, k, options.workers)) for k in range(options.workers)])
            row = {"convert": wall, "convert cpu": cpu, "peak": peak, "read": read[0], "read cpu": read[1]}
            for name in ("write", "direct"):
                target = Path(folder) / "floor"
                writers = [
                    (
                        run_writer,
                        (shards[k % len(shards)], layout, target, starts[k :: options.workers], name == "direct"),
                    )
                    for k in range(options.workers)
                ]
                row[name], row[f"{name} cpu"] = run_together(writers)
                shutil.rmtree(target)
            if not options.no_naive:
                warm_up(Path(options.shards))
                row["naive"], row["naive cpu"], row["naive peak"] = run_watched(
                    convert_naively, shards, Path(folder) / "naive", options.workers
                )
            rows.append(row)
            print("  " + describe(row, n), flush=True)
    print("medians: " + describe({key: statistics.median(row[key] for row in rows) for key in rows[0]}, n))


def describe(row: dict[str, float], n: int) -> str:
    names = [name for name in ("convert", "read", "write", "direct", "naive") if name in row]
    parts = [f"{name} {n / row[name] / 1e3:.1f} k/s ({1e6 * row[name + ' cpu'] / n:.0f} µs)" for name in names]
    floors = [max(row["read" + kind], row["write" + kind]) / row["convert" + kind] for kind in ("", " cpu")]
    parts.append(f"of the floor {floors[0]:.2f} (CPU {floors[1]:.2f})")
    if "naive" in row:
        ratios = [row["naive" + kind] / row["convert" + kind] for kind in ("", " cpu")]
        parts.append(f"× naive {ratios[0]:.1f} (CPU {ratios[1]:.1f})")
    parts.append(f"peak {row['peak'] / 2**30:.2f} GiB")
    if "naive" in row:
        parts[-1] += f", naive {row['naive peak'] / 2**30:.2f} GiB"
    return ", ".join(parts)


if __name__ == "__main__":
    main()
