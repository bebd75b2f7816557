"""Quality features: what the error vector says of a spectrum as a whole, for gates whose bins are over ``snr``.

Pixel by pixel the error vector gives labels away (photon noise follows the flux), so nothing but these ten
aggregates may ever be made of it, and they may route by the signal-to-noise ratio alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ConfigError

__all__ = ["QUALITY_COLUMN", "QUALITY_NAMES", "quality_features", "require_no_leak"]

FloatArray = NDArray[np.float64]
#: The column that gates on quality features may route by.
QUALITY_COLUMN = "snr"
#: The ten, in order.
QUALITY_NAMES = tuple(
    f"error_{name}" for name in ("mean", "std", "min", "max", "median", "sum", "q25", "q75", "skew", "kurtosis")
)


def quality_features(error: ArrayLike) -> FloatArray:
    """Return ten aggregates of the 1σ errors of spectra (N, P), shape (N, 10), in the order of :data:`QUALITY_NAMES`.

    Moments are those of the population: skew Σ(e−ē)³/(P σ³), kurtosis Σ(e−ē)⁴/(P σ⁴) − 3; both 0 for a constant error.
    """
    given = np.asarray(error, dtype=np.float64)
    mean, std = given.mean(axis=1), given.std(axis=1)
    z = (given - mean[:, None]) / np.where(std > 0, std, 1.0)[:, None]
    lower, median, upper = np.quantile(given, [0.25, 0.5, 0.75], axis=1)
    kurtosis = np.where(std > 0, (z**4).mean(axis=1) - 3, 0.0)
    columns = (
        mean, std, given.min(axis=1), given.max(axis=1), median, given.sum(axis=1), lower, upper,
        (z**3).mean(axis=1), kurtosis,
    )  # fmt: skip
    return np.stack(columns, axis=1)


def require_no_leak(names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse features of the error vector for bins over anything but the signal-to-noise ratio.

    Parameters
    ----------
    names
        Of the features.
    columns
        Those that the bins are over.

    Raises
    ------
    ConfigError
        If some feature is made of the error vector and the bins are not over ``snr`` alone.
    """
    of_errors = [name for name in names if name.startswith("error")]
    if of_errors and tuple(columns) != (QUALITY_COLUMN,):
        raise ConfigError(
            f"features of the error vector may route by {QUALITY_COLUMN} alone, since errors give labels away; found "
            f"{', '.join(of_errors[:3])} for bins over {', '.join(columns)}; use features of the flux"
        )
