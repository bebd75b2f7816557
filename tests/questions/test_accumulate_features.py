"""The pass for gates: the rows it reads, their noise, features and held-out predictions, and how it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schema
from pipeline.accumulate import AccumulationPlan, plan_accumulation
from pipeline.bins import BinGrid, CellGrid, plan_partitions
from pipeline.config import REFERENCE_EDGES, ComputeConfig, LineWindow
from pipeline.errors import InputError
from pipeline.moments import PrincipalComponents
from pipeline.noise import NoiseDraw
from pipeline.questions.gate import FeatureRecipe
from pipeline.questions.gate.collect import FeatureJob, FeatureRows, accumulate_features, plan_runs
from pipeline.questions.gate.features import quality_features, write_recipe
from pipeline.ridge import write_fold_models
from pipeline.ridge.held_out import FoldModels
from pipeline.scoring import read_noisy_rows
from pipeline.store import SpectraStore

DRAW = NoiseDraw(1.0, 42, schema.STREAM_TRAIN)
GRID = BinGrid(REFERENCE_EDGES)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    st.integers(1, 20_000),
    st.sampled_from([100, 700, 5000]),
)
def test_runs_are_spread_evenly_and_share_no_row(lengths: list[int], spectra: int, rows: int) -> None:
    edges = np.cumsum([0, *lengths])
    partitions = plan_partitions(list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)), rows)
    runs = plan_runs(partitions, spectra)
    chosen = [row for own in runs for start, stop in own for row in range(start, stop)]
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(edges[-1]))
    assert len(chosen) <= min(spectra, edges[-1])
    assert len(chosen) >= min(spectra, edges[-1]) - sum(len(own) for own in runs)  # runs end where the next begins
    if spectra >= edges[-1]:
        assert len(chosen) == edges[-1]
    for part, own in zip(partitions, runs, strict=True):
        assert abs(sum(b - a for a, b in own) - min(spectra / edges[-1], 1) * part.n_spectra) < 2 + len(own)


@pytest.fixture(scope="module")
def plan(train_store: SpectraStore) -> AccumulationPlan:
    compute = ComputeConfig(folds=3, partition_rows=250, run_rows=128)
    return plan_accumulation(train_store, CellGrid((GRID,)), compute, "float64")


@pytest.fixture(scope="module")
def recipe(train_store: SpectraStore) -> FeatureRecipe:
    wavelength = np.asarray(train_store.wavelength, dtype=np.float64)
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(wavelength.size, 2)))
    components = PrincipalComponents(np.full(wavelength.size, 0.9), vectors, np.array([2.0, 1.0]))
    window = LineWindow(name="wide", centre=8500, half_width=60, continuum=((8300, 8400), (8600, 8700)), total="all")
    return FeatureRecipe(components, (window,), wavelength)


@pytest.fixture(scope="module")
def fold_models(train_store: SpectraStore) -> FoldModels:
    generator = np.random.default_rng(1)
    return FoldModels(generator.normal(size=(3, train_store.n_pixels, 4)), generator.normal(size=(3, 4)), "log_g")


@pytest.fixture
def job(recipe: FeatureRecipe, fold_models: FoldModels, tmp_path: Path) -> FeatureJob:
    write_recipe(tmp_path / "recipe.npz", recipe)
    write_fold_models(tmp_path / "folds.npz", fold_models)
    items = tuple((column, tuple(map(float, edges))) for column, edges in GRID.edges.items())
    files = str(tmp_path / "recipe.npz"), str(tmp_path / "folds.npz")
    return FeatureJob(DRAW, str(tmp_path / "rows.npz"), "key-1", 100_000, items, *files, quality=True)


def test_rows_are_those_of_arrays_in_memory(
    plan: AccumulationPlan, job: FeatureJob, recipe: FeatureRecipe, fold_models: FoldModels, train_store: SpectraStore
) -> None:
    accumulate_features(plan, [job])
    rows, n = FeatureRows.read(Path(job.path)), train_store.n_spectra
    noisy = read_noisy_rows(train_store, 0, n, DRAW, "float64")
    assert (rows.rows == np.arange(n)).all()
    np.testing.assert_allclose(rows.features, recipe.compute(noisy), rtol=1e-9, atol=1e-9)
    for fold, (start, stop) in enumerate(plan.folds):
        assert (rows.folds[start:stop] == fold).all()
        expected = noisy[start:stop] @ fold_models.weights[fold] + fold_models.intercepts[fold]
        np.testing.assert_allclose(rows.predicted[start:stop], expected, rtol=1e-9)
    assert (rows.bins == GRID.assign(train_store.columns)).all()
    labels = np.column_stack([train_store.columns[label] for label in schema.LABELS])
    assert (rows.y == labels).all()
    assert (rows.quality == quality_features(train_store.read_rows("error", 0, n))).all()
    assert [path.name for path in Path(job.path).parent.iterdir() if path.suffix == ".parts"] == []


def test_fewer_spectra_are_rows_of_all(plan: AccumulationPlan, job: FeatureJob, train_store: SpectraStore) -> None:
    accumulate_features(plan, [job])
    whole = FeatureRows.read(Path(job.path))
    accumulate_features(plan, [replace(job, spectra=300, key="key-2")])
    some = FeatureRows.read(Path(job.path))
    assert 290 <= len(some.rows) <= 300
    assert np.ptp(some.rows) > 0.7 * train_store.n_spectra
    np.testing.assert_allclose(some.features, whole.features[some.rows], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(some.predicted, whole.predicted[some.rows], rtol=1e-12, atol=1e-12)


def test_workers_and_a_resume_change_no_bit(
    plan: AccumulationPlan, job: FeatureJob, two_workers: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate_features(plan, [job])
    expected = Path(job.path).read_bytes()
    Path(job.path).unlink()
    calls: list[Any] = []

    def stop_at_the_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_noisy_rows(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.questions.gate.collect.read_noisy_rows", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            accumulate_features(plan, [job])
        assert not Path(job.path).exists()
        assert len(list(job.parts.glob("partition-*.npz"))) == 2
        accumulate_features(plan, [job])
    assert len(calls) == 3 + len(plan.partitions) - 2  # the two that were done are not done again
    assert Path(job.path).read_bytes() == expected
    Path(job.path).unlink()
    accumulate_features(plan, [job], client=two_workers)
    assert Path(job.path).read_bytes() == expected


def test_parts_of_another_key_are_not_taken(plan: AccumulationPlan, job: FeatureJob) -> None:
    stale = replace(job, key="key-0").parts
    stale.mkdir(parents=True)
    for part in plan.partitions:
        (stale / f"partition-{part.index:06d}.npz").write_bytes(b"stale")
    accumulate_features(plan, [job])
    assert len(FeatureRows.read(Path(job.path)).rows) == plan.n_spectra


def test_nothing_asked_for_is_nothing_read(plan: AccumulationPlan, job: FeatureJob) -> None:
    plain = replace(job, recipe=None, fold_models=None, quality=False)
    accumulate_features(plan, [plain])
    rows = FeatureRows.read(Path(job.path))
    assert rows.features.shape == rows.predicted.shape == rows.quality.shape == (plan.n_spectra, 0)


def test_accumulate__raises_on_another_store_or_a_damaged_file(plan: AccumulationPlan, job: FeatureJob) -> None:
    with pytest.raises(InputError, match="changed since the plan was made"):
        accumulate_features(replace(plan, fingerprint="other"), [job])
    Path(str(job.recipe)).write_bytes(b"PK")
    with pytest.raises(InputError, match=r"recipe.npz: cannot be read"):
        accumulate_features(plan, [job])
