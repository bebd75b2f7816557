"""An artificial run folder, small and plausible, for the tests of figures and reports.

Labels are beta-distributed over the ranges of the real spectra and predictions are labels plus noise, so R² and
ΔR² are true to ``predictions.parquet``; only the intervals are a rule of thumb.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import REFERENCE_EDGES, DecisionConfig, ExperimentConfig
from pipeline.questions.gate import Evidence, ScoredGate, route_spectra, summarise_routing
from pipeline.questions.gate.routing import assess_gate, score_routes
from pipeline.scoring import (
    METADATA_FILE,
    PREDICTIONS_FILE,
    Bootstrap,
    Estimate,
    RunResults,
    decide,
    evaluate_hypotheses,
    read_results,
)
from pipeline.scoring.results import (
    LABELS_COLUMNS,
    LABELS_FILE,
    LEARNING_FILE,
    OVERALL_COLUMNS,
    OVERALL_FILE,
    PER_BIN_FILE,
    SAMPLE_FILE,
    SEARCH_COLUMNS,
    SEARCH_FILE,
    SUMMARY_FILE,
)

MERITS = ("r2_oracle", "r2_global", "delta_r2")
SNR_EDGES = {"snr": (2.0, 5.0, 8.0, 12.0, 28.0)}
RANGES = {"T_eff": (3750.0, 6000.0), "M_H": (-2.5, 0.75), "snr": (1.5, 30.0), "a_M": (-0.2, 0.6)}


@dataclass(frozen=True)
class FakeRun:
    """What the artificial run is like; the defaults are the reference grid with three seeds."""

    edges: Mapping[str, Sequence[float]] = field(default_factory=lambda: dict(REFERENCE_EDGES))
    seeds: tuple[int, ...] = (42, 123, 456)
    levels: tuple[float, ...] = (1.0,)
    n_train: int = 1_000_000
    n_test: int = 1000
    nan_bins: tuple[int, ...] = ()
    simulated: bool = True
    stored_noise: bool = True
    bin_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    marginal: bool = False
    design: bool = False
    gate: bool = False
    labels: bool = False
    features: int = 0
    alphas: tuple[float, ...] = ()


def make_results(folder: Path, run: FakeRun | None = None) -> RunResults:
    """Write an artificial run folder and read it back."""
    return _Writer(folder, run or FakeRun()).write()


class _Writer:
    def __init__(self, folder: Path, run: FakeRun) -> None:
        self.folder, self.run = folder, run
        self.grid = BinGrid(run.edges, run.bin_names or None)
        rng = np.random.default_rng(7)
        self.labels = {
            name: low + (high - low) * rng.beta(1.3, 1.3, run.n_test) for name, (low, high) in RANGES.items()
        }
        self.bins = self.grid.assign(self.labels)
        self.y_true = 1 + 4 * rng.beta(1.2, 1.2, run.n_test)
        self.predictions = pd.concat(
            [self._predict(seed, level) for seed in run.seeds for level in run.levels], ignore_index=True
        )

    def write(self) -> RunResults:
        self.folder.mkdir(parents=True, exist_ok=True)
        per_bin = self._per_bin()
        self._write_csv(OVERALL_FILE, pd.DataFrame(self._overall(), columns=list(OVERALL_COLUMNS)))
        self._write_csv(PER_BIN_FILE, per_bin)
        self._write_csv(LEARNING_FILE, self._learning())
        self._write_csv(SAMPLE_FILE, self._sample())
        if self.run.alphas:
            self._write_csv(SEARCH_FILE, self._search())
        overall = pd.read_csv(self.folder / OVERALL_FILE)
        if self.run.labels:
            self._write_csv(LABELS_FILE, self._other_labels(overall, per_bin))
        self._write_json(SUMMARY_FILE, self._summary(overall, per_bin))
        self.predictions.to_parquet(self.folder / PREDICTIONS_FILE)  # with what the summary's gate has routed
        self._write_json(METADATA_FILE, {**self._metadata(), **self.run.metadata})
        return read_results(self.folder)

    def _write_csv(self, name: str, frame: pd.DataFrame) -> None:
        frame.to_csv(self.folder / name, index=False)

    def _write_json(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(_null_nan(content), indent=1), encoding="utf-8")

    def _predict(self, seed: int, level: float) -> pd.DataFrame:
        rng = np.random.default_rng([seed, int(100 * level)])
        scatter = 0.45 + 0.35 * level * (1.5 - self._position("M_H"))
        oracle = self._shrink(0.15 + 0.2 * level) + scatter * rng.normal(size=self.run.n_test) * 0.8
        lost = 0.35 * level * (self._position("T_eff") - 0.5) * 2
        y_global = self._shrink(0.2 + 0.2 * level) + scatter * rng.normal(size=self.run.n_test) + lost
        frame = pd.DataFrame({"seed": seed, "noise_level": level, "row": np.arange(self.run.n_test)})
        frame["bin"], frame["y_true"], frame["y_global"] = self.bins, self.y_true, y_global
        frame["y_oracle"] = np.where(self.bins == OUTSIDE, y_global, oracle)
        for number in range(self.grid.n_bins):
            frame[f"expert_{number}"] = oracle + 0.3 * (self.bins != number)
        return frame

    def _position(self, column: str) -> np.ndarray:
        low, high = RANGES[column]
        return (self.labels[column] - low) / (high - low)

    def _shrink(self, amount: float) -> np.ndarray:
        return self.y_true + amount * (self.y_true.mean() - self.y_true)

    def _groups(self) -> Any:
        for seed, level in product(self.run.seeds, self.run.levels):
            rows = self.predictions.query("seed == @seed and noise_level == @level")
            yield {"seed": seed, "noise_level": level, "target": "log_g"}, rows

    def _overall(self) -> list[dict[str, Any]]:
        table = []
        for key, rows in self._groups():
            for scope in ("covered", "all"):
                chosen = rows[rows["bin"] != OUTSIDE] if scope == "covered" else rows
                share = len(chosen) / len(rows)
                counts = {"n_train": round(share * self.run.n_train), "n_test": len(chosen)}
                table.append({**key, "scope": scope, "alpha_global": 1e5, **counts, **_merits(chosen)})
        return table

    def _per_bin(self) -> pd.DataFrame:
        table = []
        for key, rows in self._groups():
            for number, names in enumerate(self.grid.bin_names):
                chosen = rows[rows["bin"] == number]
                bad = number in self.run.nan_bins
                merits = _merits(chosen.iloc[:1] if bad else chosen)
                mae = {
                    f"mae_{model}": float(np.abs(chosen["y_true"] - chosen[f"y_{model}"]).mean())
                    for model in ("oracle", "global")
                }
                table.append(
                    {
                        **key,
                        "bin": number,
                        **{f"{column}_bin": name for column, name in zip(self.grid.columns, names, strict=True)},
                        "alpha": 1e5,
                        "n_train": round(len(chosen) / self.run.n_test * self.run.n_train),
                        "n_test": 1 if bad else len(chosen),
                        **merits,
                        **mae,
                    }
                )
        return pd.DataFrame(table)

    def _other_labels(self, overall: pd.DataFrame, per_bin: pd.DataFrame) -> pd.DataFrame:
        """T_eff, which the bins are cut by, and a label that they are not cut by: a little better than the target."""
        parts = [overall.rename(columns={"scope": "part"}), per_bin.rename(columns={"bin": "part"})]
        both = pd.concat(parts, ignore_index=True).reindex(columns=list(LABELS_COLUMNS))
        better = both.assign(target="a_M", r2_global=both["r2_global"] + 0.05, r2_oracle=both["r2_oracle"] + 0.05)
        leaked = [column for column in both.columns if "oracle" in column or "delta" in column]
        return pd.concat([both.assign(target="T_eff", **dict.fromkeys(leaked, np.nan)), better], ignore_index=True)

    def _summarised_labels(self, scopes: dict[str, Any], bins: list[dict[str, Any]]) -> dict[str, Any]:
        unknown = dict.fromkeys(("mean", "std", "low", "high"), np.nan)
        blind = {"r2_oracle": unknown, "delta_r2": unknown}
        leaked = {"scopes": {k: v | blind for k, v in scopes.items()}, "bins": [one | blind for one in bins]}

        def better(entry: dict[str, Any]) -> dict[str, Any]:
            raised = {
                merit: entry[merit] | {"mean": entry[merit]["mean"] + 0.05} for merit in ("r2_global", "r2_oracle")
            }
            return entry | raised

        known = {"scopes": {k: better(v) for k, v in scopes.items()}, "bins": [better(one) for one in bins]}
        return {"T_eff": {"leaks": True, **leaked}, "a_M": {"leaks": False, **known}}

    def _search(self) -> pd.DataFrame:
        """Parabolas in log α, whose tops lie elsewhere for every model and seed; those of the test a little beside."""
        places = np.log(self.run.alphas)
        table = []
        for key, _ in self._groups():
            for number, model in enumerate(["global", *map(str, range(self.grid.n_bins))]):
                top = places[(number + key["seed"]) % len(places)]
                r2 = 0.6 - 0.02 * number - 0.3 * ((places - top) / np.ptp(places)) ** 2
                test = np.full(len(places), np.nan) if number - 1 in self.run.nan_bins else r2 - 0.02 * (places > top)
                for k, alpha in enumerate(self.run.alphas):
                    table.append({**key, "model": model, "alpha": alpha, "r2_cv": r2[k], "chosen": r2[k] == r2.max(),
                                  "r2_test": test[k]})  # fmt: skip
        return pd.DataFrame(table, columns=list(SEARCH_COLUMNS))

    def _learning(self) -> pd.DataFrame:
        table = []
        for row, fold in product(self._overall(), range(1, 6)):
            loss = 0.12 * (np.sqrt(5 / fold) - 1)
            grown = {**row, "n_train": row["n_train"] * fold // 5}
            for suffix in ("", "_low", "_high"):
                grown[f"r2_oracle{suffix}"] -= loss
                grown[f"r2_global{suffix}"] -= loss / 4
                grown[f"delta_r2{suffix}"] -= loss * 3 / 4
            table.append(grown)
        return pd.DataFrame(table, columns=list(OVERALL_COLUMNS))

    def _sample(self) -> pd.DataFrame:
        rng = np.random.default_rng(3)
        columns = self.grid.columns
        cuts = {column: np.linspace(*RANGES[column], 15 if len(columns) > 2 else 27) for column in columns}
        train = np.column_stack(
            [low + (high - low) * rng.beta(1.3, 1.3, 20_000) for low, high in (RANGES[c] for c in columns)]
        )
        test = np.column_stack([self.labels[column] for column in columns])
        counts = [np.histogramdd(sample, bins=list(cuts.values()))[0] for sample in (train, test)]
        table: dict[str, Any] = {}
        for axis, column in enumerate(columns):
            index = np.indices(counts[0].shape)[axis].ravel()
            table[f"{column}_low"], table[f"{column}_high"] = cuts[column][index], cuts[column][index + 1]
        table["n_train"] = counts[0].ravel().astype(int) * (self.run.n_train // 20_000)
        table["n_test"] = counts[1].ravel().astype(int)
        return pd.DataFrame(table)

    def _summary(self, overall: pd.DataFrame, per_bin: pd.DataFrame) -> dict[str, Any]:
        levels = [self._level(level, overall, per_bin) for level in self.run.levels]
        sentence = "ΔR² still grows with the training set: +0.012 from the last doubling."
        headline = 1.0 if 1.0 in self.run.levels else self.run.levels[0]
        return {
            "target": "log_g",
            "confidence": 0.95,
            "levels": levels,
            "headline_level": headline,
            "learning": {"sentence": sentence, "points": self._learning_points(headline)},
            "marginal": self._marginal(headline) if self.run.marginal else None,
            "design": self._design(headline, levels) if self.run.design else None,
        }

    def _design(self, level: float, levels: list[dict[str, Any]]) -> dict[str, Any]:
        """A 6 × 7 grid, cut in two where it is longest again and again; the gain levels off at the grid's own."""
        edges = {column: np.linspace(*RANGES[column], n + 1).tolist() for column, n in (("T_eff", 6), ("M_H", 7))}
        parts, divisions = [((0, 6), (0, 7))], []
        covered = next(entry for entry in levels if entry["noise_level"] == level)["scopes"]["covered"]
        gain, r2_global = covered["delta_r2"]["mean"], covered["r2_global"]["mean"]
        for experts in range(1, 13):
            delta = gain * (1 - 0.6 ** (experts - 1))
            test = {"mean": 0.95 * delta, "std": 0.0, "low": 0.95 * delta - 0.02, "high": 0.95 * delta + 0.02}
            rectangles = [
                {name: [edges[name][end] for end in span] for name, span in zip(edges, part, strict=True)}
                for part in sorted(parts)
            ]
            facts = {"r2_oracle": r2_global + delta, "r2_global": r2_global, "delta_r2": delta}
            names = [f"part {number}" for number in range(experts)]
            test = {"delta_r2": test, "r2_oracle": test, "r2_global": test}
            divisions.append({"experts": experts, **facts, "test": test, "rectangles": rectangles, "names": names})
            rows, columns = longest = max(parts, key=lambda part: (max(b - a for a, b in part), part))
            parts.remove(longest)
            if rows[1] - rows[0] > columns[1] - columns[0]:
                parts += [((rows[0], sum(rows) // 2), columns), ((sum(rows) // 2, rows[1]), columns)]
            else:
                parts += [(rows, (columns[0], sum(columns) // 2)), (rows, (sum(columns) // 2, columns[1]))]
        return {
            "noise_level": level,
            "edges": edges,
            "n_train": self.run.n_train,
            "n_test": self.run.n_test,
            "divisions": divisions,
            "main": {**divisions[6], "experts": self.grid.n_bins, "same_spectra": False},
            "recommended": 8,
            "sentence": "Use 8 experts: they gain enough.",
        }

    def _learning_points(self, level: float) -> list[dict[str, Any]]:
        frame = pd.DataFrame(self._learning()).query("noise_level == @level and scope == 'covered'")
        return [{"n_train": n_train, **_estimates(rows)} for n_train, rows in frame.groupby("n_train")]

    def _marginal(self, level: float) -> dict[str, Any]:
        """The learning curve, flatter: what few spectra give is closer to what all give."""
        points = self._learning_points(level)
        last = points[-1]
        for point in points[:-1]:
            for merit in MERITS:
                point[merit] = {key: (value + 4 * last[merit][key]) / 5 for key, value in point[merit].items()}
        return {"sentence": "Marginal noise needs fewer spectra.", "points": points}

    def _level(self, level: float, overall: pd.DataFrame, per_bin: pd.DataFrame) -> dict[str, Any]:
        overall = overall[overall["noise_level"] == level]
        per_bin = per_bin[per_bin["noise_level"] == level]
        scopes = {scope: {**_counts(rows), **_estimates(rows)} for scope, rows in overall.groupby("scope", sort=False)}
        bins = [
            {
                "bin": number,
                "names": list(self.grid.bin_names[number]),
                **_counts(rows),
                "alpha": float(rows["alpha"].iloc[0]),
                **_estimates(rows),
            }
            for number, rows in per_bin.groupby("bin")
        ]
        delta, oracle = (Estimate(**scopes["covered"][name]) for name in ("delta_r2", "r2_oracle"))
        stated = ExperimentConfig(
            data={"train": "a", "test": "b"}, bins={k: list(v) for k, v in self.run.edges.items()}
        ).stated_hypotheses
        known = {e["bin"]: e["r2_oracle"]["mean"] for e in bins if np.isfinite(e["r2_oracle"]["mean"])}
        names = [self.grid.describe(number) for number in range(self.grid.n_bins)]
        hypotheses = evaluate_hypotheses(oracle, delta, known, stated, names)
        return {
            "noise_level": level,
            "test_noise": "stored" if self.run.stored_noise and level == 1 else "drawn",
            "scopes": scopes,
            "bins": bins,
            "labels": self._summarised_labels(scopes, bins) if self.run.labels else {},
            "ablation": self._ablation(scopes["covered"]),
            "routing": self._routing(level) if self.run.gate else None,
            "decision": vars(decide(delta, DecisionConfig(), 0.95)),
            "hypotheses": [hypothesis.to_dict() for hypothesis in hypotheses],
        }

    def _routing(self, level: float) -> dict[str, Any] | None:
        """The predictions routed by a gate that is right half of the time, and surer than that."""
        scored = []
        for seed in self.run.seeds:
            rows = self.predictions.query("seed == @seed and noise_level == @level")
            rng = np.random.default_rng(seed)
            bins = rows["bin"].to_numpy()
            guesses = np.where(rng.random(len(bins)) < 0.5, bins, rng.integers(-1, self.grid.n_bins, len(bins)))
            probabilities = rng.dirichlet(np.full(self.grid.n_cells, 0.3), len(bins))
            probabilities = (probabilities + 1.5 * np.eye(self.grid.n_cells)[guesses]) / 2.5
            predicted = rows[["y_global", *(f"expert_{k}" for k in range(self.grid.n_bins))]].to_numpy()
            routed = route_spectra(predicted, Evidence(probabilities, bins))
            scores = score_routes(self.y_true, routed, predicted[:, 0], bins, self.grid.n_bins, Bootstrap(50))
            importance = {f"pc_{k + 1}": float(rng.exponential(0.1)) for k in range(self.run.features)}
            scored.append(ScoredGate(seed, level, scores, assess_gate(probabilities, bins), routed, importance))
            for route, values in routed.items():
                self.predictions.loc[rows.index, f"y_{route}"] = values
        stated = {"data": {"train": "a", "test": "b"}, "gate": {}}
        return summarise_routing(scored, ExperimentConfig.model_validate(stated))

    def _ablation(self, covered: dict[str, Any]) -> list[dict[str, Any]]:
        """The grid and each of its columns alone, which keep a part of its gain; nothing for a single column."""
        if len(self.grid.columns) < 2:
            return []
        coverage = float((self.bins != OUTSIDE).mean())
        entries = []
        for place, (name, size) in enumerate(
            [("bins", self.grid.n_bins), *zip(self.grid.columns, self.grid.shape, strict=True)]
        ):
            part = 0.9**place
            delta = {key: part * value for key, value in covered["delta_r2"].items()}
            share = {"mean": part, "std": 0.0, "low": 0.9 * part if place else np.nan, "high": 1.1 * part}
            facts = {"name": f"{name} only" if place else name, "n_bins": size, "coverage": coverage}
            facts["columns"] = list(self.grid.columns) if name == "bins" else [name]
            entries.append({**covered, **facts, "delta_r2": delta, "share": share})
        return entries

    def _metadata(self) -> dict[str, Any]:
        config = ExperimentConfig(
            data={"train": ["/spectra/train/shard_index.txt"], "test": ["/spectra/test_1k"]},
            bins={column: list(edges) for column, edges in self.run.edges.items()},
            seeds=list(self.run.seeds),
            noise={"levels": list(self.run.levels)},
            ridge={"alpha": {"search": self.run.alphas, "by": "per_expert"} if self.run.alphas else 1e5},
        )
        store = {"n_pixels": 4096, "wavelength_range": [7100.0, 8850.0]}
        covered = float((self.bins != OUTSIDE).mean())
        return {
            "config": config.to_dict(),
            "config_hash": "0123456789abcdef",
            "config_source": "oracle_noise1.yaml",
            "simulated": self.run.simulated,
            "bin_columns": list(self.grid.columns),
            "interval_names": {name: list(names) for name, names in self.grid.interval_names.items()},
            "stores": {
                "train": {
                    "paths": ["/scratch/stores/train_0.zarr", "/scratch/stores/train_1.zarr"],
                    "fingerprint": "a1b2c3d4e5f60718",
                    "n_spectra": self.run.n_train,
                    **store,
                    "sources": [_source(f"/spectra/train_{i}/dataset.h5") for i in range(1, 6)],
                    "coverage": 0.79,
                },
                "test": {
                    "paths": ["/scratch/stores/test.zarr"],
                    "fingerprint": "18f7e6d5c4b3a291",
                    "n_spectra": self.run.n_test,
                    **store,
                    "sources": [_source("/spectra/test_1k/dataset.h5")],
                    "coverage": covered,
                    "has_noisy": self.run.stored_noise,
                },
            },
            "versions": {"python": "3.11.7", "headroom": "0.1.0", "numpy": "2.4.6", "dask": "2026.8.0"},
            "git_commit": "9fceb02d0ae598e95dc970b74767f19372d61af8",
            "started": "2026-03-01T09:30:00+00:00",
            "steps": [
                {"name": "convert", "seconds": 612.4, "skipped": False},
                {"name": "accumulate", "seconds": 934.7, "skipped": False},
                {"name": "solve and score", "seconds": 71.25, "skipped": True},
            ],
            "peak_memory_bytes": 6_871_947_674,
            "worker_peak_memory_bytes": 5_368_709_120,
            "plan": {"memory_per_worker_bytes": 8_053_063_680, "driver_memory_bytes": 2_147_483_648, "partitions": 16},
            "hashes": {"results.csv": "5e88" * 16, "per_bin_results.csv": "8d96" * 16},
            "warnings": list(self.run.warnings),
            "command": "headroom run oracle_noise1.yaml --out runs/reference",
        }


def _source(name: str) -> dict[str, Any]:
    return {"name": name, "size": 1, "n_spectra": 200_000, "fingerprint": "b7c8", "dropped": {}, "remarks": []}


def _merits(rows: pd.DataFrame) -> dict[str, float]:
    spread = float(((rows["y_true"] - rows["y_true"].mean()) ** 2).sum())
    value = {}
    for model in ("oracle", "global"):
        error = float(((rows["y_true"] - rows[f"y_{model}"]) ** 2).sum())
        value[f"r2_{model}"] = 1 - error / spread if spread > 0 else float("nan")
    value["delta_r2"] = value["r2_oracle"] - value["r2_global"]
    half = {"r2_oracle": 1.3, "r2_global": 1.5, "delta_r2": 0.9}
    merits = {}
    for name in MERITS:
        width = half[name] / np.sqrt(max(len(rows), 1))
        merits |= {name: value[name], f"{name}_low": value[name] - width, f"{name}_high": value[name] + width}
    return merits


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {name: int(rows[name].iloc[0]) for name in ("n_train", "n_test")}


def _estimates(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {
        name: {
            "mean": float(rows[name].mean()),
            "std": float(rows[name].std(ddof=1)) if len(rows) > 1 else 0.0,
            "low": float(rows[f"{name}_low"].mean()),
            "high": float(rows[f"{name}_high"].mean()),
        }
        for name in MERITS
    }


def _null_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
