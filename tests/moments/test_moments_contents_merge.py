"""Moments of several runs as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline
from pipeline.accumulate import AccumulationPlan, accumulate_moments, plan_accumulation
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import REFERENCE_EDGES, ComputeConfig
from pipeline.errors import InputError
from pipeline.moments import Moments, open_moments
from pipeline.noise import Noise, NoiseDraw
from pipeline.store import SpectraStore, select_shards

CELLS = CellGrid((BinGrid(REFERENCE_EDGES),))
COMPUTE = ComputeConfig(folds="shards", partition_rows=500, run_rows=128)
DRAWS: list[Noise] = [NoiseDraw(1.0, 42, 0)]


def plan_without(store: SpectraStore, *excluded: str) -> AccumulationPlan:
    return plan_accumulation(select_shards(store, excluded), CELLS, COMPUTE)


@pytest.fixture(scope="module")
def halves(train_store: SpectraStore, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One shard each, of the two."""
    folder = tmp_path_factory.mktemp("halves")
    for k in range(2):
        accumulate_moments(plan_without(train_store, f"shard_{1 - k}"), DRAWS, folder / str(k))
    return [folder / "0", folder / "1"]


def test_merged_runs_are_one_run_over_all_shards(halves: list[Path], train_store: SpectraStore, tmp_path: Path) -> None:
    [whole] = accumulate_moments(plan_without(train_store), DRAWS, tmp_path)
    for order in (halves, halves[::-1]):
        [merged] = pipeline.merge_runs(order)
        assert merged.name == DRAWS[0].name
        assert [fold.rows for fold in merged.folds] == [(0, 800), (800, 1600)]
        assert sum(merged.counts) == 1600
        for cell in range(CELLS.n_cells):
            assert merged.total(cell).identical(whole.total(cell))


def test_one_run_is_itself(halves: list[Path]) -> None:
    [merged] = pipeline.merge_runs(halves[:1])
    assert merged.total(3).identical(Moments.merge([open_moments(halves[0]).draws[0].folds[0].read(3)]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "float64"}, r'precision differ \(precision: "float32" and "float64"\)'),
        ({"y_origin": (5000.0, 3.0, -1.0)}, r"y_origin differ"),
        ({"run_rows": 64}, r"run_rows differ \(run_rows: 128 and 64\)"),
    ],
)
def test_merge__raise_on_other_settings(
    halves: list[Path], train_store: SpectraStore, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    other = replace(plan_without(train_store, "shard_0"), **change)  # type: ignore[arg-type]
    accumulate_moments(other, DRAWS, tmp_path)
    with pytest.raises(InputError, match=words):
        pipeline.merge_runs([halves[0], tmp_path])


def test_merge__raise_on_spectra_twice_other_noise_and_unfinished_runs(
    halves: list[Path], train_store: SpectraStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"rows 0 to 799.*data\.exclude"):
        pipeline.merge_runs([halves[0], halves[0]])
    with pytest.raises(InputError, match="no runs"):
        pipeline.merge_runs([])
    accumulate_moments(plan_without(train_store, "shard_0"), [NoiseDraw(1.0, 7, 0)], tmp_path / "noise")
    with pytest.raises(InputError, match=r"seed-42_noise-1\.0, .*seed-7_noise-1\.0"):
        pipeline.merge_runs([halves[0], tmp_path / "noise"])
    [draw] = open_moments(tmp_path / "noise").draws
    (draw.folds[0].folder / "moments.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(InputError, match="fold-000"):
        pipeline.merge_runs([tmp_path / "noise"])


def test_other_cuts_are_no_obstacle(halves: list[Path], train_store: SpectraStore, tmp_path: Path) -> None:
    compute = COMPUTE.model_copy(update={"folds": 2, "partition_rows": 800})
    plan = plan_accumulation(select_shards(train_store, ["shard_0"]), CELLS, compute)
    accumulate_moments(plan, DRAWS, tmp_path)
    [merged] = pipeline.merge_runs([halves[0], tmp_path])
    assert [fold.rows for fold in merged.folds] == [(0, 800), (800, 1200), (1200, 1600)]
