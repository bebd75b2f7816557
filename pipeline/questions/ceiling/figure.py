"""What models reach beside what any model could, and how the bracket closes as the library grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.questions.ceiling.answer import CeilingLevel, CeilingPart
from pipeline.report import symbol
from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SMALL,
    TEXT,
    add_title,
    is_narrow,
    label_counts,
    legend_size,
    new_figure,
    page_width,
    place_panels,
    style_axes,
)
from pipeline.scoring import RunResults

__all__ = ["draw_ceiling"]

_CEILING = "#009E73"


def draw_ceiling(results: RunResults, level: CeilingLevel) -> Figure:
    """Draw the global model, the oracle and the bracket for all covered spectra and every bin, and how it closes."""
    label = level.labels[results.summary.target]
    rows = [("all covered", label.scopes["covered"])]
    rows += [(one.label, part) for one, part in zip(results.summary.headline.bins, label.bins, strict=True)]
    figure = new_figure(page_width(), max(5.6, 2.6 + 0.5 * len(rows)))
    left, right = place_panels(figure, 2, width_ratios=(1.7, 1))
    _draw_ladder(left, rows)
    _draw_growth(right, label.growth["covered"])
    add_title(
        figure,
        f"What can be had at all: {symbol(results.summary.target)} from one model, from experts, from any model",
        f"Noise level {level.noise_level:g}; covered test spectra, one noise draw. The ceiling lies within the bar. "
        "Its ends are the exact posterior means without and with a spectrum's own star in the library of "
        f"{label.scopes['covered'].n_library:,} stars.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw_ladder(axes: Axes, rows: Sequence[tuple[str, CeilingPart]]) -> None:
    size = 6 if is_narrow() else 9  # less than a bar's height: a short bar shows behind a mark
    for place, (_, part) in enumerate(rows):
        ends = part.lower.mean, part.upper.mean
        if all(map(math.isfinite, ends)):
            hatch = None if part.is_converged else "////"
            axes.barh(
                place, ends[1] - ends[0], left=ends[0], height=0.6, color=_CEILING, alpha=0.45, hatch=hatch, zorder=3
            )
        shown = [value for value in (part.r2_global, part.r2_oracle, *ends) if math.isfinite(value)]
        if len(shown) > 1:
            axes.plot([min(shown), max(shown)], [place, place], color=MUTED, linewidth=1, zorder=2)
        axes.plot([part.r2_global], [place], color=GLOBAL, marker="s", markersize=size, linestyle="none", zorder=5)
        axes.plot([part.r2_oracle], [place], color=ORACLE, marker="o", markersize=size, linestyle="none", zorder=5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.axhline(0.5, color=MUTED, linewidth=0.8)
    axes.use_sticky_edges = False  # else the axes end where a bar does, and cut the mark that lies there
    style_axes(axes, title="R² of the global model, of experts, and the ceiling", x="R²", y="bin", grid="x")
    axes.tick_params(axis="y", length=0, labelsize=TEXT)
    marks = [
        axes.plot([], [], color=GLOBAL, marker="s", linestyle="none", label="global ridge")[0],
        axes.plot([], [], color=ORACLE, marker="o", linestyle="none", label="oracle experts")[0],
        Patch(color=_CEILING, alpha=0.45, label="ceiling (hatched: not converged)"),
    ]
    below, columns = (-0.15, 1) if is_narrow() else (-0.1, 3)
    axes.legend(
        handles=marks, loc="upper center", bbox_to_anchor=(0.5, below), ncols=columns, fontsize=SMALL, frameon=False
    )


def _draw_growth(axes: Axes, growth: Sequence[CeilingPart]) -> None:
    counts = [float(part.n_library) for part in growth]
    lower, upper = [part.lower.mean for part in growth], [part.upper.mean for part in growth]
    axes.fill_between(counts, lower, upper, color=_CEILING, alpha=0.25)
    for values, marker, name in ((upper, "v", "upper end"), (lower, "^", "lower end")):
        axes.plot(counts, values, color=_CEILING, marker=marker, linewidth=2, label=name)
    axes.axhline(growth[-1].r2_oracle, color=ORACLE, linewidth=1.6, label="oracle experts")
    axes.axhline(growth[-1].r2_global, color=GLOBAL, linewidth=1.6, label="global ridge")
    for count, part in zip(counts, growth, strict=True):
        # The lines of both models lie below the upper end, or they would pass through the number.
        axes.annotate(
            f"{part.effective_size:.1f}", (count, part.upper.mean), (0, 8), textcoords="offset points",
            ha="center", fontsize=SMALL, color=INK,
        )  # fmt: skip
    style_axes(axes, title="How it closes (numbers: effective size)", x="stars in the library", y="R²", grid="y")
    axes.margins(x=0.12, y=0.2)
    label_counts(axes, counts)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # the legend stands above the data
    axes.legend(loc="upper right", fontsize=legend_size(), frameon=False, ncols=2, handlelength=1.5, columnspacing=1.2)
