"""Ridge regression from factored moments by Woodbury's identity: no matrix of all pixels is made.

:func:`solve_shifted` holds the formula. A model costs ``O(P r²)`` instead of ``O(P³)``. Long paths of penalties
share the sums over pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve, solve
from scipy.linalg.blas import dsyrk

from pipeline.moments import FactoredMoments

__all__ = ["solve_leading", "solve_shifted"]

FloatArray = NDArray[np.float64]
#: Pixels whose rows of a basis are weighed at once: they stay in the processor's cache.
_BLOCK_PIXELS = 512
#: Paths of so many penalties tabulate K.
_FEWEST_TABULATED = 16
#: What the weights of a table may be wrong by, of their size; and its entries, as a share of the penalties, at most.
_TABLE_ERROR, _TABLE_SHARE = 1e-6, 0.5
#: Corrections of a solution, at most, of which each gains about six digits; and the residual that may be left, as a
#: share of the right-hand side: what a factorisation leaves.
_MOST_CORRECTIONS, _LEFT = 6, 1e-13


def solve_shifted(moments: FactoredMoments, scale: FloatArray, alphas: Sequence[float]) -> list[FloatArray | None]:
    """Solve ``(D C D + αI) w' = D C_xy`` for several α >= 0, with ``D = diag(1/scale)``; None where it is singular.

    With ``E = d/scale² + α`` (diagonal), ``B_s = D B``, ``C_c = Σzzᵀ − ΣzΣzᵀ/n`` and ``K = B_sᵀE⁻¹B_s``, Woodbury's
    identity gives::

        w' = E⁻¹ B_s (I + C_c K)⁻¹ (Σz(y−c)ᵀ − Σz tᵀ/n)

    Parameters
    ----------
    moments
        Training statistics of P pixels and Q labels in a basis of rank r, ``count >= 1``.
    scale
        Shape (P,), all > 0.
    alphas
        A penalties. Many of them share their ``K`` (:func:`_solve_by_table`).

    Returns
    -------
    list of FloatArray or None
        A solutions, shapes (P, Q).
    """
    if len(alphas) >= _FEWEST_TABULATED:
        gram, cross = moments.centred
        path = _solve_by_table(moments.basis.vectors, gram, cross, moments.noise, scale, np.asarray(alphas))
        if path is not None:
            return list(path)
    alone = [solve_leading(moments, scale, alpha, [moments.basis.rank]) for alpha in alphas]
    return [None if one is None else one[0] for one in alone]


def solve_leading(
    moments: FactoredMoments, scale: FloatArray, alpha: float, ranks: Sequence[int]
) -> list[FloatArray] | None:
    """Solve as :func:`solve_shifted` does, for one α, with the first directions of the basis alone.

    For K numbers of directions it costs little more than for one: ``C_c`` and ``K`` are leading blocks.

    Parameters
    ----------
    moments
        Training statistics of P pixels and Q labels in a basis of rank r, ``count >= 1``.
    scale
        Shape (P,), all > 0.
    alpha
        The penalty.
    ranks
        K numbers of directions, each from 1 to r.

    Returns
    -------
    list of FloatArray or None
        K solutions, shapes (P, Q); None where the system is singular.
    """
    gram, cross = moments.centred
    diagonal = np.asarray(moments.noise / scale**2 + alpha)
    if not (diagonal > np.finfo(np.float64).eps * diagonal.max()).all():
        return None
    vectors, inside = moments.basis.vectors, _weighted_gram(moments.basis.vectors, 1 / (diagonal * scale**2))
    shrink = (diagonal * scale)[:, None]
    return [vectors[:, :r] @ solve(np.eye(r) + gram[:r, :r] @ inside[:r, :r], cross[:r]) / shrink for r in ranks]


def _solve_by_table(
    vectors: FloatArray, gram: FloatArray, cross: FloatArray, noise: FloatArray, scale: FloatArray, alphas: FloatArray
) -> FloatArray | None:
    """Solve :func:`solve_shifted` for A penalties in a third of the time; None where it will not do.

    ``K(α) = Σ_p b_p b_pᵀ / (s_p² (u_p + α))`` with ``u = d/s²``. Interpolated between few values of log u, it is a sum
    of as many matrices that do not know α, with weights that do. The weights are right to 1e-6. So are the solutions,
    which are then corrected by their residuals. These take the exact K, but only times a vector.

    Returns
    -------
    FloatArray or None
        Shape (A, P, Q).
    """
    energies = noise / scale**2
    if not energies.min() > 0:
        return None
    places = np.log(energies)
    middle, half = (places.max() + places.min()) / 2, max((places.max() - places.min()) / 2, 1e-3)
    for n in range(8, int(_TABLE_SHARE * len(alphas)) + 1, 4):
        nodes = chebyshev.chebpts1(n)
        shares = chebyshev.chebvander((places - middle) / half, n - 1) @ np.linalg.inv(
            chebyshev.chebvander(nodes, n - 1)
        )
        weights = 1 / (np.exp(middle + half * nodes) + alphas[:, None])
        if np.abs((shares @ weights.T) * (energies[:, None] + alphas) - 1).max() <= _TABLE_ERROR:
            break
    else:
        return None
    # Weighted products want positive weights: all are lifted, and what that adds is taken away.
    lift = max(0.0, -float(shares.min())) + 1.0
    whole = gram @ _weighted_gram(vectors, 1 / scale**2)
    table = np.stack([gram @ _weighted_gram(vectors, (own + lift) / scale**2) - lift * whole for own in shares.T])
    systems = [
        lu_factor(np.eye(len(gram)) + np.tensordot(own, table, 1), overwrite_a=True, check_finite=False)
        for own in weights
    ]
    exact = 1 / ((energies[:, None] + alphas) * scale[:, None] ** 2)
    shape = (len(gram), len(alphas), cross.shape[1])
    solved, left = np.zeros(shape), np.repeat(cross[:, None], len(alphas), axis=1)
    for _ in range(_MOST_CORRECTIONS):
        for k, system in enumerate(systems):
            solved[:, k] += lu_solve(system, left[:, k], check_finite=False)
        seen = (vectors @ solved.reshape(len(gram), -1)).reshape(len(vectors), *shape[1:]) * exact[:, :, None]
        left = cross[:, None] - solved - (gram @ (vectors.T @ seen.reshape(len(vectors), -1))).reshape(shape)
        if (np.abs(left).max(axis=0) <= _LEFT * np.abs(cross).max(axis=0)).all():
            return np.ascontiguousarray(np.moveaxis(seen * scale[:, None, None], 1, 0))
    return None


def _weighted_gram(vectors: FloatArray, weights: FloatArray) -> FloatArray:
    """Return ``Vᵀ diag(weights) V`` of V (P, r), weights (P,) > 0: half the arithmetic of a general product."""
    rank = vectors.shape[1]
    found = np.zeros((rank, rank), order="F")
    roots, part = np.sqrt(weights), np.empty((_BLOCK_PIXELS, rank))
    for start in range(0, len(vectors), _BLOCK_PIXELS):
        block = vectors[start : start + _BLOCK_PIXELS]
        weighed = np.multiply(block, roots[start : start + _BLOCK_PIXELS, None], out=part[: len(block)])
        found = dsyrk(1.0, weighed.T, beta=1.0, c=found, overwrite_c=True)
    found = found + found.T  # one triangle was zero
    np.einsum("rr->r", found)[:] /= 2
    return found
