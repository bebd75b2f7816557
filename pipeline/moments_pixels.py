"""Sums over spectra of every pixel by itself: what a scaler needs, without the Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

__all__ = ["PixelSums", "require_spectra"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PixelSums:
    """What moments say of every pixel by itself: enough for a mean and a variance, small beside a Gram matrix.

    Attributes
    ----------
    count
        n, the number of spectra.
    x_sum, x_squares
        Σ(x−o) and Σ(x−o)², shapes (P,), float64.
    x_origin
        o, shape (P,).
    epsilon
        As in :class:`pipeline.moments.Moments`.
    """

    count: int
    x_sum: FloatArray
    x_squares: FloatArray
    x_origin: FloatArray
    epsilon: float

    @property
    def x_mean(self) -> FloatArray:
        """Mean pixels, shape (P,), origin included."""
        require_spectra(self.count)
        return self.x_origin + self.x_sum / self.count

    @property
    def x_variance(self) -> FloatArray:
        """Population variance of every pixel, shape (P,), never negative."""
        require_spectra(self.count)
        mean = self.x_sum / self.count
        return np.maximum(self.x_squares / self.count - mean * mean, 0.0)

    @staticmethod
    def merge(parts: Sequence[PixelSums]) -> PixelSums:
        """Add the sums of disjoint sets with one origin, in the given order."""
        return PixelSums(
            sum(part.count for part in parts),
            np.sum([part.x_sum for part in parts], axis=0),
            np.sum([part.x_squares for part in parts], axis=0),
            parts[0].x_origin,
            max(part.epsilon for part in parts),
        )


def require_spectra(count: int) -> None:
    """Refuse to divide by no spectra.

    Raises
    ------
    InputError
        If ``count`` is 0.
    """
    if count < 1:
        raise InputError("moments of no spectra have no mean; accumulate at least one spectrum first")
