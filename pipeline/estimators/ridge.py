"""Ridge regression with scikit-learn's interface, on the same moments as the experiments.

Both estimators see every row once, in any order and in any number of calls of ``partial_fit``. They keep sufficient
statistics instead of rows, and choose penalties by cross-validation on those statistics. They need scikit-learn, which
the package's extra ``ml`` installs.

:class:`MomentsRegressor` holds what they share: it takes rows, solves when a model is first asked for, and predicts at
once or lazily. :class:`GramRidge` is one model, :class:`BinnedRidge` one model for each bin and a global one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import BinGrid
from pipeline.errors import InputError, did_you_mean
from pipeline.estimators.rows import (
    BLOCK_ROWS,
    Router,
    RowFolds,
    RowSums,
    compute_array,
    is_dask,
    iterate_blocks,
    unwrap_array,
)
from pipeline.moments import Moments, PixelSums, scale_moments
from pipeline.ridge import cross_validate, pixel_scale, solve_ridge_path

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

__all__ = [
    "BinnedRidge",
    "EstimatorInputError",
    "GramRidge",
    "LinearModel",
    "MomentsRegressor",
    "can_cross_validate",
    "solve_model",
]

FloatArray = NDArray[np.float64]
#: Penalties that are tried unless others are given.
_ALPHAS = (0.1, 1.0, 10.0)


class EstimatorInputError(InputError, ValueError):
    """An estimator's input is not what is required. It is a ValueError, as scikit-learn's own errors are."""


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
    """Solve one model. Of several penalties every label takes the one with the least error on held-out folds.

    Parameters
    ----------
    folds
        Moments whose sum trains the model.
    alphas
        Penalties, shape (A,), for rows of the weights that the user gave.
    factor
        How many times larger the weights are in ``folds``.
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


class MomentsRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the estimators. Subclasses say where rows go and how moments become models."""

    alphas: Any
    cv: Any
    n_features_in_: int
    # Not parameters, hence not set by the constructor.
    _sums: RowSums | None = None
    _solution: Any = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to rows. Rows that were seen before are forgotten.

        Parameters
        ----------
        X
            Rows, shape (N, columns), of NumPy, Dask or xarray, or a table; float32 or float64. A Dask array is
            computed block of rows by block of rows.
        y
            Labels, shape (N,) or (N, Q).
        sample_weight
            How many copies each row stands for, shape (N,), >= 0. Whole weights give the model of repeated rows.

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
        """Add rows to those seen, also after ``fit``. The order of calls does not matter.

        Models are solved when they are first asked for, so many calls cost one solution. Parameters and errors are
        those of :meth:`fit`, but it is no error if there are too few rows so far. If a block of a Dask array is
        invalid, the blocks before it have been added.

        Returns
        -------
        self
        """
        with _errors_as_values():
            self._see(X, y, sample_weight, all_rows=False)
        return self

    def predict(self, X: Any) -> Any:
        """Return predicted labels, shape (N,) or (N, Q) as ``y`` was. They are lazy for a Dask array.

        They are computed in float64, and returned in float32 if these rows and all training rows were float32.
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
        """Solve, then drop the moments, so that a pickle holds the models alone. No rows can be added afterwards.

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
        """Prepare for the first rows. ``n_rows`` is the number of all rows if no more can come, else None."""
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
        """Return what :meth:`_solve` made of the rows seen so far. It is called once for the same rows."""
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


class GramRidge(MomentsRegressor):
    """Ridge regression from moments, with the penalty chosen by cross-validation.

    Minimises ``Σ wᵢ(yᵢ − b − w'·(xᵢ − m)/d)² + α‖w'‖²``: the same as ``make_pipeline(StandardScaler(), Ridge(α))``,
    without a second pass or the rows in memory. Choose it when rows are many or come in blocks; with more pixels than
    rows, scikit-learn's ``RidgeCV`` is faster.

    Parameters
    ----------
    alphas
        One penalty, or several to choose from. Each weighs against the sum of squares over ALL rows, so a penalty that
        suits a million rows is far too large for a thousand. With several labels each label takes its own.
    cv
        Folds for choosing: a number (None is 5), or a scikit-learn splitter or splits that hold out every row exactly
        once (for ``fit`` alone). With a number the content of a row decides its fold, so neither the order nor the
        chunking of rows matters. Use a splitter with groups if rows are near copies of each other.
    standardize
        Whether pixels are divided by their standard deviation (1 where constant).

    Attributes
    ----------
    coef_
        Label units per unit of X, shape (P,), or (Q, P) where ``y`` has two dimensions.
    intercept_
        A number, or shape (Q,).
    alpha_
        The penalty chosen, a number, or shape (Q,).
    cv_results_
        ``alpha`` (A,), ``r2`` (A, Q) over all held-out rows, ``sse`` (F, A, Q); None where there was nothing to choose.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Memory is about 4·P² bytes for each fold, whatever the number of rows; one α needs one fold. While models are
    solved it is twice that, and two dense matrices of 8·P² bytes. For 5 folds of 4096 pixels that is 0.4 GB, then 1.1.

    Examples
    --------
    >>> model = GramRidge(alphas=[1e2, 1e3, 1e4]).fit(spectra.flux.data, spectra.log_g.values)
    >>> lazy = ParallelPostFit(model.release_moments()).predict(test.flux.data)
    """

    def __init__(self, alphas: float | Sequence[float] = _ALPHAS, *, cv: Any = None, standardize: bool = True) -> None:
        self.alphas = alphas
        self.cv = cv
        self.standardize = standardize

    @property
    def coef_(self) -> FloatArray:
        """Coefficients, shape (P,) or (Q, P)."""
        weights: FloatArray = self._solved().weights
        return weights[:, 0] if self._is_single() else weights.T

    @property
    def intercept_(self) -> Any:
        """Intercept, a number or shape (Q,)."""
        intercepts = self._solved().intercepts
        return float(intercepts[0]) if self._is_single() else intercepts

    @property
    def alpha_(self) -> Any:
        """Penalty chosen, a number or shape (Q,)."""
        alphas = self._solved().alphas
        return float(alphas[0]) if self._is_single() else alphas

    @property
    def cv_results_(self) -> dict[str, FloatArray] | None:
        """Errors on held-out folds for every penalty."""
        found: dict[str, FloatArray] | None = self._solved().validation
        return found

    def _plan_router(self) -> Router:
        return Router()

    def _solve(self, parts: dict[tuple[int, int], Moments], factor: float) -> LinearModel:
        if not isinstance(self.standardize, bool | np.bool_):
            raise EstimatorInputError(f"standardize must be True or False, found {self.standardize!r}")
        return solve_model(list(parts.values()), self._penalties(), factor, bool(self.standardize))

    def _cell_models(self) -> tuple[FloatArray, FloatArray]:
        model = self._solved()
        return model.weights[None], model.intercepts[None]


class BinnedRidge(MomentsRegressor):
    """One ridge model for each bin of some columns of X, and a global one: the oracle mixture of experts.

    The columns that ``edges`` names route a row to its bin. They are NOT among the pixels that models see. If these
    columns are true labels, the score is an upper bound that no real gate reaches. If they are estimates, it is the
    score of the gate that made them.

    Parameters
    ----------
    edges
        Increasing edges for each routing column: ``{"T_eff": [3750, 4500, 6000], "M_H": [-2, 0, 0.5]}``. Bins are
        half-open [a, b), the last edge closed, the last column running fastest. A key is the name of a column, or its
        place as an integer. None means no bins: the global model alone, on all columns.
    columns
        The places of the routing columns in X, in the order of ``edges``, for arrays without names: ``(-2, -1)``.
    alphas, cv
        As in :class:`GramRidge`; every model chooses its own.
    standardize
        ``"global"`` divides pixels by their standard deviation in the rows that train the global model,
        ``"per_expert"`` by that in each model's own rows, ``"none"`` not at all.
    train_on
        Whether the global model trains on ``"all"`` rows, or on the ``"covered"`` ones, which lie in a bin.
    min_spectra
        Rows, by weight, that a bin needs for an expert.
    fallback
        What rows outside all bins, and in bins without an expert, get: the ``"global"`` model, or ``"nan"``.

    Attributes
    ----------
    coef_
        Shape (K + 1, P), or (K + 1, Q, P) where ``y`` has two dimensions: the experts in bin order, last the global
        model. Bins without an expert hold the global model.
    intercept_, alpha_
        Shapes (K + 1,), or (K + 1, Q).
    counts_
        Rows that trained each model, by weight, shape (K + 1,); 0 for bins without an expert.
    cv_results_
        A list of K + 1 as in :class:`GramRidge`, None for bins without an expert; None where there was nothing to
        choose.
    grid_
        The bins (:class:`pipeline.BinGrid`), None without.
    n_features_in_, feature_names_in_
        As in scikit-learn; routing columns count.

    Notes
    -----
    Memory is that of :class:`GramRidge` for each of K + 1 cells.

    Examples
    --------
    >>> table = np.column_stack([flux, T_eff, M_H])
    >>> model = BinnedRidge({"T_eff": [3750, 4500, 6000], "M_H": [-2, 0, 0.5]}, columns=(-2, -1)).fit(table, log_g)
    """

    def __init__(
        self,
        edges: BinGrid | Mapping[Any, Sequence[float]] | None = None,
        *,
        columns: Sequence[int] | None = None,
        alphas: float | Sequence[float] = _ALPHAS,
        cv: Any = None,
        standardize: Literal["global", "per_expert", "none"] = "global",
        train_on: Literal["all", "covered"] = "all",
        min_spectra: float = 50,
        fallback: Literal["global", "nan"] = "global",
    ) -> None:
        self.edges = edges
        self.columns = columns
        self.alphas = alphas
        self.cv = cv
        self.standardize = standardize
        self.train_on = train_on
        self.min_spectra = min_spectra
        self.fallback = fallback

    @property
    def grid_(self) -> BinGrid | None:
        """The bins."""
        self._solved()
        assert self._sums is not None
        return self._sums.router.grid

    @property
    def coef_(self) -> FloatArray:
        """Coefficients, shape (K + 1, P) or (K + 1, Q, P)."""
        return self._stack([model.weights.T for model in self._filled()])

    @property
    def intercept_(self) -> FloatArray:
        """Intercepts, shape (K + 1,) or (K + 1, Q)."""
        return self._stack([model.intercepts for model in self._filled()])

    @property
    def alpha_(self) -> FloatArray:
        """Penalties chosen, shape (K + 1,) or (K + 1, Q)."""
        return self._stack([model.alphas for model in self._filled()])

    @property
    def counts_(self) -> FloatArray:
        """Rows that trained each model, by weight, shape (K + 1,)."""
        return np.array([0.0 if model is None else model.count for model in self._solved()])

    @property
    def cv_results_(self) -> list[dict[str, FloatArray] | None] | None:
        """Errors on held-out folds of every model."""
        models = self._solved()
        if models[-1].validation is None:
            return None
        return [None if model is None else model.validation for model in models]

    def route(self, X: Any) -> NDArray[np.int64]:
        """Return the bin of every row of X (in memory), shape (N,); -1 outside all bins."""
        self._solved()
        assert self._sums is not None
        router = self._sums.router
        cells = router.cells(np.asarray(X, dtype=np.float64))
        return np.where(cells == router.n_cells - 1, -1, cells)

    def _stack(self, values: list[FloatArray]) -> FloatArray:
        """Stack one array (Q, …) of each model. The labels' axis is left out where ``y`` has none."""
        stacked = np.stack(values)
        return stacked[:, 0] if self._is_single() else stacked

    def _filled(self) -> list[LinearModel]:
        models = self._solved()
        return [models[-1] if model is None else model for model in models]

    def _plan_router(self) -> Router:
        self._require_choices()
        if self.edges is None:
            return Router()
        with _errors_as_values():
            edges = BinGrid.of(self.edges).edges
        columns = list(edges) if self.columns is None else list(self.columns)
        if len(columns) != len(edges):
            raise EstimatorInputError(
                f"columns must give one place for each of the {len(edges)} keys of edges, found {columns}"
            )
        places = tuple(self._place_of(column) for column in columns)
        if len(set(places)) != len(places) or len(places) >= self.n_features_in_:
            raise EstimatorInputError(
                f"edges need {len(places)} routing columns that differ, and pixels beside them; found places "
                f"{places} in X of n_features = {self.n_features_in_}"
            )
        return Router(BinGrid({str(column): values for column, values in edges.items()}), places)

    def _place_of(self, column: str | int) -> int:
        n = self.n_features_in_
        if isinstance(column, str):
            names = [str(name) for name in getattr(self, "feature_names_in_", ())]
            if column in names:
                return names.index(column)
            raise EstimatorInputError(
                f"edges name the column {column!r}, which X does not have{did_you_mean(column, names)}; "
                + ("" if names else "X has no column names: ")
                + "give the places of the routing columns, for example columns=(-2, -1)"
            )
        if isinstance(column, bool) or not isinstance(column, int | np.integer):
            raise EstimatorInputError(f"columns must be names or whole numbers, found {column!r}")
        if not -n <= column < n:
            raise EstimatorInputError(f"routing column {column} lies outside X, which has n_features = {n}")
        return int(column) % n

    def _require_choices(self) -> None:
        for name, known in (
            ("standardize", ("global", "per_expert", "none")),
            ("train_on", ("all", "covered")),
            ("fallback", ("global", "nan")),
        ):
            if getattr(self, name) not in known:
                raise EstimatorInputError(f"{name} must be one of {', '.join(known)}; found {getattr(self, name)!r}")
        if isinstance(self.min_spectra, bool) or not isinstance(self.min_spectra, Real):
            raise EstimatorInputError(f"min_spectra must be a number, found {self.min_spectra!r}")

    def _solve(self, parts: dict[tuple[int, int], Moments], factor: float) -> list[LinearModel | None]:
        assert self._sums is not None
        n_bins = self._sums.router.n_cells - 1
        trains = [place for place in parts if self.train_on == "all" or place[0] < n_bins]
        if not trains:
            raise EstimatorInputError("train_on='covered' needs rows inside the bins, found none; check edges")
        divisor = None
        if self.standardize == "global":
            divisor = pixel_scale(PixelSums.merge([parts[place].pixel_sums for place in trains]))
            for place in parts:  # one by one, so that the memory of the last serves the next
                parts[place] = scale_moments(parts[place], divisor)
        penalties, own = self._penalties(), self.standardize == "per_expert"
        models: list[LinearModel | None] = []
        for k in range(n_bins):
            folds = [part for (cell, _), part in parts.items() if cell == k]
            count = sum(part.count for part in folds)
            enough = count >= 2 and count >= self.min_spectra * factor
            if enough and (penalties.size == 1 or can_cross_validate(folds)):
                models.append(solve_model(folds, penalties, factor, own))
            else:
                models.append(None)
        numbers = sorted({fold for _, fold in trains})
        merged = [Moments.merge(parts[place] for place in trains if place[1] == fold) for fold in numbers]
        models.append(solve_model(merged, penalties, factor, own))
        if divisor is None:
            return models
        return [None if model is None else replace(model, weights=model.weights / divisor[:, None]) for model in models]

    def _cell_models(self) -> tuple[FloatArray, FloatArray]:
        models = self._filled()
        weights = np.stack([model.weights for model in models])
        intercepts = np.stack([model.intercepts for model in models])
        if self.fallback == "nan" and self.edges is not None:
            without = [k for k, model in enumerate(self._solved()) if model is None or k == len(models) - 1]
            intercepts[without] = np.nan
        return weights, intercepts
