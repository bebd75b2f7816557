"""From scored draws to the run folder's tables: results, bins, learning curve, samples, summary, metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import results as files
from pipeline import schema
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import ExperimentConfig, content_hash
from pipeline.decision import Estimate, decide, evaluate_hypotheses
from pipeline.files import replacing
from pipeline.models import ExpertModels
from pipeline.noise import NoiseDraw
from pipeline.provenance import hash_file
from pipeline.scores import MERITS, Bootstrap, HeadroomScore, Score, mean_over_seeds, score_headrooms
from pipeline.spectra_sets import SpectraSets
from pipeline.store_set import AnyStore

__all__ = ["RESULTS_VERSION", "ScoredDraw", "results_hold", "write_tables"]

#: Raised when the same models and test spectra would give other tables.
RESULTS_VERSION = 1
SCOPES = ("covered", "all")
#: Digits in the tables: more than any interval needs, fewer than the last bits of a BLAS with other threads.
_FLOAT_FORMAT = "%.10g"
_SAMPLE_CELLS = 30


@dataclass(frozen=True, eq=False)
class ScoredDraw:
    """Models of one noise draw and their scores, for every prefix of the training folds."""

    draw: NoiseDraw
    stored_test_noise: bool
    models: Sequence[ExpertModels]
    scores: Sequence[HeadroomScore]

    @classmethod
    def score(
        cls,
        draw: NoiseDraw,
        stored_test_noise: bool,
        models: Sequence[ExpertModels],
        y_true: NDArray[np.float64],
        bins: NDArray[np.int64],
        predicted: NDArray[np.float64],
        config: ExperimentConfig,
    ) -> ScoredDraw:
        """Score predictions of shape (models, N, 1 + K), global model first."""
        settings = Bootstrap(config.bootstrap.resamples, config.bootstrap.confidence, config.bootstrap.seed)
        of_oracle = predicted[:, np.arange(len(bins)), 1 + np.maximum(bins, 0)]
        n_bins = predicted.shape[2] - 1
        scores = score_headrooms(y_true, predicted[:, :, 0], of_oracle, bins, n_bins, settings)
        return cls(draw, stored_test_noise, models, scores)


def write_tables(
    folder: Path,
    config: ExperimentConfig,
    grid: BinGrid,
    sets: SpectraSets,
    scored: Sequence[ScoredDraw],
    facts: dict[str, Any],
) -> None:
    """Write every table of a run folder, each atomically; ``metadata.json`` last, with the others' hashes."""
    tables = {
        files.OVERALL_FILE: _overall_table(scored, config, last_only=True),
        files.LEARNING_FILE: _overall_table(scored, config, last_only=False),
        files.PER_BIN_FILE: _bin_table(scored, config, grid),
        files.SAMPLE_FILE: _sample_table(sets, grid),
    }
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            table.to_csv(temporary, index=False, float_format=_FLOAT_FORMAT, lineterminator="\n")
    summary = _summary(scored, config, grid)
    facts["warnings"] = [*_alpha_warnings(summary["levels"], scored), *facts["warnings"]]
    _write_json(folder / files.SUMMARY_FILE, summary)
    hashes = {name: hash_file(folder / name) for name in [*tables, files.SUMMARY_FILE, files.PREDICTIONS_FILE]}
    _write_json(folder / files.METADATA_FILE, _metadata(config, grid, sets, facts) | {"hashes": hashes})


def results_hold(folder: Path, key: str) -> bool:
    """Whether a run folder's tables were made with this key and are still what was written then."""
    try:
        metadata = json.loads((folder / files.METADATA_FILE).read_text(encoding="utf-8"))
        return bool(metadata["key"] == key) and all(
            hash_file(folder / name) == digest for name, digest in metadata["hashes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _merit_columns(score: Score, confidence: float) -> dict[str, float]:
    intervals = score.intervals(confidence)
    columns: dict[str, float] = {}
    for k, merit in enumerate(MERITS):
        columns |= {merit: score.merits[k], f"{merit}_low": intervals[k, 0], f"{merit}_high": intervals[k, 1]}
    return columns


def _overall_table(scored: Sequence[ScoredDraw], config: ExperimentConfig, *, last_only: bool) -> pd.DataFrame:
    rows = []
    for one in scored:
        for k in range(len(one.models) - 1 if last_only else 0, len(one.models)):
            for scope in SCOPES:
                score = one.scores[k].scope(scope)
                rows.append(
                    {
                        "seed": one.draw.seed,
                        "noise_level": one.draw.level,
                        "target": config.target,
                        "scope": scope,
                        "alpha_global": one.models[k].global_alpha,
                        "n_train": one.models[k].global_count,
                        "n_test": score.n_test,
                        **_merit_columns(score, config.bootstrap.confidence),
                    }
                )
    return pd.DataFrame(rows, columns=list(files.OVERALL_COLUMNS))


def _bin_table(scored: Sequence[ScoredDraw], config: ExperimentConfig, grid: BinGrid) -> pd.DataFrame:
    rows = []
    for one in scored:
        models, scores = one.models[-1], one.scores[-1]
        for number, score in enumerate(scores.bins):
            names = dict(zip(grid.columns, grid.bin_names[number], strict=True))
            rows.append(
                {
                    "seed": one.draw.seed,
                    "noise_level": one.draw.level,
                    "target": config.target,
                    "bin": number,
                    **{f"{column}_bin": name for column, name in names.items()},
                    "alpha": models.expert_alphas[number],
                    "n_train": models.expert_counts[number],
                    "n_test": score.n_test,
                    **_merit_columns(score, config.bootstrap.confidence),
                    "mae_oracle": score.mae_oracle,
                    "mae_global": score.mae_global,
                }
            )
    return pd.DataFrame(rows)


def _sample_table(sets: SpectraSets, grid: BinGrid) -> pd.DataFrame:
    """Count train and test spectra on a fine grid over (at most two of) the bin columns."""
    columns = grid.columns[:2]
    low = np.array([min(grid.edges[column]) for column in columns], np.float64)
    high = np.array([max(grid.edges[column]) for column in columns], np.float64)
    for store in (sets.train, sets.test):
        for values in _iter_values(store, columns):
            low, high = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))
    edges = [np.linspace(*span, _SAMPLE_CELLS + 1) for span in zip(low, high, strict=True)]
    counts = {}
    for role, store in (("n_train", sets.train), ("n_test", sets.test)):
        count = np.zeros(_SAMPLE_CELLS ** len(columns), np.int64)
        for values in _iter_values(store, columns):
            count += np.histogramdd(values[np.isfinite(values).all(axis=1)], bins=edges)[0].astype(np.int64).ravel()
        counts[role] = count
    lower = np.meshgrid(*(edge[:-1] for edge in edges), indexing="ij")
    upper = np.meshgrid(*(edge[1:] for edge in edges), indexing="ij")
    table: dict[str, Any] = {}
    for column, low, high in zip(columns, lower, upper, strict=True):
        table |= {f"{column}_low": low.ravel(), f"{column}_high": high.ravel()}
    return pd.DataFrame(table | counts)


def _iter_values(store: AnyStore, columns: Sequence[str]) -> Iterator[NDArray[np.float64]]:
    """Yield some columns in blocks of rows, each (n, columns)."""
    for _, block in store.iter_columns(columns):
        yield np.column_stack([block[column] for column in columns]).astype(np.float64)


def _estimates(scores: Sequence[Score], confidence: float) -> dict[str, Estimate]:
    mean, std, interval = mean_over_seeds(scores, confidence)
    return {
        merit: Estimate(float(mean[k]), float(std[k]), float(interval[k, 0]), float(interval[k, 1]))
        for k, merit in enumerate(MERITS)
    }


def _summary(scored: Sequence[ScoredDraw], config: ExperimentConfig, grid: BinGrid) -> dict[str, Any]:
    levels = [_level_summary([one for one in scored if one.draw.level == level], config, grid)
              for level in config.noise.levels]  # fmt: skip
    headline = 1.0 if 1.0 in config.noise.levels else max(config.noise.levels)
    at_headline = [one for one in scored if one.draw.level == headline]
    return {
        "target": config.target,
        "confidence": config.bootstrap.confidence,
        "headline_level": headline,
        "levels": levels,
        "learning": _learning(at_headline, config),
    }


def _level_summary(scored: Sequence[ScoredDraw], config: ExperimentConfig, grid: BinGrid) -> dict[str, Any]:
    confidence = config.bootstrap.confidence
    first = scored[0]
    scopes: dict[str, Any] = {}
    for scope in SCOPES:
        estimates = _estimates([one.scores[-1].scope(scope) for one in scored], confidence)
        scopes[scope] = {
            "n_train": first.models[-1].global_count,
            "n_test": first.scores[-1].scope(scope).n_test,
            **{merit: vars(estimate) for merit, estimate in estimates.items()},
        }
    of_bins = [_estimates([one.scores[-1].bins[k] for one in scored], confidence) for k in range(grid.n_bins)]
    covered = {merit: Estimate(**scopes["covered"][merit]) for merit in MERITS}
    hypotheses = evaluate_hypotheses(
        covered["r2_oracle"],
        covered["delta_r2"],
        {k: one["r2_oracle"].mean for k, one in enumerate(of_bins) if math.isfinite(one["r2_oracle"].mean)},
        config.stated_hypotheses,
        [grid.describe(k) for k in range(grid.n_bins)],
    )
    return {
        "noise_level": first.draw.level,
        "test_noise": "stored" if first.stored_test_noise else "drawn",
        "scopes": scopes,
        "bins": [
            {
                "bin": k,
                "names": list(grid.bin_names[k]),
                "n_train": int(first.models[-1].expert_counts[k]),
                "n_test": first.scores[-1].bins[k].n_test,
                "alpha": float(first.models[-1].expert_alphas[k]),
                **{merit: vars(estimate) for merit, estimate in one.items()},
            }
            for k, one in enumerate(of_bins)
        ],
        "decision": vars(decide(covered["delta_r2"], config.decision, confidence)),
        "hypotheses": [hypothesis.to_dict() for hypothesis in hypotheses],
    }


def _learning(scored: Sequence[ScoredDraw], config: ExperimentConfig) -> dict[str, Any]:
    """Return how the figures of merit on covered spectra move with the size of the training set, and say it."""
    confidence = config.bootstrap.confidence
    sizes = [model.global_count for model in scored[0].models]
    estimates = [_estimates([one.scores[k].covered for one in scored], confidence) for k in range(len(sizes))]
    points = [
        {"n_train": size, **{merit: vars(estimate) for merit, estimate in point.items()}}
        for size, point in zip(sizes, estimates, strict=True)
    ]
    if len(sizes) < 2:
        sentence = "The training set has a single usable size, so how the headroom depends on n is not known."
        return {"sentence": sentence, "points": points}
    first, before, last = (estimates[k]["delta_r2"] for k in (0, -2, -1))
    # Pairing removes the test set's own scatter: the question is whether the last step still moves ΔR².
    steps = np.mean([one.scores[-1].covered.resampled[:, 2] - one.scores[-2].covered.resampled[:, 2]
                     for one in scored], axis=0)  # fmt: skip
    low, high = np.nanquantile(steps, [(1 - confidence) / 2, (1 + confidence) / 2])
    trend, advice = "no longer changes measurably", "."
    if low > 0:
        trend, advice = "still grows", ", so more training spectra may show more headroom."
    elif high < 0:
        trend, advice = "shrinks", ": with more training spectra the global model catches up."
    sentence = (
        f"From {sizes[0]:,} to {sizes[-1]:,} training spectra ΔR² goes from {first.mean:+.4f} to {last.mean:+.4f}; "
        f"over the last step, from {sizes[-2]:,}, it {trend} ({last.mean - before.mean:+.4f}, {confidence:.0%} "
        f"interval {low:+.4f} to {high:+.4f}){advice}"
    )
    return {"sentence": sentence, "points": points}


def _alpha_warnings(levels: Sequence[dict[str, Any]], scored: Sequence[ScoredDraw]) -> list[str]:
    """Warn where experts do worse than the global model, which too large a penalty does."""
    per_spectrum = scored[0].models[-1].global_alpha / scored[0].models[-1].global_count
    return [
        f"at noise level {level['noise_level']:g} the experts do worse than the global model: a penalty that is too "
        f"large for the training set does this (α is {per_spectrum:.3g} per training spectrum, the reference run's is "
        "0.1); lower ridge.alpha before you believe the verdict"
        for level in levels
        if (level["scopes"]["covered"]["delta_r2"]["mean"] or 0) < 0
    ]


def _metadata(config: ExperimentConfig, grid: BinGrid, sets: SpectraSets, facts: dict[str, Any]) -> dict[str, Any]:
    plain = config.to_dict()
    return {
        "config": plain,
        "config_hash": content_hash(plain),
        "bin_columns": list(grid.columns),
        "interval_names": {column: list(names) for column, names in grid.interval_names.items()},
        "simulated": _is_simulated(sets.train) or _is_simulated(sets.test),
        "stores": {"train": _describe_store(sets.train, grid), "test": _describe_store(sets.test, grid)},
        **facts,
    }


def _is_simulated(store: AnyStore) -> bool:
    return any(schema.SIMULATED_REMARK in source.remarks for source in store.sources)


def _describe_store(store: AnyStore, grid: BinGrid) -> dict[str, Any]:
    covered = sum(int((grid.assign(block) != OUTSIDE).sum()) for _, block in store.iter_columns(grid.columns))
    return {
        "paths": [str(path) for path in store.paths],
        "fingerprint": store.fingerprint,
        "n_spectra": store.n_spectra,
        "n_pixels": store.n_pixels,
        "wavelength_range": [float(store.wavelength[0]), float(store.wavelength[-1])],
        "sources": [vars(source) for source in store.sources],
        "coverage": covered / store.n_spectra,
        "has_noisy": store.has_noisy,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return JSON values: NaN and infinity become null, NumPy scalars and tuples their plain kin."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
