"""The search for the penalty where the moments are: the choice, what it is made of, and what it leaves."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from random_moments import write_random_moments
from tracing import trace_peak

from pipeline.accumulate import MomentsFolder, accumulate_moments, plan_accumulation
from pipeline.bins import BinGrid, CellGrid, plan_binnings
from pipeline.config import REFERENCE_EDGES, ComputeConfig, RidgeConfig
from pipeline.errors import InputError
from pipeline.moments import Moments
from pipeline.noise import NoiseDraw
from pipeline.ridge import (
    ExpertModels,
    SolveJob,
    TooFewSpectraError,
    cross_validate,
    held_out_errors,
    pixel_scale,
    read_models,
    solve_experts,
    solve_folders,
    solve_memory,
    solve_ridge_path,
    write_models,
)
from pipeline.ridge.penalties import CrossValidation, choose_penalties
from pipeline.schema import LABELS, STREAM_TRAIN
from pipeline.store import SpectraStore

GRID = BinGrid(REFERENCE_EDGES)
ALPHAS = [1.0, 10.0, 100.0, 1e3, 1e4]


def ridge(by: str = "per_expert", **settings: object) -> RidgeConfig:
    return RidgeConfig.model_validate({"alpha": {"search": ALPHAS, "by": by}, "min_spectra": 2, **settings})


@pytest.fixture(scope="module")
def folder(train_store: SpectraStore, tmp_path_factory: pytest.TempPathFactory) -> MomentsFolder:
    plan = plan_accumulation(train_store, CellGrid((GRID,)), ComputeConfig(folds=3), "float64")
    return accumulate_moments(plan, [NoiseDraw(1.0, 1, STREAM_TRAIN)], tmp_path_factory.mktemp("moments"))[0]


def solve(
    folder: MomentsFolder, settings: RidgeConfig, client: Client | None = None, **options: Any
) -> list[ExpertModels]:
    [binning] = plan_binnings(GRID, {}, ablation=False)[1]
    job = SolveJob(folder, binning, settings, tuple(range(GRID.n_bins)), **options)
    [(_, models)] = solve_folders([job], client=client)
    return models


def moments_of_folds(folder: MomentsFolder, cells: range | list[int]) -> list[Moments]:
    return [Moments.merge(folder.read(fold, cell) for cell in cells) for fold in range(folder.n_folds)]


@pytest.mark.parametrize("by", ["global", "per_expert"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"standardize": "per_expert", "train_on": "covered"}, {"standardize": "none"}],
    ids=["shared scale", "own scale", "no scale"],
)
def test_every_model_is_tried_on_folds_that_it_has_not_seen(
    folder: MomentsFolder, by: str, settings: dict[str, object]
) -> None:
    found = solve(folder, ridge(by, **settings), threads=2)[-1].search
    assert found is not None
    assert (found.by, found.target, found.alphas.tolist()) == (by, "log_g", ALPHAS)
    n_trained = GRID.n_bins if settings.get("train_on") == "covered" else folder.n_cells
    of_models = [range(n_trained), *([k] for k in range(GRID.n_bins))]
    whole = moments_of_folds(folder, range(n_trained))
    for model, cells in enumerate(of_models):
        folds = moments_of_folds(folder, cells)
        own = settings.get("standardize") == "per_expert" or model == 0
        if own or settings.get("standardize") == "none":
            expected = cross_validate(folds, ALPHAS, standardize=settings.get("standardize") != "none")
            np.testing.assert_allclose(found.sse[model], expected.sse, rtol=1e-8)
            np.testing.assert_allclose(found.tss[model], expected.tss, rtol=1e-10)
            continue
        for held_out, judge in enumerate(folds):
            # The shared scale, too, is that of spectra outside the held-out fold.
            scale = pixel_scale(Moments.merge(one for k, one in enumerate(whole) if k != held_out))
            training = Moments.merge(one for k, one in enumerate(folds) if k != held_out)
            path = solve_ridge_path(training, ALPHAS, scale)
            np.testing.assert_allclose(found.sse[model, held_out], held_out_errors(judge, path), rtol=1e-8)


@pytest.mark.parametrize("by", ["global", "per_expert"])
@pytest.mark.parametrize("target", LABELS)
def test_models_are_those_of_the_chosen_penalties(folder: MomentsFolder, by: str, target: str) -> None:
    settings = ridge(by)
    models = solve(folder, settings, target=target)
    found = models[-1].search
    assert found is not None
    best = [found.curve(k).best(LABELS.index(target)) for k in range(1 + GRID.n_bins)]
    expected = [best[0]] * len(best) if by == "global" else best
    assert found.chosen.tolist() == expected
    if by == "per_expert" and target == "log_g":
        assert len(set(best)) > 1, "a choice of one's own must make a difference here"
    assert models[-1].global_alpha == ALPHAS[expected[0]]
    assert models[-1].expert_alphas.tolist() == [ALPHAS[k] for k in expected[1:]]
    cells = [folder.total(cell) for cell in range(folder.n_cells)]
    for k, alpha in enumerate(ALPHAS):
        fixed = solve_experts(cells, settings.model_copy(update={"alpha": alpha}), GRID)
        along = models[-1].along_search()[k]
        assert (along.global_alpha, along.search) == (alpha, None)
        np.testing.assert_allclose(along.global_weights, fixed.global_weights, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(along.expert_weights, fixed.expert_weights, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(along.expert_intercepts, fixed.expert_intercepts, rtol=1e-7)
        for number in [number for number in range(GRID.n_bins) if expected[1 + number] == k]:
            np.testing.assert_array_equal(models[-1].expert_weights[number], along.expert_weights[number])
            np.testing.assert_array_equal(models[-1].expert_intercepts[number], along.expert_intercepts[number])
        if expected[0] == k:
            np.testing.assert_array_equal(models[-1].global_weights, along.global_weights)


def test_a_learning_curve_keeps_the_penalty_of_a_spectrum(folder: MomentsFolder) -> None:
    models = solve(folder, ridge())
    assert len(models) == folder.n_folds
    last = models[-1]
    for prefix in models[:-1]:
        assert prefix.search is None
        assert prefix.global_alpha / prefix.global_count == pytest.approx(last.global_alpha / last.global_count)
        np.testing.assert_allclose(
            prefix.expert_alphas, last.expert_alphas * prefix.global_count / last.global_count, rtol=1e-12
        )
    cells = [folder.read(0, cell) for cell in range(folder.n_cells)]
    fixed = solve_experts(cells, ridge().model_copy(update={"alpha": models[0].global_alpha}), GRID)
    np.testing.assert_allclose(models[0].global_weights, fixed.global_weights, rtol=1e-7, atol=1e-9)


def test_choose_penalties_by_global_asks_the_global_model_alone() -> None:
    curves = [CrossValidation(np.array([1.0, 2.0]), np.array([[[a], [b]]]), np.ones(1)) for a, b in ((1, 2), (2, 1))]
    assert choose_penalties(ridge("global").alpha, curves[:1], 0, 2) == [0, 0]  # type: ignore[arg-type]
    assert choose_penalties(ridge("per_expert").alpha, curves, 0, 2) == [0, 1]  # type: ignore[arg-type]


def test_threads_and_workers_change_no_bit_of_a_search(folder: MomentsFolder, two_workers: Client) -> None:
    one = solve(folder, ridge(), threads=1)
    many = solve(folder, ridge(), threads=3)
    elsewhere = solve(folder, ridge(), client=two_workers)
    for others in (many, elsewhere):
        for a, b in zip(one, others, strict=True):
            np.testing.assert_array_equal(a.expert_weights, b.expert_weights)
            np.testing.assert_array_equal(a.global_weights, b.global_weights)
        a, b = one[-1].search, others[-1].search
        assert a is not None
        assert b is not None
        for name in ("alphas", "sse", "tss", "chosen", "weights", "intercepts"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_holding_every_fold_changes_no_bit(folder: MomentsFolder) -> None:
    one, other = (solve(folder, ridge(), holds_folds=holds)[-1].search for holds in (False, True))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.sse, other.sse)


@pytest.mark.parametrize("alpha", [5.0, None])
def test_experts_are_solved_alone_where_the_global_model_is_known(
    folder: MomentsFolder, tmp_path: Path, alpha: float | None
) -> None:
    settings = ridge() if alpha is None else RidgeConfig(alpha=alpha)
    every = solve(folder, settings)[-1]
    known = replace(every, global_alpha=2 * ALPHAS[-1], search=None)
    write_models(tmp_path / "models.npz", [replace(known, global_count=1), known], {})
    [models] = solve(folder, settings, prefixes=(folder.n_folds,), known_global=tmp_path / "models.npz")
    assert (models.global_alpha, models.global_count) == (2 * ALPHAS[-1], every.global_count)
    np.testing.assert_array_equal(models.global_weights, every.global_weights)
    np.testing.assert_array_equal(models.expert_alphas, every.expert_alphas)
    np.testing.assert_allclose(models.expert_weights, every.expert_weights, rtol=1e-12)


def test_memory_of_a_search_does_not_depend_on_cells_and_folds(tmp_path: Path) -> None:
    pixels = 400
    folder = write_random_moments(tmp_path, n_folds=4, n_cells=GRID.n_cells, pixels=pixels)
    models, peak = trace_peak(lambda: solve(folder, ridge(), threads=2))
    assert models[-1].search is not None
    results = sum(one.expert_weights.nbytes + one.global_weights.nbytes for one in models)
    sums = 4 * GRID.n_cells * pixels * 5 * 8  # what is small, of every fold and cell
    results += models[-1].search.weights.nbytes
    assert peak <= solve_memory(pixels, 2, held_folds=1) + 2 * results + sums + 2**20


def test_search__raise_on_one_fold_or_a_bin_that_a_fold_starves(folder: MomentsFolder) -> None:
    counts = np.array([[folder.read(fold, cell).count for cell in range(GRID.n_bins)] for fold in range(3)])
    outside = counts.sum(axis=0) - counts
    least = int(outside.min())
    fold, number = np.argwhere(outside == least)[0]
    settings = ridge(min_spectra=least + 1)
    expected = rf"bin {number} .* has {least} training spectra outside fold {fold} of 3, at least {least + 1} are"
    with pytest.raises(TooFewSpectraError, match=expected):
        solve(folder, settings)
    solve(folder, ridge(min_spectra=least))
    solve(folder, settings.model_copy(update={"alpha": 1.0}))  # the whole set has enough
    single = MomentsFolder(folder.folder, folder.draw, 1, folder.n_cells)
    with pytest.raises(InputError, match="folds"):
        solve(single, ridge())


def test_a_search_survives_the_models_file(folder: MomentsFolder, tmp_path: Path) -> None:
    models = solve(folder, ridge("global"))
    write_models(tmp_path / "m.npz", models, {"key": "k"})
    for a, b in zip(models, read_models(tmp_path / "m.npz"), strict=True):
        np.testing.assert_array_equal(a.expert_weights, b.expert_weights)
        if a.search is None:
            assert b.search is None
            continue
        assert b.search is not None
        assert (a.search.by, a.search.target) == (b.search.by, b.search.target) == ("global", "log_g")
        for name in ("alphas", "sse", "tss", "chosen", "weights", "intercepts"):
            np.testing.assert_array_equal(getattr(a.search, name), getattr(b.search, name))
        assert [one.global_alpha for one in itertools.islice(b.along_search(), 9)] == ALPHAS
