"""Dask, as far as the pipeline knows it: pieces of work out, progress and results back, losses told in plain words.

A piece of work is a function with a small argument: paths and numbers, never arrays. It must leave what it makes on
disk, or return little, and give the same bits wherever and however often it runs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pipeline.errors import ResourceError
from pipeline.memory import peak_memory
from pipeline.workspace import release_workspace

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Task", "count_workers", "run_tasks", "workers_limits", "workers_peak"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")
#: Told how many units of a task are done so far.
Report = Callable[[int], None]
#: A time stamp, and a task's key with its units done so far.
_Event: TypeAlias = tuple[float, tuple[tuple[Any, ...], int]]
_SECONDS_BETWEEN_REPORTS = 0.25
_SECONDS_BETWEEN_CHECKS = 2.0


@dataclass(frozen=True)
class Task(Generic[Argument]):
    """One piece of work.

    Attributes
    ----------
    key
        Its identity; the first part is its readable name on the dashboard.
    argument
        What the function gets.
    size
        Its units of progress.
    """

    key: tuple[Any, ...]
    argument: Argument
    size: int


def run_tasks(
    client: Client | None,
    function: Callable[[Argument, Report], Result],
    tasks: Sequence[Task[Argument]],
    doing: str,
    advance: Callable[[int], None],
) -> Iterator[tuple[Task[Argument], Result]]:
    """Run a function on every task and yield results as they come.

    Parameters
    ----------
    client
        A Dask client; None runs the tasks here, in order.
    function
        Takes a task's argument and a callable to report units done so far.
    tasks
        The work.
    doing
        What is being done, for messages: "accumulating".
    advance
        Called with newly finished units, which add up to the sizes of the tasks; always in the caller's thread.

    Yields
    ------
    Task
        A finished one, in order of arrival.
    Result
        What the function returned for it.

    Raises
    ------
    ResourceError
        If workers die again and again, or the cluster is lost.
    """
    seen = dict.fromkeys((task.key for task in tasks), 0)

    def show(key: tuple[Any, ...], done: int) -> None:
        # A task that runs again after a loss starts from zero; its units are counted once.
        newly = done - seen[key]
        if newly > 0:
            seen[key] = done
            advance(newly)

    if client is None:
        try:
            for task in tasks:
                result = function(task.argument, lambda done, key=task.key: show(key, done))  # type: ignore[misc]
                show(task.key, task.size)
                yield task, result
        finally:
            release_workspace()  # this process has other things to do than the next task
        return
    by_key = {task.key: task for task in tasks}
    topic = f"headroom-{uuid.uuid4().hex}"
    # Reports and results come in threads of the client's: they wait here for this one, where callers may block.
    inbox: SimpleQueue[Future[Any] | _Event] = SimpleQueue()
    with _lost_workers_told(doing):
        client.subscribe_topic(topic, inbox.put)
        futures = [
            client.submit(_run_on_worker, function, task.argument, topic, task.key, key=task.key, pure=False)
            for task in tasks
        ]
        try:
            for future in futures:
                future.add_done_callback(inbox.put)
            left = set(by_key)
            while left:
                news = _next_news(inbox, client, futures)
                if isinstance(news, tuple):
                    key, done = news[1]
                    show(tuple(key), done)
                elif news.key in left:
                    left.remove(news.key)
                    result = news.result()
                    show(news.key, by_key[news.key].size)
                    yield by_key[news.key], result
        finally:
            if client.status == "running":
                client.unsubscribe_topic(topic)
                client.cancel(futures, force=True)


def _next_news(
    inbox: SimpleQueue[Future[Any] | _Event], client: Client, futures: Sequence[Future[Any]]
) -> Future[Any] | _Event:
    """Return what comes next; never wait for a cluster that is gone."""
    while True:
        try:
            return inbox.get(timeout=_SECONDS_BETWEEN_CHECKS)
        except Empty:
            lost = [future for future in futures if future.status in ("cancelled", "lost")]
            if client.status != "running" or lost:
                raise TimeoutError(f"{len(lost)} tasks lost, client {client.status}") from None


def _run_on_worker(function: Callable[[Any, Report], Any], argument: Any, topic: str, key: tuple[Any, ...]) -> Any:
    from distributed import get_worker

    worker = get_worker()
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_REPORTS:
            last = now
            worker.log_event(topic, (key, done))

    return function(argument, report)


@contextmanager
def _lost_workers_told(doing: str) -> Iterator[None]:
    """Turn what Dask raises when workers or the scheduler are gone into an error that says what to do.

    Raises
    ------
    ResourceError
        Finished work is on disk, so running again goes on from there.
    """
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise ResourceError(
            f"workers died again and again while {doing} ({error}); give them more memory "
            "(`headroom plan` says how much) and run again: finished work is kept"
        ) from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        raise ResourceError(
            f"the cluster was lost while {doing} ({type(error).__name__}: {error}); run again: finished work is kept"
        ) from error


def count_workers(client: Client | None) -> int:
    """Return how many workers there are; this process counts as one where there is no client."""
    return 1 if client is None else len(workers_limits(client))


def workers_limits(client: Client) -> list[int | None]:
    """Return the memory limit of every worker in bytes, None where it has none; waits for the first worker."""
    with _lost_workers_told("waiting for the first worker"):
        client.wait_for_workers(1, timeout=300)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [int(worker["memory_limit"]) if worker["memory_limit"] else None for worker in workers]


def workers_peak(client: Client) -> int:
    """Return the summed peak memory of all workers in bytes."""
    with _lost_workers_told("asking workers for their peak memory"):
        return sum(client.run(peak_memory).values())
