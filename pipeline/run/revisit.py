"""A finished run, asked again: its models with their wavelengths, another penalty, coarser bins.

Everything is answered from the moments and the test spectra that the run left; the training spectra are not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder, available_threads
from pipeline.base import Products, available_memory, render_html
from pipeline.bins import BinGrid, Binning, CellGrid
from pipeline.config import AlphaSearch, ExperimentConfig, RidgeConfig, load_config
from pipeline.errors import InputError, enumerate_words, require_kind
from pipeline.moments import PixelSums
from pipeline.noise import Noise, compares, test_noises, training_noises
from pipeline.plan import MEMORY_SHARE
from pipeline.questions.forecast import ENDLESS, SIZES, Forecaster, OutlookPoint, list_rows
from pipeline.ridge import ExpertModels, SolveJob, read_models, shared_scale, solve_folders, solve_memory, trained_cells
from pipeline.run.folder import CONFIG_FILE
from pipeline.run.models import models_file, settle_global
from pipeline.run.spectra import SpectraSets, resolve_binnings
from pipeline.scoring import (
    Bootstrap,
    Columns,
    HeadroomScore,
    RunResults,
    Score,
    predict_stacked,
    read_results,
    score_experts,
)
from pipeline.store import open_stores, select_shards

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Revisit", "ask_forecast", "forecast_run", "revisit_run"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Revisit:
    """The models of one noise draw of a finished run, or other models from its moments.

    Attributes
    ----------
    config
        Of the run; bins and penalty may be other ones here.
    sets
        The run's stores.
    grid
        The bins of these models.
    noise
        What they were trained on.
    models
        The global model and an expert for each bin.
    pixel_std
        Standard deviation of every noisy pixel over the spectra that train the global model, shape (P,), in the models'
        flux unit: that of ``sets``, which may be a power of two of the data's.
    """

    config: ExperimentConfig
    sets: SpectraSets
    grid: BinGrid
    noise: Noise
    models: ExpertModels
    pixel_std: FloatArray

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models: ``global``, then ``bin 0 (Cool, Poor)`` and so on."""
        return ("global", *map(self.grid.describe, range(self.grid.n_bins)))

    def __repr__(self) -> str:
        return f"Revisit({self.config.target} from {self.noise.name}, {self.models!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the models, with their penalties. Nothing is read or computed for it."""
        models = self.models
        rows = [
            (name, f"{count:,}", f"{alpha:g}")
            for name, count, alpha in zip(
                self.names,
                (models.global_count, *models.expert_counts),
                (models.global_alpha, *models.expert_alphas),
                strict=True,
            )
        ]
        lines = ["table() scores them; weights(), predictions() and score() tell more."]
        return render_html(f"{self.config.target} from {self.noise.name}", lines, ("model", "train", "α"), rows)

    def weights(self) -> xr.Dataset:
        """Return the models of the run's target with their wavelengths.

        Returns
        -------
        xarray.Dataset
            ``weight`` (model, wavelength) in label units per flux unit; ``effect`` = weight × ``pixel_std``: what one
            standard deviation of a pixel does to the prediction, label units; ``pixel_std`` (wavelength);
            ``intercept``, ``alpha`` and ``n_train`` (model).
        """
        import xarray as xr

        weights, intercepts = self.models.columns(self.config.target)
        weights, pixel_std = self._in_data_units(weights, 1), self._in_data_units(self.pixel_std, -1)
        both = ("model", "wavelength")
        unit = "dex" if self.config.target != "T_eff" else "K"
        return xr.Dataset(
            {
                "weight": (both, weights.T, {"units": f"{unit} per flux unit"}),
                "effect": (both, weights.T * pixel_std, {"units": f"{unit} per standard deviation of the pixel"}),
                "pixel_std": ("wavelength", pixel_std, {"units": "flux unit"}),
                "intercept": ("model", intercepts, {"units": unit}),
                "alpha": ("model", [self.models.global_alpha, *self.models.expert_alphas]),
                "n_train": ("model", [self.models.global_count, *self.models.expert_counts]),
            },
            coords={
                "model": list(self.names),
                "wavelength": ("wavelength", self.sets.test.wavelength, {"units": "Å"}),
            },
            attrs={"target": self.config.target, "noise": self.noise.name},
        )

    def _in_data_units(self, values: FloatArray, power: int) -> FloatArray:
        """Return values of a unit that has this power of the models' flux unit, per flux unit of the data."""
        return np.ldexp(values, power * self.sets.train.exponent)

    def predictions(self) -> pd.DataFrame:
        """Return every test spectrum with its columns, its bin, and what the models say of it.

        Returns
        -------
        pandas.DataFrame
            The test store's columns (labels, ``snr``, …), then ``bin`` (−1 outside), ``y_true``, ``y_global``,
            ``y_oracle`` (the global model outside) and ``expert_<bin>``, label units. The index counts the
            spectra of the test set.
        """
        mean, _ = self._predicted
        truth, bins = self._truth
        table = pd.DataFrame({name: np.asarray(values) for name, values in self.sets.test.columns.items()})
        rows = np.arange(len(bins))
        table = table.assign(bin=bins, y_true=truth, y_global=mean[:, 0])
        table["y_oracle"] = np.where(bins < 0, mean[:, 0], mean[rows, 1 + np.maximum(bins, 0)])
        experts = pd.DataFrame(mean[:, 1:], columns=[f"expert_{k}" for k in range(self.grid.n_bins)])
        return pd.concat([table, experts], axis=1)

    def score(self) -> HeadroomScore:
        """Score the models on the run's test spectra, with the run's test noise and resamples."""
        mean, variance = self._predicted
        truth, bins = self._truth
        spread = None if variance is None else variance[None]
        return score_experts(truth, mean[None], bins, _bootstrap(self.config), spread)[0]

    def table(self) -> pd.DataFrame:
        """Return R² of global model and oracle on covered spectra, on all, and in every bin.

        Returns
        -------
        pandas.DataFrame
            Columns ``n_train, n_test, alpha, r2_global, r2_oracle, delta_r2, delta_r2_low, delta_r2_high``; ``alpha``
            is that of the global model in the rows ``covered`` and ``all``, that of the expert in a bin's.
        """
        score, models = self.score(), self.models
        whole = (models.global_count, models.global_alpha)
        rows = {"covered": self._row(score.covered, *whole), "all": self._row(score.all, *whole)}
        experts = zip(self.names[1:], score.bins, models.expert_counts, models.expert_alphas, strict=True)
        rows |= {name: self._row(one, int(count), float(alpha)) for name, one, count, alpha in experts}
        return pd.DataFrame.from_dict(rows, orient="index").astype({"n_train": int, "n_test": int})

    def _row(self, score: Score, n_train: int, alpha: float) -> dict[str, float]:
        low, high = score.intervals(self.config.bootstrap.confidence)[2]
        return {
            "n_train": n_train,
            "n_test": score.n_test,
            "alpha": alpha,
            "r2_global": score.r2_global,
            "r2_oracle": score.r2_oracle,
            "delta_r2": score.delta_r2,
            "delta_r2_low": float(low),
            "delta_r2_high": float(high),
        }

    @cached_property
    def _truth(self) -> tuple[FloatArray, NDArray[np.int64]]:
        columns = self.sets.test.columns
        return np.asarray(columns[self.config.target], dtype=np.float64), self.grid.assign(columns)

    @cached_property
    def _predicted(self) -> tuple[FloatArray, FloatArray | None]:
        """Predictions (N, 1 + K), and their variances where the test noise is integrated out."""
        # Marginal training noise may have a test draw for each seed: the first one, whatever it was trained on.
        test_noise = test_noises(self.config.noise.test, self.noise, self.config.seeds, self.sets.test.has_noisy)[0]
        asked = [Columns.of_models(self.models, self.config.target)]
        [found] = predict_stacked(self.sets.test, asked, test_noise, self.config.precision)
        return found.values, found.variances


def _bootstrap(config: ExperimentConfig) -> Bootstrap:
    return Bootstrap(config.bootstrap.resamples, config.bootstrap.confidence, config.bootstrap.seed)


def revisit_run(
    folder: str | Path,
    *,
    alpha: float | None = None,
    bins: Mapping[str, Sequence[float]] | None = None,
    seed: int | None = None,
    level: float | None = None,
    marginal: bool = False,
) -> Revisit:
    """Open the models of a finished run, or solve others from its moments.

    Parameters
    ----------
    folder
        A run folder.
    alpha
        Another penalty, of the global model and of all experts; by default the run's setting.
    bins
        Coarser bins, as edges by column: the run's columns and outer edges, with inner edges left out. What the run's
        ``binnings`` and ``design.grid`` cut may be used as well. By default the run's bins.
    seed, level
        Which of the run's noise draws; the first seed and the level that the run's conclusions are about.
    marginal
        Of a run that trained on drawn and on marginal noise, the models of marginal noise.

    Returns
    -------
    Revisit
        With neither ``alpha`` nor ``bins`` the models that the run saved.

    Raises
    ------
    InputError
        If the folder holds no finished run, its moments or stores are gone or other ones, there is no such noise draw,
        or the moments do not tell the bins apart.
    TooFewSpectraError
        If a bin has too few training spectra.
    """
    results = read_results(folder)
    config = load_config(results.folder / CONFIG_FILE)
    noise = _choose_noise(config, seed, config.headline_level if level is None else level, marginal)
    sets = _open_sets(results, config)
    grid = BinGrid(config.bins, config.bin_names) if bins is None else BinGrid(bins)
    cells, binnings, _ = resolve_binnings(config, sets)
    moments = MomentsFolder.of_run(results.folder, noise, results.metadata.get("moments", {}).get(noise.name, ""))
    if moments.n_cells != cells.n_cells:
        raise InputError(
            f"run folder {results.folder}: the moments of {noise.name} cannot be used (they have other cells); run "
            "again with the same --out"
        )
    covered = binnings[0].covered
    saved_models = Products(results.folder).require(models_file(noise))
    if alpha is None and bins is None:
        models = read_models(saved_models)[-1]
    else:
        changed = config.ridge if alpha is None else config.ridge.model_copy(update={"alpha": float(alpha)})
        binning = binnings[0] if bins is None else _merge_cells(cells, grid)
        ridge, known = changed, None
        if alpha is None:  # the global model is the run's, and so is its penalty where it chose for all
            ridge, known = settle_global(changed, read_models(saved_models)[-1]), saved_models
        models = _solve(moments, binning, ridge, covered, config.target, known)
    folds = [moments.open(fold).pixel_sums() for fold in range(moments.n_folds)]
    trained_on = trained_cells(config.ridge, cells.n_cells, covered)
    whole = PixelSums.merge([sums[cell] for sums in folds for cell in trained_on])
    pixel_std = shared_scale(whole, config.ridge.model_copy(update={"standardize": "global"}))
    return Revisit(config, sets, grid, noise, models, pixel_std)


def _choose_noise(config: ExperimentConfig, seed: int | None, level: float, marginal: bool) -> Noise:
    """Return the noise that is meant; the first draw of the level where no seed is given."""
    mode = config.noise.mode
    noises = training_noises(mode, config.noise.levels, config.seeds)
    for noise in noises:
        if noise.is_single:
            is_meant = not marginal and seed in (None, noise.seed)
        else:
            is_meant = seed is None and (marginal or not compares(mode, noise))
        if is_meant and noise.level == level:
            return noise
    wanted = f"{'marginal noise, ' if marginal else ''}level {level:g}{'' if seed is None else f', seed {seed}'}"
    raise InputError(f"the run has the noises {', '.join(one.name for one in noises)}; asked for {wanted}")


def _open_sets(results: RunResults, config: ExperimentConfig) -> SpectraSets:
    """Open the stores that a run was computed from, if they still are what they were."""
    sets = SpectraSets(
        select_shards(open_stores(results.store_paths("train")), config.data.exclude, config.data.spectra),
        open_stores(results.store_paths("test")),
    )
    for role, store in (("train", sets.train), ("test", sets.test)):
        if store.fingerprint != results.metadata["stores"][role]["fingerprint"]:
            raise InputError(
                f"run folder {results.folder}: its {role} spectra are other ones now than those that it was computed "
                "from; run again with the same --out"
            )
    return sets.scaled(int(results.metadata["stores"]["train"].get("flux_exponent", 0)))


def _merge_cells(cells: CellGrid, grid: BinGrid) -> Binning:
    """Return the binning of a grid whose bins are sums of cells.

    Raises
    ------
    InputError
        If a cell lies in more than one of the grid's bins, or in one and outside.
    """
    with_grid = CellGrid((*cells.grids, grid))
    if with_grid.n_cells != cells.n_cells:
        cuts = "; ".join(
            f"{column} at {', '.join(f'{edge:g}' for edge in edges)}"
            for one in cells.grids
            for column, edges in one.edges.items()
        )
        found = {column: list(edges) for column, edges in grid.edges.items()}
        raise InputError(
            f"bins must be sums of the cells that the run's moments keep ({cuts}), found "
            f"{found}, which cuts through some; use the "
            "same columns and outer edges, and leave out inner ones, or name these bins in `binnings` and run again"
        )
    # No cell is cut, so cells keep their order and numbers.
    return Binning.of_grid("coarser bins", grid, with_grid.members(len(cells.grids))[:-1])


def _solve(
    moments: MomentsFolder,
    binning: Binning,
    ridge: RidgeConfig,
    covered: tuple[int, ...],
    target: str,
    known_global: Path | None,
) -> ExpertModels:
    held = 1 if isinstance(ridge.alpha, AlphaSearch) else 0
    of_one = solve_memory(moments.open(0).tiled_pixels, 1, held)
    threads = max(1, min(available_threads(), int(available_memory() * MEMORY_SHARE) // max(1, of_one)))
    whole = (moments.n_folds,)
    job = SolveJob(
        moments,
        binning,
        ridge,
        covered,
        target=target,
        threads=threads,
        prefixes=whole,
        known_global=known_global,
    )
    [(_, models)] = solve_folders([job])
    return models[-1]


# --- What drawn runs of other sizes would say.


def forecast_run(
    folder: str | Path,
    spectra: Sequence[float] | None = None,
    *,
    alpha: float | None = None,
    level: float | None = None,
) -> pd.DataFrame:
    """Say what models trained on drawn noise would give with other numbers of training spectra.

    Parameters
    ----------
    folder
        A run folder with factored moments of marginal noise, divided into classes of like noise: that of a run whose
        configuration has the section ``forecast``.
    spectra
        Numbers of training spectra; infinity is one, too. By default from 5,000 to 10 million.
    alpha
        The penalty of all models; by default those of the run's settings, and the best ones.
    level
        A noise level of the run's pass; by default the one that the run's conclusions are about.

    Returns
    -------
    pandas.DataFrame
        A row for every number of spectra, choice of the penalty and scope, with the columns of ``forecast.csv``: ``n,
        penalty, alpha, noise_level, scope, n_train, n_test``, the figures of merit with ``_low`` and ``_high``, and
        ``trusted``.

    Raises
    ------
    InputError
        If the folder holds no finished run, or no moments of that level that can answer.
    """
    found, points = ask_forecast(folder, spectra, alpha=alpha, level=level)
    return pd.DataFrame(list_rows(points, found))


def ask_forecast(
    folder: str | Path,
    spectra: Sequence[float] | None = None,
    *,
    alpha: float | None = None,
    level: float | None = None,
) -> tuple[float, list[OutlookPoint]]:
    """Return the noise level, and an entry for every number of spectra; see :func:`forecast_run`."""
    sizes = None if spectra is None else np.atleast_1d(np.asarray(spectra)).tolist()
    for number in sizes or ():
        require_kind("spectra", number, Real, "a number")
    if alpha is not None:
        require_kind("alpha", alpha, Real, "a number")
    if few := [n for n in sizes or () if not n >= 100]:
        raise InputError(
            f"a forecast needs at least 100 training spectra, found {enumerate_words([str(n) for n in few])}"
        )
    if not (alpha is None or 0 < alpha < math.inf):
        raise InputError(f"a forecast needs a penalty above 0, found {alpha}")
    results = read_results(folder)
    config = load_config(results.folder / CONFIG_FILE)
    noise = _choose_marginal(results, config, config.headline_level if level is None else level)
    sets = _open_sets(results, config)
    cells, binnings, _ = resolve_binnings(config, sets)
    moments = MomentsFolder.of_run(results.folder, noise, results.metadata.get("moments", {}).get(noise.name, ""))
    first = moments.open(0)
    is_dense, is_divided = first.is_tiled, config.forecast is not None or first.n_classes > 1
    if moments.n_cells != cells.n_cells or is_dense or not is_divided:
        raise InputError(
            f"run folder {results.folder}: a forecast needs factored moments in classes of like noise, and those of "
            f"{noise.name} are {'dense' if is_dense else 'not divided'}; add the section `forecast: {{}}` "
            + ("and `compute: {moments: factored}` " if is_dense else "")
            + "to the configuration, and run again with the same --out"
        )
    main = binnings[0]
    forecaster = Forecaster(moments, main, main.covered, config.ridge, config.target, available_threads())
    asked = forecaster.ask(sorted({min(float(n), ENDLESS) for n in sizes or (*SIZES, math.inf)}), alpha)
    found = predict_stacked(sets.test, forecaster.columns(asked), noise, "float64")
    columns = sets.test.columns
    y, bins = np.asarray(columns[config.target], dtype=np.float64), main.assign(columns)
    return noise.level, forecaster.judge(asked, y, bins, found, _bootstrap(config))


def _choose_marginal(results: RunResults, config: ExperimentConfig, level: float) -> Noise:
    """Return the marginal noise of a level.

    Raises
    ------
    InputError
        If the pass has not seen it; the message lists the levels that it has.
    """
    noises = training_noises(config.noise.mode, config.noise.levels, config.seeds)
    found = [one for one in noises if not one.is_single]
    for noise in found:
        if noise.level == level:
            return noise
    if not found:
        raise InputError(
            f"run folder {results.folder}: a forecast needs noise that was integrated out, and the run has drawn noise "
            "alone; set noise.mode to marginal, both or checked, add the section `forecast: {}`, and run again"
        )
    raise InputError(
        f"run folder {results.folder}: a forecast can be made at the noise levels of its pass, which are "
        f"{', '.join(f'{one.level:g}' for one in found)}; asked for {level:g}"
    )
