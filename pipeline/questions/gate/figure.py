"""What a gate keeps of the headroom, and how far its probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.report import bin_views, estimate_view, headline, scope_views
from pipeline.report.figures.canvas import (
    BLUES,
    GLOBAL,
    INK,
    MUTED,
    ORACLE,
    SLIDE,
    SMALL,
    TEXT,
    add_interval,
    add_title,
    choose_ink,
    format_value,
    new_figure,
    show_empty,
    style_axes,
)
from pipeline.scoring import RunResults

__all__ = ["draw_gate", "draw_gate_probabilities"]

#: Cells of a matrix beyond which their numbers would touch.
_READABLE_CELLS = 14
#: Features shown, of those that a gate looks at.
_MOST_FEATURES = 20


def draw_gate(results: RunResults) -> Figure:
    """Draw R² and ρ of every way of routing, the confusion matrix, and told against found probabilities."""
    level = headline(results)
    routing = level.get("routing")
    figure = new_figure(SLIDE[0], 9.4)
    if not routing:
        show_empty(figure.subplots(), "no gate was asked for in this run")
        return figure
    panels = figure.subplots(2, 2, width_ratios=(1, 1.15))
    _draw_r2(panels[0, 0], routing, scope_views(level)["covered"].r2_global.mean)
    _draw_confusion(panels[0, 1], routing, [str(view.number) for view in bin_views(level)])
    _draw_kept(panels[1, 0], routing)
    _draw_reliability(panels[1, 1], routing["reliability"])
    add_title(
        figure,
        "What routing without labels keeps of the headroom",
        f"Noise level {level['noise_level']:g}; {routing['kind']} gate, fitted to held-out folds of the training set; "
        f"covered test spectra, mean over seeds (bars: {results.summary['confidence']:.0%} interval).",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def draw_gate_probabilities(results: RunResults) -> Figure:
    """Draw what probabilities spectra of each bin are given, and which features a gate lives on."""
    level = headline(results)
    routing = level.get("routing")
    importance = (routing or {}).get("importance") or {}
    figure = new_figure(SLIDE[0], 9.4 if importance else 5.4)
    if not routing:
        show_empty(figure.subplots(), "no gate was asked for in this run")
        return figure
    names = [*(str(view.number) for view in bin_views(level)), "outside"]
    panels = figure.subplots(2 if importance else 1, 2, squeeze=False, width_ratios=(1.15, 1))
    _draw_spread(panels[0, 0], np.array(routing["spread"], dtype=np.float64), names)
    _draw_truth(panels[0, 1], np.array(routing["truth_quantiles"], dtype=np.float64), names)
    if importance:
        for axes in panels[1]:
            axes.remove()
        _draw_importance(figure.add_subplot(panels[1, 0].get_gridspec()[1, :]), importance)
    add_title(
        figure,
        "How probable the gate takes each bin to be",
        f"Noise level {level['noise_level']:g}; {routing['kind']} gate; all test spectra, mean over seeds. Bins have "
        "the numbers of the tables; thin lines hold 90 % of the spectra."
        + (" Importance was measured on held-out folds of the training set." if importance else ""),
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _draw_spread(axes: Axes, spread: np.ndarray, names: list[str]) -> None:
    axes.imshow(spread, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, spread, names, np.isfinite(spread))
    style_axes(axes, title="Mean probability of each bin, by true bin", x="bin", y="true bin", grid="")


def _draw_truth(axes: Axes, quantiles: np.ndarray, names: list[str]) -> None:
    for place, (low, lower, middle, upper, high) in enumerate(quantiles):
        if np.isfinite(middle):
            axes.plot([place, place], [low, high], color=ORACLE, linewidth=1.6)
            axes.plot([place, place], [lower, upper], color=ORACLE, linewidth=8, alpha=0.45, solid_capstyle="butt")
            axes.plot([place], [middle], color=INK, marker="o", markersize=6)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    style_axes(axes, title="Probability of the true bin (dot: median; bar: half)", x="true bin", grid="y")


def _draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    largest = sorted(importance.items(), key=lambda pair: -pair[1])[:_MOST_FEATURES]
    places = range(len(largest))
    axes.bar(places, [value for _, value in largest], width=0.6, color=MUTED)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xticks(places, [name.replace("_", " ") for name, _ in largest], rotation=35, ha="right")
    shown = "" if len(largest) == len(importance) else f"the {len(largest)} of {len(importance)} that matter most; "
    title = f"Features of the gate ({shown}log loss gained when a feature is shuffled)"
    style_axes(axes, title=title, y="nats per spectrum", grid="y")


def _write_cells(axes: Axes, shares: np.ndarray, labels: list[str], is_shown: np.ndarray) -> None:
    """Name rows and columns of a matrix, and write its shares into the cells while these can be read."""
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    if len(labels) > _READABLE_CELLS:
        return
    for row, column in zip(*np.nonzero(is_shown), strict=True):
        ink, words = choose_ink(BLUES(shares[row, column])), f"{shares[row, column]:.0%}"
        axes.text(column, row, words, ha="center", va="center", fontsize=SMALL, color=ink)


def _draw_r2(axes: Axes, routing: Mapping[str, Any], of_global: float) -> None:
    routes = tuple(routing["scopes"]["covered"])
    for place, route in enumerate(routes):
        estimate = estimate_view(routing["scopes"]["covered"][route]["r2"])
        color = ORACLE if route == "oracle" else INK
        axes.plot([estimate.mean], [place], color=color, marker="o", markersize=10, linestyle="none", zorder=5)
        add_interval(axes, place, estimate, horizontal=True, color=color)
    axes.axvline(of_global, color=GLOBAL, linewidth=2.4)
    style_axes(axes, title="R² by routing (line: global model)", x="R²", grid="x")
    axes.margins(y=0.25)
    _name_routes(axes, routes)


def _draw_kept(axes: Axes, routing: Mapping[str, Any]) -> None:
    routes = tuple(routing["scopes"]["covered"])[1:]
    for place, route in enumerate(routes):
        entry = routing["scopes"]["covered"][route]
        estimate = estimate_view(entry["kept"])
        value = estimate.mean if np.isfinite(estimate.mean) else 0.0
        axes.barh(place, value, height=0.6, color=MUTED)
        add_interval(axes, place, estimate, horizontal=True)
        words = format_value(estimate.mean, ".2f") if np.isfinite(estimate.mean) else "no headroom"
        axes.annotate(
            f"{words}  {entry['verdict']}",
            (max(value, estimate.high if np.isfinite(estimate.high) else 0.0, 0.0), place), (8, 0),
            textcoords="offset points", va="center", fontsize=SMALL, color=INK,
        )  # fmt: skip
    axes.axvline(routing["keep"], color=INK, linewidth=1.2, linestyle="--")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    style_axes(axes, title=f"ρ, the share kept (dashed: asked for, ≥ {routing['keep']:g})", x="ρ", grid="x")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.0), max(high, routing["keep"] * 1.1) + 0.3 * (high - low))  # room for the words
    _name_routes(axes, routes)


def _name_routes(axes: Axes, routes: tuple[str, ...]) -> None:
    axes.set_yticks(range(len(routes)), list(routes))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=TEXT)


def _draw_confusion(axes: Axes, routing: Mapping[str, Any], names: list[str]) -> None:
    counts = np.asarray(routing["confusion"], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, shares, [*names, "outside"], counts > 0)
    accuracy = f"right: {routing['accuracy']:.0%} of all spectra"
    style_axes(axes, title=f"True bin and most probable one ({accuracy})", x="most probable", y="true", grid="")


def _draw_reliability(axes: Axes, reliability: Mapping[str, Any]) -> None:
    told, found = (np.array(reliability[name], dtype=np.float64) for name in ("told", "found"))
    counts = np.asarray(reliability["counts"], dtype=np.float64)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="as told")
    shown = counts > 0
    axes.scatter(told[shown], found[shown], s=30 + 470 * counts[shown] / counts.max(), color=ORACLE, alpha=0.35)
    axes.plot(told[shown], found[shown], color=ORACLE, linewidth=2.4, marker="o", label="test spectra (area: how many)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    style_axes(axes, title="Is the gate as sure as it is right?", x="probability told for the most probable bin",
               y="share that lay there", grid="both")  # fmt: skip
    axes.legend(loc="upper left", fontsize=SMALL, frameon=False)
