"""Whether test spectra are like the training spectra: models say nothing about spectra of another kind."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from pipeline.base import available_cores, one_blas_thread
from pipeline.noise import Noise
from pipeline.store import AnyStore, sample_rows

__all__ = ["Comparison", "Likeness", "TrainingProfile", "measure_training"]

FloatArray = NDArray[np.float64]
#: Training spectra that stand for all of them, and how many of them follow each other: reading them takes a moment.
_SAMPLE, _RUN_ROWS = 1024, 64
_COMPONENTS = 10
#: A spectrum is unlike the training spectra if it is this many times as far out as the farthest of the sample.
_FAR = 2.0
#: A pixel is unlike if its mean is off by more standard deviations than this, or its variance by a larger factor.
#: Test sets of other labels and magnitudes stay within; another unit, another calibration or spikes do not.
_MEAN_OFF, _VARIANCE_OFF = 1.0, 8.0
#: What the scatter of a small test set may add, in standard errors.
_SIGMAS = 6.0


@dataclass(frozen=True)
class Likeness:
    """How many test spectra and pixels are unlike those of the training spectra.

    Attributes
    ----------
    n_test, n_pixels
        How many there are.
    rows
        Test spectra that lie far outside the training spectra.
    pixels
        Pixels whose mean or variance over the test spectra is not that of the training spectra.
    """

    n_test: int
    n_pixels: int
    rows: tuple[int, ...]
    pixels: tuple[int, ...]

    @property
    def is_alike(self) -> bool:
        """Whether models of the training spectra can be judged on the test spectra.

        A hundredth of the spectra may be unlike: real sets have their odd stars. A pixel that is unlike shows spectra
        that decide R² by themselves, so there may be none.
        """
        return len(self.rows) <= self.n_test // 100 and not self.pixels


@dataclass(frozen=True, eq=False)
class TrainingProfile:
    """What noisy training spectra look like, for P pixels and C principal components, from a sample of them.

    Attributes
    ----------
    mean, variance
        Of every pixel, shape (P,), flux units and their square. Means over the noise include its variance.
    vectors
        Orthonormal directions in which the sample differs most, shape (P, C).
    spread
        Standard deviations of the sample along them, shape (C,), flux units.
    farthest
        The largest distance in the sample, see :meth:`distances`.
    size
        Spectra in the sample.
    """

    mean: FloatArray
    variance: FloatArray
    vectors: FloatArray
    spread: FloatArray
    farthest: float
    size: int

    def distances(self, rows: NDArray[np.floating]) -> FloatArray:
        """Return how far spectra (N, P) are from the mean spectrum, in standard deviations, shape (N,).

        This is the Mahalanobis distance within the principal components.
        """
        return np.asarray(np.sqrt((((rows - self.mean) @ self.vectors / self.spread) ** 2).sum(axis=1)))


class Comparison:
    """Test spectra held against a profile, block by block as they are read.

    With a sample of n training spectra and N test spectra, a pixel's mean may differ by ``(1 + 6√(1/n + 1/N)) σ``, and
    its variance by a factor of ``8 (1 + 6√(2/n + 2/N))`` either way, where σ² is the variance over the sample.
    """

    def __init__(self, profile: TrainingProfile) -> None:
        self._profile = profile
        self._n = 0
        self._sum, self._squares = np.zeros_like(profile.mean), np.zeros_like(profile.mean)
        self._rows: list[int] = []

    def add(self, rows: NDArray[np.floating], spread: FloatArray | None) -> None:
        """Add the next test spectra (N, P), or their means over the noise with variances."""
        profile = self._profile
        centred = rows - profile.mean
        self._sum += centred.sum(axis=0)
        self._squares += np.einsum("np,np->p", centred, centred) + (0.0 if spread is None else spread.sum(axis=0))
        far = ~(profile.distances(rows) <= _FAR * profile.farthest)
        self._rows += (self._n + np.flatnonzero(far)).tolist()
        self._n += len(rows)

    def finish(self) -> Likeness:
        """Return what was found."""
        profile, n = self._profile, self._n
        offset = self._sum / n
        variance = self._squares / n - offset**2
        slack = _SIGMAS * math.sqrt(1 / profile.size + 1 / n)
        factor = _VARIANCE_OFF * (1 + math.sqrt(2) * slack)
        alike = np.abs(offset) <= (_MEAN_OFF + slack) * np.sqrt(profile.variance)
        alike &= (variance <= factor * profile.variance) & (variance * factor >= profile.variance)
        # A pixel that never varies in the sample tells nothing.
        alike |= profile.variance == 0
        return Likeness(n, len(alike), tuple(self._rows), tuple(np.flatnonzero(~alike).tolist()))


def measure_training(store: AnyStore, noise: Noise, precision: str) -> TrainingProfile:
    """Return what training spectra look like under a noise, from about a thousand that are spread over all shards.

    Parameters
    ----------
    store
        The training spectra.
    noise
        As the test spectra have it: one draw, or means over all draws.
    precision
        See :meth:`pipeline.noise.Noise.read`.
    """
    ranges = sample_rows(store, _SAMPLE, _RUN_ROWS)
    ends = np.cumsum([stop - start for start, stop in ranges])
    rows = np.empty((int(ends[-1]), store.n_pixels))

    def read(own: tuple[int, int], end: int) -> FloatArray | float:
        """Fill the places of some spectra; return the sums of their variances."""
        found, spread = noise.read(store, *own, precision)
        rows[end - len(found) : end] = found
        return 0.0 if spread is None else spread.sum(axis=0)

    # Most of the time goes into decoding chunks; threads do it side by side.
    with ThreadPoolExecutor(available_cores(), "likeness") as threads:
        spread = sum(threads.map(read, ranges, ends.tolist()))
    mean = rows.mean(axis=0)
    rows -= mean
    variance = (np.einsum("np,np->p", rows, rows) + spread) / len(rows)
    # The bits of a decomposition depend on the number of threads.
    with one_blas_thread():
        # The smaller of the two products has the same eigenvalues.
        by_rows = len(rows) <= rows.shape[1]
        gram = rows @ rows.T if by_rows else rows.T @ rows
        values, own = eigh(gram, subset_by_index=(max(0, len(gram) - _COMPONENTS), len(gram) - 1))
        kept = values > values[-1] * 1e-10
        vectors = rows.T @ (own[:, kept] / np.sqrt(values[kept])) if by_rows else own[:, kept]
    profile = TrainingProfile(mean, variance, vectors, np.sqrt(values[kept] / len(rows)), farthest=0.0, size=len(rows))
    return replace(profile, farthest=float(profile.distances(rows + mean).max(initial=0.0)))
