"""How noise changes what experts gain: ΔR² at every noise level of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import DecisionConfig
from pipeline.errors import enumerate_words
from pipeline.questions.amplification.answer import AmplificationAnswer
from pipeline.questions.question import Facts, Question, Reading
from pipeline.report import Picture, Section, Show, Table, merit_cells, thresholds
from pipeline.scoring import DELTA_R2, R2_GLOBAL, R2_ORACLE, RunResults, Stacked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Amplification"]


def _describe(results: RunResults) -> str:
    """Say what the figure shows of these levels."""
    answer = Amplification.read(results)
    words = (
        "First panel: R² of both models on covered test spectra, at every noise level. Second panel: their difference "
        "ΔR², with the thresholds of the verdict. Bars are confidence intervals. "
    )
    if answer is not None and math.isfinite(answer.ratio):
        words += f"ΔR² at noise level {answer.high:g} is {answer.ratio:.1f} times that at {answer.low:g}. "
    return words + _describe_crossings(results)


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.amplification.figure import draw_noise_levels  # matplotlib, which only pictures need

    return draw_noise_levels(results, Amplification.read(results))


class Amplification(Question[AmplificationAnswer]):
    """Compare the noise levels of a run; asked where it has several."""

    name = "amplification"
    Answer = AmplificationAnswer
    pictures = (
        Picture(
            "moe_noise_amplification.png",
            "Gain against the noise level",
            _describe,
            _draw,
            lambda results: Amplification.read(results) is not None,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._deltas: dict[float, list[float]] = {}

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Keep the ΔR² of covered spectra."""
        del found
        if not reading.trained.is_compared:
            self._deltas.setdefault(reading.draw.level, []).append(reading.draw.scores[-1].covered.delta_r2)

    def answer(self) -> AmplificationAnswer | None:
        """Compare noise level 1 with 0.2, or else the highest with the lowest above 0; None for a single level."""
        if len(self._deltas) < 2:
            return None
        means = {level: float(np.mean(deltas)) for level, deltas in self._deltas.items() if level > 0}
        low, high = (0.2, 1.0) if {0.2, 1.0} <= set(means) else (min(means), max(means))
        defined = low != high and means[low] > 0 and means[high] > 0
        return AmplificationAnswer(low=low, high=high, ratio=means[high] / means[low] if defined else math.nan)

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return R², ΔR² and the verdict at every level, and the figure."""
        if cls.read(results) is None:
            return None
        rows = [
            (
                f"{level.noise_level:g}",
                level.decision.verdict,
                R2_GLOBAL.format(level.covered.r2_global.mean),
                R2_ORACLE.format(level.covered.r2_oracle.mean),
                *merit_cells(DELTA_R2, level.covered.delta_r2),
            )
            for level in results.summary.levels
        ]
        header = ("Noise level", "Verdict", "R²_global", "R²_oracle", "ΔR²", "low", "high")
        table = Table("Covered test spectra at every noise level", header, tuple(rows), 2)
        return Section("noise-levels", "Noise levels", "Noise levels", (table, Show("moe_noise_amplification.png")))


def _describe_crossings(results: RunResults) -> str:
    """Say between which noise levels the mean of ΔR² crosses a threshold, and nothing that the curve does not do."""
    limits = thresholds(results)
    means = {}
    for level in sorted(results.summary.levels, key=lambda level: level.noise_level):
        if math.isfinite(level.covered.delta_r2.mean):
            means[level.noise_level] = level.covered.delta_r2.mean
    if not means:
        return "ΔR² is undefined at every noise level."
    crossings = []
    for low, high in pairwise(means):
        crossed = [
            f"{limit:g}" for limit in (limits.continue_, limits.stop) if (means[low] >= limit) != (means[high] >= limit)
        ]
        if crossed:
            crossings.append(f"{enumerate_words(crossed)} between noise levels {low:g} and {high:g}")
    if crossings:
        return f"ΔR² crosses {'; '.join(crossings)}."
    return f"ΔR² crosses no threshold: at all these noise levels it is {_place(max(means.values()), limits)}."


def _place(value: float, limits: DecisionConfig) -> str:
    if value >= limits.continue_:
        return f"at or above {limits.continue_:g}"
    return f"below {limits.stop:g}" if value < limits.stop else f"between {limits.stop:g} and {limits.continue_:g}"
