"""What a run's ``status.json`` says, read back; and whether the process that wrote it still lives.

The run folder is all that is asked: neither the cluster nor the batch system. What ``headroom submit`` leaves in it is
read here, too.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base.files import parse_object, read_file, replacing
from pipeline.errors import InputError
from pipeline.schema import STATUS_VERSION

__all__ = [
    "ACTIVE_STATES",
    "JOBS_FILE",
    "LOG_FILE",
    "SCRIPT_FILE",
    "STALE_SECONDS",
    "STATUS_FILE",
    "SUBMISSION_FILE",
    "Attempt",
    "Driver",
    "FinishedStep",
    "RunStatus",
    "RunningStep",
    "Submission",
    "find_death",
    "is_run_folder",
    "read_status",
    "read_submission",
]

STATUS_FILE = "status.json"
#: A driver on another host that was silent for so long is taken for dead. A network file system may show a file that
#: is a minute old.
STALE_SECONDS: Final = 120.0

State = Literal["starting", "waiting for workers", "running", "finished", "failed", "interrupted"]
ACTIVE_STATES: Final = frozenset({"starting", "waiting for workers", "running"})


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Driver(_Record):
    """The process that runs an experiment: ``started`` is the process' own start, in seconds of the host's clock."""

    host: str
    pid: int
    started: float
    job: str | None = None

    @classmethod
    def of_this_process(cls, job: str | None) -> Driver:
        """Return what tells this process from all others."""
        process = psutil.Process()
        return cls(host=socket.gethostname(), pid=process.pid, started=process.create_time(), job=job)

    def lives_here(self) -> bool | None:
        """Return whether it lives, None if it is another host's and cannot be known."""
        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            # A number that was given to another process since has another start.
            return abs(process.create_time() - self.started) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None


class RunningStep(_Record):
    """A step under way.

    Attributes
    ----------
    title, unit, total, done
        As the step is shown: ``accumulate``, ``spectra``, and how many of them. 0 of 0 while nothing is counted.
    started, advanced
        When it began and when units last came in.
    rate
        Units a second since it began.
    left_seconds
        The time left at this rate; None where there is no rate yet.
    parts
        Checkpoints done and in all, where the step has some; with their unit.
    """

    title: str
    unit: str
    total: int
    done: int
    started: datetime
    advanced: datetime
    rate: float
    left_seconds: float | None
    parts: tuple[int, int, str] | None = None


class FinishedStep(_Record):
    """A step that is done, and its time."""

    title: str
    seconds: float


class Attempt(_Record):
    """An earlier start of the same run, and how it ended; ``died`` without a word."""

    state: str
    started: datetime
    updated: datetime
    job: str | None = None
    error: str | None = None


class RunStatus(_Record):
    """Where a run stands.

    Attributes
    ----------
    state
        The state as its driver wrote it; :func:`find_death` tells whether that still holds.
    command, driver, started, updated
        What runs, where, since when, and when it last gave a sign of life (UTC).
    beat
        Counts the signs of life: it grows while the driver lives, whatever the clocks of two hosts say.
    step, steps
        The step under way (None before the first one), and those finished in this attempt.
    workers
        Workers now; None before there are any to count.
    dashboard, tunnel
        Address of Dask's dashboard, as the driver's host sees it, and the command that brings it to another machine.
    notes
        What was said last, oldest first.
    error
        Why it failed or was interrupted.
    attempts
        Earlier starts, oldest first.
    """

    version: int = STATUS_VERSION
    state: State
    command: str
    driver: Driver
    started: datetime
    updated: datetime
    beat: int = 0
    step: RunningStep | None = None
    steps: tuple[FinishedStep, ...] = ()
    workers: int | None = None
    dashboard: str | None = None
    tunnel: str | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether the driver meant to go on when it wrote this."""
        return self.state in ACTIVE_STATES

    def as_attempt(self) -> Attempt:
        """Return this attempt as the next one remembers it."""
        state = "died" if self.is_active else self.state
        return Attempt(state=state, started=self.started, updated=self.updated, job=self.driver.job, error=self.error)


def read_status(folder: Path) -> RunStatus | None:
    """Read a run folder's ``status.json``; None if there is none.

    Raises
    ------
    InputError
        If it is damaged, or another version wrote it.
    """
    path = folder / STATUS_FILE
    problem = ""
    for patience in (0.3, 0.0):
        try:
            content = parse_object(read_file(path))
            if content["version"] == STATUS_VERSION:
                return RunStatus.model_validate(content)
            problem = f"version {STATUS_VERSION} is required, found {content['version']}"
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = error.strerror or str(error)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (ValueError, KeyError, TypeError) as error:
            problem = f"it is not what `headroom run` writes ({error})"
        time.sleep(patience)  # on a full disk the file is rewritten in place: it may be whole a moment later
    raise InputError(
        f"{path} is not the status of a run: {problem}; results are not affected. A run that is under way writes it "
        "anew within seconds; otherwise move it away, and `headroom status` tells from the results"
    )


def find_death(status: RunStatus, now: datetime | None = None) -> str | None:
    """Return how one knows that the driver of an unfinished run is gone; None while it lives, or has ended in order.

    On the driver's host its process is looked for; from elsewhere, silence of :data:`STALE_SECONDS` tells.
    """
    if not status.is_active:
        return None
    lives = status.driver.lives_here()
    if lives is not None:
        return None if lives else f"process {status.driver.pid} on this host is gone"
    silence = ((now or datetime.now(UTC)) - status.updated).total_seconds()
    if silence <= STALE_SECONDS:
        return None
    return f"{status.driver.host} gave no sign of life for {silence:,.0f} s"


# --- What ``headroom submit`` leaves in a run folder: which batch jobs run the experiment, and what they print.

SUBMISSION_FILE = "submission.json"
#: The batch script of the driver, what it and the run print, and a line for each job that was queued: its number.
SCRIPT_FILE, LOG_FILE, JOBS_FILE = "driver.sh", "driver.log", "driver_jobs.txt"
#: What a run leaves in its folder, the first of them when it begins; one that waits in a queue has its script alone.
_TRACES = (STATUS_FILE, SCRIPT_FILE, "moments", "products.json", "metadata.json")


def is_run_folder(folder: Path) -> bool:
    """Whether a run has written to a folder, or is to begin in it."""
    return any(os.path.exists(folder / name) for name in _TRACES)


class Submission(BaseModel):
    """A run that was given to the batch system.

    Attributes
    ----------
    command
        What the job runs.
    profile
        The cluster profile, as it was given.
    name
        Of all its jobs.
    submitted
        When (UTC).
    resubmissions
        How many times a driver that meets its walltime is queued again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    command: str
    profile: str
    name: str
    submitted: datetime
    resubmissions: int

    def write(self, folder: Path) -> None:
        """Write it to a run folder.

        Raises
        ------
        ResourceError
            If it cannot be written.
        """
        with replacing(folder / SUBMISSION_FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")


@dataclass(frozen=True)
class SubmittedRun:
    """A submission and the numbers of its jobs so far: the first one, and those queued when it met its walltime."""

    submission: Submission
    jobs: tuple[str, ...]


def read_submission(folder: Path) -> SubmittedRun | None:
    """Read what was submitted for a run folder; None if nothing was.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = folder / SUBMISSION_FILE
    try:
        submission = Submission.model_validate(parse_object(read_file(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"{path} cannot be read ({error}); move it away, and look for the job with `squeue`") from None
    try:
        lines = read_file(folder / JOBS_FILE).decode().split()
    except (OSError, ValueError):
        lines = []
    return SubmittedRun(submission, tuple(lines))
