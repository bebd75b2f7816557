"""What dask-ml's own linear model brings on the same noisy rows: one global model by ADMM, against the exact ridge.

    python benchmarks/peer_dask_ml.py TRAIN_STORE TEST_STORE

The noisy rows are those of ``headroom run``. Pixels are standardised and labels centred beforehand and the chunks are
persisted, none of it timed, so that only ``LinearRegression(solver="admm").fit`` is. dask-glm minimises
``Σ(y − xᵀβ)² + λ/2·‖β‖²`` with λ = 1/C, so α = λ/2. Its ``rho`` is set to the spectra in a chunk, the scale of the
loss: with the default of 1 it does not converge within its 100 steps (20,000 × 256: 179 s and R² −0.15, with it
10 s and 4e-5 off). Prints one line of JSON: seconds, R², and the exact solution's R² by scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import time

import dask.array as da
import numpy as np
from dask_ml.linear_model import LinearRegression
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from pipeline import STREAM_TEST, STREAM_TRAIN, NoiseDraw, SpectraStore, read_noisy_rows
from pipeline.base import available_cores

SEED, ALPHA_PER_SPECTRUM = 42, 0.1


def read_scaled(train: SpectraStore, test: SpectraStore) -> tuple[np.ndarray, np.ndarray]:
    """Return the noisy pixels of both stores, scaled by mean and standard deviation of the first."""
    x = read_noisy_rows(train, 0, train.n_spectra, NoiseDraw(1.0, SEED, STREAM_TRAIN)).astype(np.float64)
    x_test = read_noisy_rows(test, 0, test.n_spectra, NoiseDraw(1.0, SEED, STREAM_TEST)).astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1
    return (x - mean) / scale, (x_test - mean) / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    options = parser.parse_args()
    train, test = SpectraStore.open(options.train), SpectraStore.open(options.test)
    x, x_test = read_scaled(train, test)
    y, y_test = train.columns["log_g"], test.columns["log_g"]
    alpha, mean = ALPHA_PER_SPECTRUM * len(x), float(np.mean(y))
    exact = r2_score(y_test, Ridge(alpha).fit(x, y).predict(x_test))

    rows = -(-len(x) // (2 * available_cores()))
    chunks = da.from_array(x, chunks=(rows, -1)).persist()
    centred = da.from_array(y - mean, chunks=rows).persist()
    model = LinearRegression(
        solver="admm", penalty="l2", C=1 / (2 * alpha), fit_intercept=False, solver_kwargs={"rho": float(rows)}
    )
    started = time.perf_counter()
    model.fit(chunks, centred)
    seconds = time.perf_counter() - started
    found = r2_score(y_test, x_test @ model.coef_ + mean)
    print(json.dumps({"seconds": seconds, "r2": found, "r2_exact": exact}))


if __name__ == "__main__":
    main()
