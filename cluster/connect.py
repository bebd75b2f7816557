"""Dask clusters, encrypted and on loopback unless asked otherwise."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ResourceError
from pipeline.memory import available_cores, available_memory

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["LocalProfile", "connect_local"]


@dataclass(frozen=True)
class LocalProfile:
    """Worker processes on this machine.

    Attributes
    ----------
    workers
        Processes. One worker with all cores is the default: BLAS threads share one set of accumulators,
        where every further process holds its own.
    threads
        BLAS threads of each worker; the cores divided by the workers by default.
    memory_limit
        Bytes for each worker; the available memory divided by the workers by default.
    """

    workers: int = 1
    threads: int | None = None
    memory_limit: int | None = None

    def resolved_threads(self) -> int:
        """Return the BLAS threads of one worker."""
        cores = available_cores()
        return self.threads or max(1, cores // self.workers)

    def resolved_memory(self) -> int:
        """Return the memory limit of one worker in bytes."""
        return self.memory_limit or int(available_memory() * 0.9 / self.workers)


@contextmanager
def _interrupts_left_to_the_parent() -> Iterator[None]:
    """Let processes started here ignore Ctrl-C, which a terminal sends to all: the parent stops them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _start_up_told() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, TimeoutError) as error:
        raise ResourceError(
            f"the worker processes did not start ({error}); in a script, call this below "
            '`if __name__ == "__main__":`, since workers import the script again'
        ) from error


@contextmanager
def connect_local(profile: LocalProfile | None = None) -> Iterator[Client]:
    """Start worker processes on this machine and yield a client; everything stops with the block.

    Scheduler, workers and dashboard listen on 127.0.0.1 only, and the scheduler speaks TLS with certificates
    made for this cluster: without them any account of the machine could run code as its owner.

    Raises
    ------
    ResourceError
        If the workers do not start; a script without a ``__main__`` guard is the usual reason.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security

    chosen = profile or LocalProfile()
    settings = {
        # Exceptions are shown by the command line; the workers' copies would only clutter the terminal.
        "distributed.logging": {"distributed": "error", "bokeh": "error", "tornado": "error"},
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
    }
    with dask.config.set(settings):
        with _interrupts_left_to_the_parent(), _start_up_told():
            cluster = LocalCluster(
                n_workers=chosen.workers,
                threads_per_worker=1,
                memory_limit=chosen.resolved_memory(),
                host="127.0.0.1",
                protocol="tls://",
                security=Security.temporary(),
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                env={"HEADROOM_THREADS": str(chosen.resolved_threads())},
                silence_logs=50,
            )
        try:
            with Client(cluster) as client:
                yield client
        finally:
            cluster.close()
