"""A whole run with a gate: what it is fitted to, what it never sees, and the tables it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from results_factory import render_page
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import schema
from pipeline.bins import BinGrid, plan_folds
from pipeline.config import ExperimentConfig
from pipeline.errors import ConfigError
from pipeline.noise import NoiseDraw
from pipeline.questions.gate import Evidence, Gates, route_spectra
from pipeline.questions.gate.gates import RidgeGate
from pipeline.ridge import read_models
from pipeline.run import render_run, run_experiment
from pipeline.scoring import RunResults, read_noisy_rows
from pipeline.store import SpectraStore

ROUTING_FILE = "routing.csv"


def gated(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | {"gate": {}, "precision": "float64"} | sections)


@pytest.fixture(scope="module", params=["all", "covered"])
def train_on(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def finished(small_config: ExperimentConfig, train_on: str, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    ridge = {"alpha": {"per_spectrum": 0.1}, "train_on": train_on}
    return run_experiment(gated(small_config, ridge=ridge), tmp_path_factory.mktemp("run"))


def read_gate(run: RunResults, seed: int, grid: BinGrid) -> RidgeGate:
    [path] = run.folder.glob(f"gates/*{seed}*.json")
    return RidgeGate.from_dict(json.loads(path.read_text(encoding="utf-8")), grid)


def test_the_gate_is_the_regression_of_labels_on_held_out_predictions(
    finished: RunResults, train_on: str, small_config: ExperimentConfig, train_store: SpectraStore
) -> None:
    """Against scikit-learn refitted on the rows of all folds but one, and predicting that one wherever it lies."""
    seed, grid, n = small_config.seeds[0], BinGrid(small_config.bins), train_store.n_spectra
    x = read_noisy_rows(train_store, 0, n, NoiseDraw(1.0, seed, schema.STREAM_TRAIN), "float64")
    y = np.column_stack([np.asarray(train_store.columns[label], np.float64) for label in schema.LABELS])
    trains = np.full(n, True) if train_on == "all" else grid.assign(train_store.columns) >= 0
    predicted = np.empty_like(y)
    for start, stop in plan_folds(train_store.shard_lengths, 3):
        held_out = (np.arange(n) >= start) & (np.arange(n) < stop)
        rows = trains & ~held_out
        peer = make_pipeline(StandardScaler(), Ridge(alpha=0.1 * trains.sum() * rows.sum() / trains.sum()))
        predicted[held_out] = peer.fit(x[rows], y[rows]).predict(x[held_out])
    columns = y[:, [schema.LABELS.index(column) for column in grid.columns]]
    expected = LinearRegression().fit(predicted, columns)
    residual = columns - expected.predict(predicted)
    gate = read_gate(finished, seed, grid)
    np.testing.assert_allclose(gate.expected_columns(predicted), expected.predict(predicted), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gate.covariance, residual.T @ residual / n, rtol=1e-6)


def test_the_table_is_the_routing_of_the_saved_predictions(
    finished: RunResults, small_config: ExperimentConfig, test_store: SpectraStore
) -> None:
    table = pd.read_csv(finished.folder / ROUTING_FILE)
    grid = BinGrid(small_config.bins)
    assert len(table) == len(small_config.seeds) * (2 + grid.n_bins) * 4
    noisy = read_noisy_rows(test_store, 0, test_store.n_spectra, None, "float64")
    for seed in small_config.seeds:
        saved = finished.predictions.query(f"seed == {seed}")
        experts = saved[["y_global", *(f"expert_{k}" for k in range(grid.n_bins))]].to_numpy()
        [path] = (one for one in (finished.folder / "models").glob(f"*{seed}*") if "binnings" not in one.name)
        models = read_models(path)[-1]
        of_labels = noisy @ models.global_weights + models.global_intercepts
        probabilities = read_gate(finished, seed, grid).probabilities(of_labels)
        bins = saved["bin"].to_numpy()
        routed = route_spectra(experts, Evidence(probabilities, bins, unsure=0.2))
        for scope, members in (("covered", bins >= 0), ("all", bins >= -1), ("4", bins == 4)):
            rows = table.query(f"seed == {seed} and scope == '{scope}'").set_index("route")
            truth = saved["y_true"].to_numpy()[members]
            of_global = r2_score(truth, experts[members, 0])
            oracle = rows.loc["oracle"]
            for route in ("oracle", "hard", "soft", "fallback"):
                row = rows.loc[route]
                assert row["n_test"] == members.sum()
                assert row["r2"] == pytest.approx(r2_score(truth, routed[route][members]), abs=1e-9)
                assert row["gain"] == pytest.approx(row["r2"] - of_global, abs=1e-9)
                if oracle["gain"] > 0:
                    assert row["kept"] == pytest.approx(row["gain"] / oracle["gain"], rel=1e-6)


def test_summary_and_report_say_it(finished: RunResults, train_on: str, one_figure: Callable[[str], None]) -> None:
    one_figure("moe_gate.png")
    routing = Gates.at_headline(finished)
    assert routing is not None
    assert routing.noise_level == 1.0
    table = pd.read_csv(finished.folder / ROUTING_FILE)
    soft = table.query("scope == 'covered' and route == 'soft'")
    assert routing.covered["soft"].r2.mean == pytest.approx(soft["r2"].mean())
    assert [one.seed for one in routing.draws] == soft["seed"].tolist()
    assert [one.scopes["covered"]["soft"].kept.mean for one in routing.draws] == pytest.approx(
        soft["kept"].tolist(), nan_ok=True
    )
    assert routing.covered["oracle"].verdict is None
    for route in ("hard", "soft", "fallback"):
        kept = routing.covered[route].kept
        sure = {kept.low >= routing.keep: "PASS", kept.high < routing.keep: "FAIL"}
        assert routing.covered[route].verdict == sure.get(True, "UNDECIDED")
    confusion = np.array(routing.confusion)
    assert confusion.sum() == len(routing.draws) * finished.overall["n_test"].max()
    assert routing.accuracy == pytest.approx(np.trace(confusion) / confusion.sum())
    drawn = train_on == "all"  # the figures of one of the two runs are enough
    markdown, page = render_run(finished.folder) if drawn else render_page(finished)
    for text in (markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")):
        assert "Routing without labels" in text
        assert routing.sentence.split(":")[0].split("(")[0] in text
    if drawn:
        assert (finished.folder / "figures" / "moe_gate.png").stat().st_size > 10_000


def test_no_gate_ever_sees_the_test_spectra(
    finished: RunResults, train_on: str, small_config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path
) -> None:
    """With another test store the gate is the same bytes, and what is said of it is not."""
    ridge = {"alpha": {"per_spectrum": 0.1}, "train_on": train_on}
    swapped = {"train": [str(train_store.path)], "test": [str(train_store.path)], "allow_overlap": True}
    other = run_experiment(gated(small_config, ridge=ridge, data=swapped), tmp_path)
    assert other.overall["n_test"].max() == train_store.n_spectra
    for path in (finished.folder / "gates").glob("*.json"):
        assert (other.folder / "gates" / path.name).read_bytes() == path.read_bytes()
    assert not pd.read_csv(other.folder / ROUTING_FILE).equals(pd.read_csv(finished.folder / ROUTING_FILE))


@pytest.mark.slow  # two workers of their own, for both ways; whole runs and `tests/ridge` have the same test
def test_workers_change_no_bit(
    finished: RunResults, train_on: str, small_config: ExperimentConfig, two_workers: Client, tmp_path: Path
) -> None:
    ridge = {"alpha": {"per_spectrum": 0.1}, "train_on": train_on}
    run_experiment(gated(small_config, ridge=ridge), tmp_path, client=two_workers)
    assert (tmp_path / ROUTING_FILE).read_bytes() == (finished.folder / ROUTING_FILE).read_bytes()


def test_a_finished_run_is_left_as_it_is_and_a_gate_may_come_later(
    small_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"seeds": [42]}
    run_experiment(gated(small_config, **plain, gate=None), tmp_path)
    assert not (tmp_path / ROUTING_FILE).exists()
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)  # a second pass would fail
    results = run_experiment(gated(small_config, **plain), tmp_path)
    names = [step["name"] for step in results.metadata["steps"] if not step["skipped"]]
    assert names == ["gate", "score"]
    before = {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_experiment(gated(small_config, **plain), tmp_path)
    assert before == {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_experiment(gated(small_config, **plain, gate=None), tmp_path)
    assert not (tmp_path / ROUTING_FILE).exists()


def test_marginal_test_noise_routes_nothing_and_says_so(small_config: ExperimentConfig, tmp_path: Path) -> None:
    noise = {"mode": "marginal", "levels": [1.0], "test": "marginal"}
    results = run_experiment(gated(small_config, noise=noise), tmp_path)
    assert Gates.read(results) is None
    assert "gate" not in results.summary.answers
    assert not (tmp_path / ROUTING_FILE).exists()
    assert any("the gate was not held against any" in warning for warning in results.metadata["warnings"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"bins": {"snr": [3, 6, 9]}}, "routes by one or two of the labels"),
        ({"compute": {"folds": 1}}, "at least two folds"),
        ({"gate": {"kind": "rigde"}}, "gate.kind"),
        ({"gate": {"unsure": 1.5}}, "gate.unsure"),
    ],
)
def test_settings__raise_on_gates_that_cannot_be(
    small_config: ExperimentConfig, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        gated(small_config, **sections)
