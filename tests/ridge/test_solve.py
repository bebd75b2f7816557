from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from random_moments import write_random_moments
from tracing import trace_peak

from pipeline.accumulate import MomentsFolder, accumulate_moments, plan_accumulation
from pipeline.bins import BinGrid, CellGrid, plan_binnings
from pipeline.config import REFERENCE_EDGES, ComputeConfig, RidgeConfig
from pipeline.errors import InputError, SingularGramError
from pipeline.moments import Moments, TileLayout
from pipeline.noise import MarginalNoise, NoiseDraw
from pipeline.ridge import ExpertModels, SolveJob, TooFewSpectraError, solve_experts, solve_folders, solve_memory
from pipeline.schema import STREAM_TRAIN
from pipeline.store import SpectraStore

GRID = BinGrid(REFERENCE_EDGES)
BINNING = plan_binnings(GRID, {}, ablation=False)[1][0]
RIDGE = RidgeConfig.model_validate({"alpha": {"per_spectrum": 0.1}, "min_spectra": 2})


@pytest.fixture(scope="module")
def folders(train_store: SpectraStore, tmp_path_factory: pytest.TempPathFactory) -> list[MomentsFolder]:
    plan = plan_accumulation(train_store, CellGrid((GRID,)), ComputeConfig(folds=3))
    draws = [NoiseDraw(1.0, seed, STREAM_TRAIN) for seed in (1, 2)]
    return accumulate_moments(plan, draws, tmp_path_factory.mktemp("moments"))


def job(folder: MomentsFolder, ridge: RidgeConfig, threads: int = 1) -> SolveJob:
    return SolveJob(folder, BINNING, ridge, covered=tuple(range(GRID.n_bins)), threads=threads)


def solve(
    folders: list[MomentsFolder], ridge: RidgeConfig, threads: int = 1, client: Client | None = None
) -> list[list[ExpertModels]]:
    solved = dict(solve_folders([job(one, ridge, threads) for one in folders], client=client))
    return [solved[k] for k in range(len(folders))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"standardize": "per_expert"},
        {"standardize": "none", "train_on": "covered"},
    ],
)
def test_models_are_those_of_the_folds_added_in_memory(
    folders: list[MomentsFolder], settings: dict[str, object]
) -> None:
    ridge = RIDGE.model_copy(update=settings)
    for one, found in zip(folders, solve(folders, ridge, threads=2), strict=True):
        assert len(found) == one.n_folds
        for n_folds, models in enumerate(found, start=1):
            cells = [Moments.merge(one.read(fold, cell) for fold in range(n_folds)) for cell in range(one.n_cells)]
            expected = solve_experts(cells, ridge, GRID)
            assert models.global_count == expected.global_count
            assert models.global_alpha == expected.global_alpha
            assert models.warnings == expected.warnings
            np.testing.assert_array_equal(models.expert_counts, expected.expert_counts)
            np.testing.assert_allclose(models.global_weights, expected.global_weights, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(models.expert_weights, expected.expert_weights, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(models.expert_intercepts, expected.expert_intercepts, rtol=1e-7)


@pytest.mark.parametrize("train_on", ["all", "covered"])
def test_other_binnings_are_those_of_their_cells_added(folders: list[MomentsFolder], train_on: str) -> None:
    one, ridge = folders[0], RIDGE.model_copy(update={"train_on": train_on})
    for binning in plan_binnings(GRID, {}, ablation=True)[1][1:]:
        covered = tuple(range(GRID.n_bins))
        [(_, [models])] = solve_folders([SolveJob(one, binning, ridge, covered, prefixes=(one.n_folds,))])
        merged = [Moments.merge(one.total(cell) for cell in cells) for cells in (*binning.members, [GRID.n_bins])]
        expected = solve_experts(merged, ridge, binning)
        assert models.global_count == expected.global_count
        np.testing.assert_array_equal(models.expert_counts, expected.expert_counts)
        np.testing.assert_allclose(models.global_weights, expected.global_weights, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(models.expert_weights, expected.expert_weights, rtol=1e-7, atol=1e-9)


def test_threads_and_workers_change_no_bit(folders: list[MomentsFolder], two_workers: Client) -> None:
    one = solve(folders, RIDGE, threads=1)
    many = solve(folders, RIDGE, threads=3)
    elsewhere = solve(folders, RIDGE, client=two_workers)
    for others in (many, elsewhere):
        for a, b in zip(itertools.chain(*one), itertools.chain(*others), strict=True):
            np.testing.assert_array_equal(a.global_weights, b.global_weights)
            np.testing.assert_array_equal(a.expert_weights, b.expert_weights)
            np.testing.assert_array_equal(a.expert_intercepts, b.expert_intercepts)


def test_memory_does_not_depend_on_cells_and_folds(tmp_path: Path) -> None:
    pixels = 400
    folder = write_random_moments(tmp_path, n_folds=4, n_cells=GRID.n_cells, pixels=pixels)
    [models], peak = trace_peak(lambda: solve([folder], RIDGE, threads=2))
    results = sum(one.expert_weights.nbytes + one.global_weights.nbytes for one in models)
    sums = 4 * GRID.n_cells * pixels * 5 * 8  # what is small, of every fold and cell
    assert peak <= solve_memory(pixels, 2) + 2 * results + sums + 2**20
    assert solve_memory(pixels, 2) < GRID.n_cells * TileLayout(pixels).nbytes(np.float64), "less than all cells take"


def test_a_prefix_that_starves_a_bin_is_left_out_and_the_whole_set_may_not(folders: list[MomentsFolder]) -> None:
    smallest = [
        min(sum(folders[0].read(fold, cell).count for fold in range(n)) for cell in range(GRID.n_bins))
        for n in (1, 2, 3)
    ]
    ridge = RIDGE.model_copy(update={"min_spectra": smallest[0] + 1})
    assert [models.global_count for models in solve(folders[:1], ridge)[0]] == [
        sum(folders[0].read(fold, cell).count for fold in range(n) for cell in range(GRID.n_bins + 1)) for n in (2, 3)
    ]
    with pytest.raises(TooFewSpectraError, match="min_spectra"):
        solve(folders, RIDGE.model_copy(update={"min_spectra": smallest[2] + 1}))


def test_solve__raise_on_singular_system_from_a_worker(folders: list[MomentsFolder], two_workers: Client) -> None:
    ridge = RidgeConfig.model_construct(**{**dict(RIDGE), "alpha": 0.0})
    with pytest.raises(SingularGramError, match="use alpha >="):
        solve(folders, ridge)
    with pytest.raises(SingularGramError):
        solve(folders, ridge, client=two_workers)


def test_bins_must_be_those_of_the_pass(train_store: SpectraStore, tmp_path: Path) -> None:
    bins = {"T_eff": [3750.0, 4800.0, 6000.0], "M_H": [-2.0, -0.5, 0.5]}
    plan = plan_accumulation(train_store, bins, compute=ComputeConfig(folds=1))
    [moments] = accumulate_moments(plan, [MarginalNoise(1.0)], tmp_path)
    models = solve_experts(moments, {"alpha": 1.0, "min_spectra": 2}, bins)
    shifted = bins | {"M_H": [-2.0, -0.4, 0.5]}
    for other in (dict(reversed(bins.items())), shifted):
        with pytest.raises(InputError, match="give the bins that the pass was planned with, in the same order"):
            solve_experts(moments, {"alpha": 1.0, "min_spectra": 2}, other)
    with pytest.raises(InputError, match="target: one of log_g, T_eff, M_H is required, found 'logg'"):
        models.predict(np.ones((2, train_store.n_pixels)), "logg")
    with pytest.raises(InputError, match=r"x: shape \(N, \d+\), pixels of the models, is required, found \(2, 3\)"):
        models.predict(np.ones((2, 3)), "log_g")
