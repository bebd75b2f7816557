"""R² against the penalty, for every model: the curve that chose, and beside it what the test spectra say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SLIDE,
    SMALL,
    TEXT,
    add_title,
    new_figure,
    show_empty,
    style_axes,
)
from pipeline.ridge import format_alpha
from pipeline.scoring import RunResults

__all__ = ["GLOBAL_MODEL", "draw_alpha_search"]

#: The global model among the models of a search; experts have the number of their bin.
GLOBAL_MODEL = "global"

_COLUMNS = 4
#: Letters that fit above a panel.
_ROOM = 29
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
    n_rows = math.ceil((1 + len(names)) / _COLUMNS)
    figure = new_figure(SLIDE[0], min(2.0 * n_rows + 1.9, 15.9))
    if rows.empty:
        show_empty(figure.subplots(), "no penalty was searched for in this run")
    else:
        panels = list(figure.subplots(n_rows, _COLUMNS, sharex=True, squeeze=False).flat)
        for axes, (model, name) in zip(panels, names.items(), strict=False):
            _draw_model(axes, rows[rows["model"] == model], name, GLOBAL if model == GLOBAL_MODEL else ORACLE)
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        _label_penalties(panels, sorted(rows["alpha"].unique()))
        for number, axes in enumerate(panels[: len(names)]):
            # The panel below is the legend's or empty: the axis is labelled here.
            axes.tick_params(labelbottom=number + _COLUMNS >= len(names))
        _draw_legend(panels[len(names)])
    add_title(
        figure,
        "Which penalty the training folds choose",
        f"Noise level {level.noise_level:g}; mean over seeds. Solid: R² on held-out folds of the training set, "
        "which chose. Dashed: R² on test spectra, which played no part in the choice.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw_model(axes: Axes, rows: pd.DataFrame, name: str, color: str) -> None:
    means = rows.groupby("alpha")[["r2_cv", "r2_test"]].mean()
    for column, dashes, width in (("r2_test", (0, (4, 2)), 1.6), ("r2_cv", "-", 2.4)):
        axes.plot(means.index, means[column], color=color, linestyle=dashes, linewidth=width)
    chosen = means.loc[sorted(rows.loc[rows["chosen"], "alpha"].unique()), "r2_cv"]
    for alpha in chosen.index:
        axes.axvline(alpha, color=MUTED, linewidth=0.9, zorder=1)
    axes.plot(chosen.index, chosen, color=INK, marker="o", markersize=8, linestyle="none", zorder=5)
    style_axes(axes, y="R²", grid="y")
    axes.set_title(name if len(name) <= _ROOM else f"{name[: _ROOM - 1]}…", loc="left", fontsize=SMALL, color=INK)
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


def _draw_legend(axes: Axes) -> None:
    lines = [
        Line2D([], [], color=INK, linewidth=2.4, label="held-out folds"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label="test (no part in it)"),
        Line2D([], [], color=INK, marker="o", markersize=8, linestyle="none", label="chosen α"),
    ]
    axes.legend(
        handles=lines, loc="center left", fontsize=TEXT, frameon=False, title="R² against α", title_fontsize=TEXT
    )
