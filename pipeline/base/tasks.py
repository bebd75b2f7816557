"""Dask, as far as the pipeline knows it: pieces of work out, progress and results back, losses told in plain words.

A piece of work is a function with a small argument: paths and numbers, never arrays. It must leave what it makes on
disk, or return little, and give the same bits wherever and however often it runs.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pipeline.base.machine import peak_memory, release_workspace
from pipeline.base.watch import ClusterWatch, answer_seconds, idle_seconds, silence_told, wait_for_worker
from pipeline.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = [
    "EXPECTED_WORKERS",
    "Task",
    "ask_workers",
    "count_workers",
    "name_group",
    "require_client",
    "run_tasks",
    "workers_limits",
    "workers_peak",
]

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Answer = TypeVar("Answer")
#: Told how many units of a task are done so far.
Report = Callable[[int], None]
#: A time stamp, and a task's key with its units done so far.
_Event: TypeAlias = tuple[float, tuple[tuple[Any, ...], int]]
#: Where a cluster whose workers come later says in the scheduler's metadata how many they will be.
EXPECTED_WORKERS = "headroom-workers"
#: Topics whose driver has stopped waiting: their tasks, if they run in the driver's own process, end when they report.
_ABANDONED: set[str] = set()
SECONDS_BETWEEN_REPORTS = 0.25
SECONDS_BETWEEN_CHECKS = 2.0


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
    observe: Callable[[tuple[Any, ...], int], None] | None = None,
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
    observe
        Called with a task's key and all its finished units, whenever there are more; in the caller's thread.

    Yields
    ------
    Task
        A finished one, in order of arrival.
    Result
        What the function returned for it.

    Raises
    ------
    ResourceError
        If workers die again and again, if all are gone or out of memory for too long (see
        :mod:`pipeline.base.watch`), or if the scheduler is lost or silent.
    """
    counter = _UnitCounter(tasks, advance, observe)
    if client is None:
        yield from _run_here(function, tasks, counter)
    else:
        with _lost_workers_told(doing):
            yield from _run_on_cluster(client, function, tasks, doing, counter)


class _UnitCounter:
    """Passes on newly finished units. A task that runs again after a loss starts from zero; its units count once."""

    def __init__(
        self,
        tasks: Sequence[Task[Any]],
        advance: Callable[[int], None],
        observe: Callable[[tuple[Any, ...], int], None] | None,
    ) -> None:
        self._seen = dict.fromkeys((task.key for task in tasks), 0)
        self._advance, self._observe = advance, observe

    def show(self, key: tuple[Any, ...], done: int) -> None:
        """Say that so many units of a task are done."""
        newly = done - self._seen[key]
        if newly > 0:
            self._seen[key] = done
            self._advance(newly)
            if self._observe is not None:
                self._observe(key, done)


def _run_here(
    function: Callable[[Argument, Report], Result], tasks: Sequence[Task[Argument]], counter: _UnitCounter
) -> Iterator[tuple[Task[Argument], Result]]:
    try:
        for task in tasks:
            result = function(task.argument, partial(counter.show, task.key))
            counter.show(task.key, task.size)
            yield task, result
    finally:
        release_workspace()  # this process has other things to do than the next task


def _run_on_cluster(
    client: Client,
    function: Callable[[Argument, Report], Result],
    tasks: Sequence[Task[Argument]],
    doing: str,
    counter: _UnitCounter,
) -> Iterator[tuple[Task[Argument], Result]]:
    topic = f"headroom-{uuid.uuid4().hex}"
    # Reports and results come in threads of the client's: they wait here for this one, where callers may block.
    inbox: SimpleQueue[Future[Any] | _Event] = SimpleQueue()
    client.subscribe_topic(topic, inbox.put)
    # Keys of this call's own: a scheduler that outlives a driver may still hold its results, of other settings.
    futures = [
        client.submit(_run_on_worker, function, task.argument, topic, task.key, key=(*task.key, topic), pure=False)
        for task in tasks
    ]
    left = {future.key: task for future, task in zip(futures, tasks, strict=True)}
    watch = ClusterWatch(client, doing)
    try:
        for future in futures:
            future.add_done_callback(inbox.put)
        while left:
            news = _next_news(inbox, client, [future for future in futures if future.key in left], watch)
            if isinstance(news, tuple):
                key, done = news[1]
                counter.show(tuple(key), done)
            elif task_done := left.pop(news.key, None):
                result = _fetch_result(news, client, watch)
                news.release()  # or Dask would compute it again where its worker is lost later
                counter.show(task_done.key, task_done.size)
                yield task_done, result
    finally:
        if left:
            _ABANDONED.add(topic)
        if client.status == "running":
            client.unsubscribe_topic(topic)
            client.cancel(futures, force=True)


def _next_news(
    inbox: SimpleQueue[Future[Any] | _Event], client: Client, futures: Sequence[Future[Any]], watch: ClusterWatch
) -> Future[Any] | _Event:
    """Return what comes next; never wait for a cluster that is gone."""
    while True:
        try:
            news = inbox.get(timeout=SECONDS_BETWEEN_CHECKS)
            watch.hear()
            return news
        except Empty:
            # Dask starts a thread to tell that a future is done: where it cannot, nothing comes.
            if (
                done := next((future for future in futures if future.status in ("finished", "error")), None)
            ) is not None:
                return done
            # Those that Dask calls lost were done by a worker that is gone: they are being computed again.
            cancelled = sum(future.status == "cancelled" for future in futures)
            if client.status != "running" or cancelled:
                raise TimeoutError(f"{cancelled} tasks cancelled, client {client.status}") from None
            watch.check()


def _fetch_result(future: Future[Any], client: Client, watch: ClusterWatch) -> Any:
    """Return the result of a future that was done; its worker may be gone since, and the task is computed again."""
    seconds = answer_seconds()
    while True:
        try:
            return future.result(timeout=seconds)
        except TimeoutError:
            if future.status == "error" or client.status != "running":
                raise
            watch.check()
            seconds *= 2  # it may be large, and the network slow


def _run_on_worker(function: Callable[[Any, Report], Any], argument: Any, topic: str, key: tuple[Any, ...]) -> Any:
    from distributed import get_worker

    worker = get_worker()
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if topic in _ABANDONED:
            raise CancelledError("nobody waits for this task any more")
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_REPORTS:
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
    from distributed import KilledWorker, scheduler
    from distributed.comm.core import CommClosedError

    # Newer releases of Dask tell no workers at all from none that a task may run on.
    no_workers = tuple(
        getattr(scheduler, name) for name in ("NoWorkerError", "NoValidWorkerError") if hasattr(scheduler, name)
    )

    try:
        yield
    except KilledWorker as error:
        what = error.task[0] if isinstance(error.task, tuple) else error.task
        raise ResourceError(
            f"workers died again and again while {doing}: {error.allowed_failures + 1} of them at {what!r}, the last "
            f"one at {error.last_worker.address}; see the workers' logs, give them more memory (`headroom plan` says "
            "how much) and run again: finished work is kept"
        ) from error
    except no_workers as error:
        raise ResourceError(
            f"there has been no worker for {idle_seconds():.0f} s while {doing}; see the workers' logs and, on SLURM, "
            "`squeue --me`, then run again: finished work is kept"
        ) from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        words = getattr(error, "msg", None) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ResourceError(
            f"the cluster was lost while {doing} ({words}); run again: finished work is kept"
        ) from error


def count_workers(client: Client | None) -> int:
    """Return how many workers there are or will be; this process counts as one where there is no client.

    Batch jobs come one after the other: their cluster says how many it has asked for (:data:`EXPECTED_WORKERS`), so
    that work is not cut for the first of them alone.
    """
    if client is None:
        return 1
    there = len(workers_limits(client))
    with silence_told(client):
        # The client's own question would have no deadline.
        scheduler: Any = client.scheduler
        asked_for = client.sync(
            scheduler.get_metadata, keys=[EXPECTED_WORKERS], default=0, callback_timeout=answer_seconds()
        )
    return max(there, int(asked_for))


def workers_limits(client: Client) -> list[int | None]:
    """Return the memory limit of every worker in bytes, None where it has none; waits for the first worker."""
    with _lost_workers_told("waiting for the first worker"):
        workers = wait_for_worker(client).values()
    return [int(worker["memory_limit"]) if worker["memory_limit"] else None for worker in workers]


def workers_peak(client: Client) -> int:
    """Return the summed peak memory of all worker processes in bytes, as far as they answer: no run fails for a record.

    A worker that is a thread of this process has no memory of its own.
    """
    here = _process_peak()[:2]
    return sum(peak for *process, peak in ask_workers(client, _process_peak) if tuple(process) != here)


def _process_peak() -> tuple[str, int, int]:
    """Return the machine and number of this process, and its peak memory."""
    return socket.gethostname(), os.getpid(), peak_memory()


def require_client(client: object) -> None:
    """Refuse what is no open client.

    Raises
    ------
    ConfigError
        If it is something else, such as a cluster or an address, or was closed.
    """
    if client is None:
        return
    if not (hasattr(client, "submit") and hasattr(client, "scheduler_info")):
        raise ConfigError(
            f"client: a client of dask.distributed is required, such as Client(cluster), found {type(client).__name__}"
        )
    if getattr(client, "status", "") in ("closed", "closing"):
        raise ConfigError("client: an open client is required, and this one was closed; connect again")


def ask_workers(client: Client, question: Callable[[], Answer]) -> list[Answer]:
    """Return what a function gives on every worker that answers; nothing if one is silent."""
    with suppress(OSError, TimeoutError):
        # The client's own wait would have no end where a worker is silent.
        return list(client.run(question, on_error="ignore", callback_timeout=answer_seconds()).values())
    return []


# --- Names of tasks that Dask's dashboard shows whole, and as groups of their own.
#
# Dask takes a group's name from the first part of a key, and cuts that at the first hyphen before a digit, so that
# ``accumulate fold-2`` would be ``accumulate fold``, the same for all folds. The progress page draws 15 letters of a
# name, or the first 12 of a longer one, so that ``accumulate fold 2`` would be ``accumulate f...``, again the same for
# all. Hence no hyphens, and what tells groups apart comes first: ``fold 2: accumulate``.


def name_group(subject: str, step: str) -> str:
    """Return the name of the tasks of a step that are about one thing.

    Parameters
    ----------
    subject
        What they are about; may be a user's own words, such as the name of a binning.
    step
        What they do.

    Examples
    --------
    >>> name_group("fold 2", "accumulate")
    'fold 2: accumulate'
    >>> name_group("SNR-4 (quantiles)", "solve")
    'SNR 4 quantiles: solve'
    """
    # Nothing that Dask would take for a number, an index, a class or a hash, whatever it is.
    words = re.sub(r"[^\w.+=]+|^_+", " ", subject).split()
    return f"{' '.join(words) or 'unnamed'}: {step}"
