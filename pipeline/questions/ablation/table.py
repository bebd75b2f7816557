"""What each binning gains: the main one, its columns alone, and whatever else the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.bins import Binning
from pipeline.config import ExperimentConfig
from pipeline.ridge import ExpertModels
from pipeline.scoring import (
    Estimate,
    HeadroomScore,
    estimate_merits,
    interval_of,
    merit_columns,
    resampling,
    score_experts,
)

if TYPE_CHECKING:
    from pipeline.scoring import ScoredDraw

__all__ = ["ScoredBinning", "summarise_ablation", "tabulate_ablation"]

FloatArray = NDArray[np.float64]


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
    score
        On the spectra that the binning covers; resampled within the main binning's bins where the binning covers the
        same spectra (then ``is_paired``, and resamples belong together), else within its own.
    coverage
        Share of all test spectra that lie in one of its bins.
    is_paired
        Whether resamples are those of the main binning.
    """

    binning: Binning
    draw: ScoredDraw
    models: ExpertModels
    score: HeadroomScore
    coverage: float
    is_paired: bool

    @classmethod
    def main(cls, binning: Binning, draw: ScoredDraw, coverage: float) -> ScoredBinning:
        """Return what is known of the main binning already."""
        return cls(binning, draw, draw.models[-1], draw.scores[-1], coverage, True)

    @classmethod
    def score_predictions(
        cls,
        binning: Binning,
        draw: ScoredDraw,
        models: ExpertModels,
        y_true: FloatArray,
        bins: tuple[NDArray[np.int64], NDArray[np.int64]],
        predicted: FloatArray,
        config: ExperimentConfig,
        variance: FloatArray | None = None,
    ) -> ScoredBinning:
        """Score predictions of shape (N, 1 + K), global model first; means, if they have a variance.

        ``bins`` are the binning's and the main one's, shapes (N,).
        """
        own, main = bins
        is_paired = bool(np.array_equal(own < 0, main < 0))
        strata = (main, len(draw.scores[-1].bins)) if is_paired else None
        spread = None if variance is None else variance[None]
        [score] = score_experts(y_true, predicted[None], own, resampling(config), spread, strata)
        return cls(binning, draw, models, score, float(np.mean(own >= 0)), is_paired)


def tabulate_ablation(scored: Sequence[ScoredBinning], config: ExperimentConfig) -> pd.DataFrame:
    """Return a row for each seed, noise level and binning, on the spectra that the binning covers."""
    rows = []
    for one in scored:
        rows.append(
            {
                "seed": one.draw.seed,
                "noise_level": one.draw.draw.level,
                "target": config.target,
                "binning": one.binning.name,
                "n_bins": one.binning.n_bins,
                "coverage": one.coverage,
                "n_test": one.score.covered.n_test,
                **merit_columns(one.score.covered, config.bootstrap.confidence),
            }
        )
    return pd.DataFrame(rows)


def summarise_ablation(scored: Sequence[ScoredBinning], config: ExperimentConfig) -> list[dict[str, Any]]:
    """Return what each binning gains at one noise level, over seeds, and its share of the main one's ΔR²."""
    if not scored:
        return []
    confidence = config.bootstrap.confidence
    names = list(dict.fromkeys(one.binning.name for one in scored))
    of_names = {name: [one for one in scored if one.binning.name == name] for name in names}
    main = of_names[names[0]]
    entries = []
    for name, draws in of_names.items():
        estimates = estimate_merits([one.score.covered for one in draws], confidence)
        first = draws[0]
        entries.append(
            {
                "name": name,
                "columns": list(first.binning.columns),
                "n_bins": first.binning.n_bins,
                "coverage": first.coverage,
                "n_train": int(first.models.expert_counts.sum()),
                "n_test": first.score.covered.n_test,
                **{merit: vars(estimate) for merit, estimate in estimates.items()},
                "share": vars(_share(draws, main, confidence)),
            }
        )
    return entries


def _share(draws: Sequence[ScoredBinning], main: Sequence[ScoredBinning], confidence: float) -> Estimate:
    """Return ΔR² in units of the main binning's; an interval only where both were resampled together."""
    means = [np.mean([one.score.covered.delta_r2 for one in group]) for group in (draws, main)]
    if not means[1] > 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan)
    low = high = np.nan
    if all(one.is_paired for one in draws):
        of_draws, of_main = (np.mean([one.score.covered.resampled[:, 2] for one in g], axis=0) for g in (draws, main))
        low, high = interval_of(of_draws / of_main, confidence)
    return Estimate(float(means[0] / means[1]), 0.0, low, high)
