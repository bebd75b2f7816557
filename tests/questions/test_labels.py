"""Labels beside the target: scored as if each were the target, and never by experts that would know them."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_factory import render_page, restate_hashes

from pipeline.config import ExperimentConfig
from pipeline.questions.labels import Labels
from pipeline.run import run_experiment
from pipeline.scoring import RunResults, read_results

MERITS = ["r2_global", "r2_oracle", "delta_r2"]
ENDS = [f"{merit}{suffix}" for merit in MERITS for suffix in ("", "_low", "_high")]


@pytest.fixture(scope="module")
def by_snr(small_config: ExperimentConfig) -> ExperimentConfig:
    """Bins by signal-to-noise ratio, which leak no label."""
    content = small_config.to_dict() | {"bins": {"snr": [0, 8, 40]}, "hypotheses": {}, "seeds": [42]}
    content["compute"] = {"folds": 2}
    del content["bin_names"]
    return ExperimentConfig.model_validate({key: value for key, value in content.items() if key != "hypotheses"})


def with_target(config: ExperimentConfig, target: str) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | {"target": target})


def test_a_label_scores_what_it_scores_as_the_target(by_snr: ExperimentConfig, tmp_path: Path) -> None:
    beside = run_experiment(by_snr, tmp_path / "one").labels
    alone = run_experiment(with_target(by_snr, "M_H"), tmp_path / "two")
    own = beside[beside["target"] == "M_H"]
    for scope in ("covered", "all"):
        expected = alone.overall[alone.overall["scope"] == scope][ENDS]
        np.testing.assert_allclose(own[own["part"] == scope][ENDS], expected, rtol=1e-9)
    found = own[own["part"].str.isdigit()]
    columns = [*ENDS, "alpha", "n_train", "n_test", "mae_oracle", "mae_global"]
    np.testing.assert_allclose(found[columns], alone.per_bin[columns], rtol=1e-9)
    assert set(beside["target"]) == {"T_eff", "M_H"}
    assert beside[ENDS].notna().all(axis=None)


def test_labels_that_bins_are_cut_by_have_no_oracle(small_run: RunResults, tmp_path: Path) -> None:
    results = dataclasses.replace(small_run, folder=tmp_path)
    leaked = [column for column in results.labels if "oracle" in column or "delta" in column]
    assert results.labels[leaked].isna().all(axis=None)
    assert results.labels["r2_global"].notna().all()
    answer = Labels.read(results)
    assert answer is not None
    assert list(answer.levels[0].labels) == ["T_eff", "M_H"]
    label = answer.levels[0].labels["T_eff"]
    assert label.leaks is True
    assert math.isnan(label.scopes["all"].delta_r2.mean)
    assert all(math.isnan(one.r2_oracle.mean) and math.isnan(one.mae_oracle) for one in label.bins)
    assert label.scopes["all"].r2_global.mean == pytest.approx(
        results.labels.query("target == 'T_eff' and part == 'all'")["r2_global"].mean()
    )
    for page in render_page(results):
        assert "Other labels" in page.read_text()


def test_runs_of_earlier_versions_open_without_labels(small_run: RunResults, tmp_path: Path) -> None:
    run = shutil.copytree(small_run.folder, tmp_path / "run")
    (run / "other_labels.csv").unlink()
    restate_hashes(run)
    assert isinstance(read_results(run).labels, pd.DataFrame)
    assert read_results(run).labels.empty
