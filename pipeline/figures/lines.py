"""Named spectral lines on axes whose x is a wavelength."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from matplotlib.axes import Axes

from pipeline.figures.canvas import MUTED, SMALL
from pipeline.lines import SpectralLine, find_lines

__all__ = ["mark_lines"]

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
        Some of :data:`pipeline.lines.LINE_NAMES`; those that stand out by default.
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
