"""How probable a noisy spectrum is under every star of a library, exactly, and fast.

A test spectrum is ``x = max(f + s·ε, 0)`` with ``s = level·error`` and ε ~ N(0, 1), independent per pixel. Under the
library star i, with its own clean flux ``f = max(flux, 0)`` and its own errors, up to a number that all stars share::

    ln p(x|i) = Σ_{x>0} [−(x−f)²/(2s²) − ln s] + Σ_{x=0} ln Φ(−f/s)

Written for all pixels, with a correction where the spectrum was clipped, this is a sum of three scalar products of what
is known of the spectrum with what is known of the star. With an origin c and a typical error D of every pixel, and
``u = (x − c)/D``::

    ln p(x|i) = Σ [−u²/2]·[D²/s² − 1]  +  Σ u·[D(f − c)/s²]  +  Σ 1[x=0]·[ln Φ(−f/s) + f²/(2s²) + ln s]
                − Σ [(f − c)²/(2s²) + ln s]  −  Σ u²/2

The last sum is the same for all stars and is left out. Factors are centred on their means before the products, so that
float32 suffices: what is taken away is again the same for all stars, or is added to the star's own number in float64.

:func:`measure_dense` forms the products pixel by pixel. A :class:`Projection` first projects both sides on the few
directions in which stars differ at all.

Both know how far off they may be for every single pair. What a projection leaves out of a star is r, of a spectrum q,
and their product is missing in ln p. The noise of a spectrum is independent of the star that it is held against, so
this product has a standard deviation of ``|r| · |q|/√P``, and six of them are its bound. Probes measure ``|r|``: random
vectors of the space that is left out, which a star is multiplied with as it is with the directions. Rounding adds a
share of the product of both norms. A pair is right to :data:`TOLERANCE`, or :mod:`pipeline.questions.ceiling.pairs`
forms it anew from all pixels in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.special import erfcx

from pipeline.base import one_blas_thread
from pipeline.noise import compiled

__all__ = [
    "TOLERANCE",
    "Coefficients",
    "Observed",
    "Origins",
    "Projection",
    "Star",
    "bound_errors",
    "describe_stars",
    "measure_dense",
    "measure_pairs",
    "observe",
    "weigh_rounding",
]

FloatArray = NDArray[np.float64]
#: Largest error of ln p, of any pair whose weight may matter.
TOLERANCE = 0.01
#: Pixels that a float32 product sums up before float64 goes on.
_STRIP = 128
#: What is left out is bounded by so many standard deviations. So many probes measure its norm. The mean of their
#: squares falls below this share of what it should be for one star in twenty, and is divided by it for all. Together a
#: pair exceeds its bound with a probability below 1e-6.
_SIGMAS, _PROBES, _LUCK = 6.0, 16, 0.5
#: Rounding of float32 products of factors with norms of 1; the largest that was seen in two million pairs was 2.7e-7.
_ROUNDING = 4e-7
#: Most directions of a factor that are sought, and how many are multiplied in double precision.
_MOST, _LEADING = 640, 32
#: Rows whose residual is so many times the tolerance get directions of their own, in so many rounds.
_WORST, _EXTENSIONS = 2.0, 3
#: Rows whose residuals are formed at once.
_AT_ONCE = 512
#: An error of zero counts as this share of the typical error of its pixel: a pixel cannot be infinitely sure.
_LEAST_ERROR = 1e-3


@dataclass(frozen=True, eq=False)
class Origins:
    """What all spectra and stars of one noise level are measured from.

    Attributes
    ----------
    level
        The noise, in units of the errors.
    origin
        c, shape (P,), flux.
    scale
        D, a typical error of every pixel times the level, shape (P,), flux; positive.
    inverse_variance, slope, clipping
        Means over stars of the three factors of a star, shape (P,).
    deviation
        Mean of u over spectra, shape (P,).
    clipped
        The pixels in which any spectrum was clipped, shape (C,).
    """

    level: float
    origin: FloatArray
    scale: FloatArray
    inverse_variance: FloatArray
    slope: FloatArray
    clipping: FloatArray
    deviation: FloatArray
    clipped: NDArray[np.int64]

    @classmethod
    def find(cls, level: float, spectra: NDArray[Any], flux: NDArray[Any], error: NDArray[Any]) -> Origins:
        """Choose them from the noisy spectra (N, P), and from clean flux and errors of some library stars (M, P)."""
        origin = np.maximum(flux, 0).mean(axis=0, dtype=np.float64)
        # The mean square, not the mean of 1/s²: the products of faint spectra with faint stars, whose squares are
        # large, are then small.
        scale = level * np.sqrt(np.einsum("np,np->p", error, error, dtype=np.float64) / len(error))
        scale[scale == 0] = max(float(scale.max()), 1e-30)  # a pixel without any error tells nothing
        zeros = np.zeros(len(origin))
        clipped = np.flatnonzero((spectra == 0).any(axis=0))
        first = cls(level, origin, scale, zeros, zeros, zeros[clipped], zeros, clipped)
        seen, stars = observe(spectra, first), describe_stars(flux, error, first)
        of_stars = [_mean(one) for one in stars.factors]
        return cls(level, origin, scale, of_stars[0], of_stars[1], of_stars[2], _mean(seen.deviation), clipped)

    def to_arrays(self) -> dict[str, Any]:
        """Return arrays for a file; :meth:`from_arrays` gives back the same numbers."""
        return {f"origins_{name}": np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Any) -> Origins:
        """Return what :meth:`to_arrays` was called on."""
        found = {name: arrays[f"origins_{name}"] for name in cls.__dataclass_fields__}
        return cls(**found | {"level": float(found["level"])})


def _mean(factor: NDArray[np.float32]) -> FloatArray:
    return np.asarray(np.mean(factor, axis=0, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Observed:
    """The factors of N noisy spectra, float32: −u²/2 and centred u (N, P), and 1[x = 0] of pixels ever clipped (N, C).

    The order is that of the factors of a :class:`Star`.
    """

    square: NDArray[np.float32]
    deviation: NDArray[np.float32]
    clipped: NDArray[np.float32]

    @property
    def factors(self) -> tuple[NDArray[np.float32], ...]:
        """All three."""
        return self.square, self.deviation, self.clipped

    def rows(self, chosen: slice) -> Observed:
        """Return the factors of some spectra."""
        return Observed(*(one[chosen] for one in self.factors))


def observe(spectra: NDArray[Any], origins: Origins) -> Observed:
    """Return the factors of noisy spectra (N, P)."""
    u = (spectra.astype(np.float64) - origins.origin) / origins.scale
    square = (-0.5 * u**2).astype(np.float32)
    clipped = (spectra[:, origins.clipped] == 0).astype(np.float32)
    return Observed(square, (u - origins.deviation).astype(np.float32), clipped)


@dataclass(frozen=True, eq=False)
class Star:
    """The factors of M library stars, float32, and the number that each has of its own.

    Attributes
    ----------
    inverse_variance, slope
        Centred D²/s² − 1 and D(f − c)/s², shape (M, P).
    clipping
        Centred ln Φ(−f/s) + f²/(2s²) + ln s, shape (M, C).
    own
        −Σ [(f − c)²/(2s²) + ln s], and what centring the spectra has taken from the products, shape (M,), float64.
    """

    inverse_variance: NDArray[np.float32]
    slope: NDArray[np.float32]
    clipping: NDArray[np.float32]
    own: FloatArray

    @property
    def factors(self) -> tuple[NDArray[np.float32], ...]:
        """All three."""
        return self.inverse_variance, self.slope, self.clipping

    def rows(self, chosen: slice) -> Star:
        """Return some of the stars."""
        return Star(self.inverse_variance[chosen], self.slope[chosen], self.clipping[chosen], self.own[chosen])

    @classmethod
    def empty(cls, n: int, origins: Origins) -> Star:
        """Return memory for the factors of so many stars."""
        shape = n, len(origins.origin)
        clipping = np.empty((n, len(origins.clipped)), np.float32)
        return cls(np.empty(shape, np.float32), np.empty(shape, np.float32), clipping, np.empty(n))


def describe_stars(flux: NDArray[Any], error: NDArray[Any], origins: Origins, into: Star | None = None) -> Star:
    """Return the factors of stars from their clean flux and errors, each (M, P), as the store has them.

    They are written ``into`` memory for M stars, if any is given.
    """
    found = Star.empty(len(flux), origins) if into is None else into
    _fill_factors(
        np.ascontiguousarray(flux), np.ascontiguousarray(error), origins.level, origins.origin, origins.scale,
        (origins.inverse_variance, origins.slope, origins.clipping), origins.deviation,
        origins.clipped, _LOG_ERFCX, found.factors, found.own,
    )  # fmt: skip
    return found


def _fit_log_erfcx(degree: int = 24) -> FloatArray:
    """Return ln erfcx(z/√2) − ln t as a polynomial in 2t − 1, t = 1/(1 + z/3), highest power first; z ≥ 0.

    ``erfcx(y) = exp(y²) erfc(y)`` falls like 1/y, and so does t, so that what is left is smooth on all of t in (0, 1].
    Its error is below 1e-9.
    """
    points = chebyshev.chebpts1(degree + 1)
    t = (points + 1) / 2
    values = np.log(erfcx((3 / t - 3) / np.sqrt(2))) - np.log(t)
    series = 2 / (degree + 1) * (values @ chebyshev.chebvander(points, degree))
    series[0] /= 2
    return np.ascontiguousarray(chebyshev.cheb2poly(series)[::-1])


_LOG_ERFCX = _fit_log_erfcx()


@compiled(error_model="numpy")
def _fill_factors(
    flux: Any, error: Any, level: Any, origin: Any, scale: Any, of_stars: Any, mean_deviation: Any, clipped: Any,
    polynomial: Any, factors: Any, own: Any,
) -> None:  # fmt: skip
    """Fill the factors and own numbers of stars; all arithmetic is in float64."""
    inverse, slope, clipping = factors
    mean_inverse, mean_slope, mean_clipping = of_stars
    unit = 1.0 / scale
    at, value, logarithm = np.empty((3, len(clipped)))
    for i in range(flux.shape[0]):
        total = 0.0
        for first in range(0, flux.shape[1], 16):
            product = 1.0  # one logarithm for sixteen pixels; a ratio of errors is far from any limit
            for p in range(first, min(first + 16, flux.shape[1])):
                ratio = max(level * error[i, p] * unit[p], _LEAST_ERROR)
                weight = 1.0 / (ratio * ratio)
                shift = (max(flux[i, p], 0.0) - origin[p]) * unit[p]
                a, b = weight - 1.0, shift * weight
                total += mean_deviation[p] * b - 0.5 * shift * b
                product *= ratio
                inverse[i, p], slope[i, p] = a - mean_inverse[p], b - mean_slope[p]
            total -= np.log(product)
        for c in range(len(clipped)):
            p = clipped[c]
            ratio = max(level * error[i, p] / scale[p], _LEAST_ERROR)
            z = max(flux[i, p], 0.0) / (scale[p] * ratio)
            t = 1.0 / (1.0 + z / 3.0)
            # ln Φ(−z) + z²/2 = ln(erfcx(z/√2)/2); the own number holds −ln(s/D), which clipping takes back.
            at[c], value[c], logarithm[c] = 2.0 * t - 1.0, 0.0, np.log(0.5 * t * ratio)
        # Horner's rule for all pixels side by side: within one, every step waits for the one before.
        for coefficient in polynomial:
            for c in range(len(clipped)):
                value[c] = value[c] * at[c] + coefficient
        for c in range(len(clipped)):
            clipping[i, c] = value[c] + logarithm[c] - mean_clipping[c]
        own[i] = total


def measure_dense(observed: Observed, stars: Star, precision: str = "float32") -> FloatArray:
    """Return ln p of every spectrum under every star, shape (N, M), each row up to a number of its own.

    Products in ``float32`` are added up in float64, strip by strip. Where spectra have little noise their terms are
    large, and ``float64`` is needed throughout (:func:`product_error`).
    """
    found = np.broadcast_to(stars.own, (len(observed.square), len(stars.own))).copy()
    for of_spectra, of_stars in zip(observed.factors, stars.factors, strict=True):
        _add_product(found, of_spectra, of_stars.T, precision)
    return found


def _add_product(found: FloatArray, left: NDArray[Any], right: NDArray[Any], precision: str) -> None:
    product = np.empty(found.shape, precision)  # once: fresh memory for every strip costs a tenth
    for start in range(0, left.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        np.matmul(left[:, strip].astype(precision, copy=False), right[strip].astype(precision, copy=False), out=product)
        _add(found, product)


@compiled()
def _add(found: Any, product: Any) -> None:
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            found[i, j] += product[i, j]


def weigh_rounding(factors: Sequence[NDArray[np.float32]]) -> FloatArray:
    """Return the doubt (see :class:`Coefficients`) of N spectra or stars whose products are formed pixel by pixel."""
    doubt = np.zeros((len(factors[0]), 4))
    doubt[:, 3] = np.sqrt(_ROUNDING * sum(np.einsum("np,np->n", one, one, dtype=np.float64) for one in factors))
    return doubt


def measure_pairs(observed: Observed, stars: Star) -> FloatArray:
    """Return ln p of every spectrum under one star of its own, shape (N,), as :func:`measure_dense` and in float64."""
    found = stars.own.copy()
    for of_spectra, of_stars in zip(observed.factors, stars.factors, strict=True):
        found += np.einsum("np,np->n", of_spectra, of_stars, dtype=np.float64)
    return found


@dataclass(frozen=True, eq=False)
class Projection:
    """Directions in which the stars of a library differ, for each of the three factors.

    A factor of a star, weighted by how much spectra vary in each pixel, lies close to a space of few dimensions. The
    principal directions of a sample of stars span it, and the products are formed there.

    Attributes
    ----------
    to_stars, to_spectra
        For every factor the matrix that is multiplied with a star's and with a spectrum's, shapes (P, r + probes) and
        (P, r).
    spreads
        How much spectra vary in each pixel of every factor, shape (P,).
    """

    to_stars: tuple[NDArray[np.float32], ...]
    to_spectra: tuple[NDArray[np.float32], ...]
    spreads: tuple[FloatArray, ...]

    @classmethod
    def find(cls, observed: Observed, stars: Star, tolerance: float) -> Projection:
        """Choose the directions.

        Parameters
        ----------
        observed
            The spectra.
        stars
            A sample of the library.
        tolerance
            Standard deviation that leaving out the other directions may give to ln p.
        """

        def find(factors: tuple[NDArray[np.float32], NDArray[np.float32]]) -> tuple[Any, Any, FloatArray]:
            of_spectra, of_stars = factors
            spread = np.sqrt(np.mean(of_spectra.astype(np.float64) ** 2, axis=0))
            # Pixels that hardly vary get a little weight: another spectrum may.
            spread = np.maximum(spread, 1e-3 * spread.max(initial=0.0))
            directions = _principal_directions(of_stars * spread, tolerance)
            probes = np.random.default_rng(1).standard_normal((len(directions), _PROBES))
            for _ in range(2):  # once leaves rounding of the large directions
                probes -= directions @ (directions.T @ probes)
            beside = np.concatenate([directions, probes], axis=1)
            inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
            to_stars, to_spectra = spread[:, None] * beside, inverse[:, None] * directions
            return to_stars.astype(np.float32), to_spectra.astype(np.float32), spread

        # Two at a time: the two large factors take the same time, and each keeps all its rows in double precision.
        # One BLAS thread: the bits of a product may depend on their number.
        with ThreadPoolExecutor(2) as pool, one_blas_thread():
            found = list(pool.map(find, zip(observed.factors, stars.factors, strict=True)))
        return cls(*zip(*found, strict=True))

    def to_arrays(self) -> dict[str, Any]:
        """Return arrays for a file; :meth:`from_arrays` gives back the same numbers."""
        return {f"projection_{name}_{k}": one for name, own in vars(self).items() for k, one in enumerate(own)}

    @classmethod
    def from_arrays(cls, arrays: Any) -> Projection | None:
        """Return what :meth:`to_arrays` was called on; None where there was no projection."""
        if "projection_spreads_0" not in arrays:
            return None
        names = cls.__dataclass_fields__
        return cls(**{name: tuple(arrays[f"projection_{name}_{k}"] for k in range(3)) for name in names})

    @property
    def rank(self) -> int:
        """Directions of all factors together."""
        return sum(one.shape[1] for one in self.to_spectra)

    def project_spectra(self, observed: Observed) -> Coefficients:
        """Return the coefficients of N spectra."""
        found = _project(observed.factors, self.to_spectra, "float64")
        left = np.zeros((len(observed.square), 3))
        for k, (own, factor, spread) in enumerate(zip(found, observed.factors, self.spreads, strict=True)):
            scaled = np.divide(factor, spread, out=np.zeros(factor.shape), where=spread > 0)
            squares = np.einsum("np,np->n", scaled, scaled) - np.einsum("nr,nr->n", own, own)
            left[:, k] = np.sqrt(np.maximum(squares, 0) / max(1, len(spread) - own.shape[1]))
        return self._cut(found, left)

    def project_stars(self, stars: Star) -> Coefficients:
        """Return the coefficients of M stars."""
        both = _project(stars.factors, self.to_stars, "float32")
        found = [one[:, : own.shape[1]] for one, own in zip(both, self.to_spectra, strict=True)]
        probed = [one[:, own.shape[1] :] for one, own in zip(both, self.to_spectra, strict=True)]
        norms = [np.sqrt(np.einsum("nk,nk->n", one, one) / (_LUCK * _PROBES)) for one in probed]
        return self._cut(found, _SIGMAS * np.stack(norms, axis=1))

    def _cut(self, found: Sequence[FloatArray], left: FloatArray) -> Coefficients:
        large, small = (
            np.concatenate([one[:, part] for one in found], axis=1) for part in (slice(_LEADING), slice(_LEADING, None))
        )
        norm = np.sqrt(_ROUNDING * (np.einsum("nk,nk->n", large, large) + np.einsum("nk,nk->n", small, small)))
        return Coefficients(large, small.astype(np.float32), np.column_stack([left, norm]))


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Spectra or stars in the directions of a projection.

    Attributes
    ----------
    large
        In the first directions of every factor, where they are large and need double precision, shape (N, L).
    small
        In the others, shape (N, rank − L), float32.
    doubt
        What a pair may be off by, shape (N, 4), as :func:`bound_errors` puts it together: what is left out of each of
        the three factors, and rounding.
    """

    large: FloatArray
    small: NDArray[np.float32]
    doubt: FloatArray

    def rows(self, chosen: slice) -> Coefficients:
        """Return some of them."""
        return Coefficients(self.large[chosen], self.small[chosen], self.doubt[chosen])

    @classmethod
    def join(cls, parts: Sequence[Coefficients]) -> Coefficients:
        """Return those of all parts, one after the other."""
        return cls(*map(np.concatenate, zip(*(vars(one).values() for one in parts), strict=True)))

    def multiply(self, others: Coefficients) -> FloatArray:
        """Return the scalar products of all with all others, shape (N, M)."""
        return np.asarray(self.large @ others.large.T + self.small @ others.small.T)

    def multiply_pairs(self, others: Coefficients) -> FloatArray:
        """Return the scalar product of each with its own other, shape (N,)."""
        small = np.einsum("nk,nk->n", self.small, others.small, dtype=np.float64)
        return np.asarray(np.einsum("nk,nk->n", self.large, others.large) + small)


def bound_errors(of_spectra: FloatArray, of_stars: FloatArray) -> FloatArray:
    """Return a bound of the error of ln p for N pairs from the doubts of both, shape (N,)."""
    both = of_spectra * of_stars
    return np.asarray(np.sqrt((both[:, :3] ** 2).sum(axis=1)) + both[:, 3])


def _project(
    factors: Sequence[NDArray[np.float32]], matrices: Sequence[NDArray[np.float32]], precision: str
) -> list[FloatArray]:
    found = [np.zeros((len(factor), matrix.shape[1])) for factor, matrix in zip(factors, matrices, strict=True)]
    for own, factor, matrix in zip(found, factors, matrices, strict=True):
        _add_product(own, factor, matrix, precision)
    return found


def _principal_directions(rows: FloatArray, tolerance: float) -> FloatArray:
    """Return orthonormal directions (P, r) of rows (M, P).

    They leave a mean square of at most ``tolerance``², and of no single row much more: the residuals of the worst rows
    are made directions of their own, until none is left. The rows are overwritten.
    """
    if not rows.shape[1]:
        return np.zeros((0, 0))
    chosen = _leading_directions(rows, tolerance * np.sqrt(len(rows)))
    _take_away(rows, chosen)
    for _ in range(_EXTENSIONS):
        worst = rows[np.sqrt(np.einsum("np,np->n", rows, rows)) > _WORST * tolerance]
        if not len(worst) or chosen.shape[1] + 1 >= min(rows.shape):
            break
        added = _leading_directions(worst, _WORST * tolerance)
        chosen = np.linalg.qr(np.concatenate([chosen, added], axis=1))[0]
        _take_away(rows, chosen[:, -added.shape[1] :])
    return np.ascontiguousarray(chosen)


def _take_away(rows: FloatArray, directions: FloatArray) -> None:
    """Take what lies in some orthonormal directions (P, r) out of rows (M, P)."""
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        part -= (part @ directions) @ directions.T


def _leading_directions(rows: FloatArray, limit: float) -> FloatArray:
    """Return the principal directions (P, r) of rows (M, P) that leave residuals of ``limit`` in all, or less.

    The directions are sought within the image of a random matrix after one power iteration (Halko, Martinsson and Tropp
    2011, arXiv:0909.4061), which takes a tenth of the time of all eigenvectors. There are at most :data:`_MOST`.
    """
    size = min(_MOST, *rows.shape)
    image = np.random.default_rng(0).standard_normal((rows.shape[1], size))
    # Half the digits do where the image only has to turn towards the large directions.
    coarse = rows.astype(np.float32)
    for matrix in (coarse, coarse.T, rows):  # orthonormal again after each, or small directions drown in rounding
        image = np.linalg.qr((matrix @ image.astype(matrix.dtype)).astype(np.float64))[0]
    _, sizes, directions = np.linalg.svd(image.T @ rows, full_matrices=False)
    energies = sizes**2
    left = max(float(np.vdot(rows, rows) - energies.sum()), 0.0) + np.cumsum(energies[::-1])[::-1]
    # Below this, sizes are rounding: the factors have seven digits.
    rank = max(1, min(int((left > limit**2).sum()), int((sizes > 1e-8 * sizes[0]).sum())))
    return np.asarray(directions[:rank].T)
