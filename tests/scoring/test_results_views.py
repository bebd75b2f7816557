"""A run's results in a notebook: every table by its name, and a short picture of the whole."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import pipeline
from pipeline.scoring import RunResults


def test_every_table_is_an_attribute(small_run: RunResults) -> None:
    for path in small_run.folder.glob("*.csv"):
        assert path.stem in dir(small_run)
        table = getattr(small_run, path.stem)
        pd.testing.assert_frame_equal(table, small_run.table(path.name))
        assert len(table) == len(path.read_text().splitlines()) - 1
    assert {"ablation", "per_bin_results"} <= set(small_run.table_names)


def test_a_table_that_is_not_there_is_told(small_run: RunResults) -> None:
    with pytest.raises(AttributeError, match=r"no table 'ablatoin' \(did you mean 'ablation'\?\); it has ablation, "):
        _ = small_run.ablatoin  # type: ignore[attr-defined]
    assert not hasattr(small_run, "routing")
    for name, setting in (("routing", "`gate: {}`"), ("gate", "`gate: {}`"), ("forecast", "`forecast: {}`")):
        with pytest.raises(
            AttributeError, match=f"no table '{name}': the configuration does not ask for it; add {setting}"
        ):
            getattr(small_run, name)
    with pytest.raises(AttributeError, match="no table 'routing'; it has"):  # an earlier version has not said why
        _ = replace(small_run, metadata={}).routing  # type: ignore[attr-defined]
    assert not hasattr(small_run, "__array__")


def test_a_question_extends_it(small_run: RunResults, tmp_path: Path) -> None:
    (tmp_path / "brand_new.csv").write_text("noise_level,value\n1.0,3\n")
    more = replace(small_run, folder=tmp_path)
    assert more.brand_new["value"].tolist() == [3]  # type: ignore[attr-defined]


def test_results_can_be_copied(small_run: RunResults) -> None:
    assert copy.copy(small_run).folder == small_run.folder
    assert copy.deepcopy(small_run).summary == small_run.summary


def test_what_a_notebook_shows(small_run: RunResults) -> None:
    assert "ΔR²" in repr(small_run)
    assert len(repr(small_run)) < 200
    page = small_run._repr_html_()
    assert small_run.summary.headline.decision.sentence in page.replace("&#x27;", "'")
    assert "Simulated spectra." in page
    delta = small_run.summary.headline.covered.delta_r2.mean
    assert f"{delta:+.4f}" in page
    evil = replace(small_run, folder=small_run.folder.parent / "<script>alert(1)")
    assert "<script>" not in evil._repr_html_()


def test_models_and_moments_show_themselves(small_run: RunResults) -> None:
    page = pipeline.revisit_run(small_run.folder)._repr_html_()
    assert "bin 0 (Cool, Poor)" in page
    page = pipeline.open_moments(small_run.folder)._repr_html_()
    assert "complete" in page
    assert page.count("<tr>") == 3


def test_what_a_notebook_shows_is_a_line(small_run: RunResults) -> None:
    """Summary and levels hold thousands of numbers; their names are enough, and every one can be asked for."""
    summary = small_run.summary
    comparison = pipeline.compare_runs([small_run.folder, small_run.folder])
    for thing in (small_run, summary, summary.headline, comparison, pipeline.revisit_run(small_run.folder)):
        assert len(repr(thing)) < 300
        assert repr(thing).startswith(f"{type(thing).__name__}(")
    for name in repr(summary).partition("it has ")[2].partition(";")[0].split(", "):
        assert summary[name] is not None
