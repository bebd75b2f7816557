"""Forecasts of whole runs: what they write, that they agree with what is known otherwise, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import invoke
from pydantic import ValidationError

from pipeline.config import ExperimentConfig
from pipeline.errors import InputError
from pipeline.questions.forecast import Forecast, OutlookPoint
from pipeline.questions.forecast.judging import find_trusted
from pipeline.questions.forecast.question import describe_disagreement, find_needed
from pipeline.run import ask_forecast, render_run, run_experiment
from pipeline.scoring import RunResults

FORECAST: dict[str, Any] = {
    "noise": {"mode": "marginal", "levels": [0.5, 1.0], "test": "marginal"},
    "forecast": {"sizes": "3e4"},
    "decision": {"at": 1e6},
    "ridge": {"alpha": {"per_spectrum": 1e-9}, "min_spectra": 20},
    "ablation": False,
    "seeds": [42],
    "precision": "float64",
}


def configure(small_config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    compute = small_config.compute.model_dump() | {"moments": "factored", "rank_tolerance": 1e-6}
    return ExperimentConfig.model_validate(small_config.to_dict() | FORECAST | {"compute": compute} | changes)


@pytest.fixture(scope="module")
def run(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run_experiment(configure(small_config), tmp_path_factory.mktemp("forecast") / "run")


@pytest.mark.usefixtures("no_figures")
def test_endless_training_is_training_on_all_noise_at_once(small_config: ExperimentConfig, tmp_path: Path) -> None:
    """Without a penalty the limit is what ridge regression on the marginal moments gives, by its own way.

    With a single fold: from several, the forecast also knows what more stars would give.
    """
    config = configure(small_config)
    compute = config.compute.model_copy(update={"folds": 1})
    run = run_experiment(config.model_copy(update={"compute": compute}), tmp_path / "run")
    answer = Forecast.read(run)
    assert answer is not None
    for level, own in zip(run.summary.levels, answer.levels, strict=True):
        assert own.noise_level == level.noise_level
        assert own.n_known == level.covered.n_train == 1600
        for penalty in ("configured", "best"):
            limit = own.limit(penalty)
            for name, scope in level.scopes.items():
                for merit in ("r2_oracle", "r2_global", "delta_r2"):
                    found = limit.scopes[name][merit].mean
                    assert found == pytest.approx(scope[merit].mean, abs=5e-4), (level.noise_level, name, merit)


def test_the_table_is_the_answer_and_what_the_finished_run_says(run: RunResults) -> None:
    table = run.table("forecast.csv")
    assert list(table.columns[:5]) == ["n", "penalty", "alpha", "noise_level", "scope"]
    assert {5000.0, 30000.0, 1600.0, 1e6, 1e7, math.inf} <= set(table["n"])
    assert set(table["scope"]) == {"covered", "all", *map(str, range(9))}
    level, points = ask_forecast(run.folder, [1e6, 3e4])
    assert level == 1.0
    assert [(point.n, point.penalty) for point in points] == [
        (3e4, "configured"),
        (1e6, "configured"),
        (3e4, "best"),
        (1e6, "best"),
    ]
    for point in points:
        rows = table.query("noise_level == 1 and n == @point.n and penalty == @point.penalty").set_index("scope")
        for name, scope in point.scopes.items():
            for merit in ("r2_oracle", "r2_global", "delta_r2"):
                assert rows.loc[name, merit] == pytest.approx(scope[merit].mean, abs=1e-5)
        assert rows.loc["3", "delta_r2"] == pytest.approx(point.bins[3].delta_r2.mean, abs=1e-5)
        assert (rows["delta_r2_low"] <= rows["delta_r2"]).all()


def test_the_best_penalty_is_no_worse_than_others(run: RunResults) -> None:
    _, best = ask_forecast(run.folder, [20_000])
    for alpha in (10.0, 1e3, 1e5):
        _, [stated] = ask_forecast(run.folder, [20_000], alpha=alpha)
        assert stated.covered.alpha == alpha
        for merit in ("r2_global", "r2_oracle"):
            assert best[1].covered[merit].mean >= stated.covered[merit].mean - 5e-3


def test_the_page_shows_what_was_found(run: RunResults, one_figure: Callable[[str], None]) -> None:
    one_figure("moe_forecast.png")
    _, page = render_run(run.folder)
    text = page.read_text()
    assert "With 1,000,000 training spectra" in text
    assert "What drawn runs of other sizes would say" in text
    assert (run.folder / "figures" / "moe_forecast.png").is_file()


@pytest.mark.slow  # a run of both kinds of noise, and its page
@pytest.mark.usefixtures("no_figures")
def test_a_run_of_both_shows_forecast_and_drawn_side_by_side(small_config: ExperimentConfig, tmp_path: Path) -> None:
    noise = {"mode": "both", "levels": [1.0], "test": "stored"}
    config = configure(small_config, noise=noise, seeds=[1, 2, 3], ridge={"alpha": {"search": [30, 300, 3000]}})
    results = run_experiment(config, tmp_path / "run")
    answer = Forecast.read(results)
    assert answer is not None
    [level] = answer.levels
    drawn = results.summary.levels[0].covered
    assert level.drawn[-1].delta_r2 == drawn.delta_r2
    assert [one.n_train for one in level.drawn] == [results.summary.levels[0].curve[-1].n_train]
    assert level.at(level.n_known).covered.r2_global.mean == pytest.approx(drawn.r2_global.mean, abs=0.04)
    beside, table = level.beside_drawn, results.per_bin
    assert (beside.penalty, beside.n) == ("drawn", level.n_known)
    for place, own in enumerate(beside.bins):
        assert own.alpha == sorted(table.loc[(table["bin"] == place) & (table["seed"] > 0), "alpha"])[1], (
            "the median over seeds"
        )
    assert beside.covered.delta_r2.mean == pytest.approx(drawn.delta_r2.mean, abs=0.04)
    _, page = render_run(tmp_path / "run")
    assert "Forecast and drawn run of 1,600 training spectra" in page.read_text()
    assert "forecast, α of the drawn run" in page.read_text()


@pytest.mark.parametrize(("off", "agrees"), [(0.0, True), (0.009, True), (0.03, False), (-0.03, False)])
def test_forecast_and_drawn_run_that_disagree_are_a_warning(run: RunResults, off: float, agrees: bool) -> None:
    answer = Forecast.read(run)
    assert answer is not None
    level = answer.levels[1]
    known = level.beside_drawn.covered
    trusted = known.model_copy(update={"trusted": True, "delta_r2": known.delta_r2.model_copy(update={"std": 0.001})})
    point = level.beside_drawn.model_copy(update={"scopes": {"covered": trusted}})
    drawn = run.summary.levels[1].covered
    mean = known.delta_r2.mean + off
    estimate = drawn.delta_r2.model_copy(update={"mean": mean, "std": 0.002, "low": mean - 0.01, "high": mean + 0.01})
    level = level.model_copy(update={"points": (point,), "drawn": (drawn.model_copy(update={"delta_r2": estimate}),)})
    doubt = describe_disagreement(level)
    assert (doubt is None) == agrees
    assert agrees or f"{mean:+.4f}" in str(doubt)
    unsure = point.model_copy(update={"scopes": {"covered": trusted.model_copy(update={"trusted": False})}})
    assert describe_disagreement(level.model_copy(update={"points": (unsure,)})) is None
    assert describe_disagreement(level.model_copy(update={"drawn": ()})) is None


def test_asked_by_command(run: RunResults, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--spectra", "1e6", "--spectra", "inf", "--alpha", "1e3", "--json")
    code, text, _ = invoke(capsys, "forecast", run.folder, *asked)
    rows = json.loads(text)["forecast"]
    assert code == 0
    assert {row["n"] for row in rows} == {1_000_000, None}
    needed = {"n", "alpha", "noise_level", "scope", "r2_global", "r2_oracle", "delta_r2", "trusted"}
    assert needed <= set(rows[0])
    assert "endless" in invoke(capsys, "forecast", run.folder, "--noise", "0.5")[1]
    for arguments, message in (
        (["--noise", "0.3"], "which are 0.5, 1; asked for 0.3"),
        (["--spectra", "3"], "--spectra"),
        (["--alpha", "0"], "--alpha"),
        (["--spectra", "nan"], "at least 100 training spectra"),
        (["--alpha", "nan"], "penalty above 0, found nan"),
    ):
        code, _, err = invoke(capsys, "forecast", run.folder, *arguments)
        assert code == 2
        assert message in err


def test_runs_that_cannot_answer_say_what_to_do(
    small_config: ExperimentConfig, small_run: RunResults, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="drawn noise alone"):
        ask_forecast(small_run.folder)
    plain = configure(small_config, forecast=None, decision={})
    run_experiment(plain, tmp_path / "plain")
    with pytest.raises(InputError, match=r"not divided; add the section `forecast: \{\}`"):
        ask_forecast(tmp_path / "plain")
    dense = run_experiment(configure(small_config, compute={"moments": "auto"}, decision={}), tmp_path / "dense")
    with pytest.raises(AttributeError, match=r"no forecast was made: it needs factored moments.*\{moments: factored\}"):
        _ = dense.forecast  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"are dense; .*`compute: \{moments: factored\}`"):
        ask_forecast(tmp_path / "dense")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": {"mode": "drawn"}}, "forecast needs factored moments"),
        ({"compute": {"moments": "dense"}}, "forecast needs factored moments"),
        ({"forecast": None}, "decision.at needs a forecast"),
        ({"forecast": {"sizes": [5000, 5000]}}, "must be distinct"),
        ({"forecast": {"sizes": [5]}}, "greater than or equal to 100"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    small_config: ExperimentConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        configure(small_config, **changes)


def test_numbers_of_spectra_are_written_as_people_do(small_config: ExperimentConfig) -> None:
    config = configure(
        small_config, forecast={"sizes": ["1e6", 5e4, 7000]}, data={"train": "a", "test": "b", "spectra": "5e4"}
    )
    assert config.forecast is not None
    assert config.forecast.sizes == (7000, 50_000, 1_000_000)
    assert (config.data.spectra, config.decision.at) == (50_000, 1_000_000)


def make_point(template: OutlookPoint, n: float, low: float) -> OutlookPoint:
    delta = template.covered.delta_r2.model_copy(update={"low": low})
    return template.model_copy(
        update={"n": n, "scopes": {"covered": template.covered.model_copy(update={"delta_r2": delta})}}
    )


def test_needed_spectra_are_where_the_interval_stays_above(run: RunResults) -> None:
    _, [template] = ask_forecast(run.folder, [1e6], alpha=10.0)

    def needed(*lows: float) -> float:
        points = [make_point(template, n, low) for n, low in zip((1e3, 1e5, 1e7), lows, strict=True)]
        return find_needed(points, 0.05)

    assert needed(0.06, 0.07, 0.08) == 1e3
    assert needed(0.04, 0.06, 0.08) == pytest.approx(1e4)
    assert needed(0.08, 0.04, 0.06) == pytest.approx(1e6), "what falls below again does not count"
    assert math.isnan(needed(0.08, 0.06, 0.04))
    assert math.isnan(needed(np.nan, np.nan, np.nan))


@pytest.mark.parametrize(
    ("changes", "trusted"),
    [
        ({}, True),
        ({"rows": 250}, True),
        ({"rows": 249}, False),  # too few for any number of pixels
        ({"rows": 511}, False),  # fewer than half the pixels
        ({"known": 499}, False),  # fewer than five for each direction of the basis
        ({"share": 0.46}, False),
    ],
)
def test_a_model_is_trusted_within_the_range_that_was_checked(changes: dict[str, float], trusted: bool) -> None:
    """The second of two models is what is changed; the first is the global one."""
    own = {"rows": 512.0, "known": 500.0, "share": 0.45} | changes
    n_pixels = 1024 if own["rows"] >= 500 else 64
    training: Any = SimpleNamespace(counts=np.array([1e4, own["known"]]), rank=100)
    models = [SimpleNamespace(count=1e4, share=0.1), SimpleNamespace(count=own["rows"], share=own["share"])]
    forecast: Any = SimpleNamespace(models=models)
    assert find_trusted(training, forecast, n_pixels).tolist() == [True, trusted]
