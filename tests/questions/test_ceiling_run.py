"""Runs that measure their ceiling: recomputed from the spectra, resumed, on workers, and what they say of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from numpy.typing import NDArray
from results_factory import render_page
from scipy.special import log_ndtr, softmax
from sklearn.metrics import r2_score

from pipeline.bins import BinGrid, Partition
from pipeline.config import ExperimentConfig
from pipeline.errors import ConfigError, InputError
from pipeline.noise import NoiseDraw
from pipeline.plan import ceiling as ceiling_plan
from pipeline.plan import plan_library
from pipeline.questions import draw_ceiling
from pipeline.questions.ceiling import Ceiling, measure
from pipeline.questions.ceiling import library as library_module
from pipeline.questions.ceiling.answer import CeilingPart
from pipeline.questions.ceiling.library import choose_stars
from pipeline.questions.ceiling.measure import Measured
from pipeline.questions.ceiling.posterior import Sums
from pipeline.questions.gate import Gates
from pipeline.run import list_remarks, run_experiment
from pipeline.schema import LABELS, STREAM_TEST, STREAM_TRAIN
from pipeline.scoring import RunResults, read_noisy_rows
from pipeline.store import SpectraStore

FloatArray = NDArray[np.float64]


def change(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    plain = config.to_dict() | {"ceiling": {"test": 150}, "noise": {"levels": [0.5, 1.0], "test": "drawn"}}
    return ExperimentConfig.model_validate(plain | {"seeds": [42], "bootstrap": {"resamples": 100}} | sections)


@pytest.fixture(scope="module")
def config(small_config: ExperimentConfig) -> ExperimentConfig:
    return change(small_config)


@pytest.fixture(scope="module")
def finished(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run_experiment(config, tmp_path_factory.mktemp("ceiling"))


def read_table(run: RunResults) -> pd.DataFrame:
    return pd.read_csv(run.folder / "ceiling.csv", dtype={"bin": str}).fillna({"bin": ""})


def weigh(
    level: float,
    train: SpectraStore,
    test: SpectraStore,
    stars: FloatArray,
    rows: FloatArray,
    stream: int = STREAM_TEST,
) -> FloatArray:
    """Return ln p of test spectra under library stars and, in the last column, under their own, as the formula is."""
    read = {name: store.read_rows for name, store in (("train", train), ("test", test))}
    flux, error = (read["train"](name, 0, train.n_spectra)[stars].astype(float) for name in ("flux", "error"))
    own_flux, own_error = (read["test"](name, 0, test.n_spectra)[rows].astype(float) for name in ("flux", "error"))
    noisy = read_noisy_rows(test, 0, test.n_spectra, NoiseDraw(level, 42, stream), "float32")[rows]

    def one(x: FloatArray, f: FloatArray, s: FloatArray) -> FloatArray:
        f = np.maximum(f, 0)
        return np.where(x > 0, -((x - f) ** 2) / (2 * s**2) - np.log(s), log_ndtr(-f / s)).sum(axis=-1)

    of_library = np.stack([one(x, flux, level * error) for x in noisy.astype(float)])
    own = one(noisy.astype(float), own_flux, level * own_error)
    return np.concatenate([of_library, own[:, None]], axis=1)


@pytest.mark.parametrize("level", [0.5, 1.0])
def test_the_table_is_the_posterior_of_the_spectra(
    level: float, finished: RunResults, config: ExperimentConfig, train_store: SpectraStore, test_store: SpectraStore
) -> None:
    """Upper ends for every label, scope, library and bin; lower ends for one of the temperatures."""
    n, n_test = train_store.n_spectra, test_store.n_spectra
    choice = choose_stars([Partition(0, 0, 0, n)], 1440, 160)
    stars, rows = choice.library, np.arange(150) * n_test // 150
    found, table = weigh(level, train_store, test_store, stars, rows), read_table(finished)
    grid = BinGrid(config.bins)
    cells, own = grid.assign(train_store.columns)[stars], grid.assign(test_store.columns)[rows]
    predicted = finished.predictions.query(f"noise_level == {level}").iloc[rows]
    for label in LABELS:
        y, truth = (np.asarray(store.columns[label], float) for store in (train_store, test_store))
        y, truth = y[stars], truth[rows]
        for scope in ("covered", "all", "own_bin"):
            for share in (4, 2, 1):
                if scope == "own_bin" and share > 1:
                    continue
                inside = (np.arange(len(stars)) % share == 0)[None] & np.ones((150, 1), bool)
                if scope == "covered":
                    inside &= (cells >= 0)[None]
                if scope == "own_bin":
                    inside &= cells[None] == own[:, None]
                logs = np.where(np.concatenate([inside, np.ones((150, 1), bool)], axis=1), found, -np.inf)
                members = own >= 0 if scope != "all" else np.full(150, True)
                upper = (softmax(logs, axis=1) * np.concatenate([np.tile(y, (150, 1)), truth[:, None]], axis=1)).sum(1)
                row = pick(table, level, label, scope, "", int(np.median(inside.sum(axis=1)[members])))
                assert row["n_test"] == members.sum()
                assert row["r2_upper"] == pytest.approx(r2_score(truth[members], upper[members]), abs=2e-3)
                lowers = [
                    r2_score(truth[members], (softmax(logs[:, :-1] / t, axis=1) @ y)[members]) for t in (1, 4 / 3, 2, 4)
                ]
                assert min(abs(row["r2_lower"] - value) for value in lowers) < 2e-3
                assert row["r2_lower_low"] <= row["r2_lower"]
                assert row["r2_upper_high"] >= row["r2_upper"]
                weights = softmax(logs[:, :-1], axis=1)
                size = np.median(1 / (weights[members] ** 2).sum(axis=1))
                assert row["effective_size"] == pytest.approx(size, rel=0.02)
                if label == "log_g" and scope == "covered" and share == 1:
                    for k in range(grid.n_bins):
                        own_row = pick(table, level, label, scope, str(k), row["n_library"])
                        assert own_row["r2_upper"] == pytest.approx(
                            r2_score(truth[own == k], upper[own == k]), abs=5e-3
                        )
                if scope != "own_bin" and label == "log_g":
                    for name in ("global", "oracle"):
                        expected = r2_score(truth[members], predicted[f"y_{name}"].to_numpy()[members])
                        assert row[f"r2_{name}"] == pytest.approx(expected, abs=1e-9)
                if label != "log_g":
                    assert np.isnan(row["r2_oracle"])  # the bins are cut by it
    probabilities = np.stack([softmax(found[:, :-1], axis=1) @ (cells == k) for k in [*range(grid.n_bins), -1]], axis=1)
    sums = Measured.read(finished.folder / f"ceiling/noise-{level!r}.npz").sums.cells[:150]
    np.testing.assert_allclose(sums / sums.sum(axis=1, keepdims=True), probabilities, atol=5e-3)


def pick(table: pd.DataFrame, level: float, label: str, scope: str, number: str, library: int) -> pd.Series:
    chosen = table.query("noise_level == @level and target == @label and scope == @scope and bin == @number")
    [place] = np.flatnonzero(chosen["n_library"] == library) if len(chosen) > 1 else [0]
    return chosen.iloc[place]


def test_the_temperature_is_the_best_on_stars_that_were_left_out(
    finished: RunResults, config: ExperimentConfig, train_store: SpectraStore
) -> None:
    """By their mean squared error, under the noise that models are trained on; the test spectra play no part."""
    choice = choose_stars([Partition(0, 0, 0, train_store.n_spectra)], 1440, 160)
    found = weigh(1.0, train_store, train_store, choice.library, choice.left_out, STREAM_TRAIN)[:, :-1]
    bins = BinGrid(config.bins).assign(train_store.columns)
    level = Ceiling.at_headline(finished)
    assert level is not None
    assert level.n_left_out == 160
    for label, own in level.labels.items():
        y = np.asarray(train_store.columns[label], float)
        for scope, parts in own.growth.items():
            judged = bins[choice.left_out] >= (0 if scope == "covered" else -1)
            inside = bins[choice.library] >= (0 if scope == "covered" else -1)
            for part, share in zip(parts, (4, 2, 1), strict=True):
                members = inside & (np.arange(1440) % share == 0)
                errors = {
                    t: np.mean(
                        (softmax(found[:, members] / t, axis=1) @ y[choice.library][members] - y[choice.left_out])[
                            judged
                        ]
                        ** 2
                    )
                    for t in (1, 4 / 3, 2, 4)
                }
                assert errors[part.temperature] <= 1.001 * min(errors.values()), (label, scope, share)


def test_columns_of_the_table(finished: RunResults) -> None:
    assert list(read_table(finished).columns) == [
        "noise_level", "target", "scope", "bin", "n_library", "n_test", "r2_lower", "r2_upper", "r2_lower_low",
        "r2_upper_high", "effective_size", "r2_global", "r2_oracle",
    ]  # fmt: skip


def list_parts(run: RunResults) -> list[CeilingPart]:
    """Return all that tables of the page show."""
    answer = Ceiling.read(run)
    assert answer is not None
    labels = [own for level in answer.levels for own in level.labels.values()]
    parts = [part for own in labels for part in (*own.scopes.values(), own.own_bin)]
    targets = [level.labels["log_g"] for level in answer.levels]
    return parts + [part for own in targets for part in (*own.bins, *own.growth["covered"], *own.growth["all"])]


def read_page(run: RunResults) -> str:
    markdown, _ = render_page(run)
    return markdown.read_text(encoding="utf-8")


# --- Same bits.


@pytest.mark.slow  # three runs, one on a cluster
def test_workers_threads_and_a_resume_change_no_bit(
    config: ExperimentConfig,
    finished: RunResults,
    two_workers: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {name: (finished.folder / name).read_bytes() for name in ("ceiling.csv", "summary.json")}
    on_workers = run_experiment(config, tmp_path / "workers", client=two_workers)
    assert {name: (on_workers.folder / name).read_bytes() for name in expected} == expected
    compute: Callable[..., None] = library_module.compute_piece
    asked = []

    def killed(piece: Any, report: Callable[[int], None]) -> None:
        asked.append(piece.number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        compute(piece, report)

    monkeypatch.setenv("HEADROOM_THREADS", "1")
    with monkeypatch.context() as patch:
        patch.setattr(library_module, "compute_piece", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, tmp_path / "resumed")
    again: list[int] = []

    def counted(piece: Any, report: Callable[[int], None]) -> None:
        again.append(piece.number)
        compute(piece, report)

    monkeypatch.setattr(library_module, "compute_piece", counted)
    resumed = run_experiment(config, tmp_path / "resumed")
    assert set(again).isdisjoint(asked[:2])
    assert len(again) + 2 == len({*again, *asked})
    assert {name: (resumed.folder / name).read_bytes() for name in expected} == expected
    assert not list((resumed.folder / "ceiling").glob("parts-*"))
    again.clear()
    run_experiment(config, tmp_path / "resumed")
    assert again == []


def test_partitions_change_rounding_alone(config: ExperimentConfig, finished: RunResults, tmp_path: Path) -> None:
    """Other cuts of the pass hold the same stars against the same spectra."""
    other = change(config, compute=config.to_dict()["compute"] | {"partition_rows": 64, "folds": 2})
    found, expected = read_table(run_experiment(other, tmp_path / "run")), read_table(finished)
    for name in ("r2_lower", "r2_upper", "effective_size"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


# --- The library.


def test_the_library_is_even_and_leaves_out_what_it_is_judged_on() -> None:
    parts = [Partition(0, 0, 100, 600), Partition(1, 1, 700, 1700)]
    everything = np.concatenate([np.arange(100, 600), np.arange(700, 1700)])
    whole = choose_stars(parts, 1350, 150)
    assert sorted([*whole.library, *whole.left_out]) == everything.tolist()
    some = choose_stars(parts, 300, 150)
    assert set(some.library) <= set(whole.library)
    assert abs((some.library < 600).sum() - 100) <= 3
    assert np.diff(np.searchsorted(everything, some.library)).max() <= 28  # over a run that is left out
    assert len(choose_stars(parts, 10, 0).left_out) == 0


def test_a_part_of_many_stars_is_read_from_few_chunks() -> None:
    stars = choose_stars([Partition(0, 0, 0, 1_000_000)], 20_000, 1000).library
    assert len(np.unique(stars)) == 20_000
    assert len(np.unique(stars // 1024)) <= 2 * 157
    assert np.abs(np.bincount(stars // 100_000, minlength=10) - 2000).max() <= 128


def test_the_library_takes_as_many_as_the_pass_costs(config: ExperimentConfig) -> None:
    def stars(library: Any, n: int, pixels: int, **sections: Any) -> int:
        size = plan_library(change(config, ceiling={"library": library}, **sections), n, 10_000, pixels)
        assert size is not None
        return size.stars

    assert stars("auto", 15_000, 4096) == 14_000  # all but those left out
    assert stars("auto", 60_000, 512) == 20_000
    assert stars("all", 500_000, 512) == 499_000
    assert stars(30_000, 500_000, 512) == 30_000
    five = {"seeds": [1, 2, 3, 4, 5]}
    assert 20_000 < stars("auto", 1_000_000, 2048) < stars("auto", 1_000_000, 2048, **five)
    assert plan_library(change(config, ceiling=None), 1000, 100, 64) is None


@pytest.mark.parametrize("library", ["some", 5, True, 0.5])
def test_a_library_that_is_none_is_refused(config: ExperimentConfig, library: Any) -> None:
    with pytest.raises((ConfigError, ValueError), match="ceiling"):
        change(config, ceiling={"library": library})


# --- What is said of it.


def test_page_remarks_and_answer_tell_it(finished: RunResults) -> None:
    level = Ceiling.at_headline(finished)
    assert level is not None
    part = level.labels["log_g"].scopes["covered"]
    [caution, *said] = list_remarks(finished, 1.0)[:3]
    assert caution.startswith("The verdict on experts is withheld, and the following rests on the same models")
    assert said == [level.experts, level.nonlinear.sentence]
    assert f"the best possible model {part.lower.mean:.3f} to {part.upper.mean:.3f}" in level.experts
    page = read_page(finished)
    for words in ("What no model can beat", level.experts, level.nonlinear.sentence):
        assert words in page
    assert ("(not converged)" in page) == any(not one.is_converged for one in list_parts(finished))
    exact = pd.read_csv(finished.folder / "ceiling_routing.csv")
    assert set(exact["scope"]) == {"covered", "all", *map(str, range(9))}
    covered = exact.query("noise_level == 1 and scope == 'covered'").iloc[0]
    assert covered["kept"] == pytest.approx(level.posterior["covered"].kept.mean, nan_ok=True)
    assert covered["gain"] == pytest.approx(covered["r2"] - covered["r2_global"], abs=1e-9)


def test_the_figure_leaves_room_for_every_bar_and_mark(finished: RunResults) -> None:
    """Bars used to end the axes, so a short bar at the edge could not be seen and half of a mark was cut off."""
    axes = draw_ceiling(finished).axes[0]
    ends = [edge for bar in axes.patches for edge in (bar.get_x(), bar.get_x() + bar.get_width())]  # type: ignore[attr-defined]
    marks = [
        float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() in ("s", "o") and len(line.get_xdata())
    ]
    low, high = axes.get_xlim()
    margin = 0.02 * (high - low)
    assert min(len(ends), len(marks)) >= 2
    assert low + margin < min(*ends, *marks)
    assert max(*ends, *marks) < high - margin


def test_gates_are_held_against_the_exact_one(config: ExperimentConfig, tmp_path: Path) -> None:
    results = run_experiment(change(config, gate={}, noise={"levels": [1.0], "test": "drawn"}), tmp_path / "run")
    level, gate = Ceiling.at_headline(results), Gates.at_headline(results)
    assert level is not None
    assert gate is not None
    table = results.table("routing.csv")
    rows = table[table["route"] == "posterior"].set_index("scope")
    assert len(rows) == 11
    assert rows.loc["covered", "r2"] == pytest.approx(level.posterior["covered"].r2.mean)
    assert rows.loc["covered", "n_test"] == level.posterior["covered"].n_test
    assert gate.posterior == level.posterior
    assert "exact gate, first seed" in read_page(results)


def test_marginal_test_noise_is_drawn_for_it(config: ExperimentConfig, tmp_path: Path) -> None:
    noise = {"mode": "marginal", "levels": [1.0], "test": "marginal"}
    results = run_experiment(change(config, noise=noise, seeds=[42, 7]), tmp_path / "run")
    level = Ceiling.at_headline(results)
    assert level is not None
    assert level.is_redrawn
    assert level.posterior == {}
    assert "one draw was made from the first seed" in read_page(results)
    same = run_experiment(change(config, noise=noise | {"mode": "drawn", "test": "drawn"}), tmp_path / "drawn")
    drawn = Ceiling.at_headline(same)
    assert drawn is not None
    assert drawn.labels["log_g"].scopes["all"].upper == level.labels["log_g"].scopes["all"].upper


def test_without_noise_there_is_a_word_and_no_ceiling(config: ExperimentConfig, tmp_path: Path) -> None:
    results = run_experiment(change(config, noise={"levels": [0.0]}), tmp_path / "run")
    assert Ceiling.read(results) is None
    assert any("at noise level 0 the ceiling is 1" in one for one in results.metadata["warnings"])


def test_damaged_sums_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise-1.0.npz"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"noise-1.0.npz: cannot be read .*delete the file and run again"):
        Measured.read(path)


def test_answers_survive_json(finished: RunResults) -> None:
    answer = Ceiling.read(finished)
    assert answer is not None
    assert Ceiling.Answer.model_validate(json.loads(answer.model_dump_json())).to_dict() == copy.deepcopy(
        answer.to_dict()
    )
    assert isinstance(Sums.empty(2, 3, 1).merge(Sums.empty(2, 3, 1)), Sums)


def test_directions_give_the_table_of_the_pixels(
    config: ExperimentConfig, finished: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample has few pixels, so directions are forced here; workers read them back from their file."""
    monkeypatch.setattr(ceiling_plan, "_MANY_PIXELS", 0)
    monkeypatch.setattr(ceiling_plan, "_MANY_STARS", 0)
    monkeypatch.setattr(measure, "_WORTH", np.inf)
    results = run_experiment(config, tmp_path / "run")
    level = Ceiling.at_headline(results)
    assert level is not None
    assert level.rank > 20
    assert 0 < level.likelihood_error < 0.05
    found, expected = read_table(results), read_table(finished)
    for name in ("r2_lower", "r2_upper"):
        np.testing.assert_allclose(found[name], expected[name], atol=5e-3)
