"""One experiment, end to end: convert → accumulate → solve → score → report, each step resumable.

The run folder is the only state. Every product is written whole and recorded with the key of what it was made
from; a product whose key still holds is not made again, one whose key changed is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from pipeline import schema
from pipeline.accumulate import accumulate_moments
from pipeline.bins import BinGrid
from pipeline.checkpoints import AccumulationPlan, MomentsFolder, is_finished, plan_accumulation
from pipeline.config import ExperimentConfig, content_hash
from pipeline.errors import InputError, ResourceError
from pipeline.files import remove_leftovers, replacing
from pipeline.locks import exclusive
from pipeline.memory import available_memory, peak_memory
from pipeline.models import ALGORITHM_VERSION as MODELS_VERSION
from pipeline.models import read_models, write_models
from pipeline.noise import NoiseDraw
from pipeline.plan import ExperimentPlan, plan_run
from pipeline.predictions import STORED_LEVEL, predict_store
from pipeline.progress import Progress, SilentProgress
from pipeline.provenance import describe_environment
from pipeline.results import PREDICTIONS_FILE, RunResults, read_results
from pipeline.solve import solve_folders
from pipeline.spectra_sets import SpectraSets, check_headers, open_spectra_sets, read_headers
from pipeline.summary import RESULTS_VERSION, ScoredDraw, results_hold, write_tables
from pipeline.tasks import workers_limits, workers_peak

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["plan_experiment", "render_run", "run_experiment"]

PRODUCTS_FILE = "products.json"
CONFIG_FILE = "config.yaml"


@dataclass
class _Run:
    """A run in the making: where it writes, what it has made, how long its steps took."""

    folder: Path
    config: ExperimentConfig
    progress: Progress
    products: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    worker_peak: int = 0

    @property
    def grid(self) -> BinGrid:
        return BinGrid(self.config.bins, self.config.bin_names)

    def is_made(self, name: str, key: str) -> bool:
        return self.products.get(name) == key and (self.folder / name).exists()

    def record(self, name: str, key: str) -> None:
        self.products[name] = key
        with replacing(self.folder / PRODUCTS_FILE) as temporary:
            temporary.write_text(json.dumps(self.products, indent=1, sort_keys=True), encoding="utf-8")

    def finish_step(self, name: str, started: float, *, skipped: bool = False) -> float:
        """Record a step's time, and whether an earlier run had done it; return when it ended."""
        ended = time.perf_counter()
        self.steps.append({"name": name, "seconds": round(ended - started, 3), "skipped": skipped})
        return ended


def noise_draws(config: ExperimentConfig) -> list[NoiseDraw]:
    """Return the training noise draws of an experiment: every level for every seed."""
    return [NoiseDraw(level, seed, schema.STREAM_TRAIN) for level in config.noise.levels for seed in config.seeds]


def plan_experiment(config: ExperimentConfig, worker_limits: Sequence[int] | None = None) -> ExperimentPlan:
    """Check an experiment's inputs and return what it will cost on workers of the given memory.

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
    plan = plan_experiment(config, _worker_limits(client))
    plan.require_fit(out, Path(config.data.stores))
    with _writable(out), exclusive(out, "the run folder"):
        run = _open_run(out, config, progress or SilentProgress())
        return _run_steps(run, plan, client, convert_workers, command)


def _run_steps(
    run: _Run, plan: ExperimentPlan, client: Client | None, convert_workers: int | None, command: str | None
) -> RunResults:
    config = run.config
    begun = datetime.now(UTC)
    clock = time.perf_counter()
    sets = open_spectra_sets(config.data, run.progress, convert_workers)
    # Again, on what the stores hold: conversion may have left spectra out.
    run.warnings += check_headers(*sets.headers, config)
    clock = run.finish_step("convert", clock, skipped=plan.store_disk == 0)
    accumulation = plan_accumulation(sets.train, run.grid, config.compute, config.precision)
    draws, moments_folder = noise_draws(config), run.folder / "moments"
    all_there = all(is_finished(accumulation, moments_folder / draw.name) for draw in draws)
    moments = accumulate_moments(
        accumulation,
        draws,
        moments_folder,
        client=client,
        draws_per_pass=plan.draws_per_pass,
        progress=run.progress,
    )
    clock = run.finish_step("accumulate", clock, skipped=all_there)
    made = dict(run.products)
    files = _solve(run, accumulation, moments, plan.solve_threads, client)
    run.worker_peak = workers_peak(client) if client is not None else 0
    clock = run.finish_step("solve", clock, skipped=run.products == made)
    made_of = [RESULTS_VERSION, {name: run.products[name] for name in files}, sets.test.fingerprint]
    key = content_hash([*made_of, config.to_dict(), list(config.bins)])
    if not results_hold(run.folder, key):
        scored = _score(run, sets, draws, files)
        run.finish_step("score", clock)
        with replacing(run.folder / CONFIG_FILE) as temporary:
            temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), "utf-8")
        write_tables(run.folder, config, run.grid, sets, scored, _facts(run, plan, begun, command) | {"key": key})
    return read_results(run.folder)


def render_run(folder: str | Path) -> tuple[Path, Path]:
    """Draw the figures and write ``report.md`` and ``report.html`` of a scored run; return the two pages."""
    from pipeline.figures import render_figures
    from pipeline.report import render_report

    results = read_results(folder)
    return render_report(results, render_figures(results))


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make the run folder if needed; leave none behind if nothing was written to it."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error.strerror}; choose another folder with --out") from error
    try:
        yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()  # fails, as it should, if there is anything in it


def _open_run(folder: Path, config: ExperimentConfig, progress: Progress) -> _Run:
    """Read what a run folder holds already; the caller holds its lock."""
    remove_leftovers(folder)
    remove_leftovers(folder / "models")
    products: dict[str, str] = {}
    if (folder / PRODUCTS_FILE).exists():
        try:
            products = json.loads((folder / PRODUCTS_FILE).read_text(encoding="utf-8"))
        except ValueError:
            progress.note(f"{folder / PRODUCTS_FILE} is damaged; models and predictions are made again")
    return _Run(folder, config, progress, products)


def _worker_limits(client: Client | None) -> list[int]:
    limits = [None] if client is None else workers_limits(client)
    return [limit or available_memory() for limit in limits]


def _solve(
    run: _Run, plan: AccumulationPlan, moments: Sequence[MomentsFolder], threads: int, client: Client | None
) -> list[str]:
    """Solve the models of every draw for every prefix of the folds; return the products' names."""
    settings = run.config.ridge.model_dump(mode="json")
    names = [f"models/{one.draw.name}.npz" for one in moments]
    keys = [content_hash([MODELS_VERSION, plan.key, vars(one.draw), settings]) for one in moments]
    left = [k for k in range(len(names)) if not run.is_made(names[k], keys[k])]
    if left:
        folders = [moments[k] for k in left]
        solved = solve_folders(
            folders, run.config.ridge, run.grid, threads=threads, client=client, progress=run.progress
        )
        for place, models in solved:
            name, key = names[left[place]], keys[left[place]]
            write_models(run.folder / name, models, {"key": key})
            run.record(name, key)
    return names


def _score(run: _Run, sets: SpectraSets, draws: Sequence[NoiseDraw], files: Sequence[str]) -> list[ScoredDraw]:
    scored = []
    frames = []
    y_true = np.asarray(sets.test.columns[run.config.target], dtype=np.float64)
    bins = run.grid.assign(sets.test.columns)
    with run.progress.step("predict", len(draws) * sets.test.n_spectra) as advance:
        for draw, name in zip(draws, files, strict=True):
            models = read_models(run.folder / name)
            test_draw = _test_draw(run.config, sets, draw)
            predicted = predict_store(sets.test, models, run.config.target, test_draw, run.config.precision, advance)
            scored.append(ScoredDraw.score(draw, test_draw is None, models, y_true, bins, predicted, run.config))
            frames.append(_prediction_frame(draw, y_true, bins, predicted[-1]))
            run.warnings += [warning for warning in models[-1].warnings if warning not in run.warnings]
    with replacing(run.folder / PREDICTIONS_FILE) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
    return scored


def _test_draw(config: ExperimentConfig, sets: SpectraSets, draw: NoiseDraw) -> NoiseDraw | None:
    """Return the test noise of a training draw; None where the test store's own is used."""
    if config.noise.test == "stored" and sets.test.has_noisy and draw.level == STORED_LEVEL:
        return None
    return NoiseDraw(draw.level, draw.seed, schema.STREAM_TEST)


def _prediction_frame(
    draw: NoiseDraw, y_true: NDArray[np.float64], bins: NDArray[np.int64], predicted: NDArray[np.float64]
) -> pd.DataFrame:
    of_global, of_experts = predicted[:, 0], predicted[:, 1:]
    routed = np.where(bins >= 0, of_experts[np.arange(len(bins)), np.maximum(bins, 0)], of_global)
    frame = {
        "seed": np.full(len(bins), draw.seed),
        "noise_level": np.full(len(bins), draw.level),
        "row": np.arange(len(bins)),
        "bin": bins,
        "y_true": y_true,
        "y_global": of_global,
        "y_oracle": routed,
    }
    return pd.DataFrame(frame | {f"expert_{k}": of_experts[:, k] for k in range(of_experts.shape[1])})


def _facts(run: _Run, plan: ExperimentPlan, begun: datetime, command: str | None) -> dict[str, Any]:
    """Return what ``metadata.json`` says besides configuration and results."""
    return {
        "command": command or "pipeline.run_experiment(config, folder)",
        "started": begun.isoformat(timespec="seconds"),
        "steps": run.steps,
        "warnings": run.warnings,
        "peak_memory_bytes": peak_memory() + run.worker_peak,
        "worker_peak_memory_bytes": run.worker_peak,
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
