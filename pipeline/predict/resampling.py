"""Spectra on another wavelength grid: rebinned so that flux is conserved.

A spectrum is taken as constant within each of its pixels. The value of an output pixel is the mean of that step
function over it: each input pixel is weighted by the part of the output pixel that it overlaps::

    f'_j = Σ_i |pixel_j ∩ pixel_i| f_i / |pixel_j|        σ'_j² = Σ_i (|pixel_j ∩ pixel_i| / |pixel_j|)² σ_i²

So ``Σ f' Δλ'`` over output pixels that tile a range is the integral of the input over that range. Neighbouring output
pixels that share an input pixel have correlated errors, which σ' does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from pipeline.errors import InputError

__all__ = ["Resampling", "pixel_edges"]

FloatArray = NDArray[np.float64]
#: By rounding alone, so large a part of an output pixel may lie beyond the input, or on bad pixels.
_ROUNDING = 1e-9


def pixel_edges(wavelength: ArrayLike) -> FloatArray:
    """Return the edges of pixels, shape (P + 1,), from their centres, shape (P,), both in Å.

    Inner edges lie half-way between centres. The first and the last pixel are symmetrical about their centres.

    Raises
    ------
    InputError
        If there are fewer than two centres, or they are not finite and increasing.
    """
    centres = np.asarray(wavelength, dtype=np.float64)
    if centres.ndim != 1 or centres.size < 2 or not np.isfinite(centres).all() or not (np.diff(centres) > 0).all():
        raise InputError(
            f"a wavelength grid needs at least two finite, increasing wavelengths, found shape {centres.shape}"
        )
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


@dataclass(frozen=True, eq=False)
class Resampling:
    """Takes spectra from one wavelength grid to another; see the module for the definition.

    Attributes
    ----------
    source, target
        Wavelengths of the pixels' centres before and after, shapes (P,) and (P',), Å.
    """

    source: FloatArray
    target: FloatArray

    @cached_property
    def shares(self) -> csr_array:
        """Which part of every output pixel each input pixel covers, shape (P', P); rows add up to 1 or less."""
        before, after = pixel_edges(self.source), pixel_edges(self.target)
        first = np.maximum(np.searchsorted(before, after[:-1], side="right") - 1, 0)
        last = np.minimum(np.searchsorted(before, after[1:], side="left"), len(self.source))
        counts = np.maximum(last - first, 0)
        rows = np.repeat(np.arange(len(self.target)), counts)
        steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = np.repeat(first, counts) + steps
        overlap = np.minimum(before[columns + 1], after[rows + 1]) - np.maximum(before[columns], after[rows])
        values = np.maximum(overlap, 0) / (after[rows + 1] - after[rows])
        kept = values > 0
        return csr_array((values[kept], (rows[kept], columns[kept])), shape=(len(self.target), len(self.source)))

    @cached_property
    def covered(self) -> NDArray[np.bool_]:
        """Output pixels that lie within the input's range, shape (P',)."""
        return np.asarray(self.shares.sum(axis=1)) >= 1 - _ROUNDING

    def flux(self, flux: ArrayLike, bad: NDArray[np.bool_] | None = None) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Rebin flux densities.

        Parameters
        ----------
        flux
            Shape (N, P).
        bad
            Pixels that may not be used, same shape. Pixels that are not finite are never used.

        Returns
        -------
        flux : (N, P')
            The mean over each output pixel; 0 where that is bad.
        bad : (N, P')
            Output pixels that lie beyond the input or on bad pixels, wholly or in part.
        """
        values = np.asarray(flux, dtype=np.float64)
        wrong = ~np.isfinite(values) if bad is None else ~np.isfinite(values) | bad
        if not wrong.any():
            spoiled = np.broadcast_to(~self.covered, (len(values), len(self.target)))
            return np.where(spoiled, 0.0, self._apply(values)), spoiled
        clean = np.where(wrong, 0.0, values)
        usable = self._apply((~wrong).astype(np.float64))
        spoiled = usable < 1 - _ROUNDING
        return np.where(spoiled, 0.0, self._apply(clean)), spoiled

    def error(self, error: ArrayLike) -> FloatArray:
        """Return the 1σ errors of rebinned flux, shape (N, P'), from independent errors (N, P) of the input's pixels.

        Output pixels beyond the input get what their overlap gives, which means nothing. :meth:`flux` tells which
        pixels are bad.
        """
        squares = np.asarray(error, dtype=np.float64) ** 2
        variances: FloatArray = (self.shares.power(2) @ squares.T).T
        return np.sqrt(variances)

    def _apply(self, values: FloatArray) -> FloatArray:
        rebinned: FloatArray = np.ascontiguousarray((self.shares @ values.T).T)
        return rebinned
