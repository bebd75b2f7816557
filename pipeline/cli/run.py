"""``headroom run``: an experiment on a cluster, from spectra to a report."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from pipeline.base import RunJournal, choose_progress
from pipeline.cli.cluster import ClusterChoice, cluster_options
from pipeline.cli.journal import connected
from pipeline.cli.words import json_option, print_json, print_table, summarise_run
from pipeline.config import load_config

__all__ = ["run", "run_folder"]


@click.command()
@click.argument("config")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/NAME by default.")
@click.option("--dashboard", is_flag=True, help="Open Dask's dashboard in a browser; it stays until a key is pressed.")
@cluster_options
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def run(config: str, out: Path | None, dashboard: bool, choice: ClusterChoice, quiet: bool, as_json: bool) -> None:
    """Run an experiment: convert (if needed), accumulate, solve, score, report.

    CONFIG is a YAML file or the name of a packaged one (demo, oracle_noise1). Run it again to resume: finished
    steps are skipped.

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
