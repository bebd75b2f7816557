"""What a pass over a store computes and how it is cut, with the keys that name the bits of each part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline import schema
from pipeline.base import PathLike
from pipeline.bins import BinGrid, CellGrid, Partition, find_gaps, plan_folds, plan_partitions, tighten_folds
from pipeline.config import ComputeConfig, content_hash, settle
from pipeline.errors import ConfigError, require_kind
from pipeline.noise import NOISE_ALGORITHM
from pipeline.schema import ACCUMULATION_ALGORITHM, PROJECTION_ALGORITHM
from pipeline.store import (
    AnyStore,
    JoinedStores,
    SpectraStore,
    digest_array,
    find_kept,
    find_left_out,
    first_store,
    list_parts,
    open_stores,
)

__all__ = ["AccumulationPlan", "plan_accumulation"]


@dataclass(frozen=True)
class AccumulationPlan:
    """What is accumulated and how it is cut; equal plans give equal bits.

    Attributes
    ----------
    stores
        Paths of the stores, in the order of their rows.
    fingerprint
        The fingerprint of all that they hold.
    parts
        Fingerprint, first row and one past the last of every store.
    grids
        Edges by column of every grid that cells must tell apart, as items so that the plan can be hashed.
    labels
        Labels accumulated, all in one pass.
    x_origin
        Digest of the pixels' origins: the first store's mean clean spectrum.
    y_origin
        Origins of the labels: their means over the first store. Like the pixels', they stay when other stores come.
    precision, run_rows
        See :class:`pipeline.accumulate.hotloop.LoopSettings`.
    cuts
        What the folds and partitions were cut by: ``compute.folds`` and ``compute.partition_rows``.
    exponent
        The pass sees all flux and errors times 2^exponent, and so do the origins; see
        :func:`pipeline.store.joined.flux_exponent`.
    basis
        Digest of the basis that moments are factored by; empty for dense moments.
    folds
        Row ranges of the folds; what shards that are left out have within them belongs to none.
    partitions
        Row ranges of the tasks.
    """

    stores: tuple[str, ...]
    fingerprint: str
    parts: tuple[tuple[str, int, int], ...]
    grids: tuple[tuple[tuple[str, tuple[float, ...]], ...], ...]
    labels: tuple[str, ...]
    x_origin: str
    y_origin: tuple[float, ...]
    precision: str
    run_rows: int
    cuts: tuple[int | str, int]
    exponent: int
    folds: tuple[tuple[int, int], ...]
    partitions: tuple[Partition, ...]
    basis: str = ""

    def __repr__(self) -> str:  # all row ranges would fill pages
        stores = f"{len(self.stores)} store{'s' * (len(self.stores) != 1)}"
        return (
            f"AccumulationPlan({self.n_spectra:,} spectra of {stores}; {self.cells.n_cells} cells, {len(self.folds)} "
            f"folds, {len(self.partitions)} partitions; {', '.join(self.labels)}; "
            f"{'factored' if self.basis else 'dense'} moments)"
        )

    @cached_property
    def cells(self) -> CellGrid:
        """The cells."""
        return CellGrid(tuple(BinGrid(dict(edges)) for edges in self.grids))

    @property
    def n_spectra(self) -> int:
        """Spectra in all partitions."""
        return sum(part.n_spectra for part in self.partitions)

    @property
    def fold_lengths(self) -> list[int]:
        """Spectra in every fold."""
        return [sum(part.n_spectra for part in self.fold_partitions(fold)) for fold in range(len(self.folds))]

    @property
    def settings(self) -> dict[str, Any]:
        """What all folds of a moments folder have in common, as JSON would give it back."""
        return {
            "algorithm": [ACCUMULATION_ALGORITHM, NOISE_ALGORITHM],
            "grids": [[[column, list(edges)] for column, edges in grid] for grid in self.grids],
            "labels": list(self.labels),
            "x_origin": self.x_origin,
            "y_origin": list(self.y_origin),
            "precision": self.precision,
            "run_rows": self.run_rows,
            "folds": self.cuts[0],
            "partition_rows": self.cuts[1],
            **({"basis": self.basis, "projection": PROJECTION_ALGORITHM} if self.basis else {}),
        }

    @cached_property
    def settings_key(self) -> str:
        """Identifies the settings: a folder of moments has those of one key."""
        return content_hash(self.settings)

    @cached_property
    def fold_keys(self) -> tuple[str, ...]:
        """Identify everything that decides the bits of each fold, besides the noise draw."""
        shared = {name: value for name, value in self.settings.items() if name not in ("folds", "partition_rows")}
        rows: list[list[tuple[int, int]]] = [[] for _ in self.folds]
        for part in self.partitions:
            rows[part.fold].append((part.start, part.stop))
        return tuple(
            content_hash([shared, cuts, self._holders(*fold)]) for fold, cuts in zip(self.folds, rows, strict=True)
        )

    @cached_property
    def partition_keys(self) -> tuple[str, ...]:
        """Identify the bits of each partition; a fold's only one is the fold."""
        alone = [len(self.fold_partitions(fold)) == 1 for fold in range(len(self.folds))]
        return tuple(
            self.fold_keys[part.fold]
            if alone[part.fold]
            else content_hash([self.fold_keys[part.fold], part.start, part.stop])
            for part in self.partitions
        )

    @cached_property
    def key(self) -> str:
        """Identifies everything that decides the bits of all folds, besides the noise draw."""
        return content_hash(list(self.fold_keys))

    def store_of(self, start: int, stop: int) -> str:
        """Return the fingerprint of the store that holds these rows, or a digest of those that do."""
        holders = [fingerprint for fingerprint, *_ in self._holders(start, stop)]
        return holders[0] if len(holders) == 1 else content_hash(holders)

    def _holders(self, start: int, stop: int) -> list[tuple[str, int, int]]:
        return [part for part in self.parts if part[1] < stop and start < part[2]]

    def fold_partitions(self, fold: int) -> list[Partition]:
        """Return the partitions of a fold, in order."""
        return [part for part in self.partitions if part.fold == fold]


def plan_accumulation(
    store: AnyStore | PathLike | Sequence[PathLike],
    cells: CellGrid | BinGrid | Mapping[str, Sequence[float]],
    compute: ComputeConfig | Mapping[str, Any] | None = None,
    precision: str = "float32",
) -> AccumulationPlan:
    """Cut a store, or several as one, into folds and partitions; a function of the store and the settings alone.

    Parameters
    ----------
    store
        The store, or its path, or the paths of several.
    cells
        The bins, as edges by column; moments are kept for every bin, and for all spectra outside.
    compute
        The settings ``compute`` of a configuration; its defaults if left out.
    precision
        ``float32`` or ``float64``, of the products.

    Raises
    ------
    InputError
        If a store cannot be opened; ConfigError if an argument or a setting is not what is required.

    Examples
    --------
    >>> plan = pipeline.plan_accumulation("train.zarr", {"T_eff": [3750, 4500, 6000]}, {"folds": 1})
    >>> [moments] = pipeline.accumulate_moments(plan, pipeline.NoiseDraw(1.0, 42, 0), "moments")
    """
    store = open_stores(store) if isinstance(store, str | os.PathLike | Sequence) else store
    require_kind("store", store, (SpectraStore, JoinedStores), "a store, its path, or a list of paths of stores")
    if precision not in ("float32", "float64"):
        raise ConfigError(f"precision: 'float32' or 'float64' is required, found {precision!r}")
    cells = cells if isinstance(cells, CellGrid) else CellGrid((BinGrid.of(cells),))
    compute = settle(ComputeConfig, compute, "compute")
    left_out, origin = find_left_out(store), first_store(store)
    kept = find_kept(store)
    folds = tighten_folds(plan_folds(store.shard_lengths, compute.folds, left_out), kept)
    return AccumulationPlan(
        stores=tuple(map(str, store.paths)),
        fingerprint=store.fingerprint,
        parts=list_parts(store),
        grids=tuple(
            tuple((column, tuple(map(float, edges))) for column, edges in grid.edges.items()) for grid in cells.grids
        ),
        labels=schema.LABELS,
        x_origin=digest_array(origin.mean_flux),
        y_origin=tuple(float(np.mean(origin.columns[label])) for label in schema.LABELS),
        precision=precision,
        run_rows=compute.run_rows,
        cuts=(compute.folds, compute.partition_rows),
        exponent=store.exponent,
        folds=folds,
        partitions=plan_partitions(folds, compute.partition_rows, find_gaps(kept)),
    )
