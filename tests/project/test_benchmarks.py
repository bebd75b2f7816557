"""The benchmarks run, at a size that measures nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZE = ["--rows", "4000", "--pixels", "128", "--repeats", "1"]

#: The start of every row's name, by the part that measures it.
ROWS = {
    "accumulate": [
        "accumulate step, 4,000 × 128, store to moments",
        "its bare loop, drawn noise",
        "its bare loop, marginal noise",
    ],
    "noises": ["5 noise seeds in one read"],
    "factored": [
        "factored pass, marginal noise, 4,000 × 128",
        "5 noise levels in one factored pass",
        "choice of the basis, 128 pixels",
        "headroom run, marginal noise, one fold",
        "10 models × 50 α × 5 folds",
        "bin design, 6 × 7 fine bins",
        "moments on disk, 10 cells, 128 pixels",
        "headroom run, from its start to its first step",
        "figures and page",
    ],
    "solve": ["solve 10 models × 8 penalties, 128 pixels", "its peak memory, 128 pixels"],
    "sklearn": [
        "headroom run, store to report",
        "headroom convert and run",
        "R² of the same models",
        "peak memory, all processes",
        "growth per spectrum, 1,000 to 4,000",
    ],
    "memory": [
        "peak memory of headroom run",
        "peak memory against headroom plan",
        "peak memory at 1,000 and 4,000 spectra",
    ],
    "dask": ["accumulate step, 4,000 × 128", "its peak memory, all processes"],
    "dask-ml": ["accumulate and solve 10 models", "dask-ml ADMM: R² off the exact ridge"],
    "convert": [
        "convert shards, 4,000 × 128",
        "the same against writing alone",
        "the same against naive Dask",
    ],
    "predict": [
        "predict 10 experts × 3 labels, ridge gate, 4,000 × 128",
        "predict 10 experts × 3 labels, logistic gate, 4,000 × 128",
        "its peak memory",
    ],
    "ceiling": ["ceiling in", "ceiling from all pixels", "ceiling of 1M × 5,000 × 128"],
}

#: All benchmarks together take two minutes, even of small samples.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_table_has_every_row(tmp_path: Path) -> None:
    """All parts in one process: they share simulated spectra, and runs."""
    out = tmp_path / "table.md"
    command = [sys.executable, "benchmarks/run.py", *SIZE, "--folder", str(tmp_path / "bench"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    heading, *rows = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert heading == ["name", "measured", "reference", "ratio", "target", "met?"]
    expected = [name for names in ROWS.values() for name in names]
    assert len(rows) == len(expected)
    for row, name in zip(rows, expected, strict=True):
        assert row[0].startswith(name)
        assert all(row)
    [same] = [row for row in rows if row[0].startswith("R² of the same models")]
    assert same[-1] == "yes", same
    assert str(tmp_path) not in out.read_text(encoding="utf-8"), "no paths in what may be published"


def test_all_parts_are_tested() -> None:
    command = [sys.executable, "benchmarks/run.py", "--help"]
    environment = os.environ | {"COLUMNS": "500"}  # no name is broken in two
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    listed = next(line for line in shown.splitlines() if "--only NAME" in line and "usage" not in line)
    names = listed.split("--only NAME")[1].replace(",", " ").split()
    assert [name for name in names if not name.endswith("-7200")] == list(ROWS)
