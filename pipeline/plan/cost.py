"""What a run will cost in memory, disk, tasks and arithmetic. A run that cannot fit is refused before it starts."""

from __future__ import annotations

import heapq
import math
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.accumulate import (
    LoopSettings,
    available_threads,
    count_sampled,
    expect_factored,
    loop_memory,
    projection_memory,
    sharing_memory,
)
from pipeline.base import available_memory, format_bytes, one_blas_thread
from pipeline.bins import BinGrid, CellGrid, Partition, find_gaps, keep_rows, plan_folds, plan_partitions, tighten_folds
from pipeline.config import AlphaSearch, ExperimentConfig, Quantiles
from pipeline.errors import ResourceError
from pipeline.moments import MOST_DIRECTIONS, Factors, TileLayout
from pipeline.noise import Noise, training_noises, verdict_noises
from pipeline.plan.ceiling import LibraryPlan, plan_library
from pipeline.ridge import solve_memory
from pipeline.schema import LABELS

__all__ = [
    "TYPICAL_RANK",
    "ExperimentPlan",
    "choose_sharing",
    "count_sizes",
    "measure_flops",
    "plan_run",
    "time_product",
]

#: Memory of a process that has imported everything and opened a store. Measured, with some margin.
PROCESS_BYTES = 640 * 2**20
#: Share of a worker's memory that may be planned. Dask pauses a worker at 0.8 of its limit.
MEMORY_SHARE = 0.7
#: Bytes for each spectrum in this process: one column, and a copy of one store's part of it. Measured: 8.
_COLUMN_BYTES = 16
#: Bytes for each spectrum while this process converts shards: their columns, twice. Measured: 400 with 24 columns.
_CONVERT_BYTES = 480
#: Bytes for each pixel of a block of test spectra while the next one is read, and spectra of a block. Measured: 60.
_TEST_PIXEL_BYTES, _TEST_ROWS = 64, 1024
#: Bytes for each test spectrum and model: a prediction, its variance, and parts that are copied. Measured: 17 to 24.
_PREDICTION_BYTES = 24
#: Bytes for each row of a worker's partition, besides 8 for each column of the bins.
_ROW_BYTES = 80 + 8 * len(LABELS)
#: The rank of a basis that time is projected for; simulated spectra of five labels take 128 to 256. Memory and disk are
#: projected for the largest one.
TYPICAL_RANK = 192
#: Memory of the choice of a basis, in float32 arrays of the sample's size. Measured: 3.5.
_SAMPLE_ARRAYS = 4
#: Draws share a read as long as the workers are busy for at least this share of the time.
_EFFICIENT_SHARE = 0.9


@dataclass(frozen=True)
class ExperimentPlan:
    """The projected cost of a run, in bytes, floating-point operations and counts.

    Attributes
    ----------
    n_spectra, n_pixels
        Training spectra and pixels.
    n_draws
        Noise draws: seeds × levels for drawn noise, one for each level for marginal noise.
    n_factored
        Those of them whose moments will be factored. If no small basis will do for them, they are dense, and a run
        projects its cost again.
    draws_per_pass
        Draws with dense moments that share one read of the spectra, as memory allows. Factored moments come from the
        first read.
    n_passes, n_pieces
        Reads of the store, and pieces of work. Each piece is a checkpoint. A worker takes several as one task.
    worker_memory
        Peak memory of one worker.
    worker_limit
        Memory that a worker may use.
    worker_threads
        Cores of a worker.
    solve_threads, solve_holds_folds
        Models that a worker solves at the same time, and whether a search for the penalty keeps every fold's sums.
    design_threads
        Bands of rectangles that a worker tries at the same time; 0 without a bin design.
    design_models
        Models that a bin design tries at most: rectangles × folds × seeds, the main bins and the global model.
    driver_memory
        Peak memory of the process that converts, merges and scores.
    moments_disk
        Bytes of moments that the run folder will hold, including the partitions of the largest fold.
    store_disk
        Bytes of stores that are still to be converted, as if they did not compress.
    library
        What the ceiling costs; None where it is not asked for.
    n_test
        Test spectra; 0 where they are not known.
    asks_forecast
        Whether a forecast is asked for.
    flops
        Floating-point operations of the products: N·P² for each draw with dense moments, 2·N·P·r with factored ones.
    """

    n_spectra: int
    n_pixels: int
    n_cells: int
    n_draws: int
    n_folds: int
    n_partitions: int
    draws_per_pass: int
    n_workers: int
    worker_memory: int
    worker_limit: int
    worker_threads: int
    solve_threads: int
    solve_holds_folds: bool
    driver_memory: int
    moments_disk: int
    store_disk: int
    flops: float
    design_threads: int = 0
    design_models: int = 0
    n_factored: int = 0
    library: LibraryPlan | None = None
    n_test: int = 0
    asks_forecast: bool = False

    def __repr__(self) -> str:
        return (
            f"ExperimentPlan({self.n_spectra:,} spectra × {self.n_pixels:,} pixels, {self.n_draws} noise draws, "
            f"{self.n_cells:,} cells × {self.n_folds} folds; {self.n_pieces} pieces of work, {self.n_workers} workers; "
            f"memory per worker {format_bytes(self.worker_memory)} of {format_bytes(self.worker_limit)}, moments on "
            f"disk {format_bytes(self.moments_disk)})"
        )

    @property
    def makes_forecast(self) -> bool:
        """Whether a forecast is asked for, and there will be the factored moments that it needs."""
        return self.asks_forecast and self.n_factored > 0

    @property
    def n_dense(self) -> int:
        """Noise draws whose moments are dense."""
        return self.n_draws - self.n_factored

    @property
    def n_passes(self) -> int:
        """Reads of the store."""
        return max(1, -(-self.n_dense // self.draws_per_pass))

    @property
    def n_pieces(self) -> int:
        """A piece for each partition and read."""
        return self.n_passes * self.n_partitions

    def require_fit(self, folder: Path, stores: Path | None = None) -> None:
        """Refuse a plan that needs too much memory, or too much disk for the run folder and the stores.

        Raises
        ------
        ResourceError
            If it does not fit; the message gives the numbers and the setting to change.
        """
        self.require_workers_fit()
        free_memory = available_memory()
        if self.driver_memory > free_memory:
            raise ResourceError(
                f"converting, merging and scoring need {format_bytes(self.driver_memory)} in this process but "
                f"{format_bytes(free_memory)} are free; use a machine with more memory"
            )
        needs = [("moments", self.moments_disk, folder, "choose another --out, or use fewer seeds or compute.folds")]
        if stores is not None:
            needs.append(("stores", self.store_disk, stores, "choose another folder for data.stores"))
        for what, needed, where, remedy in needs:
            existing = next(path for path in (where, *where.absolute().parents) if path.exists())
            free = shutil.disk_usage(existing).free
            # The disk that an interrupted run already uses is part of the plan's need.
            files = (where / "moments").rglob("*") if what == "moments" else ()
            written = sum(file.stat().st_size for file in files if file.is_file())
            if needed - written > free:
                raise ResourceError(
                    f"the run's {what} need {format_bytes(needed - written)} in {where} but {format_bytes(free)} "
                    f"are free; {remedy}"
                )

    def require_workers_fit(self) -> None:
        """Refuse a plan that needs more memory than a worker has.

        Raises
        ------
        ResourceError
            If it does not fit; the message gives the numbers and the setting to change.
        """
        if self.worker_memory > self.worker_limit * MEMORY_SHARE:
            raise ResourceError(
                f"the plan needs {format_bytes(self.worker_memory)} per worker but workers have "
                f"{format_bytes(self.worker_limit)} of which {MEMORY_SHARE:.0%} may be planned; use fewer bins, "
                "smaller compute.run_rows, fewer workers per machine (--workers), or larger ones"
            )

    def render(self) -> str:
        """Return the plan as lines for people."""
        lines = [
            f"spectra × pixels     {self.n_spectra:,} × {self.n_pixels:,}",
            f"noise draws          {self._name_draws()} in {self.n_passes} pass{'es' if self.n_passes > 1 else ''} "
            f"over the store",
            f"cells × folds        {self.n_cells} × {self.n_folds}",
            f"pieces of work       {self.n_pieces} ({self.n_partitions} partitions), {self.n_workers} worker"
            f"{'s' if self.n_workers > 1 else ''}",
            f"memory per worker    {format_bytes(self.worker_memory)} of {format_bytes(self.worker_limit)}",
            f"memory of the driver {format_bytes(self.driver_memory)}",
            f"disk for moments     {format_bytes(self.moments_disk)}",
            f"disk for new stores  {format_bytes(self.store_disk)}",
            f"arithmetic           {self.flops / 1e12:,.2f} Tflop of products",
        ]
        if self.design_models:
            lines.append(f"bin design           {self.design_models:,} models (rectangles × folds × seeds)")
        if self.library is not None:
            lines.append(f"ceiling              {self.library.describe()}")
        if self.asks_forecast and not self.makes_forecast:
            lines.append("forecast             none: it needs factored moments (compute.moments), and these are dense")
        return "\n".join(lines)

    def _name_draws(self) -> str:
        kinds = []
        if self.n_dense:
            kinds.append(f"{self.n_dense} with dense moments ({self.draws_per_pass} share a read)")
        if self.n_factored:
            kinds.append(f"{self.n_factored} with factored moments")
        return " and ".join(kinds)


def plan_run(
    shard_lengths: Sequence[int],
    n_pixels: int,
    config: ExperimentConfig,
    worker_limits: Sequence[int],
    *,
    chunk_rows: int = 1024,
    store_disk: int = 0,
    left_out: Sequence[int] = (),
    kept: Sequence[tuple[int, int]] | None = None,
    noise_classes: int = 1,
    n_test: int = 0,
    worker_threads: int | None = None,
) -> ExperimentPlan:
    """Project the cost of an experiment. Only sizes are needed, so shards need not be converted before.

    Parameters
    ----------
    shard_lengths
        Training spectra in each shard, in order.
    n_pixels
        P.
    config
        Bins, seeds, noise levels, precision and cuts.
    worker_limits
        Memory limit of every worker in bytes.
    chunk_rows
        Spectra that the store decodes together.
    store_disk
        Bytes of stores that are still to be written.
    left_out
        Numbers of the shards that are left out.
    kept
        The rows that are used; by default those of all other shards.
    noise_classes
        Into how many classes of like noise factored moments are divided.
    n_test
        Test spectra, if they are known.
    worker_threads
        Cores of a worker; as many as this process may use by default.
    """
    compute, cores = config.compute, worker_threads or available_threads()
    kept = keep_rows(shard_lengths, left_out) if kept is None else kept
    folds = tighten_folds(plan_folds(shard_lengths, compute.folds, left_out), kept)
    partitions = plan_partitions(folds, compute.partition_rows, find_gaps(kept))
    n_cells, n_spectra = _count_cells(config), sum(part.n_spectra for part in partitions)
    noises = training_noises(config.noise.mode, config.noise.levels, config.seeds)
    factored = _Factored.plan(noises, n_pixels, n_cells, chunk_rows, config, cores, noise_classes)
    reading = _Reading.plan(partitions, n_pixels, n_cells, chunk_rows, config, worker_limits, factored, len(noises))
    solving = _plan_solving(config, n_pixels, len(folds), reading, cores)
    library = plan_library(config, n_spectra, n_test or n_spectra, n_pixels, chunk_rows=chunk_rows)
    in_folds = [part.fold for part in partitions]
    disk = _DenseDisk.plan(in_folds, TileLayout(n_pixels), config.precision, reading)
    converting = _CONVERT_BYTES * n_spectra if store_disk else 0
    tests = _measure_tests(config, noises, len(folds), n_cells, (n_test, n_pixels), chunk_rows)
    scoring = _merge_and_score(config, n_spectra, len(folds), factored, disk, library, tests)
    return ExperimentPlan(
        n_spectra=n_spectra,
        n_pixels=n_pixels,
        n_cells=n_cells,
        n_draws=len(noises),
        n_folds=len(folds),
        n_partitions=len(partitions),
        draws_per_pass=reading.draws_per_pass,
        n_workers=len(worker_limits),
        worker_memory=reading.fixed
        + max(solving.memory, library.worker_memory if library else 0)
        + factored.measure_held(len(folds)),
        solve_threads=solving.threads,
        solve_holds_folds=solving.held_folds > 1,
        worker_limit=min(worker_limits),
        worker_threads=cores,
        driver_memory=PROCESS_BYTES + max(converting, scoring),
        moments_disk=n_cells * disk.moments + factored.measure_disk(in_folds),
        store_disk=store_disk,
        design_threads=solving.design_threads,
        design_models=_count_tries(config, len(folds)),
        n_factored=factored.n_noises,
        library=library,
        n_test=n_test,
        asks_forecast=config.forecast is not None,
        flops=float(n_spectra) * n_pixels * (reading.n_dense * n_pixels + factored.n_noises * 2 * TYPICAL_RANK),
    )


@dataclass(frozen=True)
class _Factored:
    """Bytes of factored moments for the largest basis: in the pass, of the sample in the driver, and of one cell."""

    n_noises: int
    n_cells: int
    memory: int = 0
    sample: int = 0
    of_cell: int = 0

    @classmethod
    def plan(
        cls,
        noises: Sequence[Noise],
        n_pixels: int,
        n_cells: int,
        chunk_rows: int,
        config: ExperimentConfig,
        cores: int,
        n_classes: int,
    ) -> _Factored:
        n_noises = len(expect_factored(noises, n_pixels, config.compute))
        if not n_noises:
            return cls(0, n_cells)
        rank = min(n_pixels, MOST_DIRECTIONS) if config.compute.moments == "factored" else n_pixels // 4
        rank = min(rank, MOST_DIRECTIONS)
        settings = LoopSettings(config.precision, config.compute.run_rows, cores)
        return cls(
            n_noises,
            n_cells,
            memory=projection_memory(n_pixels, len(LABELS), n_cells, n_noises, rank, chunk_rows, settings, n_classes),
            sample=_SAMPLE_ARRAYS * count_sampled(n_noises) * n_pixels * 4,
            of_cell=Factors.nbytes(n_pixels, len(LABELS), rank, n_classes),
        )

    def measure_held(self, copies: int) -> int:
        """Return the bytes of all cells of one noise, so many times: what solving reads of every fold."""
        return copies * self.n_cells * self.of_cell

    def measure_disk(self, folds: Sequence[int]) -> int:
        """Return the bytes of all folds, and of the partitions of the largest one, for partitions of these folds."""
        counts = Counter(folds).values()
        parts = max(counts) if max(counts) > 1 else 0
        return self.n_noises * self.n_cells * self.of_cell * (len(counts) + parts)


@dataclass(frozen=True)
class _Reading:
    """What a worker holds while it reads: whatever it reads for, and for the draws with dense moments that share it."""

    n_dense: int
    draws_per_pass: int
    fixed: int
    of_pass: int
    allowed: float

    @classmethod
    def plan(
        cls,
        partitions: Sequence[Partition],
        n_pixels: int,
        n_cells: int,
        chunk_rows: int,
        config: ExperimentConfig,
        worker_limits: Sequence[int],
        factored: _Factored,
        n_draws: int,
    ) -> _Reading:
        n_dense = n_draws - factored.n_noises
        rows = max(part.n_spectra for part in partitions)
        # A partition's columns are needed until its last rows are summed. By then the next partition has begun.
        fixed = PROCESS_BYTES + min(2, len(partitions)) * rows * (_ROW_BYTES + 8 * len(config.bins))
        fixed += factored.memory + (sharing_memory(n_pixels, chunk_rows) if factored.n_noises and n_dense else 0)
        settings = LoopSettings(config.precision, config.compute.run_rows)
        of_draws = [loop_memory(n_pixels, len(LABELS), n_cells, k, chunk_rows, settings) for k in range(1, n_dense + 1)]
        allowed = min(min(worker_limits) * MEMORY_SHARE, config.compute.sharing_gib * 2**30)
        if not n_dense:
            return cls(0, 1, fixed, 0, allowed)
        fitting = [k for k, needed in enumerate(of_draws, start=1) if fixed + needed <= allowed]
        draws_per_pass = choose_sharing(fitting or [1], n_dense, len(partitions), len(worker_limits))
        return cls(n_dense, draws_per_pass, fixed, of_draws[draws_per_pass - 1], allowed)


@dataclass(frozen=True)
class _Solving:
    """How many models a worker solves side by side, and the memory that they or the pass before them take."""

    threads: int
    held_folds: int
    design_threads: int
    memory: int


def _plan_solving(config: ExperimentConfig, n_pixels: int, n_folds: int, reading: _Reading, cores: int) -> _Solving:
    """Solve as many models at once as fit into the memory of the pass.

    A search may use all that draws may share.
    """
    if not reading.n_dense:  # factored moments alone: they are small
        return _Solving(cores, n_folds, cores if config.design is not None else 0, 0)
    held_folds, room = 0, reading.of_pass
    if isinstance(config.ridge.alpha, AlphaSearch):
        room = max(room, int(reading.allowed - reading.fixed))
        held_folds = n_folds if solve_memory(n_pixels, 1, n_folds) <= room else 1
    threads = max(1, min(cores, room // solve_memory(n_pixels, 1, held_folds)))
    design_threads = 0
    if config.design is not None:
        design_threads = max(1, min(cores, room // solve_memory(n_pixels, 1, n_folds)))
    of_models = max(solve_memory(n_pixels, threads, held_folds), solve_memory(n_pixels, design_threads, n_folds))
    return _Solving(threads, held_folds, design_threads, max(reading.of_pass, of_models))


@dataclass(frozen=True)
class _DenseDisk:
    """Bytes of one cell's dense moments, of all draws: on disk, and in the driver while it merges a fold.

    A fold of one partition stays as it was accumulated. Other folds are merged in float64 beside their partitions,
    which are kept for the draws that share a read.
    """

    moments: int
    merging: int

    @classmethod
    def plan(cls, folds: Sequence[int], layout: TileLayout, precision: str, reading: _Reading) -> _DenseDisk:
        """Return the bytes for partitions of these folds."""
        if not reading.n_dense:
            return cls(0, 0)
        partial, merged = layout.nbytes(precision), layout.nbytes(np.float64)
        counts = Counter(folds).values()
        of_folds, largest = sum(merged if count > 1 else partial for count in counts), max(counts)
        of_parts = largest * partial if largest > 1 else 0
        return cls(
            moments=reading.n_dense * of_folds + reading.draws_per_pass * of_parts,
            merging=merged + partial if largest > 1 else 0,
        )


def _merge_and_score(
    config: ExperimentConfig,
    n_spectra: int,
    n_folds: int,
    factored: _Factored,
    disk: _DenseDisk,
    library: LibraryPlan | None,
    tests: int,
) -> int:
    """Return the bytes that merging and scoring take, with those of the test spectra.

    A forecast holds every fold, the rest of each, and all.
    """
    held = factored.measure_held(2 * n_folds + 1) if config.forecast is not None else 0
    own = _COLUMN_BYTES * n_spectra + disk.merging
    return held + max(own, factored.sample, library.driver_memory if library else 0, tests)


def _measure_tests(
    config: ExperimentConfig,
    noises: Sequence[Noise],
    n_folds: int,
    n_cells: int,
    shape: tuple[int, int],
    chunk_rows: int,
) -> int:
    """Return the bytes of reading test spectra of some shape (N, P), and of what is predicted in one read.

    There is a set of models for every part of the learning curve and every label. Training draws of one level share
    test spectra whose noise is integrated out. Noise that a test file holds would serve all, but whether it does is not
    known here.
    """
    of_level = Counter(noise.level for noise in noises)
    n_sharing = max(of_level.values()) if config.noise.test == "marginal" else 1
    predicted = n_cells * (count_sizes(config, n_folds) + len(LABELS)) * n_sharing
    # With a chunk that is decoded for a block, and its bytes on the disk.
    blocks = (_TEST_PIXEL_BYTES * _TEST_ROWS + 8 * chunk_rows) * shape[1]
    return blocks + _PREDICTION_BYTES * shape[0] * predicted


def count_sizes(config: ExperimentConfig, n_folds: int) -> int:
    """Return the number of training sizes in the learning curve of an experiment, at most."""
    return n_folds if config.learning_curve is None else min(len(config.learning_curve) + 1, n_folds)


def choose_sharing(fitting: Sequence[int], n_draws: int, n_partitions: int, n_workers: int) -> int:
    """Return how many draws share a read: as many as fit, unless workers would then have nothing to do for long.

    Draws that share a read are one piece of work for each partition. Reading once more costs less than a waiting
    worker. It changes no bits.
    """

    def efficiency(sharing: int) -> float:
        groups = [min(sharing, n_draws - first) for first in range(0, n_draws, sharing)]
        ends = [0] * n_workers
        for size in (size for size in groups for _ in range(n_partitions)):
            heapq.heapreplace(ends, ends[0] + size)
        return n_draws * n_partitions / (n_workers * max(ends))

    efficiencies = {sharing: efficiency(sharing) for sharing in fitting}
    return max(
        sharing for sharing, found in efficiencies.items() if found >= _EFFICIENT_SHARE * max(efficiencies.values())
    )


def _count_cells(config: ExperimentConfig) -> int:
    """Return how many cells the binnings need at most; quantiles are only known after the columns are read."""
    stated = [BinGrid(config.bins)]
    times = 1
    for cuts in config.further_grids.values():
        if any(isinstance(cut, Quantiles) for cut in cuts.values()):
            times *= 1 + math.prod(
                cut.quantiles if isinstance(cut, Quantiles) else len(cut) - 1 for cut in cuts.values()
            )
        else:
            stated.append(BinGrid({column: cut for column, cut in cuts.items() if not isinstance(cut, Quantiles)}))
    return times * CellGrid(tuple(stated)).n_cells


def _count_tries(config: ExperimentConfig, n_folds: int) -> int:
    """Return how many models a bin design solves for its choice; 0 without a bin design."""
    if config.design is None:
        return 0
    sizes = [cut.quantiles if isinstance(cut, Quantiles) else len(cut) - 1 for cut in config.design.grid.values()]
    rectangles = math.prod(size * (size + 1) // 2 for size in sizes)
    n_draws = len(verdict_noises(config.noise.mode, [config.headline_level], config.seeds))
    return n_folds * n_draws * (rectangles + BinGrid(config.bins).n_bins + 1)


def measure_flops(n_pixels: int, precision: str, rows: int = 2048, seconds: float = 0.2) -> float:
    """Measure a Gram product on all cores of this machine: flop/s (N·P² for N rows).

    The best of three is taken, and of as many as fit into the seconds: where few pixels make a product short, three of
    them may fall into a moment in which other programs have the cores. A product on all cores waits for the slowest of
    them, so a second program can make every one of them thirty times slower. One core is easily had for a moment, and
    all cores compute at least as fast as one.
    """
    x = np.random.default_rng(0).standard_normal((rows, min(n_pixels, 2048)), dtype=np.float32).astype(precision)
    best = time_product(x, seconds)
    with one_blas_thread():
        best = min(best, time_product(x, seconds / 2))
    return float(rows * x.shape[1] ** 2 / best)


def time_product(x: np.ndarray, seconds: float) -> float:
    """Return the seconds of the fastest of at least three Gram products."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        started = time.perf_counter()
        x.T @ x
        taken.append(time.perf_counter() - started)
    return min(taken)
