"""The commands for finished runs: ``headroom report``, ``compare`` and ``moments``, and ``add`` and ``remove``."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base import NumberedProgress, RunJournal, choose_progress, read_status
from pipeline.cli.cluster import ClusterChoice, cluster_options, connected
from pipeline.cli.words import (
    json_option,
    output_path,
    print_json,
    print_table,
    quiet_option,
    run_argument,
    spectra_name,
    summarise_run,
)
from pipeline.config import ExperimentConfig, load_config
from pipeline.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.report import Comparison
    from pipeline.scoring import RunResults

__all__ = ["add", "compare", "forecast", "moments", "remove", "report"]


@click.command()
@run_argument
@json_option
def report(folder: Path, as_json: bool) -> None:
    """Draw the figures and write the report of a run again.

    Only the saved results of RUN are read.

    \b
    Example:
      headroom report runs/demo
    """
    from pipeline.run import render_run

    text, page = render_run(folder)
    if as_json:
        print_json({"run": folder, "report": page, "text": text})
    else:
        click.echo(f"report: {page}")


@click.command()
@run_argument
@click.option("--verify", is_flag=True, help="Read every sum and every matrix, and check them against their checksums.")
@json_option
@quiet_option
def moments(folder: Path, verify: bool, as_json: bool, quiet: bool) -> None:
    """List the moments that a run has saved.

    Moments are the sums over training spectra from which all models are solved. The list shows noise draws, folds,
    cells, spectra and bytes, and it says whether anything is missing.

    RUN is a run folder, its moments folder, or the folder of one noise draw. The exit code is 2 if anything is
    damaged.

    \b
    Example:
      headroom moments runs/demo --verify
    """
    from pipeline.moments import open_moments, render_contents, tabulate_contents

    contents = open_moments(folder)
    if verify:
        contents = contents.verify(choose_progress(quiet=quiet))
    if as_json:
        print_json(tabulate_contents(contents))
    else:
        click.echo(render_contents(contents))
    if contents.problems:
        sys.exit(2)


@click.command()
@click.argument("folders", metavar="RUN_A RUN_B...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=output_path, metavar="PAGE.html", help="Also write one HTML page.")
@json_option
def compare(folders: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Say how finished runs differ, and which one is best.

    The first run is the reference. The command prints the settings that differ, R² and ΔR², which run has the best
    experts, and how certain the differences are. Any number of runs can be compared.

    If two runs have the same test spectra, both are scored on the same resamples of them. Such a paired comparison
    shows differences far smaller than the interval of either run.

    \b
    Example:
      headroom compare runs/first runs/second --out comparison.html
      headroom compare runs/*/
    """
    from pipeline.report import compare_runs, write_page

    comparison = compare_runs(folders)
    if out is not None:
        write_page(comparison, out)
    if as_json:
        print_json(comparison.to_dict())
        return
    print_comparison(comparison)
    if out is not None:
        click.echo(f"page: {out}")


@click.command()
@run_argument
@click.option(
    "--spectra",
    multiple=True,
    type=click.FloatRange(min=100),
    help="Number of training spectra, such as 1e6, or inf; repeatable.",
)
@click.option("--alpha", type=click.FloatRange(min=0, max=1e30, min_open=True), help="The penalty of all models.")
@click.option("--noise", "level", type=float, help="A noise level of the run's pass.")
@json_option
def forecast(folder: Path, spectra: tuple[float, ...], alpha: float | None, level: float | None, as_json: bool) -> None:
    """Say what more training spectra would give.

    The command says how well models would predict after training on any number of spectra, with one noise draw for each
    spectrum. It computes this from the moments of marginal noise that RUN has saved, and it reads the test spectra
    once. The configuration of RUN must have the section `forecast`. By default the command answers for 5,000 to 10
    million training spectra, with the penalties of the run's settings and with the best ones. The noise level is the
    one that the run's conclusions are about.

    A forecast is not trusted where it lies outside the range in which it was checked (docs/forecast.md).

    \b
    Example:
      headroom forecast runs/demo --spectra 1e6 --alpha 1e5
    """
    from pipeline.questions.forecast import list_rows
    from pipeline.run import ask_forecast

    found, points = ask_forecast(folder, spectra or None, alpha=alpha, level=level)
    rows = list_rows(points, found)
    if as_json:
        print_json({"forecast": rows})
    else:
        _print_forecast([row for row in rows if row["scope"] in ("covered", "all")], found)


def _print_forecast(rows: list[dict[str, Any]], level: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.ridge import format_alpha

    console = Console(width=None if sys.stdout.isatty() else 100)
    title = f"forecast of drawn runs at noise level {level:g}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("train", "penalty", "α", "spectra", "global", "oracle", "ΔR²", "interval", "trusted"):
        table.add_column(heading, justify="left" if heading in ("penalty", "spectra") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row['n']:,}" if math.isfinite(row["n"]) else "endless",
            row["penalty"],
            format_alpha(float(f"{row['alpha']:.3g}")) if math.isfinite(row["n"]) else "–",
            row["scope"],
            f"{row['r2_global']:.3f}",
            f"{row['r2_oracle']:.3f}",
            f"{row['delta_r2']:+.3f}",
            f"{row['delta_r2_low']:+.3f} to {row['delta_r2_high']:+.3f}",
            "yes" if row["trusted"] else "no",
        )
    console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print the runs, what differs, which one is best, and the differences to the first one."""
    from rich.console import Console

    from pipeline.report import describe_difference, describe_ranking, list_merits, list_settings, list_withheld

    console = Console(width=None if sys.stdout.isatty() else 100)
    headings = ("no.", "run", "noise", "train", "test", "oracle", "global", "ΔR²", "interval", "verdict")
    title = f"{comparison.target}, covered spectra: R², mean over seeds"
    _print_rows(console, title, headings, list_merits(comparison), {"run": 18, "verdict": 9})
    for reason in list_withheld(comparison):
        _say(console, reason)
    header, rows = list_settings(comparison)
    if rows:
        _print_rows(console, "what differs", header, rows, dict.fromkeys(header, _LINE))
    else:
        _say(console, "what differs: nothing; the same settings, spectra and software")
    for ranking in comparison.rankings:
        _say(console, describe_ranking(comparison, ranking))
    for one in comparison.differences:
        if one.scope == "covered":
            _say(console, describe_difference(comparison, one))
    for name, why in zip(comparison.names, comparison.unpaired, strict=True):
        if why:
            _say(console, f"note: {name} is not paired: {why}")


def _print_rows(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], words: Mapping[str, int]
) -> None:
    """Print a table in whole lines, however wide the console is.

    Columns of ``words`` have lines of about so many letters; the others are numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(Text(heading), justify="left" if heading in words else "right", no_wrap=True)
    widths = [words.get(heading, _LINE) for heading in headings]
    for row in rows:  # names of folders are no markup
        table.add_row(*(Text(break_at_separators(cell, width)) for cell, width in zip(row, widths, strict=True)))
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    Console(width=max(console.width, needed)).print(table, soft_wrap=True)  # which cuts nothing off


#: Letters of a line in a column of settings.
_LINE = 24


def break_at_separators(text: str, width: int) -> str:
    """Return a name, a path or a setting in lines of so many letters; what has no separator is whole, and longer."""
    lines = [""]
    for part in re.findall(r"[^\s,/=]*[\s,/=]*", text):
        if part and lines[-1] and len(f"{lines[-1]}{part}".rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


# --- Shards that are added to a finished run, or removed.


@click.command()
@run_argument
@click.argument("sources", metavar="SHARDS_OR_STORES...", nargs=-1, required=True, type=spectra_name)
@cluster_options
@quiet_option
@json_option
def add(folder: Path, sources: tuple[str, ...], choice: ClusterChoice, quiet: bool, as_json: bool) -> None:
    """Add spectra to a finished run and update its results.

    Shards are converted to a store of their own. A shard that was removed before comes back; its name will do. The
    results are those of a run from scratch with the configuration that RUN/config.yaml then holds.

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
    from pipeline.run import CONFIG_FILE, describe_reuse, render_run, run_experiment
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
    if earlier.metadata["command"] == command and _was_cut_short(folder):
        progress.note("the results of this command stand already; what comes after them is finished now")
        change = partial(run_experiment, load_config(folder / CONFIG_FILE), folder)
    with RunJournal(folder, command) as journal:
        progress = NumberedProgress(journal.progress(progress))
        with connected(journal, profile, folder, progress) as client:
            results = change(client=client, progress=progress, command=command)
        progress.enter("report")
        with progress.step("draw figures and report", 1, "page") as advance:
            _, page = render_run(folder)
            advance(1)
        if as_json:
            print_json(summarise_run(results, page) | {"folds": results.metadata["folds"]})
            return
        print_table(results, ExperimentConfig.model_validate(results.metadata["config"]))
        click.echo(describe_reuse(results))
        click.echo(f"report: {page}")


def _was_cut_short(folder: Path) -> bool:
    """Tell whether the last command on a run was killed or interrupted, or failed after its results stood."""
    from pipeline.report.page import REPORT_HTML
    from pipeline.scoring import METADATA_FILE

    page, results = folder / REPORT_HTML, folder / METADATA_FILE
    if not page.exists() or page.stat().st_mtime_ns < results.stat().st_mtime_ns:
        return True
    try:
        status = read_status(folder)
    except InputError:
        return False  # the journal is for people, and a run does without
    return status is not None and status.state not in ("finished", "failed")
