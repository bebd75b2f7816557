"""What a pass over a store computes and how it is cut; and the files that its finished parts leave.

A finished partition is one folder, a finished fold one folder; each is whole or absent and names the plan it belongs
to. Whatever was killed, running again skips what is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline import schema
from pipeline.binnings import CellGrid
from pipeline.bins import BinGrid
from pipeline.config import ComputeConfig, content_hash
from pipeline.errors import InputError
from pipeline.files import remove_leftovers, replacing
from pipeline.files_direct import aligned_buffer
from pipeline.folds import plan_folds
from pipeline.moments import Moments, MomentsSum
from pipeline.moments_files import SavedMoments, write_moments
from pipeline.noise import NOISE_ALGORITHM, Noise
from pipeline.partitions import Partition, plan_partitions
from pipeline.store_set import AnyStore
from pipeline.tiles import TileLayout

__all__ = [
    "AccumulationPlan",
    "MomentsFolder",
    "claim_folder",
    "find_finished",
    "is_finished",
    "merge_finished_folds",
    "merge_fold",
    "partition_folder",
    "plan_accumulation",
]

#: Raised when the same inputs would give other moments.
ALGORITHM_VERSION = 3
KEY_FILE = "key.json"


@dataclass(frozen=True)
class AccumulationPlan:
    """What is accumulated and how it is cut; equal plans give equal bits.

    Attributes
    ----------
    stores
        Paths of the stores, in the order of their rows.
    fingerprint
        The fingerprint of all that they hold: other contents are another plan.
    grids
        Edges by column of every grid that cells must tell apart, as items so that the plan can be hashed.
    labels
        Labels accumulated, all in one pass.
    y_origin
        Origins of the labels: their means over all rows.
    precision, run_rows
        See :class:`pipeline.hotloop.LoopSettings`.
    folds
        Row ranges of the folds.
    partitions
        Row ranges of the tasks.
    """

    stores: tuple[str, ...]
    fingerprint: str
    grids: tuple[tuple[tuple[str, tuple[float, ...]], ...], ...]
    labels: tuple[str, ...]
    y_origin: tuple[float, ...]
    precision: str
    run_rows: int
    folds: tuple[tuple[int, int], ...]
    partitions: tuple[Partition, ...]

    @cached_property
    def cells(self) -> CellGrid:
        """The cells."""
        return CellGrid(tuple(BinGrid(dict(edges)) for edges in self.grids))

    @property
    def n_spectra(self) -> int:
        """Spectra in all partitions."""
        return self.folds[-1][1]

    @cached_property
    def key(self) -> str:
        """Identifies everything that decides the bits, besides the noise draw."""
        facts = {name: value for name, value in vars(self).items() if name not in ("stores", "partitions", "cells")}
        cuts = [(part.start, part.stop) for part in self.partitions]
        return content_hash([ALGORITHM_VERSION, NOISE_ALGORITHM, facts, cuts])

    def fold_partitions(self, fold: int) -> list[Partition]:
        """Return the partitions of a fold, in order."""
        return [part for part in self.partitions if part.fold == fold]


def plan_accumulation(
    store: AnyStore, cells: CellGrid, compute: ComputeConfig, precision: str = "float32"
) -> AccumulationPlan:
    """Cut a store, or several as one, into folds and partitions; a function of the store and the settings alone."""
    folds = plan_folds(store.shard_lengths, compute.folds)
    return AccumulationPlan(
        stores=tuple(map(str, store.paths)),
        fingerprint=store.fingerprint,
        grids=tuple(
            tuple((column, tuple(map(float, edges))) for column, edges in grid.edges.items()) for grid in cells.grids
        ),
        labels=schema.LABELS,
        y_origin=tuple(float(np.mean(store.columns[label])) for label in schema.LABELS),
        precision=precision,
        run_rows=compute.run_rows,
        folds=folds,
        partitions=plan_partitions(folds, compute.partition_rows),
    )


@dataclass(frozen=True)
class MomentsFolder:
    """The finished moments of one noise draw: a folder for each fold, in it a value for each cell."""

    folder: Path
    draw: Noise
    n_folds: int
    n_cells: int

    def open(self, fold: int) -> SavedMoments:
        """Open the moments of a fold; the outside is the last cell."""
        return SavedMoments.open(_fold_folder(self.folder, fold))

    def read(self, fold: int, cell: int) -> Moments:
        """Read the moments of one fold and cell."""
        return self.open(fold).read(cell)

    def total(self, cell: int) -> Moments:
        """Return the moments of one cell over all folds, added in fold order, in float64."""
        return Moments.merge(self.read(fold, cell) for fold in range(self.n_folds))


def partition_folder(folder: Path, index: int) -> Path:
    """Return the checkpoint of a partition."""
    return folder / f"partition-{index:06d}"


def _fold_folder(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold:03d}"


def claim_folder(folder: Path, plan: AccumulationPlan, draw: Noise) -> None:
    """Take a folder for a plan, or refuse it if it holds another plan's moments."""
    remove_leftovers(folder)
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


def find_finished(plan: AccumulationPlan, folder: Path) -> set[int]:
    """Return the partitions whose moments, or whose fold's, are on disk."""
    finished = set()
    for part in plan.partitions:
        for checkpoint in (_fold_folder(folder, part.fold), partition_folder(folder, part.index)):
            if SavedMoments.holds(checkpoint, plan.key):  # anything else is computed again and replaced
                finished.add(part.index)
    return finished


def is_finished(plan: AccumulationPlan, folder: Path) -> bool:
    """Whether a draw's moments are all on disk."""
    return len(find_finished(plan, folder)) == len(plan.partitions)


def merge_finished_folds(plan: AccumulationPlan, folder: Path) -> None:
    """Merge every fold whose partitions are all there."""
    for fold in range(len(plan.folds)):
        merge_fold(plan, folder, fold)


def merge_fold(plan: AccumulationPlan, folder: Path, fold: int) -> None:
    """Merge a fold's partitions once all are there, then delete them. Safe to repeat; holds one cell at a time."""
    target = _fold_folder(folder, fold)
    checkpoints = [partition_folder(folder, part.index) for part in plan.fold_partitions(fold)]
    if not SavedMoments.holds(target, plan.key):
        if not all(checkpoint.exists() for checkpoint in checkpoints):
            return
        if len(checkpoints) == 1:
            shutil.rmtree(target, ignore_errors=True)  # of another version, or damaged
            os.replace(checkpoints[0], target)
            return
        parts = [SavedMoments.open(checkpoint) for checkpoint in checkpoints]
        start, stop = plan.folds[fold]
        write_moments(target, _merge_cells(parts), parts[0].n_cells, parts[0].header | {"rows": [start, stop]})
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _merge_cells(parts: list[SavedMoments]) -> Iterator[Moments]:
    """Yield the sum over all parts, cell by cell; the next one takes the place of the last."""
    layout = TileLayout(parts[0].pixel_sums()[0].x_sum.size)
    memory, content = np.empty(layout.shape), aligned_buffer(layout.nbytes(np.float64))
    for cell in range(parts[0].n_cells):
        total = MomentsSum(memory)
        for part in parts:
            total.add(part.read(cell, content))
        yield total.moments
