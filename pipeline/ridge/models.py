"""The models of one noise: the global ridge model and one expert for each bin, and the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import one_blas_thread, open_npz, write_npz
from pipeline.bins import BinGrid, Binning, NamedBins
from pipeline.config import RidgeConfig, settle
from pipeline.errors import InputError, require_kind
from pipeline.moments import Moments, PixelSums
from pipeline.ridge.penalties import SolvedSearch, resolve_alpha
from pipeline.ridge.ridge import RidgePath, pixel_scale, solve_ridge_path
from pipeline.schema import MODELS_VERSION

__all__ = [
    "ExpertModels",
    "TooFewSpectraError",
    "join_experts",
    "join_models",
    "read_models",
    "require_enough_spectra",
    "require_searchable",
    "shared_scale",
    "solve_experts",
    "trained_cells",
    "write_models",
]

FORMAT = "headroom-models"
_ARRAYS = (
    "global_weights",
    "global_intercepts",
    "expert_weights",
    "expert_intercepts",
    "expert_alphas",
    "expert_counts",
)
_SEARCH_ARRAYS = ("alphas", "sse", "tss", "chosen", "weights", "intercepts")


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
    search
        How the penalties were chosen, if they were; only the models of all folds have it.
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
    search: SolvedSearch | None = None

    def __repr__(self) -> str:  # a notebook shows it; thousands of weights would say nothing
        return (
            f"ExpertModels({', '.join(self.labels)}; {self.n_experts} experts, {len(self.global_weights)} pixels, "
            f"{self.global_count} spectra)"
        )

    @property
    def n_experts(self) -> int:
        """K."""
        return len(self.expert_weights)

    @property
    def global_path(self) -> RidgePath:
        """The global model alone."""
        return RidgePath(
            np.array([self.global_alpha]),
            self.global_weights[None],
            self.global_intercepts[None],
            self.labels,
            self.global_count,
        )

    def along_search(self) -> list[ExpertModels]:
        """Return one set of models for every penalty that was tried: all its models take this penalty.

        Without a search there are none.

        They show what a penalty does on other spectra. The choice of the penalties was not made with them.
        """
        tried = self.search
        if tried is None:
            return []
        return [
            replace(
                self,
                global_weights=weights[0],
                global_intercepts=intercepts[0],
                expert_weights=weights[1:],
                expert_intercepts=intercepts[1:],
                global_alpha=float(alpha),
                expert_alphas=np.full(self.n_experts, alpha),
                search=None,
            )
            for alpha, weights, intercepts in zip(tried.alphas, tried.weights, tried.intercepts, strict=True)
        ]

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

        Raises
        ------
        InputError
            If there is no such label, or the pixels are not those of the models.
        """
        weights, intercepts = self.columns(target)
        pixels = np.asarray(x, dtype=np.float64)
        if pixels.ndim != 2 or pixels.shape[1] != len(weights):
            raise InputError(f"x: shape (N, {len(weights)}), pixels of the models, is required, found {pixels.shape}")
        return np.asarray(pixels @ weights + intercepts)

    def columns(self, target: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weights (P, 1 + K) and intercepts (1 + K,) for one label, the global model first."""
        if target not in self.labels:
            raise InputError(f"target: one of {', '.join(self.labels)} is required, found {target!r}")
        q = self.labels.index(target)
        weights = np.column_stack([self.global_weights[:, q], self.expert_weights[:, :, q].T])
        return weights, np.concatenate([self.global_intercepts[[q]], self.expert_intercepts[:, q]])


def solve_experts(
    cells: Sequence[Moments] | MomentsFolder,
    ridge: RidgeConfig | Mapping[str, Any] | float,
    grid: BinGrid | Binning | Mapping[str, Sequence[float]],
    threads: int = 1,
) -> ExpertModels:
    """Solve the global model and one expert for each bin, from moments in memory.

    Parameters
    ----------
    cells
        Moments of every bin and, last, of the outside; or those that :func:`pipeline.accumulate_moments` has left of
        one noise, summed over their folds.
    ridge
        The settings ``ridge`` of a configuration, or the penalty α alone: penalty, scaling, and which spectra train the
        global model. The scaler of ``standardize: global`` is fitted on the spectra that train the global model. The
        penalty may not be a search, which needs folds.
    grid
        The bins, for naming them; or their edges by column.
    threads
        Models solved side by side, each by BLAS on one thread. More threads are faster and need more memory, a dense
        matrix each; they change no bit.

    Returns
    -------
    ExpertModels

    Raises
    ------
    InputError
        If the cells are not those of the bins; ConfigError if an argument or a setting is not what is required.
    TooFewSpectraError
        If a bin has fewer than ``ridge.min_spectra`` training spectra; the message names it.
    """
    grids = cells.grids if isinstance(cells, MomentsFolder) else ()
    cells = list(cells.totals()) if isinstance(cells, MomentsFolder) else cells
    required = "one MomentsFolder of accumulate_moments, or a list of Moments,"
    require_kind("cells", cells, (list, tuple), required)
    for cell in cells:
        require_kind("cells", cell, Moments, required)
    ridge = settle(RidgeConfig, {"alpha": ridge} if isinstance(ridge, int | float) else ridge, "ridge")
    grid = grid if isinstance(grid, Binning) else BinGrid.of(grid)
    if len(cells) != grid.n_bins + 1:
        raise InputError(
            f"cells: moments of {grid.n_bins} bins and of the outside are required, found those of {len(cells)} cells; "
            "give the bins that the pass was planned with"
        )
    if len(grids) == 1 and isinstance(grid, BinGrid):
        asked = tuple((column, tuple(map(float, edges))) for column, edges in grid.edges.items())
        if asked != grids[0]:
            raise InputError(
                f"cells: they are those of the bins {dict(grids[0])}, asked for {dict(asked)}; give the bins that the "
                "pass was planned with, in the same order"
            )
    require_enough_spectra([cell.count for cell in cells[:-1]], ridge, grid)
    whole = Moments.merge(cells if ridge.train_on == "all" else cells[:-1])
    shared = shared_scale(whole.pixel_sums, ridge)
    alpha = resolve_alpha(ridge.alpha, whole.count)

    def solve(cell: Moments) -> RidgePath:
        own = ridge.standardize == "per_expert" and cell is not whole
        return solve_ridge_path(cell, alpha, pixel_scale(cell) if own else shared)

    with one_blas_thread(), ThreadPoolExecutor(threads, "solve") as executor:
        of_global, *experts = executor.map(solve, [whole, *cells[:-1]])
    return join_models(of_global, experts, grid)


def join_experts(models: Sequence[ExpertModels]) -> ExpertModels:
    """Return the experts of several sets of models as those of one, with the first one's global model."""
    return replace(
        models[0],
        expert_weights=np.concatenate([one.expert_weights for one in models]),
        expert_intercepts=np.concatenate([one.expert_intercepts for one in models]),
        expert_alphas=np.concatenate([one.expert_alphas for one in models]),
        expert_counts=np.concatenate([one.expert_counts for one in models]),
    )


def require_enough_spectra(counts: Sequence[int], ridge: RidgeConfig, grid: NamedBins) -> None:
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


def require_searchable(counts: Sequence[Sequence[int]], ridge: RidgeConfig, grid: NamedBins) -> None:
    """Refuse a search for the penalty that some fold would leave with too few training spectra of a bin.

    Parameters
    ----------
    counts
        Training spectra of each bin in each fold, shape (F, K).
    ridge, grid
        See :func:`solve_experts`.

    Raises
    ------
    InputError
        If there is one fold only.
    TooFewSpectraError
        The message names the first such bin and fold.
    """
    if len(counts) < 2:
        raise InputError(f"ridge.alpha.search needs at least two folds to choose on, found {len(counts)}; use more")
    total = np.sum(counts, axis=0)
    for fold, held_out in enumerate(counts):
        for number, left in enumerate(total - held_out):
            if left < ridge.min_spectra:
                raise TooFewSpectraError(
                    f"{grid.describe(number)} has {left} training spectra outside fold {fold} of {len(counts)}, at "
                    f"least {ridge.min_spectra} are required (ridge.min_spectra) to try penalties on that fold; widen "
                    "the bin, add spectra, change compute.folds, or give a fixed ridge.alpha"
                )


def trained_cells(ridge: RidgeConfig, n_cells: int, covered: Sequence[int]) -> tuple[int, ...]:
    """Return the cells whose spectra train the global model: all, or those that the bins cover."""
    return tuple(range(n_cells)) if ridge.train_on == "all" else tuple(covered)


def shared_scale(whole: PixelSums, ridge: RidgeConfig) -> NDArray[np.float64]:
    """Return what the pixels are divided by, shape (P,): of the spectra that train the global model, or no scale.

    Without a scale the penalty's unit is the square of the data's own flux unit, which is what the pixels are taken
    back to.
    """
    return pixel_scale(whole) if ridge.standardize != "none" else np.full(whole.x_sum.size, 2.0**whole.exponent)


def join_models(
    of_global: RidgePath, experts: Sequence[RidgePath], grid: NamedBins, search: SolvedSearch | None = None
) -> ExpertModels:
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
        search=search,
    )


def _scarcity_warnings(counts: Sequence[int], n_pixels: int, grid: NamedBins) -> tuple[str, ...]:
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
        "version": MODELS_VERSION,
        "models": [
            {
                "labels": m.labels,
                "global_alpha": m.global_alpha,
                "global_count": m.global_count,
                "warnings": m.warnings,
                "search": m.search and {"by": m.search.by, "target": m.search.target},
            }
            for m in models
        ],
    }
    arrays: dict[str, np.ndarray] = {}
    for k, m in enumerate(models):
        arrays |= {f"{name}_{k}": getattr(m, name) for name in _ARRAYS}
        if m.search is not None:
            arrays |= {f"search_{name}_{k}": getattr(m.search, name) for name in _SEARCH_ARRAYS}
    write_npz(path, arrays, facts)


def read_models(path: str | Path) -> list[ExpertModels]:
    """Read the models that :func:`write_models` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged, a folder, or of another version.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(str(one.relative_to(path)) for one in [*path.glob("*.npz"), *path.glob("models/*.npz")])
        raise InputError(
            f"models {path}: a file is required, such as RUN/models/marginal_noise-1.0.npz, found a folder"
            + (f"; name one of {', '.join(names)} within it" if names else "")
        )
    with open_npz(path, partial(_unreadable, path), (FORMAT, MODELS_VERSION)) as (facts, arrays):
        return [
            ExpertModels(
                labels=tuple(one["labels"]),
                global_alpha=one["global_alpha"],
                global_count=one["global_count"],
                warnings=tuple(one["warnings"]),
                **{name: arrays[f"{name}_{k}"] for name in _ARRAYS},
                search=_read_search(arrays, k, one.get("search")),
            )
            for k, one in enumerate(facts["models"])
        ]


def _unreadable(path: Path, reason: object) -> InputError:
    return InputError(f"models file {path}: cannot be read ({reason}); delete it and run again")


def _read_search(stored: Mapping[str, Any], k: int, facts: dict[str, str] | None) -> SolvedSearch | None:
    if not facts:
        return None
    arrays = {name: stored[f"search_{name}_{k}"] for name in _SEARCH_ARRAYS}
    return SolvedSearch(by=facts["by"], target=facts["target"], **arrays)
