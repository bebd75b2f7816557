"""What models say of every test spectrum, as the table that a run leaves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["tabulate_predictions"]

FloatArray = NDArray[np.float64]


def tabulate_predictions(
    origin: tuple[int, float],
    y_true: FloatArray,
    bins: NDArray[np.int64],
    predicted: FloatArray,
    variance: FloatArray | None = None,
) -> pd.DataFrame:
    """Return a row for each test spectrum.

    Parameters
    ----------
    origin
        Seed and level of the noise.
    y_true
        Labels, shape (N,).
    bins
        Bin of each spectrum, shape (N,), −1 outside.
    predicted
        Shape (N, 1 + K), label units; the global model first.
    variance
        Where predictions are means over the noise: their variances, same shape, label units².

    Returns
    -------
    DataFrame
        ``seed, noise_level, row, bin, y_true, y_global, y_oracle`` and ``expert_<bin>``; with variances also
        their roots, under the names of the predictions and ``_std``.
    """
    seed, level = origin
    frame = {
        "seed": np.full(len(bins), seed),
        "noise_level": np.full(len(bins), level),
        "row": np.arange(len(bins)),
        "bin": bins,
        "y_true": y_true,
        **_name_columns(predicted, bins),
    }
    if variance is not None:
        frame |= {f"{name}_std": column for name, column in _name_columns(np.sqrt(variance), bins).items()}
    return pd.DataFrame(frame)


def _name_columns(of_models: FloatArray, bins: NDArray[np.int64]) -> dict[str, FloatArray]:
    """Return columns of an array (N, 1 + K): of the global model, of what the oracle routes to, of every expert."""
    of_global, of_experts = of_models[:, 0], of_models[:, 1:]
    routed = np.where(bins >= 0, of_experts[np.arange(len(bins)), np.maximum(bins, 0)], of_global)
    experts = {f"expert_{k}": of_experts[:, k] for k in range(of_experts.shape[1])}
    return {"y_global": of_global, "y_oracle": routed, **experts}
