"""The hot loop: it sums the noisy rows of one partition into moments of every cell. It uses NumPy, numba and BLAS.

Two halves run side by side. The *filling* half reads a block of flux and error, and one fused kernel draws the
noise (or integrates it out), adds and clips it, subtracts the origin and writes each row to the open buffer of its
cell. A buffer that is full goes to the *summing* half, which hands it to BLAS in one long product and gives it back.
A fixed stock of buffers bounds the memory and makes the faster half wait.

A cell's rows are summed in *runs* of exactly ``run_rows``, in the order of the rows. So the bits depend only on the
rows, the draws and ``run_rows``, and not on blocks, chunks, threads or neighbouring partitions. Variances of marginal
noise are summed in the same runs. They are added to the diagonal of the Gram matrix when the part is finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base import Workspace, available_cores, one_blas_thread
from pipeline.moments import Moments, TileLayout, add_gram, padded_stride
from pipeline.noise import Noise, Scatter

__all__ = [
    "CellRows",
    "Filling",
    "LoopSettings",
    "PartEnd",
    "Run",
    "SpectraReader",
    "StoppedError",
    "accumulate_parts",
    "accumulate_rows",
    "available_threads",
    "loop_memory",
    "raise_cause",
]

# --- The filling half of the hot loop. It reads chunks of a store and fills buffers with noisy, centred rows of one
# cell.
#
# The kernel of the noise model writes the rows. For marginal noise it writes means; then every buffer has a vector
# beside it, with the sums of the pixels' variances.


#: Full buffers that may wait for each consumer of the summing half, besides the buffer that it is summing.
_WAITING_BUFFERS = 1


class SpectraReader(Protocol):
    """What the loop needs of a store."""

    @property
    def n_pixels(self) -> int:
        """P."""

    @property
    def chunk_rows(self) -> int:
        """Rows that are decoded together, at most."""

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of each store that is part of it; chunks begin anew there."""

    def iter_blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of consecutive rows from ``start`` to ``stop``, none across two chunks."""

    def read_rows(
        self, variable: str, start: int, stop: int, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Fill ``out`` (stop − start, P) with ``flux`` or ``error``."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop divides its work. ``precision`` and ``run_rows`` decide the bits, ``threads`` only the speed."""

    precision: str = "float32"
    run_rows: int = 1024
    threads: int = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the products."""
        return np.dtype(self.precision)

    @property
    def consumers(self) -> int:
        """Number of runs that are summed at once, so that no thread waits. All runs of a cell go to one consumer."""
        return self.threads

    @property
    def spare_buffers(self) -> int:
        """Number of buffers, besides one for every draw and cell."""
        return self.consumers * (1 + _WAITING_BUFFERS)


@dataclass(frozen=True, eq=False)
class CellRows:
    """The rows of a partition, without their pixels.

    Attributes
    ----------
    start
        Absolute number of the first row.
    cells
        Cell of every row, shape (N,).
    n_cells
        Number of cells.
    y
        Labels, shape (N, Q).
    labels
        Names of the labels.
    x_origin, y_origin
        Origins, shapes (P,) and (Q,). ``x_origin`` holds float32 numbers. So the kernel, which subtracts in single
        precision, subtracts exactly what the moments state.
    """

    start: int
    cells: NDArray[np.int64]
    n_cells: int
    y: NDArray[np.float64]
    labels: tuple[str, ...]
    x_origin: NDArray[np.float64]
    y_origin: NDArray[np.float64]

    @cached_property
    def centred_y(self) -> list[NDArray[np.float64]]:
        """Labels of each cell's rows, in order, less their origin."""
        centred = self.y - self.y_origin
        return [centred[self.cells == cell] for cell in range(self.n_cells)]


class StoppedError(RuntimeError):
    """Raised in one half because the other half failed. The other half's error is the one to show."""


def raise_cause(failures: Iterable[BaseException | None]) -> None:
    """Raise the first error that is a cause. Errors of what had to stop because of it follow from it."""
    for failure in sorted(filter(None, failures), key=lambda failure: isinstance(failure, StoppedError)):
        raise failure


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one cell of a part, noisy and centred, in one buffer."""

    rows: CellRows
    draw: int
    cell: int
    first: int
    count: int
    buffer: int


@dataclass(frozen=True)
class PartEnd:
    """A message to every consumer: the part's last run has been sent."""

    number: int
    rows: CellRows


class Filling:
    """Reads blocks, adds noise, and fills one buffer for each draw and cell, in a thread of its own.

    Parts follow each other without a pause. The rows of the next part are read while those of the last one are summed.
    """

    def __init__(
        self,
        reader: SpectraReader,
        parts: Iterable[CellRows],
        n_cells: int,
        draws: Sequence[Noise],
        settings: LoopSettings,
        pool: NDArray[Any],
        variances: NDArray[np.float64],
        blocks: tuple[NDArray[np.float32], NDArray[np.float32]],
    ) -> None:
        self._reader, self._parts, self._run_rows = reader, parts, settings.run_rows
        self._pool, self._variances, self._blocks, self._dtype = pool, variances, blocks, settings.dtype
        self.free: SimpleQueue[int | None] = SimpleQueue()
        self.full: list[SimpleQueue[Run | PartEnd | None]] = [SimpleQueue() for _ in range(settings.consumers)]
        for buffer in range(len(pool)):
            self.free.put(buffer)
        self._open = np.full((len(draws), n_cells), -1)
        self._seen = np.zeros(n_cells, np.int64)
        self._kernels = [draw.kernel(settings.dtype) for draw in draws]
        self._helpers = max(1, settings.threads // 3)

    def consumer_of(self, draw: int, cell: int) -> int:
        """Return the consumer of a cell. It is always the same one, so runs are summed in the order of the rows."""
        return (draw * self._open.shape[1] + cell) % len(self.full)

    def rows_of(self, run: Run) -> NDArray[Any]:
        """Return the rows of a run, (count, P), padded."""
        return self._pool[run.buffer, : run.count, : self._reader.n_pixels]

    def variances_of(self, run: Run) -> NDArray[np.float64] | None:
        """Return the sums of a run's variances, (P,); None where rows are single spectra."""
        return self._variances[run.buffer] if self._kernels[run.draw].has_variances else None

    def run(self, advance: Callable[[int], None] | None) -> None:
        """Fill buffers until the rows end. The queues of full buffers always end with None."""
        try:
            with ThreadPoolExecutor(self._helpers, "fill-part") as helpers:
                for number, rows in enumerate(self._parts):
                    self._fill_part(rows, helpers, advance)
                    for queue in self.full:
                        queue.put(PartEnd(number, rows))
        finally:
            for queue in self.full:
                queue.put(None)

    def _fill_part(self, rows: CellRows, helpers: Executor, advance: Callable[[int], None] | None) -> None:
        self._rows, self._origin = rows, rows.x_origin.astype(self._dtype)
        self._seen[:] = 0
        for start, flux, error in self._read_blocks(helpers):
            self._scatter_block(start, flux, error, helpers)
            if advance is not None:
                advance(len(flux))
        for draw, cell in np.argwhere(self._open >= 0):
            self._hand_over(int(draw), int(cell))

    def _read_blocks(self, helpers: Executor) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield blocks along the store's chunks. Their buffers are reused, because fresh memory costs page faults."""
        first = self._rows.start
        flux, error = self._blocks
        for a, b in self._reader.iter_blocks(first, first + len(self._rows.cells)):
            waiting = helpers.submit(self._reader.read_rows, "error", a, b, error[: b - a])
            self._reader.read_rows("flux", a, b, flux[: b - a])
            waiting.result()
            yield a - first, flux[: b - a], error[: b - a]

    def _scatter_block(self, start: int, flux: NDArray[Any], error: NDArray[Any], helpers: Executor) -> None:
        cells = self._rows.cells[start : start + len(flux)]
        places = self._places(cells)
        slots = places % self._run_rows
        # A segment ends where a buffer is full, so a full buffer does not wait for the end of the block.
        ends = [*(np.flatnonzero(slots == self._run_rows - 1) + 1).tolist(), len(cells)]
        begin = 0
        for end in ends:
            if end == begin:
                continue
            part = slice(begin, end)
            for draw in range(len(self._kernels)):
                targets = self._open_buffers(draw, cells[part])
                scatter = Scatter(
                    flux[part], error[part], self._rows.start + start + begin, self._origin, targets, slots[part],
                    self._pool, self._variances,
                )  # fmt: skip
                self._scatter_rows(draw, scatter, helpers)
            self._seen += np.bincount(cells[part], minlength=self._rows.n_cells)
            if slots[end - 1] == self._run_rows - 1:
                for draw in range(len(self._kernels)):
                    self._hand_over(draw, int(cells[end - 1]))
            begin = end

    def _places(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each row's place among all rows of its cell so far."""
        places = np.empty(len(cells), np.int64)
        for cell in np.unique(cells):
            members = cells == cell
            places[members] = self._seen[cell] + np.arange(np.count_nonzero(members))
        return places

    def _open_buffers(self, draw: int, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        for cell in np.unique(cells):
            if self._open[draw, cell] < 0:
                buffer = self.free.get()
                if buffer is None:
                    raise StoppedError("the summing half has stopped")
                self._open[draw, cell] = buffer
                if self._kernels[draw].has_variances:
                    self._variances[buffer] = 0
        return np.asarray(self._open[draw, cells])

    def _scatter_rows(self, draw: int, scatter: Scatter, helpers: Executor) -> None:
        own, *others = self._kernels[draw].split(scatter, self._helpers)
        jobs = [helpers.submit(part) for part in others]
        own()
        for job in jobs:
            job.result()

    def _hand_over(self, draw: int, cell: int) -> None:
        """Give a cell's open buffer to the summing half."""
        seen = int(self._seen[cell])
        count = (seen - 1) % self._run_rows + 1
        run = Run(self._rows, draw, cell, seen - count, count, int(self._open[draw, cell]))
        self.full[self.consumer_of(draw, cell)].put(run)
        self._open[draw, cell] = -1


def available_threads() -> int:
    """Return the threads a task may use: ``HEADROOM_THREADS`` if set, else the cores given to the process."""
    stated = os.environ.get("HEADROOM_THREADS", "")
    if stated.isdigit() and int(stated) > 0:
        return int(stated)
    return available_cores()


def loop_memory(
    n_pixels: int, n_labels: int, n_cells: int, n_draws: int, chunk_rows: int, settings: LoopSettings
) -> int:
    """Return the bytes that :func:`accumulate_rows` allocates at most, for any number of spectra."""
    item = settings.dtype.itemsize
    # Besides the tiles: cross sums, pixel sums, and the variances of marginal noise.
    sums = TileLayout(n_pixels).nbytes(settings.dtype) + n_pixels * (n_labels + 2) * 8
    n_buffers = n_draws * n_cells + settings.spare_buffers
    buffer = settings.run_rows * padded_stride(n_pixels) * item + n_pixels * 8
    # Flux and error of a block, and the memory to decode a chunk that is needed only in part.
    blocks = 4 * chunk_rows * n_pixels * 4
    return n_draws * n_cells * sums + n_buffers * buffer + blocks


def accumulate_rows(
    reader: SpectraReader,
    rows: CellRows,
    draws: Sequence[Noise],
    settings: LoopSettings,
    advance: Callable[[int], None] | None = None,
    workspace: Workspace | None = None,
) -> list[list[Moments]]:
    """Accumulate the moments of consecutive rows for every noise draw and every cell, in one read.

    Parameters
    ----------
    reader, draws, settings, advance
        See :func:`accumulate_parts`.
    rows
        Cells and labels of the rows.
    workspace
        Memory of the large arrays, which is reused. The returned moments lie there, too; the next call overwrites them.

    Returns
    -------
    list of list of Moments
        For each draw, the moments of each cell; ``gram`` in the precision of the products.
    """
    found: dict[tuple[int, int], Moments] = {}

    def keep(_: int, draw: int, cell: int, moments: Moments) -> None:
        found[draw, cell] = moments

    accumulate_parts(reader, [rows], rows.n_cells, draws, settings, keep, advance, workspace)
    return [[found[draw, cell] for cell in range(rows.n_cells)] for draw in range(len(draws))]


def accumulate_parts(
    reader: SpectraReader,
    parts: Iterable[CellRows],
    n_cells: int,
    draws: Sequence[Noise],
    settings: LoopSettings,
    keep: Callable[[int, int, int, Moments], None],
    advance: Callable[[int], None] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Accumulate the moments of several parts of the rows, one after the other without a pause, in one read.

    While the last runs of one part are summed and its moments are written, the rows of the next part are read.

    Parameters
    ----------
    reader
        The store.
    parts
        Cells and labels of each part's rows. The next part is taken when its rows are read.
    n_cells
        Cells of all parts.
    draws
        Noise draws, or noise integrated out; each costs its own accumulators, none a second read.
    settings
        Precision, blocks, threads.
    keep
        Called with the numbers of a part, a draw and a cell, and with the finished moments, which are valid until it
        returns. It is called in several threads at once.
    advance
        Called with the number of rows after each block.
    workspace
        Memory of the large arrays, which is reused.

    Raises
    ------
    Exception
        The first error that the store or ``keep`` raised. All threads have then ended.
    """
    layout = TileLayout(reader.n_pixels)
    n_buffers = len(draws) * n_cells + settings.spare_buffers
    block = ((reader.chunk_rows, reader.n_pixels), np.float32)
    # Untouched pages take no memory. So the buffer of the outside costs nothing if no spectrum lies there.
    tiles, pool, variances, *blocks = (workspace or Workspace()).lease(
        ((len(draws), n_cells, *layout.shape), settings.dtype),
        ((n_buffers, settings.run_rows, padded_stride(reader.n_pixels)), settings.dtype),
        ((n_buffers, reader.n_pixels), np.float64),
        block,
        block,
    )
    filling = Filling(reader, parts, n_cells, draws, settings, pool, variances, (blocks[0], blocks[1]))
    with (
        one_blas_thread(),
        ThreadPoolExecutor(settings.threads, "gram") as gram_threads,
        ThreadPoolExecutor(settings.threads, "keep") as keep_threads,
        ThreadPoolExecutor(settings.consumers + 1, "halves") as halves,
    ):
        # The tiles are zeroed while the first buffers fill.
        sums = [
            [_CellSum(cell, own[cell], layout, gram_threads) for cell in range(n_cells)] for own in tiles
        ]  # fmt: skip

        summing = _Summing(filling, sums, keep_threads, keep)
        jobs = [halves.submit(filling.run, advance)]
        try:
            jobs += [halves.submit(summing.consume, consumer) for consumer in range(settings.consumers)]
        except BaseException:  # no thread could be started: the filling half must not wait for one
            filling.free.put(None)
            raise
        # Each half ends when the other one fails.
        raise_cause([*(job.exception() for job in jobs), *(one.failure() for own in sums for one in own)])


@dataclass(frozen=True, eq=False)
class _Summing:
    """The summing half: consumers, each with the accumulators of some draws and cells, ``sums[draw][cell]``."""

    filling: Filling
    sums: Sequence[Sequence[_CellSum]]
    keep_threads: Executor
    keep: Callable[[int, int, int, Moments], None]

    def consume(self, consumer: int) -> None:
        """Sum runs until the filling half ends, and let parts be kept when their last run is summed."""
        filling = self.filling
        try:
            while (news := filling.full[consumer].get()) is not None:
                if isinstance(news, PartEnd):
                    self._finish(news, consumer)
                else:
                    own = self.sums[news.draw][news.cell]
                    own.add(news, filling.rows_of(news), filling.variances_of(news))
                    filling.free.put(news.buffer)
        finally:
            filling.free.put(None)  # should this half fail, the other must not wait for its buffers

    def _finish(self, end: PartEnd, consumer: int) -> None:
        for draw, of_draw in enumerate(self.sums):
            for cell, own in enumerate(of_draw):
                if self.filling.consumer_of(draw, cell) == consumer:
                    own.finish(end.rows, self.keep_threads, partial(self.keep, end.number, draw, cell))


class _CellSum:
    """The accumulators of one draw and cell, owned by one consumer and used for one part after the other."""

    def __init__(self, cell: int, tiles: NDArray[Any], layout: TileLayout, executor: Executor) -> None:
        self._cell, self._tiles, self._layout, self._executor = cell, tiles, layout, executor
        self._rows: CellRows | None = None
        self._is_used = False
        self._free: Future[Any] = executor.submit(tiles.fill, 0)

    def add(self, run: Run, x: NDArray[Any], variances: NDArray[np.float64] | None) -> None:
        """Add the rows of a run and, for marginal noise, the sums of their variances."""
        self._begin(run.rows)
        y = run.rows.centred_y[self._cell][run.first : run.first + run.count]
        # Labels get a column of ones, so one thin product gives both the cross sums and the pixel sums.
        beside = np.column_stack([y, np.ones(run.count)]).astype(x.dtype)
        thin = self._executor.submit(np.matmul, x.T, beside)
        self._free.result()
        add_gram(x, self._tiles, self._layout, self._executor)
        self._cross += thin.result()[:, :-1]
        self._x_sum += thin.result()[:, -1]
        if variances is not None:
            self._variances += variances
            self._has_variances = True

    def finish(self, rows: CellRows, executor: Executor, keep: Callable[[Moments], None]) -> None:
        """Give the moments of a part to ``keep`` in another thread. The tiles are free again when it returns."""
        self._begin(rows)
        y = rows.centred_y[self._cell]
        moments = Moments(
            count=len(y),
            x_sum=self._x_sum,
            gram=self._tiles,
            y_sum=y.sum(axis=0),
            cross=self._cross,
            y_gram=y.T @ y,
            x_origin=rows.x_origin,
            y_origin=rows.y_origin,
            labels=rows.labels,
            epsilon=float(np.finfo(self._tiles.dtype).eps),
        )
        self._free.result()
        if self._has_variances:
            self._layout.add_to_diagonal(self._tiles, self._variances)
        self._free = executor.submit(keep, moments)
        self._rows = None

    def failure(self) -> BaseException | None:
        """Wait for the writing thread, and return its error or None."""
        return self._free.exception()

    def _begin(self, rows: CellRows) -> None:
        if self._rows is rows:
            return
        if self._is_used:  # by an earlier part, whose moments must be kept first
            self._free.result()
            self._tiles[:] = 0
        self._rows, self._is_used = rows, True
        n_pixels = len(rows.x_origin)
        self._x_sum, self._cross = np.zeros(n_pixels), np.zeros((n_pixels, len(rows.labels)))
        self._variances, self._has_variances = np.zeros(n_pixels), False
