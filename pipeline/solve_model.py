"""One model, trained on the cells of a list: its path over growing training sets, and its errors on held-out folds.

Gram matrices are read one at a time into memory that the caller lends, whatever the number of cells and folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RidgeConfig
from pipeline.models import shared_scale
from pipeline.moments import Moments, MomentsSum, PixelSums
from pipeline.moments_files import SavedMoments
from pipeline.moments_predictions import PredictionSums, sum_predictions
from pipeline.ridge import RidgePath, pixel_scale, solve_ridge_path
from pipeline.selection import CrossValidation, held_out_errors, total_squares
from pipeline.solve_threads import SolveMemory

__all__ = [
    "ModelCells",
    "Prefix",
    "cross_validate_cells",
    "held_out_penalties",
    "held_out_scales",
    "predict_held_out",
    "solve_held_out",
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
    """Try penalties on every fold in turn, trained on the others, as :func:`pipeline.selection.cross_validate`.

    The other folds are added up for each one held out: that is exact where the total less one cancels (a pixel that is
    constant but in one fold), and for the few folds of an experiment costs less than the F·A factorisations.

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
    """Return the shared scale of some cells' spectra without each fold, shapes (P,): it plays no part in its trial."""
    of_folds = [PixelSums.merge([sums[k] for k in trained_on]) for sums in (saved.pixel_sums() for saved in folds)]
    return [
        shared_scale(PixelSums.merge([one for k, one in enumerate(of_folds) if k != held_out]), ridge)
        for held_out in range(len(folds))
    ]


def held_out_penalties(folds: Sequence[SavedMoments], model: ModelCells, alpha: float) -> list[FloatArray]:
    """Return a model's penalty without each fold, shapes (1,): it shrinks with the spectra, so that of each stays."""
    counts = np.array([sum(saved.counts[cell] for cell in model.cells) for saved in folds])
    return [np.array([alpha * (1 - count / counts.sum())]) for count in counts]


def _fold_reader(folds: Sequence[SavedMoments], model: ModelCells, memory: SolveMemory) -> Callable[[int], Moments]:
    """Return what gives the moments of a model's cells in a fold, valid until the next call."""
    holds_all = len(memory.folds) >= len(folds)
    held = [_merge(*each, model, memory) for each in zip(folds, memory.folds, strict=True)] if holds_all else []

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
    """Yield the path trained without the first fold, without the second, …; ``memory.total`` is then free."""
    for held_out, (own_scale, penalties) in enumerate(zip(scales, alphas, strict=True)):
        total = MomentsSum(memory.total)
        for k in range(len(scales)):
            if k != held_out:
                total.add(read(k))
        scale = pixel_scale(total.moments) if model.own_scale else own_scale
        yield solve_ridge_path(total.moments, penalties, scale, memory.system)


def _iter_parts(saved: SavedMoments, model: ModelCells, memory: SolveMemory) -> Iterator[Moments]:
    """Read a fold's moments of a model's cells, each in the place of the last; empty ones only if all are."""
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
