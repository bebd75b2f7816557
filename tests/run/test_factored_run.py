"""Whole runs with factored moments: every question gives the answer of dense moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.config import ExperimentConfig
from pipeline.predict import export_model
from pipeline.questions import QUESTIONS
from pipeline.run import revisit_run, run_experiment
from pipeline.scoring import RunResults

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


@pytest.mark.parametrize("question", [question.name for question in QUESTIONS])
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
