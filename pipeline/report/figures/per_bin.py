"""The bins one by one: a heat map of ΔR², and both models' R² side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SMALL,
    TEXT,
    add_interval,
    add_title,
    choose_ink,
    format_counts,
    format_value,
    is_narrow,
    is_slide,
    new_figure,
    page_width,
    style_axes,
)
from pipeline.report.words import bin_edges, interval_labels, over_seeds, quantity
from pipeline.scoring import Bin, Estimate, RunResults

__all__ = [
    "LOWEST_R2",
    "draw_delta_heatmap",
    "draw_grouped_r2",
    "limit_values",
    "list_bins",
    "note_cut_bars",
    "write_columns",
]

#: R² below this is off the scale in any useful sense; the number beside the bar says how far.
LOWEST_R2 = -0.6


def draw_delta_heatmap(results: RunResults) -> Figure:
    """Draw ΔR² of every bin as a table in colour, with its interval and numbers of spectra in the cell.

    Two columns span the two axes; one column gives one row; of three and more, the first runs upwards and
    the product of the others to the right.
    """
    bins = results.summary.headline.bins
    row_labels, column_labels = _heatmap_labels(results)
    n_rows, n_columns = len(row_labels), len(column_labels)
    # A slide is the smallest size; more bins than fit on one get a larger figure, never smaller print.
    wide = n_columns <= 6 and not is_narrow()
    size = (max(page_width(), (1.9 if wide else 1.15) * n_columns + 2.0), max(4.6, 1.3 * n_rows + 2.6))
    figure = new_figure(*size)
    axes = figure.subplots()
    largest = max([abs(view.delta_r2.mean) for view in bins if math.isfinite(view.delta_r2.mean)], default=0.0)
    colors = ScalarMappable(TwoSlopeNorm(0.0, -max(largest, 0.01), max(largest, 0.01)), "RdBu")
    # A narrow cell has no room for exact counts.
    exact_below = 100_000 if wide else 1000
    counts = zip(
        *(format_counts(values, exact_below=exact_below) for values in _bin_counts(bins)),
        strict=True,
    )
    for view, (n_train, n_test) in zip(bins, counts, strict=True):
        row, column = divmod(view.bin, n_columns)
        _draw_cell(axes, (column, row), view, colors, f"{n_train} / {n_test}", wide=wide)
    axes.set(xlim=(-0.5, n_columns - 0.5), ylim=(-0.5, n_rows - 0.5))
    axes.set_xticks(range(n_columns), column_labels)
    axes.set_yticks(range(n_rows), row_labels)
    columns = [quantity(column) for column in bin_edges(results)]
    x, y = (columns[0], "") if len(columns) == 1 else (" × ".join(columns[1:]), columns[0])
    style_axes(axes, x=x, y=y, grid="")
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(colors, ax=axes, fraction=0.04, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("ΔR²", fontsize=TEXT)
    level = results.summary.headline.noise_level
    add_title(
        figure,
        "Where experts gain: ΔR² in every bin",
        f"Each cell: ΔR², its {results.summary.confidence:.0%} interval, training / test spectra. "
        f"Noise level {level:g}{over_seeds(results)}.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _heatmap_labels(results: RunResults) -> tuple[list[str], list[str]]:
    labels = [interval_labels(results, column) for column in bin_edges(results)]
    if len(labels) == 1:
        return [""], labels[0]
    if len(labels) == 2:
        return labels[0], labels[1]
    # The edges of three and more columns do not fit under a cell: names alone.
    names = [[label.partition("\n")[0] for label in column] for column in labels[1:]]
    return labels[0], ["\n".join(combination) for combination in product(*names)]


def _bin_counts(bins: Sequence[Bin]) -> tuple[list[int], list[int]]:
    return [view.n_train for view in bins], [view.n_test for view in bins]


def _draw_cell(axes: Axes, at: tuple[int, int], view: Bin, colors: ScalarMappable, counts: str, *, wide: bool) -> None:
    delta = view.delta_r2
    known = math.isfinite(delta.mean)
    face = colors.to_rgba(np.array(delta.mean)) if known else np.array([0.93, 0.93, 0.93, 1.0])
    corner = (at[0] - 0.5, at[1] - 0.5)
    hatch = None if known else "//"
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=tuple(face), edgecolor="white", linewidth=3, hatch=hatch))
    ink = choose_ink(list(face))
    style: dict[str, Any] = {"ha": "center", "color": ink, "fontsize": SMALL}
    big: dict[str, Any] = {**style, "fontsize": 16 if wide else 14, "fontweight": "bold"}
    axes.text(at[0], at[1] + 0.06, format_value(delta.mean, "+.3f"), **big, va="bottom")
    if math.isfinite(delta.low) and math.isfinite(delta.high):
        between = " to " if wide else "\nto "
        spread = format_value(delta.low, "+.3f") + between + format_value(delta.high, "+.3f")
        axes.text(at[0], at[1] + 0.02, spread, **style, va="top")
    axes.text(at[0], at[1] + 0.44, f"bin {view.bin}", **style, va="top")
    axes.text(at[0], at[1] - 0.43, counts, **style, va="bottom")


def draw_grouped_r2(results: RunResults) -> Figure:
    """Draw R² of the global ridge and of the oracle experts side by side for every bin.

    The bars lie down, so that any number of bins and any length of name stay legible; numbers stand in
    columns to the right, on axes of their own, where no bar can reach them.
    """
    bins = results.summary.headline.bins
    figure = new_figure(page_width(), max(4.4, 0.58 * len(bins) + 2.2))
    axes, table = figure.subplots(1, 2, sharey=True, width_ratios=(8.0, 1.6 if is_narrow() else 3.6))
    height = 0.36
    for offset, name, color, label in (
        (-height / 2, "r2_global", GLOBAL, "Global ridge"),
        (height / 2, "r2_oracle", ORACLE, "Oracle experts"),
    ):
        estimates: list[Estimate] = [getattr(view, name) for view in bins]
        values = [0.0 if math.isnan(estimate.mean) else estimate.mean for estimate in estimates]
        positions = [row + offset for row in range(len(bins))]
        axes.barh(positions, values, height=height, color=color, label=label, zorder=2)
        for at, estimate in zip(positions, estimates, strict=True):
            add_interval(axes, at, estimate, horizontal=True)
    estimates_drawn = [e for v in bins for e in (v.r2_global, v.r2_oracle)]
    limit_values(axes, estimates_drawn, lowest=LOWEST_R2, highest=1.0)
    style_axes(axes, x="R²", y="bin")
    list_bins(axes, bins)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    columns = {"ΔR²": [format_value(view.delta_r2.mean, "+.3f") for view in bins]}
    if not is_narrow():
        columns = {
            "global": [format_value(view.r2_global.mean) for view in bins],
            "oracle": [format_value(view.r2_oracle.mean) for view in bins],
            **columns,
            "n train": format_counts([view.n_train for view in bins]),
            "n test": format_counts([view.n_test for view in bins]),
        }
    if not is_narrow() and not is_slide():
        del columns["n train"], columns["n test"]
    write_columns(table, columns)
    if is_narrow():  # the title needs the whole width; names of bins leave room to the left of the axes
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=SMALL, frameon=False)
    else:
        figure.legend(loc="outside upper right", ncols=2, fontsize=TEXT, frameon=False)
    level = results.summary.headline.noise_level
    add_title(
        figure,
        "R² per bin: one global ridge against one expert per bin",
        f"Noise level {level:g}{over_seeds(results)}. Black bars: {results.summary.confidence:.0%} interval."
        + note_cut_bars(estimates_drawn),
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def note_cut_bars(estimates: Sequence[Estimate]) -> str:
    """Return a sentence on bars that leave the axes, or nothing."""
    cut = any(estimate.mean < LOWEST_R2 for estimate in estimates)
    return f" Bars are cut at {LOWEST_R2:g}; the numbers are not.".replace("-", "−") if cut else ""


def list_bins(axes: Axes, bins: Sequence[Bin]) -> None:
    """Put the bins' labels on the y axis, the first one on top."""
    axes.set_yticks(range(len(bins)), [view.label for view in bins])
    axes.set_ylim(len(bins) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def write_columns(axes: Axes, columns: Mapping[str, Sequence[str]]) -> None:
    """Write texts as a table on axes that share their rows with a bar chart, under muted headings."""
    axes.set_axis_off()
    style: dict[str, Any] = {"ha": "right", "fontsize": SMALL}
    for place, (heading, texts) in enumerate(columns.items(), start=1):
        x = place / len(columns)
        axes.text(x, 1.01, heading, transform=axes.transAxes, va="bottom", color=MUTED, **style)
        for row, text in enumerate(texts):
            axes.text(x, row, text, transform=axes.get_yaxis_transform(), va="center", color=INK, **style)


def limit_values(axes: Axes, estimates: Sequence[Estimate], *, lowest: float, highest: float) -> None:
    """Limit the value axis to what the estimates span with zero, and never beyond the given ends."""
    ends = [end for e in estimates for end in (e.mean, e.low, e.high) if math.isfinite(end)]
    low, high = max(min([0.0, *ends]), lowest), min(max([0.0, *ends]), highest)
    margin = 0.04 * (high - low or 1.0)
    axes.set_xlim(low - (margin if low < 0 else 0.0), high + margin)
