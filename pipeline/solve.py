"""Models for growing training sets, solved where the moments are: one task for each noise and binning.

A thread takes one model at a time: it adds up the folds of its cells, and after each fold solves the ridge system. It
holds one sum, one Gram matrix on its way in, and one dense system, whatever the number of cells and folds.

Where the penalty is searched for, every model is first tried on each fold, trained on the others; the choice is made
once, on the whole training set. The learning curve then takes the chosen α in proportion to its spectra, α·n/N for a
prefix of n of N spectra, so that the penalty of a spectrum, and with it the model, means the same all along the curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.binnings import Binning
from pipeline.checkpoints import MomentsFolder
from pipeline.config import AlphaSearch, RidgeConfig
from pipeline.models import (
    ExpertModels,
    TooFewSpectraError,
    join_models,
    read_models,
    require_enough_spectra,
    require_searchable,
    shared_scale,
    trained_cells,
)
from pipeline.models_search import SolvedSearch, choose_penalties
from pipeline.moments import PixelSums
from pipeline.moments_files import SavedMoments
from pipeline.progress import Progress, SilentProgress
from pipeline.ridge import RidgePath
from pipeline.schema import LABELS
from pipeline.selection import CrossValidation, resolve_alpha
from pipeline.solve_model import ModelCells, Prefix, cross_validate_cells, held_out_scales, solve_prefixes
from pipeline.solve_tasks import run_jobs
from pipeline.solve_threads import SolveMemory, solving_threads

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["SolveJob", "solve_folders"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SolveJob:
    """The models of one noise and one binning.

    Attributes
    ----------
    moments
        Of the noise.
    binning
        Whose experts.
    ridge
        Penalty, scaling, and which spectra train the global model; see :func:`pipeline.models.solve_experts`, which
        gives the same models from moments in memory.
    covered
        The cells that ``train_on: covered`` trains the global model on.
    prefixes
        Numbers of first folds to solve for, the last of which is all; by default the first one, the first two, …
    target
        The label whose held-out R² decides where ``ridge.alpha`` is a search.
    threads
        Models solved side by side, at most; each needs :func:`pipeline.solve_threads.solve_memory`.
    holds_folds
        Hold every fold's sums where a penalty is searched for, instead of reading them for each fold anew; the same
        bits.
    known_global
        A file of models whose last global model is this one, too: the experts alone are solved, or search for their
        penalties.
    """

    moments: MomentsFolder
    binning: Binning
    ridge: RidgeConfig
    covered: tuple[int, ...]
    prefixes: tuple[int, ...] | None = None
    target: str = LABELS[0]
    threads: int = 1
    holds_folds: bool = False
    known_global: Path | None = None

    @property
    def trained_on(self) -> ModelCells:
        """The cells that train the global model."""
        return ModelCells(trained_cells(self.ridge, self.moments.n_cells, self.covered), False)

    @property
    def models(self) -> list[ModelCells]:
        """The models to solve: the global one, which has most to read and goes first, and every expert."""
        own_scale = self.ridge.standardize == "per_expert"
        experts = [ModelCells(cells, own_scale) for cells in self.binning.members]
        return experts if self.known_global is not None else [self.trained_on, *experts]

    @property
    def size(self) -> int:
        """Models to solve, those of a search counted once for each fold."""
        return len(self.rounds) * len(self.models) + self.moments.n_folds * self.n_searching

    @property
    def rounds(self) -> tuple[int, ...]:
        """The numbers of first folds that models are solved for."""
        return self.prefixes or tuple(range(1, self.moments.n_folds + 1))

    @property
    def n_searching(self) -> int:
        """The models that are tried on each fold: all, the global one alone, or none."""
        alpha = self.ridge.alpha
        if not isinstance(alpha, AlphaSearch):
            return 0
        return len(self.models) if alpha.expert_curves or self.known_global is not None else 1

    def count_bins(self, counts: Sequence[int]) -> list[int]:
        """Return the spectra of every bin, from those of every cell."""
        return [sum(counts[cell] for cell in cells) for cells in self.binning.members]


def solve_folders(
    jobs: Sequence[SolveJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, list[ExpertModels]]]:
    """Solve the models of every job for the first fold, the first two, … all folds; yield as they are done.

    Parameters
    ----------
    jobs
        What to solve.
    client
        A Dask client whose workers solve; None solves here, with the same bits.
    progress
        Told of finished models.

    Yields
    ------
    int
        Which of the jobs.
    list of ExpertModels
        One set of models for each number of folds; short prefixes that starve a bin are left out.

    Raises
    ------
    InputError
        If a penalty is searched for on one fold.
    TooFewSpectraError
        If a bin has too few spectra in all folds together, or for a search in all but one.
    SingularGramError
        If a penalty of 0 meets a rank-deficient system.
    """
    subjects = [job.binning.name for job in jobs]
    yield from run_jobs(client, _solve_job, jobs, subjects, ("solve", "solve", "solving"), progress or SilentProgress())


def _solve_job(job: SolveJob, report: Callable[[int], None]) -> list[ExpertModels]:
    """Solve all models of one job. The body of a Dask task."""
    folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]
    prefixes, models = _plan_prefixes(job, folds), job.models
    done = 0

    def solve(model: ModelCells, penalties: Sequence[FloatArray], memory: SolveMemory) -> list[RidgePath]:
        nonlocal done
        paths = []
        for path in solve_prefixes(folds, model, prefixes, penalties, memory):
            paths.append(path)
            done += 1
            report(done)
        return paths

    if not isinstance(job.ridge.alpha, AlphaSearch):
        resolved = [np.array([resolve_alpha(job.ridge.alpha, prefix.count)]) for prefix in prefixes]
        with solving_threads(prefixes[0].scale.size, job.threads) as run:
            solved = run(solve, models, [resolved] * len(models))
        return _join_prefixes(job, solved)

    require_searchable([job.count_bins(saved.counts) for saved in folds], job.ridge, job.binning)
    alphas, scales = np.array(job.ridge.alpha.search), held_out_scales(folds, job.trained_on.cells, job.ridge)

    def validate(model: ModelCells, memory: SolveMemory) -> CrossValidation:
        nonlocal done
        curve = cross_validate_cells(folds, model, scales, alphas, memory)
        done += len(folds)
        report(done)
        return curve

    label, held_folds = LABELS.index(job.target), len(folds) if job.holds_folds else 1
    with solving_threads(prefixes[0].scale.size, job.threads, held_folds) as run:
        if job.known_global is not None:
            found = [curve.alphas[curve.best(label)] for curve in run(validate, models)]
            return _join_prefixes(job, run(solve, models, [[np.array([alpha])] * len(prefixes) for alpha in found]))
        curves = run(validate, models[: job.n_searching])
        chosen = choose_penalties(job.ridge.alpha, curves, label, len(models))
        # The path of the whole set holds the model of the choice: it is not solved once more.
        shares = [prefix.count / prefixes[-1].count for prefix in prefixes[:-1]]
        penalties = [[*(np.array([alphas[k] * share]) for share in shares), alphas] for k in chosen]
        solved = run(solve, models, penalties)
    search = SolvedSearch.join(job.ridge.alpha, job.target, curves, chosen, [paths[-1] for paths in solved])
    whole, *rest = (paths[-1].at(k) for paths, k in zip(solved, chosen, strict=True))
    return [
        *(join_models(first, others, job.binning) for first, *others in zip(*(p[:-1] for p in solved), strict=True)),
        join_models(whole, rest, job.binning, search),
    ]


def _join_prefixes(job: SolveJob, solved: Sequence[Sequence[RidgePath]]) -> list[ExpertModels]:
    """Return the models of every prefix, from the paths of each model."""
    if job.known_global is not None:
        whole = read_models(job.known_global)[-1].global_path
        solved = [[whole] * len(solved[0]), *solved]
    return [join_models(first, rest, job.binning) for first, *rest in zip(*solved, strict=True)]


def _plan_prefixes(job: SolveJob, folds: Sequence[SavedMoments]) -> list[Prefix]:
    """Return the prefixes that have enough spectra in every bin; the whole set must."""
    cells: list[PixelSums] = []
    prefixes = []
    for n_folds, saved in enumerate(folds, start=1):
        of_fold = saved.pixel_sums()
        cells = [PixelSums.merge(pair) for pair in zip(cells, of_fold, strict=True)] if cells else of_fold
        if n_folds not in job.rounds:
            continue
        try:
            require_enough_spectra(job.count_bins([cell.count for cell in cells]), job.ridge, job.binning)
        except TooFewSpectraError:
            # A short prefix may starve a bin: the learning curve starts later.
            if n_folds == len(folds):
                raise
            continue
        whole = PixelSums.merge([cells[k] for k in job.trained_on.cells])
        prefixes.append(Prefix(n_folds, whole.count, shared_scale(whole, job.ridge)))
    return prefixes
