"""Principal components of noisy training spectra, from saved moments: one task for each noise, where these are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.accumulate import MomentsFolder
from pipeline.base import Progress, SilentProgress
from pipeline.moments import MomentsSum, PrincipalComponents, find_components
from pipeline.ridge import (
    SolveMemory,
    run_jobs,
    solving_threads,
)

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ComponentsJob", "find_folder_components"]


@dataclass(frozen=True)
class ComponentsJob:
    """The first ``n`` components of one noise's spectra, of all folds and cells."""

    moments: MomentsFolder
    n: int

    @property
    def size(self) -> int:
        """Models to solve: it takes about as long as one."""
        return 1


def find_folder_components(
    jobs: Sequence[ComponentsJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, PrincipalComponents]]:
    """Find the components of every job; yield which job, and its components, as they are done."""
    words = ("solve", "components", "finding principal components")
    yield from run_jobs(client, _find, jobs, ["components"] * len(jobs), words, progress or SilentProgress())


def _find(job: ComponentsJob, report: Callable[[int], None]) -> PrincipalComponents:
    """Find the components of one job. The body of a Dask task."""
    folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]

    def find(n: int, memory: SolveMemory) -> PrincipalComponents:
        total = MomentsSum(memory.total)
        for saved in folds:
            for cell in range(saved.n_cells):
                if saved.counts[cell]:
                    total.add(saved.read(cell, memory.content))
        return find_components(total.moments, n, memory.system)

    with solving_threads(folds[0].pixel_sums()[0].x_sum.size, 1) as run:
        found: list[PrincipalComponents] = run(find, [job.n])
    report(1)
    return found[0]
