"""Noise integrated out: mean and variance of every noisy pixel in closed form, and the kernel of the hot loop.

A noisy pixel is ``x = max(f + s·ε, 0)`` with ``f = max(flux, 0)``, ``s = level·error`` and ε ~ N(0, 1), independent
per pixel. With ``z = f/s``, and Φ and φ the distribution and density of the standard normal::

    m = E[x] = fΦ(z) + sφ(z)      E[x²] = (f² + s²)Φ(z) + f s φ(z)      v = E[x²] − m²      E[xxᵀ] = mmᵀ + diag(v)

so the moments of infinitely many noisy copies of a spectrum are those of one row m, with v on the Gram matrix'
diagonal. Written as differences those forms cancel where z is large; written as corrections they do not::

    m = f + s·g(z)       g(z) = φ(z) − zQ(z)            Q(z) = Φ(−z)
    v = s²·(1 + h(z))    h(z) = −(Q(z) + g(z)·(z + g(z)))

g falls from 0.399 and h rises from −0.659 to 0: beyond z = 5.3 both are below 2e-7, beyond z = 8.5 below 1e-16, and
there the kernel takes them as 0. Up to there each is one polynomial: unlike tables or ``erfc`` that is additions and
multiplications alone, which the compiler runs on vector registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import numba
import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from pipeline.noise.draws import NoiseDraw, compiled
from pipeline.noise.model import NO_SEED, FaintPixels, Kernel, Noise, Scatter, SpectraRows, require_level
from pipeline.schema import STREAM_TRAIN

__all__ = ["Corrections", "MarginalNoise", "correction_polynomials", "marginal_moments", "scatter_marginal"]

#: Recorded with every result; changes with the polynomials below.
MARGINAL_ALGORITHM = "closed-form/chebyshev-16-44"

FloatArray = NDArray[np.float64]
#: Reach and degree of the polynomials: a multiple of 4, as many steps as the kernel takes at a time. Their errors,
#: and those of ending at the reach, stay below 5e-7 and 5e-14.
_POLYNOMIALS = {"float32": (5.3, 16), "float64": (8.5, 44)}
#: Pixels that the kernel takes at a time: their intermediate results stay in the processor's first cache.
_STRIP = 128
#: Pixels that are searched for faint ones at a time: most strips of bright stars have none.
_SEARCH = 64
#: Rows that are looked at before all are searched.
_FIRST_LOOK = 32

#: Of one precision: the smallest normal number, the reach, and the coefficients of g and of h in ``2z/reach − 1``,
#: highest power first.
Corrections = tuple[np.floating[Any], np.floating[Any], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class MarginalNoise(Noise):
    """Noise of ``level`` × 1σ integrated out: the expectation over all draws, so there is no seed.

    ``algorithm`` is part of what is recorded with the moments: another one is another computation.
    """

    kind: ClassVar[str] = "marginal"
    is_single: ClassVar[bool] = False
    words: ClassVar[str] = (
        "squared errors are expectations over all draws of the test spectra's noise, in closed form: R² "
        "and ΔR² are those of infinitely many noisy copies of every test spectrum. Predictions that are shown are "
        "means over the noise, and mean absolute errors have no such form."
    )
    training_words: ClassVar[str] = "integrated over all draws"
    seed = NO_SEED

    level: float
    algorithm: str = MARGINAL_ALGORITHM

    def __post_init__(self) -> None:
        require_level(self.level)

    @property
    def name(self) -> str:
        """A short name that is safe in paths."""
        return f"marginal_noise-{self.level!r}"

    def apply(self, flux: NDArray[Any], error: NDArray[Any], start: int) -> NDArray[Any]:
        """Return the means of all pixels (N, P), in float64."""
        return marginal_moments(flux, error, self.level)[0]

    def read(
        self, store: SpectraRows, start: int, stop: int, precision: str = "float64"
    ) -> tuple[FloatArray, FloatArray]:
        """Read means and variances of all pixels, in float64 whatever the precision; see :meth:`Noise.read`.

        The kernel of the hot loop finds them, in a seventh of the time of :func:`marginal_moments`.
        """
        flux, error = store.read_rows("flux", start, stop), store.read_rows("error", start, stop)
        means, variances, rows = np.empty((1, *flux.shape)), np.zeros(flux.shape), np.arange(len(flux))
        # All rows lie in one buffer, and each has variances of its own.
        scatter = Scatter(
            flux, error, start, origin=np.zeros(flux.shape[1]), targets=np.zeros_like(rows), slots=rows, pool=means,
            variances=variances, groups=rows,
        )  # fmt: skip
        for part in self.kernel(means.dtype).split(scatter, 1):
            part()
        return means[0], variances

    def kernel(self, dtype: np.dtype[Any]) -> _MarginalKernel:
        """Return the kernel that writes means and sums up variances."""
        return _MarginalKernel(self, dtype)

    def drawn(self, seed: int) -> NoiseDraw:
        """Return a draw of training spectra at this level."""
        return NoiseDraw(self.level, seed, STREAM_TRAIN)

    @classmethod
    def for_training(cls, level: float, seeds: Sequence[int]) -> list[Noise]:
        """Return one noise: no seed changes it."""
        return [cls(level)]

    @classmethod
    def for_tests(cls, training: Noise, seeds: Sequence[int], has_noisy: bool) -> list[Noise]:
        """Return one noise: no seed changes it."""
        return [cls(training.level)]


def marginal_moments(flux: ArrayLike, error: ArrayLike, level: float) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance of every pixel over all draws of noise, clipping included.

    The reference of this module, in float64 and without cancellation: ``E[x]`` and ``Var[x]`` of
    ``x = max(max(flux, 0) + level·error·ε, 0)``, right to a few units in the last place of ``s`` and ``s²``. Clipping
    makes the mean larger than the flux, and the variance smaller than ``s²``.

    Parameters
    ----------
    flux, error
        Clean flux and its 1σ error, any shapes that broadcast; flux units.
    level
        Noise in units of the error; 0 gives ``m = max(flux, 0)`` and ``v = 0`` exactly.

    Returns
    -------
    m
        Means, flux units.
    v
        Variances, flux².
    """
    clean, sigma = np.maximum(np.asarray(flux, np.float64), 0), np.abs(level * np.asarray(error, np.float64))
    f, s = np.broadcast_arrays(clean, sigma)
    # A ratio too large for a float is as good as infinite: there the corrections are 0.
    with np.errstate(over="ignore"):
        z = np.divide(f, s, out=np.full(f.shape, np.inf), where=s > 0)
    g, h = _corrections(z)
    return f + s * g, s * s * (1 + h)


def _corrections(z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return g(z) and h(z) for z >= 0; 0 at infinity."""
    near = np.minimum(z, 40.0)  # beyond, both are 0 in float64
    tail = ndtr(-near)
    g = np.exp(-(near**2) / 2) / np.sqrt(2 * np.pi) - near * tail
    return g, -(tail + g * (near + g))


@cache
def correction_polynomials(dtype: str) -> Corrections:
    """Return the polynomials of g and h for ``float32`` or ``float64``, interpolated at Chebyshev's points."""
    reach, degree = _POLYNOMIALS[dtype]
    number = np.dtype(dtype).type

    points = chebyshev.chebpts1(degree + 1)

    def coefficients(values: FloatArray) -> NDArray[Any]:
        series = 2 / (degree + 1) * (values @ chebyshev.chebvander(points, degree))
        series[0] /= 2
        return chebyshev.cheb2poly(series)[::-1].astype(dtype)

    of_mean, of_variance = _corrections((points + 1) * reach / 2)
    return number(np.finfo(dtype).tiny), number(reach), coefficients(of_mean), coefficients(of_variance)


class _MarginalKernel(Kernel):
    """Writes means in the hot loop; threads share the pixels of the spectra (see :func:`scatter_marginal`)."""

    has_variances = True

    def __init__(self, noise: MarginalNoise, dtype: np.dtype[Any]) -> None:
        self._level, self._corrections = dtype.type(noise.level), correction_polynomials(dtype.name)

    def split(self, scatter: Scatter, n_parts: int) -> Sequence[Callable[[], None]]:
        n_pixels = scatter.flux.shape[1]
        # Whole strips: how a pixel is computed depends on those beside it.
        size = -(-n_pixels // (n_parts * _STRIP)) * _STRIP
        starts = range(0, n_pixels, size)
        return [self._part(scatter, a, min(a + size, n_pixels)) for a in starts]

    def find_faint(self, flux: NDArray[Any], error: NDArray[Any], found: FaintPixels, most: int) -> bool:
        return bool(
            list_faint(
                flux, error, self._level, self._corrections, found.starts, found.pixels, found.mean, found.variance,
                most,
            )
        )  # fmt: skip

    def _part(self, scatter: Scatter, begin: int, end: int) -> Callable[[], None]:
        groups = scatter.targets if scatter.groups is None else scatter.groups
        return partial(
            scatter_marginal, scatter.flux, scatter.error, self._level, self._corrections, begin, end,
            scatter.origin, scatter.targets, scatter.slots, scatter.pool, scatter.variances, groups,
        )  # fmt: skip


@compiled(error_model="numpy", fastmath={"contract"})
def scatter_marginal(
    flux: Any, error: Any, level: Any, corrections: Any, begin: Any, end: Any, origin: Any, targets: Any, slots: Any,
    pool: Any, variances: Any, groups: Any,
) -> None:  # fmt: skip
    """Write ``m − o`` of every row to its place in its buffer, and add ``v`` to the variances of its group.

    Parameters
    ----------
    flux, error
        Rows of pixels, (N, P), float32.
    level
        The noise level; its type decides the precision of everything but the sums of v.
    corrections
        :func:`correction_polynomials` of that precision.
    begin, end
        The pixels to do, from a multiple of :data:`_STRIP` to another one or to the last pixel. Threads may share the
        pixels of a spectrum, but not the spectra of a group: a pixel's variances are added row by row, so that their
        bits depend on the rows alone.
    origin
        Shape (P,).
    targets, slots
        Buffer and row in it, of each spectrum, (N,).
    pool
        The buffers, (buffers, rows, >= P).
    variances
        Sums of v, (groups, P), float64.
    groups
        Group of each spectrum, (N,).
    """
    _, reach, _, _ = corrections
    zero = level * 0
    clean, sigma, u, near, g, h = np.empty((6, _STRIP), pool.dtype)
    for r in range(flux.shape[0]):
        f, e, row, sums = flux[r], error[r], pool[targets[r], slots[r]], variances[groups[r]]
        for start in range(begin, end, _STRIP):
            # No slices of strips, each of which would take as long as a strip; and what has no sign needs no look
            # whether it counts from the end.
            first, n = np.uint64(start), np.uint64(min(start + _STRIP, end) - start)
            n_near = 0
            for p in range(n):
                n_near += f[first + p] < reach * abs(level * e[first + p])
            if n_near == 0:
                for p in range(n):
                    s = level * e[first + p]
                    row[first + p] = (f[first + p] if f[first + p] > 0 else zero) - origin[first + p]
                    sums[first + p] += s * s
                continue
            for p in range(n):
                clean[p] = f[first + p] if f[first + p] > 0 else zero
                sigma[p] = abs(level * e[first + p])
            _evaluate_corrections(clean, sigma, corrections, n, u, near, g, h)
            for p in range(n):
                row[first + p] = clean[p] + sigma[p] * g[p] - origin[first + p]
                sums[first + p] += sigma[p] * sigma[p] * (1 + h[p])


@compiled(error_model="numpy", fastmath={"contract"})
def list_faint(
    flux: Any, error: Any, level: Any, corrections: Any, starts: Any, pixels: Any, mean: Any, variance: Any, most: Any
) -> Any:
    """List the pixels whose corrections are not 0, with ``s·g`` and ``s²·h``, unless there are more than ``most``.

    Some of the rows are looked at first. If they have more than twice as many as their share, the search ends there.

    Parameters
    ----------
    flux, error
        Rows of pixels, (N, P), float32.
    level, corrections
        See :func:`scatter_marginal`.
    starts, pixels, mean, variance
        The memory of :class:`~pipeline.noise.FaintPixels`, of N + 1 and of at least ``most`` numbers.
    most
        How many pixels may be listed.

    Returns
    -------
    bool
        Whether all are listed.
    """
    reach, zero, (n_rows, n_pixels), n = corrections[1], level * 0, flux.shape, 0
    step = max(1, n_rows // _FIRST_LOOK)
    for r in range(0, n_rows, step):
        f_part, e_part = flux[r], error[r]
        for p in range(n_pixels):
            n += f_part[p] < reach * abs(level * e_part[p])
    if n * step > 2 * most:
        return False
    starts[0] = n = 0
    scratch = np.empty((6, n_pixels), mean.dtype)
    for r in range(n_rows):
        begin = n
        for first in range(0, n_pixels, _SEARCH):
            last = min(first + _SEARCH, n_pixels)
            n_near = 0
            f_part, e_part = flux[r, first:last], error[r, first:last]
            for p in range(last - first):
                n_near += f_part[p] < reach * abs(level * e_part[p])
            if n_near == 0:
                continue
            if n + n_near > most:
                return False
            for p in range(last - first):
                if f_part[p] < reach * abs(level * e_part[p]):
                    pixels[n] = first + p
                    n += 1
        starts[r + 1] = n
        clean, sigma, u, near, g, h = scratch[:, : n - begin]
        for k in range(n - begin):
            p = pixels[begin + k]
            clean[k] = flux[r, p] if flux[r, p] > 0 else zero
            sigma[k] = abs(level * error[r, p])
        _evaluate_corrections(clean, sigma, corrections, n - begin, u, near, g, h)
        for k in range(n - begin):
            mean[begin + k] = sigma[k] * g[k]
            variance[begin + k] = sigma[k] * sigma[k] * h[k]
    return True


@numba.njit(inline="always")
def _evaluate_corrections(clean: Any, sigma: Any, corrections: Any, n: Any, u: Any, near: Any, g: Any, h: Any) -> None:
    """Fill the first ``n`` of ``g`` and ``h``, 0 beyond the polynomials' reach; ``u`` and ``near`` are scratch."""
    smallest, reach, of_mean, of_variance = corrections
    zero = reach * 0
    one, scale = zero + 1, 2 / reach
    for p in range(n):
        # Where sigma is 0, g and h are finite and of no consequence: both come to be multiplied by it.
        z = clean[p] / (sigma[p] + smallest)
        near[p] = one if z < reach else zero
        u[p] = (z if z < reach else reach) * scale - one
        g[p], h[p] = of_mean[0], of_variance[0]
    # Horner's rule, four steps at a time: more would go into loading and storing.
    for k in range(1, len(of_mean), 4):
        a, b, c, d = of_mean[k], of_mean[k + 1], of_mean[k + 2], of_mean[k + 3]
        q, r, s, t = of_variance[k], of_variance[k + 1], of_variance[k + 2], of_variance[k + 3]
        for p in range(n):
            g[p] = (((g[p] * u[p] + a) * u[p] + b) * u[p] + c) * u[p] + d
            h[p] = (((h[p] * u[p] + q) * u[p] + r) * u[p] + s) * u[p] + t
    for p in range(n):
        g[p] *= near[p]
        h[p] *= near[p]
