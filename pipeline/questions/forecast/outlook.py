"""The forecast of one noise level: from its moments and the test spectra to entries of the summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pipeline.accumulate import MomentsFolder
from pipeline.base import one_blas_thread
from pipeline.bins import Binning
from pipeline.config import RidgeConfig
from pipeline.moments import FactoredMoments, Moments
from pipeline.questions.forecast.judging import (
    TestSpectra,
    find_trusted,
    jackknife_over_folds,
    list_columns,
    score_models,
)
from pipeline.questions.forecast.training import BEST, CONFIGURED, DRAWN, ENDLESS, DrawnModels, Training, solve_sizes
from pipeline.scoring import SCOPES, Bootstrap, Columns, Estimate, Number, Plain, Score, Stacked

__all__ = ["Asked", "Forecaster", "Outlook", "OutlookPoint", "list_rows"]

FloatArray = NDArray[np.float64]

#: Training spectra for which folds are left out, where the penalty follows a rule: always the same ones, so that a
#: size gets the same answer whatever else is asked. Fewer spectra than the first are jackknifed by themselves.
_JACKKNIFED = (5e3, 3e4, 3e5, 3e6, ENDLESS)


class Outlook(Plain):
    """What a drawn run would say on one set of test spectra.

    A jackknife over folds has taken away what the sampling of the training spectra takes from R². ``std`` of an
    estimate is its standard error from that sampling, and its interval holds that and the sampling of the test spectra.
    ``alpha`` is the penalty of the bin's expert, of the global model where many bins are scored together.
    """

    n_train: Number
    n_test: int
    alpha: Number
    r2_oracle: Estimate
    r2_global: Estimate
    delta_r2: Estimate
    trusted: bool


class OutlookPoint(Plain):
    """The forecast for one number of training spectra ``n`` (null stands for infinitely many) and one choice of α.

    ``penalty`` says how α was chosen: ``configured`` as the run's settings say, ``best`` for every model, ``drawn`` as
    the drawn run found it, ``stated`` by whoever asked. ``bins`` are in the order of the bins.
    """

    n: Number
    penalty: str
    scopes: dict[str, Outlook]
    bins: tuple[Outlook, ...]

    @property
    def covered(self) -> Outlook:
        """The scope that conclusions are about."""
        return self.scopes["covered"]


@dataclass(frozen=True, eq=False)
class Asked:
    """Forecasts that are to be judged, how the penalty of each was chosen, and which were asked for.

    The others are there for the jackknife.
    """

    forecasts: tuple[DrawnModels, ...]
    penalties: tuple[str, ...]
    wanted: tuple[bool, ...]


class Forecaster:
    """Forecasts from the factored moments of one noise that was integrated out.

    Parameters
    ----------
    moments
        Of one level, by classes of like noise.
    binning, covered
        The experts, and the cells that their bins cover.
    ridge, label
        How models are trained, and what they predict.
    threads
        Models that are solved side by side.
    one_class
        Whether all rows are taken to have like noise: the known formula, to be held against that of the classes.
    """

    def __init__(
        self,
        moments: MomentsFolder,
        binning: Binning,
        covered: Sequence[int],
        ridge: RidgeConfig,
        label: str,
        threads: int = 1,
        *,
        one_class: bool = False,
    ) -> None:
        self._one_class = one_class
        self._moments, self._binning, self._covered = moments, binning, covered
        self._ridge, self._label, self._threads = ridge, label, threads

    @cached_property
    def _folds(self) -> list[list[FactoredMoments]]:
        """Every cell's moments of every fold."""
        folds = [self._moments.open(fold) for fold in range(self._moments.n_folds)]
        found = [[saved.read_divided(cell) for cell in range(self._moments.n_cells)] for saved in folds]
        return [[own for own in fold if isinstance(own, FactoredMoments)] for fold in found]

    @cached_property
    def _cells(self) -> list[FactoredMoments]:
        return self._merge(range(self._moments.n_folds))

    def _merge(self, folds: Sequence[int]) -> list[FactoredMoments]:
        merged = [Moments.merge(self._folds[fold][cell] for fold in folds) for cell in range(self._moments.n_cells)]
        return [own for own in merged if isinstance(own, FactoredMoments)]

    @cached_property
    def _training(self) -> Training:
        return self._train(self._cells, None)

    def _train(self, cells: Sequence[FactoredMoments], rank: int | None) -> Training:
        return Training.of_cells(
            cells, self._binning, self._covered, self._ridge, self._label, rank, one_class=self._one_class
        )

    @property
    def count(self) -> int:
        """Training spectra of the global model, from which the forecast is made."""
        return int(self._training.counts[0])

    def ask(self, sizes: Sequence[float], alpha: float | None = None, of_drawn: FloatArray | None = None) -> Asked:
        """Solve the expected models for some numbers of training spectra, in increasing order.

        With the penalties that the settings give and the best ones, or with a stated one.

        Parameters
        ----------
        sizes
            Training spectra of the global model.
        alpha
            The stated penalty, of all models.
        of_drawn
            The penalties that a drawn run chose, (1 + K,): of as many training spectra as are known here.
        """
        if alpha is not None:
            stated = self._ridge.model_copy(update={"alpha": alpha})
            solved = {"stated": solve_sizes(self._training, sizes, stated, self._threads)}
        else:
            rules: dict[str, RidgeConfig | str] = {CONFIGURED: self._ridge, BEST: BEST}
            more = sorted({*sizes, *_JACKKNIFED})
            solved = {name: solve_sizes(self._training, more, rule, self._threads) for name, rule in rules.items()}
        if of_drawn is not None:
            solved[DRAWN] = solve_sizes(self._training, [float(self.count)], [of_drawn], self._threads)
        return Asked(
            tuple(one for forecasts in solved.values() for one in forecasts),
            tuple(name for name, forecasts in solved.items() for _ in forecasts),
            tuple(name == DRAWN or one.count in sizes for name, forecasts in solved.items() for one in forecasts),
        )

    def columns(self, asked: Asked) -> list[Columns]:
        """Return what has to be known of the test spectra, with their noise integrated out."""
        return list_columns(self._cells[0].basis, self._training.rank, asked.forecasts)

    def judge(
        self,
        asked: Asked,
        y: FloatArray,
        bins: NDArray[np.int64],
        found: Sequence[Stacked],
        bootstrap: Bootstrap,
    ) -> list[OutlookPoint]:
        """Score forecasts on the test spectra, of which ``found`` are the values of :meth:`columns`."""
        spectra = TestSpectra.of_read(y, bins, self._binning.n_bins, found)
        # One BLAS thread: the bits of a product may depend on their number.
        with one_blas_thread():
            scores = score_models(spectra, asked.forecasts, bootstrap)
            errors, corrections = self._jackknife(spectra, asked)
        points = []
        for m, (forecast, score) in enumerate(zip(asked.forecasts, scores, strict=True)):
            if not asked.wanted[m]:
                continue
            trusted = find_trusted(self._training, forecast, self._cells[0].n_pixels)
            of_scopes = [
                self._describe(
                    one, forecast, 0, errors[m, place], corrections[m, place], bool(trusted.all()), bootstrap.confidence
                )
                for place, one in enumerate(score.scope(name) for name in SCOPES)
            ]
            of_bins = [
                self._describe(
                    one, forecast, 1 + k, errors[m, len(SCOPES) + k], corrections[m, len(SCOPES) + k],
                    bool(trusted[[0, 1 + k]].all()), bootstrap.confidence,
                )
                for k, one in enumerate(score.bins)
            ]  # fmt: skip
            points.append(
                OutlookPoint(
                    n=math.nan if forecast.count >= ENDLESS else forecast.count,
                    penalty=asked.penalties[m],
                    scopes=dict(zip(SCOPES, of_scopes, strict=True)),
                    bins=tuple(of_bins),
                )
            )
        return points

    def _describe(
        self,
        score: Score,
        forecast: DrawnModels,
        model: int,
        errors: FloatArray,
        corrections: FloatArray,
        trusted: bool,
        confidence: float,
    ) -> Outlook:
        """Return an entry: the interval holds the sampling of the test spectra and that of the training spectra."""
        intervals = score.intervals(confidence)
        reach = errors * float(ndtri((1 + confidence) / 2))
        merits = score.merits + corrections
        low = merits - np.hypot(score.merits - intervals[:, 0], reach)
        high = merits + np.hypot(intervals[:, 1] - score.merits, reach)
        oracle, single, delta = (Estimate.of(merits[k], errors[k], low[k], high[k]) for k in range(3))
        own = forecast.models[model]
        return Outlook(
            n_train=math.nan if forecast.count >= ENDLESS else round(own.count),
            n_test=score.n_test,
            alpha=own.alpha,
            r2_oracle=oracle,
            r2_global=single,
            delta_r2=delta,
            trusted=trusted,
        )

    def _jackknife(self, spectra: TestSpectra, asked: Asked) -> tuple[FloatArray, FloatArray]:
        """Return standard errors from the sampling of training spectra, and corrections for it, each (M, 2 + K, 3)."""
        shape = len(asked.forecasts), 2 + self._binning.n_bins, 3
        errors, corrections = np.zeros(shape), np.zeros(shape)
        if not (without := self._leave_out()):
            return errors, corrections  # a single fold tells nothing
        for name in dict.fromkeys(asked.penalties):
            places = [m for m, own in enumerate(asked.penalties) if own == name]
            counts = np.array([asked.forecasts[m].count for m in places])
            known = np.isin(counts, _JACKKNIFED) | (counts < _JACKKNIFED[0])
            if name not in (CONFIGURED, BEST):
                known[:] = True
            kept = [m for m, own in zip(places, known, strict=True) if own]
            forecasts = [asked.forecasts[m] for m in kept]
            alphas = [one.alphas for one in forecasts]
            left_out = [solve_sizes(one, counts[known].tolist(), alphas, self._threads) for one in without]
            found = jackknife_over_folds(spectra.of_forecasts(kept), forecasts, left_out, self._mean_noise())
            for target, values in zip((errors, corrections), found, strict=True):
                target[places] = values if known.all() else self._between(counts[known], values, counts)
        return errors, corrections

    def _between(self, sizes: FloatArray, values: FloatArray, wanted: FloatArray) -> FloatArray:
        """Return values for other sizes.

        They follow 1/n where spectra are many, and ln n where they are few: between those sizes they are interpolated
        in ln(1 + N/n), with N the spectra that are known.
        """
        from scipy.interpolate import PchipInterpolator  # which costs every start a tenth of a second

        at, to = -np.log1p(self.count / sizes), -np.log1p(self.count / wanted)
        return np.asarray(PchipInterpolator(at, values, axis=0)(to))

    def _leave_out(self) -> list[Training]:
        """Return what is known without each fold in turn; nothing with a single fold."""
        folds = range(self._moments.n_folds)
        rest = [[one for one in folds if one != fold] for fold in folds]
        return [self._train(self._merge(own), self._training.rank) for own in rest if own]

    def _mean_noise(self) -> list[FloatArray]:
        """Return the mean noise variances of every bin's training spectra, and of all for those outside."""
        groups = [*self._binning.members, range(self._moments.n_cells)]
        merged = [[self._cells[cell] for cell in members] for members in groups]
        return [np.sum([one.noise for one in own], axis=0) / sum(one.count for one in own) for own in merged]


def list_rows(points: Sequence[OutlookPoint], noise_level: float) -> list[dict[str, Any]]:
    """Return the rows of ``forecast.csv``: one for each forecast and scope, bins by their numbers."""
    rows: list[dict[str, Any]] = []
    for point in points:
        n = math.inf if math.isnan(point.n) else int(point.n)
        for scope, one in [*point.scopes.items(), *((str(k), own) for k, own in enumerate(point.bins))]:
            row: dict[str, Any] = {"n": n, "penalty": point.penalty, "alpha": one.alpha, "noise_level": noise_level}
            row |= {"scope": scope, "n_train": one.n_train, "n_test": one.n_test}
            for name in ("r2_global", "r2_oracle", "delta_r2"):
                estimate: Estimate = getattr(one, name)
                row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            rows.append(row | {"trusted": one.trusted})
    return rows
