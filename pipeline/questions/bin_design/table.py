"""The bin design in the run folder's tables: what each number of experts gains, and which to use, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import AlphaSearch, DesignConfig, ExperimentConfig
from pipeline.questions.ablation import ScoredBinning
from pipeline.questions.bin_design.divisions import CrossValidated, DesignSearch
from pipeline.scoring import Estimate, estimate_merits

__all__ = ["ScoredDesign", "summarise_design", "tabulate_design"]


@dataclass(frozen=True, eq=False)
class ScoredDesign:
    """A search for divisions and, for each of them, its test scores of every seed."""

    search: DesignSearch
    tests: Sequence[Sequence[ScoredBinning]]

    def estimate_tests(self, confidence: float) -> list[dict[str, Estimate]]:
        """Return the figures of merit of every division on test spectra, over seeds."""
        return [estimate_merits([one.score.covered for one in draws], confidence) for draws in self.tests]


def tabulate_design(design: ScoredDesign, config: ExperimentConfig) -> pd.DataFrame:
    """Return a row for each number of experts: held-out and test figures of merit, and the rectangles in words."""
    search, chosen = design.search, design.search.recommend(_settings(config).reach)
    rows = []
    tests = design.estimate_tests(config.bootstrap.confidence)
    for k, (division, score, test) in enumerate(zip(search.divisions, search.scores, tests, strict=True)):
        rows.append(
            {
                "experts": score.n_experts,
                "noise_level": config.headline_level,
                "target": config.target,
                "n_train": search.n_train,
                "r2_oracle_cv": score.r2_experts,
                "r2_global_cv": score.r2_global,
                "delta_r2_cv": score.delta_r2,
                "n_test": design.tests[k][0].score.covered.n_test,
                **{f"{merit}_test": estimate.mean for merit, estimate in test.items()},
                "delta_r2_test_low": test["delta_r2"].low,
                "delta_r2_test_high": test["delta_r2"].high,
                "recommended": k == chosen,
                "rectangles": "; ".join(map(search.fine.describe, division.rectangles)),
            }
        )
    return pd.DataFrame(rows)


def summarise_design(design: ScoredDesign, config: ExperimentConfig) -> dict[str, Any]:
    """Return what ``summary.json`` says of the design."""
    search, chosen = design.search, design.search.recommend(_settings(config).reach)
    tests = design.estimate_tests(config.bootstrap.confidence)
    return {
        "noise_level": config.headline_level,
        "edges": {column: list(map(float, edges)) for column, edges in search.fine.grid.edges.items()},
        "n_train": search.n_train,
        "n_test": design.tests[0][0].score.covered.n_test,
        "divisions": [
            {
                **_cross_validated(score),
                "test": {merit: vars(estimate) for merit, estimate in test.items()},
                "rectangles": [
                    {column: list(span) for column, span in search.fine.spans_of(one).items()}
                    for one in division.rectangles
                ],
                "names": [search.fine.describe(one) for one in division.rectangles],
            }
            for division, score, test in zip(search.divisions, search.scores, tests, strict=True)
        ],
        "main": None
        if search.main is None
        else {**_cross_validated(search.main), "same_spectra": search.main_is_alike},
        "recommended": None if chosen is None else search.scores[chosen].n_experts,
        "sentence": _advise(search, chosen, None if chosen is None else tests[chosen]["delta_r2"], config),
    }


def _settings(config: ExperimentConfig) -> DesignConfig:
    assert config.design is not None
    return config.design


def _cross_validated(score: CrossValidated) -> dict[str, Any]:
    return {
        "experts": score.n_experts,
        "r2_oracle": score.r2_experts,
        "r2_global": score.r2_global,
        "delta_r2": score.delta_r2,
    }


def _advise(search: DesignSearch, chosen: int | None, test: Estimate | None, config: ExperimentConfig) -> str:
    best = search.scores[search.best]
    limit = _settings(config).experts
    if chosen is None or test is None:
        return (
            f"No division into at most {limit} rectangles gains on held-out folds: the best has {_count(best)} and "
            f"ΔR² = {best.delta_r2:+.4f}. With these spectra and penalties experts in this plane are not worth "
            "building."
        )
    one = search.scores[chosen]
    parts = [
        f"Use {_count(one)}, with the rectangles listed below: on held-out folds of the training set they gain "
        f"ΔR² = {one.delta_r2:+.4f}, {one.delta_r2 / best.delta_r2:.0%} of the most that was found "
        f"({best.delta_r2:+.4f} with {_count(best)}), and no smaller number reaches {_settings(config).reach:.0%}."
    ]
    if np.isfinite(test.mean):
        parts.append(
            f"On the test spectra, which played no part in the choice, they gain {test.mean:+.4f} "
            f"({config.bootstrap.confidence:.0%} interval {test.low:+.4f} to {test.high:+.4f})."
        )
    if search.main is not None:
        where = "the same spectra" if search.main_is_alike else "the spectra that they cover, which are others"
        parts.append(
            f"The {search.main.n_experts} bins of the configuration gain {search.main.delta_r2:+.4f} on held-out folds "
            f"of {where}."
        )
    if best.n_experts == limit:
        parts.append(f"The gain is largest at the largest number tried: raise design.experts above {limit} to see on.")
    if isinstance(config.ridge.alpha, AlphaSearch) and config.ridge.alpha.by == "per_expert":
        parts.append("All experts here took the global model's penalty; with one of their own they may gain more.")
    edges = search.fine.edges_of(search.divisions[chosen].rectangles)
    if edges is not None:
        stated = ", ".join(f"{column}: [{', '.join(f'{edge:g}' for edge in own)}]" for column, own in edges.items())
        parts.append(f"As bins these are {{{stated}}}.")
    return " ".join(parts)


def _count(score: CrossValidated) -> str:
    return f"{score.n_experts} expert{'s' if score.n_experts > 1 else ''}"
