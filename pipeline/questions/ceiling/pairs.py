"""Which pairs of a spectrum and a star matter, and that ln p is right for each of them.

Most stars of a library are nothing like a given spectrum: of a million, a few hundred have any weight. So the large
coefficients alone are multiplied for all pairs (:class:`pipeline.questions.ceiling.likelihood.Coefficients`). The
others add at most the product of their norms (Cauchy and Schwarz). Where even that leaves a star's weight negligible
the pair is skipped. Everywhere else the small coefficients are multiplied, too. If the bound of the pair's error
exceeds the tolerance, ln p is formed anew from all pixels in float64. The tolerance is that of the logarithm of a
weight: a star 60 below the likeliest one counts at temperatures of 2 and more, where errors are halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.noise import compiled
from pipeline.questions.ceiling.likelihood import TOLERANCE, Origins, Star
from pipeline.questions.ceiling.posterior import NEGLIGIBLE, TEMPERATURES, Slots, Sums, kind_of

__all__ = ["Side", "settle_pairs"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Side:
    """What is left to multiply of N spectra or M stars.

    Attributes
    ----------
    small
        Small coefficients, float32, shape (N, R); none where products were formed pixel by pixel.
    norms
        Their norms, shape (N,).
    doubt
        What the error's bound is made of, shape (N, 4); zeros where products were formed in float64.
    """

    small: NDArray[np.float32]
    norms: FloatArray
    doubt: FloatArray

    @classmethod
    def of(cls, small: NDArray[np.float32], doubt: FloatArray) -> Side:
        """Measure the norms; a little more, since float32 rounds."""
        return cls(small, 1.0001 * np.sqrt(np.einsum("nk,nk->n", small, small, dtype=np.float64)), doubt)

    def rows(self, chosen: slice) -> Side:
        """Return some of them."""
        return Side(self.small[chosen], self.norms[chosen], self.doubt[chosen])


def settle_pairs(
    found: FloatArray,
    sides: tuple[Side, Side],
    pixels: tuple[NDArray[np.float32], Star, Origins],
    sums: Sums,
    slots: Slots,
    own: NDArray[np.int64],
) -> None:
    """Complete ln p of spectra under stars in place; −∞ where the weight of a star is negligible.

    Parameters
    ----------
    found
        What the large coefficients give, or all pixels, shape (N, M).
    sides
        The spectra and the stars.
    pixels
        The noisy spectra (N, P), the factors of the stars, and what they are measured from.
    sums
        Of the spectra over all stars before; ``recomputed`` counts the pairs that were formed anew.
    slots, own
        As :func:`pipeline.questions.ceiling.posterior.absorb` has them.
    """
    spectra, stars, origins = pixels
    _settle(
        found, sides[0].small, sides[0].norms, sides[0].doubt, sides[1].small,
        sides[1].norms, sides[1].doubt, spectra, stars.factors, stars.own,
        (origins.origin, origins.scale, origins.deviation, origins.clipped),
        sums.largest, sums.recomputed, slots.runs, slots.cells, slots.groups, own, sums.cells.shape[1] - 1,
        NEGLIGIBLE, NEGLIGIBLE / max(TEMPERATURES), TOLERANCE,
    )  # fmt: skip


@compiled(error_model="numpy")
def _settle(
    found: Any, small: Any, norms: Any, doubt: Any, star_small: Any, star_norms: Any, star_doubt: Any, spectra: Any,
    factors: Any, of_stars: Any, origins: Any, largest: Any, recomputed: Any, runs: Any, cells: Any, groups: Any,
    own: Any, n_bins: Any, negligible: Any, sharpest: Any, tolerance: Any,
) -> None:  # fmt: skip
    least = np.empty(largest.shape[1:])
    seen = np.empty((2, spectra.shape[1]))
    for n in range(found.shape[0]):
        is_seen = False
        # No star of a slot counts that must lie so far below its likeliest one, of all blocks so far.
        for g in range(least.shape[0]):  # a slice would take three seconds more to compile
            for kind in range(least.shape[1]):
                least[g, kind] = largest[n, g, kind]
        for run in range(len(runs) - 1):
            a, b = runs[run], runs[run + 1]
            g, kind = groups[a], kind_of(cells[a], own[n], n_bins)
            least[g, kind] = max(least[g, kind], _find_largest(found[n, a:b], norms[n], star_norms[a:b]))
        for run in range(len(runs) - 1):
            a, b = runs[run], runs[run + 1]
            g, kind = groups[a], kind_of(cells[a], own[n], n_bins)
            for i in range(a, b):
                if found[n, i] + norms[n] * star_norms[i] < least[g, kind] - negligible:
                    found[n, i] = -np.inf
                    continue
                found[n, i] += _multiply(small[n], star_small[i])
                left = 0.0
                for k in range(3):
                    left += (doubt[n, k] * star_doubt[i, k]) ** 2
                # A star further below has a weight only at temperatures by which ln p, and its error, is divided.
                flattened = max(1.0, (least[g, kind] - found[n, i]) / sharpest)
                if np.sqrt(left) + doubt[n, 3] * star_doubt[i, 3] > tolerance * flattened:
                    if not is_seen:
                        _look_at(spectra[n], origins, seen)
                        is_seen = True
                    found[n, i] = of_stars[i] + _measure_pair(seen, spectra[n], factors, i, origins[3])
                    recomputed[n] += 1


@compiled(error_model="numpy", fastmath={"nnan", "nsz", "contract"})
def _find_largest(found: Any, norm: Any, star_norms: Any) -> Any:
    """Return the largest ln p that a run of stars has at least."""
    largest = -np.inf
    for i in range(len(found)):
        largest = max(largest, found[i] - norm * star_norms[i])
    return largest


@compiled(error_model="numpy", fastmath={"reassoc", "contract"})
def _multiply(a: Any, b: Any) -> Any:
    """Return the scalar product of two float32 vectors; the order of the sum is the compiler's."""
    total = np.float32(0.0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return np.float64(total)


@compiled(error_model="numpy")
def _look_at(spectrum: Any, origins: Any, seen: Any) -> None:
    """Fill −u²/2 and u less its mean over spectra, which the pixels of stars are multiplied with."""
    origin, scale, deviation, _ = origins
    for p in range(len(spectrum)):
        u = (np.float64(spectrum[p]) - origin[p]) / scale[p]
        seen[0, p], seen[1, p] = -0.5 * u * u, u - deviation[p]


@compiled(error_model="numpy", fastmath={"reassoc", "contract"})
def _measure_pair(seen: Any, spectrum: Any, factors: Any, i: Any, clipped: Any) -> Any:
    """Return what a spectrum and star ``i`` add to the star's own number, from all pixels in float64."""
    inverse, slope, clipping = factors[0][i], factors[1][i], factors[2][i]
    total = 0.0
    for p in range(len(spectrum)):
        total += seen[0, p] * inverse[p] + seen[1, p] * slope[p]
    for c in range(len(clipped)):
        if spectrum[clipped[c]] == 0:
            total += clipping[c]
    return total
