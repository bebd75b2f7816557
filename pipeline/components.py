"""Principal components of the training spectra, from the moments of the pass: no further read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError
from pipeline.moments import Moments

__all__ = ["PrincipalComponents", "find_components"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The directions in which noisy spectra differ most, for P pixels and C components.

    Attributes
    ----------
    mean
        Mean noisy spectrum, shape (P,), flux units.
    vectors
        Orthonormal columns, the largest variance first, shape (P, C).
    variances
        Population variance of the training spectra along each, shape (C,), flux², never negative.
    """

    mean: FloatArray
    vectors: FloatArray
    variances: FloatArray

    def scores(self, x: ArrayLike) -> FloatArray:
        """Return the coordinates ``(x − mean) V`` of spectra (N, P), shape (N, C), flux units."""
        return np.asarray((np.asarray(x, dtype=np.float64) - self.mean) @ self.vectors)

    def distances(self, scores: ArrayLike) -> FloatArray:
        """Return how far spectra are from the mean spectrum, in standard deviations of the training spectra.

        ``√Σ_c score_c² / variance_c``: the Mahalanobis distance within the components, which says nothing about
        what is orthogonal to them. Components without variance are left out.

        Parameters
        ----------
        scores
            From :meth:`scores`, shape (N, C).

        Returns
        -------
        FloatArray
            Shape (N,), no unit.
        """
        varies = self.variances > 0
        return np.asarray(np.sqrt((np.asarray(scores)[:, varies] ** 2 / self.variances[varies]).sum(axis=1)))


def find_components(whole: Moments, n: int, out: FloatArray | None = None) -> PrincipalComponents:
    """Return the first ``n`` principal components of the spectra that moments were summed over.

    Eigenvectors of the covariance ``(S − ssᵀ/n)/n``, which is that of noisy spectra. An eigenvector's sign means
    nothing: the entry that is largest in magnitude is made positive, so that the same moments give the same bytes.

    Parameters
    ----------
    whole
        Of at least one spectrum.
    n
        C, from 1 to the number of pixels.
    out
        C-ordered memory (P, P) to work in; fresh memory by default.

    Raises
    ------
    InputError
        If there are fewer pixels than components, or no spectra.
    """
    n_pixels = whole.n_pixels
    if not 1 <= n <= n_pixels:
        raise InputError(
            f"between 1 and {n_pixels} principal components are possible with {n_pixels} pixels, found {n}"
        )
    # One thread: the bits of a decomposition depend on their number.
    with threadpool_limits(1, user_api="blas"):
        products, _ = whole.covariance_sums(out=out)
        values, vectors = eigh(
            products.T,  # in Fortran's order, so that LAPACK works in place
            lower=False,
            overwrite_a=True,
            check_finite=False,
            subset_by_index=(n_pixels - n, n_pixels - 1),
        )
    vectors = np.ascontiguousarray(vectors[:, ::-1])
    largest = np.abs(vectors).argmax(axis=0)
    vectors *= np.where(vectors[largest, np.arange(n)] < 0, -1.0, 1.0)
    return PrincipalComponents(whole.x_mean, vectors, np.maximum(values[::-1], 0) / whole.count)
