"""The directions in which mean noisy spectra differ: how a basis is chosen from a sample, judged, and extended.

A sample is a few thousand spectra. Some of them choose the directions, and all others judge: spectra judge too well
what they have chosen themselves. With 2048 spectra of 1024 pixels they saw a sixth of what was lost.

What is lost lies in few spectra, for instance in those of the coolest stars with the most metals. A direction that the
sample knows from one spectrum comes late among the leading ones, or never. So the last directions of a basis are those
of the judging spectra that the others say least about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, qr, svd

from pipeline.base import available_cores, one_blas_thread
from pipeline.errors import InputError

__all__ = [
    "MOST_DIRECTIONS",
    "Basis",
    "Sample",
    "choose_basis",
    "extend_basis",
    "find_class_edges",
    "sum_squares",
]

T = TypeVar("T")
FloatArray = NDArray[np.float64]
#: A basis that is chosen has no larger rank; so many directions are tried first, which cost less.
MOST_DIRECTIONS, _TRIED_FIRST = 512, 320
#: Ranks are multiples of this, which products like. As many directions may come from the worst judging spectra.
_STEP = 16
#: Sampled spectra that choose the directions, at most, and their share in small samples.
_MOST_CHOOSING, _CHOOSING = 2048, 2 / 3
#: The share of the tolerance that a sample may use up: a second pass costs more than some directions.
_MARGIN = 0.7
#: Groups of fewer judging spectra are judged together: a few spectra say little.
_FEWEST_IN_GROUP = 16
#: Eigenvalues of the sample, as a share of the largest, below which a direction is rounding.
_ROUNDING = 1e-15
#: Multiplications by the Gram matrix of the sample that turn spectra into its leading eigenvectors.
_TURNS = 3
#: Spectra that are judged, or multiplied, by one thread at once: their residuals stay small.
_BLOCK_ROWS = 512
#: Threads at most: each has some blocks of its own.
_MOST_THREADS = 4


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
class Sample:
    """N training spectra of P pixels, whose noise is integrated out.

    Attributes
    ----------
    means
        ``m − o``, shape (N, P), flux units.
    groups
        Which of G groups each spectrum belongs to: noise level and cell, shape (N,).
    noise
        Σv of every group, shape (G, P), flux², float64.
    errors
        The 1σ errors of some of the spectra, which classes of like noise come from, shape (M, P).
    """

    means: NDArray[Any]
    groups: NDArray[np.int64]
    noise: FloatArray
    errors: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0)))


def choose_basis(
    sample: Sample, x_origin: FloatArray, tolerance: float, largest: int, rank: int | None = None
) -> tuple[Basis, float]:
    """Return the smallest basis that loses less than most of the tolerance in every group of a sample.

    The directions are the leading eigenvectors of the whitened sample, and then those of the spectra that these say
    least about. All of it is in float64: in single precision the basis would end at 1e-7 of the largest eigenvalue.

    Parameters
    ----------
    sample
        Spread over all training spectra and all noise levels.
    x_origin
        o, shape (P,).
    tolerance
        Of R², see :attr:`pipeline.moments.FactoredMoments.lost`.
    largest
        The largest rank to be considered.
    rank
        A rank to use instead, at most P: leading eigenvectors alone.

    Returns
    -------
    Basis
        Of the largest rank, if none loses as little as is asked.
    float
        The largest loss of any group, by the judging spectra.

    Raises
    ------
    InputError
        If there are no spectra, or they do not differ.
    """
    n = len(sample.means)
    variance = sample.noise.sum(axis=0) / max(1, n)
    # A pixel without noise must be kept whole: it gets a weight beyond all others.
    positive = variance[variance > 0]
    if not positive.size:
        raise InputError("moments can only be factored where there is noise; use compute.moments: dense")
    variance = np.where(variance > 0, variance, positive.min() * 1e-6)
    n_choosing = min(_MOST_CHOOSING, int(np.ceil(n * _CHOOSING)))
    judges = np.ones(n, dtype=bool)
    # As many of every group as it has: what is spread over rows alone may miss a noise level.
    judges[np.argsort(sample.groups, kind="stable")[np.arange(n_choosing) * n // n_choosing]] = False
    with one_blas_thread():
        white = sample.means[~judges] / np.sqrt(variance)
        judge = _Judge(sample, judges if judges.any() else ~judges)  # one spectrum judges itself
        most = min(largest, MOST_DIRECTIONS, *white.shape)
        for n_tried in sorted({min(_TRIED_FIRST if rank is None else most, most), most}):
            found = _find_directions(white, n_tried)
            if rank is not None and rank > found.shape[1]:
                # It needs directions in which the sample does not differ: any will do.
                found, _ = np.linalg.qr(found, mode="complete")
            whole = Basis(np.asarray(x_origin, dtype=np.float64), variance, np.ascontiguousarray(found))
            if rank is not None:
                basis = whole.leading(min(rank, whole.rank))
                return basis, judge.bound(basis)
            basis, lost = judge.find_smallest(whole, tolerance * _MARGIN)
            if lost <= tolerance * _MARGIN:
                break
        return basis, lost


def _find_directions(white: FloatArray, n: int) -> FloatArray:
    """Return the n leading right singular vectors of whitened spectra (N, P), or fewer, shape (P, n).

    They come from the Gram matrix of the rows. Where few of its eigenvectors are wanted, block power iteration finds
    them in a third of the time. It starts from spectra, so nothing is drawn.
    """
    products = _multiply_rows(white)
    size = len(products)
    if 3 * n > size:
        values, own = eigh(products, lower=True, overwrite_a=True, subset_by_index=(size - n, size - 1))
    else:
        block = products[:, :: size // (n + _STEP)]
        for _ in range(_TURNS):
            block, _ = qr(_multiply(products, block), mode="economic", overwrite_a=True, check_finite=False)
        values, turn = eigh(block.T @ _multiply(products, block))
        values, own = values[-n:], block @ turn[:, -n:]
    kept = np.flatnonzero(values > values[-1] * _ROUNDING)[::-1]
    if not kept.size or not values[-1] > 0:
        raise InputError("moments cannot be factored: all sampled spectra are equal; use compute.moments: dense")
    spanned = _multiply(white.T, own[:, kept] / np.sqrt(values[kept]))
    found, _ = qr(spanned, mode="economic", overwrite_a=True, check_finite=False)
    return np.asarray(found)


def _multiply(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return a product of matrices, made of the same blocks of rows on any number of cores: it has the same bits."""
    return np.concatenate(list(_map_blocks(lambda start, stop: left[start:stop] @ right, len(left))))


def _multiply_rows(rows: FloatArray) -> FloatArray:
    """Return the Gram matrix of rows (N, P), shape (N, N).

    It is made of the same blocks on any number of cores, so it has the same bits. BLAS' own symmetric product would
    hold Python's lock, and one thread.
    """
    products = np.zeros((len(rows), len(rows)))

    def fill(start: int, stop: int) -> None:
        products[start:stop, :stop] = rows[start:stop] @ rows[:stop].T

    for _ in _map_blocks(fill, len(rows)):
        pass
    products = np.tril(products)
    products += np.tril(products, -1).T
    return products


def _map_blocks(work: Callable[[int, int], T], n: int) -> Iterator[T]:
    """Yield what a function of (start, stop) returns for every block of n rows, in their order; threads compute it."""
    starts = range(0, n, _BLOCK_ROWS)
    with ThreadPoolExecutor(max(1, min(len(starts), available_cores(), _MOST_THREADS)), "basis") as threads:
        yield from threads.map(lambda start: work(start, min(start + _BLOCK_ROWS, n)), starts)


class _Judge:
    """Sampled spectra that took no part in the choice of directions: what bases of them lose.

    Parameters
    ----------
    sample
        All spectra.
    judges
        Which of them judge, shape (N,), at least one.
    """

    def __init__(self, sample: Sample, judges: NDArray[np.bool_]) -> None:
        self._sample, self._places = sample, np.flatnonzero(judges)
        n_judges = np.bincount(sample.groups[judges], minlength=len(sample.noise))
        is_small = n_judges < _FEWEST_IN_GROUP
        place = np.where(is_small, np.count_nonzero(~is_small), np.cumsum(~is_small) - 1)
        of_all = place[sample.groups]
        self._groups, self._n_groups = of_all[judges], int(place.max()) + 1
        self._noise = np.zeros((self._n_groups, sample.noise.shape[1]))
        np.add.at(self._noise, place, sample.noise)
        # Each judge stands for several spectra of its group.
        n_own = np.bincount(self._groups, minlength=self._n_groups)
        self._times = np.bincount(of_all, minlength=self._n_groups) / np.maximum(n_own, 1)

    def bound(self, basis: Basis) -> float:
        """Return the largest loss of any group."""
        squares, dtype = np.zeros_like(self._noise), self._sample.means.dtype
        projection, back = basis.projection.astype(dtype), np.ascontiguousarray(basis.vectors.T.astype(dtype))

        def measure(start: int, stop: int) -> tuple[NDArray[np.int64], FloatArray]:
            means, groups = self._read(start, stop), self._groups[start:stop]
            left = means - (means @ projection) @ back
            np.square(left, out=left)
            present = np.unique(groups)
            sums = [left[groups == k].sum(axis=0, dtype=np.float64) for k in present]
            return present, np.reshape(sums, (len(present), -1))

        for present, sums in _map_blocks(measure, len(self._groups)):
            squares[present] += sums
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.nansum(squares / self._noise * self._times[:, None], axis=1).max())

    def find_smallest(self, whole: Basis, limit: float) -> tuple[Basis, float]:
        """Return the smallest basis that loses no more than a limit, and what it loses; the largest, if none does.

        It takes some leading directions of the given ones, and may take others from judges.
        """
        sizes = [*range(_STEP, whole.rank, _STEP), whole.rank]
        losses = self._weigh(whole, sizes)
        # A judge that is spanned cannot tell whether others like it are, so they may be few.
        n_worst = min(_STEP, len(losses) // (4 * _STEP))
        plain = self._sum_groups(losses)
        order = np.argsort(-losses, axis=0, kind="stable")[:n_worst]
        np.put_along_axis(losses, order, 0.0, axis=0)
        spared = np.concatenate([[np.inf], self._sum_groups(losses)[:-1]])
        # The losses so far are estimates, and rather high. The bound itself costs more.
        hopeful = np.flatnonzero(np.minimum(plain, spared) <= limit)
        first = int(hopeful[0]) if hopeful.size else len(sizes) - 1
        for k in range(max(0, first - 1), len(sizes)):
            basis = whole.leading(sizes[k])
            if n_worst and spared[k] < plain[k]:
                rows = self._places[np.sort(order[:, k - 1])]
                basis = extend_basis(whole.leading(sizes[k - 1]), self._sample.means[rows])
            lost = self.bound(basis)
            if lost <= limit:
                break
        return basis, lost

    def _weigh(self, whole: Basis, sizes: list[int]) -> FloatArray:
        """Return how much every judge adds to the loss of its group, by the number of leading directions.

        It holds the mean noise of the group against the energy that is left: near enough to choose a rank by.
        """
        dtype, shrink = self._sample.means.dtype, 1 / np.sqrt(whole.variance)
        projection, back = whole.projection.astype(dtype), whole.vectors.T.astype(dtype)

        def measure(start: int, stop: int) -> FloatArray:
            means = self._read(start, stop)
            z = means @ projection
            rest = np.empty(len(means))
            sum_squares(means - z @ back, shrink, rest)
            # Of single directions, from the last to the first: sums of squares, so nothing cancels.
            further = np.cumsum(np.square(z, dtype=np.float64)[:, ::-1], axis=1)[:, ::-1]
            further = np.column_stack([further, np.zeros(len(z))])
            return np.asarray(rest[:, None] + further[:, sizes])

        left = np.concatenate(list(_map_blocks(measure, len(self._groups))))
        ratios = np.divide(whole.variance, self._noise, out=np.zeros_like(self._noise), where=self._noise > 0)
        weights = self._times * ratios.mean(axis=1)
        return np.asarray(left * weights[self._groups, None])

    def _sum_groups(self, losses: FloatArray) -> FloatArray:
        """Return the largest sum of any group, for every number of directions."""
        sums = np.zeros((self._n_groups, losses.shape[1]))
        np.add.at(sums, self._groups, losses)
        return np.asarray(sums.max(axis=0))

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the means of some judges, by their places among all judges."""
        return self._sample.means[self._places[start:stop]]


def find_class_edges(errors: NDArray[Any], basis: Basis, n_classes: int) -> FloatArray:
    """Return the edges that divide sampled spectra, by the energy of their errors (N, P), into classes of equal size.

    Whitened by v̄ the energies weigh pixels as the basis does. Their order is the same at every noise level. Fewer
    classes are found where spectra have equal errors.
    """
    energies = np.empty(len(errors))
    sum_squares(errors, 1 / np.sqrt(basis.variance), energies)
    edges = np.unique(np.quantile(energies, np.arange(1, n_classes) / n_classes))
    return np.asarray(edges[(edges > energies.min()) & np.isfinite(edges)])


def extend_basis(basis: Basis, rows: NDArray[Any]) -> Basis:
    """Return a basis that also spans some spectra ``m − o`` (N, P), flux units; those that it spans add nothing."""
    white = np.asarray(rows, dtype=np.float64) / np.sqrt(basis.variance)
    sizes = np.linalg.norm(white, axis=1)
    for _ in range(2):  # once leaves rounding errors that grow
        white = white - (white @ basis.directions) @ basis.directions.T
    left, values, _ = svd(white.T, full_matrices=False)
    new = left[:, values > 1e-9 * sizes.max(initial=0.0)]
    return replace(basis, directions=np.ascontiguousarray(np.column_stack([basis.directions, new])))
