"""Algebra on moments: principal components, other origins and units, and joint sums with predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from pipeline.base import one_blas_thread
from pipeline.errors import InputError
from pipeline.moments.factored import FactoredMoments
from pipeline.moments.moments import Moments

__all__ = [
    "PredictionSums",
    "PrincipalComponents",
    "find_components",
    "move_origins",
    "round_origin",
    "scale_moments",
    "sum_predictions",
]

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

        This is ``√Σ_c score_c² / variance_c``, the Mahalanobis distance within the components. It does not see
        differences orthogonal to them. Components without variance are left out.

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

    They are the eigenvectors of the covariance ``(S − ssᵀ/n)/n`` of the noisy spectra. The sign of an eigenvector has
    no meaning. The entry that is largest in magnitude is made positive, so that the same moments give the same bytes.

    Parameters
    ----------
    whole
        Moments of at least one spectrum.
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
    # One thread, because the bits of a decomposition depend on the number of threads.
    with one_blas_thread():
        if isinstance(whole, FactoredMoments):
            values, vectors = whole.find_components(n)
        else:
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


# --- Moments about other origins, and in other units of pixels and weights.
#
# Origins may be chosen from the first samples that arrive, so they depend on the order of the samples. If the moments
# are then moved to origins that depend on all samples, the order does not matter any more (bit for bit if sums do not
# round).

_FEWEST_BITS, _MOST_BITS = 8, 24


def round_origin(values: FloatArray) -> FloatArray:
    """Round to 8 significant bits, or to whole numbers where that is finer, but to no more than 24 bits.

    The result is near enough to the values to serve as an origin. Whole numbers minus such an origin have few bits, so
    sums of their products still do not round.
    """
    exponent = np.frexp(values)[1]
    quantum = np.ldexp(1.0, np.clip(0, exponent - _MOST_BITS, exponent - _FEWEST_BITS))
    return np.asarray(np.round(values / quantum) * quantum)


def move_origins(moments: Moments, x_origin: FloatArray, y_origin: FloatArray) -> Moments:
    """Return the same moments about other origins o' = o − a and c' = c − b, in float64.

    ``s' = s + na,  S' = S + saᵀ + asᵀ + naaᵀ,  t' = t + nb,  U' = U + sbᵀ + atᵀ + nabᵀ`` and V' like S'. Digits that
    were lost by rounding about a far origin stay lost.

    Parameters
    ----------
    moments
        Of P pixels and Q labels.
    x_origin, y_origin
        o', shape (P,) and c', shape (Q,).
    """
    n, s, t = moments.count, moments.x_sum, moments.y_sum
    a, b = moments.x_origin - x_origin, moments.y_origin - y_origin
    gram = moments.gram.astype(np.float64)
    # The strips are views of the copy, so this changes the copy.
    for rows, columns, block in moments.layout.lower_strips(gram):
        block += np.outer(s[rows], a[columns]) + np.outer(a[rows], s[columns] + n * a[columns])
        if columns.stop == rows.stop:
            corner = block[:, rows.start - columns.start :]
            corner[:] = np.tril(corner)
    return replace(
        moments,
        x_sum=s + n * a,
        gram=gram,
        y_sum=t + n * b,
        cross=moments.cross + np.outer(s, b) + np.outer(a, t + n * b),
        y_gram=moments.y_gram + np.outer(t, b) + np.outer(b, t + n * b),
        x_origin=np.asarray(x_origin, dtype=np.float64),
        y_origin=np.asarray(y_origin, dtype=np.float64),
    )


def scale_moments(moments: Moments, divisor: FloatArray | None = None, weight: float = 1.0) -> Moments:
    """Return the moments for pixels divided by ``divisor`` (P,) and samples that weigh ``weight`` times as much.

    A penalty is compared with a sum over samples. So with all weights twice as large, twice the penalty gives the same
    model.
    """
    d = np.ones(moments.n_pixels) if divisor is None else divisor
    gram = moments.gram * np.float64(weight)
    for rows, columns, block in moments.layout.lower_strips(gram):
        block /= d[columns]
        block /= d[rows, None]
    return replace(
        moments,
        count=cast(int, moments.count * weight),
        x_sum=moments.x_sum * weight / d,
        gram=gram,
        y_sum=moments.y_sum * weight,
        cross=moments.cross * weight / d[:, None],
        y_gram=moments.y_gram * weight,
        x_origin=moments.x_origin / d,
    )


# --- Joint sums of labels and predictions of linear models, for spectra of which only the moments are known.


@dataclass(frozen=True, eq=False)
class PredictionSums:
    """Sums over n spectra of Q labels y and their predictions f by A models, about the labels' origins c.

    Attributes
    ----------
    count
        n.
    y_sum, y_gram
        Σ(y−c) and Σ(y−c)(y−c)ᵀ, shapes (Q,) and (Q, Q).
    f_sum, f_gram
        Σ(f−c) and Σ(f−c)(f−c)ᵀ, shapes (A, Q) and (A, Q, Q).
    cross
        Σ(f−c)(y−c)ᵀ, shape (A, Q, Q).
    """

    count: float
    y_sum: FloatArray
    y_gram: FloatArray
    f_sum: FloatArray
    f_gram: FloatArray
    cross: FloatArray

    @property
    def squared_errors(self) -> FloatArray:
        """Σ(y − f)², shape (A, Q), clipped at 0, because rounding may make an error of zero slightly negative."""
        squares = np.diagonal(self.y_gram) + np.diagonal(self.f_gram - 2 * self.cross, axis1=1, axis2=2)
        return np.asarray(np.maximum(squares, 0.0))

    @staticmethod
    def merge(parts: Sequence[PredictionSums]) -> PredictionSums:
        """Add the sums of disjoint sets, which different models may have predicted."""
        return PredictionSums(*(sum(getattr(part, name) for part in parts) for name in PredictionSums.__annotations__))


def sum_predictions(moments: Moments, weights: ArrayLike, intercepts: ArrayLike) -> PredictionSums:
    """Return the joint sums of labels and predictions ``f = b + xᵀw``, from the moments alone.

    All moments are relative to the origins, so with ``b' = b + oᵀw − c``::

        Σ(f−c) = n b' + wᵀs      Σ(f−c)(y−c)ᵀ = b'tᵀ + wᵀU      Σ(f−c)(f−c)ᵀ = n b'b'ᵀ + b'(wᵀs)ᵀ + (wᵀs)b'ᵀ + wᵀSw

    One pass over the Gram matrix serves all models.

    Parameters
    ----------
    moments
        Moments of P pixels and Q labels. Without spectra, all sums are zero.
    weights, intercepts
        Models, shapes (A, P, Q) and (A, Q), in units of the labels (per flux unit).

    Returns
    -------
    PredictionSums
    """
    w, b = np.asarray(weights, dtype=np.float64), np.asarray(intercepts, dtype=np.float64)
    n_models, n_pixels, n_labels = w.shape
    offsets = b + moments.x_origin @ w - moments.y_origin
    slopes = moments.x_sum @ w
    columns = np.ascontiguousarray(w.transpose(1, 0, 2).reshape(n_pixels, n_models * n_labels))
    product = moments.multiply(columns).reshape(n_pixels, n_models, n_labels)
    mixed = offsets[:, :, None] * slopes[:, None, :]
    return PredictionSums(
        count=moments.count,
        y_sum=np.asarray(moments.y_sum, dtype=np.float64),
        y_gram=np.asarray(moments.y_gram, dtype=np.float64),
        f_sum=moments.count * offsets + slopes,
        f_gram=moments.count * offsets[:, :, None] * offsets[:, None, :]
        + mixed
        + mixed.transpose(0, 2, 1)
        + w.transpose(0, 2, 1) @ product.transpose(1, 0, 2),
        cross=offsets[:, :, None] * moments.y_sum + w.transpose(0, 2, 1) @ moments.cross,
    )
