"""Test spectra as the models see them, and what the models say of them; block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base import compute_ahead, one_blas_thread, tabulate
from pipeline.noise import MarginalNoise, Noise, StoredNoise
from pipeline.ridge import ExpertModels
from pipeline.store import AnyStore

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Columns",
    "Stacked",
    "predict_marginal",
    "predict_stacked",
    "predict_store",
    "read_marginal_rows",
    "read_noisy_rows",
    "tabulate_predictions",
]

FloatArray = NDArray[np.float64]
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


@dataclass(frozen=True, eq=False)
class Columns:
    """What is to be predicted of spectra: ``b + xᵀw`` for M columns of weights (P, M) and intercepts (M,)."""

    weights: FloatArray
    intercepts: FloatArray

    @classmethod
    def of_models(cls, models: ExpertModels, label: str) -> Columns:
        """Return the columns of a set of models for one label: the global model, then every expert, (P, 1 + K)."""
        return cls(*models.columns(label))

    @classmethod
    def join(cls, columns: Sequence[Columns]) -> Columns:
        """Return several as one."""
        return cls(
            np.concatenate([one.weights for one in columns], axis=1),
            np.concatenate([one.intercepts for one in columns]),
        )

    @property
    def size(self) -> int:
        """M."""
        return len(self.intercepts)


@dataclass(frozen=True, eq=False)
class Stacked:
    """The values of some columns, (N, M); with their variances where they are means over the noise, else None."""

    values: FloatArray
    variances: FloatArray | None

    def select(self, columns: Sequence[int]) -> Stacked:
        """Return some of the columns."""
        return Stacked(self.values[:, columns], None if self.variances is None else self.variances[:, columns])


def predict_stacked(
    store: AnyStore,
    asked: Sequence[Columns],
    noise: Noise,
    precision: str = "float32",
    advance: Callable[[int], None] | None = None,
    watch: Callable[[NDArray[np.floating], FloatArray | None], None] | None = None,
) -> list[Stacked]:
    """Predict all that anybody asks of the spectra of a store, in one read.

    The models are linear and pixels are independent, so where noise is integrated out, with the pixels' means m and
    variances v::

        E[ŷ] = b + wᵀm      Var[ŷ] = Σ w_p² v_p      E[(y − ŷ)²] = (y − E[ŷ])² + Var[ŷ]

    Parameters
    ----------
    store
        The test store, N spectra.
    asked
        Columns of weights and intercepts, in several parts.
    noise, precision
        Of the spectra, see :meth:`pipeline.noise.Noise.read`.
    advance
        Called with the number of finished spectra.
    watch
        Called with every block of spectra as they were read, see :meth:`pipeline.noise.Noise.read`.

    Returns
    -------
    list of Stacked
        The values of every part.
    """
    joined = Columns.join(asked)
    values = np.empty((store.n_spectra, joined.size))
    variances = None if noise.is_single else np.empty_like(values)
    cuts = [(start, min(start + _BLOCK_ROWS, store.n_spectra)) for start in range(0, store.n_spectra, _BLOCK_ROWS)]
    # One BLAS thread: the bits of a product may depend on their number, and reading takes most of the time.
    with one_blas_thread():
        blocks = compute_ahead(lambda cut: noise.read(store, *cut, precision), cuts)
        for (start, stop), (rows, spread) in zip(cuts, blocks, strict=True):
            values[start:stop] = rows.astype(np.float64) @ joined.weights + joined.intercepts
            if variances is not None and spread is not None:
                variances[start:stop] = spread @ joined.weights**2
            if watch is not None:
                watch(rows, spread)
            if advance is not None:
                advance(stop - start)
    ends = np.cumsum([one.size for one in asked])[:-1]
    parts = np.split(values, ends, axis=1)
    spreads = [None] * len(parts) if variances is None else np.split(variances, ends, axis=1)
    return [Stacked(np.ascontiguousarray(own), spread) for own, spread in zip(parts, spreads, strict=True)]


def predict_store(
    store: AnyStore,
    models: Sequence[ExpertModels],
    target: str | Sequence[str],
    draw: Noise | None,
    precision: str = "float32",
    advance: Callable[[int], None] | None = None,
) -> FloatArray:
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
    found = predict_stacked(store, _columns_of(models, target), draw or StoredNoise(), precision, advance)
    return np.stack([one.values for one in found])


def predict_marginal(
    store: AnyStore,
    models: Sequence[ExpertModels],
    target: str | Sequence[str],
    noise: MarginalNoise,
    advance: Callable[[int], None] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Predict a label of every spectrum on average over all draws of its noise, and how the noise scatters it.

    Parameters
    ----------
    store, models, target, advance
        See :func:`predict_store`; all in float64, whatever the precision of the training.
    noise
        The level.

    Returns
    -------
    mean
        Shape (M, N, 1 + K), label units; the global model first. See :func:`predict_stacked` for the formulas.
    variance
        Same shape, label units².
    """
    found = predict_stacked(store, _columns_of(models, target), noise, "float64", advance)
    return np.stack([one.values for one in found]), np.stack(
        [one.variances for one in found if one.variances is not None]
    )


def _columns_of(models: Sequence[ExpertModels], target: str | Sequence[str]) -> list[Columns]:
    targets = [target] * len(models) if isinstance(target, str) else target
    return [Columns.of_models(one, label) for one, label in zip(models, targets, strict=True)]


# --- What models say of every test spectrum, as the table that a run leaves.


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
    return tabulate(frame)


def _name_columns(of_models: FloatArray, bins: NDArray[np.int64]) -> dict[str, FloatArray]:
    """Return columns of an array (N, 1 + K): of the global model, of what the oracle routes to, of every expert."""
    of_global, of_experts = of_models[:, 0], of_models[:, 1:]
    routed = np.where(bins >= 0, of_experts[np.arange(len(bins)), np.maximum(bins, 0)], of_global)
    experts = {f"expert_{k}": of_experts[:, k] for k in range(of_experts.shape[1])}
    return {"y_global": of_global, "y_oracle": routed, **experts}
