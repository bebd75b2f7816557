"""Routing by probabilities: what sure and unsure gates do, and what is kept of the headroom."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, r2_score

from pipeline.questions.gate import ROUTES, Evidence, Route, mix_predictions, route_spectra
from pipeline.questions.gate.routing import assess_gate, estimate_kept, score_routes
from pipeline.scoring import Bootstrap

N_BINS = 3
QUICK = Bootstrap(resamples=300)


def problem(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions of a poor global model and of experts that are good in their own bin, and bins."""
    generator = np.random.default_rng(seed)
    y, bins = generator.normal(3, 1, n), generator.integers(-1, N_BINS, n)
    predicted = y[:, None] + generator.normal(0, 0.8, (n, 1 + N_BINS))
    own = bins >= 0
    predicted[own, 1 + bins[own]] = y[own] + generator.normal(0, 0.3, own.sum())
    return y, predicted, bins


def test_a_gate_that_is_right_and_sure_is_the_oracle() -> None:
    _, predicted, bins = problem()
    routed = route_spectra(predicted, Evidence(np.eye(N_BINS + 1)[bins], bins))
    assert tuple(routed) == ("oracle", "hard", "soft", "fallback")
    covered = bins >= 0
    np.testing.assert_array_equal(routed["oracle"], predicted[np.arange(len(bins)), 1 + bins])
    for route in ("hard", "soft"):
        np.testing.assert_array_equal(routed[route][covered], routed["oracle"][covered])
    np.testing.assert_array_equal(routed["fallback"], routed["oracle"])


def test_soft_routing_is_the_mean_over_bins_that_the_probabilities_draw() -> None:
    generator = np.random.default_rng(1)
    _, predicted, bins = problem(5)
    probabilities = generator.dirichlet(np.ones(N_BINS + 1), 5)
    routed = route_spectra(predicted, Evidence(probabilities, bins))
    n = 200_000
    for k in range(5):
        drawn = generator.choice(N_BINS + 1, n, p=probabilities[k])
        answers = np.concatenate([predicted[k, 1:], predicted[k, :1]])[drawn]  # the global model for the outside
        assert routed["fallback"][k] == pytest.approx(answers.mean(), abs=5 * answers.std() / np.sqrt(n))
        inside = answers[drawn < N_BINS]
        assert routed["soft"][k] == pytest.approx(inside.mean(), abs=5 * inside.std() / np.sqrt(len(inside)))
        assert routed["hard"][k] == predicted[k, 1 + probabilities[k, :-1].argmax()]


def test_an_unsure_gate_leaves_it_to_the_global_model() -> None:
    _, predicted, bins = problem(3)
    probabilities = np.array([[0.5, 0.3, 0.2, 0.0], [0.34, 0.33, 0.33, 0.0], [0.0, 0.0, 0.0, 1.0]])
    routed = route_spectra(predicted, Evidence(probabilities, bins, unsure=0.4))
    assert routed["fallback"][0] == pytest.approx(probabilities[0, :-1] @ predicted[0, 1:])
    np.testing.assert_array_equal(routed["fallback"][1:], predicted[1:, 0])
    assert routed["soft"][2] == predicted[2, 0], "there is nothing to weigh"


def test_weights_of_every_rule_add_up_to_one() -> None:
    _, predicted, bins = problem()
    probabilities = np.random.default_rng(6).dirichlet(np.ones(N_BINS + 1), len(bins))
    for route in ROUTES.values():
        if not route.needs_learned:
            weights = route.weights(Evidence(probabilities, bins, unsure=0.5))
            assert weights.shape == predicted.shape
            np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


def test_predictions_of_several_labels_are_mixed_as_those_of_each() -> None:
    generator = np.random.default_rng(7)
    weights, predicted = generator.dirichlet(np.ones(4), 50), generator.normal(size=(50, 4, 3))
    mixed = mix_predictions(weights, predicted)
    for q in range(3):
        np.testing.assert_allclose(mixed[:, q], mix_predictions(weights, predicted[:, :, q]), rtol=1e-12)
        np.testing.assert_allclose(mixed[:, q], (weights * predicted[:, :, q]).sum(axis=1), rtol=1e-12)


def test_a_rule_is_added_by_one_entry_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    _, predicted, bins = problem()
    even = Route("even", "Even", "All models answer alike.", lambda known: np.full(known.probabilities.shape, 0.25))
    monkeypatch.setitem(ROUTES, even.name, even)
    routed = route_spectra(predicted, Evidence(np.eye(N_BINS + 1)[bins], bins))
    assert tuple(routed) == ("oracle", "hard", "soft", "fallback", "even")
    np.testing.assert_allclose(routed["even"], predicted.mean(axis=1), rtol=1e-12)


def test_scores_are_scikit_learns_outside_the_grid_too() -> None:
    y, predicted, bins = problem()
    probabilities = np.random.default_rng(2).dirichlet(np.ones(N_BINS + 1), len(y))
    routed = route_spectra(predicted, Evidence(probabilities, bins))
    scores = score_routes(y, routed, predicted[:, 0], bins, N_BINS, QUICK)
    for route, values in routed.items():
        assert scores[route].all.r2_oracle == pytest.approx(r2_score(y, values), rel=1e-12)
        assert scores[route].all.r2_global == pytest.approx(r2_score(y, predicted[:, 0]), rel=1e-12)
        covered = bins >= 0
        assert scores[route].covered.r2_oracle == pytest.approx(r2_score(y[covered], values[covered]), rel=1e-12)


def test_what_is_kept_is_everything_for_the_oracle_and_nothing_for_the_global_model() -> None:
    y, predicted, bins = problem()
    routed = route_spectra(predicted, Evidence(np.full((len(y), N_BINS + 1), 0.25), bins))
    routed["global"] = predicted[:, 0]
    scores = score_routes(y, routed, predicted[:, 0], bins, N_BINS, QUICK)
    oracle = [scores["oracle"].covered]
    assert vars(estimate_kept(oracle, oracle, 0.95)) == {"mean": 1.0, "std": 0.0, "low": 1.0, "high": 1.0}
    nothing = estimate_kept([scores["global"].covered], oracle, 0.95)
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
    soft = estimate_kept([scores["soft"].covered], oracle, 0.95)
    assert soft.low < soft.mean < soft.high
    expected = scores["soft"].covered.delta_r2 / scores["oracle"].covered.delta_r2
    assert soft.mean == pytest.approx(expected)
    hopeless = estimate_kept([scores["soft"].covered], [scores["global"].covered], 0.95)
    assert np.isnan(hopeless.mean), "without headroom there is nothing to keep"


def test_the_interval_of_what_is_kept_covers_it_as_often_as_it_says() -> None:
    """Against the same ratio on very many spectra, over fresh test sets."""
    y, predicted, bins = problem(200_000, seed=9)
    half = np.full((len(y), N_BINS + 1), 0.1) + 0.6 * np.eye(N_BINS + 1)[bins]
    routed = route_spectra(predicted, Evidence(half, bins))
    scores = score_routes(y, routed, predicted[:, 0], bins, N_BINS, Bootstrap(2))
    truth = scores["soft"].covered.delta_r2 / scores["oracle"].covered.delta_r2
    hits = 0
    for seed in range(60):
        rows = slice(3000 * seed, 3000 * (seed + 1))
        routed = route_spectra(predicted[rows], Evidence(half[rows], bins[rows]))
        found = score_routes(y[rows], routed, predicted[rows, 0], bins[rows], N_BINS, QUICK)
        kept = estimate_kept([found["soft"].covered], [found["oracle"].covered], 0.9)
        hits += kept.low <= truth <= kept.high
    assert 45 <= hits <= 60  # 54 expected, standard deviation 2.3


def test_quality_is_scikit_learns() -> None:
    generator = np.random.default_rng(4)
    bins = generator.integers(-1, N_BINS, 500)
    probabilities = generator.dirichlet(np.ones(N_BINS + 1), 500)
    found = assess_gate(probabilities, bins)
    truth, likeliest = np.where(bins < 0, N_BINS, bins), probabilities.argmax(axis=1)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, likeliest))
    assert found.accuracy == accuracy_score(truth, likeliest)
    assert found.counts.sum() == 500
    for cell in range(N_BINS + 1):
        own = probabilities[truth == cell]
        np.testing.assert_allclose(found.spread[cell], [np.mean(column) for column in own.T])
        assert found.truth_quantiles[cell, 2] == pytest.approx(np.median(own[:, cell]))
        assert found.truth_quantiles[cell, 0] == pytest.approx(np.percentile(own[:, cell], 5))


def test_cells_without_test_spectra_have_no_mean_probability() -> None:
    found = assess_gate(np.full((3, N_BINS + 1), 1 / (N_BINS + 1)), np.zeros(3, np.int64))
    assert np.isfinite(found.spread[0]).all()
    assert np.isnan(found.spread[1:]).all()
    assert np.isnan(found.truth_quantiles[1:]).all()


def test_a_gate_that_draws_by_its_own_probabilities_is_calibrated_and_a_boastful_one_is_not() -> None:
    generator = np.random.default_rng(5)
    probabilities = generator.dirichlet(np.full(N_BINS + 1, 0.5), 50_000)
    drawn = (probabilities.cumsum(axis=1) < generator.random((50_000, 1))).sum(axis=1)
    bins = np.where(drawn == N_BINS, -1, drawn)
    assert assess_gate(probabilities, bins).calibration_error < 0.01
    boastful = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert assess_gate(boastful, bins).calibration_error > 0.05
