"""What experts gain for the labels beside the target: the same models predict them all, from the same read.

If the bins are cut by a label, the choice of the expert gives its true value away. Then only the global model is scored
on this label, and the scores of the experts are undefined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base import tabulate
from pipeline.config import ExperimentConfig
from pipeline.noise import Noise
from pipeline.questions.question import Facts, Question, Reading, Trained
from pipeline.report import Section, Subject, Table, estimate_cells, symbol
from pipeline.scoring import (
    SHOWN_MERITS,
    Columns,
    Draw,
    HeadroomScore,
    Part,
    Plain,
    RunResults,
    Scope,
    Score,
    ScoredDraw,
    Stacked,
    flatten,
    merit_names,
    score_experts,
    summarise_draw,
    summarise_parts,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LabelLevel", "LabelPart", "Labels", "LabelsAnswer", "without_oracle"]

_FILE = "other_labels.csv"
_KNOWS = "the choice of the expert gives its value away, so only the global model is scored on it."
#: What a label that the bins are cut by shows instead of experts.
_LEAK = f"The bins are cut by this label: {_KNOWS}"
_ABOUT = (
    "The models of the same pass predict these labels, too, with the penalties that the target has. "
    f"Where the bins are cut by a label, {_KNOWS}"
)


class LabelPart(Part):
    """One label at one noise level, over seeds, and every noise draw by itself; ``leaks`` where the bins know it."""

    leaks: bool
    draws: tuple[Draw, ...]


class LabelLevel(Plain):
    """All labels beside the target at one noise level."""

    noise_level: float
    labels: dict[str, LabelPart]


class LabelsAnswer(Plain):
    """The labels beside the target at every noise level."""

    levels: tuple[LabelLevel, ...]


class Labels(Question[LabelsAnswer]):
    """Score the labels beside the target that all test spectra have."""

    name = "labels"
    Answer = LabelsAnswer
    files = (_FILE,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._draws: list[tuple[ScoredDraw, dict[str, HeadroomScore]]] = []

    @property
    def _labels(self) -> list[str]:
        return [label for label in self.facts.truth.labels if label != self.facts.settings.target]

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask the models of all training spectra for every label; what is only compared is compared by the target."""
        del test_noise
        return [] if trained.is_compared else [Columns.of_models(trained.whole, label) for label in self._labels]

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Score every label; what the oracle would be told is left out."""
        if reading.trained.is_compared:
            return
        scores = {}
        for label, own in zip(self._labels, found, strict=True):
            spread = None if own.variances is None else own.variances[None]
            truth, bins = self.facts.truth.labels[label], self.facts.truth.bins[0]
            [score] = score_experts(truth, own.values[None], bins, self.facts.bootstrap, spread)
            scores[label] = without_oracle(score) if label in self.facts.settings.bins else score
        self._draws.append((reading.draw, scores))

    def answer(self) -> LabelsAnswer:
        """Return scopes and bins of every label, as the target has them."""
        levels = dict.fromkeys(draw.level for draw, _ in self._draws)
        return LabelsAnswer(levels=tuple(map(self._summarise_level, levels)))

    def _summarise_level(self, level: float) -> LabelLevel:
        own = [one for one in self._draws if one[0].level == level]
        return LabelLevel(noise_level=level, labels={label: self._summarise(label, own) for label in self._labels})

    def _summarise(self, label: str, draws: Sequence[tuple[ScoredDraw, dict[str, HeadroomScore]]]) -> LabelPart:
        grid, confidence = self.facts.grid, self.facts.bootstrap.confidence
        scores, models = [scores[label] for _, scores in draws], [draw.models[-1] for draw, _ in draws]
        whole = summarise_parts(scores, models, grid, confidence)
        return LabelPart(
            **dict(whole),
            leaks=label in self.facts.settings.bins,
            draws=tuple(
                summarise_draw((draw.seed, draw.level), [score], draw.models[-1:], grid, confidence)
                for (draw, _), score in zip(draws, scores, strict=True)
            ),
        )

    @classmethod
    def tables(cls, answer: LabelsAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row per seed × noise level × label × part: ``covered``, ``all``, or the number of a bin."""
        del settings
        rows = []
        for level in answer.levels:
            for draws in zip(*(part.draws for part in level.labels.values()), strict=True):
                for label, draw in zip(level.labels, draws, strict=True):
                    origin = {"seed": draw.seed, "noise_level": draw.noise_level, "target": label}
                    parts: list[tuple[str, float, Scope]] = [
                        (scope, math.nan, one) for scope, one in draw.scopes.items()
                    ]
                    parts += [(str(one.bin), one.alpha, one) for one in draw.bins]
                    rows += [
                        {
                            **origin,
                            "part": name,
                            "alpha": alpha,
                            "alpha_global": draw.alpha_global,
                            **flatten(one, without=("bin", "alpha")),
                        }
                        for name, alpha, one in parts
                    ]
        columns = ["seed", "noise_level", "target", "part", "alpha", "alpha_global", "n_train", "n_test"]
        columns += [*merit_names("", "_low", "_high"), "mae_oracle", "mae_global"]
        return {_FILE: tabulate(rows, columns=columns)}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return the figures of merit of every label, as far as they mean anything."""
        answer = cls.read(results)
        if answer is None or not answer.levels[0].labels:
            return None
        tables = [_list_labels(level) for level in answer.levels]
        return Section("labels", "Other labels", "Other labels", (_ABOUT, *tables))

    @classmethod
    def subjects(cls, results: RunResults) -> Sequence[Subject]:
        """Return every label with its scopes and bins."""
        answer = cls.read(results)
        labels = answer.levels[0].labels if answer else {}
        return [
            Subject(
                label,
                [(level.labels[label], level.labels[label].draws) for level in answer.levels] if answer else [],
                _LEAK if part.leaks else "",
            )
            for label, part in labels.items()
        ]


def without_oracle(score: HeadroomScore) -> HeadroomScore:
    """Return the scores of a label that the bins are cut by: only the global model's mean anything."""

    def blind(part: Score) -> Score:
        unknown = np.array([np.nan, 0.0, np.nan])
        return replace(part, merits=part.merits + unknown, resampled=part.resampled + unknown, mae_oracle=math.nan)

    return HeadroomScore(blind(score.covered), blind(score.all), tuple(map(blind, score.bins)))


def _list_labels(level: LabelLevel) -> Table:
    rows = [
        (symbol(label), name, merit.symbol, *estimate_cells(merit, scope.merit(merit)))
        for label, part in level.labels.items()
        for name, scope in part.scopes.items()
        for merit in SHOWN_MERITS
        if math.isfinite(scope.merit(merit).mean)
    ]
    header = ("Label", "Test spectra", "Figure of merit", "mean", "± seeds", "low", "high")
    return Table(f"Other labels, noise level {level.noise_level:g}", header, tuple(rows), 3)
