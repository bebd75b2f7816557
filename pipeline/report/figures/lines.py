"""Named spectral lines on axes whose x is a wavelength."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes

from pipeline.errors import InputError, did_you_mean
from pipeline.report.figures.canvas import MUTED, SMALL

__all__ = ["LINE_NAMES", "SPECTRAL_LINES", "SpectralLine", "find_lines", "mark_lines"]

# --- Named features of red stellar spectra, and where they are: what figures mark.
#
# Wavelengths in air (Å), as the pipeline's users state them; bands are given by their heads, from which they fade to
# longer wavelengths.


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
SPECTRAL_LINES: Final = tuple(
    sorted(SpectralLine(wavelength, name) for name, wavelengths in _WAVELENGTHS.items() for wavelength in wavelengths)
)
"""All features that figures can mark, by wavelength in Å: a tuple of :class:`pipeline.SpectralLine`."""


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


#: Those that stand out, few enough to be read.
_STRONG = ("Ca II", "Na I", "Mg I", "K I", "TiO", "CN")
#: Names nearer than this share of the axes could overlap.
_NEAREST = 0.022


def mark_lines(axes: Axes, names: Collection[str] = _STRONG, *, named: bool = True) -> None:
    """Mark named lines within the present limits of the x axis, their names above the axes.

    Parameters
    ----------
    axes
        x in Å; the limits are those of when this is called.
    names
        Some of :data:`pipeline.report.figures.lines.LINE_NAMES`; those that stand out by default.
    named
        Write the names, too: of axes that share their x, the uppermost are enough.

    Raises
    ------
    InputError
        If a name is not known.
    """
    start, stop = sorted(axes.get_xlim())
    groups: list[list[SpectralLine]] = []
    for line in find_lines(start, stop, names):
        axes.axvline(line.wavelength, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0.5)
        if groups and line.wavelength - groups[-1][0].wavelength < _NEAREST * (stop - start):
            groups[-1].append(line)
        else:
            groups.append([line])
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": SMALL - 2, "color": MUTED}
    for group in groups if named else ():
        # Lines too near for names of their own share one, at the first of them: a name never stands where no line is.
        text = " · ".join(dict.fromkeys(line.name for line in group))
        axes.text(group[0].wavelength, 1.03, text, transform=axes.get_xaxis_transform(), **style)
