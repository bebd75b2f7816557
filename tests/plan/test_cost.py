"""What a run is said to need, against what its parts allocate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tracing import trace_peak

from pipeline.config import ExperimentConfig
from pipeline.convert import convert_shards
from pipeline.noise import MarginalNoise
from pipeline.plan import plan_run
from pipeline.plan.cost import PROCESS_BYTES
from pipeline.scoring import Columns, predict_stacked
from pipeline.scoring.likeness import Comparison, measure_training
from pipeline.shards import find_shards
from pipeline.simulate import SampleSpec, write_sample

N_TEST, N_PIXELS = 4096, 256


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reading_test_spectra_stays_within_the_plan(small_config: ExperimentConfig, tmp_path: Path, dtype: str) -> None:
    write_sample(tmp_path, SampleSpec(train=600, shards=1, test=N_TEST, pixels=N_PIXELS), workers=1)
    store = convert_shards(find_shards([tmp_path / "test"], tmp_path), tmp_path / "test.zarr", workers=1)
    # Two draws of one level share the test spectra, whose noise is integrated out.
    noise = small_config.noise.model_copy(update={"mode": "drawn", "levels": (1.0,), "test": "marginal"})
    compute = small_config.compute.model_copy(update={"folds": 5})
    config = small_config.model_copy(update={"noise": noise, "compute": compute, "seeds": (1, 2)})
    plan = plan_run([600], N_PIXELS, config, [2**36], chunk_rows=store.chunk_rows, n_test=N_TEST)
    # For each draw as a default run asks: 47 columns for ten cells, with the curve, other labels and questions.
    n_columns = 2 * (5 * plan.n_cells - 3)
    marginal, models = MarginalNoise(1.0), Columns(np.ones((N_PIXELS, n_columns)), np.zeros(n_columns))
    profile = measure_training(store, marginal, dtype)

    def read() -> None:
        predict_stacked(store, [models], marginal, dtype, watch=Comparison(profile).add)

    read()
    peak = max(trace_peak(read)[1] for _ in range(3))
    assert 0.5 * (plan.driver_memory - PROCESS_BYTES) <= peak <= plan.driver_memory - PROCESS_BYTES
