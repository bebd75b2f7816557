"""Folds: deterministic, contiguous parts of the rows that nest in shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

__all__ = ["count_in_folds", "plan_folds"]


def plan_folds(shard_lengths: Sequence[int], n_folds: int) -> tuple[tuple[int, int], ...]:
    """Cut the rows of a store into contiguous folds that nest in its shards.

    With at least as many shards as folds, a fold is a group of whole shards; otherwise every shard is cut
    into parts, more for longer shards. Either way a fold boundary never depends on chunks or workers, and
    a shard is never shared by folds that hold parts of other shards, so that adding or removing a shard
    leaves the folds of the others alone.

    Parameters
    ----------
    shard_lengths
        Spectra in each shard, in the store's order.
    n_folds
        Folds wanted, at least 1.

    Returns
    -------
    tuple of (start, stop)
        Row ranges in increasing order; they cover every row once.

    Raises
    ------
    ConfigError
        If there are fewer spectra than folds.
    """
    lengths = np.asarray([length for length in shard_lengths if length > 0], dtype=np.int64)
    total = int(lengths.sum())
    if n_folds < 1 or total < n_folds:
        raise ConfigError(f"at least 1 fold and one spectrum in each are required; {total} spectra, {n_folds} folds")
    ends = np.cumsum(lengths)
    if len(lengths) >= n_folds:
        return _group_shards(ends, n_folds)
    parts = _allot_parts(lengths, n_folds)
    ranges: list[tuple[int, int]] = []
    for start, length, count in zip(ends - lengths, lengths, parts, strict=True):
        cuts = start + (length * np.arange(count + 1)) // count
        ranges += [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    return tuple(ranges)


def count_in_folds(
    folds: Sequence[tuple[int, int]], blocks: Iterable[tuple[int, NDArray[np.int64]]], n_bins: int
) -> NDArray[np.int64]:
    """Count the spectra of every bin in every fold.

    Parameters
    ----------
    folds
        Row ranges from :func:`plan_folds`.
    blocks
        First row, and the bin of each row from there on, negative in none; blocks that cover every row once.
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
    """Group consecutive shards so that each fold ends at the shard boundary nearest its fair share."""
    boundaries = [0]
    last = 0
    for fold in range(1, n_folds):
        # Leave at least one shard for every fold to come, and take at least one.
        candidates = np.arange(last, len(ends) - (n_folds - fold))
        wanted = ends[-1] * fold / n_folds
        chosen = int(candidates[np.argmin(np.abs(ends[candidates] - wanted))])
        boundaries.append(int(ends[chosen]))
        last = chosen + 1
    boundaries.append(int(ends[-1]))
    return tuple(itertools.pairwise(boundaries))


def _allot_parts(lengths: np.ndarray, n_folds: int) -> np.ndarray:
    """Give every shard one part, and each further one to the shard whose parts are longest."""
    parts = np.ones(len(lengths), dtype=np.int64)
    for _ in range(n_folds - len(lengths)):
        parts[np.argmax(lengths / parts)] += 1
    return parts
