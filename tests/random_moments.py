"""Moments of spectra that are nothing but random numbers, and samples of given ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.moments import Moments, Sample, write_moments
from pipeline.noise import NoiseDraw
from pipeline.schema import LABELS, STREAM_TRAIN


def write_random_moments(path: Path, n_folds: int, n_cells: int, pixels: int) -> MomentsFolder:
    generator = np.random.default_rng(0)
    for fold in range(n_folds):
        cells = [
            Moments.from_samples(generator.standard_normal((50, pixels)), generator.standard_normal((50, 3)), LABELS)
            for _ in range(n_cells)
        ]
        write_moments(path / f"fold-{fold:03d}", cells, n_cells, {})
    return MomentsFolder(path, NoiseDraw(1.0, 1, STREAM_TRAIN), n_folds, n_cells)


def take_sample(
    means: NDArray[np.float64], variances: NDArray[np.float64], groups: NDArray[np.int64] | None = None
) -> Sample:
    """Return ``m − o`` and ``v`` (N, P) of spectra in memory as a basis is chosen from; one group by default."""
    own = np.zeros(len(means), np.int64) if groups is None else groups
    noise = np.zeros((int(own.max()) + 1, means.shape[1]))
    np.add.at(noise, own, variances)
    return Sample(means, own, noise)
