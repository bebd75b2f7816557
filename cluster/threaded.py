"""A Dask worker that is a thread of this process, and does not hold up its end."""

from __future__ import annotations

from distributed import Worker

__all__ = ["ThreadedWorker"]


class ThreadedWorker(Worker):
    """A worker that never waits for its tasks when it is closed.

    A task that nobody waits for ends at its next report (:func:`pipeline.tasks.run_tasks`). Dask would wait half a
    minute for it, where the user has pressed Ctrl-C.
    """

    async def close(  # type: ignore[override]  # as Dask's own does
        self, timeout: float = 30, executor_wait: bool = False, nanny: bool = True, reason: str = "worker-close"
    ) -> str | None:
        """Close the worker, see :class:`distributed.Worker`."""
        return await super().close(timeout, False, nanny, reason)
