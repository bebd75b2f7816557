"""One pass over a store: Dask tasks over partitions, checkpoints, merged moments per (fold, cell).

A task gets a store's path and a row range, never an array; it writes its moments to one file and returns a few
numbers. Finished files are skipped on resume. The driver merges a fold's partitions in partition order, so the
bits depend on the plan alone: not on the number of workers, on retries or on the order of arrival.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import schema
from pipeline.bins import BinGrid
from pipeline.config import ComputeConfig, content_hash
from pipeline.errors import InputError, ResourceError
from pipeline.folds import plan_folds
from pipeline.hotloop import CellRows, LoopSettings, accumulate_rows, available_threads
from pipeline.memory import peak_memory
from pipeline.moments import Moments
from pipeline.moments_file import merge_moments_files, read_cell, read_moments_header, replacing, write_moments
from pipeline.noise import NOISE_ALGORITHM, NoiseDraw
from pipeline.partitions import Partition, plan_partitions
from pipeline.progress import Progress, SilentProgress
from pipeline.store import SpectraStore

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["AccumulationPlan", "MomentsFolder", "accumulate_moments", "plan_accumulation"]

#: Raised when the same inputs would give other moments.
ALGORITHM_VERSION = 1
KEY_FILE = "key.json"
# A worker may have many threads, but a plan's memory is that of one partition at a time.
_ONE_PARTITION_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class AccumulationPlan:
    """What is accumulated and how it is cut; equal plans give equal bits.

    Attributes
    ----------
    store
        Path of the store.
    fingerprint
        The store's fingerprint: other contents are another plan.
    edges
        Bin edges by column, as items so that the plan can be hashed.
    labels
        Labels accumulated, all in one pass.
    y_origin
        Origins of the labels: their means over the store.
    precision, block_rows, run_rows
        See :class:`pipeline.hotloop.LoopSettings`.
    folds
        Row ranges of the folds.
    partitions
        Row ranges of the tasks.
    """

    store: str
    fingerprint: str
    edges: tuple[tuple[str, tuple[float, ...]], ...]
    labels: tuple[str, ...]
    y_origin: tuple[float, ...]
    precision: str
    block_rows: int
    run_rows: int
    folds: tuple[tuple[int, int], ...]
    partitions: tuple[Partition, ...]

    @cached_property
    def grid(self) -> BinGrid:
        """The bins."""
        return BinGrid(dict(self.edges))

    @property
    def n_spectra(self) -> int:
        """Spectra in all partitions."""
        return self.folds[-1][1]

    @cached_property
    def key(self) -> str:
        """Identifies everything that decides the bits, besides the noise draw."""
        facts = {name: value for name, value in vars(self).items() if name not in ("store", "partitions", "grid")}
        cuts = [(part.start, part.stop) for part in self.partitions]
        return content_hash([ALGORITHM_VERSION, NOISE_ALGORITHM, facts, cuts])

    def fold_partitions(self, fold: int) -> list[Partition]:
        """Return the partitions of a fold, in order."""
        return [part for part in self.partitions if part.fold == fold]


def plan_accumulation(
    store: SpectraStore, grid: BinGrid, compute: ComputeConfig, precision: str = "float32"
) -> AccumulationPlan:
    """Cut a store into folds and partitions; a function of the store and the settings alone."""
    folds = plan_folds(store.shard_lengths, compute.folds)
    return AccumulationPlan(
        store=str(store.path),
        fingerprint=store.fingerprint,
        edges=tuple((column, tuple(map(float, edges))) for column, edges in grid.edges.items()),
        labels=schema.LABELS,
        y_origin=tuple(float(np.mean(store.columns[label])) for label in schema.LABELS),
        precision=precision,
        block_rows=compute.block_rows,
        run_rows=compute.run_rows,
        folds=folds,
        partitions=plan_partitions(folds, compute.partition_rows),
    )


@dataclass(frozen=True)
class MomentsFolder:
    """The finished moments of one noise draw: a file for each fold, in it a value for each cell."""

    folder: Path
    draw: NoiseDraw
    n_folds: int
    n_cells: int

    def read(self, fold: int, cell: int) -> Moments:
        """Read the moments of one fold and cell; the outside is the last cell."""
        return read_cell(_fold_file(self.folder, fold), cell)

    def iter_prefixes(self) -> Iterator[list[Moments]]:
        """Yield the moments of each cell over the first fold, the first two, … all of them."""
        sums: list[Moments] | None = None
        for fold in range(self.n_folds):
            cells = [self.read(fold, cell) for cell in range(self.n_cells)]
            sums = cells if sums is None else [a + b for a, b in zip(sums, cells, strict=True)]
            yield sums

    def total(self) -> list[Moments]:
        """Return the moments of each cell over all folds, added in fold order."""
        files = [_fold_file(self.folder, fold) for fold in range(self.n_folds)]
        return merge_moments_files(files, self.n_cells)


def accumulate_moments(
    plan: AccumulationPlan,
    draws: Sequence[NoiseDraw],
    folder: Path,
    *,
    client: Client | None = None,
    draws_per_pass: int = 1,
    progress: Progress | None = None,
) -> list[MomentsFolder]:
    """Accumulate moments per (fold, cell) for every noise draw, resuming what is already in ``folder``.

    Parameters
    ----------
    plan
        From :func:`plan_accumulation`.
    draws
        Noise draws; each gets a folder of its own below ``folder``.
    folder
        Where checkpoints and results live; reachable by all workers under the same path.
    client
        A Dask client; None computes here, one partition after the other, with the same bits.
    draws_per_pass
        How many draws share one read of the spectra; more need more memory, and change no bits.
    progress
        Told of finished spectra.

    Returns
    -------
    list of MomentsFolder
        One for each draw, in order.

    Raises
    ------
    InputError
        If the folder holds moments of another plan (both keys are named), or the store is damaged.
    ResourceError
        If the disk is full or the workers are lost.
    """
    report = progress or SilentProgress()
    folders = [Path(folder) / draw.name for draw in draws]
    for path, draw in zip(folders, draws, strict=True):
        _claim(path, plan, draw)
    tasks = list(_plan_tasks(plan, draws, folders, draws_per_pass))
    left = sum(task.partition.n_spectra * len(task.draws) for task in tasks)
    if left:
        with report.step("accumulate", left) as advance:
            _run_tasks(tasks, plan, folders, client, advance)
    for path in folders:
        _merge_finished_folds(plan, path)
    return [
        MomentsFolder(path, draw, len(plan.folds), plan.grid.n_cells) for path, draw in zip(folders, draws, strict=True)
    ]


@dataclass(frozen=True)
class _Task:
    partition: Partition
    draws: tuple[NoiseDraw, ...]
    files: tuple[str, ...]


def _plan_tasks(
    plan: AccumulationPlan, draws: Sequence[NoiseDraw], folders: Sequence[Path], draws_per_pass: int
) -> Iterator[_Task]:
    """Yield what is not on disk yet, partition by partition; draws that share a read go together."""
    done = {path: _finished_partitions(plan, path) for path in folders}
    for first in range(0, len(draws), draws_per_pass):
        group = list(zip(draws, folders, strict=True))[first : first + draws_per_pass]
        for partition in plan.partitions:
            missing = [(draw, path) for draw, path in group if partition.index not in done[path]]
            if missing:
                files = tuple(str(_partition_file(path, partition.index)) for _, path in missing)
                yield _Task(partition, tuple(draw for draw, _ in missing), files)


def _run_tasks(
    tasks: Sequence[_Task],
    plan: AccumulationPlan,
    folders: Sequence[Path],
    client: Client | None,
    advance: Callable[[int], None],
) -> None:
    if client is None:
        for task in tasks:
            _accumulate_partition(task, plan, advance)
            _merge_folds_of(task, plan)
        return
    from distributed import KilledWorker, as_completed

    by_key = {
        (f"accumulate fold {task.partition.fold}", plan.key, os.path.dirname(task.files[0]), task.partition.index): task
        for task in tasks
    }
    # The plan is small but the same for all: sent once.
    shared = client.scatter(plan, broadcast=True, hash=False)
    futures = [client.submit(_accumulate_partition, task, shared, key=key) for key, task in by_key.items()]
    try:
        for future in as_completed(futures):
            future.result()
            task = by_key[future.key]
            advance(task.partition.n_spectra * len(task.draws))
            _merge_folds_of(task, plan)
    except KilledWorker as error:
        raise ResourceError(
            f"workers died again and again while accumulating ({error}); give them more memory "
            "(`headroom plan` says how much) and run again: finished partitions are kept"
        ) from error
    finally:
        client.cancel(futures, force=True)


def _accumulate_partition(
    task: _Task, plan: AccumulationPlan, advance: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Compute and write the moments of one partition for its draws; the body of a Dask task."""
    with _ONE_PARTITION_AT_A_TIME:
        started = time.perf_counter()
        store = _open_store(plan.store, plan.fingerprint)
        part = task.partition
        window = slice(part.start, part.stop)
        columns = {name: store.columns[name][window] for name in {*plan.grid.columns, *plan.labels}}
        rows = CellRows(
            start=part.start,
            cells=plan.grid.cells(columns),
            n_cells=plan.grid.n_cells,
            y=np.column_stack([columns[label] for label in plan.labels]).astype(np.float64),
            labels=plan.labels,
            x_origin=store.mean_flux,
            y_origin=np.asarray(plan.y_origin),
        )
        settings = LoopSettings(plan.precision, plan.block_rows, plan.run_rows, available_threads())

        def tell(count: int) -> None:
            if advance is not None:
                advance(count * len(task.draws))

        moments = accumulate_rows(store, rows, task.draws, settings, tell)
        for cells, draw, file in zip(moments, task.draws, task.files, strict=True):
            write_moments(Path(file), cells, _facts(plan, draw, part.start, part.stop))
        return {"seconds": time.perf_counter() - started, "peak_memory": peak_memory()}


@lru_cache(maxsize=2)
def _open_store(path: str, fingerprint: str) -> SpectraStore:
    store = SpectraStore.open(path)
    if store.fingerprint != fingerprint:
        raise InputError(f"store {path} changed since the plan was made; run again")
    return store


def _facts(plan: AccumulationPlan, draw: NoiseDraw, start: int, stop: int) -> dict[str, Any]:
    return {"key": plan.key, "store": plan.fingerprint, "draw": vars(draw), "rows": [start, stop]}


def _partition_file(folder: Path, index: int) -> Path:
    return folder / f"partition-{index:06d}.npz"


def _fold_file(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold:03d}.npz"


def _claim(folder: Path, plan: AccumulationPlan, draw: NoiseDraw) -> None:
    """Take a folder for a plan, or refuse it if it holds another plan's moments."""
    key_file = folder / KEY_FILE
    facts = {"key": plan.key, "store": plan.fingerprint, "draw": vars(draw)}
    if key_file.exists():
        try:
            found = json.loads(key_file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{key_file}: damaged; delete the folder {folder} and run again") from None
        if found != facts:
            raise InputError(
                f"{folder} holds moments of another computation (key {found.get('key')} of store "
                f"{str(found.get('store'))[:16]}, wanted key {facts['key']} of store {plan.fingerprint[:16]}): the "
                "store, bins, folds, precision or partitions differ; choose another --out, or delete that folder"
            )
        return
    with replacing(key_file) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")


def _finished_partitions(plan: AccumulationPlan, folder: Path) -> set[int]:
    finished = set()
    for part in plan.partitions:
        for file in (_fold_file(folder, part.fold), _partition_file(folder, part.index)):
            if file.exists() and _belongs(file, plan):
                finished.add(part.index)
    return finished


def _belongs(file: Path, plan: AccumulationPlan) -> bool:
    """Whether a checkpoint is whole and of this plan; anything else is computed again and replaced."""
    try:
        return bool(read_moments_header(file).get("key") == plan.key)
    except InputError:
        return False


def _merge_folds_of(task: _Task, plan: AccumulationPlan) -> None:
    for file in task.files:
        _merge_fold(plan, Path(file).parent, task.partition.fold)


def _merge_finished_folds(plan: AccumulationPlan, folder: Path) -> None:
    for fold in range(len(plan.folds)):
        _merge_fold(plan, folder, fold)


def _merge_fold(plan: AccumulationPlan, folder: Path, fold: int) -> None:
    """Merge a fold's partitions into its file once all are there, then delete them. Safe to repeat."""
    target = _fold_file(folder, fold)
    files = [_partition_file(folder, part.index) for part in plan.fold_partitions(fold)]
    if target.exists() and _belongs(target, plan):
        for file in files:
            file.unlink(missing_ok=True)
        return
    if not all(file.exists() for file in files):
        return
    if len(files) == 1:
        os.replace(files[0], target)
        return
    facts = read_moments_header(files[0])
    start, stop = plan.folds[fold]
    cells = merge_moments_files(files, plan.grid.n_cells)
    write_moments(target, cells, facts | {"rows": [start, stop]})
    for file in files:
        file.unlink(missing_ok=True)
