"""What one noise draw per spectrum loses against the expectation over all draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.config import ExperimentConfig
from pipeline.questions.learning_curve import delta_resamples
from pipeline.questions.question import Facts, Question, Reading
from pipeline.report import Picture, Section, Show, learning_points, list_points
from pipeline.scoring import (
    MERITS,
    Draw,
    Plain,
    RunResults,
    Scope,
    ScoredDraw,
    Stacked,
    interval_of,
    summarise_curve,
    summarise_draw,
    tabulate_overall,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["MarginalAnswer", "MarginalCurve"]

_FILES = {"drawn": "drawn_learning_curve.csv", "marginal": "marginal_learning_curve.csv"}


class MarginalAnswer(Plain):
    """The learning curve of training on the noise that the verdict is not about, beside that which it is about.

    ``compared`` is that noise, ``marginal`` or ``drawn``. ``points`` are those of the headline level over seeds;
    ``draws`` are the scores at every level.
    """

    compared: Literal["drawn", "marginal"] = "marginal"
    sentence: str
    points: tuple[Scope, ...]
    draws: tuple[Draw, ...]

    def curves(self, results: RunResults) -> dict[str, Sequence[Scope]]:
        """Return the curves of both kinds of noise, drawn noise first."""
        found = {name: learning_points(results) for name in _FILES}
        return found | {self.compared: self.points}


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.marginal_curve.figure import draw_marginal_noise  # matplotlib, which only pictures need

    answer = MarginalCurve.read(results)
    assert answer is not None
    return draw_marginal_noise(results, answer.curves(results))


class MarginalCurve(Question[MarginalAnswer]):
    """Hold training on marginal noise against training on drawn noise; asked where a run trains on both."""

    name = "marginal_curve"
    Answer = MarginalAnswer
    files = tuple(_FILES.values())
    asked_by = "`noise: {mode: both}` or `checked`"
    pictures = (
        Picture(
            "moe_marginal_noise.png",
            "Drawn and marginal training noise",
            "First panel: R² of both models against the number of training spectra. Second panel: their difference "
            "ΔR². Full lines are for training on drawn noise, dashed lines for marginal noise. Bars are confidence "
            "intervals. Where the dashed line lies above the full one, the number of noisy spectra limits the model. "
            "More draws of the same spectra would then help as much as more spectra.",
            _draw,
            lambda results: MarginalCurve.read(results) is not None,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._heard: dict[str, list[ScoredDraw]] = {}
        self._compared: Literal["drawn", "marginal"] | None = None

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Keep the scores of both kinds of noise."""
        del found
        kind: Literal["drawn", "marginal"] = "drawn" if reading.trained.noise.is_single else "marginal"
        self._heard.setdefault(kind, []).append(reading.draw)
        if reading.trained.is_compared:
            self._compared = kind

    def answer(self) -> MarginalAnswer | None:
        """Hold the two curves against each other; None where one kind of noise was trained on."""
        if self._compared is None:
            return None
        confidence, compared = self.facts.bootstrap.confidence, self._heard[self._compared]
        drawn, marginal, shown = (
            [one for one in draws if one.level == self.facts.settings.headline_level]
            for draws in (self._heard["drawn"], self._heard["marginal"], compared)
        )
        return MarginalAnswer(
            compared=self._compared,
            sentence=_describe(drawn, marginal, confidence),
            points=summarise_curve([one.scores for one in shown], shown[0].models, confidence),
            draws=tuple(
                summarise_draw((one.seed, one.level), one.scores, one.models, self.facts.grid, confidence)
                for one in compared
            ),
        )

    @classmethod
    def tables(cls, answer: MarginalAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return the scores of every training set."""
        return {_FILES[answer.compared]: tabulate_overall(answer.draws, settings.target, curve=True)}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return the sentence, both curves, and the figure."""
        answer = cls.read(results)
        if answer is None:
            return None
        points = [((name,), one) for name, own in answer.curves(results).items() for one in own]
        caption = f"Covered test spectra, noise level {results.summary.headline.noise_level:g}, by training noise"
        sentence = (
            "With marginal noise a model is trained on the exact expectation over all draws of the noise, as if each "
            f"spectrum had been seen with infinitely many draws. {answer.sentence}"
        )
        blocks = (sentence, list_points(caption, ("Training noise",), points), Show("moe_marginal_noise.png"))
        return Section("marginal", "Drawn and marginal noise", "Drawn and marginal noise", blocks)


def _describe(drawn: Sequence[ScoredDraw], marginal: Sequence[ScoredDraw], confidence: float) -> str:
    """Say what marginal noise gains with all spectra, and how many drawn ones give what few marginal ones do."""
    sizes = [model.global_count for model in drawn[0].models]
    of_marginal, of_drawn = _mean(marginal, -1)[2], _mean(drawn, -1)[2]
    low, high = interval_of(delta_resamples(marginal, -1) - delta_resamples(drawn, -1), confidence)
    meaning = "no measurable difference" if low <= 0 <= high else "more" if low > 0 else "less"
    sentences = [
        f"With all {sizes[-1]:,} training spectra marginal noise gives ΔR² {of_marginal:+.4f} against "
        f"{of_drawn:+.4f} with drawn noise: {meaning} ({of_marginal - of_drawn:+.4f}, {confidence:.0%} interval "
        f"{low:+.4f} to {high:+.4f})."
    ]
    first = marginal[0].models[0].global_count
    for k, merit in enumerate(MERITS[:2]):
        reached = _mean(marginal, 0)[k]
        enough = next((n for place, n in enumerate(sizes) if _mean(drawn, place)[k] >= reached), None)
        how = f"takes {enough:,}" if enough is not None else f"does not reach it with {sizes[-1]:,}"
        sentences.append(f"Marginal noise on {first:,} spectra gives {merit.symbol} {reached:.4f}; drawn noise {how}.")
    return " ".join(sentences)


def _mean(draws: Sequence[ScoredDraw], size: int) -> np.ndarray:
    """Return the figures of merit of covered spectra at one training size, mean over seeds."""
    return np.asarray(np.mean([one.scores[size].covered.merits for one in draws], axis=0))
