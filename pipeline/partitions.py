"""Partitions: the contiguous row ranges that are the unit of work, retry, checkpoint and progress."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Partition", "plan_partitions"]


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
