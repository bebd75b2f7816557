"""Expected models on the test spectra: R², ΔR² and their intervals, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.moments import Basis
from pipeline.questions.forecast.training import DrawnModels, Training
from pipeline.scoring import Bootstrap, Columns, HeadroomScore, Stacked, score_headrooms

__all__ = ["TestSpectra", "find_trusted", "list_columns", "scatter_over_folds", "score_models"]

FloatArray = NDArray[np.float64]
#: A model is trusted with at least so many rows, since what holds for many rows was seen to be off with fewer,
_FEWEST_ROWS = 250
#: and so many for each pixel,
_ROWS_PER_PIXEL = 0.5
#: known from so many spectra for each direction of the basis,
_SPECTRA_PER_RANK = 5
#: and with a penalty so strong that the largest eigenvalue of Ψ stays below this. Errors of drawn models are up to
#: 1/(1 − eigenvalue) times those of the mean weights; from 0.6 on, forecasts were seen to be off (docs/forecast.md).
_LARGEST_SHARE = 0.5


def list_columns(basis: Basis, rank: int, forecasts: Sequence[DrawnModels]) -> list[Columns]:
    """Return what has to be known of test spectra whose noise is integrated out.

    Those are their coordinates, and for every expected model the variances of a column of its ``pixel_noise``'s roots:
    ``Σ_p v_p pixel_noise_p``.
    """
    own = basis.leading(rank)
    roots = np.sqrt(np.stack([one.pixel_noise for forecast in forecasts for one in forecast.models], axis=1))
    return [Columns(own.projection, -own.x_origin @ own.projection), Columns(roots, np.zeros(roots.shape[1]))]


@dataclass(frozen=True, eq=False)
class TestSpectra:
    """The test spectra as forecasts see them.

    Attributes
    ----------
    y
        The label, (N,).
    bins
        The bin of each, −1 outside, (N,).
    n_bins
        K.
    coordinates
        z, (N, r).
    noise
        ``Σ_p v_p pixel_noise_p`` of every forecast and model, (M, N, 1 + K), label units².
    """

    __test__ = False  # pytest, it is no test

    y: FloatArray
    bins: NDArray[np.int64]
    n_bins: int
    coordinates: FloatArray
    noise: FloatArray

    @classmethod
    def of_read(cls, y: FloatArray, bins: NDArray[np.int64], n_bins: int, found: Sequence[Stacked]) -> TestSpectra:
        """Return them from the values of :func:`list_columns`."""
        coordinates, noise = found
        assert noise.variances is not None
        by_model = noise.variances.reshape(len(y), -1, 1 + n_bins).transpose(1, 0, 2)
        return cls(y, bins, n_bins, coordinates.values, by_model)

    @property
    def strata(self) -> list[NDArray[np.bool_]]:
        """Which spectra lie in every bin, and outside."""
        return [self.bins == k for k in range(self.n_bins)] + [self.bins < 0]


def score_models(spectra: TestSpectra, forecasts: Sequence[DrawnModels], bootstrap: Bootstrap) -> list[HeadroomScore]:
    """Score expected models; squared errors are expectations over the draws of training and test noise."""
    shape = len(forecasts), len(spectra.y)
    of_global, of_oracle = np.zeros(shape), np.zeros(shape)
    spread_global, spread_oracle = np.zeros(shape), np.zeros(shape)
    for m, forecast in enumerate(forecasts):
        whole, *experts = forecast.models
        of_global[m] = whole.predict(spectra.coordinates)
        spread_global[m] = whole.spread(spectra.coordinates) + spectra.noise[m, :, 0]
        for k, expert in enumerate(experts):
            own = spectra.bins == k
            of_oracle[m, own] = expert.predict(spectra.coordinates[own])
            spread_oracle[m, own] = expert.spread(spectra.coordinates[own]) + spectra.noise[m, own, 1 + k]
    variances = (spread_global, spread_oracle)
    return score_headrooms(spectra.y, of_global, of_oracle, spectra.bins, spectra.n_bins, bootstrap, variances)


def scatter_over_folds(
    spectra: TestSpectra,
    forecasts: Sequence[DrawnModels],
    left_out: Sequence[Sequence[DrawnModels]],
    noise: Sequence[FloatArray],
) -> FloatArray:
    """Return the jackknife's standard errors of R²_oracle, R²_global and ΔR² from the sampling of training spectra.

    Parameters
    ----------
    spectra
        The test spectra; here their sums in every bin are enough.
    forecasts
        M forecasts.
    left_out
        The same without each fold in turn, F times M.
    noise
        The mean noise variances of each bin's training spectra and of those outside, K + 1 times (P,). A forecast
        without a fold has the test spectra's noise term of the whole one, times what it is on these.

    Returns
    -------
    FloatArray
        Of ``covered``, ``all`` and every bin, (M, 2 + K, 3); NaN with fewer than two folds.
    """
    n_bins, n_folds = spectra.n_bins, len(left_out)
    if n_folds < 2:
        return np.full((len(forecasts), 2 + n_bins, 3), np.nan)
    beside = np.column_stack([spectra.coordinates, np.ones(len(spectra.y)), spectra.y])
    sums = [beside[own].T @ beside[own] for own in spectra.strata]
    merits = np.empty((n_folds, len(forecasts), 2 + n_bins, 3))
    for m, forecast in enumerate(forecasts):
        known = [spectra.noise[m, own].sum(axis=0) for own in spectra.strata]
        for f, models in enumerate(left_out):
            errors = np.zeros((n_bins + 1, 2))  # of the oracle and of the global model
            for k, inner in enumerate(sums):
                expert = 1 + k if k < n_bins else 0
                for which, place in enumerate((expert, 0)):
                    own, whole = models[m].models[place], forecast.models[place]
                    ratio = (own.pixel_noise @ noise[k]) / (whole.pixel_noise @ noise[k])
                    errors[k, which] = own.squares(inner) + known[k][place] * ratio
            for scope, parts in enumerate([range(n_bins), range(n_bins + 1), *((k,) for k in range(n_bins))]):
                n, t, v = np.sum([sums[k][[-2, -2, -1], [-2, -1, -1]] for k in parts], axis=0)
                total = v - t * t / n if n > 1 else np.nan
                oracle, single = 1 - errors[list(parts)].sum(axis=0) / total
                merits[f, m, scope] = oracle, single, oracle - single
    off = merits - merits.mean(axis=0)
    return np.asarray(np.sqrt((n_folds - 1) / n_folds * (off**2).sum(axis=0)))


def find_trusted(training: Training, forecast: DrawnModels, n_pixels: int) -> NDArray[np.bool_]:
    """Tell which models are within the range in which forecasts were validated, (1 + K,), the global one first."""
    rows = np.array([one.count for one in forecast.models])
    share = np.array([one.share for one in forecast.models])
    known = training.counts >= _SPECTRA_PER_RANK * training.rank
    enough = rows >= max(_FEWEST_ROWS, _ROWS_PER_PIXEL * n_pixels)
    return np.asarray(enough & known & (share <= _LARGEST_SHARE))
