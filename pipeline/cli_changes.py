"""The commands that change the training set of a finished run: ``headroom add`` and ``headroom remove``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_table import print_table
from pipeline.config import ExperimentConfig
from pipeline.progress import choose_progress

if TYPE_CHECKING:
    from pipeline.results import RunResults

__all__ = ["add", "remove"]


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SHARDS_OR_STORES...", nargs=-1, required=True)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Worker processes.")
@click.option("--quiet", is_flag=True, help="No progress.")
def add(folder: Path, sources: tuple[str, ...], workers: int, quiet: bool) -> None:
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
        workers,
        quiet,
    )


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("shard", metavar="SHARD")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Worker processes.")
@click.option("--quiet", is_flag=True, help="No progress.")
def remove(folder: Path, shard: str, workers: int, quiet: bool) -> None:
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
        workers,
        quiet,
    )


def _change(change: Callable[..., RunResults], folder: Path, command: str, workers: int, quiet: bool) -> None:
    from cluster import LocalProfile, connect_local
    from pipeline.experiment import render_run
    from pipeline.experiment_changes import describe_reuse
    from pipeline.results import read_results

    read_results(folder)  # a mistake needs no workers to be told
    options: dict[str, Any] = {"progress": choose_progress(quiet=quiet), "command": command}
    with connect_local(LocalProfile(workers=workers)) as client:
        results = change(client=client, **options)
    _, page = render_run(folder)
    print_table(results, ExperimentConfig.model_validate(results.metadata["config"]))
    click.echo(describe_reuse(results))
    click.echo(f"report: {page}")
