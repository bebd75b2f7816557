"""Rows of any kind of array, block by block, into moments per cell and fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import BinGrid
from pipeline.estimators_folds import RowFolds
from pipeline.moments import Moments, MomentsSum
from pipeline.moments_frames import move_origins, round_origin, scale_moments

__all__ = ["BLOCK_ROWS", "Router", "RowSums", "compute_array", "is_dask", "iterate_blocks", "unwrap_array"]

#: Rows turned to float64 at a time.
BLOCK_ROWS = 8192


def unwrap_array(values: Any) -> Any:
    """Return the array inside an ``xarray.DataArray``; anything else is returned as it is."""
    return values.data if hasattr(values, "dims") and hasattr(values, "data") else values


def is_dask(values: Any) -> bool:
    """Whether these are the chunks of a Dask array."""
    return hasattr(values, "__dask_graph__") and hasattr(values, "numblocks")


def compute_array(values: Any) -> Any:
    """Return an array in memory; None and lists are returned as they are."""
    values = unwrap_array(values)
    return values.compute() if is_dask(values) else values


def iterate_blocks(x: Any) -> Iterator[Any]:
    """Yield the blocks of rows of a Dask array, one in memory at a time; any other array is one block."""
    if not is_dask(x):
        yield x
        return
    for k in range(x.numblocks[0]):
        block = x.blocks[k].compute()
        if len(block):
            yield block


@dataclass(frozen=True, eq=False)
class Router:
    """Which cell a row belongs to, and which of its columns are pixels.

    Attributes
    ----------
    grid
        The bins; None for one cell alone.
    places
        The column of X of each of the grid's columns.
    """

    grid: BinGrid | None = None
    places: tuple[int, ...] = ()

    @property
    def n_cells(self) -> int:
        """The bins and, last, the outside; 1 without bins."""
        return 1 if self.grid is None else self.grid.n_cells

    def cells(self, x: NDArray[Any]) -> NDArray[np.int64]:
        """Return the cell of every row, shape (N,)."""
        if self.grid is None:
            return np.zeros(len(x), dtype=np.int64)
        columns = zip(self.grid.columns, self.places, strict=True)
        return self.grid.cells({name: x[:, place] for name, place in columns})

    def pixels(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the columns that are pixels, shape (N, P)."""
        return np.delete(x, self.places, axis=1) if self.places else x


class RowSums:
    """Moments of the rows seen so far, per cell and fold, about origins near the first rows.

    Attributes
    ----------
    n_rows
        Rows of positive weight.
    n_outputs
        Q, or None where ``y`` has one dimension.
    dtype
        float32 if all rows were, else float64.
    """

    def __init__(self, router: Router, folds: RowFolds) -> None:
        self.router, self.folds = router, folds
        self.n_rows = 0
        self.n_outputs: int | None = None
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self._origins: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._sums: dict[tuple[int, int], MomentsSum] | None = {}

    def add(self, x: NDArray[Any], y: NDArray[Any], weights: NDArray[Any] | None, folds: NDArray[Any]) -> None:
        """Add rows (N, columns) with labels (N,) or (N, Q), weights (N,) and folds (N,)."""
        self.n_outputs = None if y.ndim == 1 else y.shape[1]
        self.dtype = np.result_type(self.dtype, x.dtype)
        for start in range(0, len(x), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            self._add_block(x[part], y[part], None if weights is None else weights[part], folds[part])

    def _add_block(self, x: NDArray[Any], y: NDArray[Any], weights: NDArray[Any] | None, folds: NDArray[Any]) -> None:
        if weights is not None:
            # A row of no weight is as if it were not there: it shapes no origin and fills no fold.
            x, y, folds, weights = x[weights > 0], y[weights > 0], folds[weights > 0], weights[weights > 0]
        if not len(x):
            return
        cells, pixels = self.router.cells(x), self.router.pixels(x)
        labels = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        if self._origins is None:
            self._origins = (
                round_origin(pixels.mean(axis=0, dtype=np.float64)),
                round_origin(labels.mean(axis=0)),
            )
        assert self._sums is not None
        for cell, fold in np.unique(np.column_stack([cells, folds]), axis=0).tolist():
            rows = (cells == cell) & (folds == fold)
            moments = Moments.from_samples(
                pixels[rows],
                labels[rows],
                x_origin=self._origins[0],
                y_origin=self._origins[1],
                weights=None if weights is None else weights[rows],
            )
            self._sums.setdefault((cell, fold), MomentsSum()).add(moments)
        self.n_rows += len(x)

    @property
    def released(self) -> bool:
        """Whether the moments were dropped."""
        return self._sums is None

    def release(self) -> None:
        """Drop the moments; no rows can be added afterwards."""
        self._sums = None

    def parts(self) -> tuple[dict[tuple[int, int], Moments], float]:
        """Return the moments of every (cell, fold), and how many times more their rows weigh here.

        Their origins depend on all rows alone, not on which came first. Small weights are made larger by a power of
        two, which rounds nothing, so that the count of two light rows is not below two.
        """
        assert self._sums is not None
        assert self._origins is not None
        parts = {place: total.moments for place, total in sorted(self._sums.items())}
        count = sum(part.count for part in parts.values())
        means = [
            origin + np.sum([getattr(part, name) for part in parts.values()], axis=0) / count
            for origin, name in zip(self._origins, ("x_sum", "y_sum"), strict=True)
        ]
        factor = float(2.0 ** np.ceil(np.log2(max(self.n_rows / count, 1.0))))
        for place, part in parts.items():
            moved = move_origins(part, round_origin(means[0]), round_origin(means[1]))
            parts[place] = moved if factor == 1 else scale_moments(moved, weight=factor)
        return parts, factor
