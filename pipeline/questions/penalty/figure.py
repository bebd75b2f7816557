"""R² against the penalty, a panel for each model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from pipeline.questions.penalty.answer import GLOBAL_MODEL
from pipeline.report import over_seeds
from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SMALL,
    TEXT,
    add_title,
    is_narrow,
    is_slide,
    new_figure,
    page_width,
    room_for_title,
    show_empty,
    style_axes,
    tallest,
)
from pipeline.ridge import format_alpha
from pipeline.scoring import RunResults

__all__ = ["draw_alpha_search"]

#: R² further below the best than this would press all curves flat: axes end there.
_DEEPEST = 1.0


def draw_alpha_search(results: RunResults, paths: pd.DataFrame) -> Figure:
    """Draw R² on held-out folds, and on test spectra, against the penalty: a panel for each model.

    ``paths`` are the rows of ``alpha_search.csv``. Curves are means over seeds at the headline noise level; every
    penalty that a seed chose is marked.
    """
    level = results.summary.headline
    rows = paths[paths["noise_level"] == level.noise_level]
    names = {GLOBAL_MODEL: "Global ridge"} | {str(one.bin): one.label for one in level.bins}
    n_columns = _choose_columns([*names.values()])
    n_rows = math.ceil(len(names) / n_columns)
    is_full = len(names) == n_rows * n_columns
    height = 2.0 * n_rows + 0.4 * is_full + (1.5 if is_slide() else 0.7)
    figure = new_figure(page_width(), min(height, tallest()) + room_for_title())
    if rows.empty:
        show_empty(figure.subplots(), "no penalty was searched for in this run")
    else:
        panels, legend = _place_panels(figure, len(names), n_rows, n_columns)
        for axes, (model, name) in zip(panels, names.items(), strict=True):
            title = _cut(name, _count_letters(n_columns))
            _draw_model(axes, rows[rows["model"] == model], title, GLOBAL if model == GLOBAL_MODEL else ORACLE)
        _label_penalties(panels, sorted(rows["alpha"].unique()))
        for number, axes in enumerate(panels):
            # The place below is the legend's or empty: the axis is labelled here.
            is_last = number + n_columns >= len(names)
            axes.tick_params(labelbottom=is_last)
            axes.set_xlabel("penalty α" if is_last else "", fontsize=SMALL)
        _draw_legend(legend, is_row=is_full)
    add_title(
        figure,
        "Which penalty the training folds choose",
        f"Noise level {level.noise_level:g}{over_seeds(results)}. Solid: R² on held-out folds of the training set, "
        "which chose. Dashed: R² on test spectra, which played no part in the choice.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _choose_columns(names: Sequence[str]) -> int:
    """Return how many panels stand side by side: so many that all names fit and few places stay empty."""
    if is_narrow():
        return 2
    return min(
        (4, 5) if is_slide() else (3, 4, 5),
        key=lambda columns: (max(map(len, names)) > _count_letters(columns), -len(names) % columns, columns),
    )


def _count_letters(n_columns: int) -> int:
    """Return how many letters fit above a panel."""
    return int(10.6 * (page_width() / n_columns - 0.6))


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _place_panels(figure: Figure, n_models: int, n_rows: int, n_columns: int) -> tuple[list[Axes], Axes]:
    """Return a panel for each model, and a place for the legend: the next one, or above all if none is left."""
    is_full = n_models == n_rows * n_columns
    grid = figure.add_gridspec(n_rows + is_full, n_columns, height_ratios=[0.08] * is_full + [1.0] * n_rows)
    places = [grid[row, column] for row in range(is_full, n_rows + is_full) for column in range(n_columns)]
    first = figure.add_subplot(places[0])
    panels = [first, *(figure.add_subplot(place, sharex=first) for place in places[1:n_models])]
    legend = figure.add_subplot(grid[0, :] if is_full else places[n_models])
    legend.set_axis_off()
    return panels, legend


def _draw_model(axes: Axes, rows: pd.DataFrame, name: str, color: str) -> None:
    means = rows.groupby("alpha")[["r2_cv", "r2_test"]].mean()
    for column, dashes, width in (("r2_test", (0, (4, 2)), 1.6), ("r2_cv", "-", 2.4)):
        axes.plot(means.index, means[column], color=color, linestyle=dashes, linewidth=width)
    chosen = means.loc[sorted(rows.loc[rows["chosen"], "alpha"].unique()), "r2_cv"]
    for alpha in chosen.index:
        axes.axvline(alpha, color=MUTED, linewidth=0.9, zorder=1)
    axes.plot(chosen.index, chosen, color=INK, marker="o", markersize=8, linestyle="none", zorder=5)
    style_axes(axes, y="R²", grid="y")
    axes.set_title(name, loc="left", fontsize=SMALL, color=INK)
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    axes.margins(y=0.12)
    values = means.to_numpy()
    best, worst = (float(np.nanmax(values)), float(np.nanmin(values))) if np.isfinite(values).any() else (np.nan,) * 2
    if not math.isfinite(best):
        axes.yaxis.set_major_locator(NullLocator())
        axes.text(0.5, 0.5, "no R²", transform=axes.transAxes, ha="center", va="center", fontsize=TEXT, color=MUTED)
    elif worst < best - _DEEPEST:
        axes.set_ylim(best - _DEEPEST, best + 0.12 * _DEEPEST)


def _label_penalties(panels: Sequence[Axes], alphas: Sequence[float]) -> None:
    """Label the penalties that were tried, thinned where they would touch; both ends come first."""
    reach = math.log(alphas[-1] / alphas[0])
    shown: list[float] = []
    for alpha in dict.fromkeys([alphas[-1], alphas[0], *alphas]):
        if all(abs(math.log(other / alpha)) >= 0.24 * reach for other in shown):
            shown.append(alpha)
    for axes in panels:
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_major_formatter(FixedFormatter([format_alpha(alpha) for alpha in shown]))
        axes.xaxis.set_minor_locator(NullLocator())


def _draw_legend(axes: Axes, *, is_row: bool) -> None:
    lines = [
        Line2D([], [], color=INK, linewidth=2.4, label="held-out folds"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label="test (no part in it)"),
        Line2D([], [], color=INK, marker="o", markersize=8, linestyle="none", label="chosen α"),
    ]
    look: dict[str, Any] = {"loc": "center left", "frameon": False, "fontsize": SMALL if is_row else TEXT}
    if is_row:
        look |= {"ncols": len(lines), "handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.0}
    else:
        look |= {"title": "R² against α", "title_fontsize": TEXT}
    axes.legend(handles=lines, **look)
