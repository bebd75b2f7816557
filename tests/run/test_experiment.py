"""The whole pipeline against scikit-learn, and against itself under every disturbance."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from results_factory import render_page
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from pipeline import schema
from pipeline.base import SilentProgress, exclusive
from pipeline.base.logfile import LogFile, LoggedProgress
from pipeline.bins import BinGrid
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError, ResourceError
from pipeline.noise import NoiseDraw
from pipeline.plan import plan_run
from pipeline.run import plan_experiment, render_run, run_experiment
from pipeline.scoring import OVERALL_COLUMNS, RunResults, predict_stacked, read_noisy_rows, read_results
from pipeline.store import SpectraStore


def changed(config: ExperimentConfig, **sections: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | sections)


def sections_of(config: ExperimentConfig, name: str, **values: object) -> dict[str, object]:
    return {name: config.to_dict()[name] | values}


@pytest.fixture(scope="module")
def config(small_config: ExperimentConfig) -> ExperimentConfig:
    return small_config


@pytest.fixture(scope="module")
def finished(small_run: RunResults) -> RunResults:
    return small_run


def test_what_another_version_has_made_is_made_anew_and_told(
    config: ExperimentConfig, finished: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.folder, out)
    log = LogFile(tmp_path / "log")

    def run() -> tuple[dict[str, bool], str]:
        log.path.write_text("")
        results = run_experiment(config, out, progress=LoggedProgress(SilentProgress(), log))
        return {step["name"]: step["skipped"] for step in results.metadata["steps"]}, log.path.read_text()

    assert "another version" not in run()[1]
    for module in ("pipeline.run.experiment", "pipeline.schema"):
        monkeypatch.setattr(f"{module}.RESULTS_ALGORITHM", 99)
    skipped, told = run()
    assert (skipped["solve"], skipped["score"]) == (True, False)
    assert f"made the results in {out}, and this one computes otherwise: results; these, and what follows" in told
    assert "another version" not in run()[1], "they are this version's now"


def test_test_spectra_are_read_once_for_all_training_noises(
    config: ExperimentConfig, finished: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    def predict(store: object, columns: object, noise: object, *rest: Any) -> Any:
        read.append(noise)
        return predict_stacked(store, columns, noise, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.run.models.predict_stacked", predict)
    results = run_experiment(config, tmp_path)
    assert len(config.seeds) == 2  # both are tested on the noise that came with the test spectra
    assert len(read) == len(set(read)) == 1
    pd.testing.assert_frame_equal(results.predictions, finished.predictions)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
@pytest.mark.parametrize("level", [1.0, 0.2])
def test_parity_with_scikit_learn(
    config: ExperimentConfig,
    train_store: SpectraStore,
    test_store: SpectraStore,
    tmp_path: Path,
    precision: str,
    tolerance: float,
    level: float,
) -> None:
    results = run_experiment(changed(config, precision=precision, noise={"levels": [level]}), tmp_path)
    grid = BinGrid(config.bins)
    train_bins, test_bins = grid.assign(train_store.columns), grid.assign(test_store.columns)
    y_train, y_test = train_store.columns["log_g"], test_store.columns["log_g"]
    n = train_store.n_spectra
    for seed in config.seeds:
        rows = read_noisy_rows(train_store, 0, n, NoiseDraw(level, seed, schema.STREAM_TRAIN), precision)
        # At noise level 1 the test file's own noisy array is used, elsewhere a draw from the test stream.
        draw = None if level == 1 else NoiseDraw(level, seed, schema.STREAM_TEST)
        test_rows = read_noisy_rows(test_store, 0, test_store.n_spectra, draw, precision).astype(np.float64)
        x = rows.astype(np.float64)
        saved = results.predictions.query(f"seed == {seed}")
        of_global = make_pipeline(StandardScaler(), Ridge(alpha=0.1 * n)).fit(x, y_train)
        expected = of_global.predict(test_rows)
        np.testing.assert_allclose(saved["y_global"], expected, rtol=tolerance, atol=tolerance / 100)
        scaler = of_global.named_steps["standardscaler"]
        oracle = expected.copy()
        for k in range(grid.n_bins):
            expert = Ridge(alpha=0.1 * n).fit(scaler.transform(x[train_bins == k]), y_train[train_bins == k])
            of_expert = expert.predict(scaler.transform(test_rows))
            np.testing.assert_allclose(saved[f"expert_{k}"], of_expert, rtol=tolerance, atol=tolerance / 100)
            oracle[test_bins == k] = of_expert[test_bins == k]
        np.testing.assert_allclose(saved["y_oracle"], oracle, rtol=tolerance, atol=tolerance / 100)
        row = results.overall.query(f"seed == {seed} and scope == 'covered'").iloc[0]
        covered = test_bins >= 0
        bound = 1e-5 if precision == "float32" else 1e-8
        assert row["r2_global"] == pytest.approx(r2_score(y_test[covered], expected[covered]), abs=bound)
        assert row["r2_oracle"] == pytest.approx(r2_score(y_test[covered], oracle[covered]), abs=bound)
        assert row["n_test"] == covered.sum()


def test_tables_have_the_promised_columns(finished: RunResults, config: ExperimentConfig) -> None:
    assert tuple(finished.overall.columns) == OVERALL_COLUMNS
    assert len(finished.overall) == len(config.seeds) * 2
    assert {"bin", "T_eff_bin", "M_H_bin", "alpha", "mae_oracle", "mae_global"} <= set(finished.per_bin.columns)
    assert len(finished.per_bin) == len(config.seeds) * 9
    assert finished.per_bin["n_test"].groupby(finished.per_bin["seed"]).sum().nunique() == 1
    intervals = finished.overall
    for merit in ("r2_oracle", "r2_global", "delta_r2"):
        assert (intervals[f"{merit}_low"] <= intervals[merit]).all()
        assert (intervals[merit] <= intervals[f"{merit}_high"]).all()


def test_scores_can_be_recomputed_from_the_saved_predictions(finished: RunResults) -> None:
    for (seed, scope), row in finished.overall.set_index(["seed", "scope"]).iterrows():
        saved = finished.predictions.query(f"seed == {seed}")
        saved = saved[saved["bin"] >= 0] if scope == "covered" else saved
        assert row["r2_oracle"] == pytest.approx(r2_score(saved["y_true"], saved["y_oracle"]), abs=1e-9)
        assert row["r2_global"] == pytest.approx(r2_score(saved["y_true"], saved["y_global"]), abs=1e-9)


def test_learning_curve_ends_at_the_result(finished: RunResults) -> None:
    sizes = finished.learning["n_train"].unique()
    assert sizes.tolist() == sorted(sizes)
    last = finished.learning[finished.learning["n_train"] == sizes[-1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, finished.overall)


def test_a_learning_curve_of_stated_sizes_is_part_of_the_whole_one(
    config: ExperimentConfig, finished: RunResults, tmp_path: Path
) -> None:
    sizes = finished.learning["n_train"].unique()
    asked = ExperimentConfig.model_validate(
        config.to_dict() | {"learning_curve": [int(sizes[-2]) + 9, 7 * int(sizes[-1])]}
    )
    results = run_experiment(asked, tmp_path)
    expected = finished.learning[finished.learning["n_train"] >= sizes[-2]].reset_index(drop=True)
    pd.testing.assert_frame_equal(results.learning, expected)
    warnings = [warning for warning in results.metadata["warnings"] if warning.startswith("learning_curve")]
    assert len(warnings) == 1, "of the size that is not there alone"
    assert f"{7 * sizes[-1]:,} training spectra were asked for, and {sizes[-1]:,}" in warnings[0]
    pd.testing.assert_frame_equal(results.overall, finished.overall)


# One worker needs a cluster of its own; that of two serves other tests, too.
@pytest.mark.parametrize("workers", [pytest.param("one_worker", marks=pytest.mark.slow), "two_workers"])
def test_workers_do_not_change_the_results(
    config: ExperimentConfig, finished: RunResults, tmp_path: Path, workers: str, request: pytest.FixtureRequest
) -> None:
    run_experiment(config, tmp_path, client=request.getfixturevalue(workers))
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv", "summary.json"):
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_a_verdict_without_ground_is_withheld(small_config: ExperimentConfig, tmp_path: Path) -> None:
    heavy = ExperimentConfig.model_validate(small_config.to_dict() | {"ridge": {"alpha": 1e5}, "seeds": [42]})
    results = run_experiment(heavy, tmp_path)
    decision = results.summary.headline.decision
    assert decision.verdict == "withheld"
    assert "1e5" in decision.sentence
    assert all(one.passed is None for one in results.summary.headline.hypotheses)
    markdown, _ = render_run(tmp_path)
    assert decision.sentence in markdown.read_text(encoding="utf-8")


def test_a_finished_run_is_left_as_it_is(config: ExperimentConfig, finished: RunResults) -> None:
    def state() -> dict[str, int]:
        return {
            str(path): path.stat().st_mtime_ns
            for path in sorted(finished.folder.rglob("*"))
            if path.is_file() and path.name != "config.yaml"
        }

    before = state()
    run_experiment(config, finished.folder)
    assert state() == before


def test_another_penalty_needs_no_other_pass(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_experiment(config, tmp_path)
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)  # a second pass would fail
    second = run_experiment(changed(config, ridge={"alpha": 5.0}), tmp_path)
    assert second.overall["alpha_global"].unique().tolist() == [5.0]
    assert [step["skipped"] for step in second.metadata["steps"]] == [True, True, False, False]
    assert not np.allclose(second.overall["r2_oracle"], first.overall["r2_oracle"])


INTERRUPTED = """
import sys, time
from pipeline.config import load_config
from pipeline.run import experiment
for name in ("accumulate_moments", "solve_models", "write_results"):
    def wrapped(*a, original=getattr(experiment, name), name=name, **k):
        result = original(*a, **k)
        print(name, flush=True)
        time.sleep(0.4)
        return result
    setattr(experiment, name, wrapped)
experiment.run_experiment(load_config(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.faults
def test_a_run_killed_after_each_phase_ends_the_same(
    config: ExperimentConfig, finished: RunResults, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    for phase in ("accumulate_moments", "solve_models", "write_results"):
        command = [sys.executable, "-c", INTERRUPTED, str(path), str(tmp_path / "run")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != phase:
            assert line, f"the run ended before {phase}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        time.sleep(0.01)
        if phase != "write_results":
            with pytest.raises(InputError, match="has not been scored"):
                read_results(tmp_path / "run")
    run_experiment(config, tmp_path / "run")
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (finished.folder / name).read_bytes()


@pytest.mark.slow  # programs of their own, one for each number of threads
def test_blas_threads_do_not_change_the_results(config: ExperimentConfig, finished: RunResults, tmp_path: Path) -> None:
    """Another process has other counts than this one, of BLAS' threads and (where there are several cores) of ours."""
    here = max(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
    threads = "2" if here == 1 else "1"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    script = "import pipeline, sys; pipeline.run_experiment(pipeline.load_config(sys.argv[1]), sys.argv[2])"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "HEADROOM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script, str(path), str(tmp_path / "run")], env=environment, check=True)
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv", "predictions.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (finished.folder / name).read_bytes(), name


def test_inputs_are_never_modified(config: ExperimentConfig, tmp_path: Path, train_store: SpectraStore) -> None:
    def state() -> list[tuple[str, int, int]]:
        return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(train_store.path.rglob("*"))]

    before = state()
    run_experiment(config, tmp_path)
    assert state() == before


def test_metadata_tells_what_was_done(finished: RunResults, train_store: SpectraStore) -> None:
    facts = finished.metadata
    assert facts["simulated"] is True
    assert facts["stores"]["train"]["fingerprint"] == train_store.fingerprint
    assert {"numpy", "dask", "zarr", "python"} <= set(facts["versions"])
    assert [step["name"] for step in facts["steps"]] == ["convert", "accumulate", "solve", "score"]
    json.dumps(facts, allow_nan=False)


def test_standardize_and_train_on_reach_the_models(config: ExperimentConfig, tmp_path: Path) -> None:
    base = run_experiment(config, tmp_path)
    for section in (
        {"standardize": "none", "alpha": 1.0},
        {"standardize": "per_expert", "alpha": {"per_spectrum": 0.1}},
        {"train_on": "covered", "alpha": {"per_spectrum": 0.1}},
    ):
        other = run_experiment(changed(config, ridge=section), tmp_path)
        assert not np.allclose(other.overall["delta_r2"], base.overall["delta_r2"])


def test_one_column_of_any_name_can_make_the_bins(config: ExperimentConfig, tmp_path: Path) -> None:
    results = run_experiment(changed(config, bins={"snr": [0, 6, 10, 40]}, seeds=[1]), tmp_path)
    assert results.per_bin["snr_bin"].tolist() == ["0–6", "6–10", "10–40"]
    render_page(results)


# --- what a user can get wrong -----------------------------------------------------------------------


def test_run__raise_on_bins_without_spectra(config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"T_eff 3\d\d\d"):
        run_experiment(changed(config, bins={"T_eff": [100, 200]}), tmp_path)


def test_run__raise_on_a_starved_bin(config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bin 0 \(Cool, Poor\)"):
        run_experiment(changed(config, ridge={"alpha": 1.0, "min_spectra": 500}), tmp_path)


def test_run__raise_on_test_spectra_that_were_trained_on(
    config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path
) -> None:
    same = {"train": [str(train_store.path)], "test": [str(train_store.path)]}
    with pytest.raises(InputError, match=r"1,600 of 1,600.*allow_overlap"):
        run_experiment(changed(config, data=same), tmp_path)
    allowed = changed(config, data=same | {"allow_overlap": True}, seeds=[1])
    assert run_experiment(allowed, tmp_path).overall["n_test"].max() == 1600


def test_run__raise_on_an_unknown_bin_column(config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column 'Teff'.*did you mean 'T_eff'"):
        run_experiment(changed(config, bins={"Teff": [3750, 6000]}), tmp_path)


def test_run__raise_on_an_out_that_is_a_file(config: ExperimentConfig, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="a folder is required, found a file"):
        run_experiment(config, tmp_path / "out")
    with pytest.raises(ResourceError, match="cannot write"):
        run_experiment(config, tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def test_run__raise_on_moments_of_other_bins_in_the_same_folder(config: ExperimentConfig, tmp_path: Path) -> None:
    run_experiment(changed(config, seeds=[1]), tmp_path)
    with pytest.raises(InputError, match="another computation"):
        run_experiment(changed(config, seeds=[1], bins={"T_eff": [3750, 5000, 6000]}), tmp_path)


def test_a_refused_run_leaves_nothing_behind(config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run_experiment(changed(config, bins={"T_eff": [100, 200]}), tmp_path / "new" / "run")
    assert not (tmp_path / "new" / "run").exists()


def test_a_refused_run_leaves_a_finished_one_alone(config: ExperimentConfig, tmp_path: Path) -> None:
    run_experiment(changed(config, seeds=[1]), tmp_path)
    before = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for bins in ({"T_eff": [3750, 5000, 6000]}, {"T_eff": [100, 200]}):
        with pytest.raises(InputError):
            run_experiment(changed(config, seeds=[1], bins=bins), tmp_path)
    assert {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_headers_tell_is_refused_before_anything_is_converted(
    config: ExperimentConfig, sample: Path, tmp_path: Path
) -> None:
    data = {"train": [str(sample / "train")], "test": [str(sample / "train")], "stores": str(tmp_path / "stores")}
    with pytest.raises(InputError, match="also occur in train"):
        run_experiment(changed(config, data=data), tmp_path / "run")
    data["test"] = [str(sample / "test")]
    with pytest.raises(InputError, match=r"bin 0 \(Cool, Poor\)"):
        run_experiment(changed(config, data=data, ridge={"min_spectra": 500}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_run__raise_on_one_covered_test_spectrum(
    config: ExperimentConfig, test_store: SpectraStore, tmp_path: Path
) -> None:
    low = float(np.sort(test_store.columns["T_eff"])[0])
    narrow = changed(config, bins={"T_eff": [3000, low]}, ridge={"min_spectra": 2, "alpha": 1.0})
    with pytest.raises(InputError, match=r"at least two test spectra in bins|no train spectrum|training spectra"):
        run_experiment(narrow, tmp_path)


def test_run__raise_on_a_folder_in_use(config: ExperimentConfig, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path, "the run folder"),
        pytest.raises(InputError, match="another process"),
    ):
        run_experiment(config, tmp_path)


def test_read_results__raise_on_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_results(tmp_path / "nothing")
    with pytest.raises(InputError, match="nothing in it is a run's"):
        read_results(tmp_path)
    for name in ("moments", "driver.sh", "products.json", "status.json"):
        (tmp_path / name).touch()
        with pytest.raises(InputError, match="has not been scored"):
            read_results(tmp_path)
        (tmp_path / name).unlink()


# --- plans ----------------------------------------------------------------------------------------------


def test_plan_shares_reads_as_memory_allows_and_refuses_what_cannot_fit(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = plan_experiment(config, [2**34])
    assert roomy.draws_per_pass == roomy.n_draws == 2
    assert roomy.store_disk == 0  # the sources are stores
    roomy.require_fit(tmp_path)
    large = changed(config, seeds=[1, 2, 3, 4, 5])
    tight = plan_run([800, 800], 4096, large, [3 * 2**30])
    assert 1 <= tight.draws_per_pass < 5
    assert tight.worker_memory <= 0.7 * 3 * 2**30
    small = plan_run([800, 800], 7200, large, [2**30])
    with pytest.raises(ResourceError, match=r"1\.0 GiB"):
        small.require_fit(tmp_path)
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("pipeline.plan.cost.shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(ResourceError, match="1 B"):
        roomy.require_fit(tmp_path / "not" / "there")


@pytest.mark.parametrize(("pixels", "bound"), [(4096, 4), (7200, 9)])
def test_planned_memory_is_bounded_and_flat_in_the_number_of_spectra(
    config: ExperimentConfig, pixels: int, bound: float
) -> None:
    """The reference experiment: five seeds, nine bins, on a machine with memory to spare."""
    reference = changed(config, seeds=[1, 2, 3, 4, 5], compute={})
    few, many = (plan_run([n // 4] * 4, pixels, reference, [2**36]) for n in (50_000, 400_000))
    assert few.n_draws == 5
    assert many.worker_memory + many.driver_memory < bound * 2**30
    assert few.worker_memory + few.driver_memory > 0.95 * (many.worker_memory + many.driver_memory)


def test_what_an_interrupted_run_has_written_is_not_asked_for_again(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_experiment(config, tmp_path)
    plan = plan_experiment(config, [2**34])
    written = sum(file.stat().st_size for file in (tmp_path / "moments").rglob("gram-*.npy"))
    usage = type("usage", (), {"free": max(plan.moments_disk - written, 0) + 1})
    monkeypatch.setattr("pipeline.plan.cost.shutil.disk_usage", lambda _: usage)
    plan.require_fit(tmp_path)
    with pytest.raises(ResourceError, match="the run's moments need"):
        plan.require_fit(tmp_path / "elsewhere")


@pytest.mark.parametrize("partition_rows", [262_144, 100])
def test_moments_on_disk_are_what_was_planned(config: ExperimentConfig, tmp_path: Path, partition_rows: int) -> None:
    cut = changed(config, seeds=[1, 2], compute={"partition_rows": partition_rows})
    run_experiment(cut, tmp_path)
    found = sum(file.stat().st_size for file in (tmp_path / "moments").rglob("gram-*.npy"))
    planned = plan_experiment(cut, [2**34]).moments_disk
    headers = 4096 * len(list((tmp_path / "moments").rglob("gram-*.npy")))
    assert found - headers <= planned
    assert planned < 3 * (found - headers)


FRESH = """
import sys
import pipeline.cli
from cluster import LocalProfile, connect_local
from pipeline import load_config, run_experiment
if __name__ == "__main__":
    with connect_local(LocalProfile(workers=1, processes=sys.argv[3] == "True")) as client:
        run_experiment(load_config(sys.argv[1]), sys.argv[2], client=client)
"""


@pytest.mark.slow  # every case starts a driver and a worker afresh, so that what they import counts
@pytest.mark.parametrize("processes", [True, False])
def test_measured_memory_is_below_the_planned_one(config_file: Path, tmp_path: Path, processes: bool) -> None:
    """Driver and worker in fresh processes; at this size most of it is the processes themselves."""
    command = [sys.executable, "-c", FRESH, str(config_file), str(tmp_path / "run"), str(processes)]
    subprocess.run(command, check=True, capture_output=True)
    metadata = read_results(tmp_path / "run").metadata
    worker, both, plan = metadata["worker_peak_memory_bytes"], metadata["peak_memory_bytes"], metadata["plan"]
    assert (worker is None) != processes
    if processes:
        assert 0 < worker <= plan["memory_per_worker_bytes"]
        assert 0 < both - worker <= plan["driver_memory_bytes"]
    else:
        assert 0 < both <= plan["memory_per_worker_bytes"]


def test_plan_of_shards_converts_nothing(config: ExperimentConfig, sample: Path, tmp_path: Path) -> None:
    data = {"train": [str(sample / "train")], "test": [str(sample / "test")], "stores": str(tmp_path / "stores")}
    plan = plan_experiment(changed(config, data=data), [2**33])
    assert plan.n_spectra == 1600
    assert plan.store_disk == 48 * 4 * (1600 * 2 + 400 * 3)
    assert not (tmp_path / "stores").exists()
    assert plan.n_pieces == plan_experiment(config, [2**33]).n_pieces
