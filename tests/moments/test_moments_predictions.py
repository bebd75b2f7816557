"""Joint sums of labels and predictions from moments, against the same sums over rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.moments import Moments, PredictionSums, sum_predictions


def sums_of_rows(y: np.ndarray, f: np.ndarray, origin: np.ndarray) -> PredictionSums:
    y, f = y - origin, f - origin
    return PredictionSums(len(y), y.sum(axis=0), y.T @ y, f.sum(axis=1), np.einsum("anq,anr->aqr", f, f), f.mT @ y)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(1, 40), st.integers(1, 3), st.integers(-8, 8))
def test_sums_of_integers_are_those_of_the_rows_exactly(
    seed: int, n: int, n_pixels: int, n_models: int, origin: int
) -> None:
    generator = np.random.default_rng(seed)
    x, y = (generator.integers(-8, 9, (n, columns)).astype(float) for columns in (n_pixels, 2))
    weights = generator.integers(-4, 5, (n_models, n_pixels, 2)).astype(float)
    intercepts = generator.integers(-4, 5, (n_models, 2)).astype(float)
    origins = {"x_origin": np.full(n_pixels, float(origin)), "y_origin": np.array([float(origin), 1.0])}
    expected = sums_of_rows(y, x @ weights + intercepts[:, None], origins["y_origin"])
    cut = n // 3
    parts = [Moments.from_samples(x[rows], y[rows], **origins) for rows in (slice(cut), slice(cut, n))]
    whole = sum_predictions(Moments.merge(parts), weights, intercepts)
    merged = PredictionSums.merge([sum_predictions(part, weights, intercepts) for part in parts])
    for name in PredictionSums.__annotations__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(expected, name))
        np.testing.assert_array_equal(getattr(merged, name), getattr(expected, name))
    np.testing.assert_array_equal(whole.squared_errors, ((y - x @ weights - intercepts[:, None]) ** 2).sum(axis=1))


def test_squared_errors_are_those_of_the_rows_and_never_negative() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(1, 0.2, (200, 50)), generator.normal(3, 1, (200, 2))
    weights, intercepts = generator.normal(0, 1, (1, 50, 2)), np.array([[0.3, -2.0]])
    moments = Moments.from_samples(x, y, x_origin=np.full(50, 0.9), y_origin=[2.5, 3.5])
    expected = ((y - x @ weights[0] - intercepts[0]) ** 2).sum(axis=0)
    found = sum_predictions(moments, weights, intercepts).squared_errors[0]
    assert found == pytest.approx(expected, rel=1e-10)
    exact = Moments.from_samples(x, x @ weights[0] + intercepts[0], x_origin=np.full(50, 0.9), y_origin=[2.5, 3.5])
    assert (sum_predictions(exact, weights, intercepts).squared_errors >= 0).all()
