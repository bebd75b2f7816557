"""What drawn runs of other sizes would say."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.questions.forecast.answer import ForecastLevel
from pipeline.questions.forecast.training import BEST, CONFIGURED
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
from pipeline.scoring import DELTA_R2, R2_GLOBAL, R2_ORACLE, Merit, RunResults

__all__ = ["draw_forecast"]


def draw_forecast(results: RunResults, level: ForecastLevel) -> Figure:
    """Draw forecasts against the number of training spectra, drawn runs as points, and what endless training gives."""
    figure = new_figure(page_width(), 6.4)
    left, right = place_panels(figure, 2)
    # The legend has two columns: what the marks mean stands below the curves of one model each.
    _draw_curves(left, level, R2_ORACLE, ORACLE, "oracle experts")
    if level.drawn:
        left.plot([], [], "D", color=INK, markersize=8, label="drawn runs")
    _draw_curves(left, level, R2_GLOBAL, GLOBAL, "global ridge")
    _draw_curves(right, level, DELTA_R2, INK, "ΔR²")
    if level.drawn:
        right.plot([], [], "D", color=INK, markersize=8, label="drawn runs")
    if not all(point.covered.trusted for penalty in (CONFIGURED, BEST) for point in level.along(penalty)):
        for axes in (left, right):
            axes.plot([], [], "o", color=INK, markerfacecolor="white", label="not trusted")
    counts = [point.n for point in level.along(CONFIGURED)]
    label = "training spectra, one noise draw each"
    finish_curves((left, right), counts, results, x=label, margin=0.05, room=0.44)
    add_title(
        figure,
        "What drawn runs of other sizes would say",
        f"From {level.n_known:,} training spectra; covered test spectra, noise level {level.noise_level:g}; bars: "
        f"{results.summary.confidence:.0%} interval.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw_curves(axes: Axes, level: ForecastLevel, merit: Merit, color: str, name: str) -> None:
    for penalty, dashes in ((CONFIGURED, "-"), (BEST, "--")):
        points = level.along(penalty)
        values = [getattr(point.covered, merit.name) for point in points]
        at = [point.n for point in points]
        axes.plot(
            at, [one.mean for one in values], color=color, linestyle=dashes, linewidth=2, label=f"{name}, {penalty} α"
        )
        doubted = [k for k, point in enumerate(points) if not point.covered.trusted]
        axes.plot(
            [at[k] for k in doubted],
            [values[k].mean for k in doubted],
            "o",
            color=color,
            markerfacecolor="white",
            zorder=5,
        )
        if penalty == CONFIGURED:
            for place, one in zip(at, values, strict=True):
                add_interval(axes, place, one, horizontal=False, color=color)
    end = getattr(level.limit(BEST).covered, merit.name).mean
    axes.axhline(end, color=color, linewidth=1, linestyle=(0, (1, 3)), label=f"{name}, endless")
    at = [one.n_train for one in level.drawn]
    axes.plot(at, [one.merit(merit).mean for one in level.drawn], "D", color=color, markersize=8, zorder=6)
