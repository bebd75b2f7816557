"""The ridge gate: Gaussian mass in bins, and what it is fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from pipeline.bins import OUTSIDE, BinGrid
from pipeline.errors import InputError
from pipeline.moments import PredictionSums
from pipeline.questions.gate.gates import RidgeGate, bivariate_normal_cdf, fit_ridge_gate

GRID = BinGrid({"T_eff": [4000.0, 5000.0, 6000.0], "M_H": [-2.0, -1.0, 0.5]})
LABELS = ("log_g", "T_eff", "M_H")
limits = st.floats(-6, 6)


@given(limits, limits, st.floats(-0.99, 0.99))
def test_the_bivariate_cdf_is_scipys(h: float, k: float, correlation: float) -> None:
    expected = multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf([h, k])
    assert bivariate_normal_cdf(h, k, correlation) == pytest.approx(expected, abs=1e-7)  # scipy's own accuracy


@pytest.mark.parametrize("correlation", [-0.9, -0.3, 0.0, 0.5, 0.99])
def test_the_bivariate_cdf_has_its_known_values(correlation: float) -> None:
    quadrant = 0.25 + np.arcsin(correlation) / (2 * np.pi)
    assert bivariate_normal_cdf(0.0, 0.0, correlation) == pytest.approx(quadrant, abs=1e-15)
    for h in (-1.5, 0.0, 2.0):
        assert bivariate_normal_cdf(h, 40.0, correlation) == pytest.approx(norm.cdf(h), abs=1e-15)
        assert bivariate_normal_cdf(-40.0, h, correlation) == pytest.approx(0, abs=1e-15)
        below = bivariate_normal_cdf(h, 0.0, correlation) + bivariate_normal_cdf(h, 0.0, -correlation)
        assert below == pytest.approx(norm.cdf(h), abs=1e-14)  # Y and −Y share the plane


def gate(covariance: list[list[float]], grid: BinGrid = GRID) -> RidgeGate:
    slope = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])[: len(grid.columns)]
    return RidgeGate(grid, LABELS, slope, np.zeros(len(grid.columns)), np.array(covariance))


def test_probabilities_are_the_shares_of_draws() -> None:
    generator = np.random.default_rng(0)
    covariance = np.array([[300.0**2, 0.6 * 300 * 0.4], [0.6 * 300 * 0.4, 0.4**2]])
    predicted = np.array([[2.0, 5100.0, -0.9], [4.0, 5900.0, 0.4]])
    found = gate(covariance.tolist()).probabilities(predicted)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-15)
    n = 400_000
    for row, expected in zip(predicted, found, strict=True):
        drawn = generator.multivariate_normal(row[1:], covariance, n)
        bins = GRID.assign({"T_eff": drawn[:, 0], "M_H": drawn[:, 1]})
        shares = [np.mean(bins == k) for k in (0, 1, 2, 3, OUTSIDE)]
        bound = 5 * np.sqrt(expected * (1 - expected) / n) + 1e-12
        assert (np.abs(shares - expected) <= bound).all()


def test_a_sure_gate_is_the_oracle() -> None:
    generator = np.random.default_rng(1)
    predicted = np.column_stack([np.zeros(500), generator.uniform(3500, 6500, 500), generator.uniform(-2.5, 1, 500)])
    found = gate([[1e-12, 0.0], [0.0, 1e-18]]).probabilities(predicted)
    bins = GRID.assign({"T_eff": predicted[:, 1], "M_H": predicted[:, 2]})
    np.testing.assert_allclose(found, np.eye(5)[bins], atol=1e-12)


def test_one_column_is_enough() -> None:
    grid = BinGrid({"T_eff": [4000.0, 5000.0, 6000.0]})
    found = gate([[250.0**2]], grid).probabilities([[0.0, 4900.0, 0.0]])
    cdf = norm(4900, 250).cdf([4000, 5000, 6000])
    np.testing.assert_allclose(found[0], [cdf[1] - cdf[0], cdf[2] - cdf[1], 1 - cdf[2] + cdf[0]], atol=1e-14)


def sums_of(y: np.ndarray, f: np.ndarray, origin: np.ndarray) -> PredictionSums:
    y, f = y - origin, f - origin
    return PredictionSums(len(y), y.sum(axis=0), y.T @ y, f.sum(axis=0)[None], (f.T @ f)[None], (f.T @ y)[None])


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (3.0, 5000.0, -0.8)])
def test_the_fit_is_the_regression_of_labels_on_predictions(origin: tuple[float, ...]) -> None:
    generator = np.random.default_rng(2)
    n = 4000
    y = np.column_stack([generator.normal(3, 1, n), generator.normal(5000, 500, n), generator.normal(-0.8, 0.6, n)])
    f = 0.6 * y + 0.4 * y.mean(axis=0) + generator.normal(0, 1, (n, 3)) * [0.5, 300, 0.4]  # shrunk and noisy
    found = fit_ridge_gate(sums_of(y, f, np.array(origin)), LABELS, origin, GRID)
    design = np.column_stack([f, np.ones(n)])
    expected, *_ = np.linalg.lstsq(design, y[:, 1:], rcond=None)
    np.testing.assert_allclose(found.slope, expected[:3].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.expected_columns(f), design @ expected, rtol=1e-8)
    residual = y[:, 1:] - design @ expected
    np.testing.assert_allclose(found.covariance, residual.T @ residual / n, rtol=1e-6)


def test_a_gate_fitted_to_gaussian_labels_is_calibrated() -> None:
    """Of the spectra that a bin is given with probability p, a share p lies there."""
    generator = np.random.default_rng(3)
    n = 60_000
    y = np.column_stack([np.zeros(n), generator.normal(5000, 500, n), generator.normal(-0.8, 0.6, n)])
    y[:, 0] = generator.normal(3, 1, n)
    f = y + generator.normal(0, 1, (n, 3)) * [0.5, 400, 0.5]
    half = n // 2
    fitted = fit_ridge_gate(sums_of(y[:half], f[:half], np.zeros(3)), LABELS, np.zeros(3), GRID)
    probabilities = fitted.probabilities(f[half:])
    bins = GRID.assign({"T_eff": y[half:, 1], "M_H": y[half:, 2]})
    is_there = np.eye(5)[bins]
    for low in np.arange(0, 1, 0.1):
        members = (probabilities >= low) & (probabilities < low + 0.1)
        told, found = probabilities[members].mean(), is_there[members].mean()
        assert abs(told - found) < 5 * np.sqrt(told * (1 - told) / members.sum()) + 0.005


@pytest.mark.parametrize("edges", [{"snr": [1, 2]}, {"T_eff": [1, 2], "M_H": [0, 1], "log_g": [1, 2]}])
def test_fit__raises_on_columns_that_no_ridge_predicts(edges: dict[str, list[float]]) -> None:
    y = np.random.default_rng(0).normal(size=(9, 3))
    with pytest.raises(InputError, match="ridge gate"):
        fit_ridge_gate(sums_of(y, y, np.zeros(3)), LABELS, np.zeros(3), BinGrid(edges))
