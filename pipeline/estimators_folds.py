"""Which fold a row belongs to, for choosing α: decided by the row itself, so that no order of arrival matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

__all__ = ["RowFolds"]

_USUAL_FOLDS = 5
#: Numbers hashed at a time, so that they stay in the processor's cache.
_CACHED_NUMBERS = 2**16


@dataclass(frozen=True, eq=False)
class RowFolds:
    """The folds of the rows, which come block by block.

    Attributes
    ----------
    n_folds
        How many folds rows are spread over by their content; equal rows share a fold, so that a copy of a training
        row is never held out.
    numbers
        The fold of every row as a scikit-learn splitter has it, shape (N,); None where the content decides.
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
            Rows in all, with labels ``y``; None if more may come, where a splitter cannot do.

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
        from sklearn.model_selection import check_cv  # here: estimators_base says what to do where it is missing

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
        # Whole numbers differ in their high bits alone, which a product does not carry down, nor a sign.
        bits ^= bits >> np.uint64(31)
        hashes[start : start + step] = bits @ factors
    return _mix(hashes)


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all (the finaliser of SplitMix64, Steele et al. 2014); products wrap around."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
