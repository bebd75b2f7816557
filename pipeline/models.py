"""The models of one noise draw: the global ridge and one expert for each bin, from the cells' moments."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from pipeline.bins import BinGrid
from pipeline.config import RidgeConfig
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.moments import Moments, PixelSums
from pipeline.ridge import RidgePath, pixel_scale, solve_ridge_path
from pipeline.selection import resolve_alpha

__all__ = [
    "ExpertModels",
    "TooFewSpectraError",
    "join_models",
    "read_models",
    "require_enough_spectra",
    "shared_scale",
    "solve_experts",
    "write_models",
]

FORMAT = "headroom-models"
FORMAT_VERSION = 1
#: Raised when the same moments and settings would give other models.
ALGORITHM_VERSION = 2
_ARRAYS = (
    "global_weights",
    "global_intercepts",
    "expert_weights",
    "expert_intercepts",
    "expert_alphas",
    "expert_counts",
)


class TooFewSpectraError(InputError):
    """A bin has too few training spectra for an expert."""


@dataclass(frozen=True, eq=False)
class ExpertModels:
    """One global model and K experts, for P pixels and Q labels.

    Attributes
    ----------
    labels
        Names of the labels.
    global_weights, global_intercepts
        Shapes (P, Q) and (Q,), label units (per flux unit).
    expert_weights, expert_intercepts
        Shapes (K, P, Q) and (K, Q).
    global_alpha, expert_alphas
        Penalties, a number and shape (K,).
    global_count, expert_counts
        Training spectra, a number and shape (K,).
    warnings
        What a reader should know, such as bins with few spectra for their pixels.
    """

    labels: tuple[str, ...]
    global_weights: NDArray[np.float64]
    global_intercepts: NDArray[np.float64]
    expert_weights: NDArray[np.float64]
    expert_intercepts: NDArray[np.float64]
    global_alpha: float
    expert_alphas: NDArray[np.float64]
    global_count: int
    expert_counts: NDArray[np.int64]
    warnings: tuple[str, ...] = field(default=())

    @property
    def n_experts(self) -> int:
        """K."""
        return len(self.expert_weights)

    def predict(self, x: ArrayLike, target: str) -> NDArray[np.float64]:
        """Predict one label with every model.

        Parameters
        ----------
        x
            Pixels, shape (N, P), flux units.
        target
            One of :attr:`labels`.

        Returns
        -------
        NDArray[np.float64]
            Shape (N, 1 + K), label units: the global model first, then the experts in bin order.
        """
        weights, intercepts = self.columns(target)
        return np.asarray(np.asarray(x, dtype=np.float64) @ weights + intercepts)

    def columns(self, target: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weights (P, 1 + K) and intercepts (1 + K,) for one label, the global model first."""
        q = self.labels.index(target)
        weights = np.column_stack([self.global_weights[:, q], self.expert_weights[:, :, q].T])
        return weights, np.concatenate([self.global_intercepts[[q]], self.expert_intercepts[:, q]])


def solve_experts(cells: Sequence[Moments], ridge: RidgeConfig, grid: BinGrid, threads: int = 1) -> ExpertModels:
    """Solve the global model and one expert for each bin, from moments in memory.

    Parameters
    ----------
    cells
        Moments of every bin and, last, of the outside.
    ridge
        Penalty, scaling, and which spectra train the global model. The scaler of ``standardize: global`` is
        fitted on the spectra that train the global model.
    grid
        The bins, for naming them.
    threads
        Models solved side by side, each by BLAS on one thread: more are faster, need more memory (a dense matrix
        each), and change no bit.

    Returns
    -------
    ExpertModels

    Raises
    ------
    TooFewSpectraError
        If a bin has fewer than ``ridge.min_spectra`` training spectra; the message names it.
    """
    require_enough_spectra([cell.count for cell in cells[:-1]], ridge, grid)
    whole = Moments.merge(cells if ridge.train_on == "all" else cells[:-1])
    shared = shared_scale(whole.pixel_sums, ridge)
    alpha = resolve_alpha(ridge.alpha, whole.count)

    def solve(cell: Moments) -> RidgePath:
        own = ridge.standardize == "per_expert" and cell is not whole
        return solve_ridge_path(cell, alpha, pixel_scale(cell) if own else shared)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads, "solve") as executor:
        of_global, *experts = executor.map(solve, [whole, *cells[:-1]])
    return join_models(of_global, experts, grid)


def require_enough_spectra(counts: Sequence[int], ridge: RidgeConfig, grid: BinGrid) -> None:
    """Refuse bins with fewer than ``ridge.min_spectra`` training spectra.

    Raises
    ------
    TooFewSpectraError
        The message names the first such bin.
    """
    for number, count in enumerate(counts):
        if count < ridge.min_spectra:
            raise TooFewSpectraError(
                f"{grid.describe(number)} has {count} training spectra, at least {ridge.min_spectra} are "
                "required for an expert (ridge.min_spectra); widen the bin or add spectra"
            )


def shared_scale(whole: PixelSums, ridge: RidgeConfig) -> NDArray[np.float64]:
    """Return what the pixels are divided by, shape (P,): of the spectra that train the global model, or ones."""
    return pixel_scale(whole) if ridge.standardize != "none" else np.ones(whole.x_sum.size)


def join_models(of_global: RidgePath, experts: Sequence[RidgePath], grid: BinGrid) -> ExpertModels:
    """Return one set of models from the solutions for the first penalty of each path."""
    return ExpertModels(
        labels=of_global.labels,
        global_weights=of_global.weights[0],
        global_intercepts=of_global.intercepts[0],
        expert_weights=np.stack([expert.weights[0] for expert in experts]),
        expert_intercepts=np.stack([expert.intercepts[0] for expert in experts]),
        global_alpha=float(of_global.alphas[0]),
        expert_alphas=np.array([expert.alphas[0] for expert in experts]),
        global_count=of_global.count,
        expert_counts=np.array([expert.count for expert in experts]),
        warnings=_scarcity_warnings([expert.count for expert in experts], of_global.weights.shape[1], grid),
    )


def _scarcity_warnings(counts: Sequence[int], n_pixels: int, grid: BinGrid) -> tuple[str, ...]:
    scarce = [f"{grid.describe(k)}: {count:,}" for k, count in enumerate(counts) if count < 2 * n_pixels]
    if not scarce:
        return ()
    return (
        f"{len(scarce)} of {grid.n_bins} bins have fewer training spectra than twice the {n_pixels} pixels "
        f"({'; '.join(scarce)}): with drawn noise the number of spectra limits their "
        "experts, so look at how the headroom depends on n",
    )


def write_models(path: Path, models: Sequence[ExpertModels], header: dict[str, Any]) -> None:
    """Write models (of one noise draw, for growing training sets) to one ``.npz`` file, atomically."""
    facts = {
        **header,
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "models": [
            {
                "labels": m.labels,
                "global_alpha": m.global_alpha,
                "global_count": m.global_count,
                "warnings": m.warnings,
            }
            for m in models
        ],
    }
    arrays: dict[str, np.ndarray] = {"header": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)}
    for k, m in enumerate(models):
        arrays |= {f"{name}_{k}": getattr(m, name) for name in _ARRAYS}
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def read_models(path: Path) -> list[ExpertModels]:
    """Read the models that :func:`write_models` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another version.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            facts = json.loads(archive["header"].tobytes().decode())
            if facts.get("format") != FORMAT or facts.get("version") != FORMAT_VERSION:
                raise ValueError(f"{FORMAT} version {FORMAT_VERSION} is required")
            return [
                ExpertModels(
                    labels=tuple(one["labels"]),
                    global_alpha=one["global_alpha"],
                    global_count=one["global_count"],
                    warnings=tuple(one["warnings"]),
                    **{name: archive[f"{name}_{k}"] for name in _ARRAYS},
                )
                for k, one in enumerate(facts["models"])
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"models file {path}: cannot be read ({error}); delete it and run again") from None
