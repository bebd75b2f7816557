"""Gates: how probable every bin is for a spectrum whose labels nobody knows.

Whatever its kind, a gate is asked in one way (:class:`Gate`)::

    gate.probabilities(of_labels, features)      (N, Q), (N, F) or None  →  (N, K + 1), the outside last

``of_labels`` are the global model's predictions of all labels; ``features`` come from the
:class:`pipeline.questions.gate.features.FeatureRecipe` that belongs to the gate, and are needed only where
``gate.feature_names`` is not empty. Both are linear in the pixels but for a little algebra a spectrum, so one product
of a block of spectra with ``[global weights | recipe.columns]`` serves both. ``gate.to_dict()`` and
:func:`gate_from_dict` take it to JSON and back.

The *ridge gate* needs no features and no training of its own: the global ridge model predicts all labels from the
same moments, and how far such predictions are off, on folds that did not train them, is known from the moments too.
The *logistic gate* (:mod:`pipeline.questions.gate.logistic`) is trained on features of the spectra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, owens_t

from pipeline.base import parse_array
from pipeline.bins import BinGrid
from pipeline.errors import InputError
from pipeline.moments import PredictionSums
from pipeline.questions.gate.logistic import LogisticGate

__all__ = ["Gate", "RidgeGate", "bivariate_normal_cdf", "fit_ridge_gate", "gate_from_dict"]

FloatArray = NDArray[np.float64]
#: Stands for 0 where a ratio of two zeros would have no value.
_NEARLY_ZERO = 1e-300


class Gate(Protocol):
    """What all gates have in common."""

    @property
    def grid(self) -> BinGrid:
        """The K bins."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The F features that it must be given, in order; none where it needs only predictions."""

    def probabilities(self, predicted: ArrayLike, features: ArrayLike | None = None) -> FloatArray:
        """Return the probability of every bin and, last, of the outside, shape (N, K + 1).

        Parameters
        ----------
        predicted
            Predictions of all labels by the global model, shape (N, Q), label units.
        features
            The features that :attr:`feature_names` lists, shape (N, F).
        """

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""


def gate_from_dict(plain: Mapping[str, Any], grid: BinGrid) -> Gate:
    """Return the gate, of whatever kind, whose ``to_dict`` gave these values, over these bins.

    Raises
    ------
    InputError
        If its kind is not known.
    """
    kinds: dict[str, Any] = {"ridge": RidgeGate, "logistic": LogisticGate}
    kind = plain.get("kind")
    if kind not in kinds:
        raise InputError(f"a gate of kind {' or '.join(kinds)} is required, found {kind!r}; fit the gate again")
    gate: Gate = kinds[kind].from_dict(plain, grid)
    return gate


@dataclass(frozen=True, eq=False)
class RidgeGate:
    """Bin probabilities from what the global model says of the labels; for D bin columns and Q labels.

    Given predictions f the columns are taken as Gaussian, with mean ``slope f + intercept`` and one covariance for all
    spectra; a bin's probability is its Gaussian mass.

    Attributes
    ----------
    grid
        The bins, over one or two labels.
    labels
        The labels predicted, in the order of ``slope``'s columns.
    slope, intercept
        Shapes (D, Q) and (D,).
    covariance
        Of the columns about their mean, shape (D, D).
    """

    grid: BinGrid
    labels: tuple[str, ...]
    slope: FloatArray
    intercept: FloatArray
    covariance: FloatArray

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` gives back the same numbers."""
        numbers = {name: getattr(self, name).tolist() for name in ("slope", "intercept", "covariance")}
        return {"kind": "ridge", "columns": list(self.grid.columns), "labels": list(self.labels), **numbers}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], grid: BinGrid) -> RidgeGate:
        """Return the gate that :meth:`to_dict` was called on, over these bins."""
        n_columns, labels = len(grid.columns), tuple(map(str, plain["labels"]))
        shapes = {"slope": (n_columns, len(labels)), "intercept": (n_columns,), "covariance": (n_columns, n_columns)}
        return cls(grid, labels, *(parse_array(plain, name, shape) for name, shape in shapes.items()))

    def expected_columns(self, predicted: ArrayLike) -> FloatArray:
        """Return the expected bin columns, shape (N, D), of predictions of all labels (N, Q)."""
        return np.asarray(np.asarray(predicted, dtype=np.float64) @ self.slope.T + self.intercept)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """None: predictions are enough."""
        return ()

    def probabilities(self, predicted: ArrayLike, features: ArrayLike | None = None) -> FloatArray:
        """Return the probability of every bin and, last, of the outside.

        Parameters
        ----------
        predicted
            Predictions of all labels by the global model, shape (N, Q), label units.
        features
            Not looked at.

        Returns
        -------
        FloatArray
            Shape (N, K + 1), in [0, 1]; rows add up to 1.
        """
        mean = self.expected_columns(predicted)
        width = np.sqrt(np.diagonal(self.covariance))
        edges = [np.asarray(own, dtype=np.float64) for own in self.grid.edges.values()]
        scaled = [(own - mean[:, [d]]) / width[d] for d, own in enumerate(edges)]
        if len(edges) == 1:
            mass = np.diff(ndtr(scaled[0]), axis=1)
        else:
            correlation = float(self.covariance[0, 1] / (width[0] * width[1]))
            corners = bivariate_normal_cdf(scaled[0][:, :, None], scaled[1][:, None, :], correlation)
            mass = np.diff(np.diff(corners, axis=1), axis=2).reshape(len(mean), -1)
        # Differences of probabilities may fall below zero, or add up to more than one, by rounding alone.
        mass = np.clip(mass, 0.0, 1.0)
        outside = np.clip(1 - mass.sum(axis=1, keepdims=True), 0.0, 1.0)
        both = np.concatenate([mass, outside], axis=1)
        return np.asarray(both / both.sum(axis=1, keepdims=True))


def fit_ridge_gate(sums: PredictionSums, labels: Sequence[str], origins: ArrayLike, grid: BinGrid) -> RidgeGate:
    """Fit a ridge gate to predictions of spectra that did not train the models that made them.

    The columns are regressed on the predictions of all labels, which undoes the shrinkage of ridge predictions: where
    spectra say little, the gate says what the training set is like.

    Parameters
    ----------
    sums
        Joint sums of labels and predictions (one model) over all folds, each predicted by the others' model.
    labels
        The Q labels of the sums.
    origins
        Their origins, shape (Q,), label units.
    grid
        The bins.

    Raises
    ------
    InputError
        If the grid's columns are not one or two of the labels.
    """
    names = tuple(labels)
    if not 1 <= len(grid.columns) <= 2 or not set(grid.columns) <= set(names):
        raise InputError(
            f"a ridge gate routes by one or two of the labels {', '.join(names)}, found bins over "
            f"{', '.join(grid.columns)}; leave out the gate, or choose such bins"
        )
    places, n = [names.index(column) for column in grid.columns], sums.count
    c = np.asarray(origins, dtype=np.float64)
    y_mean, f_mean = sums.y_sum / n, sums.f_sum[0] / n
    of_predictions = sums.f_gram[0] / n - np.outer(f_mean, f_mean)
    shared = sums.cross[0] / n - np.outer(f_mean, y_mean)
    of_labels = sums.y_gram / n - np.outer(y_mean, y_mean)
    # In units of each label's own width: T_eff in K beside [M/H] in dex would spoil the least squares.
    width = np.sqrt(np.diagonal(of_labels))
    unit = np.where(width > 0, width, 1.0)
    scaled, *_ = np.linalg.lstsq(of_predictions / np.outer(unit, unit), shared / np.outer(unit, unit), rcond=None)
    slope = (scaled * unit / unit[:, None]).T
    intercept = y_mean + c - slope @ (f_mean + c)
    covariance = of_labels - slope @ shared - (slope @ shared).T + slope @ of_predictions @ slope.T
    chosen = covariance[np.ix_(places, places)]
    return RidgeGate(grid, names, slope[places], intercept[places], (chosen + chosen.T) / 2)


def bivariate_normal_cdf(h: ArrayLike, k: ArrayLike, correlation: float) -> FloatArray:
    """Return P(X ≤ h, Y ≤ k) of two standard normals of a correlation, by Owen's T function.

    Owen (1956), "Tables for computing bivariate normal probabilities", Ann. Math. Stat. 27, 1075.

    Parameters
    ----------
    h, k
        Limits, of shapes that broadcast.
    correlation
        In (−1, 1).
    """
    x, y = (np.where(np.asarray(limit) == 0, _NEARLY_ZERO, limit) for limit in np.broadcast_arrays(h, k))
    root = np.sqrt(1 - correlation**2)
    with np.errstate(over="ignore", divide="ignore"):
        towards_y = owens_t(x, (y / x - correlation) / root)
        towards_x = owens_t(y, (x / y - correlation) / root)
    half_plane = np.where((x < 0) != (y < 0), 0.5, 0.0)
    return np.asarray((ndtr(x) + ndtr(y)) / 2 - towards_y - towards_x - half_plane)
