"""What one training noise's models scored under one test noise: what tables and summaries are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pipeline.noise import NO_SEED, Noise
from pipeline.ridge import ExpertModels
from pipeline.scoring.scores import HeadroomScore

__all__ = ["ScoredDraw"]


@dataclass(frozen=True, eq=False)
class ScoredDraw:
    """Models of one training noise and their scores under one test noise, for every prefix of the training folds.

    ``search`` is what a search for the penalty found (:func:`pipeline.questions.penalty.table.tabulate_search`), if
    there was one; ``labels`` are the scores of the models of all folds for the labels beside the target.
    """

    draw: Noise
    test_noise: Noise
    models: Sequence[ExpertModels]
    scores: Sequence[HeadroomScore]
    search: pd.DataFrame | None = None
    labels: Mapping[str, HeadroomScore] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """What the noise was drawn from, of training or else of test spectra; ``NO_SEED`` if none was."""
        return next((one.seed for one in (self.draw, self.test_noise) if one.has_seed), NO_SEED)

    @property
    def test_noise_name(self) -> str:
        """``stored``, ``drawn`` or ``marginal``."""
        return self.test_noise.kind
