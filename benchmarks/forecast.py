"""The validation table of docs/forecast.md: forecasts against drawn runs, cell by cell.

    python benchmarks/forecast.py --folder EMPTY [--rows 20000] [--pixels 256] [--runs 5] > TABLE.md

Every drawn run has stars and noise of its own. So the scatter between the runs holds both the sampling of stars and the
noise, as a user's next run would. The forecast is made from five times as many other stars, or its own sampling would
be most of the difference. All are scored on the same test stars. The folder keeps the spectra, stores and runs; a
second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from table import render_lines

from pipeline.accumulate import MomentsFolder
from pipeline.bins import BinGrid, plan_binnings
from pipeline.config import ExperimentConfig, load_config
from pipeline.noise import MarginalNoise
from pipeline.questions.forecast import Forecaster, OutlookPoint
from pipeline.run import run_experiment
from pipeline.scoring import Bootstrap, RunResults, Scope, predict_stacked
from pipeline.simulate import SampleSpec, write_sample
from pipeline.store import open_stores

LEVELS, RULES = (1.0, 0.2), (2e-4, 2e-3, 0.02, 0.1)
#: Shards of every run: its learning curve has as many sizes, of which the first, the second and the last are shown.
PARTS, SHOWN = 4, (0, 1, 3)
#: The forecast knows so many times the stars of a run.
KNOWN = 5
#: Rows for each pixel and bin from which a forecast should be within the scatter of the drawn runs.
MANY_ROWS = 5
HEADINGS = (
    "noise", "n", "rows", "α", "R²_global", "R²_oracle", "ΔR² forecast", "ΔR² drawn", "difference", "one class",
    "share", "trusted",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One noise level, number of spectra and penalty: what is forecast, and what the drawn runs gave."""

    level: float
    rows: float
    alpha: float
    point: OutlookPoint
    one_class: OutlookPoint
    share: float
    drawn: Sequence[Scope]

    @property
    def off(self) -> float:
        """By how much the forecast of ΔR² differs from the mean of the drawn runs."""
        return self.point.covered.delta_r2.mean - float(np.mean([one.delta_r2.mean for one in self.drawn]))

    @property
    def scatter(self) -> float:
        """Of ΔR² between the drawn runs."""
        return float(np.std([one.delta_r2.mean for one in self.drawn], ddof=1))

    def texts(self) -> tuple[str, ...]:
        """Return the row of the table; R² is forecast / drawn."""
        said = self.point.covered
        both = [
            f"{getattr(said, name).mean:.4f} / {np.mean([getattr(one, name).mean for one in self.drawn]):.4f}"
            for name in ("r2_global", "r2_oracle")
        ]
        drawn = [one.delta_r2.mean for one in self.drawn]
        return (
            f"{self.level:g}", f"{said.n_train:,.0f}", f"{self.rows:.1f}", f"{self.alpha:g}", *both,
            f"{said.delta_r2.mean:+.4f} ± {said.delta_r2.std:.4f}",
            f"{np.mean(drawn):+.4f} ± {self.scatter:.4f}", f"{self.off:+.4f}",
            f"{self.one_class.covered.delta_r2.mean:+.4f}", f"{self.share:.2f}", "yes" if said.trusted else "no",
        )  # fmt: skip


class Validation:
    """The spectra, the forecast's run and the drawn runs, below one folder."""

    def __init__(self, folder: Path, rows: int, pixels: int, runs: int) -> None:
        self._folder, self._rows, self._pixels, self._runs = folder, rows, pixels, runs
        n, shards = rows * (KNOWN + runs), PARTS * (KNOWN + runs)
        write_sample(folder / "spectra", SampleSpec(n, shards, max(1000, 3 * rows // 10), pixels, seed=11))

    def _run(self, parts: range, out: str, **changes: Any) -> RunResults:
        shards = range(PARTS * parts.start, PARTS * parts.stop)
        plain = {
            "data": {
                "train": [str(self._folder / f"spectra/train/shard_{k}") for k in shards],
                "test": [str(self._folder / "spectra/test")],
                "stores": str(self._folder / "stores"),
            },
            "ablation": False,
            "bootstrap": {"resamples": 100},
            "compute": {"folds": PARTS, "moments": "dense"},
        }
        return run_experiment(ExperimentConfig.model_validate(plain | changes), self._folder / out)

    def list_cells(self) -> list[Cell]:
        """Make all runs, and hold the forecasts against them."""
        marginal = {"mode": "marginal", "levels": LEVELS, "test": "marginal"}
        compute = {"folds": PARTS, "moments": "factored"}
        known = self._run(range(KNOWN), "forecast", noise=marginal, forecast={}, compute=compute)
        drawn: dict[tuple[float, float, int], list[Scope]] = {}
        for rule in RULES:
            for k in range(self._runs):
                noise, ridge = marginal | {"mode": "drawn"}, {"alpha": {"per_spectrum": rule}}
                print(f"drawn run {1 + k}, α {rule:g} for each spectrum", file=sys.stderr, flush=True)
                own = range(KNOWN + k, KNOWN + k + 1)
                for level in self._run(own, f"drawn-{k}", noise=noise, ridge=ridge, seeds=[k]).summary.levels:
                    for place in SHOWN:
                        point = level.curve[place]
                        drawn.setdefault((level.noise_level, rule, place), []).append(point)
        return [self._hold(known, *key, own) for key, own in drawn.items()]

    def _hold(self, known: RunResults, level: float, rule: float, place: int, drawn: Sequence[Scope]) -> Cell:
        n = round(float(np.mean([one.n_train for one in drawn])))
        alpha = rule * n
        points, share = [], 0.0
        for one_class in (True, False):
            forecaster, main = self._open(known, level, one_class=one_class)
            asked = forecaster.ask([n], alpha)
            share = max(one.share for one in asked.forecasts[0].models)
            test = open_stores(known.store_paths("test"))
            found = predict_stacked(test, forecaster.columns(asked), MarginalNoise(level), "float64")
            y = np.asarray(test.columns["log_g"], dtype=np.float64)
            points += forecaster.judge(asked, y, main.assign(test.columns), found, Bootstrap(100, 0.95, 0))
        inside = drawn[0].n_test / len(y)
        return Cell(level, n * inside / main.n_bins / self._pixels, alpha, points[1], points[0], share, drawn)

    def _open(self, known: RunResults, level: float, *, one_class: bool) -> tuple[Forecaster, Any]:
        config = load_config(known.folder / "config.yaml")
        noise = MarginalNoise(level)
        moments = MomentsFolder.of_run(known.folder, noise, known.metadata.get("moments", {}).get(noise.name, ""))
        _, [main] = plan_binnings(BinGrid(config.bins, config.bin_names), {}, ablation=False)
        return Forecaster(moments, main, main.covered, config.ridge, "log_g", one_class=one_class), main


def summarise(cells: Sequence[Cell]) -> list[str]:
    """Say how far off forecasts are where they are trusted."""
    trusted = [one for one in cells if one.point.covered.trusted]
    many = [one for one in trusted if one.rows >= MANY_ROWS]
    lines = [
        f"{len(trusted)} of {len(cells)} cells are trusted. There ΔR² is off by at most "
        f"{max(abs(one.off) for one in trusted):.4f}."
    ]
    if many:
        largest = max(abs(one.off) / one.scatter for one in many)
        lines.append(
            f"{len(many)} of them have {MANY_ROWS} rows or more for each pixel and bin. There it is off by at most "
            f"{largest:.1f} times the scatter of single runs."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where spectra and runs are kept")
    parser.add_argument("--rows", type=int, default=20_000, help="training spectra of every drawn run")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    cells = Validation(options.folder.resolve(), options.rows, options.pixels, options.runs).list_cells()
    cells.sort(key=lambda one: (one.alpha / one.point.covered.n_train, -one.level, one.point.n))
    print(render_lines([HEADINGS, *(one.texts() for one in cells)]))
    print("\n" + "\n".join(summarise(cells)))


if __name__ == "__main__":
    main()
