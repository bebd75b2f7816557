from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Future

from cluster import LocalProfile, connect_local
from pipeline.accumulate import AccumulationPlan, MomentsFolder, accumulate, accumulate_moments, plan_accumulation
from pipeline.base.progress import LogProgress
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import REFERENCE_EDGES, ComputeConfig
from pipeline.convert import convert_shards
from pipeline.errors import InputError, ResourceError
from pipeline.moments import Moments
from pipeline.noise import NoiseDraw
from pipeline.schema import LABELS
from pipeline.scoring import read_noisy_rows
from pipeline.shards import find_shards
from pipeline.store import SpectraStore

COMPUTE = ComputeConfig(folds=3, partition_rows=250, run_rows=128)
CELLS = CellGrid((BinGrid(REFERENCE_EDGES),))
DRAWS = [NoiseDraw(1.0, 42, 0), NoiseDraw(1.0, 7, 0)]


@pytest.fixture(scope="module")
def plan(train_store: SpectraStore) -> AccumulationPlan:
    return plan_accumulation(train_store, CELLS, COMPUTE)


@pytest.fixture(scope="module")
def reference(plan: AccumulationPlan, tmp_path_factory: pytest.TempPathFactory) -> list[MomentsFolder]:
    """Moments accumulated in this process, one draw after the other."""
    return accumulate_moments(plan, DRAWS, tmp_path_factory.mktemp("reference"))


def require_identical(found: list[MomentsFolder], expected: list[MomentsFolder]) -> None:
    for a, b in zip(found, expected, strict=True):
        for fold in range(b.n_folds):
            for cell in range(b.n_cells):
                assert a.read(fold, cell).identical(b.read(fold, cell))


def test_fold_moments_are_those_of_their_rows(
    plan: AccumulationPlan, reference: list[MomentsFolder], train_store: SpectraStore
) -> None:
    cells = plan.cells.cells(train_store.columns)
    y = np.column_stack([train_store.columns[label] for label in LABELS])
    for one in reference:
        for fold, (start, stop) in enumerate(plan.folds):
            noisy = read_noisy_rows(train_store, start, stop, one.draw)
            for cell in range(plan.cells.n_cells):
                members = cells[start:stop] == cell
                found = one.read(fold, cell)
                expected = Moments.from_samples(
                    noisy[members], y[start:stop][members], LABELS, x_origin=found.x_origin, y_origin=found.y_origin
                )
                assert found.count == expected.count
                np.testing.assert_allclose(found.gram, expected.gram, atol=1e-5 * np.abs(expected.gram).max())


def test_every_spectrum_is_counted_once(reference: list[MomentsFolder], train_store: SpectraStore) -> None:
    for one in reference:
        assert sum(one.total(cell).count for cell in range(one.n_cells)) == train_store.n_spectra


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_shared_reads_change_no_bit(
    plan: AccumulationPlan,
    reference: list[MomentsFolder],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    workers: int,
) -> None:
    client = request.getfixturevalue({1: "one_worker", 2: "two_workers"}[workers])
    found = accumulate_moments(plan, DRAWS, tmp_path, client=client, draws_per_pass=workers)
    require_identical(found, reference)
    assert not list(tmp_path.rglob("partition-*")), "partitions of finished folds are removed"


def test_another_store_chunking_changes_no_bit(
    sample: Path, plan: AccumulationPlan, reference: list[MomentsFolder], tmp_path: Path
) -> None:
    shards = find_shards([sample / "train"], sample)
    store = convert_shards(shards, tmp_path / "other.zarr", workers=1, chunk_rows=64, shard_rows=192)
    other = plan_accumulation(store, CELLS, COMPUTE)
    require_identical(accumulate_moments(other, DRAWS, tmp_path / "m"), reference)


@pytest.mark.parametrize(("memory", "direct"), [(1000, True), (2**40, False)])
def test_a_store_larger_than_memory_is_read_past_the_page_cache(
    plan: AccumulationPlan,
    reference: list[MomentsFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: int,
    direct: bool,
) -> None:
    opened = []
    original = accumulate.open_stores
    monkeypatch.setattr(accumulate, "open_stores", lambda paths: opened.append(original(paths)) or opened[-1])
    monkeypatch.setattr(accumulate, "available_memory", lambda: memory)
    accumulate.open_stores_once.cache_clear()
    found = accumulate_moments(plan, DRAWS, tmp_path)
    accumulate.open_stores_once.cache_clear()
    assert [store.direct_reads for store in opened] == [direct]
    require_identical(found, reference)


@pytest.mark.faults
def test_a_killed_worker_changes_no_bit(plan: AccumulationPlan, reference: list[MomentsFolder], tmp_path: Path) -> None:
    with connect_local(LocalProfile(workers=2, memory_limit=2**30)) as client:
        processes, killed = list(client.run(os.getpid).values()), []

        class Killer(accumulate.SilentProgress):
            """Kills a worker process after the first finished partition."""

            @contextmanager
            def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Callable[[int], None]]:
                def advance(_: int) -> None:
                    if not killed:
                        killed.append(processes[0])
                        os.kill(killed[0], signal.SIGKILL)

                yield advance

        found = accumulate_moments(plan, DRAWS, tmp_path, client=client, progress=Killer())
    assert killed
    require_identical(found, reference)


SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from pipeline.accumulate import accumulate_moments, plan_accumulation
from pipeline.moments.files import MomentsWriter
from pipeline.store import SpectraStore
from test_accumulate import CELLS, COMPUTE, DRAWS
original = MomentsWriter.finish
def slow(*arguments):
    original(*arguments)
    print("written", flush=True)
    time.sleep(0.3)
MomentsWriter.finish = slow
plan = plan_accumulation(SpectraStore.open({store!r}), CELLS, COMPUTE)
accumulate_moments(plan, DRAWS, Path({folder!r}))
"""


@pytest.mark.faults
def test_a_killed_and_resumed_run_changes_no_bit(
    plan: AccumulationPlan,
    reference: list[MomentsFolder],
    train_store: SpectraStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = SLOW_RUN.format(tests=str(Path(__file__).parent), store=str(train_store.path), folder=str(tmp_path))
    for kills in (1, 2):  # kill -9 twice, at different places
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(2 * kills):
            assert process.stdout.readline() == "written\n"
        time.sleep(0.05)
        process.kill()
        process.wait()
        process.stdout.close()
    assert list(tmp_path.rglob("gram-*.npy")), "something was kept"
    computed = []
    original = accumulate.read_partition
    monkeypatch.setattr(accumulate, "read_partition", lambda *a: (computed.append(a[3].start), original(*a))[1])
    found = accumulate_moments(plan, DRAWS, tmp_path)
    require_identical(found, reference)
    assert 0 < len(computed) < len(plan.partitions) * len(DRAWS), "finished partitions are not computed again"
    computed.clear()
    accumulate_moments(plan, DRAWS, tmp_path)
    assert computed == []


@pytest.mark.parametrize("draws_per_pass", [1, 2])
@pytest.mark.parametrize(("draws", "unit"), [(DRAWS[:1], "spectra"), (DRAWS, "spectra × noises")])
def test_the_unit_of_progress_is_what_is_counted(
    plan: AccumulationPlan, tmp_path: Path, draws: list[NoiseDraw], unit: str, draws_per_pass: int
) -> None:
    stream = io.StringIO()
    accumulate_moments(plan, draws, tmp_path, draws_per_pass=draws_per_pass, progress=LogProgress(stream))
    assert stream.getvalue().startswith(f"accumulate: {plan.n_spectra * len(draws):,} {unit}\n")


def test_orphans_of_a_killed_run_are_removed(plan: AccumulationPlan, tmp_path: Path) -> None:
    folder = tmp_path / DRAWS[0].name
    folder.mkdir()
    (folder / ".key.json.0123.tmp").write_bytes(b"half of a file")
    (folder / ".fold-001.0123.tmp").mkdir()
    (folder / ".fold-001.0123.tmp" / "gram-000.npy").write_bytes(b"half of a file")
    accumulate_moments(plan, DRAWS[:1], tmp_path)
    assert not list(folder.glob(".*"))


def test_accumulate__raise_on_a_lost_cluster(plan: AccumulationPlan, tmp_path: Path) -> None:
    with connect_local(LocalProfile(workers=1, memory_limit=2**30)) as client:

        class Cancelling(accumulate.SilentProgress):
            """Cancels all that is left after the first finished partition, as another client could."""

            @contextmanager
            def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Callable[[int], None]]:
                yield lambda _: client.cancel([Future(key, client) for key in list(client.futures)], force=True)

        with pytest.raises(ResourceError, match="run again: finished work is kept"):
            accumulate_moments(plan, DRAWS, tmp_path, client=client, progress=Cancelling())


@pytest.mark.parametrize("is_seen", [True, False])
def test_what_workers_wrote_may_be_seen_later_but_must_be_seen(
    plan: AccumulationPlan,
    reference: list[MomentsFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_seen: bool,
) -> None:
    """As on a network file system: tasks are done, and their folders are not there yet."""
    seen_here, on_the_node = tmp_path / "here", tmp_path / "node"
    monkeypatch.setattr(accumulate, "SECONDS_TO_APPEAR", 3.0 if is_seen else 0.2)
    original, waited = accumulate.merge_finished_folds, []

    def merge(plan: AccumulationPlan, folder: Path) -> None:
        waited.append(folder)
        if is_seen and len(waited) == 5:
            shutil.copytree(on_the_node, seen_here, dirs_exist_ok=True)
        original(plan, folder)

    accumulate_moments(plan, DRAWS, on_the_node)
    monkeypatch.setattr(accumulate, "run_tasks", lambda *_: iter(()))
    monkeypatch.setattr(accumulate, "merge_finished_folds", merge)
    if is_seen:
        require_identical(accumulate_moments(plan, DRAWS, seen_here), reference)
        assert len(waited) > 4
    else:
        with pytest.raises(ResourceError, match="file system"):
            accumulate_moments(plan, DRAWS, seen_here)


@pytest.mark.parametrize("file", ["moments.json", "sums.npz", "gram-003.npy"])
def test_an_incomplete_checkpoint_is_computed_again(
    plan: AccumulationPlan, reference: list[MomentsFolder], tmp_path: Path, file: str
) -> None:
    accumulate_moments(plan, DRAWS[:1], tmp_path)
    (tmp_path / DRAWS[0].name / "fold-001" / file).unlink()
    require_identical(accumulate_moments(plan, DRAWS[:1], tmp_path), reference[:1])


def test_accumulate__raise_on_moments_of_another_plan(plan: AccumulationPlan, tmp_path: Path) -> None:
    accumulate_moments(plan, DRAWS[:1], tmp_path)
    other = replace(plan, precision="float64")
    assert other.settings_key != plan.settings_key
    expected = rf"key {plan.settings_key}.*wanted key {other.settings_key}\): precision differ;"
    with pytest.raises(InputError, match=expected):
        accumulate_moments(other, DRAWS[:1], tmp_path)
    key = tmp_path / DRAWS[0].name / "key.json"
    key.write_text("{")
    with pytest.raises(InputError, match=r"key\.json is not"):
        accumulate_moments(plan, DRAWS[:1], tmp_path)


def test_accumulate__raise_on_a_store_that_changed(
    plan: AccumulationPlan, test_store: SpectraStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="changed since the plan was made"):
        accumulate_moments(replace(plan, stores=(str(test_store.path),)), DRAWS[:1], tmp_path)


def test_the_key_names_what_decides_the_bits(plan: AccumulationPlan) -> None:
    changed = [
        replace(plan, parts=(("x", 0, 1600),)),
        replace(plan, parts=((plan.fingerprint, 16, 1616),)),
        replace(plan, x_origin="x"),
        replace(plan, precision="float64"),
        replace(plan, grids=((("T_eff", (0.0, 1.0)),),)),
        replace(plan, run_rows=64),
        replace(plan, y_origin=(0.0, 0.0, 0.0)),
        replace(plan, folds=plan.folds[:-1], partitions=plan.partitions[:4]),
        replace(plan, partitions=plan.partitions[:-1]),
    ]
    assert len({one.key for one in changed} | {plan.key}) == len(changed) + 1
    assert replace(plan, stores=("elsewhere",)).key == plan.key


def test_a_fold_has_a_key_of_its_own(plan: AccumulationPlan) -> None:
    assert len(set(plan.fold_keys)) == len(plan.folds) == 3
    assert len(set(plan.partition_keys)) == len(plan.partitions)
    another_cut = replace(plan, partitions=plan.partitions[:-1])
    assert another_cut.fold_keys[:2] == plan.fold_keys[:2]
    assert another_cut.fold_keys[2] != plan.fold_keys[2]
    later_store = replace(plan, fingerprint="x", parts=(*plan.parts, ("another", 1600, 1700)))
    assert later_store.fold_keys == plan.fold_keys
    alone = replace(plan, folds=plan.folds[:1], partitions=plan.partitions[:1])
    assert alone.partition_keys == alone.fold_keys, "a fold's only partition becomes the fold"


def targets(plan: AccumulationPlan, folder: Path) -> list[accumulate.Target]:
    return [accumulate.Target(draw, folder / draw.name, plan) for draw in DRAWS]


@pytest.mark.parametrize(("n_workers", "n_tasks"), [(1, 1), (2, 7), (100, 8)])
def test_tasks_are_few_and_small(plan: AccumulationPlan, tmp_path: Path, n_workers: int, n_tasks: int) -> None:
    whole = replace(plan, partitions=tuple(replace(part, fold=part.index) for part in plan.partitions))
    whole = replace(whole, folds=tuple((part.start, part.stop) for part in plan.partitions))
    pieces = list(accumulate.plan_pieces(whole, targets(whole, tmp_path), 2))
    assert [piece.partition for piece in pieces] == list(whole.partitions)
    tasks = list(accumulate.plan_tasks(whole, pieces, n_workers))
    assert [piece for task in tasks for piece in task.pieces] == pieces
    assert len(pieces) == 8
    assert len(tasks) == n_tasks
    assert max(len(pickle.dumps(task)) for task in tasks) < 1000 + 500 * len(tasks[0].pieces)


def test_a_task_ends_where_a_fold_is_merged(plan: AccumulationPlan, tmp_path: Path) -> None:
    pieces = list(accumulate.plan_pieces(plan, targets(plan, tmp_path), 1))
    tasks = list(accumulate.plan_tasks(plan, pieces, 1))
    assert len(tasks) == len(plan.folds) * len(DRAWS)
    assert all(len({(piece.partition.fold, piece.draws) for piece in task.pieces}) == 1 for task in tasks)
