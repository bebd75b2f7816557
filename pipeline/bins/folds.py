"""Folds and partitions: fixed, contiguous ranges of rows that nest in shards."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

__all__ = [
    "Partition",
    "choose_prefixes",
    "count_in_folds",
    "find_gaps",
    "keep_rows",
    "plan_folds",
    "plan_partitions",
    "shard_ranges",
    "spread_rows",
    "tighten_folds",
]


def plan_folds(
    shard_lengths: Sequence[int], n_folds: int | Literal["shards"], left_out: Collection[int] = ()
) -> tuple[tuple[int, int], ...]:
    """Cut the rows of a store into contiguous folds that nest in its shards.

    With at least as many shards as folds, a fold is a group of whole shards. Otherwise every shard is cut into parts,
    and longer shards into more parts. In both cases fold boundaries do not depend on chunks or workers, and no fold
    mixes parts of several shards. With ``"shards"`` every shard is a fold. Only then do the other folds stay the same
    when a shard is added or left out.

    Parameters
    ----------
    shard_lengths
        Spectra in each shard, in the store's order.
    n_folds
        Number of folds, at least 1, or ``"shards"``.
    left_out
        Numbers of shards that belong to no fold. Their rows still count.

    Returns
    -------
    tuple of (start, stop)
        Row ranges in increasing order. They cover every row once, except the rows of shards that are left out. Such
        rows can lie inside a fold only if the fold is a group of shards.

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


def _group_shards(ends: np.ndarray, n_folds: int) -> tuple[tuple[int, int], ...]:
    """Group consecutive shards into folds of nearly equal size; return (first, last + 1) of each."""
    boundaries = [0]
    for fold in range(1, n_folds):
        # Take at least one shard, and leave at least one for every later fold.
        candidates = np.arange(boundaries[-1], len(ends) - (n_folds - fold))
        wanted = ends[-1] * fold / n_folds
        boundaries.append(int(candidates[np.argmin(np.abs(ends[candidates] - wanted))]) + 1)
    return tuple(itertools.pairwise([*boundaries, len(ends)]))


def _allot_parts(lengths: np.ndarray, n_folds: int) -> np.ndarray:
    """Give every shard one part, and each further part to the shard whose parts are longest."""
    parts = np.ones(len(lengths), dtype=np.int64)
    for _ in range(n_folds - len(lengths)):
        parts[np.argmax(lengths / parts)] += 1
    return parts


def choose_prefixes(lengths: Sequence[int], sizes: Iterable[int] | None = None) -> dict[int, int]:
    """Choose how many folds, counted from the first, come nearest to each training size of a learning curve.

    Parameters
    ----------
    lengths
        Spectra of every fold.
    sizes
        The training sizes; by default one after every fold.

    Returns
    -------
    dict
        The number of spectra for each chosen number of folds, in increasing order. All folds are always included.
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
        Blocks of rows: the first row, and the bin of each row from there on (negative outside all bins). Together they
        cover every row once, except the rows of shards that are left out.
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
    """Cut every fold into equal partitions of at most ``rows`` spectra. No partition extends across a hole.

    The plan depends only on the store and the configuration, never on the cluster. So results are merged in the same
    order on any cluster.

    Parameters
    ----------
    folds
        Row ranges, in increasing order.
    rows
        Largest number of spectra in a partition.
    holes
        Row ranges that are left out, in increasing order. No fold begins or ends inside a hole.
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


def spread_rows(spans: Sequence[tuple[int, int]], wanted: int, run_rows: int) -> list[tuple[int, int]]:
    """Choose runs of consecutive rows that are evenly spread over ranges of rows.

    Parameters
    ----------
    spans
        Ranges (first, end) that do not overlap, in order.
    wanted
        How many rows to choose, at most. If there are fewer, all are chosen.
    run_rows
        Rows in a run. Runs at the end of a range may be shorter.
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


#: A part of the spectra is taken in about so many runs of rows, each of at least so many rows.
_MOST_RUNS, _FEWEST_ROWS = 64, 64


def keep_rows(
    shard_lengths: Sequence[int], left_out: Collection[int] = (), wanted: int | None = None
) -> tuple[tuple[int, int], ...]:
    """Return the ranges of rows that an experiment uses, in increasing order.

    Parameters
    ----------
    shard_lengths
        Spectra in each shard.
    left_out
        Numbers of shards that are left out.
    wanted
        How many spectra to use, at most, in runs that are spread evenly over the other shards; all by default.
    """
    spans = [span for k, span in enumerate(shard_ranges(shard_lengths)) if k not in left_out and span[0] < span[1]]
    if wanted is None or wanted >= sum(stop - start for start, stop in spans):
        return tuple(spans)
    n_runs = min(wanted, max(len(spans), min(_MOST_RUNS, wanted // _FEWEST_ROWS)))
    return tuple(spread_rows(spans, wanted, wanted // n_runs))


def find_gaps(kept: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the rows between ranges of rows that are used."""
    return [(a, b) for (_, a), (b, _) in itertools.pairwise(kept) if a < b]


def tighten_folds(folds: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return folds that begin and end with rows that are used.

    Raises
    ------
    ConfigError
        If a fold has none.
    """
    tight = []
    for fold, (start, stop) in enumerate(folds):
        own = [(max(start, a), min(stop, b)) for a, b in kept if a < stop and start < b]
        if not own:
            raise ConfigError(
                f"fold {fold} has none of the training spectra that data.spectra takes; raise data.spectra, or use "
                "fewer compute.folds"
            )
        tight.append((own[0][0], own[-1][1]))
    return tuple(tight)
