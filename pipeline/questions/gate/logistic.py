"""The logistic gate: multinomial logistic regression on features of the spectra.

With features scaled to mean 0 and variance 1, and the squares and products of the first few of them, all in z, the
probability of cell k (a bin, or the outside) is

    p_k = exp(z·w_k + b_k) / Σ_j exp(z·w_j + b_j)

fitted by scikit-learn to training spectra alone, its penalty chosen by the log loss on folds held out. Without products
every cell would be a corner of the feature space, while bins in the middle have neighbours on all sides: for Gaussian
features of equal covariance in narrow bins, log p is a parabola. Predicting needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from pipeline.base import parse_array
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.errors import ConfigError, InputError
from pipeline.questions.gate.features import require_no_leak

__all__ = ["PENALTIES", "LogisticFit", "LogisticGate", "fit_logistic_gate", "require_scikit_learn"]

FloatArray = NDArray[np.float64]
#: scikit-learn's C, for a sum over spectra: the larger, the weaker the penalty.
PENALTIES = (1e-2, 1e-1, 1.0)
#: Probabilities below this count as this in a log loss: a cell that some fold's training lacks has probability 0.
_LEAST = 1e-12
_ITERATIONS = 1000
_PERMUTATION_SEED = 0


@dataclass(frozen=True, eq=False)
class LogisticGate:
    """Bin probabilities from F features of a spectrum.

    Attributes
    ----------
    grid
        The K bins.
    feature_names
        The features, in the order of the columns that are given.
    centre, scale
        Mean and standard deviation of each over the training spectra, shapes (F,).
    cells
        The cells that had training spectra, increasing, the outside as K; others have probability 0.
    weights, intercepts
        Of each such cell, shapes (C, F + J (J + 1) / 2) and (C,).
    penalty
        scikit-learn's C.
    n_multiplied
        J, how many of the first features have squares and products.
    """

    grid: BinGrid
    feature_names: tuple[str, ...]
    centre: FloatArray
    scale: FloatArray
    cells: tuple[int, ...]
    weights: FloatArray
    intercepts: FloatArray
    penalty: float
    n_multiplied: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` gives back the same numbers."""
        numbers = {name: getattr(self, name).tolist() for name in ("centre", "scale", "weights", "intercepts")}
        return {
            "kind": "logistic",
            "columns": list(self.grid.columns),
            "features": list(self.feature_names),
            "cells": list(self.cells),
            "penalty": self.penalty,
            "multiplied": self.n_multiplied,
            **numbers,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], grid: BinGrid) -> LogisticGate:
        """Return the gate that :meth:`to_dict` was called on, over these bins."""
        features, cells, n_multiplied = tuple(plain["features"]), tuple(plain["cells"]), int(plain["multiplied"])
        n_inputs = len(features) + n_multiplied * (n_multiplied + 1) // 2
        shapes = {"weights": (len(cells), n_inputs), "intercepts": (len(cells),)}
        shapes |= dict.fromkeys(("centre", "scale"), (len(features),))
        return cls(
            grid=grid,
            feature_names=features,
            cells=cells,
            penalty=float(plain["penalty"]),
            n_multiplied=n_multiplied,
            **{name: parse_array(plain, name, shape) for name, shape in shapes.items()},
        )

    def probabilities(self, predicted: ArrayLike, features: ArrayLike | None = None) -> FloatArray:
        """Return the probability of every bin and, last, of the outside.

        Parameters
        ----------
        predicted
            Predictions of labels; not looked at.
        features
            Shape (N, F), in the order of :attr:`feature_names`.

        Returns
        -------
        FloatArray
            Shape (N, K + 1), in [0, 1]; rows add up to 1.

        Raises
        ------
        InputError
            If features are missing or of another number.
        """
        given = None if features is None else np.asarray(features, dtype=np.float64)
        if given is None or given.ndim != 2 or given.shape[1] != len(self.feature_names):
            found = "none" if given is None else f"shape {given.shape}"
            raise InputError(
                f"this gate needs {len(self.feature_names)} features of each spectrum, found {found}; compute them "
                "with the recipe that was saved with the gate"
            )
        z = _expand((given - self.centre) / self.scale, self.n_multiplied)
        logits = z @ self.weights.T + self.intercepts
        probabilities = np.zeros((len(given), self.grid.n_bins + 1))
        probabilities[:, list(self.cells)] = softmax(logits, axis=1)
        return probabilities


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """A gate, and what folds that were held out say of it, for N training spectra.

    Attributes
    ----------
    gate
        Fitted to all of them.
    held_out
        Probabilities of each by the gate of the other folds, shape (N, K + 1).
    log_losses
        Mean log loss of the held-out probabilities for every penalty tried, nats.
    importance
        How much that of the chosen penalty grows when a feature is permuted among the spectra of a held-out fold, in
        nats, shape (F,): about 0 for a feature that the gate can do without.
    """

    gate: LogisticGate
    held_out: FloatArray
    log_losses: Mapping[float, float]
    importance: FloatArray


def require_scikit_learn() -> None:
    """Refuse to go on where scikit-learn is not installed.

    Raises
    ------
    ConfigError
        With the command that installs it.
    """
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "gate.kind: logistic needs scikit-learn, which is not installed; pip install 'headroom[ml]', or use "
            "gate.kind: ridge"
        ) from error


def fit_logistic_gate(
    features: ArrayLike,
    names: Sequence[str],
    bins: NDArray[np.int64],
    folds: NDArray[np.int64],
    grid: BinGrid,
    *,
    n_multiplied: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> LogisticFit:
    """Fit a logistic gate to features of training spectra; deterministic.

    Each penalty is tried on every fold in turn by the gate of the others, scaled by these alone; the one with the
    smallest log loss over all spectra is taken, of equal ones the strongest.

    Parameters
    ----------
    features
        Shape (N, F), finite.
    names
        Of the F features.
    bins
        The true bin, shape (N,), :data:`pipeline.bins.grid.OUTSIDE` in none.
    folds
        The fold of each spectrum, shape (N,), at least two of them.
    grid
        The bins.
    n_multiplied
        How many of the first features have squares and products.
    penalties
        scikit-learn's C to choose from.

    Raises
    ------
    InputError
        If a feature is not finite, there is one fold only, or only one cell has spectra somewhere.
    ConfigError
        If scikit-learn is not installed, or features of the error vector are to route by anything but ``snr``.
    """
    require_scikit_learn()
    require_no_leak(names, grid.columns)
    x = np.asarray(features, dtype=np.float64)
    cells = np.where(bins == OUTSIDE, grid.n_bins, bins)
    parts = [folds == fold for fold in np.unique(folds)]
    _require_fit(x, names, cells, parts)
    tried, shape = tuple(sorted(penalties)), _Shape(grid, tuple(names), n_multiplied)
    rows = np.arange(len(x))
    # One thread: the bits of a product depend on their number.
    with threadpool_limits(1):
        of_folds = [_fit_path(x[~part], cells[~part], shape, tried) for part in parts]
        held_out = np.empty((len(tried), len(x), grid.n_bins + 1))
        for path, part in zip(of_folds, parts, strict=True):
            for k, gate in enumerate(path):
                held_out[k, part] = gate.probabilities((), x[part])
        losses = [-np.log(np.maximum(own[rows, cells], _LEAST)).mean() for own in held_out]
        best = int(np.argmin(losses))
        # Along the same path as on the folds: an optimum that is reached from elsewhere has other last bits.
        gate = _fit_path(x, cells, shape, tried[: best + 1])[-1]
        importance = _permute_features([path[best] for path in of_folds], parts, x, cells) - losses[best]
    return LogisticFit(gate, held_out[best], dict(zip(tried, map(float, losses), strict=True)), importance)


def _require_fit(x: FloatArray, names: Sequence[str], cells: NDArray[np.int64], parts: list[NDArray[np.bool_]]) -> None:
    if bad := [name for name, column in zip(names, x.T, strict=True) if not np.isfinite(column).all()]:
        raise InputError(
            f"a gate's features must be finite; {', '.join(bad)} are not for some training spectra; convert them again "
            "with data.nonfinite: drop"
        )
    if len(parts) < 2:
        raise InputError(f"a logistic gate needs at least two folds, found {len(parts)}; use compute: {{folds: 5}}")
    if min(len(np.unique(cells[~part])) for part in parts) < 2:
        raise InputError(
            "a logistic gate needs training spectra in at least two bins, or in one and outside, whichever fold is "
            "held out; use bins that divide the spectra, or gate.kind: ridge"
        )


@dataclass(frozen=True)
class _Shape:
    """What all gates of a fit have in common."""

    grid: BinGrid
    names: tuple[str, ...]
    n_multiplied: int


def _fit_path(x: FloatArray, cells: NDArray[np.int64], shape: _Shape, penalties: Sequence[float]) -> list[LogisticGate]:
    """Fit a gate for each penalty, the strongest first, each from where the last one ended."""
    from sklearn.linear_model import LogisticRegression

    centre, width = x.mean(axis=0), x.std(axis=0)
    scale = np.where(width > 0, width, 1.0)
    z = _expand((x - centre) / scale, shape.n_multiplied)
    model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    path = []
    for penalty in penalties:
        model.set_params(C=penalty).fit(z, cells)
        weights, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps the second cell's alone, relative to the first's
            weights = np.concatenate([np.zeros_like(weights), weights])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        own = tuple(int(cell) for cell in model.classes_)
        path.append(
            LogisticGate(
                grid=shape.grid,
                feature_names=shape.names,
                centre=centre,
                scale=scale,
                cells=own,
                weights=weights.copy(),
                intercepts=intercepts.copy(),
                penalty=float(penalty),
                n_multiplied=shape.n_multiplied,
            )
        )
    return path


def _expand(z: FloatArray, n_multiplied: int) -> FloatArray:
    """Return scaled features with the squares and products of the first ones, shape (N, F + J (J + 1) / 2)."""
    first, second = np.triu_indices(n_multiplied)
    return np.concatenate([z, z[:, first] * z[:, second]], axis=1)


def _permute_features(
    gates: list[LogisticGate], parts: list[NDArray[np.bool_]], x: FloatArray, cells: NDArray[np.int64]
) -> FloatArray:
    """Return the log loss of all spectra with each feature permuted within its held-out fold, shape (F,)."""
    generator = np.random.default_rng(_PERMUTATION_SEED)
    total = np.zeros(x.shape[1])
    for gate, part in zip(gates, parts, strict=True):
        own, truth = x[part], cells[part]
        order = generator.permutation(len(own))
        for feature in range(x.shape[1]):
            permuted = own.copy()
            permuted[:, feature] = own[order, feature]
            right = gate.probabilities((), permuted)[np.arange(len(own)), truth]
            total[feature] -= np.log(np.maximum(right, _LEAST)).sum()
    return total / len(x)
