"""Fitting gates, one task for each noise: what a ridge gate is fitted to, and logistic gates themselves.

A ridge gate is fitted to predictions of every fold by the global model that the other folds train, a logistic one to
the rows that a pass has left; what comes back are a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.accumulate import MomentsFolder
from pipeline.base import Progress, SilentProgress, Task, name_group, open_regular, replacing, run_tasks
from pipeline.bins import BinGrid
from pipeline.config import RidgeConfig
from pipeline.errors import InputError
from pipeline.moments import PredictionSums
from pipeline.questions.gate.collect import FeatureRows
from pipeline.questions.gate.features import read_recipe
from pipeline.questions.gate.logistic import fit_logistic_gate
from pipeline.ridge import (
    ModelCells,
    SolveMemory,
    held_out_penalties,
    held_out_scales,
    predict_held_out,
    run_jobs,
    solving_threads,
    trained_cells,
)

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "GateJob",
    "LogisticJob",
    "fit_logistic_jobs",
    "predict_folders",
    "read_held_out",
]


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
    alphas = held_out_penalties(folds, model, job.alpha)

    def predict(one: ModelCells, memory: SolveMemory) -> PredictionSums:
        parts = []
        everywhere = range(job.moments.n_cells)
        for sums in predict_held_out(folds, one, everywhere, scales, alphas, memory):
            parts.append(sums)
            report(len(parts))
        return PredictionSums.merge(parts)

    with solving_threads(folds[0].tiled_pixels, 1, held_folds=1) as run:
        predicted: list[PredictionSums] = run(predict, [model])
    return predicted[0]


@dataclass(frozen=True)
class LogisticJob:
    """The logistic gate of one noise.

    Attributes
    ----------
    rows, recipe
        Files of :mod:`pipeline.questions.gate.collect` and :mod:`pipeline.questions.gate.features`.
    held_out
        The file that the probabilities of these rows become, by gates that did not see their fold.
    grid
        Edges by column of the bins, as items.
    products
        How many of the first components have squares and products.
    """

    rows: str
    recipe: str
    held_out: str
    grid: tuple[tuple[str, tuple[float, ...]], ...]
    products: int


def fit_logistic_jobs(
    jobs: Sequence[LogisticJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Fit the gate of every job; yield which job, and its gate as plain values with what ``fit`` says of it."""
    tasks = [Task((name_group("gate", "fit"), job.rows, k), job, 1) for k, job in enumerate(jobs)]
    with (progress or SilentProgress()).step("gate", len(tasks), "gates") as advance:
        for task, plain in run_tasks(client, _fit_logistic, tasks, "fitting gates", advance):
            yield task.key[-1], plain


def _fit_logistic(job: LogisticJob, report: Callable[[int], None]) -> dict[str, Any]:
    """Fit one gate. The body of a Dask task."""
    rows, recipe = FeatureRows.read(Path(job.rows)), read_recipe(Path(job.recipe))
    names, grid, n_multiplied = recipe.names, BinGrid(dict(job.grid)), min(job.products, recipe.n_components)
    fitted = fit_logistic_gate(rows.features, names, rows.bins, rows.folds, grid, n_multiplied=n_multiplied)
    with replacing(Path(job.held_out)) as temporary, open(temporary, "wb") as stream:
        np.save(stream, fitted.held_out, allow_pickle=False)
    report(1)
    return fitted.gate.to_dict() | {
        "fit": {
            "spectra": len(rows.rows),
            "log_losses": [[penalty, loss] for penalty, loss in fitted.log_losses.items()],
            "importance": dict(zip(names, fitted.importance.tolist(), strict=True)),
        }
    }


def read_held_out(path: Path) -> np.ndarray:
    """Read what a job's ``held_out`` has become: probabilities (N, K + 1) of the rows that the gate was fitted to.

    Raises
    ------
    InputError
        If the file is missing or damaged.
    """
    try:
        with open(path, "rb", opener=open_regular) as stream:
            return np.asarray(np.load(stream, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"gate {path}: cannot be read ({error}); delete the file and run again") from None
