"""Which of two training noises the verdict is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline import ExperimentConfig, render_run, run_experiment
from pipeline.questions.marginal_curve import MarginalCurve

SCORES = ["scope", "n_train", "r2_oracle", "r2_global", "delta_r2"]


@pytest.mark.slow  # runs of three modes
def test_checked_tells_of_marginal_noise_what_both_compares_and_the_other_way_round(
    small_config: ExperimentConfig, tmp_path: Path, one_figure: Callable[[str], None]
) -> None:
    one_figure("moe_marginal_noise.png")
    common = {"seeds": [42], "ablation": False, "bootstrap": {"resamples": 100}}
    runs = {}
    for mode in ("both", "checked"):
        noise = {"noise": {"mode": mode, "levels": [1.0], "test": "drawn"}}
        config = ExperimentConfig.model_validate(small_config.to_dict() | noise | common)
        runs[mode] = run_experiment(config, tmp_path / mode)
    tables = {
        mode: (results.learning[SCORES], pd.read_csv(tmp_path / mode / file)[SCORES])
        for (mode, results), file in zip(
            runs.items(), ("marginal_learning_curve.csv", "drawn_learning_curve.csv"), strict=True
        )
    }
    for verdict, compared in (("both", "checked"), ("checked", "both")):
        pd.testing.assert_frame_equal(tables[verdict][0], tables[compared][1], rtol=1e-12)
    answers = {mode: MarginalCurve.read(results) for mode, results in runs.items()}
    assert {mode: answer.compared for mode, answer in answers.items() if answer} == {
        "both": "marginal",
        "checked": "drawn",
    }
    sentences = {answer.sentence for answer in answers.values() if answer}
    assert len(sentences) == 1, "the comparison is the same from either side"
    render_run(tmp_path / "checked")
    assert (tmp_path / "checked/figures/moe_marginal_noise.png").is_file()
