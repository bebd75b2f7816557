"""Forecasts against drawn runs of the real pipeline, on other stars than the forecasts are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import ExperimentConfig
from pipeline.run import ask_forecast, run_experiment
from pipeline.simulate import SampleSpec, write_sample

#: Five shards make the forecast. Five others are one drawn run each, with its own stars and its own noise.
SHARD, KNOWN, RUNS, LEVELS, RULES = 8000, 5, 5, (1.0, 0.3), (0.05, 0.3)


def configure(folder: Path, shards: range, **changes: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {
                "train": [str(folder / f"spectra/train/shard_{k}") for k in shards],
                "test": [str(folder / "spectra/test")],
                "stores": str(folder / "stores"),
            },
            "ablation": False,
            "bootstrap": {"resamples": 100},
            "compute": {"folds": 2, "moments": "dense"},
        }
        | changes
    )


@pytest.mark.slow  # twenty drawn runs of 8,000 spectra
@pytest.mark.parametrize("pixels", [128, 256])
def test_forecasts_agree_with_drawn_runs(tmp_path: Path, pixels: int) -> None:
    """Sixteen cells: ΔR² within 0.01, and within the drawn runs' scatter where rows are many."""
    write_sample(
        tmp_path / "spectra", SampleSpec(SHARD * (KNOWN + RUNS), KNOWN + RUNS, 4000, pixels, seed=11), workers=1
    )
    marginal = {"mode": "marginal", "levels": LEVELS, "test": "marginal"}
    compute = {"folds": KNOWN, "moments": "factored"}
    config = configure(tmp_path, range(KNOWN), noise=marginal, forecast={}, compute=compute)
    run_experiment(config, tmp_path / "forecast")
    drawn: dict[tuple[float, float, int], list[float]] = {}
    for rule in RULES:
        for k in range(RUNS):
            config = configure(
                tmp_path,
                range(KNOWN + k, KNOWN + k + 1),
                noise={"mode": "drawn", "levels": LEVELS, "test": "marginal"},
                ridge={"alpha": {"per_spectrum": rule}},
                seeds=[k],
            )
            for level in run_experiment(config, tmp_path / f"drawn-{k}").summary.levels:
                for point in level.curve:
                    own = drawn.setdefault((rule, level.noise_level, point.n_train), [])
                    own.append(point.delta_r2.mean)
    assert len(drawn) == 2 * len(RULES) * len(LEVELS)
    for (rule, level, n), found in drawn.items():
        assert len(found) == RUNS
        _, [point] = ask_forecast(tmp_path / "forecast", [n], alpha=rule * n, level=level)
        off = point.covered.delta_r2.mean - np.mean(found)
        scatter = np.std(found, ddof=1)
        print(pixels, level, n, rule * n, point.covered.delta_r2, f"{np.mean(found):.4f} ± {scatter:.4f}, {off:+.4f}")
        assert point.covered.trusted, "these are within the range that is said to be trusted"
        assert abs(off) < 0.01
        rows = n * 0.8 / 9 / pixels  # in a bin, for each pixel
        if rows >= 5:
            assert abs(off) < scatter
