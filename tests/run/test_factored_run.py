"""Whole runs with factored moments: every question gives the answer of dense moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import merge_runs
from pipeline.bins import BinGrid
from pipeline.config import ExperimentConfig
from pipeline.convert import convert_shards
from pipeline.noise import MarginalNoise
from pipeline.predict import export_model
from pipeline.questions import QUESTIONS
from pipeline.questions.rank import Rank
from pipeline.ridge import read_models
from pipeline.run import revisit_run, run_experiment
from pipeline.scoring import RunResults
from pipeline.shards import find_shards
from pipeline.store import SpectraStore

#: Every question has something to answer, about marginal noise.
EVERYTHING: dict[str, Any] = {
    "noise": {"mode": "marginal", "levels": [0.2, 1.0], "test": "drawn"},
    "seeds": [42],
    "ridge": {"alpha": {"search": [1.0, 100.0], "by": "per_expert"}, "min_spectra": 20},
    "binnings": {"SNR": {"snr": {"quantiles": 2}}},
    "gate": {},
    "design": {"grid": {"T_eff": {"quantiles": 2}, "M_H": {"quantiles": 2}}, "experts": 3},
    "bootstrap": {"resamples": 100},
    "precision": "float64",
}


@pytest.fixture(scope="module")
def runs(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResults]:
    compute = {"folds": 2, "partition_rows": 400, "run_rows": 128}
    return {
        moments: run_experiment(
            ExperimentConfig.model_validate(
                small_config.to_dict()
                | EVERYTHING
                | {"compute": compute | {"moments": moments, "rank_tolerance": 1e-9}}
            ),
            tmp_path_factory.mktemp(moments),
        )
        for moments in ("dense", "factored")
    }


def compare(one: Any, other: Any, place: str) -> None:
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert set(one) == set(other), place
        for name in one:
            compare(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            compare(a, b, f"{place}.{k}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5, nan_ok=True), place
    elif not isinstance(one, str):
        assert one == other, place


@pytest.mark.parametrize("question", [question.name for question in QUESTIONS if question is not Rank])
def test_every_question_gives_the_same_answer(runs: dict[str, RunResults], question: str) -> None:
    answers = [runs[name].summary.answers.get(question) for name in ("dense", "factored")]
    assert (answers[0] is None) == (answers[1] is None)
    compare(*answers, question)


def test_scores_and_predictions_are_the_same(runs: dict[str, RunResults]) -> None:
    dense, factored = runs["dense"], runs["factored"]
    for one, other in ((dense.overall, factored.overall), (dense.per_bin, factored.per_bin)):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=1e-5)
    spread = dense.predictions["y_true"].std()
    for column in ("y_global", "y_oracle"):
        assert np.abs(dense.predictions[column] - factored.predictions[column]).max() < 1e-3 * spread
    known = factored.metadata["factoring"]["noises"]
    assert set(known) == {"marginal_noise-0.2", "marginal_noise-1.0"}
    assert all(one["lost_r2_at_most"] <= 1e-9 for one in known.values())
    assert dense.metadata["factoring"]["noises"] == {}


def test_what_comes_after_a_run_takes_them_too(runs: dict[str, RunResults], tmp_path: Path) -> None:
    found = [revisit_run(one.folder, alpha=5.0, marginal=True, level=1.0) for one in runs.values()]
    np.testing.assert_allclose(
        found[0].models.global_weights,
        found[1].models.global_weights,
        atol=1e-5 * np.abs(found[0].models.global_weights).max(),
    )
    models = [export_model(one.folder, tmp_path / name) for name, one in runs.items()]
    np.testing.assert_allclose(models[0].components.variances, models[1].components.variances, rtol=1e-5)


def test_r2_against_the_rank_ends_at_that_of_the_models(runs: dict[str, RunResults], train_store: SpectraStore) -> None:
    assert Rank.read(runs["dense"]) is None
    answer = Rank.read(runs["factored"])
    assert answer is not None
    config = ExperimentConfig.model_validate(runs["factored"].metadata["config"])
    grid, y = BinGrid(config.bins), train_store.columns[config.target].astype(np.float64)
    bins = grid.assign(train_store.columns)
    inside = bins >= 0
    total = ((y[inside] - y[inside].mean()) ** 2).sum()
    for level in answer.levels:
        noise = MarginalNoise(level.noise_level)
        means, variances = noise.read(train_store, 0, train_store.n_spectra, "float64")
        [*_, models] = read_models(runs["factored"].folder / f"models/{noise.name}.npz")
        weights, intercepts = models.columns(config.target)
        errors = (means @ weights + intercepts - y[:, None]) ** 2 + variances @ weights**2
        assert [point.rank for point in level.points][-1] == level.rank
        assert level.points[-1].r2_global == pytest.approx(1 - errors[inside, 0].sum() / total, abs=1e-6)
        of_experts = errors[inside, 1 + bins[inside]].sum()
        assert level.points[-1].r2_oracle == pytest.approx(1 - of_experts / total, abs=1e-6)
        r2 = [point.r2_global for point in level.points]
        assert r2[0] < r2[-1], "a model of fewer directions is a worse one"
        [*_, of_dense] = read_models(runs["dense"].folder / f"models/{noise.name}.npz")
        errors = (means @ of_dense.columns(config.target)[0] + of_dense.columns(config.target)[1] - y[:, None]) ** 2
        errors += variances @ of_dense.columns(config.target)[0] ** 2
        assert abs(1 - errors[inside, 0].sum() / total - level.points[-1].r2_global) <= level.moved_at_most + 1e-9
        assert 2 * level.lost_at_most <= level.moved_at_most < 1e-3


def factored_config(small_config: ExperimentConfig, train: list[str], **data: Any) -> ExperimentConfig:
    settings = small_config.to_dict()
    changed = {
        "data": settings["data"] | {"train": train} | data,
        "noise": {"mode": "marginal", "test": "drawn"},
        "seeds": [42],
        "ablation": False,
        "compute": settings["compute"] | {"folds": "shards", "moments": "factored", "rank_tolerance": 1e-4},
        "ridge": {"alpha": 10.0, "min_spectra": 2},
        "bootstrap": {"resamples": 100},
    }
    return ExperimentConfig.model_validate(settings | changed)


def test_added_shards_keep_the_basis_and_agree_with_a_fresh_run(
    small_config: ExperimentConfig, sample: Path, tmp_path: Path
) -> None:
    shards = find_shards([sample / "train"], sample)
    stores = [str(convert_shards([one], tmp_path / f"{k}.zarr", workers=1).path) for k, one in enumerate(shards)]
    few = run_experiment(factored_config(small_config, stores[:1]), tmp_path / "grown")
    grown = run_experiment(factored_config(small_config, stores), tmp_path / "grown")
    assert grown.metadata["folds"]["reused"] == [0]
    fresh = run_experiment(factored_config(small_config, stores), tmp_path / "fresh")
    bases = [one.metadata["factoring"]["noises"]["marginal_noise-1.0"] for one in (few, grown, fresh)]
    assert bases[0]["basis"] == bases[1]["basis"] != bases[2]["basis"]
    certified = max(one["lost_r2_at_most"] for one in bases)
    for merit in ("r2_oracle", "r2_global"):
        assert np.abs(grown.overall[merit] - fresh.overall[merit]).max() < certified


def test_runs_that_share_a_basis_merge_exactly(
    small_config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path
) -> None:
    names = ["shard_0", "shard_1"]
    for name in names:
        config = factored_config(small_config, [str(train_store.path)], exclude=[name])
        run_experiment(config, tmp_path / f"without_{name}")
    run_experiment(factored_config(small_config, [str(train_store.path)]), tmp_path / "whole")
    [merged] = merge_runs([tmp_path / f"without_{name}" for name in reversed(names)])
    [whole] = merge_runs([tmp_path / "whole"])
    for cell in range(10):
        assert merged.total(cell).identical(whole.total(cell))
