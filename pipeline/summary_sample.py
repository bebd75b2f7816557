"""Where the spectra are: counts on a fine grid over the columns of the bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.bins import BinGrid
from pipeline.spectra_sets import SpectraSets
from pipeline.store_set import AnyStore

__all__ = ["tabulate_sample"]

_SAMPLE_CELLS = 30


def tabulate_sample(sets: SpectraSets, grid: BinGrid) -> pd.DataFrame:
    """Count train and test spectra on a fine grid over (at most two of) the bin columns."""
    columns = grid.columns[:2]
    low = np.array([min(grid.edges[column]) for column in columns], np.float64)
    high = np.array([max(grid.edges[column]) for column in columns], np.float64)
    for store in (sets.train, sets.test):
        for values in _iter_values(store, columns):
            low, high = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))
    edges = [np.linspace(*span, _SAMPLE_CELLS + 1) for span in zip(low, high, strict=True)]
    counts = {}
    for role, store in (("n_train", sets.train), ("n_test", sets.test)):
        count = np.zeros(_SAMPLE_CELLS ** len(columns), np.int64)
        for values in _iter_values(store, columns):
            count += np.histogramdd(values[np.isfinite(values).all(axis=1)], bins=edges)[0].astype(np.int64).ravel()
        counts[role] = count
    lower = np.meshgrid(*(edge[:-1] for edge in edges), indexing="ij")
    upper = np.meshgrid(*(edge[1:] for edge in edges), indexing="ij")
    table: dict[str, Any] = {}
    for column, low, high in zip(columns, lower, upper, strict=True):
        table |= {f"{column}_low": low.ravel(), f"{column}_high": high.ravel()}
    return pd.DataFrame(table | counts)


def _iter_values(store: AnyStore, columns: Sequence[str]) -> Iterator[NDArray[np.float64]]:
    """Yield some columns in blocks of rows, each (n, columns)."""
    for _, block in store.iter_columns(columns):
        yield np.column_stack([block[column] for column in columns]).astype(np.float64)
