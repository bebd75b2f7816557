"""The stars that are simulated: their labels, how they are observed, and the 1σ error of their spectra.

Labels and observing conditions are drawn in fixed blocks of rows. A block's generator is keyed by (seed, part, block),
so its stars do not depend on who draws them or in which order.

The error is the photon noise of star and sky, OH emission lines and read-out noise. Counts are per pixel for
12 exposures of 900 s. They are set so that the signal-to-noise ratio of stars of 20.5 to 22.5 mag runs from about 3 to
28 with a median near 8, whatever the number of pixels: a coarser grid is a cheaper sample, not a better instrument.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.simulate.spectra import Labels

__all__ = [
    "BLOCK_ROWS",
    "LABEL_RANGES",
    "MAGNITUDES",
    "SEEING",
    "NoiseModel",
    "block_generator",
    "draw_conditions",
    "draw_labels",
    "draw_noisy",
    "fill_edges",
    "measure_snr",
]

FloatArray = npt.NDArray[np.float64]

#: Faintest and brightest i-band magnitude, drawn uniformly.
MAGNITUDES: Final = (20.5, 22.5)
#: Seeing in arcsec: start, width and the two parameters of a beta distribution.
SEEING: Final = (0.63, 0.63, 5.5, 1.9)

# Electrons per pixel at mag 21.5 and 0.8 arcsec, and those of the sky's continuum, for 12 × 900 s.
_STAR_COUNTS = 700.0
_SKY_COUNTS = 2000.0
# Twelve read-outs of 3.7 electrons over 2 pixels across the trace, squared.
_READ_VARIANCE = 12 * 2 * 3.7**2
_REFERENCE_MAGNITUDE, _REFERENCE_SEEING = 21.5, 0.8
_FIBRE_RADIUS = 0.55
# OH bands (Meinel): origin (Å) and brightness; each band is a comb of rotational lines on both sides of its origin.
_OH_BANDS = (
    (6498.0, 0.3),
    (6861.0, 0.5),
    (7275.0, 0.8),
    (7521.0, 0.4),
    (7748.0, 0.9),
    (7911.0, 1.0),
    (8342.0, 1.6),
    (8829.0, 2.0),
    (9376.0, 2.2),
)
# Full width of a sky line on the detector, as a Gaussian's standard deviation in Å.
_SKY_LINE_SIGMA = 0.75
# Telluric oxygen and water that dim the star but not the sky's own lines: start, stop (Å), deepest absorption.
_TELLURIC = ((6868.0, 6950.0, 0.4), (7170.0, 7330.0, 0.15), (7594.0, 7680.0, 0.7), (8130.0, 8340.0, 0.12))


class NoiseModel:
    """Errors on one wavelength grid.

    Parameters
    ----------
    wave
        Pixel centres in Å, shape (P,).
    """

    def __init__(self, wave: FloatArray) -> None:
        self._throughput = _throughput(wave)
        self._transmission = _telluric_transmission(wave)
        self._sky = _SKY_COUNTS * self._throughput * (1.0 + _oh_emission(wave)) + _READ_VARIANCE

    def estimate_errors(self, flux: FloatArray, mag: FloatArray, seeing: FloatArray) -> FloatArray:
        """Return the 1σ error of ``flux``, in the same normalised unit.

        With ``c`` the electrons that a flux of 1 gives, ``σ = sqrt(c·flux + sky + read²) / c``. The Poisson term
        follows the flux, so the error vector carries the labels, as it does in real simulations.

        Parameters
        ----------
        flux
            Normalised flux, shape (n, P).
        mag
            i-band magnitudes, shape (n,).
        seeing
            Full width at half maximum in arcsec, shape (n,).
        """
        brightness = 10.0 ** (-0.4 * (mag - _REFERENCE_MAGNITUDE))
        accepted = _fibre_acceptance(seeing) / _fibre_acceptance(np.array([_REFERENCE_SEEING]))
        counts = (_STAR_COUNTS * brightness * accepted)[:, None] * (self._throughput * self._transmission)
        return np.sqrt(counts * np.maximum(flux, 0.0) + self._sky) / counts


def measure_snr(flux: FloatArray, error: FloatArray) -> FloatArray:
    """Return the median over pixels of ``flux / error``, shape (n,)."""
    return np.median(flux / error, axis=1)


def fill_edges(error: FloatArray) -> FloatArray:
    """Return a copy of ``error`` (n, P) whose NaN first and last pixel copy their neighbour, as readers do."""
    filled = error.copy()
    filled[:, 0] = filled[:, 1]
    filled[:, -1] = filled[:, -2]
    return filled


def draw_noisy(flux: FloatArray, error: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Return ``max(flux + error·ε, 0)`` at noise level 1, with ``error`` free of NaN; all (n, P)."""
    return np.maximum(flux + error * generator.standard_normal(flux.shape), 0.0)


def _fibre_acceptance(seeing: FloatArray) -> FloatArray:
    """Return the share of a Gaussian star's light that a fibre of 1.1 arcsec takes in."""
    sigma = seeing / 2.3548
    return -np.expm1(-0.5 * (_FIBRE_RADIUS / sigma) ** 2)


def _throughput(wave: FloatArray) -> FloatArray:
    """Return the instrument's throughput relative to its best wavelength: a broad arch over the red arm."""
    return 1.0 / (1.0 + ((wave - 8000.0) / 1800.0) ** 2)


def _telluric_transmission(wave: FloatArray) -> FloatArray:
    """Return the atmosphere's transmission; bands start sharply and recover to the red, like the oxygen A band."""
    transmission = np.ones_like(wave)
    for start, stop, depth in _TELLURIC:
        inside = (wave >= start) & (wave <= stop)
        transmission[inside] *= 1.0 - depth * ((stop - wave[inside]) / (stop - start))
    return transmission


def _oh_emission(wave: FloatArray) -> FloatArray:
    """Return the OH lines' brightness over the sky's continuum, shape (P,)."""
    emission = np.zeros_like(wave)
    # Pixels wider than a line see its mean over the pixel.
    pixel = np.gradient(wave)
    width = np.hypot(_SKY_LINE_SIGMA, pixel / np.sqrt(12.0))
    for origin, brightness in _OH_BANDS:
        for branch, spacing in ((-1.0, 9.0), (1.0, 14.0)):
            for j in range(1, 11):
                centre = origin + branch * (4.0 + spacing * j + 0.6 * j * j)
                # Rotational levels at about 200 K, statistical weight times Boltzmann factor.
                peak = 12.0 * brightness * j * np.exp(-0.13 * j * (j + 1)) * _SKY_LINE_SIGMA
                emission += peak / width * np.exp(-0.5 * ((wave - centre) / width) ** 2)
    return emission


#: Rows that share one generator and are computed together; part of what a seed means, so never change it.
BLOCK_ROWS: Final = 256

#: Start and stop of each label, then the two parameters of its beta distribution. T_eff fills the three bins
#: equally; [M/H] gives about 20 : 35 : 25 % in Poor, Solar and Rich and leaves about 20 % outside.
LABEL_RANGES: Final = {
    "T_eff": (3750.0, 6000.0, 1.0, 1.0),
    "log_g": (1.0, 5.0, 1.0, 1.0),
    "M_H": (-2.5, 0.75, 1.66, 0.85),
    "a_M": (-0.3, 0.3, 3.0, 3.0),
    "C_M": (-0.3, 0.3, 3.0, 3.0),
}


def block_generator(seed: int, part: int, block: int) -> np.random.Generator:
    """Return the generator of one block of rows; ``part`` is 0 for the test file, 1 + i for training shard i."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, part, block])))


def draw_labels(generator: np.random.Generator, rows: int) -> Labels:
    """Draw independent labels of ``rows`` stars."""
    return Labels(**{name: _draw_beta(generator, rows, *shape) for name, shape in LABEL_RANGES.items()})


def draw_conditions(generator: np.random.Generator, rows: int) -> tuple[FloatArray, FloatArray]:
    """Draw i-band magnitudes and seeing (arcsec), each (rows,)."""
    return generator.uniform(*MAGNITUDES, rows), _draw_beta(generator, rows, SEEING[0], sum(SEEING[:2]), *SEEING[2:])


def _draw_beta(generator: np.random.Generator, rows: int, start: float, stop: float, a: float, b: float) -> FloatArray:
    return start + (stop - start) * generator.beta(a, b, rows)
