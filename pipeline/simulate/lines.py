"""The absorption lines and bands that the simulated spectra contain, and where they come from.

The strong features are the ones the pipeline's users look at (Ca II triplet, Na I, Mg I, K I, Fe I, Ti I, Paschen,
TiO, CN) at their laboratory wavelengths. Strengths are rounded to give solar-like equivalent widths; they make
spectra that *behave* like stars, not spectra to measure stars with. The forest of weak lines is invented: a fixed
random list whose species, excitation and strengths are distributed like those of real red spectra.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "CN_HEADS",
    "MODEL_RANGE",
    "PASCHEN_LINES",
    "SPECIES",
    "TIO_HEADS",
    "LineList",
    "Species",
    "list_lines",
]

FloatArray = npt.NDArray[np.float64]

#: Wavelengths (Å) between which the model has lines; outside it would be a featureless continuum.
MODEL_RANGE: Final = (6300.0, 9700.0)


@dataclass(frozen=True)
class Species:
    """An element in one stage of ionisation.

    ``ionisation`` is the energy (eV) that separates the neutral from the singly ionised atom, ``partition`` the ratio
    2 u⁺/u⁰ of the Saha equation (rounded), ``alpha`` whether the element follows [α/M].
    """

    ionisation: float
    ionised: bool
    alpha: bool
    partition: float


#: Ionisation energies (eV) of Ca, Na, Mg, K, Fe, Ti, Si, Ni, V from the NIST tables, two decimals.
SPECIES: Final = MappingProxyType(
    {
        "Ca I": Species(6.11, False, True, 4.0),
        "Ca II": Species(6.11, True, True, 4.0),
        "Na I": Species(5.14, False, False, 1.0),
        "Mg I": Species(7.65, False, True, 4.0),
        "K I": Species(4.34, False, False, 1.0),
        "Fe I": Species(7.90, False, False, 3.0),
        "Fe II": Species(7.90, True, False, 3.0),
        "Ti I": Species(6.83, False, True, 3.5),
        "Ti II": Species(6.83, True, True, 3.5),
        "Si I": Species(8.15, False, True, 1.2),
        "Ni I": Species(7.64, False, False, 0.8),
        "V I": Species(6.75, False, False, 2.0),
    }
)

# Wavelength (Å), lower level (eV), log10 of the solar optical depth at line centre, solar damping amplitude A (Å²) of
# the wings τ = A/Δλ². A damped line of amplitude A absorbs about π·sqrt(0.85·A) Å: 3.9 Å for Ca II 8542.
_STRONG_LINES: Final = (
    ("Ca II", 8498.02, 1.69, 2.7, 0.20),
    ("Ca II", 8542.09, 1.70, 3.6, 1.80),
    ("Ca II", 8662.14, 1.69, 3.4, 1.00),
    ("Na I", 8183.26, 2.10, 1.7, 0.004),
    ("Na I", 8194.82, 2.10, 2.0, 0.008),
    ("Mg I", 8806.76, 4.35, 2.4, 0.045),
    ("K I", 7664.90, 0.00, 1.9, 0.004),
    ("K I", 7698.96, 0.00, 1.6, 0.002),
    ("Fe I", 8327.05, 2.20, 1.3, 0.002),
    ("Fe I", 8387.77, 2.18, 1.5, 0.002),
    ("Fe I", 8468.41, 2.22, 1.0, 0.0),
    ("Fe I", 8514.07, 2.20, 0.9, 0.0),
    ("Fe I", 8621.60, 2.95, 0.6, 0.0),
    ("Fe I", 8674.75, 2.83, 1.0, 0.0),
    ("Fe I", 8688.63, 2.18, 1.7, 0.003),
    ("Fe I", 8757.19, 2.85, 0.9, 0.0),
    ("Fe I", 8824.22, 2.20, 1.6, 0.002),
    ("Ti I", 8377.9, 0.83, 0.1, 0.0),
    ("Ti I", 8382.5, 0.82, 0.2, 0.0),
    ("Ti I", 8412.4, 0.82, 0.2, 0.0),
    ("Ti I", 8426.5, 0.83, 0.4, 0.0),
    ("Ti I", 8434.9, 0.85, 0.5, 0.0),
)

# Share of the weak lines, and the range of their lower levels (eV).
_WEAK_SPECIES: Final = (
    ("Fe I", 0.44, 2.2, 5.0),
    ("Ti I", 0.16, 0.8, 2.5),
    ("Ni I", 0.09, 1.7, 4.5),
    ("Si I", 0.08, 5.0, 6.2),
    ("Ca I", 0.04, 2.5, 4.7),
    ("V I", 0.05, 0.3, 2.0),
    ("Mg I", 0.02, 4.3, 5.8),
    ("Fe II", 0.06, 2.8, 4.0),
    ("Ti II", 0.06, 1.5, 3.1),
)
# 400 of them fall between 7100 and 8850 Å.
_WEAK_LINES: Final = 777
# Fixed for ever, and not the user's seed: a line list belongs to nature, so every sample has the same one.
_WEAK_LINE_SEED: Final = 8542

#: Hydrogen n → 3 lines (Å), P17 to P11, and their strengths relative to P14; P10 and P9 serve the full range.
PASCHEN_LINES: Final = (
    (8467.25, 0.6),
    (8502.48, 0.7),
    (8545.38, 0.85),
    (8598.39, 1.0),
    (8665.02, 1.2),
    (8750.47, 1.45),
    (8862.8, 1.7),
    (9014.9, 2.0),
    (9229.0, 2.4),
)

#: TiO heads: wavelength (Å), relative depth, length (Å) over which the band fades to the red.
TIO_HEADS: Final = (
    (6651.0, 0.7, 60.0),
    (7054.0, 1.0, 70.0),
    (7087.0, 0.8, 70.0),
    (7126.0, 0.7, 80.0),
    (7589.0, 0.6, 90.0),
    (8432.0, 0.35, 45.0),
    (8859.0, 0.35, 60.0),
    (9209.0, 0.3, 80.0),
)

#: Heads of the CN red system, as above; the main ones lie between 7850 and 8100 Å.
CN_HEADS: Final = (
    (6925.0, 0.5, 60.0),
    (7088.0, 0.4, 60.0),
    (7259.0, 0.4, 60.0),
    (7872.0, 0.8, 90.0),
    (7895.0, 0.9, 90.0),
    (7916.0, 1.0, 90.0),
    (8083.0, 0.5, 70.0),
    (8320.0, 0.3, 80.0),
    (9141.0, 0.9, 90.0),
)


@dataclass(frozen=True)
class LineList:
    """Atomic lines as columns, each of shape (L,); ``species`` holds keys of :data:`SPECIES`.

    ``wave`` is in Å, ``excitation`` in eV, ``log_depth`` is log10 of the optical depth at the line's centre and
    ``damping`` the amplitude of its wings in Å², both for the Sun.
    """

    species: tuple[str, ...]
    wave: FloatArray
    excitation: FloatArray
    log_depth: FloatArray
    damping: FloatArray


def list_lines(start: float, stop: float) -> LineList:
    """Return the lines that matter between two wavelengths (Å): strong ones first, then the weak forest.

    Weak lines are kept up to 10 Å outside the range and strong ones up to 100 Å, because of their wings.
    """
    strong = [line for line in _STRONG_LINES if start - 100.0 < line[1] < stop + 100.0]
    weak = [line for line in _draw_weak_lines() if start - 10.0 < line[1] < stop + 10.0]
    species, wave, excitation, log_depth, damping = zip(*strong, *weak, strict=True)
    return LineList(species, *(np.array(column) for column in (wave, excitation, log_depth, damping)))


def _draw_weak_lines() -> list[tuple[str, float, float, float, float]]:
    """Draw the fixed forest: uniform in wavelength, many weak and few strong lines."""
    generator = np.random.default_rng(_WEAK_LINE_SEED)
    names, shares, lows, highs = (np.array(column) for column in zip(*_WEAK_SPECIES, strict=True))
    kind = generator.choice(len(names), size=_WEAK_LINES, p=shares / shares.sum())
    wave = np.sort(generator.uniform(*MODEL_RANGE, _WEAK_LINES))
    excitation = generator.uniform(lows[kind], highs[kind])
    log_depth = -1.4 + 2.4 * generator.beta(1.2, 1.6, _WEAK_LINES)
    return [
        (str(names[kind[i]]), float(wave[i]), float(excitation[i]), float(log_depth[i]), 0.0)
        for i in range(_WEAK_LINES)
    ]
