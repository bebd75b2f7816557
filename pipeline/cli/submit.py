"""``headroom submit``: the run as a batch job, so that nothing has to stay on the login node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.cluster import ClusterChoice
from pipeline.cli.run import run_folder
from pipeline.config import load_config
from pipeline.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from cluster import SlurmProfile
    from pipeline.config import ExperimentConfig

__all__ = ["submit"]


@click.command()
@click.argument("config")
@click.option("--profile", metavar="PROFILE", help="Cluster profile of kind slurm, a name or a file.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@click.option("--workers", type=click.IntRange(min=1), help="Workers, instead of the profile's number.")
@click.option("--min", "minimum", type=click.IntRange(min=1), help="Fewest jobs of an adaptive cluster.")
@click.option("--max", "maximum", type=click.IntRange(min=1), help="Most jobs of an adaptive cluster.")
@click.option("--dry-run", is_flag=True, help="Check the plan and print the batch script; submit nothing.")
def submit(
    config: str,
    profile: str | None,
    out: Path | None,
    workers: int | None,
    minimum: int | None,
    maximum: int | None,
    dry_run: bool,
) -> None:
    """Submit a run as a batch job of SLURM, which queues the jobs of its workers itself.

    What can be checked is checked first: spectra, memory and disk. A job that meets its walltime is queued again and
    goes on where it was, as often as `driver: {resubmissions: 10}` in the profile says. `headroom status RUN` tells
    where the run stands, `scancel` ends it.

    \b
    Example:
      headroom submit oracle_noise1.yaml --profile my_site.yaml --out runs/first
      headroom status runs/first --watch
    """
    from cluster import SlurmProfile
    from cluster.submit import render_driver_script, require_idle, submit_driver

    experiment = load_config(config)
    folder = run_folder(config, out)
    source = profile or experiment.cluster or "slurm"
    choice = ClusterChoice(_as_path(source), workers, minimum, maximum)
    chosen = choice.profile()
    if not isinstance(chosen, SlurmProfile):
        raise ConfigError(
            f"--profile {source}: a profile of kind slurm is required, found kind {chosen.kind}; "
            "`headroom cluster list` shows an example, and `headroom run` needs no batch system"
        )
    if not dry_run:
        require_idle(folder)
    _require_fit(choice, chosen, experiment, folder)
    arguments = ["run", _as_path(config), "--out", str(folder.absolute())]
    for option, value in (("cluster", choice.name), ("workers", workers), ("min", minimum), ("max", maximum)):
        arguments += [f"--{option}", str(value)] if value is not None else []
    if dry_run:
        click.echo(render_driver_script(chosen, arguments, folder), nl=False)
        return
    job = submit_driver(chosen, source, arguments, folder)
    click.echo(f"job {job} is queued; it runs the experiment, in {folder}")
    click.echo(f"where it stands:  headroom status {folder} --watch")
    click.echo(f"what it prints:   {folder / 'driver.log'}")
    click.echo(f"to end it:        scancel {job}")


def _as_path(name: str) -> str:
    """Return a file's absolute path: the job starts elsewhere; the name of what is packaged stays."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() else name


def _require_fit(choice: ClusterChoice, profile: SlurmProfile, config: ExperimentConfig, folder: Path) -> None:
    from pipeline.base import format_bytes
    from pipeline.run import plan_experiment

    plan = plan_experiment(config, profile.worker_limits())
    choice.require_fit(plan, profile)
    # The driver has the memory of its job; what is free here, on a login node, says nothing of it.
    replace(plan, driver_memory=0).require_fit(folder, Path(config.data.stores))
    needed = plan.driver_memory
    if needed > profile.driver.memory:
        has = format_bytes(profile.driver.memory)
        raise ResourceError(
            f"converting, merging and scoring need {format_bytes(needed)} but the driver's job of cluster profile "
            f"{choice.source()} has {has}; set `driver: {{memory: {-(-needed // 2**30)}G}}`"
        )
