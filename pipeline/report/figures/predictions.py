"""Predicted against true labels, for the global ridge and for the experts under every way of routing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.noise import NO_SEED
from pipeline.report.figures.canvas import (
    BLUES,
    SLIDE,
    SMALL,
    TEXT,
    WARNING,
    add_title,
    format_value,
    is_narrow,
    is_slide,
    new_figure,
    page_width,
    room_for_title,
    show_empty,
    style_axes,
)
from pipeline.report.words import symbol, target_quantity
from pipeline.scoring import RunResults

__all__ = ["draw_against_truth", "draw_predicted_against_true"]

#: The models that every run has: columns of the predictions, and what a panel calls them.
_MODELS = {"global": "Global ridge", "oracle": "Oracle experts"}


def draw_predicted_against_true(results: RunResults) -> Figure:
    """Draw the density of predicted against true labels of covered test spectra, for both models.

    One seed is shown, the first: pooling seeds would show every star several times. R² and n are those of
    ``results.csv`` for this seed, so that the figure cannot disagree with the tables.
    """
    return draw_against_truth(results, _MODELS, f"Predicted against true {symbol(results.summary.target)}", "")


def draw_against_truth(results: RunResults, models: Mapping[str, str], title: str, note: str) -> Figure:
    """Draw the same for some of the columns ``y_<name>`` of the predictions, a panel for each.

    Parameters
    ----------
    results
        A scored run.
    models
        Names of the columns, and what a panel calls them; those that the run does not have are left out.
    title, note
        What stands above and below.
    """
    level, rows = results.summary.headline.noise_level, results.predictions
    # Seeds may differ from level to level: the noise of the test file, at level 1, has none.
    seed = int(results.overall.loc[results.overall["noise_level"] == level, "seed"].iloc[0])
    rows = rows[(rows["seed"] == seed) & (rows["noise_level"] == level) & (rows["bin"] >= 0)]
    shown = {model: name for model, name in models.items() if f"y_{model}" in rows}
    columns = 2 if len(shown) <= 2 or is_narrow() else 3
    n_rows = -(-len(shown) // columns)
    height = (
        n_rows * 0.62 * page_width() + room_for_title() if is_narrow() else SLIDE[1] if n_rows == 1 else 1.35 * SLIDE[1]
    )
    figure = new_figure(page_width(), height)
    grid = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(shown) :] if len(rows) else panels[1:]:
        axes.set_axis_off()
    if rows.empty:
        show_empty(panels[0], "no covered test spectrum has a prediction")
    else:
        _draw_panels(figure, dict(zip(shown, panels, strict=False)), shown, rows, results)
    add_title(
        figure,
        title,
        f"Covered test spectra, noise level {level:g}{_name_seed(seed)}. Dashed: prediction = truth. {note}".strip(),
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _name_seed(seed: int) -> str:
    return f", seed {seed}" if seed != NO_SEED else ""


def _scores(results: RunResults, rows: pd.DataFrame, names: Mapping[str, str]) -> pd.Series:
    """Return R² of every model: of the two that ``results.csv`` has, its own, which may be means over test noise."""
    frame = results.overall
    own = (frame["seed"] == rows["seed"].iloc[0]) & (frame["noise_level"] == rows["noise_level"].iloc[0])
    stated = frame[own & (frame["scope"] == "covered")].iloc[0]
    computed = {f"r2_{model}": _r2(rows, model) for model in names}
    return pd.Series(computed | {f"r2_{model}": stated[f"r2_{model}"] for model in _MODELS})


def _r2(rows: pd.DataFrame, model: str) -> float:
    scatter = ((rows["y_true"] - rows["y_true"].mean()) ** 2).sum()
    return 1 - ((rows["y_true"] - rows[f"y_{model}"]) ** 2).sum() / scatter if scatter > 0 else np.nan


def _draw_panels(
    figure: Figure, panels: Mapping[str, Axes], names: Mapping[str, str], rows: pd.DataFrame, results: RunResults
) -> None:
    values = rows[["y_true", *(f"y_{model}" for model in panels)]].to_numpy()
    # A few wild predictions must not shrink the rest to a dot; how many lie beyond is written.
    low, high = np.nanpercentile(values, [0.1, 99.9])
    low, high = min(low, rows["y_true"].min()), max(high, rows["y_true"].max())
    margin = 0.04 * (high - low or 1.0)
    ends = (low - margin, high + margin)
    cells = int(np.clip(np.sqrt(len(rows)), 18, 60))
    scores, seed = _scores(results, rows, names), int(rows["seed"].iloc[0])
    drawn = []
    for model, axes in panels.items():
        predicted = rows[f"y_{model}"]
        beyond = int(((predicted < ends[0]) | (predicted > ends[1])).sum())
        drawn.append(
            axes.hexbin(
                rows["y_true"],
                predicted,
                gridsize=cells,
                extent=(*ends, *ends),
                mincnt=1,
                cmap=BLUES,
                linewidths=0.1,
            )
        )
        _draw_identity(axes, ends)
        merit, count = f"R² = {format_value(scores[f'r2_{model}'], '.4f')}", f"n = {len(rows):,}"
        beyond_words = f"({beyond:,} beyond the axes)" if beyond else ""
        if is_narrow():
            title = f"{names[model]}:\n{merit}\n{count}\n{beyond_words}".strip()
        else:
            between = " " if len(panels) <= 2 and is_slide() else "\n"
            title = f"{names[model]}{_name_seed(seed)}:{between}{merit}, {count}\n{beyond_words}".strip()
        style_axes(axes, title=title, grid="both")
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        place = axes.get_subplotspec()
        assert place is not None
        columns = place.get_gridspec().ncols
        if len(drawn) + columns > len(panels):  # nothing is drawn below
            axes.set_xlabel(f"true {target_quantity(results)}", fontsize=TEXT)
            axes.tick_params(labelbottom=True)
        if place.is_first_col():
            axes.set_ylabel(f"predicted {target_quantity(results)}", fontsize=TEXT)
    most = max(float(np.asarray(hexagons.get_array()).max()) for hexagons in drawn)
    for hexagons in drawn:
        hexagons.set_norm(LogNorm(1, max(most, 2.0)))
    bar = figure.colorbar(drawn[0], ax=list(panels.values()), fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    bar.locator = LogLocator(subs=(1, 2, 5))
    bar.formatter = FuncFormatter(lambda value, _: f"{value:,.0f}")
    bar.minorticks_off()
    bar.update_ticks()
    bar.set_label("test spectra per cell (log scale)", fontsize=TEXT)


def _draw_identity(axes: Axes, ends: tuple[float, float]) -> None:
    (line,) = axes.plot(ends, ends, color=WARNING, linestyle="--", linewidth=2, zorder=5)
    line.set_path_effects([patheffects.Stroke(linewidth=4.5, foreground="white"), patheffects.Normal()])
