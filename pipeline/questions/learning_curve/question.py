"""How the headroom depends on the number of training spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.bins import choose_prefixes
from pipeline.questions.question import Facts, Question, Reading
from pipeline.report import Picture, Section, Show, Table, learning_points, list_points
from pipeline.scoring import Plain, RunResults, Scope, ScoredDraw, Stacked, interval_of, summarise_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LearningAnswer", "LearningCurve", "delta_resamples"]


FloatArray = NDArray[np.float64]
#: ΔR² that differs by less leads to no other verdict: a fifth of the default threshold.
_STABLE = 0.01
#: Share of a training size by which the nearest number of whole folds may miss it without a word.
_FAR = 0.1


class LearningAnswer(Plain):
    """What the curve says, in words; its points are the ``curve`` of every noise level."""

    sentence: str


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.learning_curve.figure import draw_learning_curve  # matplotlib, which only pictures need

    return draw_learning_curve(results)


class LearningCurve(Question[LearningAnswer]):
    """Score the models of growing training sets: the first folds, one after the other."""

    name = "learning_curve"
    Answer = LearningAnswer
    pictures = (
        Picture(
            "moe_learning_curve.png",
            "Gain against the number of training spectra",
            "First panel: R² of both models on covered test spectra, against the number of training spectra. Second "
            "panel: their difference ΔR², with the thresholds of the verdict. Bars are confidence intervals. A curve "
            "that still rises at its right end says that more spectra would help. Where ΔR² falls, the global model "
            "is catching up. Only the right end counts for the verdict.",
            _draw,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._draws: list[ScoredDraw] = []

    def check(self) -> None:
        """Warn of training sizes that whole folds cannot come near."""
        folds = self.facts.settings.compute.folds
        for wanted in self.facts.settings.learning_curve or ():
            nearest = min(choose_prefixes(self.facts.plan.fold_lengths, [wanted]).values())
            if abs(nearest - wanted) > _FAR * wanted:
                self.facts.warnings.append(
                    f"learning_curve: {wanted:,} training spectra were asked for, and {nearest:,} are the nearest that "
                    f"whole folds give; more compute.folds (now {folds}) give finer steps"
                )

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Keep the scores that the verdict is about."""
        del found
        if not reading.trained.is_compared and reading.draw.level == self.facts.settings.headline_level:
            self._draws.append(reading.draw)

    def answer(self) -> LearningAnswer:
        """Say how ΔR² moves with the size of the training set."""
        draws, confidence = self._draws, self.facts.bootstrap.confidence
        points = summarise_curve([one.scores for one in draws], draws[0].models, confidence)
        return LearningAnswer(sentence=_describe(points, draws, confidence))

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return the sentence, the points, and the figure."""
        answer = cls.read(results)
        if answer is None:
            return None
        caption = (
            f"Covered test spectra, noise level {results.summary.headline.noise_level:g}, mean and interval over seeds"
        )
        points = [((), one) for one in learning_points(results)]
        table: Table = list_points(caption, (), points)
        title = "How the headroom depends on the number of training spectra"
        return Section(
            "learning", title, "Number of training spectra", (answer.sentence, table, Show("moe_learning_curve.png"))
        )


def _describe(points: Sequence[Scope], draws: Sequence[ScoredDraw], confidence: float) -> str:
    if len(points) < 2:
        return "The training set has a single usable size, so how the headroom depends on n is not known."
    first, before, last = points[0], points[-2], points[-1]
    # Pairing removes the test set's own scatter: the question is whether the last step still moves ΔR².
    low, high = interval_of(delta_resamples(draws, -1) - delta_resamples(draws, -2), confidence)
    trend, advice = "no longer changes measurably", "."
    if low > 0:
        trend, advice = "still grows", ", so more training spectra may show more headroom."
    elif high < 0:
        trend, advice = "shrinks", ": with more training spectra the global model catches up."
    step = last.delta_r2.mean - before.delta_r2.mean
    return (
        f"From {first.n_train:,} to {last.n_train:,} training spectra ΔR² goes from {first.delta_r2.mean:+.4f} to "
        f"{last.delta_r2.mean:+.4f}; over the last step, from {before.n_train:,}, it {trend} ({step:+.4f}, "
        f"{confidence:.0%} interval {low:+.4f} to {high:+.4f}){advice} {_describe_stability(points, draws, confidence)}"
    )


def _describe_stability(points: Sequence[Scope], draws: Sequence[ScoredDraw], confidence: float) -> str:
    """Say from which training size on ΔR² stays what it is with all spectra, within the tolerance."""
    last = delta_resamples(draws, -1)
    low, high = zip(
        *(interval_of(delta_resamples(draws, k) - last, confidence) for k in range(len(points))), strict=True
    )
    # The last size agrees with itself; the sizes before it must all do so up to there.
    settled = len(points) - 1
    while settled > 0 and low[settled - 1] > -_STABLE and high[settled - 1] < _STABLE:
        settled -= 1
    if settled == len(points) - 1:
        return f"No smaller size is sure to give the same within {_STABLE:g}: ΔR² is not stable yet."
    return (
        f"From {points[settled].n_train:,} on it is stable: every interval of the difference lies within ±{_STABLE:g}."
    )


def delta_resamples(draws: Sequence[ScoredDraw], size: int) -> FloatArray:
    """Return every resample's ΔR² of covered spectra at one training size, mean over seeds, shape (R,)."""
    return np.asarray(np.mean([one.scores[size].covered.resampled[:, 2] for one in draws], axis=0))
