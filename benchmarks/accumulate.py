"""The accumulate step and its hot loop against the machine's own `ssyrk`, side by side in one run.

    python benchmarks/accumulate.py all   STORE.zarr [--rows 65536] [--repeats 5]   # floor and loop in one process
    python benchmarks/accumulate.py floor STORE.zarr                                # one line of JSON, like the next
    python benchmarks/accumulate.py loop  STORE.zarr --rows 65536
    python benchmarks/accumulate.py noises STORE.zarr --rows 20000 --seeds 5   # one read for all against one for each
    python benchmarks/accumulate.py step  STORE.zarr --rows 100000 --folder EMPTY [--seeds 5 --draws-per-pass 5]

The *floor* is one large multi-threaded `ssyrk`, N·P² operations for N rows. The *loop* is ``accumulate_rows`` on the
store's first rows (10 cells, noise level 1 with clipping, drawn and marginal), when its memory is warm. The *step* is
what a user waits for: ``accumulate_moments`` on the worker of ``headroom run``, from a store on disk to the moments of
every fold and cell on disk, with the defaults of the configuration. The process is new and its memory fresh.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
from measure import count_repeats, measure_script, median, warm_up
from samples import Sample
from scipy.linalg.blas import ssyrk
from table import Row

from cluster import connect_local
from pipeline import AccumulationPlan, MarginalNoise, NoiseDraw, accumulate_moments, plan_accumulation
from pipeline.accumulate import LoopSettings, available_threads
from pipeline.accumulate.hotloop import CellRows, accumulate_rows
from pipeline.base import Workspace
from pipeline.bins import BinGrid, CellGrid, plan_folds, plan_partitions
from pipeline.config import REFERENCE_EDGES, ComputeConfig
from pipeline.noise import Noise
from pipeline.schema import LABELS, STREAM_TRAIN
from pipeline.store import AnyStore, find_stores, open_stores

FLOOR_ROWS = 8192
LOOP_ROWS = 49_152
#: Enough for every buffer to have been used.
WARM_ROWS = 16_384
NOISES_ROWS, NOISES_SEEDS, NOISES_REPEATS = 12_000, 5, 5
SEED = 42
NOISES: dict[str, Noise] = {"drawn": NoiseDraw(1.0, SEED, STREAM_TRAIN), "marginal": MarginalNoise(1.0)}
#: What the loop, the step and one read for five seeds should reach.
LOOP_TARGET, STEP_TARGET, NOISES_TARGET = 0.7, 0.7, 1.0


def measure_step(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the rows of the whole step and of the bare loop, each over the `ssyrk` rate measured beside it."""
    store, pixels = sample.train_store, sample.pixels
    warm_up(store)
    floors: list[float] = []
    loops: dict[str, list[float]] = {name: [] for name in NOISES}
    steps: list[float] = []
    wanted = 1
    while len(steps) < wanted:
        floors.append(measure_script("accumulate.py", "floor", store).facts["rate"])
        rates_of_loop = measure_script("accumulate.py", "loop", store, "--rows", LOOP_ROWS).facts
        for name, own in loops.items():
            own.append(rates_of_loop[name])
        folder = sample.scratch("step")
        steps.append(
            measure_script("accumulate.py", "step", store, "--rows", sample.rows, "--folder", folder).facts["seconds"]
        )
        wanted = count_repeats(repeats, steps[0])
    sample.scratch("step")
    rates = [sample.rows * pixels**2 / seconds for seconds in steps]
    floor = f"ssyrk {median(floors) / 1e9:,.0f} Gflop/s"
    n = f"median of {len(steps)}"
    return [
        Row(
            f"accumulate step, {sample.size}, store to moments on disk",
            f"{median(steps):.1f} s, {median(rates) / 1e9:,.0f} Gflop/s ({n})",
            floor,
            median([rate / floor for rate, floor in zip(rates, floors, strict=True)]),
            STEP_TARGET,
            "≥",
        ),
        *(
            Row(
                f"its bare loop, {name} noise, {min(LOOP_ROWS, sample.rows):,} × {pixels:,}",
                f"{median(own) / 1e9:,.0f} Gflop/s ({n})",
                floor,
                median([rate / floor for rate, floor in zip(own, floors, strict=True)]),
                LOOP_TARGET,
                "≥",
            )
            for name, own in loops.items()
        ),
    ]


def measure_noises(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the row of several noise draws in one read against one read for each, on warm memory.

    A new worker pays for the fresh memory of its accumulators, five times as much for five draws, once for a whole
    pass: that is in the rows of the step.
    """
    rows = min(NOISES_ROWS, sample.rows)
    warm_up(sample.train_store)
    words = ["--rows", rows, "--seeds", NOISES_SEEDS, "--repeats", repeats or NOISES_REPEATS]
    facts = measure_script("accumulate.py", "noises", sample.train_store, *words).facts
    return [
        Row(
            f"{NOISES_SEEDS} noise seeds in one read, loop over {rows:,} × {sample.pixels:,}",
            f"{median(facts['together']):.1f} s (median of {len(facts['together'])})",
            f"{NOISES_SEEDS} reads {median(facts['apart']):.1f} s",
            median([a / b for a, b in zip(facts["together"], facts["apart"], strict=True)]),
            NOISES_TARGET,
        )
    ]


def plan_first_rows(store: AnyStore, rows: int, compute: ComputeConfig) -> AccumulationPlan:
    """Return the plan of a store's first rows, cut as a store of that size would be."""
    plan = plan_accumulation(store, CellGrid((BinGrid(REFERENCE_EDGES),)), compute)
    if rows >= store.n_spectra:
        return plan
    folds = plan_folds([rows], compute.folds)
    return dataclasses.replace(plan, folds=folds, partitions=plan_partitions(folds, compute.partition_rows))


def first_rows(store: AnyStore, n: int) -> CellRows:
    grid = BinGrid(REFERENCE_EDGES)
    columns = store.read_columns((*grid.columns, *LABELS), 0, n)
    labels = np.column_stack([columns[label] for label in LABELS])
    return CellRows(0, grid.cells(columns), grid.n_cells, labels, LABELS, store.mean_flux, labels.mean(axis=0))


class Floor:
    """One large `ssyrk` on warm memory."""

    def __init__(self, n_pixels: int) -> None:
        self._x = np.random.default_rng(0).standard_normal((FLOOR_ROWS, n_pixels), dtype=np.float32)
        self._total = np.zeros((n_pixels, n_pixels), np.float32, order="F")
        self.measure(1)

    def measure(self, times: int = 3) -> float:
        """Return the best rate in flop/s."""
        best = np.inf
        for _ in range(times):
            started = time.perf_counter()
            ssyrk(1.0, self._x.T, beta=1, c=self._total, lower=1, overwrite_c=1)
            best = min(best, time.perf_counter() - started)
        return float(FLOOR_ROWS * self._x.shape[1] ** 2 / best)


class Loop:
    """The hot loop over a store's first rows, on warm memory."""

    def __init__(self, store: AnyStore, rows: int) -> None:
        self._store, self._rows = store, first_rows(store, min(rows, store.n_spectra))
        self._settings, self._workspace = LoopSettings(threads=available_threads()), Workspace()
        few = first_rows(store, min(rows, WARM_ROWS, store.n_spectra))
        for noise in NOISES:  # touches the memory, and compiles
            self._sum_up(few, noise)

    def measure(self, noise: str = "drawn") -> float:
        """Return the rate in flop/s."""
        started = time.perf_counter()
        self._sum_up(self._rows, noise)
        return len(self._rows.cells) * self._store.n_pixels**2 / (time.perf_counter() - started)

    def _sum_up(self, rows: CellRows, noise: str) -> None:
        accumulate_rows(self._store, rows, [NOISES[noise]], self._settings, workspace=self._workspace)


def time_noises(store: AnyStore, rows: int, seeds: int, repeats: int) -> dict[str, list[float]]:
    """Return seconds of the loop for several draws in one read, and for one read after the other, by turns."""
    first, settings, workspace = first_rows(store, rows), LoopSettings(threads=available_threads()), Workspace()
    draws = [NoiseDraw(1.0, SEED + k, STREAM_TRAIN) for k in range(seeds)]

    def loop(*groups: list[NoiseDraw]) -> float:
        started = time.perf_counter()
        for group in groups:
            accumulate_rows(store, first, group, settings, workspace=workspace)
        return time.perf_counter() - started

    loop(draws)  # touches the memory
    found: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(repeats):
        found["together"].append(loop(draws))
        found["apart"].append(loop(*([draw] for draw in draws)))
    return found


def run_step(plan: AccumulationPlan, seeds: int, draws_per_pass: int, folder: Path) -> float:
    """Run the step on a new worker, as ``headroom run`` does; return its seconds, without the cluster's start."""
    draws = [NoiseDraw(1.0, SEED + k, STREAM_TRAIN) for k in range(seeds)]
    with connect_local() as client:
        client.wait_for_workers(1)
        started = time.perf_counter()
        accumulate_moments(plan, draws, folder, client=client, draws_per_pass=draws_per_pass)
        return time.perf_counter() - started


def compare(store: AnyStore, rows: int, repeats: int) -> None:
    """Print floor and loop by turns in one process: quick, for work on the loop."""
    floor, loop = Floor(store.n_pixels), Loop(store, rows)
    print(f"{rows:,} × {store.n_pixels:,}, one-minute load {os.getloadavg()[0]:.1f}")
    ratios: dict[str, list[float]] = {name: [] for name in NOISES}
    for _ in range(repeats):
        fastest = floor.measure()
        rates = {name: loop.measure(name) for name in NOISES}
        words = [f"  ssyrk {fastest / 1e9:6.0f}"]
        for name, rate in rates.items():
            ratios[name].append(rate / fastest)
            words.append(f"  {name} {rate / 1e9:6.0f} Gflop/s {rate / fastest:.2f}")
        print("".join(words))
    print("medians: " + ", ".join(f"{name} {median(own):.2f}" for name, own in ratios.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["all", "floor", "loop", "noises", "step"])
    parser.add_argument("store", help="a store, or a glob of several in quotes")
    parser.add_argument("--rows", type=int, default=LOOP_ROWS)
    parser.add_argument("--repeats", type=int, default=5, help="with all and noises")
    parser.add_argument("--noise", action="append", choices=list(NOISES), help="with loop; all by default")
    parser.add_argument("--folder", type=Path, help="with step: where the moments go, a folder that does not exist")
    parser.add_argument("--seeds", type=int, default=1, help="with noises and step")
    parser.add_argument("--draws-per-pass", type=int, default=1, help="with step")
    parser.add_argument("--folds", type=int, default=ComputeConfig().folds, help="with step")
    options = parser.parse_args()
    store = open_stores(find_stores([options.store]))
    if options.what == "all":
        compare(store, min(options.rows, store.n_spectra), options.repeats)
    elif options.what == "floor":
        print(json.dumps({"rate": Floor(store.n_pixels).measure()}))
    elif options.what == "loop":
        loop = Loop(store, options.rows)
        print(json.dumps({name: loop.measure(name) for name in options.noise or NOISES}))
    elif options.what == "noises":
        print(json.dumps(time_noises(store, options.rows, options.seeds, options.repeats)))
    else:
        if options.folder is None or options.folder.exists():
            parser.error("step needs --folder, and a folder that does not exist yet")
        plan = plan_first_rows(store, options.rows, ComputeConfig(folds=options.folds))
        seconds = run_step(plan, options.seeds, options.draws_per_pass, options.folder)
        print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
