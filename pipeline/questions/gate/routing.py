"""From bin probabilities to predictions: which expert answers for a spectrum, and what that keeps of the headroom.

    ρ = (R²_routed − R²_global) / (R²_oracle − R²_global)   on the same spectra

The oracle knows the bin. ``hard`` asks the expert of the most probable bin, ``soft`` all of them, weighted by their
probabilities, ``fallback`` likewise with the global model for what may lie outside the bins, and for spectra that no
bin is probable for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import OUTSIDE
from pipeline.scoring import Bootstrap, Estimate, HeadroomScore, Score, interval_of, score_routed

__all__ = [
    "ROUTES",
    "TRUTH_QUANTILES",
    "GateQuality",
    "assess_gate",
    "cross_probabilities",
    "estimate_kept",
    "route_fallback",
    "route_soft",
    "route_spectra",
    "score_routes",
]

FloatArray = NDArray[np.float64]
#: Every way of routing, the upper bound first.
ROUTES = ("oracle", "hard", "soft", "fallback")
#: Intervals of the stated probability in which it is held against what came true.
_RELIABILITY_STEPS = 10
#: Of the probability that a spectrum's own cell was given.
TRUTH_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def route_spectra(
    predicted: FloatArray, probabilities: FloatArray, bins: NDArray[np.int64], unsure: float = 0.0
) -> dict[str, FloatArray]:
    """Return the predictions of every way of routing.

    Parameters
    ----------
    predicted
        Of the global model and every expert, shape (N, 1 + K), label units.
    probabilities
        Of every bin and, last, of the outside, shape (N, K + 1).
    bins
        The true bin, shape (N,), :data:`pipeline.bins.grid.OUTSIDE` in none; only the oracle looks.
    unsure
        Where no bin is more probable than this, ``fallback`` asks the global model alone.

    Returns
    -------
    dict
        Shape (N,) for every name in :data:`ROUTES`. Where all probability lies outside, ``soft`` is the global model.
    """
    rows, likeliest = np.arange(len(predicted)), probabilities[:, :-1].argmax(axis=1)
    return {
        "oracle": predicted[rows, np.where(bins == OUTSIDE, 0, 1 + bins)],
        "hard": predicted[rows, 1 + likeliest],
        "soft": route_soft(predicted, probabilities),
        "fallback": route_fallback(predicted, probabilities, unsure),
    }


def route_soft(predicted: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Return the mean of the experts weighted by their bins' probabilities, shape (N,); see :func:`route_spectra`."""
    inside = probabilities[:, :-1].sum(axis=1)
    mixed = np.einsum("nk,nk->n", probabilities[:, :-1], predicted[:, 1:])
    return np.where(inside > 0, mixed / np.where(inside > 0, inside, 1.0), predicted[:, 0])


def route_fallback(predicted: FloatArray, probabilities: FloatArray, unsure: float = 0.0) -> FloatArray:
    """Return the same, the global model standing for the outside and for all spectra that no bin is probable for."""
    of_global, of_bins = predicted[:, 0], probabilities[:, :-1]
    mixed = np.einsum("nk,nk->n", of_bins, predicted[:, 1:])
    return np.where(of_bins.max(axis=1) > unsure, mixed + probabilities[:, -1] * of_global, of_global)


def score_routes(
    y_true: FloatArray,
    routed: Mapping[str, FloatArray],
    of_global: FloatArray,
    bins: NDArray[np.int64],
    n_bins: int,
    bootstrap: Bootstrap,
) -> dict[str, HeadroomScore]:
    """Score every way of routing on the same spectra and resamples; each stands where the oracle stands otherwise."""
    whole = np.broadcast_to(of_global, (len(routed), len(of_global)))
    return dict(
        zip(
            routed,
            score_routed(y_true, whole, np.stack([*routed.values()]), bins, n_bins, bootstrap),
            strict=True,
        )
    )


def estimate_kept(routed: Sequence[Score], oracle: Sequence[Score], confidence: float) -> Estimate:
    """Return ρ over seeds: the ratio of mean gains, with the interval of the same ratio over paired resamples.

    NaN where the oracle gains nothing, so that there is no headroom to keep.
    """
    gain, headroom = (float(np.mean([one.delta_r2 for one in scores])) for scores in (routed, oracle))
    if not headroom > 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan)
    of_seeds = [a.delta_r2 / b.delta_r2 if b.delta_r2 > 0 else np.nan for a, b in zip(routed, oracle, strict=True)]
    gains, headrooms = (np.mean([one.resampled[:, 2] for one in scores], axis=0) for scores in (routed, oracle))
    ratios = gains[headrooms > 0] / headrooms[headrooms > 0]
    low, high = interval_of(ratios, confidence)
    spread = float(np.nanstd(of_seeds, ddof=1)) if len(of_seeds) > 1 and not np.isnan(of_seeds).any() else 0.0
    return Estimate(gain / headroom, spread, low, high)


def cross_probabilities(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the probabilities of pairs of bins of two independent gates, (N, K₁ + 1) and (N, K₂ + 1).

    Shape (N, K₁K₂ + 1): the pair (i, j) has the number i · K₂ + j; last comes what lies outside either grid.
    """
    pairs = (first[:, :-1, None] * second[:, None, :-1]).reshape(len(first), -1)
    outside = np.clip(1 - pairs.sum(axis=1, keepdims=True), 0.0, 1.0)
    return np.concatenate([pairs, outside], axis=1)


@dataclass(frozen=True, eq=False)
class GateQuality:
    """How good a gate's probabilities are, for K bins and the outside.

    Attributes
    ----------
    confusion
        Spectra by true cell (rows) and most probable one (columns), the outside last, shape (K + 1, K + 1).
    told, found, counts
        Reliability of the probability of the most probable cell: its mean, the share that lay there, and the spectra,
        in tenths of it, shapes (10,); NaN where a tenth is empty.
    spread
        Mean probability of every cell (columns) for spectra of a true one (rows), shape (K + 1, K + 1); NaN where there
        are no such spectra.
    truth_quantiles
        Quantiles :data:`TRUTH_QUANTILES` of the probability that spectra's own cell was given, by true cell, shape
        (K + 1, 5); NaN likewise.
    """

    confusion: NDArray[np.int64]
    told: FloatArray
    found: FloatArray
    counts: NDArray[np.int64]
    spread: FloatArray
    truth_quantiles: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of the spectra whose most probable cell is theirs."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: |told − found| on average over spectra (Naeini et al. 2015)."""
        filled = self.counts > 0
        gaps = np.abs(self.told[filled] - self.found[filled])
        return float((self.counts[filled] * gaps).sum() / self.counts.sum())


def assess_gate(probabilities: FloatArray, bins: NDArray[np.int64]) -> GateQuality:
    """Hold probabilities (N, K + 1) against true bins (N,)."""
    n_cells = probabilities.shape[1]
    truth = np.where(bins == OUTSIDE, n_cells - 1, bins)
    likeliest, largest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = np.bincount(truth * n_cells + likeliest, minlength=n_cells**2).reshape(n_cells, n_cells)
    step = np.minimum((largest * _RELIABILITY_STEPS).astype(np.int64), _RELIABILITY_STEPS - 1)
    counts = np.bincount(step, minlength=_RELIABILITY_STEPS)
    total = np.where(counts > 0, counts, np.nan)
    told = np.bincount(step, largest, _RELIABILITY_STEPS) / total
    found = np.bincount(step, likeliest == truth, _RELIABILITY_STEPS) / total
    spread = np.full((n_cells, n_cells), np.nan)
    quantiles = np.full((n_cells, len(TRUTH_QUANTILES)), np.nan)
    for cell in np.unique(truth):
        own = probabilities[truth == cell]
        spread[cell] = own.mean(axis=0)
        quantiles[cell] = np.quantile(own[:, cell], TRUTH_QUANTILES)
    return GateQuality(confusion, told, found, counts, spread, quantiles)
