"""The commands that change the training set of a finished run: ``headroom add`` and ``headroom remove``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.base import RunJournal, choose_progress
from pipeline.cli.cluster import ClusterChoice, cluster_options, connected
from pipeline.cli.words import json_option, print_json, print_table, quiet_option, run_argument, summarise_run
from pipeline.config import ExperimentConfig, load_config

if TYPE_CHECKING:
    from pipeline.scoring import RunResults

__all__ = ["add", "remove"]


@click.command()
@run_argument
@click.argument("sources", metavar="SHARDS_OR_STORES...", nargs=-1, required=True)
@cluster_options
@quiet_option
@json_option
def add(folder: Path, sources: tuple[str, ...], choice: ClusterChoice, quiet: bool, as_json: bool) -> None:
    """Add spectra to a finished run and update its results.

    Shards are converted to a store of their own. A shard that was removed before comes back. The results are those of
    a run from scratch with the configuration that RUN/config.yaml then holds.

    With `compute: {folds: shards}` only the new spectra are read. With a number of folds, the spectra of folds whose
    boundaries move are read again, too. After an interruption, run the same command again; it resumes.

    \b
    Example:
      headroom add runs/first spectra/train/shard_4
    """
    from pipeline.run import add_spectra

    _change(
        lambda **options: add_spectra(folder, sources, **options),
        folder,
        f"headroom add {folder} {' '.join(sources)}",
        choice,
        (quiet, as_json),
    )


@click.command()
@run_argument
@click.argument("shard", metavar="SHARD")
@cluster_options
@quiet_option
@json_option
def remove(folder: Path, shard: str, choice: ClusterChoice, quiet: bool, as_json: bool) -> None:
    """Take one shard out of a finished run and update its results.

    SHARD is the shard's name. It is added to data.exclude in RUN/config.yaml, and its moments are deleted from the run.
    Its store is kept, because its rows still count: all other spectra keep their noise. `headroom add` puts the shard
    back. After an interruption, run the same command again; it resumes.

    \b
    Example:
      headroom remove runs/first shard_2
    """
    from pipeline.run import remove_shard

    _change(
        lambda **options: remove_shard(folder, shard, **options),
        folder,
        f"headroom remove {folder} {shard}",
        choice,
        (quiet, as_json),
    )


def _change(
    change: Callable[..., RunResults], folder: Path, command: str, choice: ClusterChoice, told: tuple[bool, bool]
) -> None:
    """Change a run and print the new results; ``told`` holds the switches ``--quiet`` and ``--json``."""
    from pipeline.run import CONFIG_FILE, describe_reuse, render_run
    from pipeline.scoring import read_results

    earlier = read_results(folder)  # a wrong folder is refused before workers are started
    quiet, as_json = told
    progress = choose_progress(quiet=quiet)
    command += choice.words()
    # The memory that the present run needs is a good enough estimate. Its shards may be gone, but its stores are there.
    standing = load_config(folder / CONFIG_FILE)
    paths = {role: tuple(earlier.metadata["stores"][role]["paths"]) for role in ("train", "test")}
    standing = standing.model_copy(update={"data": standing.data.model_copy(update=paths)})
    profile = choice.checked_profile(standing, folder)
    with RunJournal(folder, command) as journal:
        progress = journal.progress(progress)
        with connected(journal, profile, folder, progress) as client:
            results = change(client=client, progress=progress, command=command)
        with progress.step("draw figures and report", 1, "page") as advance:
            _, page = render_run(folder)
            advance(1)
        if as_json:
            print_json(summarise_run(results, page) | {"folds": results.metadata["folds"]})
            return
        print_table(results, ExperimentConfig.model_validate(results.metadata["config"]))
        click.echo(describe_reuse(results))
        click.echo(f"report: {page}")
