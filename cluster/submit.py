"""The driver as a batch job: ``headroom run`` on a node, so that nothing has to stay on the login node.

The job's script is a text that can be read before it is sent. Before its walltime SLURM sends it a signal: then it
queues a successor, which waits for its end, and stops the run in order; the successor goes on from what is on disk.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cluster.profiles import SlurmProfile, format_walltime
from cluster.slurm import list_jobs, overruling_variables, run_slurm, submit_script
from pipeline.base import (
    JOBS_FILE,
    LOG_FILE,
    SCRIPT_FILE,
    Submission,
    exclusive,
    find_death,
    read_status,
    read_submission,
    replacing,
)
from pipeline.errors import InputError, ResourceError
from pipeline.run import writable_folder

__all__ = ["driver_name", "render_driver_script", "require_idle", "submit_driver"]

#: The exit code of a run that SIGTERM ended.
_TERMINATED: Final = 143

_BODY = """
# {title}
# It was queued by `headroom submit`; its argument is how many times it was queued again before.
resubmissions=${{1:-0}}
allowed={allowed}
script={script}
jobs={jobs}
driver=""
successor=""
# The lines above count for a successor, too, whatever the submitter's environment says.
unset {overruling}

say() {{ printf 'headroom: %s job %s: %s\\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$SLURM_JOB_ID" "$1" >&2; }}

stop() {{ if [ -n "$driver" ]; then kill -TERM "$driver" 2>/dev/null; else exit {terminated}; fi; }}

# SLURM sends USR1 {lead} s before the walltime, or up to a minute earlier.
before_walltime() {{
  trap '' USR1
  if [ "$resubmissions" -ge "$allowed" ]; then
    say "the walltime is near and it was queued again $allowed times already; \\`headroom submit\\` again to go on"
  elif successor=$(sbatch --parsable --dependency="afterany:$SLURM_JOB_ID" "$script" "$((resubmissions + 1))"); then
    successor=${{successor%%;*}}
    printf '%s\\n' "$successor" >> "$jobs"
    say "the walltime is near; the run stops and goes on in job $successor"
  else
    successor=""
    say "the walltime is near and sbatch refused a successor; \\`headroom submit\\` again to go on"
  fi
  stop
}}
trap before_walltime USR1
trap stop TERM
{setup}
say "starts on $(hostname)"
{command} &
driver=$!
# A signal ends a wait early: wait until the run itself has ended.
while kill -0 "$driver" 2>/dev/null; do wait "$driver"; done
wait "$driver"
code=$?
if [ -n "$successor" ] && [ "$code" -ne {terminated} ]; then
  say "the run ended by itself; job $successor is not needed"
  scancel "$successor"
fi
say "ends with exit code $code"
exit "$code"
"""


def driver_name(folder: Path) -> str:
    """Return the name of the driver's jobs, by which ``squeue --name`` finds them."""
    return f"headroom-driver-{re.sub(r'[^A-Za-z0-9._-]+', '_', folder.absolute().name)}"


def render_driver_script(profile: SlurmProfile, arguments: Sequence[str], folder: Path) -> str:
    """Return the batch script of the job that runs ``headroom`` with these arguments.

    Parameters
    ----------
    profile
        ``driver`` says what the job gets; partition, account, qos and set-up lines are those of the workers' jobs.
    arguments
        Of ``headroom``: ``run``, the configuration, ``--out`` and so on; quoted here.
    folder
        The run folder, where the script and its log lie.

    Raises
    ------
    InputError
        If SLURM cannot name the folder.
    """
    folder = folder.absolute()
    if not str(folder).isprintable() or "\\" in str(folder):
        raise InputError(f"--out {str(folder)!r}: SLURM takes no backslash or line break in a path; choose another one")
    job, lead = profile.driver, _signal_seconds(profile.driver.walltime)
    options = {
        "--job-name": driver_name(folder),
        # Patterns such as %j would be replaced.
        "--output": '"' + str(folder / LOG_FILE).replace("%", "%%").replace('"', '\\"') + '"',
        "--open-mode": "append",
        "-n": "1",
        "--cpus-per-task": str(job.cores),
        "--mem": f"{-(-job.memory // 2**20)}M",
        "-t": format_walltime(job.walltime),
        "--partition": job.partition or profile.partition,
        "--account": profile.account,
        "--qos": profile.qos,
        "--signal": f"B:USR1@{lead}",
    }
    lines = ["#!/usr/bin/env bash"]
    for option, value in options.items():
        if value is not None and option not in profile.skip_directives:
            lines.append(f"#SBATCH {option}{'=' if option.startswith('--') else ' '}{value}")
    lines.append("#SBATCH --requeue")  # where a node fails, SLURM itself starts it again
    python = str(Path(profile.python).expanduser()) if profile.python else sys.executable
    body = _BODY.format(
        title=f"The driver of the run {folder.name}: the run itself, with Dask's scheduler.",
        allowed=job.resubmissions,
        script=shlex.quote(str(folder / SCRIPT_FILE)),
        jobs=shlex.quote(str(folder / JOBS_FILE)),
        lead=lead,
        overruling=" ".join(overruling_variables("\n".join(lines))),
        setup="\n".join(profile.setup),
        # Without the folder that it starts in, where another `pipeline` may lie.
        command=shlex.join([python, "-P", "-m", "pipeline", *arguments]),
        terminated=_TERMINATED,
    )
    return "\n".join(lines) + "\n" + body


def submit_driver(profile: SlurmProfile, source: str, arguments: Sequence[str], folder: Path) -> str:
    """Queue the driver's job and return its number; the run folder remembers it.

    Parameters
    ----------
    profile, arguments, folder
        See :func:`render_driver_script`.
    source
        The profile as the user named it, for the record.

    Raises
    ------
    InputError
        If a run is under way in the folder, or its job is in the queue.
    ResourceError
        If the folder cannot be written, or sbatch is missing or refuses; nothing is left behind then.
    """
    script = render_driver_script(profile, arguments, folder)
    with writable_folder(folder), exclusive(folder, "the submission of", ".submit.lock"):
        require_idle(folder)
        path, number = folder / SCRIPT_FILE, ""
        earlier = path.read_bytes() if path.is_file() else None
        try:
            with replacing(path) as temporary:
                temporary.write_text(script, encoding="utf-8")
                temporary.chmod(0o755)
            number = submit_script(str(folder.absolute() / SCRIPT_FILE), script, "0")
            with replacing(folder / JOBS_FILE) as temporary:
                temporary.write_text(f"{number}\n", encoding="utf-8")
            Submission(
                command=shlex.join(["headroom", *arguments]),
                profile=source,
                name=driver_name(folder),
                submitted=datetime.now(UTC),
                resubmissions=profile.driver.resubmissions,
            ).write(folder)
        except BaseException:
            if number:
                with suppress(ResourceError):
                    run_slurm(["scancel", number])
            if earlier is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(earlier)
            raise
    return number


def require_idle(folder: Path) -> None:
    """Refuse a run folder where a run is under way, or queued.

    Raises
    ------
    InputError
        With its job or process.
    """
    status = read_status(folder)
    if status is not None and status.is_active and find_death(status) is None:
        where = f"job {status.driver.job}" if status.driver.job else f"process {status.driver.pid}"
        raise InputError(
            f"a run is under way in {folder} on {status.driver.host} ({where}); `headroom status {folder}` tells where "
            "it stands. Wait for it, or choose another --out"
        )
    earlier = read_submission(folder)
    if earlier is not None:
        queued = sorted(set(list_jobs(earlier.submission.name)) & set(earlier.jobs))
        if queued:
            raise InputError(
                f"run folder {folder}: it was submitted already, as job {', '.join(queued)}, which is in the queue; "
                f"wait for it, or cancel it with `scancel {' '.join(queued)}`"
            )


def _signal_seconds(walltime: int) -> int:
    """Return how long before the walltime a driver begins to stop: time to cancel workers, however short the job."""
    return max(15, min(180, walltime // 10))
