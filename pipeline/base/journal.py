"""The journal of a run: ``status.json`` in its folder, so that anyone who sees the folder sees where the run stands.

A thread writes it: at every change, at most once a second, and every few seconds without one, so that a step that is
long silent is told from a driver that died. The journal never fails a run; what cannot be written is not.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from pipeline.base.files import exclusive, open_own, replacing
from pipeline.base.logfile import RUN_LOG, LogFile, LoggedProgress
from pipeline.base.progress import Advance, Progress
from pipeline.base.status import (
    STATUS_FILE,
    Attempt,
    Driver,
    FinishedStep,
    RunningStep,
    RunStatus,
    State,
    find_death,
    read_status,
)
from pipeline.errors import HeadroomError, InputError

__all__ = ["JournalProgress", "RunJournal"]

JOURNAL_LOCK = ".status.lock"
SECONDS_BETWEEN_WRITES: Final = 1.0
SECONDS_BETWEEN_BEATS: Final = 5.0
SECONDS_BETWEEN_COUNTS: Final = 5.0
#: How long a driver that seems to live on another host is watched before this one takes over.
SECONDS_OF_DOUBT: Final = 20.0
_NOTES, _STEPS, _ATTEMPTS, _LETTERS = 10, 40, 20, 2000


class Workers(Protocol):
    """What the journal needs of a Dask client."""

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        """Return the scheduler's view, with all ``workers``."""


class RunJournal:
    """Keeps ``status.json`` and ``run.log`` while its context lasts.

    How the context is left is how the run ended: without an exception it is finished, with Ctrl-C or
    :class:`pipeline.base.interrupts.Terminated` interrupted, with any other failed, and the file says why.

    Parameters
    ----------
    folder
        The run folder; made if needed, and removed again if nothing else was written to it when a user's mistake ends
        the run, or when an error ends it before its first step, such as a cluster that cannot start.
    command
        How the user started the run.

    Raises
    ------
    InputError
        On entering, if another driver is at work in the folder.
    """

    def __init__(self, folder: str | Path, command: str) -> None:
        self.folder = Path(folder)
        self._command = command
        self._resources = ExitStack()
        self._changes = threading.Condition()
        self._writing = threading.Lock()
        self._is_open = self._is_changed = self._made_folder = self._has_begun = False
        self._state: State = "starting"
        self._facts: dict[str, Any] = {}
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._steps: deque[FinishedStep] = deque(maxlen=_STEPS)
        self._step: _Step | None = None
        self._beat = 0
        self._driver: Driver | None = None  # None where there is no file to write
        self._started = datetime.now(UTC)
        self._attempts: tuple[Attempt, ...] = ()
        self._earlier: RunStatus | None = None
        self._log = LogFile(self.folder / RUN_LOG)

    def __enter__(self) -> Self:
        try:
            self._made_folder = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resources.enter_context(exclusive(self.folder, "the run folder", JOURNAL_LOCK))
        except OSError:
            return self  # the run itself will tell what is wrong with its folder
        self._earlier = _read_earlier(self.folder)
        if self._earlier is not None:
            self._attempts = (*self._earlier.attempts, self._earlier.as_attempt())[-_ATTEMPTS:]
        self._driver = Driver.of_this_process(os.environ.get("SLURM_JOB_ID"))
        self._is_open = True
        self._write()
        self._log.say(f"begun by process {self._driver.pid} on {self._driver.host}: {self._command}")
        self._thread = threading.Thread(target=self._keep_writing, name="journal", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(error)
        finally:
            self._resources.close()
            never_began = isinstance(error, HeadroomError) and not self._has_begun
            if self._made_folder and (never_began or isinstance(error, InputError)):
                self._leave_nothing()

    def enter(self, state: State) -> None:
        """Say what the driver does now; written at once."""
        if self._state != state:
            self._state = state
            self._write()

    def progress(self, shown: Progress) -> JournalProgress:
        """Return a progress that tells the journal what it tells ``shown``."""
        return JournalProgress(LoggedProgress(shown, self._log), self)

    @contextmanager
    def attend(self, client: Workers, dashboard: str | None = None, tunnel: str | None = None) -> Iterator[None]:
        """Count the workers of a client every few seconds in this block.

        Parameters
        ----------
        client
            A Dask client.
        dashboard
            Address of its dashboard.
        tunnel
            The command that brings the dashboard to another machine.
        """
        stopped = threading.Event()

        def count() -> None:
            # In a thread of its own: a scheduler that does not answer must not silence the journal.
            while not stopped.is_set():
                try:
                    now: int | None = len(client.scheduler_info(n_workers=-1)["workers"])
                except Exception:  # a cluster that is being lost may raise anything; the run tells about it
                    now = None
                if not stopped.is_set():
                    self._change(workers=now)
                stopped.wait(SECONDS_BETWEEN_COUNTS)

        self._facts |= {"dashboard": dashboard, "tunnel": tunnel}
        thread = threading.Thread(target=count, name="journal-workers", daemon=True)
        if self._is_open:
            thread.start()
            self.enter("running")
        try:
            yield
        finally:
            stopped.set()
            if thread.is_alive():
                thread.join(timeout=1)
            self._change(workers=None, dashboard=None, tunnel=None)

    def _add_note(self, message: str) -> None:
        with self._changes:
            self._notes.append(message[:_LETTERS])
        self._change()

    def _change(self, **facts: Any) -> None:
        with self._changes:
            self._facts |= facts
            self._is_changed = True
            self._changes.notify_all()

    def _keep_writing(self) -> None:
        while self._is_open:
            with self._changes:
                self._changes.wait_for(lambda: self._is_changed or not self._is_open, SECONDS_BETWEEN_BEATS)
            if self._is_open:
                self._write()
            with self._changes:
                self._changes.wait_for(lambda: not self._is_open, SECONDS_BETWEEN_WRITES)

    def _close(self, error: BaseException | None) -> None:
        if not self._is_open:
            return
        with self._changes:
            self._is_open = False
            self._changes.notify_all()
        self._thread.join(timeout=10)
        earlier = self._earlier
        if error is None:
            self._state, self._step, said = "finished", None, "finished"
        elif not self._has_begun and earlier and earlier.state == "finished":
            # A change was refused, or interrupted, before it began: the run is as finished as it was.
            self._log.say(f"ended before it changed anything: {_describe(error)}")
            with self._writing, suppress(Exception):
                write_anyway(self.folder / STATUS_FILE, earlier.model_dump_json(indent=1))
            return
        else:
            self._state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._facts["error"] = _describe(error)
            said = f"{self._state}: {_describe(error)}"
        self._write()
        self._log.say(said)

    def _leave_nothing(self) -> None:
        # What is wrong was told before anything was made: there is no run to speak of.
        with suppress(OSError):
            if {path.name for path in self.folder.iterdir()} <= {STATUS_FILE, RUN_LOG}:
                for name in (STATUS_FILE, RUN_LOG):
                    (self.folder / name).unlink(missing_ok=True)
                self.folder.rmdir()

    def _write(self) -> None:
        if self._driver is None:
            return
        with self._writing, suppress(Exception):  # whatever it is: the run goes on
            with self._changes:
                self._is_changed = False
                self._beat += 1
                text = self._describe_all(self._driver).model_dump_json(indent=1)
            write_anyway(self.folder / STATUS_FILE, text)

    def _describe_all(self, driver: Driver) -> RunStatus:
        step = self._step
        return RunStatus(
            state=self._state,
            command=self._command,
            driver=driver,
            started=self._started,
            updated=datetime.now(UTC),
            beat=self._beat,
            step=step.describe() if step else None,
            steps=tuple(self._steps),
            notes=tuple(self._notes),
            attempts=self._attempts,
            **self._facts,
        )


class JournalProgress:
    """Tells a journal what it tells another progress."""

    def __init__(self, shown: Progress, journal: RunJournal) -> None:
        self._shown = shown
        self._journal = journal

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Open the step in both; a step within another one takes its place until it ends."""
        journal = self._journal
        journal._has_begun = True
        outer, journal._step = journal._step, (step := _Step(title, total, unit))
        journal._change()
        with self._shown.step(title, total, unit) as show:

            def advance(count: int) -> None:
                show(count)
                step.done += count
                step.advanced = time.time()
                journal._change()

            yield advance
        # Not in a `finally`: the step that failed is what the journal ends with.
        journal._steps.append(FinishedStep(title=title, seconds=round(time.time() - step.started, 3)))
        journal._step = outer
        journal._change()

    def enter(self, title: str) -> None:
        """Say which step is under way before, between and after its parts, in which nothing is counted."""
        self._journal._step = _Step(title, 0, "")
        self._journal._change()

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Tell how many parts of the step are done."""
        self._shown.count_parts(done, total, unit)
        if self._journal._step is not None:
            self._journal._step.parts = (done, total, unit)
            self._journal._change()

    def note(self, message: str) -> None:
        """Say one line, and keep it among the last ones."""
        self._shown.note(message)
        self._journal._add_note(message)


class _Step:
    """A step under way; numbers are written by one thread and read by another."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.started = self.advanced = time.time()
        self.parts: tuple[int, int, str] | None = None

    def describe(self) -> RunningStep:
        seconds, done = max(time.time() - self.started, 1e-9), self.done
        rate = done / seconds
        return RunningStep(
            title=self.title,
            unit=self.unit,
            total=self.total,
            done=done,
            started=datetime.fromtimestamp(self.started, UTC),
            advanced=datetime.fromtimestamp(self.advanced, UTC),
            rate=round(rate, 3),
            left_seconds=round((self.total - done) / rate, 1) if done else None,
            parts=self.parts,
        )


def _describe(error: BaseException) -> str:
    """Return an exception as a line for people; what this package did not raise itself has its type named."""
    if isinstance(error, HeadroomError):
        return str(error)[:_LETTERS]
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "Ctrl-C"
    return f"{type(error).__name__}: {error}"[:_LETTERS]


def _read_earlier(folder: Path) -> RunStatus | None:
    """Return what the last attempt at a run has left, if it can be read; refuse while that one is at work.

    The lock tells on this host and on most file systems; on those that lock within one host only, a driver elsewhere
    is known by its beat.
    """
    try:
        status = read_status(folder)
    except InputError:
        return None  # damaged: it is replaced
    if status is not None and status.is_active and status.driver.lives_here() is None and find_death(status) is None:
        _require_silence(folder, status)
    return status


def _require_silence(folder: Path, status: RunStatus) -> None:
    deadline = time.monotonic() + SECONDS_OF_DOUBT
    while time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            later = read_status(folder)
        except InputError:
            continue
        if later is not None and later.beat != status.beat:
            raise InputError(
                f"a run is under way in {folder} on {status.driver.host} (process {status.driver.pid}); wait for it "
                "(`headroom status` tells), or choose another --out"
            )


def write_anyway(path: Path, text: str) -> None:
    """Replace a file whole; where there is no room for a second one, write over it: that takes no new block."""
    content = text.encode("utf-8")
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except HeadroomError:
        with open(path, "r+b", opener=open_own) as stream:
            stream.write(content)
            stream.truncate()
