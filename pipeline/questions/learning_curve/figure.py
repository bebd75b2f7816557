"""R² and ΔR² against the training spectra."""

from __future__ import annotations

from matplotlib.figure import Figure

from pipeline.report import learning_points, over_seeds
from pipeline.report.figures.canvas import (
    TEXT,
    add_title,
    draw_delta_curve,
    draw_r2_curves,
    label_counts,
    new_figure,
    page_width,
    place_panels,
)
from pipeline.scoring import RunResults

__all__ = ["draw_learning_curve"]


def draw_learning_curve(results: RunResults) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² against the number of training spectra.

    A point is the mean over seeds at one number of training folds; bars are the interval over seeds.
    """
    figure = new_figure(page_width(), 6.2)
    left, right = place_panels(figure, 2)
    points = learning_points(results)
    counts = [float(point.n_train) for point in points]
    draw_r2_curves(left, counts, points)
    draw_delta_curve(right, counts, points, results)
    for axes in (left, right):
        axes.set_xlabel("training spectra", fontsize=TEXT)
        label_counts(axes, counts)
    add_title(
        figure,
        "Does more training data still help the experts?",
        f"Covered test spectra, noise level {results.summary.headline.noise_level:g}{over_seeds(results)}. "
        f"Bars: {results.summary.confidence:.0%} interval.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure
