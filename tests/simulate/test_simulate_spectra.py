"""The physical model: lines must answer to temperature, gravity and metallicity with the right sign."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.simulate.spectra import Labels, SpectrumModel, curve_of_growth, normalise_spectra, plan_wavelengths
from pipeline.simulate.stars import (
    LABEL_RANGES,
    NoiseModel,
    block_generator,
    draw_conditions,
    draw_labels,
    draw_noisy,
    fill_edges,
    measure_snr,
)

WAVE, EDGES = plan_wavelengths((7100.0, 8850.0), 2048)


@pytest.fixture(scope="module")
def model() -> SpectrumModel:
    return SpectrumModel(EDGES)


def _render(model: SpectrumModel, *stars: tuple[float, float, float], a_M: float = 0.0) -> np.ndarray:
    teff, logg, mh = np.array(stars, dtype=np.float64).T
    return model.render(Labels(teff, logg, mh, np.full_like(teff, a_M), np.zeros_like(teff)))


def _equivalent_width(flux: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Width (Å) between two wavelengths, against the brightest tenth of the pixels within 30 Å of them."""
    inside, beside = (slice(*np.searchsorted(WAVE, [start - margin, stop + margin])) for margin in (0.0, 30.0))
    continuum = np.quantile(flux[:, beside], 0.9, axis=1, keepdims=True)
    return (1.0 - flux[:, inside] / continuum).sum(axis=1) * (WAVE[1] - WAVE[0])


@pytest.mark.parametrize(("teff", "mh"), [(4800.0, 0.0), (5200.0, 0.0), (5700.0, -0.5), (5000.0, 0.4)])
def test_calcium_wings_widen_with_the_gravity_of_dwarfs(model: SpectrumModel, teff: float, mh: float) -> None:
    flux = _render(model, *[(teff, logg, mh) for logg in (3.8, 4.2, 4.6, 5.0)])
    assert np.all(np.diff(_equivalent_width(flux, 8522.0, 8562.0)) > 0)


@pytest.mark.parametrize(("teff", "start", "stop"), [(4300.0, 8178.0, 8200.0), (5000.0, 8801.0, 8812.0)])
def test_sodium_and_magnesium_strengthen_with_gravity(
    model: SpectrumModel, teff: float, start: float, stop: float
) -> None:
    # Not metal-rich: the CN lines of giants would fill the windows.
    width = _equivalent_width(_render(model, (teff, 3.0, -0.5), (teff, 5.0, -0.5)), start, stop)
    assert width[1] > width[0]


@pytest.mark.parametrize("teff", [3900.0, 4600.0, 5300.0, 5900.0])
@pytest.mark.parametrize(("start", "stop"), [(8535.0, 8549.0), (8178.0, 8200.0), (8801.0, 8812.0), (8686.0, 8691.5)])
def test_lines_weaken_with_falling_metallicity(model: SpectrumModel, teff: float, start: float, stop: float) -> None:
    # Without TiO: below 4200 K it bends the continuum beside the lines.
    stars = [(teff, 2.0 if teff < 4200 else 4.0, mh) for mh in (-2.5, -1.5, -0.5, 0.5)]
    assert np.all(np.diff(_equivalent_width(_render(model, *stars), start, stop)) > 0)


def test_the_whole_spectrum_answers_to_metallicity(model: SpectrumModel) -> None:
    poor, rich = _render(model, (5000.0, 3.0, -1.0), (5000.0, 3.0, 0.3))
    change = np.abs(poor - rich)
    assert np.mean(change > 0.01) > 0.5


def test_titanium_oxide_is_absent_at_4500_kelvin_and_grows_smoothly_below_4200(model: SpectrumModel) -> None:
    temperatures = np.arange(3750.0, 4600.0, 50.0)
    flux = _render(model, *[(teff, 4.5, 0.0) for teff in temperatures])
    head = (WAVE > 7592) & (WAVE < 7612)
    before = (WAVE > 7566) & (WAVE < 7586)
    depth = 1.0 - flux[:, head].mean(axis=1) / flux[:, before].mean(axis=1)
    continuum = 1.0 - _render(model, (4600.0, 4.5, -2.5))[0][head].mean()
    assert abs(depth[temperatures == 4500.0][0] - depth[-1]) < 0.01
    assert depth[0] - depth[-1] > 0.1
    assert abs(continuum) < 0.1
    assert np.all(np.diff(depth[temperatures < 4200]) < 0)


def test_cyanogen_prefers_metal_rich_giants(model: SpectrumModel) -> None:
    band = (WAVE > 7917) & (WAVE < 7960)
    before = (WAVE > 7820) & (WAVE < 7865)
    flux = _render(model, (4700.0, 1.5, 0.3), (4700.0, 4.8, 0.3), (4700.0, 1.5, -1.5))
    giant, dwarf, poor = 1.0 - flux[:, band].mean(axis=1) / flux[:, before].mean(axis=1)
    assert giant > dwarf + 0.01
    assert giant > poor + 0.03


def test_paschen_lines_grow_with_temperature_and_in_giants(model: SpectrumModel) -> None:
    flux = _render(model, (5000.0, 2.0, -1.0), (5500.0, 2.0, -1.0), (6000.0, 2.0, -1.0), (6000.0, 4.5, -1.0))
    width = _equivalent_width(flux, 8586.0, 8610.0)
    assert width[0] < width[1] < width[2]
    assert width[3] < width[2]


def test_alpha_elements_strengthen_calcium(model: SpectrumModel) -> None:
    plain = _equivalent_width(_render(model, (5000.0, 4.5, -0.5)), 8522.0, 8562.0)
    enhanced = _equivalent_width(_render(model, (5000.0, 4.5, -0.5), a_M=0.3), 8522.0, 8562.0)
    assert enhanced > plain


def test_flux_is_normalised_and_positive_everywhere(model: SpectrumModel) -> None:
    flux = model.render(draw_labels(block_generator(0, 1, 0), 256))
    np.testing.assert_allclose(np.median(flux, axis=1), 1.0, rtol=1e-12)
    assert flux.min() > 0.05
    assert flux.max() < 2.0


def test_normalisation_ignores_pixels_outside_its_range() -> None:
    wave = np.array([6400.0, 6600.0, 7000.0, 9000.0, 9600.0])
    flux = np.array([[100.0, 1.0, 2.0, 3.0, 100.0]])
    np.testing.assert_allclose(normalise_spectra(flux, wave), flux / 2.0)


def test_coarse_pixels_are_the_mean_of_fine_ones() -> None:
    # Wings, bands and saturation are taken at pixel centres, so agreement is near, not exact.
    _, coarse_edges = plan_wavelengths((7100.0, 8850.0), 1024)
    star = ((5000.0, 4.5, 0.0),)
    fine, coarse = _render(SpectrumModel(EDGES), *star), _render(SpectrumModel(coarse_edges), *star)
    np.testing.assert_allclose(fine.reshape(1, 1024, 2).mean(axis=2), coarse, atol=0.03)


def test_curve_of_growth_is_linear_then_flat() -> None:
    weak = np.array([1e-4, 1e-3])
    np.testing.assert_allclose(curve_of_growth(weak), np.sqrt(np.pi) * weak, rtol=2e-3)
    # Far out on the flat part the width grows like 2·sqrt(ln τ).
    np.testing.assert_allclose(curve_of_growth(np.array([1e6])), 2 * np.sqrt(np.log(1e6)), rtol=0.05)


def test_labels_fill_their_ranges_and_the_bins_in_the_users_proportions() -> None:
    labels = draw_labels(np.random.default_rng(5), 40_000)
    for name, (start, stop, *_) in LABEL_RANGES.items():
        values = getattr(labels, name)
        assert start <= values.min()
        assert values.max() <= stop
    thirds = np.histogram(labels.T_eff, [3750, 4500, 5250, 6000])[0] / 40_000
    np.testing.assert_allclose(thirds, 1 / 3, atol=0.01)
    poor, solar, rich = np.histogram(labels.M_H, [-2, -1, 0, 0.5])[0] / 40_000
    np.testing.assert_allclose([poor, solar, rich], [0.188, 0.350, 0.233], atol=0.02)
    assert 0.18 < 1 - poor - solar - rich < 0.25
    assert np.abs(np.corrcoef([labels.T_eff, labels.log_g, labels.M_H]) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("pixels", [512, 4096])
def test_signal_to_noise_has_the_users_quantiles_at_any_pixel_count(pixels: int) -> None:
    wave, edges = plan_wavelengths((7100.0, 8850.0), pixels)
    model, noise = SpectrumModel(edges), NoiseModel(wave)
    snr = []
    for block in range(8):
        generator = block_generator(1, 1, block)
        flux = model.render(draw_labels(generator, 256))
        snr.append(measure_snr(flux, noise.estimate_errors(flux, *draw_conditions(generator, 256))))
    quantiles = np.quantile(np.concatenate(snr), [0, 0.05, 0.5, 0.95, 1])
    np.testing.assert_allclose(quantiles[1:4], [3.7, 8.2, 17.2], rtol=0.08)
    np.testing.assert_allclose(quantiles[[0, 4]], [2.8, 27.7], rtol=0.2)


def test_errors_grow_with_magnitude_seeing_sky_lines_and_flux() -> None:
    noise = NoiseModel(WAVE)
    flux = np.ones((4, WAVE.size))
    flux[3] = 0.5
    mag = np.array([21.0, 22.0, 21.0, 21.0])
    seeing = np.array([0.8, 0.8, 1.2, 0.8])
    error = noise.estimate_errors(flux, mag, seeing)
    assert np.all(error[1] > error[0])
    assert np.all(error[2] > error[0])
    assert np.all(error[3] < error[0])
    assert error[0].max() > 2 * np.median(error[0])


def test_noisy_flux_is_the_clean_one_plus_standard_normals_where_it_is_not_clipped(model: SpectrumModel) -> None:
    generator = block_generator(2, 0, 0)
    flux = model.render(draw_labels(generator, 128))
    error = NoiseModel(WAVE).estimate_errors(flux, *draw_conditions(generator, 128))
    noisy = draw_noisy(flux, error, generator)
    # Where clipping would take a draw below −5σ it never happens, so nothing is lost of the distribution.
    safe = flux > 5 * error
    draws = ((noisy - flux) / error)[safe]
    assert draws.size > 50_000
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert abs(draws.std() - 1) < 5 / np.sqrt(2 * draws.size)
    assert np.abs(draws).max() < 6.5
    assert noisy.min() == 0.0


def test_edges_copy_their_neighbours() -> None:
    error = np.array([[np.nan, 1.0, 2.0, np.nan]])
    np.testing.assert_array_equal(fill_edges(error), [[1.0, 1.0, 2.0, 2.0]])
    assert np.isnan(error[0, 0])
