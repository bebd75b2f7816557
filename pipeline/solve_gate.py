"""What a ridge gate is fitted to: predictions of every fold by the global model that the other folds train.

One task for each noise, where the moments are; what comes back are a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.checkpoints import MomentsFolder
from pipeline.config import RidgeConfig
from pipeline.models import trained_cells
from pipeline.moments_predictions import PredictionSums
from pipeline.progress import Progress, SilentProgress
from pipeline.solve_model import ModelCells, held_out_scales, predict_held_out
from pipeline.solve_tasks import run_jobs
from pipeline.solve_threads import SolveMemory, solving_threads

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["GateJob", "predict_folders"]


@dataclass(frozen=True)
class GateJob:
    """The held-out predictions of one noise.

    Attributes
    ----------
    moments
        Of the noise, of at least two folds.
    ridge
        Scaling, and which spectra train the global model. All spectra are predicted, wherever they lie.
    covered
        The cells that ``train_on: covered`` trains it on.
    alpha
        The penalty of the global model of all folds. Without a fold it shrinks with the number of spectra, so that
        the penalty of a spectrum stays.
    """

    moments: MomentsFolder
    ridge: RidgeConfig
    covered: tuple[int, ...]
    alpha: float

    @property
    def size(self) -> int:
        """Models to solve: one without each fold."""
        return self.moments.n_folds


def predict_folders(
    jobs: Sequence[GateJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, PredictionSums]]:
    """Predict the folds of every job; yield which job, and the joint sums over all folds, as they are done."""
    words = ("solve", "gate", "predicting folds for the gate")
    yield from run_jobs(client, _predict_folds, jobs, ["gate"] * len(jobs), words, progress or SilentProgress())


def _predict_folds(job: GateJob, report: Callable[[int], None]) -> PredictionSums:
    """Predict all folds of one job. The body of a Dask task."""
    folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]
    model = ModelCells(trained_cells(job.ridge, job.moments.n_cells, job.covered), False)
    scales = held_out_scales(folds, model.cells, job.ridge)
    counts = np.array([sum(saved.counts[cell] for cell in model.cells) for saved in folds])
    alphas = [np.array([job.alpha * (1 - count / counts.sum())]) for count in counts]

    def predict(one: ModelCells, memory: SolveMemory) -> PredictionSums:
        parts = []
        everywhere = range(job.moments.n_cells)
        for sums in predict_held_out(folds, one, everywhere, scales, alphas, memory):
            parts.append(sums)
            report(len(parts))
        return PredictionSums.merge(parts)

    with solving_threads(len(scales[0]), 1, held_folds=1) as run:
        predicted: list[PredictionSums] = run(predict, [model])
    return predicted[0]
