"""Models for growing training sets, solved where the moments are: one task for each noise and binning.

A thread takes one model at a time. It adds up the folds of the model's cells, and solves the ridge system after each
fold. Whatever the number of cells and folds, it holds one sum, one Gram matrix that is being read, and one dense
system, all in memory that the task lends it.

A penalty may be searched for. Every model is then first tried on each fold, trained on the others, and the choice is
made once, on the whole training set. The learning curve takes the chosen α in proportion to its spectra: α·n/N for a
prefix of n of N spectra. So the penalty per spectrum is the same all along the curve, and the models are comparable.

The first half of this module is about one model, the second half about the jobs that solve all models of a noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import Progress, SilentProgress
from pipeline.bins import Binning
from pipeline.config import AlphaSearch, RidgeConfig
from pipeline.moments import Moments, MomentsSum, PixelSums, PredictionSums, SavedMoments, sum_predictions
from pipeline.ridge.models import (
    ExpertModels,
    TooFewSpectraError,
    join_models,
    read_models,
    require_enough_spectra,
    require_searchable,
    shared_scale,
    trained_cells,
)
from pipeline.ridge.penalties import (
    CrossValidation,
    SolvedSearch,
    choose_penalties,
    held_out_errors,
    resolve_alpha,
    total_squares,
)
from pipeline.ridge.ridge import RidgePath, pixel_scale, solve_ridge_path
from pipeline.ridge.workers import SolveMemory, run_jobs, solving_threads
from pipeline.schema import LABELS

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "ModelCells",
    "Prefix",
    "SolveJob",
    "cross_validate_cells",
    "held_out_penalties",
    "held_out_scales",
    "predict_held_out",
    "solve_folders",
    "solve_held_out",
    "solve_job",
    "solve_prefixes",
]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ModelCells:
    """The cells whose spectra train a model, and whether it scales pixels by these alone or by the shared scale."""

    cells: tuple[int, ...]
    own_scale: bool


@dataclass(frozen=True)
class Prefix:
    """The first folds, as a training set: their number, the global model's spectra, and the shared scale (P,)."""

    n_folds: int
    count: int
    scale: FloatArray


def solve_prefixes(
    folds: Sequence[SavedMoments],
    model: ModelCells,
    prefixes: Sequence[Prefix],
    penalties: Sequence[FloatArray],
    memory: SolveMemory,
) -> Iterator[RidgePath]:
    """Yield a model's path for every prefix of the folds.

    Parameters
    ----------
    folds
        The moments of each fold.
    model
        The cells that train it.
    prefixes
        Growing training sets.
    penalties
        For each prefix the penalties of its path, shapes (A,).
    memory
        To work in.
    """
    total = MomentsSum(memory.total)
    n_folds = 0
    for prefix, alphas in zip(prefixes, penalties, strict=True):
        for saved in folds[n_folds : prefix.n_folds]:
            for part in _iter_parts(saved, model, memory):
                total.add(part)
        n_folds = prefix.n_folds
        scale = pixel_scale(total.moments) if model.own_scale else prefix.scale
        yield solve_ridge_path(total.moments, alphas, scale, memory.system)


def cross_validate_cells(
    folds: Sequence[SavedMoments],
    model: ModelCells,
    scales: Sequence[FloatArray],
    alphas: FloatArray,
    memory: SolveMemory,
) -> CrossValidation:
    """Try penalties on every fold in turn, trained on the others, as :func:`pipeline.ridge.penalties.cross_validate`.

    The other folds are added up anew for each one held out. The total less one fold would be cheaper, but it cancels
    where a pixel varies in one fold alone. For the few folds of an experiment the sums cost less than the F·A
    factorisations.

    Parameters
    ----------
    folds
        The moments of each of F folds.
    model
        The cells that train it, and whose held-out spectra judge it.
    scales
        The shared scale of the folds without each one, shapes (P,).
    alphas
        Penalties, shape (A,), increasing.
    memory
        To work in.
    """
    read = _fold_reader(folds, model, memory)
    paths = _iter_held_out(read, model, scales, [alphas] * len(folds), memory)
    errors = [held_out_errors(read(held_out), path) for held_out, path in enumerate(paths)]
    return CrossValidation(alphas, np.stack(errors), _total_squares(folds, model.cells))


def predict_held_out(
    folds: Sequence[SavedMoments],
    model: ModelCells,
    judged: Sequence[int],
    scales: Sequence[FloatArray],
    alphas: Sequence[FloatArray],
    memory: SolveMemory,
) -> Iterator[PredictionSums]:
    """Yield the joint sums of labels and predictions on every fold, by the model trained on the others.

    Parameters
    ----------
    folds, model, scales, memory
        See :func:`cross_validate_cells`.
    judged
        The cells whose spectra are predicted.
    alphas
        The penalty of each fold's model, shapes (1,).
    """
    paths = solve_held_out(folds, model, scales, alphas, memory)
    for saved, path in zip(folds, paths, strict=True):
        # The training sum has been solved: its place is free.
        moments = _merge(saved, memory.total, ModelCells(tuple(judged), False), memory)
        yield sum_predictions(moments, path.weights, path.intercepts)


def solve_held_out(
    folds: Sequence[SavedMoments],
    model: ModelCells,
    scales: Sequence[FloatArray],
    alphas: Sequence[FloatArray],
    memory: SolveMemory,
) -> Iterator[RidgePath]:
    """Yield the model trained without the first fold, without the second, …; see :func:`predict_held_out`."""
    return _iter_held_out(_fold_reader(folds, model, memory), model, scales, alphas, memory)


def held_out_scales(folds: Sequence[SavedMoments], trained_on: Sequence[int], ridge: RidgeConfig) -> list[FloatArray]:
    """Return the shared scale of some cells' spectra, left-out fold by left-out fold, shapes (P,).

    A fold has no part in the scale of the models that it judges.
    """
    of_folds = [saved.sum_pixels(trained_on) for saved in folds]
    return [
        shared_scale(PixelSums.merge([one for k, one in enumerate(of_folds) if k != held_out]), ridge)
        for held_out in range(len(folds))
    ]


def held_out_penalties(folds: Sequence[SavedMoments], model: ModelCells, alpha: float) -> list[FloatArray]:
    """Return a model's penalty when each fold is left out, shapes (1,).

    The penalty per spectrum stays the same, so the total shrinks with the training set.
    """
    counts = np.array([sum(saved.counts[cell] for cell in model.cells) for saved in folds])
    return [np.array([alpha * (1 - count / counts.sum())]) for count in counts]


def _fold_reader(folds: Sequence[SavedMoments], model: ModelCells, memory: SolveMemory) -> Callable[[int], Moments]:
    """Return a function that gives the moments of a model's cells in a fold. They are valid until its next call."""
    held: list[Moments] = []
    if not folds[0].is_tiled:  # they are small, and unpacking them takes as long as solving
        held = [_merge(saved, memory.total, model, memory) for saved in folds]
    elif len(memory.folds) >= len(folds):
        held = [_merge(*each, model, memory) for each in zip(folds, memory.folds, strict=True)]

    def read(fold: int) -> Moments:
        # Merged in either case, so that the bits do not depend on what there is room for.
        return held[fold] if held else _merge(folds[fold], memory.folds[0], model, memory)

    return read


def _iter_held_out(
    read: Callable[[int], Moments],
    model: ModelCells,
    scales: Sequence[FloatArray],
    alphas: Sequence[FloatArray],
    memory: SolveMemory,
) -> Iterator[RidgePath]:
    """Yield the path trained without the first fold, without the second, …

    While the caller holds a path, ``memory.total`` is free.
    """
    for held_out, (own_scale, penalties) in enumerate(zip(scales, alphas, strict=True)):
        total = MomentsSum(memory.total)
        for k in range(len(scales)):
            if k != held_out:
                total.add(read(k))
        scale = pixel_scale(total.moments) if model.own_scale else own_scale
        yield solve_ridge_path(total.moments, penalties, scale, memory.system)


def _iter_parts(saved: SavedMoments, model: ModelCells, memory: SolveMemory) -> Iterator[Moments]:
    """Read a fold's moments of a model's cells, each in the place of the one before.

    Empty cells are skipped, unless all are empty: then one of them stands for all.
    """
    for cell in [cell for cell in model.cells if saved.counts[cell]] or model.cells[:1]:
        yield saved.read(cell, memory.content)


def _merge(saved: SavedMoments, tiles: FloatArray, model: ModelCells, memory: SolveMemory) -> Moments:
    total = MomentsSum(tiles)
    for part in _iter_parts(saved, model, memory):
        total.add(part)
    return total.moments


def _total_squares(folds: Sequence[SavedMoments], cells: Sequence[int]) -> FloatArray:
    """Return Σ(y − ȳ)² of some cells over all folds, shape (Q,)."""
    count, y_sum, y_squares = 0, 0.0, 0.0
    for saved in folds:
        counts, sums, squares = saved.label_sums()
        for cell in cells:
            count, y_sum, y_squares = count + counts[cell], y_sum + sums[cell], y_squares + squares[cell]
    return total_squares(count, np.asarray(y_sum), np.asarray(y_squares))


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
        Penalty, scaling, and which spectra train the global model; see :func:`pipeline.ridge.models.solve_experts`,
        which gives the same models from moments in memory.
    covered
        The cells that ``train_on: covered`` trains the global model on.
    prefixes
        Numbers of first folds to solve for. The last number is that of all folds. By default: the first fold, the first
        two, …
    target
        The label whose held-out R² decides where ``ridge.alpha`` is a search.
    threads
        Models solved side by side, at most; each needs :func:`pipeline.ridge.workers.solve_memory`.
    holds_folds
        While a penalty is searched for, hold the sums of all folds instead of reading them anew for each fold. The
        bits are the same.
    known_global
        A file of models whose last global model serves here, too. Only the experts are solved then, or search for
        their penalties.
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
    jobs: Sequence[SolveJob], *, client: Client | None = None, progress: Progress | None = None, title: str = "solve"
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
    title
        What it is called then.

    Yields
    ------
    tuple of int and list of ExpertModels
        Which of the jobs, and its models: one set for each number of folds. Short prefixes in which a bin has too few
        spectra are left out.

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
    yield from run_jobs(client, solve_job, jobs, subjects, ("solve", title, "solving"), progress or SilentProgress())


def solve_job(job: SolveJob, report: Callable[[int], None]) -> list[ExpertModels]:
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
        with solving_threads(folds[0].tiled_pixels, job.threads) as run:
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
    with solving_threads(folds[0].tiled_pixels, job.threads, held_folds) as run:
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
            # A short prefix may have too few spectra in a bin: the learning curve then starts later.
            if n_folds == len(folds):
                raise
            continue
        whole = PixelSums.merge([cells[k] for k in job.trained_on.cells])
        prefixes.append(Prefix(n_folds, whole.count, shared_scale(whole, job.ridge)))
    return prefixes
