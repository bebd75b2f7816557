"""Some shards of a set of spectra. Others keep their rows, by which noise is drawn, but are counted nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.errors import InputError, did_you_mean
from pipeline.folds import shard_ranges
from pipeline.store import SpectraStore
from pipeline.store_set import AnyStore, JoinedStores

__all__ = [
    "SelectedStores",
    "count_selected",
    "find_left_out",
    "first_store",
    "list_parts",
    "match_shards",
    "select_shards",
]


class SelectedStores(JoinedStores):
    """A set of stores without some of its shards. Use :func:`select_shards`.

    Absolute rows, and what is read by row, are those of the whole set; :meth:`iter_columns` skips what is left out.

    Attributes
    ----------
    left_out
        Numbers of the shards that are left out, in order.
    """

    def __init__(self, whole: AnyStore, left_out: Sequence[int]) -> None:
        super().__init__(whole.stores if isinstance(whole, JoinedStores) else (whole,))
        self._whole, self.left_out = whole, tuple(sorted(left_out))
        self.fingerprint = whole.fingerprint

    def __reduce__(self) -> tuple[Any, ...]:
        return SelectedStores, (self._whole, self.left_out)

    @property
    def name(self) -> str:
        """How messages call it."""
        n_out = len(self.left_out)
        return f"{self._whole.name} without {n_out} shard{'s' if n_out > 1 else ''}"

    def iter_columns(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (first absolute row, columns) for one block of selected rows after the other.

        Raises
        ------
        InputError
            See :meth:`JoinedStores.read_columns`.
        """
        ranges = shard_ranges(self.shard_lengths)
        kept = [span for k, span in enumerate(ranges) if k not in self.left_out]
        for start, columns in super().iter_columns(names):
            stop = start + len(next(iter(columns.values()))) if columns else start
            for first, end in kept:
                low, high = max(start, first), min(stop, end)
                if low < high:
                    yield low, {name: values[low - start : high - start] for name, values in columns.items()}


def select_shards(store: AnyStore, excluded: Sequence[str]) -> AnyStore:
    """Leave shards out of a store, or of several as one.

    Parameters
    ----------
    store
        All shards.
    excluded
        Names of those that are left out, see :func:`match_shards`; none gives the store itself.

    Raises
    ------
    InputError
        If a name belongs to none of the shards or to several, or if all are left out.
    """
    left_out = match_shards(excluded, store.shard_names)
    return SelectedStores(store, left_out) if left_out else store


def match_shards(excluded: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the shards that names mean: ``train_2/dataset.h5``, or ``train_2`` for short.

    Raises
    ------
    InputError
        If a name belongs to none of the shards, whose names are listed, or to several; or if no shard is left.
    """
    numbers = set()
    for name in excluded:
        found = [k for k, full in enumerate(names) if name in (full, full.rpartition("/")[0])]
        if len(found) != 1:
            what = f"{len(found)} shards are called so" if found else f"there are {', '.join(names)}"
            raise InputError(
                f"data.exclude: the name of one training shard is required, found {name!r}, but {what}"
                f"{'' if found else did_you_mean(name, names)}"
            )
        numbers.add(found[0])
    if numbers and len(numbers) == len(names):
        raise InputError(
            f"data.exclude leaves out all {len(names)} training shards, at least one is required; take a name out of "
            "that list"
        )
    return tuple(sorted(numbers))


def find_left_out(store: AnyStore) -> tuple[int, ...]:
    """Return the numbers of the shards that a selection leaves out."""
    return store.left_out if isinstance(store, SelectedStores) else ()


def count_selected(store: AnyStore) -> int:
    """Return the spectra that a selection keeps."""
    left_out = find_left_out(store)
    return sum(length for k, length in enumerate(store.shard_lengths) if k not in left_out)


def first_store(store: AnyStore) -> SpectraStore:
    """Return the store that holds the first rows: origins are its means, which stay when other stores come or go."""
    return store.stores[0] if isinstance(store, JoinedStores) else store


def list_parts(store: AnyStore) -> tuple[tuple[str, int, int], ...]:
    """Return every store's fingerprint, first absolute row, and one past its last."""
    stores = store.stores if isinstance(store, JoinedStores) else (store,)
    ranges = shard_ranges([one.n_spectra for one in stores])
    return tuple((one.fingerprint, *rows) for one, rows in zip(stores, ranges, strict=True))
