"""Factored moments: the pass against `ssyrk`, and what is asked of them after it.

    python benchmarks/factored.py pass STORE.zarr --folder EMPTY [--rows N] [--levels 1.0 0.5]   # one line of JSON
    python benchmarks/factored.py report --folder RUN

The *pass* is what a run does with marginal noise, on the worker of ``headroom run``, from a store on disk to the
moments of every fold and cell on disk. The choice of the basis comes before it and is timed by itself: it costs the
same for any number of spectra.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from accumulate import plan_first_rows
from experiment import Experiment, run_experiment
from measure import count_bytes, count_repeats, measure_script, median, warm_up
from peers import PEER_REPEATS, run_sklearn
from samples import HEADROOM, Sample
from table import Row

from cluster import connect_local
from pipeline import MarginalNoise, MomentsFolder, accumulate_moments
from pipeline.accumulate import accumulate_noises, decide_factoring
from pipeline.config import ComputeConfig
from pipeline.noise import Noise
from pipeline.store import AnyStore, find_stores, open_stores

LEVELS = (1.0, 0.8, 0.6, 0.5, 0.4)
PASS_TARGET, LEVELS_TARGET, RUN_TARGET = 0.36, 3.5, 0.25
DESIGN_SECONDS, PATH_SECONDS, MOMENTS_MIB = 60.0, 10.0, 20.0
START_SECONDS, PICTURE_SECONDS = 2.0, 2.5


def measure_factored(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the rows of the pass, of a whole run, and of what is asked of factored moments after the pass."""
    return [*_measure_pass(sample, repeats), *_measure_run(sample, repeats), *_measure_questions(sample, repeats)]


def _measure_pass(sample: Sample, repeats: int | None) -> list[Row]:
    store = sample.train_store
    warm_up(store)
    floors, one, five, bases, ranks = [], [], [], [], set()
    wanted = 1
    while len(one) < wanted:
        floors.append(sample.rows * sample.pixels**2 / measure_script("accumulate.py", "floor", store).facts["rate"])
        for seconds, levels in ((one, LEVELS[:1]), (five, LEVELS)):
            words = ["--rows", sample.rows, "--folder", sample.scratch("factored"), "--levels", *levels]
            facts = measure_script("factored.py", "pass", store, *words).facts
            seconds.append(facts["pass"])
            if levels is not LEVELS:
                bases.append(facts["basis"])
                ranks.add(facts["rank"])
        wanted = count_repeats(repeats, one[0])
    sample.scratch("factored")
    n, rank = f"median of {len(one)}", "/".join(map(str, sorted(ranks)))
    return [
        Row(
            f"factored pass, marginal noise, {sample.size}, store to moments on disk, rank {rank}",
            f"{median(one):.2f} s ({n})",
            f"ssyrk {median(floors):.1f} s",
            median([a / b for a, b in zip(one, floors, strict=True)]),
            PASS_TARGET,
        ),
        Row(
            f"{len(LEVELS)} noise levels in one factored pass, {sample.size}",
            f"{median(five):.2f} s ({n})",
            f"one level {median(one):.2f} s",
            median([a / b for a, b in zip(five, one, strict=True)]),
            LEVELS_TARGET,
        ),
        Row(
            f"choice of the basis, {sample.pixels:,} pixels, seconds",
            f"{median(bases):.2f} s ({n})",
            "any number of spectra",
            median(bases),
            3.0,
        ),
    ]


def _measure_run(sample: Sample, repeats: int | None) -> list[Row]:
    marginal = Experiment(sample, kind="marginal")
    n = repeats or PEER_REPEATS
    ours, theirs = [], []
    for k in range(n):
        warm_up(sample.train_store)  # each may put the other's files out of memory
        ours.append(run_experiment(marginal, k, interval=0).measured.seconds)  # a look takes time from both
        warm_up(sample.train_shards)
        theirs.append(run_sklearn(marginal, interval=0).seconds)
    return [
        Row(
            f"headroom run, marginal noise, one fold, store to report, {sample.size}",
            f"{median(ours):.1f} s (median of {n})",
            f"scikit-learn, one draw {median(theirs):.1f} s",
            median([a / b for a, b in zip(ours, theirs, strict=True)]),
            RUN_TARGET,
        )
    ]


def _measure_questions(sample: Sample, repeats: int | None) -> list[Row]:
    path, design = (run_experiment(Experiment(sample, kind=kind), 0) for kind in ("path", "design"))
    size = f"{sample.pixels:,} pixels, 5 folds"
    begins = []
    for _ in range(repeats or PEER_REPEATS):
        out = sample.scratch("shown")
        begins.append(_time_start(Experiment(sample, kind="folds").config_file, out))
    begin, moments = median(begins), count_bytes(out / "moments")
    pictures = measure_script("factored.py", "report", "--folder", out).facts["seconds"]
    sample.scratch("shown")

    def row(name: str, value: float, target: float, unit: str = "s") -> Row:
        return Row(name, f"{value:.1f} {unit}", f"at most {target:g} {unit}", value, target)

    return [
        row(f"10 models × 50 α × 5 folds, all labels, {size}, after the pass", path.steps["solve"], PATH_SECONDS),
        row(f"bin design, 6 × 7 fine bins, {size}, after the pass", design.steps["design"], DESIGN_SECONDS),
        row(f"moments on disk, 10 cells, {size}", moments / 2**20, MOMENTS_MIB, "MiB"),
        row("headroom run, from its start to its first step: imports, cluster, plan", begin, START_SECONDS),
        row("figures and page", pictures, PICTURE_SECONDS),
    ]


def _time_start(config: Path, out: Path) -> float:
    """Return the seconds until a run says what it will cost, which is the last thing before its first step."""
    started, found = time.perf_counter(), float("nan")
    words = [*HEADROOM, "run", str(config), "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("time:"):
                found = time.perf_counter() - started
    if run.returncode:
        raise RuntimeError(f"headroom run {config} ended with code {run.returncode}")
    return found


def run_pass(store: AnyStore, rows: int, levels: Sequence[float], folder: Path) -> dict[str, float]:
    """Choose a basis and make the pass on a new worker; return the seconds of both, and the rank."""
    compute, noises = ComputeConfig(moments="factored"), [MarginalNoise(level) for level in levels]
    plan = plan_first_rows(store, rows, compute)
    with connect_local() as client:
        client.wait_for_workers(1)
        started = time.perf_counter()
        factoring = decide_factoring(plan, store, noises, folder, compute)
        chosen = time.perf_counter()

        def run(of: Sequence[Noise], bases: Mapping[Noise, str]) -> list[MomentsFolder]:
            return accumulate_moments(plan, of, folder, bases=bases, client=client)

        _, factoring = accumulate_noises(plan, factoring, store, noises, folder, compute, run, print)
        ended = time.perf_counter()
    ranks = [basis.rank for basis in factoring.of_noise.values()]
    assert len(ranks) == len(levels), factoring.reasons
    return {"basis": chosen - started, "pass": ended - chosen, "rank": max(ranks)}


def time_report(folder: Path) -> float:
    """Return the seconds of the figures and the page of a finished run."""
    import pandas  # noqa: F401  a run has made tables before

    from pipeline import render_run

    started = time.perf_counter()
    render_run(folder)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pass", "report"])
    parser.add_argument("store", nargs="?", help="with pass: a store, or a glob of several in quotes")
    parser.add_argument(
        "--folder", type=Path, required=True, help="of the moments, which does not exist; or of the run"
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--levels", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    if options.what == "report":
        print(json.dumps({"seconds": time_report(options.folder)}))
        return
    store = open_stores(find_stores([options.store]))
    print(json.dumps(run_pass(store, min(options.rows, store.n_spectra), options.levels, options.folder)))


if __name__ == "__main__":
    main()
