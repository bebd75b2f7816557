"""The blend: its gradient, artificial mixtures whose right weights are known, and the models that it learns on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.accumulate import MomentsFolder, accumulate_moments, plan_accumulation
from pipeline.bins import BinGrid, CellGrid, plan_binnings
from pipeline.config import REFERENCE_EDGES, ComputeConfig, RidgeConfig
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.questions.gate import BLEND, FALLBACK, Blend, Evidence, Route, mix_predictions
from pipeline.questions.gate.blend import BlendProblem, HeldOutRows, fit_blend
from pipeline.questions.gate.routing import ORACLE, SOFT
from pipeline.ridge import (
    FoldModelsJob,
    SolveJob,
    find_starved_bin,
    read_fold_models,
    solve_fold_models,
    solve_folders,
    write_fold_models,
)
from pipeline.schema import LABELS, STREAM_TRAIN
from pipeline.scoring import read_noisy_rows
from pipeline.store import SpectraStore

N_BINS = 3
GRID = BinGrid(REFERENCE_EDGES)
BINNING = plan_binnings(GRID, {}, ablation=False)[1][0]


def mixture(n: int = 3000, *, misled: float = 0.0, seed: int = 0) -> HeldOutRows:
    """Spectra whose bin is drawn from known probabilities, which a gate tells rightly where ``misled`` is 0.

    Labels are their own bin's expert's prediction, or the global model's outside, plus noise: the probability-weighted
    mean of all is the best that can be predicted.
    """
    generator = np.random.default_rng(seed)
    of_labels = generator.normal([3, 5000, -0.5], [1, 500, 0.5], (n, 3))
    u = (of_labels - [3, 5000, -0.5]) / [1, 500, 0.5]
    told = generator.dirichlet(np.ones(N_BINS + 1), n)
    truth = told * np.exp(misled * np.column_stack([u[:, 1], -u[:, 1], u[:, 2], u[:, 1] * u[:, 2]]))
    truth /= truth.sum(axis=1, keepdims=True)
    cells = (generator.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    predicted = generator.normal(3, 1, (n, 1 + N_BINS))
    bins = np.where(cells == N_BINS, -1, cells)
    y = predicted[np.arange(n), 1 + bins] + generator.normal(0, 0.1, n)
    return HeldOutRows(y, predicted, told, of_labels, np.arange(n) * 5 // n, bins >= 0)


def routed(route: Route, rows: HeldOutRows, blend: Blend | None = None) -> np.ndarray:
    known = Evidence(rows.probabilities, of_labels=rows.of_labels, learned=blend)
    return mix_predictions(route.weights(known), rows.predicted)


def error(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(((y - predicted) ** 2).mean())


def test_the_gradient_is_that_of_finite_differences() -> None:
    rows = mixture(50)
    generator = np.random.default_rng(1)
    inputs = np.concatenate([np.ones((50, 1)), generator.normal(size=(50, 4))], axis=1)
    log_p = np.log(np.roll(rows.probabilities, 1, axis=1))
    problem = BlendProblem(rows.y, rows.predicted, log_p, inputs, unit=0.7)
    for theta in (problem.start, generator.normal(0, 0.5, problem.start.size)):
        found = check_grad(lambda t: problem.evaluate(t, 3.0)[0], lambda t: problem.evaluate(t, 3.0)[1], theta)
        assert found < 1e-5 * np.linalg.norm(problem.evaluate(theta, 3.0)[1])


def test_the_start_is_fallback_routing_that_trusts_its_gate() -> None:
    rows = mixture(200)
    problem = BlendProblem(rows.y, rows.predicted, np.log(np.roll(rows.probabilities, 1, axis=1)), np.ones((200, 1)), 1)
    expected = routed(FALLBACK, rows)
    np.testing.assert_allclose(problem.predict(problem.start), expected, rtol=1e-12)
    # A start where nothing is to be gained is where it stays.
    settled = BlendProblem(expected, rows.predicted, problem.log_p, problem.inputs, 1)
    np.testing.assert_allclose(settled.minimise(1.0, settled.start), 0, atol=1e-9)


def test_a_right_gate_is_left_as_it_is() -> None:
    """Its probabilities are the truth: no weights can be better than they, so learned ones hardly differ."""
    rows, fresh = mixture(6000), mixture(6000, seed=1)
    blend = fit_blend(rows)
    weights = blend.weights(fresh.probabilities, fresh.of_labels)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    assert np.abs(weights - np.roll(fresh.probabilities, 1, axis=1)).mean() < 0.02
    assert blend.tau == pytest.approx(1, abs=0.1)
    best = error(fresh.y, routed(FALLBACK, fresh))
    assert error(fresh.y, (weights * fresh.predicted).sum(axis=1)) == pytest.approx(best, rel=0.01)


def test_a_misled_gate_is_put_right() -> None:
    """Its odds are off by exponentials of the labels' predictions, which is what the blend's inputs can express."""
    rows, fresh = mixture(6000, misled=1.5), mixture(6000, misled=1.5, seed=1)
    u = (fresh.of_labels - [3, 5000, -0.5]) / [1, 500, 0.5]
    truth = fresh.probabilities * np.exp(1.5 * np.column_stack([u[:, 1], -u[:, 1], u[:, 2], u[:, 1] * u[:, 2]]))
    right = replace(fresh, probabilities=truth / truth.sum(axis=1, keepdims=True))
    best = error(fresh.y, routed(FALLBACK, right))
    told = error(fresh.y, routed(SOFT, fresh))
    blend = fit_blend(rows)
    learned = error(fresh.y, routed(BLEND, fresh, blend))
    assert blend.is_kept
    assert told > 1.5 * best
    assert best <= learned < 1.05 * best


def test_a_gate_that_is_right_and_sure_is_the_oracle() -> None:
    rows = mixture(3000)
    cells = np.where(rows.covered, np.abs(rows.predicted[:, 1:] - rows.y[:, None]).argmin(axis=1), N_BINS)
    sure = HeldOutRows(rows.y, rows.predicted, np.eye(N_BINS + 1)[cells], rows.of_labels, rows.folds, rows.covered)
    blended = fit_blend(sure).weights(sure.probabilities, sure.of_labels)
    known = Evidence(sure.probabilities, bins=np.where(cells == N_BINS, -1, cells))
    oracle = mix_predictions(ORACLE.weights(known), sure.predicted)
    np.testing.assert_allclose((blended * sure.predicted).sum(axis=1), oracle, atol=1e-3)


def test_held_out_errors_are_those_of_blends_fitted_without_the_fold() -> None:
    """Spectra that a blend was fitted to look better than they do on held-out folds; the rest is plain means."""
    rows = mixture(1500, misled=1.0)
    blend = fit_blend(rows)
    for scope, part in (("covered", rows.covered), ("all", rows.covered | True)):
        soft = routed(SOFT, rows)
        found = blend.errors[scope]
        assert found.count == part.sum()
        assert found.soft == pytest.approx(error(rows.y[part], soft[part]), rel=1e-12)
        assert found.of_global == pytest.approx(error(rows.y[part], rows.predicted[part, 0]), rel=1e-12)
        fitted = blend.weights(rows.probabilities[part], rows.of_labels[part])
        inside = error(rows.y[part], (fitted * rows.predicted[part]).sum(axis=1))
        assert inside < found.blend, "fitted spectra must look better than held-out ones"


def test_noise_alone_is_no_reason_to_keep_a_blend() -> None:
    """Spectra that all models predict equally well: nothing beats soft routing by more than chance."""
    generator = np.random.default_rng(3)
    kept = 0
    for seed in range(8):
        rows = mixture(600, seed=seed)
        same = np.repeat(rows.predicted[:, :1], 1 + N_BINS, axis=1)
        noisy = HeldOutRows(
            same[:, 0] + generator.normal(0, 1, 600),
            same + generator.normal(0, 1e-3, same.shape),
            rows.probabilities,
            rows.of_labels,
            rows.folds,
            rows.covered,
        )
        blend = fit_blend(noisy)
        kept += blend.is_kept
        if not blend.is_kept:
            np.testing.assert_array_equal(routed(BLEND, noisy, blend), routed(SOFT, noisy))
    assert kept <= 2


def test_a_blend_is_the_same_from_its_json_and_from_another_unit_of_labels() -> None:
    rows = mixture(1000, misled=1.0)
    blend = fit_blend(rows)
    again = Blend.from_dict(json.loads(json.dumps(blend.to_dict())))
    np.testing.assert_array_equal(routed(BLEND, rows, again), routed(BLEND, rows, blend))
    assert again.errors == blend.errors
    scaled = HeldOutRows(
        10 * rows.y, 10 * rows.predicted, rows.probabilities, 4 * rows.of_labels + 2, rows.folds, rows.covered
    )
    other = fit_blend(scaled)
    expected = blend.weights(rows.probabilities, rows.of_labels)
    np.testing.assert_allclose(other.weights(scaled.probabilities, scaled.of_labels), expected, atol=1e-3)


def test_fit_blend__raise_on_one_fold() -> None:
    rows = mixture(100)
    with pytest.raises(InputError, match="at least two folds, found 1"):
        fit_blend(HeldOutRows(rows.y, rows.predicted, rows.probabilities, rows.of_labels, 0 * rows.folds, rows.covered))


@pytest.fixture(scope="module")
def folder(train_store: SpectraStore, tmp_path_factory: pytest.TempPathFactory) -> MomentsFolder:
    plan = plan_accumulation(train_store, CellGrid((GRID,)), ComputeConfig(folds=3), "float64")
    return accumulate_moments(plan, [NoiseDraw(1.0, 1, STREAM_TRAIN)], tmp_path_factory.mktemp("moments"))[0]


@pytest.mark.parametrize(("standardize", "train_on"), [("global", "all"), ("per_expert", "covered")])
def test_fold_models_are_scikit_learns_without_the_fold(
    folder: MomentsFolder, train_store: SpectraStore, standardize: str, train_on: str
) -> None:
    ridge = RidgeConfig.model_validate(
        {"alpha": {"per_spectrum": 0.1}, "min_spectra": 2, "standardize": standardize, "train_on": train_on}
    )
    covered = tuple(range(GRID.n_bins))
    [(_, solved)] = solve_folders([SolveJob(folder, BINNING, ridge, covered)])
    job = FoldModelsJob.of_models(folder, BINNING, ridge, solved[-1])
    [(place, found)] = solve_fold_models([job])
    assert place == 0
    assert find_starved_bin(job) is None
    n = train_store.n_spectra
    x = read_noisy_rows(train_store, 0, n, NoiseDraw(1.0, 1, STREAM_TRAIN), "float64")
    y = np.column_stack([np.asarray(train_store.columns[label], np.float64) for label in LABELS])
    bins = GRID.assign(train_store.columns)
    trains = bins >= (-1 if train_on == "all" else 0)
    folds = np.searchsorted([stop for _, stop in folder_folds(folder, n)], np.arange(n), side="right")
    for fold in range(folder.n_folds):
        own = folds == fold
        rows = trains & ~own
        scaler = StandardScaler().fit(x[rows])
        peer = make_pipeline(scaler, Ridge(0.1 * rows.sum())).fit(x[rows], y[rows])
        expected = [peer.predict(x[own])]
        for k in range(GRID.n_bins):
            members = (bins == k) & ~own
            own_scaler = scaler if standardize == "global" else StandardScaler().fit(x[members])
            alpha = 0.1 * trains.sum() * members.sum() / (bins == k).sum()
            expert = Ridge(alpha).fit(own_scaler.transform(x[members]), y[members, 0])
            expected.append(expert.predict(own_scaler.transform(x[own]))[:, None])
        predicted = x[own] @ found.weights[fold] + found.intercepts[fold]
        np.testing.assert_allclose(predicted, np.concatenate(expected, axis=1), rtol=1e-6)
        of_target, of_labels = found.split_columns(predicted)
        np.testing.assert_array_equal(of_target[:, 0], of_labels[:, 0])
        assert of_target.shape == (own.sum(), 1 + GRID.n_bins)


def folder_folds(folder: MomentsFolder, n_spectra: int) -> list[tuple[int, int]]:
    counts = [sum(folder.open(fold).counts) for fold in range(folder.n_folds)]
    stops = np.cumsum(counts)
    assert stops[-1] == n_spectra
    return [(int(stop - count), int(stop)) for stop, count in zip(stops, counts, strict=True)]


def test_fold_models_on_disk(folder: MomentsFolder, tmp_path: Path) -> None:
    job = FoldModelsJob(folder, BINNING, RidgeConfig(min_spectra=2), (10.0,) * 10)
    [(_, models)] = solve_fold_models([job])
    path = tmp_path / "folds.npz"
    write_fold_models(path, models)
    again = read_fold_models(path)
    np.testing.assert_array_equal(again.weights, models.weights)
    np.testing.assert_array_equal(again.intercepts, models.intercepts)
    assert again.target == models.target
    assert [one.name for one in tmp_path.iterdir()] == ["folds.npz"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be read .*delete the file and run again"):
        read_fold_models(path)


def test_a_bin_that_lies_in_one_fold_alone_is_named(folder: MomentsFolder) -> None:
    class Starved:
        n_folds = 2

        @staticmethod
        def open(fold: int) -> object:
            counts = [5] * GRID.n_bins
            counts[4] = 7 * fold + 1
            return type("Saved", (), {"counts": counts})

    job = FoldModelsJob(Starved(), BINNING, RidgeConfig(), ())  # type: ignore[arg-type]
    assert str(find_starved_bin(job)).startswith("bin 4 (Mid, Solar) has 1 training spectra outside fold 1 of 2")
