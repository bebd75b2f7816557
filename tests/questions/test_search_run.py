"""A whole run that searches for its penalty: the table, the report, what is made again and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from results_factory import render_page
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import schema
from pipeline.bins import BinGrid, plan_folds
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.questions.penalty import Penalty
from pipeline.run import render_run, run_experiment
from pipeline.scoring import RunResults, read_noisy_rows, read_results
from pipeline.store import SpectraStore

SEARCH_FILE = "alpha_search.csv"
SEARCH_COLUMNS = ("seed", "noise_level", "target", "model", "alpha", "r2_cv", "chosen", "r2_test")
ALPHAS = [1.0, 10.0, 100.0, 1000.0]
TABLES = ("results.csv", "per_bin_results.csv", "learning_curve.csv", "summary.json", SEARCH_FILE)


def searching(config: ExperimentConfig, by: str = "per_expert", **sections: Any) -> ExperimentConfig:
    # The grid in a muddle: penalties are sorted.
    ridge = {"alpha": {"search": [10.0, 1.0, 1000.0, 100.0], "by": by}}
    return ExperimentConfig.model_validate(config.to_dict() | {"ridge": ridge, "precision": "float64"} | sections)


@pytest.fixture(scope="module", params=["per_expert", "global"])
def finished(
    request: pytest.FixtureRequest, small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> RunResults:
    return run_experiment(searching(small_config, request.param), tmp_path_factory.mktemp("run"))


def test_choices_are_those_of_a_grid_search_on_the_rows(
    finished: RunResults, small_config: ExperimentConfig, train_store: SpectraStore, test_store: SpectraStore
) -> None:
    """The global model against scikit-learn's own search; its scaler is fitted on the training folds, as ours."""
    table = finished.alpha_search
    assert tuple(table.columns) == SEARCH_COLUMNS
    assert len(table) == len(small_config.seeds) * 10 * len(ALPHAS)
    n = train_store.n_spectra
    fold_of_row = np.empty(n, np.int64)
    for fold, (start, stop) in enumerate(plan_folds(train_store.shard_lengths, 3)):
        fold_of_row[start:stop] = fold
    y, y_test = (np.asarray(store.columns["log_g"], np.float64) for store in (train_store, test_store))
    covered = BinGrid(small_config.bins).assign(test_store.columns) >= 0
    tested = read_noisy_rows(test_store, 0, test_store.n_spectra, None, "float64")[covered]
    for seed in small_config.seeds:
        x = read_noisy_rows(train_store, 0, n, NoiseDraw(1.0, seed, schema.STREAM_TRAIN), "float64")
        rows = table.query(f"seed == {seed} and model == 'global'")
        assert rows["alpha"].tolist() == ALPHAS
        for alpha, r2_cv, r2_test in rows[["alpha", "r2_cv", "r2_test"]].itertuples(index=False):
            peer = make_pipeline(StandardScaler(), Ridge(alpha=alpha))
            predicted = np.empty(n)
            for train, test in PredefinedSplit(fold_of_row).split():
                predicted[test] = peer.fit(x[train], y[train]).predict(x[test])
            assert r2_cv == pytest.approx(r2_score(y, predicted), rel=1e-8)
            assert r2_test == pytest.approx(r2_score(y_test[covered], peer.fit(x, y).predict(tested)), rel=1e-8)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": ALPHAS},
            scoring="neg_mean_squared_error",
            cv=PredefinedSplit(fold_of_row),
        ).fit(x, y)
        chosen = rows.loc[rows["chosen"], "alpha"].tolist()
        assert chosen == [search.best_params_["ridge__alpha"]]


def test_every_table_tells_the_same_choice(finished: RunResults, small_config: ExperimentConfig) -> None:
    table = finished.alpha_search
    chosen = table[table["chosen"]]
    assert len(chosen) == len(small_config.seeds) * 10
    by = finished.metadata["config"]["ridge"]["alpha"]["by"]
    for seed in small_config.seeds:
        of_seed = chosen[chosen["seed"] == seed].set_index("model")
        overall = finished.overall.query(f"seed == {seed}")
        assert overall["alpha_global"].unique().tolist() == [of_seed.loc["global", "alpha"]]
        covered = overall.query("scope == 'covered'").iloc[0]
        assert of_seed.loc["global", "r2_test"] == pytest.approx(covered["r2_global"], abs=1e-9)
        saved = finished.predictions.query(f"seed == {seed} and bin >= 0")
        assert r2_score(saved["y_true"], saved["y_global"]) == pytest.approx(covered["r2_global"], abs=1e-9)
        assert r2_score(saved["y_true"], saved["y_oracle"]) == pytest.approx(covered["r2_oracle"], abs=1e-9)
        bins = finished.per_bin.query(f"seed == {seed}").set_index("bin")
        for number, row in bins.iterrows():
            assert row["alpha"] == of_seed.loc[str(number), "alpha"]
            assert row["r2_oracle"] == pytest.approx(of_seed.loc[str(number), "r2_test"], abs=1e-9)
        if by == "global":
            assert of_seed["alpha"].nunique() == 1  # for all models of a seed
        else:
            best = table.query(f"seed == {seed}").groupby("model")["r2_cv"].max()
            assert of_seed["r2_cv"].to_dict() == best.to_dict()
            assert of_seed["alpha"].nunique() > 1


def test_the_summary_names_a_penalty_that_all_seeds_chose_and_no_other(finished: RunResults) -> None:
    chosen = finished.alpha_search[finished.alpha_search["chosen"]]
    told = {str(one.bin): one.alpha for one in finished.summary.levels[0].bins}
    for model, alphas in chosen[chosen["model"] != "global"].groupby("model")["alpha"]:
        expected = alphas.iloc[0] if alphas.nunique() == 1 else np.nan
        np.testing.assert_equal(told[str(model)], expected)
    if finished.metadata["config"]["ridge"]["alpha"]["by"] == "per_expert":
        assert np.isnan(list(told.values())).any()
        assert np.isfinite(list(told.values())).any()


def test_the_table_is_a_view_of_the_answer(finished: RunResults, small_config: ExperimentConfig) -> None:
    answer, table = Penalty.read(finished), finished.alpha_search
    assert answer is not None
    assert answer.by == finished.metadata["config"]["ridge"]["alpha"]["by"]
    assert [draw.seed for draw in answer.draws] == list(small_config.seeds)
    for draw in answer.draws:
        assert [path.model for path in draw.models] == ["global", *map(str, range(9))]
        for path in draw.models:
            rows = table.query(f"seed == {draw.seed} and model == '{path.model}'")
            assert rows["alpha"].tolist() == list(path.alphas)
            np.testing.assert_allclose(rows["r2_cv"], path.r2_cv, rtol=1e-9)
            np.testing.assert_allclose(rows["r2_test"], path.r2_test, rtol=1e-9)
            assert rows["chosen"].tolist() == [k == path.chosen for k in range(len(ALPHAS))]


@pytest.mark.parametrize("test_noise", ["marginal", "stored", "drawn"])
def test_test_errors_of_marginal_noise_are_those_of_the_results(
    small_config: ExperimentConfig, tmp_path: Path, test_noise: str
) -> None:
    """With noise integrated out predictions are means, and what they scatter by belongs to the error."""
    noise = {"mode": "marginal", "levels": [1.0], "test": test_noise}
    results = run_experiment(searching(small_config, noise=noise), tmp_path)
    chosen = results.alpha_search.query("chosen")
    assert len(chosen) == len(results.overall.query("scope == 'covered'")) * 10
    for seed, rows in chosen.groupby("seed"):
        covered = results.overall.query(f"seed == {seed} and scope == 'covered'").iloc[0]
        of_seed = rows.set_index("model")
        assert of_seed.loc["global", "r2_test"] == pytest.approx(covered["r2_global"], abs=1e-9)
        for number, row in results.per_bin.query(f"seed == {seed}").set_index("bin").iterrows():
            assert of_seed.loc[str(number), "r2_test"] == pytest.approx(row["r2_oracle"], abs=1e-9)


def test_curves_that_decide_nothing_may_be_left_out(small_config: ExperimentConfig, tmp_path: Path) -> None:
    """``expert_curves: false`` costs the experts' curves and nothing else."""
    search = {"search": ALPHAS, "by": "global"}
    shown, hidden = (
        run_experiment(
            searching(small_config, ridge={"alpha": search | {"expert_curves": curves}}, seeds=[42]),
            tmp_path / str(curves),
        )
        for curves in (True, False)
    )
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv"):
        assert (shown.folder / name).read_bytes() == (hidden.folder / name).read_bytes()
    expected = shown.alpha_search
    experts = expected["model"] != "global"
    assert expected.loc[experts, "r2_cv"].notna().all()
    expected.loc[experts, "r2_cv"] = np.nan
    pd.testing.assert_frame_equal(hidden.alpha_search, expected)
    page, _ = render_page(hidden)
    assert "| nan |" not in page.read_text(encoding="utf-8").lower()


def test_a_finished_search_is_left_as_it_is(finished: RunResults, small_config: ExperimentConfig) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}

    before = state()
    by = finished.metadata["config"]["ridge"]["alpha"]["by"]
    run_experiment(searching(small_config, by), finished.folder)
    assert state() == before


@pytest.mark.slow  # two workers of their own, for both ways; whole runs and `tests/ridge` have the same test
def test_workers_change_no_bit(
    finished: RunResults, two_workers: Client, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    by = finished.metadata["config"]["ridge"]["alpha"]["by"]
    run_experiment(searching(small_config, by), tmp_path, client=two_workers)
    for name in TABLES:
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes()


def test_another_search_needs_no_other_pass(
    small_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_seed = {"seeds": [42]}
    first = run_experiment(searching(small_config, **one_seed), tmp_path)
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)  # a second pass would fail
    wider = {"alpha": {"search": [0.1, *ALPHAS], "by": "global"}}
    second = run_experiment(searching(small_config, ridge=wider, **one_seed), tmp_path)
    assert [step["skipped"] for step in second.metadata["steps"]] == [True, True, False, False]
    shared = second.alpha_search[second.alpha_search["alpha"] >= 1].reset_index(drop=True)
    for column in ("r2_cv", "r2_test"):
        np.testing.assert_allclose(shared[column], first.alpha_search[column], rtol=1e-9)
    fixed = run_experiment(searching(small_config, ridge={"alpha": 10.0}, **one_seed), tmp_path)
    assert not (tmp_path / SEARCH_FILE).exists()
    assert fixed.alpha_search.empty
    assert fixed.overall["alpha_global"].unique().tolist() == [10.0]


def test_another_target_chooses_anew(
    small_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"seeds": [42], "bins": {"M_H": [-2, -1, 0, 0.5]}}
    first = run_experiment(searching(small_config, **sections), tmp_path)
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)
    second = run_experiment(searching(small_config, target="T_eff", **sections), tmp_path)
    assert [step["skipped"] for step in second.metadata["steps"]] == [True, True, False, False]
    for results, target in ((first, "log_g"), (second, "T_eff")):
        table = results.alpha_search
        assert table["target"].unique().tolist() == [target]
        assert table["chosen"].tolist() == (table["r2_cv"] == table.groupby("model")["r2_cv"].transform("max")).tolist()
    chosen = [results.alpha_search.query("chosen")["alpha"].tolist() for results in (first, second)]
    assert chosen[0] != chosen[1]


def test_a_choice_at_the_edge_of_the_grid_is_told(small_config: ExperimentConfig, tmp_path: Path) -> None:
    def warnings(name: str, alphas: list[float], by: str, words: str = "widen ridge.alpha.search") -> list[str]:
        ridge = {"alpha": {"search": alphas, "by": by}}
        results = run_experiment(searching(small_config, ridge=ridge, seeds=[42]), tmp_path / name)
        return [warning for warning in results.metadata["warnings"] if words in warning]

    beyond = "larger one may be better: widen ridge.alpha.search"
    assert warnings("low", [1e-3, 2e-3], "global") == [
        f"α = 0.002 for the global model is the largest of the grid, so a {beyond}"
    ]
    found = warnings("own", [1e-3, 2e-3], "per_expert")
    assert len(found) == 10
    assert f"α = 0.002 for bin 3 (Mid, Poor) is the largest of the grid, so a {beyond}" in found
    assert "smallest of the grid, so a smaller one" in warnings("high", [1e7, 2e7], "global")[0]
    # Too small a penalty, and experts follow the noise: the verdict says so, and no warning beside it.
    assert read_results(tmp_path / "low").summary.headline.decision.verdict == "withheld"
    assert warnings("low", [1e-3, 2e-3], "global", "do worse than the global model") == []
    assert warnings("wide", [1e-3, *ALPHAS, 1e8], "global") == []


def test_run__raise_on_a_fold_that_starves_a_bin_before_any_pass(
    small_config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.bincount(BinGrid(small_config.bins).cells(train_store.columns))[:9]
    ridge = {"alpha": {"search": ALPHAS}, "min_spectra": int(counts.min())}
    monkeypatch.setattr("pipeline.run.experiment.accumulate_moments", None)
    with pytest.raises(InputError, match=r"bin \d \(\w+, \w+\) has \d+ training spectra outside fold \d of 3"):
        run_experiment(searching(small_config, ridge=ridge), tmp_path)


def test_the_report_shows_the_search(finished: RunResults, one_figure: Callable[[str], None]) -> None:
    one_figure("moe_alpha_search.png")
    by = finished.metadata["config"]["ridge"]["alpha"]["by"]
    drawn = by == "global"  # the figures of one of the two runs are enough
    paths = render_run(finished.folder) if drawn else render_page(finished)
    markdown, page = (path.read_text(encoding="utf-8") for path in paths)
    table = finished.alpha_search
    for text in (markdown, page):
        assert "Penalty" in text
        assert "played no part in the choice" in text
        assert ("every model chose its own" in text) == (by == "per_expert")
        assert ("chosen by the global model for all" in text) == (by == "global")
    best = table[table["chosen"] & (table["model"] == "global")]["r2_cv"].mean()
    assert f"{best:.4f}" in markdown
    assert f"{best:.4f}" in page
    if drawn:
        assert "moe_alpha_search.png" in markdown
        assert (finished.folder / "figures" / "moe_alpha_search.png").is_file()


def test_test_spectra_play_no_part_in_the_choice(finished: RunResults, small_config: ExperimentConfig) -> None:
    """The table's two curves are of different spectra: had they been the same, so were the choices."""
    table: pd.DataFrame = finished.alpha_search
    assert np.abs(table["r2_cv"] - table["r2_test"]).max() > 1e-3
    if finished.metadata["config"]["ridge"]["alpha"]["by"] == "per_expert":
        of_test = table.loc[table.groupby(["seed", "model"])["r2_test"].idxmax()]
        of_folds = table.loc[table.groupby(["seed", "model"])["r2_cv"].idxmax()]
        assert of_test["alpha"].tolist() != of_folds["alpha"].tolist()
