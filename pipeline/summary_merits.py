"""Figures of merit as the tables and the summary of a run have them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import ExperimentConfig
from pipeline.decision import Estimate
from pipeline.scores import MERITS, Bootstrap, Score, mean_over_seeds

__all__ = ["estimate_merits", "merit_columns", "resampling"]


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
