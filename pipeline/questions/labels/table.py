"""The labels beside the target: the same models predict them all, so their figures of merit come with the target's.

Experts chosen by the true value of the very label that they predict would know it: where the bins are cut by a label,
only the global model's figures of it mean anything, and the others are not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.bins import BinGrid
from pipeline.config import ExperimentConfig
from pipeline.schema import LABELS
from pipeline.scoring import SCOPES, HeadroomScore, Score, merit_columns, resampling, score_experts, summarise_parts
from pipeline.scoring import results as files

if TYPE_CHECKING:
    from pipeline.scoring import ScoredDraw

__all__ = ["other_labels", "score_label", "summarise_labels", "tabulate_labels"]

FloatArray = NDArray[np.float64]


def other_labels(config: ExperimentConfig) -> tuple[str, ...]:
    """Return the labels that the models know beside the target."""
    return tuple(label for label in LABELS if label != config.target)


def score_label(
    label: str,
    y_true: FloatArray,
    bins: NDArray[np.int64],
    predicted: FloatArray,
    config: ExperimentConfig,
    variance: FloatArray | None = None,
) -> HeadroomScore:
    """Score one label; what the oracle would be told is left out.

    Parameters
    ----------
    label
        Any of :data:`pipeline.schema.LABELS`.
    y_true, bins
        Labels and bins of the test spectra, shapes (N,), −1 outside.
    predicted, variance
        The global model's and every expert's prediction, shape (N, 1 + K), label units; their variances where they are
        means over the noise.
    config
        Bins and resampling.
    """
    spread = None if variance is None else variance[None]
    [score] = score_experts(y_true, predicted[None], bins, resampling(config), spread)
    return _without_oracle(score) if label in config.bins else score


def _without_oracle(score: HeadroomScore) -> HeadroomScore:
    def blind(part: Score) -> Score:
        unknown = np.array([np.nan, 0.0, np.nan])
        return replace(part, merits=part.merits + unknown, resampled=part.resampled + unknown, mae_oracle=float("nan"))

    return HeadroomScore(blind(score.covered), blind(score.all), tuple(map(blind, score.bins)))


@dataclass(frozen=True)
class _Part:
    """A row of the table: a scope, or a bin and its expert."""

    name: str
    score: Score
    n_train: int
    alpha: float


def tabulate_labels(scored: Sequence[ScoredDraw], config: ExperimentConfig) -> pd.DataFrame:
    """Return a row per seed × noise level × label × part: ``covered``, ``all``, or the number of a bin."""
    rows = []
    for one in scored:
        models = one.models[-1]
        for label, score in one.labels.items():
            parts = [_Part(scope, score.scope(scope), models.global_count, np.nan) for scope in SCOPES]
            parts += [
                _Part(str(number), of_bin, int(models.expert_counts[number]), float(models.expert_alphas[number]))
                for number, of_bin in enumerate(score.bins)
            ]
            rows += [
                {
                    "seed": one.seed,
                    "noise_level": one.draw.level,
                    "target": label,
                    "part": part.name,
                    "alpha": part.alpha,
                    "alpha_global": models.global_alpha,
                    "n_train": part.n_train,
                    "n_test": part.score.n_test,
                    **merit_columns(part.score, config.bootstrap.confidence),
                    "mae_oracle": part.score.mae_oracle,
                    "mae_global": part.score.mae_global,
                }
                for part in parts
            ]
    return pd.DataFrame(rows, columns=list(files.LABELS_COLUMNS))


def summarise_labels(
    scored: Sequence[ScoredDraw], config: ExperimentConfig, grid: BinGrid
) -> Mapping[str, dict[str, Any]]:
    """Return scopes and bins of every other label, over the seeds of one noise level, as the target's are."""
    models = [one.models[-1] for one in scored]
    return {
        label: {"leaks": label in config.bins}
        | summarise_parts([one.labels[label] for one in scored], models, grid, config.bootstrap.confidence)
        for label in scored[0].labels
    }
