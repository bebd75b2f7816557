"""Predicted against true labels, for the global ridge and for the experts under oracle routing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.figures.canvas import (
    BLUES,
    SLIDE,
    SMALL,
    TEXT,
    VERDICT_COLORS,
    add_title,
    new_figure,
    show_empty,
    style_axes,
)
from pipeline.figures.views import headline, symbol, target_quantity
from pipeline.results import NO_SEED, RunResults

__all__ = ["draw_predicted_against_true"]

_MODELS = (("global", "Global ridge"), ("oracle", "Oracle experts"))


def draw_predicted_against_true(results: RunResults) -> Figure:
    """Draw the density of predicted against true labels of covered test spectra.

    One seed is shown, the first: pooling seeds would show every star several times. R² and n are those of
    ``results.csv`` for this seed, so that the figure cannot disagree with the tables.
    """
    level, seed = headline(results)["noise_level"], int(results.overall["seed"].iloc[0])
    rows = results.predictions
    rows = rows[(rows["seed"] == seed) & (rows["noise_level"] == level) & (rows["bin"] >= 0)]
    figure = new_figure(SLIDE[0], SLIDE[1])
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    if rows.empty:
        show_empty(panels[0], "no covered test spectrum has a prediction")
        panels[1].set_axis_off()
    else:
        _draw_panels(figure, list(panels), rows, _scores(results, seed, level), results)
    add_title(
        figure,
        f"Predicted against true {symbol(results.summary['target'])}",
        f"Covered test spectra, noise level {level:g}{_name_seed(seed)}. Dashed: prediction = truth.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _name_seed(seed: int) -> str:
    return f", seed {seed}" if seed != NO_SEED else ""


def _scores(results: RunResults, seed: int, level: float) -> pd.Series:
    frame = results.overall
    chosen = (frame["seed"] == seed) & (frame["noise_level"] == level) & (frame["scope"] == "covered")
    return frame[chosen].iloc[0]


def _draw_panels(
    figure: Figure, panels: list[Axes], rows: pd.DataFrame, scores: pd.Series, results: RunResults
) -> None:
    values = rows[["y_true", "y_global", "y_oracle"]].to_numpy()
    # A few wild predictions must not shrink the rest to a dot; how many lie beyond is written.
    low, high = np.nanpercentile(values, [0.1, 99.9])
    low, high = min(low, rows["y_true"].min()), max(high, rows["y_true"].max())
    margin = 0.04 * (high - low or 1.0)
    ends = (low - margin, high + margin)
    cells = int(np.clip(np.sqrt(len(rows)), 18, 60))
    drawn = []
    for axes, (model, title) in zip(panels, _MODELS, strict=True):
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
        of_seed = _name_seed(int(scores["seed"]))
        merit = f"{title}{of_seed}: R² = {scores[f'r2_{model}']:.4f}, n = {int(scores['n_test']):,}"
        outside = f"\n({beyond:,} beyond the axes)" if beyond else ""
        style_axes(axes, title=merit + outside, x=f"true {target_quantity(results)}", grid="both")
        axes.set(xlim=ends, ylim=ends, aspect="equal")
    panels[0].set_ylabel(f"predicted {target_quantity(results)}", fontsize=TEXT)
    most = max(float(np.asarray(hexagons.get_array()).max()) for hexagons in drawn)
    for hexagons in drawn:
        hexagons.set_norm(LogNorm(1, max(most, 2.0)))
    bar = figure.colorbar(drawn[0], ax=panels, fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    bar.locator = LogLocator(subs=(1, 2, 5))
    bar.formatter = FuncFormatter(lambda value, _: f"{value:,.0f}")
    bar.minorticks_off()
    bar.update_ticks()
    bar.set_label("test spectra per cell (log scale)", fontsize=TEXT)


def _draw_identity(axes: Axes, ends: tuple[float, float]) -> None:
    (line,) = axes.plot(ends, ends, color=VERDICT_COLORS["stop"], linestyle="--", linewidth=2, zorder=5)
    line.set_path_effects([patheffects.Stroke(linewidth=4.5, foreground="white"), patheffects.Normal()])
