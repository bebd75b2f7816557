"""Drawn beside marginal training noise, at every noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    ORACLE,
    add_interval,
    add_title,
    finish_curves,
    new_figure,
    page_width,
    place_panels,
)
from pipeline.scoring import DELTA_R2, R2_GLOBAL, R2_ORACLE, Merit, RunResults, Scope

__all__ = ["draw_marginal_noise"]

#: Line style of each noise, and whether its markers are filled.
_STYLES = {"drawn": ("-", True), "marginal": ("--", False)}


def draw_marginal_noise(results: RunResults, curves: Mapping[str, Sequence[Scope]]) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² of two training noises against the number of training spectra."""
    figure = new_figure(page_width(), 6.4)
    left, right = place_panels(figure, 2)
    for name, (dashes, filled) in _STYLES.items():
        points = curves[name]
        look = {"linestyle": dashes, "linewidth": 2, "markersize": 7, "zorder": 5}
        for merit, label, color, marker in (
            (R2_ORACLE, f"oracle experts, {name}", ORACLE, "o"),
            (R2_GLOBAL, f"global ridge, {name}", GLOBAL, "s"),
        ):
            face = color if filled else "white"
            _draw_curve(left, points, merit, color, label=label, marker=marker, markerfacecolor=face, **look)
        face = INK if filled else "white"
        _draw_curve(right, points, DELTA_R2, INK, label=f"{name} noise", marker="D", markerfacecolor=face, **look)
    counts = [float(point.n_train) for point in next(iter(curves.values()))]
    finish_curves((left, right), counts, results, x="training spectra", margin=0.08, room=0.3)
    add_title(
        figure,
        "What training on all noise at once gains",
        f"Covered test spectra, noise level {results.summary.headline.noise_level:g}. Bars: "
        f"{results.summary.confidence:.0%} interval.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw_curve(axes: Axes, points: Sequence[Scope], merit: Merit, color: str, **look: Any) -> None:
    estimates = [point.merit(merit) for point in points]
    at = [float(point.n_train) for point in points]
    axes.plot(at, [estimate.mean for estimate in estimates], color=color, **look)
    for place, estimate in zip(at, estimates, strict=True):
        add_interval(axes, place, estimate, horizontal=False, color=color)
