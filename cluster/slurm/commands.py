"""SLURM's own commands: asked with a deadline, their refusals told in their own words."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline.errors import ResourceError

__all__ = ["QueuedJob", "cancel_jobs", "list_jobs", "overruling_variables", "run_slurm", "submit_script"]

#: SLURM's commands try for a minute and more to reach a controller that does not answer.
_SECONDS = 60.0
#: What sbatch would take from the environment before it looks at the script, and the options that state it there.
_OVERRULING = {
    "SBATCH_JOB_NAME": ("-J ", "--job-name"),
    "SBATCH_OUTPUT": ("--output",),
    "SBATCH_ERROR": ("--output",),
    "SBATCH_TIMELIMIT": ("-t ", "--time"),
    "SBATCH_MEM_PER_NODE": ("--mem",),
    "SBATCH_MEM_PER_CPU": ("--mem",),
    "SBATCH_REQUEUE": ("--no-requeue",),
    "SBATCH_NO_REQUEUE": ("--requeue",),
    "SBATCH_PARTITION": ("-p ", "--partition"),
    "SBATCH_ACCOUNT": ("-A ", "--account"),
    "SBATCH_QOS": ("--qos",),
    "SBATCH_SIGNAL": ("--signal",),
    "SBATCH_OPEN_MODE": ("--open-mode",),
}


@dataclass(frozen=True)
class QueuedJob:
    """A job that SLURM knows and that has not ended.

    Attributes
    ----------
    number
        Its id.
    state
        ``PENDING``, ``RUNNING``, ``COMPLETING`` and so on.
    reason
        Why it is in that state: ``Priority``, ``Resources``, ``PartitionDown``; ``None`` where there is none.
    """

    number: str
    state: str
    reason: str


def run_slurm(command: Sequence[str], seconds: float = _SECONDS, environment: Mapping[str, str] | None = None) -> str:
    """Run one of SLURM's commands and return what it prints; by default in the environment of this process.

    Raises
    ------
    ResourceError
        If it is not there, fails (in its own words), or does not end.
    """
    try:
        # A session of its own: Ctrl-C in a terminal must not stop a cancellation in the middle.
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            start_new_session=True,
            env=environment,
        )
    except FileNotFoundError:
        raise ResourceError(
            f"{command[0]} is not there, so this is no machine that SLURM jobs are submitted from; log in to one that "
            "is, or compute here with --cluster local"
        ) from None
    except subprocess.TimeoutExpired:
        raise ResourceError(
            f"{command[0]} did not end within {seconds:.0f} s: SLURM's controller does not answer; try again later"
        ) from None
    except OSError as error:
        raise ResourceError(f"{command[0]} cannot be run ({error.strerror})") from error
    if done.returncode != 0:
        words = " ".join((done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").split())
        raise ResourceError(f"{command[0]} refused: {words}")
    return done.stdout


def overruling_variables(directives: str) -> list[str]:
    """Return the variables, such as ``SBATCH_TIMELIMIT``, by which sbatch would overrule what these lines state."""
    return [
        variable
        for variable, options in _OVERRULING.items()
        if any(f"#SBATCH {option}" in directives for option in options)
    ]


def submit_script(path: str, directives: str, *arguments: str) -> str:
    """Submit a batch script and return the job's id.

    Parameters
    ----------
    path
        The script.
    directives
        Its ``#SBATCH`` lines. What they state counts: :func:`overruling_variables` are not passed on.
    arguments
        Of the script.

    Raises
    ------
    ResourceError
        If sbatch is not there or refuses, in its own words.
    """
    stated = overruling_variables(directives)
    environment = {name: value for name, value in os.environ.items() if name not in stated}
    shown = run_slurm(["sbatch", "--parsable", path, *arguments], environment=environment)
    # Sites greet in their own way: the id is the line that is nothing else, or id;cluster.
    if not (found := re.findall(r"^(\d+)(?:;\S+)?\s*$", shown, flags=re.MULTILINE)):
        raise ResourceError(f"sbatch did not say which job it submitted: {' '.join(shown.split())!r}")
    return str(found[-1])


def list_jobs(name: str) -> dict[str, QueuedJob]:
    """Return your jobs of a name that have not ended, by id.

    Raises
    ------
    ResourceError
        If SLURM does not answer.
    """
    shown = run_slurm(["squeue", "--noheader", "--user", getpass.getuser(), "--name", name, "--format", "%i|%T|%r"])
    jobs = [QueuedJob(*line.strip().split("|", 2)) for line in shown.splitlines() if line.count("|") >= 2]
    return {job.number: job for job in jobs}


def cancel_jobs(name: str, numbers: Iterable[str] = ()) -> None:
    """Cancel your jobs of a name, and these; those that have ended already are no mistake.

    Raises
    ------
    ResourceError
        If SLURM does not answer.
    """
    run_slurm(["scancel", "--quiet", "--user", getpass.getuser(), "--name", name])
    if numbers := list(numbers):
        with suppress(ResourceError):  # some of them, or all, are gone
            run_slurm(["scancel", "--quiet", *numbers])
