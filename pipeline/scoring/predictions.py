"""Test spectra as the models see them, and what the models say of them; block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.noise import MarginalNoise, Noise, StoredNoise
from pipeline.ridge import ExpertModels
from pipeline.store import AnyStore

__all__ = [
    "predict_columns",
    "predict_marginal",
    "predict_noisy",
    "predict_store",
    "read_marginal_rows",
    "read_noisy_rows",
    "tabulate_predictions",
]

_BLOCK_ROWS = 1024


def read_noisy_rows(
    store: AnyStore, start: int, stop: int, draw: Noise | None, precision: str = "float32"
) -> NDArray[np.floating]:
    """Read spectra with exactly the noise that the pipeline trains and tests with.

    This makes every result repeatable outside the pipeline: fit any model in memory on these rows.

    Parameters
    ----------
    store
        The store, or several as one.
    start, stop
        Absolute rows, which count through all stores.
    draw
        The noise draw (training spectra use ``STREAM_TRAIN``, test spectra ``STREAM_TEST``); None reads the
        store's own ``noisy`` array.
    precision
        ``float32`` or ``float64``, as in the configuration.

    Returns
    -------
    NDArray[np.floating]
        Noisy flux, shape (stop − start, P), never negative, origin not subtracted.

    Raises
    ------
    InputError
        If ``draw`` is None and the store has no ``noisy`` array.
    """
    return (draw or StoredNoise()).read(store, start, stop, precision)[0]


def read_marginal_rows(
    store: AnyStore, start: int, stop: int, noise: MarginalNoise
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read what spectra with noise are on average over all draws: mean and variance of every pixel, in float64.

    The counterpart of :func:`read_noisy_rows` for :mod:`pipeline.noise.marginal`: a ridge regression on the means,
    with the sum of the variances added to the diagonal of its Gram matrix, is what training on marginal noise means.

    Parameters
    ----------
    store
        The store, or several as one.
    start, stop
        Absolute rows, which count through all stores.
    noise
        The level.

    Returns
    -------
    m
        Means, shape (stop − start, P), flux units, origin not subtracted.
    v
        Variances, same shape, flux².
    """
    return noise.read(store, start, stop)


def predict_store(
    store: AnyStore,
    models: Sequence[ExpertModels],
    target: str | Sequence[str],
    draw: Noise | None,
    precision: str = "float32",
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Predict a label of every spectrum of a store with several sets of models, in one read.

    Parameters
    ----------
    store
        The test store, N spectra.
    models
        M sets of a global model and K experts.
    target
        The label, or one for each set of models.
    draw, precision
        The noise, see :func:`read_noisy_rows`.
    advance
        Called with the number of finished spectra.

    Returns
    -------
    NDArray[np.float64]
        Shape (M, N, 1 + K), label units; the global model first.
    """
    predicted = predict_columns(store, *_join_columns(models, target), draw, precision, advance)
    return _by_model(predicted, len(models))


def predict_columns(
    store: AnyStore,
    weights: NDArray[np.float64],
    intercepts: NDArray[np.float64],
    draw: Noise | None,
    precision: str = "float32",
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Return ``b + xᵀw`` of every spectrum of a store, shape (N, M), for M columns of weights (P, M) and intercepts.

    See :func:`predict_store` for the other parameters.
    """
    return _predict_rows(store, weights, intercepts, draw, precision, advance)[0]


def predict_marginal(
    store: AnyStore,
    models: Sequence[ExpertModels],
    target: str | Sequence[str],
    noise: MarginalNoise,
    advance: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predict a label of every spectrum on average over all draws of its noise, and how the noise scatters it.

    The models are linear and pixels are independent, so with the pixels' means m and variances v::

        E[ŷ] = b + wᵀm      Var[ŷ] = Σ w_p² v_p      E[(y − ŷ)²] = (y − E[ŷ])² + Var[ŷ]

    Parameters
    ----------
    store, models, target, advance
        See :func:`predict_store`; all in float64, whatever the precision of the training.
    noise
        The level.

    Returns
    -------
    mean
        Shape (M, N, 1 + K), label units; the global model first.
    variance
        Same shape, label units².
    """
    weights, intercepts = _join_columns(models, target)
    mean, variance = _predict_rows(store, weights, intercepts, noise, advance=advance)
    assert variance is not None
    return _by_model(mean, len(models)), _by_model(variance, len(models))


def predict_noisy(
    store: AnyStore,
    models: Sequence[ExpertModels],
    target: str | Sequence[str],
    noise: Noise,
    precision: str = "float32",
    advance: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return what :func:`predict_marginal` or, with None for variances, :func:`predict_store` does for this noise."""
    mean, variance = _predict_rows(store, *_join_columns(models, target), noise, precision, advance)
    return _by_model(mean, len(models)), None if variance is None else _by_model(variance, len(models))


def _predict_rows(
    store: AnyStore,
    weights: NDArray[np.float64],
    intercepts: NDArray[np.float64],
    noise: Noise | None,
    precision: str = "float32",
    advance: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return ``b + xᵀw`` (N, M), or its mean and variance over the noise where the noise is integrated out."""
    noise = noise or StoredNoise()
    predicted = np.empty((store.n_spectra, weights.shape[1]))
    variance = None if noise.is_single else np.empty_like(predicted)
    # One BLAS thread: the bits of a product may depend on their number, and reading takes most of the time.
    with threadpool_limits(1, user_api="blas"):
        for start in range(0, store.n_spectra, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, store.n_spectra)
            rows, spread = noise.read(store, start, stop, precision)
            predicted[start:stop] = rows.astype(np.float64, copy=False) @ weights + intercepts
            if variance is not None and spread is not None:
                variance[start:stop] = spread @ weights**2
            if advance is not None:
                advance(stop - start)
    return predicted, variance


def _join_columns(
    models: Sequence[ExpertModels], target: str | Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights (P, M · (1 + K)) and intercepts of all models."""
    targets = [target] * len(models) if isinstance(target, str) else target
    columns = [one.columns(label) for one, label in zip(models, targets, strict=True)]
    return np.concatenate([w for w, _ in columns], axis=1), np.concatenate([b for _, b in columns])


def _by_model(of_spectra: NDArray[np.float64], n_models: int) -> NDArray[np.float64]:
    """Return an array (N, M · (1 + K)) as (M, N, 1 + K)."""
    return np.ascontiguousarray(of_spectra.reshape(len(of_spectra), n_models, -1).transpose(1, 0, 2))


# --- What models say of every test spectrum, as the table that a run leaves.

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
