"""`make demo`, as a newcomer runs it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.results import read_results

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_demo_ends_within_three_minutes_with_a_meaningful_result(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        ["make", "demo", f"DEMO={tmp_path / 'demo'}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 180
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in done.stdout
    assert "simulated" in done.stdout
    results = read_results(tmp_path / "demo")
    pixels = results.metadata["stores"]["train"]["n_pixels"]
    assert results.per_bin["n_train"].min() >= 3 * pixels, "several times more spectra in every bin than pixels"
    assert np.isfinite(results.per_bin[["r2_oracle", "r2_global"]]).all(axis=None)
    headline = results.summary["levels"][0]["scopes"]["covered"]["delta_r2"]
    assert headline["low"] > 0, "the simulated spectra show headroom beyond their test set's scatter"
    assert results.learning["n_train"].nunique() >= 4
    assert results.metadata["simulated"] is True
