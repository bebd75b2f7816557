"""``headroom export``: write the models of a run to a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.base import choose_progress
from pipeline.cli.words import quiet_option, run_argument

__all__ = ["export"]


@click.command()
@run_argument
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--level", type=float, help="Noise level of the training; by default the level of the run's conclusions.")
@click.option("--seed", type=int, help="Seed of the training noise; the run's first seed by default.")
@click.option(
    "--quantile",
    default=0.999,
    show_default=True,
    help="A spectrum is out of domain if it lies farther from the mean than this share of the training spectra.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing model.")
@quiet_option
def export(folder: Path, model: Path, quiet: bool, **options: Any) -> None:
    """Write the models of a finished run to a folder.

    The folder MODEL needs neither the run nor its spectra. It holds the global model, the experts and the gate of one
    noise draw, for all labels. It also holds the limits beyond which a spectrum is out of domain, the origin of the
    models, and a model card. `headroom predict` and `pipeline.load_model` read it and check every byte.

    \b
    Example:
      headroom export runs/demo model/
      headroom export runs/my model_clean/ --level 0.2 --seed 123
    """
    from pipeline.predict import export_model

    made = export_model(folder, model, progress=choose_progress(quiet=quiet), **options)
    gate = "a gate" if made.gate is not None else "no gate"
    click.echo(
        f"{model}: {', '.join(made.labels)} from {len(made.wavelength):,} pixels, {made.n_experts} experts, {gate}; "
        f"out of domain beyond {made.limits.distance:.3g} standard deviations"
    )
    click.echo(f"model card: {model / 'README.md'}")
