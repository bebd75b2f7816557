"""A comparison of runs in words and as one HTML page that opens anywhere, without scripts and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pipeline import schema
from pipeline.bins import BinGrid
from pipeline.compare import Comparison, Difference, Shift
from pipeline.files import replacing

__all__ = ["describe_difference", "format_setting", "list_merits", "name_scope", "write_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_WIDTH, _ROW, _MARGIN = 360, 26, 8
_LONGEST = 200


def format_setting(value: Any) -> str:
    """Return a setting as a cell of a table."""
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def list_merits(comparison: Comparison, scope: str = "covered") -> list[tuple[str, ...]]:
    """Return a row per run and noise level: run, level, training and test spectra, R² of both, ΔR², its interval.

    The intervals are those of the runs themselves.
    """
    rows: list[tuple[str, ...]] = []
    for name, results in zip(comparison.names, comparison.results, strict=True):
        for level in results.summary["levels"]:
            one = level["scopes"][scope]
            delta = one["delta_r2"]
            rows.append(
                (
                    name,
                    f"{level['noise_level']:g}",
                    f"{one['n_train']:,}",
                    f"{one['n_test']:,}",
                    _figure(one["r2_oracle"]["mean"], ".3f"),
                    _figure(one["r2_global"]["mean"], ".3f"),
                    _figure(delta["mean"], "+.3f"),
                    f"{_figure(delta['low'], '+.3f')} to {_figure(delta['high'], '+.3f')}",
                )
            )
    return rows


def describe_difference(comparison: Comparison, one: Difference) -> str:
    """Return a difference of headrooms as a sentence."""
    shift, confidence = one.merits["delta_r2"], f"{comparison.bootstrap.confidence:.0%}"
    run, reference = (comparison.names[k] for k in (one.run, 0))
    levels = f" (noise level {one.noise_level:g})"
    if one.noise_level != one.reference_level:
        levels = f" (noise level {one.noise_level:g} against {one.reference_level:g})"
    if not shift.low <= shift.high:
        return f"{run} against {reference}{levels}: ΔR² has no interval, since too few spectra can be scored."
    how = (
        f"paired, on the same {one.n_test:,} test spectra"
        if one.paired
        else f"unpaired, on {one.n_test:,} and {one.reference_n_test:,} test spectra"
    )
    verdict = "the interval leaves zero out" if shift.is_clear else "the interval holds zero: no difference is shown"
    if shift == Shift(0.0, 0.0, 0.0):
        verdict = "the predictions gain the same"
    return (
        f"{run} against {reference}{levels}: ΔR² differs by {_figure(shift.mean, '+.3f')} "
        f"({confidence} interval {format_interval(shift)}, {how}); {verdict}."
    )


def name_scope(comparison: Comparison, scope: str) -> str:
    """Return a scope as people read it: a bin with the names of its intervals."""
    if not scope.startswith("bin "):
        return scope
    metadata = comparison.results[0].metadata
    config = metadata["config"]
    edges = {column: config["bins"][column] for column in metadata["bin_columns"]}
    number = int(scope.removeprefix("bin "))
    return f"{number}: {', '.join(BinGrid(edges, config.get('bin_names') or None).bin_names[number])}"


def format_interval(shift: Shift) -> str:
    """Return an interval as words."""
    return f"{_figure(shift.low, '+.3f')} to {_figure(shift.high, '+.3f')}"


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the comparison as one HTML file; the same comparison gives the same bytes.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("compare.html.j2").render(
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        target=schema.COLUMN_SYMBOLS.get(comparison.target, comparison.target),
        names=comparison.names,
        confidence=f"{comparison.bootstrap.confidence:.0%}",
        simulated=[
            name
            for name, results in zip(comparison.names, comparison.results, strict=True)
            if results.metadata.get("simulated")
        ],
        sentences=[describe_difference(comparison, one) for one in comparison.differences if one.scope == "covered"],
        unpaired=[f"{name}: {why}" for name, why in zip(comparison.names, comparison.unpaired, strict=True) if why],
        merits=[(scope, list_merits(comparison, scope)) for scope in ("covered", "all")],
        blocks=_list_blocks(comparison),
        settings=[(name, [format_setting(value) for value in values]) for name, values in comparison.settings],
    )
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


@dataclass(frozen=True)
class _Bar:
    """An interval as a drawing has it: where its ends and its middle lie, in pixels, and what it is about."""

    label: str
    words: str
    y: int
    low: float
    middle: float
    high: float
    is_clear: bool


@dataclass(frozen=True)
class _Block:
    """The differences of one run at one noise level: a table, and intervals on one axis."""

    title: str
    rows: Sequence[tuple[str, ...]]
    bars: Sequence[_Bar]
    zero: float
    width: int
    height: int
    reach: str


def _list_blocks(comparison: Comparison) -> list[_Block]:
    groups: dict[tuple[int, float, float], list[Difference]] = {}
    for one in comparison.differences:
        groups.setdefault((one.run, one.noise_level, one.reference_level), []).append(one)
    return [_make_block(comparison, key, found) for key, found in groups.items()]


def _make_block(comparison: Comparison, key: tuple[int, float, float], found: Sequence[Difference]) -> _Block:
    run, level, reference = key
    at = f"noise level {level:g}" if level == reference else f"noise level {level:g} against {reference:g}"
    shown = [(name_scope(comparison, one.scope), one, one.merits["delta_r2"]) for one in found]
    ends = [abs(end) for _, _, shift in shown for end in (shift.low, shift.high) if end == end]
    reach = max([*ends, 1e-3])
    middle = _WIDTH / 2

    def place(value: float) -> float:
        return round(middle + value / reach * (middle - _MARGIN), 1)

    bars = [
        _Bar(
            name,
            f"{name}: {_figure(shift.mean, '+.3f')}, {format_interval(shift)}",
            _ROW * k + _ROW // 2,
            place(shift.low),
            place(shift.mean),
            place(shift.high),
            shift.is_clear,
        )
        for k, (name, _, shift) in enumerate(shown)
        if shift.low <= shift.high
    ]
    rows = [
        (
            name,
            f"{one.n_test:,}" if one.paired else f"{one.n_test:,} / {one.reference_n_test:,}",
            "paired" if one.paired else "unpaired",
            *(_figure(one.merits[merit].mean, "+.3f") for merit in ("r2_oracle", "r2_global", "delta_r2")),
            format_interval(shift),
        )
        for name, one, shift in shown
    ]
    title = f"{comparison.names[run]} minus {comparison.names[0]}, {at}"
    return _Block(title, rows, bars, middle, _WIDTH, _ROW * len(shown), f"{reach:.3f}")


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)
