"""A pass that several processes share without talking to each other, such as the jobs of a plain job array.

Each process computes the partitions of its own share and leaves them as checkpoints, which do not depend on who wrote
them. The run that merges them finds them as it finds those of an interrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from pipeline.accumulate.accumulate import Piece, compute_pieces, list_targets, plan_pieces
from pipeline.accumulate.checkpoints import claim_folder, find_finished, merge_fold
from pipeline.accumulate.plan import AccumulationPlan
from pipeline.base import Progress
from pipeline.noise import Noise

__all__ = ["Share", "SharedPass"]


@dataclass(frozen=True)
class Share:
    """One of several shares of a pass.

    Attributes
    ----------
    part
        Which one, from 1.
    parts
        How many there are.
    """

    part: int
    parts: int

    def partitions(self, plan: AccumulationPlan) -> frozenset[int]:
        """Return the partitions of this share: neighbours, and about as many spectra as in every other share.

        A partition belongs to the share that its middle spectrum falls in. So this depends on the plan alone.
        """
        sizes = [partition.n_spectra for partition in plan.partitions]
        ends, total = accumulate(sizes), max(1, sum(sizes))
        return frozenset(
            partition.index
            for partition, size, end in zip(plan.partitions, sizes, ends, strict=True)
            if (2 * end - size) * self.parts // (2 * total) == self.part - 1
        )


class SharedPass:
    """One process' share of a pass.

    Parameters
    ----------
    plan, draws, folder, bases, draws_per_pass
        See :func:`pipeline.accumulate.accumulate_moments`. They must be the same in all processes, but for
        ``draws_per_pass``.
    share
        Which part this process computes.
    """

    def __init__(
        self,
        plan: AccumulationPlan,
        draws: Sequence[Noise],
        folder: Path,
        share: Share,
        *,
        bases: Mapping[Noise, str],
        draws_per_pass: int = 1,
    ) -> None:
        self._plan, self._share, self._draws_per_pass = plan, share, draws_per_pass
        self._targets = list_targets(plan, draws, folder, bases)
        self._pieces: list[Piece] = []

    def claim(self, *, alone: bool) -> tuple[int, int]:
        """Take the folders, and find out what is left to do. The caller holds the run folder.

        Parameters
        ----------
        alone
            Whether no other process computes a share at the moment. Then what killed processes left is deleted.

        Returns
        -------
        tuple of int
            The partitions of this share, and how many of them some noise still lacks.

        Raises
        ------
        InputError
            If the folder holds moments of another plan.
        """
        for one in self._targets:
            claim_folder(one.folder, one.plan, one.draw, alone=alone)
        own = self._share.partitions(self._plan)
        pieces = plan_pieces(self._plan, self._targets, self._draws_per_pass)
        self._pieces = [piece for piece in pieces if piece.partition.index in own]
        return len(own), len({piece.partition.index for piece in self._pieces})

    def accumulate(self, hold: Callable[[], AbstractContextManager[object]], progress: Progress) -> None:
        """Compute the pieces that :meth:`claim` has found.

        Parameters
        ----------
        hold
            Holds the run folder while folds are merged whose last partition was one of this share.
        progress
            Told of finished spectra.

        Raises
        ------
        InputError
            If a store is damaged or has changed.
        ResourceError
            If the disk is full.
        """

        def merge_whole(plan: AccumulationPlan, folder: Path, fold: int) -> None:
            with hold():
                # Not only present: what is damaged may still wait for the share that it belongs to.
                if {part.index for part in plan.fold_partitions(fold)} <= find_finished(plan, folder):
                    merge_fold(plan, folder, fold)

        compute_pieces(self._plan, self._targets, self._pieces, merge_whole, progress)
