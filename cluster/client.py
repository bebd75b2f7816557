"""One way to a Dask client, whatever the cluster: encrypted, and gone with the block.

On one machine the worker is a thread of this process.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from distributed import Worker

from cluster.certificates import make_certificates, read_certificates
from cluster.checks import nonce_file, require_same_workers
from cluster.dashboard import require_free_port
from cluster.profiles import WORKER_SETTINGS, AddressProfile, LocalProfile, Profile, SlurmProfile
from pipeline.base import (
    MEMORY_VARIABLES,
    disk_errors_told,
    parse_object,
    read_file,
    release_workspace,
    settings_of_dask,
    terminations_deferred,
    wait_for_worker,
)
from pipeline.errors import ConfigError, HeadroomError, InputError, ResourceError, require_kind

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Connection", "ThreadedWorker", "connect", "connect_address", "connect_local", "silence_dask"]

# --- A Dask worker that is a thread of this process, and does not hold up its end.


class ThreadedWorker(Worker):
    """A worker that never waits for its tasks when it is closed.

    A task that nobody waits for ends at its next report (:func:`pipeline.base.tasks.run_tasks`). Dask would wait half a
    minute for it, where the user has pressed Ctrl-C.
    """

    async def close(  # type: ignore[override]  # as Dask's own does
        self, timeout: float = 30, executor_wait: bool = False, nanny: bool = True, reason: str = "worker-close"
    ) -> str | None:
        """Close the worker, see :class:`distributed.Worker`."""
        return await super().close(timeout, False, nanny, reason)


#: Told one line at a time what a user should know while waiting.
Say = Callable[[str], None]

#: What every cluster's processes have in common.
SETTINGS: dict[str, Any] = WORKER_SETTINGS | {
    # Exceptions are shown by the command line; the workers' copies would only clutter the terminal.
    "distributed.logging": {"distributed": "error", "bokeh": "error", "tornado": "error"},
    # Before a worker process begins: NumPy looks at them when it is imported.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in MEMORY_VARIABLES.items()},
}


class Connection:
    """A cluster that is there until it is closed: by :meth:`close`, by the end of a ``with`` block, or with Python.

    ``with connect() as client`` gives the client. In a notebook the cluster outlives the cell::

        connection = cluster.connect()
        results = pipeline.run_experiment("my.yaml", "runs/my", client=connection)
        connection.close()

    What is asked of a client may be asked of the connection.

    Attributes
    ----------
    client
        The Dask client.
    """

    def __init__(self, opening: AbstractContextManager[Client]) -> None:
        self._stack = ExitStack()
        self.client = self._stack.enter_context(opening)
        self.is_closed = False
        atexit.register(self.close)

    def __enter__(self) -> Client:
        return self.client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        atexit.unregister(self.close)
        self.is_closed = True
        self._stack.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the client, and stop what was started for it; again does nothing."""
        if not self.is_closed:
            self.__exit__(None, None, None)

    def __getattr__(self, name: str) -> Any:
        """Return what the client has of this name."""
        if name.startswith("_") or name == "client":
            raise AttributeError(name)
        return getattr(self.client, name)

    def __repr__(self) -> str:
        return "Connection(closed)" if self.is_closed else f"Connection({self.client!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the client, with a link to its dashboard."""
        return "a closed connection" if self.is_closed else str(self.client._repr_html_())


def connect(
    profile: Profile | None = None, *, run_folder: Path | None = None, say: Say = lambda _line: None
) -> Connection:
    """Start or find a cluster, and connect to it once a worker is there; nothing is left behind when it is closed.

    Parameters
    ----------
    profile
        From :func:`cluster.load_profile`; None is one worker on this machine.
    run_folder
        A folder that the workers see under the same path; batch jobs find their certificates there.
    say
        Told what is being waited for.

    Returns
    -------
    Connection
        For a ``with`` block, or for as long as a notebook needs it.

    Raises
    ------
    ConfigError
        If the profile cannot be: an unknown interface, missing certificates.
    ResourceError
        If workers do not start, or are not what the run needs.
    """
    if profile is not None:
        require_kind("profile", profile, (LocalProfile, SlurmProfile, AddressProfile), "what load_profile returns")
    return Connection(_open(profile, run_folder, say))


@contextmanager
def _open(profile: Profile | None, run_folder: Path | None, say: Say) -> Iterator[Client]:
    if profile is None or isinstance(profile, LocalProfile):
        with _open_local(profile) as client:
            yield client
        return
    if profile.insecure:
        say(
            "INSECURE: plain TCP without certificates (insecure: true in the cluster profile); whoever reaches the "
            "ports of this cluster can run code as you and read all that it computes"
        )
    if isinstance(profile, AddressProfile):
        with connect_address(profile, run_folder) as client:
            yield client
    elif run_folder is None:
        raise InputError("jobs of SLURM need a run_folder that all nodes see under the same path; give connect() one")
    else:
        from cluster.slurm import connect_slurm

        with connect_slurm(profile, run_folder, say, SETTINGS) as client:
            yield client


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
def _start_up_told(has_processes: bool) -> Iterator[None]:
    try:
        yield
    except (HeadroomError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "can't start new thread" in reason:
            raise
        if has_processes and isinstance(error, RuntimeError | OSError):
            raise ResourceError(
                f"the worker processes did not start ({reason}); in a script, call this below "
                '`if __name__ == "__main__":`, since workers import the script again'
            ) from error
        raise ResourceError(f"Dask did not start ({reason}); {settings_of_dask()}") from error


def connect_local(profile: LocalProfile | None = None) -> Connection:
    """Start workers on this machine and connect to them; everything stops when the connection is closed.

    A single worker is a thread of this process, unless the profile says otherwise; nothing but the dashboard listens
    then. Several are processes, and scheduler, workers and dashboard listen on 127.0.0.1 only; the scheduler speaks TLS
    with certificates made for this cluster: without them any account of the machine could run code as its owner.

    Raises
    ------
    ResourceError
        If the workers do not start; a script without a ``__main__`` guard is the usual reason, or a setting of Dask's.
    """
    return Connection(_open_local(profile))


@contextmanager
def _open_local(profile: LocalProfile | None) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    chosen = profile or LocalProfile()
    require_free_port(chosen.dashboard_port)
    facts: dict[str, Any] = {
        "n_workers": chosen.workers,
        "threads_per_worker": 1,
        "memory_limit": chosen.resolved_memory(),
        "dashboard_address": chosen.dashboard_address,
        "worker_dashboard_address": "127.0.0.1:0",  # or Dask opens it to all
        "silence_logs": 50,
    }
    environment = {"HEADROOM_THREADS": str(chosen.resolved_threads())}
    with dask.config.set(SETTINGS), _SILENCE.while_open(), ExitStack() as stack:
        # A cluster that is half started could not be stopped in order.
        with terminations_deferred(), _start_up_told(chosen.has_processes):
            if chosen.has_processes:
                with _interrupts_left_to_the_parent():
                    cluster = LocalCluster(
                        **facts,
                        host="127.0.0.1",
                        protocol="tls://",
                        security=make_certificates().security(),
                        env=environment,
                    )
            else:
                stack.enter_context(_variables_set(environment))
                stack.callback(release_workspace)  # this process has other things to do than the next task
                cluster = LocalCluster(
                    **facts,
                    processes=False,
                    protocol="inproc://",
                    worker_class=ThreadedWorker,
                )
            stack.callback(cluster.close)
        with Client(cluster) as client:
            yield client


class _Silence:
    """Dask logs nothing while a cluster of ours is there.

    Each cluster of Dask's does this, too, and puts back what it found when it ends. Of two that do not end in reverse
    order, as in the cells of a notebook, the one that is left then logs its every step, and Dask stays silent after it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_open = 0
        self._levels: list[tuple[logging.Handler, int]] = []

    @contextmanager
    def while_open(self) -> Iterator[None]:
        """Silence Dask for the block; the end of the last block of several puts back what was there."""
        with self._lock:
            self._n_open += 1
            if self._n_open == 1:
                self._levels = [(one, one.level) for one in logging.getLogger("distributed").handlers]
                for handler, _ in self._levels:
                    handler.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            with self._lock:
                self._n_open -= 1
                if self._n_open == 0:
                    for handler, level in self._levels:
                        handler.setLevel(level)


_SILENCE = _Silence()


@contextmanager
def _variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process for the block: its worker reads them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def connect_address(profile: AddressProfile, run_folder: Path | None = None) -> Iterator[Client]:
    """Yield a client of a scheduler that runs already; it and its workers stay when the block ends.

    Raises
    ------
    ConfigError
        If certificates or the scheduler file cannot be read.
    ResourceError
        If the scheduler does not answer, does not take the certificates, or has no fit workers.
    """
    import dask
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    address = profile.address or _read_scheduler_file(profile)
    security = None if profile.certificates is None else read_certificates(profile.certificates).security()
    waiting = "distributed.scheduler.no-workers-timeout"
    patience = dask.config.get(waiting, None) or f"{profile.startup_timeout}s"
    with dask.config.set(SETTINGS | {waiting: patience}), ExitStack() as stack:
        # A scheduler that is lost is told by an error of ours; Dask would log tracebacks beside it.
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
        try:
            client = stack.enter_context(Client(address, security=security, timeout=profile.startup_timeout))
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise ResourceError(
                f"no scheduler at {address} takes this client within {profile.startup_timeout} s "
                f"({type(error).__name__}: {error}); see that it runs there, and that its certificates are of the same "
                "authority as those of the cluster profile"
            ) from error
        wait_for_worker(client)
        with _seen_by_workers(run_folder) as nonce:
            require_same_workers(client, nonce)
        yield client


@contextmanager
def _seen_by_workers(run_folder: Path | None) -> Iterator[Path | None]:
    if run_folder is None:
        yield None
        return
    made = not run_folder.exists()
    try:
        with disk_errors_told(run_folder):
            run_folder.mkdir(parents=True, exist_ok=True)
        with nonce_file(run_folder) as nonce:
            yield nonce
    finally:
        if made:
            with suppress(OSError):
                run_folder.rmdir()  # fails, as it should, if there is anything in it


def _read_scheduler_file(profile: AddressProfile) -> str:
    """Return the address in a scheduler file, if it is one that the profile allows."""
    path = Path(str(profile.scheduler_file))
    try:
        address = parse_object(read_file(path))["address"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"scheduler_file {path}: cannot be read ({error}); `dask scheduler --scheduler-file {path}` writes it"
        ) from None
    expected = "tcp://" if profile.insecure else "tls://"
    if not (isinstance(address, str) and address.startswith(expected)):
        raise ConfigError(
            f"scheduler_file {path}: the address must begin with {expected}, found {address!r}; tls:// goes with "
            "`certificates`, tcp:// with `insecure: true`"
        )
    return address


def silence_dask() -> None:
    """Let Dask log nothing in this process until it ends: what a user should know is told by errors and notes of ours.

    A cluster silences Dask while it is there, and no longer; the message to a lost worker that cannot be sent is
    logged whenever the event loop comes to it, with a traceback, and that may be when the cluster has been closed.
    """
    import distributed  # noqa: F401  its import adds the handlers

    for name in ("distributed", "bokeh", "tornado"):
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.CRITICAL)
