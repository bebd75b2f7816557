"""Moments of noise that was integrated out, in a few numbers: a low rank for the stars, a diagonal for their noise.

The expectation over all draws of a spectrum's noise is ``mmᵀ + diag(v)``. The means m are smooth functions of a handful
of stellar labels, so they lie in few dimensions, and the noise is a diagonal. With a :class:`Basis` that is fixed for a
run, z the coordinates of ``m − o`` in it, and ``z̃ = (z, 1, y − c)``::

    m − o = Bz + e       Σ z̃z̃ᵀ  holds  n,  Σz,  t,  Σzzᵀ,  Σz(y−c)ᵀ  and  V       d = Σv
    s = BΣz              S = B(Σzzᵀ)Bᵀ + diag(d)                                   U = BΣz(y−c)ᵀ

Such moments add and subtract like dense ones, if their bases are equal. A cell is ``(r + 1 + Q)² + 2P`` numbers instead
of ``P²/2``, and a ridge model costs ``O(Pr²)`` instead of ``O(P³)``.

What the basis leaves out, the residual e, lies under the noise. Seen through noise of variance d, a direction with
residual energy λ explains at most λ/(λ + d) of anything. So the training spectra of a cell lose at most this much R²::

    ε = (n/n_check) Σ_p (Σ_i e_ip²)/d_p            sums over check rows: every 16th row of the store

This is :attr:`FactoredMoments.lost`. It is stated without a penalty, which only shrinks what is lost.

The sums may be kept apart for J *classes* of spectra with like noise, which forecasts of drawn noise need
(:mod:`pipeline.questions.forecast`). Their edges belong to the basis. A cell is the sum of its classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh, solve
from scipy.linalg.blas import dsyrk
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits

from pipeline.errors import InputError
from pipeline.moments.moments import Moments, PixelSums, require_spectra

__all__ = [
    "CHECK_EVERY",
    "MOST_DIRECTIONS",
    "WORST",
    "Basis",
    "FactoredMoments",
    "Factors",
    "Sample",
    "choose_basis",
    "extend_basis",
    "find_class_edges",
    "sum_squares",
]

FloatArray = NDArray[np.float64]
#: Every row of a store whose number is a multiple of this is a check row.
CHECK_EVERY = 16
#: Rows of a cell, farthest from what the basis can say, that are remembered.
WORST = 4
#: Ranks are multiples of this, which products like.
_STEP = 16
#: A basis that is chosen has no larger rank.
MOST_DIRECTIONS = 512
#: Eigenvalues of the sample, as a share of the largest, below which a direction is rounding.
_ROUNDING = 1e-15


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions in which mean noisy spectra differ, for P pixels and rank r.

    Pixels are whitened by the mean noise variance v̄ of a sample, so that what is left out counts as the noise does.

    Attributes
    ----------
    x_origin
        o, shape (P,), flux units.
    variance
        v̄, shape (P,), flux², > 0.
    directions
        B̃, orthonormal columns, the most important first, shape (P, r), no unit.
    edges
        What divides spectra into J classes by the whitened energy of their errors (:func:`find_class_edges`),
        increasing, shape (J − 1,).
    """

    x_origin: FloatArray
    variance: FloatArray
    directions: FloatArray
    edges: FloatArray = field(default_factory=lambda: np.empty(0))

    @property
    def rank(self) -> int:
        """r."""
        return int(self.directions.shape[1])

    @property
    def n_classes(self) -> int:
        """J."""
        return len(self.edges) + 1

    @cached_property
    def undivided(self) -> Basis:
        """The same directions, without classes."""
        return replace(self, edges=np.empty(0)) if len(self.edges) else self

    @cached_property
    def vectors(self) -> FloatArray:
        """B = √v̄ ∘ B̃, shape (P, r), flux units."""
        return np.asarray(np.sqrt(self.variance)[:, None] * self.directions)

    @cached_property
    def projection(self) -> FloatArray:
        """What ``m − o`` is multiplied by to give z, ``B̃ / √v̄``, shape (P, r), per flux unit."""
        return np.asarray(self.directions / np.sqrt(self.variance)[:, None])

    @cached_property
    def digest(self) -> str:
        """Identifies the basis: moments with the same digest can be added."""
        content = hashlib.sha256()
        for array in (self.x_origin, self.variance, self.directions, self.edges):
            content.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return content.hexdigest()

    def leading(self, rank: int) -> Basis:
        """Return the first ``rank`` directions as a basis."""
        return replace(self, directions=np.ascontiguousarray(self.directions[:, :rank]))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def sum_squares(x: Any, shrink: Any, out: Any) -> None:
    """Write ``Σ_p (x_np shrink_p)²`` of every row, (N,), float64: with ``1/√v̄`` the whitened energy."""
    for n in range(x.shape[0]):
        total = 0.0
        for p in range(x.shape[1]):
            value = x[n, p] * shrink[p]
            total += value * value
        out[n] = total


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
        r, inner = basis.rank, factors.inner.sum(axis=0)
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
            noise=factors.noise.sum(axis=0),
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
        require_spectra(self.count)
        d = np.ones(self.n_pixels) if scale is None else scale
        vectors = self.basis.vectors / d[:, None]
        gram, cross = self._centred
        dense = np.matmul(vectors @ gram, vectors.T, out=out)
        np.einsum("pp->p", dense)[:] += self.noise / d**2
        if out is None:
            dense = np.tril(dense)
        return dense, np.asarray(vectors @ cross)

    # --- What dense moments do not have.

    def solve_shifted(self, scale: FloatArray, alphas: Sequence[float]) -> list[FloatArray | None]:
        """Solve ``(D C D + αI) w' = D C_xy`` for several α >= 0, with ``D = diag(1/scale)``; None where it is singular.

        With ``E = d/scale² + α`` (diagonal), ``B_s = D B``, ``C_c = Σzzᵀ − ΣzΣzᵀ/n`` and ``K = B_sᵀE⁻¹B_s``, Woodbury's
        identity gives::

            w' = E⁻¹ B_s (I + C_c K)⁻¹ (Σz(y−c)ᵀ − Σz tᵀ/n)

        Parameters
        ----------
        scale
            Shape (P,), all > 0.
        alphas
            A penalties.

        Returns
        -------
        list of FloatArray or None
            A solutions, shapes (P, Q).
        """
        require_spectra(self.count)
        gram, cross = self._centred
        vectors, noise = self.basis.vectors, self.noise / scale**2
        found: list[FloatArray | None] = []
        for alpha in alphas:
            diagonal = noise + alpha
            if not (diagonal > np.finfo(np.float64).eps * diagonal.max()).all():
                found.append(None)
                continue
            inside = _weighted_gram(vectors, 1 / (diagonal * scale**2))
            own = vectors @ solve(np.eye(len(gram)) + gram @ inside, cross)
            found.append(own / (diagonal * scale)[:, None])
        return found

    def leading(self, rank: int) -> FactoredMoments:
        """Return the moments that a basis of the first ``rank`` directions would have given."""
        kept = [*range(rank), *range(self.basis.rank, len(self.inner))]
        factors = replace(self.factors, inner=self.class_inner[:, kept][:, :, kept])
        return FactoredMoments(
            self.basis.leading(rank), factors, self.y_origin, self.labels, self.epsilon, self.exponent
        )

    def find_components(self, n: int) -> tuple[FloatArray, FloatArray]:
        """Return the ``n`` largest eigenvalues of the covariance sums, in rising order, and their vectors (P, n)."""
        gram, _ = self._centred
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
        """ε, the bound on the R² that training spectra lose; NaN without check rows, infinite without noise."""
        if not self.n_check:
            return float("nan")
        left = self.residual > 0
        if not left.any():
            return 0.0
        with np.errstate(divide="ignore"):
            return float(self.count / self.n_check * (self.residual[left] / self.noise[left]).sum())

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

    @property
    def _centred(self) -> tuple[FloatArray, FloatArray]:
        """``Σzzᵀ − ΣzΣzᵀ/n`` and ``Σz(y−c)ᵀ − Σz tᵀ/n``, shapes (r, r) and (r, Q)."""
        s, n = self._z_sum, self.count
        return self._z_gram - np.outer(s, s) / n, self._z_cross - np.outer(s, self.y_sum) / n


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


#: Pixels whose rows of a basis are weighed at once: they stay in the processor's cache.
_BLOCK_PIXELS = 512


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


# --- The choice of a basis.


@dataclass(frozen=True, eq=False)
class Sample:
    """Some training spectra whose noise is integrated out.

    Attributes
    ----------
    means
        ``m − o``, shape (N, P), flux units, float32 or float64.
    variances
        v, shape (N, P), flux², of the same type.
    groups
        A number for each spectrum, shape (N,): what is lost is bounded in every group.

    Every third spectrum judges a basis that the others have chosen.
    """

    means: NDArray[Any]
    variances: NDArray[Any]
    groups: NDArray[np.int64]


#: The share of the tolerance that a sample may use up: a second pass costs more than some directions.
_MARGIN = 0.2
#: One of so many sampled spectra judges a basis.
_JUDGE_EVERY = 3
#: Groups of fewer judging spectra are bounded together: a few spectra say little.
_FEWEST_IN_GROUP = 16


def choose_basis(
    sample: Sample, x_origin: FloatArray, tolerance: float, largest: int, rank: int | None = None
) -> tuple[Basis, float]:
    """Return the smallest basis that loses less than a fifth of the tolerance in every group of a sample.

    The directions are the eigenvectors of the whitened sample, through the Gram matrix of its rows: with N spectra it
    costs ``N²P``, and all in float64, because in single precision the basis itself would end at 1e-7 of the largest
    eigenvalue. Every third spectrum takes no part in this: it judges. (Spectra judge too well what they have chosen
    themselves. With 2048 of 1024 pixels they saw a sixth of what was lost.) A fifth, because judges are few, and what
    is lost lies in few spectra: a hundredth of them made three quarters of it. Check rows of the pass judge again.

    Parameters
    ----------
    sample
        Spread over all training spectra and all noise levels.
    x_origin
        o, shape (P,).
    tolerance
        Of R², see :attr:`FactoredMoments.lost`.
    largest
        The largest rank to be considered.
    rank
        A rank to use instead, at most P.

    Returns
    -------
    Basis
        Of the largest rank, if none loses as little as is asked.
    float
        The largest loss of any group.

    Raises
    ------
    InputError
        If there are no spectra, or they do not differ.
    """
    variance = sample.variances.mean(axis=0, dtype=np.float64)
    # A pixel without noise must be kept whole: it gets a weight beyond all others.
    positive = variance[variance > 0]
    if not positive.size:
        raise InputError("moments can only be factored where there is noise; use compute.moments: dense")
    variance = np.where(variance > 0, variance, positive.min() * 1e-6)
    judges = np.arange(len(sample.means)) % _JUDGE_EVERY == _JUDGE_EVERY - 1
    white = sample.means[~judges] / np.sqrt(variance)
    with threadpool_limits(1, user_api="blas"):
        n = min(largest, MOST_DIRECTIONS, *white.shape)
        products = dsyrk(1.0, white.T, trans=1, lower=1)
        values, own = eigh(products, lower=True, overwrite_a=True, subset_by_index=(len(white) - n, len(white) - 1))
        kept = np.flatnonzero(values > values[-1] * _ROUNDING)[::-1]
        if not kept.size or not values[-1] > 0:
            raise InputError("moments cannot be factored: all sampled spectra are equal; use compute.moments: dense")
        found = white.T @ (own[:, kept] / np.sqrt(values[kept]))
        # A rank that is asked for may need directions in which the sample does not differ: any will do.
        directions, _ = np.linalg.qr(found, mode="reduced" if rank is None or rank <= kept.size else "complete")
        whole = Basis(np.asarray(x_origin, dtype=np.float64), variance, np.ascontiguousarray(directions))
        judge = _Judge.of(sample, judges, whole)
        ranks = [rank] if rank is not None else [*range(_STEP, whole.rank, _STEP), whole.rank]
        low, high = 0, len(ranks) - 1
        # What is lost falls with the rank, so the smallest rank is found by bisection.
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if judge.bound(ranks[middle]) <= tolerance * _MARGIN else (middle + 1, high)
        chosen = min(ranks[low], whole.rank)
        return whole.leading(chosen), judge.bound(chosen)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Sampled spectra that took no part in the choice of a basis: ``m − o`` (N, P), its coordinates, v, and groups."""

    means: FloatArray
    coordinates: FloatArray
    variances: NDArray[Any]
    groups: NDArray[np.int64]
    basis: Basis

    @classmethod
    def of(cls, sample: Sample, judges: NDArray[np.bool_], basis: Basis) -> _Judge:
        chosen = judges if judges.any() else ~judges  # of one or two spectra
        means, groups = sample.means[chosen].astype(np.float64), sample.groups[chosen]
        found, counts = np.unique(groups, return_counts=True)
        merged = np.where(np.isin(groups, found[counts < _FEWEST_IN_GROUP]), -1, groups)
        return cls(means, means @ basis.projection, sample.variances[chosen], merged, basis)

    def bound(self, rank: int) -> float:
        """Return the largest loss of any group with the leading directions."""
        left = self.means - self.coordinates[:, :rank] @ self.basis.vectors[:, :rank].T
        np.square(left, out=left)
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = [
                float(
                    np.nansum(
                        left[self.groups == k].sum(axis=0)
                        / self.variances[self.groups == k].sum(axis=0, dtype=np.float64)
                    )
                )
                for k in np.unique(self.groups)
            ]
        return max(bounds)


def find_class_edges(errors: FloatArray, basis: Basis, n_classes: int) -> FloatArray:
    """Return the edges that divide sampled spectra, by the energy of their errors (N, P), into classes of equal size.

    Whitened by v̄ the energies weigh pixels as the basis does. Their order is the same at every noise level. Fewer
    classes are found where spectra have equal errors.
    """
    energies = np.empty(len(errors))
    sum_squares(errors, 1 / np.sqrt(basis.variance), energies)
    edges = np.unique(np.quantile(energies, np.arange(1, n_classes) / n_classes))
    return np.asarray(edges[(edges > energies.min()) & np.isfinite(edges)])


def extend_basis(basis: Basis, rows: FloatArray) -> Basis:
    """Return a basis that also spans some spectra ``m − o`` (N, P), flux units; those that it spans add nothing."""
    white = np.asarray(rows, dtype=np.float64) / np.sqrt(basis.variance)
    sizes = np.linalg.norm(white, axis=1)
    for _ in range(2):  # once leaves rounding errors that grow
        white = white - (white @ basis.directions) @ basis.directions.T
    left, values, _ = np.linalg.svd(white.T, full_matrices=False)
    new = left[:, values > 1e-9 * sizes.max(initial=0.0)]
    return replace(basis, directions=np.ascontiguousarray(np.column_stack([basis.directions, new])))
