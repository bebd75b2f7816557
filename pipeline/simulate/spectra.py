"""A compact physical model of red stellar spectra: a stand-in for a grid of model atmospheres.

One layer stands for the whole photosphere. Its electron and gas pressure follow the scaling laws of cool stars, the
continuum is H⁻, and every line's opacity relative to that continuum follows from Saha and Boltzmann, so excitation,
ionisation, metallicity and gravity act on each line as they do in a star, through one formula and no free term per
label. What it leaves out: the depth structure of real atmospheres, NLTE, rotation, radial velocity, the line structure
of molecules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from pipeline.simulate.lines import CN_HEADS, PASCHEN_LINES, SPECIES, TIO_HEADS, LineList, list_lines

__all__ = ["NORMALISATION_RANGE", "Labels", "SpectrumModel", "normalise_spectra", "plan_wavelengths"]

FloatArray = npt.NDArray[np.float64]

#: Spectra are divided by their median between these wavelengths (Å), where the spectrum reaches them.
NORMALISATION_RANGE: Final = (6500.0, 9500.0)

_SUN_TEFF, _SUN_LOGG = 5777.0, 4.44
# Lines form at about this share of T_eff, molecules higher up, where it is cooler.
_LINE_LAYER, _MOLECULE_LAYER = 0.87, 0.72
# Resolution of the medium arm, R ≈ 5000 at 8000 Å: standard deviation in Å.
_RESOLUTION_SIGMA = 0.68
# Deepest a line can get (Minnaert's R_c).
_DEEPEST = 0.85
# log10 of the Sun's gas pressure at τ = 2/3, dyn/cm², and over the pressure of its electrons.
_LOG_GAS_PRESSURE, _LOG_GAS_PER_ELECTRON = 4.9, 4.3
_LIGHT_SPEED = 299_792.458
# Dissociation energies, eV.
_TIO_BOND, _CN_BOND, _CO_BOND = 6.87, 7.72, 11.09


@dataclass(frozen=True)
class Labels:
    """Physical labels of n stars, each (n,): ``T_eff`` in K, ``log_g`` and the abundances in dex."""

    T_eff: FloatArray
    log_g: FloatArray
    M_H: FloatArray
    a_M: FloatArray
    C_M: FloatArray


def plan_wavelengths(wave_range: tuple[float, float], pixels: int) -> tuple[FloatArray, FloatArray]:
    """Return pixel centres (P,) and edges (P+1,) in Å, equally spaced over ``wave_range``."""
    edges = np.linspace(*wave_range, pixels + 1)
    return 0.5 * (edges[1:] + edges[:-1]), edges


def normalise_spectra(flux: FloatArray, wave: FloatArray) -> FloatArray:
    """Divide each spectrum of ``flux`` (n, P) by its median over 6500–9500 Å."""
    start, stop = NORMALISATION_RANGE
    inside = (wave >= start) & (wave <= stop)
    return flux / np.median(flux[:, inside], axis=1, keepdims=True)


@dataclass(frozen=True)
class _Atmosphere:
    """The photosphere of n stars; logarithms are to base 10, each array is (n,)."""

    theta: FloatArray
    theta_molecules: FloatArray
    log_electron_pressure: FloatArray
    log_gas_pressure: FloatArray
    log_continuum: FloatArray
    doppler_speed: FloatArray


def _plan_atmosphere(labels: Labels) -> _Atmosphere:
    """Estimate the layer where lines form.

    Gas pressure, and the pressure of the electrons that metals give, follow Gray, *The Observation and Analysis of
    Stellar Photospheres*, ch. 9: ``Pg ∝ g^{2/3} A^{-1/3}`` and ``Pe ∝ g^{1/3} A^{1/3} exp(ΩT)``, in dyn/cm², set to the
    Sun's. Hydrogen's electrons, ``sqrt(Pg Φ_H)`` by Saha, take over in hot or metal-poor stars. H⁻ opacity per atom is
    ``Pe θ^{5/2} 10^{0.754 θ}`` (ch. 8). Microturbulence is 2.13 − 0.23 log g km/s (Kirby et al. 2009).
    """
    gravity = labels.log_g - _SUN_LOGG
    theta = 5040.0 / (_LINE_LAYER * labels.T_eff)
    log_gas = _LOG_GAS_PRESSURE + (2.0 * gravity - labels.M_H) / 3.0
    log_metals = 0.55 + (gravity + labels.M_H) / 3.0 + 5e-4 * (labels.T_eff - _SUN_TEFF)
    log_hydrogen = 0.5 * (log_gas - 0.18 + 2.5 * np.log10(5040.0 / theta) - 13.6 * theta)
    log_electron = 0.5 * np.log10(10.0 ** (2.0 * log_metals) + 10.0 ** (2.0 * log_hydrogen))
    microturbulence = 2.13 - 0.23 * labels.log_g
    return _Atmosphere(
        theta=theta,
        theta_molecules=5040.0 / (_MOLECULE_LAYER * labels.T_eff),
        log_electron_pressure=log_electron,
        log_gas_pressure=log_gas,
        log_continuum=log_electron + 0.754 * theta + 2.5 * np.log10(theta),
        # 1.2 km/s: thermal motion of an iron atom.
        doppler_speed=np.hypot(microturbulence, 1.2),
    )


def _ionised_share(atmosphere: _Atmosphere, ionisation: float, partition: float) -> FloatArray:
    """Solve Saha for the share of ionised atoms: ``log(N⁺Pe/N⁰) = −0.48 + log(2u⁺/u⁰) + 2.5 log T − θI`` (cgs)."""
    log_ratio = (
        -0.48
        + np.log10(partition)
        + 2.5 * np.log10(5040.0 / atmosphere.theta)
        - atmosphere.theta * ionisation
        - atmosphere.log_electron_pressure
    )
    return np.asarray(1.0 / (1.0 + 10.0**-log_ratio))


def curve_of_growth(optical_depth: FloatArray) -> FloatArray:
    """Return the equivalent width in Doppler widths of a Gaussian line, ``∫ 1 − exp(−τ e^{−x²}) dx``."""
    return np.asarray(np.interp(np.log10(np.maximum(optical_depth, 1e-9)), _GROWTH_LOG_DEPTHS, _GROWTH_WIDTHS))


def _tabulate_growth() -> tuple[FloatArray, FloatArray]:
    """Integrate the curve of growth on a grid of log τ; linear interpolation errs by less than 0.1 %."""
    x = np.linspace(-6.0, 6.0, 601)
    log_depths = np.linspace(-9.0, 9.0, 1801)
    widths = -np.expm1(-(10.0 ** log_depths[:, None]) * np.exp(-x * x)).sum(axis=1) * (x[1] - x[0])
    return log_depths, widths


_GROWTH_LOG_DEPTHS, _GROWTH_WIDTHS = _tabulate_growth()


class SpectrumModel:
    """Renders spectra on one wavelength grid.

    Opacities are linear in fixed profiles: a line's core is a Gaussian of the instrument's width whose area is the
    line's equivalent width, a wing is ``1/(Δλ² + b²)`` times the damping amplitude, a band a fixed template. So a block
    of spectra is one matrix product, strengths (n, K) times profiles (K, P), and an elementwise saturation after it.

    Parameters
    ----------
    edges
        Pixel edges in Å, shape (P+1,).
    """

    #: Recorded in the column ``interp_param``: nothing is interpolated.
    name = "none"

    def __init__(self, edges: FloatArray) -> None:
        self.wave: FloatArray = 0.5 * (edges[1:] + edges[:-1])
        self._lines = list_lines(float(edges[0]), float(edges[-1]))
        self._damped = np.flatnonzero(self._lines.damping)
        sun = Labels(*(np.array([value]) for value in (_SUN_TEFF, _SUN_LOGG, 0.0, 0.0, 0.0)))
        self._sun = _plan_atmosphere(sun)
        self._sun_strengths = _line_log_strengths(self._lines, self._sun, sun)
        self._profiles = np.vstack(
            [
                _gaussian_profiles(edges, self._lines.wave, _RESOLUTION_SIGMA),
                _wing_profiles(self.wave, self._lines.wave[self._damped]),
                _paschen_profile(edges),
                _band_profile(self.wave, TIO_HEADS, ripple_seed=1),
                _band_profile(self.wave, CN_HEADS, ripple_seed=2),
            ]
        )

    def clip_labels(self, labels: Labels) -> tuple[Labels, int]:
        """Return the labels unchanged: the model has no edge."""
        return labels, 0

    def render(self, labels: Labels) -> FloatArray:
        """Return median-normalised flux, shape (n, P), of the stars in ``labels``.

        The residual intensity is Minnaert's ``1 − (1/η + 1/R_c)⁻¹`` of the total line opacity η, times the Planck
        continuum.
        """
        opacity = self._strengths(labels) @ self._profiles
        residual = 1.0 - _DEEPEST * opacity / (_DEEPEST + opacity)
        return normalise_spectra(_planck(self.wave, labels.T_eff) * residual, self.wave)

    def _strengths(self, labels: Labels) -> FloatArray:
        """Return the amount of each profile, shape (n, K): equivalent widths (Å), wings (Å²), band depths."""
        atmosphere = _plan_atmosphere(labels)
        relative = _line_log_strengths(self._lines, atmosphere, labels) - self._sun_strengths
        doppler = atmosphere.doppler_speed[:, None] / _LIGHT_SPEED * self._lines.wave
        # A broader line is shallower: optical depth at the centre goes with one over the Doppler width.
        narrow = self._sun.doppler_speed[0] / atmosphere.doppler_speed[:, None]
        cores = doppler * curve_of_growth(10.0 ** (self._lines.log_depth + relative) * narrow)
        wings = self._lines.damping[self._damped] * 10.0 ** relative[:, self._damped]
        wings *= self._damping_relative_to_sun(atmosphere)[:, None]
        bands = np.column_stack(
            [
                _paschen_strength(atmosphere),
                _tio_strength(atmosphere, labels),
                _cn_strength(atmosphere, labels),
            ]
        )
        return np.hstack([cores, wings, bands])

    def _damping_relative_to_sun(self, atmosphere: _Atmosphere) -> FloatArray:
        """Return the damping constant over the Sun's (n,): a radiative part and van der Waals, ``∝ Pg T^{-0.7}``."""
        pressure = atmosphere.log_gas_pressure - self._sun.log_gas_pressure
        van_der_waals = 10.0**pressure * (atmosphere.theta / self._sun.theta) ** 0.7
        return 0.05 + 0.95 * van_der_waals


def _line_log_strengths(lines: LineList, atmosphere: _Atmosphere, labels: Labels) -> FloatArray:
    """Return log10 line opacity over continuum opacity (n, L), up to a constant per line.

    ``log A + log(share of atoms in this ion) − θχ − log κ(H⁻)``: abundance, Saha, Boltzmann, continuum.
    """
    result = -atmosphere.theta[:, None] * lines.excitation - atmosphere.log_continuum[:, None]
    names = np.array(lines.species)
    for name in sorted(set(lines.species)):
        species = SPECIES[name]
        ionised = _ionised_share(atmosphere, species.ionisation, species.partition)
        share = ionised if species.ionised else 1.0 - ionised
        abundance = labels.M_H + (labels.a_M if species.alpha else 0.0)
        result[:, names == name] += (abundance + np.log10(np.maximum(share, 1e-12)))[:, None]
    return result


def _paschen_strength(atmosphere: _Atmosphere) -> FloatArray:
    """Return the equivalent width of P14 in Å: hydrogen excited to n = 3 (12.09 eV) over the continuum."""
    log_strength = -12.09 * (atmosphere.theta - 5040.0 / (_LINE_LAYER * 6000.0))
    return 0.5 * 10.0 ** (log_strength - (atmosphere.log_continuum - _PASCHEN_CONTINUUM))


def _tio_strength(atmosphere: _Atmosphere, labels: Labels) -> FloatArray:
    """Return TiO's optical depth at the 7054 Å head: the share of Ti bound in TiO over the continuum.

    Mass action gives the ratio of bound to free Ti, ``A_O Pg 10^{Dθ}``; titanium is the scarce partner, so the band
    grows like ``A_Ti A_O`` while it is weak and saturates once the titanium is used up.
    """
    log_bound = (
        labels.M_H
        + labels.a_M
        + (atmosphere.log_gas_pressure - _LOG_GAS_PRESSURE)
        + _TIO_BOND * (atmosphere.theta_molecules - _TIO_THETA)
    )
    log_strength = labels.M_H + labels.a_M - (atmosphere.log_continuum - _TIO_CONTINUUM)
    return 1.5 * 10.0**log_strength / (1.0 + 10.0**-log_bound)


def _cn_strength(atmosphere: _Atmosphere, labels: Labels) -> FloatArray:
    """Return CN's optical depth at the 7916 Å head: mass action of N and of the carbon that CO leaves free.

    CO takes the carbon where it is cool and dense, so CN peaks near 4500 K and prefers giants.
    """
    log_locked = (
        labels.M_H
        + labels.a_M
        + (atmosphere.log_gas_pressure - _LOG_GAS_PRESSURE)
        + _CO_BOND * (atmosphere.theta_molecules - _CO_THETA)
    )
    free_carbon = 1.0 / (1.0 + 10.0**log_locked)
    log_strength = (
        2.0 * labels.M_H
        + labels.C_M
        + _CN_BOND * (atmosphere.theta_molecules - _CO_THETA)
        + (atmosphere.log_gas_pressure - atmosphere.log_electron_pressure - _LOG_GAS_PER_ELECTRON)
    )
    return 0.045 * free_carbon * 10.0**log_strength


def _dwarf_continuum(temperature: float) -> float:
    """Return log κ of a dwarf of solar composition."""
    columns = (np.array([value]) for value in (temperature, _SUN_LOGG, 0.0, 0.0, 0.0))
    return float(_plan_atmosphere(Labels(*columns)).log_continuum[0])


# The dwarfs for which strengths are quoted: Paschen at 6000 K; half of the Ti bound at 3700 K, half of the C at 5200 K.
_PASCHEN_CONTINUUM = _dwarf_continuum(6000.0)
_TIO_CONTINUUM = _dwarf_continuum(3700.0)
_TIO_THETA = 5040.0 / (_MOLECULE_LAYER * 3700.0)
_CO_THETA = 5040.0 / (_MOLECULE_LAYER * 5200.0)


def _planck(wave: FloatArray, temperature: FloatArray) -> FloatArray:
    """Return the Planck function ``λ⁻⁵/(exp(hc/λkT) − 1)``, (n, P), up to a constant; hc/k = 1.43878e8 Å K."""
    return wave**-5.0 * 1e19 / np.expm1(1.438_776_877e8 / (wave * temperature[:, None]))


def _gaussian_profiles(edges: FloatArray, centres: FloatArray, sigma: float) -> FloatArray:
    """Return area-normalised Gaussians averaged over pixels, (L, P) in 1/Å, so no pixel size loses area."""
    cumulative = 0.5 * erf((edges - centres[:, None]) / (np.sqrt(2.0) * sigma))
    return np.asarray(np.diff(cumulative, axis=1) / np.diff(edges))


def _wing_profiles(wave: FloatArray, centres: FloatArray) -> FloatArray:
    """Return ``1/(Δλ² + b²)`` (L, P) in 1/Å²; b = 1.2 Å, where the instrument would blur the wing's centre."""
    return 1.0 / ((wave - centres[:, None]) ** 2 + 1.2**2)


def _paschen_profile(edges: FloatArray) -> FloatArray:
    """Return the Paschen series (1, P) in 1/Å, each line 4 Å wide: the Stark effect, not the instrument."""
    centres, strengths = (np.array(column) for column in zip(*PASCHEN_LINES, strict=True))
    return strengths @ _gaussian_profiles(edges, centres, 4.0)[None]


def _band_profile(wave: FloatArray, heads: tuple[tuple[float, float, float], ...], ripple_seed: int) -> FloatArray:
    """Return a molecule's optical depth (1, P): sharp heads that fade to the red, rippled like rotational lines."""
    profile = np.zeros_like(wave)
    for head, depth, length in heads:
        distance = wave - head
        rise = 0.5 * (1.0 + erf(distance / (np.sqrt(2.0) * _RESOLUTION_SIGMA)))
        profile += depth * rise * np.exp(-np.maximum(distance, 0.0) / length)
    phases = np.random.default_rng(ripple_seed).uniform(0.0, 2.0 * np.pi, 3)
    periods = np.array([5.3, 8.1, 13.7])
    ripple = np.sin(2.0 * np.pi * wave / periods[:, None] + phases[:, None]).sum(axis=0)
    return np.asarray(profile * (1.0 + 0.2 * ripple))[None]
