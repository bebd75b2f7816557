"""The sufficient statistics of a set of spectra. All later results follow from them by algebra.

For samples with pixels x ∈ R^P and labels y ∈ R^Q, relative to fixed origins o and c::

    n,  s = Σ(x−o),  S = Σ(x−o)(x−o)ᵀ,  t = Σ(y−c),  U = Σ(x−o)(y−c)ᵀ,  V = Σ(y−c)(y−c)ᵀ

Moments of disjoint sets add and subtract (a commutative monoid with ``remove``). So the global model, coarser bins,
training without one fold and growing data need no second pass over the spectra. The origin is subtracted BEFORE any
product, because uncentred float32 sums of nearly constant flux lose all digits of the covariance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pipeline.errors import InputError
from pipeline.moments.tiles import TileLayout, add_gram

__all__ = ["Moments", "MomentsSum", "PixelSums", "require_spectra"]

# --- Sums for every pixel by itself. They are all that a scaler needs, without the Gram matrix.

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PixelSums:
    """The sums for every pixel by itself. They give its mean and variance, and are much smaller than a Gram matrix.

    Attributes
    ----------
    count
        n, the number of spectra.
    x_sum, x_squares
        Σ(x−o) and Σ(x−o)², shapes (P,), float64.
    x_origin
        o, shape (P,).
    epsilon, exponent
        As in :class:`pipeline.moments.moments.Moments`.
    """

    count: int
    x_sum: FloatArray
    x_squares: FloatArray
    x_origin: FloatArray
    epsilon: float
    exponent: int = 0

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
        return parts[0]._merged(parts)

    def _merged(self, parts: Sequence[PixelSums]) -> PixelSums:
        return PixelSums(
            sum(part.count for part in parts),
            np.sum([part.x_sum for part in parts], axis=0),
            np.sum([part.x_squares for part in parts], axis=0),
            parts[0].x_origin,
            max(part.epsilon for part in parts),
            parts[0].exponent,
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


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of ``count`` spectra of P pixels and Q labels; immutable for its callers.

    Attributes
    ----------
    count
        n, the number of spectra. For weighted samples it is the sum of the weights, which may be a fraction.
    x_sum
        s, shape (P,), float64, flux units.
    gram
        S as tiles of its lower triangle (:class:`pipeline.moments.tiles.TileLayout`), float32 or float64, flux².
    y_sum
        t, shape (Q,), float64, label units.
    cross
        U, shape (P, Q), float64.
    y_gram
        V, shape (Q, Q), float64.
    x_origin, y_origin
        o, shape (P,) and c, shape (Q,): what was subtracted.
    labels
        Names of the Q labels.
    epsilon
        Machine epsilon of the type in which products were summed. It stays that of float32 after a merge in float64.
    exponent
        The flux unit here is 2^−exponent of the data's: pixels were multiplied by 2^exponent before they were summed.
    """

    #: Whether the Gram matrix is kept as tiles.
    is_tiled: ClassVar[bool] = True

    count: int
    x_sum: FloatArray
    gram: NDArray[Any]
    y_sum: FloatArray
    cross: FloatArray
    y_gram: FloatArray
    x_origin: FloatArray
    y_origin: FloatArray
    labels: tuple[str, ...]
    epsilon: float = float(np.finfo(np.float64).eps)
    exponent: int = 0

    def __repr__(self) -> str:
        labels = ", ".join(self.labels)
        return f"{type(self).__name__}({labels}; {self.count:g} spectra, {self.x_sum.size} pixels)"

    @classmethod
    def zeros(
        cls, x_origin: ArrayLike, y_origin: ArrayLike, labels: Sequence[str], dtype: DTypeLike = np.float64
    ) -> Moments:
        """Return the moments of no spectra: the identity of addition."""
        x0, y0 = np.asarray(x_origin, dtype=np.float64), np.asarray(y_origin, dtype=np.float64)
        n_pixels, n_labels = x0.size, y0.size
        return cls(
            count=0,
            x_sum=np.zeros(n_pixels),
            gram=TileLayout(n_pixels).zeros(dtype),
            y_sum=np.zeros(n_labels),
            cross=np.zeros((n_pixels, n_labels)),
            y_gram=np.zeros((n_labels, n_labels)),
            x_origin=x0,
            y_origin=y0,
            labels=tuple(labels),
            epsilon=float(np.finfo(dtype).eps),
        )

    @classmethod
    def from_samples(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        labels: Sequence[str] | None = None,
        *,
        x_origin: ArrayLike | None = None,
        y_origin: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Moments:
        """Compute the moments of samples in memory, in float64.

        Parameters
        ----------
        x
            Pixels, shape (N, P).
        y
            Labels, shape (N, Q) or (N,).
        labels
            Names of the labels; ``label_0`` … by default.
        x_origin, y_origin
            Origins, shapes (P,) and (Q,); zeros by default. Moments merge only if their origins are equal.
        weights
            How many copies each sample stands for, shape (N,), each >= 0, not necessarily whole; ones by default. A
            sample counts that many times in every sum, also in n.

        Raises
        ------
        InputError
            If shapes disagree, a value is not finite, or a weight is negative.
        """
        pixels = np.asarray(x, dtype=np.float64)
        targets = np.asarray(y, dtype=np.float64)
        targets = targets[:, None] if targets.ndim == 1 else targets
        if pixels.ndim != 2 or targets.shape[:1] != pixels.shape[:1]:
            raise InputError(
                f"samples need x of shape (N, P) and y of shape (N, Q); found {pixels.shape} and {targets.shape}"
            )
        if not (np.isfinite(pixels).all() and np.isfinite(targets).all()):
            raise InputError("samples must be finite; x or y holds NaN or infinity")
        names = tuple(labels or (f"label_{k}" for k in range(targets.shape[1])))
        zero = cls.zeros(
            np.zeros(pixels.shape[1]) if x_origin is None else x_origin,
            np.zeros(targets.shape[1]) if y_origin is None else y_origin,
            names,
        )
        dx, dy = np.ascontiguousarray(pixels - zero.x_origin), targets - zero.y_origin
        if weights is None:
            add_gram(dx, zero.gram, zero.layout)
            count, wx, wy = len(dx), dx, dy
        else:
            w = _require_weights(weights, len(dx))
            wx, wy = dx * w[:, None], dy * w[:, None]
            _add_weighted_gram(dx, wx, zero.gram, zero.layout)
            # The type says a whole number, because only weighted samples can have a fraction.
            count = cast(int, float(w.sum()))
        return replace(zero, count=count, x_sum=wx.sum(axis=0), y_sum=wy.sum(axis=0), cross=wx.T @ dy, y_gram=wy.T @ dy)

    @property
    def n_pixels(self) -> int:
        """P."""
        return int(self.x_origin.size)

    @cached_property
    def layout(self) -> TileLayout:
        """How :attr:`gram` is stored."""
        return TileLayout(self.n_pixels)

    @property
    def pixel_sums(self) -> PixelSums:
        """What is known of every pixel by itself."""
        squares = self.layout.diagonal(self.gram)
        return PixelSums(self.count, self.x_sum, squares, self.x_origin, self.epsilon, self.exponent)

    @property
    def x_mean(self) -> FloatArray:
        """Mean pixels, shape (P,), origin included."""
        return self.pixel_sums.x_mean

    @property
    def y_mean(self) -> FloatArray:
        """Mean labels, shape (Q,), origin included."""
        require_spectra(self.count)
        return self.y_origin + self.y_sum / self.count

    @property
    def x_variance(self) -> FloatArray:
        """Population variance of every pixel, shape (P,), never negative."""
        return self.pixel_sums.x_variance

    def multiply(self, columns: FloatArray) -> FloatArray:
        """Return ``S @ columns``, shape (P, M), in float64."""
        return self.layout.multiply(self.gram, columns)

    def covariance_sums(
        self, scale: FloatArray | None = None, out: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return centred sums of products, of pixels divided by ``scale``.

        Parameters
        ----------
        scale
            d, shape (P,), > 0; ones by default.
        out
            C-ordered memory (P, P) for C. Its values above the diagonal mean nothing. By default C is fresh memory,
            with zeros there.

        Returns
        -------
        C : (P, P)
            ``D(S − ssᵀ/n)D`` with ``D = diag(1/d)``, lower triangle only, flux² (1 where scaled).
        C_xy : (P, Q)
            ``D(U − stᵀ/n)``.
        """
        require_spectra(self.count)
        gram = np.zeros((self.n_pixels, self.n_pixels)) if out is None else out
        shrink = np.ones(self.n_pixels) if scale is None else 1 / scale
        x_mean = self.x_sum / self.count
        for rows, columns, block in self.layout.lower_strips(self.gram):
            part = gram[rows, columns]
            np.multiply(self.x_sum[rows, None], -x_mean[columns], out=part)
            part += block
            part *= shrink[columns]
            part *= shrink[rows, None]
            if columns.stop == rows.stop:
                corner = gram[rows, rows]
                corner[:] = np.tril(corner)
        return gram, (self.cross - np.outer(self.x_sum, self.y_sum) / self.count) * shrink[:, None]

    def __add__(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets."""
        return Moments.merge([self, other])

    @staticmethod
    def merge(parts: Iterable[Moments]) -> Moments:
        """Add moments of disjoint sets in the given order, in float64; order fixes the last bits.

        Raises
        ------
        InputError
            If there is nothing to merge, or origins, pixels or labels differ; the message says where.
        """
        total = MomentsSum()
        for part in parts:
            total.add(part)
        return total.moments

    def remove(self, other: Moments) -> Moments:
        """Return the moments without a subset that they contain.

        Raises
        ------
        InputError
            If origins, pixels or labels differ, or the subset is larger than the whole.
        """
        self._require_same_frame(other)
        if other.count > self.count:
            raise InputError(f"cannot remove {other.count} spectra from moments of {self.count}")
        sums = [
            np.subtract(whole, part, dtype=np.float64) for whole, part in zip(self._sums(), other._sums(), strict=True)
        ]
        return self._with(self.count - other.count, sums)

    def identical(self, other: Moments) -> bool:
        """Return whether all numbers are equal, bit for bit in value."""
        return (
            self.count == other.count
            and self.labels == other.labels
            and np.array_equal(self.x_origin, other.x_origin)
            and np.array_equal(self.y_origin, other.y_origin)
            and all(np.array_equal(a, b) for a, b in zip(self._sums(), other._sums(), strict=True))
        )

    def _sums(self) -> tuple[NDArray[Any], ...]:
        return (self.x_sum, self.gram, self.y_sum, self.cross, self.y_gram)

    def _with(self, count: int, sums: Sequence[NDArray[Any]]) -> Moments:
        x_sum, gram, y_sum, cross, y_gram = sums
        return replace(self, count=count, x_sum=x_sum, gram=gram, y_sum=y_sum, cross=cross, y_gram=y_gram)

    def _require_same_frame(self, other: Moments) -> None:
        if self.n_pixels != other.n_pixels:
            raise InputError(
                f"cannot merge moments of {self.n_pixels} and {other.n_pixels} pixels; use one wavelength grid"
            )
        if self.exponent != other.exponent:
            raise InputError(
                f"cannot merge moments of flux times 2^{self.exponent} and times 2^{other.exponent}; accumulate both "
                "from one store"
            )
        if self.labels != other.labels:
            raise InputError(f"cannot merge moments of labels {self.labels} and {other.labels}; use the same labels")
        for name, mine, theirs, unit in (
            ("origins", self.x_origin, other.x_origin, "pixel"),
            ("label origins", self.y_origin, other.y_origin, "label"),
        ):
            if not np.array_equal(mine, theirs):
                difference = np.abs(mine - theirs)
                worst = int(np.argmax(difference))
                raise InputError(
                    f"cannot merge moments with different {name} (max |Δ| = {difference[worst]:.3g} at {unit} "
                    f"{worst}); accumulate both from one store"
                )


def _require_weights(weights: ArrayLike, n: int) -> FloatArray:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not (np.isfinite(w).all() and (w >= 0).all()):
        raise InputError(f"weights must be {n} finite numbers, none negative; found shape {w.shape}, or other values")
    return w


def _add_weighted_gram(x: FloatArray, weighted: FloatArray, tiles: FloatArray, layout: TileLayout) -> None:
    """Add ``xᵀ(wx)`` to the tiles. (``(√w x)ᵀ(√w x)`` would not give the bits of two copies for a weight of 2.)"""
    for tile, (i, j) in zip(tiles, layout.pairs, strict=True):
        rows, columns = layout.span(i), layout.span(j)
        block = x[:, rows].T @ weighted[:, columns]
        tile[: block.shape[0], : block.shape[1]] += np.tril(block) if i == j else block


class MomentsSum:
    """A sum that grows in place, in float64. Only its owner may use it, and only as long as its memory is lent.

    Parameters
    ----------
    gram
        Memory for the tiles of the sum, float64 and of the tiles' shape; fresh memory by default.
    """

    def __init__(self, gram: FloatArray | None = None) -> None:
        self._gram = gram
        self._moments: Moments | None = None

    @property
    def moments(self) -> Moments:
        """The sum so far; its Gram matrix changes with the next part.

        Raises
        ------
        InputError
            If nothing was added yet.
        """
        if self._moments is None:
            raise InputError("cannot merge no moments at all; give at least one")
        return self._moments

    def add(self, part: Moments) -> None:
        """Add the moments of a disjoint set; the order of the parts fixes the last bits.

        Raises
        ------
        InputError
            If origins, pixels or labels differ; the message says where.
        """
        if not part.is_tiled:  # it is small and needs no memory of ours
            self._moments = part if self._moments is None else self._moments + part
            return
        if self._moments is None:
            if self._gram is None:
                self._gram = np.empty(part.gram.shape)
            self._gram[...] = part.gram
            self._moments = replace(part, gram=self._gram)
            return
        before = self._moments
        before._require_same_frame(part)
        before.gram[...] += part.gram
        self._moments = replace(
            before,
            count=before.count + part.count,
            x_sum=before.x_sum + part.x_sum,
            y_sum=before.y_sum + part.y_sum,
            cross=before.cross + part.cross,
            y_gram=before.y_gram + part.y_gram,
            epsilon=max(before.epsilon, part.epsilon),
        )
