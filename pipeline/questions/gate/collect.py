"""A pass over some training spectra for what gates are fitted to: their features, and predictions by models that did
not see their fold.

Like :mod:`pipeline.accumulate.accumulate`: one Dask task for a partition gets paths and row ranges, never an array,
and leaves its rows on disk under a key; what is there is skipped on resume. Spectra have exactly the noise that the
experts were trained on. Which rows are read, and in which order they are joined, depends on the plan alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.accumulate import AccumulationPlan
from pipeline.base import Progress, SilentProgress, Task, name_group, one_blas_thread, open_npz, run_tasks, write_npz
from pipeline.bins import BinGrid, Partition
from pipeline.config import content_hash
from pipeline.errors import ConfigError, InputError
from pipeline.moments import PrincipalComponents
from pipeline.noise import Noise
from pipeline.questions.gate.features import (
    ComponentsJob,
    FeatureRecipe,
    choose_windows,
    find_folder_components,
    quality_features,
    read_recipe,
    write_recipe,
)
from pipeline.questions.question import Facts, Trained
from pipeline.ridge import read_fold_models
from pipeline.scoring import read_noisy_rows
from pipeline.store import AnyStore, open_stores

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "FeatureJob",
    "FeatureRows",
    "accumulate_features",
    "compute_rows",
    "grid_items",
    "plan_runs",
    "recipe_file",
    "rows_file",
    "write_recipes",
]

#: Rows that follow each other where only some are read: single ones would touch as many chunks as all.
_RUN_ROWS = 256
_BLOCK_ROWS = 1024

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """What is known of N training spectra, in the order of their rows.

    Attributes
    ----------
    rows
        Absolute rows, shape (N,).
    folds, bins
        The fold, and the bin or :data:`pipeline.bins.grid.OUTSIDE`, shapes (N,).
    y
        The labels of the plan, shape (N, Q), label units.
    features
        Shape (N, F); (N, 0) without a recipe.
    predicted
        By the models that did not see the spectrum's fold, shape (N, M); (N, 0) without models.
    quality
        Aggregates of the error vector, shape (N, 10) in the order of
        :data:`pipeline.questions.gate.features.QUALITY_NAMES`; (N, 0) where they were not asked for.
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
        write_npz(path, {one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def read(cls, path: Path) -> FeatureRows:
        """Read what :meth:`write` wrote.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """

        def refuse(reason: object) -> InputError:
            return InputError(f"features {path}: cannot be read ({reason}); delete the file and run again")

        with open_npz(path, refuse) as (_, arrays):
            return cls(**{one.name: arrays[one.name] for one in fields(cls)})

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
        A file of :func:`pipeline.questions.gate.features.write_recipe`; None for no features.
    fold_models
        A file of :func:`pipeline.ridge.held_out.write_fold_models`; None for no predictions.
    quality
        Whether aggregates of the error vector are asked for.
    """

    draw: Noise
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
    exponent: int
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
            exponent=plan.exponent,
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
    store = open_stores(piece.stores).scaled(piece.exponent)
    if store.fingerprint != piece.fingerprint:
        raise InputError(f"store {', '.join(piece.stores)} changed since the plan was made; run again")
    columns, parts, done = _Columns.read(piece), [], 0
    # One BLAS thread: the bits of a product may depend on their number.
    with one_blas_thread():
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


# --- What gates are fitted to, in a run: a recipe of features for every noise, and a pass over some training spectra.
#
# ``gates/<noise>_recipe.npz`` says how features come from pixels, ``gates/<noise>_rows.npz`` holds those of the spectra
# that the pass has read, with predictions by models that did not see their fold, where such models are given. Nothing
# here sees the test spectra.


def recipe_file(noise: Noise) -> str:
    """Return the name of a noise's recipe in the run folder."""
    return f"gates/{noise.name}_recipe.npz"


def rows_file(noise: Noise) -> str:
    """Return the name of a noise's rows in the run folder."""
    return f"gates/{noise.name}_rows.npz"


def grid_items(grid: BinGrid) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return the edges of bins by column, as items that a task's argument can hold."""
    return tuple((column, tuple(map(float, edges))) for column, edges in grid.edges.items())


def write_recipes(facts: Facts, trained: Sequence[Trained]) -> None:
    """Write the recipe of every noise that has none of these settings yet.

    Windows that the pixels do not cover are left out, with a warning.

    Raises
    ------
    ConfigError
        If that leaves no feature at all.
    """
    assert facts.settings.gate is not None
    settings = facts.settings.gate.features
    wavelength = np.asarray(facts.train.wavelength, dtype=np.float64)
    windows, others = choose_windows(settings.windows, wavelength)
    span = f"the spectra cover {wavelength[0]:.0f} to {wavelength[-1]:.0f} Å with {wavelength.size:,} pixels"
    if not windows and not settings.components:
        raise ConfigError(
            f"gate.features: none of the windows {', '.join(others)} is covered ({span}) and components is 0; use "
            "components: 10, or windows that hold pixels"
        )
    if others:
        facts.warnings.append(f"the gate has no features of {', '.join(others)}: {span}")
    shared = [schema.RECIPE_ALGORITHM, settings.model_dump(mode="json", exclude={"products"})]
    keys = [content_hash([*shared, one.moments.key, vars(one.noise)]) for one in trained]
    missing = [k for k, one in enumerate(trained) if not facts.products.is_made(recipe_file(one.noise), keys[k])]

    def write(k: int, components: PrincipalComponents | None) -> None:
        name = recipe_file(trained[k].noise)
        write_recipe(facts.folder / name, FeatureRecipe(components, windows, wavelength))
        facts.products.record(name, keys[k])

    n = min(settings.components, wavelength.size)
    if not n:
        for k in missing:
            write(k, None)
    elif missing:
        jobs = [ComponentsJob(trained[k].moments, n) for k in missing]
        for place, components in find_folder_components(jobs, client=facts.client, progress=facts.progress):
            write(missing[place], components)


def compute_rows(
    facts: Facts, noises: Sequence[Noise], *, fold_models: Sequence[str] | None = None, quality: bool = False
) -> None:
    """Write the rows of every noise that has none of these settings yet, in one pass.

    Spectra that models were trained on with marginal noise are drawn with the first seed: a gate routes single spectra.

    Parameters
    ----------
    facts
        Of the run, whose folder :func:`write_recipes` wrote to; a noise without a recipe there gets no features.
    noises
        Of the moments.
    fold_models
        For every noise the name of its models without each fold, a product of the run; None for no predictions.
    quality
        Whether aggregates of the error vector are asked for.
    """
    gate = facts.settings.gate
    assert gate is not None
    items = grid_items(facts.grid)
    jobs, names = [], []
    for k, noise in enumerate(noises):
        recipe = recipe_file(noise) if recipe_file(noise) in facts.products and gate.kind == "logistic" else None
        models = fold_models[k] if fold_models else None
        made_of = [facts.products[name] for name in (recipe, models) if name]
        draw = noise.drawn(facts.settings.seeds[0])
        key = content_hash(
            [
                schema.FEATURE_ROWS_ALGORITHM,
                facts.plan.key,
                items,
                vars(draw),
                gate.spectra,
                made_of,
                bool(models),
                quality,
            ]
        )
        if not facts.products.is_made(rows_file(noise), key):
            of_recipe, of_models = (None if name is None else str(facts.folder / name) for name in (recipe, models))
            path = str(facts.folder / rows_file(noise))
            jobs.append(FeatureJob(draw, path, key, gate.spectra, items, of_recipe, of_models, quality))
            names.append(rows_file(noise))
    accumulate_features(facts.plan, jobs, client=facts.client, progress=facts.progress)
    for name, job in zip(names, jobs, strict=True):
        facts.products.record(name, job.key)
