"""The hot loop: noisy rows of one partition into moments of every cell. NumPy, numba and BLAS; no Dask.

Block by block: read flux and error, draw the normals, add noise, clip, subtract the origin and scatter the rows
into one buffer for each cell (one fused kernel); a buffer that has filled up goes to BLAS in one long product.
The next block is read and drawn by a thread while BLAS runs.

Bits depend on the rows, the draws and ``block_rows``/``run_rows`` only: not on chunks, threads or the partition's
neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numba
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.moments import Moments
from pipeline.noise import NoiseDraw, draw_noise
from pipeline.tiles import TileLayout, add_gram

__all__ = ["CellRows", "LoopSettings", "SpectraReader", "accumulate_rows", "available_threads", "loop_memory"]

_BUFFERED_BLOCKS = 2


class SpectraReader(Protocol):
    """What the loop needs of a store."""

    @property
    def n_pixels(self) -> int:
        """P."""

    def read_rows(
        self, variable: str, start: int, stop: int, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Fill ``out`` (stop − start, P) with ``flux`` or ``error``."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop cuts its work; ``threads`` changes the speed, the others the last bits."""

    precision: str = "float32"
    block_rows: int = 1024
    run_rows: int = 2048
    threads: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the products."""
        return np.dtype(self.precision)

    @property
    def buffer_rows(self) -> int:
        """Rows a cell's buffer holds: it is emptied when it reaches ``run_rows``, looked at once a block."""
        return self.run_rows + self.block_rows


@dataclass(frozen=True, eq=False)
class CellRows:
    """What is known of the rows of a partition besides their pixels.

    Attributes
    ----------
    start
        Absolute row of the first one.
    cells
        Cell of every row, shape (N,).
    n_cells
        Number of cells.
    y
        Labels, shape (N, Q).
    labels
        Names of the labels.
    x_origin, y_origin
        Origins, shapes (P,) and (Q,); ``x_origin`` holds float32 numbers, so that what the kernel subtracts in
        single precision is what the moments say.
    """

    start: int
    cells: NDArray[np.int64]
    n_cells: int
    y: NDArray[np.float64]
    labels: tuple[str, ...]
    x_origin: NDArray[np.float64]
    y_origin: NDArray[np.float64]


def available_threads() -> int:
    """Return the threads a task may use: ``HEADROOM_THREADS`` if set, else the cores given to the process."""
    stated = os.environ.get("HEADROOM_THREADS", "")
    if stated.isdigit() and int(stated) > 0:
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def loop_memory(n_pixels: int, n_labels: int, n_cells: int, n_draws: int, settings: LoopSettings) -> int:
    """Return the bytes that :func:`accumulate_rows` allocates at most, whatever the number of spectra."""
    item = settings.dtype.itemsize
    sums = TileLayout(n_pixels).nbytes(settings.dtype)
    sums += n_pixels * (n_labels + 1) * 8
    buffers = settings.buffer_rows * (n_pixels + n_labels + 1) * item
    blocks = _BUFFERED_BLOCKS * settings.block_rows * n_pixels * 4 * (2 + n_draws)
    return n_draws * n_cells * (sums + buffers) + blocks


def accumulate_rows(
    reader: SpectraReader,
    rows: CellRows,
    draws: Sequence[NoiseDraw],
    settings: LoopSettings,
    advance: Callable[[int], None] | None = None,
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

    Returns
    -------
    list of list of Moments
        For each draw, the moments of each cell; ``gram`` in the precision of the products.
    """
    sums = [_DrawSums(rows.n_cells, reader.n_pixels, rows.y.shape[1], settings) for _ in draws]
    centred = rows.y - rows.y_origin
    starts = range(0, len(rows.cells), settings.block_rows)
    source = _BlockSource(reader, rows, draws, settings)
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(settings.threads, "gram") as gram_threads,
        ThreadPoolExecutor(1, "blocks") as block_thread,
    ):
        pending = block_thread.submit(source.load, 0) if len(starts) else None
        for k, start in enumerate(starts):
            assert pending is not None
            flux, error, normals = pending.result()
            pending = block_thread.submit(source.load, k + 1) if k + 1 < len(starts) else None
            stop = start + len(flux)
            cells, labels = rows.cells[start:stop], centred[start:stop]
            for draw, own in zip(draws, sums, strict=True):
                own.scatter(flux, error, normals[draw.seed, draw.stream], draw.level, source.origin, cells, labels)
                own.add_full_runs(gram_threads)
            if advance is not None:
                advance(len(flux))
        for own in sums:
            own.add_rest(gram_threads)
    return [own.moments(rows, centred) for own in sums]


class _BlockSource:
    """Blocks of flux, error and normals in buffers used in turn: fresh memory would cost page faults."""

    def __init__(
        self, reader: SpectraReader, rows: CellRows, draws: Sequence[NoiseDraw], settings: LoopSettings
    ) -> None:
        self._reader, self._rows, self._block_rows = reader, rows, settings.block_rows
        self._distinct = {(draw.seed, draw.stream): draw for draw in draws if draw.level > 0}
        self._keys = {(draw.seed, draw.stream) for draw in draws}
        self.origin = rows.x_origin.astype(settings.dtype)
        shape = (min(settings.block_rows, max(len(rows.cells), 1)), reader.n_pixels)
        self._pixels = [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in range(_BUFFERED_BLOCKS)]
        self._normals = [{key: np.zeros(shape, np.float32) for key in self._keys} for _ in range(_BUFFERED_BLOCKS)]

    def load(self, block: int) -> tuple[NDArray[Any], NDArray[Any], dict[tuple[int, int], NDArray[Any]]]:
        first = block * self._block_rows
        n = min(self._block_rows, len(self._rows.cells) - first)
        start = self._rows.start + first
        flux, error = (buffer[:n] for buffer in self._pixels[block % _BUFFERED_BLOCKS])
        self._reader.read_rows("flux", start, start + n, flux)
        self._reader.read_rows("error", start, start + n, error)
        normals = {key: buffer[:n] for key, buffer in self._normals[block % _BUFFERED_BLOCKS].items()}
        for key, draw in self._distinct.items():
            draw_noise(draw, start, start + n, self._reader.n_pixels, normals[key])
        return flux, error, normals


class _DrawSums:
    """Accumulators and row buffers of one noise draw, owned by the running task."""

    def __init__(self, n_cells: int, n_pixels: int, n_labels: int, settings: LoopSettings) -> None:
        self._layout = TileLayout(n_pixels)
        self._run_rows = settings.run_rows
        self._tiles = [self._layout.zeros(settings.dtype) for _ in range(n_cells)]
        self._x_sums = np.zeros((n_cells, n_pixels))
        self._crosses = np.zeros((n_cells, n_pixels, n_labels))
        self._x = np.empty((n_cells, settings.buffer_rows, n_pixels), settings.dtype)
        # Labels with a column of ones, so that one thin product yields cross sums and pixel sums.
        self._y = np.ones((n_cells, settings.buffer_rows, n_labels + 1), settings.dtype)
        self._filled = np.zeros(n_cells, np.int64)

    def scatter(
        self,
        flux: NDArray[np.float32],
        error: NDArray[np.float32],
        normals: NDArray[np.float32],
        level: float,
        origin: NDArray[Any],
        cells: NDArray[np.int64],
        labels: NDArray[np.float64],
    ) -> None:
        slots = np.empty(len(cells), np.int64)
        for cell in np.unique(cells):
            members = cells == cell
            count = int(members.sum())
            slots[members] = self._filled[cell] + np.arange(count)
            self._filled[cell] += count
        self._y[cells, slots, :-1] = labels
        _scatter_noisy(flux, error, normals, self._x.dtype.type(level), origin, cells, slots, self._x)

    def add_full_runs(self, executor: Executor) -> None:
        for cell in np.flatnonzero(self._filled >= self._run_rows):
            self._add(int(cell), executor)

    def add_rest(self, executor: Executor) -> None:
        for cell in np.flatnonzero(self._filled):
            self._add(int(cell), executor)

    def _add(self, cell: int, executor: Executor) -> None:
        n = self._filled[cell]
        x, y = self._x[cell, :n], self._y[cell, :n]
        add_gram(x, self._tiles[cell], self._layout, executor)
        thin = x.T @ y
        self._crosses[cell] += thin[:, :-1]
        self._x_sums[cell] += thin[:, -1]
        self._filled[cell] = 0

    def moments(self, rows: CellRows, centred: NDArray[np.float64]) -> list[Moments]:
        cells = []
        for cell, tiles in enumerate(self._tiles):
            y = centred[rows.cells == cell]
            cells.append(
                Moments(
                    count=len(y),
                    x_sum=self._x_sums[cell],
                    gram=tiles,
                    y_sum=y.sum(axis=0),
                    cross=self._crosses[cell],
                    y_gram=y.T @ y,
                    x_origin=rows.x_origin,
                    y_origin=rows.y_origin,
                    labels=rows.labels,
                )
            )
        return cells


@numba.njit(nogil=True, cache=True)
def _scatter_noisy(
    flux: Any, error: Any, normals: Any, level: Any, origin: Any, cells: Any, slots: Any, out: Any
) -> None:
    """Write ``max(max(f, 0) + level·e·ε, 0) − o`` of every row to its cell's buffer.

    The order of operations is that of :func:`pipeline.noise.add_noise`, bit for bit; the type of ``level``
    decides the precision.
    """
    zero = level * 0
    for r in range(flux.shape[0]):
        row = out[cells[r], slots[r]]
        for p in range(flux.shape[1]):
            noise = (normals[r, p] * level) * error[r, p]
            clean = flux[r, p] if flux[r, p] > 0 else zero
            value = noise + clean
            if value < zero:
                value = zero
            row[p] = value - origin[p]
