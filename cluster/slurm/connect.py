"""Workers as batch jobs of SLURM; the scheduler is in this process, and takes none without the run's certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster.certificates import SharedFolder, abandoned_tokens, make_certificates, shared_folder
from cluster.checks import nonce_file, require_same_workers
from cluster.dashboard import require_free_port
from cluster.profiles import SlurmProfile
from cluster.slurm.commands import cancel_jobs, run_slurm
from pipeline.base import EXPECTED_WORKERS, read_seconds, settings_of_dask
from pipeline.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from distributed import Client

    from cluster.slurm.jobs import JobCluster

__all__ = ["connect_slurm", "job_name"]

_LOGS = "logs"
_SECONDS_TO_CLOSE = 30.0
#: Jobs end for reasons of their own (walltime, preemption, a node): a task that was on several is not to blame yet.
_ALLOWED_FAILURES = 8
#: A job that says nothing is given up long before Dask's five minutes.
_SECONDS_OF_SILENCE = 60.0


def job_name(token: str) -> str:
    """Return the name of all worker jobs of one run."""
    return f"headroom-{token}"


@contextmanager
def connect_slurm(
    profile: SlurmProfile, run_folder: Path, say: Callable[[str], None], settings: dict[str, Any]
) -> Iterator[Client]:
    """Queue worker jobs, yield a client when the first is there, replace those that end, and cancel all at the end.

    Parameters
    ----------
    profile
        The jobs.
    run_folder
        On a file system that the nodes share.
    say
        Told what is being waited for.
    settings
        Of Dask, for as long as the cluster lives.

    Raises
    ------
    ConfigError
        If the profile's interface does not exist.
    ResourceError
        If the dashboard's port is taken, SLURM refuses the jobs, none starts in time, or workers are not as needed.
    """
    from distributed import Client

    run_slurm(["sbatch", "--version"])
    _require_interface(profile)
    require_free_port(profile.dashboard_port)
    for token in abandoned_tokens(run_folder):
        with suppress(ResourceError):
            cancel_jobs(job_name(token))
    # Whatever happens inside, and should the user lose patience: the last thing is that no job stays in the queue.
    with (
        _dask_settings(profile, settings),
        shared_folder(run_folder) as shared,
        _rest_cancelled(shared, say),
        _open_cluster(profile, shared) as cluster,
        Client(cluster) as client,
        _watched(cluster, client, profile, shared, say),
    ):
        yield client


@contextmanager
def _dask_settings(profile: SlurmProfile, settings: dict[str, Any]) -> Iterator[None]:
    import dask

    from cluster.slurm.script import own_settings_only

    failures, silence = (f"distributed.scheduler.{name}" for name in ("allowed-failures", "worker-ttl"))
    allowed = dask.config.get(failures)
    if not isinstance(allowed, int):
        raise ConfigError(
            f"Dask's setting {failures}: a whole number is required, found {allowed!r}; {settings_of_dask()}"
        )
    own = {
        failures: max(_ALLOWED_FAILURES, allowed),
        silence: min(_SECONDS_OF_SILENCE, read_seconds(silence, "5 minutes")),
    }

    waiting = "distributed.scheduler.no-workers-timeout"
    # Jobs that take the place of others may wait as long as the first ones may.
    patience = dask.config.get(waiting, None) or f"{profile.startup_timeout}s"
    with own_settings_only(), dask.config.set(settings | own | {waiting: patience}):
        yield


def _require_interface(profile: SlurmProfile) -> None:
    known = psutil.net_if_addrs()
    if profile.interface is not None and profile.interface not in known:
        raise ConfigError(
            f"cluster profile: interface {profile.interface!r} does not exist here; there are {', '.join(known)}"
        )


@contextmanager
def _open_cluster(profile: SlurmProfile, shared: SharedFolder) -> Iterator[JobCluster]:
    """Start the scheduler in this process, with no jobs yet."""
    from distributed.utils import get_ip

    from cluster.slurm.jobs import JobCluster
    from cluster.slurm.script import JobPaths, job_options

    logs = shared.path.parent / _LOGS
    logs.mkdir(exist_ok=True)
    certificates = make_certificates()
    paths = JobPaths(job_name(shared.token), str(logs), certificates.write(shared.path))
    where = {} if profile.interface else {"host": get_ip()}
    try:
        cluster = JobCluster(
            name=job_name(shared.token),
            security=None if profile.insecure else certificates.security(),
            scheduler_options={"dashboard_address": profile.dashboard_address, **where},
            silence_logs=50,
            **job_options(profile, paths),
        )
    except (RuntimeError, OSError) as error:
        raise ResourceError(
            f"Dask's scheduler did not start ({error}); see the setting `interface` of the cluster profile"
        ) from error
    try:
        yield cluster
    finally:
        with suppress(Exception):
            cluster.close(timeout=_SECONDS_TO_CLOSE)


@contextmanager
def _watched(
    cluster: JobCluster, client: Client, profile: SlurmProfile, shared: SharedFolder, say: Callable[[str], None]
) -> Iterator[None]:
    """Ask for the jobs, wait for the first workers, and replace jobs that end while the block lasts."""
    from cluster.slurm.jobs import JobWatch

    with nonce_file(shared.path) as nonce:
        watch = JobWatch(cluster, client, nonce, shared.path.parent / _LOGS, say)
        cluster.ask_for(profile)
        client.set_metadata([EXPECTED_WORKERS], profile.most_workers)
        watch.wait_for_workers(profile.startup_timeout)
        require_same_workers(client, nonce)
        watch.start()
        try:
            yield
        finally:
            watch.stop()


@contextmanager
def _rest_cancelled(shared: SharedFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Cancel all jobs of the run that are left at the end of the block."""
    try:
        yield
    finally:
        try:
            cancel_jobs(job_name(shared.token))
        except ResourceError as error:
            say(f"jobs may be left in the queue: {error}; `scancel --name {job_name(shared.token)}` cancels them")
