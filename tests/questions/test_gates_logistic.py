"""The logistic gate: against scikit-learn, on problems whose answer is known, and what it must not see."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.bins import OUTSIDE, BinGrid
from pipeline.errors import ConfigError, InputError
from pipeline.questions.gate import Evidence, gate_from_dict, route_spectra
from pipeline.questions.gate.features import QUALITY_NAMES
from pipeline.questions.gate.logistic import LogisticFit, LogisticGate, fit_logistic_gate

GRID = BinGrid({"T_eff": [4000.0, 5000.0, 6000.0], "M_H": [-2.0, -1.0, 0.5]})
NAMES = ("a", "b", "c")


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, true probabilities of the five cells, and cells drawn from them."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3)) * [1.0, 50.0, 0.02] + [0.0, 800.0, 1.0]
    weights = np.random.default_rng(9).normal(size=(3, 5)) * 1.5
    truth = softmax(((x - [0, 800, 1]) / [1, 50, 0.02]) @ weights + [0.5, 0, 0, -0.5, 0], axis=1)
    cells = (truth.cumsum(axis=1) < generator.uniform(size=(n, 1))).sum(axis=1)
    return x, truth, np.where(cells == 4, OUTSIDE, cells)


@pytest.fixture(scope="module")
def fitted() -> LogisticFit:
    x, _, bins = drawn(6000)
    return fit_logistic_gate(x, NAMES, bins, np.arange(6000) % 3, GRID)


def test_it_is_scikit_learns(fitted: LogisticFit) -> None:
    x, _, bins = drawn(6000)
    scaler = StandardScaler().fit(x)
    cells = np.where(bins == OUTSIDE, 4, bins)
    peer = LogisticRegression(C=fitted.gate.penalty, tol=1e-8, max_iter=5000).fit(scaler.transform(x), cells)
    other, _, _ = drawn(500, seed=1)
    expected = peer.predict_proba(scaler.transform(other))
    np.testing.assert_allclose(fitted.gate.probabilities((), other), expected, atol=2e-3)


def test_it_finds_the_true_probabilities_and_is_calibrated(fitted: LogisticFit) -> None:
    x, truth, bins = drawn(60_000, seed=2)
    found = fitted.gate.probabilities((), x)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert np.abs(found - truth).mean() < 0.02
    is_there = np.eye(5)[bins]
    for low in np.arange(0, 1, 0.1):
        members = (found >= low) & (found < low + 0.1)
        told, came = found[members].mean(), is_there[members].mean()
        assert abs(told - came) < 5 * np.sqrt(told * (1 - told) / members.sum()) + 0.02


def test_held_out_probabilities_never_saw_their_fold(fitted: LogisticFit) -> None:
    """Another truth in a fold changes nothing that is said of it, and something that is said of the others."""
    x, _, bins = drawn(6000)
    folds = np.arange(6000) % 3
    lied = np.where(folds == 1, OUTSIDE, bins)
    other = fit_logistic_gate(x, NAMES, lied, folds, GRID, penalties=[fitted.gate.penalty])
    same = fit_logistic_gate(x, NAMES, bins, folds, GRID, penalties=[fitted.gate.penalty])
    assert (other.held_out[folds == 1] == same.held_out[folds == 1]).all()
    assert not np.allclose(other.held_out[folds != 1], same.held_out[folds != 1], atol=0.01)


def test_the_log_loss_is_that_of_the_held_out_probabilities(fitted: LogisticFit) -> None:
    _, _, bins = drawn(6000)
    cells = np.where(bins == OUTSIDE, 4, bins)
    loss = -np.log(fitted.held_out[np.arange(6000), cells]).mean()
    assert fitted.log_losses[fitted.gate.penalty] == pytest.approx(loss, rel=1e-12)
    assert loss == min(fitted.log_losses.values())


def test_importance_is_zero_for_what_says_nothing() -> None:
    generator = np.random.default_rng(4)
    n = 3000
    x = generator.normal(size=(n, 3))
    bins = np.where(x[:, 1] + 0.3 * generator.normal(size=n) > 0, 3, 0)
    found = fit_logistic_gate(x, NAMES, bins, np.arange(n) % 3, GRID).importance
    assert found[1] > 0.5
    assert np.abs(found[[0, 2]]).max() < 0.01


def test_products_tell_what_lies_in_the_middle() -> None:
    """A bin surrounded by others is no half space of the features: products are what finds it."""
    generator = np.random.default_rng(5)
    n = 4000
    x = generator.normal(size=(n, 3))
    bins = np.where(np.hypot(x[:, 0], x[:, 1]) < 1, 2, OUTSIDE)
    folds = np.arange(n) % 3
    flat = fit_logistic_gate(x, NAMES, bins, folds, GRID)
    bent = fit_logistic_gate(x, NAMES, bins, folds, GRID, n_multiplied=2)
    assert bent.gate.weights.shape == (2, 3 + 3)
    assert min(flat.log_losses.values()) > 0.6
    assert min(bent.log_losses.values()) < 0.2


def test_a_sure_gate_routes_as_the_oracle_and_the_truth_as_its_mean() -> None:
    """Features that are the answer give one-hot probabilities: hard = soft = oracle; true ones give Σ p ŷ."""
    generator = np.random.default_rng(6)
    bins = generator.integers(0, 4, 400)
    weights = 1000 * np.concatenate([np.eye(4), -np.ones((1, 4))])
    sure = LogisticGate(GRID, ("a", "b", "c", "d"), np.zeros(4), np.ones(4), (0, 1, 2, 3, 4), weights, np.zeros(5), 1.0)
    predicted = generator.normal(size=(400, 5))
    routed = route_spectra(predicted, Evidence(sure.probabilities((), np.eye(4)[bins]), bins))
    for route in ("hard", "soft", "fallback"):
        np.testing.assert_allclose(routed[route], routed["oracle"], atol=1e-12)
    x, _, _ = drawn(400)
    p = softmax(x @ np.ones((3, 5)) + generator.normal(size=(400, 5)), axis=1)
    soft = route_spectra(predicted, Evidence(p, bins))
    inside = p[:, :4] / p[:, :4].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soft["soft"], (inside * predicted[:, 1:]).sum(axis=1))


def test_cells_without_spectra_have_no_probability() -> None:
    x, _, bins = drawn(3000)
    bins = np.where(bins == 2, 0, bins)
    found = fit_logistic_gate(x, NAMES, bins, np.arange(3000) % 2, GRID)
    assert found.gate.cells == (0, 1, 3, 4)
    assert (found.gate.probabilities((), x)[:, 2] == 0).all()


def test_two_cells_are_enough() -> None:
    x, _, bins = drawn(3000)
    bins = np.where(bins == 0, 0, OUTSIDE)
    gate = fit_logistic_gate(x, NAMES, bins, np.arange(3000) % 2, GRID, penalties=[1.0]).gate
    z = StandardScaler().fit_transform(x)
    peer = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(z, bins == OUTSIDE)
    np.testing.assert_allclose(gate.probabilities((), x)[:, [0, 4]], peer.predict_proba(z), atol=2e-3)


@pytest.mark.parametrize("n_multiplied", [0, 2])
def test_json_gives_back_the_same_bits(n_multiplied: int) -> None:
    x, _, bins = drawn(1000)
    folds = np.arange(1000) % 2
    gate = fit_logistic_gate(x, NAMES, bins, folds, GRID, n_multiplied=n_multiplied).gate
    again = fit_logistic_gate(x, NAMES, bins, folds, GRID, n_multiplied=n_multiplied).gate
    assert json.dumps(again.to_dict()) == json.dumps(gate.to_dict())
    back = gate_from_dict(json.loads(json.dumps(gate.to_dict())), GRID)
    assert back.feature_names == NAMES
    assert back.probabilities((), x).tobytes() == gate.probabilities((), x).tobytes()


def test_a_constant_feature_does_no_harm() -> None:
    x, _, bins = drawn(1000)
    x[:, 2] = 7
    assert np.isfinite(fit_logistic_gate(x, NAMES, bins, np.arange(1000) % 2, GRID).held_out).all()


def test_fit__raises_on_what_cannot_be_fitted() -> None:
    x, _, bins = drawn(100)
    folds = np.arange(100) % 2
    with pytest.raises(InputError, match="at least two folds, found 1"):
        fit_logistic_gate(x, NAMES, bins, np.zeros(100, int), GRID)
    with pytest.raises(InputError, match="at least two bins"):
        fit_logistic_gate(x, NAMES, np.zeros(100, int), folds, GRID)
    with pytest.raises(InputError, match=r"must be finite; b are not"):
        fit_logistic_gate(np.where(np.arange(3) == 1, np.nan, x), NAMES, bins, folds, GRID)
    with pytest.raises(ConfigError, match="errors give labels away"):
        fit_logistic_gate(np.ones((100, 10)), QUALITY_NAMES, bins, folds, GRID)


def test_probabilities__raise_without_their_features(fitted: LogisticFit) -> None:
    with pytest.raises(InputError, match="3 features"):
        fitted.gate.probabilities(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"found shape \(2, 4\)"):
        fitted.gate.probabilities((), np.zeros((2, 4)))


def test_fit__raises_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    x, _, bins = drawn(100)
    with pytest.raises(ConfigError, match=r"pip install 'headroom\[ml\]'"):
        fit_logistic_gate(x, NAMES, bins, np.arange(100) % 2, GRID)


def test_gate_from_dict__raises_on_other_kinds() -> None:
    with pytest.raises(InputError, match="'tree'"):
        gate_from_dict({"kind": "tree"}, GRID)
