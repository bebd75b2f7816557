"""The hot loop: noisy rows of one partition into moments of every cell. NumPy, numba and BLAS; no Dask.

Two halves run side by side. The *filling* half reads a block of flux and error, and one fused kernel draws the
noise, adds and clips it, subtracts the origin and writes each row to the open buffer of its cell. A buffer that is
full goes to the *summing* half, which hands it to BLAS in one long product and gives it back. A fixed stock of
buffers bounds the memory and makes the faster half wait.

A cell's rows are summed in runs of exactly ``run_rows``, in the order of the rows, so the bits depend on the rows, the
draws and ``run_rows`` only: not on blocks, chunks, threads or the partition's neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.hotloop_filling import CellRows, Filling, LoopSettings, Run, SpectraReader, StoppedError
from pipeline.memory import available_cores
from pipeline.moments import Moments
from pipeline.noise import NoiseDraw
from pipeline.tiles import TileLayout, add_gram, padded_stride
from pipeline.workspace import Workspace

__all__ = [
    "CellRows",
    "LoopSettings",
    "SpectraReader",
    "accumulate_rows",
    "available_threads",
    "loop_memory",
]


def available_threads() -> int:
    """Return the threads a task may use: ``HEADROOM_THREADS`` if set, else the cores given to the process."""
    stated = os.environ.get("HEADROOM_THREADS", "")
    if stated.isdigit() and int(stated) > 0:
        return int(stated)
    return available_cores()


def loop_memory(
    n_pixels: int, n_labels: int, n_cells: int, n_draws: int, chunk_rows: int, settings: LoopSettings
) -> int:
    """Return the bytes that :func:`accumulate_rows` allocates at most, whatever the number of spectra."""
    item = settings.dtype.itemsize
    sums = TileLayout(n_pixels).nbytes(settings.dtype) + n_pixels * (n_labels + 1) * 8
    buffers = n_draws * n_cells + settings.spare_buffers
    # Flux and error of a block, and what decoding a chunk that is only partly wanted needs besides.
    blocks = 4 * chunk_rows * n_pixels * 4
    return n_draws * n_cells * sums + buffers * settings.run_rows * padded_stride(n_pixels) * item + blocks


def accumulate_rows(
    reader: SpectraReader,
    rows: CellRows,
    draws: Sequence[NoiseDraw],
    settings: LoopSettings,
    advance: Callable[[int], None] | None = None,
    workspace: Workspace | None = None,
) -> list[list[Moments]]:
    """Accumulate the moments of consecutive rows for every noise draw and every cell, in one read.

    Parameters
    ----------
    reader
        The store.
    rows
        Cells and labels of the rows.
    draws
        Noise draws; each costs its own accumulators, none a second read.
    settings
        Precision, blocks, threads.
    advance
        Called with the number of rows after each block.
    workspace
        Where the large arrays live, for use again; the moments returned live there too, until the next call.

    Returns
    -------
    list of list of Moments
        For each draw, the moments of each cell; ``gram`` in the precision of the products.
    """
    layout = TileLayout(reader.n_pixels)
    n_buffers = len(draws) * rows.n_cells + settings.spare_buffers
    block = ((reader.chunk_rows, reader.n_pixels), np.float32)
    # Untouched pages take no memory: a partition without outsiders never pays for their buffer.
    tiles, pool, *blocks = (workspace or Workspace()).lease(
        ((len(draws), rows.n_cells, *layout.shape), settings.dtype),
        ((n_buffers, settings.run_rows, padded_stride(reader.n_pixels)), settings.dtype),
        block,
        block,
    )
    filling = Filling(reader, rows, draws, settings, pool, (blocks[0], blocks[1]))
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(settings.threads, "gram") as gram_threads,
        ThreadPoolExecutor(settings.consumers + 1, "halves") as halves,
    ):
        # The tiles are zeroed while the first buffers fill.
        sums = [_DrawSums(rows, own, gram_threads) for own in tiles]

        def consume(queue: SimpleQueue[Run | None]) -> None:
            try:
                while (run := queue.get()) is not None:
                    sums[run.draw].add(run, filling.rows_of(run))
                    filling.free.put(run.buffer)
            finally:
                filling.free.put(None)  # should this half fail, the other must not wait for its buffers

        jobs = [halves.submit(filling.run, advance), *(halves.submit(consume, queue) for queue in filling.full)]
        # Each half ends when the other does. The first error is the cause; what it stopped comes after it.
        failures = [failure for failure in (job.exception() for job in jobs) if failure is not None]
        for failure in sorted(failures, key=lambda failure: isinstance(failure, StoppedError)):
            raise failure
        return [own.moments() for own in sums]


class _DrawSums:
    """Accumulators of one noise draw, owned by the running task."""

    def __init__(self, rows: CellRows, tiles: NDArray[Any], executor: Executor) -> None:
        self._rows, self._tiles, self._executor = rows, tiles, executor
        n_pixels = len(rows.x_origin)
        self._layout = TileLayout(n_pixels)
        centred = rows.y - rows.y_origin
        self._y = [centred[rows.cells == cell] for cell in range(rows.n_cells)]
        self._x_sums = np.zeros((rows.n_cells, n_pixels))
        self._crosses = np.zeros((rows.n_cells, n_pixels, len(rows.labels)))
        self._zeroed = [executor.submit(own.fill, 0) for own in tiles]

    def add(self, run: Run, x: NDArray[Any]) -> None:
        y = self._y[run.cell][run.first : run.first + run.count]
        # Labels with a column of ones: one thin product yields cross sums and pixel sums, beside the tiles.
        beside = np.column_stack([y, np.ones(run.count)]).astype(x.dtype)
        thin = self._executor.submit(np.matmul, x.T, beside)
        self._zeroed[run.cell].result()
        add_gram(x, self._tiles[run.cell], self._layout, self._executor)
        self._crosses[run.cell] += thin.result()[:, :-1]
        self._x_sums[run.cell] += thin.result()[:, -1]

    def moments(self) -> list[Moments]:
        for zeroed in self._zeroed:
            zeroed.result()
        return [
            Moments(
                count=len(y),
                x_sum=self._x_sums[cell],
                gram=self._tiles[cell],
                y_sum=y.sum(axis=0),
                cross=self._crosses[cell],
                y_gram=y.T @ y,
                x_origin=self._rows.x_origin,
                y_origin=self._rows.y_origin,
                labels=self._rows.labels,
                epsilon=float(np.finfo(self._tiles[cell].dtype).eps),
            )
            for cell, y in enumerate(self._y)
        ]
