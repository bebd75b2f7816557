"""Make what was drawn smaller, so that a figure fits into a sub-figure of somebody's own.

Positions follow the sub-figure by themselves. What is measured in points does not, such as letters, lines and marks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import DrawingArea, PackerBase
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Affine2D

__all__ = ["shrink"]

_OF_TICKS = ("labelsize", "length", "pad", "grid_linewidth")


def shrink(figure: Figure | SubFigure, scale: float) -> None:
    """Multiply everything that is measured in points by a factor.

    Parameters
    ----------
    figure
        What was drawn into.
    scale
        The factor, in (0, 1].
    """
    # Listed before anything changes: smaller letters make room for further ticks, which are born small.
    artists, axes = set(figure.findobj()), [one for one in figure.findobj(Axis) if isinstance(one, Axis)]
    for axis in axes:
        artists -= set(axis.findobj()) - {axis.label}
    for axis in axes:
        look: dict[str, Any] = axis.get_tick_params()
        axis.set_tick_params(**{name: scale * look[name] for name in _OF_TICKS if name in look})
        axis.labelpad *= scale
    for artist in artists:
        _shrink(artist, scale)


def _shrink(artist: Any, scale: float) -> None:
    if isinstance(artist, Text):
        artist.set_fontsize(scale * float(artist.get_fontsize()))
    elif isinstance(artist, Line2D):
        artist.set_markersize(scale * artist.get_markersize())
        artist.set_markeredgewidth(scale * artist.get_markeredgewidth())
    if isinstance(artist, Annotation):
        offset: Any = artist.xyann
        artist.xyann = (scale * offset[0], scale * offset[1])
    if isinstance(artist, Line2D | Patch):
        artist.set_linewidth(scale * artist.get_linewidth())
    elif isinstance(artist, Collection):
        artist.set_linewidth((scale * np.asarray(artist.get_linewidth())).tolist())
        if isinstance(artist, PathCollection):
            artist.set_sizes(scale**2 * artist.get_sizes())
    elif isinstance(artist, PackerBase):  # of legends
        artist.pad, artist.sep = (scale * (room or 0) for room in (artist.pad, artist.sep))
    elif isinstance(artist, DrawingArea):  # a mark in a legend
        artist.width, artist.height = scale * artist.width, scale * artist.height
        for mark in artist.get_children():
            mark.set_transform(Affine2D().scale(scale) + artist.get_transform())
