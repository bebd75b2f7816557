"""Noise integrated out: against quadrature, against the mean of many draws, and through the whole pipeline."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from loop_rows import SETTINGS, rows_of
from results_factory import render_page
from scipy import integrate, stats
from tracing import trace_peak

from pipeline.accumulate import loop_memory
from pipeline.accumulate.hotloop import CellRows, accumulate_parts, accumulate_rows
from pipeline.bins import BinGrid
from pipeline.config import REFERENCE_EDGES, ExperimentConfig, load_config
from pipeline.errors import ConfigError
from pipeline.moments import Moments
from pipeline.noise import (
    NO_SEED,
    FaintPixels,
    MarginalNoise,
    Noise,
    NoiseDraw,
    Scatter,
    correction_polynomials,
    marginal_moments,
    scatter_marginal,
)
from pipeline.ridge import ExpertModels, read_models
from pipeline.run import plan_experiment, run_experiment
from pipeline.schema import LABELS, STREAM_TEST, STREAM_TRAIN
from pipeline.scoring import (
    Bootstrap,
    RunResults,
    predict_marginal,
    predict_store,
    read_marginal_rows,
    read_noisy_rows,
)
from pipeline.scoring.scores import score_headrooms
from pipeline.store import SpectraStore

LEVELS = [MarginalNoise(1.0), MarginalNoise(0.2)]
#: From no flux at all to none of the noise's business, dense where the kernel's polynomials end.
RATIOS = np.concatenate(
    [[0, 1e-30, 1e-8, 1e-3, 12, 40, 1e3, 1e6], np.linspace(0.01, 5, 997), np.linspace(5, 9, 2003), [5.3, 8.5]]
)


# --- the closed form ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 1e-9, 0.01, 0.3, 1, 2, 3.5, 5, 6, 7.5, 8.2, 9, 12, 30])
def test_moments_equal_those_by_quadrature(ratio: float) -> None:
    sigma = 0.3
    [m], [v] = marginal_moments([ratio * sigma], [2 * sigma], 0.5)

    def expected(function: object) -> float:
        # Beyond 12 standard deviations nothing is left; the kink is at −ratio.
        kink = max(-ratio, -12.0)
        parts = [(-12.0, kink), (kink, max(kink, 0.0)), (max(kink, 0.0), 12.0)]
        return sum(integrate.quad(function, a, b, epsabs=1e-15, epsrel=1e-13)[0] for a, b in parts if a < b)

    excess = expected(lambda e: (max(ratio + e, 0) - ratio) * stats.norm.pdf(e))
    assert m / sigma - ratio == pytest.approx(excess, abs=2e-14 * max(1, ratio))
    spread = expected(lambda e: (max(ratio + e, 0) - ratio - excess) ** 2 * stats.norm.pdf(e))
    assert v / sigma**2 == pytest.approx(spread, abs=1e-13)


def test_moments_equal_the_textbook_form_where_that_does_not_cancel() -> None:
    flux, sigma = np.linspace(0, 1.2, 101), 0.4
    z = flux / sigma
    m, v = marginal_moments(flux, np.full(101, 0.2), 2.0)
    mean = flux * stats.norm.cdf(z) + sigma * stats.norm.pdf(z)
    square = (flux**2 + sigma**2) * stats.norm.cdf(z) + flux * sigma * stats.norm.pdf(z)
    np.testing.assert_allclose(m, mean, rtol=1e-14)
    np.testing.assert_allclose(v, square - mean**2, rtol=1e-11)


def test_variance_does_not_cancel_where_the_flux_is_large() -> None:
    # The textbook form, E[x²] − m², is off by 1e-4 of s² at z = 1e6.
    _, v = marginal_moments(np.array([10.0, 1e4, 1e6, 1e12]), np.ones(4), 1.0)
    np.testing.assert_array_equal(v, 1)


def test_without_noise_nothing_is_changed() -> None:
    flux = np.array([-1.0, 0.0, 1e-300, 0.1, 1e6])
    for error, level in (([0.3] * 5, 0.0), ([0.0] * 5, 1.0)):
        m, v = marginal_moments(flux, error, level)
        np.testing.assert_array_equal(m, np.maximum(flux, 0))
        np.testing.assert_array_equal(v, 0)


# --- the kernel --------------------------------------------------------------------------------------


def scatter(
    flux: np.ndarray, error: np.ndarray, level: float, precision: str, cuts: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that the kernel writes, and the variances it adds, for one buffer."""
    pool = np.full((1, *flux.shape), np.nan, precision)
    variances, origin = np.zeros((1, flux.shape[1])), np.zeros(flux.shape[1], precision)
    slots, targets = np.arange(len(flux)), np.zeros(len(flux), np.int64)
    number = np.dtype(precision).type(level)
    for begin, end in pairwise((0, *cuts, flux.shape[1])):
        polynomials = correction_polynomials(precision)
        scatter_marginal(flux, error, number, polynomials, begin, end, origin, targets, slots, pool, variances, targets)
    return pool[0], variances[0]


@pytest.mark.parametrize("level", [1.0, 0.25])
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-6), ("float64", 1e-13)])
def test_kernel_is_as_precise_as_it_says(precision: str, bound: float, level: float) -> None:
    sigma = np.resize(np.float32([0.07, 0.31, 1.0, 5.0]), RATIOS.size)
    flux = (RATIOS * sigma).astype(np.float32)[None]
    error = (sigma / np.float32(level))[None]
    m, v = scatter(flux, error, level, precision)
    expected_m, expected_v = marginal_moments(flux[0], error[0], level)
    assert (np.abs(m[0] - expected_m) <= bound * np.maximum(sigma, expected_m if precision == "float64" else 0)).all()
    assert (np.abs(v - expected_v) <= bound * sigma.astype(float) ** 2).all()


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-6), ("float64", 1e-13)])
def test_faint_pixels_are_all_that_clipping_changes(precision: str, bound: float) -> None:
    level, sigma = 0.25, np.resize(np.float32([0.07, 0.31, 0.0, 1.0]), RATIOS.size)
    shuffled = np.stack([RATIOS, RATIOS[::-1], RATIOS + 9, np.roll(RATIOS, 7) - 0.5])
    flux, error = (shuffled * sigma).astype(np.float32), np.tile(sigma / np.float32(level), (len(shuffled), 1))
    kernel, dtype = MarginalNoise(level).kernel(np.dtype(precision)), np.dtype(precision)
    room = FaintPixels(
        np.empty(len(flux) + 1, np.int64), np.empty(flux.size, np.int32), np.empty(flux.size, dtype),
        np.empty(flux.size, dtype),
    )  # fmt: skip
    assert kernel.find_faint(flux, error, room, flux.size)
    count = room.starts[-1]
    m, v = np.maximum(flux, 0).astype(float), (level * error.astype(float)) ** 2
    for row, (begin, end) in enumerate(pairwise(room.starts)):
        assert (np.diff(room.pixels[begin:end]) > 0).all()
        m[row, room.pixels[begin:end]] += room.mean[begin:end]
        v[row, room.pixels[begin:end]] += room.variance[begin:end]
    expected_m, expected_v = marginal_moments(flux, error, level)
    assert (np.abs(m - expected_m) <= bound * sigma).all()
    assert (np.abs(v - expected_v) <= bound * sigma.astype(float) ** 2).all()
    assert room.starts[2] == room.starts[3], "a row of bright pixels has none"
    assert kernel.find_faint(flux, error, room, count)
    assert not kernel.find_faint(flux, error, room, count - 1)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_kernel_leaves_pixels_without_noise_alone(precision: str) -> None:
    flux = np.array([[-0.5, 0.0, 1e-38, 0.2, 1e6, 0.2]], np.float32)
    error = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 1e-44]], np.float32)
    m, v = scatter(flux, error, 1.0, precision)
    np.testing.assert_array_equal(m, np.maximum(flux, 0))
    np.testing.assert_allclose(v, 0, atol=1e-80)


def test_how_pixels_are_shared_changes_no_bit() -> None:
    generator = np.random.default_rng(3)
    flux = generator.uniform(-0.1, 3, (5, 1300)).astype(np.float32)
    error = generator.uniform(0.05, 1, (5, 1300)).astype(np.float32)
    for precision in ("float32", "float64"):
        m, v = scatter(flux, error, 1.0, precision)
        shared = scatter(flux, error, 1.0, precision, cuts=(1, 37, 700))
        np.testing.assert_array_equal(shared[0], m)
        np.testing.assert_array_equal(shared[1], v)


# --- the hot loop ------------------------------------------------------------------------------------


def add_variances(moments: Moments, variances: np.ndarray) -> Moments:
    return replace(moments, gram=moments.gram + moments.layout.pack(np.diag(variances)))


@pytest.mark.parametrize(("precision", "rtol"), [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("noise", [*LEVELS, MarginalNoise(0.0)], ids=lambda noise: noise.name)
def test_moments_are_those_of_the_means_with_the_variances_on_the_diagonal(
    train_store: SpectraStore, noise: MarginalNoise, precision: str, rtol: float
) -> None:
    start, stop = 37, 1501
    rows = rows_of(train_store, start, stop)
    [found] = accumulate_rows(train_store, rows, [noise], replace(SETTINGS, precision=precision))
    m, v = read_marginal_rows(train_store, start, stop, noise)
    for cell in range(rows.n_cells):
        members = rows.cells == cell
        of_means = Moments.from_samples(
            m[members], rows.y[members], LABELS, x_origin=rows.x_origin, y_origin=rows.y_origin
        )
        expected = add_variances(of_means, v[members].sum(axis=0))
        assert found[cell].count == members.sum()
        scale = np.abs(expected.gram).max()
        np.testing.assert_allclose(found[cell].gram, expected.gram, rtol=rtol, atol=rtol * scale)
        np.testing.assert_allclose(found[cell].cross, expected.cross, rtol=rtol, atol=rtol * 1e5)
        np.testing.assert_allclose(found[cell].x_sum, expected.x_sum, rtol=rtol, atol=rtol * 100)
        np.testing.assert_array_equal(found[cell].y_sum, expected.y_sum)


def test_the_mean_of_many_draws_converges_to_them(train_store: SpectraStore) -> None:
    """R draws miss the expectation by their standard error: each sum by less than 5 of its own, all of them together
    by one in the root mean square; four times as many draws halve the miss."""
    whole = rows_of(train_store, 100, 300)
    rows = replace(whole, cells=np.zeros(len(whole.cells), np.int64), n_cells=1)
    settings = replace(SETTINGS, precision="float64")
    clean = train_store.read_rows("flux", 100, 300) / train_store.read_rows("error", 100, 300)
    level = 2.0  # so that clipping matters: without it, adding s² to the diagonal would do
    assert (clean < 2.5 * level).mean() > 0.2

    def sums(moments: Moments) -> np.ndarray:
        lower = moments.layout.unpack(moments.gram)[np.tril_indices(moments.n_pixels)]
        return np.concatenate([moments.x_sum, lower, moments.cross.ravel()])

    [[marginal]] = accumulate_rows(train_store, rows, [MarginalNoise(level)], settings)
    drawn = np.stack(
        [
            sums(accumulate_rows(train_store, rows, [NoiseDraw(level, seed, STREAM_TRAIN)], settings)[0][0])
            for seed in range(256)
        ]
    )
    misses = {}
    for n_draws in (64, 256):
        some = drawn[:n_draws]
        misses[n_draws] = (some.mean(axis=0) - sums(marginal)) / (some.std(axis=0, ddof=1) / np.sqrt(n_draws))
        assert np.abs(misses[n_draws]).max() < 5
        assert 0.85 < np.sqrt(np.mean(misses[n_draws] ** 2)) < 1.15
    errors = [np.abs(drawn[:n].mean(axis=0) - sums(marginal)) / drawn.std(axis=0) for n in (64, 256)]
    assert 1.7 < np.sqrt(np.mean(errors[0] ** 2) / np.mean(errors[1] ** 2)) < 2.3


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_without_noise_marginal_and_drawn_are_the_same_bits(train_store: SpectraStore, precision: str) -> None:
    rows = rows_of(train_store)
    noises: list[Noise] = [MarginalNoise(0.0), NoiseDraw(0.0, 7, STREAM_TRAIN)]
    marginal, drawn = accumulate_rows(train_store, rows, noises, replace(SETTINGS, precision=precision))
    assert all(a.identical(b) for a, b in zip(marginal, drawn, strict=True))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_threads_that_share_pixels_change_no_bit(precision: str) -> None:
    rng = np.random.default_rng(3)
    flux = rng.normal(30, 0.1, (40, 1000)).astype(np.float32)
    error = rng.uniform(0.5, 1.0, flux.shape).astype(np.float32)
    # A few pixels are faint, and some are as bright as the corrections reach, so strips are computed in either way.
    flux[rng.random(flux.shape) < 5e-4] = 0.4
    edge = rng.random(flux.shape) < 2e-3
    flux[edge] = (np.float32(5.3) * np.float32(0.3) * error)[edge]
    found = []
    for n_parts in (1, 2, 3, 7, 50):
        rows, pool, variances = np.arange(40), np.empty((1, *flux.shape), precision), np.zeros((1, 1000))
        origin, targets = np.full(1000, 30.0, precision), np.zeros(40, np.int64)
        own = Scatter(flux, error, 0, origin, targets, rows, pool, variances)
        for part in MarginalNoise(0.3).kernel(np.dtype(precision)).split(own, n_parts):
            part()
        found.append((pool, variances))
    for pool, variances in found[1:]:
        np.testing.assert_array_equal(pool, found[0][0])
        np.testing.assert_array_equal(variances, found[0][1])


def test_bits_depend_on_neither_threads_nor_company(train_store: SpectraStore) -> None:
    rows = rows_of(train_store)
    company: list[Noise] = [NoiseDraw(1.0, 42, STREAM_TRAIN), *LEVELS]
    together = accumulate_rows(train_store, rows, company, SETTINGS)
    for noise, expected in zip(company, together, strict=True):
        for threads in (1, 7):  # seven threads share the pixels of a row between two helpers
            [alone] = accumulate_rows(train_store, rows, [noise], replace(SETTINGS, threads=threads))
            assert all(a.identical(b) for a, b in zip(alone, expected, strict=True))


class OtherBlocks:
    """The same spectra, read in blocks of another size."""

    def __init__(self, store: SpectraStore, size: int) -> None:
        self.n_pixels, self.chunk_rows = store.n_pixels, size
        self.read_rows = store.read_rows

    def iter_blocks(self, start: int, stop: int) -> list[tuple[int, int]]:  # type: ignore[override]
        return [(a, min(a + self.chunk_rows, stop)) for a in range(start, stop, self.chunk_rows)]


def test_blocks_change_no_bit(train_store: SpectraStore) -> None:
    rows = rows_of(train_store)
    [expected] = accumulate_rows(train_store, rows, LEVELS[:1], SETTINGS)
    for size in (1, 97, 1600):
        [found] = accumulate_rows(OtherBlocks(train_store, size), rows, LEVELS[:1], SETTINGS)  # type: ignore[arg-type]
        assert all(a.identical(b) for a, b in zip(found, expected, strict=True))


def test_parts_in_a_row_have_the_bits_of_each_alone(train_store: SpectraStore) -> None:
    parts = [rows_of(train_store, a, b) for a, b in pairwise([0, 3, 700, 700, 701, train_store.n_spectra])]
    found: dict[tuple[int, int, int], Moments] = {}

    def keep(part: int, draw: int, cell: int, moments: Moments) -> None:
        time.sleep(0.002)  # so that the next part's rows wait for their tiles
        found[part, draw, cell] = replace(moments, gram=moments.gram.copy())

    accumulate_parts(train_store, iter(parts), 10, LEVELS, SETTINGS, keep)
    for number, rows in enumerate(parts):
        for draw, expected in enumerate(accumulate_rows(train_store, rows, LEVELS, SETTINGS)):
            assert all(found[number, draw, cell].identical(one) for cell, one in enumerate(expected))


def test_allocations_stay_within_the_projection(train_store: SpectraStore) -> None:
    rows: CellRows = rows_of(train_store)
    accumulate_rows(train_store, rows, LEVELS, SETTINGS)  # compiles, and fills caches
    _, peak = trace_peak(lambda: accumulate_rows(train_store, rows, LEVELS, SETTINGS))
    # The per-row labels, cells and one decoded chunk come on top of the loop's own buffers.
    own = 3 * (rows.y.nbytes + rows.cells.nbytes) + 4 * train_store.chunk_rows * train_store.n_pixels * 4 + 600_000
    planned = loop_memory(train_store.n_pixels, len(LABELS), 10, len(LEVELS), train_store.chunk_rows, SETTINGS)
    assert peak < planned + own


# --- the whole pipeline ------------------------------------------------------------------------------


def changed(config: ExperimentConfig, **sections: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | sections)


@pytest.fixture(scope="module")
def finished(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    config = changed(small_config, noise={"mode": "marginal", "levels": [1.0], "test": "marginal"})
    return run_experiment(config, tmp_path_factory.mktemp("marginal"))


def ridge_on_expectations(
    m: np.ndarray, v: np.ndarray, y: np.ndarray, alpha: float, scale: np.ndarray
) -> tuple[np.ndarray, float]:
    """Minimise the expected Σ(y − b − wᵀx)² + α‖scale·w‖², written out in float64 with the normal equations."""
    x, t = (m - m.mean(axis=0)) / scale, y - y.mean()
    system = x.T @ x + np.diag(v.sum(axis=0) / scale**2) + alpha * np.eye(x.shape[1])
    weights = np.linalg.solve(system, x.T @ t) / scale
    return weights, float(y.mean() - m.mean(axis=0) @ weights)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_a_run_equals_one_written_out_in_memory(
    small_config: ExperimentConfig,
    train_store: SpectraStore,
    test_store: SpectraStore,
    tmp_path: Path,
    precision: str,
    tolerance: float,
) -> None:
    noise = {"mode": "marginal", "levels": [1.0], "test": "marginal"}
    results = run_experiment(changed(small_config, precision=precision, noise=noise), tmp_path)
    grid = BinGrid(REFERENCE_EDGES)
    train_bins, test_bins = grid.assign(train_store.columns), grid.assign(test_store.columns)
    y, y_test = train_store.columns["log_g"], test_store.columns["log_g"]
    m, v = read_marginal_rows(train_store, 0, train_store.n_spectra, LEVELS[0])
    m_test, v_test = read_marginal_rows(test_store, 0, test_store.n_spectra, LEVELS[0])
    scale = np.sqrt(m.var(axis=0) + v.mean(axis=0))
    alpha = 0.1 * len(m)
    models = [ridge_on_expectations(m, v, y, alpha, scale)]
    models += [
        ridge_on_expectations(m[train_bins == k], v[train_bins == k], y[train_bins == k], alpha, scale)
        for k in range(9)
    ]
    mean = np.column_stack([m_test @ w + b for w, b in models])
    std = np.column_stack([np.sqrt(v_test @ w**2) for w, _ in models])
    saved = results.predictions
    names = ["y_global", *(f"expert_{k}" for k in range(9))]
    np.testing.assert_allclose(saved[names], mean, rtol=tolerance, atol=tolerance / 100)
    np.testing.assert_allclose(saved[[f"{name}_std" for name in names]], std, rtol=tolerance)
    errors = (y_test[:, None] - mean) ** 2 + std**2
    covered = test_bins >= 0
    sse = {"global": errors[covered, 0].sum(), "oracle": errors[covered, 1 + test_bins[covered]].sum()}
    total = np.sum((y_test[covered] - y_test[covered].mean()) ** 2)
    row = results.overall.query("scope == 'covered'").squeeze()
    for model, expected in sse.items():
        assert row[f"r2_{model}"] == pytest.approx(1 - expected / total, abs=max(tolerance / 10, 1e-9))
    assert row["seed"] == NO_SEED


def test_a_marginal_run_has_no_seeds_and_says_so(finished: RunResults) -> None:
    assert [path.name for path in (finished.folder / "moments").iterdir()] == ["marginal_noise-1.0"]
    assert finished.overall["seed"].tolist() == [NO_SEED, NO_SEED]
    assert finished.summary["levels"][0]["test_noise"] == "marginal"
    assert finished.per_bin[["mae_global", "mae_oracle"]].isna().all(axis=None)
    estimate = finished.summary["levels"][0]["scopes"]["covered"]["delta_r2"]
    assert estimate["std"] == 0
    assert estimate["low"] < estimate["mean"] < estimate["high"]
    for page in render_page(finished):
        text = page.read_text(encoding="utf-8")
        assert "infinitely many noisy copies of every test spectrum" in text
        assert "Models were trained on marginal noise" in text
        assert "Seeds: none, since no noise was drawn." in text
        assert "seed -1" not in text


def test_a_finished_run_is_not_computed_again(
    finished: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig.model_validate(finished.metadata["config"])
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)  # a second pass would fail
    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    again = run_experiment(changed(config, bootstrap={"resamples": 100}), folder)
    assert [step["skipped"] for step in again.metadata["steps"]] == [True, True, True, False]


@pytest.mark.slow  # two workers of their own; whole runs of drawn noise on one store have the same test
def test_workers_do_not_change_the_results(finished: RunResults, two_workers: Client, tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate(finished.metadata["config"])
    run_experiment(config, tmp_path, client=two_workers)
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv", "predictions.parquet"):
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes(), name


def test_a_plan_counts_levels_and_no_seeds(small_config: ExperimentConfig) -> None:
    noise = {"mode": "marginal", "levels": [0.2, 1.0]}
    assert plan_experiment(changed(small_config, noise=noise), [2**34]).n_draws == 2
    assert plan_experiment(changed(small_config, noise=noise | {"mode": "drawn"}), [2**34]).n_draws == 4


def test_other_test_noises_of_marginal_models(
    small_config: ExperimentConfig, test_store: SpectraStore, tmp_path: Path
) -> None:
    noise = {"mode": "marginal", "levels": [1.0, 0.2], "test": "stored"}
    results = run_experiment(changed(small_config, noise=noise), tmp_path)
    assert [level["test_noise"] for level in results.summary["levels"]] == ["stored", "drawn"]
    # At level 1 the test file's own noise, once; elsewhere the same models under one draw for every seed.
    expected = {(1.0, NO_SEED): None} | {(0.2, seed): NoiseDraw(0.2, seed, STREAM_TEST) for seed in (42, 123)}
    saved = results.predictions.groupby(["noise_level", "seed"])
    assert set(saved.groups) == set(expected)
    for (level, seed), draw in expected.items():
        models = read_models(tmp_path / "models" / f"{MarginalNoise(level).name}.npz")
        predicted = models[-1].predict(read_noisy_rows(test_store, 0, test_store.n_spectra, draw), "log_g")
        np.testing.assert_allclose(saved.get_group((level, seed))["y_global"], predicted[:, 0], rtol=1e-12)


def test_drawn_models_can_be_tested_on_marginal_noise(small_config: ExperimentConfig, tmp_path: Path) -> None:
    results = run_experiment(changed(small_config, noise={"levels": [1.0], "test": "marginal"}), tmp_path)
    assert results.overall["seed"].unique().tolist() == [42, 123]
    assert results.summary["levels"][0]["test_noise"] == "marginal"
    assert results.overall["r2_global"].nunique() > 1


# --- scores under marginal test noise ----------------------------------------------------------------


@pytest.fixture(scope="module")
def models(finished: RunResults) -> list[ExpertModels]:
    return read_models(finished.folder / "models" / "marginal_noise-1.0.npz")


def test_expected_scores_are_the_mean_of_many_draws(
    models: list[ExpertModels], test_store: SpectraStore, finished: RunResults
) -> None:
    """Means over R draws lie within 5 of their standard errors of what marginal test noise says."""
    n_draws = 150
    y, bins = test_store.columns["log_g"], BinGrid(REFERENCE_EDGES).assign(test_store.columns)
    routed = (slice(None), np.arange(len(bins)), 1 + np.maximum(bins, 0))
    predicted = np.stack(
        [
            predict_store(test_store, models[-1:], "log_g", NoiseDraw(1.0, seed, STREAM_TEST), "float64")[0]
            for seed in range(n_draws)
        ]
    )
    drawn = score_headrooms(y, predicted[:, :, 0], predicted[routed], bins, 9, Bootstrap(resamples=2))
    mean, variance = predict_marginal(test_store, models[-1:], "log_g", MarginalNoise(1.0))
    [expected] = score_headrooms(
        y, mean[:, :, 0], mean[routed], bins, 9, Bootstrap(resamples=2), (variance[:, :, 0], variance[routed])
    )
    for scope in ("covered", "all"):
        merits = np.stack([score.scope(scope).merits for score in drawn])
        error = merits.std(axis=0, ddof=1) / np.sqrt(n_draws)
        found = expected.scope(scope).merits
        assert (np.abs(merits.mean(axis=0) - found) < 5 * error).all()
        # The test can tell: the R² of mean predictions, without their variance, lies far outside.
        [naive] = score_headrooms(y, mean[:, :, 0], mean[routed], bins, 9, Bootstrap(resamples=2))
        assert (np.abs(naive.scope(scope).merits[:2] - found[:2]) > 10 * error[:2]).all()
        row = finished.overall.query("scope == @scope").squeeze()
        np.testing.assert_allclose(row[["r2_oracle", "r2_global", "delta_r2"]].astype(float), found, rtol=1e-8)
    miss = (predicted.mean(axis=0) - mean[0]) / (predicted.std(axis=0, ddof=1) / np.sqrt(n_draws))
    assert np.abs(miss).max() < 5.5
    spread = predicted.var(axis=0, ddof=1) / variance[0]
    assert abs(spread.mean() - 1) < 0.02
    assert np.abs(spread - 1).max() < 6 * np.sqrt(2 / n_draws)


def test_variances_reach_every_scope_and_every_resample() -> None:
    generator = np.random.default_rng(1)
    y, of_global, of_oracle = generator.normal(size=(3, 300))
    bins = generator.integers(-1, 3, 300)
    of_models = (generator.uniform(1, 2, (1, 300)), generator.uniform(0, 1, (1, 300)))
    settings = Bootstrap(resamples=50)
    [plain] = score_headrooms(y, of_global[None], of_oracle[None], bins, 3, settings)
    [found] = score_headrooms(y, of_global[None], of_oracle[None], bins, 3, settings, of_models)
    # Outside the grid the oracle is the global model, and so is its variance.
    of_routed = np.where(bins < 0, of_models[0][0], of_models[1][0])
    for members, before, after in [
        (bins >= 0, plain.covered, found.covered),
        (bins >= -1, plain.all, found.all),
        *((bins == k, plain.bins[k], found.bins[k]) for k in range(3)),
    ]:
        total = np.sum((y[members] - y[members].mean()) ** 2)
        lost = np.array([of_routed[members].sum(), of_models[0][0, members].sum()]) / total
        np.testing.assert_allclose(before.merits[:2] - after.merits[:2], lost, rtol=1e-9)
        assert (after.resampled[:, :2] < before.resampled[:, :2]).all()
        assert np.isnan([after.mae_oracle, after.mae_global]).all()


# --- what a user can get wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{mode: marginall}", r"noise\.mode.*'drawn', 'marginal', 'both' or 'checked'.*'marginall'"),
        ("{mode: 3}", r"noise\.mode.*'drawn', 'marginal', 'both' or 'checked'.*found 3"),
        ("{mode: marginal, test: expected}", r"noise\.test.*'stored', 'drawn' or 'marginal'.*'expected'"),
        ("{mode: marginal, level: 1}", r"unknown setting 'noise\.level' \(did you mean 'levels'"),
        ("{mode: marginal, levels: [-1]}", r"noise\.levels.*greater than or equal to 0"),
    ],
)
def test_config__raise_on_wrong_noise(tmp_path: Path, section: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{train: [a], test: [b]}}\nnoise: {section}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_names_are_safe_in_paths_and_apart_from_those_of_draws() -> None:
    assert MarginalNoise(1.0).name == "marginal_noise-1.0"
    assert NoiseDraw(1.0, 42, 0).name == "seed-42_noise-1.0"
    assert vars(NoiseDraw(1.0, 42, 0)) == {"level": 1.0, "seed": 42, "stream": 0}
    assert set(vars(MarginalNoise(0.2))) == {"level", "algorithm"}
