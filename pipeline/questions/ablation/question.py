"""What other ways to divide the spectra gain: each column of the bins alone, and whatever else is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base import tabulate
from pipeline.config import ExperimentConfig
from pipeline.questions.ablation.answer import AblationAnswer, AblationLevel, BinningDraw, BinningScope
from pipeline.questions.question import Facts, Needs, Question, Reading
from pipeline.report import Picture, Section, Show, Table, estimate_cells, percent_cell, symbol
from pipeline.scoring import (
    DELTA_R2,
    R2_GLOBAL,
    R2_ORACLE,
    Estimate,
    RunResults,
    ScoredBinning,
    Stacked,
    flatten,
    interval_of,
    summarise_scope,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Ablation"]


_FILE = "ablation.csv"


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.ablation.figure import draw_ablation  # matplotlib, which only pictures need

    return draw_ablation(results, _at_headline(results))


class Ablation(Question[AblationAnswer]):
    """Hold other binnings against the main one; asked by ``ablation`` and ``binnings``."""

    name = "ablation"
    Answer = AblationAnswer
    files = (_FILE,)
    asked_by = "`binnings`, or `ablation: true` with bins of two columns"
    pictures = (
        Picture(
            "moe_ablation.png",
            "Gain of other divisions",
            "Each bar is ΔR² of one way to divide the spectra, with its confidence interval. Beside it stand ΔR², its "
            "share of the topmost ΔR², and the share of the test spectra that the division covers. A share near 100 % "
            "with fewer experts says that the columns left out bring little. Each division is scored on the spectra "
            "that it covers.",
            _draw,
            lambda results: bool(_at_headline(results)),
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._scored: list[ScoredBinning] = []

    @classmethod
    def needs(cls, settings: ExperimentConfig) -> Needs:
        """Ask for the binnings that the settings name, and for the columns of the main one alone."""
        return Needs(binnings=settings.binnings, columns_alone=settings.ablation)

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Keep the scores of all binnings."""
        del found
        self._scored += reading.binnings

    def answer(self) -> AblationAnswer | None:
        """Return what every binning gains; None where there is only the main one."""
        if not self._scored:
            return None
        levels = dict.fromkeys(one.draw.level for one in self._scored)
        return AblationAnswer(levels=tuple(map(self._summarise_level, levels)))

    def _summarise_level(self, level: float) -> AblationLevel:
        own = [one for one in self._scored if one.draw.level == level]
        names = list(dict.fromkeys(one.binning.name for one in own))
        of_names = {name: [one for one in own if one.binning.name == name] for name in names}
        main, confidence = of_names[names[0]], self.facts.bootstrap.confidence
        binnings = tuple(_summarise(draws, main, confidence) for draws in of_names.values())
        return AblationLevel(noise_level=level, binnings=binnings)

    @classmethod
    def tables(cls, answer: AblationAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row for each seed, noise level and binning, on the spectra that the binning covers."""
        rows = []
        for level in answer.levels:
            for draws in zip(*(binning.draws for binning in level.binnings), strict=True):
                for binning, draw in zip(level.binnings, draws, strict=True):
                    rows.append(
                        {
                            "seed": draw.seed,
                            "noise_level": level.noise_level,
                            "target": settings.target,
                            "binning": binning.name,
                            "n_bins": binning.n_bins,
                            "coverage": binning.coverage,
                            **flatten(draw.scope, without=("n_train", "mae_oracle", "mae_global")),
                        }
                    )
        return {_FILE: tabulate(rows)}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return what every binning gains at every noise level, and the figure."""
        answer = cls.read(results)
        if answer is None:
            return None
        about = (
            "All rows come from the same pass over the spectra. The column share is ΔR² divided by that of the first "
            "row. It has an interval where both rows cover the same spectra."
        )
        tables = [_list_binnings(level) for level in answer.levels]
        title = "Other ways to divide the spectra"
        return Section("binnings", title, "Other divisions", (about, *tables, Show("moe_ablation.png")))


def _at_headline(results: RunResults) -> tuple[BinningScope, ...]:
    answer = Ablation.read(results)
    return answer.at(results.summary.headline.noise_level) if answer else ()


def _summarise(draws: Sequence[ScoredBinning], main: Sequence[ScoredBinning], confidence: float) -> BinningScope:
    first = draws[0]
    n_train = int(first.models.expert_counts.sum())
    return BinningScope(
        **dict(summarise_scope([one.score.covered for one in draws], n_train, confidence)),
        name=first.binning.name,
        columns=first.binning.columns,
        n_bins=first.binning.n_bins,
        coverage=first.coverage,
        share=_share(draws, main, confidence),
        draws=tuple(
            BinningDraw(seed=one.draw.seed, scope=summarise_scope([one.score.covered], n_train, confidence))
            for one in draws
        ),
    )


def _share(draws: Sequence[ScoredBinning], main: Sequence[ScoredBinning], confidence: float) -> Estimate:
    """Return ΔR² in units of the main binning's; an interval only where both were resampled together."""
    of_draws, of_main = (np.mean([one.score.covered.delta_r2 for one in group]) for group in (draws, main))
    if not of_main > 0:
        return Estimate.unknown()
    low = high = np.nan
    if all(one.is_paired for one in draws):
        resampled = [np.mean([one.score.covered.resampled[:, 2] for one in g], axis=0) for g in (draws, main)]
        low, high = interval_of(resampled[0] / resampled[1], confidence)
    return Estimate.of(float(of_draws / of_main), 0.0, low, high)


def _list_binnings(level: AblationLevel) -> Table:
    rows = [
        (
            one.name,
            " × ".join(symbol(column) for column in one.columns),
            str(one.n_bins),
            R2_GLOBAL.format(one.r2_global.mean),
            R2_ORACLE.format(one.r2_oracle.mean),
            *estimate_cells(DELTA_R2, one.delta_r2),
            *(percent_cell(value) for value in (one.share.mean, one.share.low, one.share.high)),
            percent_cell(one.coverage, digits=1),
            f"{one.n_test:,}",
        )
        for one in level.binnings
    ]
    header = (
        *("Binning", "Columns", "Experts", "R²_global", "R²_oracle", "ΔR²", "± seeds", "low", "high"),
        *("share", "low", "high", "coverage", "n test"),
    )
    return Table(f"Binnings, noise level {level.noise_level:g}", header, tuple(rows), 2)
