"""What a careful user writes today: everything in memory, float32, NumPy and scikit-learn, one noise draw.

    python benchmarks/peer_sklearn.py TRAIN_SHARDS TEST_SHARDS

Reads the HDF5 shards, draws the same noise as ``headroom run``, fits one global ridge and one for each bin
(``StandardScaler`` of the whole training set, ``Ridge``), scores the test spectra, and prints one line of JSON:
seconds of each step, peak memory, R². Arrays are used in place where the libraries allow it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from pipeline.base import peak_memory
from pipeline.config import REFERENCE_EDGES
from pipeline.noise import NoiseDraw, draw_noise
from pipeline.schema import STREAM_TEST, STREAM_TRAIN
from pipeline.shards import read_shard_info

SEED, ALPHA_PER_SPECTRUM, BLOCK_ROWS = 42, 0.1, 4096


def read_noisy(folder: Path, stream: int, seconds: dict[str, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return noisy pixels (N, P) float32 and the labels of all shards of a folder."""
    files = sorted(folder.rglob("dataset.h5"))
    infos = [read_shard_info(file) for file in files]
    x = np.empty((sum(info.n_spectra for info in infos), infos[0].n_pixels), np.float32)
    row = 0
    for file in files:
        with h5py.File(file) as shard:
            flux, error = shard["dataset/arrays/flux/value"], shard["dataset/arrays/error/value"]
            for start in range(0, len(flux), BLOCK_ROWS):
                started = time.perf_counter()
                block = flux[start : start + BLOCK_ROWS].astype(np.float32)
                sigma = error[start : start + BLOCK_ROWS].astype(np.float32)
                read = time.perf_counter()
                noise = draw_noise(NoiseDraw(1.0, SEED, stream), row, row + len(block), x.shape[1])
                for edge, neighbour in ((0, 1), (-1, -2)):  # the outermost pixels have no error of their own
                    sigma[:, edge] = np.where(np.isnan(sigma[:, edge]), sigma[:, neighbour], sigma[:, edge])
                noise *= sigma
                noise += np.maximum(block, 0)
                np.maximum(noise, 0, out=x[row : row + len(block)])
                row += len(block)
                seconds["read"] += read - started
                seconds["noise"] += time.perf_counter() - read
    return x, {name: np.concatenate([info.columns[name] for info in infos]) for name in ("T_eff", "M_H", "log_g")}


def assign(labels: dict[str, np.ndarray]) -> np.ndarray:
    """Return each spectrum's bin, -1 outside."""
    place, inside = np.zeros(len(labels["log_g"]), int), np.ones(len(labels["log_g"]), bool)
    for name, edges in REFERENCE_EDGES.items():
        k = np.digitize(labels[name], edges) - 1
        k[labels[name] == edges[-1]] = len(edges) - 2
        inside &= (k >= 0) & (k < len(edges) - 1)
        place = place * (len(edges) - 1) + k
    return np.where(inside, place, -1)


def main() -> None:
    train, test = map(Path, sys.argv[1:3])
    seconds = {"read": 0.0, "noise": 0.0}
    begun = time.perf_counter()
    x, labels = read_noisy(train, STREAM_TRAIN, seconds)
    x_test, labels_test = read_noisy(test, STREAM_TEST, seconds)
    started = time.perf_counter()
    scaler = StandardScaler(copy=False)
    x, x_test = scaler.fit_transform(x), scaler.transform(x_test)
    seconds["scale"] = time.perf_counter() - started
    started = time.perf_counter()
    alpha = ALPHA_PER_SPECTRUM * len(x)
    y, bins, bins_test = labels["log_g"], assign(labels), assign(labels_test)
    of_global = Ridge(alpha).fit(x, y).predict(x_test)
    routed = of_global.copy()
    for k in range(bins.max() + 1):
        members = bins_test == k
        routed[members] = Ridge(alpha, copy_X=False).fit(x[bins == k], y[bins == k]).predict(x_test[members])
    seconds["fit"] = time.perf_counter() - started
    covered = bins_test >= 0
    y_true = labels_test["log_g"][covered]
    result = {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "total": round(time.perf_counter() - begun, 3),
        "peak_memory": peak_memory(),
        "r2_global": r2_score(y_true, of_global[covered]),
        "r2_oracle": r2_score(y_true, routed[covered]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
