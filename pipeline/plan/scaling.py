"""What a run would cost on many workers, by a stated model; ``docs/scaling.md`` says where the model fails.

For N spectra of P pixels, D noise draws, K cells, F folds and W workers of c cores each:

=============  ========================================================================================
arithmetic     D·N·P² / gram rate; N·P·2r for factored moments       seconds of one core
noise          D·N·P / noise rate                                    seconds of one core
decoding       passes·N·8·P / decoding rate                          seconds of one core
the pass       their sum / c, in ⌈pieces / W⌉ rounds of equal pieces; or the traffic below / bandwidth if that is longer
reading        passes·N·8·P / compression                            bytes, by the workers
partial sums   D·partitions·K·G, with G = 4 or 8 bytes × about P²/2  bytes, written by the workers
               (8 bytes × (r² + 2P) for factored moments)
merging        the same read by the driver, one fold after the other while the pass goes on, and 8-byte sums written
solving        M·P³/3 / factorisation rate / c for the M models of a task; a task for each draw
               (P·r² instead of P³/3 for factored moments)
=============  ========================================================================================

The projection is arithmetic on an :class:`ExperimentPlan` and :class:`Rates`. It measures and reads nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipeline.base import available_cores, format_bytes
from pipeline.config import AlphaSearch, ExperimentConfig
from pipeline.moments import Factors, TileLayout
from pipeline.noise import fill_normals
from pipeline.plan.cost import TYPICAL_RANK, ExperimentPlan, count_sizes, measure_flops
from pipeline.schema import LABELS
from pipeline.store import COMPRESSION_LEVEL

__all__ = [
    "ASSUMED_BANDWIDTH",
    "COMPRESSION",
    "Rates",
    "Scaling",
    "count_factorisations",
    "measure_rates",
    "project_scaling",
]

# --- The rates of this machine in each part of a pass. Each is measured by itself for a second or two.
#
# On a busy machine the measured rates are too low.

#: Bytes/s of a shared file system for all workers together, if no rate is given: those of a small parallel one.
ASSUMED_BANDWIDTH = 5e9
_BLOCK_BYTES = 16 * 2**20
_NOISE_PIXELS = 4096


@dataclass(frozen=True)
class Rates:
    """Rates in one second, of one core unless said otherwise.

    Attributes
    ----------
    gram, solve
        Floating-point operations of Gram products (N·P² for N rows) and of float64 factorisations (P³/3 for one).
    noise
        Normal random numbers drawn.
    decode
        Bytes of pixels decompressed and checked.
    merge
        Bytes of partial sums that the driver checks and adds up.
    store
        Bytes that the shared file system moves for all workers together.
    """

    gram: float
    solve: float
    noise: float
    decode: float
    merge: float
    store: float = ASSUMED_BANDWIDTH


def measure_rates(n_pixels: int, precision: str, *, store: float = ASSUMED_BANDWIDTH) -> Rates:
    """Measure the rates of this machine, which takes a few seconds.

    Parameters
    ----------
    n_pixels
        P. Products are measured with at most 2048 pixels.
    precision
        Of the products.
    store
        Bandwidth of the shared file system, bytes/s, which cannot be measured from here.
    """
    cores = available_cores()
    return Rates(
        gram=measure_flops(n_pixels, precision, rows=8192) / cores,
        solve=measure_flops(n_pixels, "float64", rows=4096) / cores,
        noise=_measure_noise(),
        decode=_measure_decoding(),
        merge=_measure_merging(),
        store=store,
    )


def _best_seconds(work: Callable[[], object], times: int = 3) -> float:
    work()  # compiles, and touches the memory
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def _measure_noise() -> float:
    out, key = np.empty((1024, _NOISE_PIXELS), np.float32), np.array([1, 2], np.uint32)
    return float(out.size / _best_seconds(lambda: fill_normals(0, key, out)))


def _measure_decoding() -> float:
    # Like flux: smooth, of order one, and the last bits of every mantissa are random.
    flux = np.random.default_rng(0).normal(1, 1e-3, _BLOCK_BYTES // 4).astype(np.float32)
    encoded, out = blosc.compress(flux, b"lz4", COMPRESSION_LEVEL, blosc.SHUFFLE), np.empty_like(flux)
    return _BLOCK_BYTES / _best_seconds(lambda: (google_crc32c.value(encoded), blosc.decompress(encoded, out)))


def _measure_merging() -> float:
    part, total = np.ones(_BLOCK_BYTES, np.float32), np.zeros(_BLOCK_BYTES)
    content = part.view(np.uint8)
    return part.nbytes / _best_seconds(lambda: (google_crc32c.value(content), np.add(total, part, out=total)))


#: Compression of flux and error together in a store, measured on simulated spectra.
COMPRESSION = 1.5
#: Cost of a path of penalties in factorisations, at most, if every bin has several spectra for each pixel. One Krylov
#: space then serves all penalties (:mod:`pipeline.ridge.krylov`). Measured: 0.8 to 2.5.
_PATH = 2


@dataclass(frozen=True)
class Scaling:
    """The projected cost on many workers, in seconds and bytes.

    Attributes
    ----------
    plan
        What is computed, and in which pieces.
    cores
        Cores of one worker.
    rates
        Rates of one core, of the driver, and of the file system.
    arithmetic, noise, decoding
        Seconds of the pass if every worker were busy to its end.
    idle
        Seconds of the pass in which workers wait because pieces do not divide evenly among them.
    read, partials, merged
        Bytes that workers read, bytes that they write as partial sums, and bytes of the folds' sums that the driver
        writes.
    solving
        Seconds to solve the models of the main binning.
    """

    plan: ExperimentPlan
    cores: int
    rates: Rates
    arithmetic: float
    noise: float
    decoding: float
    idle: float
    read: float
    partials: float
    merged: float
    solving: float

    @property
    def busy(self) -> float:
        """Seconds of the pass if every worker were busy to its end and the file system fast enough."""
        return self.arithmetic + self.noise + self.decoding

    @property
    def traffic(self) -> float:
        """Seconds that the file system needs for all that workers read and write in the pass."""
        return (self.read + self.partials) / self.rates.store

    @property
    def merging(self) -> float:
        """Seconds in which the driver merges partial sums if it never waits for them; 0 if folds have one partition."""
        if not self.merged:
            return 0.0
        return max(self.partials / self.rates.merge, (self.partials + self.merged) / self.rates.store)

    @property
    def accumulating(self) -> float:
        """Seconds from the first read to the last merged fold. Reading, computing and merging overlap."""
        n_sums = self.plan.n_draws * self.plan.n_folds
        # The last fold is merged after all workers have finished.
        return max(self.busy + self.idle, self.traffic, self.merging) + self.merging / n_sums

    @property
    def total(self) -> float:
        """Seconds of the pass and of solving."""
        return self.accumulating + self.solving

    @property
    def efficiency(self) -> float:
        """Share of the accumulate step in which the workers are busy."""
        return self.busy / self.accumulating

    @property
    def bottleneck(self) -> tuple[str, str]:
        """What takes most of the time, and what would reduce it."""
        if self.solving > self.accumulating:
            return "solving the models", (
                f"a task solves all models of one noise draw, {self.plan.solve_threads} side by side, so that more "
                "workers than draws do not help"
            )
        if self.merging > max(self.busy + self.idle, self.traffic):
            return "merging partial sums in the driver", "fewer of them: larger compute.partition_rows, fewer bins"
        if self.traffic > self.busy + self.idle:
            return (
                "the shared file system",
                "more workers do not help; let more noise draws share a read, or fewer cells",
            )
        if self.idle > self.busy / 4:
            return "workers without work", (
                f"{self.plan.n_pieces:,} pieces for {self.plan.n_workers:,} workers: use fewer workers, or cut finer, "
                "by a smaller compute.partition_rows"
            )
        largest = max((self.arithmetic, "products"), (self.noise, "noise"), (self.decoding, "decoding"))
        return largest[1], "more workers help, in proportion"

    def render(self, source: str = "") -> str:
        """Return the projection as lines for people.

        Parameters
        ----------
        source
            Where the rates come from.
        """
        plan, rates = self.plan, self.rates
        what, remedy = self.bottleneck
        lines = [
            f"workers              {plan.n_workers:,} × {self.cores} core{'s' if self.cores > 1 else ''}, "
            f"{plan.n_pieces:,} pieces in {math.ceil(plan.n_pieces / plan.n_workers):,} rounds",
            f"rates                {rates.gram * self.cores / 1e9:,.0f} Gflop/s, "
            f"{rates.noise * self.cores / 1e6:,.0f} M normals/s, {rates.decode * self.cores / 1e9:,.1f} GB/s decoded "
            f"a worker; {rates.merge / 1e9:,.1f} GB/s merged; {rates.store / 1e9:,.1f} GB/s of file system",
            *([f"                     {source}"] if source else []),
            f"traffic, reading     {format_bytes(self.read)}, all passes together",
            f"traffic, sums        {format_bytes(self.partials)} written by workers"
            + (f", read and merged to {format_bytes(self.merged)} by the driver" if self.merged else ", none merged"),
            f"time, products       {format_seconds(self.arithmetic)}",
            f"time, noise          {format_seconds(self.noise)}",
            f"time, decoding       {format_seconds(self.decoding)}",
            f"time, uneven pieces  {format_seconds(self.idle)}",
            f"time, file system    {format_seconds(self.traffic)} beside these",
            f"time, merging        {format_seconds(self.merging)} beside these",
            f"time, accumulate     {format_seconds(self.accumulating)}; workers are at work "
            f"{self.efficiency:.0%} of it",
            f"time, solve          {format_seconds(self.solving)}",
            f"bottleneck           {what}: {remedy}",
        ]
        return "\n".join(lines)


def project_scaling(plan: ExperimentPlan, config: ExperimentConfig, rates: Rates, cores: int) -> Scaling:
    """Project time and traffic of an experiment.

    Parameters
    ----------
    plan
        From :func:`pipeline.plan.cost.plan_run`, for the intended number of workers.
    config
        Precision, penalties and bins.
    rates
        From :func:`pipeline.plan.scaling.measure_rates`, or stated.
    cores
        Of one worker.
    """
    layout, pixels = TileLayout(plan.n_pixels), plan.n_pixels
    small = float(Factors.nbytes(pixels, len(LABELS), min(TYPICAL_RANK, pixels)))
    # Of one cell of all draws: as workers write it, as it is merged, and as it stays on disk.
    partial = plan.n_dense * layout.nbytes(config.precision) + plan.n_factored * small
    merged = plan.n_dense * layout.nbytes(np.float64) + plan.n_factored * small
    n_sums, n_values = plan.n_folds * plan.n_cells, float(plan.n_spectra) * pixels
    is_merged = plan.n_partitions > plan.n_folds
    workers = plan.n_workers * cores
    decoded = plan.n_passes * n_values * 8
    arithmetic = plan.flops / rates.gram / workers
    noise = plan.n_draws * n_values / rates.noise / workers
    decoding = decoded / rates.decode / workers
    rounds = math.ceil(plan.n_pieces / plan.n_workers)
    idle = (arithmetic + noise + decoding) * (rounds * plan.n_workers / plan.n_pieces - 1)
    threads = min(cores, max(1, plan.solve_threads))
    n_systems, saved = count_factorisations(config, plan.n_folds), (merged if is_merged else partial) / plan.n_draws
    # Every cell is read twice: for the global model and for its expert.
    reading = 2 * n_sums * saved / min(rates.merge, rates.store)
    flops = {"dense": pixels**3 / 3, "factored": float(pixels * min(TYPICAL_RANK, pixels) ** 2)}
    draws = {"dense": plan.n_dense, "factored": plan.n_factored}
    factorising = sum(draws[kind] * n_systems * flops[kind] for kind in draws) / plan.n_draws / rates.solve
    return Scaling(
        plan=plan,
        cores=cores,
        rates=rates,
        arithmetic=arithmetic,
        noise=noise,
        decoding=decoding,
        idle=idle,
        read=decoded / COMPRESSION,
        partials=float(plan.n_partitions) * plan.n_cells * partial,
        merged=float(n_sums) * merged if is_merged else 0.0,
        solving=math.ceil(plan.n_draws / plan.n_workers) * (factorising / threads + reading),
    )


def count_factorisations(config: ExperimentConfig, n_folds: int) -> int:
    """Return the number of factorisations for the main binning's models of one noise draw.

    The models of every training size of the learning curve count, and so does a search for the penalty.
    """
    n_models = 1 + math.prod(len(edges) - 1 for edges in config.bins.values())
    alpha, sizes = config.ridge.alpha, count_sizes(config, n_folds)
    if not isinstance(alpha, AlphaSearch):
        return n_models * sizes
    path, n_searching = min(len(alpha.search), _PATH), n_models if alpha.expert_curves else 1
    # Penalties are tried once without each fold, and once on all spectra for the curve on test spectra.
    return n_models * (sizes + path - 1) + n_searching * path * n_folds


def format_seconds(seconds: float) -> str:
    """Return a span of time for people."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
