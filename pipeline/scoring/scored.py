"""Scores with their resamples: what one training noise's models are worth under one test noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import Binning
from pipeline.noise import NO_SEED, Noise
from pipeline.ridge import ExpertModels
from pipeline.scoring.scores import Bootstrap, HeadroomScore, score_experts

__all__ = ["ScoredBinning", "ScoredDraw", "score_binning"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoredDraw:
    """Models of one training noise and their scores under one test noise, for growing training sets."""

    noise: Noise
    test_noise: Noise
    models: Sequence[ExpertModels]
    scores: Sequence[HeadroomScore]

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
