"""Moments of noise that was integrated out, in a few numbers: a low rank for the stars, a diagonal for their noise.

The expectation over all draws of a spectrum's noise is ``mmᵀ + diag(v)``. The means m are smooth functions of a handful
of stellar labels, so they lie in few dimensions, and the noise is a diagonal. With a :class:`Basis` that is fixed for a
run, z the coordinates of ``m − o`` in it, and ``z̃ = (z, 1, y − c)``::

    m − o = Bz + e       Σ z̃z̃ᵀ  holds  n,  Σz,  t,  Σzzᵀ,  Σz(y−c)ᵀ  and  V       d = Σv
    s = BΣz              S = B(Σzzᵀ)Bᵀ + diag(d)                                   U = BΣz(y−c)ᵀ

Such moments add and subtract like dense ones, if their bases are equal. A cell is ``(r + 1 + Q)² + 2P`` numbers instead
of ``P²/2``, and a ridge model costs ``O(Pr²)`` instead of ``O(P³)``.

What the basis leaves out, the residual e, lies under the noise. Seen through noise of variance d, a direction with
residual energy λ explains at most λ/(λ + d) of anything. So models without a penalty lose at most this much of the R²
of a cell's training spectra::

    ε = (n/n_check) Σ_p (Σ_i e_ip²)/d_p            sums over check rows: every 16th row of the store

This is :attr:`FactoredMoments.lost`. A penalty is one more term of the noise, so the *penalised* error, SSE + α‖w‖²,
loses less. But its minimum is not that of SSE, and there R² may move up or down by more than ε. Let P be the share that
α‖w‖² has of Σ(y − ȳ)², and H the matrix of the penalised error over Σ(y − ȳ)². The weights change by δw with α‖δw‖² ≤
δwᵀHδw ≤ ε, so R² moves by at most 2ε + 2√(Pε): :meth:`FactoredMoments.bound_change`. Both bounds are exact where noise
and penalty together are a multiple of the basis' v̄, and estimates elsewhere.

The sums may be kept apart for J *classes* of spectra with like noise, which forecasts of drawn noise need
(:mod:`pipeline.questions.forecast`). Their edges belong to the basis. A cell is the sum of its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh

from pipeline.errors import InputError
from pipeline.moments.basis import Basis
from pipeline.moments.moments import Moments, PixelSums, require_spectra

__all__ = [
    "CHECK_EVERY",
    "WORST",
    "FactoredMoments",
    "Factors",
]

FloatArray = NDArray[np.float64]
#: Every row of a store whose number is a multiple of this is a check row.
CHECK_EVERY = 16
#: Rows of a cell, farthest from what the basis can say, that are remembered.
WORST = 4


@dataclass(frozen=True, eq=False)
class Factors:
    """What factored moments are made of; see :class:`FactoredMoments`.

    Of ``inner`` and ``noise`` there is one for each class, shapes (J, r + 1 + Q, r + 1 + Q) and (J, P).
    """

    inner: FloatArray
    noise: FloatArray
    residual: FloatArray
    n_check: int
    worst: FloatArray

    @classmethod
    def zeros(cls, basis: Basis, n_labels: int) -> Factors:
        """Return the factors of no spectra."""
        size, n_pixels, n_classes = basis.rank + 1 + n_labels, len(basis.variance), basis.n_classes
        return cls(
            np.zeros((n_classes, size, size)),
            np.zeros((n_classes, n_pixels)),
            np.zeros(n_pixels),
            0,
            np.tile([-1.0, 0.0], (WORST, 1)),
        )

    def __add__(self, other: Factors) -> Factors:
        rows = np.concatenate([self.worst, other.worst])
        return Factors(
            self.inner + other.inner,
            self.noise + other.noise,
            self.residual + other.residual,
            self.n_check + other.n_check,
            rows[np.argsort(-rows[:, 1], kind="stable")][:WORST],
        )

    @staticmethod
    def nbytes(n_pixels: int, n_labels: int, rank: int, n_classes: int = 1) -> int:
        """Return the bytes of one cell's factors in memory, which are more than those on disk."""
        return 8 * (n_classes * ((rank + 1 + n_labels) ** 2 + n_pixels) + n_pixels + 1 + 2 * WORST)

    def __sub__(self, other: Factors) -> Factors:
        return Factors(
            self.inner - other.inner,
            self.noise - other.noise,
            self.residual - other.residual,
            self.n_check - other.n_check,
            self.worst,
        )

    def undivided(self) -> Factors:
        """Return the sum of all classes, as one class."""
        if len(self.inner) == 1:
            return self
        return replace(self, inner=self.inner.sum(axis=0, keepdims=True), noise=self.noise.sum(axis=0, keepdims=True))

    def of_class(self, number: int) -> Factors:
        """Return those of one class; residuals are not told apart by class, so it has none."""
        one = slice(number, number + 1)
        none = np.tile([-1.0, 0.0], (WORST, 1))
        return Factors(self.inner[one], self.noise[one], np.zeros_like(self.residual), 0, none)


class FactoredMoments(Moments):
    """Moments of spectra whose noise was integrated out, for P pixels, Q labels and rank r; see this module.

    Their sums over pixels and labels are those of dense moments. They have no tiles.

    Parameters
    ----------
    basis
        Of z.
    factors
        What the moments are made of.
    y_origin, labels, exponent
        As of dense moments.
    epsilon
        The machine epsilon of the type in which rows were projected.

    Attributes
    ----------
    inner
        Σ z̃z̃ᵀ, shape (r + 1 + Q, r + 1 + Q), float64.
    noise
        d = Σv, shape (P,), flux².
    class_inner, class_noise
        The same of each class, shapes (J, r + 1 + Q, r + 1 + Q) and (J, P).
    residual
        Σ e² over check rows, shape (P,), flux².
    n_check
        Check rows.
    worst
        Rows with the largest residuals: numbers and whitened energies ``Σ_p e_p²/v̄_p``, shape (WORST, 2); −1 and 0
        where there are fewer.
    """

    is_tiled = False

    basis: Basis
    inner: FloatArray
    noise: FloatArray
    class_inner: FloatArray
    class_noise: FloatArray
    residual: FloatArray
    n_check: int
    worst: FloatArray

    def __init__(
        self,
        basis: Basis,
        factors: Factors,
        y_origin: ArrayLike,
        labels: Sequence[str],
        epsilon: float,
        exponent: int = 0,
    ) -> None:
        whole = factors.undivided()
        r, inner = basis.rank, whole.inner[0]
        # As a frozen dataclass sets them. Sums over pixels are computed when they are asked for: most never are.
        vars(self).update(
            count=int(inner[r, r]),
            gram=np.empty(0),
            y_sum=inner[r, r + 1 :],
            y_gram=inner[r + 1 :, r + 1 :],
            x_origin=basis.x_origin,
            y_origin=np.asarray(y_origin, dtype=np.float64),
            labels=tuple(labels),
            epsilon=epsilon,
            exponent=exponent,
            basis=basis,
            inner=inner,
            noise=whole.noise[0],
            class_inner=factors.inner,
            class_noise=factors.noise,
            residual=factors.residual,
            n_check=factors.n_check,
            worst=factors.worst,
        )

    @cached_property
    def x_sum(self) -> FloatArray:
        """s = Σ(x − o), shape (P,), flux units."""
        return np.asarray(self.basis.vectors @ self._z_sum)

    @cached_property
    def cross(self) -> FloatArray:
        """U = Σ(x − o)(y − c)ᵀ, shape (P, Q)."""
        return np.asarray(self.basis.vectors @ self._z_cross)

    @property
    def factors(self) -> Factors:
        """What the moments are made of."""
        return Factors(self.class_inner, self.class_noise, self.residual, self.n_check, self.worst)

    @property
    def classes(self) -> list[FactoredMoments]:
        """The moments of each class of spectra with like noise; they have no residuals."""
        if len(self.class_inner) == 1:
            return [self]
        return [self._build(self.factors.of_class(k), self.epsilon) for k in range(len(self.class_inner))]

    @cached_property
    def pixel_sums(self) -> PixelSums:
        """What is known of every pixel by itself."""
        return _FactoredPixelSums(self)

    def multiply(self, columns: FloatArray) -> FloatArray:
        """Return ``S @ columns``, shape (P, M)."""
        vectors = self.basis.vectors
        return np.asarray(vectors @ (self._z_gram @ (vectors.T @ columns)) + self.noise[:, None] * columns)

    def covariance_sums(
        self, scale: FloatArray | None = None, out: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return centred sums of products as dense matrices; see :meth:`pipeline.moments.Moments.covariance_sums`."""
        d = np.ones(self.n_pixels) if scale is None else scale
        vectors = self.basis.vectors / d[:, None]
        gram, cross = self.centred
        dense = np.matmul(vectors @ gram, vectors.T, out=out)
        np.einsum("pp->p", dense)[:] += self.noise / d**2
        if out is None:
            dense = np.tril(dense)
        return dense, np.asarray(vectors @ cross)

    # --- What dense moments do not have.

    @property
    def centred(self) -> tuple[FloatArray, FloatArray]:
        """``C_c = Σzzᵀ − ΣzΣzᵀ/n`` and ``u = Σz(y−c)ᵀ − Σz tᵀ/n``, shapes (r, r) and (r, Q)."""
        require_spectra(self.count)
        s, n = self._z_sum, self.count
        return self._z_gram - np.outer(s, s) / n, self._z_cross - np.outer(s, self.y_sum) / n

    def leading(self, rank: int) -> FactoredMoments:
        """Return the moments that a basis of the first ``rank`` directions would have given."""
        kept = [*range(rank), *range(self.basis.rank, len(self.inner))]
        factors = replace(self.factors, inner=self.class_inner[:, kept][:, :, kept])
        return FactoredMoments(
            self.basis.leading(rank), factors, self.y_origin, self.labels, self.epsilon, self.exponent
        )

    def find_components(self, n: int) -> tuple[FloatArray, FloatArray]:
        """Return the ``n`` largest eigenvalues of the covariance sums, in rising order, and their vectors (P, n)."""
        gram, _ = self.centred
        vectors = self.basis.vectors
        if n >= self.n_pixels // 2:
            dense, _ = self.covariance_sums()
            values, found = eigh(dense, lower=True, subset_by_index=(self.n_pixels - n, self.n_pixels - 1))
            return np.asarray(values), np.asarray(found)

        def apply(x: FloatArray) -> FloatArray:
            column = x.reshape(len(vectors), -1)
            return np.asarray(vectors @ (gram @ (vectors.T @ column)) + self.noise[:, None] * column)

        operator = LinearOperator((self.n_pixels, self.n_pixels), matvec=apply, matmat=apply, dtype=np.float64)
        values, found = eigsh(operator, k=n, which="LA", v0=np.ones(self.n_pixels), tol=0)
        order = np.argsort(values)
        return np.asarray(values[order]), np.asarray(found[:, order])

    @property
    def lost(self) -> float:
        """ε, the bound on what training spectra lose; NaN without check rows, infinite without noise."""
        if not self.n_check:
            return float("nan")
        left = self.residual > 0
        if not left.any():
            return 0.0
        with np.errstate(divide="ignore"):
            return float(self.count / self.n_check * (self.residual[left] / self.noise[left]).sum())

    def bound_change(self, penalty: float) -> float:
        """Return how far R² of the training spectra can be from that of a model of dense moments.

        Parameters
        ----------
        penalty
            The model's α‖w‖², for scaled pixels, as a share of Σ(y − ȳ)².
        """
        return 2 * self.lost + 2 * float(np.sqrt(penalty * self.lost))

    # --- Addition.

    def __add__(self, other: Moments) -> FactoredMoments:
        """Moments of the union of two disjoint sets."""
        return self._build(self.factors + self._require_factors(other), max(self.epsilon, other.epsilon))

    def remove(self, other: Moments) -> FactoredMoments:
        """Return the moments without a subset that they contain.

        The worst rows stay as they are: which of them belong to the subset is not known.

        Raises
        ------
        InputError
            If bases, pixels or labels differ, or the subset is larger than the whole.
        """
        part = self._require_factors(other)
        if other.count > self.count:
            raise InputError(f"cannot remove {other.count} spectra from moments of {self.count}")
        return self._build(self.factors - part, self.epsilon)

    def identical(self, other: Moments) -> bool:
        """Return whether all numbers are equal, bit for bit in value."""
        return (
            isinstance(other, FactoredMoments)
            and (self.basis.digest, self.labels, self.n_check) == (other.basis.digest, other.labels, other.n_check)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("class_inner", "class_noise", "residual", "y_origin")
            )
        )

    def _build(self, factors: Factors, epsilon: float) -> FactoredMoments:
        return FactoredMoments(self.basis, factors, self.y_origin, self.labels, epsilon, self.exponent)

    def _require_factors(self, other: Moments) -> Factors:
        """Return the factors of moments that have a common sum with these.

        Raises
        ------
        InputError
            If they are dense, or labels, origins or bases differ.
        """
        self._require_same_frame(other)
        if not isinstance(other, FactoredMoments):
            raise InputError("cannot merge factored moments with dense ones; accumulate both with one compute.moments")
        if self.basis.digest != other.basis.digest:
            raise InputError(
                f"cannot merge factored moments of two bases ({self.basis.digest[:12]}, rank {self.basis.rank}, and "
                f"{other.basis.digest[:12]}, rank {other.basis.rank}); accumulate both with the same data.train, with "
                "data.exclude for what each leaves out: a run's basis comes from all stores that it names"
            )
        return other.factors

    @property
    def _z_sum(self) -> FloatArray:
        return self.inner[: self.basis.rank, self.basis.rank]

    @property
    def _z_gram(self) -> FloatArray:
        return self.inner[: self.basis.rank, : self.basis.rank]

    @property
    def _z_cross(self) -> FloatArray:
        return self.inner[: self.basis.rank, self.basis.rank + 1 :]


class _FactoredPixelSums(PixelSums):
    """The sums of factored moments. They are added as factors; what they say of pixels is computed when asked for."""

    moments: FactoredMoments

    def __init__(self, moments: FactoredMoments) -> None:
        vars(self).update(
            moments=moments,
            count=moments.count,
            x_origin=moments.x_origin,
            epsilon=moments.epsilon,
            exponent=moments.exponent,
        )

    @cached_property
    def x_sum(self) -> FloatArray:
        return self.moments.x_sum

    @cached_property
    def x_squares(self) -> FloatArray:
        """``diag(B Σzzᵀ Bᵀ) + d``."""
        vectors = self.moments.basis.vectors
        squares = np.einsum("pr,pr->p", vectors @ self.moments._z_gram, vectors)
        return np.asarray(squares + self.moments.noise)

    def _merged(self, parts: Sequence[PixelSums]) -> PixelSums:
        return Moments.merge(part.moments for part in parts if isinstance(part, _FactoredPixelSums)).pixel_sums
