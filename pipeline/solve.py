"""Models for growing training sets, solved where the moments are: one task for each noise draw.

A thread takes one model at a time: it adds up the folds of its cell, and after each fold solves the ridge system. It
holds one sum, one Gram matrix on its way in, and one dense system, whatever the number of cells and folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.bins import BinGrid
from pipeline.checkpoints import MomentsFolder
from pipeline.config import RidgeConfig
from pipeline.hotloop import available_threads
from pipeline.models import ExpertModels, TooFewSpectraError, join_models, require_enough_spectra, shared_scale
from pipeline.moments import MomentsSum, PixelSums
from pipeline.moments_files import SavedMoments
from pipeline.progress import Progress, SilentProgress
from pipeline.ridge import RidgePath, pixel_scale, solve_ridge_path
from pipeline.selection import resolve_alpha
from pipeline.tasks import Task, run_tasks
from pipeline.tiles import TileLayout
from pipeline.workspace import process_workspace

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["solve_folders", "solve_memory"]


def solve_memory(n_pixels: int, threads: int) -> int:
    """Return the bytes of the large arrays of a solving task, whatever the number of cells and folds."""
    return threads * (2 * TileLayout(n_pixels).nbytes(np.float64) + n_pixels * n_pixels * 8)


def solve_folders(
    folders: Sequence[MomentsFolder],
    ridge: RidgeConfig,
    grid: BinGrid,
    *,
    threads: int = 1,
    client: Client | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, list[ExpertModels]]]:
    """Solve the models of every noise draw for the first fold, the first two, … all folds; yield as they are done.

    Parameters
    ----------
    folders
        The moments of each draw.
    ridge, grid
        See :func:`pipeline.models.solve_experts`, which gives the same models from moments in memory.
    threads
        Models that a task solves side by side, at most; each needs :func:`solve_memory`.
    client
        A Dask client whose workers solve; None solves here, with the same bits.
    progress
        Told of finished models.

    Yields
    ------
    int
        Which of the draws.
    list of ExpertModels
        One set of models for each number of folds; short prefixes that starve a bin are left out.

    Raises
    ------
    TooFewSpectraError
        If a bin has too few spectra in all folds together.
    SingularGramError
        If a penalty of 0 meets a rank-deficient system.
    """
    report = progress or SilentProgress()
    tasks = [
        Task(("solve", str(one.folder), k), _DrawTask(one, ridge, grid, threads), (grid.n_bins + 1) * one.n_folds)
        for k, one in enumerate(folders)
    ]
    with report.step("solve", sum(task.size for task in tasks), "models") as advance:
        for task, models in run_tasks(client, _solve_draw, tasks, "solving", advance):
            yield task.key[-1], models


@dataclass(frozen=True)
class _DrawTask:
    moments: MomentsFolder
    ridge: RidgeConfig
    grid: BinGrid
    threads: int


@dataclass(frozen=True)
class _Memory:
    """What one thread works in."""

    total: NDArray[np.float64]
    content: NDArray[np.uint8]
    system: NDArray[np.float64]


@dataclass(frozen=True)
class _Prefix:
    """The first folds, as a training set: what all of its models share."""

    n_folds: int
    alpha: float
    scale: NDArray[np.float64]


def _solve_draw(task: _DrawTask, report: Callable[[int], None]) -> list[ExpertModels]:
    """Solve all models of one noise draw. The body of a Dask task."""
    n_bins, threads = task.grid.n_bins, min(task.threads, available_threads())
    trained_on = range(task.moments.n_cells if task.ridge.train_on == "all" else n_bins)
    folds = [task.moments.open(fold) for fold in range(task.moments.n_folds)]
    prefixes = _plan_prefixes(task, folds, trained_on)
    done = 0

    def solve(cells: Sequence[int]) -> list[RidgePath]:
        nonlocal done
        memory = idle.get()
        try:
            paths = []
            for path in _solve_prefixes(task, folds, cells, prefixes, memory):
                paths.append(path)
                done += 1
                report(done)
            return paths
        finally:
            idle.put(memory)  # another model may wait for it, even after an error

    layout = TileLayout(prefixes[0].scale.size)
    shapes = [
        (layout.shape, np.float64),
        ((layout.nbytes(np.float64),), np.uint8),
        ((layout.n_pixels, layout.n_pixels), np.float64),
    ]
    with process_workspace() as workspace, threadpool_limits(1, user_api="blas"):
        arrays = workspace.lease(*(threads * shapes))
        idle: SimpleQueue[_Memory] = SimpleQueue()
        for k in range(threads):
            idle.put(_Memory(*arrays[3 * k : 3 * k + 3]))
        with ThreadPoolExecutor(threads, "solve") as executor:
            # The global model has most to read: it goes first.
            of_global, *experts = executor.map(solve, [trained_on, *([cell] for cell in range(n_bins))])
    return [join_models(of_global[k], [path[k] for path in experts], task.grid) for k in range(len(prefixes))]


def _plan_prefixes(task: _DrawTask, folds: Sequence[SavedMoments], trained_on: Sequence[int]) -> list[_Prefix]:
    """Return the prefixes that have enough spectra in every bin; the whole set must."""
    cells: list[PixelSums] = []
    prefixes = []
    for n_folds, saved in enumerate(folds, start=1):
        of_fold = saved.pixel_sums()
        cells = [PixelSums.merge(pair) for pair in zip(cells, of_fold, strict=True)] if cells else of_fold
        try:
            require_enough_spectra([cells[k].count for k in range(task.grid.n_bins)], task.ridge, task.grid)
        except TooFewSpectraError:
            # A short prefix may starve a bin: the learning curve starts later.
            if n_folds == len(folds):
                raise
            continue
        whole = PixelSums.merge([cells[k] for k in trained_on])
        alpha = resolve_alpha(task.ridge.alpha, whole.count)
        prefixes.append(_Prefix(n_folds, alpha, shared_scale(whole, task.ridge)))
    return prefixes


def _solve_prefixes(
    task: _DrawTask,
    folds: Sequence[SavedMoments],
    cells: Sequence[int],
    prefixes: Sequence[_Prefix],
    memory: _Memory,
) -> Iterator[RidgePath]:
    """Yield the model of some cells together, for every prefix."""
    total = MomentsSum(memory.total)
    n_folds = 0
    own_scale = task.ridge.standardize == "per_expert" and len(cells) == 1
    for prefix in prefixes:
        for saved in folds[n_folds : prefix.n_folds]:
            for cell in cells:
                total.add(saved.read(cell, memory.content))
        n_folds = prefix.n_folds
        scale = pixel_scale(total.moments) if own_scale else prefix.scale
        yield solve_ridge_path(total.moments, prefix.alpha, scale, memory.system)
