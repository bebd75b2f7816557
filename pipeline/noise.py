"""Noise draws that depend on nothing but the seed, the stream and the row.

    noisy = max(max(flux, 0) + level · error · ε, 0),   ε ~ N(0, 1) independent per pixel

Rows are drawn in fixed groups of :data:`GROUP_ROWS`, each group from a generator of its own, so any row range
can be drawn by any worker in any order. The same ε serve every noise level of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUP_ROWS", "NOISE_ALGORITHM", "NoiseDraw", "add_noise", "draw_noise"]

#: Rows per keyed generator. Part of the algorithm: another value gives other draws.
GROUP_ROWS = 64
#: Recorded with every result; changes whenever the same seed would give other numbers.
NOISE_ALGORITHM = "sfc64-ziggurat-float32/64"


@dataclass(frozen=True)
class NoiseDraw:
    """One draw of noise over a whole store: ``level`` × 1σ, from ``(seed, stream)``."""

    level: float
    seed: int
    stream: int

    @property
    def name(self) -> str:
        """A short name that is safe in paths."""
        return f"seed-{self.seed}_noise-{self.level:g}"


def draw_noise(
    draw: NoiseDraw, start: int, stop: int, n_pixels: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Draw the standard normals ε of the rows ``start:stop``.

    Parameters
    ----------
    draw
        Seed and stream; the level is not applied here.
    start, stop
        Absolute rows of the store.
    n_pixels
        P, pixels per spectrum.
    out
        Optional C-ordered float32 array of shape (stop − start, P) to fill.

    Returns
    -------
    NDArray[np.float32]
        ε, shape (stop − start, P): bit for bit the same whatever range they are asked for in.
    """
    rows = stop - start
    if out is None:
        out = np.empty((rows, n_pixels), dtype=np.float32)
    for group in range(start // GROUP_ROWS, -(-stop // GROUP_ROWS)):
        first = group * GROUP_ROWS
        # SeedSequence hashes (seed, stream, group) into the state of an independent small fast generator.
        keyed = np.random.Generator(np.random.SFC64(np.random.SeedSequence(draw.seed, spawn_key=(draw.stream, group))))
        a, b = max(first, start), min(first + GROUP_ROWS, stop)
        if a == first:
            keyed.standard_normal(out=out[a - start : b - start], dtype=np.float32)
        else:
            # The range enters in the middle of a group: its earlier rows must be drawn to be skipped.
            drawn = keyed.standard_normal((b - first, n_pixels), dtype=np.float32)
            out[a - start : b - start] = drawn[a - first :]
    return out


def add_noise(
    flux: NDArray[np.floating], error: NDArray[np.floating], noise: NDArray[np.floating], level: float
) -> NDArray[np.floating]:
    """Return ``max(max(flux, 0) + level · error · ε, 0)``; all arrays (N, P), in the dtype of ``flux``."""
    noisy = noise.astype(flux.dtype)
    noisy *= flux.dtype.type(level)
    noisy *= error
    noisy += np.maximum(flux, 0)
    return np.maximum(noisy, 0, out=noisy)
