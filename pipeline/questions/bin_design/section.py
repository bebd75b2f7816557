"""What the report says of a bin design: the advice, what each number of experts gains, and the rectangles to use."""

from __future__ import annotations

import math
from typing import Any

from pipeline.report import MISSING, Table, estimate_view, quantity
from pipeline.scoring import RunResults

__all__ = ["describe_design"]


def describe_design(results: RunResults) -> dict[str, Any] | None:
    """Return the section about the design: ``sentence`` and ``tables``; None in a run without one."""
    design = results.summary.get("design")
    if not design:
        return None
    chosen = next((one for one in design["divisions"] if one["experts"] == design["recommended"]), None)
    return {
        "sentence": str(design["sentence"]),
        "tables": [_list_divisions(design), *([_list_rectangles(chosen, list(design["edges"]))] if chosen else [])],
    }


def _list_divisions(design: dict[str, Any]) -> Table:
    rows = []
    for one in design["divisions"]:
        test = estimate_view(one["test"]["delta_r2"])
        rows.append(
            (
                str(one["experts"]) + (" (recommended)" if one["experts"] == design["recommended"] else ""),
                _number(one["r2_global"], ".4f"),
                _number(one["r2_oracle"], ".4f"),
                _number(one["delta_r2"]),
                *(_number(value) for value in (test.mean, test.low, test.high)),
            )
        )
    caption = (
        f"Best division for each number of experts, noise level {design['noise_level']:g}, "
        f"{design['n_train']:,} training and {design['n_test']:,} test spectra"
    )
    header = ("Experts", "R²_global, held-out", "R²_oracle, held-out", "ΔR², held-out", "ΔR², test", "low", "high")
    return Table(caption, header, tuple(rows), 1)


def _list_rectangles(chosen: dict[str, Any], columns: list[str]) -> Table:
    rows = [
        (str(number), *(f"{end:g}" for column in columns for end in one[column]))
        for number, one in enumerate(chosen["rectangles"], start=1)
    ]
    header = ("Rectangle", *(f"{quantity(column)} {end}" for column in columns for end in ("from", "to")))
    return Table("Rectangles of the recommended division, as numbered in the figure", header, tuple(rows), 1)


def _number(value: float | None, form: str = "+.4f") -> str:
    if value is None or math.isnan(value):
        return MISSING
    return format(0.0 if abs(value) < 5e-5 else value, form)  # rounding may leave a zero with a minus
