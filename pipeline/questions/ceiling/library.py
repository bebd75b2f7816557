"""The pass over the library: what every star of it says of every spectrum, partition by partition.

One Dask task gets paths and a row range. It reads its stars block by block, measures how probable each spectrum is
under each of them, and leaves the sums (:class:`pipeline.questions.ceiling.posterior.Sums`) on disk under a key. What
is there is skipped on resume. Which stars make the library, how they are cut into blocks, and in which order sums are
merged depends on the plan alone, so the bits do not depend on workers or threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import AccumulationPlan, available_threads
from pipeline.base import (
    Progress,
    SilentProgress,
    Task,
    compute_ahead,
    name_group,
    one_blas_thread,
    open_npz,
    run_tasks,
    write_npz,
)
from pipeline.bins import OUTSIDE, BinGrid, Partition
from pipeline.errors import InputError
from pipeline.plan import run_length
from pipeline.questions.ceiling.likelihood import (
    Coefficients,
    Observed,
    Origins,
    Projection,
    Star,
    describe_stars,
    measure_dense,
    observe,
    weigh_rounding,
)
from pipeline.questions.ceiling.pairs import Side, settle_pairs
from pipeline.questions.ceiling.posterior import Slots, Sums, absorb, group_of
from pipeline.store import AnyStore, open_stores

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Block",
    "Choice",
    "LibraryJob",
    "Measure",
    "Scale",
    "Spectra",
    "StarReader",
    "accumulate_library",
    "choose_stars",
    "name_cells",
    "read_columns",
    "refuse_file",
]

FloatArray = NDArray[np.float64]
#: Stars, and spectra, of one product; their bits depend on these. So many fit into the second cache.
_STARS, _SPECTRA = 1024, 128
#: Stars left out that follow each other: single ones would touch as many chunks as all. A tenth of the stars leaves
#: room between runs.
_RUN = 16
#: Stars that a thread describes at a time.
_DESCRIBED = 256


@dataclass(frozen=True, eq=False)
class Choice:
    """Which training stars make the library, and which are left out of it; absolute rows, increasing."""

    library: NDArray[np.int64]
    left_out: NDArray[np.int64]


def choose_stars(partitions: Sequence[Partition], wanted: int, left_out: int) -> Choice:
    """Choose the library's stars, and those that its temperature is chosen on: both in runs, evenly spread over all.

    Parameters
    ----------
    partitions
        Of the pass, in order.
    wanted, left_out
        How many of each.
    """
    rows = np.concatenate([np.arange(part.start, part.stop) for part in partitions])
    n_runs = -(-left_out // _RUN)
    starts = (2 * np.arange(n_runs) + 1) * len(rows) // (2 * max(n_runs, 1)) - _RUN // 2
    places = np.clip(starts[:, None] + np.arange(_RUN), 0, len(rows) - 1).ravel()[:left_out]
    others, position = np.delete(rows, places), np.arange(wanted)
    run = run_length(wanted)
    chosen = position // run * run * len(others) // max(wanted, 1) + position % run
    return Choice(others[chosen], rows[places])


@dataclass(frozen=True, eq=False)
class Scale:
    """Where labels are measured from, and in which unit, shapes (Q,): sums of labels near 0 lose no digits."""

    mean: FloatArray
    width: FloatArray

    def apply(self, labels: FloatArray) -> FloatArray:
        """Return labels (…, Q) in this unit."""
        return (labels - self.mean) / self.width


@dataclass(frozen=True, eq=False)
class Spectra:
    """The noisy spectra of one level, as workers read them from a file.

    Attributes
    ----------
    spectra
        Noisy flux, shape (N, P), float32.
    cells
        Their own cells, the outside last, shape (N,).
    origins
        What likelihoods are measured from.
    projection, coefficients
        The directions, and the spectra in them; None where products are formed pixel by pixel.
    precision
        Of these products, ``float32`` or ``float64``.
    """

    spectra: NDArray[np.float32]
    cells: NDArray[np.int64]
    origins: Origins
    projection: Projection | None
    coefficients: Coefficients | None
    precision: str

    def write(self, path: Path) -> None:
        """Write to one file, atomically."""
        of_projection = self.projection.to_arrays() if self.projection else {}
        known = {name: getattr(self, name) for name in ("spectra", "cells", "precision")}
        write_npz(
            path,
            known | self.origins.to_arrays() | of_projection | (vars(self.coefficients) if self.coefficients else {}),
        )

    @classmethod
    def read(cls, path: Path) -> Spectra:
        """Read what :meth:`write` wrote.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """
        with open_npz(path, refuse_file(path)) as (_, arrays):
            return cls(
                arrays["spectra"],
                arrays["cells"],
                Origins.from_arrays(arrays),
                Projection.from_arrays(arrays),
                Coefficients(arrays["large"], arrays["small"], arrays["doubt"]) if "large" in arrays else None,
                str(arrays["precision"]),
            )


def refuse_file(path: Path) -> Callable[[object], InputError]:
    """Return what makes the error of a file that cannot be used from the reason."""
    return lambda reason: InputError(f"{path}: cannot be read ({reason}); delete the file and run again")


@dataclass(frozen=True)
class LibraryJob:
    """A library, and the spectra of all levels that it is held against.

    Attributes
    ----------
    spectra
        A file of :class:`Spectra` for every level.
    folder
        Where the sums of each partition go and stay; no other key's results may lie there.
    wanted, left_out
        See :func:`choose_stars`.
    grid
        Edges by column of the bins, as items.
    scale
        Means and widths of the labels of the plan.
    """

    spectra: tuple[str, ...]
    folder: str
    wanted: int
    left_out: int
    grid: tuple[tuple[str, tuple[float, ...]], ...]
    scale: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class _Piece:
    """All that a worker needs for one partition: its number, and the others, which decide what the library is."""

    job: LibraryJob
    stores: tuple[str, ...]
    fingerprint: str
    exponent: int
    labels: tuple[str, ...]
    partitions: tuple[Partition, ...]
    number: int
    target: str


def accumulate_library(
    plan: AccumulationPlan, job: LibraryJob, *, client: Client | None = None, progress: Progress | None = None
) -> list[Sums]:
    """Return the sums of every level over all stars of the library, resuming what is there.

    Parameters
    ----------
    plan
        How the training spectra are cut.
    job
        The library and the spectra.
    client
        A Dask client; None computes here, one partition after the other, with the same bits.
    progress
        Told of finished stars.

    Raises
    ------
    InputError
        If a store has changed or is damaged.
    ResourceError
        If the disk is full, or the workers are lost.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = choose_stars(plan.partitions, job.wanted, job.left_out).library
    sizes = [int(_within(rows, part).sum()) for part in plan.partitions]
    pieces = [
        _Piece(
            job, plan.stores, plan.fingerprint, plan.exponent, plan.labels, plan.partitions, number,
            str(folder / f"partition-{part.index:06d}.npz"),
        )
        for number, part in enumerate(plan.partitions)
    ]  # fmt: skip
    tasks = [
        Task((name_group(f"fold {plan.partitions[one.number].fold}", "ceiling"), one.target), one, size)
        for one, size in zip(pieces, sizes, strict=True)
        if size and not Path(one.target).exists()
    ]
    with (progress or SilentProgress()).step("ceiling", sum(task.size for task in tasks)) as advance:
        for _ in run_tasks(client, compute_piece, tasks, "measuring the ceiling", advance):
            pass
    os.listdir(folder)  # has NFS look again
    found = [_read_sums(Path(one.target), len(job.spectra)) for one, size in zip(pieces, sizes, strict=True) if size]
    return [reduce(Sums.merge, of_level) for of_level in zip(*found, strict=True)]


def _within(rows: NDArray[np.int64], part: Partition) -> NDArray[np.bool_]:
    return np.asarray((rows >= part.start) & (rows < part.stop))


def _read_sums(path: Path, n_levels: int) -> list[Sums]:
    with open_npz(path, refuse_file(path)) as (_, arrays):
        return [
            Sums.from_arrays(
                {name.removeprefix(f"{k}_"): own for name, own in arrays.items() if name.startswith(f"{k}_")}
            )
            for k in range(n_levels)
        ]


def compute_piece(piece: _Piece, report: Callable[[int], None]) -> None:
    """Compute and write the sums of one partition. The body of a Dask task."""
    if Path(piece.target).exists():
        return  # a worker that takes over from a lost one
    store = open_stores(piece.stores).scaled(piece.exponent)
    if store.fingerprint != piece.fingerprint:
        raise InputError(f"store {', '.join(piece.stores)} changed since the plan was made; run again")
    library = choose_stars(piece.partitions, piece.job.wanted, piece.job.left_out).library
    inside = _within(library, piece.partitions[piece.number])
    rows, first = library[inside], int(np.flatnonzero(inside)[0])
    grid, scale = BinGrid(dict(piece.job.grid)), Scale(*map(np.array, piece.job.scale))
    known = read_columns(store, sorted({*grid.columns, *piece.labels}), rows)
    cells = name_cells(grid.assign(known), grid.n_bins)
    labels = scale.apply(np.column_stack([known[label] for label in piece.labels]).astype(np.float64))
    measures = [Measure(Spectra.read(Path(path)), grid.n_bins, len(piece.labels)) for path in piece.job.spectra]
    done = 0
    # One BLAS thread: the bits of a product may depend on their number.
    groups = group_of(np.arange(first, first + len(rows)))
    with ThreadPoolExecutor(available_threads()) as pool, one_blas_thread():
        for block in _read_ahead(store, rows, cells, groups, labels):
            for measure in measures:
                measure.add(block, pool)
            done += len(block.flux)
            report(done)
    write_npz(
        Path(piece.target),
        {f"{k}_{name}": own for k, one in enumerate(measures) for name, own in one.sums.to_arrays().items()},
    )


@dataclass(frozen=True, eq=False)
class Block:
    """Some stars, those of one group and cell one after the other: flux and error (M, P), slots, and labels (M, Q)."""

    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    slots: Slots
    labels: FloatArray

    @classmethod
    def read(
        cls,
        reader: StarReader,
        rows: NDArray[np.int64],
        cells: NDArray[np.int64],
        groups: NDArray[np.int64],
        labels: FloatArray,
    ) -> Block:
        """Read stars, whose rows are in increasing order, and sort them."""
        order = np.lexsort((cells, groups))
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        flux, error = reader.take_clean(rows, places)
        return cls(flux, error, Slots.of(cells[order], groups[order]), labels[order])


def _read_ahead(
    store: AnyStore,
    rows: NDArray[np.int64],
    cells: NDArray[np.int64],
    groups: NDArray[np.int64],
    labels: FloatArray,
) -> Iterator[Block]:
    """Yield one block of stars after the other; the next one is read meanwhile."""
    reader = StarReader(store)
    cuts = [slice(a, a + _STARS) for a in range(0, len(rows), _STARS)]

    def read(own: slice) -> Block:
        return Block.read(reader, rows[own], cells[own], groups[own], labels[own])

    return compute_ahead(read, cuts)


def name_cells(bins: NDArray[np.int64], n_bins: int) -> NDArray[np.int64]:
    """Return the cell of every spectrum: its bin, and ``n_bins`` outside."""
    return np.where(bins == OUTSIDE, n_bins, bins)


class StarReader:
    """Reads some rows of a store, in increasing order; no chunk is read twice, and none that holds no row."""

    def __init__(self, store: AnyStore) -> None:
        self._store = store
        self._last: dict[str, tuple[int, int, NDArray[np.float32]]] = {}
        self._memory: dict[str, NDArray[np.float32]] = {}

    def take(
        self, variable: str, rows: NDArray[np.int64], places: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Return rows of a pixel array, shape (M, P), as they come or each in its place."""
        places = np.arange(len(rows)) if places is None else places
        found = np.empty((len(rows), self._store.n_pixels), np.float32)
        start = 0
        while start < len(rows):
            first, end, pixels = self._read(variable, int(rows[start]))
            stop = start + int(np.searchsorted(rows[start:], end))
            found[places[start:stop]] = pixels[rows[start:stop] - first]
            start = stop
        return found

    def take_clean(
        self, rows: NDArray[np.int64], places: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read flux and errors of rows, each (M, P), side by side; see :meth:`take`."""
        with ThreadPoolExecutor(2) as pool:
            flux, error = pool.map(partial(self.take, rows=rows, places=places), ("flux", "error"))
        return flux, error

    def _read(self, variable: str, row: int) -> tuple[int, int, NDArray[np.float32]]:
        """Return the rows from this one to the end of its chunk, and where they lie."""
        first, end, pixels = self._last.get(variable, (0, 0, np.empty((0, 0), np.float32)))
        if not first <= row < end:
            first, end = next(iter(self._store.iter_blocks(row, self._store.n_spectra)))
            if len(self._memory.get(variable, ())) < end - first:
                self._memory[variable] = np.empty((end - first, self._store.n_pixels), np.float32)
            pixels = self._store.read_rows(variable, first, end, self._memory[variable])
            self._last[variable] = first, end, pixels
        return first, end, pixels


def read_columns(store: AnyStore, names: Sequence[str], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Read some rows of columns, in increasing order."""
    first = int(rows[0])
    found = store.read_columns(names, first, int(rows[-1]) + 1)
    return {name: values[rows - first] for name, values in found.items()}


class Measure:
    """Holds spectra against one block of stars after the other."""

    def __init__(self, known: Spectra, n_bins: int, n_labels: int) -> None:
        self._known = known
        n = len(known.cells)
        self._blocks = [slice(a, min(a + _SPECTRA, n)) for a in range(0, n, _SPECTRA)]
        self._observed: list[Observed] = []
        if known.coefficients is not None:
            self._side = Side.of(known.coefficients.small, known.coefficients.doubt)
        else:
            self._observed = [observe(known.spectra[own], known.origins) for own in self._blocks]
            self._side = self._of_pixels([one.factors for one in self._observed])
        # Memory that is used again: fresh pages cost a fifth of the time.
        self._stars, self._memory = Star.empty(_STARS, known.origins), threading.local()
        self.sums = Sums.empty(n, n_bins, n_labels)

    def _of_pixels(self, parts: Sequence[tuple[NDArray[np.float32], ...]]) -> Side:
        """Return what is known of spectra or stars whose products are formed pixel by pixel."""
        doubt = np.concatenate([weigh_rounding(one) for one in parts])
        # Double precision is beyond doubt.
        return Side.of(np.empty((len(doubt), 0), np.float32), doubt * (self._known.precision == "float32"))

    def add(self, block: Block, pool: Executor) -> None:
        """Add the stars of a block to the sums; threads share the spectra."""
        known = self._known
        cuts = [slice(a, a + _DESCRIBED) for a in range(0, len(block.flux), _DESCRIBED)]
        stars = self._stars.rows(slice(len(block.flux)))

        def describe(own: slice) -> tuple[Star, Coefficients | None]:
            # Both at once, while the factors of the stars are in the caches.
            described = describe_stars(block.flux[own], block.error[own], known.origins, stars.rows(own))
            return described, None if known.projection is None else known.projection.project_stars(described)

        described = list(pool.map(describe, cuts))
        parts, projected = [star for star, _ in described], [one for _, one in described if one is not None]
        large: FloatArray | None = None
        if projected:
            whole = Coefficients.join(projected)
            large, side = whole.large, Side.of(whole.small, whole.doubt)
        else:
            side = self._of_pixels([one.factors for one in parts])

        def hold(number: int) -> None:
            own = self._blocks[number]
            found = self._buffer(own.stop - own.start, len(stars.own))
            if known.coefficients is not None and large is not None:
                np.matmul(known.coefficients.large[own], large.T, out=found)
                found += stars.own
            else:
                for cut, part in zip(cuts, parts, strict=True):
                    found[:, cut] = measure_dense(self._observed[number], part, known.precision)
            sums, cells = self.sums.rows(own), known.cells[own]
            pixels = known.spectra[own], stars, known.origins
            settle_pairs(found, (self._side.rows(own), side), pixels, sums, block.slots, cells)
            absorb(sums, found, block.slots, block.labels, cells)

        list(pool.map(hold, range(len(self._blocks))))

    def _buffer(self, rows: int, columns: int) -> FloatArray:
        """Return memory of this thread."""
        found: FloatArray | None = getattr(self._memory, "found", None)
        if found is None:
            found = self._memory.found = np.empty((_SPECTRA, _STARS))
        return found[:rows, :columns]
