"""Ridge regression from moments: standardised pixels, a free intercept, and a path of penalties.

:func:`solve_ridge_path` holds the formula. Short paths are factorised one penalty after the other; long ones share one
Krylov space (:mod:`pipeline.ridge.krylov`). Factored moments need neither (:mod:`pipeline.ridge.woodbury`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from pipeline.errors import InputError, SingularGramError
from pipeline.moments import FactoredMoments, Moments, PixelSums, factorise_and_solve
from pipeline.ridge import krylov, woodbury

__all__ = ["RidgePath", "pixel_scale", "solve_leading_directions", "solve_ridge_path"]

FloatArray = NDArray[np.float64]
#: A variance counts as real if it exceeds so many roundings of a long sum, each one epsilon of the sum's type.
_CANCELLATION = 64
#: Paths of at least so many penalties try one Krylov space for all of them before they are factorised.
_FEWEST_FOR_KRYLOV = 3


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Ridge models along a path of A penalties, for P pixels and Q labels.

    Attributes
    ----------
    alphas
        Penalties, shape (A,).
    weights
        Shape (A, P, Q), label units per flux unit (the scaling is undone).
    intercepts
        Shape (A, Q), label units.
    labels
        Names of the labels.
    count
        Spectra in the training set.
    """

    alphas: FloatArray
    weights: FloatArray
    intercepts: FloatArray
    labels: tuple[str, ...]
    count: int

    def __repr__(self) -> str:
        n_alphas, n_pixels, _ = self.weights.shape
        return f"RidgePath({', '.join(self.labels)}; {n_alphas} penalties, {n_pixels} pixels, {self.count} spectra)"

    def predict(self, x: ArrayLike, alpha_index: int = 0) -> FloatArray:
        """Return predicted labels, shape (N, Q), of pixels (N, P)."""
        pixels = np.asarray(x, dtype=np.float64)
        return np.asarray(pixels @ self.weights[alpha_index] + self.intercepts[alpha_index])

    def at(self, alpha_index: int) -> RidgePath:
        """Return the path of one penalty alone."""
        one = slice(alpha_index, alpha_index + 1)
        return replace(self, alphas=self.alphas[one], weights=self.weights[one], intercepts=self.intercepts[one])


def pixel_scale(moments: Moments | PixelSums) -> FloatArray:
    """Return the population standard deviation of every pixel, 1 where a pixel is constant.

    This is the ``scale_`` of scikit-learn's ``StandardScaler`` fitted on the same spectra. A pixel counts as
    constant where its variance is below the rounding error of the sums it was computed from.

    Parameters
    ----------
    moments
        Statistics of the scaler's training set, ``count >= 1``.

    Returns
    -------
    FloatArray
        Shape (P,), flux units, all > 0.
    """
    sums = moments if isinstance(moments, PixelSums) else moments.pixel_sums
    variance = sums.x_variance
    offset = sums.x_sum / sums.count
    # scikit-learn's bound for float64 data, and the cancellation error of S/n − (s/n)² about the origin.
    rounding = sums.count * np.finfo(np.float64).eps
    sklearn_bound = rounding * variance + (rounding * sums.x_mean) ** 2
    bound = np.maximum(sklearn_bound, _CANCELLATION * sums.epsilon * offset**2)
    scale = np.sqrt(variance)
    scale[variance <= bound] = 1.0
    return np.asarray(scale)


def solve_ridge_path(
    moments: Moments, alphas: ArrayLike, scale: ArrayLike | None = None, memory: FloatArray | None = None
) -> RidgePath:
    """Solve ridge regression for several penalties from sufficient statistics.

    Minimises ``Σ(y − b − w'ᵀ(x − m)/d)² + α‖w'‖²`` (a sum over spectra, not a mean; ``b`` is not penalised)
    through ``A = D C D + αI``, ``w = D A⁻¹ D C_xy`` with ``C = S − ssᵀ/n``, ``C_xy = U − stᵀ/n``,
    ``D = diag(1/d)``: by one Cholesky factorisation for each α, or for several α of many pixels by one Krylov space for
    all (:mod:`pipeline.ridge.krylov`), as far as that is shorter. Factored moments need no matrix of all pixels
    (:mod:`pipeline.ridge.woodbury`).

    Parameters
    ----------
    moments
        Training statistics of P pixels and Q labels, ``count >= 2``.
    alphas
        Penalties, shape (A,) or a number, each finite and >= 0.
    scale
        d, shape (P,), all > 0: what the pixels are divided by (see :func:`pixel_scale`); ones by default.
    memory
        C-ordered float64 (P, P) to work in, of any content; fresh memory by default, which costs more than filling it.

    Returns
    -------
    RidgePath
        ``weights`` (A, P, Q), ``intercepts`` (A, Q).

    Raises
    ------
    InputError
        If there are fewer than two spectra, or a penalty or scale is out of range.
    SingularGramError
        If ``alpha == 0`` meets a rank-deficient Gram matrix; the message names the smallest α that works.
    """
    path = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    d = np.ones(moments.n_pixels) if scale is None else np.asarray(scale, dtype=np.float64)
    if moments.count < 2:
        raise InputError(f"a ridge model needs at least 2 training spectra, found {moments.count}")
    if not (np.isfinite(path).all() and (path >= 0).all()):
        raise InputError(f"penalties must be finite and not negative, found {path.tolist()}")
    if d.shape != (moments.n_pixels,) or not (d > 0).all():
        raise InputError(f"the scale must be {moments.n_pixels} positive numbers, found shape {d.shape}")
    weights = np.empty((path.size, moments.n_pixels, len(moments.labels)))
    if isinstance(moments, FactoredMoments):
        for k, solution in enumerate(woodbury.solve_shifted(moments, d, path.tolist())):
            if solution is None:
                raise SingularGramError(_singular_message(moments, d, float(path[k])))
            weights[k] = solution / d[:, None]
        return _with_intercepts(moments, path, weights)
    system = np.empty((moments.n_pixels, moments.n_pixels)) if memory is None else memory
    found: list[FloatArray | None] = [None] * path.size
    if path.size >= _FEWEST_FOR_KRYLOV and (path > 0).all():
        found = krylov.solve_shifted(*moments.covariance_sums(d, out=system), path.tolist())
    for k, alpha in enumerate(path):
        if (solution := found[k]) is not None:
            weights[k] = solution / d[:, None]
            continue
        # The factorisation overwrites the system: filling it again costs less memory than a copy, and as little time.
        _, target = moments.covariance_sums(d, out=system)
        solution = _solve_one(system, target, float(alpha))
        if solution is None:
            raise SingularGramError(_singular_message(moments, d, float(alpha)))
        weights[k] = solution / d[:, None]
    return _with_intercepts(moments, path, weights)


def solve_leading_directions(
    moments: FactoredMoments, alpha: float, ranks: Sequence[int], scale: FloatArray
) -> RidgePath:
    """Solve ridge regression with the leading directions of a basis alone, for K numbers of directions.

    Parameters
    ----------
    moments
        Training statistics of P pixels and Q labels, ``count >= 2``.
    alpha
        The penalty, > 0 where a pixel has no noise.
    ranks
        K numbers of directions, each from 1 to the rank.
    scale
        What the pixels are divided by, shape (P,), all > 0.

    Returns
    -------
    RidgePath
        A model for each number of directions instead of each penalty: ``weights`` (K, P, Q), ``intercepts`` (K, Q).

    Raises
    ------
    SingularGramError
        If the system is singular; the message names the smallest α that works.
    """
    found = woodbury.solve_leading(moments, scale, alpha, ranks)
    if found is None:
        raise SingularGramError(_singular_message(moments, scale, alpha))
    return _with_intercepts(moments, np.full(len(ranks), alpha), np.stack(found) / scale[:, None])


def _with_intercepts(moments: Moments, path: FloatArray, weights: FloatArray) -> RidgePath:
    intercepts = moments.y_mean - np.einsum("p,apq->aq", moments.x_mean, weights)
    return RidgePath(path, weights, intercepts, moments.labels, moments.count)


def _solve_one(system: FloatArray, target: FloatArray, alpha: float) -> FloatArray | None:
    """Solve ``(system + αI) w = target``, overwriting the lower triangle of ``system``; None if it is singular."""
    diagonal = np.einsum("ii->i", system)
    largest = float(diagonal.max())
    diagonal += alpha
    solution = np.array(target, order="F")
    failed = factorise_and_solve(system, solution)
    smallest_pivot = 0.0 if failed else float(np.diagonal(system).min()) ** 2
    if smallest_pivot <= len(system) * np.finfo(np.float64).eps * max(largest, np.finfo(np.float64).tiny):
        return None
    return solution


def _singular_message(moments: Moments, scale: FloatArray, alpha: float) -> str:
    """Name the smallest penalty that lifts every eigenvalue above rounding error."""
    system, _ = moments.covariance_sums(scale)
    n_pixels = len(system)
    top = float(eigh(system, lower=True, eigvals_only=True, subset_by_index=[n_pixels - 1, n_pixels - 1])[0])
    smallest = max(2 * n_pixels * np.finfo(np.float64).eps * top, moments.epsilon * top, np.finfo(np.float64).tiny)
    is_single = moments.epsilon > np.finfo(np.float64).eps
    return (
        f"alpha = {alpha:g} leaves the ridge system of {n_pixels} pixels without a unique solution "
        f"(fewer independent spectra than pixels, or constant pixels); use alpha >= {smallest:.1e}"
        + (", or precision: float64" if is_single else "")
    )
