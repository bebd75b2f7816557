"""``headroom plan``: what a run will cost, before it starts."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli_run import run_folder
from pipeline.config_files import load_config

__all__ = ["plan"]


@click.command()
@click.argument("config")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder whose disk is checked.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Worker processes.")
def plan(config: str, out: Path | None, workers: int) -> None:
    """Project memory, disk, tasks and arithmetic of a run, and refuse what cannot fit.

    Reads the headers of shards and stores only; converts and writes nothing.

    \b
    Example:
      HEADROOM_DEMO=spectra headroom plan demo
    """
    from cluster import LocalProfile
    from pipeline.experiment import plan_experiment
    from pipeline.plan import measure_flops

    experiment = load_config(config)
    projected = plan_experiment(experiment, [LocalProfile(workers=workers).resolved_memory()] * workers)
    click.echo(projected.render(measure_flops(projected.n_pixels, experiment.precision) / workers))
    projected.require_fit(run_folder(config, out), Path(experiment.data.stores))
