"""R² and ΔR² against the number of training spectra."""

from __future__ import annotations

from matplotlib.figure import Figure

from pipeline.report import learning_points
from pipeline.report.figures.canvas import SLIDE, TEXT, add_title, label_counts, new_figure
from pipeline.report.figures.curves import draw_delta_curve, draw_r2_curves
from pipeline.scoring import RunResults

__all__ = ["draw_learning_curve"]


def draw_learning_curve(results: RunResults) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² against the number of training spectra.

    A point is the mean over seeds at one number of training folds; bars are the interval over seeds.
    """
    figure = new_figure(SLIDE[0], 6.2)
    left, right = figure.subplots(1, 2)
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
        f"Covered test spectra, noise level {results.summary.headline.noise_level:g}; mean over seeds, bars: "
        f"{results.summary.confidence:.0%} interval.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure
