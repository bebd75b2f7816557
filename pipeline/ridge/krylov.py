"""One Krylov space for a whole path of penalties: the same system with many multiples of the identity added.

The block Krylov space of ``(C + αI, b)`` is that of ``(C, b)`` for every α, so products with C alone serve them all
(shift invariance; Frommer and Maass 1999, "Fast CG-based methods for Tikhonov-Phillips regularization"). Block
Lanczos with full reorthogonalisation gives an orthonormal basis V and the small matrix ``T = VᵀCV``; then::

    w(α) = V (T + αI)⁻¹ Vᵀb,      ‖b − (C + αI) w(α)‖ = ‖R y_last‖

Here R couples the last block to the next one, and ``y_last`` is the last block of ``(T + αI)⁻¹ Vᵀb``.

Noise makes the spectrum of C flat except for some large eigenvalues, and each of those costs a step or two. A path of
any length then costs about as much as one factorisation. Where the spectrum is not flat, the solutions that are still
missing are better factorised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from pipeline.moments import multiply_symmetric

__all__ = ["krylov_memory", "solve_shifted"]

FloatArray = NDArray[np.float64]
#: Residual, as a share of the right-hand side, below which a solution stands.
_TOLERANCE = 1e-12
#: Cosines between a new block and the basis beyond which it is not orthogonal: some of it is rounding, made visible.
_DEPENDENT = 1e-12
#: Pixels for each step that may be taken for one penalty. A step reads the matrix, a factorisation takes P/3 products
#: for each of its numbers. They were measured to cost the same at about P/200 steps.
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
        w(α) for each α, shape (P, Q). The residual is at most 1e-12 of each column of b. None stands for an α that
        would take longer than a factorisation.
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

    The image may have fewer dimensions than columns. The rest of the block are then any directions outside the basis.
    Nothing couples to them, so they do no harm.
    """
    block, coupling = np.linalg.qr(image)
    for _ in range(2):
        if np.abs(basis.T @ block).max() <= _DEPENDENT:
            return block, coupling, False
        _project_out(block, basis)
        block, again = np.linalg.qr(block)
        coupling = again @ coupling
    return block, coupling, bool(np.abs(basis.T @ block).max() > _DEPENDENT)
