"""What several commands share: their common options, JSON for scripts, and the table of a run's results."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.shell_completion import CompletionItem

from pipeline.base import json_text
from pipeline.config import ExperimentConfig

if TYPE_CHECKING:
    from pipeline.scoring import RunResults

__all__ = [
    "FiniteRange",
    "config_argument",
    "config_name",
    "external_option",
    "hint_option",
    "is_quiet",
    "join_summary",
    "json_option",
    "output_path",
    "print_json",
    "print_table",
    "profile_name",
    "quiet_option",
    "run_argument",
    "spectra_name",
    "summarise_run",
]


class _OutputPath(click.Path):
    """A path to be written. An empty word is refused; it would mean the folder that one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("a name is required, found an empty word", param, ctx)
        path = super().convert(value, param, ctx)
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:  # tables and pages, which name it, could not be written
            self.fail(f"{value!r} holds bytes that are no UTF-8; choose another name", param, ctx)
        try:
            Path(value).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle; what no path may hold
            self.fail(f"{value!r} is no path that can be written to ({error})", param, ctx)
        return path


class FiniteRange(click.FloatRange):
    """A range of numbers without ``nan`` and ``inf``, which compare with no limit or pass one that is open."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"a finite number is required, found {value}", param, ctx)
        return number


output_path = _OutputPath(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else on standard output.")
external_option = click.option(
    "--allow-external",
    is_flag=True,
    help="Also read data that shards keep in other files, by HDF5 external links or storage.",
)


_QUIET = "headroom.quiet"


def _keep_quiet(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    context.find_root().meta[_QUIET] = value
    return value


def is_quiet(context: click.Context) -> bool:
    """Whether the command that has run was told to be quiet, or to print JSON."""
    return bool(context.find_root().meta.get(_QUIET))


quiet_option = click.option(
    "--quiet", is_flag=True, callback=_keep_quiet, help="Show no progress, and no hint of what to do next."
)
#: The same for commands that show no progress anyway.
hint_option = click.option(
    "--quiet", is_flag=True, callback=_keep_quiet, expose_value=False, help="Give no hint of what to do next."
)


class NameOrFile(click.types.StringParamType):
    """A word that the shell can complete: one of some names, or a file.

    Parameters
    ----------
    name
        What the word is called in ``--help``.
    list_names
        Returns the names; none by default.
    """

    def __init__(self, name: str, list_names: Callable[[], Iterable[str]] = tuple) -> None:
        self.name = name
        self._list_names = list_names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what may follow: names that begin so, and files."""
        names = [CompletionItem(name) for name in self._list_names() if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


def _list_configs() -> Iterable[str]:
    from pipeline.config import packaged_configs

    return packaged_configs()


def _list_profiles() -> Iterable[str]:
    from cluster import packaged_profiles

    return packaged_profiles()


config_name = NameOrFile("configuration", _list_configs)
profile_name = NameOrFile("profile", _list_profiles)
spectra_name = NameOrFile("spectra")
config_argument = click.argument("config", type=config_name)
run_argument = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))


def print_json(value: Any) -> None:
    """Print a value as one JSON object."""
    text = json_text(value)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # escaped, it says the same
        text = json.dumps(json.loads(text), indent=1)
    click.echo(text)


def print_table(results: RunResults, config: ExperimentConfig, stream: TextIO | None = None) -> None:
    """Print the scores of every noise level, the verdict, and the run's warnings; to standard output by default."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.noise import NO_SEED
    from pipeline.run import list_remarks
    from pipeline.scoring import DELTA_R2, MERITS

    console = Console(width=None if stream is None and sys.stdout.isatty() else 80, file=stream)
    for level in results.summary.levels:
        seeds = set(results.overall.loc[results.overall["noise_level"] == level.noise_level, "seed"]) - {NO_SEED}
        over = f", mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}" if seeds else ""
        title = f"{config.target} at noise level {level.noise_level:g}: R²{over}"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        table.add_column("spectra", overflow="fold")
        # Fits in 80 columns; numbers are never cut, long names of bins fold.
        for heading in ("train", "test", "oracle", "global", "ΔR²", f"{config.bootstrap.confidence:.0%} interval"):
            table.add_column(heading, justify="right", no_wrap=True)
        rows = [*level.scopes.items(), *((f"{one.bin}: {', '.join(one.names)}", one) for one in level.bins)]
        for k, (name, row) in enumerate(rows):
            low, high = (DELTA_R2.format(end, digits=3) for end in (row.delta_r2.low, row.delta_r2.high))
            table.add_row(
                name,
                f"{row.n_train:,}",
                f"{row.n_test:,}",
                *(merit.format(row.merit(merit).mean, digits=3) for merit in MERITS),
                f"{low} to {high}",
                end_section=k == len(level.scopes) - 1,
            )
        console.print(table)
        for sentence in (
            f"At noise level {level.noise_level:g}: {level.decision.sentence}",
            *list_remarks(results, level.noise_level),
        ):
            console.print(sentence, highlight=False, markup=False)
    for warning in results.metadata["warnings"]:
        console.print(f"note: {warning}", highlight=False, markup=False)


def summarise_run(results: RunResults, page: Path) -> dict[str, Any]:
    """Return a run's results for scripts: the content of ``summary.json``, and the paths of folder and report."""
    return join_summary(results.folder, page, results.summary.to_dict(), results.metadata)


def join_summary(folder: Path, page: Path, summary: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the same from the contents of ``summary.json`` and ``metadata.json``."""
    where = {"run": folder, "report": page, "config_hash": metadata["config_hash"]}
    facts = {name: metadata[name] for name in ("simulated", "steps", "warnings", "peak_memory_bytes")}
    return {**where, **summary, **facts}
