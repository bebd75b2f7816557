"""The tasks of a conversion in this process or in several; workers never outlive the process that wants them.

Tasks on a Dask cluster are another matter, see :func:`pipeline.base.tasks.run_tasks`. A conversion needs no cluster,
and each of its workers keeps one set of buffers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import util
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from numcodecs import blosc

from pipeline.errors import ResourceError

__all__ = ["run_in_processes"]


def run_in_processes(
    make_worker: Callable[[], Any], method: str, tasks: Iterable[Any], workers: int
) -> Generator[dict[str, Any], None, None]:
    """Yield the records of ``make_worker().method(task)`` for all tasks, as they finish.

    This process is one of the workers: it takes tasks too, from the front, while the others are still starting.

    Workers are new interpreters (spawned: HDF5 and zarr keep threads and locks that do not survive a fork), so a
    script that calls this needs the usual ``if __name__ == "__main__"``.

    Parameters
    ----------
    make_worker, method
        What the tasks are: an object made once in every process, from something that can be pickled, and the name of
        its method.
    tasks
        The method's argument, one by one.
    workers
        Processes, this one included.

    Raises
    ------
    HeadroomError
        What a task raised; the other workers are stopped at once. Likewise on Ctrl-C.
    """
    tasks = list(tasks)
    if not tasks:
        return
    workers = min(workers, len(tasks))
    with _one_blosc_thread(workers):
        worker = make_worker()
        if workers == 1:
            for task in tasks:
                yield getattr(worker, method)(task)
            return
        yield from _share_tasks(worker, make_worker, method, tasks, workers - 1)


def _share_tasks(
    worker: Any, make_worker: Callable[[], Any], method: str, tasks: list[Any], others: int
) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    # Only this process holds the end to write to: when it closes it, or dies in whatever way, the workers read
    # the end of the file and leave. Otherwise a killed conversion would leave writers behind its successor's back.
    receiver, sender = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        others, mp_context=context, initializer=_start_worker, initargs=(make_worker, receiver)
    )
    todo, finished = deque(tasks), SimpleQueue[Future[dict[str, Any]]]()

    # One task at a time for each of the others: the executor would queue more than that, and leave a long tail.
    def submit_next() -> None:
        with suppress(IndexError):
            executor.submit(_run_task, method, todo.popleft()).add_done_callback(take_result)

    def take_result(future: Future[dict[str, Any]]) -> None:
        if not future.cancelled() and future.exception() is None:
            submit_next()
        finished.put(future)

    try:
        for _ in range(others):
            submit_next()
        for _ in tasks:
            try:
                task = todo.popleft() if finished.empty() else None
            except IndexError:
                task = None
            yield finished.get().result() if task is None else getattr(worker, method)(task)
    except BrokenProcessPool as error:
        sender.close()
        raise ResourceError(
            "a worker process of the conversion was killed, most likely for want of memory; run again with fewer "
            "workers (--workers 1): finished ranges are kept"
        ) from error
    except BaseException:
        sender.close()  # stops the workers in the middle of what they do; their ranges are not recorded
        raise
    finally:
        todo.clear()
        executor.shutdown(wait=True, cancel_futures=True)
        sender.close()
        receiver.close()


@contextmanager
def _one_blosc_thread(workers: int) -> Iterator[None]:
    """Let this process compress with one thread while it is one of several workers, which together are the threads."""
    if workers == 1:
        yield
        return
    before = blosc.set_nthreads(1)
    try:
        yield
    finally:
        blosc.set_nthreads(before)


_worker: Any = None


def _start_worker(make_worker: Callable[[], Any], receiver: Connection) -> None:
    """Prepare a worker: the terminal's Ctrl-C is the parent's business, and the parent's end is the worker's."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(receiver,), daemon=True).start()
    blosc.set_nthreads(1)  # the workers together are the threads
    _worker = make_worker()


def _leave_with_parent(receiver: Connection) -> None:
    receiver.poll(None)
    with suppress(Exception):
        # what numcodecs and others registered to be released: without it the resource tracker complains aloud
        util._run_finalizers(0)  # type: ignore[attr-defined]
    os._exit(1)


def _run_task(method: str, task: Any) -> dict[str, Any]:
    record: dict[str, Any] = getattr(_worker, method)(task)
    return record
