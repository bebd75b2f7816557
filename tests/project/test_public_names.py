"""What a notebook sees: public names alone, and functions that need no others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cluster
import pipeline
from pipeline.store import SpectraStore

EDGES = {"T_eff": [3750, 4875, 6000], "M_H": [-2.5, 0.75]}


def test_dir_shows_public_names_alone() -> None:
    code = (
        "import pipeline, cluster, pipeline.run.experiment, cluster.slurm.jobs\n"
        "for one in (pipeline, cluster):\n"
        "    assert set(dir(one)) == set(one.__all__), set(dir(one)) ^ set(one.__all__)\n"
        "    assert all(getattr(one, name) is not None for name in dir(one))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "RunResults" in dir(pipeline)
    assert "connect" in dir(cluster)


def test_moments_and_models_by_public_names(train_store: SpectraStore, tmp_path: Path) -> None:
    plan = pipeline.plan_accumulation(str(train_store.path), EDGES, {"folds": 2})
    [moments] = pipeline.accumulate_moments(plan, pipeline.NoiseDraw(1.0, 42, pipeline.STREAM_TRAIN), tmp_path / "m")
    models = pipeline.solve_experts(moments, {"alpha": 10.0, "min_spectra": 10}, EDGES)
    assert models.global_count == train_store.n_spectra
    assert len(models.expert_alphas) == 2
    same = pipeline.solve_experts(
        list(moments.totals()), pipeline.RidgeConfig(alpha=10.0, min_spectra=10), pipeline.BinGrid.of(EDGES)
    )
    np.testing.assert_array_equal(same.expert_weights, models.expert_weights)
    with pytest.raises(pipeline.ConfigError, match=r"ridge: unknown setting 'alfa' \(did you mean 'alpha'"):
        pipeline.solve_experts(moments, {"alfa": 10.0}, EDGES)


@pytest.fixture(scope="module")
def passed(train_store: SpectraStore, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A plan, the moments of its pass, and the path of its store."""
    plan = pipeline.plan_accumulation(train_store, EDGES, {"folds": 1})
    folder = tmp_path_factory.mktemp("passed")
    found = pipeline.accumulate_moments(plan, pipeline.MarginalNoise(1.0), folder)
    return SimpleNamespace(plan=plan, found=found, store=str(train_store.path), out=folder / "out")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: pipeline.plan_accumulation({"train": p.store}, EDGES), "store: a store, its path"),
        (lambda p: pipeline.plan_accumulation([1], EDGES), r"paths: .* found 1 \(int\)"),
        (lambda p: pipeline.plan_accumulation(p.store, "my.yaml"), r"bins: a .*'my.yaml' \(str\)"),
        (lambda p: pipeline.plan_accumulation(p.store, {"T_eff": 5}), r"bins, T_eff: a list of edges"),
        (lambda p: pipeline.plan_accumulation(p.store, {"T_eff": "ab"}), "at least two increasing"),
        (lambda p: pipeline.BinGrid({"T_eff": 5}), "at least two increasing numbers, found 5"),
        (lambda p: pipeline.plan_accumulation(p.store, EDGES, None, "double"), "'float32' or"),
        (lambda p: pipeline.accumulate_moments(p.store, pipeline.MarginalNoise(1.0), p.out), "plan: what"),
        (lambda p: pipeline.accumulate_moments(p.plan, [1.0], p.out), "draws: a noise, such as Noise"),
        (lambda p: pipeline.accumulate_moments(p.plan, pipeline.MarginalNoise, p.out), "draws: .*ABCMeta"),
        (lambda p: pipeline.accumulate_moments(p.plan, "marginal", p.out), r"'marginal' \(str\)"),
        (lambda p: pipeline.accumulate_moments(p.plan, pipeline.MarginalNoise(1.0), None), "folder: a"),
        (lambda p: pipeline.solve_experts(p.found, 1.0, EDGES), "cells: one .*of type MomentsFolder"),
        (lambda p: pipeline.solve_experts(next(p.found[0].totals()), 1.0, EDGES), "cells: .*found Moments\\("),
        (lambda p: pipeline.solve_experts("moments", 1.0, EDGES), r"cells: .*'moments' \(str\)"),
        (lambda p: pipeline.solve_experts(p.found[0], 1.0, p.plan.cells), "bins: .*CellGrid"),
        (lambda p: pipeline.solve_experts(p.found[0], 1.0, {"M_H": [-9, 9]}), "moments of 1 bins .* those of 3 cells"),
        (lambda p: pipeline.write_store([p.found], p.out), "dataset: one xarray.Dataset, a path, or"),
        (lambda p: pipeline.write_store("mine.nc", None), r"path: .* found None \(NoneType\)"),
        (lambda p: pipeline.write_store("mine.nc", p.out, names="T_eff=t"), "names: a dictionary"),
    ],
)
def test_an_argument_of_another_kind_is_told_by_its_name(
    passed: SimpleNamespace, call: Callable[[SimpleNamespace], object], message: str
) -> None:
    with pytest.raises(pipeline.InputError, match=message):
        call(passed)
    assert not passed.out.exists()


def test_a_text_is_one_path(train_store: SpectraStore) -> None:
    assert pipeline.open_stores(str(train_store.path)).fingerprint == train_store.fingerprint
    with pytest.raises(pipeline.InputError, match="at least two run folders are required, found 1"):
        pipeline.compare_runs("runs/first")
    with pytest.raises(pipeline.InputError, match=r"shard spectra\.h5 does not exist"):
        pipeline.convert_shards("spectra.h5", "spectra.zarr")
    with pytest.raises(pipeline.InputError, match="runs/first"):
        pipeline.merge_runs("runs/first")
