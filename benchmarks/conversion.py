"""The conversion's rows of the table, from what ``convert.py`` prints in a process of its own."""

from __future__ import annotations

import re

from measure import MeasurementError, measure_script
from samples import Sample
from table import Row

FLOOR_TARGET, NAIVE_TARGET = 0.7, 3.0
_NUMBER = r"([\d.]+)"


def measure_conversion(sample: Sample, repeats: int | None) -> list[Row]:
    """Return conversion against the slower of reading and writing alone, and against naive Dask."""
    shards = sample.train_shards
    folder = sample.scratch("convert")
    folder.mkdir()
    words = ["--repeats", repeats or 5, "--out", folder]
    output = measure_script("convert.py", shards, *words).output
    folder.rmdir()
    found = read_medians(output)
    size = sample.size
    measured = f"{found['convert']:.1f} k spectra/s (median of {repeats or 5})"
    return [
        Row(
            f"convert shards, {size}",
            measured,
            f"read {found['read']:.1f} k/s, write {found['write']:.1f} k/s alone",
            found["of the floor"],
            FLOOR_TARGET,
            "≥",
        ),
        Row(
            f"the same against writing alone, past the page cache, {size}",
            measured,
            f"{found['direct']:.1f} k/s",
            found["convert"] / found["direct"],
        ),
        Row(
            f"the same against naive Dask, {size}",
            measured,
            f"{found['naive']:.1f} k/s",
            found["× naive"],
            NAIVE_TARGET,
            "≥",
        ),
    ]


def read_medians(output: str) -> dict[str, float]:
    """Return the figures of the line of medians that ``convert.py`` prints last."""
    line = next((line for line in output.splitlines() if line.startswith("medians:")), "")
    patterns = {name: rf"\b{name} {_NUMBER} k/s" for name in ("convert", "read", "write", "direct", "naive")}
    patterns |= {"of the floor": rf"of the floor {_NUMBER}", "× naive": rf"× naive {_NUMBER}"}
    found = {name: re.search(pattern, line) for name, pattern in patterns.items()}
    if not all(found.values()):
        raise MeasurementError(f"convert.py printed no medians of {', '.join(patterns)}: {output[-300:]!r}")
    return {name: float(match.group(1)) for name, match in found.items() if match}
