"""``headroom export``: a run's models as a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.base import choose_progress

__all__ = ["export"]


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--level", type=float, help="Noise level of the training; the one of the run's conclusions by default.")
@click.option("--seed", type=int, help="Seed of the training noise; the run's first by default.")
@click.option(
    "--quantile",
    default=0.999,
    show_default=True,
    help="Spectra farther from the mean than this share of the training spectra are out of domain.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@click.option("--quiet", is_flag=True, help="No progress.")
def export(folder: Path, model: Path, quiet: bool, **options: Any) -> None:
    """Write the models of a finished run to a new folder MODEL, which needs neither the run nor its spectra.

    It holds the global model, the experts and the gate of one noise draw for all labels, what is out of domain, where
    all of it comes from, and a model card. Every byte is checked when it is loaded. `headroom predict` and
    `pipeline.load_model` use it.

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
