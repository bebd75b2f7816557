"""The commands that run an experiment: ``headroom run`` here, ``headroom submit`` as a batch job."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.base import RunJournal, choose_progress
from pipeline.cli.cluster import ClusterChoice, cluster_options, connected, size_options
from pipeline.cli.words import json_option, print_json, print_table, quiet_option, summarise_run
from pipeline.config import load_config
from pipeline.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from cluster import SlurmProfile
    from pipeline.config import ExperimentConfig

__all__ = ["run", "run_folder", "submit"]


@click.command()
@click.argument("config")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@click.option(
    "--dashboard", is_flag=True, help="Open Dask's dashboard in a browser; it stays open until you press a key."
)
@cluster_options
@quiet_option
@json_option
def run(config: str, out: Path | None, dashboard: bool, choice: ClusterChoice, quiet: bool, as_json: bool) -> None:
    """Run an experiment, from shards to a report.

    The steps are: convert shards to stores (if needed), sum the moments of the training spectra, solve the models,
    score the test spectra, and write the report. CONFIG is a YAML file or the name of a packaged one (demo,
    oracle_noise1). After an interruption, run the same command again; finished steps are skipped.

    \b
    Example:
      headroom run oracle_noise1.yaml --out runs/first
      headroom run oracle_noise1.yaml --out runs/first --cluster my_site.yaml --min 1 --max 40
    """
    from cluster.dashboard import announce
    from pipeline.run import render_run, run_experiment

    experiment = load_config(config)
    folder = run_folder(config, out)
    shown = choose_progress(quiet=quiet)
    profile = choice.checked_profile(experiment, folder)
    command = f"headroom run {config} --out {folder}{choice.words()}"
    with RunJournal(folder, command) as journal:
        progress = journal.progress(shown)
        with connected(journal, profile, folder, progress) as client:
            if dashboard or not quiet:
                say = partial(click.echo, err=as_json) if quiet else shown.note
                announce(client, say, browser=dashboard)
            results = run_experiment(experiment, folder, client=client, progress=progress, command=command)
            if dashboard and sys.stdin.isatty() and not as_json:
                click.pause("Press any key to close the dashboard …")
        with progress.step("draw figures and report", 1, "page") as advance:
            _, page = render_run(folder)
            advance(1)
        if as_json:
            print_json(summarise_run(results, page))
            return
        print_table(results, experiment)
        click.echo(f"report: {page}")


def run_folder(config: str, out: Path | None) -> Path:
    """Return the folder that a configuration runs in: ``out``, or ``runs/`` and the configuration's name."""
    return out if out is not None else Path("runs") / Path(config).stem


@click.command()
@click.argument("config")
@click.option("--profile", metavar="PROFILE", help="Cluster profile of kind slurm: a name or a file.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@size_options
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
    """Submit a run as a SLURM batch job.

    The job runs the experiment and queues the jobs of its workers. Spectra, memory and disk are checked before anything
    is queued. A job that reaches its walltime is queued again and continues. The profile's setting
    `driver: {resubmissions: 10}` says how often. `headroom status RUN` tells where the run stands, and `scancel` ends
    it.

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
    """Return the absolute path of a file, because the job starts in another folder; keep a packaged name."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() else name


def _require_fit(choice: ClusterChoice, profile: SlurmProfile, config: ExperimentConfig, folder: Path) -> None:
    from pipeline.base import format_bytes
    from pipeline.run import plan_experiment

    plan = plan_experiment(config, profile.worker_limits())
    choice.require_fit(plan, profile)
    # The driver will have the memory of its job. The memory that is free on this login node does not matter.
    replace(plan, driver_memory=0).require_fit(folder, Path(config.data.stores))
    needed = plan.driver_memory
    if needed > profile.driver.memory:
        has = format_bytes(profile.driver.memory)
        raise ResourceError(
            f"converting, merging and scoring need {format_bytes(needed)} but the driver's job of cluster profile "
            f"{choice.source()} has {has}; set `driver: {{memory: {-(-needed // 2**30)}G}}`"
        )
