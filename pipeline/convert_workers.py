"""Run a conversion's tasks in this process or in several; workers never outlive the process that wants them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

from numcodecs import blosc

from pipeline.convert_ranges import ConversionPlan, RangeWriter
from pipeline.errors import ResourceError

__all__ = ["run_tasks"]


def run_tasks(plan: ConversionPlan, method: str, tasks: Iterable[Any], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the records of ``RangeWriter(plan).method(task)`` for all tasks, as they finish.

    Workers are new interpreters (spawned: HDF5 and zarr keep threads and locks that do not survive a fork), so a
    script that calls this needs the usual ``if __name__ == "__main__"``.

    Parameters
    ----------
    plan, method
        What the tasks are; ``method`` is ``convert_range`` or ``scan_rows``.
    workers
        Processes; 1 runs in this one.

    Raises
    ------
    HeadroomError
        What a task raised; the other workers are stopped at once. Likewise on Ctrl-C.
    """
    tasks = list(tasks)
    workers = min(workers, len(tasks))
    if workers <= 1:
        if tasks:
            writer = RangeWriter(plan)
            for task in tasks:
                yield getattr(writer, method)(task)
        return
    context = multiprocessing.get_context("spawn")
    # Only this process holds the end to write to: when it closes it, or dies in whatever way, the workers read
    # the end of the file and leave. Otherwise a killed conversion would leave writers behind its successor's back.
    receiver, sender = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(plan, receiver))
    try:
        for future in as_completed([executor.submit(_run_task, method, task) for task in tasks]):
            yield future.result()
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
        executor.shutdown(wait=True, cancel_futures=True)
        sender.close()
        receiver.close()


_writer: RangeWriter | None = None


def _start_worker(plan: ConversionPlan, receiver: Connection) -> None:
    """Prepare a worker: the terminal's Ctrl-C is the parent's business, and the parent's end is the worker's."""
    global _writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(receiver,), daemon=True).start()
    blosc.set_nthreads(1)  # the workers together are the threads
    _writer = RangeWriter(plan)


def _leave_with_parent(receiver: Connection) -> None:
    receiver.poll(None)
    with suppress(Exception):
        # what numcodecs and others registered to be released: without it the resource tracker complains aloud
        util._run_finalizers(0)  # type: ignore[attr-defined]
    os._exit(1)


def _run_task(method: str, task: Any) -> dict[str, Any]:
    assert _writer is not None
    record: dict[str, Any] = getattr(_writer, method)(task)
    return record
