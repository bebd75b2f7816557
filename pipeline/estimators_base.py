"""What the estimators share: seeing rows, solving late, predicting at once or lazily."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.estimators_folds import RowFolds
from pipeline.estimators_rows import (
    BLOCK_ROWS,
    Router,
    RowSums,
    compute_array,
    is_dask,
    iterate_blocks,
    unwrap_array,
)
from pipeline.moments import Moments
from pipeline.ridge import pixel_scale, solve_ridge_path
from pipeline.selection import cross_validate

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.exceptions import NotFittedError
    from sklearn.metrics import r2_score
    from sklearn.utils.validation import check_array, validate_data
except ImportError as error:
    raise ImportError(
        f"pipeline's estimators need scikit-learn >= 1.6, which cannot be imported ({error}); "
        "install it with: pip install 'headroom[ml]'"
    ) from error

__all__ = ["EstimatorInputError", "LinearModel", "MomentsRegressor", "can_cross_validate", "solve_model"]

FloatArray = NDArray[np.float64]


class EstimatorInputError(InputError, ValueError):
    """An estimator's input is not what is required; a ValueError, as scikit-learn's own are."""


@contextmanager
def _errors_as_values() -> Iterator[None]:
    """Turn this package's errors about input into the kind that scikit-learn's callers expect."""
    try:
        yield
    except EstimatorInputError:
        raise
    except InputError as error:
        raise EstimatorInputError(str(error)) from error


@dataclass(frozen=True, eq=False)
class LinearModel:
    """One ridge model of P pixels and Q labels.

    Attributes
    ----------
    weights, intercepts, alphas
        Shapes (P, Q), (Q,) and (Q,).
    count
        Rows that trained it, by weight.
    validation
        Of a search over A penalties and F folds: ``alpha`` (A,), ``r2`` (A, Q), ``sse`` (F, A, Q).
    """

    weights: FloatArray
    intercepts: FloatArray
    alphas: FloatArray
    count: float
    validation: dict[str, FloatArray] | None


def can_cross_validate(folds: Sequence[Moments]) -> bool:
    """Whether there are two folds, and two rows without any one of them."""
    total = sum(fold.count for fold in folds)
    return len(folds) >= 2 and all(total - fold.count >= 2 for fold in folds)


def solve_model(folds: Sequence[Moments], alphas: FloatArray, factor: float, standardize: bool) -> LinearModel:
    """Solve one model; of several penalties every label takes the one with the least error on held-out folds.

    Parameters
    ----------
    folds
        Moments whose sum trains the model.
    alphas
        Penalties, shape (A,), for rows that weigh what the user gave.
    factor
        How many times more they weigh in ``folds``.
    standardize
        Whether pixels are divided by their standard deviation in these rows.
    """
    total = Moments.merge(folds)
    n_labels = len(total.labels)
    chosen, validation = np.full(n_labels, alphas[0]), None
    if alphas.size > 1:
        if not can_cross_validate(folds):
            raise EstimatorInputError(
                f"a search over {alphas.size} penalties needs rows in at least 2 folds, and 2 rows without any one "
                f"fold; found {len(folds)} folds, n_samples = {total.count / factor:g}; give more distinct rows, or "
                "one alpha"
            )
        found = cross_validate(folds, alphas * factor, standardize=standardize)
        chosen = found.alphas[[found.best(q) for q in range(n_labels)]] / factor
        validation = {"alpha": found.alphas / factor, "r2": found.r2, "sse": found.sse / factor}
    distinct, places = np.unique(chosen, return_inverse=True)
    path = solve_ridge_path(total, distinct * factor, pixel_scale(total) if standardize else None)
    weights = np.column_stack([path.weights[place, :, q] for q, place in enumerate(places)])
    intercepts = np.array([path.intercepts[place, q] for q, place in enumerate(places)])
    return LinearModel(weights, intercepts, chosen, total.count / factor, validation)


def _predict_rows(
    x: Any, router: Router, weights: FloatArray, intercepts: FloatArray, single: bool, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Predict labels of rows: weights (K, P, Q) and intercepts (K, Q) of each cell's model."""
    rows = check_array(x, dtype=[np.float64, np.float32])
    predicted = np.empty((len(rows), intercepts.shape[1]), dtype=np.result_type(dtype, rows.dtype))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        cells, pixels = router.cells(block), router.pixels(block)
        for cell in np.unique(cells):
            here = np.flatnonzero(cells == cell)
            predicted[start + here] = pixels[here] @ weights[cell] + intercepts[cell]
    return predicted[:, 0] if single else predicted


class MomentsRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the estimators; subclasses say where rows go and how moments become models."""

    alphas: Any
    cv: Any
    n_features_in_: int
    # Not parameters, hence not set by the constructor.
    _sums: RowSums | None = None
    _solution: Any = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to rows; what was seen before is forgotten.

        Parameters
        ----------
        X
            Rows, shape (N, columns), of NumPy, Dask or xarray, or a table; float32 or float64. Of a Dask array one
            block of rows at a time is in memory.
        y
            Labels, shape (N,) or (N, Q).
        sample_weight
            How many copies each row stands for, shape (N,), >= 0: a whole weight gives the model of repeated rows.

        Returns
        -------
        self

        Raises
        ------
        EstimatorInputError, ValueError
            If shapes disagree, values are not finite, or the rows allow no model; the message says why.
        """
        self._sums, self._solution = None, None
        try:
            with _errors_as_values():
                self._see(X, y, sample_weight, all_rows=True)
            self._solved()
        except BaseException:
            self._sums, self._solution = None, None
            raise
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Add rows to those seen, after ``fit`` too; the order of calls does not matter.

        Models are solved when they are first asked for, so many calls cost one solution. Parameters and errors are
        those of :meth:`fit`, but there may be too few rows as yet; if a block of a Dask array turns out to be
        invalid, those before it have been added.

        Returns
        -------
        self
        """
        with _errors_as_values():
            self._see(X, y, sample_weight, all_rows=False)
        return self

    def predict(self, X: Any) -> Any:
        """Return predicted labels, shape (N,) or (N, Q) as ``y`` was; lazy for a Dask array.

        Computed in float64; returned in float32 where this and all training rows were float32.
        """
        weights, intercepts = self._cell_models()
        assert self._sums is not None
        n_outputs = self._sums.n_outputs
        dtype = self._sums.dtype
        apply = partial(
            _predict_rows,
            router=self._sums.router,
            weights=weights,
            intercepts=intercepts,
            single=n_outputs is None,
            dtype=dtype,
        )
        X = unwrap_array(X)
        if not is_dask(X):
            return apply(validate_data(self, X, reset=False, dtype=[np.float64, np.float32]))
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise EstimatorInputError(
                f"{type(self).__name__} expects X of shape (N, {self.n_features_in_}), as in fit; found {X.shape}"
            )
        rows = X.rechunk({1: -1})
        out = np.result_type(dtype, rows.dtype, np.float32)
        if n_outputs is None:
            return rows.map_blocks(apply, drop_axis=1, dtype=out, meta=np.empty(0, out))
        return rows.map_blocks(apply, chunks=(rows.chunks[0], (n_outputs,)), dtype=out, meta=np.empty((0, 0), out))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of the predictions, the mean over labels: 1 is perfect, predicting the mean label gives 0."""
        weights = None if sample_weight is None else compute_array(sample_weight)
        return float(r2_score(compute_array(y), compute_array(self.predict(X)), sample_weight=weights))

    def release_moments(self) -> Any:
        """Solve, then drop the moments, so that a pickle holds the models alone; no rows can be added any more.

        Returns
        -------
        self
        """
        self._solved()
        assert self._sums is not None
        self._sums.release()
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return self._sums is not None and self._sums.n_rows > 0

    def _penalties(self) -> FloatArray:
        penalties = np.atleast_1d(np.asarray(self.alphas, dtype=np.float64))
        if penalties.ndim != 1 or not penalties.size or not (np.isfinite(penalties).all() and (penalties >= 0).all()):
            raise EstimatorInputError(f"alphas must be one or several finite numbers >= 0, found {self.alphas!r}")
        return penalties

    def _see(self, X: Any, y: Any, sample_weight: Any, *, all_rows: bool) -> None:
        X, y = unwrap_array(X), compute_array(y)
        if not is_dask(X):
            x, labels = self._validate(X, y)
            self._start(labels, len(x) if all_rows else None)
            self._add(x, labels, _require_weights(sample_weight, len(x)), 0)
            return
        if y is None:
            raise EstimatorInputError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        y = np.asarray(y)
        weights = _require_weights(sample_weight, len(y))
        start = 0
        for block in iterate_blocks(X):
            stop = start + len(block)
            x, labels = self._validate(block, y[start:stop])
            if start == 0:
                self._start(y, len(y) if all_rows else None)
            self._add(x, labels, None if weights is None else weights[start:stop], start)
            start = stop
        if start == 0 or start != len(y):
            raise EstimatorInputError(f"X and y must have as many rows, at least one; found {start} and {len(y)}")

    def _validate(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        x, labels = validate_data(
            self,
            X,
            y,
            reset=self._sums is None,
            dtype=[np.float64, np.float32],
            multi_output=True,
            y_numeric=True,
        )
        n_outputs = None if labels.ndim == 1 else labels.shape[1]
        if self._sums is not None and self._sums.n_rows and n_outputs != self._sums.n_outputs:
            raise EstimatorInputError(
                f"y must have as many columns as before ({self._sums.n_outputs or 'one dimension'}), found shape "
                f"{labels.shape}"
            )
        return x, labels

    def _start(self, y: NDArray[Any], n_rows: int | None) -> None:
        """Take up the first rows, of ``n_rows`` in all if no more can come."""
        folds = RowFolds.plan(self.cv, n_rows, y) if self._penalties().size > 1 else RowFolds(1)
        if self._sums is None:
            self._sums = RowSums(self._plan_router(), folds)
        elif self._sums.released:
            raise EstimatorInputError("the moments of this estimator were released, so no rows can be added; fit again")

    def _add(self, x: NDArray[Any], y: NDArray[Any], weights: FloatArray | None, start: int) -> None:
        assert self._sums is not None
        self._solution = None
        self._sums.add(x, y, weights, self._sums.folds.assign(x, start))

    def _solved(self) -> Any:
        """Return what :meth:`_solve` made of the rows seen so far; it is asked once."""
        if self._sums is None:
            raise NotFittedError(
                f"this {type(self).__name__} is not fitted yet; call 'fit' or 'partial_fit' with rows first"
            )
        if self._solution is None:
            if self._sums.n_rows < 2:
                raise EstimatorInputError(
                    f"a model needs at least 2 rows whose weight is not zero, found n_samples = {self._sums.n_rows}"
                )
            with _errors_as_values():
                self._solution = self._solve(*self._sums.parts())
        return self._solution

    def _is_single(self) -> bool:
        """Whether ``y`` had one dimension."""
        assert self._sums is not None
        return self._sums.n_outputs is None

    def _plan_router(self) -> Router:
        raise NotImplementedError

    def _solve(self, parts: dict[tuple[int, int], Moments], factor: float) -> Any:
        raise NotImplementedError

    def _cell_models(self) -> tuple[FloatArray, FloatArray]:
        """Return weights (K, P, Q) and intercepts (K, Q) of every cell's model."""
        raise NotImplementedError


def _require_weights(weights: Any, n_rows: int) -> FloatArray | None:
    if weights is None:
        return None
    values = np.asarray(compute_array(weights), dtype=np.float64)
    if values.ndim == 0:
        values = np.full(n_rows, float(values))
    if values.shape != (n_rows,) or not (np.isfinite(values).all() and (values >= 0).all()):
        raise EstimatorInputError(
            f"sample_weight must be {n_rows} finite numbers >= 0, one for each row; found shape {values.shape}, "
            "or other values"
        )
    return values
