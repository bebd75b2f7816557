"""The hot loop of factored moments: read, integrate the noise out, project. No product of all pixels with all pixels.

A block of rows is read and the kernel of the noise writes its means in the order of the rows. One thin product projects
them. Where noise is low, few pixels are so faint that clipping changes their means. The product of the clean flux then
serves all such levels, and each adds what its own faint pixels change. Only then rows are told apart by cell and noise
class, r numbers each, so many cells cost what one does. Blocks are worked on side by side, and one thread adds up what
they give, in the order of the rows. Products see exactly ``run_rows`` rows, counted from the first row of a store, so
the bits do not depend on chunks, threads, or other partitions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate.hotloop import CellRows, LoopSettings, SpectraReader
from pipeline.base import Workspace, one_blas_thread
from pipeline.moments import CHECK_EVERY, WORST, Basis, FactoredMoments, Factors, sum_squares
from pipeline.noise import FaintPixels, Noise, Scatter, compiled

__all__ = ["project_parts", "projection_memory"]

FloatArray = NDArray[np.float64]
#: Blocks that wait for the disk, or to be added up, besides one for each core: so many threads are more.
_WAITING = 2
#: Residual energy, as a share of a row's, from which a row is remembered: well above rounding in single precision.
_GROSS = 1e-4
#: Rows of a class that are multiplied at once, at least.
_FEWEST_ROWS = 64
#: Where fewer than 1 in 16 pixels of a run are faint, the clean flux is projected and what they change is added. With
#: more of them that would cost about what the product does.
_FAINT = 16


def _block_rows(chunk_rows: int, run_rows: int) -> int:
    """Return the rows of a block: whole runs, and about a chunk, so that few chunks are decoded twice."""
    return -(-chunk_rows // run_rows) * run_rows


def _find_origins(starts: Sequence[int], run_rows: int) -> list[int]:
    """Return the rows from which blocks are counted: the first of every store, unless stores are shorter than a run."""
    origins = [0]
    for start in starts:
        if start - origins[-1] >= run_rows:
            origins.append(start)
    return origins


def projection_memory(
    n_pixels: int,
    n_labels: int,
    n_cells: int,
    n_noises: int,
    rank: int,
    chunk_rows: int,
    settings: LoopSettings,
    n_classes: int = 1,
) -> int:
    """Return the bytes that :func:`project_parts` allocates at most, for any number of spectra."""
    rows, width = _block_rows(chunk_rows, settings.run_rows), rank + 1 + n_labels
    n_runs, pixels = rows // settings.run_rows, n_pixels * settings.dtype.itemsize
    of_cells = ((n_classes + 1) * n_runs * n_noises + n_classes) * n_cells * n_pixels * 8
    faint = settings.run_rows * n_pixels // _FAINT * (4 + 2 * settings.dtype.itemsize) + (settings.run_rows + 1) * 8
    block = rows * (2 * n_pixels * 4 + n_noises * (width + 1) * 8 + 16) + settings.run_rows * pixels + of_cells + faint
    # The check rows of a run, and the memory to decode a chunk that is needed only in part.
    work = 2 * -(-settings.run_rows // CHECK_EVERY) * pixels + 2 * chunk_rows * n_pixels * 4
    work += 2 * settings.run_rows * width * 8  # z of a run, and that of its clean flux
    waiting = n_noises * n_cells * max(settings.run_rows, n_classes * _FEWEST_ROWS) * width * 8
    sums = n_noises * n_cells * n_classes * (2 * width**2 * 8 + 3 * n_pixels * 8) + waiting
    return (settings.threads + _WAITING) * (block + work) + sums + 2 * n_pixels * rank * 12


def project_parts(
    reader: SpectraReader,
    parts: Iterable[CellRows],
    n_cells: int,
    n_labels: int,
    noises: Sequence[Noise],
    bases: Sequence[Basis],
    settings: LoopSettings,
    keep: Callable[[int, int, int, FactoredMoments], None],
    advance: Callable[[int], None] | None = None,
    workspace: Workspace | None = None,
    exponent: int = 0,
) -> None:
    """Accumulate the factored moments of several parts of the rows, in one read for all noises.

    Parameters
    ----------
    reader, parts, n_cells, settings, advance, workspace
        See :func:`pipeline.accumulate.hotloop.accumulate_parts`.
    n_labels
        Labels of all parts.
    noises
        Noises that are integrated out.
    bases
        Of the moments of each noise. They may differ in their directions alone.
    keep
        Called with the numbers of a part, a noise and a cell, and with the finished moments.
    exponent
        Of the flux unit, see :class:`pipeline.moments.Moments`.
    """
    loop = _Loop(reader, n_cells, n_labels, noises, bases, settings, workspace or Workspace())
    # Blocks at work, in the order of their rows; None ends a part. The next part begins before the last one has ended.
    pending: deque[tuple[_Part, Future[_Block] | None]] = deque()

    def settle(most: int) -> None:
        while len(pending) > most:
            part, job = pending.popleft()
            if job is None:
                part.finish(keep)
            else:
                loop.add(job.result(), part, advance)

    def take_parts() -> Iterator[CellRows]:
        try:
            yield from parts
        except Exception:
            settle(0)  # what came before is whole
            raise

    n_threads = settings.threads + _WAITING
    with one_blas_thread(), ThreadPoolExecutor(n_threads, "project") as executor:
        for number, rows in enumerate(take_parts()):
            part = _Part(number, rows, n_cells, bases, settings, exponent)
            for place in (*loop.plan_blocks(rows), None):
                # Not more than there is memory for: after a failure, the last one would wait for it for ever.
                settle(n_threads - 1)
                pending.append((part, executor.submit(loop.work, rows, *place) if place else None))
        settle(0)


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of the rows; the sums of each noise and cell are made when its first block is there."""

    number: int
    rows: CellRows
    n_cells: int
    bases: Sequence[Basis]
    settings: LoopSettings
    exponent: int

    @cached_property
    def sums(self) -> Sequence[Sequence[_CellSum]]:
        return [
            [_CellSum(own, self.rows, self.settings, self.exponent) for _ in range(self.n_cells)] for own in self.bases
        ]

    def finish(self, keep: Callable[[int, int, int, FactoredMoments], None]) -> None:
        """Hand out the moments."""
        for k, of_noise in enumerate(self.sums):
            for cell, own in enumerate(of_noise):
                keep(self.number, k, cell, own.finish())


@dataclass(eq=False)
class _Block:
    """Memory for a block of rows, and what is found in it, for all noises.

    The rows of a run are told apart by cell and noise class: ``order`` has their places in the run, group by group,
    and ``groups`` which group each belongs to, (rows,). In this order are ``coordinates``, z̃ = (z, 1, y), shape
    (noises, rows, largest r + 1 + Q), and ``energies``, the residual energy of each row, 0 where it is not remarkable,
    (noises, rows). ``noise`` are the sums of v of each group, run by run, (runs, noises, cells · J, P); ``residual``
    those of e² of each cell, (runs, noises, cells, P). The rest serves one run after the other: ``squares`` are the
    sums of the squared errors of each group, (cells · J, P), ``faint`` lists the pixels that clipping changes,
    ``products`` are for z of clean flux and of a noise's means, (2, run · largest r), and ``checked`` for the means of
    check rows and what z says of them, (2, check rows, P).
    """

    flux: NDArray[Any]
    error: NDArray[Any]
    means: NDArray[Any]
    coordinates: FloatArray
    noise: FloatArray
    residual: FloatArray
    energies: FloatArray
    order: NDArray[np.int64]
    groups: NDArray[np.int64]
    squares: FloatArray
    starts: NDArray[np.int64]
    pixels: NDArray[np.int32]
    added_mean: NDArray[Any]
    added_variance: NDArray[Any]
    products: NDArray[Any]
    checked: NDArray[Any]
    begin: int = 0
    end: int = 0

    @property
    def faint(self) -> FaintPixels:
        return FaintPixels(self.starts, self.pixels, self.added_mean, self.added_variance)

    def product(self, number: int, rows: int, rank: int) -> NDArray[Any]:
        """Return one of the two places for z, (rows, rank)."""
        return self.products[number, : rows * rank].reshape(rows, rank)


@dataclass(frozen=True, eq=False)
class _Run:
    """Consecutive rows of a block that are multiplied at once: the number in the block, and their places in it.

    ``first`` is the absolute number of the first row; ``cells`` are those of the rows, ``groups`` tell cell and class,
    and ``y`` are their labels, centred, (N, Q).
    """

    number: int
    place: slice
    first: int
    cells: NDArray[np.integer[Any]]
    groups: NDArray[np.int64]
    y: FloatArray

    @property
    def checked(self) -> NDArray[np.int64]:
        """The check rows, as places in the run."""
        return np.arange(-self.first % CHECK_EVERY, len(self.cells), CHECK_EVERY)


class _Projector:
    """How one noise is integrated out, and its means projected."""

    def __init__(self, noise: Noise, basis: Basis, dtype: np.dtype[Any]) -> None:
        self.kernel, self.rank, self.level, self.digest = noise.kernel(dtype), basis.rank, noise.level, basis.digest
        self.projection = np.ascontiguousarray(basis.projection, dtype=dtype)
        self.back = np.ascontiguousarray(basis.vectors.T, dtype=dtype)


class _Loop:
    """What all blocks share."""

    def __init__(
        self,
        reader: SpectraReader,
        n_cells: int,
        n_labels: int,
        noises: Sequence[Noise],
        bases: Sequence[Basis],
        settings: LoopSettings,
        workspace: Workspace,
    ) -> None:
        basis = bases[0]  # classes and weights are those of all
        self._reader, self._basis, self._settings = reader, basis, settings
        self._projectors = [_Projector(*own, settings.dtype) for own in zip(noises, bases, strict=True)]
        self._shrink = (1 / np.sqrt(basis.variance)).astype(settings.dtype)
        self._weights = 1 / np.sqrt(basis.variance)
        self._rows = _block_rows(reader.chunk_rows, settings.run_rows)
        self._origins = _find_origins(reader.starts, settings.run_rows)
        n_pixels = reader.n_pixels
        shapes: list[tuple[tuple[int, ...], Any]] = [
            ((self._rows, n_pixels), np.float32),
            ((self._rows, n_pixels), np.float32),
            ((1, settings.run_rows, n_pixels), settings.dtype),
            ((len(noises), self._rows, max(own.rank for own in bases) + 1 + n_labels), np.float64),
            ((self._rows // settings.run_rows, len(noises), n_cells * basis.n_classes, n_pixels), np.float64),
            ((self._rows // settings.run_rows, len(noises), n_cells, n_pixels), np.float64),
            ((len(noises), self._rows), np.float64),
            ((self._rows,), np.int64),
            ((self._rows,), np.int64),
            ((n_cells * basis.n_classes, n_pixels), np.float64),
            ((settings.run_rows + 1,), np.int64),
            ((n_faint := settings.run_rows * n_pixels // _FAINT,), np.int32),
            ((n_faint,), settings.dtype),
            ((n_faint,), settings.dtype),
            ((2, settings.run_rows * max(own.rank for own in bases)), settings.dtype),
            ((2, -(-settings.run_rows // CHECK_EVERY), n_pixels), settings.dtype),
        ]
        n_blocks = settings.threads + _WAITING
        arrays = iter(workspace.lease(*(n_blocks * shapes)))
        self._free: SimpleQueue[_Block] = SimpleQueue()
        for own in zip(*(len(shapes) * [arrays]), strict=True):
            block = _Block(*own)
            block.noise[:] = 0
            block.residual[:] = 0
            self._free.put(block)

    def plan_blocks(self, rows: CellRows) -> Iterator[tuple[int, int]]:
        """Yield the blocks of a part, as places in it.

        They begin at multiples of their length in a store, wherever the part begins. So in stores whose chunks are as
        long, each chunk is decoded once.
        """
        stop = rows.start + len(rows.cells)
        for origin, end in pairwise([*self._origins, stop]):
            if end <= rows.start:
                continue
            skipped = max(rows.start - origin, 0) // self._rows * self._rows
            for begin in range(origin + skipped, min(end, stop), self._rows):
                yield max(begin, rows.start) - rows.start, min(begin + self._rows, end, stop) - rows.start

    def work(self, rows: CellRows, begin: int, end: int) -> _Block:
        """Read a block, integrate the noise out, and project. Runs in several threads."""
        block = self._free.get()
        block.begin, block.end = begin, end
        first = rows.start
        for a, b in self._reader.iter_blocks(first + begin, first + end):
            place = slice(a - first - begin, b - first - begin)
            self._reader.read_rows("flux", a, b, block.flux[place])
            self._reader.read_rows("error", a, b, block.error[place])
        origin = rows.x_origin.astype(self._settings.dtype)
        for number, place in enumerate(self._runs(block, rows)):
            own = slice(begin + place.start, begin + place.stop)
            cells, y = rows.cells[own], rows.y[own] - rows.y_origin
            groups = cells * self._basis.n_classes + self._classify(block.error[place])
            block.order[place] = order = np.argsort(groups, kind="stable")
            block.groups[place] = groups[order]
            self._project(block, _Run(number, place, first + own.start, cells, groups, y), origin)
        return block

    def _classify(self, error: NDArray[Any]) -> Any:
        """Return the noise class of every row by its errors (N, P), which all noise levels have in common."""
        if self._basis.n_classes == 1:
            return 0
        energies = np.empty(len(error))
        sum_squares(error, self._weights, energies)
        return np.searchsorted(self._basis.edges, energies, side="right")

    def _runs(self, block: _Block, rows: CellRows) -> Iterator[slice]:
        """Yield the runs of a block, as places in it; they, too, begin at multiples of their length in a store."""
        n, size, begin = block.end - block.begin, self._settings.run_rows, rows.start + block.begin
        first = -((begin - self._origins[bisect_right(self._origins, begin) - 1]) % size)
        return (slice(max(start, 0), min(start + size, n)) for start in range(first, n, size))

    def _project(self, block: _Block, run: _Run, origin: NDArray[Any]) -> None:
        """Project one run of rows under every noise."""
        n, flux, error = len(run.cells), block.flux[run.place], block.error[run.place]
        means, most, rest = block.means[0, :n], n * flux.shape[1] // _FAINT, []
        # Noises with few faint pixels come first: they share the rows of clean flux, where others then write their own.
        clean, clean_sizes, sizes = "", np.empty(0), np.empty(n)
        for k, own in enumerate(self._projectors):
            if not own.kernel.find_faint(flux, error, block.faint, most):
                rest.append(k)
                continue
            if not clean_sizes.size:
                clean_sizes = self._write_clean(block, run, origin)
            shared, z = (block.product(number, n, own.rank) for number in (0, 1))
            if clean != own.digest:
                np.matmul(means, own.projection, out=shared)
                clean = own.digest
            z[:], sizes[:] = shared, clean_sizes
            self._add_faint(k, block, run, z, sizes)
            self._keep(k, block, run, z, sizes)
        for k in rest:
            own = self._projectors[k]
            scatter = Scatter(
                flux, error, run.first, origin, np.zeros(n, np.int64), np.arange(n), block.means,
                block.noise[run.number, k], run.groups,
            )  # fmt: skip
            for part in own.kernel.split(scatter, 1):
                part()
            z = np.matmul(means, own.projection, out=block.product(1, n, own.rank))
            sum_squares(means, self._shrink, sizes)
            np.take(means, run.checked, axis=0, out=block.checked[0, : len(run.checked)], mode="clip")
            self._keep(k, block, run, z, sizes)

    def _write_clean(self, block: _Block, run: _Run, origin: NDArray[Any]) -> FloatArray:
        """Write the clean flux of a run as its means, and sum up its squared errors; return its whitened energies."""
        means, sizes = block.means[0, : len(run.cells)], np.empty(len(run.cells))
        block.squares[np.unique(run.groups)] = 0
        write_clean(block.flux[run.place], block.error[run.place], origin, run.groups, means, block.squares)
        sum_squares(means, self._shrink, sizes)
        return sizes

    def _add_faint(self, k: int, block: _Block, run: _Run, z: NDArray[Any], sizes: FloatArray) -> None:
        """Turn what is known of the clean flux into what a noise makes of it: z, energies, variances, check rows."""
        own, faint, noise = self._projectors[k], block.faint, block.noise[run.number, k]
        means = block.means[0, : len(run.cells)]
        add_faint(means, faint.starts, faint.pixels, faint.mean, own.projection, self._shrink, z, sizes)
        for group in np.unique(run.groups):
            noise[group] += own.level**2 * block.squares[group]
        add_variances(run.groups, faint.starts, faint.pixels, faint.variance, noise)
        for place, row in enumerate(run.checked):
            members = slice(faint.starts[row], faint.starts[row + 1])
            block.checked[0, place] = means[row]
            block.checked[0, place, faint.pixels[members]] += faint.mean[members]

    def _keep(self, k: int, block: _Block, run: _Run, z: NDArray[Any], sizes: FloatArray) -> None:
        """Keep z of a run, and what it leaves out of the means; ``sizes`` are their whitened energies."""
        own, checked, order = self._projectors[k], run.checked, block.order[run.place]
        energies = np.empty(len(z))
        keep_rows(z, run.y, order, sizes, block.coordinates[k, run.place], energies)
        means, told = block.checked[:, : len(checked)]
        np.matmul(z[checked], own.back, out=told)
        add_residuals(means, told, self._shrink, checked, run.cells, energies, block.residual[run.number, k])
        np.take(energies, order, out=block.energies[k, run.place], mode="clip")

    def add(self, block: _Block, part: _Part, advance: Callable[[int], None] | None) -> None:
        """Add what a block gave; blocks come in the order of the rows."""
        n_classes = self._basis.n_classes
        for number, run in enumerate(self._runs(block, part.rows)):
            rows, groups = block.order[run] + part.rows.start + block.begin + run.start, block.groups[run]
            ends = [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
            for start, end in pairwise([0, *ends]):
                cell, noise_class = divmod(int(groups[start]), n_classes)
                for k, of_noise in enumerate(part.sums):
                    own, width = of_noise[cell], self._projectors[k].rank + 1 + part.rows.y.shape[1]
                    own.add_rows(noise_class, block.coordinates[k, run, :width][start:end])
                    own.watch(rows[start:end], block.energies[k, run][start:end])
            for cell in np.unique(groups // n_classes):
                own_sums = slice(cell * n_classes, (cell + 1) * n_classes)
                for k, of_noise in enumerate(part.sums):
                    noise, residual = block.noise[number, k, own_sums], block.residual[number, k, cell]
                    of_noise[cell].add_sums(noise, residual)
                    noise[:], residual[:] = 0, 0
        self._free.put(block)
        if advance is not None:
            advance(block.end - block.begin)


@compiled(fastmath={"reassoc", "contract"})
def keep_rows(z: Any, y: Any, order: Any, sizes: Any, kept: Any, energies: Any) -> None:
    """Keep z̃ = (z, 1, y) of the rows of a run in another order, and find what z leaves out of their energies.

    Parameters
    ----------
    z, y
        Of the rows, (N, r) and (N, Q).
    order
        Which row comes where, (N,).
    sizes
        The whitened energies of the means, (N,), float64.
    kept
        Where z̃ goes, (N, >= r + 1 + Q), float64.
    energies
        What is left of the energies, (N,), float64: 0 unless it is gross, since in single precision the difference is
        rounding.
    """
    rank, n_labels = z.shape[1], y.shape[1]
    for n in range(len(order)):
        row, total = order[n], 0.0
        own, to = z[row], kept[n]
        for q in range(rank):
            value = np.float64(own[q])
            to[q] = value
            total += value * value
        to[rank] = 1.0
        for q in range(n_labels):
            to[rank + 1 + q] = y[row, q]
        left = sizes[row] - total
        energies[row] = 0.0 if left < _GROSS * sizes[row] else left


@compiled()
def write_clean(flux: Any, error: Any, origin: Any, groups: Any, means: Any, squares: Any) -> None:
    """Write ``max(f, 0) − o`` of every row (N, P), and add its squared errors to those of its group (groups, P)."""
    zero = origin[0] * 0
    for r in range(flux.shape[0]):
        row, sums, f, e = means[r], squares[groups[r]], flux[r], error[r]
        for p in range(len(f)):
            row[p] = (f[p] if f[p] > 0 else zero) - origin[p]
            sigma = zero + e[p]
            sums[p] += sigma * sigma


#: Pixels whose directions stay in the processor's cache while the rows of a run go over them.
_STRIP = 128


@compiled()
def add_faint(
    means: Any, starts: Any, pixels: Any, added: Any, projection: Any, shrink: Any, z: Any, sizes: Any
) -> None:
    """Add what faint pixels change to rows' projections and whitened energies.

    Parameters
    ----------
    means
        Clean flux without the origin, (N, P).
    starts, pixels, added
        See :class:`~pipeline.noise.FaintPixels`.
    projection
        Of a basis, (P, r).
    shrink
        1/√v̄, (P,).
    z
        The projections, (N, r).
    sizes
        The energies, (N,), float64.
    """
    n_pixels, rank = projection.shape
    at = starts[:-1].copy()
    for first in range(0, n_pixels, _STRIP):
        for r in range(z.shape[0]):
            while at[r] < starts[r + 1] and pixels[at[r]] < first + _STRIP:
                p, value = pixels[at[r]], added[at[r]]
                for q in range(rank):
                    z[r, q] += value * projection[p, q]
                sizes[r] += value * shrink[p] * ((2 * means[r, p] + value) * shrink[p])
                at[r] += 1


@compiled()
def add_residuals(means: Any, told: Any, shrink: Any, checked: Any, cells: Any, energies: Any, residual: Any) -> None:
    """Add what a basis leaves out of check rows to the sums of their cells.

    Parameters
    ----------
    means, told
        ``m − o`` of the check rows, and what z says of it, (N, P).
    shrink
        1/√v̄, (P,).
    checked
        Which rows of a run they are, (N,).
    cells, energies
        Of all rows of the run. The energies of check rows become those of what is left out, whitened.
    residual
        Sums of e² of each cell, (cells, P), float64.
    """
    for n in range(len(checked)):
        row, mean, said, total = checked[n], means[n], told[n], 0.0
        sums = residual[cells[row]]
        for p in range(len(mean)):
            left = mean[p] - said[p]
            sums[p] += left * left
            white = left * shrink[p]
            total += white * white
        energies[row] = total


@compiled()
def add_variances(groups: Any, starts: Any, pixels: Any, added: Any, noise: Any) -> None:
    """Add what clipping adds to the variances of faint pixels to the sums of their rows' groups, (groups, P)."""
    for r in range(len(groups)):
        for k in range(starts[r], starts[r + 1]):
            noise[groups[r], pixels[k]] += added[k]


class _CellSum:
    """The moments of one noise and cell, as they grow."""

    def __init__(self, basis: Basis, rows: CellRows, settings: LoopSettings, exponent: int) -> None:
        self._basis, self._rows, self._exponent = basis, rows, exponent
        self._epsilon = float(np.finfo(settings.dtype).eps)
        # Rows of a class wait for enough of them to make a product worth while; of many classes, for fewer. Products of
        # a fixed number of rows have the same bits however the blocks are cut.
        run_rows = max(_FEWEST_ROWS, settings.run_rows // basis.n_classes)
        zero = Factors.zeros(basis, len(rows.labels))
        self._inner, self._noise, self._residual, self._worst = zero.inner, zero.noise, zero.residual, zero.worst
        self._n_check = 0
        self._waiting = [np.empty((run_rows, own.shape[1])) for own in self._inner]
        self._n_waiting = [0] * len(self._waiting)

    def add_rows(self, number: int, rows: FloatArray) -> None:
        """Add z̃ of the next rows of a noise class, (n, r + 1 + Q)."""
        waiting = self._waiting[number]
        while len(rows):
            first = self._n_waiting[number]
            taken = rows[: len(waiting) - first]
            waiting[first : first + len(taken)] = taken
            self._n_waiting[number] += len(taken)
            if self._n_waiting[number] == len(waiting):
                self._multiply(number)
            rows = rows[len(taken) :]

    def watch(self, rows: NDArray[np.int64], energies: FloatArray) -> None:
        """Count check rows, and remember those rows whose residual energies are the largest; both of shape (n,)."""
        self._n_check += int(np.count_nonzero(rows % CHECK_EVERY == 0))
        found = np.flatnonzero(energies > self._worst[-1, 1])
        if found.size:
            every = np.concatenate([self._worst, np.column_stack([rows[found], energies[found]])])
            self._worst = every[np.argsort(-every[:, 1], kind="stable")][:WORST]

    def add_sums(self, noise: FloatArray, residual: FloatArray) -> None:
        """Add the sums of v of some rows in each noise class, (J, P), and those of e² of their check rows, (P,)."""
        self._noise += noise
        self._residual += residual

    def finish(self) -> FactoredMoments:
        """Return the moments."""
        for k in range(len(self._waiting)):
            self._multiply(k)
        factors = Factors(self._inner, self._noise, self._residual, self._n_check, self._worst)
        rows = self._rows
        return FactoredMoments(self._basis, factors, rows.y_origin, rows.labels, self._epsilon, self._exponent)

    def _multiply(self, number: int) -> None:
        """Add the products of the rows that wait, of which there may be none."""
        rows = self._waiting[number][: self._n_waiting[number]]
        self._inner[number] += rows.T @ rows
        self._n_waiting[number] = 0
