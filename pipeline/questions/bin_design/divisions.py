"""What a bin design found: the best division for every number of experts, and the smallest that is good enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import BinGrid, Binning, CellGrid
from pipeline.errors import InputError
from pipeline.moments import SavedMoments
from pipeline.ridge import total_squares

__all__ = [
    "DesignSearch",
    "Division",
    "DrawErrors",
    "FineGrid",
    "Rectangle",
    "SpreadOfCells",
    "best_divisions",
    "choose_divisions",
    "iter_rectangles",
]

# --- The best divisions of a fine grid into few rectangles, for every number of them.
#
# A division is made by cuts: a rectangle of fine bins is split by one straight line, each part again, and so on.
# Because errors add up over parts, the best division into k rectangles is found exactly, from those of all smaller
# rectangles.


@dataclass(frozen=True, order=True)
class Rectangle:
    """Fine bins ``rows[0] ≤ row < rows[1]`` and ``columns[0] ≤ column < columns[1]``."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    def iter_cuts(self) -> Iterator[tuple[Rectangle, Rectangle]]:
        """Yield the two parts of every straight cut."""
        for cut in range(self.rows[0] + 1, self.rows[1]):
            yield Rectangle((self.rows[0], cut), self.columns), Rectangle((cut, self.rows[1]), self.columns)
        for cut in range(self.columns[0] + 1, self.columns[1]):
            yield Rectangle(self.rows, (self.columns[0], cut)), Rectangle(self.rows, (cut, self.columns[1]))


@dataclass(frozen=True)
class Division:
    """Rectangles that cover the grid once, and the sum of their errors."""

    rectangles: tuple[Rectangle, ...]
    error: float


def iter_rectangles(shape: tuple[int, int]) -> Iterator[Rectangle]:
    """Yield every rectangle of a grid of this shape, smaller ones first."""
    n_rows, n_columns = shape
    for height in range(1, n_rows + 1):
        for width in range(1, n_columns + 1):
            for row in range(n_rows - height + 1):
                for column in range(n_columns - width + 1):
                    yield Rectangle((row, row + height), (column, column + width))


def best_divisions(errors: Mapping[Rectangle, float], shape: tuple[int, int], largest: int) -> list[Division]:
    """Return the division of least error for 1, 2, … ``largest`` rectangles, those that there are.

    Parameters
    ----------
    errors
        The error of one expert for each rectangle, such as a cross-validated sum of squares; rectangles that cannot
        have one (too few spectra) are left out.
    shape
        Rows and columns of the fine grid.
    largest
        Most rectangles.

    Returns
    -------
    list of Division
        By increasing number of rectangles; ties go to the first cut. Numbers that no division reaches are left out.

    Raises
    ------
    InputError
        If no division is possible at all.
    """
    best: dict[Rectangle, NDArray[np.float64]] = {}
    rebuild: dict[tuple[Rectangle, int], tuple[Rectangle, int, Rectangle, int]] = {}
    for whole in iter_rectangles(shape):
        found = np.full(largest + 1, np.inf)
        found[1] = errors.get(whole, np.inf)
        for first, second in whole.iter_cuts():
            for k in range(1, largest):
                if not np.isfinite(best[first][k]):
                    continue
                sums = best[first][k] + best[second][1 : largest + 1 - k]
                for more in np.flatnonzero(sums < found[k + 1 :]) + 1:
                    found[k + more] = sums[more - 1]
                    rebuild[whole, int(k + more)] = (first, k, second, int(more))
        best[whole] = found
    grid = Rectangle((0, shape[0]), (0, shape[1]))
    divisions = [
        Division(tuple(sorted(_collect(rebuild.get, grid, k))), float(best[grid][k]))
        for k in range(1, largest + 1)
        if np.isfinite(best[grid][k])
    ]
    if not divisions:
        raise InputError("no division of the fine grid has enough spectra in all of its parts; use wider fine bins")
    return divisions


def _collect(
    rebuild: Callable[[tuple[Rectangle, int]], tuple[Rectangle, int, Rectangle, int] | None], whole: Rectangle, k: int
) -> Iterator[Rectangle]:
    parts = rebuild((whole, k)) if k > 1 else None
    if parts is None:
        yield whole
        return
    first, n_first, second, n_second = parts
    yield from _collect(rebuild, first, n_first)
    yield from _collect(rebuild, second, n_second)


# --- The fine grid of a bin design: its rectangles as cells of the pass, in words, and as binnings.


@dataclass(frozen=True, eq=False)
class FineGrid:
    """A grid of two columns whose bins are to be merged into rectangles.

    Attributes
    ----------
    grid
        The fine bins; rows are the first column's intervals, columns the second one's.
    members
        The cells of every fine bin.
    """

    grid: BinGrid
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of_cells(cls, cells: CellGrid) -> FineGrid:
        """Return the fine grid of a run, which is the last one that its cells tell apart."""
        last = len(cells.grids) - 1
        return cls(cells.grids[last], cells.members(last)[:-1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        n_rows, n_columns = self.grid.shape
        return n_rows, n_columns

    @cached_property
    def rectangles(self) -> tuple[Rectangle, ...]:
        """Every rectangle, smaller ones first."""
        return tuple(iter_rectangles(self.shape))

    @cached_property
    def covered(self) -> tuple[int, ...]:
        """The cells of all fine bins."""
        return tuple(sorted(cell for cells in self.members for cell in cells))

    def bins_of(self, one: Rectangle) -> list[int]:
        """Return the fine bins of a rectangle."""
        return [row * self.shape[1] + column for row, column in product(range(*one.rows), range(*one.columns))]

    def cells_of(self, one: Rectangle) -> tuple[int, ...]:
        """Return the cells of a rectangle."""
        return tuple(sorted(cell for number in self.bins_of(one) for cell in self.members[number]))

    def count(self, one: Rectangle, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a rectangle's spectra in every fold, shape (F,), from those of every cell, shape (F, cells)."""
        return np.asarray(counts[:, list(self.cells_of(one))].sum(axis=1))

    def spans_of(self, one: Rectangle) -> dict[str, tuple[float, float]]:
        """Return a rectangle's lower and upper edge by column."""
        spans = {}
        for (column, edges), (first, last) in zip(self.grid.edges.items(), (one.rows, one.columns), strict=True):
            spans[column] = (float(edges[first]), float(edges[last]))
        return spans

    def describe(self, one: Rectangle) -> str:
        """Return a rectangle in words, for example ``T_eff 3750–4500, M_H −2 to 0.5``."""
        # As a grid of that one bin would: a dash, or "to" beside a minus sign.
        named = BinGrid(self.spans_of(one)).interval_names
        return ", ".join(f"{column} {names[0]}" for column, names in named.items())

    def edges_of(self, rectangles: Sequence[Rectangle]) -> dict[str, list[float]] | None:
        """Return the edges by column of a division that is itself a grid; None of one that is not."""
        cuts = [sorted({place for one in rectangles for place in pair(one)}) for pair in (_rows, _columns)]
        if math.prod(len(places) - 1 for places in cuts) != len(rectangles):
            return None
        return {
            column: [float(edges[place]) for place in places]
            for (column, edges), places in zip(self.grid.edges.items(), cuts, strict=True)
        }

    def divide(self, name: str, rectangles: Sequence[Rectangle]) -> Binning:
        """Return the binning with an expert for each of some rectangles that share no fine bin."""
        groups = np.full(self.grid.n_bins, -1)
        for number, one in enumerate(rectangles):
            groups[self.bins_of(one)] = number
        names = tuple((self.describe(one),) for one in rectangles)
        members = tuple(self.cells_of(one) for one in rectangles)
        return Binning(name, self.grid.columns, self.grid, tuple(groups.tolist()), names, members)


def _rows(one: Rectangle) -> tuple[int, int]:
    return one.rows


def _columns(one: Rectangle) -> tuple[int, int]:
    return one.columns


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
