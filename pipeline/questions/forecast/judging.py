"""Expected models on the test spectra: R², ΔR² and their intervals, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.moments import Basis
from pipeline.questions.forecast.training import DrawnModels, Training
from pipeline.scoring import Bootstrap, Columns, HeadroomScore, Stacked, score_headrooms

__all__ = ["TestSpectra", "find_trusted", "jackknife_over_folds", "list_columns", "score_models"]

FloatArray = NDArray[np.float64]
#: A model is trusted with at least so many rows, since what holds for many rows was seen to be off with fewer,
_FEWEST_ROWS = 250
#: and so many for each pixel,
_ROWS_PER_PIXEL = 0.5
#: known from so many spectra for each direction of the basis,
_SPECTRA_PER_RANK = 5
#: and with a penalty so strong that the largest eigenvalue of Ψ stays below this. Errors of drawn models are up to
#: 1/(1 − eigenvalue) times those of the mean weights; from 0.5 on, forecasts were seen to be off (docs/forecast.md).
_LARGEST_SHARE = 0.45


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

    def of_forecasts(self, chosen: Sequence[int]) -> TestSpectra:
        """Return the same spectra as some of the forecasts see them."""
        return replace(self, noise=self.noise[list(chosen)])

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


def jackknife_over_folds(
    spectra: TestSpectra,
    forecasts: Sequence[DrawnModels],
    left_out: Sequence[Sequence[DrawnModels]],
    noise: Sequence[FloatArray],
) -> tuple[FloatArray, FloatArray]:
    """Return standard errors from the sampling of training spectra, and what that sampling takes from the merits.

    The moments stand for a population, and their stars are a sample of it. Weights that fit this sample fit the
    population less well, by a term in one over its size. A forecast would count this term twice: a drawn run's stars
    are a sample, too, and the formula knows that. The jackknife (Quenouille 1956) takes the term away. It is one of
    ln(1 − R²), so that R² stays below 1.

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
    tuple
        The standard errors of R²_oracle, R²_global and ΔR², and what is to be added to each. Both are of ``covered``,
        ``all`` and every bin, (M, 2 + K, 3).
    """
    n_bins, n_folds = spectra.n_bins, len(left_out)
    beside = np.column_stack([spectra.coordinates, np.ones(len(spectra.y)), spectra.y])
    sums = [beside[own].T @ beside[own] for own in spectra.strata]
    shares = np.empty((1 + n_folds, len(forecasts), 2 + n_bins, 2))  # 1 − R², the first from all folds
    for m, forecast in enumerate(forecasts):
        known = [spectra.noise[m, own].sum(axis=0) for own in spectra.strata]
        for f, models in enumerate([forecasts, *left_out]):
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
                shares[f, m, scope] = errors[list(parts)].sum(axis=0) / total
    known_by_all, without = _add_difference(1 - shares[0]), _add_difference(1 - shares[1:])
    off = without - without.mean(axis=0)
    errors = np.sqrt((n_folds - 1) / n_folds * (off**2).sum(axis=0))
    logarithms = np.log(shares)
    corrected = n_folds * logarithms[0] - (n_folds - 1) * logarithms[1:].mean(axis=0)
    return errors, _add_difference(1 - np.exp(corrected)) - known_by_all


def _add_difference(merits: FloatArray) -> FloatArray:
    """Return R²_oracle, R²_global and their difference from the first two, along the last axis."""
    return np.concatenate([merits, merits[..., :1] - merits[..., 1:]], axis=-1)


def find_trusted(training: Training, forecast: DrawnModels, n_pixels: int) -> NDArray[np.bool_]:
    """Tell which models are within the range in which forecasts were validated, (1 + K,), the global one first."""
    rows = np.array([one.count for one in forecast.models])
    share = np.array([one.share for one in forecast.models])
    known = training.counts >= _SPECTRA_PER_RANK * training.rank
    enough = rows >= max(_FEWEST_ROWS, _ROWS_PER_PIXEL * n_pixels)
    return np.asarray(enough & known & (share <= _LARGEST_SHARE))
