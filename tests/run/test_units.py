"""Units do not matter: a power of two on all flux and errors changes no bit of any result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline import schema
from pipeline.config import ExperimentConfig
from pipeline.convert import convert_shards
from pipeline.noise import NoiseDraw
from pipeline.predict import PredictOptions, export_model, load_model, predict_spectra
from pipeline.run import revisit_run, run_experiment
from pipeline.scoring import RunResults
from pipeline.shards import find_shards

#: What every part of a run that sees pixels computes something from.
EVERYTHING: dict[str, Any] = {
    "noise": {"mode": "both"},
    "ridge": {"alpha": {"search": [1, 100, 1e4], "by": "per_expert"}, "standardize": "per_expert", "min_spectra": 20},
    "binnings": {"snr": {"snr": {"quantiles": 2}}},
    "gate": {"features": {"components": 3}, "binnings": ["snr"], "spectra": 600},
    "design": {"grid": {"T_eff": [3750, 4800, 6000], "M_H": [-2.0, -0.5, 0.5]}, "experts": 3},
    "seeds": [42],
    "compute": {"folds": 2, "partition_rows": 400, "run_rows": 128},
}


def scaled_config(sample: Path, config: ExperimentConfig, folder: Path, factor: float) -> ExperimentConfig:
    """Return the experiment on a copy of the shards whose flux and errors are multiplied."""
    copy = folder / "spectra"
    shutil.copytree(sample, copy)
    for path in copy.rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            for name in {"flux", "error", "noisy"} & set(file["dataset/arrays"]):
                pixels = file[f"dataset/arrays/{name}/value"]
                pixels[...] = pixels[...] * factor
    stores = {role: folder / f"{role}.zarr" for role in ("train", "test")}
    for role, store in stores.items():
        convert_shards(find_shards([copy / role], copy), store, workers=1, chunk_rows=128)
    data = {role: [str(store)] for role, store in stores.items()}
    return ExperimentConfig.model_validate(config.to_dict() | {"data": data})


Scaled = Callable[[float], ExperimentConfig]


@pytest.fixture
def scaled(sample: Path, small_config: ExperimentConfig, tmp_path: Path) -> Scaled:
    return lambda factor: scaled_config(sample, small_config, tmp_path / f"times {factor:g}", factor)


def run(config: ExperimentConfig, folder: Path, **sections: Any) -> RunResults:
    return run_experiment(ExperimentConfig.model_validate(config.to_dict() | sections), folder)


@pytest.fixture(scope="module")
def everything(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run(small_config, tmp_path_factory.mktemp("everything") / "run", **EVERYTHING)


@pytest.fixture(scope="module", params=[-100, pytest.param(100, marks=pytest.mark.slow)])  # a run with every question
def found(
    sample: Path, small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> tuple[int, RunResults]:
    """The same run of spectra times a power of two, and the power."""
    folder = tmp_path_factory.mktemp("found")
    config = scaled_config(sample, small_config, folder, 2.0**request.param)
    return request.param, run(config, folder / "run", **EVERYTHING)


@pytest.mark.slow  # runs with every question
def test_powers_of_two_change_no_bit_of_any_answer(everything: RunResults, found: tuple[int, RunResults]) -> None:
    power, results = found
    assert results.summary.to_dict() == everything.summary.to_dict()
    pd.testing.assert_frame_equal(results.predictions, everything.predictions, check_exact=True)
    assert results.metadata["stores"]["test"]["flux_exponent"] == -power


def test_normalised_spectra_are_taken_as_they_are(small_run: RunResults) -> None:
    assert small_run.metadata["stores"]["train"]["flux_exponent"] == 0


@pytest.mark.parametrize("factor", [1e-25, 1e20])
def test_powers_of_ten_change_next_to_nothing(
    small_run: RunResults, scaled: Scaled, tmp_path: Path, factor: float
) -> None:
    found = run(scaled(factor), tmp_path / "run")
    names = ["r2_oracle", "r2_global", "delta_r2"]
    np.testing.assert_allclose(found.overall[names], small_run.overall[names], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("power", "alpha"), [(-100, 0.5), (100, {"search": [0.5, 5, 50]})], ids=["fixed", "search"])
def test_without_scaling_of_pixels_the_penalty_has_the_unit_of_squared_flux(
    small_config: ExperimentConfig, scaled: Scaled, tmp_path: Path, power: int, alpha: Any
) -> None:
    def ridge(square: float) -> dict[str, Any]:
        own = alpha * square if isinstance(alpha, float) else {"search": [one * square for one in alpha["search"]]}
        return {"ridge": {"alpha": own, "standardize": "none"}, "seeds": [42]}

    wanted = run(small_config, tmp_path / "wanted", **ridge(1))
    found = run(scaled(2.0**power), tmp_path / "run", **ridge(4.0**power))
    pd.testing.assert_frame_equal(found.predictions, wanted.predictions, check_exact=True)
    merits = [name for name in wanted.overall if not name.startswith("alpha")]
    pd.testing.assert_frame_equal(found.overall[merits], wanted.overall[merits], check_exact=True)
    np.testing.assert_allclose(found.overall["alpha_global"], wanted.overall["alpha_global"] * 4.0**power, rtol=1e-9)


def test_models_predict_spectra_of_their_own_unit(
    everything: RunResults, found: tuple[int, RunResults], tmp_path: Path
) -> None:
    power, results = found
    predicted = []
    for one, name in ((everything, "wanted"), (results, "found")):
        export_model(one.folder, tmp_path / name)
        out = tmp_path / f"{name}.parquet"
        options = PredictOptions(noise=NoiseDraw(1.0, 42, schema.STREAM_TEST))
        predict_spectra(load_model(tmp_path / name), one.store_paths("test"), out, options)
        predicted.append(pd.read_parquet(out).drop(columns="shard"))
    pd.testing.assert_frame_equal(*predicted, check_exact=True)
    own, others = revisit_run(results.folder).weights(), revisit_run(everything.folder).weights()
    np.testing.assert_array_equal(own["weight"] * 2.0**power, others["weight"])
    np.testing.assert_array_equal(own["effect"], others["effect"])
    np.testing.assert_array_equal(own["pixel_std"], others["pixel_std"] * 2.0**power)
