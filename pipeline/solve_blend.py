"""Fitting blends, one task for each noise: from the rows that a pass has left to a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.accumulate_features import FeatureRows
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.files_json import read_json
from pipeline.gates import gate_from_dict
from pipeline.progress import Progress, SilentProgress
from pipeline.routing_blend import HeldOutRows, fit_blend
from pipeline.schema import LABELS
from pipeline.solve_gate import read_held_out
from pipeline.solve_held_out import read_fold_models
from pipeline.tasks import Task, run_tasks
from pipeline.tasks_names import name_group

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["BlendJob", "fit_blend_jobs"]

#: Spectra that a blend is fitted to, at most: some hundred numbers do not need more, and time grows with them.
_MOST_ROWS = 20_000


@dataclass(frozen=True)
class BlendJob:
    """The blend of one noise.

    Attributes
    ----------
    rows
        A file of :mod:`pipeline.accumulate_features`, with predictions by the fold models.
    fold_models
        The file of these.
    gate
        The file of the gate.
    held_out
        The file of that gate's probabilities by folds that did not see the spectra, where it was fitted to these rows;
        None for a gate of a few numbers from all moments, which is asked itself.
    grid
        Edges by column of the bins, as items.
    """

    rows: str
    fold_models: str
    gate: str
    held_out: str | None
    grid: tuple[tuple[str, tuple[float, ...]], ...]


def fit_blend_jobs(
    jobs: Sequence[BlendJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Fit the blend of every job; yield which job, and its blend as plain values, as they are done."""
    tasks = [Task((name_group("blend", "fit"), job.rows, k), job, 1) for k, job in enumerate(jobs)]
    with (progress or SilentProgress()).step("blend", len(tasks), "blends") as advance:
        for task, plain in run_tasks(client, _fit_job, tasks, "fitting blends", advance):
            yield task.key[-1], plain


def _fit_job(job: BlendJob, report: Callable[[int], None]) -> dict[str, Any]:
    """Fit one blend. The body of a Dask task."""
    rows, models = FeatureRows.read(Path(job.rows)), read_fold_models(Path(job.fold_models))
    of_target, of_labels = models.split_columns(rows.predicted)
    if job.held_out is not None:
        probabilities = read_held_out(Path(job.held_out))
    else:
        gate = read_json(Path(job.gate), partial(gate_from_dict, grid=BinGrid(dict(job.grid))))
        probabilities = gate.probabilities(of_labels)
    taken = slice(None, None, -(-len(rows.rows) // _MOST_ROWS))
    blend = fit_blend(
        HeldOutRows(
            y=np.ascontiguousarray(rows.y[taken, LABELS.index(models.target)]),
            predicted=of_target[taken],
            probabilities=probabilities[taken],
            of_labels=of_labels[taken],
            folds=rows.folds[taken],
            covered=rows.bins[taken] != OUTSIDE,
        )
    )
    report(1)
    return blend.to_dict()
