"""How the page and the figures call things: symbols with units, edges and names of bins, thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pipeline import schema
from pipeline.config import DecisionConfig
from pipeline.scoring import RunResults, Scope, cut_name

__all__ = [
    "bin_edges",
    "conclusion",
    "coverage",
    "interval_labels",
    "learning_points",
    "quantity",
    "symbol",
    "target_quantity",
    "thresholds",
]


def conclusion(results: RunResults) -> str:
    """Return the sentence that a report opens with.

    With several noise levels it says which one it is about and adds the verdicts of the others, in the order
    of the configuration, for example ``At noise level 1: … (0.2: undecided)``.
    """
    level = results.summary.headline
    others = [one for one in results.summary.levels if one is not level]
    if not others:
        return level.decision.sentence
    verdicts = "; ".join(f"{one.noise_level:g}: {one.decision.verdict}" for one in others)
    return f"At noise level {level.noise_level:g}: {level.decision.sentence} ({verdicts})"


def learning_points(results: RunResults) -> Sequence[Scope]:
    """Return the scores of covered spectra of growing training sets, at the headline noise level."""
    return results.summary.headline.curve


def thresholds(results: RunResults) -> DecisionConfig:
    """Return the thresholds that the run's configuration states."""
    return DecisionConfig.model_validate(results.metadata["config"].get("decision") or {})


def bin_edges(results: RunResults) -> dict[str, list[float]]:
    """Return the edges of the bins by column, in the order that numbers them."""
    bins = results.metadata["config"]["bins"]
    return {column: [float(edge) for edge in bins[column]] for column in results.metadata["bin_columns"]}


def interval_labels(results: RunResults, column: str) -> list[str]:
    """Return a column's intervals as name and edges, for example ``Cool\\n3750–4500``."""
    names = results.metadata["interval_names"][column]
    edges = bin_edges(results)[column]
    # A dash beside a minus reads badly, and one axis has one way of writing an interval.
    between = " to " if min(edges) < 0 else "–"
    labels = []
    for name, (low, high) in zip(names, pairwise(edges), strict=True):
        span = f"{low:g}{between}{high:g}".replace("-", "−")
        # Intervals without names of their own are already called by their edges.
        nameless = str(name) in (span, f"{low:g}–{high:g}")
        labels.append(span if nameless else f"{cut_name(str(name), 18)}\n{span}")
    return labels


def coverage(results: RunResults, part: str) -> float | None:
    """Return the share of train or test spectra that lie in a bin, where the run recorded it."""
    value = results.metadata.get("stores", {}).get(part, {}).get("coverage")
    return None if value is None else float(value)


def symbol(column: str) -> str:
    """Return a column's name as figures write it."""
    return schema.COLUMN_SYMBOLS.get(column, column)


def quantity(column: str) -> str:
    """Return a column's symbol with its unit, for example ``T_eff (K)``."""
    unit = schema.COLUMN_UNITS.get(column, "1")
    return symbol(column) if unit == "1" else f"{symbol(column)} ({unit})"


def target_quantity(results: RunResults) -> str:
    """Return the target's symbol with its unit."""
    return quantity(results.summary.target)
