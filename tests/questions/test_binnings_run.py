"""Runs with several binnings, and with drawn and marginal noise side by side, against models refitted in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from results_factory import list_pictures, render_page
from sklearn.linear_model import Ridge

from pipeline import read_noisy_rows
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.questions.ablation import Ablation
from pipeline.questions.marginal_curve import MarginalCurve
from pipeline.report.figures import render_figures
from pipeline.run import plan_experiment, run_experiment
from pipeline.schema import STREAM_TEST, STREAM_TRAIN
from pipeline.scoring import MERITS, RunResults
from pipeline.store import SpectraStore

BINNINGS = {"SNR": {"snr": {"quantiles": 4}}, "bright": {"mag": [20.0, 21.5], "M_H": [-2.5, -0.5, 0.8]}}


def change(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | sections)


@pytest.fixture(scope="module")
def finished(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    folder = tmp_path_factory.mktemp("run")
    noise = {"mode": "both", "levels": [1.0], "test": "drawn"}
    return run_experiment(change(small_config, binnings=BINNINGS, noise=noise, precision="float64"), folder)


def names_of(results: RunResults) -> list[str]:
    """The binnings of the answer."""
    answer = Ablation.read(results)
    assert answer is not None
    return [one.name for one in answer.levels[0].binnings]


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def test_every_binning_is_what_refitting_gives(
    finished: RunResults, train_store: SpectraStore, test_store: SpectraStore
) -> None:
    table = pd.read_csv(finished.folder / "ablation.csv").set_index(["seed", "binning"])
    of_train, of_test = train_store.columns, test_store.columns
    main = {column: (of_train[column], of_test[column]) for column in ("T_eff", "M_H", "snr", "mag")}

    def cut(column: str, edges: Any) -> list[np.ndarray]:
        return [np.where((v >= edges[0]) & (v <= edges[-1]), np.minimum(np.searchsorted(edges, v, "right") - 1,
                len(edges) - 2), -1) for v in main[column]]  # fmt: skip

    t_eff, m_h = cut("T_eff", [3750, 4500, 5250, 6000]), cut("M_H", [-2, -1, 0, 0.5])
    covered = [(a >= 0) & (b >= 0) for a, b in zip(t_eff, m_h, strict=True)]
    edges = np.quantile(of_train["snr"].astype(float), np.linspace(0, 1, 5))
    edges[0], edges[-1] = 0, 100
    mag, wide = cut("mag", [20.0, 21.5]), cut("M_H", [-2.5, -0.5, 0.8])
    divided = {
        "bins": [np.where(c, 3 * a + b, -1) for a, b, c in zip(t_eff, m_h, covered, strict=True)],
        "T_eff only": [np.where(c, a, -1) for a, c in zip(t_eff, covered, strict=True)],
        "M_H only": [np.where(c, b, -1) for b, c in zip(m_h, covered, strict=True)],
        "SNR": cut("snr", edges),
        "bright": [np.where((a >= 0) & (b >= 0), 2 * a + b, -1) for a, b in zip(mag, wide, strict=True)],
    }
    for seed in (42, 123):
        x = read_noisy_rows(train_store, 0, train_store.n_spectra, NoiseDraw(1.0, seed, STREAM_TRAIN), "float64")
        x_test = read_noisy_rows(test_store, 0, test_store.n_spectra, NoiseDraw(1.0, seed, STREAM_TEST), "float64")
        y, y_test = of_train["log_g"].astype(float), of_test["log_g"].astype(float)
        scale = x.std(axis=0)
        alpha = 0.1 * len(x)
        of_global = Ridge(alpha).fit(x / scale, y).predict(x_test / scale)
        for name, (bins, test_bins) in divided.items():
            routed = of_global.copy()
            for k in range(bins.max() + 1):
                own = test_bins == k
                routed[own] = Ridge(alpha).fit(x[bins == k] / scale, y[bins == k]).predict(x_test[own] / scale)
            inside = test_bins >= 0
            row = table.loc[(seed, name)]
            assert row["n_test"] == inside.sum()
            assert row["coverage"] == pytest.approx(inside.mean())
            assert row["r2_global"] == pytest.approx(r2(y_test[inside], of_global[inside]), abs=1e-7)
            assert row["r2_oracle"] == pytest.approx(r2(y_test[inside], routed[inside]), abs=1e-7)
            assert row["delta_r2"] == pytest.approx(row["r2_oracle"] - row["r2_global"], abs=1e-9)


def test_the_main_binning_is_the_result_itself(finished: RunResults) -> None:
    table = pd.read_csv(finished.folder / "ablation.csv").query("binning == 'bins'")
    overall = finished.overall.query("scope == 'covered'")
    columns = ["seed", "n_test", "r2_oracle", "r2_global", "delta_r2", "delta_r2_low", "delta_r2_high"]
    pd.testing.assert_frame_equal(
        table[columns].reset_index(drop=True), overall[columns].reset_index(drop=True), check_exact=True
    )
    answer, level = Ablation.read(finished), finished.summary.levels[0]
    assert answer is not None
    assert names_of(finished) == ["bins", "T_eff only", "M_H only", "SNR", "bright"]
    entries = answer.at(1.0)
    assert entries == answer.levels[0].binnings
    assert answer.at(0.5) == ()
    for merit in MERITS:
        assert entries[0].merit(merit) == level.covered.merit(merit)
    gains = level.covered.delta_r2.mean > 0
    assert entries[0].share.mean == 1.0 if gains else math.isnan(entries[0].share.mean)
    for entry in entries[1:]:
        ratio = entry.delta_r2.mean / level.covered.delta_r2.mean if gains else math.nan
        assert entry.share.mean == pytest.approx(ratio, nan_ok=True)
        # Resamples belong together only where both cover the same spectra.
        assert math.isfinite(entry.share.low) == (gains and entry.coverage == entries[0].coverage)


def test_drawn_and_marginal_noise_stand_side_by_side(finished: RunResults, small_config: ExperimentConfig) -> None:
    compared = MarginalCurve.read(finished)
    assert compared is not None
    assert [one.n_train for one in compared.points] == [one.n_train for one in finished.summary.headline.curve]
    assert "With all 1,600 training spectra marginal noise gives ΔR²" in compared.sentence
    assert "drawn noise" in compared.sentence
    table = pd.read_csv(finished.folder / "marginal_learning_curve.csv")
    last = table[(table["n_train"] == 1600) & (table["scope"] == "covered")]
    assert compared.points[-1].r2_global.mean == pytest.approx(last["r2_global"].mean(), abs=1e-9)
    # The verdict and all other tables are those of drawn noise.
    assert set(finished.overall["seed"]) == {42, 123}


def test_the_marginal_half_is_a_marginal_run(
    finished: RunResults, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    noise = {"mode": "marginal", "levels": [1.0], "test": "drawn"}
    alone = run_experiment(change(small_config, noise=noise, ablation=False, precision="float64"), tmp_path)
    assert "ablation.csv" not in {path.name for path in alone.folder.iterdir()}
    table = pd.read_csv(finished.folder / "marginal_learning_curve.csv")
    # Other cells, in another order of sums: not the same bits.
    for column in ("r2_global", "r2_oracle", "delta_r2_low"):
        np.testing.assert_allclose(alone.learning[column], table[column], atol=1e-7)


def test_both_are_reported(finished: RunResults) -> None:
    pictures = list_pictures()
    drawn = render_figures(finished, [pictures["moe_ablation.png"], pictures["moe_marginal_noise.png"]])
    markdown, html = render_page(finished, {picture.file: path for picture, path in drawn})
    for text in (markdown.read_text(), html.read_text()):
        assert "Drawn and marginal noise" in text
        assert "Other ways to divide the spectra" in text
        assert "bright" in text
    assert (finished.folder / "figures" / "moe_ablation.png").exists()
    assert (finished.folder / "figures" / "moe_marginal_noise.png").exists()


@pytest.mark.slow  # two more workers of their own; whole runs have the same test
def test_workers_change_no_bit_and_nothing_is_made_twice(
    finished: RunResults, two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig.model_validate(finished.metadata["config"])
    found = run_experiment(config, tmp_path, client=two_workers)
    for name in ("ablation.csv", "marginal_learning_curve.csv", "results.csv", "summary.json"):
        assert (found.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)
    monkeypatch.setattr("pipeline.ridge.solve.solve_job", None)
    run_experiment(config, tmp_path)
    # Another binning of the same columns needs models, but no other pass.
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)
    without = run_experiment(change(config, ablation=False), tmp_path)
    assert names_of(without) == ["bins", "SNR", "bright"]


def test_a_binning_that_cannot_be_answered_is_left_out_and_said(small_config: ExperimentConfig, tmp_path: Path) -> None:
    binnings = {"far": {"snr": [0, 5, 1000, 2000]}, "SNR": {"snr": [0, 8, 100]}}
    results = run_experiment(change(small_config, binnings=binnings, ablation=False), tmp_path)
    assert names_of(results) == ["bins", "SNR"]
    assert any(
        "'far' is left out: bin 2 (1000–2000) has 0 training spectra" in warning
        for warning in results.metadata["warnings"]
    )


def test_one_pass_yields_many_models_and_says_what_each_would_have_cost(finished: RunResults) -> None:
    economy = finished.metadata["economy"]
    sizes = finished.learning["n_train"].unique()
    # Two seeds and marginal noise: 1 + 9 models for each training size; and 3 + 3 + 4 + 2 experts for each seed.
    assert economy["models"] == 3 * len(sizes) * 10 + 2 * (3 + 3 + 4 + 2)
    assert (economy["labels"], economy["passes"]) == (3, 3)
    step = next(step for step in finished.metadata["steps"] if step["name"] == "accumulate")
    of_pass = step["seconds"] / 3
    # Global models alone: the sizes of the prefixes, in units of a pass.
    assert economy["refit_seconds"] > of_pass * 3 * sizes.sum() / 1600
    assert economy["refit_seconds"] < of_pass * (6 * sizes.sum() / 1600 + 2 * 4)


def test_another_label_needs_no_other_pass(
    finished: RunResults,
    train_store: SpectraStore,
    test_store: SpectraStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """All labels are accumulated and solved at once: another target is scoring, and the same as a run of its own."""
    config = ExperimentConfig.model_validate(finished.metadata["config"])
    bins = {"M_H": [-2.0, -1.0, 0.0, 0.5]}
    other = change(config, bins=bins, binnings={}, target="log_g")
    run_experiment(other, tmp_path)
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)
    monkeypatch.setattr("pipeline.ridge.solve.solve_job", None)
    found = run_experiment(change(other, target="T_eff"), tmp_path)
    seed = 42
    x = read_noisy_rows(train_store, 0, train_store.n_spectra, NoiseDraw(1.0, seed, STREAM_TRAIN), "float64")
    x_test = read_noisy_rows(test_store, 0, test_store.n_spectra, NoiseDraw(1.0, seed, STREAM_TEST), "float64")
    y, y_test = (np.asarray(s.columns["T_eff"], float) for s in (train_store, test_store))
    predicted = Ridge(0.1 * len(x)).fit(x / x.std(axis=0), y).predict(x_test / x.std(axis=0))
    row = found.overall.query("seed == @seed and scope == 'all'").iloc[0]
    assert row["target"] == "T_eff"
    assert row["r2_global"] == pytest.approx(r2(y_test, predicted), abs=1e-7)


def test_plan__counts_the_cells_of_all_binnings(small_config: ExperimentConfig) -> None:
    plan = plan_experiment(change(small_config, binnings=BINNINGS, noise={"mode": "both"}))
    assert plan.n_draws == 3
    assert plan.n_cells >= 10 * 5
    assert plan_experiment(small_config).n_cells == 10


def test_binnings__raise_on_a_missing_column(small_config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"binnings.SNR uses the column 'snrr'.*did you mean 'snr'"):
        run_experiment(change(small_config, binnings={"SNR": {"snrr": [0, 8]}}), tmp_path)


def test_a_binning_that_a_fold_starves_is_left_out_of_a_search(
    small_config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path
) -> None:
    edge = float(np.sort(train_store.columns["snr"])[45])  # 45 spectra, about 30 of them outside any of three folds
    binnings = {"thin": {"snr": [0, edge, 100]}, "SNR": {"snr": [0, 8, 100]}}
    names = {}
    for by in ("per_expert", "global"):
        ridge = {"alpha": {"search": [10.0, 1000.0], "by": by}, "min_spectra": 40}
        config = change(small_config, ridge=ridge, binnings=binnings, ablation=False, seeds=[42])
        results = run_experiment(config, tmp_path / by)
        names[by] = names_of(results)
        said = [warning for warning in results.metadata["warnings"] if "the binning 'thin' is left out" in warning]
        assert len(said) == (by == "per_expert")
        assert all("outside fold" in warning for warning in said)
    assert names == {"per_expert": ["bins", "SNR"], "global": ["bins", "thin", "SNR"]}
