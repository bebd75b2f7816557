"""The filling half of the hot loop. It reads chunks of a store and fills buffers with noisy, centred rows of one cell.

The kernel of the noise model writes the rows. For marginal noise it writes means; then every buffer has a vector beside
it, with the sums of the pixels' variances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.noise import Noise, Scatter

__all__ = ["CellRows", "Filling", "LoopSettings", "PartEnd", "Run", "SpectraReader", "StoppedError"]

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
