"""Jobs on saved moments as Dask tasks: one for each, named for the dashboard, told as models that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.checkpoints import MomentsFolder
from pipeline.progress import Progress
from pipeline.tasks import Report, Task, run_tasks
from pipeline.tasks_names import name_group

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["run_jobs"]


class MomentsJob(Protocol):
    """Work on the moments of one noise."""

    @property
    def moments(self) -> MomentsFolder:
        """Of the noise."""

    @property
    def size(self) -> int:
        """Models to solve."""


Job = TypeVar("Job", bound=MomentsJob)
Answer = TypeVar("Answer")


def run_jobs(
    client: Client | None,
    function: Callable[[Job, Report], Answer],
    jobs: Sequence[Job],
    subjects: Sequence[str],
    words: tuple[str, str, str],
    progress: Progress,
) -> Iterator[tuple[int, Answer]]:
    """Run a function on every job; yield which one, and what it gave, as they are done.

    Parameters
    ----------
    client
        A Dask client; None runs the jobs here, in order, with the same bits.
    function
        Takes a job, and a callable to report models done so far.
    jobs
        The work.
    subjects
        What each is about, for the names of tasks.
    words
        The step in those names, the step's title, and what is being done, for messages.
    progress
        Told of finished models.
    """
    step, title, doing = words
    tasks = [
        Task((name_group(subject, step), str(job.moments.folder), k), job, job.size)
        for k, (job, subject) in enumerate(zip(jobs, subjects, strict=True))
    ]
    with progress.step(title, sum(task.size for task in tasks), "models") as advance:
        for task, answer in run_tasks(client, function, tasks, doing, advance):
            yield task.key[-1], answer
