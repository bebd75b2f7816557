"""The figures that every run has: the whole result on one slide, and how all figures of a run are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SLIDE,
    SMALL,
    TEXT,
    VERDICT_COLORS,
    WARNING,
    Medium,
    add_interval,
    add_title,
    draw_r2_curves,
    few_ticks,
    format_counts,
    format_value,
    house_style,
    is_narrow,
    is_slide,
    label_counts,
    legend_size,
    new_figure,
    page_width,
    prepare_file,
    save_figure,
    style_axes,
)
from pipeline.report.figures.per_bin import (
    LOWEST_R2,
    draw_delta_heatmap,
    draw_grouped_r2,
    limit_values,
    list_bins,
    note_cut_bars,
    write_columns,
)
from pipeline.report.figures.predictions import draw_predicted_against_true
from pipeline.report.figures.sample import draw_sample_distribution
from pipeline.report.section import Picture
from pipeline.report.words import learning_points, over_seeds, symbol, thresholds
from pipeline.scoring import (
    BUILD,
    NOT_WORTH_IT,
    R2_GLOBAL,
    R2_ORACLE,
    UNDECIDED,
    Bin,
    Estimate,
    RunResults,
    Scope,
)

__all__ = ["FIGURES_FOLDER", "PICTURES", "draw_dashboard", "name_picture", "plot_picture", "render_figures"]


def draw_dashboard(results: RunResults) -> Figure:
    """Draw the overview: both models, the gain with the zones of the verdict, the learning curve, and every bin."""
    level = results.summary.headline
    bins, scopes = level.bins, level.scopes
    height = max(SLIDE[1], 0.36 * len(bins) + 2.4)
    if is_narrow():
        figure = new_figure(page_width(), SLIDE[1] + 0.36 * len(bins) + 1.2)
        left, right = figure.subfigures(2, 1, squeeze=False, height_ratios=(SLIDE[1], 0.36 * len(bins) + 1.2)).flat
    else:
        figure = new_figure(page_width(), height)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.2)).flat
    models, gain, learning = left.subplots(3, 1, height_ratios=(1.25, 1.0, 1.35))
    per_bin, table = right.subplots(1, 2, sharey=True, width_ratios=(1.4, 1.2))
    _draw_models(models, scopes)
    _draw_gain(gain, scopes, results)
    _draw_learning(learning, results)
    _draw_bin_gain(per_bin, bins, results)
    columns = {
        "ΔR²": [format_value(view.delta_r2.mean, "+.3f") for view in bins],
        "n train": format_counts([view.n_train for view in bins]),
        "n test": format_counts([view.n_test for view in bins]),
    }
    if not is_slide():
        del columns["n train"]
    write_columns(table, columns)
    add_title(
        figure,
        f"One global model and oracle experts for {symbol(results.summary.target)}",
        f"Noise level {level.noise_level:g}{over_seeds(results)}. Bars: {results.summary.confidence:.0%} interval."
        + note_cut_bars([*(view.delta_r2 for view in bins), *(s.r2_oracle for s in scopes.values())]),
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _scope_label(name: str, scope: Scope) -> str:
    return f"{name}\nn = {scope.n_test:,}"


def _draw_models(axes: Axes, scopes: dict[str, Scope]) -> None:
    height = 0.36
    estimates: list[Estimate] = []
    for offset, merit, color, label in (
        (-height / 2, R2_GLOBAL, GLOBAL, "Global ridge"),
        (height / 2, R2_ORACLE, ORACLE, "Oracle experts"),
    ):
        for row, scope in enumerate(scopes.values()):
            estimate = scope.merit(merit)
            estimates.append(estimate)
            value = 0.0 if math.isnan(estimate.mean) else estimate.mean
            axes.barh(row + offset, value, height=height, color=color, label=None if row else label)
            add_interval(axes, row + offset, estimate, horizontal=True)
            _write_right(axes, row + offset, estimate, ".4f")
    limit_values(axes, estimates, lowest=LOWEST_R2, highest=1.0)
    style_axes(axes, title="Overall R²", x="R²", y="test spectra")
    few_ticks(axes)
    axes.set_yticks(range(len(scopes)), [_scope_label(*item) for item in scopes.items()])
    axes.set_ylim(len(scopes) - 0.5, -0.5)
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.18, 0.97), "ncols": 2}
    place |= {"handlelength": 0.8, "handletextpad": 0.5, "columnspacing": 0.8}  # room for the title beside it
    axes.legend(**place, fontsize=legend_size(), frameon=False)


def _write_right(axes: Axes, at: float, estimate: Estimate, form: str) -> None:
    style: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": SMALL, "color": INK}
    text = format_value(estimate.mean, form)
    axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), **style)


def _draw_gain(axes: Axes, scopes: dict[str, Scope], results: RunResults) -> None:
    decision = thresholds(results)
    for row, scope in enumerate(scopes.values()):
        axes.plot(scope.delta_r2.mean, row, marker="D", color=INK, markersize=9, zorder=5)
        add_interval(axes, row, scope.delta_r2, horizontal=True)
        _write_right(axes, row, scope.delta_r2, "+.4f")
    ends = [e for s in scopes.values() for e in (s.delta_r2.low, s.delta_r2.high) if math.isfinite(e)]
    # Both thresholds are always in view, with some room beyond them.
    low, high = min([0.0, *ends]), max([decision.continue_ * 1.5, *ends])
    margin = 0.05 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    spans = (
        (low - margin, decision.stop, NOT_WORTH_IT),
        (decision.stop, decision.continue_, UNDECIDED),
        (decision.continue_, high + margin, BUILD),
    )
    for start, end, outcome in spans:
        axes.axvspan(start, end, color=VERDICT_COLORS[outcome], alpha=0.28, linewidth=0, zorder=0)
    words = f"ΔR²\nnot worth it < {decision.stop:g} ≤ undecided < {decision.continue_:g} ≤ build experts"
    style_axes(axes, title="ΔR², what experts gain", x=words, y="test spectra", grid="")
    axes.xaxis.label.set_fontsize(SMALL)
    few_ticks(axes)
    axes.set_yticks(range(len(scopes)), list(scopes))
    axes.set_ylim(len(scopes) - 0.5, -0.5)


def _draw_bin_gain(axes: Axes, bins: Sequence[Bin], results: RunResults) -> None:
    decision = thresholds(results)
    for row, view in enumerate(bins):
        value = 0.0 if math.isnan(view.delta_r2.mean) else view.delta_r2.mean
        axes.barh(row, value, height=0.55, color=ORACLE if value >= 0 else WARNING, zorder=2)
        add_interval(axes, row, view.delta_r2, horizontal=True)
    limit_values(axes, [view.delta_r2 for view in bins], lowest=LOWEST_R2, highest=1.0)
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.2 * decision.continue_))  # the threshold stays in view
    style_axes(axes, title="ΔR² per bin", y="bin", x=f"ΔR² (dashed: {decision.continue_:g})")
    few_ticks(axes)
    list_bins(axes, bins)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.axvline(decision.continue_, color=VERDICT_COLORS[BUILD], linewidth=2, linestyle="--")


def _draw_learning(axes: Axes, results: RunResults) -> None:
    points = learning_points(results)
    counts = [float(point.n_train) for point in points]
    draw_r2_curves(axes, counts, points, legend=False)
    axes.set_xlabel("training spectra", fontsize=TEXT)
    axes.set_title("R² against training spectra", loc="left", fontsize=TEXT, fontweight="bold")
    label_counts(axes, counts)


FIGURES_FOLDER = "figures"
#: In the order of the report.
PICTURES = (
    Picture(
        "moe_oracle_dashboard.png",
        "The result on one page",
        "The panels show R² of both models on covered and on all test spectra; ΔR² of both, in the zones of the "
        "verdict; R² of both models against the number of training spectra; and ΔR² in every bin. Black bars are "
        "confidence intervals. The verdict needs the whole bar of “covered” in one zone.",
        draw_dashboard,
    ),
    Picture(
        "moe_delta_r2_heatmap.png",
        "ΔR² in every bin",
        "Each cell is a bin. It shows ΔR², the confidence interval, and the numbers of training and test spectra. "
        "Blue bins gain from an expert of their own, red ones lose. Where the interval includes zero, the colour may "
        "be chance.",
        draw_delta_heatmap,
    ),
    Picture(
        "moe_perbin_r2_grouped.png",
        "R² in every bin, both models",
        "The bars are R² of the global model and of the oracle experts on the test spectra of each bin; black bars "
        "are confidence intervals. A bin with a short blue bar is hard for any linear model. R² of a bin is relative "
        "to the spread of labels within it, so it can be low in every bin and still be high over all.",
        draw_grouped_r2,
    ),
    Picture(
        "moe_pred_vs_true.png",
        "Predicted against true",
        "Covered test spectra, by their true and their predicted label; the colour counts the spectra in a cell. "
        "Predictions on the dashed line are right. A cloud flatter than the line is shrunk towards the mean: low "
        "values are predicted too high, high ones too low.",
        draw_predicted_against_true,
    ),
    Picture(
        "moe_sample_distribution.png",
        "Where the spectra are",
        "The colour is the share of the training and of the test spectra in a cell; cells without spectra are white. "
        "The lines are the edges of the bins. Spectra beyond them are in no bin and have no expert. Training and test "
        "set should look alike. Where they do not, the overall numbers weigh the bins differently.",
        draw_sample_distribution,
    ),
)


def name_picture(picture: Picture) -> str:
    """Return what a command calls a figure, such as ``pred_vs_true``."""
    return picture.file.removeprefix("moe_").removesuffix(".png")


def plot_picture(results: RunResults, picture: Picture, path: Path, medium: Medium | None = None) -> Path:
    """Draw one figure of a run and write it as PNG, PDF or SVG, by the ending of the path.

    Parameters
    ----------
    results
        A scored run.
    picture
        Which; it must have something to draw.
    path
        The file.
    medium
        Its width, and whether it has a title; a slide by default.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    with house_style(medium):
        save_figure(picture.draw(results), path)
    return path


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
    written, jobs = [], []
    # A figure is packed while the next one is drawn.
    with ThreadPoolExecutor(1, "figures") as thread:
        for picture in pictures:
            path = folder / picture.file
            if not picture.is_there(results):
                path.unlink(missing_ok=True)
                continue
            with house_style():
                jobs.append(thread.submit(prepare_file(picture.draw(results), path)))
            written.append((picture, path))
    for job in jobs:
        job.result()
    return written
