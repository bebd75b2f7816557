"""From rows of any kind of array to moments per cell and fold, block by block.

The content of a row decides the fold that it belongs to when α is chosen, unless a splitter does (:class:`RowFolds`).
Its columns decide its cell (:class:`Router`). So the moments (:class:`RowSums`) do not depend on the order in which
rows arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import BinGrid
from pipeline.errors import InputError
from pipeline.moments import Moments, MomentsSum, move_origins, round_origin, scale_moments

__all__ = ["BLOCK_ROWS", "Router", "RowFolds", "RowSums", "compute_array", "is_dask", "iterate_blocks", "unwrap_array"]

#: Rows turned to float64 at a time.
BLOCK_ROWS = 8192
#: Folds where ``cv`` is None, as scikit-learn has them.
_USUAL_FOLDS = 5
#: Numbers hashed at a time, so that they stay in the processor's cache.
_CACHED_NUMBERS = 2**16


@dataclass(frozen=True, eq=False)
class RowFolds:
    """The folds of the rows, which come block by block.

    Attributes
    ----------
    n_folds
        How many folds rows are spread over.
    numbers
        The fold of every row as a scikit-learn splitter has it, shape (N,). None where the content of a row decides:
        equal rows then share a fold, so a copy of a training row is never held out.
    """

    n_folds: int
    numbers: NDArray[np.int64] | None = None

    @classmethod
    def plan(cls, cv: Any, n_rows: int | None, y: NDArray[Any] | None = None) -> RowFolds:
        """Return the folds that ``cv`` asks for.

        Parameters
        ----------
        cv
            Number of folds (None is 5), or a scikit-learn splitter or list of splits that holds out every row once.
        n_rows
            Number of all rows, with labels ``y``. None if more may come, which a splitter cannot deal with.

        Raises
        ------
        InputError
            If ``cv`` is none of these.
        """
        count = _USUAL_FOLDS if cv is None else cv
        if isinstance(count, (int, np.integer)) and not isinstance(count, bool):
            if count < 2:
                raise InputError(f"cv must be at least 2 folds, found {count}")
            return cls(int(count))
        if n_rows is None:
            raise InputError(
                f"partial_fit needs cv as a number of folds, found {type(cv).__name__}: a splitter must see all rows"
            )
        from sklearn.model_selection import check_cv  # here: the estimators' module says what to do where it is missing

        try:
            splits = list(check_cv(cv).split(np.zeros((n_rows, 1)), y))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"cv must be a number of folds, a splitter or splits; {error}") from None
        numbers = np.full(n_rows, -1, dtype=np.int64)
        for fold, (train, test) in enumerate(splits):
            both = np.concatenate([np.arange(n_rows)[train], np.arange(n_rows)[test]])
            if len(both) != n_rows or len(np.unique(both)) != n_rows or (numbers[test] >= 0).any():
                raise InputError(_not_once(fold))
            numbers[test] = fold
        if (numbers < 0).any():
            raise InputError(_not_once(len(splits) - 1))
        return cls(len(splits), numbers)

    def assign(self, x: NDArray[Any], start: int) -> NDArray[np.int64]:
        """Return the folds, shape (N,), of rows (N, P) whose first is row ``start`` of all."""
        if self.numbers is not None:
            return self.numbers[start : start + len(x)]
        if self.n_folds == 1:
            return np.zeros(len(x), dtype=np.int64)
        return (_hash_rows(x) % np.uint64(self.n_folds)).astype(np.int64)


def _not_once(fold: int) -> str:
    return (
        f"cv must hold out every row exactly once and train on all others, split {fold} does not; use a splitter such "
        "as KFold or GroupKFold, or a number of folds"
    )


def _hash_rows(x: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a hash of every row's values: the same in float32 and float64, and for 0 and −0."""
    factors = _mix(np.arange(1, x.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    hashes = np.empty(len(x), dtype=np.uint64)
    step = max(1, _CACHED_NUMBERS // x.shape[1])
    for start in range(0, len(x), step):
        numbers = np.ascontiguousarray(x[start : start + step], dtype=np.float64) + 0.0
        bits = numbers.view(np.uint64)
        # Whole numbers differ in their high bits alone, and a product carries neither those nor a sign down.
        bits ^= bits >> np.uint64(31)
        hashes[start : start + step] = bits @ factors
    return _mix(hashes)


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all (the finaliser of SplitMix64, Steele et al. 2014); products wrap around."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


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
    """Yield the blocks of rows of a Dask array, one in memory at a time. Any other array is one block."""
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
            # A row of weight 0 counts as absent: it shapes no origin and fills no fold.
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
        """Return the moments of every (cell, fold), and how many times larger the weights of their rows are here.

        Their origins depend on all rows together, not on which came first. Small weights are made larger by a power of
        two, which rounds nothing. So the count of two light rows is not below two.
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
