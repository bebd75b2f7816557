"""The figures that every run has, and how all figures of a run are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.figures.canvas import save_figure
from pipeline.report.figures.dashboard import draw_dashboard
from pipeline.report.figures.per_bin import draw_delta_heatmap, draw_grouped_r2
from pipeline.report.figures.predictions import draw_predicted_against_true
from pipeline.report.figures.sample import draw_sample_distribution
from pipeline.report.section import Picture
from pipeline.scoring import RunResults

__all__ = ["FIGURES_FOLDER", "PICTURES", "render_figures"]

FIGURES_FOLDER = "figures"
#: In the order of the report.
PICTURES = (
    Picture(
        "moe_oracle_dashboard.png",
        "The result on one page",
        "Look first at the middle left: the verdict needs the whole bar of “covered” in one coloured zone. "
        "The bars on the right tell whether all bins gain or a few carry the rest.",
        draw_dashboard,
    ),
    Picture(
        "moe_delta_r2_heatmap.png",
        "ΔR² in every bin",
        "Blue bins gain from an expert of their own, red ones lose. Where the interval in a cell includes "
        "zero, the colour may be chance.",
        draw_delta_heatmap,
    ),
    Picture(
        "moe_perbin_r2_grouped.png",
        "R² in every bin, both models",
        "A long blue bar is a bin that is easy once it has its own expert; a short one is hard for any "
        "linear model. R² of a bin is relative to the spread of labels within it, so it can be low in "
        "every bin and still be high over all.",
        draw_grouped_r2,
    ),
    Picture(
        "moe_pred_vs_true.png",
        "Predicted against true",
        "A good model lies along the dashed line. A cloud flatter than the line is shrunk towards the "
        "mean: low values are predicted too high, high ones too low.",
        draw_predicted_against_true,
    ),
    Picture(
        "moe_sample_distribution.png",
        "Where the spectra are",
        "Spectra beyond the lines are in no bin and have no expert. Train and test should look alike; "
        "where they do not, the overall numbers weigh the bins differently.",
        draw_sample_distribution,
    ),
)


def render_figures(results: RunResults, pictures: Sequence[Picture] = PICTURES) -> list[tuple[Picture, Path]]:
    """Draw and write figures of a run.

    Parameters
    ----------
    results
        A scored run.
    pictures
        What to draw: the figures that every run has, and those of its questions.

    Returns
    -------
    list of (Picture, Path)
        Every picture with its PNG file in ``RUN/figures``. One that the run has no content for is not there, and a
        file that an earlier run left in its place is removed.

    Raises
    ------
    ResourceError
        If a file cannot be written.
    """
    folder = results.folder / FIGURES_FOLDER
    written = []
    for picture in pictures:
        path = folder / picture.file
        if not picture.is_there(results):
            path.unlink(missing_ok=True)
            continue
        save_figure(picture.draw(results), path)
        written.append((picture, path))
    return written
