"""The gain of each division beside that of the main bins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.questions.ablation.answer import BinningScope
from pipeline.report import over_seeds, symbol, thresholds
from pipeline.report.figures.canvas import (
    INK,
    MUTED,
    ORACLE,
    SMALL,
    TEXT,
    add_interval,
    add_title,
    is_narrow,
    new_figure,
    page_width,
    style_axes,
)
from pipeline.scoring import RunResults

__all__ = ["draw_ablation"]


def draw_ablation(results: RunResults, views: Sequence[BinningScope]) -> Figure:
    """Draw ΔR² of every binning at the headline noise level, the main one on top, with intervals and shares."""
    figure = new_figure(page_width(), max(3.8, 0.8 * len(views) + 2.4))
    axes = figure.subplots()
    for place, view in enumerate(views):
        value = view.delta_r2.mean if math.isfinite(view.delta_r2.mean) else 0.0
        axes.barh(place, value, height=0.6, color=ORACLE if place == 0 else MUTED)
        add_interval(axes, place, view.delta_r2, horizontal=True)
        ends = [value, view.delta_r2.high, 0.0]
        at = max(end for end in ends if math.isfinite(end))
        axes.annotate(
            _words(view, is_main=place == 0), (at, place), (8, 0), textcoords="offset points", va="center",
            fontsize=SMALL, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.set_yticks(range(len(views)), [f"{_name(view)}\n{view.n_bins} experts" for view in views])
    axes.invert_yaxis()
    limit = thresholds(results).continue_
    axes.axvline(limit, color=INK, linewidth=1.2, linestyle="--")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    style_axes(axes, x=f"ΔR²  (dashed: build experts, ≥ {limit:g})", y="binning", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=TEXT)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + (1.6 if is_narrow() else 0.45) * (high - low))  # room for the words
    add_title(
        figure,
        "Which division of the spectra brings the gain?",
        f"Test spectra that each binning covers, noise level {results.summary.headline.noise_level:g}"
        f"{over_seeds(results)}. Bars: {results.summary.confidence:.0%} interval. Percentages beside ΔR² are shares "
        "of the topmost ΔR².",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _name(view: BinningScope) -> str:
    return (
        f"{view.name} ({' × '.join(symbol(column) for column in view.columns)})" if view.name == "bins" else view.name
    )


def _words(view: BinningScope, *, is_main: bool) -> str:
    words = f"{view.delta_r2.mean:+.4f}" if math.isfinite(view.delta_r2.mean) else "undefined"
    if not is_main and math.isfinite(view.share.mean):
        words += f", {view.share.mean:.0%}"
    return f"{words}; covers {view.coverage:.0%}".replace("-", "−")
