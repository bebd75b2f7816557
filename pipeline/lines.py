"""Named features of red stellar spectra, and where they are: what figures mark.

Wavelengths in air (Å), as the pipeline's users state them; bands are given by their heads, from which they fade to
longer wavelengths.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from pipeline.errors import InputError, did_you_mean

__all__ = ["LINE_NAMES", "SPECTRAL_LINES", "SpectralLine", "find_lines"]


@dataclass(frozen=True, order=True)
class SpectralLine:
    """A line, or the head of a molecular band: its wavelength (Å) and the species that absorbs."""

    wavelength: float
    name: str


_WAVELENGTHS: Final = {
    "Ca II": (8498.02, 8542.09, 8662.14),
    "Na I": (8183.26, 8194.82),
    "Mg I": (8806.76,),
    "K I": (7664.90, 7698.96),
    "Fe I": (8327.05, 8387.77, 8468.41, 8514.07, 8621.60, 8674.75, 8688.63, 8757.19, 8824.22),
    "Ti I": (8377.9, 8382.5, 8412.4, 8426.5, 8434.9),
    "Paschen": (8467.25, 8502.48, 8545.38, 8598.39, 8665.02, 8750.47, 8862.8),
    "TiO": (7054.0, 7589.0, 8432.0),
    "CN": (7872.0, 7895.0, 7916.0, 8083.0),
}
#: What :func:`find_lines` knows.
LINE_NAMES: Final = tuple(_WAVELENGTHS)
#: All features, by wavelength.
SPECTRAL_LINES: Final = tuple(
    sorted(SpectralLine(wavelength, name) for name, wavelengths in _WAVELENGTHS.items() for wavelength in wavelengths)
)


def find_lines(start: float, stop: float, names: Collection[str] = LINE_NAMES) -> tuple[SpectralLine, ...]:
    """Return the named features between two wavelengths, by wavelength.

    Parameters
    ----------
    start, stop
        Å, both included.
    names
        Some of :data:`LINE_NAMES`; all by default.

    Raises
    ------
    InputError
        If a name is not known; the message shows the nearest one.
    """
    for name in names:
        if name not in _WAVELENGTHS:
            raise InputError(
                f"spectral lines are known of {', '.join(LINE_NAMES)}, found {name!r}{did_you_mean(name, LINE_NAMES)}"
            )
    return tuple(line for line in SPECTRAL_LINES if line.name in names and start <= line.wavelength <= stop)
