"""How fast this machine does what a pass is made of, each measured by itself for a second or two.

They are what :mod:`pipeline.plan_scaling` computes with. A busy machine measures itself slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipeline.memory import available_cores
from pipeline.normals import fill_normals
from pipeline.plan import measure_flops
from pipeline.store_layout import COMPRESSION_LEVEL

__all__ = ["ASSUMED_BANDWIDTH", "Rates", "measure_rates"]

#: Of a shared file system, for all workers together, where nobody says: a small parallel one.
ASSUMED_BANDWIDTH = 5e9
_BLOCK_BYTES = 16 * 2**20
_NOISE_PIXELS = 4096


@dataclass(frozen=True)
class Rates:
    """Rates per second; of one core where nothing else is said.

    Attributes
    ----------
    gram, solve
        Floating-point operations of Gram products (N·P² for N rows) and of float64 factorisations (P³/3 for one).
    noise
        Normals drawn.
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
    """Measure this machine; takes a few seconds.

    Parameters
    ----------
    n_pixels
        P; products are measured at up to 2048.
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
    # As flux is: smooth, of order one, with an uncertain end of every mantissa.
    flux = np.random.default_rng(0).normal(1, 1e-3, _BLOCK_BYTES // 4).astype(np.float32)
    encoded, out = blosc.compress(flux, b"lz4", COMPRESSION_LEVEL, blosc.SHUFFLE), np.empty_like(flux)
    return _BLOCK_BYTES / _best_seconds(lambda: (google_crc32c.value(encoded), blosc.decompress(encoded, out)))


def _measure_merging() -> float:
    part, total = np.ones(_BLOCK_BYTES, np.float32), np.zeros(_BLOCK_BYTES)
    content = part.view(np.uint8)
    return part.nbytes / _best_seconds(lambda: (google_crc32c.value(content), np.add(total, part, out=total)))
