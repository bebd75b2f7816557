"""What ridge regression on drawn noise would give on average, from the moments of noise that was integrated out.

A run with one noise draw a spectrum is a random ridge problem. For many pixels its outcome hardly depends on the draw:
it has a *deterministic equivalent*. Training rows fall into J classes of like noise. Let a model have n training rows,
shares f_j of the classes, and for class j the second moments Σ_j of the scaled noisy pixels, u_j = E[x y] and
v_j = E[y²], all about the weighted means of x and y with weights f_j/(1 + δ_j). Then::

    Q = (Σ_j n f_j/(1+δ_j) Σ_j + αI)⁻¹        δ_j = tr(Σ_j Q)                                       (the fixed point)
    w̄ = Q Σ_j n f_j u_j/(1+δ_j)                                                       mean weights of the drawn model
    L = (I − Ψ)⁻¹ (v_j − 2w̄ᵀu_j + w̄ᵀΣ_jw̄)     Ψ_jk = n f_k tr(Σ_jQΣ_kQ)/(1+δ_k)²     expected squared error on class j
    E[(y − ŷ(x))²] = (y − ŷ_w̄(x))² + xᵀMx     M = Σ_k n f_k L_k/(1+δ_k)² QΣ_kQ        of a spectrum x

The free intercept is one more feature, which is constant and has no penalty. Its part of every trace is written out
below: it is ``1/W`` with ``W = Σ_j n f_j/(1+δ_j)``, and it is why the means are weighted.

With one class this is known: ``n = Σ λ/(λ+κ) + α/κ`` over the eigenvalues λ of Σ, with κ = α(1+δ)/n (Simon et al.,
arXiv:2110.03922; Wei, Hu and Steinhardt, arXiv:2203.06176). The classes are ours: stars differ in magnitude, so their
noise differs by more than one class can say.

Here Σ_j = B_s C_j B_sᵀ + D_j is a low rank and a diagonal. So Q is ``E⁻¹ − E⁻¹B_s G B_sᵀE⁻¹`` by Woodbury's identity,
and a step of the fixed point costs O(Pr²).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.moments import FactoredMoments

__all__ = ["DrawnRidge", "Population", "solve_drawn_ridge"]

FloatArray = NDArray[np.float64]
#: Change of log(1 + δ) at which the fixed point is found, and the steps after which it is given up.
_CLOSE, _MOST_STEPS = 1e-7, 500
#: What is added to the noise of pixels that may have none, where a division needs it.
_ROUNDING = 1e-9
#: Earlier steps that Anderson's acceleration looks back at.
_MEMORY = 5


@dataclass(frozen=True, eq=False)
class Population:
    """Spectra in J classes of like noise, as a ridge model sees them: P pixels divided by their scale, one label.

    All are means over the spectra of a class. Labels are counted from the moments' origin, coordinates z as well.

    Attributes
    ----------
    vectors
        B_s, shape (P, r).
    scale
        What pixels were divided by, (P,), flux units.
    y_origin
        What was subtracted from the label.
    counts
        Spectra of each class, (J,), all > 0.
    means, grams
        Of z and of zzᵀ, (J, r) and (J, r, r).
    labels, label_squares, cross
        Of y, y² and zy, (J,), (J,) and (J, r).
    noise
        D_j, of the scaled noise variances, (J, P).
    """

    vectors: FloatArray
    scale: FloatArray
    y_origin: float
    counts: FloatArray
    means: FloatArray
    grams: FloatArray
    labels: FloatArray
    label_squares: FloatArray
    cross: FloatArray
    noise: FloatArray

    @classmethod
    def of_classes(cls, classes: Sequence[FactoredMoments], scale: FloatArray, label: str) -> Population:
        """Return the population that the moments of its classes describe; classes without spectra are left out.

        Raises
        ------
        InputError
            If there are no spectra at all.
        """
        kept = [one for one in classes if one.count]
        if not kept:
            raise InputError("a forecast needs training spectra for every model, found a model without any")
        first, r = kept[0], kept[0].basis.rank
        place = r + 1 + first.labels.index(label)
        counts = np.array([one.count for one in kept], dtype=np.float64)
        inner = np.stack([one.inner for one in kept]) / counts[:, None, None]
        return cls(
            vectors=first.basis.vectors / scale[:, None],
            scale=scale,
            y_origin=float(first.y_origin[place - r - 1]),
            counts=counts,
            means=inner[:, :r, r],
            grams=inner[:, :r, :r],
            labels=inner[:, r, place],
            label_squares=inner[:, place, place],
            cross=inner[:, :r, place],
            noise=np.stack([one.noise for one in kept]) / counts[:, None] / scale**2,
        )

    @property
    def shares(self) -> FloatArray:
        """f_j, shape (J,)."""
        return np.asarray(self.counts / self.counts.sum())

    def leading(self, rank: int) -> Population:
        """Return what the first directions of the basis say."""
        return replace(
            self,
            vectors=np.ascontiguousarray(self.vectors[:, :rank]),
            means=self.means[:, :rank],
            grams=np.ascontiguousarray(self.grams[:, :rank, :rank]),
            cross=self.cross[:, :rank],
        )

    def explained(self, ranks: Sequence[int]) -> FloatArray:
        """Return the share of the label's variance that endless training would explain with so many directions."""
        f = self.shares
        mean, label = f @ self.means, float(f @ self.labels)
        grams, cross, squares = (np.tensordot(f, own, 1) for own in self.about(mean, label))
        # A pixel without noise would be divided by 0; scaled variances are near 1.
        white = self.vectors / np.sqrt(f @ self.noise + _ROUNDING)[:, None]
        inside = white.T @ white
        found = []
        for r in ranks:
            seen, spread = inside[:r, :r], grams[:r, :r]
            found.append(cross[:r] @ seen @ np.linalg.solve(np.eye(r) + spread @ seen, cross[:r]))
        return np.array(found) / max(float(squares), np.finfo(np.float64).tiny)

    def about(self, mean: FloatArray, label: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the means of zzᵀ, zy and y² about other means of z and y: (J, r, r), (J, r), (J,)."""
        off = self.means - mean
        grams = self.grams - self.means[:, :, None] * mean - mean[:, None] * off[:, None, :]
        cross = self.cross - self.means * label - mean * (self.labels - label)[:, None]
        return grams, cross, self.label_squares - 2 * label * self.labels + label**2


@dataclass(frozen=True, eq=False)
class _Point:
    """The system at some weights of the classes; names are those of the module's formulas."""

    total: float
    mean: FloatArray
    label: float
    diagonal: FloatArray
    white: FloatArray
    inside: FloatArray
    small: FloatArray
    seen: FloatArray
    shrunk: FloatArray
    delta: FloatArray


def _evaluate(population: Population, weights: FloatArray, alpha: float) -> _Point:
    """Return the system with weights ``n f_j/(1+δ_j)``, and the traces that follow from it.

    With E = Σ_j w_j D_j + α and A = Σ_j w_j C_j, centred: K = B_sᵀE⁻¹B_s (``inside``), G = (I + AK)⁻¹A (``small``),
    R = B_sᵀQB_s = K − KGK (``seen``), and ``shrunk`` the diagonal of B_s G B_sᵀE⁻¹, so that Q_pp = (1 − shrunk)/E.
    """
    total = float(weights.sum())
    mean, label = weights @ population.means / total, float(weights @ population.labels) / total
    inner = np.tensordot(weights, population.grams, 1) - total * np.outer(mean, mean)
    diagonal = weights @ population.noise + alpha
    if not (diagonal > 0).all():
        raise InputError("a forecast needs a penalty above 0, or noise in every pixel; give --alpha above 0")
    white = population.vectors / np.sqrt(diagonal)[:, None]
    inside = white.T @ white
    small = np.linalg.solve(np.eye(len(mean)) + inner @ inside, inner)
    small = (small + small.T) / 2
    seen = inside - inside @ small @ inside
    shrunk = np.einsum("pr,pr->p", white @ small, white)
    of_means = np.einsum("jrs,rs->j", population.grams, seen) + (mean - 2 * population.means) @ seen @ mean
    delta = of_means + population.noise @ ((1 - shrunk) / diagonal) + 1 / total
    return _Point(total, mean, label, diagonal, white, inside, small, seen, shrunk, delta)


def _find_fixed_point(evaluate: Callable[[FloatArray], _Point], start: FloatArray) -> tuple[FloatArray, _Point]:
    """Return the δ > 0 at which the system's traces are δ, and the system, by Anderson's acceleration in log(1 + δ).

    Plain steps converge always but slowly where rows are few and the penalty is small.
    """
    here = np.log1p(start)
    points: list[FloatArray] = []
    residuals: list[FloatArray] = []
    for _ in range(_MOST_STEPS):
        delta = np.expm1(here)
        point = evaluate(delta)
        there = np.log1p(point.delta)
        residual = there - here
        if np.abs(residual).max() <= _CLOSE:
            return delta, point
        points, residuals = [*points[-_MEMORY:], there], [*residuals[-_MEMORY:], residual]
        here = there
        if len(points) > 1:
            by = np.stack([residual - earlier for earlier in residuals[:-1]], axis=1)
            share = np.linalg.lstsq(by, residual, rcond=1e-10)[0]
            mixed = there - np.stack([there - earlier for earlier in points[:-1]], axis=1) @ share
            if (mixed > 0).all() and np.abs(mixed - there).max() <= 2.0:
                here = mixed
    raise InputError("a forecast did not converge; give a larger penalty (ridge.alpha, or --alpha)")


@dataclass(frozen=True, eq=False)
class DrawnRidge:
    """What ridge regression on n rows with one noise draw each gives on average.

    Attributes
    ----------
    count, alpha
        n and α.
    delta
        δ_j, (J,): what a row of the class tells about itself; predictions of left-out rows are off by 1 + δ_j times
        the training residual.
    errors
        L_j, the expected squared error on spectra of the class, (J,), label units².
    share
        The largest eigenvalue of Ψ: the error that comes from the draw grows without bound as it nears 1.
    mean
        The weighted mean of z, (r,).
    intercept
        What the mean weights predict there, label units.
    slope
        ``B_sᵀw̄``: what they predict per unit of z, (r,).
    pixel_noise
        Squared error per unit of noise variance in each pixel of a spectrum, (P,), label units² per flux²:
        ``(w̄_p² + M_pp)/scale_p²``.
    quadratic, linear, constant
        ``xᵀMx = zᵀ(quadratic)z + zᵀ(linear) + constant`` of noise-free spectra, z about the mean.
    """

    count: float
    alpha: float
    delta: FloatArray
    errors: FloatArray
    share: float
    mean: FloatArray
    intercept: float
    slope: FloatArray
    pixel_noise: FloatArray
    quadratic: FloatArray
    linear: FloatArray
    constant: float

    def predict(self, z: FloatArray) -> FloatArray:
        """Return what the mean weights say of noise-free spectra with coordinates (N, r), label units (N,)."""
        return np.asarray(self.intercept + (z - self.mean) @ self.slope)

    def spread(self, z: FloatArray) -> FloatArray:
        """Return by how much drawn models differ about them, ``xᵀMx``, label units² (N,)."""
        off = z - self.mean
        return np.asarray(np.einsum("nr,nr->n", off @ self.quadratic + self.linear, off) + self.constant)

    def squares(self, inner: FloatArray) -> float:
        """Return Σ E[(y − ŷ)²] over noise-free spectra of which only sums are known, label units².

        ``inner`` is the sum of products of (z, 1, y), shape (r + 2, r + 2), y in label units. With noise there is
        ``pixel_noise`` times the sum of its variances besides.
        """
        r = len(self.mean)
        shift = np.eye(r + 1)
        shift[:-1, r] = -self.mean
        gram = shift @ inner[: r + 1, : r + 1] @ shift.T  # of z about the mean, and 1
        own = np.concatenate([-self.slope, [self.mean @ self.slope - self.intercept, 1.0]])
        of_draw = np.einsum("rs,rs->", self.quadratic, gram[:r, :r]) + self.linear @ gram[:r, r]
        return float(own @ inner @ own + of_draw + self.constant * inner[r, r])


def solve_drawn_ridge(
    population: Population, count: float, alpha: float, start: FloatArray | None = None
) -> DrawnRidge:
    """Return what ridge regression on ``count`` drawn rows of a population gives on average.

    Parameters
    ----------
    population
        What the rows are drawn from.
    count
        n, > 0.
    alpha
        The penalty α, >= 0, on the weights of scaled pixels.
    start
        δ of a similar problem, (J,): fewer steps.

    Raises
    ------
    InputError
        If there is no penalty and a pixel without noise, or the fixed point is not found.
    """
    rows = count * population.shares

    def evaluate(delta: FloatArray) -> _Point:
        return _evaluate(population, rows / (1 + delta), alpha)

    delta, point = _find_fixed_point(evaluate, np.zeros(len(rows)) if start is None else start)
    return _describe(population, point, rows, delta, alpha)


def _describe(population: Population, at: _Point, rows: FloatArray, delta: FloatArray, alpha: float) -> DrawnRidge:
    """Return mean weights and errors at the fixed point; ``rows`` are n f_j."""
    weights, squared = rows / (1 + delta), rows / (1 + delta) ** 2
    grams, cross, label_squares = population.about(at.mean, at.label)
    off = population.means - at.mean
    kept = np.eye(len(at.mean)) - at.small @ at.inside  # QB_s = E⁻¹B_s kept
    share = population.noise / at.diagonal
    # K_j = B_sᵀE⁻¹D_jE⁻¹B_s
    halves = (at.white * np.sqrt(own)[:, None] for own in share)
    of_noise = np.stack([half.T @ half for half in halves])  # BLAS does half the work of such a product
    traces = _trace_products(at, grams, off, share, of_noise, kept)

    towards = weights @ cross
    slope = at.seen @ towards
    mixed = kept @ towards
    # w̄ᵀΣ_jw̄ with w̄ = E⁻¹B_s·mixed
    explained = np.einsum("r,jrs,s->j", slope, grams, slope) + np.einsum("r,jrs,s->j", mixed, of_noise, mixed)
    residual = label_squares - 2 * cross @ slope + explained
    psi = traces * squared
    errors = np.linalg.solve(np.eye(len(psi)) - psi, residual)

    draws = squared * errors
    spread, noise = np.tensordot(draws, grams, 1), np.tensordot(draws, of_noise, 1)
    weight = at.white @ mixed / np.sqrt(at.diagonal)
    middle = kept @ spread @ kept.T + at.small @ noise @ at.small
    of_draws = draws @ share
    own = np.einsum("pr,pr->p", at.white @ middle, at.white) + of_draws * (1 - 2 * at.shrunk)
    return DrawnRidge(
        count=float(rows.sum()),
        alpha=alpha,
        delta=delta,
        errors=errors,
        share=float(np.abs(np.linalg.eigvals(psi)).max()),
        mean=at.mean,
        intercept=at.label + population.y_origin,
        slope=slope,
        pixel_noise=(weight**2 + own / at.diagonal) / population.scale**2,
        quadratic=at.seen @ spread @ at.seen + kept.T @ noise @ kept,
        linear=2 / at.total * at.seen @ (draws @ off),
        constant=float(draws.sum()) / at.total**2,
    )


def _trace_products(
    at: _Point, grams: FloatArray, off: FloatArray, share: FloatArray, of_noise: FloatArray, kept: FloatArray
) -> FloatArray:
    """Return tr(Σ_jQΣ_kQ) for all classes, the constant feature included, shape (J, J)."""
    j = len(grams)
    seen_grams = (grams @ at.seen).reshape(j, -1)
    turned = (at.seen @ grams).reshape(j, -1)
    moved = kept.T @ of_noise @ kept  # B_sᵀQD_kQB_s
    mixed = grams.reshape(j, -1) @ moved.reshape(j, -1).T
    small = (at.small @ of_noise).reshape(j, -1)
    small_turned = (of_noise @ at.small).reshape(j, -1)
    # The diagonal's own: Σ D_jD_k/E² − 2Σ D_jD_k h/E³ + tr(GK_jGK_k)
    diagonal = (share * (1 - 2 * at.shrunk)) @ share.T + small @ small_turned.T
    constant = 2 * off @ at.seen @ off.T / at.total + 1 / at.total**2
    return np.asarray(seen_grams @ turned.T + mixed + mixed.T + diagonal + constant)
