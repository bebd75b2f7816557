"""``headroom run`` as a command, timed and watched: from stores to report.html, one seed, ten models."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import INTERVAL, Measured, measure, warm_up
from samples import HEADROOM, SHARDS, Sample

from cluster import LocalProfile
from pipeline import load_config, read_results
from pipeline.run import plan_experiment

__all__ = ["Experiment", "RunFacts", "run_experiment"]


MARGINAL = {"mode": "marginal"}
#: What each kind of experiment changes in the configuration of the comparison.
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "drawn": {},
    "marginal": {"noise": MARGINAL},
    "folds": {"noise": MARGINAL, "compute": {"folds": 5}},
    "path": {
        "noise": MARGINAL,
        "compute": {"folds": 5},
        "ridge": {"alpha": {"search": np.geomspace(1e-3, 1e6, 50).tolist(), "by": "per_expert"}},
    },
    "design": {
        "noise": MARGINAL,
        "compute": {"folds": 5},
        "design": {"grid": {"T_eff": {"quantiles": 6}, "M_H": {"quantiles": 7}}},
    },
}


@dataclass(frozen=True)
class RunFacts:
    """One run: what it took, R² of the covered test spectra by both models, and its steps' seconds."""

    measured: Measured
    r2: tuple[float, float]
    steps: dict[str, float]


@dataclass(frozen=True)
class Experiment:
    """The comparison's experiment on a whole sample, or on the first of its shards; a kind is one of :data:`KINDS`."""

    sample: Sample
    whole: bool = True
    kind: str = "drawn"

    @property
    def rows(self) -> int:
        """Training spectra."""
        return self.sample.rows if self.whole else self.sample.rows // SHARDS

    @property
    def train_store(self) -> Path:
        """The training store, made if needed."""
        return self.sample.train_store if self.whole else self.sample.first_store

    @property
    def train_shards(self) -> Path:
        """The folder of the same spectra as shards."""
        return self.sample.train_shards if self.whole else self.sample.first_shard

    @cached_property
    def config_file(self) -> Path:
        """The configuration: a single fold, since a peer has none."""
        content: dict[str, Any] = {
            "data": {"train": str(self.train_store), "test": str(self.sample.test_store)},
            "noise": {"levels": [1.0], "test": "drawn"},
            # Small samples have bins of a few spectra; at full size the bound is far away.
            "ridge": {"alpha": {"per_spectrum": 0.1}, "min_spectra": 2},
            "seeds": [42],
            "compute": {"folds": 1},
            "ablation": False,  # ten models, as the peer
        }
        for section, changed in KINDS[self.kind].items():
            content[section] = {**content.get(section, {}), **changed}
        path = self.sample.folder / f"experiment-{self.kind}-{self.rows}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def project_memory(self) -> int:
        """Return what ``headroom plan`` says that driver and worker need together, in bytes."""
        plan = plan_experiment(load_config(self.config_file), [LocalProfile().resolved_memory()])
        return plan.driver_memory + plan.worker_memory


@cache
def run_experiment(experiment: Experiment, repeat: int, interval: float = INTERVAL) -> RunFacts:
    """Run the command in a new folder; a repeat that was measured before is not measured again.

    ``interval`` are the seconds between two looks at its memory, see :func:`measure.measure`.
    """
    if repeat == 0:
        warm_up(experiment.train_store)
    out = experiment.sample.scratch("run")
    measured = measure([*HEADROOM, "run", experiment.config_file, "--out", out, "--quiet"], interval=interval)
    results = read_results(out)
    overall = results.overall.query("scope == 'covered'").iloc[0]
    steps = {step["name"]: float(step["seconds"]) for step in results.metadata["steps"]}
    shutil.rmtree(out)
    return RunFacts(measured, (float(overall["r2_global"]), float(overall["r2_oracle"])), steps)
