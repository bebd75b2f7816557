"""The labels and observing conditions of the simulated stars, drawn in fixed blocks of rows.

A block's generator is keyed by (seed, part, block), so its stars do not depend on who draws them or in which order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.simulate.noise_model import MAGNITUDES, SEEING
from pipeline.simulate.spectra import Labels

__all__ = ["BLOCK_ROWS", "LABEL_RANGES", "block_generator", "draw_conditions", "draw_labels"]

FloatArray = npt.NDArray[np.float64]

#: Rows that share one generator and are computed together; part of what a seed means, so never change it.
BLOCK_ROWS: Final = 256

#: Start and stop of each label, then the two parameters of its beta distribution. T_eff fills the three bins
#: equally; [M/H] gives about 20 : 35 : 25 % in Poor, Solar and Rich and leaves about 20 % outside.
LABEL_RANGES: Final = {
    "T_eff": (3750.0, 6000.0, 1.0, 1.0),
    "log_g": (1.0, 5.0, 1.0, 1.0),
    "M_H": (-2.5, 0.75, 1.66, 0.85),
    "a_M": (-0.3, 0.3, 3.0, 3.0),
    "C_M": (-0.3, 0.3, 3.0, 3.0),
}


def block_generator(seed: int, part: int, block: int) -> np.random.Generator:
    """Return the generator of one block of rows; ``part`` is 0 for the test file, 1 + i for training shard i."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, part, block])))


def draw_labels(generator: np.random.Generator, rows: int) -> Labels:
    """Draw independent labels of ``rows`` stars."""
    return Labels(**{name: _draw_beta(generator, rows, *shape) for name, shape in LABEL_RANGES.items()})


def draw_conditions(generator: np.random.Generator, rows: int) -> tuple[FloatArray, FloatArray]:
    """Draw i-band magnitudes and seeing (arcsec), each (rows,)."""
    return generator.uniform(*MAGNITUDES, rows), _draw_beta(generator, rows, SEEING[0], sum(SEEING[:2]), *SEEING[2:])


def _draw_beta(generator: np.random.Generator, rows: int, start: float, stop: float, a: float, b: float) -> FloatArray:
    return start + (stop - start) * generator.beta(a, b, rows)
