"""Routing in the run folder's tables: what a gate keeps of the headroom, how right it is, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import ExperimentConfig
from pipeline.questions.gate.blend import Blend, summarise_blends
from pipeline.questions.gate.routing import GateQuality, estimate_kept
from pipeline.scoring import SCOPES, Estimate, HeadroomScore, estimate_merits, merit_columns

__all__ = ["ScoredGate", "summarise_routing", "tabulate_routing"]


@dataclass(frozen=True, eq=False)
class ScoredGate:
    """Every way of routing under one training and one test noise; in a score, the route stands for the oracle.

    ``routed`` are the predictions of every route, shape (N,), label units; ``importance`` is that of each feature of
    a gate that looks at features, see :class:`pipeline.questions.gate.logistic.LogisticFit`; ``probabilities`` are
    what the gate said, shape (N, K + 1).
    """

    seed: int
    noise_level: float
    scores: Mapping[str, HeadroomScore]
    quality: GateQuality
    routed: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    blend: Blend | None = None
    probabilities: NDArray[np.float64] | None = None

    @property
    def routes(self) -> tuple[str, ...]:
        """The ways of routing, the upper bound first."""
        return tuple(self.scores)


def tabulate_routing(scored: Sequence[ScoredGate], config: ExperimentConfig) -> pd.DataFrame:
    """Return a row for each seed, noise level, scope (``covered``, ``all`` or a bin's number) and route."""
    confidence = config.bootstrap.confidence
    rows = []
    for one in scored:
        n_bins = len(one.scores["oracle"].bins)
        for scope in (*SCOPES, *map(str, range(n_bins))):
            of_scope = {route: _scope(score, scope) for route, score in one.scores.items()}
            for route in one.routes:
                score = of_scope[route]
                columns = merit_columns(score, confidence)
                kept = estimate_kept([score], [of_scope["oracle"]], confidence)
                rows.append(
                    {
                        "seed": one.seed,
                        "noise_level": one.noise_level,
                        "target": config.target,
                        "scope": scope,
                        "route": route,
                        "n_test": score.n_test,
                        **{f"r2{end}": columns[f"r2_oracle{end}"] for end in ("", "_low", "_high")},
                        "r2_global": columns["r2_global"],
                        **{f"gain{end}": columns[f"delta_r2{end}"] for end in ("", "_low", "_high")},
                        "kept": kept.mean,
                        "kept_low": kept.low,
                        "kept_high": kept.high,
                    }
                )
    return pd.DataFrame(rows)


def summarise_routing(scored: Sequence[ScoredGate], config: ExperimentConfig) -> dict[str, Any] | None:
    """Return what ``summary.json`` says of the routing at one noise level, means over seeds; None without a gate."""
    if not scored or config.gate is None:
        return None
    confidence = config.bootstrap.confidence
    scopes: dict[str, Any] = {}
    for scope in SCOPES:
        oracle = [_scope(one.scores["oracle"], scope) for one in scored]
        scopes[scope] = {}
        for route in scored[0].routes:
            own = [_scope(one.scores[route], scope) for one in scored]
            merits = estimate_merits(own, confidence)
            scopes[scope][route] = {
                "r2": vars(merits["r2_oracle"]),
                "gain": vars(merits["delta_r2"]),
                "kept": vars(estimate_kept(own, oracle, confidence)),
            }
    qualities = [one.quality for one in scored]
    with np.errstate(invalid="ignore"):
        counts = np.sum([one.counts for one in qualities], axis=0)
        told, found = (
            np.sum([np.nan_to_num(getattr(one, name)) * one.counts for one in qualities], axis=0) / counts
            for name in ("told", "found")
        )
    for routes in scopes.values():
        for route in scored[0].routes[1:]:
            routes[route]["verdict"] = _judge(Estimate(**routes[route]["kept"]), config.gate.keep)
    return {
        "kind": config.gate.kind,
        "keep": config.gate.keep,
        "unsure": config.gate.unsure,
        "sentence": _say(scopes["covered"], config),
        "scopes": scopes,
        "accuracy": float(np.mean([one.accuracy for one in qualities])),
        "calibration_error": float(np.mean([one.calibration_error for one in qualities])),
        "blend": summarise_blends([one.blend for one in scored if one.blend is not None]),
        "confusion": np.sum([one.confusion for one in qualities], axis=0).tolist(),
        "spread": np.mean([one.spread for one in qualities], axis=0).tolist(),
        "truth_quantiles": np.mean([one.truth_quantiles for one in qualities], axis=0).tolist(),
        "importance": {name: float(np.mean([one.importance[name] for one in scored])) for name in scored[0].importance},
        "reliability": {"told": told.tolist(), "found": found.tolist(), "counts": counts.tolist()},
    }


def _scope(score: HeadroomScore, scope: str) -> Any:
    return score.bins[int(scope)] if scope.isdigit() else score.scope(scope)


def _judge(kept: Estimate, keep: float) -> str:
    """Say PASS where enough is kept, UNDECIDED where there is no headroom to keep."""
    if not np.isfinite(kept.mean):
        return "UNDECIDED"
    return "PASS" if kept.mean >= keep else "FAIL"


def _say(routes: Mapping[str, Any], config: ExperimentConfig) -> str:
    """Put the soft and the hard routing in words: both are stated beforehand, so neither is picked by its score."""
    soft, hard = (Estimate(**routes[route]["kept"]) for route in ("soft", "hard"))
    if config.gate is None or not np.isfinite(soft.mean):
        return "The experts gain nothing over the global model even with the true bins, so there is nothing to keep."
    return (
        f"Without knowing any label, soft routing keeps {soft.mean:.0%} of the headroom on covered spectra "
        f"({config.bootstrap.confidence:.0%} interval {soft.low:.0%} to {soft.high:.0%}): {routes['soft']['verdict']} "
        f"against ρ ≥ {config.gate.keep:g}. Hard routing keeps {hard.mean:.0%}."
    )
