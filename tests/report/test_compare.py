"""Runs held against each other: paired intervals by an independent resampling, a run against itself, what cannot be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.base import seal
from pipeline.cli import main
from pipeline.cli.results import break_at_separators, print_comparison
from pipeline.errors import InputError
from pipeline.report import compare_runs, describe_difference, describe_ranking, list_settings, write_page
from pipeline.scoring import METADATA_FILE, PREDICTIONS_FILE
from tests.results_factory import FakeRun, make_results, restate_hashes

RUN = FakeRun(seeds=(42, 123), n_test=400)


def edit_metadata(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = folder / METADATA_FILE
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(seal(metadata)))


def edit_predictions(folder: Path, change: Callable[[pd.DataFrame], None]) -> None:
    frame = pd.read_parquet(folder / PREDICTIONS_FILE)
    change(frame)
    frame.to_parquet(folder / PREDICTIONS_FILE, index=False)
    restate_hashes(folder)


def set_resamples(metadata: dict) -> None:  # type: ignore[type-arg]
    metadata["config"]["bootstrap"] = {"resamples": 150, "confidence": 0.9, "seed": 3}


def better_oracle(frame: pd.DataFrame) -> None:
    frame["y_oracle"] += 0.3 * (frame["y_true"] - frame["y_oracle"]) * (frame["bin"] >= 0)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same test spectra; the second one's experts are nearer to the truth."""
    folders = (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        make_results(folder, RUN)
        edit_metadata(folder, set_resamples)
    edit_predictions(folders[1], better_oracle)
    edit_metadata(folders[1], lambda metadata: metadata["config"]["ridge"].update(standardize="none"))
    return folders


def r2(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2))


def headroom(frame: pd.DataFrame, rows: np.ndarray) -> float:
    """ΔR² of some rows of every seed's predictions, mean over seeds; from the definition."""
    values = []
    for _, one in frame.groupby("seed"):
        y, oracle, whole = (one[name].to_numpy()[rows] for name in ("y_true", "y_oracle", "y_global"))
        values.append(r2(y, oracle) - r2(y, whole))
    return float(np.mean(values))


def draw_resamples(bins: np.ndarray, n_bins: int, scope: str) -> np.ndarray:
    """Rows of 150 resamples, drawn within each bin by the rule of the run's own intervals."""
    strata = [np.flatnonzero(bins == k) for k in range(n_bins)]
    if scope == "all":
        strata.append(np.flatnonzero(bins < 0))
    drawn = []
    for k, members in enumerate(strata):
        generator = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(k,)))
        drawn.append(members[generator.integers(0, len(members), size=(150, len(members)))])
    return np.concatenate(drawn, axis=1)


@pytest.mark.parametrize("scope", ["covered", "all"])
def test_a_paired_interval_equals_a_plain_resampling(runs: tuple[Path, Path], scope: str) -> None:
    comparison = compare_runs(runs)
    [found] = [one for one in comparison.differences if one.scope == scope]
    frames = [pd.read_parquet(folder / PREDICTIONS_FILE) for folder in runs]
    bins = frames[0].query("seed == 42")["bin"].to_numpy()
    everyone = np.flatnonzero(bins >= 0) if scope == "covered" else np.arange(len(bins))
    shifts = [headroom(frames[1], rows) - headroom(frames[0], rows) for rows in draw_resamples(bins, 9, scope)]
    shift = found.merits["delta_r2"]
    assert found.paired
    assert found.n_test == len(everyone)
    assert shift.mean == pytest.approx(headroom(frames[1], everyone) - headroom(frames[0], everyone), rel=1e-10)
    assert (shift.low, shift.high) == pytest.approx(np.quantile(shifts, [0.05, 0.95]), rel=1e-9)
    assert shift.low > 0, "a third of every error is gone"
    assert found.merits["r2_global"].mean == 0, "the global models are the same"


def test_a_run_against_itself_differs_by_exactly_nothing(runs: tuple[Path, Path]) -> None:
    comparison = compare_runs([runs[0], runs[0]])
    assert comparison.settings == ()
    assert {one.scope for one in comparison.differences} == {"covered", "all", *(f"bin {k}" for k in range(9))}
    for one in comparison.differences:
        for shift in one.merits.values():
            assert (shift.mean, shift.low, shift.high) == (0, 0, 0)


def test_exchanged_runs_exchange_the_sign(runs: tuple[Path, Path]) -> None:
    there, back = compare_runs(runs), compare_runs(runs[::-1])
    for one, other in zip(there.differences, back.differences, strict=True):
        for merit, shift in one.merits.items():
            assert shift.mean == -other.merits[merit].mean
            assert (shift.low, shift.high) == pytest.approx((-other.merits[merit].high, -other.merits[merit].low))


def test_other_test_spectra_are_not_paired_and_resampled_apart(runs: tuple[Path, Path]) -> None:
    paired = compare_runs(runs).differences[0].merits["delta_r2"]
    edit_metadata(runs[1], lambda metadata: metadata["stores"]["test"].update(fingerprint="another"))
    comparison = compare_runs(runs)
    one = comparison.differences[0]
    assert not one.paired
    assert "fingerprint another" in comparison.unpaired[1]
    shift = one.merits["delta_r2"]
    assert shift.mean == pytest.approx(paired.mean)
    assert shift.high - shift.low > 1.3 * (paired.high - paired.low), "pairing is what makes intervals narrow"
    assert "unpaired" in describe_difference(comparison, one)
    edit_metadata(runs[1], lambda metadata: metadata["stores"]["test"].update(fingerprint="18f7e6d5c4b3a291"))
    edit_predictions(runs[1], lambda frame: frame.update({"y_true": frame["y_true"] + 1e-9}))
    assert "true labels are not" in compare_runs(runs).unpaired[1]


def test_other_bins_are_scored_on_what_both_cover(tmp_path: Path) -> None:
    edges = {"T_eff": (4500.0, 5250.0, 6000.0)}
    folders = [tmp_path / name for name in ("all", "warm")]
    for folder, run in zip(folders, (RUN, replace(RUN, edges=edges)), strict=True):
        make_results(folder, run)
        edit_metadata(folder, set_resamples)
    comparison = compare_runs(folders)
    covered, everyone = comparison.differences
    frames = [pd.read_parquet(folder / PREDICTIONS_FILE) for folder in folders]
    both = np.flatnonzero((frames[0]["bin"].to_numpy()[:400] >= 0) & (frames[1]["bin"].to_numpy()[:400] >= 0))
    assert 0 < len(both) < min((frame["bin"][:400] >= 0).sum() for frame in frames)
    assert (covered.n_test, everyone.n_test) == (len(both), 400)
    expected = headroom(frames[1], both) - headroom(frames[0], both)
    assert covered.merits["delta_r2"].mean == pytest.approx(expected, rel=1e-9)
    assert ("bins.M_H", ([-2.0, -1.0, 0.0, 0.5], None)) in [
        (name, (list(one) if one else one, list(other) if other else other))
        for name, (one, other) in comparison.settings
        if name.startswith("bins.M_H")
    ]


def test_noise_levels_find_each_other(tmp_path: Path) -> None:
    for name, levels in {"both": (0.2, 1.0), "one": (1.0,), "low": (0.2,)}.items():
        make_results(tmp_path / name, replace(RUN, levels=levels))
    pairs = [
        {(one.noise_level, one.reference_level) for one in compare_runs([tmp_path / a, tmp_path / b]).differences}
        for a, b in (("both", "one"), ("one", "both"), ("one", "low"))
    ]
    assert pairs == [{(1.0, 1.0)}, {(1.0, 1.0)}, {(0.2, 1.0)}]


def test_a_fingerprint_that_differs_makes_no_wide_column(runs: tuple[Path, Path]) -> None:
    for run, letter in zip(runs, "ab", strict=True):
        edit_metadata(run, lambda metadata, one=letter: metadata["stores"]["train"].update(fingerprint=one * 64))
    assert ("train spectra (fingerprint)", ("a" * 12, "b" * 12)) in compare_runs(runs).settings


def test_a_folder_of_runs_is_no_run_and_names_them(runs: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=rf"holds some; name one of .*{runs[0].name}") as refusal:
        compare_runs([runs[0].parent, runs[1]])
    assert "headroom run CONFIG" not in str(refusal.value)


def test_what_cannot_be_compared_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two run folders"):
        compare_runs(runs[:1])
    with pytest.raises(InputError, match="no such folder"):
        compare_runs([runs[0], tmp_path / "nowhere"])
    (runs[1] / PREDICTIONS_FILE).unlink()
    with pytest.raises(InputError, match="has not been scored"):
        compare_runs(runs)
    other = make_results(tmp_path / "other", RUN)
    summary = other.summary.to_dict() | {"target": "T_eff"}
    (other.folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"summary\.json is not what"):
        compare_runs([runs[0], other.folder])
    restate_hashes(other.folder)
    with pytest.raises(InputError, match=r"log_g .* and T_eff"):
        compare_runs([runs[0], other.folder])


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000, '{"hashes": []}', '{"stores": {"train": 3}}'])
def test_metadata_of_another_kind_is_refused(runs: tuple[Path, Path], content: str) -> None:
    (runs[1] / METADATA_FILE).write_text(content)
    with pytest.raises(InputError, match=r"metadata\.json"):
        compare_runs(runs)


def test_the_page_opens_anywhere_and_escapes_names(runs: tuple[Path, Path], tmp_path: Path) -> None:
    odd = runs[1].rename(tmp_path / "<i>odd & [red]")
    comparison = compare_runs([runs[0], odd])
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for page in pages:
        write_page(comparison, page)
    text = pages[0].read_text()
    assert pages[1].read_text() == text
    assert "<i>" not in text
    assert "&lt;i&gt;odd &amp; [red]" in text
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|https?:|<script|@import|url\(", text)
    assert text.count('<tr><th scope="row">ridge.standardize</th><td>global</td><td>none</td>') == 1
    assert f"{comparison.differences[0].merits['delta_r2'].mean:+.3f}" in text
    assert len(text) < 100_000
    write_page(comparison, pages[0])  # over an older one
    (tmp_path / "folder").mkdir()
    for name in ("thesis.html", "folder"):
        if name == "thesis.html":
            (tmp_path / name).write_text("<title>Comparison of 2 runs</title>")
        with pytest.raises(InputError, match=name):
            write_page(comparison, tmp_path / name)
    assert (tmp_path / "thesis.html").read_text() == "<title>Comparison of 2 runs</title>"


def test_the_command(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = runs[1].rename(tmp_path / "[red]x")
    page = tmp_path / "page.html"
    main(["compare", str(runs[0]), str(odd), "--out", str(page)])
    out = capsys.readouterr().out
    assert page.is_file()
    assert "ridge.standardize" in out
    assert "[red]x" in re.sub(r"\s", "", out), "a folder's name is no markup"
    assert "paired, on the same" in out
    main(["compare", str(runs[0]), str(odd), "--json"])
    found = json.loads(capsys.readouterr().out)
    shift = compare_runs([runs[0], odd]).differences[0].merits["delta_r2"]
    assert found["differences"][0]["merits"]["delta_r2"] == {"mean": shift.mean, "low": shift.low, "high": shift.high}
    assert found["runs"][0]["levels"][0]["covered"]["n_test"] == found["differences"][0]["n_test"]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(runs[0])])
    assert "at least two run folders" in capsys.readouterr().err


def test_the_best_run_is_told_with_the_interval_of_what_it_is_ahead_by(runs: tuple[Path, Path]) -> None:
    comparison = compare_runs(runs)
    [ranking] = comparison.rankings
    assert ranking.order == (1, 0), "the second run's experts are nearer to the truth"
    frames = [pd.read_parquet(folder / PREDICTIONS_FILE) for folder in runs]
    bins = frames[0].query("seed == 42")["bin"].to_numpy()

    def ahead(rows: np.ndarray) -> float:
        each = []
        for seed in (42, 123):
            first, second = (frame[frame["seed"] == seed] for frame in frames)
            y = first["y_true"].to_numpy()[rows]
            each.append(r2(y, second["y_oracle"].to_numpy()[rows]) - r2(y, first["y_oracle"].to_numpy()[rows]))
        return float(np.mean(each))

    [behind] = ranking.behind
    assert behind.mean == pytest.approx(-ahead(np.flatnonzero(bins >= 0)), rel=1e-9)
    shifts = [-ahead(rows) for rows in draw_resamples(bins, 9, "covered")]
    assert (behind.low, behind.high) == pytest.approx(np.quantile(shifts, [0.05, 0.95]), rel=1e-9)
    assert f"{runs[1]} is best" in describe_ranking(comparison, ranking)
    same = compare_runs([runs[0], runs[0]])
    assert "no difference" in describe_ranking(same, same.rankings[0])


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("noise.levels=0.2, ridge.standardize=per_expert", ["noise.levels=0.2,", "ridge.standardize=", "per_expert"]),
        ("runs/sweep/noise.levels=1", ["runs/sweep/", "noise.levels=1"]),
        ("build experts", ["build experts"]),
        ("0123456789abcdef0123456789", ["0123456789abcdef0123456789"]),
        ("", [""]),
    ],
)
def test_names_are_broken_at_separators_alone(name: str, lines: list[str]) -> None:
    assert break_at_separators(name, 18).split("\n") == lines


def test_a_question_that_some_runs_do_not_ask_is_one_row(runs: tuple[Path, Path]) -> None:
    asked = {"kind": "ridge", "features": {"components": 10, "windows": [{"name": "Ca"}]}}
    edit_metadata(runs[0], lambda metadata: metadata["config"].update(gate=None))
    edit_metadata(runs[1], lambda metadata: metadata["config"].update(gate=asked))
    assert compare_runs(runs).settings == (("gate", (None, "asked")), ("ridge.standardize", ("global", "none")))
    third = shutil.copytree(runs[1], runs[1].parent / "third")
    edit_metadata(third, lambda metadata: metadata["config"].update(gate=asked | {"kind": "logistic"}))
    settings = dict(compare_runs([*runs, third]).settings)
    assert [name for name in settings if name.startswith("gate")] == ["gate", "gate.kind"]
    assert settings["gate"] == (None, "asked", "asked")
    assert settings["gate.kind"] == (None, "ridge", "logistic")


def test_a_long_name_is_no_heading(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["noise.levels=0.2, ridge.standardize=per_expert", "short"]
    comparison = compare_runs(runs, names)
    assert list_settings(comparison)[0] == ("setting", "run 1", "short")
    print_comparison(comparison)
    assert "\n      ridge.standardize=" in capsys.readouterr().out


def test_ten_runs_are_told_by_their_numbers(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = compare_runs([runs[0]] * 9 + [runs[1]])
    header, rows = list_settings(comparison)
    assert header == ("setting", "value", "runs, by number")
    standardize = [row[1:] for row in rows if row[0] == "ridge.standardize" or row[1] == "none"]
    assert standardize[-1] == ("none", "10")
    assert comparison.rankings[0].order[0] == 9
    monkeypatch.chdir(tmp_path)  # a table is as wide as the longest name of a folder
    main(["compare", *["first"] * 9, "second", "--out", "ten.html"])
    lines = capsys.readouterr().out.splitlines()
    table = lines[: next(k for k, line in enumerate(lines) if "is best" in line)]
    assert max(map(len, table)) <= 100, "it fits where the runs are many"
    assert (tmp_path / "ten.html").read_text().count("<details>") == 9
