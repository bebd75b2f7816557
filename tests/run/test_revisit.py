"""A finished run asked again: the same figures as the run's, and as scikit-learn's on the same noisy rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import (
    STREAM_TRAIN,
    ExperimentConfig,
    InputError,
    NoiseDraw,
    SpectraStore,
    load_config,
    read_noisy_rows,
    revisit_run,
    run_experiment,
)
from pipeline.base import seal
from pipeline.run import run_demo
from pipeline.simulate import SampleSpec

T_EFF = (3750.0, 4500.0, 5250.0, 6000.0)
COARSE = {"T_eff": T_EFF, "M_H": (-2.0, 0.5)}


@pytest.fixture(scope="module")
def config(small_config: ExperimentConfig) -> ExperimentConfig:
    plain = small_config.to_dict() | {
        "binnings": {"SNR": {"snr": {"quantiles": 2}}},
        "precision": "float64",
        "noise": {"mode": "both"},
    }
    return ExperimentConfig.model_validate(plain)


@pytest.fixture(scope="module")
def run(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a second binning, whose cells are finer than its bins."""
    folder = tmp_path_factory.mktemp("revisit") / "run"
    run_experiment(config, folder)
    return folder


@pytest.mark.parametrize("seed", [42, 123])
def test_a_revisit_repeats_the_run(run: Path, seed: int) -> None:
    table = revisit_run(run, seed=seed).table()
    overall = pd.read_csv(run / "results.csv").query(f"seed == {seed}").set_index("scope")
    columns = ["n_train", "n_test", "r2_global", "r2_oracle", "delta_r2", "delta_r2_low", "delta_r2_high"]
    for scope in ("covered", "all"):
        expected = overall.loc[scope, columns].astype(float)
        np.testing.assert_allclose(table.loc[scope, columns].astype(float), expected, rtol=1e-9, atol=1e-12)
    per_bin = pd.read_csv(run / "per_bin_results.csv").query(f"seed == {seed}").sort_values("bin")
    found = table.iloc[2:]
    np.testing.assert_allclose(found[["alpha", *columns]], per_bin[["alpha", *columns]], rtol=1e-9, atol=1e-12)
    assert list(found.index[:2]) == ["bin 0 (Cool, Poor)", "bin 1 (Cool, Solar)"]


def test_predictions_are_those_of_the_run_with_the_columns_of_each_spectrum(
    run: Path, test_store: SpectraStore
) -> None:
    saved = pd.read_parquet(run / "predictions.parquet").query("seed == 42").sort_values("row")
    found = revisit_run(run).predictions()
    for name in ("bin", "y_true", "y_global", "y_oracle", "expert_0", "expert_8"):
        np.testing.assert_allclose(found[name], saved[name], rtol=1e-9)
    np.testing.assert_array_equal(found["snr"], test_store.columns["snr"])
    assert found["y_oracle"][found["bin"] < 0].equals(found["y_global"][found["bin"] < 0])


def test_marginal_models_are_those_that_the_run_held_against_drawn_ones(run: Path) -> None:
    curve = pd.read_csv(run / "marginal_learning_curve.csv").query("scope == 'covered'")
    expected = curve[curve["n_train"] == curve["n_train"].max()]["r2_oracle"].iloc[0]
    found = revisit_run(run, marginal=True)
    assert found.noise.name == "marginal_noise-1.0"
    assert found.score().covered.r2_oracle == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("alpha", "bins"), [(77.0, None), (77.0, COARSE)])
def test_another_penalty_and_coarser_bins_equal_scikit_learn(
    run: Path,
    train_store: SpectraStore,
    test_store: SpectraStore,
    alpha: float,
    bins: dict[str, tuple[float, ...]] | None,
) -> None:
    found = revisit_run(run, alpha=alpha, bins=bins)
    of_train, of_test = (found.grid.assign(store.columns) for store in (train_store, test_store))
    x = read_noisy_rows(train_store, 0, train_store.n_spectra, NoiseDraw(1.0, 42, STREAM_TRAIN), "float64")
    x_test = read_noisy_rows(test_store, 0, test_store.n_spectra, None, "float64")
    y, y_test = train_store.columns["log_g"], test_store.columns["log_g"]
    whole = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x, y)
    scaler = whole.named_steps["standardscaler"]
    experts = [
        Ridge(alpha=alpha).fit(scaler.transform(x[of_train == k]), y[of_train == k]) for k in range(found.grid.n_bins)
    ]
    table = found.table()
    assert list(table["alpha"]) == [alpha] * len(table)
    inside = of_test >= 0
    routed = np.array(
        [experts[k].predict(scaler.transform(row[None]))[0] for k, row in zip(of_test, x_test, strict=True)]
    )
    assert table.loc["covered", "n_test"] == inside.sum()
    assert table.loc["covered", "r2_global"] == pytest.approx(
        r2_score(y_test[inside], whole.predict(x_test[inside])), abs=1e-9
    )
    assert table.loc["covered", "r2_oracle"] == pytest.approx(r2_score(y_test[inside], routed[inside]), abs=1e-9)
    weights = found.weights()
    np.testing.assert_allclose(weights["pixel_std"], scaler.scale_, rtol=1e-9)
    np.testing.assert_allclose(weights["effect"][1], experts[0].coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        x_test @ weights["weight"][0].values + weights["intercept"][0].item(), whole.predict(x_test)
    )
    np.testing.assert_array_equal(weights["wavelength"], test_store.wavelength)
    assert list(weights["n_train"].values[1:]) == [int((of_train == k).sum()) for k in range(found.grid.n_bins)]


def test_coarser_bins_are_those_of_the_ablation(run: Path) -> None:
    ablation = pd.read_csv(run / "ablation.csv").query("seed == 42").set_index("binning")
    found = revisit_run(run, bins=COARSE).score().covered
    assert found.r2_oracle == pytest.approx(ablation.loc["T_eff only", "r2_oracle"], rel=1e-9)
    assert found.delta_r2 == pytest.approx(ablation.loc["T_eff only", "delta_r2"], rel=1e-7)


def test_what_another_binning_cuts_may_be_used_too(run: Path) -> None:
    cuts = revisit_run(run).sets.train.columns["snr"]
    with pytest.raises(InputError, match=r"snr at \d"):
        revisit_run(run, bins={"snr": (0.0, float(np.median(cuts)) + 0.1, 100.0)})
    ablation = pd.read_csv(run / "ablation.csv").query("seed == 42 and binning == 'SNR'").iloc[0]
    snr = np.concatenate([cuts, revisit_run(run).sets.test.columns["snr"]])
    halves = (float(snr.min()), float(np.quantile(cuts, 0.5)), float(snr.max()))
    assert revisit_run(run, bins={"snr": halves}).score().covered.r2_oracle == pytest.approx(ablation["r2_oracle"])


def test_revisit__raise_on_bins_that_cut_cells(run: Path) -> None:
    with pytest.raises(InputError, match=r"bins must be sums of the cells.*T_eff at 3750, 4500.*leave out inner ones"):
        revisit_run(run, bins={"T_eff": (3750.0, 5000.0, 6000.0), "M_H": (-2.0, 0.5)})
    with pytest.raises(InputError, match="bins must be sums"):
        revisit_run(run, bins={"T_eff": T_EFF})  # would take in what lies outside in [M/H]
    with pytest.raises(InputError, match="bins must be sums"):
        revisit_run(run, bins={"mag": (20.0, 21.0)})


def test_revisit__raise_on_noise_that_is_not_there(run: Path) -> None:
    with pytest.raises(InputError, match=r"seed-42_noise-1\.0, seed-123.*asked for level 1, seed 5"):
        revisit_run(run, seed=5)
    with pytest.raises(InputError, match=r"asked for level 0\.5"):
        revisit_run(run, level=0.5)


def test_revisit__raise_on_missing_moments_and_changed_stores(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "moments" / "seed-42_noise-1.0" / "fold-001")
    with pytest.raises(InputError, match=r"seed-42_noise-1\.0 cannot be used \(folds 1 of 3 are missing\); run again"):
        revisit_run(copy, alpha=1.0)
    metadata = json.loads((copy / "metadata.json").read_text(encoding="utf-8"))
    metadata["stores"]["test"]["fingerprint"] = "0" * 64
    (copy / "metadata.json").write_text(json.dumps(seal(metadata)), encoding="utf-8")
    with pytest.raises(InputError, match="its test spectra are other ones now"):
        revisit_run(copy)


@pytest.mark.slow  # the packaged experiment: five seeds, two kinds of noise, a search and gates, whatever the sample
def test_a_demo_is_simulated_run_and_found_again(tmp_path: Path) -> None:
    spec = SampleSpec(train=1600, shards=2, test=300, pixels=32)
    first = run_demo(tmp_path / "demo", spec)
    assert first.metadata["simulated"] is True
    assert [Path(path).is_dir() for path in first.store_paths("train")] == [True]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.csv")}
    again = run_demo(tmp_path / "demo", spec)
    assert again.overall.equals(first.overall)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.csv")}
    with pytest.raises(InputError, match="names no 'all' stores"):
        first.store_paths("all")


def test_variables_stand_in_for_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADROOM_DEMO", "/elsewhere")
    config = load_config("demo", variables={"HEADROOM_DEMO": str(tmp_path)})
    assert config.data.test == (str(tmp_path / "test"),)


def test_a_run_of_other_settings_is_repeated_too(
    train_store: SpectraStore, test_store: SpectraStore, tmp_path: Path
) -> None:
    plain = {
        "data": {"train": [str(train_store.path)], "test": [str(test_store.path)], "exclude": ["shard_1/dataset.h5"]},
        "target": "T_eff",
        "bins": {"M_H": [-2.0, -1.0, 0.0, 0.5]},
        "ridge": {
            "alpha": {"search": [1, 100], "by": "per_expert"},
            "standardize": "per_expert",
            "train_on": "covered",
        },
        "noise": {"mode": "marginal", "test": "marginal"},
        "compute": {"folds": 2},
        "bootstrap": {"resamples": 100},
    }
    run = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run")
    columns = ["n_train", "n_test", "r2_global", "r2_oracle", "delta_r2", "delta_r2_low", "delta_r2_high"]
    found = revisit_run(run.folder)
    expected = run.overall.set_index("scope")[columns].astype(float)
    np.testing.assert_allclose(found.table().loc[expected.index, columns].astype(float), expected, rtol=1e-9)
    assert found.weights()["weight"].attrs["units"] == "K per flux unit"
    # One bin of all covered spectra is trained on what trains the global model here.
    one = revisit_run(run.folder, bins={"M_H": (-2.0, 0.5)}, alpha=10.0).weights()
    np.testing.assert_allclose(one["weight"][1], one["weight"][0], rtol=1e-9)
    with pytest.raises(InputError, match="penalties"):
        revisit_run(run.folder, alpha=-1.0)
