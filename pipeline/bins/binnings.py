"""Several ways to divide the same spectra among experts, all from one pass.

A *binning* is a grid of bins with one expert each. The pass accumulates moments of *cells* so fine that every bin of
every binning is a sum of them. Two spectra share a cell exactly if every binning puts them into the same bin. Finer
cells cost memory and disk. They cost no arithmetic, because every spectrum is added once for any number of cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.bins.grid import OUTSIDE, BinGrid
from pipeline.config import MAIN_BINNING

__all__ = ["Binning", "CellGrid", "crossed_name", "plan_binnings", "quantile_edges"]

#: The binning that the verdict is about. The others are compared with it.
MAIN = MAIN_BINNING


@dataclass(frozen=True, eq=False)
class CellGrid:
    """The coarsest cells from which the bins of several grids can be summed.

    A cell is a combination of one bin (or the outside) from each grid, if any spectrum can lie in it. Cells are
    numbered in the order of the grids, with the outside after a grid's bins. For a single grid the cells are its bins
    and, last, the outside.

    Attributes
    ----------
    grids
        At least one.
    """

    grids: tuple[BinGrid, ...]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that decide a spectrum's cell, in order."""
        return tuple(sorted({column for grid in self.grids for column in grid.columns}))

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """The bin of each cell in each grid, shape (cells, grids); ``n_bins`` stands for the outside."""
        # Test points at, between and beyond all edges. Every possible combination of bins occurs at one of them.
        points = []
        for column in self.columns:
            edges = np.unique([edge for grid in self.grids for edge in grid.edges.get(column, ())])
            between = (edges[1:] + edges[:-1]) / 2
            points.append(np.concatenate([[edges[0] - 1], edges, between, [edges[-1] + 1]]))
        table = np.array(list(product(*points)))
        values = {column: table[:, k] for k, column in enumerate(self.columns)}
        return np.unique(np.column_stack([grid.cells(values) for grid in self.grids]), axis=0)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._places)

    def cells(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.int64]:
        """Assign every spectrum to its cell, shape (N,), from per-spectrum values; see :meth:`BinGrid.assign`."""
        sizes = [grid.n_cells for grid in self.grids]
        codes = np.ravel_multi_index([grid.cells(columns) for grid in self.grids], sizes)
        return np.asarray(np.searchsorted(np.ravel_multi_index(list(self._places.T), sizes), codes), dtype=np.int64)

    def members(self, grid: int) -> tuple[tuple[int, ...], ...]:
        """Return the cells of every bin of a grid, and last of its outside."""
        of_grid = self._places[:, grid]
        return tuple(tuple(np.flatnonzero(of_grid == k).tolist()) for k in range(self.grids[grid].n_cells))


@dataclass(frozen=True, eq=False)
class Binning:
    """One way to divide spectra among experts: the bins of a grid, some of them merged.

    Attributes
    ----------
    name
        Its name in the configuration. The verdict is about :data:`MAIN`.
    columns
        The columns by which it divides.
    base
        The grid.
    groups
        For every bin of the grid, the number of its expert; :data:`OUTSIDE` if it has none.
    bin_names
        For every expert, one name for each column.
    members
        The cells of every expert.
    """

    name: str
    columns: tuple[str, ...]
    base: BinGrid
    groups: tuple[int, ...]
    bin_names: tuple[tuple[str, ...], ...]
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of_grid(cls, name: str, grid: BinGrid, cells: Sequence[tuple[int, ...]]) -> Binning:
        """Return the binning with an expert for each bin of a grid; ``cells`` holds the cells of every bin."""
        return cls(name, grid.columns, grid, tuple(range(grid.n_bins)), grid.bin_names, tuple(cells))

    @classmethod
    def cross(cls, first: Binning, second: Binning) -> Binning:
        """Return the binning with an expert for each pair of bins of two grids on different columns.

        The pair (i, j) has the number i · K₂ + j. Cells are finer than both grids, so each pair is a sum of cells.
        """
        grid = BinGrid(
            {**first.base.edges, **second.base.edges}, {**first.base.interval_names, **second.base.interval_names}
        )
        members = tuple(tuple(sorted(set(a) & set(b))) for a, b in product(first.members, second.members))
        return cls.of_grid(crossed_name(first.name, second.name), grid, members)

    @property
    def n_bins(self) -> int:
        """Number of experts."""
        return len(self.members)

    @property
    def covered(self) -> tuple[int, ...]:
        """The cells of all experts, in order."""
        return tuple(sorted(cell for cells in self.members for cell in cells))

    def describe(self, number: int) -> str:
        """Return an expert's bin in words, as :meth:`BinGrid.describe` does."""
        return f"bin {number} ({', '.join(self.bin_names[number])})"

    def assign(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.int64]:
        """Assign every spectrum to its expert, shape (N,); :data:`OUTSIDE` if it has none."""
        return np.array([*self.groups, OUTSIDE])[self.base.assign(columns)]


def crossed_name(first: str, second: str) -> str:
    """Return the name of the binning that combines two others."""
    return f"{first} × {second}"


def plan_binnings(
    main: BinGrid, others: Mapping[str, BinGrid], *, ablation: bool, fine: BinGrid | None = None
) -> tuple[CellGrid, list[Binning]]:
    """Return the cells of some binnings, and the binnings, the main one first.

    Parameters
    ----------
    main
        The grid that the verdict is about.
    others
        Further grids by name, on any columns.
    ablation
        Whether to add one binning for each column of the main grid, if it has several. Its bins are the main grid's
        bins, merged along all other columns. They cover the same spectra, so the difference in score is due to the
        other columns.
    fine
        A grid whose bins must be sums of cells, too, although it is no binning. It comes last.
    """
    cells = CellGrid((main, *others.values(), *([fine] if fine is not None else [])))
    of_main = cells.members(0)[:-1]
    binnings = [Binning.of_grid(MAIN, main, of_main)]
    if ablation and len(main.columns) > 1:
        binnings += [_project(main, of_main, axis) for axis in range(len(main.columns))]
    binnings += [
        Binning.of_grid(name, grid, cells.members(k)[:-1]) for k, (name, grid) in enumerate(others.items(), start=1)
    ]
    return cells, binnings


def _project(main: BinGrid, members: Sequence[tuple[int, ...]], axis: int) -> Binning:
    column = main.columns[axis]
    groups = tuple(place[axis] for place in np.ndindex(main.shape))
    merged: list[list[int]] = [[] for _ in range(main.shape[axis])]
    for group, cells in zip(groups, members, strict=True):
        merged[group] += cells
    names = tuple((name,) for name in main.interval_names[column])
    return Binning(f"{column} only", (column,), main, groups, names, tuple(tuple(sorted(own)) for own in merged))


def quantile_edges(train: Iterable[ArrayLike], test: Iterable[ArrayLike], parts: int) -> tuple[float, ...]:
    """Return edges that divide the training spectra into equal parts and cover all spectra.

    Parameters
    ----------
    train, test
        A column's values, in blocks.
    parts
        Number of bins.

    Returns
    -------
    tuple of float
        ``parts + 1`` increasing numbers, or fewer if many spectra share a value. They are quantiles of the training
        spectra; the outer ones are moved to the smallest and the largest value of all spectra.
    """
    of_train = np.concatenate([np.asarray(block, dtype=np.float64) for block in train])
    of_test = np.concatenate([np.asarray(block, dtype=np.float64) for block in test])
    edges = np.nanquantile(of_train, np.linspace(0, 1, parts + 1))
    edges[0], edges[-1] = np.nanmin([edges[0], *of_test]), np.nanmax([edges[-1], *of_test])
    return tuple(np.unique(edges).tolist())
