"""What a bin design found: the best division for every number of experts, and the smallest that is good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.design_grid import FineGrid
from pipeline.divisions import Division, Rectangle, best_divisions
from pipeline.moments_files import SavedMoments
from pipeline.selection import total_squares

__all__ = ["DesignSearch", "DrawErrors", "SpreadOfCells", "choose_divisions"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DrawErrors:
    """The Σ(y − ŷ)² over held-out folds of one noise draw, squared label units.

    Attributes
    ----------
    of_global
        Of the global model on every cell, shape (cells,).
    of_bins
        Of the main binning's experts; None for one with too few spectra outside some fold.
    of_rectangles
        Of one expert for every rectangle that has enough spectra outside each fold.
    """

    of_global: FloatArray
    of_bins: Sequence[float | None]
    of_rectangles: Mapping[Rectangle, float]


@dataclass(frozen=True, eq=False)
class SpreadOfCells:
    """Spectra, Σ(y − c) and Σ(y − c)² of every cell over all folds, shapes (cells,)."""

    counts: NDArray[np.int64]
    y_sum: FloatArray
    y_squares: FloatArray

    @classmethod
    def of_folds(cls, folds: Sequence[SavedMoments], label: int) -> SpreadOfCells:
        """Add what the moments of all folds hold of one label."""
        counts, sums, squares = zip(*(saved.label_sums() for saved in folds), strict=True)
        return cls(np.sum(counts, axis=0), np.sum(sums, axis=0)[:, label], np.sum(squares, axis=0)[:, label])

    def total_squares(self, cells: Sequence[int]) -> float:
        """Return Σ(y − ȳ)² of some cells about their common mean."""
        own = list(cells)
        sums = (self.y_sum[own].sum(), self.y_squares[own].sum())
        return float(total_squares(int(self.counts[own].sum()), *(np.array([one]) for one in sums))[0])


@dataclass(frozen=True)
class CrossValidated:
    """R² on held-out folds of some experts and of the global model, on the same spectra; means over noise draws."""

    n_experts: int
    r2_experts: float
    r2_global: float

    @property
    def delta_r2(self) -> float:
        """Headroom."""
        return self.r2_experts - self.r2_global


@dataclass(frozen=True, eq=False)
class DesignSearch:
    """The best divisions of a fine grid.

    Attributes
    ----------
    fine
        The grid.
    divisions
        The best one for every number of experts that there is one for, errors summed over noise draws.
    scores
        Of each division, on the spectra of all fine bins.
    main
        Of the main binning, on the spectra that it covers; None where a fold leaves a bin too few spectra.
    main_is_alike
        Whether both cover the same spectra.
    n_train
        Training spectra in the fine grid.
    """

    fine: FineGrid
    divisions: tuple[Division, ...]
    scores: tuple[CrossValidated, ...]
    main: CrossValidated | None
    main_is_alike: bool
    n_train: int

    @property
    def rectangles(self) -> list[Rectangle]:
        """Every rectangle of some division, once."""
        return sorted({one for division in self.divisions for one in division.rectangles})

    @property
    def best(self) -> int:
        """Which division has the largest ΔR²; of equal ones the first."""
        return int(np.argmax([one.delta_r2 for one in self.scores]))

    def recommend(self, reach: float) -> int | None:
        """Return the first division whose ΔR² is at least ``reach`` times the largest; None if that is not positive."""
        largest = self.scores[self.best].delta_r2
        if not largest > 0:
            return None
        return next(k for k, one in enumerate(self.scores) if one.delta_r2 >= reach * largest)


def choose_divisions(
    fine: FineGrid, main: Sequence[tuple[int, ...]], draws: Sequence[DrawErrors], spread: SpreadOfCells, largest: int
) -> DesignSearch:
    """Find the best division for every number of experts from held-out errors.

    ``R² = 1 − Σ SSE / (draws · Σ(y − ȳ)²)``: every draw of noise has the same spectra and labels.

    Parameters
    ----------
    fine
        The grid.
    main
        The cells of each bin of the main binning.
    draws
        Errors for every noise draw; the choice is one for all.
    spread
        Of the label.
    largest
        Most experts.

    Raises
    ------
    InputError
        If no division has enough spectra in all of its rectangles.
    """
    errors: dict[Rectangle, float] = dict.fromkeys(draws[0].of_rectangles, 0.0)
    for draw in draws:
        for one, error in draw.of_rectangles.items():
            errors[one] += error
    divisions = best_divisions(errors, fine.shape, largest)

    def score(cells: Sequence[int], n_experts: int, error: float) -> CrossValidated:
        total = len(draws) * spread.total_squares(cells)
        of_global = float(np.sum([draw.of_global[list(cells)] for draw in draws]))
        r2 = [1 - sse / total if total > 0 else np.nan for sse in (error, of_global)]
        return CrossValidated(n_experts, *r2)

    of_main = [error for draw in draws for error in draw.of_bins if error is not None]
    covered = tuple(sorted(cell for cells in main for cell in cells))
    complete = len(of_main) == len(draws) * len(main)
    return DesignSearch(
        fine=fine,
        divisions=tuple(divisions),
        scores=tuple(score(fine.covered, len(one.rectangles), one.error) for one in divisions),
        main=score(covered, len(main), float(np.sum(of_main))) if complete else None,
        main_is_alike=covered == fine.covered,
        n_train=int(spread.counts[list(fine.covered)].sum()),
    )
