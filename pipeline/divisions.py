"""The best divisions of a fine grid into few rectangles, for every number of them.

A division is made by cuts: a rectangle of fine bins is split by one straight line, each part again, and so on. Because
errors add up over parts, the best division into k rectangles is found exactly, from those of all smaller rectangles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

__all__ = ["Division", "Rectangle", "best_divisions", "iter_rectangles"]


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
