"""The ceiling's likelihoods and posterior sums, against closed forms, quadrature and brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import dblquad
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from pipeline.questions.ceiling.answer import (
    NOTHING_LEFT,
    UNDECIDED,
    WORTH_TRYING,
    CeilingPart,
    Nonlinear,
    judge_nonlinear,
)
from pipeline.questions.ceiling.likelihood import (
    TOLERANCE,
    Origins,
    Projection,
    bound_errors,
    describe_stars,
    measure_dense,
    measure_pairs,
    observe,
    weigh_rounding,
)
from pipeline.questions.ceiling.measure import choose_precision
from pipeline.questions.ceiling.pairs import Side, settle_pairs
from pipeline.questions.ceiling.posterior import (
    OTHER,
    OUTSIDE,
    OWN,
    TEMPERATURES,
    Posterior,
    Slots,
    Sums,
    absorb,
    group_of,
    infer,
)
from pipeline.scoring import Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Set:
    """Stars of a library and test stars with noisy spectra, of the same kind; labels are near 0."""

    flux: FloatArray
    error: FloatArray
    labels: FloatArray
    test_flux: FloatArray
    test_error: FloatArray
    test_labels: FloatArray
    spectra: FloatArray
    level: float = 1.0

    @classmethod
    def make(
        cls, stars: int, spectra: int, pixels: int, *, error: float = 0.3, level: float = 1.0, seed: int = 0
    ) -> Set:
        """Spectra whose lines deepen with a label; brightness varies, and faint ones are clipped here and there."""
        rng = np.random.default_rng(seed)
        labels, faintness = rng.normal(size=(stars + spectra, 1)), rng.uniform(0.3, 3, size=(stars + spectra, 1))
        depth = 0.5 + 0.4 * np.tanh(labels * rng.normal(size=pixels))
        flux, errors = np.float32(1 - 0.7 * depth), np.float32(error * faintness * rng.uniform(0.8, 1.2, size=pixels))
        noisy = np.maximum(flux[stars:] + level * errors[stars:] * rng.normal(size=(spectra, pixels)), 0)
        return cls(
            flux[:stars], errors[:stars], labels[:stars], flux[stars:], errors[stars:], labels[stars:],
            np.float32(noisy), level,
        )  # fmt: skip

    def origins(self) -> Origins:
        return Origins.find(self.level, self.spectra, self.flux, self.error)

    def dense(self) -> FloatArray:
        origins = self.origins()
        return measure_dense(observe(self.spectra, origins), describe_stars(self.flux, self.error, origins))

    def own(self) -> FloatArray:
        origins = self.origins()
        return measure_pairs(observe(self.spectra, origins), describe_stars(self.test_flux, self.test_error, origins))

    def exact(self) -> FloatArray:
        return state_likelihood(self.spectra, self.flux, self.level * self.error.astype(np.float64))


def state_likelihood(spectra: FloatArray, flux: FloatArray, sigma: FloatArray) -> FloatArray:
    """Return ln p of every spectrum under every star, as the formula stands, up to ½ ln 2π a pixel not clipped."""
    found = np.empty((len(spectra), len(flux)))
    x = spectra.astype(np.float64)
    for i, (f, s) in enumerate(zip(flux.astype(np.float64), sigma, strict=True)):
        unclipped = -((x - f) ** 2) / (2 * s**2) - np.log(s)
        found[:, i] = np.where(x > 0, unclipped, log_ndtr(-f / s)).sum(axis=1)
    return found


def sum_up(
    found: FloatArray, labels: FloatArray, *, cells: NDArray[np.int64] | None = None, blocks: Sequence[int] = ()
) -> Sums:
    """Return the sums over stars, given in blocks that end at some places; without cells all stars share bin 0."""
    n, m = found.shape
    cells = np.zeros(m, np.int64) if cells is None else cells
    n_bins = int(cells.max(initial=0)) + 1
    sums = Sums.empty(n, n_bins, labels.shape[1])
    for a, b in pairwise([0, *blocks, m]):
        absorb(sums, found[:, a:b], Slots.of(cells[a:b], group_of(np.arange(a, b))), labels[a:b], np.zeros(n, np.int64))
    return sums


def bracket(known: Set, found: FloatArray | None = None, own: FloatArray | None = None) -> Posterior:
    found = known.dense() if found is None else found
    own = known.own() if own is None else own
    return infer(sum_up(found, known.labels), 3, (OWN, OTHER), own, known.test_labels)


def r2(said: FloatArray, truth: FloatArray) -> float:
    return float(1 - np.sum((truth - said) ** 2) / np.sum((truth - truth.mean()) ** 2))


# --- Likelihoods.


@pytest.mark.parametrize(("error", "level"), [(0.02, 1.0), (0.3, 1.0), (1.5, 0.5), (4.0, 2.0)])
def test_likelihoods_are_the_formula(error: float, level: float) -> None:
    """To 0.01 where it matters, whatever share of the pixels is clipped, up to a number for each spectrum."""
    known = Set.make(60, 80, 700, error=error, level=level)
    origins = known.origins()
    seen, of_test = observe(known.spectra, origins), describe_stars(known.test_flux, known.test_error, origins)
    precision, _ = choose_precision(seen, of_test, known.own())
    assert precision == ("float64" if error == 0.02 else "float32")
    difference = measure_dense(seen, describe_stars(known.flux, known.error, origins), precision) - known.exact()
    difference -= np.median(difference, axis=1, keepdims=True)
    below = known.exact().max(axis=1, keepdims=True) - known.exact()
    assert np.abs(difference[below < 300]).max() < 0.01
    assert np.abs(difference / np.maximum(below, 300)).max() < 1e-4
    assert (known.spectra == 0).any() == (error > 0.1)


def test_a_pair_is_the_entry_of_the_table() -> None:
    known = Set.make(50, 50, 300)
    origins, spectra = known.origins(), known.spectra
    stars = describe_stars(known.flux, known.error, origins)
    pairs = measure_pairs(observe(spectra, origins), stars)
    np.testing.assert_allclose(pairs, np.diag(measure_dense(observe(spectra, origins), stars)), atol=0.01)


def test_clipping_agrees_with_integration_at_two_pixels() -> None:
    """What the formula gives for x = (0, 0), (0, x₂) and (x₁, x₂) is what the noise integrates to, and all is 1."""
    flux, sigma = np.array([[0.4, 0.1], [0.2, 0.5]]), np.array([[0.5, 0.3], [0.2, 0.9]])
    x2, step = 0.35, 1e-3
    known = Set(
        np.float32(flux), np.float32(sigma), np.zeros((2, 1)), np.float32(flux), np.float32(sigma), np.zeros((2, 1)),
        np.float32([[0, 0], [0, x2], [0.6, x2]]),
    )  # fmt: skip
    found = np.exp(known.dense() - known.exact())
    np.testing.assert_allclose(found, found[:, :1] * np.ones(2), rtol=1e-4)  # one number for each spectrum
    for i in range(2):

        def density(y: float, x: float, i: int = i) -> float:
            return float(norm.pdf(x, flux[i, 0], sigma[i, 0]) * norm.pdf(y, flux[i, 1], sigma[i, 1]))

        both, _ = dblquad(density, -8, 0, -8, 0)
        first, _ = dblquad(density, -8, 0, x2 - step, x2 + step)
        assert np.exp(known.exact()[0, i]) == pytest.approx(both, rel=1e-5)
        assert np.exp(known.exact()[1, i]) / np.sqrt(2 * np.pi) == pytest.approx(first / (2 * step), rel=1e-4)
        assert np.exp(known.exact()[2, i]) / (2 * np.pi) == pytest.approx(density(x2, 0.6), rel=1e-5)


def test_directions_give_what_pixels_give() -> None:
    known = Set.make(750, 150, 300, error=0.1)
    origins = known.origins()
    observed, stars = observe(known.spectra, origins), describe_stars(known.flux, known.error, origins)
    projection = Projection.find(observed, stars, 1e-3)
    assert projection.rank < 450
    found = projection.project_spectra(observed).multiply(projection.project_stars(stars)) + stars.own
    difference = found - known.exact()
    difference -= np.median(difference, axis=1, keepdims=True)
    below = known.exact().max(axis=1, keepdims=True) - known.exact()
    assert np.abs(difference[below < 100]).max() < 0.02
    again = Projection.from_arrays(projection.to_arrays())
    assert again is not None
    for name, value in vars(projection.project_stars(stars)).items():
        assert np.array_equal(vars(again.project_stars(stars))[name], value)


@pytest.mark.parametrize("way", ["directions", "pixels"])
def test_every_pair_that_matters_is_right_to_the_tolerance(way: str) -> None:
    """Held against the formula; also for stars with a line that no star of the sample has, and for bright ones.

    All of 0.01 where a star has weight at τ = 1. Further below, weights are flattened, and errors with them.
    """
    known = Set.make(1600, 250, 600, error=0.1, seed=7)
    rng = np.random.default_rng(8)
    # Lines of 100 kinds, so that there are small coefficients.
    flux = known.flux + np.float32(0.003 * rng.normal(size=(1600, 100)) @ rng.normal(size=(100, 600)))
    error, sample = known.error.copy(), slice(1200)
    flux[1200:1300, 40] += 0.2
    error[1300:1350] /= 4
    spectra, origins = known.spectra, Origins.find(1.0, known.spectra, known.flux[sample], known.error[sample])
    observed, stars = observe(spectra, origins), describe_stars(flux, error, origins)
    if way == "directions":
        projection = Projection.find(observed, stars.rows(sample), 1e-3)
        seen, held = projection.project_spectra(observed), projection.project_stars(stars)
        assert held.large.shape[1] < projection.rank < 900
        found = seen.large @ held.large.T + stars.own
        rough = seen.multiply(held) + stars.own
        sides = Side.of(seen.small, seen.doubt), Side.of(held.small, held.doubt)
    else:
        found = measure_dense(observed, stars)
        rough = found.copy()
        sides = (
            Side.of(np.empty((250, 0), np.float32), weigh_rounding(observed.factors)),
            Side.of(np.empty((1600, 0), np.float32), weigh_rounding(stars.factors)),
        )
    sums = Sums.empty(250, 2, 1)
    cells, own = np.arange(1600) % 3, np.arange(250) % 3
    settle_pairs(found, sides, (spectra, stars, origins), sums, Slots.of(cells, group_of(np.arange(1600))), own)
    exact = state_likelihood(spectra, flux, error.astype(np.float64))
    kept = np.isfinite(found)
    difference = np.where(kept, found - exact, np.nan)
    off = np.nanmedian(difference, axis=1, keepdims=True)
    kinds = np.where(cells == own[:, None], OWN, np.where(cells == 2, OUTSIDE, OTHER))
    for kind in (OWN, OTHER, OUTSIDE):
        for group in range(3):
            slot = np.where((kinds == kind) & (group_of(np.arange(1600)) == group), exact, -np.inf)
            below = slot.max(axis=1, keepdims=True, initial=-1e300) - slot
            assert kept[below < 120].all(), "no star is skipped that has weight"
            allowed = TOLERANCE * np.maximum(1, below / 30)
            assert (np.abs(difference - off) <= allowed + 1e-3)[kept & np.isfinite(slot)].all()
    assert 0 < kept.mean() < 0.9
    if way == "directions":  # the line is unknown to them, and the bound of every pair knows that
        worst = np.abs(rough - exact - off)[:, 1200:1300]
        assert worst.max() > 10 * TOLERANCE
        assert (sums.recomputed > 0).any()


def test_bounds_hold_for_all_pairs_and_are_not_idle() -> None:
    """Also for pairs without weight: what an error may be at most, and it comes near."""
    known = Set.make(1500, 300, 600, error=0.1)
    origins = known.origins()
    observed, stars = observe(known.spectra, origins), describe_stars(known.flux, known.error, origins)
    exact = sum(a.astype(float) @ b.astype(float).T for a, b in zip(observed.factors, stars.factors, strict=True))
    projection = Projection.find(observed, stars.rows(slice(700)), 1e-3)
    seen, held = projection.project_spectra(observed), projection.project_stars(stars)
    n, m = (one.ravel() for one in np.indices((300, 1500)))
    of_pixels = weigh_rounding(observed.factors), weigh_rounding(stars.factors)
    for errors, (of_spectra, of_stars) in (
        (seen.multiply(held) - exact, (seen.doubt, held.doubt)),
        (measure_dense(observed, stars) - stars.own - exact, of_pixels),
    ):
        share = np.abs(errors).ravel() / bound_errors(of_spectra[n], of_stars[m])
        assert 0.1 < share.max() < 1


# --- Posterior sums.


def test_sums_are_those_of_the_weights() -> None:
    """For every temperature, group and kind, against weights that are written down."""
    rng = np.random.default_rng(1)
    found, labels = 50 * rng.normal(size=(40, 500)), rng.normal(size=(500, 2))
    cells, own = rng.integers(0, 4, size=500), rng.integers(0, 4, size=40)  # cell 3 is the outside
    sums = Sums.empty(40, 3, 2)
    absorb(sums, found, Slots.of(cells, group_of(np.arange(500))), labels, own)
    of_own, own_labels = 30 + 50 * rng.normal(size=40), rng.normal(size=(40, 2))
    for groups, step in ((1, 4), (2, 2), (3, 1)):
        for kinds in ((OWN,), (OWN, OTHER), (OWN, OTHER, OUTSIDE)):
            posterior = infer(sums, groups, kinds, of_own, own_labels)
            for n in range(40):
                kind = np.where(cells == own[n], OWN, np.where(cells == 3, OUTSIDE, OTHER))
                members = np.flatnonzero(np.isin(kind, kinds) & (np.arange(500) % step == 0))
                values = found[n, members]
                for j, temperature in enumerate(TEMPERATURES):
                    w = np.exp((values - values.max()) / temperature)
                    np.testing.assert_allclose(
                        posterior.mean[j, n], w @ labels[members] / w.sum(), rtol=1e-7, atol=1e-9
                    )
                w = np.exp(np.append(values, of_own[n]) - max(values.max(), of_own[n]))
                both = np.concatenate([labels[members], own_labels[n : n + 1]])
                np.testing.assert_allclose(posterior.with_own[n], w @ both / w.sum(), rtol=1e-9, atol=1e-9)
                w = w[:-1] / w[:-1].max()
                assert posterior.effective[n] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
                assert posterior.count[n] == len(members)
    masses = np.stack([np.exp(logsumexp(found[:, cells == k], axis=1) - logsumexp(found, axis=1)) for k in range(4)])
    np.testing.assert_allclose(sums.cells / sums.cells.sum(axis=1, keepdims=True), masses.T, rtol=1e-9, atol=1e-12)


def test_blocks_merges_and_order_change_rounding_alone() -> None:
    known = Set.make(400, 30, 200)
    found, cells = known.dense(), np.arange(400) % 3
    whole = sum_up(found, known.labels, cells=cells)
    in_blocks = sum_up(found, known.labels, cells=cells, blocks=[7, 8, 300])
    for name, value in whole.to_arrays().items():
        assert np.array_equal(in_blocks.to_arrays()[name], value), name
    halves = [Sums.empty(30, 3, 1) for _ in range(2)]
    for sums, part in zip(halves, (slice(0, 150), slice(150, 400)), strict=True):
        groups = group_of(np.arange(400))[part]
        absorb(sums, found[:, part], Slots.of(cells[part], groups), known.labels[part], np.zeros(30, np.int64))
    merged = halves[0].merge(halves[1])
    backwards = Sums.empty(30, 3, 1)
    order = np.arange(400)[::-1]
    slots = Slots.of(cells[order], group_of(order))
    absorb(backwards, found[:, order], slots, known.labels[order], np.zeros(30, np.int64))
    empty = Sums.empty(30, 3, 1)
    for other in (merged, backwards, halves[1].merge(halves[0]), empty.merge(whole), whole.merge(empty)):
        for groups in (1, 2, 3):
            one, two = (infer(s, groups, (OWN, OTHER), known.own(), known.test_labels) for s in (whole, other))
            np.testing.assert_allclose(one.mean, two.mean, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(one.with_own, two.with_own, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(one.effective, two.effective, rtol=1e-9)
            assert np.array_equal(one.count, two.count)
        np.testing.assert_allclose(
            whole.cells / whole.cells.sum(1, keepdims=True), other.cells / other.cells.sum(1, keepdims=True), atol=1e-12
        )


def test_a_library_without_a_star_of_a_kind_has_no_mean() -> None:
    known = Set.make(40, 5, 50)
    sums = sum_up(known.dense(), known.labels, cells=np.ones(40, np.int64))
    nothing = infer(sums, 3, (OWN,), known.own(), known.test_labels)
    assert np.isnan(nothing.mean).all()
    np.testing.assert_allclose(nothing.with_own, known.test_labels)
    assert (nothing.count == 0).all()


# --- Closed forms.


def test_the_bracket_holds_the_linear_gaussian_posterior() -> None:
    """y ~ N(0, 1), f = 5 + a y, one error: E[y|x] is linear, and R² = v/(1 + v) with v = Σ a²/s²."""
    rng = np.random.default_rng(2)
    n, m, pixels, sigma = 1500, 6000, 12, 0.8
    a = rng.normal(size=pixels) * 0.5
    y = rng.normal(size=(n + m, 1))
    flux, error = np.float32(5 + y * a), np.full((n + m, pixels), sigma, np.float32)
    spectra = np.float32(np.maximum(flux[:n] + sigma * rng.normal(size=(n, pixels)), 0))
    known = Set(flux[n:], error[n:], y[n:], flux[:n], error[:n], y[:n], spectra)
    posterior = bracket(known)
    strength = float(a @ a / sigma**2)
    exact = (spectra.astype(np.float64) - 5) @ a / sigma**2 / (1 + strength)
    truth = y[:n, 0]
    # The posterior mean itself, star by star, to what a finite library leaves.
    assert np.sqrt(np.mean((posterior.mean[0, :, 0] - exact) ** 2)) < 0.03
    lower, upper = r2(posterior.mean[0, :, 0], truth), r2(posterior.with_own[:, 0], truth)
    assert lower <= r2(exact, truth) + 1e-3
    assert upper >= r2(exact, truth) - 1e-3
    assert upper - lower < 0.02
    assert r2(exact, truth) == pytest.approx(strength / (1 + strength), abs=0.02)


def test_two_points_have_the_logistic_posterior() -> None:
    """Two kinds of stars at ±1: the mean of the label is the tanh of half the likelihoods' difference."""
    rng = np.random.default_rng(3)
    pixels, n = 6, 200
    shapes = np.array([1 + 0.1 * rng.normal(size=pixels), 1 + 0.1 * rng.normal(size=pixels)])
    side = rng.integers(0, 2, size=n)
    error = np.full((n, pixels), 0.25, np.float32)
    spectra = np.float32(np.maximum(shapes[side] + 0.25 * rng.normal(size=(n, pixels)), 0))
    labels = np.array([[-1.0], [1.0]])
    known = Set(
        np.float32(shapes), error[:2], labels, np.float32(shapes[side]), error, labels[side], spectra
    )  # fmt: skip
    exact = state_likelihood(spectra, np.float32(shapes), error[:2].astype(np.float64))
    expected = np.tanh((exact[:, 1] - exact[:, 0]) / 2)
    np.testing.assert_allclose(bracket(known).mean[0, :, 0], expected, atol=1e-3)


def test_without_noise_the_upper_end_is_1() -> None:
    known = Set.make(300, 200, 60, error=0.2, level=1e-3)
    posterior = bracket(known)
    assert r2(posterior.with_own[:, 0], known.test_labels[:, 0]) == pytest.approx(1, abs=1e-6)
    assert r2(posterior.mean[0, :, 0], known.test_labels[:, 0]) < 1


def test_one_enormous_error_leaves_nothing() -> None:
    """Spectra then tell nothing, so the mean is that of the library; the own star adds one of many."""
    rng = np.random.default_rng(4)
    known = Set.make(3000, 500, 40, error=0.2)
    error = np.full((3000, 40), 1e4, np.float32)
    spectra = np.float32(np.maximum(known.test_flux + 1e4 * rng.normal(size=(500, 40)), 0))
    known = Set(known.flux, error, known.labels, known.test_flux, error[:500], known.test_labels, spectra)
    posterior = bracket(known)
    for said in (posterior.mean[0, :, 0], posterior.with_own[:, 0]):
        assert r2(said, known.test_labels[:, 0]) == pytest.approx(0, abs=0.01)
    np.testing.assert_allclose(posterior.effective, 3000, rtol=1e-2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stars", [3, 30, 300])
def test_the_upper_end_lies_above_the_lower_one_on_every_set(seed: int, stars: int) -> None:
    """Without a temperature: to add the true star moves every mean towards the truth."""
    known = Set.make(stars, 100, 30, error=0.5, seed=seed)
    posterior, truth = bracket(known), known.test_labels[:, 0]
    assert (np.abs(posterior.with_own[:, 0] - truth) <= np.abs(posterior.mean[0, :, 0] - truth) + 1e-12).all()


def test_the_bracket_holds_the_truth_of_a_simulator_with_a_known_posterior() -> None:
    """A label that a grid of stars spans: the posterior under all of the grid is exact, that of a part brackets it."""
    rng = np.random.default_rng(5)
    pixels, n = 25, 3000
    grid = np.linspace(-2, 2, 2001)[:, None]
    waves = rng.normal(size=pixels) * 1.5
    of_grid = np.float32(0.6 + 0.3 * np.sin(grid * waves))
    error = np.full((2001, pixels), 0.5, np.float32)
    true = rng.integers(0, 2001, size=n)
    spectra = np.float32(np.maximum(of_grid[true] + 0.5 * rng.normal(size=(n, pixels)), 0))
    exact = state_likelihood(spectra, of_grid, error.astype(np.float64))
    weights = np.exp(exact - exact.max(axis=1, keepdims=True))
    truth, best = grid[true, 0], (weights @ grid)[:, 0] / weights.sum(axis=1)
    widths = []
    for size in (10, 40, 160):
        chosen = rng.integers(0, 2001, size=size)
        known = Set(
            of_grid[chosen], error[chosen], grid[chosen], of_grid[true], error[:1].repeat(n, 0), grid[true], spectra
        )
        posterior = bracket(known)
        lower, upper = r2(posterior.mean[0, :, 0], truth), r2(posterior.with_own[:, 0], truth)
        assert lower < r2(best, truth) + 1e-3 < upper + 2e-3
        widths.append(upper - lower)
    assert widths == sorted(widths, reverse=True)


# --- What is said of a nonlinear model.


def part(n: int, lower: float, upper: float, effective: float = 20.0) -> CeilingPart:
    return CeilingPart(
        n_library=n, n_test=1000, temperature=1.0, lower=sure(lower), upper=sure(upper), effective_size=effective,
        r2_global=0.4, r2_oracle=0.6,
    )  # fmt: skip


def sure(value: float, half: float = 0.005) -> Estimate:
    return Estimate.of(value, 0.0, value - half, value + half)


def judge(lower: float, upper: float, effective: float = 20.0, half: float = 0.005, wider: float = 0.04) -> Nonlinear:
    growth = [part(1000 * 2**k, lower - wider * (2 - k), upper + wider * (2 - k), effective) for k in range(3)]
    gains = (sure(end - 0.6, half) for end in (lower, upper))
    return judge_nonlinear(growth, *gains, threshold=0.05, confidence=0.95)


def test_what_a_nonlinear_model_could_gain_is_judged_by_both_ends() -> None:
    assert judge(0.66, 0.70).verdict == WORTH_TRYING
    assert judge(0.66, 0.70, effective=1.5).verdict == WORTH_TRYING  # a bound holds, converged or not
    assert judge(0.60, 0.64).verdict == NOTHING_LEFT
    assert judge(0.654, 0.70).verdict == UNDECIDED  # the interval of the lower end straddles
    assert "More test spectra" in judge(0.652, 0.70).sentence
    undecided = judge(0.63, 0.69, effective=3.0)
    assert undecided.verdict == UNDECIDED
    assert "has not converged (effective size 3.0" in undecided.sentence
    # The middle lies 0.01 above the threshold, half of it for the interval. As the library doubled, the width fell from
    # 0.14 to 0.06.
    needed = 4000 * (0.06 / 0.01) ** (1 / np.log2(0.14 / 0.06))
    assert f"about {round(needed, -3):,.0f} stars would decide it" in undecided.sentence.replace("A library of ", "")
    assert "A larger library and more test spectra" in judge(0.63, 0.69, half=0.015).sentence
    assert "no library of a realistic size" in judge(0.63, 0.69, wider=0.0).sentence
    unknown = judge(np.nan, np.nan)
    assert unknown.verdict == UNDECIDED
    assert "no value" in unknown.sentence
