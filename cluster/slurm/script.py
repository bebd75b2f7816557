"""The script of one batch job: what ``headroom cluster show`` prints is what sbatch gets.

dask-jobqueue writes it. Here it is told everything, so that no configuration of the site's speaks in between, and what
it leaves open is closed: paths may hold spaces, memory is neither rounded nor in doubt, and the environment of a task's
threads, spilling and encryption is stated where the worker starts.
"""

from __future__ import annotations

import asyncio
import math
import re
import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed.deploy.spec import ProcessInterface

from cluster.certificates import Certificates
from cluster.profiles import WORKER_SETTINGS, SlurmProfile, format_walltime
from cluster.slurm.commands import run_slurm, submit_script
from pipeline.base import MEMORY_VARIABLES
from pipeline.errors import ResourceError

__all__ = [
    "BatchWorker",
    "JobPaths",
    "SLURMCluster",
    "SLURMJob",
    "job_options",
    "own_settings_only",
    "render_job_script",
]

# --- dask-jobqueue, imported without what importing it does to this process: it would answer Ctrl-C by a silent exit.

_before = signal.getsignal(signal.SIGINT)
try:
    from dask_jobqueue.slurm import SLURMCluster, SLURMJob
except ImportError as error:
    raise ResourceError(
        f"jobs of SLURM need dask-jobqueue, which is not here ({error}); install it: pip install 'headroom[cluster]'"
    ) from error
finally:
    if threading.current_thread() is threading.main_thread() and _before is not None:
        signal.signal(signal.SIGINT, _before)


#: The section of Dask's configuration that jobs are made from: one that nobody else writes.
_SECTION = "headroom"
_SECONDS_FOR_A_SCHEDULER = 60
#: How dask-jobqueue writes the options that a site may refuse, such that nothing else matches.
_DIRECTIVES = {
    "-n": "#SBATCH -n ",
    "--cpus-per-task": "#SBATCH --cpus-per-task=",
    "--mem": "#SBATCH --mem=",
    "-t": "#SBATCH -t ",
}


#: Variables of whoever submits that a worker's libraries cannot read (such as a list of threads, 4,2), or that would
#: change what it writes. The command itself takes them from the driver.
_UNSET = ("unset OMP_NUM_THREADS NUMEXPR_NUM_THREADS NUMEXPR_MAX_THREADS NUMBA_NUM_THREADS ${!ZARR_@}",)
_UNKNOWN_FILES = Certificates("RUN/.tls-RUN/ca.pem", "RUN/.tls-RUN/cert.pem", "RUN/.tls-RUN/key.pem")


@dataclass(frozen=True)
class JobPaths:
    """What a job finds on the file system that all nodes share.

    Attributes
    ----------
    name
        Of the job, the same for all jobs of a run and for no other run's.
    logs
        Folder for what jobs print.
    certificates
        Files of the run's certificates.
    """

    name: str = "headroom-RUN"
    logs: str = "RUN/logs"
    certificates: Certificates = _UNKNOWN_FILES


class BatchWorker(SLURMJob):
    """A job that dask-jobqueue writes from our options alone, with one worker of one Dask thread.

    Attributes
    ----------
    refusal
        Why sbatch did not take it, or None. dask-jobqueue itself would only log it.
    """

    job_id: str | None

    def __init__(self, scheduler: str | None = None, name: str | None = None, **options: Any) -> None:
        # The script names the files of certificates itself: here they would stand unquoted.
        super().__init__(scheduler=scheduler, name=name, **(options | {"security": None}))  # type: ignore[no-untyped-call]
        self.refusal: str | None = None

    @property
    def worker_process_memory(self) -> str:
        """The worker's limit in bytes, as it was stated; two decimals of a GiB could be more than the job has."""
        return str(self.worker_memory)

    @property
    def worker_process_threads(self) -> int:
        """One Dask thread: the job's cores work on one task at a time."""
        return 1

    async def start(self) -> None:
        """Submit the job; a refusal is noted for :class:`cluster.slurm.jobs.JobWatch`, and is no error here."""
        try:
            with self.job_file() as script:
                self.job_id = await asyncio.to_thread(submit_script, script, str(self.job_header))
        except ResourceError as error:
            self.refusal = str(error)
        await ProcessInterface.start(self)

    async def close(self) -> None:
        """Cancel the job; one that is gone already is no mistake."""
        if self.job_id:
            with suppress(ResourceError):
                await asyncio.to_thread(run_slurm, ["scancel", "--quiet", self.job_id])
        await ProcessInterface.close(self)


def own_settings_only() -> AbstractContextManager[Any]:
    """Let Dask's configuration say nothing about jobs, whatever ``~/.config/dask/jobqueue.yaml`` holds."""
    nothing: dict[str, Any] = dict.fromkeys(
        (
            *("account", "cores", "env-extra", "extra", "header-skip", "interface", "job-cpu", "job-extra", "job-mem"),
            *("local-directory", "log-directory", "memory", "processes", "project", "python", "queue", "walltime"),
            *("shared-temp-directory",),
        )
    )
    settings = {"shebang": "#!/usr/bin/env bash", "death-timeout": _SECONDS_FOR_A_SCHEDULER}
    return dask.config.set({f"jobqueue.{_SECTION}": nothing | settings})


def job_options(profile: SlurmProfile, paths: JobPaths) -> dict[str, Any]:
    """Return what :class:`BatchWorker` is told about the jobs of a profile; needs :func:`own_settings_only`."""
    # A worker leaves before its job is killed, and not all of them at once.
    margin = min(600, profile.walltime // 5)
    arguments = ["--dashboard-address", "127.0.0.1:0"]
    arguments += ["--lifetime", f"{profile.walltime - margin}s", "--lifetime-stagger", f"{margin // 2}s"]
    environment: dict[str, Any] = {
        "HEADROOM_THREADS": profile.cores,
        **{name: f"${{{name}:-{value}}}" for name, value in MEMORY_VARIABLES.items()},
        **{f"DASK_{name.upper().replace('.', '__')}": value for name, value in WORKER_SETTINGS.items()},
    }
    if not profile.insecure:
        files = paths.certificates
        arguments += ["--tls-ca-file", shlex.quote(files.authority), "--tls-cert", shlex.quote(files.certificate)]
        arguments += ["--tls-key", shlex.quote(files.key)]
        environment |= {
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": True,
            "DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION": 1.3,
        }
    directives = [f'--output="{_escape_directive(paths.logs)}/worker-%j.log"', "--no-requeue"]
    directives += [f"--qos={profile.qos}"] if profile.qos else []
    python = _quote_path(str(Path(profile.python).expanduser()) if profile.python else sys.executable)
    return {
        "config_name": _SECTION,
        "job_name": paths.name,
        "cores": profile.cores,
        "processes": 1,
        "memory": f"{profile.memory}B",
        # In whole MiB: from 1 GiB on, dask-jobqueue itself would round up to whole GiB.
        "job_mem": f"{math.ceil(profile.memory / 2**20)}M",
        "walltime": format_walltime(profile.walltime),
        "queue": profile.partition,
        "account": profile.account,
        "interface": profile.interface,
        "protocol": "tcp://" if profile.insecure else "tls://",
        # Without the folder that the command was started in, where another `pipeline` or `cluster` may lie.
        "python": f"{python} -P",
        "worker_command": "distributed.cli.dask_worker",
        "nanny": True,
        "local_directory": '"$scratch"',
        "worker_extra_args": arguments,
        "job_extra_directives": [*directives, *profile.directives],
        "job_directives_skip": [_DIRECTIVES[option] for option in profile.skip_directives],
        "job_script_prologue": [*profile.setup, *_UNSET, *_export(environment), *_scratch(profile)],
    }


def render_job_script(
    profile: SlurmProfile,
    paths: JobPaths | None = None,
    *,
    scheduler: str = "tls://SCHEDULER:PORT",
    name: str = "WORKER",
) -> str:
    """Return the script of one job of a profile, as sbatch gets it.

    Parameters
    ----------
    profile
        The jobs.
    paths, scheduler, name
        What is known once a run has begun; words in capitals stand for it until then.
    """
    address = scheduler.replace("tls://", "tcp://") if profile.insecure else scheduler
    with own_settings_only():
        job = BatchWorker(address, name, **job_options(profile, paths or JobPaths()))
        return str(job.job_script())  # type: ignore[no-untyped-call]


def _export(environment: Mapping[str, Any]) -> list[str]:
    return [f"export {name}={value}" for name, value in environment.items()]


def _scratch(profile: SlurmProfile) -> list[str]:
    """Lines that make a folder of the job's own, which nobody else can have put there, and remove it in the end."""
    base = _quote_path(profile.scratch)
    return [
        f"mkdir -p {base}",
        f'scratch=$(mktemp -d {base}/"headroom-$SLURM_JOB_ID-XXXXXX") || exit 1',
        "trap 'rm -rf \"$scratch\"' EXIT",
    ]


def _quote_path(path: str) -> str:
    """Quote a path for the shell; variables such as ``$TMPDIR`` are the job's own, commands are no part of a path."""
    return '"' + re.sub(r'(["`\\]|\$(?=\())', r"\\\1", path) + '"'


def _escape_directive(path: str) -> str:
    """Escape a path for a quoted word of sbatch's, which replaces ``%`` patterns and takes backslashes."""
    return re.sub(r'(["\\])', r"\\\1", path.replace("%", "%%"))
