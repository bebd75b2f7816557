"""Ridge regression from moments: standardised pixels, a free intercept, one factorisation per penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from pipeline.errors import InputError, SingularGramError
from pipeline.moments import Moments, PixelSums, factorise_and_solve, multiply_symmetric

__all__ = ["RidgePath", "krylov_memory", "pixel_scale", "solve_ridge_path", "solve_shifted"]

# --- One Krylov space for a whole path of penalties: the same system with many multiples of the identity added.
#
# The block Krylov space of ``(C + αI, b)`` is that of ``(C, b)`` for every α, so products with C alone serve them all
# (shift invariance; Frommer and Maass 1999, "Fast CG-based methods for Tikhonov-Phillips regularization"). Block
# Lanczos with full reorthogonalisation gives an orthonormal basis V and the small matrix ``T = VᵀCV``; then
#
#     w(α) = V (T + αI)⁻¹ Vᵀb,      ‖b − (C + αI) w(α)‖ = ‖R y_last‖
#
# with R what couples the last block to the next one, and ``y_last`` the last block of ``(T + αI)⁻¹ Vᵀb``. Noise makes
# the spectrum of C flat but for some large eigenvalues, each of which costs a step or two, so a path of any length
# costs about what one factorisation does. Where that is not so, the solutions that are still missing are better
# factorised.

FloatArray = NDArray[np.float64]
#: Residual, as a share of the right-hand side, below which a solution stands.
_TOLERANCE = 1e-12
#: Cosines between a new block and the basis beyond which it is not orthogonal: some of it is rounding, made visible.
_DEPENDENT = 1e-12
#: Pixels for each step that may be taken for one penalty: a step reads the matrix, a factorisation takes P/3 products
#: for each of its numbers. Measured, they cost the same at about P/200 steps.
_PIXELS_PER_STEP = 256
#: The same for all penalties together.
_PIXELS_PER_STEP_OF_ALL = 16
#: Steps between two looks at the residuals, at least; and as a share of the steps so far.
_STEPS_BETWEEN_LOOKS, _SHARE_BETWEEN_LOOKS = 4, 0.25


def krylov_memory(n_pixels: int, n_labels: int) -> int:
    """Return the bytes that :func:`solve_shifted` needs at most beside the system."""
    return 2 * n_labels * (n_pixels // _PIXELS_PER_STEP_OF_ALL + 1) * n_pixels * 8


def solve_shifted(system: FloatArray, target: FloatArray, shifts: Sequence[float]) -> list[FloatArray | None]:
    """Solve ``(C + αI) w = b`` for several α > 0 at once.

    Parameters
    ----------
    system
        C, symmetric and positive semi-definite, C-ordered (P, P); only the lower triangle is read.
    target
        b, shape (P, Q).
    shifts
        The α, each > 0.

    Returns
    -------
    list
        w(α) for each α, shape (P, Q), with a residual of at most 1e-12 of each column of b; None where that would take
        longer than a factorisation.
    """
    n_pixels, width = target.shape
    n_steps = min(len(shifts) * n_pixels // _PIXELS_PER_STEP, n_pixels // _PIXELS_PER_STEP_OF_ALL)
    solutions: list[FloatArray | None] = [None] * len(shifts)
    basis = np.empty((n_pixels, width * (n_steps + 1)), order="F")
    small = np.zeros((basis.shape[1], basis.shape[1]))
    norms = np.linalg.norm(target, axis=0)
    norms[norms == 0] = 1.0
    basis[:, :width], start = np.linalg.qr(target)
    look = _STEPS_BETWEEN_LOOKS
    for step in range(1, n_steps + 1):
        own, known = slice(width * (step - 1), width * step), width * step
        image = multiply_symmetric(system, basis[:, own])
        inner = _project_out(image, basis[:, :known])
        small[:known, own], small[own, :known] = inner, inner.T
        basis[:, known : known + width], coupling, is_exhausted = _next_block(image, basis[:, :known])
        if step < look and step < n_steps and not is_exhausted:
            continue
        look = step + max(_STEPS_BETWEEN_LOOKS, int(step * _SHARE_BETWEEN_LOOKS))
        values, vectors = eigh(small[:known, :known])
        along = vectors[:width].T @ start
        for k, shift in enumerate(shifts):
            if solutions[k] is None:
                inside = vectors @ (along / (values + shift)[:, None])
                residual = np.linalg.norm(coupling @ inside[-width:], axis=0)
                if (residual <= _TOLERANCE * norms).all():
                    solutions[k] = basis[:, :known] @ inside
        if is_exhausted or all(one is not None for one in solutions):
            break
    return solutions


def _project_out(block: FloatArray, basis: FloatArray) -> FloatArray:
    """Subtract from a block, in place, what lies in the span of a basis; return the coefficients.

    Twice, since once leaves rounding errors that grow ("twice is enough").
    """
    inner = basis.T @ block
    block -= basis @ inner
    rest = basis.T @ block
    block -= basis @ rest
    return np.asarray(inner + rest)


def _next_block(image: FloatArray, basis: FloatArray) -> tuple[FloatArray, FloatArray, bool]:
    """Return an orthonormal block and the R with ``block @ R = image``, and whether the space holds nothing more.

    Where the image has fewer dimensions than columns, the rest of the block is any directions outside the basis:
    nothing couples to them, and they do no harm.
    """
    block, coupling = np.linalg.qr(image)
    for _ in range(2):
        if np.abs(basis.T @ block).max() <= _DEPENDENT:
            return block, coupling, False
        _project_out(block, basis)
        block, again = np.linalg.qr(block)
        coupling = again @ coupling
    return block, coupling, bool(np.abs(basis.T @ block).max() > _DEPENDENT)


#: Rounding errors of a long sum, in units of its type's epsilon, beyond which a variance is taken as real.
_CANCELLATION = 64
#: Penalties of a path from which one Krylov space for all is tried before factorisations.
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
    sums = moments.pixel_sums if isinstance(moments, Moments) else moments
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
    all (:mod:`pipeline.ridge.ridge`), as far as that is shorter.

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
    system = np.empty((moments.n_pixels, moments.n_pixels)) if memory is None else memory
    found: list[FloatArray | None] = [None] * path.size
    if path.size >= _FEWEST_FOR_KRYLOV and (path > 0).all():
        found = solve_shifted(*moments.covariance_sums(d, out=system), path.tolist())
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
    smallest = max(2 * n_pixels * np.finfo(np.float64).eps * top, np.finfo(np.float64).tiny)
    return (
        f"alpha = {alpha:g} leaves the ridge system of {n_pixels} pixels without a unique solution "
        f"(fewer independent spectra than pixels, or constant pixels); use alpha >= {smallest:.1e}"
    )
