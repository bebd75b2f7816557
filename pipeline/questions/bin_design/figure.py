"""What each number of bins gains, and where the chosen design cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.questions.bin_design.answer import DesignAnswer
from pipeline.report import bin_edges, over_seeds, quantity, thresholds
from pipeline.report.figures.canvas import (
    GLOBAL,
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
    place_panels,
    show_empty,
    style_axes,
)
from pipeline.scoring import RunResults

__all__ = ["draw_bin_design"]


def draw_bin_design(results: RunResults, design: DesignAnswer | None) -> Figure:
    """Draw ΔR² of the best division against its number of experts, and the recommended division in the plane."""
    figure = new_figure(page_width(), 6.6)
    if design is None:
        show_empty(figure.subplots(), "no bin design was asked for in this run")
        return figure
    left, right = place_panels(figure, 2, width_ratios=(1.35, 1))
    _draw_gain(left, design, thresholds(results).continue_)
    _draw_plane(right, design, results)
    add_title(
        figure,
        "How many experts, and where to cut",
        f"Noise level {design.noise_level:g}; best division of a fine grid into rectangles{over_seeds(results)}. The "
        f"held-out folds of the training set chose; the test spectra played no part (bars: "
        f"{results.summary.confidence:.0%} interval).",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw_gain(axes: Axes, design: DesignAnswer, limit: float) -> None:
    numbers = [one.experts for one in design.divisions]
    tests = [one.test["delta_r2"] for one in design.divisions]
    axes.plot(numbers, [one.delta_r2 for one in design.divisions], color=ORACLE, linewidth=2.4, marker="o",
              markersize=6, label="held-out folds (chose)", zorder=5)  # fmt: skip
    axes.plot(numbers, [test.mean for test in tests], color=MUTED, linewidth=1.6, linestyle=(0, (4, 2)),
              label="test (no part in it)")  # fmt: skip
    for number, test in zip(numbers, tests, strict=True):
        add_interval(axes, number, test, horizontal=False, color=MUTED)
    if design.main is not None:
        other = "" if design.same_spectra else ", other spectra"
        axes.plot([design.main.experts], [design.main.delta_r2], color=GLOBAL, marker="D", markersize=10,
                  linestyle="none", markeredgecolor=INK, label=f"bins of the run{other}", zorder=6)  # fmt: skip
    if design.chosen is not None:
        axes.plot([design.chosen.experts], [design.chosen.delta_r2], color=INK, marker="o", markersize=15,
                  fillstyle="none", markeredgewidth=2, linestyle="none", label="recommended", zorder=7)  # fmt: skip
    axes.axhline(0, color=MUTED, linewidth=0.8)
    low, high = axes.get_ylim()
    if low < limit < high + (high - low) / 3:  # else it would press the curve flat
        axes.axhline(limit, color=INK, linewidth=1.2, linestyle="--", label=f"build experts, ≥ {limit:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    style_axes(axes, x="number of experts", y="ΔR²", grid="y")
    axes.legend(fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.01),
                ncols=1 if is_narrow() else 2)  # fmt: skip


def _draw_plane(axes: Axes, design: DesignAnswer, results: RunResults) -> None:
    column, other = design.edges
    edges, chosen = design.edges, design.chosen
    for edge in edges[column]:
        axes.axvline(edge, color="#E3E3E3", linewidth=0.8, zorder=0)
    for edge in edges[other]:
        axes.axhline(edge, color="#E3E3E3", linewidth=0.8, zorder=0)
    for number, one in enumerate(chosen.rectangles if chosen else (), start=1):
        (x, x_end), (y, y_end) = one[column], one[other]
        axes.add_patch(
            Rectangle((x, y), x_end - x, y_end - y, facecolor=ORACLE, alpha=0.10 + 0.12 * (number % 3), zorder=1)
        )
        axes.add_patch(Rectangle((x, y), x_end - x, y_end - y, fill=False, edgecolor=ORACLE, linewidth=2.4, zorder=3))
        axes.text(
            (x + x_end) / 2, (y + y_end) / 2, str(number), ha="center", va="center", fontsize=TEXT, color=INK,
            fontweight="bold", zorder=4, bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0},
        )  # fmt: skip
    _draw_main(axes, bin_edges(results), (column, other))
    axes.set_xlim(*_widen(edges[column]))
    axes.set_ylim(*_widen(edges[other]))
    title = f"The {chosen.experts} rectangles recommended" if chosen else "No division gains"
    style_axes(axes, title=title, x=quantity(column), y=quantity(other), grid="")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _draw_main(axes: Axes, edges: Mapping[str, Sequence[float]], columns: tuple[str, str]) -> None:
    """Draw the bins of the run in the same plane, where that is what they divide."""
    if set(edges) != set(columns):
        return
    x, y = (edges[column] for column in columns)
    style: dict[str, Any] = {"colors": GLOBAL, "linewidth": 1.4, "linestyle": (0, (4, 2)), "zorder": 2}
    axes.vlines(x, y[0], y[-1], **style)
    axes.hlines(y, x[0], x[-1], **style, label="bins of the run")
    axes.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06))


def _widen(edges: Sequence[float]) -> tuple[float, float]:
    room = 0.03 * (edges[-1] - edges[0])
    return edges[0] - room, edges[-1] + room
