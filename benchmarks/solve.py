"""Ten models for eight penalties from moments on disk, against the pass over a million spectra.

    python benchmarks/solve.py MOMENTS_FOLDER [--penalties 8]      # one process, one line of JSON

MOMENTS_FOLDER is that of one noise draw, with its folds. Reading is part of the time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from accumulate import LOOP_ROWS, SEED
from measure import count_repeats, format_gib, measure_script, median, warm_up
from samples import Sample
from table import Row

from pipeline import Moments, MomentsFolder, NoiseDraw, RidgePath, pixel_scale, solve_ridge_path
from pipeline.accumulate import available_threads
from pipeline.base import one_blas_thread, peak_memory
from pipeline.bins import BinGrid
from pipeline.config import REFERENCE_EDGES
from pipeline.moments import PixelSums
from pipeline.schema import STREAM_TRAIN

PENALTIES, MILLION = 8, 1_000_000
#: Rows whose moments are kept for this: their number does not matter for the time.
MOMENTS_ROWS = 20_000
SHARE_OF_PASS, QUARTER_PIXELS = 0.25, 4096


def measure_solve(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the time against a quarter of the projected pass, and the peak memory."""
    folder, words = _prepare_moments(sample), ["--rows", LOOP_ROWS // 2, "--noise", "drawn"]
    warm_up(folder)
    seconds: list[float] = []
    ratios: list[float] = []
    shares: list[float] = []
    peaks: list[int] = []
    wanted = 1
    while len(seconds) < wanted:
        rate = measure_script("accumulate.py", "loop", sample.train_store, *words).facts["drawn"]
        facts = measure_script("solve.py", folder).facts
        shares.append(SHARE_OF_PASS * MILLION * sample.pixels**2 / rate)
        seconds.append(facts["seconds"])
        peaks.append(facts["peak"])
        ratios.append(seconds[-1] / shares[-1])
        wanted = count_repeats(repeats, seconds[0])
    return [
        Row(
            f"solve 10 models × {PENALTIES} penalties, {sample.pixels:,} pixels",
            f"{median(seconds):.1f} s (median of {len(seconds)})",
            f"a quarter of a pass over 1M spectra {median(shares):.1f} s",
            median(ratios),
            # Wider systems grow with P³ where the pass grows with P²: there the memory is what counts.
            1.0 if sample.pixels <= QUARTER_PIXELS else None,
        ),
        Row(
            f"its peak memory, {sample.pixels:,} pixels, in dense float64 matrices",
            format_gib(max(peaks)),
            f"P² doubles {format_gib(8 * sample.pixels**2)}",
            max(peaks) / (8 * sample.pixels**2),
        ),
    ]


def solve_all(folder: Path, n_penalties: int) -> float:
    """Read the moments and solve the global model and every expert for all penalties; return seconds.

    As ``headroom run`` does it: models side by side, each on one thread of BLAS, the global one first.
    """
    n_folds, n_cells = len(list(folder.glob("fold-*"))), BinGrid(REFERENCE_EDGES).n_cells
    moments = MomentsFolder(folder, NoiseDraw(1.0, SEED, STREAM_TRAIN), n_folds, n_cells)
    started = time.perf_counter()
    whole = PixelSums.merge([sums for fold in range(n_folds) for sums in moments.open(fold).pixel_sums()])
    alphas, scale = np.geomspace(0.01, 1, n_penalties) * whole.count, pixel_scale(whole)

    def solve(cells: Sequence[int]) -> RidgePath:
        # One sum and one matrix on its way in, whatever the number of cells.
        total = Moments.merge(moments.read(fold, cell) for fold in range(n_folds) for cell in cells)
        return solve_ridge_path(total, alphas, scale)

    with one_blas_thread(), ThreadPoolExecutor(min(4, available_threads())) as executor:
        paths = list(executor.map(solve, [range(n_cells), *([cell] for cell in range(n_cells - 1))]))
    seconds = time.perf_counter() - started
    assert all(np.isfinite(path.weights).all() for path in paths)
    return seconds


def _prepare_moments(sample: Sample) -> Path:
    """Return the kept moments of the sample's first rows, computed if needed."""
    kept = sample.folder / "moments"
    draw = NoiseDraw(1.0, SEED, STREAM_TRAIN)
    if not (kept / "done").exists():
        shutil.rmtree(kept, ignore_errors=True)
        words = ["--rows", min(MOMENTS_ROWS, sample.rows), "--folds", 2, "--folder", kept]
        measure_script("accumulate.py", "step", sample.train_store, *words)
        (kept / "done").touch()
    return kept / draw.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--penalties", type=int, default=PENALTIES)
    options = parser.parse_args()
    seconds = solve_all(options.folder, options.penalties)
    print(json.dumps({"seconds": seconds, "peak": peak_memory()}))


if __name__ == "__main__":
    main()
