"""Test spectra as the models see them, and what the models say of them; block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError
from pipeline.models import ExpertModels
from pipeline.noise import NoiseDraw, add_noise, draw_noise
from pipeline.store_set import AnyStore

__all__ = ["STORED_LEVEL", "predict_store", "read_noisy_rows"]

#: The noise level at which the ``noisy`` arrays of test files were drawn.
STORED_LEVEL = 1.0
_BLOCK_ROWS = 1024


def read_noisy_rows(
    store: AnyStore, start: int, stop: int, draw: NoiseDraw | None, precision: str = "float32"
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
    if draw is None:
        if not store.has_noisy:
            paths = ", ".join(map(str, store.paths))
            raise InputError(f"store {paths} holds no pre-drawn 'noisy' array; give a noise draw")
        return np.asarray(np.maximum(store.read_rows("noisy", start, stop), 0), dtype=precision)
    flux = store.read_rows("flux", start, stop).astype(precision)
    if draw.level == 0:
        return np.asarray(np.maximum(flux, 0))
    error = store.read_rows("error", start, stop).astype(precision)
    return add_noise(flux, error, draw_noise(draw, start, stop, store.n_pixels), draw.level)


def predict_store(
    store: AnyStore,
    models: Sequence[ExpertModels],
    target: str,
    draw: NoiseDraw | None,
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
        The label.
    draw, precision
        The noise, see :func:`read_noisy_rows`.
    advance
        Called with the number of finished spectra.

    Returns
    -------
    NDArray[np.float64]
        Shape (M, N, 1 + K), label units; the global model first.
    """
    columns = [one.columns(target) for one in models]
    weights = np.concatenate([w for w, _ in columns], axis=1)
    intercepts = np.concatenate([b for _, b in columns])
    predicted = np.empty((store.n_spectra, weights.shape[1]))
    # One BLAS thread: the bits of a product may depend on their number, and reading takes most of the time.
    with threadpool_limits(1, user_api="blas"):
        for start in range(0, store.n_spectra, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, store.n_spectra)
            noisy = read_noisy_rows(store, start, stop, draw, precision)
            predicted[start:stop] = noisy.astype(np.float64) @ weights + intercepts
            if advance is not None:
                advance(stop - start)
    return np.ascontiguousarray(predicted.reshape(store.n_spectra, len(models), -1).transpose(1, 0, 2))
