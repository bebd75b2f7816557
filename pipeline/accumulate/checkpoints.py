"""Checkpoints: the folders of finished partitions and folds, and how they become the moments of a noise draw.

A finished partition is one folder, and so is a finished fold. A folder is either complete or absent. Each has a key, a
hash of everything that decides its bits. After any interruption, a new run skips the folders that exist. When spectra
are added or left out, folds whose key is still in use are kept, even if their number changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.accumulate.plan import AccumulationPlan
from pipeline.base import aligned_buffer, is_sealed, parse_object, read_file, remove_leftovers, replacing, seal
from pipeline.config import content_hash
from pipeline.errors import InputError
from pipeline.moments import KEY_FILE, Moments, MomentsSum, SavedMoments, TileLayout, open_moments, write_moments
from pipeline.noise import Noise

__all__ = [
    "MomentsFolder",
    "claim_folder",
    "delete_unwanted",
    "find_finished",
    "find_saved_folds",
    "merge_finished_folds",
    "merge_fold",
    "partition_folder",
]

_PIECE: Final = re.compile(r"(fold|partition)-\d+")
#: Saved moments that the current plan does not use, named by their key. They are kept until the new results are
#: complete, then deleted.
_KEPT: Final = "kept-"


@dataclass(frozen=True)
class MomentsFolder:
    """The finished moments of one noise draw: a folder for each fold, which holds the moments of each cell.

    ``fold_keys`` say what each fold's moments are of, and ``grids`` are those of the plan
    (:attr:`pipeline.accumulate.AccumulationPlan.grids`); moments that were not made by a plan have neither.
    """

    folder: Path
    draw: Noise
    n_folds: int
    n_cells: int
    fold_keys: tuple[str, ...] = ()
    grids: tuple[tuple[tuple[str, tuple[float, ...]], ...], ...] = ()

    def __repr__(self) -> str:
        return f"MomentsFolder({str(self.folder)!r}, {self.draw.name}; {self.n_folds} folds, {self.n_cells} cells)"

    @property
    def key(self) -> str:
        """Identifies everything that decides the bits of all folds, besides the noise."""
        return content_hash(list(self.fold_keys))

    @classmethod
    def of_run(cls, run: Path, draw: Noise, key: str) -> MomentsFolder:
        """Find the moments of one noise draw of a finished run.

        Parameters
        ----------
        run, draw
            The run folder, and which noise is meant.
        key
            The plan's key that the run's results state; empty where an earlier version wrote them.

        Raises
        ------
        InputError
            If they are missing, unfinished or damaged, or are not those that the results were made from.
        """
        found = None
        if (run / "moments" / draw.name).is_dir():
            found = next(one for one in open_moments(run / "moments" / draw.name).draws)
        if found is None:
            why = "none are there"
        elif not found.complete:
            why = "; ".join(found.problems) or str(found.missing)
        else:
            folder = cls(found.folder, draw, len(found.folds), len(found.counts), found.fold_keys)
            if not key or folder.key == key:
                return folder
            why = "the results were not made from them"
        raise InputError(
            f"run folder {run}: the moments of {draw.name} cannot be used ({why}); run again with the same --out"
        )

    def open(self, fold: int) -> SavedMoments:
        """Open the moments of a fold; the outside is the last cell.

        Raises
        ------
        InputError
            If they are damaged, or those of another fold or noise.
        """
        saved = SavedMoments.open(_fold_folder(self.folder, fold))
        if self.fold_keys and not _belongs(saved, self.fold_keys[fold], self.draw):
            raise InputError(
                f"moments {saved.folder}: those of fold {fold} with {self.draw.name} are required, found those of "
                "another fold or noise; run again with the same --out, which computes them again"
            )
        return saved

    def read(self, fold: int, cell: int) -> Moments:
        """Read the moments of one fold and cell."""
        return self.open(fold).read(cell)

    def total(self, cell: int) -> Moments:
        """Return the moments of one cell over all folds, added in fold order, in float64."""
        return Moments.merge(self.read(fold, cell) for fold in range(self.n_folds))

    def totals(self) -> Iterator[Moments]:
        """Yield :meth:`total` of every cell. Each fold is opened once."""
        folds = [self.open(fold) for fold in range(self.n_folds)]
        return (Moments.merge(saved.read(cell) for saved in folds) for cell in range(self.n_cells))


def partition_folder(folder: Path, index: int) -> Path:
    """Return the checkpoint of a partition."""
    return folder / f"partition-{index:06d}"


def _fold_folder(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold:03d}"


def claim_folder(folder: Path, plan: AccumulationPlan, draw: Noise, *, alone: bool = True) -> None:
    """Take a folder for a plan, or refuse it if it holds moments of other settings.

    Moments that the plan uses get their number in the plan. Others are named by their key and kept for the moment; see
    :func:`delete_unwanted`. Half-written moments are deleted if this process is ``alone``. Otherwise another process
    may be writing them.
    """
    if alone:
        remove_leftovers(folder)
    key_file = folder / KEY_FILE
    facts = {
        "key": plan.settings_key,
        "settings": plan.settings,
        "store": plan.fingerprint,
        "folds": [{"key": key, "rows": list(rows)} for key, rows in zip(plan.fold_keys, plan.folds, strict=True)],
        "draw": vars(draw),
    }
    found = _read_key(key_file) if key_file.exists() else {}
    if found and (found.get("key"), found.get("draw")) != (facts["key"], facts["draw"]):
        earlier = found.get("settings")
        known = earlier if isinstance(earlier, dict) else {}
        differing = ", ".join(name for name, value in plan.settings.items() if known.get(name) != value) or "draw"
        raise InputError(
            f"{folder} holds moments of another computation (key {found.get('key')}, wanted key {facts['key']}): "
            f"{differing} differ; choose another --out, or move that folder away"
        )
    if found != seal(facts):
        with replacing(key_file) as temporary:
            temporary.write_text(json.dumps(seal(facts)), encoding="utf-8")
    wanted = {_fold_folder(folder, fold): key for fold, key in enumerate(plan.fold_keys)}
    wanted |= {partition_folder(folder, index): key for index, key in enumerate(plan.partition_keys)}
    _arrange(folder, wanted, draw)


def _read_key(file: Path) -> dict[str, Any]:
    try:
        found = parse_object(read_file(file))
        is_sealed(found)  # earlier versions wrote no checksum
    except ValueError as error:
        raise InputError(
            f"{file} is not what this program writes ({error}); move the folder {file.parent} away and run again"
        ) from None
    return found


def _arrange(folder: Path, wanted: Mapping[Path, str], draw: Noise) -> None:
    """Rename moments as the plan numbers them. This may be repeated after an interruption at any point."""
    for piece in sorted(folder.iterdir()):
        is_piece, is_kept = _PIECE.fullmatch(piece.name), piece.name.startswith(_KEPT)
        if not (is_piece or is_kept) or (key := _key_of(piece)) is None:
            continue  # what is damaged is computed again and replaced
        if not _belongs(SavedMoments.open(piece), key, draw):
            shutil.rmtree(piece)  # of another noise, put here by whoever moved folders
            continue
        if is_kept or wanted.get(piece) == key:
            continue
        aside = folder / f"{_KEPT}{key}"
        if aside.exists():
            shutil.rmtree(piece)
        else:
            os.replace(piece, aside)
    for piece, key in wanted.items():
        aside = folder / f"{_KEPT}{key}"
        if aside.exists() and not piece.exists():
            os.replace(aside, piece)


def delete_unwanted(folder: Path) -> int:
    """Delete the moments of a draw that its last plan did not use; return the number of deleted folds."""
    unwanted = list(folder.glob(f"{_KEPT}*"))
    for aside in unwanted:
        shutil.rmtree(aside, ignore_errors=True)
    return len(unwanted)


def _belongs(saved: SavedMoments, key: str, draw: Noise) -> bool:
    """Whether moments are those of this fold or partition, with this noise."""
    return (saved.header.get("key"), saved.header.get("draw")) == (key, vars(draw))


def _key_of(folder: Path) -> str | None:
    try:
        return str(SavedMoments.open(folder).header.get("key"))
    except InputError:
        return None


def find_saved_folds(plan: AccumulationPlan, folder: Path) -> set[int]:
    """Return the folds whose moments are on disk, under any number."""
    names = [name for name in folder.glob("*") if _PIECE.fullmatch(name.name) or name.name.startswith(_KEPT)]
    saved = {_key_of(name) for name in names}
    return {fold for fold, key in enumerate(plan.fold_keys) if key in saved}


def find_finished(plan: AccumulationPlan, folder: Path) -> set[int]:
    """Return the partitions that need no work: their own moments or those of their fold are on disk."""
    finished = set()
    for part in plan.partitions:
        # All other partitions are computed again and replaced.
        if SavedMoments.holds(_fold_folder(folder, part.fold), plan.fold_keys[part.fold]) or SavedMoments.holds(
            partition_folder(folder, part.index), plan.partition_keys[part.index]
        ):
            finished.add(part.index)
    return finished


def merge_finished_folds(plan: AccumulationPlan, folder: Path) -> None:
    """Merge every fold whose partitions are all there."""
    for fold in range(len(plan.folds)):
        merge_fold(plan, folder, fold)


def merge_fold(plan: AccumulationPlan, folder: Path, fold: int) -> None:
    """Merge a fold's partitions if all exist, then delete them. May be repeated; holds one cell in memory."""
    target, key, partitions = _fold_folder(folder, fold), plan.fold_keys[fold], plan.fold_partitions(fold)
    checkpoints = [partition_folder(folder, part.index) for part in partitions]
    if not SavedMoments.holds(target, key):
        if not all(checkpoint.exists() for checkpoint in checkpoints):
            return
        if len(checkpoints) == 1:
            shutil.rmtree(target, ignore_errors=True)  # of another version, or damaged
            os.replace(checkpoints[0], target)
            return
        parts = [SavedMoments.open(checkpoint) for checkpoint in checkpoints]
        start, stop = plan.folds[fold]
        header = parts[0].header | {"key": key, "store": plan.store_of(start, stop), "rows": [start, stop]}
        if holes := [[a.stop, b.start] for a, b in pairwise(partitions) if a.stop < b.start]:
            header["left_out"] = holes
        write_moments(target, _merge_cells(parts), parts[0].n_cells, header)
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _merge_cells(parts: list[SavedMoments]) -> Iterator[Moments]:
    """Yield the sum over all parts, cell by cell. Each sum overwrites the one before."""
    layout = TileLayout(parts[0].tiled_pixels)
    memory, content = np.empty(layout.shape), aligned_buffer(layout.nbytes(np.float64))
    for cell in range(parts[0].n_cells):
        total = MomentsSum(memory)
        for part in parts:
            total.add(part.read_divided(cell, content))
        yield total.moments
