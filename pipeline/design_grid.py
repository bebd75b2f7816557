"""The fine grid of a bin design: its rectangles as cells of the pass, in words, and as binnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.binnings import Binning, CellGrid
from pipeline.bins import BinGrid
from pipeline.divisions import Rectangle, iter_rectangles

__all__ = ["FineGrid"]


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
