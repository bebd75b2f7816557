"""What a pass over a store computes and how it is cut; and the files that its finished parts leave.

A finished partition is one file, a finished fold one file; each is whole or absent and names the plan it belongs to.
Whatever was killed, running again skips what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline import schema
from pipeline.bins import BinGrid
from pipeline.config import ComputeConfig, content_hash
from pipeline.errors import InputError
from pipeline.folds import plan_folds
from pipeline.moments import Moments
from pipeline.moments_file import (
    TEMPORARY_SUFFIX,
    merge_moments_files,
    read_cell,
    read_moments_header,
    replacing,
    write_moments,
)
from pipeline.noise import NOISE_ALGORITHM, NoiseDraw
from pipeline.partitions import Partition, plan_partitions
from pipeline.store import SpectraStore

__all__ = [
    "AccumulationPlan",
    "MomentsFolder",
    "claim_folder",
    "find_finished",
    "is_finished",
    "merge_finished_folds",
    "merge_fold",
    "partition_file",
    "plan_accumulation",
]

#: Raised when the same inputs would give other moments.
ALGORITHM_VERSION = 1
KEY_FILE = "key.json"


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
    precision, run_rows
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
        """Yield the moments of each cell over the first fold, the first two, … all; one list, updated in place."""
        sums = [self.read(0, cell) for cell in range(self.n_cells)]
        yield sums
        for fold in range(1, self.n_folds):
            # Cell by cell, so that one sum more than there are cells is held, not twice as many.
            for cell in range(self.n_cells):
                sums[cell] = sums[cell] + self.read(fold, cell)
            yield sums

    def total(self) -> list[Moments]:
        """Return the moments of each cell over all folds, added in fold order."""
        files = [_fold_file(self.folder, fold) for fold in range(self.n_folds)]
        return merge_moments_files(files, self.n_cells)


def partition_file(folder: Path, index: int) -> Path:
    """Return the checkpoint of a partition."""
    return folder / f"partition-{index:06d}.npz"


def _fold_file(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold:03d}.npz"


def claim_folder(folder: Path, plan: AccumulationPlan, draw: NoiseDraw) -> None:
    """Take a folder for a plan, or refuse it if it holds another plan's moments."""
    for orphan in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        orphan.unlink(missing_ok=True)  # of a run that was killed while it wrote
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
        for file in (_fold_file(folder, part.fold), partition_file(folder, part.index)):
            if file.exists() and _belongs(file, plan):
                finished.add(part.index)
    return finished


def is_finished(plan: AccumulationPlan, folder: Path) -> bool:
    """Whether a draw's moments are all on disk."""
    return len(find_finished(plan, folder)) == len(plan.partitions)


def _belongs(file: Path, plan: AccumulationPlan) -> bool:
    """Whether a checkpoint is whole and of this plan; anything else is computed again and replaced."""
    try:
        return bool(read_moments_header(file).get("key") == plan.key)
    except InputError:
        return False


def merge_finished_folds(plan: AccumulationPlan, folder: Path) -> None:
    """Merge every fold whose partitions are all there."""
    for fold in range(len(plan.folds)):
        merge_fold(plan, folder, fold)


def merge_fold(plan: AccumulationPlan, folder: Path, fold: int) -> None:
    """Merge a fold's partitions into its file once all are there, then delete them. Safe to repeat."""
    target = _fold_file(folder, fold)
    files = [partition_file(folder, part.index) for part in plan.fold_partitions(fold)]
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
