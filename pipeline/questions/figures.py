"""Every figure of the report as a function, to be drawn alone or into a figure of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import ConfigError, InputError, did_you_mean
from pipeline.questions.registry import QUESTIONS
from pipeline.scoring import RunResults, read_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from pipeline.report import Picture

__all__ = [
    "draw_ablation",
    "draw_alpha_search",
    "draw_bin_design",
    "draw_ceiling",
    "draw_dashboard",
    "draw_delta_heatmap",
    "draw_figure",
    "draw_forecast",
    "draw_gate",
    "draw_gate_probabilities",
    "draw_grouped_r2",
    "draw_learning_curve",
    "draw_marginal_noise",
    "draw_noise_levels",
    "draw_predicted_against_true",
    "draw_routes",
    "draw_sample_distribution",
    "list_figures",
    "list_pictures",
]


def list_pictures() -> list[Picture]:
    """Return the figures that every run has, and those of the questions, in the order of the report."""
    from pipeline.report.figures import PICTURES

    return [*PICTURES, *(picture for question in QUESTIONS for picture in question.pictures)]


def list_figures(results: RunResults | str | Path) -> dict[str, str]:
    """Return the names of the figures that a run has, for :func:`draw_figure`, with their titles."""
    results = _read(results)
    return {_name(picture): picture.title for picture in list_pictures() if picture.is_there(results)}


def draw_figure(
    results: RunResults | str | Path,
    name: str,
    *,
    ax: Axes | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw one figure of the report.

    Parameters
    ----------
    results
        A scored run, or its folder.
    name
        One of :func:`list_figures`, such as ``ablation``; the name of its file serves, too.
    ax
        Axes to draw into. Title and small print are left to you; that spectra are simulated is written above the axes
        all the same. If the figure has several panels, a sub-figure takes the place of the axes, as if you had given
        it as ``figure``, and the axes are removed.
    figure
        A figure or sub-figure to draw into instead of a new one, with your own size and settings of matplotlib. What
        would not fit is made smaller as a whole, and stands in one column if the figure is higher than wide.

    Returns
    -------
    matplotlib.figure.Figure or SubFigure
        What was drawn into: the figure of the axes, the sub-figure in their place, or the figure itself. A notebook
        shows a new one by itself.

    Raises
    ------
    InputError
        If the run has no such figure.
    ConfigError
        If ``ax`` and ``figure`` are given; or for several panels axes that are not in a grid of plots.
    """
    from pipeline.report.figures.canvas import SeveralPanels, drawing_into, house_style, replace_axes

    results = _read(results)
    known = {_name(picture): picture for picture in list_pictures()}
    wanted = name.removesuffix(".png").removeprefix("moe_")
    there = [one for one, picture in known.items() if picture.is_there(results)]
    if wanted not in there:
        why = "has nothing to draw for" if wanted in known else "has no figure"
        raise InputError(
            f"run {results.folder} {why} {wanted!r}{'' if wanted in known else did_you_mean(wanted, known)}; it has "
            f"{', '.join(there)}"
        )
    if ax is not None and figure is not None:
        raise ConfigError("give ax or figure, not both")
    if ax is None and figure is None:
        with house_style():
            return known[wanted].draw(results)
    if ax is not None:
        try:
            with drawing_into(ax):
                known[wanted].draw(results)
        except SeveralPanels:
            figure = replace_axes(ax)
        else:
            return ax.figure
    assert figure is not None
    with drawing_into(figure):
        known[wanted].draw(results)
    return figure


def _read(results: RunResults | str | Path) -> RunResults:
    return results if isinstance(results, RunResults) else read_results(results)


def _name(picture: Picture) -> str:
    return picture.file.removesuffix(".png").removeprefix("moe_")


class Draw(Protocol):
    """What draws one figure of the report; see :func:`draw_figure`."""

    def __call__(
        self, results: RunResults | str | Path, *, ax: Axes | None = None, figure: Figure | SubFigure | None = None
    ) -> Figure | SubFigure:
        """Draw it."""


def _drawing(name: str, what: str) -> Draw:
    def draw(
        results: RunResults | str | Path, *, ax: Axes | None = None, figure: Figure | SubFigure | None = None
    ) -> Figure | SubFigure:
        return draw_figure(results, name, ax=ax, figure=figure)

    draw.__doc__ = f"Draw {what}; see :func:`pipeline.draw_figure`."
    return draw


draw_dashboard = _drawing("oracle_dashboard", "the overview on one page")
draw_delta_heatmap = _drawing("delta_r2_heatmap", "ΔR² in every bin")
draw_grouped_r2 = _drawing("perbin_r2_grouped", "R² of both models in every bin")
draw_predicted_against_true = _drawing("pred_vs_true", "predicted against true labels")
draw_sample_distribution = _drawing("sample_distribution", "where the spectra are")
draw_noise_levels = _drawing("noise_amplification", "R² and ΔR² against the noise level")
draw_ablation = _drawing("ablation", "the gain of other divisions")
draw_bin_design = _drawing("bin_design", "how many experts, and where to cut")
draw_gate = _drawing("gate", "what routing without labels keeps")
draw_gate_probabilities = _drawing("gate_probabilities", "what the gate says of each bin")
draw_routes = _drawing("routes", "predicted against true labels by route")
draw_alpha_search = _drawing("alpha_search", "R² against the penalty")
draw_learning_curve = _drawing("learning_curve", "R² and ΔR² against the training spectra")
draw_marginal_noise = _drawing("marginal_noise", "drawn against marginal training noise")
draw_forecast = _drawing("forecast", "what drawn runs of other sizes would say")
draw_ceiling = _drawing("ceiling", "what any model could reach")
