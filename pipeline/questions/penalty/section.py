"""What the report says of a search for the penalty: how it was chosen, and what every model chose."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipeline.report import MISSING, Table, bin_views, symbol
from pipeline.ridge import format_alpha
from pipeline.scoring import GLOBAL_MODEL, RunResults

__all__ = ["count_choices", "describe_search"]


def describe_search(results: RunResults) -> dict[str, Any] | None:
    """Return the section about the penalty: ``sentence`` and one table for each noise level; None without a search."""
    rows = results.alpha_search
    if rows.empty:
        return None
    return {
        "sentence": _explain(results),
        "tables": [_list_choices(results, level) for level in results.summary["levels"]],
    }


def _explain(results: RunResults) -> str:
    alphas = [format_alpha(alpha) for alpha in sorted(results.alpha_search["alpha"].unique())]
    setting = ((results.metadata.get("config") or {}).get("ridge") or {}).get("alpha")
    by = setting.get("by") if isinstance(setting, dict) else None
    whose = "every model chose its own" if by == "per_expert" else "it was chosen by the global model for all"
    return (
        f"The penalty α was chosen among {', '.join(alphas[:-1])} and {alphas[-1]} by the R² of "
        f"{symbol(results.summary['target'])} on folds of the training set, each predicted by a model trained on the "
        f"others; {whose}. The test spectra played no part in the choice: their R² stands beside it for comparison. "
        "Along the learning curve α shrinks in proportion to the training set."
    )


def _list_choices(results: RunResults, level: dict[str, Any]) -> Table:
    frame = results.alpha_search
    frame = frame[frame["noise_level"] == level["noise_level"]]
    names = {GLOBAL_MODEL: "global"} | {str(view.number): view.label for view in bin_views(level)}
    edges = {float(frame["alpha"].min()): "smallest", float(frame["alpha"].max()): "largest"}
    rows = []
    for model, name in names.items():
        of_model = frame[frame["model"] == model]
        chosen = of_model[of_model["chosen"]]
        if chosen.empty:
            continue
        curves = of_model.dropna(subset="r2_cv")  # an expert's may not have been asked for
        best = curves.loc[curves.groupby("seed")["r2_cv"].idxmax()]
        rows.append(
            (
                name,
                count_choices(chosen["alpha"]),
                ", ".join(sorted({edges[alpha] for alpha in chosen["alpha"] if alpha in edges})) or "inside",
                _mean(chosen["r2_cv"]),
                _mean(chosen["r2_test"]),
                count_choices(best["alpha"]),
            )
        )
    header = ("Model", "α chosen", "place in the grid", "R² held-out folds", "R² test", "best α of its own")
    caption = f"Penalties chosen, noise level {level['noise_level']:g}, means over seeds"
    return Table(caption, header, tuple(rows), 3)


def count_choices(alphas: pd.Series) -> str:
    """Return the penalties with the number of seeds that chose each, where they differ; a dash where there is none."""
    counts = alphas.value_counts().sort_index()
    if len(counts) == 1:
        return format_alpha(float(counts.index[0]))
    return ", ".join(f"{format_alpha(float(str(alpha)))} ({n}×)" for alpha, n in counts.items()) or MISSING


def _mean(values: pd.Series) -> str:
    mean = float(values.mean())
    return MISSING if pd.isna(mean) else f"{mean:.4f}".replace("-", "−")
