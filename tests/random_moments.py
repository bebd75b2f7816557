"""Moments of spectra that are nothing but random numbers, for the tests that look at memory only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.accumulate import MomentsFolder
from pipeline.moments import Moments, write_moments
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
