"""R² of global and oracle-routed predictions, their difference, and paired bootstrap intervals.

    R² = 1 − Σ(y−ŷ)² / Σ(y−ȳ)²,   ΔR² = R²_oracle − R²_global   ("headroom")

Both models are always scored on the SAME spectra: ``covered`` (those in a bin) or ``all`` (outside the grid
the oracle falls back to the global model). Test spectra are resampled within each bin, the same resamples for
both models and for every seed, so differences and means over seeds keep their pairing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.base import one_blas_thread
from pipeline.bins import Binning
from pipeline.errors import InputError
from pipeline.noise import NO_SEED, Noise, compiled
from pipeline.ridge import ExpertModels
from pipeline.scoring.likeness import Likeness

__all__ = [
    "SCOPES",
    "Bootstrap",
    "HeadroomScore",
    "Score",
    "ScoredBinning",
    "ScoredDraw",
    "interval_of",
    "mean_over_seeds",
    "score_binning",
    "score_experts",
    "score_headroom",
    "score_headrooms",
    "score_routed",
]

FloatArray = NDArray[np.float64]
#: The sets of test spectra that are scored besides single bins.
SCOPES = ("covered", "all")
#: Largest number of resampled indices held at once.
_INDICES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of resamples, confidence, and the seed of the resampling."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Score:
    """Figures of merit on one set of test spectra.

    Attributes
    ----------
    n_test
        Number of test spectra.
    merits
        R²_oracle, R²_global, ΔR², in the order of :data:`pipeline.scoring.MERITS`, shape (3,); NaN where the set has
        no variance.
    resampled
        The same for every bootstrap resample, shape (R, 3).
    mae_oracle, mae_global
        Mean absolute errors, label units; NaN where squared errors are expectations over the noise.
    """

    n_test: int
    merits: FloatArray
    resampled: FloatArray
    mae_oracle: float
    mae_global: float

    @property
    def r2_oracle(self) -> float:
        """R² of the oracle-routed experts."""
        return float(self.merits[0])

    @property
    def r2_global(self) -> float:
        """R² of the global model."""
        return float(self.merits[1])

    @property
    def delta_r2(self) -> float:
        """Headroom."""
        return float(self.merits[2])

    def intervals(self, confidence: float) -> FloatArray:
        """Return the percentile intervals of the three figures of merit, shape (3, 2)."""
        return _percentiles(self.resampled, confidence)


@dataclass(frozen=True, eq=False)
class HeadroomScore:
    """Scores on covered spectra, on all spectra, and bin by bin."""

    covered: Score
    all: Score
    bins: tuple[Score, ...]

    def scope(self, name: str) -> Score:
        """Return the score of the scope ``covered`` or ``all``."""
        return {"covered": self.covered, "all": self.all}[name]


def score_headroom(
    y_true: ArrayLike,
    y_global: ArrayLike,
    y_oracle: ArrayLike,
    bins: ArrayLike,
    n_bins: int,
    bootstrap: Bootstrap | None = None,
) -> HeadroomScore:
    """Score the global model and the oracle-routed experts on the same test spectra.

    Parameters
    ----------
    y_true, y_global, y_oracle
        True labels and the two predictions, each of shape (N,), label units. For spectra outside the grid
        ``y_oracle`` is not used: there the oracle is the global model.
    bins
        Bin of each spectrum, shape (N,), −1 outside.
    n_bins
        Number of bins K.
    bootstrap
        Resampling; 2000 resamples at 95 % by default.

    Returns
    -------
    HeadroomScore
        ``covered``, ``all`` and one score for each bin. A set of fewer than two spectra scores NaN, and one of two
        has no resamples.

    Raises
    ------
    InputError
        If lengths differ, a value is not finite, or no spectrum lies in a bin.
    """
    of_global, of_oracle = (np.asarray(a, dtype=np.float64)[None] for a in (y_global, y_oracle))
    return score_headrooms(y_true, of_global, of_oracle, bins, n_bins, bootstrap)[0]


def score_headrooms(
    y_true: ArrayLike,
    y_global: ArrayLike,
    y_oracle: ArrayLike,
    bins: ArrayLike,
    n_bins: int,
    bootstrap: Bootstrap | None = None,
    variances: tuple[FloatArray, FloatArray] | None = None,
) -> list[HeadroomScore]:
    """Score M sets of models on the same test spectra and the same resamples.

    As :func:`score_headroom`, with predictions of shape (M, N); drawing the resamples once is most of the work.

    Parameters
    ----------
    y_true, y_global, y_oracle, bins, n_bins, bootstrap
        See :func:`score_headroom`.
    variances
        Where predictions are means over the noise of the test spectra: the variances of the global and of the oracle
        one, each (M, N), label units². Squared errors are then the expected ones, ``(y − E[ŷ])² + Var[ŷ]``, and so are
        R² and ΔR²: those of infinitely many noisy copies of the test spectra. The mean absolute errors have no
        such form, and are NaN.
    """
    outside = np.asarray(bins) < 0
    if np.shape(y_oracle) == np.shape(y_global) and outside.shape == np.shape(y_oracle)[1:]:
        y_oracle = np.where(outside, y_global, y_oracle)
        variances = variances and (variances[0], np.where(outside, *variances))
    return score_routed(y_true, y_global, y_oracle, bins, n_bins, bootstrap, variances)


def score_experts(
    y_true: ArrayLike,
    predicted: FloatArray,
    bins: NDArray[np.int64],
    bootstrap: Bootstrap | None = None,
    variance: FloatArray | None = None,
    strata: tuple[NDArray[np.int64], int] | None = None,
) -> list[HeadroomScore]:
    """Score M sets of models by what they all predict: the oracle asks the expert of each spectrum's true bin.

    Parameters
    ----------
    y_true, bootstrap
        See :func:`score_headroom`.
    predicted, variance
        Shape (M, N, 1 + K), the global model first; their variances where they are means over the noise.
    bins
        The bin that each spectrum's expert is of, shape (N,), −1 outside.
    strata
        Other bins, and how many, that the spectra are scored and resampled in; those of the experts by default.
    """
    routed = (slice(None), np.arange(len(bins)), 1 + np.maximum(bins, 0))
    variances = None if variance is None else (variance[:, :, 0], variance[routed])
    scored_in, n_bins = strata or (bins, predicted.shape[2] - 1)
    return score_headrooms(y_true, predicted[:, :, 0], predicted[routed], scored_in, n_bins, bootstrap, variances)


def score_routed(
    y_true: ArrayLike,
    y_global: ArrayLike,
    y_routed: ArrayLike,
    bins: ArrayLike,
    n_bins: int,
    bootstrap: Bootstrap | None = None,
    variances: tuple[FloatArray, FloatArray] | None = None,
) -> list[HeadroomScore]:
    """Score M ways of routing, whatever they say of spectra outside the grid.

    Parameters
    ----------
    y_true, y_global, bins, n_bins, bootstrap, variances
        See :func:`score_headrooms`.
    y_routed
        Shape (M, N), in the place of the oracle's.
    """
    settings = bootstrap or Bootstrap()
    truth, of_global, of_oracle = (np.asarray(a, dtype=np.float64) for a in (y_true, y_global, y_routed))
    number = np.asarray(bins, dtype=np.int64)
    if of_global.shape != of_oracle.shape or of_global.shape[1:] != truth.shape or truth.shape != number.shape:
        raise InputError(
            "labels, predictions and bins need one shape (N,); found "
            f"{truth.shape}, {of_global.shape[1:]}, {of_oracle.shape[1:]}, {number.shape}"
        )
    if not (np.isfinite(truth).all() and np.isfinite(of_global).all() and np.isfinite(of_oracle).all()):
        raise InputError("labels and predictions must be finite; one holds NaN or infinity")
    if (number >= n_bins).any():
        raise InputError(f"bins must be numbers from 0 to {n_bins - 1}, or -1 outside, found {number.max()}")
    if not (number >= 0).any():
        raise InputError("no test spectrum lies in any bin, so there is nothing to score; check the bins' edges")
    strata = [number == k for k in range(n_bins)] + [number < 0]
    terms = _error_terms(truth, of_global, of_oracle)
    if variances is not None:
        terms[..., 2] += variances[1]
        terms[..., 3] += variances[0]
        terms[..., 4:] = np.nan
    sums = [terms[:, members].sum(axis=1) for members in strata]
    # One BLAS thread: the last bits of a product may depend on their number.
    with one_blas_thread():
        resampled = [_resample_sums(terms[:, members, :4], settings, k) for k, members in enumerate(strata)]
    sizes = [int(members.sum()) for members in strata]

    def score(model: int, parts: Sequence[int]) -> Score:
        return _score_of_sums(
            sum(sizes[k] for k in parts),
            np.sum([sums[k][model] for k in parts], axis=0),
            np.sum([resampled[k][model] for k in parts], axis=0),
        )

    return [
        HeadroomScore(
            covered=score(model, range(n_bins)),
            all=score(model, range(n_bins + 1)),
            bins=tuple(score(model, [k]) for k in range(n_bins)),
        )
        for model in range(len(terms))
    ]


def _error_terms(truth: FloatArray, of_global: FloatArray, of_oracle: FloatArray) -> FloatArray:
    """Return y, y², squared and absolute errors (oracle, global) of every model and spectrum, shape (M, N, 6)."""
    # A common shift leaves R² unchanged and keeps Σy² − (Σy)²/n from cancelling.
    shifted = np.broadcast_to(truth - truth.mean(), of_global.shape)
    oracle, whole = truth - of_oracle, truth - of_global
    return np.stack([shifted, shifted**2, oracle**2, whole**2, np.abs(oracle), np.abs(whole)], axis=-1)


def mean_over_seeds(scores: Sequence[Score], confidence: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean, standard deviation and interval of the figures of merit over seeds.

    The resamples are the same test spectra for every seed, so the interval is that of the seed mean: it holds
    the sampling of test spectra, while the standard deviation (n − 1; 0 for one seed) shows the noise draws.

    Returns
    -------
    mean : (3,)
    std : (3,)
    interval : (3, 2)
    """
    merits = np.stack([score.merits for score in scores])
    std = merits.std(axis=0, ddof=1) if len(scores) > 1 else np.zeros(merits.shape[1])
    pooled = np.mean([score.resampled for score in scores], axis=0)
    return merits.mean(axis=0), std, _percentiles(pooled, confidence)


def interval_of(resampled: FloatArray, confidence: float) -> tuple[float, float]:
    """Return the central interval of what resamples gave, shape (R,); NaN where none has a value.

    A resample that drew one spectrum only has no variance and no R²: it does not count.
    """
    valid = resampled[np.isfinite(resampled)]
    if not valid.size:
        return np.nan, np.nan
    low, high = np.quantile(valid, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _percentiles(resampled: FloatArray, confidence: float) -> FloatArray:
    return np.array([interval_of(column, confidence) for column in resampled.T])


def _resample_sums(terms: FloatArray, settings: Bootstrap, stratum: int) -> FloatArray:
    """Return the sums over every resample of a stratum, shape (M, R, T), of terms of shape (M, n, T).

    The indices depend on the seed, the stratum and its size only, so every model and every seed of the noise
    is scored on the same resamples.
    """
    n_models, n, n_terms = terms.shape
    columns = terms.transpose(1, 0, 2).reshape(n, n_models * n_terms)
    sums = np.zeros((settings.resamples, n_models * n_terms))
    if n:
        generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(stratum,)))
        at_once = max(1, _INDICES_AT_ONCE // n)
        for start in range(0, settings.resamples, at_once):
            rows = min(at_once, settings.resamples - start)
            counts = np.zeros((rows, n))
            count_drawn(generator.integers(0, n, size=(rows, n)), counts)
            sums[start : start + rows] = counts @ columns
    return sums.reshape(settings.resamples, n_models, n_terms).transpose(1, 0, 2)


@compiled()
def count_drawn(drawn: Any, counts: Any) -> None:
    """Count in ``counts`` (R, n) how often each number below n occurs in every row of ``drawn``."""
    for r in range(drawn.shape[0]):
        for k in range(drawn.shape[1]):
            counts[r, drawn[r, k]] += 1


def _score_of_sums(n: int, sums: FloatArray, resampled: FloatArray) -> Score:
    mae_oracle, mae_global = (sums[4:6] / n) if n else (np.nan, np.nan)
    # Of two spectra only one resample has a variance: all intervals would have no width.
    of_resamples = _merits(n if n > 2 else 0, resampled)
    return Score(n, _merits(n, sums[None, :4])[0], of_resamples, float(mae_oracle), float(mae_global))


def _merits(n: int, sums: FloatArray) -> FloatArray:
    """Return R²_oracle, R²_global and ΔR² from rows of Σy, Σy², SSE_oracle, SSE_global."""
    merits = np.full((len(sums), 3), np.nan)
    if n < 2:
        return merits
    total = sums[:, 1] - sums[:, 0] ** 2 / n
    # Below this the labels are equal but for rounding, and R² is undefined.
    defined = total > 64 * np.finfo(np.float64).eps * np.maximum(sums[:, 1], np.finfo(np.float64).tiny)
    merits[defined, 0] = 1 - sums[defined, 2] / total[defined]
    merits[defined, 1] = 1 - sums[defined, 3] / total[defined]
    merits[:, 2] = merits[:, 0] - merits[:, 1]
    return merits


# --- Scores with their resamples: what one training noise's models are worth under one test noise.


@dataclass(frozen=True, eq=False)
class ScoredDraw:
    """Models of one training noise and their scores under one test noise, for growing training sets.

    ``likeness`` compares the test spectra with the training spectra, for the first draw of every level.
    """

    noise: Noise
    test_noise: Noise
    models: Sequence[ExpertModels]
    scores: Sequence[HeadroomScore]
    likeness: Likeness | None = None

    @property
    def seed(self) -> int:
        """The seed of the training noise, or else of the test noise; ``NO_SEED`` if neither was drawn."""
        return self.noise.seed if self.noise.seed != NO_SEED else self.test_noise.seed

    @property
    def level(self) -> float:
        """The noise level of the training."""
        return self.noise.level


@dataclass(frozen=True, eq=False)
class ScoredBinning:
    """The experts of one binning and one noise draw, scored.

    Attributes
    ----------
    binning
        Which.
    draw
        The main binning's models of the same noise, scored.
    models
        The experts, and the global model.
    predicted
        What these say of the test spectra, shape (N, 1 + K), label units.
    score
        On the spectra that the binning covers. They are resampled within the main binning's bins where the binning
        covers the same spectra (then ``is_paired``, and resamples belong together), else within its own.
    coverage
        Share of all test spectra that lie in one of its bins.
    is_paired
        Whether resamples are those of the main binning.
    """

    binning: Binning
    draw: ScoredDraw
    models: ExpertModels
    predicted: FloatArray
    score: HeadroomScore
    coverage: float
    is_paired: bool


def score_binning(
    binning: Binning,
    draw: ScoredDraw,
    models: ExpertModels,
    y_true: FloatArray,
    bins: tuple[NDArray[np.int64], NDArray[np.int64]],
    predicted: FloatArray,
    bootstrap: Bootstrap,
    variance: FloatArray | None = None,
) -> ScoredBinning:
    """Score the experts of a binning on the test spectra.

    Parameters
    ----------
    binning, draw, models
        See :class:`ScoredBinning`.
    y_true
        Labels, shape (N,).
    bins
        The bins of the spectra in this binning and in the main one, shapes (N,), −1 outside.
    predicted, variance
        Shape (N, 1 + K), the global model first; the variances where predictions are means over the noise.
    bootstrap
        Resampling.
    """
    own, main = bins
    is_paired = bool(np.array_equal(own < 0, main < 0))
    strata = (main, len(draw.scores[-1].bins)) if is_paired else None
    spread = None if variance is None else variance[None]
    [score] = score_experts(y_true, predicted[None], own, bootstrap, spread, strata)
    return ScoredBinning(binning, draw, models, predicted, score, float(np.mean(own >= 0)), is_paired)
