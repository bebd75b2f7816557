"""Figures of merit as the tables and the summary of a run have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.bins import BinGrid
from pipeline.config import ExperimentConfig
from pipeline.ridge import ExpertModels
from pipeline.scoring.decision import Estimate
from pipeline.scoring.scores import MERITS, SCOPES, Bootstrap, HeadroomScore, Score, mean_over_seeds

__all__ = ["estimate_merits", "merit_columns", "resampling", "summarise_parts"]


def resampling(config: ExperimentConfig) -> Bootstrap:
    """Return how the test spectra of an experiment are resampled."""
    return Bootstrap(config.bootstrap.resamples, config.bootstrap.confidence, config.bootstrap.seed)


def estimate_merits(scores: Sequence[Score], confidence: float) -> dict[str, Estimate]:
    """Return the figures of merit over seeds by name."""
    mean, std, interval = mean_over_seeds(scores, confidence)
    return {
        merit: Estimate(float(mean[k]), float(std[k]), float(interval[k, 0]), float(interval[k, 1]))
        for k, merit in enumerate(MERITS)
    }


def merit_columns(score: Score, confidence: float) -> dict[str, float]:
    """Return the figures of merit of one score and the ends of their intervals, as columns of a table."""
    intervals = score.intervals(confidence)
    columns: dict[str, float] = {}
    for k, merit in enumerate(MERITS):
        columns |= {merit: score.merits[k], f"{merit}_low": intervals[k, 0], f"{merit}_high": intervals[k, 1]}
    return columns


def summarise_parts(
    scores: Sequence[HeadroomScore], models: Sequence[ExpertModels], grid: BinGrid, confidence: float
) -> dict[str, Any]:
    """Return ``scopes`` and ``bins`` of ``summary.json``: the estimates over seeds, with numbers of spectra.

    Parameters
    ----------
    scores, models
        Of every seed.
    grid
        The bins, for their names.
    confidence
        Of the intervals.
    """
    first, of_first = scores[0], models[0]
    scopes: dict[str, Any] = {}
    for scope in SCOPES:
        estimates = estimate_merits([score.scope(scope) for score in scores], confidence)
        scopes[scope] = {
            "n_train": of_first.global_count,
            "n_test": first.scope(scope).n_test,
            **{merit: vars(estimate) for merit, estimate in estimates.items()},
        }
    of_bins = [estimate_merits([score.bins[k] for score in scores], confidence) for k in range(grid.n_bins)]
    bins = [
        {
            "bin": k,
            "names": list(grid.bin_names[k]),
            "n_train": int(of_first.expert_counts[k]),
            "n_test": first.bins[k].n_test,
            "alpha": _common([float(one.expert_alphas[k]) for one in models]),
            **{merit: vars(estimate) for merit, estimate in one.items()},
        }
        for k, one in enumerate(of_bins)
    ]
    return {"scopes": scopes, "bins": bins}


def _common(values: Sequence[float]) -> float:
    """Return what all values are; NaN where they differ, as penalties do that each seed has chosen."""
    return values[0] if len(set(values)) == 1 else math.nan
