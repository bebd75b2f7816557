"""Tables of a run as views of its summary: nothing is computed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from pipeline.scoring.merits import MERITS
from pipeline.scoring.summary import Draw, flatten

__all__ = ["OVERALL_COLUMNS", "merit_names", "tabulate_bins", "tabulate_overall"]


def merit_names(*suffixes: str) -> tuple[str, ...]:
    """Return the columns of the figures of merit, each with every suffix."""
    return tuple(f"{merit.name}{suffix}" for merit in MERITS for suffix in suffixes)


OVERALL_COLUMNS = (
    *("seed", "noise_level", "target", "scope", "alpha_global", "n_train", "n_test"),
    *merit_names("", "_low", "_high"),
)
_ERRORS = ("mae_oracle", "mae_global")


def tabulate_overall(draws: Iterable[Draw], target: str, *, curve: bool = False) -> pd.DataFrame:
    """Return a row for each noise draw and scope; with ``curve`` also for every smaller training set."""
    rows: list[dict[str, Any]] = []
    for draw in draws:
        for point in draw.curve if curve else draw.curve[-1:]:
            for scope, score in point.scopes.items():
                origin = {"seed": draw.seed, "noise_level": draw.noise_level, "target": target, "scope": scope}
                rows.append({**origin, "alpha_global": point.alpha_global, **flatten(score, without=_ERRORS)})
    return pd.DataFrame(rows, columns=list(OVERALL_COLUMNS))


def tabulate_bins(draws: Iterable[Draw], target: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return a row for each noise draw and bin; ``columns`` are those that define the bins."""
    rows: list[dict[str, Any]] = []
    for draw in draws:
        for one in draw.bins:
            names = {f"{column}_bin": name for column, name in zip(columns, one.names, strict=True)}
            origin = {"seed": draw.seed, "noise_level": draw.noise_level, "target": target, "bin": one.bin}
            own = flatten(one, without=("bin", "alpha"))
            rows.append({**origin, **names, "alpha": one.alpha, **own})
    return pd.DataFrame(rows)
