"""How the figures of merit move with the number of training spectra; and what marginal noise makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExperimentConfig
from pipeline.scoring import estimate_merits, interval_of

if TYPE_CHECKING:
    from pipeline.scoring import ScoredDraw

__all__ = ["compare_learning", "summarise_learning"]

FloatArray = NDArray[np.float64]
#: ΔR² that differs by less leads to no other verdict: a fifth of the default threshold.
_STABLE = 0.01


def summarise_learning(scored: Sequence[ScoredDraw], config: ExperimentConfig) -> dict[str, Any]:
    """Return how the figures of merit on covered spectra move with the size of the training set, and say it."""
    confidence = config.bootstrap.confidence
    sizes = [model.global_count for model in scored[0].models]
    estimates = [estimate_merits([one.scores[k].covered for one in scored], confidence) for k in range(len(sizes))]
    points = [
        {"n_train": size, **{merit: vars(estimate) for merit, estimate in point.items()}}
        for size, point in zip(sizes, estimates, strict=True)
    ]
    if len(sizes) < 2:
        sentence = "The training set has a single usable size, so how the headroom depends on n is not known."
        return {"sentence": sentence, "points": points}
    first, before, last = (estimates[k]["delta_r2"] for k in (0, -2, -1))
    # Pairing removes the test set's own scatter: the question is whether the last step still moves ΔR².
    low, high = interval_of(_resampled(scored, -1) - _resampled(scored, -2), confidence)
    trend, advice = "no longer changes measurably", "."
    if low > 0:
        trend, advice = "still grows", ", so more training spectra may show more headroom."
    elif high < 0:
        trend, advice = "shrinks", ": with more training spectra the global model catches up."
    sentence = (
        f"From {sizes[0]:,} to {sizes[-1]:,} training spectra ΔR² goes from {first.mean:+.4f} to {last.mean:+.4f}; "
        f"over the last step, from {sizes[-2]:,}, it {trend} ({last.mean - before.mean:+.4f}, {confidence:.0%} "
        f"interval {low:+.4f} to {high:+.4f}){advice}"
    )
    return {"sentence": f"{sentence} {_stability(scored, sizes, confidence)}", "points": points}


def _stability(scored: Sequence[ScoredDraw], sizes: Sequence[int], confidence: float) -> str:
    """Say from which training size on ΔR² stays what it is with all spectra, within the tolerance."""
    last = _resampled(scored, -1)
    low, high = zip(*(interval_of(_resampled(scored, k) - last, confidence) for k in range(len(sizes))), strict=True)
    # The last size agrees with itself; the sizes before it must all do so up to there.
    settled = len(sizes) - 1
    while settled > 0 and low[settled - 1] > -_STABLE and high[settled - 1] < _STABLE:
        settled -= 1
    if settled == len(sizes) - 1:
        return f"No smaller size is sure to give the same within {_STABLE:g}: ΔR² is not stable yet."
    return f"From {sizes[settled]:,} on it is stable: every interval of the difference lies within ±{_STABLE:g}."


def compare_learning(
    drawn: Sequence[ScoredDraw], marginal: Sequence[ScoredDraw], config: ExperimentConfig
) -> dict[str, Any]:
    """Return what training on marginal noise gives at every training size, beside drawn noise, and say it.

    Parameters
    ----------
    drawn, marginal
        The scores of one noise level, over seeds; all on the same test spectra and resamples.
    config
        For the confidence.
    """
    confidence = config.bootstrap.confidence
    entry = summarise_learning(marginal, config)
    sizes = [model.global_count for model in drawn[0].models]
    gain = _mean(marginal, -1)[2] - _mean(drawn, -1)[2]
    low, high = interval_of(_resampled(marginal, -1) - _resampled(drawn, -1), confidence)
    meaning = "no measurable difference" if low <= 0 <= high else "more" if low > 0 else "less"
    sentences = [
        f"With all {sizes[-1]:,} training spectra marginal noise gives ΔR² {_mean(marginal, -1)[2]:+.4f} against "
        f"{_mean(drawn, -1)[2]:+.4f} with drawn noise: {meaning} ({gain:+.4f}, {confidence:.0%} interval {low:+.4f} to "
        f"{high:+.4f})."
    ]
    first = marginal[0].models[0].global_count
    for k, name in enumerate(("R²_oracle", "R²_global")):
        reached = _mean(marginal, 0)[k]
        enough = next((n for place, n in enumerate(sizes) if _mean(drawn, place)[k] >= reached), None)
        how = f"takes {enough:,}" if enough is not None else f"does not get there with {sizes[-1]:,}"
        sentences.append(f"Marginal noise on {first:,} spectra gives {name} {reached:.4f}; drawn noise {how}.")
    return {"sentence": " ".join(sentences), "points": entry["points"]}


def _mean(scored: Sequence[ScoredDraw], size: int) -> FloatArray:
    """Return R²_oracle, R²_global and ΔR² on covered spectra at one training size, over seeds."""
    return np.asarray(np.mean([one.scores[size].covered.merits for one in scored], axis=0))


def _resampled(scored: Sequence[ScoredDraw], size: int) -> FloatArray:
    """Return every resample's ΔR² at one training size, over seeds, shape (R,)."""
    return np.asarray(np.mean([one.scores[size].covered.resampled[:, 2] for one in scored], axis=0))
