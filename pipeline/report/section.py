"""What the page is made of: sections with tables, pictures and captions.

Every number that the report shows is formatted here and only here. R² and ΔR² have four decimals, counts are exact, and
what a run does not have is a dash.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.report.words import quantity, symbol
from pipeline.ridge import format_alpha
from pipeline.scoring import (
    DELTA_R2,
    MISSING,
    R2_GLOBAL,
    R2_ORACLE,
    SHOWN_MERITS,
    Draw,
    Estimate,
    Level,
    Merit,
    Part,
    RunResults,
    Scope,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Block",
    "Code",
    "Heading",
    "Links",
    "Picture",
    "Section",
    "Show",
    "Subject",
    "Table",
    "Terms",
    "count_choices",
    "estimate_cells",
    "list_bins",
    "list_files",
    "list_hypotheses",
    "list_key_numbers",
    "list_points",
    "list_run",
    "list_steps",
    "list_stores",
    "merit_cells",
    "number_cell",
    "percent_cell",
]


@dataclass(frozen=True)
class Table:
    """A table of text; columns from number ``numeric_from`` on are numbers, aligned to the right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 99

    kind = "table"


@dataclass(frozen=True)
class Show:
    """The place of a picture on the page."""

    file: str

    kind = "picture"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str

    kind = "heading"


@dataclass(frozen=True)
class Terms:
    """A list of terms with what they mean; a term may be empty."""

    items: tuple[tuple[str, str], ...]

    kind = "terms"


@dataclass(frozen=True)
class Links:
    """Files beside the page."""

    names: tuple[str, ...]

    kind = "links"


@dataclass(frozen=True)
class Code:
    """Text to be copied, in a language that highlighters know."""

    text: str
    language: str
    label: str

    kind = "code"


#: What a section is made of; a text is a paragraph.
Block = str | Table | Show | Heading | Terms | Links | Code


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    anchor
        Where links lead to.
    title, short
        The heading, and its name in the contents.
    blocks
        Paragraphs, tables, pictures and the like, in order.
    """

    anchor: str
    title: str
    short: str
    blocks: tuple[Block, ...]

    @property
    def needs_captions(self) -> bool:
        """Whether only their captions tell the tables apart: there are several, and no headings between them."""
        kinds = [type(block) for block in self.blocks]
        return kinds.count(Table) > 1 and Heading not in kinds


@dataclass(frozen=True)
class Picture:
    """A figure of a run.

    Attributes
    ----------
    file
        The name of its PNG file.
    title
        What it shows.
    caption
        What to look for in it: a text, or what makes one from the results.
    draw
        Draws it.
    is_there
        Whether a run has anything to draw.
    """

    file: str
    title: str
    caption: str | Callable[[RunResults], str]
    draw: Callable[[RunResults], Figure]
    is_there: Callable[[RunResults], bool] = lambda results: True

    def describe(self, results: RunResults) -> str:
        """Return the caption."""
        return self.caption if isinstance(self.caption, str) else self.caption(results)


@dataclass(frozen=True)
class Subject:
    """A label that the interactive view can show.

    Attributes
    ----------
    label
        Which.
    levels
        For every noise level the scores over seeds, and those of every noise draw.
    leak
        Why its experts mean nothing; empty where they do.
    """

    label: str
    levels: Sequence[tuple[Part, Sequence[Draw]]]
    leak: str = ""


def list_hypotheses(level: Level) -> Table:
    """Return the hypotheses of a noise level, each with PASS or FAIL."""
    words = {True: "PASS", False: "FAIL", None: "WITHHELD"}
    rows = tuple((h.name, h.statement, h.found, words[h.passed]) for h in level.hypotheses)
    return Table(f"Hypotheses, noise level {level.noise_level:g}", ("", "Hypothesis", "Found", "Result"), rows)


def list_key_numbers(level: Level) -> Table:
    """Return the overall figures of merit of both scopes with spread, interval and numbers of spectra."""
    rows = []
    for name, scope in level.scopes.items():
        for merit in SHOWN_MERITS:
            cells = estimate_cells(merit, scope.merit(merit))
            rows.append((name, merit.symbol, *cells, f"{scope.n_train:,}", f"{scope.n_test:,}"))
    header = ("Test spectra", "Figure of merit", "mean", "± seeds", "low", "high", "n train", "n test")
    return Table(f"Key numbers, noise level {level.noise_level:g}", header, tuple(rows), 2)


def list_bins(results: RunResults, level: Level) -> Table:
    """Return every bin's figures of merit, penalty, mean absolute errors and numbers of spectra."""
    rows = [
        (
            str(one.bin),
            *one.names,
            R2_GLOBAL.format(one.r2_global.mean),
            R2_ORACLE.format(one.r2_oracle.mean),
            *estimate_cells(DELTA_R2, one.delta_r2),
            number_cell(one.mae_global),
            number_cell(one.mae_oracle),
            number_cell(one.alpha, ".6g"),
            f"{one.n_train:,}",
            f"{one.n_test:,}",
        )
        for one in level.bins
    ]
    columns = [symbol(column) for column in results.metadata["bin_columns"]]
    unit = quantity(results.summary.target).removeprefix(symbol(results.summary.target))
    header = (
        "Bin",
        *columns,
        *("R²_global", "R²_oracle", "ΔR²", "± seeds", "low", "high"),
        *(f"MAE global{unit}", f"MAE oracle{unit}", "α", "n train", "n test"),
    )
    return Table(f"Bins, noise level {level.noise_level:g}", header, tuple(rows), 1 + len(columns))


def list_points(caption: str, names: Sequence[str], points: Sequence[tuple[Sequence[str], Scope]]) -> Table:
    """Return a row for each training set: what it is called, its size, and the figures of merit with intervals.

    Parameters
    ----------
    caption
        Of the table.
    names
        Headings of what a row is called.
    points
        For every row what it is called, and its scores.
    """
    rows = [
        (
            *called,
            f"{scope.n_train:,}",
            f"{scope.n_test:,}",
            *(cell for merit in SHOWN_MERITS for cell in merit_cells(merit, scope.merit(merit))),
        )
        for called, scope in points
    ]
    header = [*names, "n train", "n test"]
    for merit in SHOWN_MERITS:
        header += [merit.symbol, "low", "high"]
    return Table(caption, tuple(header), tuple(rows), len(names))


def list_run(results: RunResults) -> Table:
    """Return who computed what: code, configuration, versions, memory."""
    metadata = results.metadata
    plan = metadata.get("plan") or {}
    rows = {
        "started": metadata.get("started"),
        "git commit": metadata.get("git_commit") or "not recorded (no git checkout)",
        "command": metadata.get("command"),
        "configuration": metadata.get("config_source"),
        "configuration hash": metadata.get("config_hash"),
        "peak memory of all, measured": _mebibytes(metadata.get("peak_memory_bytes")),
        "memory of the driver, projected": _mebibytes(plan.get("driver_memory_bytes")),
        "peak memory of a worker, measured": _mebibytes(metadata.get("worker_peak_memory_bytes")),
        "memory per worker, projected": _mebibytes(plan.get("memory_per_worker_bytes")),
        **{f"{name} version": value for name, value in (metadata.get("versions") or {}).items()},
    }
    return _pairs("Run", ((name, value) for name, value in rows.items() if value is not None))


def list_stores(results: RunResults) -> Table:
    """Return the spectra that were read: where, how many, and the fingerprints that identify them."""
    rows: list[tuple[str, Any]] = []
    for part, store in (results.metadata.get("stores") or {}).items():
        spans = store.get("wavelength_range")
        entries = {
            "stores": ", ".join(store.get("paths") or ()) or None,
            "fingerprint": store.get("fingerprint"),
            "spectra": None if store.get("n_spectra") is None else f"{store['n_spectra']:,}",
            "pixels": store.get("n_pixels"),
            "wavelength": f"{spans[0]:g} to {spans[1]:g} Å" if spans else None,
            "share in a bin": None if store.get("coverage") is None else f"{store['coverage']:.2%}",
            "pre-drawn noise": {True: "yes", False: "no"}.get(store.get("has_noisy")),
            "sources": ", ".join(map(_name_source, store.get("sources") or ())) or None,
        }
        rows.extend((f"{part}: {name}", value) for name, value in entries.items() if value is not None)
    return _pairs("Spectra", rows)


def _name_source(source: str | Mapping[str, Any]) -> str:
    if isinstance(source, str):
        return source
    return f"{source['name']} ({source['n_spectra']:,} spectra, {source['fingerprint']})"


def list_steps(results: RunResults) -> Table:
    """Return what each step took."""
    rows = tuple(
        (str(step["name"]), f"{step['seconds']:.2f}", "taken from an earlier run" if step.get("skipped") else "")
        for step in results.metadata.get("steps") or ()
    )
    return Table("Time of each step", ("Step", "seconds", "Note"), rows)


def list_files(results: RunResults) -> Table:
    """Return the checksums of the result files."""
    return _pairs("SHA-256 of the results", (results.metadata.get("hashes") or {}).items())


def _pairs(caption: str, rows: Iterable[tuple[str, Any]]) -> Table:
    cells = tuple((str(name), MISSING if value is None else str(value)) for name, value in rows)
    return Table(caption, ("", "Value"), cells)


def estimate_cells(merit: Merit, estimate: Estimate) -> tuple[str, ...]:
    """Return mean, spread over seeds, low and high of a figure of merit."""
    mean, *ends = merit_cells(merit, estimate)
    # One seed has no spread; a zero would claim perfect agreement. Levels may differ in the number of seeds.
    return (mean, number_cell(estimate.std) if estimate.std > 0 else MISSING, *ends)


def merit_cells(merit: Merit, estimate: Estimate) -> tuple[str, ...]:
    """Return mean, low and high of a figure of merit with four decimals; ΔR² always has its sign."""
    return tuple(merit.format(value) for value in (estimate.mean, estimate.low, estimate.high))


def number_cell(value: float, form: str = ".4f") -> str:
    """Return a number as text, and a dash for NaN."""
    return MISSING if math.isnan(value) else format(value, form)


def percent_cell(value: float, *, digits: int = 0) -> str:
    """Return a share as text, and a dash for NaN."""
    return number_cell(value, f".{digits}%")


def count_choices(alphas: Iterable[float]) -> str:
    """Return penalties with the number of seeds that chose each, where they differ; a dash where there is none."""
    counts = Counter(alphas)
    if len(counts) == 1:
        return format_alpha(next(iter(counts)))
    return ", ".join(f"{format_alpha(alpha)} ({n}×)" for alpha, n in sorted(counts.items())) or MISSING


def _mebibytes(count: float | None) -> str | None:
    return None if count is None else f"{count / 2**20:,.0f} MiB"
