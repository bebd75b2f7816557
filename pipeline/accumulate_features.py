"""A pass over some training spectra for what gates are fitted to: their features, and predictions by models that did
not see their fold.

Like :mod:`pipeline.accumulate`: one Dask task for a partition gets paths and row ranges, never an array, and leaves its
rows on disk under a key; what is there is skipped on resume. Spectra have exactly the noise that the experts were
trained on. Which rows are read, and in which order they are joined, depends on the plan alone.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.bins import BinGrid
from pipeline.checkpoints_plan import AccumulationPlan
from pipeline.errors import InputError
from pipeline.features_files import read_recipe
from pipeline.features_quality import quality_features
from pipeline.files import replacing
from pipeline.noise import NoiseDraw
from pipeline.partitions import Partition
from pipeline.predictions import read_noisy_rows
from pipeline.progress import Progress, SilentProgress
from pipeline.solve_held_out import read_fold_models
from pipeline.store_set import AnyStore, open_stores
from pipeline.tasks import Task, run_tasks
from pipeline.tasks_names import name_group

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["FeatureJob", "FeatureRows", "accumulate_features", "plan_runs"]

#: Raised when the same inputs would give other rows.
ALGORITHM_VERSION = 1
FloatArray = NDArray[np.float64]
#: Rows that follow each other where only some are read: single ones would touch as many chunks as all.
_RUN_ROWS = 256
_BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """What is known of N training spectra, in the order of their rows.

    Attributes
    ----------
    rows
        Absolute rows, shape (N,).
    folds, bins
        The fold, and the bin or :data:`pipeline.bins.OUTSIDE`, shapes (N,).
    y
        The labels of the plan, shape (N, Q), label units.
    features
        Shape (N, F); (N, 0) without a recipe.
    predicted
        By the models that did not see the spectrum's fold, shape (N, M); (N, 0) without models.
    quality
        Aggregates of the error vector, shape (N, 10) in the order of :data:`pipeline.features_quality.QUALITY_NAMES`;
        (N, 0) where they were not asked for.
    """

    rows: NDArray[np.int64]
    folds: NDArray[np.int64]
    bins: NDArray[np.int64]
    y: FloatArray
    features: FloatArray
    predicted: FloatArray
    quality: FloatArray

    def write(self, path: Path) -> None:
        """Write to one ``.npz`` file, atomically: the same rows give the same bytes."""
        arrays: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        with replacing(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> FeatureRows:
        """Read what :meth:`write` wrote.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                return cls(**{one.name: archive[one.name] for one in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"features {path}: cannot be read ({error}); delete the file and run again") from None

    @classmethod
    def join(cls, parts: Sequence[FeatureRows]) -> FeatureRows:
        """Return the rows of all parts, one part after the other."""
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})


@dataclass(frozen=True)
class FeatureJob:
    """The rows of one noise draw.

    Attributes
    ----------
    draw
        The noise.
    path
        The file that the rows become; parts of it lie in a folder beside it until then.
    key
        Names everything that decides the rows besides plan and draw: parts of another key are deleted.
    spectra
        How many spectra are read, at most; evenly spread over all.
    grid
        Edges by column of the bins, as items.
    recipe
        A file of :func:`pipeline.features_files.write_recipe`; None for no features.
    fold_models
        A file of :func:`pipeline.solve_held_out.write_fold_models`; None for no predictions.
    quality
        Whether aggregates of the error vector are asked for.
    """

    draw: NoiseDraw
    path: str
    key: str
    spectra: int
    grid: tuple[tuple[str, tuple[float, ...]], ...]
    recipe: str | None = None
    fold_models: str | None = None
    quality: bool = False

    @property
    def parts(self) -> Path:
        """The folder of the parts."""
        return Path(self.path).with_suffix(".parts") / self.key


@dataclass(frozen=True)
class _Piece:
    """All that a worker needs for one partition."""

    job: FeatureJob
    stores: tuple[str, ...]
    fingerprint: str
    labels: tuple[str, ...]
    precision: str
    partition: Partition
    runs: tuple[tuple[int, int], ...]
    target: str

    @property
    def size(self) -> int:
        """Rows."""
        return sum(stop - start for start, stop in self.runs)


def accumulate_features(
    plan: AccumulationPlan,
    jobs: Sequence[FeatureJob],
    *,
    client: Client | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the rows of every job, resuming what is there already.

    Parameters
    ----------
    plan
        That the moments come from.
    jobs
        One for each noise draw; their files are replaced.
    client
        A Dask client; None computes here, one partition after the other, with the same bits.
    progress
        Told of finished spectra.

    Raises
    ------
    InputError
        If a store has changed or is damaged, or a file that a job names is.
    ResourceError
        If the disk is full, or the workers are lost.
    """
    pieces = [piece for job in jobs for piece in _plan_pieces(plan, job)]
    missing = [piece for piece in pieces if not Path(piece.target).exists()]
    tasks = [
        Task(
            (name_group(f"fold {piece.partition.fold}", "features"), piece.job.key, piece.target),
            piece,
            piece.size,
        )
        for piece in missing
    ]
    if tasks:
        with (progress or SilentProgress()).step("features", sum(task.size for task in tasks)) as advance:
            for _ in run_tasks(client, _compute_piece, tasks, "computing features", advance):
                pass
    for job in jobs:
        os.listdir(job.parts)  # has NFS look again
        FeatureRows.join([FeatureRows.read(Path(one.target)) for one in pieces if one.job is job]).write(Path(job.path))
        shutil.rmtree(job.parts.parent, ignore_errors=True)


def plan_runs(partitions: Sequence[Partition], spectra: int) -> list[tuple[tuple[int, int], ...]]:
    """Choose the rows to be read: runs of rows, evenly spread over all partitions.

    Parameters
    ----------
    partitions
        Of the pass, in order.
    spectra
        How many rows are wanted; all where there are no more.

    Returns
    -------
    list
        For each partition its runs (start, stop), in order; they share no row.
    """
    total = sum(part.n_spectra for part in partitions)
    wanted, seen, chosen = min(spectra, total), 0, []
    for part in partitions:
        quota = wanted * (seen + part.n_spectra) // total - wanted * seen // total
        seen += part.n_spectra
        count = -(-quota // _RUN_ROWS) if quota < part.n_spectra else 1
        edges = [part.start + part.n_spectra * k // max(count, 1) for k in range(count + 1)]
        lengths = [quota * (k + 1) // max(count, 1) - quota * k // max(count, 1) for k in range(count)]
        chosen.append(
            tuple(
                (a, min(a + length, b)) for a, b, length in zip(edges[:-1], edges[1:], lengths, strict=True) if length
            )
        )
    return chosen


def _plan_pieces(plan: AccumulationPlan, job: FeatureJob) -> list[_Piece]:
    """Return the pieces of a job; delete parts of other keys."""
    job.parts.mkdir(parents=True, exist_ok=True)
    for other in job.parts.parent.iterdir():
        if other != job.parts:
            shutil.rmtree(other, ignore_errors=True)
    return [
        _Piece(
            job=job,
            stores=plan.stores,
            fingerprint=plan.fingerprint,
            labels=plan.labels,
            precision=plan.precision,
            partition=part,
            runs=runs,
            target=str(job.parts / f"partition-{part.index:06d}.npz"),
        )
        for part, runs in zip(plan.partitions, plan_runs(plan.partitions, job.spectra), strict=True)
        if runs
    ]


def _compute_piece(piece: _Piece, report: Callable[[int], None]) -> None:
    """Compute and write the rows of one partition. The body of a Dask task."""
    if Path(piece.target).exists():
        return  # a worker that takes over from a lost one
    store = open_stores(piece.stores)
    if store.fingerprint != piece.fingerprint:
        raise InputError(f"store {', '.join(piece.stores)} changed since the plan was made; run again")
    columns, parts, done = _Columns.read(piece), [], 0
    # One BLAS thread: the bits of a product may depend on their number.
    with threadpool_limits(1, user_api="blas"):
        for first, last in piece.runs:
            for start in range(first, last, _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, last)
                parts.append(_compute_block(piece, store, columns, start, stop))
                done += stop - start
                report(done)
    FeatureRows.join(parts).write(Path(piece.target))


@dataclass(frozen=True, eq=False)
class _Columns:
    """What the blocks of a partition are multiplied by: the recipe's columns, and the models without its fold."""

    recipe: Any
    weights: FloatArray
    intercepts: FloatArray

    @classmethod
    def read(cls, piece: _Piece) -> _Columns:
        recipe = None if piece.job.recipe is None else read_recipe(Path(piece.job.recipe))
        if piece.job.fold_models is None:
            return cls(recipe, np.zeros((0, 0)), np.zeros(0))
        models = read_fold_models(Path(piece.job.fold_models))
        return cls(recipe, models.weights[piece.partition.fold], models.intercepts[piece.partition.fold])


def _compute_block(piece: _Piece, store: AnyStore, columns: _Columns, start: int, stop: int) -> FeatureRows:
    count, grid = stop - start, BinGrid(dict(piece.job.grid))
    noisy = read_noisy_rows(store, start, stop, piece.job.draw, piece.precision).astype(np.float64)
    known = store.read_columns(sorted({*grid.columns, *piece.labels}), start, stop)
    empty = np.zeros((count, 0))
    return FeatureRows(
        rows=np.arange(start, stop),
        folds=np.full(count, piece.partition.fold),
        bins=grid.assign(known),
        y=np.column_stack([known[label] for label in piece.labels]).astype(np.float64),
        features=empty if columns.recipe is None else columns.recipe.compute(noisy),
        predicted=noisy @ columns.weights + columns.intercepts if columns.intercepts.size else empty,
        quality=quality_features(store.read_rows("error", start, stop)) if piece.job.quality else empty,
    )
