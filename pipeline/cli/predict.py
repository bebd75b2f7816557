"""``headroom predict`` and ``headroom export``: labels for spectra, and a run's models in a folder of their own."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base import Progress, choose_progress
from pipeline.cli.words import (
    external_option,
    json_option,
    output_path,
    print_json,
    quiet_option,
    run_argument,
    spectra_name,
)
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.noise import NoiseDraw
    from pipeline.predict import MixtureModel, PredictSummary
    from pipeline.questions.gate import Route

__all__ = ["export", "predict"]


class _RouteOption(click.Option):
    """An option whose help lists the routing rules. They are imported when help is printed, which takes a while."""

    def make_metavar(self, ctx: click.Context) -> str:
        return f"[{'|'.join(route.name for route in _list_routes())}]"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None:
            return None
        rules = [f"{route.name}: {route.caption}" for route in _list_routes()]
        return record[0], "\n\n".join([record[1], *rules])


def _list_routes() -> list[Route]:
    """Return the routing rules that spectra without labels can be predicted by, the most elaborate first."""
    from pipeline.questions.gate import find_routes

    return list(reversed(find_routes(learned=True)))


@click.command()
@click.argument("model", metavar="RUN_OR_MODEL", type=click.Path(path_type=Path))
@click.argument("spectra", nargs=-1, required=True, type=spectra_name)
@click.option(
    "--out", required=True, type=output_path, help="File to write, .parquet or .csv, one row for each spectrum."
)
@click.option("--route", cls=_RouteOption, help="How experts are combined; the model's own by default.")
@click.option(
    "--noise",
    default="none",
    show_default=True,
    help="`none` for observed spectra. For simulated ones `stored` (their own noisy array) or a level to draw.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of drawn noise; the seed of the model's training by default."
)
@click.option("--resample", is_flag=True, help="Rebin spectra of another wavelength grid; flux is conserved.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of threads; one per core by default.")
@click.option("--overwrite", is_flag=True, help="Replace existing predictions.")
@external_option
@json_option
@quiet_option
def predict(
    model: Path,
    spectra: tuple[str, ...],
    out: Path,
    noise: str,
    seed: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Predict the labels of spectra.

    SPECTRA are stores, or shards and other files that `headroom convert` takes. They need no labels. If there are
    labels, R² is printed; they are not used for the prediction. Each row of the file holds the labels predicted by the
    chosen route and by the global model, and the probability of each bin if the model has a gate. It also says whether
    the spectrum is out of domain, that is, unlike the training spectra, and why.

    No noise is added unless you ask for it. After an interruption, run the same command again; it resumes.

    \b
    Example:
      headroom predict runs/demo observed.h5 --out predictions.parquet
      headroom predict model/ night_*.nc --out night.parquet --resample
      headroom predict model/ spectra/test --out test.parquet --noise 1.0 --seed 42
    """
    from pipeline.predict import PredictOptions, predict_spectra

    progress = choose_progress(quiet=quiet)
    loaded = _open_model(model, progress)
    if _is_bundle(model) and out.resolve().is_relative_to(model.resolve()):
        raise InputError(
            f"--out {out}: it lies in the model {model}, which `headroom export --overwrite` replaces as a whole; "
            "choose a place beside it"
        )
    if loaded.gate is None and options["route"] is None:
        progress.note("the global model answers, since the run of this model had no gate; `gate: {}` gives it one")
    how = PredictOptions(noise=_choose_noise(noise, seed, loaded), **options)
    summary = predict_spectra(loaded, spectra, out, how, progress=progress)
    if as_json:
        click.echo(json.dumps(_plain(summary), indent=1))
    else:
        _print_summary(summary)


def _open_model(path: Path, progress: Progress) -> MixtureModel:
    """Load a model bundle, or the bundle of a run, which is made when it is first asked for."""
    from pipeline.predict import load_model, model_of_run

    return load_model(path) if _is_bundle(path) else model_of_run(path, progress)


def _is_bundle(path: Path) -> bool:
    from pipeline.predict import MODEL_FILE, SUMS_FILE

    return (path / SUMS_FILE).exists() or (path / MODEL_FILE).exists()


def _choose_noise(text: str, seed: int | None, model: MixtureModel) -> NoiseDraw | str | None:
    from pipeline import schema
    from pipeline.config import LARGEST_LEVEL, LEAST_LEVEL
    from pipeline.noise import NoiseDraw
    from pipeline.predict import STORED_NOISE

    if text in ("none", STORED_NOISE):
        if seed is not None:
            raise InputError(f"--seed {seed}: only a drawn noise has a seed, found --noise {text}; leave --seed out")
        return None if text == "none" else STORED_NOISE
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if level and not LEAST_LEVEL <= level <= LARGEST_LEVEL:  # NaN is not, either
        raise InputError(
            f"--noise must be none, stored or a level such as 1.0 (0, or from {LEAST_LEVEL:g} to {LARGEST_LEVEL:g}), "
            f"found {text!r}"
        )
    trained = model.facts["training"]["noise"]["seed"]
    return NoiseDraw(level, seed if seed is not None else trained or 0, schema.STREAM_TEST)


def _print_summary(summary: PredictSummary) -> None:
    share = summary.n_out_of_domain / max(summary.n_spectra, 1)
    click.echo(
        f"{summary.path}: {summary.n_spectra:,} spectra, {summary.n_out_of_domain:,} out of domain ({share:.1%})"
    )
    for reason, count in summary.reasons.items():
        click.echo(f"  {reason}: {count:,}")
    if summary.scores:
        click.echo(f"{'label':8} {'spectra':8} {'n':>11} {'R²':>8} {'global':>8}")
    for one in summary.scores:
        click.echo(f"{one.label:8} {one.scope:8} {one.n_spectra:>11,} {_format(one.r2)} {_format(one.r2_global)}")


def _format(r2: float) -> str:
    return f"{r2:8.3f}" if math.isfinite(r2) else f"{'–':>8}"


def _plain(summary: PredictSummary) -> dict[str, object]:
    scores = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in vars(one).items()}
        for one in summary.scores
    ]
    return {**dataclasses.asdict(summary), "path": str(summary.path), "scores": scores}


# --- The models of a run in a folder of their own.


@click.command()
@run_argument
@click.argument("model", metavar="MODEL", type=output_path)
@click.option("--level", type=float, help="Noise level of the training; by default the level of the run's conclusions.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the training noise; the run's first seed by default.")
@click.option(
    "--quantile",
    default=0.999,
    show_default=True,
    help="A spectrum is out of domain if it lies farther from the mean than this share of the training spectra.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing model.")
@json_option
@quiet_option
def export(folder: Path, model: Path, as_json: bool, quiet: bool, **options: Any) -> None:
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
    if as_json:
        facts = {"labels": made.labels, "pixels": len(made.wavelength), "experts": made.n_experts}
        print_json({"model": model, **facts, "gate": made.gate is not None, "card": model / "README.md"})
        return
    gate = "a gate" if made.gate is not None else "no gate (so `headroom predict` takes the global model)"
    click.echo(
        f"{model}: {', '.join(made.labels)} from {len(made.wavelength):,} pixels, {made.n_experts} experts, {gate}; "
        f"out of domain beyond {made.limits.distance:.3g} standard deviations"
    )
    click.echo(f"model card: {model / 'README.md'}")
