"""``headroom compare``: finished runs held against each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.words import json_option, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.report import Comparison

__all__ = ["compare"]


@click.command()
@click.argument("folders", metavar="RUN_A RUN_B...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="PAGE.html", help="Write it as one HTML page, too.")
@json_option
def compare(folders: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Say how finished runs differ: settings, R², ΔR², and how sure their differences are.

    The first run is the reference. Where test spectra are the same, both runs are scored on the same resamples of them
    (paired), which shows differences far smaller than the interval of either run.

    \b
    Example:
      headroom compare runs/first runs/second --out comparison.html
    """
    from pipeline.report import compare_runs, write_page

    comparison = compare_runs(folders)
    if out is not None:
        write_page(comparison, out)
    if as_json:
        print_json(comparison.to_dict())
        return
    _print(comparison)
    if out is not None:
        click.echo(f"page: {out}")


def _print(comparison: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.report import describe_difference, format_setting, list_merits

    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(
        title=f"{comparison.target}, covered spectra: R², mean over seeds",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("run", overflow="fold")
    for heading in ("noise", "train", "test", "oracle", "global", "ΔR²", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in list_merits(comparison):
        table.add_row(*map(Text, row))  # names of folders are no markup
    console.print(table)
    if comparison.settings:
        differing = Table(title="what differs", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        for heading in ("setting", *comparison.names):
            differing.add_column(Text(heading), overflow="fold")
        for name, values in comparison.settings:
            differing.add_row(*map(Text, (name, *map(format_setting, values))))
        console.print(differing)
    else:
        _say(console, "what differs: nothing; the same settings, spectra and software")
    for one in comparison.differences:
        if one.scope == "covered":
            _say(console, describe_difference(comparison, one))
    for name, why in zip(comparison.names, comparison.unpaired, strict=True):
        if why:
            _say(console, f"note: {name} is not paired: {why}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
