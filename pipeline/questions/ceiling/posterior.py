"""What a library says of spectra: posterior means of labels, probabilities of cells, and how far to trust them.

With the stars of a library as prior, the weight of star i for a spectrum is ``w = p(x|i)^(1/τ)``. At τ = 1 the weights
are those of Bayes' theorem. A temperature τ > 1 flattens them. The posterior mean of a label is ``Σ w y / Σ w``, the
probability of a cell ``Σ w 1[cell] / Σ w``, and the effective size of the library is ``(Σ w)² / Σ w²``.

All of these are sums over stars, so they are kept as sums for each spectrum (:class:`Sums`), beside the largest ln p so
far. Sums of two parts of a library are brought to the larger of the two and added, as moments are. The sums of a
spectrum are kept apart by *groups* of the library, so that a quarter and a half of it can be looked at alone, and by
*kinds* of cells: the spectrum's own cell, other bins, the outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.noise import compiled

__all__ = [
    "GROUPS",
    "KINDS",
    "NEGLIGIBLE",
    "TEMPERATURES",
    "Posterior",
    "Slots",
    "Sums",
    "absorb",
    "group_of",
    "infer",
    "kind_of",
]

FloatArray = NDArray[np.float64]
#: Exponents of exp(ln p / 4) for each temperature 4/k: all weights come from one exponential by multiplication.
_POWERS = (4, 3, 2, 1)
#: The temperatures that are tried; the first is Bayes' theorem.
TEMPERATURES = tuple(_POWERS[0] / power for power in _POWERS)
#: Parts of a library that are kept apart: the first is a quarter of it, with the second a half, with the third all.
GROUPS = 3
#: Kinds of cells, from the view of a spectrum: its own cell, the other bins, the outside (if it is not its own).
OWN, OTHER, OUTSIDE = range(3)
KINDS = 3
#: A star whose ln p lies so far below the largest is left out: at the highest temperature, which flattens most, a
#: million of them add less than 1e-7.
NEGLIGIBLE = 30.0 * _POWERS[0]


def group_of(position: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group of library stars from their positions in the library: 0, 2, 1, 2, and so on."""
    return np.where(position % 4 == 0, 0, np.where(position % 4 == 2, 1, 2))


@dataclass(frozen=True, eq=False)
class Slots:
    """Cell (K for the outside) and group of M stars, shapes (M,), and the runs of stars that have both in common.

    Loops over the stars of a run are what the compiler puts on vector registers: so stars are sorted before.

    Attributes
    ----------
    runs
        Where each of R runs begins, and the number of all stars at the end, shape (R + 1,).
    """

    cells: NDArray[np.int64]
    groups: NDArray[np.int64]
    runs: NDArray[np.int64]

    @classmethod
    def of(cls, cells: NDArray[np.int64], groups: NDArray[np.int64]) -> Slots:
        """Find the runs."""
        is_new = (np.diff(cells) != 0) | (np.diff(groups) != 0)
        return cls(cells, groups, np.concatenate([[0], np.flatnonzero(is_new) + 1, [len(cells)]]))


@compiled()
def kind_of(cell: Any, own: Any, n_bins: Any) -> Any:
    """Return the kind of a star's cell for a spectrum in cell ``own``; ``n_bins`` is the outside."""
    return OWN if cell == own else OUTSIDE if cell == n_bins else OTHER


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the stars of a library for N spectra, K bins, Q labels and J temperatures.

    Attributes
    ----------
    largest
        The largest ln p of the stars of each group and kind, shape (N, G, 3); −∞ without any.
    weight
        Σ w, relative to the largest, shape (N, G, 3, J).
    labels
        Σ w y, likewise, shape (N, G, 3, J, Q).
    square
        Σ w² at τ = 1, likewise, shape (N, G, 3).
    count
        Stars, shape (N, G, 3).
    likeliest
        The largest ln p of all stars, shape (N,).
    cells
        Σ w 1[cell] at τ = 1, relative to that, shape (N, K + 1), the outside last.
    recomputed
        Stars whose ln p had to be formed anew from all pixels, shape (N,).
    """

    largest: FloatArray
    weight: FloatArray
    labels: FloatArray
    square: FloatArray
    count: NDArray[np.int64]
    likeliest: FloatArray
    cells: FloatArray
    recomputed: NDArray[np.int64]

    @classmethod
    def empty(cls, n: int, n_bins: int, n_labels: int) -> Sums:
        """Return the sums over no star."""
        shape = (n, GROUPS, KINDS)
        return cls(
            np.full(shape, -np.inf),
            np.zeros((*shape, len(_POWERS))),
            np.zeros((*shape, len(_POWERS), n_labels)),
            np.zeros(shape),
            np.zeros(shape, np.int64),
            np.full(n, -np.inf),
            np.zeros((n, n_bins + 1)),
            np.zeros(n, np.int64),
        )

    def rows(self, chosen: slice | NDArray[Any]) -> Sums:
        """Return the sums of some spectra; views, where they are given by a slice."""
        return Sums(**{one.name: getattr(self, one.name)[chosen] for one in fields(self)})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return arrays for a file."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Any) -> Sums:
        """Return what :meth:`to_arrays` was called on."""
        return cls(**{one.name: arrays[one.name] for one in fields(cls)})

    def merge(self, other: Sums) -> Sums:
        """Return the sums over the stars of both."""
        largest, ours, theirs = _bring_together(self.largest, other.largest)
        likeliest, of_cells, of_other_cells = _bring_together(self.likeliest, other.likeliest)
        a, b = (np.exp(one[..., None] / np.asarray(TEMPERATURES)) for one in (ours, theirs))
        return Sums(
            largest,
            self.weight * a + other.weight * b,
            self.labels * a[..., None] + other.labels * b[..., None],
            self.square * np.exp(2 * ours) + other.square * np.exp(2 * theirs),
            self.count + other.count,
            likeliest,
            self.cells * np.exp(of_cells)[:, None] + other.cells * np.exp(of_other_cells)[:, None],
            self.recomputed + other.recomputed,
        )


def _bring_together(ours: FloatArray, theirs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the larger of two numbers, and by how much either lies below it; no star at all lies at 0."""
    larger = np.maximum(ours, theirs)
    reference = np.where(np.isfinite(larger), larger, 0.0)
    return larger, ours - reference, theirs - reference


def absorb(sums: Sums, found: FloatArray, slots: Slots, labels: FloatArray, own: NDArray[np.int64]) -> None:
    """Add stars to the sums of spectra, in place and in the order of the stars.

    Parameters
    ----------
    sums
        Of N spectra.
    found
        ln p of every spectrum under every star, shape (N, M); −∞ for a star that has no weight.
    slots
        Of the stars.
    labels
        Their labels, shape (M, Q); near 0, or digits are lost.
    own
        The cell of every spectrum, shape (N,).
    """
    _absorb(
        found, slots.runs, slots.cells, slots.groups, labels, own, _POWERS[0], sums.largest, sums.weight, sums.labels,
        sums.square, sums.count, sums.likeliest, sums.cells,
    )  # fmt: skip


@compiled(error_model="numpy")
def _absorb(
    found: Any, runs: Any, cells: Any, groups: Any, labels: Any, own: Any, flattest: Any, largest: Any, weight: Any,
    first: Any, square: Any, count: Any, likeliest: Any, mass: Any,
) -> None:  # fmt: skip
    n_bins, n_labels = mass.shape[1] - 1, labels.shape[1]
    for n in range(found.shape[0]):
        for run in range(len(runs) - 1):
            cell, g = cells[runs[run]], groups[runs[run]]
            kind = kind_of(cell, own[n], n_bins)
            count[n, g, kind] += runs[run + 1] - runs[run]
            for i in range(runs[run], runs[run + 1]):
                value = found[n, i]
                if value == -np.inf:
                    continue
                # Rescale what is there where this star is likelier than all before it.
                if value > largest[n, g, kind]:
                    base = np.exp((largest[n, g, kind] - value) / flattest)
                    factor = 1.0
                    for j in range(flattest - 1, -1, -1):
                        factor *= base
                        weight[n, g, kind, j] *= factor
                        for q in range(n_labels):
                            first[n, g, kind, j, q] *= factor
                    square[n, g, kind] *= factor * factor
                    largest[n, g, kind] = value
                if value > likeliest[n]:
                    factor = np.exp(likeliest[n] - value)
                    for k in range(n_bins + 1):
                        mass[n, k] *= factor
                    likeliest[n] = value
                below = value - largest[n, g, kind]
                if below < -NEGLIGIBLE:
                    continue
                base = np.exp(below / flattest)
                w = 1.0
                for j in range(flattest - 1, -1, -1):
                    w *= base
                    weight[n, g, kind, j] += w
                    for q in range(n_labels):
                        first[n, g, kind, j, q] += w * labels[i, q]
                square[n, g, kind] += w * w
                mass[n, cell] += w * np.exp(largest[n, g, kind] - likeliest[n])


@dataclass(frozen=True, eq=False)
class Posterior:
    """What a library, or a part of it, says of N spectra.

    Attributes
    ----------
    mean
        Posterior means for every temperature, shape (J, N, Q); NaN where the library has no star.
    with_own
        The means at τ = 1 with the spectrum's own star added to the library, shape (N, Q).
    effective
        Effective size of the library at τ = 1, without the own star, shape (N,).
    count
        Stars of the library, shape (N,).
    """

    mean: FloatArray
    with_own: FloatArray
    effective: FloatArray
    count: NDArray[np.int64]


def infer(sums: Sums, groups: int, kinds: Sequence[int], own: FloatArray, labels: FloatArray) -> Posterior:
    """Return the posterior under the first groups and some kinds of cells of a library.

    Parameters
    ----------
    sums
        Of N spectra.
    groups
        How many groups make the library: 1 for a quarter, 2 for a half, 3 for all.
    kinds
        The kinds of cells that it holds.
    own
        ln p of every spectrum under its own star, shape (N,).
    labels
        The labels of that star, shape (N, Q), measured as those of the library.
    """
    chosen = np.ix_(range(len(own)), range(groups), list(kinds))
    largest = sums.largest[chosen].max(axis=(1, 2))
    reference = np.where(np.isfinite(largest), largest, 0.0)
    below = sums.largest[chosen] - reference[:, None, None]
    factor = np.exp(below[..., None] / np.asarray(TEMPERATURES))
    weight = (sums.weight[chosen] * factor).sum(axis=(1, 2))
    first = (sums.labels[chosen] * factor[..., None]).sum(axis=(1, 2))
    square = (sums.square[chosen] * np.exp(2 * below)).sum(axis=(1, 2))
    # The own star is brought to the same reference, or all to its own where it is the likeliest by far.
    above = own - reference
    lift = np.where(np.isfinite(largest), np.maximum(above, 0.0), above)
    others, alone = np.exp(-lift), np.exp(above - lift)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.moveaxis(first / weight[..., None], 1, 0)
        effective = weight[:, 0] ** 2 / square
    with_own = (first[:, 0] * others[:, None] + alone[:, None] * labels) / (weight[:, 0] * others + alone)[:, None]
    return Posterior(mean, with_own, effective, sums.count[chosen].sum(axis=(1, 2)))
