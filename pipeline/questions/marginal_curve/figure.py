"""Drawn and marginal training noise side by side, against the number of training spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report import thresholds
from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SLIDE,
    SMALL,
    TEXT,
    VERDICT_COLORS,
    add_interval,
    add_title,
    label_counts,
    new_figure,
    style_axes,
)
from pipeline.scoring import BUILD, DELTA_R2, R2_GLOBAL, R2_ORACLE, Merit, RunResults, Scope

__all__ = ["draw_marginal_noise"]

#: Line style of each noise, and whether its markers are filled.
_STYLES = (("-", True), ("--", False))


def draw_marginal_noise(results: RunResults, curves: Mapping[str, Sequence[Scope]]) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² of two training noises against the number of training spectra."""
    figure = new_figure(SLIDE[0], 6.4)
    left, right = figure.subplots(1, 2)
    for (name, points), (dashes, filled) in zip(curves.items(), _STYLES, strict=True):
        look = {"linestyle": dashes, "linewidth": 2, "markersize": 7, "zorder": 5}
        for merit, label, color, marker in (
            (R2_ORACLE, f"oracle experts, {name}", ORACLE, "o"),
            (R2_GLOBAL, f"global ridge, {name}", GLOBAL, "s"),
        ):
            face = color if filled else "white"
            _draw(left, points, merit, color, label=label, marker=marker, markerfacecolor=face, **look)
        face = INK if filled else "white"
        _draw(right, points, DELTA_R2, INK, label=f"{name} noise", marker="D", markerfacecolor=face, **look)
    counts = [float(point.n_train) for point in next(iter(curves.values()))]
    limit = thresholds(results).continue_
    right.axhline(0, color=MUTED, linewidth=0.8)
    right.axhline(limit, color=VERDICT_COLORS[BUILD], linewidth=2, linestyle=":", label=f"build experts: ≥ {limit:g}")
    style_axes(left, title="R² of both models", y="R²", grid="y")
    style_axes(right, title="ΔR², what experts gain", y="ΔR²", grid="")
    for axes in (left, right):
        axes.set_xlabel("training spectra", fontsize=TEXT)
        axes.margins(x=0.08)
        label_counts(axes, counts)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.3 * (high - low), high)  # the legend stands below the data
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)
    add_title(
        figure,
        "What training on all noise at once gains",
        f"Covered test spectra, noise level {results.summary.headline.noise_level:g}; drawn: mean over seeds; bars: "
        f"{results.summary.confidence:.0%} interval.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw(axes: Axes, points: Sequence[Scope], merit: Merit, color: str, **look: Any) -> None:
    estimates = [point.merit(merit) for point in points]
    at = [float(point.n_train) for point in points]
    axes.plot(at, [estimate.mean for estimate in estimates], color=color, **look)
    for place, estimate in zip(at, estimates, strict=True):
        add_interval(axes, place, estimate, horizontal=False, color=color)
