"""Gated binnings in the run folder's tables: what gates by signal-to-noise ratio keep, alone and with the main gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.binnings import Binning
from pipeline.config import ExperimentConfig
from pipeline.summary_routing import ScoredGate, summarise_routing, tabulate_routing

__all__ = ["ScoredBinningGate", "summarise_binning_gates", "tabulate_binning_gates"]

#: What is said of a gated binning, of all that is said of the main gate's routing.
_SAID = ("keep", "scopes", "accuracy", "calibration_error")


@dataclass(frozen=True, eq=False)
class ScoredBinningGate:
    """A binning, and how its experts are routed to under one noise."""

    binning: Binning
    gate: ScoredGate


def tabulate_binning_gates(scored: Sequence[ScoredBinningGate], config: ExperimentConfig) -> pd.DataFrame:
    """Return a row for each binning, seed, noise level, scope and route; bins have the binning's own numbers."""
    tables = []
    for one in scored:
        table = tabulate_routing([one.gate], config)
        words = {str(k): ", ".join(names) for k, names in enumerate(one.binning.bin_names)}
        table.insert(0, "binning", one.binning.name)
        table.insert(list(table.columns).index("scope") + 1, "bin_name", table["scope"].map(words).fillna(""))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise_binning_gates(scored: Sequence[ScoredBinningGate], config: ExperimentConfig) -> list[dict[str, Any]]:
    """Return what each binning's gate keeps at one noise level, means over seeds."""
    entries = []
    for name in dict.fromkeys(one.binning.name for one in scored):
        own = [one for one in scored if one.binning.name == name]
        routing = summarise_routing([one.gate for one in own], config) or {}
        first = own[0]
        entries.append(
            {
                "name": name,
                "n_bins": first.binning.n_bins,
                "n_test": first.gate.scores["oracle"].covered.n_test,
                **{key: routing[key] for key in _SAID},
            }
        )
    return entries
