"""Strong scaling of the accumulate step from one single-thread worker to several, beside what `headroom plan` says.

    python benchmarks/scaling.py [--rows 100000] [--pixels 4096] [--seeds 2] [--workers 2] [--repeats 3] [--out FILE]
    python benchmarks/scaling.py step STORE.zarr --workers 2 --seeds 2 --rows 100000 --folder EMPTY   # a line of JSON

Needs an idle machine with as many cores as workers. A worker's threads are bound to one core, as SLURM binds a job of
one: otherwise the threads that read and draw beside the one that multiplies take some of the next core. Workers have
imported and compiled what they need before the clock starts. The spectra are those of `make bench`, simulated on first
use and kept. Every run is a process of its own with new workers, and the two numbers of workers take turns. At the
default size each run takes 20 seconds or more on the cores that this was written on; with smaller ones a piece is much
of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from accumulate import SEED, plan_first_rows
from measure import MeasurementError, describe_machine, measure_script, median, warm_up
from samples import Sample
from table import Row, render_table

from cluster import LocalProfile, connect_local
from pipeline import NoiseDraw, SpectraStore, accumulate_moments
from pipeline.accumulate import AccumulationPlan
from pipeline.base import available_cores
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.plan import Rates, measure_rates, plan_run, project_scaling
from pipeline.schema import STREAM_TRAIN

#: Of the workers' time, on a machine with a core for each.
EFFICIENCY_TARGET = 0.9
#: What a run must take for its efficiency to mean something.
LEAST_SECONDS = 20.0
#: Of the sums that a worker throws away before it is timed.
WARM_ROWS = 256


def run_step(store: SpectraStore, options: argparse.Namespace) -> float:
    """Run the step on new single-thread workers; return its seconds, without the start of cluster and imports."""
    plan = plan_first_rows(store, options.rows, ComputeConfig())
    draws = [NoiseDraw(1.0, SEED + k, STREAM_TRAIN) for k in range(options.seeds)]
    with connect_local(LocalProfile(workers=options.workers, processes=True, threads=1)) as client:
        client.wait_for_workers(options.workers, timeout=120)
        if not options.unbound:
            cores = sorted(os.sched_getaffinity(0))
            for place, address in enumerate(sorted(client.scheduler_info(n_workers=-1)["workers"])):
                client.run(bind_to_core, cores[place % len(cores)], workers=[address])
        warm = plan_first_rows(store, min(WARM_ROWS, options.rows), ComputeConfig())
        client.run(warm_worker, warm, options.folder.with_name(f"{options.folder.name}_warm"))
        started = time.perf_counter()
        accumulate_moments(plan, draws, options.folder, client=client)
        return time.perf_counter() - started


def warm_worker(plan: AccumulationPlan, folder: Path) -> None:
    """Import what tasks need and load compiled kernels, on the way to moments that nobody wants."""
    own = folder.with_name(f"{folder.name}_{os.getpid()}")
    accumulate_moments(plan, [NoiseDraw(1.0, SEED, STREAM_TRAIN)], own)
    shutil.rmtree(own)


def bind_to_core(core: int) -> None:
    """Keep all threads of this process on one core, as SLURM binds a job of one core; new threads follow."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def measure_scaling(sample: Sample, seeds: int, workers: int, repeats: int) -> list[Row]:
    """Return the efficiency, and the model's figures for one and for all workers."""
    store = sample.train_store
    rates = measure_rates(sample.pixels, "float32")
    seconds: dict[int, list[float]] = {1: [], workers: []}
    for _ in range(repeats):
        for count, found in seconds.items():
            warm_up(store)
            folder = sample.scratch("scaling")
            words = ["--workers", count, "--seeds", seeds, "--rows", sample.rows, "--folder", folder]
            found.append(measure_script("scaling.py", "step", store, *words).facts["seconds"])
            tell(f"{count} worker{'s' if count > 1 else ''}: {found[-1]:.1f} s")
    sample.scratch("scaling")
    one, all_of_them = median(seconds[1]), median(seconds[workers])
    if all_of_them < LEAST_SECONDS:
        tell(f"warning: {all_of_them:.1f} s is short; give more --rows or --seeds for at least {LEAST_SECONDS:.0f} s")
    title = f"{sample.size}, {seeds} noise draw{'s' if seeds > 1 else ''}"
    return [
        Row(
            f"strong scaling, 1 to {workers} single-thread workers, {title}",
            f"{all_of_them:.1f} s (median of {repeats})",
            f"1 worker {one:.1f} s",
            median([a / (workers * b) for a, b in zip(seconds[1], seconds[workers], strict=True)]),
            EFFICIENCY_TARGET,
            "≥",
        ),
        *(
            Row(
                f"the same against the model of headroom plan, {count} worker{'s' if count > 1 else ''}",
                f"{median(found):.1f} s",
                f"model {projected:.1f} s",
                median(found) / projected,
            )
            for count, found in seconds.items()
            for projected in [project(sample, seeds, count, rates)]
        ),
    ]


def project(sample: Sample, seeds: int, workers: int, rates: Rates) -> float:
    """Return the seconds that the model says."""
    config = ExperimentConfig.model_validate(
        {"data": {"train": "a", "test": "b"}, "seeds": list(range(seeds)), "compute": {"sharing_gib": 1e-3}}
    )
    plan = plan_run([sample.rows], sample.pixels, config, [2**36] * workers)
    return project_scaling(plan, config, rates, cores=1).accumulating


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["table", "step"], nargs="?", default="table")
    parser.add_argument("store", nargs="?", help="with step")
    parser.add_argument("--rows", type=int, default=100_000, help="training spectra (%(default)s)")
    parser.add_argument("--pixels", type=int, default=4096, help="pixels per spectrum (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="noise draws, each a pass (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--unbound", action="store_true", help="with step: let a worker's threads use all cores")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where spectra are kept (runs/bench); with step where moments go, which is new"
    )
    parser.add_argument("--out", type=Path, help="a file to write facts and table to as well")
    options = parser.parse_args()
    if options.what == "step" and (options.store is None or options.folder is None or options.folder.exists()):
        parser.error("step needs STORE and --folder, and a folder that does not exist yet")
    return options


def main() -> int:
    options = parse_arguments()
    if options.what == "step":
        print(json.dumps({"seconds": run_step(SpectraStore.open(options.store), options)}))
        return 0
    facts = [*describe_machine(), f"one-minute load before {os.getloadavg()[0]:.1f}"]
    if available_cores() < options.workers:
        tell(f"warning: {available_cores()} cores for {options.workers} workers; they will share, not scale")
    sample = Sample((options.folder or Path("runs/bench")).resolve(), options.rows, options.pixels)
    try:
        table = render_table(measure_scaling(sample, options.seeds, options.workers, options.repeats))
    except MeasurementError as error:
        tell(f"failed: {error}")
        return 1
    text = "\n".join(f"- {fact}" for fact in facts) + f"\n\n{table}\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
