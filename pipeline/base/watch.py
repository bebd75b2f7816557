"""Deadlines for a cluster that is waited for: nobody waits for what cannot come any more.

Dask itself waits without an end where all workers are gone and none comes back, where all have stopped taking tasks
because their memory is nearly full, where the scheduler is there but silent, and where a worker is well but its task
hangs, as on a file system that does not answer. Here each of these ends in an error that says what to do. The
deadlines are Dask's settings, so that a cluster's profile and ``~/.config/dask`` rule them:
``distributed.scheduler.no-workers-timeout`` (five minutes where it is not set, as it is not by default), twice
``distributed.comm.timeouts.connect``, and one of our own, ``headroom.no-progress-timeout`` (an hour).

What Dask saw of a run can be recorded as a page, too (:func:`recorded`).
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.files import replacing
from pipeline.errors import ConfigError, ResourceError, enumerate_words

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "ClusterWatch",
    "answer_seconds",
    "describe_workers",
    "idle_seconds",
    "list_recordings",
    "read_seconds",
    "recorded",
    "settings_of_dask",
    "silence_told",
    "wait_for_worker",
]

_SECONDS_WITHOUT_WORKERS = 300.0
#: A task tells of every block of spectra and of every model, which take seconds.
_NO_PROGRESS = "1h"
#: Between questions to the scheduler, which counts all workers for each.
_SECONDS_BETWEEN_QUESTIONS = 10.0
_AGAIN = "run the same command again: finished work is kept"


def settings_of_dask() -> str:
    """Return words that say where Dask's settings come from on this machine."""
    import dask.config

    places = [str(path) for path in dask.config.paths if Path(path).exists()]
    return f"its settings come from variables DASK_* and from {enumerate_words(places or ['~/.config/dask'])}"


def read_seconds(setting: str, default: str | float = 0.0) -> float:
    """Return a time that Dask's configuration states.

    Raises
    ------
    ConfigError
        If it is no time.
    """
    import dask.config
    from dask.utils import parse_timedelta

    try:
        stated = dask.config.get(setting, None) or default
        return float(parse_timedelta(stated))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"Dask's setting {setting}: a time such as 30s is required, found {stated!r}; {settings_of_dask()}"
        ) from error


def idle_seconds() -> float:
    """Return how long a cluster may be without a worker that takes tasks."""
    return read_seconds("distributed.scheduler.no-workers-timeout") or _SECONDS_WITHOUT_WORKERS


def stall_seconds() -> float:
    """Return how long workers may be there without any task that advances."""
    return read_seconds("headroom.no-progress-timeout", _NO_PROGRESS)


def answer_seconds() -> float:
    """Return how long a scheduler may take to answer."""
    return 2 * read_seconds("distributed.comm.timeouts.connect", "30s")


def describe_workers(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """Return what the scheduler knows of every worker, by address.

    Raises
    ------
    ResourceError
        If the scheduler does not answer.
    """
    with silence_told(client):
        if client.scheduler is None:
            raise TimeoutError("the client is closed")
        answer = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=answer_seconds())
    workers: Mapping[str, Mapping[str, Any]] = answer["workers"]
    return workers


@contextmanager
def silence_told(client: Client) -> Iterator[None]:
    """Turn a question that the scheduler left open into an error that says what to do."""
    try:
        yield
    except (OSError, TimeoutError) as error:
        address = client.scheduler.address if client.scheduler else "the cluster"
        raise ResourceError(
            f"the Dask scheduler at {address} does not answer ({type(error).__name__}: {error}); see that it runs and "
            f"that the network to it is up, then {_AGAIN}"
        ) from error


def wait_for_worker(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """Wait for the first worker that takes tasks; return what the scheduler knows of all.

    Raises
    ------
    ResourceError
        If none comes, or the scheduler does not answer.
    """
    watch = ClusterWatch(client, "waiting for the first worker", pause=0.1)
    while True:
        workers = describe_workers(client)
        if watch.note(workers):
            return workers
        time.sleep(0.1)


class ClusterWatch:
    """Looks after a cluster while its results are waited for.

    Parameters
    ----------
    client
        Whose cluster.
    doing
        What is being done, for messages: "accumulating".
    pause
        Seconds between questions, at least.
    """

    def __init__(self, client: Client, doing: str, *, pause: float = _SECONDS_BETWEEN_QUESTIONS) -> None:
        self._client, self._doing = client, doing
        self._deadline, self._patience = idle_seconds(), stall_seconds()
        self._pause = min(pause, self._deadline / 4, self._patience / 4)
        self._asked = self._heard = time.monotonic()
        self._idle_since: float | None = None

    def hear(self) -> None:
        """Take note of news from a worker: one is at work, whatever the scheduler thinks of it."""
        self._idle_since = None
        self._heard = time.monotonic()

    def check(self) -> None:
        """Ask the scheduler, unless that was a moment ago.

        Raises
        ------
        ResourceError
            If it does not answer, if no worker has taken tasks for :func:`idle_seconds`, or if those that are there
            have told of nothing new for :func:`stall_seconds`.
        """
        if time.monotonic() - self._asked >= self._pause:
            workers = describe_workers(self._client)
            self._asked = time.monotonic()
            if self.note(workers) and self._asked - self._heard >= self._patience:
                raise ResourceError(
                    f"no task has advanced for {self._patience:.0f} s while {self._doing}, though {len(workers)} "
                    "workers answer: a file system may hang, see the workers' logs; if it is only slow, set "
                    f"DASK_HEADROOM__NO_PROGRESS_TIMEOUT=4h; then {_AGAIN}"
                )

    def note(self, workers: Mapping[str, Mapping[str, Any]]) -> bool:
        """Return whether any worker takes tasks; raise if none has for too long."""
        if any(worker["status"] == "running" for worker in workers.values()):
            self._idle_since = None
            return True
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= self._deadline:
            raise ResourceError(f"{self._describe(workers)}, then {_AGAIN}")
        return False

    def _describe(self, workers: Mapping[str, Mapping[str, Any]]) -> str:
        seconds = f"for {self._deadline:.0f} s while {self._doing}"
        if any(worker["status"] == "paused" for worker in workers.values()):
            return (
                f"all workers ({len(workers)}) have been out of memory {seconds} and take no more tasks; "
                "give them more (`headroom plan` says how much)"
            )
        return (
            f"there has been no worker {seconds}: the last ones ended, or none was started; "
            "see the workers' logs and, on SLURM, `squeue --me`"
        )


# --- What Dask saw of a run, as a page that is kept: its task stream, profiles and memory over time.
#
# The page is Dask's own performance report, made to open without a network: its scripts are in it, and it may fetch
# nothing. Everything in it has been sampled anyway, for the live dashboard.

_NAME = re.compile(r"dask_report-(\d+)\.html")
#: To collect profiles from all workers; after a failure these may be gone, and the user waits for the message.
_SECONDS, _SECONDS_AFTER_FAILURE = 60.0, 5.0
#: Scripts and styles of the page itself and pictures within it: nothing from elsewhere, whatever Bokeh would load.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:\">"
)
_ICON = re.compile(r'<link rel="shortcut icon"[^>]*>')


def list_recordings(folder: Path) -> list[Path]:
    """Return the pages that the runs in a folder have left, oldest first."""
    numbers = {int(match[1]): path for path in folder.glob("*.html") if (match := _NAME.fullmatch(path.name))}
    return [numbers[number] for number in sorted(numbers)]


@contextmanager
def recorded(
    client: Client | None, folder: Path, title: str = "", say: Callable[[str], None] = lambda _line: None
) -> Iterator[None]:
    """Save Dask's performance report of the block as the next ``dask_report-N.html`` of a folder.

    A run that is resumed adds a page and replaces none, and one that finds everything done adds none. The page is a
    by-product: whatever goes wrong with it is said, and the run goes on.

    Parameters
    ----------
    client
        None saves nothing, since there is no Dask then.
    folder
        The run folder, which the caller has to itself.
    title
        What was run, for the page.
    say
        Told if there will be no page, and why.
    """
    began = time.time()
    if client is None or not _begin(client, say):
        yield
        return
    # From its first sample on: a scheduler that is older than the run shows its load before, too.
    facts = {"start": began, "last_count": 0, "code": html.escape(title)}
    try:
        yield
    except Exception:
        _save(client, folder, facts, _SECONDS_AFTER_FAILURE, say)
        raise
    _save(client, folder, facts, _SECONDS, say)


def _begin(client: Client, say: Callable[[str], None]) -> bool:
    """Let the scheduler keep its task stream, which it does for the live dashboard once somebody looks at it."""
    try:
        _ask(client, "get_task_stream", _SECONDS, start=0, stop=0)
        return True
    except Exception as error:
        say(_no_page(error))
        return False


def _save(client: Client, folder: Path, facts: dict[str, Any], seconds: float, say: Callable[[str], None]) -> None:
    try:
        if client.status != "running" or not _ask(client, "get_task_stream", seconds, start=facts["start"]):
            return
        page = _ask(client, "performance_report", seconds, **facts, mode="inline")
        number = max((int(path.stem.rpartition("-")[2]) for path in list_recordings(folder)), default=0) + 1
        with replacing(folder / f"dask_report-{number}.html") as temporary:
            temporary.write_text(_keep_offline(page), encoding="utf-8")
    except Exception as error:  # of Dask, Bokeh, the network, the disk: none is worth a run
        say(_no_page(error))


def _ask(client: Client, question: str, seconds: float, **facts: Any) -> Any:
    return client.sync(getattr(client.scheduler, question), **facts, callback_timeout=seconds)


def _keep_offline(page: str) -> str:
    """Return the page without the link to Dask's icon, and with a policy that keeps everything else at home."""
    if "<head>" not in page:
        raise ResourceError("Dask's performance report has another form than this version knows")
    return _ICON.sub('<link rel="icon" href="data:,">', page).replace("<head>", f"<head>\n{_POLICY}", 1)


def _no_page(error: Exception) -> str:
    return f"no Dask performance report of this run: {str(error) or type(error).__name__}"
