from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError, SingularGramError
from pipeline.moments import Moments, TileLayout, add_gram
from pipeline.ridge import pixel_scale, solve_ridge_path


def spectra(n: int = 400, n_pixels: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(n, 4))
    x = 1 + 0.1 * hidden @ generator.normal(size=(4, n_pixels)) + 0.05 * generator.normal(size=(n, n_pixels))
    y = np.column_stack([3 + hidden[:, 0], 4800 + 600 * hidden[:, 1]])
    return x, y


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments.from_samples(x, y, x_origin=x[:5].mean(axis=0), y_origin=y[0])


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
def test_predictions_equal_scikit_learn_with_standard_scaler(alpha: float) -> None:
    x, y = spectra()
    m = moments_of(x, y)
    path = solve_ridge_path(m, alpha, pixel_scale(m))
    peer = make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="cholesky")).fit(x, y)
    fresh, _ = spectra(seed=1)
    np.testing.assert_allclose(path.predict(fresh), peer.predict(fresh), rtol=1e-9)


def test_predictions_equal_least_squares_on_augmented_rows() -> None:
    # ‖y − Xw‖² + α‖w‖² is least squares with √α·I stacked below the centred pixels.
    x, y = spectra()
    alpha = 7.0
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    rows = np.vstack([dx, np.sqrt(alpha) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(rows, np.vstack([dy, np.zeros((x.shape[1], 2))]), rcond=None)[0]
    path = solve_ridge_path(moments_of(x, y), alpha)
    np.testing.assert_allclose(path.weights[0], weights, rtol=1e-8, atol=1e-9 * np.abs(weights).max())


def test_infinite_penalty_predicts_the_mean() -> None:
    x, y = spectra()
    path = solve_ridge_path(moments_of(x, y), 1e16)
    np.testing.assert_allclose(path.predict(x), np.broadcast_to(y.mean(axis=0), y.shape), rtol=1e-10)


def test_a_path_equals_its_single_solutions() -> None:
    x, y = spectra()
    m = moments_of(x, y)
    alphas = [0.1, 10.0, 1e3]
    path = solve_ridge_path(m, alphas)
    for k, alpha in enumerate(alphas):
        np.testing.assert_array_equal(path.weights[k], solve_ridge_path(m, alpha).weights[0])


def test_origins_do_not_matter() -> None:
    x, y = spectra()
    far = Moments.from_samples(x, y, x_origin=np.full(x.shape[1], 0.5), y_origin=[0.0, 0.0])
    near = moments_of(x, y)
    a = solve_ridge_path(far, 3.0, pixel_scale(far))
    b = solve_ridge_path(near, 3.0, pixel_scale(near))
    np.testing.assert_allclose(a.predict(x), b.predict(x), rtol=1e-9)


def test_solving_leaves_the_moments_alone() -> None:
    x, y = spectra()
    m = moments_of(x, y)
    before = Moments.merge([m])
    solve_ridge_path(m, [1.0, 2.0], pixel_scale(m))
    assert m.identical(before)


def test_pixel_scale_equals_standard_scaler_and_is_one_for_constant_pixels() -> None:
    x, y = spectra()
    x[:, 3] = 0.7
    x[:, 5] = 0.0
    m = moments_of(x, y)
    expected = StandardScaler().fit(x).scale_
    assert expected[3] == expected[5] == 1
    np.testing.assert_allclose(pixel_scale(m), expected, rtol=1e-10)


def test_constant_pixels_are_found_in_float32_sums_too() -> None:
    # A pixel that is constant but not at the origin: its float32 sum of squares is off by some roundings.
    generator = np.random.default_rng(3)
    n = 20_000
    x = generator.normal(0.5, 0.1, (n, 40)).astype(np.float32)
    x[:, :9] = generator.uniform(0.1, 0.9, 9).astype(np.float32)
    layout = TileLayout(40)
    tiles = layout.zeros(np.float32)
    with threadpool_limits(1):
        for start in range(0, n, 2048):
            add_gram(np.ascontiguousarray(x[start : start + 2048]), tiles, layout)
    exact = Moments.from_samples(x, x[:, :1])
    single = replace(exact, gram=tiles, epsilon=float(np.finfo(np.float32).eps))
    merged = Moments.merge([single, Moments.zeros(exact.x_origin, exact.y_origin, exact.labels)])
    np.testing.assert_array_equal(pixel_scale(merged)[:9], 1)
    np.testing.assert_allclose(pixel_scale(merged)[9:], x[:, 9:].std(axis=0, dtype=np.float64), rtol=1e-4)


def test_solve__raise_on_singular_system() -> None:
    x, y = spectra(n=40)
    with pytest.raises(SingularGramError, match="use alpha >= ") as caught:
        solve_ridge_path(moments_of(x, y), 0.0)
    smallest = float(str(caught.value).rsplit(" ", 1)[-1])
    # The penalty that the message names must work.
    solve_ridge_path(moments_of(x, y), smallest)


def test_zero_penalty_is_least_squares_where_that_is_unique() -> None:
    x, y = spectra(n=400, n_pixels=20)
    path = solve_ridge_path(moments_of(x, y), 0.0)
    design = np.column_stack([x, np.ones(len(x))])
    expected = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(path.predict(x), expected, rtol=1e-8)


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_solve__raise_on_bad_penalty(alpha: float) -> None:
    with pytest.raises(InputError, match="penalties"):
        solve_ridge_path(moments_of(*spectra()), alpha)


def test_solve__raise_on_one_spectrum_or_bad_scale() -> None:
    x, y = spectra()
    with pytest.raises(InputError, match="at least 2"):
        solve_ridge_path(moments_of(x[:1], y[:1]), 1.0)
    with pytest.raises(InputError, match="scale"):
        solve_ridge_path(moments_of(x, y), 1.0, np.zeros(x.shape[1]))
