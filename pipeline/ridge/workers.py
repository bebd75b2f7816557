"""How models are solved: jobs on saved moments as Dask tasks, and within a task the threads that share its memory.

A job is one task. Its name tells people what it is about on Dask's dashboard, and its progress is counted in models.
Within it several threads solve models side by side. Each works in large arrays of its own, which are lent to one model
after the other: fresh memory costs more than filling it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder, available_threads
from pipeline.base import Progress, Report, Task, name_group, one_blas_thread, process_workspace, run_tasks
from pipeline.moments import TileLayout
from pipeline.ridge.krylov import krylov_memory
from pipeline.schema import LABELS

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["SolveMemory", "run_jobs", "solve_memory", "solving_threads"]

FloatArray = NDArray[np.float64]


class MomentsJob(Protocol):
    """Work on the moments of one noise."""

    @property
    def moments(self) -> MomentsFolder:
        """Of the noise."""

    @property
    def size(self) -> int:
        """Models to solve."""


Job = TypeVar("Job", bound=MomentsJob)
Answer = TypeVar("Answer")


def run_jobs(
    client: Client | None,
    function: Callable[[Job, Report], Answer],
    jobs: Sequence[Job],
    subjects: Sequence[str],
    words: tuple[str, str, str],
    progress: Progress,
) -> Iterator[tuple[int, Answer]]:
    """Run a function on every job; yield which one, and what it gave, as they are done.

    Parameters
    ----------
    client
        A Dask client; None runs the jobs here, in order, with the same bits.
    function
        Takes a job, and a callable to report models done so far.
    jobs
        The work.
    subjects
        What each is about, for the names of tasks.
    words
        The step in those names, the step's title, and what is being done, for messages.
    progress
        Told of finished models.
    """
    step, title, doing = words
    tasks = [
        Task((name_group(subject, step), str(job.moments.folder), k), job, job.size)
        for k, (job, subject) in enumerate(zip(jobs, subjects, strict=True))
    ]
    with progress.step(title, sum(task.size for task in tasks), "models") as advance:
        for task, answer in run_tasks(client, function, tasks, doing, advance):
            yield task.key[-1], answer


def solve_memory(n_pixels: int, threads: int, held_folds: int = 0) -> int:
    """Return the bytes of the large arrays of a solving task, whatever the number of cells.

    ``held_folds`` says how many folds' sums each thread holds at once while a penalty is searched for: all, or one.
    """
    beside = krylov_memory(n_pixels, len(LABELS)) if held_folds else 0
    return threads * ((2 + held_folds) * TileLayout(n_pixels).nbytes(np.float64) + n_pixels * n_pixels * 8 + beside)


@dataclass(frozen=True)
class SolveMemory:
    """What one thread works in: a sum of tiles, the bytes of a Gram matrix that is being read, and a dense system.

    A search for the penalty also needs ``folds``, the sums of tiles of single folds. Where there is room it holds those
    of all folds. Every Gram matrix is then read once for a model, and not once for each training set that it belongs
    to. Otherwise it holds those of one fold.
    """

    total: FloatArray
    content: NDArray[np.uint8]
    system: FloatArray
    folds: FloatArray


@contextmanager
def solving_threads(n_pixels: int, threads: int, held_folds: int = 0) -> Iterator[Callable[..., list[Any]]]:
    """Give a ``map`` that runs on several threads and passes a :class:`SolveMemory` as its function's last argument.

    Parameters
    ----------
    n_pixels
        P.
    threads
        At most so many, and no more than the process may use.
    held_folds
        Folds whose sums each thread's memory has room for.
    """
    n_threads, layout = min(threads, available_threads()), TileLayout(n_pixels)
    shapes = [
        (layout.shape, np.float64),
        ((layout.nbytes(np.float64),), np.uint8),
        ((n_pixels, n_pixels), np.float64),
        ((held_folds, *layout.shape), np.float64),
    ]
    with process_workspace() as workspace, one_blas_thread():
        arrays = workspace.lease(*(n_threads * shapes))
        idle: SimpleQueue[SolveMemory] = SimpleQueue()
        for k in range(n_threads):
            total, content, system, of_folds = arrays[4 * k : 4 * k + 4]
            idle.put(SolveMemory(total, content, system, of_folds))

        def lend(function: Callable[..., Any], *arguments: Any) -> Any:
            memory = idle.get()
            try:
                return function(*arguments, memory)
            finally:
                idle.put(memory)  # another model may wait for it, even after an error

        with ThreadPoolExecutor(n_threads, "solve") as executor:
            yield lambda function, *columns: list(executor.map(partial(lend, function), *columns))
