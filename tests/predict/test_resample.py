"""Rebinning onto another wavelength grid: held against a plain loop, and against what must stay."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.predict.sources import Resampling, pixel_bounds


def random_grid(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    return np.linspace(low, high, n) + rng.uniform(-0.3, 0.3, n) * (high - low) / n


def pixel_edges(wavelength: np.ndarray) -> np.ndarray:
    """Edges (P + 1,) of pixels that leave no gap."""
    lower, upper = pixel_bounds(wavelength)
    np.testing.assert_array_equal(lower[1:], upper[:-1])
    return np.append(lower, upper[-1])


def rebin_plainly(flux: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Every pair of pixels, one after the other; NaN where an output pixel is not wholly covered."""
    found = np.full(len(after) - 1, np.nan)
    for j in range(len(after) - 1):
        total = covered = 0.0
        for i in range(len(before) - 1):
            overlap = min(before[i + 1], after[j + 1]) - max(before[i], after[j])
            if overlap > 0:
                total += overlap * flux[i]
                covered += overlap
        if covered >= (after[j + 1] - after[j]) * (1 - 1e-9):
            found[j] = total / (after[j + 1] - after[j])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_rebinning_is_the_mean_over_each_output_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = random_grid(rng, 7000, 7100, 40), random_grid(rng, 6990, 7110, int(rng.integers(10, 90)))
    flux = rng.normal(1, 0.3, (3, 40))
    found, bad = Resampling(source, target).flux(flux)
    for spectrum, one, wrong in zip(flux, found, bad, strict=True):
        expected = rebin_plainly(spectrum, pixel_edges(source), pixel_edges(target))
        np.testing.assert_array_equal(np.isnan(expected), wrong)
        np.testing.assert_allclose(one[~wrong], expected[~wrong], rtol=1e-12)
        assert (one[wrong] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_integral_over_covered_pixels_is_that_of_the_input(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = random_grid(rng, 7000, 7100, 50), random_grid(rng, 7020, 7080, 23)
    flux = rng.normal(1, 0.3, 50)
    found, bad = Resampling(source, target).flux(flux[None])
    assert not bad.any()
    before, after = pixel_edges(source), pixel_edges(target)
    running = np.concatenate([[0], np.cumsum(flux * np.diff(before))])
    between = np.diff(np.interp(after[[0, -1]], before, running))  # of the step function, exactly
    assert (found[0] * np.diff(after)).sum() == pytest.approx(between[0], rel=1e-12)


def test_the_same_grid_changes_no_bit() -> None:
    rng = np.random.default_rng(1)
    grid = random_grid(rng, 7100, 8850, 64)
    flux, error = rng.normal(1, 0.3, (4, 64)), rng.uniform(0.1, 1, (4, 64))
    one = Resampling(grid, grid)
    found, bad = one.flux(flux)
    assert not bad.any()
    np.testing.assert_array_equal(found, flux)
    np.testing.assert_allclose(one.error(error), error, rtol=1e-15)


def test_pairs_of_pixels_are_averaged_and_their_errors_propagate() -> None:
    fine = np.arange(7000.25, 7020, 0.5)
    coarse = fine.reshape(-1, 2).mean(axis=1)
    rng = np.random.default_rng(2)
    flux, error = rng.normal(1, 0.3, (2, 40)), rng.uniform(0.1, 1, (2, 40))
    one = Resampling(fine, coarse)
    np.testing.assert_allclose(one.flux(flux)[0], flux.reshape(2, -1, 2).mean(axis=2), rtol=1e-12)
    expected = np.sqrt((error**2).reshape(2, -1, 2).sum(axis=2)) / 2
    np.testing.assert_allclose(one.error(error), expected, rtol=1e-12)


def test_a_bad_pixel_spoils_what_it_overlaps_and_nothing_else() -> None:
    fine = np.arange(7000.25, 7020, 0.5)
    coarse = fine.reshape(-1, 2).mean(axis=1)
    flux = np.ones((3, 40))
    flux[0, 7], flux[1, 0] = np.nan, -np.inf
    flagged = np.zeros((3, 40), bool)
    flagged[2, 38] = True
    found, bad = Resampling(fine, coarse).flux(flux, flagged)
    assert [np.flatnonzero(one).tolist() for one in bad] == [[3], [0], [19]]
    np.testing.assert_allclose(found[~bad], 1)


def test_pixels_beyond_the_input_are_bad() -> None:
    found, bad = Resampling(np.arange(10.0, 20), np.arange(0.0, 40)).flux(np.ones((1, 10)))
    np.testing.assert_array_equal(np.flatnonzero(~bad[0]), np.arange(10, 20))
    assert not Resampling(np.arange(10.0, 20), np.arange(50.0, 60)).covered.any()
    assert (found[bad] == 0).all()


def chips(step: float = 1.0) -> np.ndarray:
    """Two chips of 40 and 60 pixels, 55 Å apart, and a lone pixel farther on."""
    return np.concatenate([7000 + step * np.arange(40), 7100 + step * np.arange(60), [7300.0]])


def test_pixels_beside_a_gap_do_not_reach_into_it() -> None:
    lower, upper = pixel_bounds(chips())
    np.testing.assert_allclose(upper - lower, 1)
    np.testing.assert_allclose([upper[39], lower[40], lower[-1]], [7039.5, 7099.5, 7299.5])


@pytest.mark.parametrize("target", [np.arange(7000.0, 7160), np.arange(7000.25, 7160, 0.5), np.arange(7001.0, 7160, 3)])
def test_pixels_in_a_gap_are_bad(target: np.ndarray) -> None:
    """They have no input, whatever stands on both sides of them; grids that change their step have no gap."""
    found, bad = Resampling(chips()[:-1], target).flux(np.ones((2, 100)))
    half = (target[1] - target[0]) / 2
    in_gap = (target + half > 7039.5 + 1e-6) & (target - half < 7099.5 - 1e-6)
    beyond = (target - half < 6999.5 - 1e-6) | (target + half > 7159.5 + 1e-6)
    np.testing.assert_array_equal(bad, np.broadcast_to(in_gap | beyond, bad.shape))
    assert (found[bad] == 0).all()
    arms = np.concatenate([np.arange(7000, 7040, 0.4), np.arange(7040, 7160, 0.9)])
    assert Resampling(arms, np.arange(7005.0, 7150, 1.1)).covered.all()


def test_one_missing_pixel_is_a_gap() -> None:
    grid = np.arange(7000.0, 7100)
    _, bad = Resampling(np.delete(grid, 30), grid).flux(np.ones((1, 99)))
    assert np.flatnonzero(bad[0]).tolist() == [30]


@pytest.mark.parametrize("grid", [[1.0], [2.0, 1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_grids__raise_on_what_is_none(grid: list[float]) -> None:
    with pytest.raises(InputError, match="increasing wavelengths"):
        pixel_bounds(grid)
