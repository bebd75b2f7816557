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


def plan_partitions(folds: Sequence[tuple[int, int]], rows: int) -> tuple[Partition, ...]:
    """Cut every fold into equal partitions of at most ``rows`` spectra.

    The plan depends on the store and the configuration only, never on the cluster, so that results merge
    in one order whatever computed them.
    """
    partitions: list[Partition] = []
    for fold, (start, stop) in enumerate(folds):
        length = stop - start
        count = max(1, -(-length // rows))
        cuts = [start + length * k // count for k in range(count + 1)]
        for a, b in itertools.pairwise(cuts):
            partitions.append(Partition(len(partitions), fold, a, b))
    return tuple(partitions)
