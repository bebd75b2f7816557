"""What ``headroom submit`` leaves in a run folder: which batch jobs run the experiment, and what they print."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError
from pipeline.files import replacing

__all__ = ["JOBS_FILE", "LOG_FILE", "SCRIPT_FILE", "SUBMISSION_FILE", "Submission", "read_submission"]

SUBMISSION_FILE = "submission.json"
#: The batch script of the driver, what it and the run print, and a line for each job that was queued: its number.
SCRIPT_FILE, LOG_FILE, JOBS_FILE = "driver.sh", "driver.log", "driver_jobs.txt"


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
        submission = Submission.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and look for the job with `squeue`") from None
    try:
        lines = (folder / JOBS_FILE).read_text(encoding="utf-8").split()
    except OSError:
        lines = []
    return SubmittedRun(submission, tuple(lines))
