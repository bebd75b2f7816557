"""Models that were trained without one fold, for every fold: they predict training spectra that they have not seen.

There is one task for each noise, and it runs where the moments are. The penalty per spectrum is that of the models of
all folds, so α shrinks with the number of spectra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import Progress, SilentProgress, open_npz, write_npz
from pipeline.bins import Binning
from pipeline.config import RidgeConfig
from pipeline.errors import InputError
from pipeline.ridge.models import ExpertModels, trained_cells
from pipeline.ridge.ridge import RidgePath
from pipeline.ridge.solve import ModelCells, held_out_penalties, held_out_scales, solve_held_out
from pipeline.ridge.workers import SolveMemory, run_jobs, solving_threads
from pipeline.schema import FOLD_MODELS_VERSION, LABELS

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "FoldModels",
    "FoldModelsJob",
    "find_starved_bin",
    "read_fold_models",
    "solve_fold_job",
    "solve_fold_models",
    "write_fold_models",
]

FORMAT = "headroom-fold-models"
#: A ridge model needs at least so many spectra.
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class FoldModels:
    """Linear models trained without each of F folds: M of each, for P pixels.

    The first Q columns are the global model's labels, in the order of :data:`pipeline.schema.LABELS`; then come the
    experts in bin order, for the target alone.

    Attributes
    ----------
    weights, intercepts
        Shapes (F, P, M) and (F, M), label units (per flux unit).
    target
        The experts' label.
    """

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    target: str

    def split_columns(self, predicted: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Split predictions (N, M) into those of the target by all models and those of all labels by the global model.

        Their shapes are (N, 1 + K) and (N, Q), as :class:`pipeline.questions.gate.blend.HeldOutRows` takes them.
        """
        n_labels = len(LABELS)
        of_target = predicted[:, [LABELS.index(self.target)]]
        return np.concatenate([of_target, predicted[:, n_labels:]], axis=1), predicted[:, :n_labels]


@dataclass(frozen=True)
class FoldModelsJob:
    """The models of one noise and one binning without each fold.

    Attributes
    ----------
    moments
        Of the noise, of at least two folds.
    binning
        Whose experts.
    ridge
        Scaling, and which spectra train the global model.
    alphas
        The penalties of the global model and every expert, trained on all folds, shape (1 + K,).
    target
        The experts' label.
    """

    moments: MomentsFolder
    binning: Binning
    ridge: RidgeConfig
    alphas: tuple[float, ...]
    target: str = LABELS[0]

    @classmethod
    def of_models(
        cls, moments: MomentsFolder, binning: Binning, ridge: RidgeConfig, models: ExpertModels, target: str = LABELS[0]
    ) -> FoldModelsJob:
        """Return the job that solves given models again, each time without one fold."""
        alphas = (models.global_alpha, *models.expert_alphas.tolist())
        return cls(moments, binning, ridge, tuple(float(alpha) for alpha in alphas), target)

    @property
    def models(self) -> list[ModelCells]:
        """The global model and every expert."""
        own_scale = self.ridge.standardize == "per_expert"
        trained_on = trained_cells(self.ridge, self.moments.n_cells, self.binning.covered)
        return [ModelCells(trained_on, False), *(ModelCells(cells, own_scale) for cells in self.binning.members)]

    @property
    def size(self) -> int:
        """Models to solve."""
        return (1 + self.binning.n_bins) * self.moments.n_folds


def find_starved_bin(job: FoldModelsJob) -> str | None:
    """Say which bin has too few training spectra outside some fold, and which fold; None if all have enough."""
    counts = [job.moments.open(fold).counts for fold in range(job.moments.n_folds)]
    for number, cells in enumerate(job.binning.members):
        own = np.array([sum(of_fold[cell] for cell in cells) for of_fold in counts])
        left = own.sum() - own
        if left.min() < _FEWEST:
            return (
                f"{job.binning.describe(number)} has {left.min()} training spectra outside fold {left.argmin()} of "
                f"{len(counts)}, at least {_FEWEST} are required to predict that fold; widen the bin, add spectra, or "
                "change compute.folds"
            )
    return None


def solve_fold_models(
    jobs: Sequence[FoldModelsJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, FoldModels]]:
    """Solve the models of every job without each fold; yield which job, and its models, as they are done.

    Raises
    ------
    InputError
        If a model has fewer than two spectra without some fold; see :func:`find_starved_bin`.
    """
    words = ("solve", "folds", "solving without each fold")
    yield from run_jobs(client, solve_fold_job, jobs, ["folds"] * len(jobs), words, progress or SilentProgress())


def solve_fold_job(job: FoldModelsJob, report: Callable[[int], None]) -> FoldModels:
    """Solve all models of one job. The body of a Dask task."""
    folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]
    models, label, done = job.models, LABELS.index(job.target), 0
    scales = held_out_scales(folds, models[0].cells, job.ridge)

    def solve(model: ModelCells, alpha: float, memory: SolveMemory) -> list[RidgePath]:
        nonlocal done
        paths = []
        for path in solve_held_out(folds, model, scales, held_out_penalties(folds, model, alpha), memory):
            paths.append(path)
            done += 1
            report(done)
        return paths

    with solving_threads(folds[0].tiled_pixels, 1, held_folds=1) as run:
        of_global, *experts = run(solve, models, job.alphas)
    parts = [
        (
            np.column_stack([whole.weights[0], *(path.weights[0][:, label] for path in others)]),
            np.concatenate([whole.intercepts[0], [path.intercepts[0, label] for path in others]]),
        )
        for whole, *others in zip(of_global, *experts, strict=True)
    ]
    return FoldModels(np.stack([w for w, _ in parts]), np.stack([b for _, b in parts]), job.target)


def write_fold_models(path: Path, models: FoldModels) -> None:
    """Write models to one ``.npz`` file, atomically."""
    arrays = {"weights": models.weights, "intercepts": models.intercepts}
    write_npz(path, arrays, {"format": FORMAT, "version": FOLD_MODELS_VERSION, "target": models.target})


def read_fold_models(path: Path) -> FoldModels:
    """Read the models that :func:`write_fold_models` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another version.
    """

    def refuse(reason: object) -> InputError:
        return InputError(f"fold models {path}: cannot be read ({reason}); delete the file and run again")

    with open_npz(path, refuse, (FORMAT, FOLD_MODELS_VERSION)) as (facts, arrays):
        return FoldModels(arrays["weights"], arrays["intercepts"], facts["target"])
