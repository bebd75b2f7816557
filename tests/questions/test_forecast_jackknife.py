"""What the sampling of training spectra does to a forecast: its scatter, and the term in one over their number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pipeline.questions.forecast.judging import TestSpectra, jackknife_over_folds

PIXELS, BINS, FOLDS, SPECTRA = 5, 2, 4, 60


@dataclass(frozen=True)
class Known:
    """A model whose squared errors are known: so many for every spectrum."""

    error: float
    pixel_noise: np.ndarray = field(default_factory=lambda: np.ones(PIXELS))

    def squares(self, inner: np.ndarray) -> float:
        return self.error * float(inner[-2, -2])  # the number of spectra


@dataclass(frozen=True)
class Forecasted:
    models: tuple[Known, ...]


@pytest.fixture
def spectra() -> TestSpectra:
    rng = np.random.default_rng(0)
    bins = rng.integers(-1, BINS, SPECTRA)
    y = rng.normal(size=SPECTRA)
    return TestSpectra(y, bins, BINS, rng.normal(size=(SPECTRA, 3)), np.zeros((1, SPECTRA, 1 + BINS)))


def judge(spectra: TestSpectra, errors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Jackknife models whose errors are those of all stars (first) and of all but one fold (the others)."""
    whole, *left_out = [[Forecasted(tuple(map(Known, own)))] for own in errors]
    return jackknife_over_folds(spectra, whole, left_out, [np.ones(PIXELS)] * (BINS + 1))  # type: ignore[arg-type]


def test_a_term_in_one_over_the_number_of_stars_is_taken_away_exactly(spectra: TestSpectra) -> None:
    """Errors that grow as exp(c/N): without a fold c/N is larger by F/(F − 1)."""
    endless, excess = np.array([0.5, 0.2, 0.3]), np.array([0.04, 0.1, 0.02])
    errors = [endless * np.exp(excess)] + [endless * np.exp(excess * FOLDS / (FOLDS - 1))] * FOLDS
    scatter, correction = judge(spectra, errors)
    assert scatter == pytest.approx(np.zeros((1, 2 + BINS, 3)), abs=1e-12)
    for k in range(BINS):
        own = spectra.y[spectra.bins == k]
        share = own.var()
        oracle = (endless * (np.exp(excess) - 1))[1 + k] / share
        single = (endless * (np.exp(excess) - 1))[0] / share
        assert correction[0, 2 + k] == pytest.approx([oracle, single, oracle - single], rel=1e-9)


def test_folds_that_agree_change_nothing(spectra: TestSpectra) -> None:
    scatter, correction = judge(spectra, [[0.5, 0.2, 0.3]] * (1 + FOLDS))
    assert not scatter.any()
    assert correction == pytest.approx(np.zeros((1, 2 + BINS, 3)), abs=1e-12)


def test_the_scatter_is_that_of_the_textbook(spectra: TestSpectra) -> None:
    """√((F − 1)/F Σ (θ_f − θ̄)²), here of R²_global over all spectra."""
    of_folds = [0.4, 0.5, 0.7, 0.6]
    scatter, _ = judge(spectra, [[0.55, 0.1, 0.1]] + [[error, 0.1, 0.1] for error in of_folds])
    merits = 1 - np.array(of_folds) / spectra.y.var()
    expected = np.sqrt((FOLDS - 1) * np.mean((merits - merits.mean()) ** 2))
    assert scatter[0, 1, 1] == pytest.approx(expected, rel=1e-9)


def test_r2_stays_below_one_however_much_folds_disagree(spectra: TestSpectra) -> None:
    tiny = 1e-6
    _, correction = judge(spectra, [[tiny] * 3] + [[0.5] * 3] * FOLDS)
    for k in range(BINS):
        known = 1 - tiny / spectra.y[spectra.bins == k].var()
        assert known + correction[0, 2 + k, 0] <= 1
