"""``headroom run``: an experiment on a cluster, from spectra to a report."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.cli_table import print_table
from pipeline.config_files import load_config
from pipeline.progress import choose_progress

__all__ = ["run", "run_folder"]


@click.command()
@click.argument("config")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@click.option("--dashboard", is_flag=True, help="Wait for a key at the end, so that the Dask dashboard stays open.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Worker processes.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(config: str, out: Path | None, dashboard: bool, workers: int, quiet: bool) -> None:
    """Run an experiment: convert (if needed), accumulate, solve, score, report.

    CONFIG is a YAML file or the name of a packaged one (demo, oracle_noise1). Run it again to resume: finished
    steps are skipped.

    \b
    Example:
      headroom run oracle_noise1.yaml --out runs/first
    """
    from cluster import LocalProfile, connect_local
    from pipeline.experiment import render_run, run_experiment

    experiment = load_config(config)
    folder = run_folder(config, out)
    progress = choose_progress(quiet=quiet)
    command = f"headroom run {config} --out {folder}"
    with connect_local(LocalProfile(workers=workers)) as client:
        if dashboard or not quiet:
            (click.echo if quiet else progress.note)(f"dashboard: {client.dashboard_link}")
        results = run_experiment(experiment, folder, client=client, progress=progress, command=command)
        if dashboard and sys.stdin.isatty():
            click.pause("Press any key to close the dashboard …")
    _, page = render_run(folder)
    print_table(results, experiment)
    click.echo(f"report: {page}")


def run_folder(config: str, out: Path | None) -> Path:
    """Return the folder that a configuration runs in: ``out``, or ``runs/`` and the configuration's name."""
    return out if out is not None else Path("runs") / Path(config).stem
