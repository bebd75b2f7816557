"""Which penalty the training folds chose, and what the test spectra say of the choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base import tabulate
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import AlphaSearch, ExperimentConfig
from pipeline.errors import enumerate_words
from pipeline.noise import Noise
from pipeline.questions.penalty.answer import GLOBAL_MODEL, PenaltyAnswer, PenaltyDraw, PenaltyPath
from pipeline.questions.question import Facts, Question, Reading, Trained
from pipeline.report import Picture, Section, Show, Table, count_choices, symbol
from pipeline.ridge import SolvedSearch, format_alpha, total_squares
from pipeline.scoring import MISSING, Columns, RunResults, Stacked, find_open_edges

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Penalty"]

FloatArray = NDArray[np.float64]


_FILE = "alpha_search.csv"


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.penalty.figure import draw_alpha_search  # matplotlib, which only pictures need

    return draw_alpha_search(results, tabulate_paths(Penalty.read(results), results.summary.target))


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
            _draw,
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
    return tabulate(rows, columns=columns)


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
