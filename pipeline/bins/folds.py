"""Folds: deterministic, contiguous parts of the rows that nest in shards."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

__all__ = ["Partition", "choose_prefixes", "count_in_folds", "plan_folds", "plan_partitions", "shard_ranges"]


def plan_folds(
    shard_lengths: Sequence[int], n_folds: int | Literal["shards"], left_out: Collection[int] = ()
) -> tuple[tuple[int, int], ...]:
    """Cut the rows of a store into contiguous folds that nest in its shards.

    With at least as many shards as folds, a fold is a group of whole shards; otherwise every shard is cut
    into parts, more for longer shards. Either way a fold boundary never depends on chunks or workers, and
    a shard is never shared by folds that hold parts of other shards. Only with ``"shards"``, a fold for every
    shard, are the folds of the others left alone when a shard is added or left out.

    Parameters
    ----------
    shard_lengths
        Spectra in each shard, in the store's order.
    n_folds
        Folds wanted, at least 1, or ``"shards"``.
    left_out
        Numbers of shards that belong to no fold; their rows are counted all the same.

    Returns
    -------
    tuple of (start, stop)
        Row ranges in increasing order; they cover every row once, but those of shards left out. Within a fold these
        can lie only where it is a group of shards.

    Raises
    ------
    ConfigError
        If there are fewer spectra than folds.
    """
    stops = np.cumsum(np.asarray(shard_lengths, dtype=np.int64))
    kept = [k for k, length in enumerate(shard_lengths) if length > 0 and k not in left_out]
    lengths, starts = np.asarray(shard_lengths, dtype=np.int64)[kept], (stops - shard_lengths)[kept]
    total, wanted = int(lengths.sum()), max(len(kept), 1) if n_folds == "shards" else n_folds
    if wanted < 1 or total < wanted:
        raise ConfigError(f"at least 1 fold and one spectrum in each are required; {total} spectra, {wanted} folds")
    if len(lengths) >= wanted:
        groups = _group_shards(np.cumsum(lengths), wanted)
        return tuple((int(starts[a]), int(starts[b - 1] + lengths[b - 1])) for a, b in groups)
    parts = _allot_parts(lengths, wanted)
    ranges: list[tuple[int, int]] = []
    for start, length, count in zip(starts, lengths, parts, strict=True):
        cuts = start + (length * np.arange(count + 1)) // count
        ranges += [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    return tuple(ranges)


def choose_prefixes(lengths: Sequence[int], sizes: Iterable[int] | None = None) -> dict[int, int]:
    """Choose the numbers of first folds whose spectra come nearest to the training sizes of a learning curve.

    Parameters
    ----------
    lengths
        Spectra of every fold.
    sizes
        Training sizes wanted; after every fold by default.

    Returns
    -------
    dict
        The spectra of each number of folds chosen, in increasing order; that of all folds is always there.
    """
    totals = np.cumsum(np.asarray(lengths, dtype=np.int64))
    wanted = totals if sizes is None else np.array([*sizes, totals[-1]])
    nearest = np.abs(totals[:, None] - wanted).argmin(axis=0)
    return {int(k) + 1: int(totals[k]) for k in np.unique(nearest)}


def shard_ranges(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return the absolute rows of every shard, from their numbers of spectra."""
    return list(itertools.pairwise(itertools.accumulate(lengths, initial=0)))


def count_in_folds(
    folds: Sequence[tuple[int, int]], blocks: Iterable[tuple[int, NDArray[np.int64]]], n_bins: int
) -> NDArray[np.int64]:
    """Count the spectra of every bin in every fold.

    Parameters
    ----------
    folds
        Row ranges from :func:`plan_folds`.
    blocks
        First row, and the bin of each row from there on, negative in none; blocks that cover every row once, but those
        of shards left out.
    n_bins
        Number of bins K.

    Returns
    -------
    NDArray[np.int64]
        Shape (folds, K).
    """
    stops = np.array([stop for _, stop in folds])
    counts = np.zeros((len(folds), n_bins), np.int64)
    for start, bins in blocks:
        inside = bins >= 0
        fold = np.searchsorted(stops, start + np.flatnonzero(inside), side="right")
        np.add.at(counts, (fold, bins[inside]), 1)
    return counts


def _group_shards(ends: np.ndarray, n_folds: int) -> tuple[tuple[int, int], ...]:
    """Group consecutive shards, each fold ending at the shard nearest its fair share; return (first, last + 1)."""
    boundaries = [0]
    for fold in range(1, n_folds):
        # Leave at least one shard for every fold to come, and take at least one.
        candidates = np.arange(boundaries[-1], len(ends) - (n_folds - fold))
        wanted = ends[-1] * fold / n_folds
        boundaries.append(int(candidates[np.argmin(np.abs(ends[candidates] - wanted))]) + 1)
    return tuple(itertools.pairwise([*boundaries, len(ends)]))


def _allot_parts(lengths: np.ndarray, n_folds: int) -> np.ndarray:
    """Give every shard one part, and each further one to the shard whose parts are longest."""
    parts = np.ones(len(lengths), dtype=np.int64)
    for _ in range(n_folds - len(lengths)):
        parts[np.argmax(lengths / parts)] += 1
    return parts


# --- Partitions: the contiguous row ranges that are the unit of work, retry, checkpoint and progress.


@dataclass(frozen=True)
class Partition:
    """Rows ``start:stop`` of a store, within one fold."""

    index: int
    fold: int
    start: int
    stop: int

    @property
    def n_spectra(self) -> int:
        """Number of spectra."""
        return self.stop - self.start


def plan_partitions(
    folds: Sequence[tuple[int, int]], rows: int, holes: Sequence[tuple[int, int]] = ()
) -> tuple[Partition, ...]:
    """Cut every fold into equal partitions of at most ``rows`` spectra; what lies between two holes by itself.

    The plan depends on the store and the configuration only, never on the cluster, so that results merge
    in one order whatever computed them.

    Parameters
    ----------
    folds
        Row ranges, in increasing order.
    rows
        Spectra in a partition, at most.
    holes
        Row ranges that are left out, in increasing order; a fold begins or ends in none.
    """
    partitions: list[Partition] = []
    for fold, (start, stop) in enumerate(folds):
        inner = [edge for hole in holes if start < hole[0] and hole[1] < stop for edge in hole]
        edges = [start, *inner, stop]
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            length = end - first
            count = max(1, -(-length // rows)) if length else 0  # holes may follow each other
            for a, b in itertools.pairwise(first + length * k // max(count, 1) for k in range(count + 1)):
                partitions.append(Partition(len(partitions), fold, a, b))
    return tuple(partitions)
