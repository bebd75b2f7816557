"""The commands for files of spectra: ``headroom sample``, ``headroom inspect`` and ``headroom convert``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base import choose_progress
from pipeline.cli.words import (
    config_name,
    external_option,
    json_option,
    output_path,
    print_json,
    quiet_option,
    spectra_name,
)
from pipeline.config import load_config
from pipeline.errors import printable

if TYPE_CHECKING:
    from pipeline.shards import ShardInfo

__all__ = ["convert", "init", "inspect", "sample"]


@click.command()
@click.argument("directory", type=output_path)
@click.option("--train", default=20000, show_default=True, help="Number of training spectra.")
@click.option("--shards", default=4, show_default=True, help="Number of shards for the training spectra.")
@click.option("--test", default=5000, show_default=True, help="Number of test spectra.")
@click.option("--pixels", default=1024, show_default=True, help="Pixels of each spectrum.")
@click.option("--seed", default=0, show_default=True, help="Seed of labels and noise.")
@click.option(
    "--grid",
    type=click.Path(path_type=Path),
    help="Model spectra to interpolate: a file (NPZ or HDF5), or a folder of BOSZ 2024 files from MAST.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Write only this file: train/shard_K or test; repeatable.")
@click.option("--workers", type=click.IntRange(1, 10**4), help="Number of processes; one per core by default.")
@click.option("--overwrite", is_flag=True, help="Replace shards that were made with other settings.")
@quiet_option
@json_option
def sample(
    directory: Path,
    only: tuple[str, ...],
    workers: int | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    **spec: Any,
) -> None:
    """Simulate shards, to try everything without real data.

    A shard is an HDF5 file of spectra; these have the pfsspec layout. The spectra come from a compact physical model
    with the real line list, not from spectral synthesis.

    --grid interpolates your own model spectra instead: an NPZ or HDF5 file with wave (Å), flux, teff, logg and mh, or a
    folder with files of the BOSZ library (bosz2024_*_resam.txt.gz and bosz2024_wave_*.txt), as MAST serves them.

    --only writes a single file (K counts from 0). The file has the same bits as if it were written with the others.
    So a million spectra can be simulated, converted and deleted shard by shard on a small disk.

    \b
    Example:
      headroom sample spectra/ --train 40000 --pixels 512
      headroom sample spectra/ --grid bosz2024/r2000
      headroom sample spectra/ --train 1000000 --shards 40 --pixels 4096 --only train/shard_0
    """
    from pipeline.base import format_bytes
    from pipeline.simulate import SampleSpec, write_sample

    summary = write_sample(
        directory,
        SampleSpec(**spec),
        only=only,
        workers=workers,
        overwrite=overwrite,
        progress=choose_progress(quiet=quiet),
    )
    if as_json:
        print_json(summary)
        return
    low, median, high = summary.snr[0], summary.snr[2], summary.snr[4]
    click.echo(
        f"{directory}: {summary.train:,} training and {summary.test:,} test spectra × {summary.pixels:,} pixels, "
        f"{format_bytes(summary.bytes)}; SNR {low:.1f} to {high:.1f}, median {median:.1f} (simulated)"
    )
    if summary.clipped_labels:
        click.echo(f"{summary.clipped_labels:,} spectra had labels outside the grid's hull and took the nearest inside")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=spectra_name)
@click.option(
    "--config",
    metavar="CONFIG",
    type=config_name,
    help="Count the spectra in the bins of this configuration instead of the reference bins.",
)
@external_option
@quiet_option
@json_option
def inspect(paths: tuple[str, ...], config: str | None, allow_external: bool, quiet: bool, as_json: bool) -> None:
    """Check shards or stores and say what is inside.

    PATHS are shards, folders of shards, globs, a shard_index.txt, or stores, their folders and globs. Every pixel is
    read once. The exit code is 2 if a file has a problem, or holds spectra that `headroom run` refuses. With
    `data: {nonfinite: drop}` in the --config, no spectra are refused.

    \b
    Example:
      headroom inspect spectra/train spectra/test/dataset.h5
    """
    from pipeline.config import REFERENCE_EDGES
    from pipeline.convert import inspect_path, render_inspection, render_total

    settings = load_config(config) if config else None
    bins = settings.bins if settings else REFERENCE_EDGES
    is_strict = settings is None or settings.data.nonfinite == "refuse"
    progress = choose_progress(quiet=quiet)
    inspections = []
    for path in paths:
        for inspection in inspect_path(path, bins=bins, allow_external=allow_external, progress=progress):
            if not as_json:
                click.echo(printable(render_inspection(inspection)))
            inspections.append(inspection)
    if as_json:
        print_json({"files": inspections, "n_spectra": sum(one.n_spectra for one in inspections)})
    elif len(inspections) > 1:
        click.echo(render_total(inspections))
    if any(one.problem is not None or (is_strict and one.refused is not None) for one in inspections):
        sys.exit(2)


@click.command()
@click.argument("paths", metavar="SPECTRA...", nargs=-1, required=True, type=spectra_name)
@click.option("--test", multiple=True, metavar="SPECTRA", type=spectra_name, help="The test spectra; repeatable.")
@quiet_option
@json_option
def init(paths: tuple[str, ...], test: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Write a first configuration for your spectra, with comments.

    SPECTRA are shards, files of other layouts that `headroom convert` takes, stores, their folders and globs. Only
    headers and labels are read, no pixels. The configuration goes to standard output; its comments say what was found
    and what was guessed. Every proposed bin holds spectra, and the proposed penalties fit the number of spectra.
    Without --test the last of several shards is kept for the test.

    \b
    Example:
      headroom init spectra/train --test spectra/test > my.yaml
      headroom plan my.yaml
    """
    from pipeline.run import propose_config

    text, guesses = propose_config(list(paths), list(test) or None)
    if as_json:
        print_json({"configuration": text, "guesses": [printable(guess) for guess in guesses]})
        return
    click.echo(text, nl=False)
    for guess in () if quiet else guesses:
        click.echo(f"note: {printable(guess)}", err=True)


@click.command()
@click.argument("paths", metavar="SPECTRA... STORE", nargs=-1, required=True, type=spectra_name)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="OURS=YOURS",
    help="Which of your variables is flux, error, wavelength, T_eff, log_g or M_H, if it has another name; repeatable.",
)
@click.option("--workers", type=click.IntRange(1, 10**4), help="Number of processes; one per core by default.")
@click.option("--chunk-rows", type=click.IntRange(1, 10**6), help="Spectra in a Zarr chunk; about 16 MiB by default.")
@click.option(
    "--shard-rows",
    type=click.IntRange(min=0),
    help="Spectra in a Zarr shard; 0 writes each chunk to a file of its own.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing store, once the new one is complete.")
@click.option(
    "--nonfinite",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="What to do with spectra that hold NaN, absurd values, negative errors or pixels that are all the same.",
)
@click.option("--verify", is_flag=True, help="Compare every pixel and column of the store with the shards.")
@external_option
@click.option("--delete-source", "delete_sources", is_flag=True, hidden=True)
@quiet_option
@json_option
def convert(
    paths: tuple[str, ...],
    names: tuple[str, ...],
    verify: bool,
    delete_sources: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert spectra to one Zarr store (its name comes last).

    SPECTRA are pfsspec shards (HDF5), netCDF files, Zarr folders, or HDF5 files with the arrays flux, error and
    wavelength and the labels T_eff, log_g and M_H at their top. Usual spellings of these names are understood (Teff,
    logg, feh, wave); --name states others. After an interruption, run the same command again; it resumes.

    With --verify the finished store is compared with the shards, bit for bit. This covers every pixel, and every
    column that a store keeps; text columns and the edges of pixels are not kept. If the exit code is 0, everything is
    the same, and you may delete the shards. If it is 2, something differs, and the message names the file, the row and
    the pixel. The same command verifies a store that was converted before.

    \b
    Example:
      headroom convert spectra/train/shard_index.txt train.zarr
      headroom convert mine.nc train.zarr --name T_eff=temperature
      headroom convert spectra/train/shard_3 train_3.zarr --verify && rm spectra/train/shard_3/dataset.h5
    """
    from pipeline.base import format_bytes
    from pipeline.convert import convert_shards, find_sources, read_source_info, verify_store
    from pipeline.errors import ConfigError

    if delete_sources:
        raise ConfigError(
            "--delete-source is gone: use --verify, and delete the shards yourself, such as "
            "`headroom convert SHARD STORE --verify && rm SHARD`"
        )
    if len(paths) < 2 or not paths[-1]:
        raise ConfigError(
            f"the name of the STORE to be written is missing, found the shards {' '.join(paths[:1])!r} alone; write it "
            f"last, such as `headroom convert {paths[0]} train.zarr`"
        )
    store, progress = Path(paths[-1]), choose_progress(quiet=quiet)
    found = find_sources(paths[:-1], Path.cwd())
    stated, allow_external = _split_names(names), options.pop("allow_external")

    def describe() -> list[ShardInfo]:
        return [read_source_info(path, allow_external=allow_external, names=stated) for path in found]

    made = convert_shards(describe(), store, progress=progress, **options)
    if verify:  # of the files as they are now
        verify_store(made, describe(), progress=progress, workers=options["workers"])
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    if as_json:
        sizes = {"n_spectra": made.n_spectra, "n_pixels": made.n_pixels, "bytes": size}
        print_json({"store": store, "fingerprint": made.fingerprint, **sizes} | ({"verified": True} if verify else {}))
        return
    click.echo(f"{store}: {made.n_spectra:,} spectra × {made.n_pixels:,} pixels, {format_bytes(size)}")
    if verify:
        what = f"{len(found)} shard{'s' if len(found) > 1 else ''}"
        click.echo(f"verified: the store and {what} are the same, bit for bit; you may now delete the source files")


def _split_names(names: tuple[str, ...]) -> dict[str, str]:
    """Return the user's names of variables by ours, from words such as ``T_eff=temperature``."""
    from pipeline.errors import ConfigError

    pairs = [name.partition("=") for name in names]
    for ours, sign, yours in pairs:
        if not (ours and sign and yours):
            raise ConfigError(f"--name must be OURS=YOURS, such as T_eff=temperature, found {ours + sign + yours!r}")
    return {ours: yours for ours, _, yours in pairs}
