"""Runs with a bin design: tables against models refitted on the rows, figure, report, resuming, workers, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from divisions import all_divisions
from results_factory import render_page
from sklearn.linear_model import Ridge

from pipeline import read_noisy_rows
from pipeline.bins import BinGrid, plan_folds
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.questions.bin_design import BinDesign, question
from pipeline.questions.bin_design.answer import DesignAnswer
from pipeline.questions.bin_design.divisions import FineGrid, Rectangle, iter_rectangles
from pipeline.questions.bin_design.held_out import HeldOutErrors, HeldOutJob, hold_out_models
from pipeline.run import plan_experiment, render_run, run_experiment
from pipeline.schema import STREAM_TEST, STREAM_TRAIN
from pipeline.scoring import RunResults
from pipeline.store import SpectraStore

#: Many whole runs; the arithmetic is in the fast ``test_design.py``.
pytestmark = pytest.mark.slow

EDGES = {"T_eff": [3700, 4400, 5200, 6100], "M_H": [-2.2, -1.2, -0.2, 0.6]}
DESIGN_FILE = "design.csv"
DESIGN = {"grid": EDGES, "experts": 5}
SEEDS = (42, 123)
TABLES = (DESIGN_FILE, "summary.json", "results.csv")


def change(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    settings: dict[str, Any] = {"design": DESIGN, "precision": "float64", "ablation": False, "noise": {"test": "drawn"}}
    return ExperimentConfig.model_validate(config.to_dict() | settings | sections)


@pytest.fixture(scope="module")
def finished(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run_experiment(change(small_config), tmp_path_factory.mktemp("run"))


def answer_of(results: RunResults) -> DesignAnswer:
    answer = BinDesign.read(results)
    assert answer is not None
    return answer


class Refitted:
    """Held-out and test errors by scikit-learn on the same noisy rows, summed over seeds."""

    def __init__(self, train: SpectraStore, test: SpectraStore) -> None:
        self.grid = BinGrid(EDGES)
        self.train_bins, self.test_bins = self.grid.assign(train.columns), self.grid.assign(test.columns)
        self.y, self.y_test = (np.asarray(store.columns["log_g"], float) for store in (train, test))
        self.x = [read_noisy_rows(train, 0, train.n_spectra, NoiseDraw(1.0, s, STREAM_TRAIN), "float64") for s in SEEDS]
        self.x_test = [
            read_noisy_rows(test, 0, test.n_spectra, NoiseDraw(1.0, s, STREAM_TEST), "float64") for s in SEEDS
        ]
        self.folds = plan_folds(train.shard_lengths, 3)
        self.members = FineGrid(self.grid, tuple((k,) for k in range(9)))

    def bins_of(self, one: Rectangle) -> list[int]:
        return self.members.bins_of(one)

    def held_out(self, bins: list[int] | None) -> float:
        """The squared error over the fine bins of an expert of these bins, or of the global model over all of them."""
        error = 0.0
        for x in self.x:
            for start, stop in self.folds:
                others = np.ones(len(x), bool)
                others[start:stop] = False
                own = np.isin(self.train_bins, bins) if bins is not None else np.ones(len(x), bool)
                judged = (own if bins is not None else self.train_bins >= 0) & ~others
                scale = x[others].std(axis=0)
                model = Ridge(0.1 * others.sum()).fit(x[own & others] / scale, self.y[own & others])
                error += float(((self.y[judged] - model.predict(x[judged] / scale)) ** 2).sum())
        return error

    def tested(self, rectangles: list[Rectangle]) -> float:
        """ΔR² on test spectra, mean over seeds."""
        deltas = []
        inside = self.test_bins >= 0
        total = ((self.y_test[inside] - self.y_test[inside].mean()) ** 2).sum()
        for x, x_test in zip(self.x, self.x_test, strict=True):
            scale, alpha = x.std(axis=0), 0.1 * len(x)
            of_global = Ridge(alpha).fit(x / scale, self.y).predict(x_test / scale)
            routed = of_global.copy()
            for one in rectangles:
                own, test = (np.isin(bins, self.bins_of(one)) for bins in (self.train_bins, self.test_bins))
                routed[test] = Ridge(alpha).fit(x[own] / scale, self.y[own]).predict(x_test[test] / scale)
            errors = [((self.y_test - p)[inside] ** 2).sum() for p in (of_global, routed)]
            deltas.append((errors[0] - errors[1]) / total)
        return float(np.mean(deltas))


def test_the_table_is_what_refitting_and_brute_force_give(
    finished: RunResults, train_store: SpectraStore, test_store: SpectraStore
) -> None:
    table = pd.read_csv(finished.folder / DESIGN_FILE).set_index("experts")
    assert table.index.tolist() == [1, 2, 3, 4, 5]
    peer = Refitted(train_store, test_store)
    counts = [
        [int((np.isin(peer.train_bins[start:stop], peer.bins_of(one))).sum()) for start, stop in peer.folds]
        for one in iter_rectangles((3, 3))
    ]
    errors = {
        one: peer.held_out(peer.bins_of(one))
        for one, count in zip(iter_rectangles((3, 3)), counts, strict=True)
        if sum(count) - max(count) >= 50
    }
    assert len(errors) < 36, "some fine bin has too few spectra, or nothing is left out"
    best: dict[int, tuple[float, frozenset[Rectangle]]] = {}
    for division in all_divisions(Rectangle((0, 3), (0, 3))):
        if all(one in errors for one in division):
            error = sum(errors[one] for one in division)
            best[len(division)] = min((error, division), best.get(len(division), (np.inf, division)))
    y = peer.y[peer.train_bins >= 0]
    total = len(SEEDS) * ((y - y.mean()) ** 2).sum()
    for experts, row in table.iterrows():
        error, division = best[experts]
        assert row["r2_oracle_cv"] == pytest.approx(1 - error / total, rel=1e-6)
        assert row["r2_global_cv"] == pytest.approx(1 - peer.held_out(None) / total, rel=1e-6)
        assert row["delta_r2_cv"] == pytest.approx(row["r2_oracle_cv"] - row["r2_global_cv"], abs=1e-9)
        assert row["delta_r2_test"] == pytest.approx(peer.tested(sorted(division)), abs=1e-7)
        assert row["rectangles"] == "; ".join(peer.members.describe(one) for one in sorted(division))
        assert row["delta_r2_test_low"] <= row["delta_r2_test"] <= row["delta_r2_test_high"]
    assert (table["n_train"] == (peer.train_bins >= 0).sum()).all()
    assert (table["n_test"] == (peer.test_bins >= 0).sum()).all()


def test_the_summary_recommends_the_smallest_that_is_good_enough(finished: RunResults) -> None:
    design = answer_of(finished)
    table = pd.read_csv(finished.folder / DESIGN_FILE)
    best = table["delta_r2_cv"].max()
    enough = table[table["delta_r2_cv"] >= 0.95 * best]["experts"]
    expected = int(enough.iloc[0]) if best > 0 else None
    assert design.recommended == expected
    assert table.loc[table["recommended"], "experts"].tolist() == ([expected] if expected else [])
    assert design.edges == {column: tuple(edges) for column, edges in EDGES.items()}
    assert design.main is not None
    assert design.main.experts == 9
    assert not design.same_spectra
    if expected:
        assert f"Use {expected} expert" in design.sentence
    else:
        assert "No division into at most 5 rectangles gains" in design.sentence


def test_it_is_reported(
    finished: RunResults, small_config: ExperimentConfig, tmp_path: Path, one_figure: Callable[[str], None]
) -> None:
    one_figure("moe_bin_design.png")
    pages = render_run(finished.folder)
    for page in pages:
        assert "How many experts, and where to cut" in page.read_text()
        assert answer_of(finished).sentence.split(":")[0] in page.read_text()
    assert (finished.folder / "figures" / "moe_bin_design.png").exists()
    # Without a design nothing of it is left in the folder.
    again = run_experiment(change(small_config, design=None), tmp_path)
    assert "bin_design" not in again.summary.answers
    assert BinDesign.read(again) is None
    assert "How many experts" not in render_page(again)[0].read_text()
    assert not {DESIGN_FILE, "design"} & {path.name for path in tmp_path.iterdir()}


def test_workers_change_no_bit_and_nothing_is_made_twice(
    finished: RunResults, two_workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig.model_validate(finished.metadata["config"])
    found = run_experiment(config, tmp_path, client=two_workers)
    for name in TABLES:
        assert (found.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    monkeypatch.setattr("pipeline.accumulate.accumulate.accumulate_parts", None)
    monkeypatch.setattr("pipeline.run.models.solve_folders", None)
    for name in ("solve_folders", "hold_out_models"):
        monkeypatch.setattr(question, name, None)
    monkeypatch.setattr("pipeline.run.experiment.results_hold", lambda folder, key: False)
    run_experiment(config, tmp_path)
    # What is asked of the errors may change: they are there. Other divisions need models, but no other search.
    monkeypatch.undo()
    monkeypatch.setattr(question, "hold_out_models", None)
    fewer = run_experiment(change(config, design=DESIGN | {"experts": 3}), tmp_path)
    assert [one.experts for one in answer_of(fewer).divisions] == [1, 2, 3]
    assert answer_of(fewer).divisions == answer_of(finished).divisions[:3]


def test_a_killed_search_goes_on_where_it_was(
    finished: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, hold_out, answered = ExperimentConfig.model_validate(finished.metadata["config"]), hold_out_models, []

    def killed(jobs: Sequence[HeldOutJob], **others: Any) -> Iterator[tuple[int, HeldOutErrors]]:
        for place, errors in hold_out(jobs, **others):
            if len(answered) == 5:
                raise KeyboardInterrupt
            answered.append(jobs[place].name)
            yield place, errors

    monkeypatch.setattr(question, "hold_out_models", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path)
    [saved] = (tmp_path / "design").glob("*.json")
    assert list(json.loads(saved.read_text())["parts"]) == answered
    further: list[str] = []

    def counted(jobs: Sequence[HeldOutJob], **others: Any) -> Iterator[tuple[int, HeldOutErrors]]:
        further.extend(job.name for job in jobs)
        return hold_out(jobs, **others)

    monkeypatch.setattr(question, "hold_out_models", counted)
    found = run_experiment(config, tmp_path)
    assert len(further) == 2 * 8 - 5
    assert not set(further[:3]) & set(answered)
    assert (found.folder / DESIGN_FILE).read_bytes() == (finished.folder / DESIGN_FILE).read_bytes()
    # A damaged file is made again.
    saved.write_text("{")
    (tmp_path / "metadata.json").unlink()
    further.clear()
    run_experiment(config, tmp_path)
    assert len(further) == 8


@pytest.mark.parametrize("by", ["global", "per_expert"])
def test_a_search_for_the_penalty_gives_every_rectangle_the_global_choice(
    small_config: ExperimentConfig, tmp_path: Path, by: str
) -> None:
    ridge = {"alpha": {"search": [10.0, 300.0], "by": by}}
    grid = {"T_eff": {"quantiles": 2}, "M_H": {"quantiles": 2}}
    searching = change(small_config, ridge=ridge, seeds=[42], design={"grid": grid}, noise={"test": "marginal"})
    found = run_experiment(searching, tmp_path / "a")
    alpha = float(found.overall["alpha_global"].iloc[0])
    fixed = change(searching, ridge={"alpha": alpha}, noise={"test": "marginal"}, design=searching.design.model_dump())
    answer = answer_of(found)
    assert answer.divisions == answer_of(run_experiment(fixed, tmp_path / "b")).divisions
    assert ("global model's penalty" in answer.sentence) is (by == "per_expert" and answer.recommended is not None)
    # Quantiles cover all spectra, so one expert for all of them is the global model itself.
    assert answer.divisions[0].delta_r2 == pytest.approx(0, abs=1e-9)


def test_other_noise_levels_and_marginal_noise_beside_drawn_have_no_part(
    finished: RunResults, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    noise = {"mode": "both", "levels": [0.2, 1.0], "test": "drawn"}
    found = run_experiment(change(small_config, noise=noise), tmp_path)
    assert len(list((tmp_path / "design").glob("*.json"))) == 2
    assert answer_of(found).divisions == answer_of(finished).divisions


def test_plan__counts_the_cells_and_memory_of_the_design(small_config: ExperimentConfig) -> None:
    plain, fine = plan_experiment(small_config), plan_experiment(change(small_config, precision="float32"))
    assert (plain.n_cells, plain.design_threads) == (10, 0)
    assert fine.n_cells > 10 + 9
    assert fine.moments_disk == plain.moments_disk * fine.n_cells // plain.n_cells
    assert fine.worker_memory > plain.worker_memory
    assert fine.design_threads >= 1
    many = {"grid": {"T_eff": {"quantiles": 6}, "M_H": {"quantiles": 7}}}
    planned = plan_experiment(change(small_config, design=many))
    assert planned.n_cells == 10 * 43
    # 588 rectangles, 9 bins and the global model, in 3 folds for 2 seeds: what progress counts, too.
    assert planned.design_models == (588 + 10) * 3 * 2
    assert "bin design           3,588 models (rectangles × folds × seeds)" in planned.render()
    assert "bin design" not in plain.render()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"T_eff": [3700, 6100], "snrr": [0, 8]}, r"design.grid uses the column 'snrr'.*did you mean 'snr'"),
        ({"T_eff": [7000, 8000], "M_H": [-1, 0]}, r"design.grid has 0 training spectra outside fold 0 of 3, at least"),
        ({"T_eff": [3700, 6100], "snr": [200, 300, 400]}, r"move its edges to where the spectra are"),
    ],
)
def test_design__raise_on_a_grid_that_cannot_be_searched(
    small_config: ExperimentConfig, tmp_path: Path, grid: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_experiment(change(small_config, design={"grid": grid}), tmp_path)
    assert not list(tmp_path.glob("moments/*/fold-*"))


def test_design__raise_on_a_grid_without_test_spectra(
    small_config: ExperimentConfig, train_store: SpectraStore, test_store: SpectraStore, tmp_path: Path
) -> None:
    # Between two neighbouring test spectra there are some of the four times as many training spectra.
    marks = np.sort(np.asarray(test_store.columns["T_eff"], float))
    counts = np.histogram(np.asarray(train_store.columns["T_eff"], float), marks)[0]
    widest = int(np.argmax(counts))
    edges = [float(np.nextafter(marks[widest], np.inf)), float(np.nextafter(marks[widest + 1], 0))]
    design, ridge = {"grid": {"T_eff": edges, "M_H": [-3, 0, 1]}}, {"alpha": 10.0, "min_spectra": 2}
    with pytest.raises(InputError, match=r"design\.grid covers 0"):
        run_experiment(change(small_config, design=design, ridge=ridge), tmp_path)
