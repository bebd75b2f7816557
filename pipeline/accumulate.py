"""One pass over a store: tasks over partitions, checkpoints, merged moments per (fold, cell).

A task gets paths and a row range, never an array; it leaves its moments on disk and returns nothing. Finished
checkpoints are skipped on resume. The driver merges a fold's partitions in partition order, so the bits depend on the
plan alone: not on the number of workers, on retries or on the order of arrival.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.bins import BinGrid
from pipeline.checkpoints import (
    AccumulationPlan,
    MomentsFolder,
    claim_folder,
    find_finished,
    merge_finished_folds,
    merge_fold,
    partition_folder,
)
from pipeline.errors import InputError
from pipeline.hotloop import CellRows, LoopSettings, accumulate_rows, available_threads
from pipeline.memory import available_memory
from pipeline.moments_files import write_moments
from pipeline.noise import NoiseDraw
from pipeline.partitions import Partition
from pipeline.progress import Progress, SilentProgress
from pipeline.store_set import AnyStore, open_stores
from pipeline.tasks import Task, run_tasks
from pipeline.workspace import process_workspace

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["accumulate_moments"]


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
        claim_folder(path, plan, draw)
    tasks = [_name_task(one) for one in _plan_partition_tasks(plan, draws, folders, draws_per_pass)]
    if tasks:
        with report.step("accumulate", sum(task.size for task in tasks)) as advance:
            for task, _ in run_tasks(client, _accumulate_partition, tasks, "accumulating", advance):
                for checkpoint in task.argument.folders:
                    merge_fold(plan, Path(checkpoint).parent, task.argument.partition.fold)
    for path in folders:
        merge_finished_folds(plan, path)
    return [
        MomentsFolder(path, draw, len(plan.folds), plan.grid.n_cells) for path, draw in zip(folders, draws, strict=True)
    ]


def _name_task(task: _PartitionTask) -> Task[_PartitionTask]:
    part = task.partition
    key = (f"accumulate fold {part.fold}", task.key, os.path.dirname(task.folders[0]), part.index)
    return Task(key, task, part.n_spectra * len(task.draws))


@dataclass(frozen=True)
class _PartitionTask:
    """All that a worker needs: small, whatever the number of partitions, and lost with no worker."""

    stores: tuple[str, ...]
    fingerprint: str
    key: str
    edges: tuple[tuple[str, tuple[float, ...]], ...]
    labels: tuple[str, ...]
    y_origin: tuple[float, ...]
    precision: str
    run_rows: int
    partition: Partition
    is_only_pass: bool
    draws: tuple[NoiseDraw, ...]
    folders: tuple[str, ...]


def _plan_partition_tasks(
    plan: AccumulationPlan, draws: Sequence[NoiseDraw], folders: Sequence[Path], draws_per_pass: int
) -> Iterator[_PartitionTask]:
    """Yield what is not on disk yet, partition by partition; draws that share a read go together."""
    done = {path: find_finished(plan, path) for path in folders}
    for first in range(0, len(draws), draws_per_pass):
        group = list(zip(draws, folders, strict=True))[first : first + draws_per_pass]
        for partition in plan.partitions:
            missing = [(draw, path) for draw, path in group if partition.index not in done[path]]
            if missing:
                checkpoints = tuple(str(partition_folder(path, partition.index)) for _, path in missing)
                yield _PartitionTask(
                    stores=plan.stores,
                    fingerprint=plan.fingerprint,
                    key=plan.key,
                    edges=plan.edges,
                    labels=plan.labels,
                    y_origin=plan.y_origin,
                    precision=plan.precision,
                    run_rows=plan.run_rows,
                    partition=partition,
                    is_only_pass=len(draws) <= draws_per_pass,
                    draws=tuple(draw for draw, _ in missing),
                    folders=checkpoints,
                )


def _accumulate_partition(task: _PartitionTask, report: Callable[[int], None]) -> None:
    """Compute and write the moments of one partition for its draws. The body of a Dask task."""
    with process_workspace() as workspace:
        store = _open_stores(task.stores, task.fingerprint, task.is_only_pass)
        grid = BinGrid(dict(task.edges))
        part = task.partition
        # Of these rows only: a worker's memory must not grow with the spectra that other tasks read.
        columns = store.read_columns(sorted({*grid.columns, *task.labels}), part.start, part.stop)
        rows = CellRows(
            start=part.start,
            cells=grid.cells(columns),
            n_cells=grid.n_cells,
            y=np.column_stack([columns[label] for label in task.labels]).astype(np.float64),
            labels=task.labels,
            x_origin=store.mean_flux,
            y_origin=np.asarray(task.y_origin),
        )
        settings = LoopSettings(task.precision, task.run_rows, available_threads())
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count * len(task.draws)
            report(done)

        moments = accumulate_rows(store, rows, task.draws, settings, advance, workspace)
        for cells, draw, folder in zip(moments, task.draws, task.folders, strict=True):
            facts = {"key": task.key, "store": task.fingerprint, "draw": vars(draw), "rows": [part.start, part.stop]}
            write_moments(Path(folder), cells, facts, settings.threads)


@lru_cache(maxsize=2)
def _open_stores(paths: tuple[str, ...], fingerprint: str, is_only_pass: bool) -> AnyStore:
    store = open_stores(paths)
    if store.fingerprint != fingerprint:
        raise InputError(f"store {', '.join(paths)} changed since the plan was made; run again")
    # What is read once, or is larger than memory, is never found in the page cache by a next pass.
    store.direct_reads = is_only_pass or store.pixel_bytes > available_memory() // 2
    return store
