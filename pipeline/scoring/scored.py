"""What one training noise's models scored under one test noise: what tables and summaries are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pipeline.noise import MarginalNoise, Noise, NoiseDraw
from pipeline.ridge import ExpertModels
from pipeline.scoring.results import NO_SEED
from pipeline.scoring.scores import HeadroomScore

__all__ = ["ScoredDraw"]


@dataclass(frozen=True, eq=False)
class ScoredDraw:
    """Models of one training noise and their scores under one test noise, for every prefix of the training folds.

    ``test_noise`` is None where the test files' own noisy spectra were used; ``search`` is what a search for the
    penalty found (:func:`pipeline.questions.penalty.table.tabulate_search`), if there was one; ``labels`` are the
    scores of the models of all folds for the labels beside the target.
    """

    draw: Noise
    test_noise: Noise | None
    models: Sequence[ExpertModels]
    scores: Sequence[HeadroomScore]
    search: pd.DataFrame | None = None
    labels: Mapping[str, HeadroomScore] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """What the noise was drawn from, of training or else of test spectra; ``NO_SEED`` if none was."""
        return next((one.seed for one in (self.draw, self.test_noise) if isinstance(one, NoiseDraw)), NO_SEED)

    @property
    def test_noise_name(self) -> str:
        """``stored``, ``drawn`` or ``marginal``."""
        if self.test_noise is None:
            return "stored"
        return "marginal" if isinstance(self.test_noise, MarginalNoise) else "drawn"
