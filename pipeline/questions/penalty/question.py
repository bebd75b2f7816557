"""Which penalty the training folds chose, and what the test spectra say of the choice; with the figure of R² against
the penalty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import AlphaSearch, ExperimentConfig
from pipeline.errors import enumerate_words
from pipeline.noise import Noise
from pipeline.questions.question import Facts, Question, Reading, Trained
from pipeline.report import Picture, Section, Show, Table, count_choices, over_seeds, symbol
from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SMALL,
    TEXT,
    add_title,
    is_narrow,
    is_slide,
    new_figure,
    page_width,
    room_for_title,
    show_empty,
    style_axes,
    tallest,
)
from pipeline.ridge import SolvedSearch, format_alpha, total_squares
from pipeline.scoring import MISSING, Columns, Number, Plain, RunResults, Stacked, find_open_edges

__all__ = ["GLOBAL_MODEL", "Penalty", "PenaltyAnswer", "PenaltyDraw", "PenaltyPath", "draw_alpha_search"]

FloatArray = NDArray[np.float64]

#: The global model among the models of a search; experts have the number of their bin.
GLOBAL_MODEL = "global"

#: R² further below the best than this would press all curves flat: axes end there.
_DEEPEST = 1.0


def draw_alpha_search(results: RunResults, paths: pd.DataFrame) -> Figure:
    """Draw R² on held-out folds, and on test spectra, against the penalty: a panel for each model.

    ``paths`` are the rows of ``alpha_search.csv``. Curves are means over seeds at the headline noise level; every
    penalty that a seed chose is marked.
    """
    level = results.summary.headline
    rows = paths[paths["noise_level"] == level.noise_level]
    names = {GLOBAL_MODEL: "Global ridge"} | {str(one.bin): one.label for one in level.bins}
    n_columns = _choose_columns([*names.values()])
    n_rows = math.ceil(len(names) / n_columns)
    is_full = len(names) == n_rows * n_columns
    height = 2.0 * n_rows + 0.4 * is_full + (1.5 if is_slide() else 0.7)
    figure = new_figure(page_width(), min(height, tallest()) + room_for_title())
    if rows.empty:
        show_empty(figure.subplots(), "no penalty was searched for in this run")
    else:
        panels, legend = _place_panels(figure, len(names), n_rows, n_columns)
        for axes, (model, name) in zip(panels, names.items(), strict=True):
            title = _cut(name, _count_letters(n_columns))
            _draw_model(axes, rows[rows["model"] == model], title, GLOBAL if model == GLOBAL_MODEL else ORACLE)
        _label_penalties(panels, sorted(rows["alpha"].unique()))
        for number, axes in enumerate(panels):
            # The place below is the legend's or empty: the axis is labelled here.
            is_last = number + n_columns >= len(names)
            axes.tick_params(labelbottom=is_last)
            axes.set_xlabel("penalty α" if is_last else "", fontsize=SMALL)
        _draw_legend(legend, is_row=is_full)
    add_title(
        figure,
        "Which penalty the training folds choose",
        f"Noise level {level.noise_level:g}{over_seeds(results)}. Solid: R² on held-out folds of the training set, "
        "which chose. Dashed: R² on test spectra, which played no part in the choice.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _choose_columns(names: Sequence[str]) -> int:
    """Return how many panels stand side by side: so many that all names fit and few places stay empty."""
    if is_narrow():
        return 2
    return min(
        (4, 5) if is_slide() else (3, 4, 5),
        key=lambda columns: (max(map(len, names)) > _count_letters(columns), -len(names) % columns, columns),
    )


def _count_letters(n_columns: int) -> int:
    """Return how many letters fit above a panel."""
    return int(10.6 * (page_width() / n_columns - 0.6))


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _place_panels(figure: Figure, n_models: int, n_rows: int, n_columns: int) -> tuple[list[Axes], Axes]:
    """Return a panel for each model, and a place for the legend: the next one, or above all if none is left."""
    is_full = n_models == n_rows * n_columns
    grid = figure.add_gridspec(n_rows + is_full, n_columns, height_ratios=[0.08] * is_full + [1.0] * n_rows)
    places = [grid[row, column] for row in range(is_full, n_rows + is_full) for column in range(n_columns)]
    first = figure.add_subplot(places[0])
    panels = [first, *(figure.add_subplot(place, sharex=first) for place in places[1:n_models])]
    legend = figure.add_subplot(grid[0, :] if is_full else places[n_models])
    legend.set_axis_off()
    return panels, legend


def _draw_model(axes: Axes, rows: pd.DataFrame, name: str, color: str) -> None:
    means = rows.groupby("alpha")[["r2_cv", "r2_test"]].mean()
    for column, dashes, width in (("r2_test", (0, (4, 2)), 1.6), ("r2_cv", "-", 2.4)):
        axes.plot(means.index, means[column], color=color, linestyle=dashes, linewidth=width)
    chosen = means.loc[sorted(rows.loc[rows["chosen"], "alpha"].unique()), "r2_cv"]
    for alpha in chosen.index:
        axes.axvline(alpha, color=MUTED, linewidth=0.9, zorder=1)
    axes.plot(chosen.index, chosen, color=INK, marker="o", markersize=8, linestyle="none", zorder=5)
    style_axes(axes, y="R²", grid="y")
    axes.set_title(name, loc="left", fontsize=SMALL, color=INK)
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    axes.margins(y=0.12)
    values = means.to_numpy()
    best, worst = (float(np.nanmax(values)), float(np.nanmin(values))) if np.isfinite(values).any() else (np.nan,) * 2
    if not math.isfinite(best):
        axes.yaxis.set_major_locator(NullLocator())
        axes.text(0.5, 0.5, "no R²", transform=axes.transAxes, ha="center", va="center", fontsize=TEXT, color=MUTED)
    elif worst < best - _DEEPEST:
        axes.set_ylim(best - _DEEPEST, best + 0.12 * _DEEPEST)


def _label_penalties(panels: Sequence[Axes], alphas: Sequence[float]) -> None:
    """Label the penalties that were tried, thinned where they would touch; both ends come first."""
    reach = math.log(alphas[-1] / alphas[0])
    shown: list[float] = []
    for alpha in dict.fromkeys([alphas[-1], alphas[0], *alphas]):
        if all(abs(math.log(other / alpha)) >= 0.24 * reach for other in shown):
            shown.append(alpha)
    for axes in panels:
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_major_formatter(FixedFormatter([format_alpha(alpha) for alpha in shown]))
        axes.xaxis.set_minor_locator(NullLocator())


def _draw_legend(axes: Axes, *, is_row: bool) -> None:
    lines = [
        Line2D([], [], color=INK, linewidth=2.4, label="held-out folds"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label="test (no part in it)"),
        Line2D([], [], color=INK, marker="o", markersize=8, linestyle="none", label="chosen α"),
    ]
    look: dict[str, Any] = {"loc": "center left", "frameon": False, "fontsize": SMALL if is_row else TEXT}
    if is_row:
        look |= {"ncols": len(lines), "handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.0}
    else:
        look |= {"title": "R² against α", "title_fontsize": TEXT}
    axes.legend(handles=lines, **look)


_FILE = "alpha_search.csv"


class PenaltyPath(Plain):
    """R² of one model for every penalty: on held-out folds, which chose, and on test spectra, which did not.

    ``model`` is :data:`GLOBAL_MODEL` or the number of a bin; ``chosen`` is a place in ``alphas``.
    """

    model: str
    alphas: tuple[float, ...]
    r2_cv: tuple[Number, ...]
    r2_test: tuple[Number, ...]
    chosen: int


class PenaltyDraw(Plain):
    """The search under one noise draw."""

    seed: int
    noise_level: float
    models: tuple[PenaltyPath, ...]


class PenaltyAnswer(Plain):
    """The search of every noise draw; ``by`` says whose choice counts."""

    by: str
    draws: tuple[PenaltyDraw, ...]


class Penalty(Question[PenaltyAnswer]):
    """Score the models of every penalty that was tried; asked where ``ridge.alpha`` is a search."""

    name = "penalty"
    Answer = PenaltyAnswer
    files = (_FILE,)
    asked_by = "`ridge: {alpha: {search: PENALTIES}}`"
    pictures = (
        Picture(
            "moe_alpha_search.png",
            "R² against the penalty",
            "A panel for each model shows R² against the penalty: solid on folds of the training set that the model "
            "had not seen, dashed on the test spectra. The mark is the penalty chosen; the solid curve alone decided. "
            "A mark at the end of a curve says that a better penalty may lie beyond the grid. The dashed curve may "
            "peak elsewhere; choosing by it would flatter the result.",
            lambda results: draw_alpha_search(results, tabulate_paths(Penalty.read(results), results.summary.target)),
            lambda results: Penalty.read(results) is not None,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._draws: list[PenaltyDraw] = []
        #: Choices at an edge of the grid beyond which a better penalty may lie: model, penalty, and the noise levels.
        self._open: dict[tuple[int, float], list[float]] = {}
        self._n_compared, self._n_open_compared = 0, 0

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask the models of every penalty."""
        del test_noise
        return [Columns.of_models(one, self.facts.settings.target) for one in trained.whole.along_search()]

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Score them on covered spectra, an expert on its bin's."""
        models = reading.trained.whole
        search = models.search
        if search is None:
            return
        is_standardized = self.facts.settings.ridge.standardize != "none"
        edges = find_open_edges(models, reading.trained.noise, is_standardized=is_standardized)
        if reading.trained.is_compared:
            self._n_compared += 1 if search.by == "global" else 1 + models.n_experts
            self._n_open_compared += len(edges)
            return
        for edge in edges.items():
            self._open.setdefault(edge, []).append(reading.draw.level)
        label = models.labels.index(search.target)
        truth = (self.facts.truth.labels[search.target], self.facts.truth.bins[0])
        paths = [_score_path(search, label, model, *truth, found) for model in range(len(search.chosen))]
        self._draws.append(PenaltyDraw(seed=reading.draw.seed, noise_level=reading.draw.level, models=tuple(paths)))

    def answer(self) -> PenaltyAnswer | None:
        """Return all paths, and warn of choices at an edge of the grid beyond which a better penalty may lie."""
        alpha = self.facts.settings.ridge.alpha
        if not isinstance(alpha, AlphaSearch):
            return None
        several_levels = len({draw.noise_level for draw in self._draws}) > 1
        self.warnings += _warn_of_edges(self._open, alpha.search, self.facts.grid, several_levels)
        if self._n_open_compared:
            kinds = enumerate_words(sorted({one.noise.kind for one in self.facts.trained if one.is_compared}))
            self.warnings.append(
                f"{kinds} noise: {self._n_open_compared} of {self._n_compared} penalties chosen are the smallest or "
                "the largest of the grid, so others may be better: widen ridge.alpha.search"
            )
        return PenaltyAnswer(by=alpha.by, draws=tuple(self._draws))

    @classmethod
    def tables(cls, answer: PenaltyAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row for each noise draw, model and penalty."""
        return {_FILE: tabulate_paths(answer, settings.target)}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return how the penalty was chosen, what every model chose, and the figure."""
        answer = cls.read(results)
        if answer is None:
            return None
        tables = [_list_choices(results, answer, level.noise_level) for level in results.summary.levels]
        sentence = _explain(results, answer)
        return Section("penalty", "Penalty", "Penalty", (sentence, *tables, Show("moe_alpha_search.png")))


def tabulate_paths(answer: PenaltyAnswer | None, target: str) -> pd.DataFrame:
    """Return ``seed, noise_level, target, model, alpha, r2_cv, chosen, r2_test``: a row for each penalty and model."""
    rows = [
        (draw.seed, draw.noise_level, target, path.model, alpha, r2_cv, k == path.chosen, r2_test)
        for draw in (answer.draws if answer else ())
        for path in draw.models
        for k, (alpha, r2_cv, r2_test) in enumerate(zip(path.alphas, path.r2_cv, path.r2_test, strict=True))
    ]
    columns = ["seed", "noise_level", "target", "model", "alpha", "r2_cv", "chosen", "r2_test"]
    return pd.DataFrame(rows, columns=columns)


def _score_path(
    search: SolvedSearch,
    label: int,
    model: int,
    y_true: FloatArray,
    bins: NDArray[np.int64],
    found: Sequence[Stacked],
) -> PenaltyPath:
    """Score one model for every penalty; ``found`` are the predictions of all models, a part for each penalty."""
    members = bins != OUTSIDE if model == 0 else bins == model - 1
    squares = [
        (y_true - one.values[:, model]) ** 2 + (0.0 if one.variances is None else one.variances[:, model])
        for one in found
    ]
    return PenaltyPath(
        model=GLOBAL_MODEL if model == 0 else str(model - 1),
        alphas=tuple(map(float, search.alphas)),
        r2_cv=tuple(map(float, search.curve(model).r2[:, label])),
        r2_test=tuple(_r2(y_true[members], np.stack(squares)[:, members])),
        chosen=int(search.chosen[model]),
    )


def _r2(truth: FloatArray, squares: FloatArray) -> list[float]:
    """Return R² from every row of squared errors (A, n); NaN for fewer than two spectra or labels that do not vary."""
    total = total_squares(len(truth), truth.sum(), (truth**2).sum()) if len(truth) > 1 else 0.0
    return [float(1 - row.sum() / total) if total > 0 else math.nan for row in squares]


def _warn_of_edges(
    edges: Mapping[tuple[int, float], Sequence[float]], alphas: Sequence[float], grid: BinGrid, several_levels: bool
) -> list[str]:
    """Name choices at an edge of the grid, the largest penalty first; each with its noise levels if there are others.

    ``edges`` are the levels by model (the global one is 0) and penalty.
    """
    warnings = []
    for edge, place, beyond in ((alphas[-1], "largest", "larger"), (alphas[0], "smallest", "smaller")):
        for (model, alpha), levels in edges.items():
            if alpha != edge:
                continue
            who = grid.describe(model - 1) if model else "the global model"
            at = f", at noise level {enumerate_words([f'{level:g}' for level in dict.fromkeys(levels)])},"
            warnings.append(
                f"α = {format_alpha(alpha)} for {who}{at if several_levels else ''} is the {place} of the grid, so a "
                f"{beyond} one may be better: widen ridge.alpha.search"
            )
    return warnings


# --- What the report says of a search.


def _explain(results: RunResults, answer: PenaltyAnswer) -> str:
    alphas = [format_alpha(alpha) for alpha in answer.draws[0].models[0].alphas]
    whose = "every model chose its own" if answer.by == "per_expert" else "it was chosen by the global model for all"
    return (
        f"The penalty α was chosen among {', '.join(alphas[:-1])} and {alphas[-1]} by the R² of "
        f"{symbol(results.summary.target)} on folds of the training set, each predicted by a model trained on the "
        f"others; {whose}. The test spectra played no part in the choice: their R² stands beside it for comparison. "
        "Along the learning curve α shrinks in proportion to the training set."
    )


def _list_choices(results: RunResults, answer: PenaltyAnswer, noise_level: float) -> Table:
    draws = [draw for draw in answer.draws if draw.noise_level == noise_level]
    names = {GLOBAL_MODEL: "global"} | {str(one.bin): one.label for one in results.summary.levels[0].bins}
    rows = []
    for model, name in names.items():
        paths = [path for draw in draws for path in draw.models if path.model == model]
        if not paths:
            continue
        places = {0: "smallest", len(paths[0].alphas) - 1: "largest"}
        # An expert's curve may not have been asked for.
        known = [path for path in paths if np.isfinite(path.r2_cv).any()]
        rows.append(
            (
                name,
                count_choices([path.alphas[path.chosen] for path in paths]),
                ", ".join(sorted({places[path.chosen] for path in paths if path.chosen in places})) or "inside",
                _mean([path.r2_cv[path.chosen] for path in paths]),
                _mean([path.r2_test[path.chosen] for path in paths]),
                count_choices([path.alphas[int(np.nanargmax(path.r2_cv))] for path in known]),
            )
        )
    header = ("Model", "α chosen", "place in the grid", "R² held-out folds", "R² test", "best α of its own")
    caption = f"Penalties chosen, noise level {noise_level:g}, means over seeds"
    return Table(caption, header, tuple(rows), 3)


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{sum(known) / len(known):.4f}".replace("-", "−") if known else MISSING
