"""Where the spectra lie over the columns that define the bins, and how many lie in no bin."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures.canvas import (
    BLUES,
    GLOBAL,
    INK,
    ORACLE,
    SMALL,
    TEXT,
    WARNING,
    add_title,
    is_narrow,
    new_figure,
    page_width,
    place_panels,
    show_empty,
    style_axes,
)
from pipeline.report.words import bin_edges, coverage, quantity
from pipeline.scoring import RunResults

__all__ = ["draw_sample_distribution"]

_PARTS = (("train", "Training spectra"), ("test", "Test spectra"))


def draw_sample_distribution(results: RunResults) -> Figure:
    """Draw the distribution of train and test spectra over the bin columns, with the bins' edges.

    Two columns give two maps; one column gives two step lines; of three and more the first two are drawn,
    summed over the others.
    """
    columns = list(bin_edges(results))
    figure = new_figure(page_width(), 6.6)
    note = "Lines: edges of the bins."
    if len(columns) == 1:
        _draw_steps(figure.subplots(), results, columns[0])
    else:
        panels = place_panels(figure, 2, sharex=True, sharey=True)
        _draw_maps(figure, panels, results)
        if len(columns) > 2:
            note += f" Summed over {', '.join(map(quantity, columns[2:]))}."
        else:
            note += " Numbers: bins."
    add_title(
        figure,
        "Where the spectra are, and what the bins leave out",
        f"Share of each set's spectra. {note}",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _outside(results: RunResults, part: str) -> str:
    share = coverage(results, part)
    count = results.metadata.get("stores", {}).get(part, {}).get("n_spectra")
    total = "" if count is None else f" of {count:,}"
    return "" if share is None else f": {1 - share:.1%}{total} in no bin"


def _shares(frame: pd.DataFrame, columns: list[str], part: str) -> pd.Series:
    """Return the percentage of a set's spectra in each grid cell, indexed by the cells' lower edges."""
    counts = frame.groupby([f"{column}_low" for column in columns])[f"n_{part}"].sum()
    return 100 * counts / max(counts.sum(), 1)


def _cuts(frame: pd.DataFrame, column: str) -> np.ndarray[Any, Any]:
    return np.unique(np.concatenate([frame[f"{column}_low"], frame[f"{column}_high"]]))


def _draw_steps(axes: Axes, results: RunResults, column: str) -> None:
    edges = bin_edges(results)[column]
    cuts = _cuts(results.sample, column)
    if len(cuts) < 2:
        show_empty(axes, "no distribution in this run")
        return
    for (part, title), color, dashes in zip(_PARTS, (ORACLE, GLOBAL), ("-", "--"), strict=True):
        shares = _shares(results.sample, [column], part).reindex(cuts[:-1], fill_value=0.0)
        label = title + _outside(results, part)
        axes.stairs(shares, cuts, color=color, linewidth=2.5, linestyle=dashes, label=label)
    for edge in edges:
        axes.axvline(edge, color=WARNING, linewidth=1.5)
    for start, end in ((min(cuts[0], edges[0]), edges[0]), (edges[-1], max(cuts[-1], edges[-1]))):
        axes.axvspan(start, end, color="#DDDDDD", alpha=0.6, linewidth=0, zorder=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(min(cuts[0], edges[0]), max(cuts[-1], edges[-1]))
    style_axes(axes, x=quantity(column), y="spectra per step (%)", grid="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=TEXT, frameon=False)


def _draw_maps(figure: Figure, panels: list[Axes], results: RunResults) -> None:
    edges = bin_edges(results)
    # As in the heat map: the first column upwards, the second to the right.
    upward, rightward = list(edges)[:2]
    cuts = {column: _cuts(results.sample, column) for column in (upward, rightward)}
    if min(map(len, cuts.values())) < 2:
        show_empty(panels[0], "no distribution in this run")
        panels[1].set_axis_off()
        return
    maps = []
    for part, _ in _PARTS:
        shares = _shares(results.sample, [upward, rightward], part).unstack(fill_value=0)
        maps.append(shares.reindex(index=cuts[upward][:-1], columns=cuts[rightward][:-1], fill_value=0.0))
    # The training set sets the scale: a small test set's few crowded cells would wash it out.
    most = float(maps[0].to_numpy().max()) or 1.0
    # The scale begins at the smallest share that is there: a bar that began at zero would tint what is white.
    least = min(float(share.to_numpy()[share.to_numpy() > 0].min(initial=most)) for share in maps)
    for axes, share, (part, title) in zip(panels, maps, _PARTS, strict=True):
        filled = np.ma.masked_equal(share.to_numpy(), 0)
        mesh = axes.pcolormesh(cuts[rightward], cuts[upward], filled, cmap=BLUES, vmin=min(least, most / 2), vmax=most)
        _draw_edges(axes, edges[rightward], edges[upward], number=len(edges) == 2)
        style_axes(axes, title=title + _outside(results, part), x=quantity(rightward), grid="")
    for axes in panels:
        axes.tick_params(labelbottom=True)
    for axes in panels if is_narrow() else panels[:1]:
        axes.set_ylabel(quantity(upward), fontsize=TEXT)
    bar = figure.colorbar(mesh, ax=panels, fraction=0.03, pad=0.02, extend="max")
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("spectra per cell (%)", fontsize=TEXT)


def _draw_edges(axes: Axes, x_edges: list[float], y_edges: list[float], *, number: bool) -> None:
    style: dict[str, Any] = {"colors": WARNING, "linewidth": 2}
    axes.vlines(x_edges, y_edges[0], y_edges[-1], **style)
    axes.hlines(y_edges, x_edges[0], x_edges[-1], **style)
    if not number:
        return
    centers = product(*([(a + b) / 2 for a, b in pairwise(edges)] for edges in (y_edges, x_edges)))
    for label, (y, x) in enumerate(centers):
        text = axes.text(x, y, str(label), ha="center", va="center", fontsize=TEXT, fontweight="bold", color=INK)
        text.set_path_effects([patheffects.Stroke(linewidth=3, foreground="white"), patheffects.Normal()])
