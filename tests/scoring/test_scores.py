from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from pipeline.errors import InputError
from pipeline.scoring import Bootstrap, score_headroom
from pipeline.scoring.scores import mean_over_seeds

QUICK = Bootstrap(resamples=300)


def predictions(n: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.normal(3, 1, n)
    return y, y + generator.normal(0, 0.7, n), y + generator.normal(0, 0.5, n), generator.integers(-1, 4, n)


def test_scores_equal_scikit_learn_on_every_scope() -> None:
    y, of_global, of_oracle, bins = predictions()
    score = score_headroom(y, of_global, of_oracle, bins, 4, QUICK)
    covered = bins >= 0
    fallback = np.where(covered, of_oracle, of_global)
    for found, members in [(score.covered, covered), (score.all, np.full(len(y), True)),
                           *((score.bins[k], bins == k) for k in range(4))]:  # fmt: skip
        assert found.n_test == members.sum()
        assert found.r2_oracle == pytest.approx(r2_score(y[members], fallback[members]), rel=1e-12)
        assert found.r2_global == pytest.approx(r2_score(y[members], of_global[members]), rel=1e-12)
        assert found.delta_r2 == found.r2_oracle - found.r2_global
        assert found.mae_oracle == pytest.approx(mean_absolute_error(y[members], fallback[members]))
        assert found.mae_global == pytest.approx(mean_absolute_error(y[members], of_global[members]))


def test_both_models_are_scored_on_the_same_spectra() -> None:
    # Wildly wrong global predictions outside the grid must not flatter the covered headroom.
    y, of_global, of_oracle, bins = predictions()
    spoilt = np.where(bins < 0, 1e6, of_global)
    clean = score_headroom(y, of_global, of_oracle, bins, 4, QUICK)
    found = score_headroom(y, spoilt, of_oracle, bins, 4, QUICK)
    np.testing.assert_allclose(found.covered.merits, clean.covered.merits, rtol=1e-9)


def test_outside_the_grid_the_oracle_is_the_global_model() -> None:
    y, of_global, of_oracle, bins = predictions()
    a = score_headroom(y, of_global, of_oracle, bins, 4, QUICK)
    b = score_headroom(y, of_global, np.where(bins < 0, np.nan, of_oracle), bins, 4, QUICK)
    np.testing.assert_array_equal(a.all.merits, b.all.merits)


def test_bootstrap_is_stratified_paired_and_seeded() -> None:
    y, of_global, of_oracle, bins = predictions()
    a = score_headroom(y, of_global, of_oracle, bins, 4, QUICK)
    b = score_headroom(y, of_global, of_oracle, bins, 4, QUICK)
    np.testing.assert_array_equal(a.covered.resampled, b.covered.resampled)
    other = score_headroom(y, of_global, of_oracle, bins, 4, Bootstrap(resamples=300, seed=1))
    assert not np.array_equal(a.covered.resampled, other.covered.resampled)
    # Paired: equal models have no headroom in any resample.
    same = score_headroom(y, of_global, of_global, bins, 4, QUICK)
    np.testing.assert_array_equal(same.covered.resampled[:, 2], 0)


def test_resampled_sums_equal_a_plain_loop() -> None:
    y, of_global, of_oracle, bins = predictions(n=60)
    score = score_headroom(y, of_global, of_oracle, bins, 4, Bootstrap(resamples=20, seed=5))
    strata = [np.flatnonzero(bins == k) for k in range(4)]
    drawn = [
        np.random.default_rng(np.random.SeedSequence(5, spawn_key=(k,))).integers(0, len(rows), (20, len(rows)))
        for k, rows in enumerate(strata)
    ]
    for resample in range(20):
        rows = np.concatenate([members[indices[resample]] for members, indices in zip(strata, drawn, strict=True)])
        assert score.covered.resampled[resample, 0] == pytest.approx(r2_score(y[rows], of_oracle[rows]))
        assert score.covered.resampled[resample, 1] == pytest.approx(r2_score(y[rows], of_global[rows]))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # The true ΔR² of this problem is 0.49 − 0.25 relative to a variance of 1.
    truth = 0.49 - 0.25
    hits = 0
    for seed in range(200):
        y, of_global, of_oracle, _ = predictions(n=400, seed=seed)
        score = score_headroom(y, of_global, of_oracle, np.zeros(400, int), 1, Bootstrap(resamples=200, seed=seed))
        low, high = score.covered.intervals(0.95)[2]
        hits += low <= truth <= high
    assert 180 <= hits <= 199  # 95 % of 200, ± 4 standard deviations


def test_mean_over_seeds_keeps_the_pairing() -> None:
    y, of_global, of_oracle, bins = predictions()
    scores = [score_headroom(y, of_global, of_oracle, bins, 4, QUICK).covered for _ in range(3)]
    mean, std, interval = mean_over_seeds(scores, 0.95)
    np.testing.assert_allclose(mean, scores[0].merits)
    np.testing.assert_allclose(std, 0, atol=1e-12)
    np.testing.assert_allclose(interval, scores[0].intervals(0.95))
    assert mean_over_seeds(scores[:1], 0.95)[1].tolist() == [0, 0, 0]


def test_sets_too_small_for_r2_are_nan() -> None:
    y = np.array([1.0, 2.0, 3.0, 5.0, 5.0])
    bins = np.array([0, 0, 1, 2, 2])
    score = score_headroom(y, y, y, bins, 4, QUICK)
    assert score.bins[0].r2_oracle == 1
    for lonely in (1, 2, 3):  # one spectrum, two equal labels, none
        assert np.isnan(score.bins[lonely].merits).all()
    assert np.isnan(score.bins[3].mae_oracle)
    assert np.isnan(score.bins[0].resampled).all(), "of two spectra every resample with an R² is the same"
    three = score_headroom(y[[0, 1, 2]], y[[1, 1, 2]], y[[0, 1, 2]], [0, 0, 0], 1, QUICK).covered
    assert np.nanstd(three.resampled[:, 1]) > 0


def test_a_shift_of_the_labels_changes_nothing() -> None:
    y, of_global, of_oracle, bins = predictions()
    a = score_headroom(y, of_global, of_oracle, bins, 4, QUICK)
    b = score_headroom(y + 4096, of_global + 4096, of_oracle + 4096, bins, 4, QUICK)
    np.testing.assert_allclose(a.covered.resampled, b.covered.resampled, rtol=1e-9, atol=1e-9)


def test_score__raise_on_bad_input() -> None:
    y, of_global, of_oracle, bins = predictions()
    with pytest.raises(InputError, match="one shape"):
        score_headroom(y[:-1], of_global, of_oracle, bins, 4, QUICK)
    with pytest.raises(InputError, match="finite"):
        score_headroom(np.where(bins == 1, np.nan, y), of_global, of_oracle, bins, 4, QUICK)
    with pytest.raises(InputError, match="bins must be numbers from 0 to 3, or -1 outside, found 4"):
        score_headroom(y, of_global, of_oracle, np.full(len(y), 4), 4, QUICK)
    with pytest.raises(InputError, match="no test spectrum lies in any bin"):
        score_headroom(y, of_global, of_oracle, np.full(len(y), -1), 4, QUICK)
