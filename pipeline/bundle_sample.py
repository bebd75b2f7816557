"""What the training spectra of a model are like: a sample of them under the model, and the ranges of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.bundle_model import MixtureModel
from pipeline.folds import shard_ranges
from pipeline.noise import NoiseDraw
from pipeline.predictions import read_noisy_rows
from pipeline.progress import Progress
from pipeline.store_selection import find_left_out
from pipeline.store_set import AnyStore

__all__ = ["SAMPLE_SPECTRA", "TrainingSample", "find_ranges", "measure_sample", "spread_rows"]

#: Training spectra that say what is far.
SAMPLE_SPECTRA = 20_000
#: The sample's rows come in runs of so many, evenly spread: a chunk is decoded whole.
_RUN_ROWS = 256


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """What the model says of a sample of its training spectra: distances and probabilities of the outside, (N,)."""

    distances: np.ndarray
    outside: np.ndarray | None


def measure_sample(
    model: MixtureModel, store: AnyStore, noise: NoiseDraw, precision: str, progress: Progress
) -> TrainingSample:
    """Hold an evenly spread sample of the training spectra, with their training noise, against the model."""
    left_out = find_left_out(store)
    spans = [span for k, span in enumerate(shard_ranges(store.shard_lengths)) if k not in left_out]
    runs = spread_rows(spans, SAMPLE_SPECTRA, _RUN_ROWS)
    distances, outside = [], []
    with progress.step("sample", sum(b - a for a, b in runs)) as advance, threadpool_limits(1, user_api="blas"):
        for start, stop in runs:
            noisy = read_noisy_rows(store, start, stop, noise, precision)
            found = model.predict_block(noisy, zeros_are_bad=False)
            distances.append(found.distances)
            if found.probabilities is not None:
                outside.append(found.probabilities[:, -1])
            advance(stop - start)
    return TrainingSample(np.concatenate(distances), np.concatenate(outside) if outside else None)


def spread_rows(spans: Sequence[tuple[int, int]], wanted: int, run_rows: int) -> list[tuple[int, int]]:
    """Return runs of consecutive rows, evenly spread over ranges of rows, of at most ``wanted`` rows together.

    Parameters
    ----------
    spans
        Ranges (first, end) that do not overlap, in order.
    wanted
        Rows; of fewer, all are returned.
    run_rows
        Rows in a run; those at the end of a range may be shorter.
    """
    starts = np.cumsum([0, *(end - first for first, end in spans)])
    total = int(starts[-1])
    n_runs = max(1, min(wanted, total) // run_rows) if total > wanted else -(-total // run_rows)
    runs = []
    for k in range(n_runs):
        place = k * total // n_runs if total > wanted else k * run_rows
        rows = min(run_rows, wanted) if total > wanted else min(run_rows, total - place)
        span = int(np.searchsorted(starts, place, side="right")) - 1
        while rows > 0 and span < len(spans):
            first = spans[span][0] + place - int(starts[span])
            end = min(first + rows, spans[span][1])
            runs.append((first, end))
            rows, place, span = rows - (end - first), place + end - first, span + 1
    return runs


def find_ranges(store: AnyStore, labels: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of every label among the training spectra."""
    low, high = np.full(len(labels), np.inf), np.full(len(labels), -np.inf)
    for _, block in store.iter_columns(labels):
        for q, label in enumerate(labels):
            if len(block[label]):
                low[q], high[q] = min(low[q], block[label].min()), max(high[q], block[label].max())
    return {label: (float(low[q]), float(high[q])) for q, label in enumerate(labels)}
