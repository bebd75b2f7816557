"""One pass over a store: Dask tasks over partitions, checkpoints, merged moments per (fold, cell).

A task gets a store's path and a row range, never an array; it writes its moments to one file and returns a few
numbers. Finished files are skipped on resume. The driver merges a fold's partitions in partition order, so the
bits depend on the plan alone: not on the number of workers, on retries or on the order of arrival.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
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
    partition_file,
)
from pipeline.errors import InputError, ResourceError
from pipeline.hotloop import CellRows, LoopSettings, Workspace, accumulate_rows, available_threads
from pipeline.moments_file import write_moments
from pipeline.noise import NoiseDraw
from pipeline.partitions import Partition
from pipeline.progress import Progress, SilentProgress
from pipeline.store import SpectraStore

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["accumulate_moments", "lost_workers_told"]

# A worker may have many threads, but a plan's memory is that of one partition at a time.
_ONE_PARTITION_AT_A_TIME = threading.Lock()
_WORKSPACE = Workspace()


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
    tasks = list(_plan_tasks(plan, draws, folders, draws_per_pass))
    left = sum(task.partition.n_spectra * len(task.draws) for task in tasks)
    if left:
        with report.step("accumulate", left) as advance:
            _run_tasks(tasks, plan, client, advance)
    for path in folders:
        merge_finished_folds(plan, path)
    return [
        MomentsFolder(path, draw, len(plan.folds), plan.grid.n_cells) for path, draw in zip(folders, draws, strict=True)
    ]


@dataclass(frozen=True)
class _Task:
    """All that a worker needs: small, whatever the number of partitions, and lost with no worker."""

    store: str
    fingerprint: str
    key: str
    edges: tuple[tuple[str, tuple[float, ...]], ...]
    labels: tuple[str, ...]
    y_origin: tuple[float, ...]
    precision: str
    run_rows: int
    partition: Partition
    draws: tuple[NoiseDraw, ...]
    files: tuple[str, ...]


def _plan_tasks(
    plan: AccumulationPlan, draws: Sequence[NoiseDraw], folders: Sequence[Path], draws_per_pass: int
) -> Iterator[_Task]:
    """Yield what is not on disk yet, partition by partition; draws that share a read go together."""
    done = {path: find_finished(plan, path) for path in folders}
    for first in range(0, len(draws), draws_per_pass):
        group = list(zip(draws, folders, strict=True))[first : first + draws_per_pass]
        for partition in plan.partitions:
            missing = [(draw, path) for draw, path in group if partition.index not in done[path]]
            if missing:
                files = tuple(str(partition_file(path, partition.index)) for _, path in missing)
                yield _Task(
                    store=plan.store,
                    fingerprint=plan.fingerprint,
                    key=plan.key,
                    edges=plan.edges,
                    labels=plan.labels,
                    y_origin=plan.y_origin,
                    precision=plan.precision,
                    run_rows=plan.run_rows,
                    partition=partition,
                    draws=tuple(draw for draw, _ in missing),
                    files=files,
                )


def _run_tasks(
    tasks: Sequence[_Task], plan: AccumulationPlan, client: Client | None, advance: Callable[[int], None]
) -> None:
    if client is None:
        try:
            for task in tasks:
                _accumulate_partition(task, advance)
                _merge_folds_of(task, plan)
        finally:
            _WORKSPACE.clear()
        return
    from distributed import as_completed

    by_key = {
        (f"accumulate fold {task.partition.fold}", task.key, os.path.dirname(task.files[0]), task.partition.index): task
        for task in tasks
    }
    with lost_workers_told("accumulating"):
        futures = [client.submit(_accumulate_partition, task, key=key) for key, task in by_key.items()]
        try:
            for future in as_completed(futures):
                future.result()
                task = by_key[future.key]
                advance(task.partition.n_spectra * len(task.draws))
                _merge_folds_of(task, plan)
        finally:
            if client.status == "running":
                client.cancel(futures, force=True)


@contextmanager
def lost_workers_told(doing: str) -> Iterator[None]:
    """Turn what Dask raises when workers or the scheduler are gone into an error that says what to do.

    Raises
    ------
    ResourceError
        Finished partitions are on disk, so running again goes on from there.
    """
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise ResourceError(
            f"workers died again and again while {doing} ({error}); give them more memory "
            "(`headroom plan` says how much) and run again: finished partitions are kept"
        ) from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        raise ResourceError(
            f"the cluster was lost while {doing} ({type(error).__name__}: {error}); "
            "run again: finished partitions are kept"
        ) from error


def _accumulate_partition(task: _Task, advance: Callable[[int], None] | None = None) -> float:
    """Compute and write the moments of one partition for its draws; return seconds. The body of a Dask task."""
    with _ONE_PARTITION_AT_A_TIME:
        started = time.perf_counter()
        store = _open_store(task.store, task.fingerprint)
        grid = BinGrid(dict(task.edges))
        part = task.partition
        columns = {name: store.columns[name][part.start : part.stop] for name in {*grid.columns, *task.labels}}
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

        def tell(count: int) -> None:
            if advance is not None:
                advance(count * len(task.draws))

        moments = accumulate_rows(store, rows, task.draws, settings, tell, _WORKSPACE)
        for cells, draw, file in zip(moments, task.draws, task.files, strict=True):
            facts = {"key": task.key, "store": task.fingerprint, "draw": vars(draw), "rows": [part.start, part.stop]}
            write_moments(Path(file), cells, facts)
        return time.perf_counter() - started


@lru_cache(maxsize=2)
def _open_store(path: str, fingerprint: str) -> SpectraStore:
    store = SpectraStore.open(path)
    if store.fingerprint != fingerprint:
        raise InputError(f"store {path} changed since the plan was made; run again")
    return store


def _merge_folds_of(task: _Task, plan: AccumulationPlan) -> None:
    for file in task.files:
        merge_fold(plan, Path(file).parent, task.partition.fold)
