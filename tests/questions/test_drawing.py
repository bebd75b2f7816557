"""Every figure of the report from Python: by name, by function, into a figure or axes of one's own."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import pipeline
from pipeline.errors import ConfigError, InputError
from pipeline.questions import list_pictures
from pipeline.scoring import RunResults


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(12, 6))
    FigureCanvasAgg(figure)
    return figure


def test_every_figure_is_a_public_function() -> None:
    functions = {name for name in dir(pipeline) if name.startswith("draw_")} - {"draw_figure"}
    assert len(functions) == len(list_pictures())
    for name in functions:
        assert "pipeline.draw_figure" in getattr(pipeline, name).__doc__


def test_a_run_says_which_figures_it_has(small_run: RunResults) -> None:
    names = pipeline.list_figures(small_run)
    assert names["ablation"] == "Gain of other divisions"
    assert "gate" not in names
    for name in names:
        drawn = pipeline.draw_figure(small_run, name)
        assert drawn.axes or drawn.subfigs
    with pytest.raises(InputError, match=r"has nothing to draw for 'gate'; it has oracle_dashboard, "):
        pipeline.draw_gate(small_run)
    with pytest.raises(InputError, match=r"has no figure 'ablatoin' \(did you mean 'ablation'\?\)"):
        pipeline.draw_figure(small_run, "ablatoin")


def test_figures_of_one_panel_go_into_axes(small_run: RunResults, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    own = figure.text(0.5, 0.99, "$5 to $10 per T_eff")
    size = figure.get_size_inches().tolist()
    assert pipeline.draw_ablation(small_run, ax=left) is figure
    pipeline.draw_delta_heatmap(small_run.folder, ax=right)
    assert len(left.patches) == small_run.ablation["binning"].nunique()  # type: ignore[attr-defined]
    assert any("bin 8" in text.get_text() for text in right.texts)
    assert left.get_title(loc="right") == "Simulated spectra"
    assert [label.get_text().split("\n")[0] for label in left.get_yticklabels()][1] == r"$T_\mathrm{eff}$ only"
    assert right.get_ylabel() == r"$T_\mathrm{eff}$ (K)"
    assert figure.axes[-1].get_ylabel() == r"$\Delta R^2$", "the colour bar is typeset, too"
    assert figure.get_suptitle() == ""
    assert figure.get_size_inches().tolist() == size
    figure.canvas.draw()
    assert own.get_text() == "$5 to $10 per T_eff", "what is not of the axes stays as it was"


@pytest.mark.parametrize("size", [(6.4, 4.8), (3.5, 6.0)])
def test_every_figure_goes_into_a_figure_without_a_layout(small_run: RunResults, size: tuple[float, float]) -> None:
    for name in pipeline.list_figures(small_run):
        own = Figure(figsize=size)
        FigureCanvasAgg(own)
        assert pipeline.draw_figure(small_run, name, figure=own) is own
        own.canvas.draw()


def test_figures_of_several_panels_go_into_a_figure(small_run: RunResults, figure: Figure) -> None:
    left, right = figure.subfigures(1, 2)
    assert pipeline.draw_learning_curve(small_run, figure=left) is left
    pipeline.draw_dashboard(small_run, figure=right)
    assert len(left.axes) == 2
    figure.canvas.draw()
    with pytest.raises(ConfigError, match="give ax or figure, not both"):
        pipeline.draw_ablation(small_run, ax=figure.add_subplot(), figure=figure)
    assert pipeline.draw_learning_curve(small_run) is not left  # an error leaves nothing behind


@pytest.mark.parametrize("name", ["learning_curve", "oracle_dashboard", "pred_vs_true"])  # two, nested, colour bar
def test_figures_of_several_panels_take_the_place_of_axes(small_run: RunResults, figure: Figure, name: str) -> None:
    own, ax = figure.subplots(1, 2)
    own.set_title("mine")
    drawn = pipeline.draw_figure(small_run, name, ax=ax)
    figure.canvas.draw()
    [sub] = figure.subfigs
    assert drawn is sub
    assert sub.axes or sub.subfigs
    assert ax not in figure.axes
    assert own in figure.axes
    assert own.get_title() == "mine"
    assert sub.bbox.x0 >= own.bbox.x1, "the panels stand beside the neighbour"


def test_axes_without_a_place__raise_on_several_panels(small_run: RunResults, figure: Figure) -> None:
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(ConfigError, match=r"make the axes by plt\.subplots, or give figure="):
        pipeline.draw_learning_curve(small_run, ax=axes)
    assert axes in figure.axes


def test_own_settings_of_matplotlib_hold_in_own_figures(small_run: RunResults, figure: Figure) -> None:
    with mpl.rc_context({"axes.facecolor": "#ffeeee"}):
        axes = figure.subplots()
        pipeline.draw_ablation(small_run, ax=axes)
        new = pipeline.draw_ablation(small_run)
    assert mpl.colors.to_hex(axes.get_facecolor()) == "#ffeeee"
    assert mpl.colors.to_hex(new.axes[0].get_facecolor()) == "#ffffff"
