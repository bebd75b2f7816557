"""``headroom sweep``: one configuration with some settings varied, and one table and one page of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.base import NumberedProgress, RunJournal, choose_progress
from pipeline.cli.cluster import ClusterChoice, cluster_options, connected
from pipeline.cli.results import print_comparison
from pipeline.cli.words import config_argument, json_option, output_path, print_json, quiet_option
from pipeline.config import load_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.run import SweepPoint

__all__ = ["sweep"]

_PAGE = "sweep.html"


@click.command()
@config_argument
@click.option(
    "--set",
    "varied",
    multiple=True,
    required=True,
    metavar="SETTING=VALUES",
    help="A setting and its values, with commas between them; once for each setting that varies.",
)
@click.option("--out", type=output_path, help="Folder of all runs; sweeps/NAME by default.")
@click.option("--dry-run", is_flag=True, help="List the runs of the grid and check their settings; run nothing.")
@cluster_options
@quiet_option
@json_option
def sweep(
    config: str,
    varied: tuple[str, ...],
    out: Path | None,
    dry_run: bool,
    choice: ClusterChoice,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a grid of settings, and compare all its runs.

    Every combination of the values is one run, in a folder of its own. All runs share the stores. Runs that differ in
    noise levels or seeds share the pass over the spectra. Runs that differ in what comes after the pass, such as the
    penalty or the decision, share its moments. The first run is the reference of the comparison.

    Values are written as in the configuration. A list stands in brackets; a single value of a setting that takes a list
    is a list of one. After an interruption, run the same command again; finished runs are skipped. The moments lie in
    the folder `work`, which may be deleted afterwards.

    \b
    Example:
      headroom sweep my.yaml --set noise.levels=0.2,0.5,1 --set ridge.standardize=global,none
      headroom sweep my.yaml --set seeds=[1],[1,2,3] --dry-run
    """
    from pipeline.run import list_open, plan_sweep

    experiment = load_config(config)
    points = plan_sweep(experiment, varied)
    if len(points) < 2:
        raise ConfigError("--set: at least two runs are required, found one; give several values, such as a=1,2")
    folder = out if out is not None else Path("sweeps") / Path(config).stem
    if dry_run and as_json:
        print_json({"runs": [folder / point.name for point in points]})
        return
    if dry_run:
        for point in points:
            click.echo(folder / point.name)
        return
    if list_open(points, folder):
        _run(points, folder, choice, f"headroom sweep {config}", quiet=quiet)
    elif not quiet:
        click.echo(f"nothing to do: all {len(points)} runs are finished", err=True)
    _compare(points, folder, as_json=as_json)


def _run(points: Sequence[SweepPoint], folder: Path, choice: ClusterChoice, command: str, *, quiet: bool) -> None:
    """Run what is not finished, on one cluster."""
    from pipeline.run import WORK_FOLDER, require_sweep_folder, run_sweep

    require_sweep_folder(points, folder)  # before the journal, which writes into it
    work = folder / WORK_FOLDER
    profile = choice.checked_profile(points[0].config, work)
    with RunJournal(work, command + choice.words()) as journal:
        progress = NumberedProgress(journal.progress(choose_progress(quiet=quiet)))
        with connected(journal, profile, work, progress) as client:
            run_sweep(points, folder, client=client, progress=progress)


def _compare(points: Sequence[SweepPoint], folder: Path, *, as_json: bool) -> None:
    """Print one table of all runs, and write one page."""
    from pipeline.report import compare_runs, write_page

    names = [", ".join(f"{name}={value}" for name, value in point.settings.items()) for point in points]
    comparison = compare_runs([folder / point.name for point in points], names)
    page = folder / _PAGE
    write_page(comparison, page, f"A sweep of {len(points)} runs")
    if as_json:
        print_json(comparison.to_dict() | {"page": page})
        return
    print_comparison(comparison)
    click.echo(f"page: {page}")
