"""Rows of a store as the hot loop takes them, for the tests of drawn and of marginal noise."""

from __future__ import annotations

import numpy as np

from pipeline.accumulate import LoopSettings
from pipeline.accumulate.hotloop import CellRows
from pipeline.bins import BinGrid
from pipeline.config import REFERENCE_EDGES
from pipeline.schema import LABELS
from pipeline.store import SpectraStore

SETTINGS = LoopSettings(run_rows=128, threads=2)


def rows_of(store: SpectraStore, start: int = 0, stop: int | None = None) -> CellRows:
    window = slice(start, stop if stop is not None else store.n_spectra)
    grid = BinGrid(REFERENCE_EDGES)
    columns = {name: values[window] for name, values in store.columns.items()}
    return CellRows(
        start=start,
        cells=grid.cells(columns),
        n_cells=grid.n_cells,
        y=np.column_stack([columns[label] for label in LABELS]),
        labels=LABELS,
        x_origin=store.mean_flux.astype(np.float32).astype(np.float64),
        y_origin=np.array([3.0, 5000.0, -0.5]),
    )
