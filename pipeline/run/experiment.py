"""One experiment, end to end: convert → accumulate → solve → score → report, each step resumable.

The run folder is the only state. Every product is written whole and recorded with the key of what it was made
from; a product whose key still holds is not made again, one whose key changed is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.accumulate import (
    accumulate_moments,
    available_threads,
    delete_unwanted,
    find_saved_folds,
    plan_accumulation,
)
from pipeline.base import (
    Progress,
    SilentProgress,
    ask_workers,
    available_memory,
    count_workers,
    describe_environment,
    exclusive,
    peak_memory,
    recorded,
    workers_limits,
    workers_peak,
)
from pipeline.config import ExperimentConfig, content_hash, load_config
from pipeline.errors import InputError
from pipeline.noise import training_noises
from pipeline.plan import ExperimentPlan, plan_run
from pipeline.questions.bin_design import design_products, require_divisible, score_design, search_design
from pipeline.questions.gate import fit_gates, gate_products, require_gate
from pipeline.run.folder import Run, open_run, save_config, writable_folder
from pipeline.run.models import require_searchable_folds, solve_models, warn_of_sizes
from pipeline.run.scores import score_models
from pipeline.run.spectra import check_headers, open_spectra_sets, read_headers, resolve_binnings
from pipeline.run.tables import results_hold, write_tables
from pipeline.schema import RESULTS_ALGORITHM
from pipeline.scoring import RunResults, read_results
from pipeline.simulate import SampleSpec, write_sample

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["limits_of_workers", "plan_experiment", "render_run", "run_demo", "run_experiment"]


def plan_experiment(
    config: ExperimentConfig, worker_limits: Sequence[int] | None = None, worker_threads: int | None = None
) -> ExperimentPlan:
    """Check an experiment's inputs and return what it will cost on workers of the given memory and cores.

    Reads headers and labels only: nothing is converted or written. The default is one worker on this machine.

    Raises
    ------
    InputError
        If spectra are missing or broken, or do not fit each other or the configuration.
    """
    train, test = read_headers(config)
    check_headers(train, test, config)
    return plan_run(
        train.shard_lengths,
        train.wavelength.size,
        config,
        worker_limits or [available_memory()],
        chunk_rows=train.chunk_rows,
        store_disk=train.unconverted_bytes + test.unconverted_bytes,
        left_out=train.left_out,
        worker_threads=worker_threads,
    )


def run_experiment(
    config: ExperimentConfig,
    folder: str | Path,
    *,
    client: Client | None = None,
    convert_workers: int | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> RunResults:
    """Run an experiment, or finish one that was interrupted.

    Parameters
    ----------
    config
        From :func:`pipeline.load_config`.
    folder
        The run folder, created if needed. With a client it must be reachable by the workers under this path.
    client
        A Dask client whose workers accumulate; None computes in this process. The results are the same bits.
    convert_workers
        Processes for converting shards; one per core by default.
    progress
        Told of every long step.
    command
        How the user started the run, for the record.

    Returns
    -------
    RunResults
        What the run folder now holds.

    Raises
    ------
    InputError, ConfigError
        If spectra or settings are not what is required.
    ResourceError
        If memory, disk or workers do not suffice.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a folder is required, found a file; choose another name")
    limits = limits_of_workers(client)
    threads = min(ask_workers(client, available_threads), default=None) if client is not None else None
    plan = plan_experiment(config, limits, threads)
    plan.require_fit(out, Path(config.data.stores))
    with writable_folder(out), exclusive(out, "the run folder"):
        run = open_run(out, config, progress or SilentProgress())
        with recorded(client, out, command or "", run.progress.note):
            return _run_steps(run, plan, client, convert_workers, command)


def _run_steps(
    run: Run, plan: ExperimentPlan, client: Client | None, convert_workers: int | None, command: str | None
) -> RunResults:
    config = run.config
    begun = datetime.now(UTC)
    clock = time.perf_counter()
    sets = open_spectra_sets(config.data, run.progress, convert_workers)
    # Again, on what the stores hold: conversion may have left spectra out.
    run.warnings += check_headers(*sets.headers, config)
    clock = run.finish_step("convert", clock, skipped=plan.store_disk == 0)
    cells, run.binnings, left_out = resolve_binnings(config, sets)
    run.warnings += left_out
    accumulation = plan_accumulation(sets.train, cells, config.compute, config.precision)
    require_searchable_folds(run, sets, accumulation)
    require_divisible(run, sets, accumulation)
    require_gate(run)
    warn_of_sizes(run, accumulation)
    draws = training_noises(config.noise.mode, config.noise.levels, config.seeds)
    moments_folder = run.folder / "moments"
    saved = set(range(len(accumulation.folds))).intersection(
        *(find_saved_folds(accumulation, moments_folder / draw.name) for draw in draws)
    )
    run.reused_folds, run.n_folds = tuple(sorted(saved)), len(accumulation.folds)
    moments = accumulate_moments(
        accumulation,
        draws,
        moments_folder,
        client=client,
        draws_per_pass=plan.draws_per_pass,
        progress=run.progress,
    )
    clock = run.finish_step("accumulate", clock, skipped=len(saved) == run.n_folds)
    made = dict(run.products)
    files = solve_models(run, accumulation, moments, plan, client)
    clock = run.finish_step("solve", clock, skipped=run.products == made)
    made = dict(run.products)
    design = search_design(run, accumulation, moments, files, (plan.design_threads, plan.solve_threads), client)
    if design is not None:
        clock = run.finish_step("design", clock, skipped=run.products == made)
    made = dict(run.products)
    gate = fit_gates(run, sets, accumulation, moments, files, client)
    if gate is not None:
        clock = run.finish_step("gate", clock, skipped=run.products == made)
    run.worker_peak = workers_peak(client) if client is not None else 0
    products = {name: run.products[name] for file in files for name in file.names} | design_products(run, design)
    products |= gate_products(run, gate)
    key = content_hash([RESULTS_ALGORITHM, products, sets.test.fingerprint, config.to_dict(), list(config.bins)])
    if not results_hold(run.folder, key):
        scored = score_models(run, sets, files, gate)
        scored = replace(scored, design=score_design(run, sets, design, scored.draws))
        run.finish_step("score", clock)
        save_config(config, run.folder)
        write_tables(run.folder, config, run.grid, sets, scored, _facts(run, plan, begun, command) | {"key": key})
    for draw in draws:
        delete_unwanted(moments_folder / draw.name)  # now that results without them stand
    return read_results(run.folder)


def render_run(folder: str | Path) -> tuple[Path, Path]:
    """Draw the figures and write ``report.md`` and ``report.html`` of a scored run; return the two pages."""
    from pipeline.report import render_report
    from pipeline.report.figures import render_figures

    results = read_results(folder)
    return render_report(results, render_figures(results))


def limits_of_workers(client: Client | None) -> list[int]:
    """Return the memory that each worker of a client may use, bytes; that of this process without one.

    Workers that will come are as large as the smallest of those that are there.
    """
    if client is None:
        return [available_memory()]
    limits = [limit or available_memory() for limit in workers_limits(client)]
    return limits + [min(limits)] * (count_workers(client) - len(limits))


def _facts(run: Run, plan: ExperimentPlan, begun: datetime, command: str | None) -> dict[str, Any]:
    """Return what ``metadata.json`` says besides configuration and results."""
    return {
        "command": command or "pipeline.run_experiment(config, folder)",
        "started": begun.isoformat(timespec="seconds"),
        "steps": run.steps,
        "warnings": run.warnings,
        "peak_memory_bytes": peak_memory() + run.worker_peak,
        "worker_peak_memory_bytes": run.worker_peak or None,  # a thread of this process has no memory of its own
        "folds": {"total": run.n_folds, "reused": list(run.reused_folds)},
        "plan": {
            "memory_per_worker_bytes": plan.worker_memory,
            "driver_memory_bytes": plan.driver_memory,
            "moments_disk_bytes": plan.moments_disk,
            "pieces": plan.n_pieces,
            "passes": plan.n_passes,
            "gram_flops": plan.flops,
        },
        **describe_environment(),
    }


# --- The demonstration as one call: simulated shards, and the packaged experiment on them.


#: A quarter of a minute on two cores, and enough spectra that the result means something.
_SMALL = SampleSpec(train=12_000, shards=4, test=3_000, pixels=512)


def run_demo(
    folder: str | Path,
    spec: SampleSpec | None = None,
    *,
    client: Client | None = None,
    progress: Progress | None = None,
) -> RunResults:
    """Simulate a sample of shards and run the packaged experiment ``demo`` on it; what is there is not made again.

    ``make demo`` does the same, with more spectra.

    Parameters
    ----------
    folder
        The run folder; the shards and their stores go to ``spectra`` in it.
    spec
        What to simulate; 12,000 training and 3,000 test spectra of 512 pixels by default.
    client, progress
        See :func:`pipeline.run_experiment`.

    Raises
    ------
    InputError
        If the folder holds another sample.
    ResourceError
        If memory or disk do not suffice.
    """
    spectra = Path(folder).absolute() / "spectra"
    write_sample(spectra, spec or _SMALL, progress=progress)
    config = load_config("demo", variables={"HEADROOM_DEMO": str(spectra)})
    return run_experiment(config, folder, client=client, progress=progress, command="pipeline.run_demo(folder)")
