"""Noise draws that depend on nothing but the seed, the stream and the row.

    noisy = max(max(flux, 0) + level · error · ε, 0),   ε ~ N(0, 1) independent per pixel

ε comes from a counter-based generator (:mod:`pipeline.normals`), so any rows can be drawn by any worker in any order.
The same ε serve every noise level of a seed. Or no ε at all: :class:`MarginalNoise` is the expectation over all draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.normals import fill_normals

__all__ = [
    "MARGINAL_ALGORITHM",
    "NOISE_ALGORITHM",
    "MarginalNoise",
    "Noise",
    "NoiseDraw",
    "add_noise",
    "draw_noise",
    "stream_key",
]

#: Recorded with every result; changes whenever the same seed would give other numbers.
NOISE_ALGORITHM = "philox4x32-10/box-muller-float32"
#: The same for noise that is integrated out; changes with the polynomials of :mod:`pipeline.marginal`.
MARGINAL_ALGORITHM = "closed-form/chebyshev-16-44"


@dataclass(frozen=True)
class NoiseDraw:
    """One draw of noise over a whole store: ``level`` × 1σ, from ``(seed, stream)``."""

    level: float
    seed: int
    stream: int

    @property
    def name(self) -> str:
        """A short name that is safe in paths."""
        return f"seed-{self.seed}_noise-{self.level!r}"


@dataclass(frozen=True)
class MarginalNoise:
    """Noise of ``level`` × 1σ integrated out, see :mod:`pipeline.marginal`: all draws at once, so there is no seed.

    ``algorithm`` is part of what is recorded with the moments: another one is another computation.
    """

    level: float
    algorithm: str = MARGINAL_ALGORITHM

    @property
    def name(self) -> str:
        """A short name that is safe in paths."""
        return f"marginal_noise-{self.level!r}"


#: What can be done with the noise of a store.
Noise = NoiseDraw | MarginalNoise


def stream_key(draw: NoiseDraw) -> NDArray[np.uint32]:
    """Return the generator's key for a seed and stream, two 32-bit words; seeds of any size are hashed into it."""
    words = np.random.SeedSequence(draw.seed, spawn_key=(draw.stream,)).generate_state(2, np.uint32)
    return words.astype(np.uint32)


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
    if out is None:
        out = np.empty((stop - start, n_pixels), dtype=np.float32)
    fill_normals(start, stream_key(draw), out)
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
