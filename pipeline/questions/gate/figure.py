"""What each route keeps of the gain, what the gate says of each bin, and predictions against true labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.questions.gate.answer import GateLevel, Reliability, RouteScore
from pipeline.questions.gate.routing import ORACLE, ROUTES
from pipeline.report import over_seeds, symbol
from pipeline.report.figures.canvas import (
    BLUES,
    GLOBAL,
    INK,
    MUTED,
    SMALL,
    TEXT,
    add_interval,
    add_title,
    choose_ink,
    format_value,
    is_narrow,
    legend_size,
    new_figure,
    page_width,
    place_panels,
    show_empty,
    style_axes,
)
from pipeline.report.figures.canvas import ORACLE as ORACLE_COLOR
from pipeline.report.figures.predictions import draw_against_truth
from pipeline.scoring import RunResults

__all__ = ["draw_gate", "draw_gate_probabilities", "draw_routes"]

#: Cells of a matrix beyond which their numbers would touch.
_READABLE_CELLS = 14

#: Shares below this would be written as 0 %.
_SHOWN_SHARE = 0.005

#: Features shown, of those that a gate looks at.
_MOST_FEATURES = 20


def draw_gate(results: RunResults, gate: GateLevel | None) -> Figure:
    """Draw R² and ρ of every way of routing, the confusion matrix, and told against found probabilities."""
    level = results.summary.headline
    figure = new_figure(page_width(), 9.4)
    if gate is None:
        show_empty(figure.subplots(), "no gate was asked for in this run")
        return figure
    of_r2, confusion, kept, reliability = _place_four(figure)
    _draw_r2(of_r2, gate.covered, level.covered.r2_global.mean)
    _draw_confusion(confusion, gate, [str(one.bin) for one in level.bins])
    _draw_kept(kept, gate.covered, gate.keep)
    _draw_reliability(reliability, gate.reliability)
    add_title(
        figure,
        "What routing without labels keeps of the headroom",
        f"Noise level {level.noise_level:g}; {gate.kind} gate, fitted to held-out folds of the training set; "
        f"covered test spectra{over_seeds(results)}. Bars: {results.summary.confidence:.0%} interval.",
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def _place_four(figure: Figure) -> list[Axes]:
    """Return four panels, two by two; in one column of a paper one below the other."""
    if is_narrow():
        return place_panels(figure, 4)
    return list(figure.subplots(2, 2, width_ratios=(1, 1.15)).flat)


def draw_gate_probabilities(results: RunResults, gate: GateLevel | None) -> Figure:
    """Draw what probabilities spectra of each bin are given, and which features a gate lives on."""
    level = results.summary.headline
    importance = gate.importance if gate is not None else {}
    figure = new_figure(page_width(), 9.4 if importance else 5.4)
    if gate is None:
        show_empty(figure.subplots(), "no gate was asked for in this run")
        return figure
    names = [*(str(one.bin) for one in level.bins), "outside"]
    if is_narrow():
        spread, truth, *rest = place_panels(figure, 3 if importance else 2)
    else:
        grid = figure.add_gridspec(2 if importance else 1, 2, width_ratios=(1.15, 1))
        spread, truth = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        rest = [figure.add_subplot(grid[1, :])] if importance else []
    _draw_spread(spread, np.array(gate.spread), names)
    _draw_truth(truth, np.array(gate.truth_quantiles), names)
    for axes in rest:
        _draw_importance(axes, importance)
    add_title(
        figure,
        "How probable the gate takes each bin to be",
        f"Noise level {level.noise_level:g}; {gate.kind} gate; all test spectra{over_seeds(results)}. Bins have "
        "the numbers of the tables; thin lines hold 90 % of the spectra."
        + (" Importance was measured on held-out folds of the training set." if importance else ""),
        simulated=bool(results.metadata.get("simulated")),
    )
    return figure


def draw_routes(results: RunResults) -> Figure:
    """Draw predicted against true labels for every way of routing, beside the global model and the oracle."""
    return draw_against_truth(
        results,
        {route.name: route.title for route in ROUTES.values()},
        f"Predicted against true {symbol(results.summary.target)} by route",
        "Routing by the gate, without any label; the oracle knows the bins.",
    )


def _draw_spread(axes: Axes, spread: np.ndarray, names: list[str]) -> None:
    axes.imshow(np.ma.masked_less(spread, _SHOWN_SHARE), cmap=BLUES, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, spread, names)
    style_axes(axes, title="Mean probability of each bin, by true bin", x="bin", y="true bin", grid="")


def _draw_truth(axes: Axes, quantiles: np.ndarray, names: list[str]) -> None:
    for place, (low, lower, middle, upper, high) in enumerate(quantiles):
        if np.isfinite(middle):
            axes.plot([place, place], [low, high], color=ORACLE_COLOR, linewidth=1.6)
            axes.plot(
                [place, place], [lower, upper], color=ORACLE_COLOR, linewidth=8, alpha=0.45, solid_capstyle="butt"
            )
            axes.plot([place], [middle], color=INK, marker="o", markersize=6)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    style_axes(axes, title="Probability of the true bin (median, middle half)", x="true bin",
               y="probability", grid="y")  # fmt: skip


def _draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    largest = sorted(importance.items(), key=lambda pair: -pair[1])[:_MOST_FEATURES]
    places = range(len(largest))
    axes.bar(places, [value for _, value in largest], width=0.6, color=MUTED)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    slope = 60 if is_narrow() else 35  # where names are near each other, steep ones do not touch
    axes.set_xticks(places, [name.replace("_", " ") for name, _ in largest], rotation=slope, ha="right")
    shown = "" if len(largest) == len(importance) else f"the {len(largest)} of {len(importance)} that matter most; "
    title = f"Features of the gate ({shown}log loss gained when a feature is shuffled)"
    style_axes(axes, title=title, x="feature", y="nats per spectrum", grid="y")


def _write_cells(axes: Axes, shares: np.ndarray, labels: list[str]) -> None:
    """Name rows and columns of a matrix, and write its shares into the cells while these can be read.

    Cells that would say 0 % are empty, and have no tint.
    """
    short = [label if label != "outside" else "out" for label in labels] if is_narrow() else labels
    axes.set_xticks(range(len(labels)), short)
    axes.set_yticks(range(len(labels)), short)
    if len(labels) > _READABLE_CELLS:
        return
    size = legend_size() if is_narrow() else SMALL
    for row, column in zip(*np.nonzero(shares >= _SHOWN_SHARE), strict=True):
        ink, words = choose_ink(BLUES(shares[row, column])), f"{shares[row, column]:.0%}"
        axes.text(column, row, words, ha="center", va="center", fontsize=size, color=ink)


def _draw_r2(axes: Axes, routes: Mapping[str, RouteScore], of_global: float) -> None:
    for place, (route, score) in enumerate(routes.items()):
        color = ORACLE_COLOR if route == ORACLE.name else INK
        axes.plot([score.r2.mean], [place], color=color, marker="o", markersize=10, linestyle="none", zorder=5)
        add_interval(axes, place, score.r2, horizontal=True, color=color)
    axes.axvline(of_global, color=GLOBAL, linewidth=2.4)
    style_axes(axes, title="R² by routing (line: global model)", x="R²", y="route", grid="x")
    axes.margins(y=0.25)
    _name_routes(axes, tuple(routes))


def _draw_kept(axes: Axes, routes: Mapping[str, RouteScore], keep: float) -> None:
    judged = {route: score for route, score in routes.items() if score.verdict is not None}
    for place, score in enumerate(judged.values()):
        kept = score.kept
        value = kept.mean if np.isfinite(kept.mean) else 0.0
        axes.barh(place, value, height=0.6, color=MUTED)
        add_interval(axes, place, kept, horizontal=True)
        words = format_value(kept.mean, ".2f") if np.isfinite(kept.mean) else "no headroom"
        axes.annotate(
            f"{words}  {score.verdict}",
            (max(value, kept.high if np.isfinite(kept.high) else 0.0, 0.0), place), (8, 0),
            textcoords="offset points", va="center", fontsize=SMALL, color=INK, zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},  # the dashed line ends beside the words
        )  # fmt: skip
    axes.axvline(keep, color=INK, linewidth=1.2, linestyle="--")
    axes.axvline(0, color=MUTED, linewidth=0.8)
    style_axes(axes, title=f"ρ, the share kept (dashed: asked for, ≥ {keep:g})", x="ρ", y="route", grid="x")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.0), max(high, keep * 1.1) + 0.3 * (high - low))  # room for the words
    _name_routes(axes, tuple(judged))


def _name_routes(axes: Axes, routes: tuple[str, ...]) -> None:
    axes.set_yticks(range(len(routes)), list(routes))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=TEXT)


def _draw_confusion(axes: Axes, gate: GateLevel, names: list[str]) -> None:
    counts = np.asarray(gate.confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.ma.masked_less(shares, _SHOWN_SHARE), cmap=BLUES, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, shares, [*names, "outside"])
    accuracy = f"right: {gate.accuracy:.0%} of all spectra"
    style_axes(axes, title=f"True bin and most probable one ({accuracy})", x="most probable bin", y="true bin", grid="")


def _draw_reliability(axes: Axes, reliability: Reliability) -> None:
    told, found = np.array(reliability.told), np.array(reliability.found)
    counts = np.asarray(reliability.counts, dtype=np.float64)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="as told")
    shown = counts > 0
    axes.scatter(told[shown], found[shown], s=30 + 470 * counts[shown] / counts.max(), color=ORACLE_COLOR, alpha=0.35)
    axes.plot(
        told[shown], found[shown], color=ORACLE_COLOR, linewidth=2.4, marker="o", label="test spectra (area: how many)"
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    style_axes(axes, title="Is the gate as sure as it is right?", x="stated probability of the most probable bin",
               y="share that lay there", grid="both")  # fmt: skip
    axes.legend(loc="upper left", fontsize=SMALL, frameon=False)
