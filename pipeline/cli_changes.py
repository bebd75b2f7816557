"""The commands that change the training set of a finished run: ``headroom add`` and ``headroom remove``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_cluster import ClusterChoice, cluster_options
from pipeline.cli_journal import connected
from pipeline.cli_table import print_table
from pipeline.config import ExperimentConfig
from pipeline.config_files import load_config
from pipeline.journal import RunJournal
from pipeline.progress import choose_progress

if TYPE_CHECKING:
    from pipeline.results import RunResults

__all__ = ["add", "remove"]


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SHARDS_OR_STORES...", nargs=-1, required=True)
@cluster_options
@click.option("--quiet", is_flag=True, help="No progress.")
def add(folder: Path, sources: tuple[str, ...], choice: ClusterChoice, quiet: bool) -> None:
    """Add spectra to a finished run: read these alone, and bring all its results up to date.

    Shards are converted to a store of their own; a shard that was taken out comes back. The results are those of a run
    from scratch with the configuration that RUN/config.yaml then holds. With `compute: {folds: shards}` no other
    spectra are read; with a number of folds, those of folds that are cut anew are. Run it again to resume.

    \b
    Example:
      headroom add runs/first spectra/train/shard_4
    """
    from pipeline.experiment_changes import add_spectra

    _change(
        lambda **options: add_spectra(folder, sources, **options),
        folder,
        f"headroom add {folder} {' '.join(sources)}",
        choice,
        quiet,
    )


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("shard", metavar="SHARD")
@cluster_options
@click.option("--quiet", is_flag=True, help="No progress.")
def remove(folder: Path, shard: str, choice: ClusterChoice, quiet: bool) -> None:
    """Take one shard, given by its name, out of a finished run, and bring all its results up to date.

    The name joins data.exclude in RUN/config.yaml. The shard's moments are deleted from the run; its store stays, since
    its rows are counted: all other spectra keep their noise. `headroom add` takes it back. Run it again to resume.

    \b
    Example:
      headroom remove runs/first shard_2
    """
    from pipeline.experiment_changes import remove_shard

    _change(
        lambda **options: remove_shard(folder, shard, **options),
        folder,
        f"headroom remove {folder} {shard}",
        choice,
        quiet,
    )


def _change(change: Callable[..., RunResults], folder: Path, command: str, choice: ClusterChoice, quiet: bool) -> None:
    from pipeline.experiment import render_run
    from pipeline.experiment_changes import describe_reuse
    from pipeline.experiment_run import CONFIG_FILE
    from pipeline.results import read_results

    earlier = read_results(folder)  # a mistake needs no workers to be told
    progress = choose_progress(quiet=quiet)
    command += choice.words()
    # The run as it stands is a good enough measure of what workers need; its shards may be gone, its stores are not.
    standing = load_config(folder / CONFIG_FILE)
    paths = {role: tuple(earlier.metadata["stores"][role]["paths"]) for role in ("train", "test")}
    standing = standing.model_copy(update={"data": standing.data.model_copy(update=paths)})
    profile = choice.checked_profile(standing, folder)
    with RunJournal(folder, command) as journal:
        progress = journal.progress(progress)
        with connected(journal, profile, folder, progress) as client:
            results = change(client=client, progress=progress, command=command)
        _, page = render_run(folder)
        print_table(results, ExperimentConfig.model_validate(results.metadata["config"]))
        click.echo(describe_reuse(results))
        click.echo(f"report: {page}")
