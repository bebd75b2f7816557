"""R² and ΔR² against the noise level."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from pipeline.questions.amplification.answer import AmplificationAnswer
from pipeline.report import over_seeds
from pipeline.report.figures.canvas import (
    TEXT,
    add_title,
    draw_delta_curve,
    draw_r2_curves,
    new_figure,
    page_width,
    place_panels,
)
from pipeline.scoring import RunResults

__all__ = ["draw_noise_levels"]


def draw_noise_levels(results: RunResults, answer: AmplificationAnswer | None) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² against the noise level, on covered test spectra."""
    figure = new_figure(page_width(), 6.2)
    left, right = place_panels(figure, 2)
    levels = sorted(results.summary.levels, key=lambda level: level.noise_level)
    at, scopes = [level.noise_level for level in levels], [level.covered for level in levels]
    draw_r2_curves(left, at, scopes)
    draw_delta_curve(right, at, scopes, results)
    for axes in (left, right):
        axes.set_xlabel("noise level (multiples of the simulated 1σ error)", fontsize=TEXT)
    note = f"Covered test spectra{over_seeds(results)}. Bars: {results.summary.confidence:.0%} interval."
    if answer is not None and math.isfinite(answer.ratio):
        note += f" ΔR² at noise level {answer.high:g} is {answer.ratio:.1f} × that at {answer.low:g}."
    add_title(
        figure,
        "How noise changes what experts gain",
        note,
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure
