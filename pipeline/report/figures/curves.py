"""R² of both models, and ΔR², as curves along one quantity: the number of training spectra, or the noise level."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from pipeline.report.figures.canvas import (
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SMALL,
    VERDICT_COLORS,
    add_interval,
    style_axes,
)
from pipeline.report.views import thresholds
from pipeline.scoring import BUILD, NOT_WORTH_IT, R2_GLOBAL, R2_ORACLE, RunResults, Scope

__all__ = ["draw_delta_curve", "draw_r2_curves"]

_LINES = ((R2_GLOBAL, "Global ridge", GLOBAL, "s"), (R2_ORACLE, "Oracle experts", ORACLE, "o"))


def draw_r2_curves(axes: Axes, at: Sequence[float], scopes: Sequence[Scope], *, legend: bool = True) -> None:
    """Draw R² of both models with intervals, at one place for each of some scopes."""
    for merit, label, color, marker in _LINES:
        estimates = [scope.merit(merit) for scope in scopes]
        values = [estimate.mean for estimate in estimates]
        axes.plot(at, values, color=color, marker=marker, linewidth=2, markersize=7, label=label, zorder=5)
        for position, estimate in zip(at, estimates, strict=True):
            add_interval(axes, position, estimate, horizontal=False, color=color)
    style_axes(axes, title="R² of both models", y="R²", grid="y")
    axes.margins(x=0.08)
    if not legend:
        return
    # Below the data: a legend among them would cover a curve sooner or later.
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.22 * (high - low), high)


def draw_delta_curve(axes: Axes, at: Sequence[float], scopes: Sequence[Scope], results: RunResults) -> None:
    """Draw ΔR² with intervals and the thresholds of the decision."""
    decision, deltas = thresholds(results), [scope.delta_r2 for scope in scopes]
    axes.plot(at, [delta.mean for delta in deltas], color=INK, marker="D", linewidth=2, markersize=7, zorder=5)
    for position, delta in zip(at, deltas, strict=True):
        add_interval(axes, position, delta, horizontal=False)
    style_axes(axes, title="ΔR², what experts gain", y="ΔR²", grid="")
    axes.margins(x=0.08)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    lines = (
        (decision.continue_, BUILD, f"build experts: ≥ {decision.continue_:g}", "--"),
        (decision.stop, NOT_WORTH_IT, f"not worth it: < {decision.stop:g}", ":"),
    )
    for value, verdict, text, dashes in lines:
        axes.axhline(value, color=VERDICT_COLORS[verdict], linewidth=2, linestyle=dashes, label=text)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.15 * (high - low), high)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)
