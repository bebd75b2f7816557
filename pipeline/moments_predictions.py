"""What linear models say of spectra that are known by their moments: joint sums of labels and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.moments import Moments

__all__ = ["PredictionSums", "sum_predictions"]

FloatArray = NDArray[np.float64]


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
        """Σ(y − f)², shape (A, Q), clipped at 0: rounding may take an error of nothing a little below."""
        squares = np.diagonal(self.y_gram) + np.diagonal(self.f_gram - 2 * self.cross, axis1=1, axis2=2)
        return np.asarray(np.maximum(squares, 0.0))

    @staticmethod
    def merge(parts: Sequence[PredictionSums]) -> PredictionSums:
        """Add the sums of disjoint sets; each may have been predicted by other models."""
        return PredictionSums(*(sum(getattr(part, name) for part in parts) for name in PredictionSums.__annotations__))


def sum_predictions(moments: Moments, weights: ArrayLike, intercepts: ArrayLike) -> PredictionSums:
    """Return the joint sums of labels and predictions ``f = b + xᵀw``, from the moments alone.

    With ``b' = b + oᵀw − c``, since all sums of moments are relative to the origins::

        Σ(f−c) = n b' + wᵀs      Σ(f−c)(y−c)ᵀ = b'tᵀ + wᵀU      Σ(f−c)(f−c)ᵀ = n b'b'ᵀ + b'(wᵀs)ᵀ + (wᵀs)b'ᵀ + wᵀSw

    One pass over the Gram matrix serves all models.

    Parameters
    ----------
    moments
        Of P pixels and Q labels; no spectra have sums of zero.
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
    product = moments.layout.multiply(moments.gram, columns).reshape(n_pixels, n_models, n_labels)
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
