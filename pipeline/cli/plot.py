"""``headroom plot``: the figures of a run as files for a paper or a slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.words import FiniteRange, json_option, output_path, print_json, run_argument
from pipeline.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pipeline.report import Picture
    from pipeline.scoring import RunResults

__all__ = ["plot"]

#: Inches of the narrowest figure whose print can be read, and of the widest.
_NARROWEST, _WIDEST = 3.0, 20.0


@click.command()
@run_argument
@click.argument("figure", required=False)
@click.option(
    "--format",
    "ending",
    type=click.Choice(["pdf", "svg", "png"]),
    default="pdf",
    show_default=True,
    help="Format of the file.",
)
@click.option(
    "--width",
    type=FiniteRange(_NARROWEST, _WIDEST),
    help="Width in inches; 3.5 is one column of most journals and 7 are two. A slide (13.3) by default.",
)
@click.option("--no-title", is_flag=True, help="Leave out title and small print. Panels keep their headings.")
@click.option("--out", type=output_path, metavar="FILE", help="File to write; RUN/figures/FIGURE.FORMAT by default.")
@click.option("--all", "everything", is_flag=True, help="Write every figure that the run has.")
@json_option
def plot(
    folder: Path,
    figure: str | None,
    ending: str,
    width: float | None,
    no_title: bool,
    out: Path | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Write a figure of a run for a paper or a slide.

    Without FIGURE the command lists the figures of the run. PDF and SVG are vector graphics, and a PDF contains its
    fonts. In a figure of one column the panels stand one below the other, and the letters are as large as in a caption.
    The command prints a caption, which says what the figure shows and how to read it.

    \b
    Example:
      headroom plot runs/demo
      headroom plot runs/demo learning_curve --format pdf --width 3.5 --no-title
      headroom plot runs/demo --all --format svg --width 7
    """
    from pipeline.questions import list_pictures
    from pipeline.report.figures import FIGURES_FOLDER, Medium, name_picture, plot_picture
    from pipeline.scoring import read_results

    results = read_results(folder)
    pictures = {name_picture(picture): picture for picture in list_pictures() if picture.is_there(results)}
    if figure is None and not everything:
        if as_json:
            print_json({name: picture.title for name, picture in pictures.items()})
            return
        for name, picture in pictures.items():
            click.echo(f"{name:24} {picture.title}")
        return
    if everything and (figure is not None or out is not None):
        raise InputError("--all writes every figure into RUN/figures; leave FIGURE and --out out")
    if figure is not None and figure not in pictures:
        raise InputError(
            f"figure {figure!r}: run {folder} has {', '.join(pictures)}{did_you_mean(figure, tuple(pictures))}"
        )
    if out is not None and out.suffix and out.suffix != f".{ending}":
        raise InputError(f"--out {out}: the ending does not fit --format {ending}; give one of both, such as .{ending}")
    if out is not None and out.is_dir():
        raise InputError(f"--out {out}: it is a folder; name the file, such as {out / f'{figure}.{ending}'}")
    written = {}
    for name in pictures if figure is None else (figure,):
        path = (out or folder / FIGURES_FOLDER / name).with_suffix(f".{ending}")
        plot_picture(results, pictures[name], path, Medium(width, not no_title))
        written[name] = {"file": path, "says": _caption(pictures[name], results, no_title=no_title)}
        if not as_json:
            click.echo(f"{path}: {written[name]['says']}")
    if as_json:
        print_json(written)


def _caption(picture: Picture, results: RunResults, *, no_title: bool) -> str:
    """Return the caption. It says that spectra are simulated where the figure no longer does."""
    simulated = "Simulated spectra. " if no_title and results.metadata.get("simulated") else ""
    return simulated + picture.describe(results)
