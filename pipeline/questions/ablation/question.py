"""What other ways to divide the spectra gain: each column of the bins alone, and whatever else is named."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.config import ExperimentConfig
from pipeline.questions.question import Facts, Needs, Question, Reading
from pipeline.report import Picture, Section, Show, Table, estimate_cells, over_seeds, percent_cell, symbol, thresholds
from pipeline.report.figures.canvas import (
    INK,
    MUTED,
    ORACLE,
    SMALL,
    TEXT,
    add_interval,
    add_title,
    is_narrow,
    new_figure,
    page_width,
    style_axes,
)
from pipeline.scoring import (
    DELTA_R2,
    R2_GLOBAL,
    R2_ORACLE,
    Estimate,
    Plain,
    RunResults,
    Scope,
    ScoredBinning,
    Stacked,
    flatten,
    interval_of,
    summarise_scope,
)

__all__ = ["Ablation", "AblationAnswer", "AblationLevel", "BinningDraw", "BinningScope", "draw_ablation"]

# --- What other binnings gain, as the summary of a run has it.


class BinningDraw(Plain):
    """What one binning gains under one noise draw."""

    seed: int
    scope: Scope


class BinningScope(Scope):
    """What one binning gains on the spectra that it covers, a share ``coverage`` of all test spectra, over seeds.

    ``share`` is ΔR² in units of the main binning's, which comes first. It has an interval only where both cover the
    same spectra.
    """

    name: str
    columns: tuple[str, ...]
    n_bins: int
    coverage: float
    share: Estimate
    draws: tuple[BinningDraw, ...]


class AblationLevel(Plain):
    """All binnings at one noise level, the main one first."""

    noise_level: float
    binnings: tuple[BinningScope, ...]


class AblationAnswer(Plain):
    """All binnings at every noise level."""

    levels: tuple[AblationLevel, ...]

    def at(self, noise_level: float) -> tuple[BinningScope, ...]:
        """Return the binnings at one noise level."""
        return next((level.binnings for level in self.levels if level.noise_level == noise_level), ())


# --- What other ways to divide the spectra among experts gain: one bar of ΔR² for each binning.


def draw_ablation(results: RunResults, views: Sequence[BinningScope]) -> Figure:
    """Draw ΔR² of every binning at the headline noise level, the main one on top, with intervals and shares."""
    figure = new_figure(page_width(), max(3.8, 0.8 * len(views) + 2.4))
    axes = figure.subplots()
    for place, view in enumerate(views):
        value = view.delta_r2.mean if math.isfinite(view.delta_r2.mean) else 0.0
        axes.barh(place, value, height=0.6, color=ORACLE if place == 0 else MUTED)
        add_interval(axes, place, view.delta_r2, horizontal=True)
        ends = [value, view.delta_r2.high, 0.0]
        at = max(end for end in ends if math.isfinite(end))
        axes.annotate(
            _words(view, is_main=place == 0), (at, place), (8, 0), textcoords="offset points", va="center",
            fontsize=SMALL, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.set_yticks(range(len(views)), [f"{_name(view)}\n{view.n_bins} experts" for view in views])
    axes.invert_yaxis()
    limit = thresholds(results).continue_
    axes.axvline(limit, color=INK, linewidth=1.2, linestyle="--")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    style_axes(axes, x=f"ΔR²  (dashed: build experts, ≥ {limit:g})", y="binning", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=TEXT)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + (1.6 if is_narrow() else 0.45) * (high - low))  # room for the words
    add_title(
        figure,
        "Which division of the spectra brings the gain?",
        f"Test spectra that each binning covers, noise level {results.summary.headline.noise_level:g}"
        f"{over_seeds(results)}. Bars: {results.summary.confidence:.0%} interval. Percentages beside ΔR² are shares "
        "of the topmost ΔR².",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _name(view: BinningScope) -> str:
    return (
        f"{view.name} ({' × '.join(symbol(column) for column in view.columns)})" if view.name == "bins" else view.name
    )


def _words(view: BinningScope, *, is_main: bool) -> str:
    words = f"{view.delta_r2.mean:+.4f}" if math.isfinite(view.delta_r2.mean) else "undefined"
    if not is_main and math.isfinite(view.share.mean):
        words += f", {view.share.mean:.0%}"
    return f"{words}; covers {view.coverage:.0%}".replace("-", "−")


_FILE = "ablation.csv"


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
            lambda results: draw_ablation(results, _at_headline(results)),
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
        return {_FILE: pd.DataFrame(rows)}

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
