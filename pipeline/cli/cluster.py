"""``headroom cluster``, and how the other commands choose a cluster and connect to it."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base import Progress, RunJournal, end_imports
from pipeline.cli.words import (
    json_option,
    print_json,
    profile_name,
)
from pipeline.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from distributed import Client

    from cluster import Profile
    from pipeline.config import ExperimentConfig
    from pipeline.plan import ExperimentPlan

__all__ = ["ClusterChoice", "alone", "cluster", "cluster_options", "connected", "size_options"]


@dataclass(frozen=True)
class ClusterChoice:
    """The cluster options of a command line.

    Attributes
    ----------
    name
        A packaged profile or a file. None takes the configuration's, and ``local`` if it has none.
    workers
        Number of workers, instead of the profile's.
    minimum, maximum
        Bounds of an adaptive cluster, instead of the profile's number.
    port
        Where the dashboard listens, instead of the profile's ``dashboard_port``.
    """

    name: str | None = None
    workers: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    port: int | None = None

    def profile(self, configured: str | None = None) -> Profile:
        """Return the chosen profile, with the options applied to it.

        Parameters
        ----------
        configured
            The setting ``cluster`` of the experiment's configuration.

        Raises
        ------
        ConfigError
            If there is no such profile, or if it does not take these options.
        """
        from cluster import AddressProfile, SlurmProfile, load_profile

        profile = load_profile(self.source(configured))
        if self.port is not None:
            if isinstance(profile, AddressProfile):
                raise ConfigError("--dashboard-port: a scheduler that runs already has its dashboard; leave it out")
            profile = profile.model_copy(update={"dashboard_port": self.port})
        if self.workers is not None:
            if self.minimum is not None or self.maximum is not None:
                raise ConfigError("--workers is a fixed number, --min and --max are bounds; give one or the others")
            if isinstance(profile, AddressProfile):
                raise ConfigError("--workers: a scheduler that runs already has the workers it has; leave it out")
            return profile.with_workers(self.workers)
        if self.minimum is not None or self.maximum is not None:
            if not isinstance(profile, SlurmProfile):
                raise ConfigError(f"--min and --max are bounds of batch jobs, found a profile of kind {profile.kind}")
            least = self.minimum or profile.fewest_workers
            most = self.maximum or max(profile.most_workers, least)
            return profile.with_bounds(least if self.minimum else min(least, most), most)
        return profile

    def source(self, configured: str | None = None) -> str:
        """Return the name or the path of the chosen profile."""
        return self.name or configured or "local"

    def words(self) -> str:
        """Return the options as they were given, to record the command with them, or to give them again."""
        given = {"cluster": self.name, "workers": self.workers, "min": self.minimum, "max": self.maximum}
        given |= {"dashboard-port": self.port}
        return "".join(f" --{key} {shlex.quote(str(value))}" for key, value in given.items() if value is not None)

    def checked_profile(self, config: ExperimentConfig, folder: Path) -> Profile:
        """Return the chosen profile, after checks that the run can work on its workers.

        Problems are found here, before jobs wait in a queue: a run that does not fit, a disk that is too small, or
        another command that writes to the run folder.

        Raises
        ------
        InputError, ConfigError
            If the profile or the experiment's spectra are wrong.
        ResourceError
            If it does not fit; the message names the profile's setting to change, and its new value.
        """
        from cluster import SlurmProfile
        from pipeline.base import exclusive
        from pipeline.run import plan_experiment

        profile = self.profile(config.cluster)
        if isinstance(profile, SlurmProfile):
            plan = plan_experiment(config, profile.worker_limits())
            self.require_fit(plan, profile, config.cluster)
            plan.require_fit(folder, Path(config.data.stores))
            if folder.is_dir():
                with exclusive(folder, "the run folder"):
                    pass
        return profile

    def require_fit(self, plan: ExperimentPlan, profile: Profile, configured: str | None = None) -> None:
        """Refuse a plan that a profile's jobs cannot hold.

        Raises
        ------
        ResourceError
            If it does not fit; the message names the profile's setting to change, and its new value.
        """
        from cluster import SlurmProfile
        from pipeline.base import format_bytes
        from pipeline.plan import MEMORY_SHARE

        if isinstance(profile, SlurmProfile) and plan.worker_memory > plan.worker_limit * MEMORY_SHARE:
            needed = math.ceil(plan.worker_memory / MEMORY_SHARE / 2**30)
            raise ResourceError(
                f"the plan needs {format_bytes(plan.worker_memory)} per worker but the jobs of cluster profile "
                f"{self.source(configured)} have memory: {format_bytes(profile.memory)}, of which {MEMORY_SHARE:.0%} "
                f"may be planned; set `memory: {needed}G` there, or use fewer bins or smaller compute.run_rows"
            )


def size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--workers``, ``--min`` and ``--max``, the number of workers."""
    count = click.IntRange(1, 10**6)
    for option in (
        click.option("--max", "maximum", type=count, help="Largest number of jobs of an adaptive cluster."),
        click.option("--min", "minimum", type=count, help="Smallest number of jobs of an adaptive cluster."),
        click.option("--workers", type=count, help="Number of workers, instead of the profile's."),
    ):
        command = option(command)
    return command


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--cluster``, the number of workers and ``--dashboard-port``; the command gets them as ``choice``."""

    @click.option(
        "--cluster",
        "name",
        metavar="PROFILE",
        type=profile_name,
        help="Cluster profile: a name or a file; local by default.",
    )
    @size_options
    @click.option(
        "--dashboard-port",
        "port",
        type=click.IntRange(1, 65535),
        help="Port of Dask's dashboard on 127.0.0.1; any free one by default.",
    )
    @functools.wraps(command)
    def chosen(
        *arguments: Any,
        name: str | None,
        workers: int | None,
        minimum: int | None,
        maximum: int | None,
        port: int | None,
        **options: Any,
    ) -> Any:
        return command(*arguments, choice=ClusterChoice(name, workers, minimum, maximum, port), **options)

    return chosen


@contextmanager
def connected(journal: RunJournal, profile: Profile, folder: Path, progress: Progress) -> Iterator[Client]:
    """Connect to a cluster, as :func:`cluster.connect` does, and record this in the run folder's journal.

    The journal says that the run waits for workers, and then it counts them.
    """
    from cluster import connect
    from cluster.client import silence_dask
    from cluster.dashboard import find_dashboard, tunnel_hint

    silence_dask()
    journal.enter("waiting for workers")
    with connect(profile, run_folder=folder, say=progress.note) as client:
        address = find_dashboard(client)
        with journal.attend(client, address.link if address else None, tunnel_hint(client)):
            end_imports()
            yield client


@contextmanager
def alone(journal: RunJournal) -> Iterator[None]:
    """Yield no client: this process computes alone, and nothing listens on any port."""
    journal.enter("running")
    end_imports()
    yield None


@click.group()
def cluster() -> None:
    """List cluster profiles and show their job scripts.

    A profile is a YAML file that describes where workers run.

    \b
    Example:
      headroom cluster show slurm
    """


@cluster.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """List the profiles that come with the package, and their files.

    Copy one of these files and change it for your site.

    \b
    Example:
      headroom cluster list
    """
    from cluster import load_profile, packaged_profiles

    packaged = packaged_profiles()
    if as_json:
        print_json({name: {"file": path, "says": _describe(load_profile(name))} for name, path in packaged.items()})
        return
    for name, path in packaged.items():
        click.echo(f"{name:8} {_describe(load_profile(name))}\n{'':8} {path}")


@cluster.command("show")
@click.argument("profile", metavar="PROFILE", type=profile_name)
@click.option("--workers", type=click.IntRange(1, 10**6), help="Number of workers, instead of the profile's.")
@json_option
def show(profile: str, workers: int | None, as_json: bool) -> None:
    """Show a profile and, for batch jobs, the script of one job.

    Nothing is submitted. The scheduler's address and the folder of certificates exist only during a run, so the script
    shows them as words in capitals.

    \b
    Example:
      headroom cluster show my_site.yaml --workers 8
    """
    from cluster import SlurmProfile

    chosen, script = ClusterChoice(profile, workers).profile(), None
    if isinstance(chosen, SlurmProfile):
        from cluster.slurm import render_job_script

        script = render_job_script(chosen)
    if as_json:
        print_json({"profile": chosen.model_dump(mode="json"), "says": _describe(chosen), "script": script})
        return
    click.echo(f"# {profile}: {_describe(chosen)}")
    if script is not None:
        click.echo(script, nl=False)


@cluster.command("array")
@json_option
def show_array(as_json: bool) -> None:
    """Print the script of a job array, for clusters whose nodes may not open ports.

    Each job of the array runs `headroom accumulate`. Change time, memory and cores in the script for your site.

    \b
    Example:
      headroom cluster array > job_array.sh
    """
    from cluster.profiles import array_script

    print_json({"script": array_script()}) if as_json else click.echo(array_script(), nl=False)


def _describe(profile: Profile) -> str:
    from cluster import LocalProfile, SlurmProfile
    from cluster.profiles import format_walltime
    from pipeline.base import format_bytes

    if isinstance(profile, LocalProfile):
        cores, memory = profile.resolved_threads(), format_bytes(profile.resolved_memory())
        workers = (
            _count(profile.workers, "worker process", "es") if profile.has_processes else "1 worker in the command"
        )
        return f"{workers} on this machine, {_count(cores, 'core')}, {memory}"
    if isinstance(profile, SlurmProfile):
        number = _count(profile.jobs, "job") if profile.jobs else f"{profile.minimum} to {profile.maximum} jobs"
        return (
            f"{number} of SLURM, each {_count(profile.cores, 'core')}, {format_bytes(profile.memory)}, "
            f"{format_walltime(profile.walltime)}" + ("; INSECURE" if profile.insecure else "")
        )
    return f"the scheduler at {profile.address or Path(profile.scheduler_file or '')}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
