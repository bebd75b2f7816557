"""R² of the training spectra against the rank of factored moments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base import one_blas_thread
from pipeline.moments import FactoredMoments, Moments, sum_predictions
from pipeline.questions.question import Question, Trained
from pipeline.report import Section, Table
from pipeline.ridge import pixel_scale, shared_scale, solve_leading_directions, total_squares, trained_cells
from pipeline.schema import LABELS
from pipeline.scoring import R2_GLOBAL, R2_ORACLE, Number, Plain, RunResults

__all__ = ["Rank", "RankAnswer", "RankLevel", "RankPoint"]

FloatArray = NDArray[np.float64]
#: The ranks that are tried, as shares of the whole.
_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


class RankPoint(Plain):
    """R² of the covered training spectra by models that know the leading directions alone."""

    rank: int
    r2_global: Number
    r2_oracle: Number


class RankLevel(Plain):
    """One noise level: the rank, what its basis loses in any cell at most, and the R² of smaller ranks.

    ``lost_at_most`` is the loss of R² by models without a penalty, ``moved_at_most`` the change of R² of the run's
    models, up or down (:mod:`pipeline.moments.factored`); NaN in results of earlier versions.
    """

    noise_level: float
    rank: int
    lost_at_most: Number
    moved_at_most: Number = math.nan
    check_rows: int
    points: tuple[RankPoint, ...]


class RankAnswer(Plain):
    """All noise levels whose moments are factored."""

    levels: tuple[RankLevel, ...]


@dataclass(frozen=True, eq=False)
class _Training:
    """What a model was trained on, the scale of its pixels, its penalty, and its weights for one label, each (P,)."""

    moments: FactoredMoments
    scale: FloatArray
    alpha: float
    label: int
    weights: FloatArray

    def total_squares(self, judged: Moments) -> float:
        """Return Σ(y − ȳ)² of the label."""
        return float(total_squares(judged.count, judged.y_sum, np.diag(judged.y_gram))[self.label])

    def sum_squares(self, judged: Moments, ranks: Sequence[int]) -> FloatArray:
        """Return the sums of squared errors of models that know the leading directions alone, one for each rank."""
        path = solve_leading_directions(self.moments, self.alpha, ranks, self.scale)
        return sum_predictions(judged, path.weights, path.intercepts).squared_errors[:, self.label]

    def bound_change(self) -> float:
        """Return how far R² can be from that of dense moments; NaN where all labels are equal."""
        penalty, total = self.alpha * float(((self.weights * self.scale) ** 2).sum()), self.total_squares(self.moments)
        return self.moments.bound_change(penalty / total) if total > 0 else math.nan


class Rank(Question[RankAnswer]):
    """Say what the rank of factored moments costs; asked wherever moments are factored."""

    name = "rank"
    Answer = RankAnswer

    def answer(self) -> RankAnswer | None:
        """Solve the models of smaller ranks; None where all moments are dense."""
        levels = []
        for trained in self.facts.trained:
            cells = [own for own in trained.moments.totals() if isinstance(own, FactoredMoments)]
            if cells:
                levels.append(self._describe(trained, cells))
        return RankAnswer(levels=tuple(levels)) if levels else None

    def _describe(self, trained: Trained, cells: Sequence[FactoredMoments]) -> RankLevel:
        whole = _merge(cells, range(len(cells)))
        rank = whole.basis.rank
        lost = [cell.lost for cell in cells if cell.n_check]
        ranks = sorted({max(1, round(share * rank)) for share in _SHARES})
        trainings = list(self._list_trainings(trained, cells))
        changes = [training.bound_change() for training in trainings]
        return RankLevel(
            noise_level=trained.noise.level,
            rank=rank,
            lost_at_most=max(lost, default=math.nan),
            moved_at_most=max((one for one in changes if not math.isnan(one)), default=math.nan),
            check_rows=whole.n_check,
            points=tuple(self._score(trainings, _merge(cells, self.facts.binnings[0].covered), ranks)),
        )

    def _list_trainings(self, trained: Trained, cells: Sequence[FactoredMoments]) -> Iterator[_Training]:
        """Yield what the target's models were trained on: the global one's first, then each expert's."""
        settings, binning = self.facts.settings.ridge, self.facts.binnings[0]
        label, models = LABELS.index(self.facts.settings.target), trained.whole
        trains = _merge(cells, trained_cells(settings, len(cells), binning.covered))
        shared = shared_scale(trains.pixel_sums, settings)
        yield _Training(trains, shared, models.global_alpha, label, models.global_weights[:, label])
        weights = models.expert_weights[:, :, label]
        for members, alpha, expert in zip(binning.members, models.expert_alphas, weights, strict=True):
            own = _merge(cells, members)
            scale = pixel_scale(own) if settings.standardize == "per_expert" else shared
            yield _Training(own, scale, float(alpha), label, expert)

    def _score(self, trainings: Sequence[_Training], covered: Moments, ranks: Sequence[int]) -> Iterator[RankPoint]:
        """Solve with the leading directions, and judge on all of them."""
        of_all, *of_bins = trainings
        with one_blas_thread():
            of_experts = np.zeros(len(ranks))
            for training in of_bins:
                of_experts += training.sum_squares(training.moments, ranks)
            of_global = of_all.sum_squares(covered, ranks)
        total = of_all.total_squares(covered)
        for rank, r2_global, r2_oracle in zip(ranks, 1 - of_global / total, 1 - of_experts / total, strict=True):
            yield RankPoint(rank=rank, r2_global=r2_global, r2_oracle=r2_oracle)

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return R² against the rank, and the bound."""
        answer = cls.read(results)
        if answer is None:
            return None
        rows = [
            (f"{level.noise_level:g}", str(point.rank), *map(_number, (point.r2_global, point.r2_oracle)))
            for level in answer.levels
            for point in level.points
        ]
        header = ("Noise level", "Rank", R2_GLOBAL.symbol, R2_ORACLE.symbol)
        table = Table(
            "Covered training spectra, by the number of directions that models may use", header, tuple(rows), 1
        )
        bounds = "; ".join(
            f"at noise level {level.noise_level:g} rank {level.rank}. By {level.check_rows:,} check spectra models "
            f"without a penalty lose at most {level.lost_at_most:.1e} of R²{_tell_change(level)}"
            for level in answer.levels
        )
        words = (
            "The mean spectra under marginal noise lie in few dimensions, because they depend on few stellar labels. "
            f"The run kept their leading directions: {bounds}. Where R² no longer grows with the rank, further "
            "directions say nothing about the label."
        )
        reasons = (results.metadata.get("factoring") or {}).get("dense_because") or []
        return Section("rank", "How many dimensions the spectra have", "Rank", (words, *reasons, table))


def _merge(cells: Sequence[FactoredMoments], members: Iterable[int]) -> FactoredMoments:
    merged = Moments.merge(cells[k] for k in members)
    assert isinstance(merged, FactoredMoments)
    return merged


def _tell_change(level: RankLevel) -> str:
    if math.isnan(level.moved_at_most):
        return ""
    return (
        f", and R² of the run's models on their training spectra moves by at most {level.moved_at_most:.1e}, up or down"
    )


def _number(value: float) -> str:
    return f"{value:.6f}"
