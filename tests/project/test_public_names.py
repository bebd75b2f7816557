"""What a notebook sees: public names alone, and functions that need no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_text_is_one_path(train_store: SpectraStore) -> None:
    assert pipeline.open_stores(str(train_store.path)).fingerprint == train_store.fingerprint
    with pytest.raises(pipeline.InputError, match="at least two run folders are required, found 1"):
        pipeline.compare_runs("runs/first")
    with pytest.raises(pipeline.InputError, match=r"shard spectra\.h5 does not exist"):
        pipeline.convert_shards("spectra.h5", "spectra.zarr")
    with pytest.raises(pipeline.InputError, match="runs/first"):
        pipeline.merge_runs("runs/first")
