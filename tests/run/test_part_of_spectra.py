"""``data.spectra``: a part of the training spectra, spread evenly over all shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.accumulate import MomentsFolder
from pipeline.bins import find_gaps, keep_rows, plan_folds, plan_partitions, shard_ranges, tighten_folds
from pipeline.config import ExperimentConfig
from pipeline.errors import ConfigError, InputError
from pipeline.moments import Moments
from pipeline.noise import NoiseDraw
from pipeline.run import add_spectra, plan_experiment, revisit_run, run_experiment
from pipeline.schema import STREAM_TRAIN
from pipeline.store import SpectraStore


def configure(small_config: ExperimentConfig, spectra: int, **changes: Any) -> ExperimentConfig:
    plain = small_config.to_dict() | {"seeds": [42], "ablation": False} | changes
    plain["ridge"] |= {"min_spectra": 10}
    plain["data"] |= {"spectra": spectra}
    return ExperimentConfig.model_validate(plain)


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) > 10),
    st.integers(1, 10_000),
    st.integers(1, 5),
)
def test_partitions_hold_the_kept_rows_and_no_others(lengths: list[int], wanted: int, n_folds: int) -> None:
    kept = keep_rows(lengths, (), wanted)
    rows = np.concatenate([np.arange(a, b) for a, b in kept])
    assert len(np.unique(rows)) == len(rows) <= max(wanted, 0)
    assert len(rows) == sum(lengths) or len(rows) > wanted / 2
    try:
        folds = tighten_folds(plan_folds(lengths, n_folds), kept)
    except ConfigError:  # few rows of many folds
        return
    partitions = plan_partitions(folds, 700, find_gaps(kept))
    found = np.concatenate([np.arange(part.start, part.stop) for part in partitions])
    np.testing.assert_array_equal(found, rows)


def test_every_shard_has_its_part() -> None:
    lengths = [5000, 1000, 9000, 5000]
    kept = keep_rows(lengths, (1,), 2000)
    shares = [sum(max(0, min(b, stop) - max(a, start)) for a, b in kept) for start, stop in shard_ranges(lengths)]
    assert shares[1] == 0
    assert sum(shares) == pytest.approx(2000, abs=64)
    np.testing.assert_allclose(np.array(shares)[[0, 2, 3]], 2000 * np.array([5, 9, 5]) / 19, atol=64)
    assert min(np.array(shares)[[0, 2, 3]]) > 0


def test_moments_are_those_of_the_part(
    small_config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path
) -> None:
    config = configure(small_config, 800)
    results = run_experiment(config, tmp_path / "run")
    kept = keep_rows(train_store.shard_lengths, (), 800)
    draw = NoiseDraw(1.0, 42, STREAM_TRAIN)
    folder = MomentsFolder.of_run(tmp_path / "run", draw, "")
    total = Moments.merge(folder.total(cell) for cell in range(folder.n_cells))
    rows = np.concatenate([draw.read(train_store, a, b, "float64")[0] for a, b in kept])
    assert total.count == len(rows) == results.metadata["stores"]["train"]["n_spectra"]
    np.testing.assert_allclose(total.x_sum, (rows - total.x_origin).sum(axis=0), atol=1e-2)
    assert results.summary.levels[0].scopes["all"].n_train == len(rows)
    assert plan_experiment(config).n_spectra == len(rows)
    assert revisit_run(tmp_path / "run", alpha=5.0).table().loc["all", "n_train"] == len(rows)
    with pytest.raises(InputError, match=r"data\.spectra takes a part"):
        add_spectra(tmp_path / "run", ["anything"])


def test_a_part_that_is_no_part_changes_nothing(small_config: ExperimentConfig, tmp_path: Path) -> None:
    whole = run_experiment(configure(small_config, 10**9), tmp_path / "run")
    assert whole.summary.levels[0].scopes["all"].n_train == 1600


def test_too_few_are_refused(small_config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="min_spectra"):
        run_experiment(configure(small_config, 50), tmp_path / "run")
