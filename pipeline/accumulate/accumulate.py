"""One pass over a store: tasks over partitions, checkpoints, merged moments per (fold, cell).

A task gets paths and row ranges, never an array. It writes its moments to disk and returns nothing. A resumed run skips
finished checkpoints. The driver merges a fold's partitions in partition order. So the bits depend on the plan alone,
and not on the number of workers, on retries or on the order of arrival.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from pipeline.accumulate.checkpoints import (
    MomentsFolder,
    claim_folder,
    find_finished,
    find_saved_folds,
    merge_finished_folds,
    merge_fold,
    partition_folder,
)
from pipeline.accumulate.hotloop import CellRows, LoopSettings, SpectraReader, accumulate_parts, available_threads
from pipeline.accumulate.plan import AccumulationPlan
from pipeline.accumulate.projection import project_parts
from pipeline.accumulate.sharing import read_together
from pipeline.base import (
    Progress,
    SilentProgress,
    Task,
    Workspace,
    available_memory,
    count_workers,
    name_group,
    process_workspace,
    require_client,
    run_tasks,
)
from pipeline.bins import BinGrid, CellGrid, Partition
from pipeline.errors import InputError, ResourceError, require_kind
from pipeline.moments import Basis, Moments, MomentsWriter, SavedMoments, read_basis
from pipeline.noise import Noise
from pipeline.store import AnyStore, first_store, open_stores

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Piece", "Target", "accumulate_moments", "compute_pieces", "list_targets", "plan_pieces", "plan_tasks"]

#: A task takes this many times less than an even share of the remaining pieces. So tasks are long at first, which saves
#: pauses, and single pieces at the end, so that no worker waits longer than one piece takes.
_SHARES_PER_WORKER: Final = 2
#: Seconds after which an NFS client has surely seen what other machines wrote (more than its default acdirmax).
SECONDS_TO_APPEAR = 90.0


def accumulate_moments(
    plan: AccumulationPlan,
    draws: Noise | Sequence[Noise],
    folder: Path | str,
    *,
    bases: Mapping[Noise, str] | None = None,
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
        Noise draws, or one; each gets a folder of its own below ``folder``.
    folder
        Where checkpoints and results live; reachable by all workers under the same path.
    bases
        The digest of the basis of every draw whose moments are factored. The basis lies in the draw's folder already.
    client
        A Dask client; None computes here, one partition after the other, with the same bits.
    draws_per_pass
        How many draws with dense moments share one read of the spectra. More draws need more memory; the bits are the
        same. Factored moments need little memory: those of all draws come from the first read.
    progress
        Told of finished spectra.

    Returns
    -------
    list of MomentsFolder
        One for each draw, in order.

    Raises
    ------
    InputError
        If the folder holds moments of another plan (both keys are named), or the store is damaged; ConfigError if an
        argument is not what is required.
    ResourceError
        If the disk is full, the workers are lost, or what they wrote is not seen here.
    """
    require_client(client)
    require_kind("plan", plan, AccumulationPlan, "what plan_accumulation returns")
    require_kind("folder", folder, (str, os.PathLike), "a path")
    draws = draws if isinstance(draws, Sequence) and not isinstance(draws, str) else [draws]
    for draw in draws:
        require_kind(
            "draws", draw, Noise, "a noise, such as NoiseDraw(1.0, 42, 0) or MarginalNoise(1.0), or a list of them,"
        )
    targets = list_targets(plan, draws, Path(folder), bases)
    for one in targets:
        claim_folder(one.folder, one.plan, one.draw)
    pieces = list(plan_pieces(plan, targets, draws_per_pass))
    compute_pieces(plan, targets, pieces, merge_fold, progress or SilentProgress(), client)
    _merge_all(targets)
    n_folds, n_cells = len(plan.folds), plan.cells.n_cells
    return [MomentsFolder(one.folder, one.draw, n_folds, n_cells, one.plan.fold_keys, plan.grids) for one in targets]


def list_targets(
    plan: AccumulationPlan, draws: Sequence[Noise], folder: Path, bases: Mapping[Noise, str] | None
) -> list[Target]:
    """Return a target for every draw; see :func:`accumulate_moments`."""
    return [Target(draw, folder / draw.name, replace(plan, basis=(bases or {}).get(draw, ""))) for draw in draws]


def compute_pieces(
    plan: AccumulationPlan,
    targets: Sequence[Target],
    pieces: Sequence[Piece],
    merge: Callable[[AccumulationPlan, Path, int], None],
    report: Progress,
    client: Client | None = None,
) -> None:
    """Compute pieces; after each task, call ``merge`` for the folds that it has worked on."""
    if not pieces:
        return
    tasks = [_name_task(plan, task) for task in plan_tasks(plan, pieces, count_workers(client))]
    # A spectrum counts once for each of its noises, even where these share a read: every one costs its products.
    unit = "spectra × noises" if len({draw for piece in pieces for draw in piece.draws}) > 1 else "spectra"
    with report.step("accumulate", sum(task.size for task in tasks), unit) as advance:
        count = _PieceCount(tasks, report.count_parts)
        for task, _ in run_tasks(client, _accumulate_pieces, tasks, "accumulating", advance, count.observe):
            done = {Path(checkpoint).parent for piece in task.argument.pieces for checkpoint in piece.folders}
            for one in (one for one in targets if one.folder in done):
                for fold in sorted({piece.partition.fold for piece in task.argument.pieces}):
                    merge(one.plan, one.folder, fold)


@dataclass(frozen=True)
class Target:
    """A noise, the folder of its moments, and the plan of its pass, which states the basis of factored moments."""

    draw: Noise
    folder: Path
    plan: AccumulationPlan


def _merge_all(targets: Sequence[Target]) -> None:
    """Merge all folds that are not merged yet. Files of other machines may appear late on a network file system."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        for one in targets:
            os.listdir(one.folder)  # has NFS look again
            merge_finished_folds(one.plan, one.folder)
        unseen = [one for one in targets if len(find_saved_folds(one.plan, one.folder)) < len(one.plan.folds)]
        if not unseen:
            return
        if time.monotonic() >= deadline:
            raise ResourceError(
                f"{unseen[0].folder}: workers have written moments here that this process does not see; put the run "
                "folder on a file system that all nodes share (--out), and run again"
            )
        time.sleep(SECONDS_TO_APPEAR / 90)


@dataclass(frozen=True)
class Piece:
    """A piece of work: a partition, its store, and the draws that it still lacks.

    ``keys``, ``folders`` and ``bases`` are those of the checkpoints of every draw; an empty basis means dense moments.
    """

    partition: Partition
    store: str
    draws: tuple[Noise, ...]
    keys: tuple[str, ...]
    folders: tuple[str, ...]
    bases: tuple[str, ...]

    @property
    def size(self) -> int:
        """Rows, counted for each draw."""
        return self.partition.n_spectra * len(self.draws)


@dataclass(frozen=True)
class _TaskPieces:
    """The arguments of one task: consecutive pieces that a worker computes without a pause. They are small."""

    stores: tuple[str, ...]
    fingerprint: str
    exponent: int
    grids: tuple[tuple[tuple[str, tuple[float, ...]], ...], ...]
    labels: tuple[str, ...]
    y_origin: tuple[float, ...]
    precision: str
    run_rows: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Rows, counted for each draw."""
        return sum(piece.size for piece in self.pieces)


def plan_pieces(plan: AccumulationPlan, targets: Sequence[Target], draws_per_pass: int) -> Iterator[Piece]:
    """Yield the pieces that are not on disk yet, partition by partition. Draws that share a read are one piece."""
    done = {one.folder: find_finished(one.plan, one.folder) for one in targets}
    dense, factored = ([one for one in targets if bool(one.plan.basis) is kind] for kind in (False, True))
    groups = [dense[first : first + draws_per_pass] for first in range(0, len(dense), draws_per_pass)] or [[]]
    groups[0] += factored
    for group in groups:
        for partition in plan.partitions:
            missing = [one for one in group if partition.index not in done[one.folder]]
            if missing:
                yield Piece(
                    partition,
                    plan.store_of(partition.start, partition.stop),
                    draws=tuple(one.draw for one in missing),
                    keys=tuple(one.plan.partition_keys[partition.index] for one in missing),
                    folders=tuple(str(partition_folder(one.folder, partition.index)) for one in missing),
                    bases=tuple(one.plan.basis for one in missing),
                )


def plan_tasks(plan: AccumulationPlan, pieces: Sequence[Piece], n_workers: int) -> Iterator[_TaskPieces]:
    """Yield tasks of consecutive pieces with the same draws: one for a single worker, else shorter and shorter ones.

    The division into tasks changes no bits, and every piece is a checkpoint in any task. A task ends with a fold of
    several pieces. These are then merged and deleted before the next fold needs more disk.
    """
    left = sum(piece.size for piece in pieces)
    is_merged = len(plan.partitions) > len(plan.folds)
    for _, same in groupby(pieces, key=lambda piece: (piece.draws, is_merged and piece.partition.fold)):
        group = list(same)
        while group:
            share = left if n_workers == 1 else left / (_SHARES_PER_WORKER * n_workers)
            ends = list(accumulate(piece.size for piece in group))
            count = max(1, sum(end <= share for end in ends))
            taken, group, left = group[:count], group[count:], left - ends[count - 1]
            yield _TaskPieces(
                stores=plan.stores,
                fingerprint=plan.fingerprint,
                exponent=plan.exponent,
                grids=plan.grids,
                labels=plan.labels,
                y_origin=plan.y_origin,
                precision=plan.precision,
                run_rows=plan.run_rows,
                pieces=tuple(taken),
            )


def _name_task(plan: AccumulationPlan, task: _TaskPieces) -> Task[_TaskPieces]:
    first, last = task.pieces[0].partition, task.pieces[-1].partition
    folds = f"fold {first.fold}" if first.fold == last.fold else f"folds {first.fold} to {last.fold}"
    key = (name_group(folds, "accumulate"), plan.key, os.path.dirname(task.pieces[0].folders[0]), first.index)
    return Task(key, task, task.size)


class _PieceCount:
    """Counts the finished pieces of all tasks from the rows that each task reports.

    A task takes its pieces in order. A piece counts as finished when rows of the next one are reported, or when the
    task is done.
    """

    def __init__(self, tasks: Sequence[Task[_TaskPieces]], tell: Callable[[int, int], None]) -> None:
        self._ends = {
            task.key: list(accumulate(piece.partition.n_spectra * len(piece.draws) for piece in task.argument.pieces))
            for task in tasks
        }
        self._done = dict.fromkeys(self._ends, 0)
        self._total = sum(map(len, self._ends.values()))
        self._tell = tell
        tell(0, self._total)

    def observe(self, key: tuple[Any, ...], units: int) -> None:
        """Take note of a task's finished units."""
        ends = self._ends[key]
        done = len(ends) if units >= ends[-1] else bisect_left(ends, units)
        if done > self._done[key]:
            self._done[key] = done
            self._tell(sum(self._done.values()), self._total)


def _accumulate_pieces(task: _TaskPieces, report: Callable[[int], None]) -> None:
    """Compute and write the moments of a task's pieces for its draws. The body of a Dask task."""
    # A worker that replaces a lost one continues after the last piece on disk.
    pieces = [
        piece
        for piece in task.pieces
        if not all(SavedMoments.holds(Path(own), key) for own, key in zip(piece.folders, piece.keys, strict=True))
    ]
    if not pieces:
        return
    draws, done = pieces[0].draws, task.size - sum(piece.size for piece in pieces)
    store = open_stores_once(task.stores, task.fingerprint, task.exponent)
    grid = CellGrid(tuple(BinGrid(dict(edges)) for edges in task.grids))
    settings = LoopSettings(task.precision, task.run_rows, available_threads())

    def advance(count: int) -> None:
        nonlocal done
        done += count * len(draws)
        report(done)

    def parts() -> Iterator[CellRows]:
        return (read_partition(task, store, grid, piece.partition) for piece in pieces)

    with process_workspace() as workspace, _Checkpoints(pieces, grid.n_cells, task.exponent) as checkpoints:
        dense, factored = (
            [k for k, basis in enumerate(pieces[0].bases) if bool(basis) is kind] for kind in (False, True)
        )

        def keep(chosen: Sequence[int]) -> Callable[[int, int, int, Moments], None]:
            return lambda number, k, cell, moments: checkpoints.write(number, chosen[k], cell, moments)

        def sum_products(reader: SpectraReader, workspace: Workspace, advance: Callable[[int], None]) -> None:
            own = [draws[k] for k in dense]
            accumulate_parts(reader, parts(), grid.n_cells, own, settings, keep(dense), advance, workspace)

        def project(reader: SpectraReader, workspace: Workspace, advance: Callable[[int], None] | None) -> None:
            bases, own = [_read_planned_basis(pieces[0], k) for k in factored], [draws[k] for k in factored]
            project_parts(
                reader, parts(), grid.n_cells, len(task.labels), own, bases, settings, keep(factored), advance,
                workspace, task.exponent,
            )  # fmt: skip

        if not factored:
            sum_products(store, workspace, advance)
        elif not dense:
            project(store, workspace, advance)
        else:
            read_together(
                store,
                lambda reader: sum_products(reader, workspace, advance),
                lambda reader: project(reader, Workspace(), None),
            )


def _read_planned_basis(piece: Piece, draw: int) -> Basis:
    basis = read_basis(Path(piece.folders[draw]).parent)
    if basis.digest != piece.bases[draw]:
        raise InputError(f"{piece.folders[draw]}: the basis beside it changed since the plan was made; run again")
    return basis


def read_partition(task: _TaskPieces, store: AnyStore, grid: CellGrid, part: Partition) -> CellRows:
    """Read cells and labels of these rows only, so that a worker's memory does not grow with all spectra."""
    columns = store.read_columns(sorted({*grid.columns, *task.labels}), part.start, part.stop)
    return CellRows(
        start=part.start,
        cells=grid.cells(columns),
        n_cells=grid.n_cells,
        y=np.column_stack([columns[label] for label in task.labels]).astype(np.float64),
        labels=task.labels,
        x_origin=first_store(store).mean_flux,
        y_origin=np.asarray(task.y_origin),
    )


class _Checkpoints:
    """The folders of a task's pieces. Each appears when its last cell is written. A context manager."""

    def __init__(self, pieces: Sequence[Piece], n_cells: int, exponent: int) -> None:
        self._pieces, self._n_cells, self._exponent = pieces, n_cells, exponent
        self._writers: dict[tuple[int, int], MomentsWriter] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.discard()

    def write(self, number: int, draw: int, cell: int, moments: Moments) -> None:
        """Write the moments of one cell; piece and draw are given by their index. Several threads may write."""
        with self._lock:
            if (number, draw) not in self._writers:
                piece = self._pieces[number]
                facts = {
                    "key": piece.keys[draw],
                    "store": piece.store,
                    "flux_exponent": self._exponent,
                    "draw": vars(piece.draws[draw]),
                    "rows": [piece.partition.start, piece.partition.stop],
                }
                self._writers[number, draw] = MomentsWriter(Path(piece.folders[draw]), self._n_cells, facts)
        self._writers[number, draw].write(cell, moments)


@lru_cache(maxsize=2)
def open_stores_once(paths: tuple[str, ...], fingerprint: str, exponent: int = 0) -> AnyStore:
    """Open the stores of a plan, once for each process; refuse those that have changed since."""
    store = open_stores(paths).scaled(exponent)
    if store.fingerprint != fingerprint:
        raise InputError(f"store {', '.join(paths)} changed since the plan was made; run again")
    # A store that is larger than memory is never found in the page cache by a next pass.
    store.direct_reads = store.pixel_bytes > available_memory() // 2
    return store
