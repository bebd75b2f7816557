"""The typed summary: two ways to read it, what it refuses, NaN and ``null``, and reading it back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from results_factory import restate_hashes

from pipeline.errors import InputError
from pipeline.schema import SUMMARY_VERSION
from pipeline.scoring import (
    MERITS,
    SUMMARY_FILE,
    Bin,
    Estimate,
    Level,
    RunResults,
    Scope,
    Score,
    Summary,
    estimate_merits,
    flatten,
    read_results,
    summarise_scope,
)

ESTIMATE = Estimate.of(0.5, 0.1, 0.4, 0.6)
SCOPE: dict[str, Any] = {
    **{merit.name: ESTIMATE for merit in MERITS},
    "n_train": 100,
    "n_test": 10,
    "mae_oracle": 0.1,
    "mae_global": 0.2,
}


def test_entries_are_read_like_attributes_and_like_a_dictionarys(small_run: RunResults) -> None:
    summary = small_run.summary
    assert summary["levels"][0]["scopes"]["covered"]["delta_r2"]["mean"] == summary.headline.covered.delta_r2.mean
    assert summary.get("target") == summary.target == "log_g"
    assert summary.get("verdict", "none") == "none"
    with pytest.raises(KeyError, match="verdict"):
        summary["verdict"]
    with pytest.raises(ValidationError, match="frozen"):
        summary.target = "T_eff"


def test_the_headline_is_the_stated_level(small_run: RunResults) -> None:
    [level] = small_run.summary.levels
    other = level.model_copy(update={"noise_level": 0.2})
    both = small_run.summary.model_copy(update={"levels": (other, level)})
    assert both.headline is level
    assert both.model_copy(update={"headline_level": 0.2}).headline is other


def test_the_summary_is_what_the_tables_say(small_run: RunResults) -> None:
    """Means over seeds and every draw, against the tables that other tests hold against scikit-learn."""
    [level] = small_run.summary.levels
    for scope, entry in level.scopes.items():
        rows = small_run.overall.query(f"scope == '{scope}'")
        for merit in MERITS:
            assert entry.merit(merit).mean == pytest.approx(rows[merit.name].mean(), rel=1e-9)
            assert entry.merit(merit).std == pytest.approx(rows[merit.name].std(), rel=1e-6)
    assert [draw.seed for draw in level.draws] == [42, 123]
    for draw in level.draws:
        rows = small_run.per_bin.query(f"seed == {draw.seed}")
        assert [one.n_test for one in draw.bins] == rows["n_test"].tolist()
        np.testing.assert_allclose([one.mae_oracle for one in draw.bins], rows["mae_oracle"], rtol=1e-9)
        curve = small_run.learning.query(f"seed == {draw.seed} and scope == 'all'")
        np.testing.assert_allclose(
            [point.scopes["all"].r2_global.mean for point in draw.curve], curve["r2_global"], rtol=1e-9
        )
        assert draw.curve[-1].scopes == draw.scopes
    assert level.curve[-1] == level.covered


def test_numbers_without_a_value_are_null_in_json_and_nan_in_python() -> None:
    assert Estimate.unknown().to_dict() == dict.fromkeys(("mean", "std", "low", "high"))
    for value in (math.nan, math.inf, -math.inf):
        written = Estimate.of(value, 0.0, 1.0, 2.0).model_dump_json()
        assert json.loads(written)["mean"] is None
        read = Estimate.model_validate_json(written)
        assert math.isnan(read.mean)
        assert (read.std, read.low, read.high) == (0.0, 1.0, 2.0)
        assert read.model_dump_json() == written
    assert math.isnan(Estimate.model_validate({"mean": None, "std": 0, "low": 0, "high": 0}).mean)
    with pytest.raises(ValidationError, match="mean"):
        Estimate.model_validate({"std": 0, "low": 0, "high": 0})
    with pytest.raises(ValidationError, match="n_test"):
        Scope.model_validate(SCOPE | {"n_test": None})


def test_numbers_come_back_to_the_last_bit(small_run: RunResults) -> None:
    generator = np.random.default_rng(4)
    for values in generator.normal(size=(200, 4)) * 10.0 ** generator.integers(-300, 300, (200, 1)):
        one = Estimate.of(*values)
        assert Estimate.model_validate_json(one.model_dump_json()) == one
    content = json.loads((small_run.folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    assert small_run.summary.to_dict() == content
    assert Summary.model_validate(content).to_dict() == content
    assert Summary.model_validate_json(small_run.summary.model_dump_json()).to_dict() == content


def test_columns_of_an_entry_are_its_numbers() -> None:
    one = Bin(**SCOPE, bin=3, names=("Cool", "Poor"), alpha=math.nan)
    columns = flatten(one, without=("mae_oracle",))
    assert "mae_oracle" not in columns
    assert "names" not in columns
    assert (columns["bin"], columns["n_test"], columns["mae_global"]) == (3, 10, 0.2)
    for merit in MERITS:
        assert [columns[f"{merit.name}{end}"] for end in ("", "_low", "_high")] == [0.5, 0.4, 0.6]


def test_long_names_are_cut_and_no_formula() -> None:
    assert Bin(**SCOPE, bin=3, names=("Mid", "Poor"), alpha=1.0).label == "3 · Mid, Poor"
    label = Bin(**SCOPE, bin=3, names=("x" * 40, "$a$"), alpha=1.0).label
    assert len(label) < 40
    assert "…" in label
    assert r"\$a\$" in label


def test_estimates_are_means_with_the_intervals_of_averaged_resamples() -> None:
    """Against NumPy, written out for two seeds."""
    generator = np.random.default_rng(8)
    merits, resampled = generator.normal(size=(2, 3)), generator.normal(size=(2, 400, 3))
    scores = [Score(7, own, draws, 0.25, 0.75) for own, draws in zip(merits, resampled, strict=True)]
    found = estimate_merits(scores, 0.9)
    low, high = np.quantile(resampled.mean(axis=0), [0.05, 0.95], axis=0)
    for k, merit in enumerate(MERITS):
        one = found[merit.name]
        assert one.mean == pytest.approx(merits[:, k].mean())
        assert one.std == pytest.approx(merits[:, k].std(ddof=1))
        assert (one.low, one.high) == (pytest.approx(low[k]), pytest.approx(high[k]))
    scope = summarise_scope(scores, 70, 0.9)
    assert (scope.n_train, scope.n_test, scope.mae_oracle, scope.mae_global) == (70, 7, 0.25, 0.75)
    assert estimate_merits(scores[:1], 0.9)["r2_global"].std == 0


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plain: plain.update(version=SUMMARY_VERSION + 1), f"version {SUMMARY_VERSION} is required, found"),
        (lambda plain: plain.update(version=1), f"version {SUMMARY_VERSION} is required, found 1"),
        (lambda plain: plain.update(learning={}), "learning"),
        (lambda plain: plain["levels"][0].update(routing=None), r"levels\.0\.routing"),
        (lambda plain: plain["levels"][0]["scopes"]["covered"].update(rmse=1), r"levels\.0\.scopes\.covered\.rmse"),
        (lambda plain: plain["levels"][0]["bins"][4].pop("alpha"), r"levels\.0\.bins\.4\.alpha"),
        (lambda plain: plain["levels"][0]["bins"][4].update(n_test="many"), r"levels\.0\.bins\.4\.n_test"),
        (lambda plain: plain.pop("levels"), "levels"),
    ],
)
def test_read_results__raise_on_the_summary_of_another_version(
    small_run: RunResults, tmp_path: Path, change: Change, words: str
) -> None:
    run = shutil.copytree(small_run.folder, tmp_path / "run")
    plain = json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))
    change(plain)
    (run / SUMMARY_FILE).write_text(json.dumps(plain), encoding="utf-8")
    restate_hashes(run)
    with pytest.raises(InputError, match=words) as error:
        read_results(run)
    assert str(run / SUMMARY_FILE) in str(error.value)
    assert "run again" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"levels": 3', "\x00\xff"])
def test_read_results__raise_on_a_damaged_summary(small_run: RunResults, tmp_path: Path, content: str) -> None:
    run = shutil.copytree(small_run.folder, tmp_path / "run")
    (run / SUMMARY_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="run again") as error:
        read_results(run)
    assert str(run) in str(error.value)
    assert SUMMARY_FILE in str(error.value)


def test_levels_refuse_what_they_do_not_know(small_run: RunResults) -> None:
    plain = small_run.summary.levels[0].to_dict()
    assert Level.model_validate(plain).to_dict() == plain
    with pytest.raises(ValidationError, match="ablation"):
        Level.model_validate(plain | {"ablation": []})
