"""Held-out errors of one expert for every rectangle of a fine grid, from the moments of its bins.

A *band* is all rectangles of the same rows and left edge. They grow to the right, so each Gram matrix is read and
added once for all of them, to the sum of its fold. What trains on all folds but one is the sum of the others and not
the total less one: the difference would not be exact where the total cancels, as for a pixel that is constant but in
one fold, and the F·(F − 1) additions cost a fraction of the F factorisations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import Progress
from pipeline.config import RidgeConfig
from pipeline.moments import Moments, MomentsSum, PixelSums, SavedMoments
from pipeline.ridge import (
    RidgePath,
    SolveMemory,
    held_out_errors,
    pixel_scale,
    resolve_alpha,
    run_jobs,
    shared_scale,
    solve_ridge_path,
    solving_threads,
)
from pipeline.schema import LABELS

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Band", "HeldOutErrors", "HeldOutJob", "hold_out_models"]

FloatArray = NDArray[np.float64]
#: The cells of one rectangle, then those that the next larger one has besides, and so on.
Band = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class HeldOutJob:
    """What one task answers.

    Attributes
    ----------
    name
        What it is about, for progress and for the file that keeps the answer.
    moments
        Of one noise.
    ridge
        Scaling, the fewest spectra, and the penalty, which is no search.
    trained_on
        The cells that train the global model; ``standardize: global`` scales by them.
    target
        The label whose errors are wanted.
    bands
        The models, by growing training sets; the global model, judged on every cell by itself, if there are none.
    threads
        Bands worked on side by side, at most; each needs :func:`pipeline.ridge.workers.solve_memory`.
    """

    name: str
    moments: MomentsFolder
    ridge: RidgeConfig
    trained_on: tuple[int, ...]
    target: str
    bands: tuple[Band, ...] = ()
    threads: int = 1

    @property
    def size(self) -> int:
        """Models to solve, each once for every fold."""
        return self.moments.n_folds * (sum(map(len, self.bands)) or 1)


#: For every band the Σ(y − ŷ)² of each model over its own held-out spectra, None where a fold leaves too few to train
#: on; of the global model one list with that of every cell.
HeldOutErrors = list[list[float | None]]


def hold_out_models(
    jobs: Sequence[HeldOutJob], *, client: Client | None = None, progress: Progress
) -> Iterator[tuple[int, HeldOutErrors]]:
    """Predict every fold by models trained on the others; yield the sums of squared errors as they are done.

    Parameters
    ----------
    jobs
        What to answer.
    client
        A Dask client whose workers solve; None solves here, with the same bits.
    progress
        Told of finished models.

    Yields
    ------
    int
        Which of the jobs.
    list of list of float or None
        See :data:`HeldOutErrors`, squared label units.
    """
    subjects = [job.name.replace("-", " to ") for job in jobs]
    words = ("design", "design", "searching for divisions")
    yield from run_jobs(client, _hold_out_job, jobs, subjects, words, progress)


@dataclass(frozen=True)
class _Trial:
    """What models of all bands have in common: for each fold left out, the penalty and the shared scale (P,)."""

    folds: Sequence[SavedMoments]
    counts: NDArray[np.int64]
    ridge: RidgeConfig
    alphas: Sequence[float]
    scales: Sequence[FloatArray]
    label: int

    @classmethod
    def plan(cls, job: HeldOutJob) -> _Trial:
        folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]
        of_folds = [saved.sum_pixels(job.trained_on) for saved in folds]
        training = [
            PixelSums.merge([one for k, one in enumerate(of_folds) if k != held_out]) for held_out in range(len(folds))
        ]
        return cls(
            folds,
            np.array([saved.counts for saved in folds]),
            job.ridge,
            [resolve_alpha(job.ridge.alpha, one.count) for one in training],
            [shared_scale(one, job.ridge) for one in training],
            LABELS.index(job.target),
        )

    def solve(self, held_out: int, training: Moments, memory: SolveMemory, *, own_scale: bool) -> RidgePath:
        """Return the model of all folds but one."""
        scale = pixel_scale(training) if own_scale else self.scales[held_out]
        return solve_ridge_path(training, self.alphas[held_out], scale, memory.system)

    def error(self, judge: Moments, path: RidgePath) -> float:
        """Return Σ(y − ŷ)² over some held-out spectra."""
        return float(held_out_errors(judge, path)[0, self.label])


def _hold_out_job(job: HeldOutJob, report: Callable[[int], None]) -> HeldOutErrors:
    """Answer one job. The body of a Dask task."""
    trial = _Trial.plan(job)
    done, lock = 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(done)

    n_pixels = trial.folds[0].tiled_pixels
    if not job.bands:
        with solving_threads(n_pixels, job.threads) as run:
            of_folds = run(
                lambda fold, memory: _judge_global(trial, job.trained_on, fold, memory, advance),
                range(job.moments.n_folds),
            )
        return [[float(error) for error in np.sum(of_folds, axis=0)]]
    with solving_threads(n_pixels, job.threads, job.moments.n_folds) as run:
        return run(lambda band, memory: _judge_band(trial, band, memory, advance), job.bands)


def _judge_global(
    trial: _Trial, trained_on: Sequence[int], held_out: int, memory: SolveMemory, advance: Callable[[int], None]
) -> list[float]:
    """Return the errors of the global model on every cell of one fold that had no part in it."""
    training = MomentsSum(memory.total)
    for saved in (saved for k, saved in enumerate(trial.folds) if k != held_out):
        for cell in trained_on:
            training.add(saved.read(cell, memory.content))
    path = trial.solve(held_out, training.moments, memory, own_scale=False)
    judge = trial.folds[held_out]
    errors = [
        trial.error(judge.read(cell, memory.content), path) if count else 0.0 for cell, count in enumerate(judge.counts)
    ]
    advance(1)
    return errors


def _judge_band(trial: _Trial, band: Band, memory: SolveMemory, advance: Callable[[int], None]) -> list[float | None]:
    """Return the errors of every model of a band; each takes over the sums of the one before."""
    sums = [MomentsSum(tiles) for tiles in memory.folds]
    cells: list[int] = []
    errors: list[float | None] = []
    for added in band:
        cells += added
        for saved, total in zip(trial.folds, sums, strict=True):
            for cell in added:
                total.add(saved.read(cell, memory.content))
        of_folds = [total.moments for total in sums]
        count = trial.counts[:, cells].sum(axis=1)
        if count.sum() - count.max() < trial.ridge.min_spectra:
            errors.append(None)
            advance(len(of_folds))
            continue
        found = 0.0
        for held_out, judge in enumerate(of_folds):
            training = MomentsSum(memory.total)
            for part in (part for k, part in enumerate(of_folds) if k != held_out):
                training.add(part)
            own_scale = trial.ridge.standardize == "per_expert"
            path = trial.solve(held_out, training.moments, memory, own_scale=own_scale)
            found += trial.error(judge, path)
            advance(1)
        errors.append(found)
    return errors
