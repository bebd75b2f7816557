"""Ridge regression with scikit-learn's interface, on the same moments as the experiments.

Both estimators see every row once, in any order and in as many calls of ``partial_fit`` as it takes, keep sufficient
statistics instead of rows, and choose penalties by cross-validation on those. They need scikit-learn, which the
package's extra ``ml`` installs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import BinGrid
from pipeline.errors import did_you_mean
from pipeline.estimators_base import (
    EstimatorInputError,
    LinearModel,
    MomentsRegressor,
    can_cross_validate,
    solve_model,
)
from pipeline.estimators_rows import Router
from pipeline.moments import Moments, PixelSums
from pipeline.moments_frames import scale_moments
from pipeline.ridge import pixel_scale

__all__ = ["BinnedRidge", "EstimatorInputError", "GramRidge"]

FloatArray = NDArray[np.float64]
_ALPHAS = (0.1, 1.0, 10.0)


class GramRidge(MomentsRegressor):
    """Ridge regression from moments, with the penalty chosen by cross-validation.

    Minimises ``Σ wᵢ(yᵢ − b − w'·(xᵢ − m)/d)² + α‖w'‖²``: the same as ``make_pipeline(StandardScaler(), Ridge(α))``,
    without a second pass or the rows in memory. Choose it when rows are many or come in blocks; with more pixels than
    rows, scikit-learn's ``RidgeCV`` is faster.

    Parameters
    ----------
    alphas
        One penalty, or several to choose from, each for the sum of squares over ALL rows: what suits a million
        rows is far too much for a thousand. With several labels each takes its own.
    cv
        Folds for choosing: a number (None is 5), or a scikit-learn splitter or splits that hold out every row exactly
        once (for ``fit`` alone). With a number the content of a row decides its fold, so that neither the order
        nor the chunking of rows matters; use a splitter with groups if rows are near copies of each other.
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
    Memory is about 4·P² bytes for each fold (one fold for one α) whatever the number of rows, twice that and two
    dense matrices of 8·P² while models are solved: 0.4 GB for 5 folds of 4096 pixels, then 1.1.

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
        return solve_model(list(parts.values()), self._penalties(), factor, bool(self.standardize))

    def _cell_models(self) -> tuple[FloatArray, FloatArray]:
        model = self._solved()
        return model.weights[None], model.intercepts[None]


class BinnedRidge(MomentsRegressor):
    """One ridge model for each bin of some columns of X, and a global one: the oracle mixture of experts.

    The columns that ``edges`` names route a row to its bin and are NOT among the pixels that models see. Routed by
    true labels the score is an upper bound that no real gate reaches; routed by estimates it is that gate's score.

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
        edges: Mapping[str | int, Sequence[float]] | None = None,
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
        """Stack one array (Q, …) of each model; without the labels' axis where ``y`` has none."""
        stacked = np.stack(values)
        return stacked[:, 0] if self._is_single() else stacked

    def _filled(self) -> list[LinearModel]:
        models = self._solved()
        return [models[-1] if model is None else model for model in models]

    def _plan_router(self) -> Router:
        self._require_choices()
        if self.edges is None:
            return Router()
        edges = dict(self.edges)
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
