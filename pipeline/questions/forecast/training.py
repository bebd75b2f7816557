"""The drawn models of a training set of any size, global and experts, from the marginal moments of another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base import one_blas_thread
from pipeline.bins import Binning
from pipeline.config import AlphaSearch, PerSpectrum, RidgeConfig
from pipeline.moments import FactoredMoments, Moments
from pipeline.questions.forecast.equivalent import DrawnRidge, Population, solve_drawn_ridge
from pipeline.ridge import pixel_scale, resolve_alpha, shared_scale, trained_cells

__all__ = ["BEST", "CONFIGURED", "DRAWN", "ENDLESS", "DrawnModels", "Training", "solve_sizes"]

FloatArray = NDArray[np.float64]
#: How the penalty is chosen: as the run's settings say, the best one of every model, or as the drawn run chose it.
CONFIGURED, BEST, DRAWN = "configured", "best", "drawn"
#: R² that the directions of the basis which a forecast does without may explain, and the ranks that it chooses from.
_LOST, _RANKS = 1e-4, (16, 32, 48, 64, 96, 128, 192, 256, 384)
#: Steps of the search for the best penalty: factors of its logarithm.
_STEP = np.log(10.0) / 2
#: Where the search for the best penalty begins and ends, per spectrum.
_FIRST, _LEAST, _LARGEST = 0.05, 1e-9, 1e3
#: Training spectra that stand for infinitely many, and from how many of one model on no penalty is needed.
ENDLESS, _MANY = 1e12, 1e9


@dataclass(frozen=True, eq=False)
class Training:
    """The populations that train the models, the global one first, and the share of each in the global model's spectra.

    ``counts`` are the spectra that each population is known from, (1 + K,); ``rank`` are the directions of the basis.
    """

    populations: tuple[Population, ...]
    counts: FloatArray
    rank: int

    @classmethod
    def of_cells(
        cls,
        cells: Sequence[FactoredMoments],
        binning: Binning,
        covered: Sequence[int],
        ridge: RidgeConfig,
        label: str,
        rank: int | None = None,
        *,
        one_class: bool = False,
    ) -> Training:
        """Return the training set that the moments of every cell describe, with the scales that the run would use.

        Of the basis it uses as many directions as all models together need, or ``rank`` of them. With ``one_class`` all
        rows are taken to have like noise, as in the known formula.
        """
        whole = _merge(cells, trained_cells(ridge, len(cells), covered))
        scale = shared_scale(whole.pixel_sums, ridge)
        experts = [_merge(cells, members) for members in binning.members]
        scales = [pixel_scale(own) if ridge.standardize == "per_expert" else scale for own in experts]
        populations = [
            Population.of_classes([own] if one_class else own.classes, d, label)
            for own, d in zip([whole, *experts], [scale, *scales], strict=True)
        ]
        rank = _choose_rank(populations, whole.basis.rank) if rank is None else rank
        return cls(
            tuple(one.leading(rank) for one in populations),
            np.array([own.count for own in [whole, *experts]], dtype=np.float64),
            rank,
        )

    @property
    def shares(self) -> FloatArray:
        """The spectra of each model, for one of the global model, (1 + K,)."""
        return np.asarray(self.counts / self.counts[0])


def _merge(cells: Sequence[FactoredMoments], members: Sequence[int]) -> FactoredMoments:
    merged = Moments.merge(cells[k] for k in members)
    assert isinstance(merged, FactoredMoments)
    return merged


def _choose_rank(populations: Sequence[Population], largest: int) -> int:
    """Return the fewest directions that explain what all of them do, in every model."""
    ranks = [*(rank for rank in _RANKS if rank < largest), largest]
    with one_blas_thread():
        explained = np.stack([one.explained(ranks) for one in populations])
    enough = (explained >= explained[:, -1:] - _LOST).all(axis=0)
    return ranks[int(np.argmax(enough))]


@dataclass(frozen=True, eq=False)
class DrawnModels:
    """The expected models of ``count`` training spectra with one noise draw each, the global one first."""

    count: float
    models: tuple[DrawnRidge, ...]

    @property
    def alphas(self) -> FloatArray:
        """α of every model, (1 + K,)."""
        return np.array([one.alpha for one in self.models])


def solve_sizes(
    training: Training,
    sizes: Sequence[float],
    alphas: RidgeConfig | Sequence[FloatArray] | str,
    threads: int = 1,
) -> list[DrawnModels]:
    """Return the expected models for training sets of several sizes.

    Parameters
    ----------
    training
        What the spectra are drawn from.
    sizes
        Spectra of the global model, in increasing order; an expert has its share of them.
    alphas
        Penalties: by the run's settings, or :data:`BEST` for every model, or stated for every size, (1 + K,). A search
        is answered by the expected errors on the population, as cross-validation answers it by left-out spectra.
    threads
        Models that are solved side by side.
    """
    n = len(training.populations)
    rule = alphas.alpha if isinstance(alphas, RidgeConfig) else alphas
    with one_blas_thread(), ThreadPoolExecutor(max(1, min(threads, n)), "forecast") as executor:
        if isinstance(rule, AlphaSearch) and rule.by == "global":
            chosen = [one.alpha for one in _solve_model(training, 0, sizes, rule)]
            rule = [np.full(n, alpha) for alpha in chosen]
        solved = list(executor.map(lambda k: _solve_model(training, k, sizes, rule), range(n)))
    return [DrawnModels(size, models) for size, models in zip(sizes, zip(*solved, strict=True), strict=True)]


def _solve_model(
    training: Training,
    k: int,
    sizes: Sequence[float],
    rule: float | PerSpectrum | AlphaSearch | Sequence[FloatArray] | str,
) -> list[DrawnRidge]:
    """Return one model for every size.

    From the largest size down: its fixed point is near 0, and each is a good start for the next one.
    """
    found: list[DrawnRidge] = []
    for place in reversed(range(len(sizes))):
        tried = _Tried(training.populations[k], sizes[place] * training.shares[k], found[-1] if found else None)
        if isinstance(rule, AlphaSearch):
            found.append(tried.choose(rule.search))
        elif isinstance(rule, str):
            found.append(tried.find_best())
        elif isinstance(rule, Sequence):
            found.append(tried.at(float(rule[place][k])))
        else:
            found.append(tried.at(resolve_alpha(rule, round(sizes[place]))))
    return found[::-1]


class _Tried:
    """The models of one population and number of spectra for penalties that were tried; ``near`` is of another size."""

    def __init__(self, population: Population, count: float, near: DrawnRidge | None) -> None:
        self._population, self._count, self._near = population, count, near
        # With ten times the rows a row tells a tenth about itself.
        self._start = None if near is None else near.delta * (near.count / count)
        self._known: dict[float, DrawnRidge] = {}

    def at(self, alpha: float) -> DrawnRidge:
        """Return the model with a penalty."""
        if alpha not in self._known:
            self._known[alpha] = solve_drawn_ridge(self._population, self._count, alpha, self._start)
            self._start = self._known[alpha].delta
        return self._known[alpha]

    def error(self, alpha: float) -> float:
        """Return the expected squared error on the population."""
        return float(self._population.shares @ self.at(alpha).errors)

    def choose(self, grid: Sequence[float]) -> DrawnRidge:
        """Return the best of some penalties, by steps from the one that was best for another size."""
        near = self._near.alpha if self._near is not None else grid[len(grid) // 2]
        at = int(np.argmin(np.abs(np.log(np.asarray(grid) / near))))
        return self.at(grid[self._descend(at, lambda place: grid[place], 0, len(grid) - 1)])

    def find_best(self) -> DrawnRidge:
        """Return the model with the best penalty, by steps and a parabola in its logarithm."""
        count = self._count
        if count >= _MANY:  # noise alone is penalty enough
            return self.at(_LEAST * count)
        # The best penalty hardly depends on the number of spectra where these are many.
        near = self._near.alpha if self._near is not None and self._near.count < _MANY else _FIRST * min(count, 1e5)

        def place(step: int) -> float:
            return float(np.exp(step * _STEP))

        # Penalties of one fixed grid: what is found does not depend on the sizes that are asked for beside this one.
        first, low, high = np.round(np.log([near, _LEAST * count, _LARGEST * count]) / _STEP).astype(int).tolist()
        at = self._descend(min(max(first, low), high), place, low, high)
        left, middle, right = (self.error(place(at + step)) for step in (-1, 0, 1))
        bend = left - 2 * middle + right
        offset = float(np.clip((left - right) / (2 * bend), -1, 1)) if bend > 0 else 0.0
        return self.at(place(at) * float(np.exp(offset * _STEP)))

    def _descend(self, at: int, place: Callable[[int], float], low: int, high: int) -> int:
        """Walk along penalties, while the error falls."""
        for step in (1, -1):
            while low <= at + step <= high and self.error(place(at + step)) < self.error(place(at)):
                at += step
        return at
