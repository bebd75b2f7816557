"""The blend: soft routing whose weights are learned, so that predictions err least.

A gate says which bin a spectrum is in, which is not quite what is asked: near an edge two experts are as good, where a
spectrum says little the global model is better than any, and an expert may be good beyond its bin. The blend takes the
gate's probabilities p and corrects them by what the global model says of all labels. Of the global model (m = 0, which
stands for the outside) and K experts::

    ŷ = Σ_m w_m ŷ_m      w = softmax_m(τ log p_m + b_m + B_m·z)

with z the global model's predictions u of the Q labels, less their means and in units of their standard deviations,
and the products u_i u_j, i ≤ j. τ = 1, b = B = 0 is fall-back routing that always trusts its gate. Given predictions
of training spectra by models that did not see their fold, the blend minimises::

    Σ(y − ŷ)² / σ² + λ ((τ − 1)² + |b|² + |B|²)        σ² = mean (y − ŷ_fallback)²

by L-BFGS with the exact gradient, from that start. λ is the one whose blends, fitted to all folds but one, err least on
that one. This is the gate of a mixture of experts (Jacobs et al. 1991, Neural Computation 3, 79) whose experts stay as
they are. It is kept only where it beats soft routing on held-out folds by more than the difference's standard error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError
from pipeline.routing import route_fallback, route_soft
from pipeline.scores import SCOPES

__all__ = ["Blend", "BlendProblem", "HeldOutErrors", "HeldOutRows", "fit_blend"]

FloatArray = NDArray[np.float64]
#: λ tried, the strongest first; the search stops where held-out errors grow again.
STRENGTHS = (1e4, 1e3, 1e2, 1e1, 1e0)
#: Probabilities below this count as this: beyond it a logarithm says more than a gate knows.
_LEAST = 1e-6
_ITERATIONS = 200
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """N training spectra under models and a gate that did not see their fold.

    Attributes
    ----------
    y
        The target label, shape (N,).
    predicted
        The target by the global model and every expert, shape (N, 1 + K), label units.
    probabilities
        Of every bin and, last, of the outside, shape (N, K + 1).
    of_labels
        All labels by the global model, shape (N, Q), label units.
    folds
        The fold of each spectrum, shape (N,).
    covered
        Whether it lies in a bin, shape (N,).
    """

    y: FloatArray
    predicted: FloatArray
    probabilities: FloatArray
    of_labels: FloatArray
    folds: NDArray[np.int64]
    covered: NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOutErrors:
    """Mean squared errors of the same held-out training spectra, label units².

    Attributes
    ----------
    blend
        Of blends fitted to the other folds.
    soft, fallback, of_global
        Of soft routing, of fall-back routing that always trusts its gate, of the global model.
    margin
        Standard error of ``soft − blend``.
    count
        Spectra.
    """

    blend: float
    soft: float
    fallback: float
    of_global: float
    margin: float
    count: int

    @property
    def is_better(self) -> bool:
        """Whether the blend beats soft routing by more than the standard error of the difference."""
        return self.soft - self.blend > self.margin


@dataclass(frozen=True, eq=False)
class Blend:
    """Learned weights of the global model and K experts, from probabilities and predictions of Q labels.

    Attributes
    ----------
    tau
        What multiplies log p.
    slopes
        b (first column) and B, shape (1 + K, 1 + D) for D = Q + Q(Q + 1)/2 inputs z.
    centre, scale
        Means and standard deviations of the predicted labels, shapes (Q,), label units.
    strength
        λ.
    errors
        On held-out folds, for every scope (``covered``, ``all``).
    """

    tau: float
    slopes: FloatArray
    centre: FloatArray
    scale: FloatArray
    strength: float
    errors: Mapping[str, HeldOutErrors]

    @property
    def is_kept(self) -> bool:
        """Whether it beat soft routing, on covered spectra and on all."""
        return all(one.is_better for one in self.errors.values())

    def weights(self, probabilities: ArrayLike, of_labels: ArrayLike) -> FloatArray:
        """Return w, shape (N, 1 + K), in [0, 1]; rows add up to 1; see :class:`HeldOutRows` for the parameters."""
        inputs = _expand(of_labels, self.centre, self.scale)
        return _weigh(self.tau, self.slopes, _log_probabilities(probabilities), inputs)

    def route(self, predicted: ArrayLike, probabilities: ArrayLike, of_labels: ArrayLike) -> FloatArray:
        """Return the blended predictions, shape (N,), label units: soft routing's where the blend is not kept.

        See :class:`HeldOutRows` for the parameters.
        """
        f, p = np.asarray(predicted, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
        if not self.is_kept:
            return route_soft(f, p)
        return np.asarray((self.weights(p, of_labels) * f).sum(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` gives back the same numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("slopes", "centre", "scale")}
        errors = {scope: vars(one) for scope, one in self.errors.items()}
        return {"tau": self.tau, "strength": self.strength, **arrays, "errors": errors, "kept": self.is_kept}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Blend:
        """Return the blend that :meth:`to_dict` was called on."""
        arrays = {name: np.asarray(plain[name], dtype=np.float64) for name in ("slopes", "centre", "scale")}
        errors = {scope: HeldOutErrors(**one) for scope, one in plain["errors"].items()}
        return cls(tau=plain["tau"], strength=plain["strength"], errors=errors, **arrays)


@dataclass(frozen=True, eq=False)
class BlendProblem:
    """What a blend minimises, as a function of θ = (τ − 1, and b and B row by row).

    Attributes
    ----------
    y, predicted
        See :class:`HeldOutRows`.
    log_p
        log p_m, the outside first, shape (N, 1 + K).
    inputs
        A column of ones, and z, shape (N, 1 + D).
    unit
        σ².
    """

    y: FloatArray
    predicted: FloatArray
    log_p: FloatArray
    inputs: FloatArray
    unit: float

    @property
    def start(self) -> FloatArray:
        """Fall-back routing."""
        return np.zeros(1 + self.log_p.shape[1] * self.inputs.shape[1])

    def __getitem__(self, rows: NDArray[np.bool_]) -> BlendProblem:
        """Return the same problem on some of the spectra, in the same unit."""
        arrays = {name: getattr(self, name)[rows] for name in ("y", "predicted", "log_p", "inputs")}
        return replace(self, **arrays)

    def split(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return τ, and b and B as columns."""
        return float(1 + theta[0]), theta[1:].reshape(self.log_p.shape[1], self.inputs.shape[1])

    def predict(self, theta: FloatArray) -> FloatArray:
        """Return ŷ, shape (N,)."""
        return np.asarray((_weigh(*self.split(theta), self.log_p, self.inputs) * self.predicted).sum(axis=1))

    def evaluate(self, theta: FloatArray, strength: float) -> tuple[float, FloatArray]:
        """Return the penalised error and its gradient, with ∂ŷ/∂(logit m) = w_m (ŷ_m − ŷ)."""
        tau, slopes = self.split(theta)
        value, of_tau, of_slopes = 0.0, 0.0, np.zeros_like(slopes)
        # Block by block: what is small stays in the cache, and fresh memory costs more than the arithmetic.
        for start in range(0, len(self.y), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            log_p, inputs, predicted = self.log_p[rows], self.inputs[rows], self.predicted[rows]
            weights = _weigh(tau, slopes, log_p, inputs)
            mixed = np.einsum("nm,nm->n", weights, predicted)
            error = mixed - self.y[rows]
            weights *= predicted - mixed[:, None]
            weights *= error[:, None]
            value += float(error @ error)
            of_tau += float(np.einsum("nm,nm->", weights, log_p))
            of_slopes += weights.T @ inputs
        gradient = np.concatenate([[of_tau], of_slopes.ravel()]) * (2 / self.unit)
        return value / self.unit + strength * float(theta @ theta), gradient + 2 * strength * theta

    def minimise(self, strength: float, start: FloatArray) -> FloatArray:
        """Return θ of the least penalised error that L-BFGS reaches from a start."""
        found = minimize(
            self.evaluate,
            start,
            args=(strength,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 1e-8},
        )
        return np.asarray(found.x, dtype=np.float64)


def fit_blend(rows: HeldOutRows) -> Blend:
    """Learn a blend from training spectra, and hold it against soft routing on folds that it was not fitted to.

    Raises
    ------
    InputError
        If the spectra lie in fewer than two folds.
    """
    folds = np.unique(rows.folds)
    if len(folds) < 2:
        raise InputError(f"a blend needs training spectra of at least two folds, found {len(folds)}; use more folds")
    soft, fallback = (one(rows.predicted, rows.probabilities) for one in (route_soft, route_fallback))
    centre, width = rows.of_labels.mean(axis=0), rows.of_labels.std(axis=0)
    scale = np.where(width > 0, width, 1.0)
    unit = float(((rows.y - fallback) ** 2).mean()) or 1.0
    inputs = _expand(rows.of_labels, centre, scale)
    problem = BlendProblem(rows.y, rows.predicted, _log_probabilities(rows.probabilities), inputs, unit)
    # One BLAS thread: the bits of a product may depend on their number.
    with threadpool_limits(1, user_api="blas"):
        strengths, held_out = _search_strength(problem, [rows.folds == fold for fold in folds])
        theta = problem.start
        for strength in strengths:
            theta = problem.minimise(strength, theta)
    tau, slopes = problem.split(theta)
    routed = {"blend": held_out, "soft": soft, "fallback": fallback, "of_global": rows.predicted[:, 0]}
    squares = {name: (rows.y - values) ** 2 for name, values in routed.items()}
    parts = (rows.covered, np.full(len(rows.y), True))
    errors = {scope: _summarise(squares, part) for scope, part in zip(SCOPES, parts, strict=True) if part.any()}
    return Blend(tau, slopes, centre, scale, strengths[-1], errors)


def _search_strength(problem: BlendProblem, folds: list[NDArray[np.bool_]]) -> tuple[tuple[float, ...], FloatArray]:
    """Return the strengths down to the best one, and each spectrum's prediction by the other folds' best blend."""
    outside = [problem[~held_out] for held_out in folds]
    inside = [problem[held_out] for held_out in folds]
    thetas = [problem.start] * len(folds)
    best, least, n_best = np.empty_like(problem.y), np.inf, 0
    for tried, strength in enumerate(STRENGTHS, start=1):
        predicted = np.empty_like(problem.y)
        for k, held_out in enumerate(folds):
            thetas[k] = outside[k].minimise(strength, thetas[k])
            predicted[held_out] = inside[k].predict(thetas[k])
        error = float(((problem.y - predicted) ** 2).sum())
        if not error < least:
            break
        best, least, n_best = predicted, error, tried
    return STRENGTHS[:n_best], best


def _summarise(squares: Mapping[str, FloatArray], part: NDArray[np.bool_]) -> HeldOutErrors:
    own = {name: values[part] for name, values in squares.items()}
    difference, count = own["soft"] - own["blend"], int(part.sum())
    means = {name: float(values.mean()) for name, values in own.items()}
    return HeldOutErrors(**means, margin=float(difference.std() / np.sqrt(count)), count=count)


def _expand(of_labels: ArrayLike, centre: FloatArray, scale: FloatArray) -> FloatArray:
    """Return a column of ones and z, shape (N, 1 + D)."""
    u = (np.asarray(of_labels, dtype=np.float64) - centre) / scale
    first, second = np.triu_indices(u.shape[1])
    return np.concatenate([np.ones((len(u), 1)), u, u[:, first] * u[:, second]], axis=1)


def _log_probabilities(probabilities: ArrayLike) -> FloatArray:
    """Return log p, shape (N, 1 + K), the outside first as the global model is."""
    p = np.asarray(probabilities, dtype=np.float64)
    return np.log(np.maximum(np.roll(p, 1, axis=1), _LEAST))


def _weigh(tau: float, slopes: FloatArray, log_p: FloatArray, inputs: FloatArray) -> FloatArray:
    """Return softmax(τ log p + b + B·z), shape (N, 1 + K)."""
    return np.asarray(softmax(tau * log_p + inputs @ slopes.T, axis=1))
