from __future__ import annotations

import pickle
import re
import subprocess
import sys
import weakref
from itertools import permutations
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask_ml.wrappers import ParallelPostFit
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, PredefinedSplit, ShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pipeline
from pipeline.bins import BinGrid
from pipeline.config import RidgeConfig
from pipeline.estimators import BinnedRidge, GramRidge
from pipeline.estimators.rows import RowFolds
from pipeline.moments import Moments
from pipeline.ridge import solve_experts
from pipeline.store import SpectraStore

EDGES = {"T_eff": [3750, 4500, 6000], "M_H": [-2.0, 0.0, 0.5]}
ALPHAS = [0.1, 3.0, 100.0]


@parametrize_with_checks(
    [
        GramRidge(),
        GramRidge(1.0, standardize=False),
        BinnedRidge(),
        BinnedRidge({0: [-3, 0, 1, 4]}, min_spectra=5, standardize="per_expert"),
    ]
)
def test_scikit_learns_own_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


def spectra(n: int = 600, n_pixels: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(n, 3))
    x = (
        1
        + 0.1 * hidden @ np.random.default_rng(9).normal(size=(3, n_pixels))
        + 0.05 * generator.normal(size=(n, n_pixels))
    )
    return x, np.column_stack([3 + hidden[:, 0], 4800 + 600 * hidden[:, 1]])


def whole_numbers(n: int = 200, n_pixels: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers whose sums and products do not round."""
    generator = np.random.default_rng(seed)
    x = generator.integers(-20, 100, (n, n_pixels)).astype(float)
    return x, np.column_stack([x[:, 0] - 2 * x[:, 1], x[:, 2]]) + generator.integers(-9, 9, (n, 2))


def table(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, T_eff and M_H; some rows lie outside the bins."""
    generator = np.random.default_rng(seed)
    x, y = spectra(n, seed=seed)
    t_eff, m_h = generator.uniform(3750, 6300, n), generator.uniform(-2.5, 0.75, n)
    y[:, 0] += np.where(t_eff > 4500, 5 * x[:, 0], -3 * x[:, 1])
    return np.column_stack([x, t_eff, m_h]), y


def same_models(a: Any, b: Any) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("coef_", "intercept_", "alpha_"))


def binned(**options: Any) -> BinnedRidge:
    return BinnedRidge(**({"edges": EDGES, "columns": (-2, -1), "alphas": 3.0} | options))


# --- against other implementations ---


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("outputs", [1, 2])
def test_equals_scaler_and_ridge(outputs: int, offset: float) -> None:
    x, y = spectra()
    x, y = x + offset, y[:, 0] if outputs == 1 else y
    peer = make_pipeline(StandardScaler(), Ridge(7.0)).fit(x, y)
    model = GramRidge(7.0).fit(x, y)
    fresh = spectra(seed=1)[0] + offset
    np.testing.assert_allclose(model.predict(fresh), peer.predict(fresh), rtol=1e-9 if offset == 0 else 1e-7)
    assert model.predict(fresh).shape == peer.predict(fresh).shape
    assert model.coef_.shape == peer[-1].coef_.shape
    np.testing.assert_allclose(model.coef_ * peer[0].scale_, peer[-1].coef_, rtol=1e-9 if offset == 0 else 1e-6)
    assert model.score(x, y) == pytest.approx(peer.score(x, y), abs=1e-9)
    if offset == 0:
        plain = Ridge(0.2).fit(x, y)
        np.testing.assert_allclose(GramRidge(0.2, standardize=False).fit(x, y).predict(x), plain.predict(x), rtol=1e-9)


def test_weighted_rows_equal_scaler_and_ridge() -> None:
    x, y = spectra()
    weights = np.random.default_rng(3).uniform(0, 1e-3, len(x))  # in all less than one row
    peer = make_pipeline(StandardScaler(), Ridge(1e-3))
    peer.fit(x, y, standardscaler__sample_weight=weights, ridge__sample_weight=weights)
    model = GramRidge(1e-3).fit(x, y, weights)
    np.testing.assert_allclose(model.predict(x), peer.predict(x), rtol=1e-9)
    assert model.score(x, y, weights) == pytest.approx(r2_score(y, peer.predict(x), sample_weight=weights), abs=1e-9)


@pytest.mark.parametrize("standardize", ["global", "per_expert", "none"])
@pytest.mark.parametrize("train_on", ["all", "covered"])
def test_binned_equals_a_ridge_for_each_bin(standardize: str, train_on: str) -> None:
    x, y = table()
    model = binned(standardize=standardize, train_on=train_on).fit(x, y)
    pixels = x[:, :-2]
    bins = 2 * (x[:, -2] >= 4500).astype(int) + (x[:, -1] >= 0)
    outside = (x[:, -2] > 6000) | (x[:, -1] < -2) | (x[:, -1] > 0.5)
    bins[outside] = -1
    np.testing.assert_array_equal(model.route(x), bins)
    everyone = np.ones(len(x), bool) if train_on == "all" else ~outside
    shared = StandardScaler().fit(pixels[everyone])
    expected = np.empty_like(y)
    for one in [-1, 0, 1, 2, 3]:
        train = everyone if one == -1 else bins == one
        scaler = StandardScaler().fit(pixels[train]) if standardize == "per_expert" else shared
        if standardize == "none":
            scaler = FunctionTransformer()
        peer = Ridge(3.0).fit(scaler.transform(pixels[train]), y[train])
        expected[bins == one] = peer.predict(scaler.transform(pixels[bins == one]))
        assert model.counts_[one] == train.sum()
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-8)
    assert model.coef_.shape == (5, 2, 24)
    assert model.grid_.n_bins == 4


def test_binned_equals_the_experiments_models() -> None:
    x, y = table()
    grid = BinGrid(EDGES)
    cells = grid.cells({"T_eff": x[:, -2], "M_H": x[:, -1]})
    moments = [Moments.from_samples(x[cells == k, :-2], y[cells == k]) for k in range(grid.n_cells)]
    models = solve_experts(moments, RidgeConfig(alpha=3.0), grid)
    model = binned().fit(x, y)
    np.testing.assert_allclose(model.coef_[:-1].transpose(0, 2, 1), models.expert_weights, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.coef_[-1].T, models.global_weights, rtol=1e-6, atol=1e-6)


# --- the same rows in any order, number of calls, and kind of array ---


@pytest.mark.parametrize(
    "model",
    [GramRidge(2.0), GramRidge(ALPHAS, cv=3), BinnedRidge({0: [0, 30, 60, 101]}, alphas=ALPHAS, cv=2, min_spectra=10)],
)
def test_partial_fit_in_any_order_equals_fit(model: Any) -> None:
    x, y = whole_numbers()
    weights = np.random.default_rng(1).integers(0, 4, len(x)).astype(float)
    whole = clone(model).fit(x, y, weights)
    for order in permutations(np.split(np.arange(len(x)), [3, 40, 41])):
        parts = clone(model)
        for rows in order:
            parts.partial_fit(x[rows], y[rows], weights[rows])
        assert same_models(parts, whole)
        np.testing.assert_array_equal(parts.predict(x), whole.predict(x))
    continued = clone(model).fit(x[:100], y[:100], weights[:100])
    before = continued.coef_.copy()
    continued.partial_fit(x[100:], y[100:], weights[100:])
    assert not np.array_equal(continued.coef_, before)
    assert same_models(continued, whole)


@pytest.mark.parametrize("model", [GramRidge(ALPHAS, cv=3), BinnedRidge({0: [0, 50, 101]}, alphas=2.0, min_spectra=10)])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("chunks", [(64, 7), (37, 3), ((1, 150, 49), 7)])
def test_dask_and_xarray_equal_numpy(model: Any, outputs: int, chunks: Any) -> None:
    x, y = whole_numbers()
    y = y[:, 0] if outputs == 1 else y
    whole = clone(model).fit(x, y)
    lazy_x, lazy_y = da.from_array(x, chunks=chunks), da.from_array(y, chunks=50)
    labelled = xr.DataArray(lazy_x, dims=("spectrum", "wavelength"))
    for X, Y, lazy in [
        (lazy_x, y, True),
        (lazy_x, lazy_y, True),
        (labelled, xr.DataArray(y), True),
        (xr.DataArray(x), lazy_y, False),
    ]:
        other = clone(model).fit(X, Y)
        assert same_models(other, whole)
        assert other.score(X, Y) == pytest.approx(whole.score(x, y), abs=1e-12)
        predicted = other.predict(X)
        assert predicted.shape == y.shape
        assert isinstance(predicted, da.Array) == lazy
        np.testing.assert_allclose(np.asarray(predicted), whole.predict(x), rtol=1e-12)
    assert same_models(clone(model).partial_fit(lazy_x[:77], y[:77]).partial_fit(lazy_x[77:], y[77:]), whole)


def test_blocks_of_a_dask_array_leave_memory_one_by_one() -> None:
    x, y = whole_numbers()
    made: list[weakref.ref[np.ndarray]] = []
    most = []

    def make(block: np.ndarray) -> np.ndarray:
        fresh = block.copy()
        made.append(weakref.ref(fresh))
        most.append(sum(one() is not None for one in made))
        return fresh

    lazy = da.from_array(x, chunks=(20, 7)).map_blocks(make, dtype=float, meta=np.empty((0, 0)))
    with dask.config.set(scheduler="synchronous"):
        GramRidge(1.0).fit(lazy, y)
    assert len(made) == 10
    assert max(most) <= 2  # the next is computed while a name still holds the last


def test_blocks_of_unknown_length() -> None:
    x, y = whole_numbers()
    lazy = da.from_array(x, chunks=(64, 7))
    unknown = lazy[lazy[:, 0] > 10]
    assert np.isnan(unknown.chunks[0][0])
    assert same_models(
        GramRidge(1.0).fit(unknown, y[x[:, 0] > 10]), GramRidge(1.0).fit(x[x[:, 0] > 10], y[x[:, 0] > 10])
    )
    with pytest.raises(ValueError, match=r"inconsistent|as many rows"):
        GramRidge(1.0).fit(unknown, y)
    with pytest.raises(ValueError, match=r"inconsistent|as many rows"):
        GramRidge(1.0).fit(unknown, y[:20])


# --- weights ---


@pytest.mark.parametrize(
    "model", [GramRidge(2.0), GramRidge(ALPHAS), BinnedRidge({0: [0, 50, 101]}, alphas=ALPHAS, min_spectra=20)]
)
def test_whole_weights_equal_repeated_rows(model: Any) -> None:
    x, y = whole_numbers()
    weights = np.random.default_rng(2).integers(0, 4, len(x))
    rows = np.repeat(np.arange(len(x)), weights)
    weighted, repeated = clone(model).fit(x, y, weights), clone(model).fit(x[rows], y[rows])
    assert same_models(weighted, repeated)
    assert not same_models(weighted, clone(model).fit(x, y))
    if isinstance(model, BinnedRidge):
        np.testing.assert_array_equal(weighted.counts_, repeated.counts_)
    else:
        np.testing.assert_array_equal(
            weighted.cv_results_["sse"] if weighted.cv_results_ else 0,
            repeated.cv_results_["sse"] if repeated.cv_results_ else 0,
        )


@pytest.mark.parametrize("factor", [2.0**-20, 0.25, 1024.0])
def test_all_weights_times_a_factor_are_the_penalty_times_it(factor: float) -> None:
    x, y = spectra()
    model = GramRidge([0.1, 1.0]).fit(x, y)
    scaled = GramRidge([0.1 * factor, 1.0 * factor]).fit(x, y, np.full(len(x), factor))
    np.testing.assert_allclose(scaled.predict(x), model.predict(x), rtol=1e-9)
    np.testing.assert_allclose(scaled.alpha_, model.alpha_ * factor)
    np.testing.assert_allclose(scaled.cv_results_["sse"], model.cv_results_["sse"] * factor, rtol=1e-7)
    np.testing.assert_allclose(scaled.cv_results_["r2"], model.cv_results_["r2"], rtol=1e-7)


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [np.nan, 1.0], [1.0], [0.0, 0.0]])
def test_fit__raise_on_bad_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        GramRidge(1.0).fit([[1.0], [2.0]], [1.0, 2.0], weights)


# --- choosing the penalty ---


@pytest.mark.parametrize("cv", [4, KFold(3), "groups"])
def test_errors_on_held_out_folds_equal_refits(cv: Any) -> None:
    x, y = spectra(200)
    if cv == "groups":
        cv = list(GroupKFold(3).split(x, groups=np.arange(200) // 20))
    model = GramRidge(ALPHAS, cv=cv).fit(x, y)
    if isinstance(cv, int):
        splits = list(PredefinedSplit(RowFolds(cv).assign(x, 0)).split())
        assert len(splits) == cv
    else:
        splits = list(cv.split(x)) if hasattr(cv, "split") else cv
    for k, (train, test) in enumerate(splits):
        for a, alpha in enumerate(ALPHAS):
            peer = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x[train], y[train])
            expected = ((y[test] - peer.predict(x[test])) ** 2).sum(axis=0)
            np.testing.assert_allclose(model.cv_results_["sse"][k, a], expected, rtol=1e-7)
    best = model.cv_results_["sse"].sum(axis=0).argmin(axis=0)
    np.testing.assert_array_equal(model.alpha_, np.array(ALPHAS)[best])
    np.testing.assert_allclose(
        model.predict(x)[:, 0], GramRidge(model.alpha_[0]).fit(x, y[:, 0]).predict(x), rtol=1e-10
    )


def test_a_splitter_holds_out_the_same_rows_of_a_dask_array() -> None:
    x, y = whole_numbers()
    whole = GramRidge(ALPHAS, cv=KFold(3)).fit(x, y)
    blocks = GramRidge(ALPHAS, cv=KFold(3)).fit(da.from_array(x, chunks=(30, 7)), y)
    np.testing.assert_array_equal(blocks.cv_results_["sse"], whole.cv_results_["sse"])


def test_several_labels_equal_single_ones() -> None:
    x, y = spectra(300)
    y[:, 1] = np.random.default_rng(5).normal(size=300)  # noise wants another penalty
    both = GramRidge(ALPHAS).fit(x, y)
    assert both.alpha_[0] != both.alpha_[1]
    for q in range(2):
        one = GramRidge(ALPHAS).fit(x, y[:, q])
        assert one.alpha_ == both.alpha_[q]
        np.testing.assert_allclose(one.predict(x), both.predict(x)[:, q], rtol=1e-9)


def test_folds_depend_on_the_content_of_rows_alone() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 6)).astype(np.float32)
    x[0], x[1] = 0.0, -0.0
    folds = RowFolds(5)
    numbers = folds.assign(x, 0)
    np.testing.assert_array_equal(folds.assign(x[::-1].astype(np.float64), 17)[::-1], numbers)
    many = RowFolds(10**6).assign(x[:3], 0)
    assert many[0] == many[1] != many[2]
    assert np.bincount(numbers, minlength=5).min() > 900
    # Whole numbers differ in few of their bits, and signs in one.
    for whole in (np.arange(5000.0)[:, None], np.random.default_rng(1).choice([-1.0, 1.0], (5000, 40))):
        assert np.bincount(folds.assign(whole, 0), minlength=5).min() > 900
    wide = np.random.default_rng(2).normal(size=(40, 5000))  # more than one block
    np.testing.assert_array_equal(
        np.concatenate([folds.assign(wide[k : k + 1], 0) for k in range(40)]), folds.assign(wide, 0)
    )


def test_more_rows_than_a_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = whole_numbers()
    model = BinnedRidge({0: [0, 50, 101]}, alphas=ALPHAS, cv=3, min_spectra=10)
    whole, predicted = model.fit(x, y), model.predict(x)
    monkeypatch.setattr("pipeline.estimators.rows.BLOCK_ROWS", 33)
    monkeypatch.setattr("pipeline.estimators.ridge.BLOCK_ROWS", 33)
    assert same_models(clone(model).fit(x, y), whole)
    np.testing.assert_allclose(model.predict(x), predicted, rtol=1e-13)


@pytest.mark.parametrize("cv", [1, "five", True, ShuffleSplit(3, random_state=0), [([0, 1], [2, 3])], 2.5])
def test_fit__raise_on_bad_cv(cv: Any) -> None:
    x, y = spectra(50)
    with pytest.raises(ValueError, match="cv must"):
        GramRidge(ALPHAS, cv=cv).fit(x, y)


def test_partial_fit__raise_on_a_splitter() -> None:
    x, y = spectra(50)
    with pytest.raises(ValueError, match="a splitter must see all rows"):
        GramRidge(ALPHAS, cv=KFold(3)).partial_fit(x, y)


def test_fit__raise_on_rows_that_allow_no_search() -> None:
    with pytest.raises(ValueError, match="at least 2 folds"):
        GramRidge(ALPHAS).fit(np.ones((10, 2)), np.arange(10.0))


@pytest.mark.parametrize("alphas", [[], [-1.0], [np.nan], [[1.0]]])
def test_fit__raise_on_bad_penalties(alphas: Any) -> None:
    with pytest.raises(ValueError, match="alphas must"):
        GramRidge(alphas).fit(*spectra(20))


def test_fit__raise_on_singular_system_and_forgets() -> None:
    model = GramRidge(0.0)
    with pytest.raises(ValueError, match="use alpha >= "):
        model.fit(*spectra(20))
    with pytest.raises(NotFittedError):
        model.predict(spectra(20)[0])
    with pytest.raises(NotFittedError):
        _ = model.coef_


# --- bins ---


def test_rows_outside_and_scarce_bins_fall_back() -> None:
    x, y = table()
    inside = binned().fit(x, y).route(x) >= 0
    assert 0 < inside.sum() < len(x)
    alone = GramRidge(3.0).fit(x[:, :-2], y)
    np.testing.assert_allclose(binned().fit(x, y).predict(x)[~inside], alone.predict(x[:, :-2])[~inside], rtol=1e-9)
    empty = binned(fallback="nan").fit(x, y).predict(x)
    np.testing.assert_array_equal(np.isnan(empty).all(axis=1), ~inside)
    # With no bin rich enough the global model is all there is.
    scarce = binned(min_spectra=len(x)).fit(x, y)
    np.testing.assert_array_equal(scarce.counts_, [0, 0, 0, 0, len(x)])
    np.testing.assert_allclose(scarce.predict(x), alone.predict(x[:, :-2]), rtol=1e-9)
    assert np.isnan(binned(min_spectra=len(x), fallback="nan").fit(x, y).predict(x)).all()
    # Experts see what one map cannot.
    assert binned().fit(x, y).score(x[inside], y[inside]) > alone.score(x[inside, :-2], y[inside]) + 0.01


def test_routing_columns_by_name() -> None:
    x, y = table()
    names = [f"pixel_{k}" for k in range(24)] + ["T_eff", "M_H"]
    frame = pd.DataFrame(x, columns=names)
    moved = frame[["M_H", *names[:24], "T_eff"]]
    by_name = BinnedRidge(EDGES, alphas=3.0).fit(moved, y)
    assert same_models(by_name, binned().fit(x, y))
    np.testing.assert_array_equal(by_name.feature_names_in_, moved.columns)
    assert same_models(BinnedRidge({24: EDGES["T_eff"], -1: EDGES["M_H"]}, alphas=3.0).fit(x, y), by_name)


def test_without_bins_it_is_the_global_model() -> None:
    x, y = spectra()
    one, other = BinnedRidge(alphas=ALPHAS).fit(x, y), GramRidge(ALPHAS).fit(x, y)
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=1e-9)
    np.testing.assert_array_equal(one.alpha_[0], other.alpha_)
    assert one.grid_ is None


def test_every_expert_chooses_its_own_penalty() -> None:
    x, y = table()
    noisy = binned(alphas=ALPHAS, cv=3, standardize="per_expert")
    cool = x[:, -2] < 4500
    y[cool, 0] = np.random.default_rng(4).normal(size=cool.sum())
    model = noisy.fit(x, y[:, 0])
    assert model.alpha_.shape == (5,)
    assert model.alpha_[0] > model.alpha_[2]
    rows = model.route(x) == 2
    alone = GramRidge(ALPHAS, cv=PredefinedSplit(RowFolds(3).assign(x[rows], 0))).fit(x[rows, :-2], y[rows, 0])
    assert alone.alpha_ == model.alpha_[2]
    np.testing.assert_allclose(model.cv_results_[2]["sse"], alone.cv_results_["sse"], rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": None}, "no column names"),
        ({"columns": (1,)}, "one place for each"),
        ({"columns": (1, 1)}, "that differ"),
        ({"columns": (0, 26)}, "outside X"),
        ({"edges": {"T_eff": [2, 1], "M_H": [0, 1]}}, "increasing"),
        ({"edges": {"T_eff": [1, 2], "M_H": [7, 8]}, "train_on": "covered"}, "found none"),
        ({"standardize": True}, "standardize must be one of global"),
        ({"fallback": "mean"}, "fallback must"),
        ({"columns": (-2.7, -1.2)}, "columns must be names or whole numbers, found -2.7"),
        ({"columns": (True, False)}, "columns must be names or whole numbers, found True"),
        ({"edges": [[3750, 4500]]}, "a dictionary of edges by column"),
        ({"min_spectra": "a"}, "min_spectra must be a number, found 'a'"),
    ],
)
def test_fit__raise_on_bad_bins(options: dict[str, Any], message: str) -> None:
    x, y = table(100)
    with pytest.raises(ValueError, match=message):
        binned(**options).fit(x, y)


def test_fit__raise_on_a_word_for_a_switch() -> None:
    with pytest.raises(ValueError, match="standardize must be True or False, found 'none'"):
        GramRidge(1.0, standardize="none").fit(*table(100))  # type: ignore[arg-type]


def test_bins_may_be_a_grid() -> None:
    x, y = table(300)
    np.testing.assert_array_equal(binned(edges=BinGrid(EDGES)).fit(x, y).predict(x), binned().fit(x, y).predict(x))


# --- at home in scikit-learn and dask-ml ---


def test_inside_pipeline_and_grid_search() -> None:
    x, y = spectra(300)
    search = GridSearchCV(
        Pipeline([("scale", StandardScaler()), ("ridge", GramRidge(1.0, standardize=False))]),
        {"ridge__alphas": ALPHAS},
        cv=3,
    ).fit(x, y)
    peer = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS}, cv=3).fit(x, y)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], peer.cv_results_["mean_test_score"], rtol=1e-9)
    assert search.best_params_["ridge__alphas"] == peer.best_params_["ridge__alpha"]
    assert clone(binned()).get_params() == binned().get_params()


@pytest.mark.parametrize("outputs", [1, 2])
def test_lazy_prediction_over_a_store(train_store: SpectraStore, outputs: int) -> None:
    dataset = pipeline.open_spectra(train_store.path)
    labels = np.column_stack([dataset.log_g.values, dataset.M_H.values])
    y = labels[:, 0] if outputs == 1 else labels
    model = GramRidge(50.0).fit(dataset.flux, y)
    flux = dataset.flux.data
    assert isinstance(flux, da.Array)
    assert flux.numblocks[0] > 1
    expected = model.predict(np.asarray(flux))
    if outputs == 1:
        lazy = ParallelPostFit(model.release_moments()).predict(flux)
        assert isinstance(lazy, da.Array)
        assert lazy.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(lazy.compute(scheduler="threads"), expected)
    else:
        np.testing.assert_array_equal(ParallelPostFit(model).predict(np.asarray(flux)), expected)
    lazy = model.predict(flux)
    assert isinstance(lazy, da.Array)
    assert lazy.shape == y.shape
    np.testing.assert_array_equal(lazy.compute(), expected)
    assert model.score(dataset.flux, y) > 0.2


def test_single_precision_stays_and_rounds_once() -> None:
    x, y = spectra()
    single = GramRidge(1.0).fit(x.astype(np.float32), y)
    assert single.predict(x.astype(np.float32)).dtype == np.float32
    assert single.predict(x).dtype == np.float64
    assert GramRidge(1.0).fit(x, y).predict(x.astype(np.float32)).dtype == np.float64
    exact = GramRidge(1.0).fit(x.astype(np.float32).astype(np.float64), y)
    np.testing.assert_array_equal(single.coef_, exact.coef_)


def test_released_models_are_small_and_take_no_rows() -> None:
    x, y = spectra(n_pixels=200)
    model = GramRidge(ALPHAS[:2]).fit(x, y)
    predicted, before = model.predict(x), len(pickle.dumps(model))
    model.release_moments()
    assert len(pickle.dumps(model)) < before / 50
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x), predicted)  # noqa: S301
    with pytest.raises(ValueError, match="released"):
        model.partial_fit(x, y)
    np.testing.assert_array_equal(model.fit(x, y).predict(x), predicted)


def test_predict__raise_on_other_columns() -> None:
    x, y = spectra()
    model = GramRidge(1.0).fit(x, y)
    with pytest.raises(ValueError, match="23"):
        model.predict(da.from_array(x[:, 1:]))
    with pytest.raises(ValueError, match="columns as before"):
        model.partial_fit(x, y[:, 0])


def test_a_frame_with_column_names_is_checked() -> None:
    x, y = spectra()
    frame = pd.DataFrame(x, columns=[f"p{k}" for k in range(24)])
    model = GramRidge(1.0).fit(frame, y)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"p0": "q0"}))


def test_import__raise_without_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import pipeline; pipeline.Moments; pipeline.GramRidge"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "need scikit-learn >= 1.6" in shown
    assert "pip install 'headroom[ml]'" in shown


def test_the_guide_shows_what_works(train_store: SpectraStore) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    [block] = [one for one in blocks if "GramRidge" in one]
    names: dict[str, Any] = {}
    exec(block.replace("train.zarr", str(train_store.path)), names)
    assert isinstance(names["lazy"], da.Array)
    assert names["lazy"].compute().shape == (train_store.n_spectra,)
    assert names["oracle"].coef_.shape == (10, train_store.n_pixels)
