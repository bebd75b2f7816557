"""The command line: ``headroom sample | inspect | convert | plan | run | submit | status | report | …``.

Only this module and its parts print, and only here errors become exit codes: 0 done, 2 the user's input or
configuration, 3 the environment, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.base import Terminated, choose_progress, terminations_raised
from pipeline.cli.changes import add, remove
from pipeline.cli.cluster import cluster
from pipeline.cli.compare import compare
from pipeline.cli.doctor import doctor
from pipeline.cli.export import export
from pipeline.cli.plan import plan
from pipeline.cli.predict import predict
from pipeline.cli.run import run
from pipeline.cli.status import status
from pipeline.cli.submit import submit
from pipeline.cli.words import json_option, print_json
from pipeline.config import load_config
from pipeline.errors import HeadroomError, ResourceError

_EXAMPLE_CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_EXAMPLE_CONTEXT)
@click.version_option(package_name="headroom", prog_name="headroom")
def cli() -> None:
    """How much would a mixture of experts gain over one global ridge model?

    \b
    Example, from nothing to a report:
      headroom sample spectra/
      HEADROOM_DEMO=spectra headroom run demo --out runs/demo
    """


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--train", default=20000, show_default=True, help="Training spectra.")
@click.option("--shards", default=4, show_default=True, help="Shards the training spectra are written to.")
@click.option("--test", default=5000, show_default=True, help="Test spectra.")
@click.option("--pixels", default=1024, show_default=True, help="Pixels per spectrum.")
@click.option("--seed", default=0, show_default=True, help="Seed of labels and noise.")
@click.option("--grid", type=click.Path(path_type=Path), help="Model spectra to interpolate (NPZ or HDF5).")
@click.option("--only", multiple=True, metavar="NAME", help="Write this file alone: train/shard_K or test; repeatable.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; one per core by default.")
@click.option("--overwrite", is_flag=True, help="Replace shards that were made with other settings.")
@click.option("--quiet", is_flag=True, help="No progress.")
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
    """Simulate shards in the pfsspec layout, to try everything without real data.

    The spectra are a stand-in: a compact physical model with the real line list, no synthesis code.

    Every file is the same, bit for bit, whether it is written with the others or with --only, which takes K from 0: a
    million spectra can be simulated, converted and deleted shard by shard on a small disk.

    \b
    Example:
      headroom sample spectra/ --train 40000 --pixels 512
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


@cli.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--config", help="Count spectra in the bins of this configuration, not of the reference grid.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def inspect(paths: tuple[str, ...], config: str | None, quiet: bool, as_json: bool) -> None:
    """Check shards or stores and say what is inside.

    PATHS are shards, folders of shards, globs, a shard_index.txt, or stores, their folders and globs; every pixel
    is read once.

    \b
    Example:
      headroom inspect spectra/train spectra/test/dataset.h5
    """
    from pipeline.config import REFERENCE_EDGES
    from pipeline.convert import inspect_path, render_inspection, render_total

    bins = load_config(config).bins if config else REFERENCE_EDGES
    progress = choose_progress(quiet=quiet)
    inspections = []
    for path in paths:
        for inspection in inspect_path(path, bins=bins, progress=progress):
            if not as_json:
                click.echo(render_inspection(inspection))
            inspections.append(inspection)
    if as_json:
        print_json({"files": inspections, "n_spectra": sum(one.n_spectra for one in inspections)})
    elif len(inspections) > 1:
        click.echo(render_total(inspections))
    if any(inspection.problem is not None for inspection in inspections):
        sys.exit(2)


@cli.command()
@click.argument("shards", nargs=-1, required=True)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=1), help="Processes; one per core by default.")
@click.option("--chunk-rows", type=click.IntRange(min=1), help="Spectra in a Zarr chunk; about 16 MiB by default.")
@click.option("--shard-rows", type=click.IntRange(min=0), help="Spectra in a Zarr shard; 0 writes chunks as files.")
@click.option("--overwrite", is_flag=True, help="Replace an existing store, once the new one is complete.")
@click.option(
    "--nonfinite",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="What to do with spectra that hold NaN flux, negative errors or only zeros.",
)
@click.option(
    "--delete-source",
    "delete_sources",
    is_flag=True,
    help="Delete every shard once the finished store was compared with it, pixel by pixel.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def convert(shards: tuple[str, ...], store: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Convert HDF5 shards to one Zarr store; run it again to resume.

    With --delete-source a shard is deleted once all its pixels and columns were found in the finished store, bit for
    bit; at the first difference this shard and all later ones stay. What a store does not keep (text columns, edges
    of pixels) goes with the file. The same command continues an interrupted deletion.

    \b
    Example:
      headroom convert spectra/train/shard_index.txt train.zarr
      headroom convert spectra/train/shard_3 train_3.zarr --delete-source
    """
    from pipeline.base import format_bytes
    from pipeline.convert import convert_shards, find_sources

    found = find_sources(shards, Path.cwd(), store)
    made = convert_shards(found, store, progress=choose_progress(quiet=quiet), **options)
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    if as_json:
        sizes = {"n_spectra": made.n_spectra, "n_pixels": made.n_pixels, "bytes": size}
        print_json({"store": store, "fingerprint": made.fingerprint, **sizes})
        return
    click.echo(f"{store}: {made.n_spectra:,} spectra × {made.n_pixels:,} pixels, {format_bytes(size)}")


cli.add_command(plan)
cli.add_command(run)
cli.add_command(add)
cli.add_command(remove)
cli.add_command(cluster)
cli.add_command(submit)
cli.add_command(status)
cli.add_command(compare)
cli.add_command(doctor)
cli.add_command(export)
cli.add_command(predict)


@cli.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Draw the figures and write the report of a run again, from its saved results.

    \b
    Example:
      headroom report runs/demo
    """
    from pipeline.run import render_run

    _, page = render_run(folder)
    click.echo(f"report: {page}")


@cli.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every Gram matrix and check it against its checksum.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
def moments(folder: Path, verify: bool, as_json: bool, quiet: bool) -> None:
    """List the moments of a run: noise draws, folds, cells, spectra, bytes, and whether all are there.

    RUN is a run folder, its moments folder, or the folder of one noise draw. Exit code 2 if anything is damaged.

    \b
    Example:
      headroom moments runs/demo --verify
    """
    import json

    from pipeline.moments import open_moments, render_contents, tabulate_contents

    contents = open_moments(folder)
    if verify:
        contents = contents.verify(choose_progress(quiet=quiet))
    click.echo(json.dumps(tabulate_contents(contents), indent=1) if as_json else render_contents(contents))
    if contents.problems:
        sys.exit(2)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what went wrong into one line and an exit code; a bug keeps its traceback."""
    try:
        yield
    except HeadroomError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        reason = error.__cause__ if isinstance(error, click.Abort) else error
        by, code = (f" by {reason}", reason.exit_code) if isinstance(reason, Terminated) else ("", 130)
        _fail(f"interrupted{by}; run the same command again to resume", code)
    except OSError as error:
        _fail(f"{error.filename or type(error).__name__}: {error.strerror or error}", ResourceError.exit_code)
    except MemoryError:
        _fail("out of memory; `headroom plan` says what the run needs", ResourceError.exit_code)


def _fail(message: str, code: int) -> None:
    click.echo(f"headroom: {message}", err=True)
    sys.exit(code)


def _end_now(code: int) -> NoReturn:
    """End this process, all cleaning up being done.

    Python would take most of a second to dismantle itself, or wait for threads that compute what nobody wants.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # whoever read has left, or the disk is full: the output is not whole
        code = code or ResourceError.exit_code
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``headroom`` command; with arguments, as if it were called with these."""
    code: object = None
    try:
        with _exit_codes(), terminations_raised():
            try:
                cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
            except click.ClickException as error:
                error.show()
                sys.exit(error.exit_code)
    except SystemExit as end:
        if arguments is not None:
            raise
        code = end.code
    if arguments is None:
        _end_now(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
