"""R² and ΔR² along one quantity: the number of training spectra, and the noise level."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report import amplification, has_joint_learning, headline, learning_points, scope_views, thresholds
from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SLIDE,
    SMALL,
    TEXT,
    VERDICT_COLORS,
    add_interval,
    add_title,
    label_counts,
    new_figure,
    show_empty,
    style_axes,
)
from pipeline.scoring import Estimate, RunResults

__all__ = ["draw_learning_curve", "draw_learning_panel", "draw_noise_levels"]

_LINES = (("r2_global", "Global ridge", GLOBAL, "s"), ("r2_oracle", "Oracle experts", ORACLE, "o"))


def draw_learning_curve(results: RunResults) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² against the number of training spectra.

    A point is the mean over seeds at one prefix of the training folds; bars are the interval over seeds, or the
    mean interval of a seed where the run has no other.
    """
    figure = new_figure(SLIDE[0], 6.2)
    left, right = figure.subplots(1, 2)
    points = learning_points(results)
    level = headline(results)["noise_level"]
    if points.empty:
        show_empty(left, "no learning curve in this run")
        right.set_axis_off()
    else:
        counts = list(points["n_train"])
        estimates = {name: _estimates(points, name) for name in ("r2_global", "r2_oracle", "delta_r2")}
        _draw_r2(left, counts, estimates)
        _draw_delta(right, counts, estimates["delta_r2"], results)
        for axes in (left, right):
            axes.set_xlabel("training spectra", fontsize=TEXT)
            label_counts(axes, counts)
    interval = f"{results.summary['confidence']:.0%} interval"
    bars = interval if has_joint_learning(results) else f"mean {interval} of a seed"
    add_title(
        figure,
        "Does more training data still help the experts?",
        f"Covered test spectra, noise level {level:g}; mean over seeds, bars: {bars}.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def draw_learning_panel(axes: Axes, results: RunResults) -> None:
    """Draw the two R² curves of the learning curve on axes of the dashboard."""
    points = learning_points(results)
    if points.empty:
        show_empty(axes, "no learning curve in this run")
        return
    counts = list(points["n_train"])
    _draw_r2(axes, counts, {name: _estimates(points, name) for name, *_ in _LINES}, legend=False)
    axes.set_title("R² against training spectra", loc="left", fontsize=TEXT, fontweight="bold")
    label_counts(axes, counts)


def draw_noise_levels(results: RunResults) -> Figure:
    """Draw R²_global, R²_oracle and ΔR² against the noise level, on covered test spectra."""
    figure = new_figure(SLIDE[0], 6.2)
    left, right = figure.subplots(1, 2)
    levels = sorted(results.summary["levels"], key=lambda level: level["noise_level"])
    scopes = [next(iter(scope_views(level).values())) for level in levels]
    positions = [float(level["noise_level"]) for level in levels]
    _draw_r2(
        left,
        positions,
        {name: [getattr(scope, name) for scope in scopes] for name, *_ in _LINES},
    )
    _draw_delta(right, positions, [scope.delta_r2 for scope in scopes], results)
    for axes in (left, right):
        axes.set_xlabel("noise level (multiples of the simulated 1σ error)", fontsize=TEXT)
    add_title(
        figure,
        "How noise changes what experts gain",
        "Covered test spectra; mean over seeds, bars: confidence interval." + _amplified(results),
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _amplified(results: RunResults) -> str:
    found = amplification(results)
    if found is None:
        return ""
    return f" ΔR² at noise level {found.high:g} is {found.ratio:.1f} × that at {found.low:g}."


def _estimates(points: pd.DataFrame, name: str) -> list[Estimate]:
    columns = (points[name], points[f"{name}_low"], points[f"{name}_high"])
    return [Estimate(mean, 0.0, low, high) for mean, low, high in zip(*columns, strict=True)]


def _draw_r2(axes: Axes, at: Sequence[float], estimates: dict[str, list[Estimate]], *, legend: bool = True) -> None:
    for name, label, color, marker in _LINES:
        values = [estimate.mean for estimate in estimates[name]]
        axes.plot(at, values, color=color, marker=marker, linewidth=2, markersize=7, label=label, zorder=5)
        for position, estimate in zip(at, estimates[name], strict=True):
            add_interval(axes, position, estimate, horizontal=False, color=color)
    style_axes(axes, title="R² of both models", y="R²", grid="y")
    axes.margins(x=0.08)
    if not legend:
        return
    # Below the data: a legend among them would cover a curve sooner or later.
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.22 * (high - low), high)


def _draw_delta(axes: Axes, at: Sequence[float], deltas: Sequence[Estimate], results: RunResults) -> None:
    decision = thresholds(results)
    axes.plot(at, [delta.mean for delta in deltas], color=INK, marker="D", linewidth=2, markersize=7, zorder=5)
    for position, delta in zip(at, deltas, strict=True):
        add_interval(axes, position, delta, horizontal=False)
    style_axes(axes, title="ΔR², what experts gain", y="ΔR²", grid="")
    axes.margins(x=0.08)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    lines = (
        (decision.continue_, "continue", f"worth building: ≥ {decision.continue_:g}", "--"),
        (decision.stop, "stop", f"not worth it: < {decision.stop:g}", ":"),
    )
    for value, verdict, text, dashes in lines:
        axes.axhline(value, color=VERDICT_COLORS[verdict], linewidth=2, linestyle=dashes, label=text)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.15 * (high - low), high)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)
