"""What figures and report read from results: levels, bins, edges, words for columns.

``summary.json`` holds, for every noise level, the estimates (``mean``, ``std`` over seeds, ``low``/``high`` of
the confidence interval; null where there is none) of the two scopes and of each bin::

    {"target": "log_g", "confidence": 0.95, "headline_level": 1.0, "learning": {"sentence": …, "points": […]},
     "levels": [{"noise_level": 1.0, "test_noise": "stored" | "drawn",
                 "scopes": {"covered" | "all": {"n_train", "n_test", "r2_oracle", "r2_global", "delta_r2"}},
                 "bins": [{"bin", "names", "n_train", "n_test", "alpha", "r2_oracle", …}],
                 "decision": {"verdict", "sentence"},
                 "hypotheses": [{"name", "statement", "found", "passed"}]}]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from pipeline import schema
from pipeline.config import DecisionConfig
from pipeline.scoring import Estimate, RunResults

__all__ = [
    "MERITS",
    "SCOPES",
    "Amplification",
    "BinView",
    "BinningView",
    "ScopeView",
    "amplification",
    "bin_edges",
    "bin_views",
    "binning_views",
    "conclusion",
    "coverage",
    "estimate_view",
    "has_joint_learning",
    "headline",
    "interval_labels",
    "learning_points",
    "quantity",
    "scope_views",
    "symbol",
    "target_quantity",
    "thresholds",
]

#: The figures of merit as files spell them, and as readers do.
MERITS: Mapping[str, str] = {"r2_global": "R²_global", "r2_oracle": "R²_oracle", "delta_r2": "ΔR²"}
#: Headline scope first.
SCOPES = ("covered", "all")


@dataclass(frozen=True)
class ScopeView:
    """The estimates over one set of test spectra."""

    n_train: int
    n_test: int
    r2_global: Estimate
    r2_oracle: Estimate
    delta_r2: Estimate


@dataclass(frozen=True)
class BinView(ScopeView):
    """The estimates in one bin; NaN where it has too few test spectra to have an R²."""

    number: int
    names: tuple[str, ...]
    alpha: float

    @property
    def label(self) -> str:
        """For example ``3 · Mid, Poor``; long names are cut, because a figure has no room for them."""
        room = 20 // len(self.names) + 3
        return f"{self.number} · {', '.join(_cut(name, room) for name in self.names)}"


def headline(results: RunResults) -> dict[str, Any]:
    """Return the level of ``summary.json`` that the conclusion is about."""
    levels: list[dict[str, Any]] = results.summary["levels"]
    wanted = results.summary["headline_level"]
    return next((level for level in levels if level["noise_level"] == wanted), levels[0])


def conclusion(results: RunResults) -> str:
    """Return the sentence that a report opens with.

    With several noise levels it says which one it is about and adds the verdicts of the others, in the order
    of the configuration, for example ``At noise level 1: … (0.2: undecided)``.
    """
    level = headline(results)
    sentence = str(level["decision"]["sentence"])
    others = [one for one in results.summary["levels"] if one is not level]
    if not others:
        return sentence
    verdicts = "; ".join(f"{one['noise_level']:g}: {one['decision']['verdict']}" for one in others)
    return f"At noise level {level['noise_level']:g}: {sentence} ({verdicts})"


def scope_views(level: Mapping[str, Any]) -> dict[str, ScopeView]:
    """Return the scopes of a level that were scored, the headline scope first."""
    scopes = level["scopes"]
    return {name: ScopeView(**_scope_values(scopes[name])) for name in SCOPES if name in scopes}


def bin_views(level: Mapping[str, Any]) -> list[BinView]:
    """Return the bins of a level in the order of their numbers."""
    views = [
        BinView(
            **_scope_values(entry),
            number=int(entry["bin"]),
            names=tuple(map(str, entry["names"])),
            alpha=_number(entry["alpha"]),
        )
        for entry in level["bins"]
    ]
    return sorted(views, key=lambda view: view.number)


@dataclass(frozen=True)
class BinningView(ScopeView):
    """One binning's figures of merit on the spectra that it covers, a share ``coverage`` of all test spectra.

    ``share`` is ΔR² in units of the main binning's, which comes first.
    """

    name: str
    columns: tuple[str, ...]
    n_bins: int
    coverage: float
    share: Estimate


def binning_views(level: Mapping[str, Any]) -> list[BinningView]:
    """Return the binnings of a level, the main one first; none in a run that has no other."""
    return [
        BinningView(
            **_scope_values(entry),
            name=str(entry["name"]),
            columns=tuple(map(str, entry["columns"])),
            n_bins=int(entry["n_bins"]),
            coverage=_number(entry["coverage"]),
            share=estimate_view(entry.get("share")),
        )
        for entry in level.get("ablation") or ()
    ]


def _scope_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    estimates = {name: estimate_view(entry.get(name)) for name in MERITS}
    return {"n_train": int(entry["n_train"]), "n_test": int(entry["n_test"]), **estimates}


def estimate_view(entry: Mapping[str, Any] | None) -> Estimate:
    """Return an estimate of ``summary.json``; NaN for what it does not have."""
    return Estimate(*(_number((entry or {}).get(key)) for key in ("mean", "std", "low", "high")))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


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
        labels.append(span if nameless else f"{_cut(str(name), 18)}\n{span}")
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
    return quantity(results.summary["target"])


def learning_points(results: RunResults, scope: str = "covered") -> pd.DataFrame:
    """Return the learning curve at the headline noise level, over all seeds.

    ``summary.json`` has it for the covered scope, resampled over seeds together as the key numbers are, so that
    the last point equals them. Where it has none, values and intervals of ``learning_curve.csv`` are averaged.

    Returns
    -------
    pandas.DataFrame
        A row per prefix of the training folds, by increasing ``n_train``: ``n_train``, ``n_test`` and each
        figure of merit with ``_low`` and ``_high``.
    """
    if scope == "covered" and has_joint_learning(results):
        return _joint_learning(results)
    frame = results.learning
    chosen = frame[(frame["noise_level"] == headline(results)["noise_level"]) & (frame["scope"] == scope)]
    values = [f"{merit}{suffix}" for merit in MERITS for suffix in ("", "_low", "_high")]
    points: pd.DataFrame = chosen.groupby(["n_train", "n_test"], as_index=False)[values].mean()
    return points.sort_values("n_train")


@dataclass(frozen=True)
class Amplification:
    """How many times ΔR² at a high noise level is that at a low one."""

    low: float
    high: float
    ratio: float


def amplification(results: RunResults) -> Amplification | None:
    """Return what noise does to ΔR² on covered spectra, from level 0.2 to 1 or from the lowest above 0 to the highest.

    None where there are no two such levels, or experts gain nothing at one of them: a ratio would say nothing.
    """
    deltas = {
        float(level["noise_level"]): next(iter(scope_views(level).values())).delta_r2.mean
        for level in results.summary["levels"]
        if level["noise_level"] > 0
    }
    low, high = (0.2, 1.0) if {0.2, 1.0} <= set(deltas) else (min(deltas, default=0.0), max(deltas, default=0.0))
    if low == high or not (deltas[low] > 0 and deltas[high] > 0):
        return None
    return Amplification(low, high, deltas[high] / deltas[low])


def has_joint_learning(results: RunResults) -> bool:
    """Whether ``summary.json`` has the learning curve's points, with intervals over all seeds together."""
    return bool((results.summary.get("learning") or {}).get("points"))


def _joint_learning(results: RunResults) -> pd.DataFrame:
    n_test = int(headline(results)["scopes"]["covered"]["n_test"])
    rows = []
    for point in results.summary["learning"]["points"]:
        row: dict[str, float] = {"n_train": int(point["n_train"]), "n_test": n_test}
        for merit in MERITS:
            estimate = point.get(merit) or {}
            ends = {"": "mean", "_low": "low", "_high": "high"}
            row |= {f"{merit}{suffix}": _number(estimate.get(key)) for suffix, key in ends.items()}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("n_train", ignore_index=True)


def _cut(text: str, length: int) -> str:
    short = text if len(text) <= length else f"{text[: length - 1]}…"
    # A pair of dollar signs would make matplotlib read a user's name as a formula.
    return short.replace("$", r"\$")
