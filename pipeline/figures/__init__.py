"""The figures of a run, as PNG files for slides and for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from pipeline.figures.canvas import save_figure
from pipeline.figures.curves import draw_learning_curve, draw_noise_levels
from pipeline.figures.dashboard import draw_dashboard
from pipeline.figures.per_bin import draw_delta_heatmap, draw_grouped_r2
from pipeline.figures.predictions import draw_predicted_against_true
from pipeline.figures.sample import draw_sample_distribution
from pipeline.results import RunResults

__all__ = ["FIGURES", "FIGURES_FOLDER", "NOISE_LEVELS_FIGURE", "render_figures"]

FIGURES_FOLDER = "figures"
NOISE_LEVELS_FIGURE = "moe_noise_levels.png"

#: Every figure by its file name, in the order of the report.
FIGURES: Mapping[str, Callable[[RunResults], Figure]] = MappingProxyType(
    {
        "moe_oracle_dashboard.png": draw_dashboard,
        "moe_delta_r2_heatmap.png": draw_delta_heatmap,
        "moe_perbin_r2_grouped.png": draw_grouped_r2,
        "moe_pred_vs_true.png": draw_predicted_against_true,
        "moe_sample_distribution.png": draw_sample_distribution,
        "moe_learning_curve.png": draw_learning_curve,
        NOISE_LEVELS_FIGURE: draw_noise_levels,
    }
)


def render_figures(results: RunResults) -> dict[str, Path]:
    """Draw and write every figure of a run.

    Parameters
    ----------
    results
        A scored run.

    Returns
    -------
    dict[str, Path]
        Paths of the PNG files in ``RUN/figures``, by file name. The noise figure is there only for runs
        with several noise levels; one left by an earlier run in this folder is removed.

    Raises
    ------
    ResourceError
        If a file cannot be written.
    """
    folder = results.folder / FIGURES_FOLDER
    several_levels = len(results.summary["levels"]) > 1
    written = {}
    for name, draw in FIGURES.items():
        path = folder / name
        if name == NOISE_LEVELS_FIGURE and not several_levels:
            path.unlink(missing_ok=True)
            continue
        save_figure(draw(results), path)
        written[name] = path
    return written
