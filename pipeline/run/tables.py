"""From scored draws to the run folder's tables: results, bins, learning curve, samples, summary, metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import schema
from pipeline.base import hash_file, json_text, replacing
from pipeline.bins import MAIN, OUTSIDE, BinGrid
from pipeline.config import AlphaSearch, ExperimentConfig, content_hash
from pipeline.questions.ablation import ScoredBinning, summarise_ablation, tabulate_ablation
from pipeline.questions.bin_design import ScoredDesign, summarise_design, tabulate_design
from pipeline.questions.gate import (
    ScoredBinningGate,
    ScoredGate,
    summarise_binning_gates,
    summarise_routing,
    tabulate_binning_gates,
    tabulate_routing,
)
from pipeline.questions.labels import summarise_labels, tabulate_labels
from pipeline.questions.learning_curve import compare_learning, summarise_learning
from pipeline.questions.penalty import search_warnings, summarise_edges
from pipeline.ridge import ExpertModels
from pipeline.run.spectra import SpectraSets
from pipeline.scoring import (
    MERITS,
    SCOPES,
    Estimate,
    ScoredDraw,
    decide,
    evaluate_hypotheses,
    merit_columns,
    summarise_parts,
)
from pipeline.scoring import results as files
from pipeline.store import AnyStore, count_selected, find_left_out

__all__ = ["ScoredRun", "count_models", "results_hold", "tabulate_sample", "write_tables"]

# --- Where the spectra are: counts on a fine grid over the columns of the bins.

_SAMPLE_CELLS = 30


def tabulate_sample(sets: SpectraSets, grid: BinGrid) -> pd.DataFrame:
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


#: Digits in the tables: more than any interval needs, fewer than the last bits of a BLAS with other threads.
_FLOAT_FORMAT = "%.10g"


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """All that a run has scored: the noise of the verdict, one held against it, binnings, a bin design, gates."""

    draws: Sequence[ScoredDraw]
    compared: Sequence[ScoredDraw] = ()
    binnings: Sequence[ScoredBinning] = ()
    design: ScoredDesign | None = None
    gates: Sequence[ScoredGate] = ()
    binning_gates: Sequence[ScoredBinningGate] = ()


def write_tables(
    folder: Path,
    config: ExperimentConfig,
    grid: BinGrid,
    sets: SpectraSets,
    run: ScoredRun,
    facts: dict[str, Any],
) -> None:
    """Write every table of a run folder, each atomically; ``metadata.json`` last, with the others' hashes."""
    scored = run.draws
    tables = {
        files.OVERALL_FILE: _overall_table(scored, config, last_only=True),
        files.LEARNING_FILE: _overall_table(scored, config, last_only=False),
        files.PER_BIN_FILE: _bin_table(scored, config, grid),
        files.SAMPLE_FILE: tabulate_sample(sets, grid),
        files.LABELS_FILE: tabulate_labels(scored, config),
    }
    search = config.ridge.alpha if isinstance(config.ridge.alpha, AlphaSearch) else None
    if search is not None:
        tables[files.SEARCH_FILE] = _search_table(scored)
        found = search_warnings(tables[files.SEARCH_FILE], search.by, grid)
        if run.compared:
            found += summarise_edges(_search_table(run.compared), "marginal noise")
        facts["warnings"] = [*found, *facts["warnings"]]
    if run.compared:
        tables[files.MARGINAL_FILE] = _overall_table(run.compared, config, last_only=False)
    if run.binnings:
        tables[files.ABLATION_FILE] = tabulate_ablation(run.binnings, config)
    if run.design is not None:
        tables[files.DESIGN_FILE] = tabulate_design(run.design, config)
    if run.gates:
        tables[files.ROUTING_FILE] = tabulate_routing(run.gates, config)
    if run.binning_gates:
        tables[files.ROUTING_BINNINGS_FILE] = tabulate_binning_gates(run.binning_gates, config)
    for name in {
        files.ROUTING_FILE,
        files.ROUTING_BINNINGS_FILE,
        files.SEARCH_FILE,
        files.MARGINAL_FILE,
        files.ABLATION_FILE,
        files.DESIGN_FILE,
    } - set(tables):
        (folder / name).unlink(missing_ok=True)  # of an earlier run in this folder
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            table.to_csv(temporary, index=False, float_format=_FLOAT_FORMAT, lineterminator="\n")
    summary = _summary(run, config, grid)
    facts["warnings"] = [*_alpha_warnings(summary["levels"], scored), *facts["warnings"]]
    _write_json(folder / files.SUMMARY_FILE, summary)
    hashes = {name: hash_file(folder / name) for name in [*tables, files.SUMMARY_FILE, files.PREDICTIONS_FILE]}
    facts["economy"] = count_models(run, facts["steps"])
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


def _overall_table(scored: Sequence[ScoredDraw], config: ExperimentConfig, *, last_only: bool) -> pd.DataFrame:
    rows = []
    for one in scored:
        for k in range(len(one.models) - 1 if last_only else 0, len(one.models)):
            for scope in SCOPES:
                score = one.scores[k].scope(scope)
                rows.append(
                    {
                        "seed": one.seed,
                        "noise_level": one.draw.level,
                        "target": config.target,
                        "scope": scope,
                        "alpha_global": one.models[k].global_alpha,
                        "n_train": one.models[k].global_count,
                        "n_test": score.n_test,
                        **merit_columns(score, config.bootstrap.confidence),
                    }
                )
    return pd.DataFrame(rows, columns=list(files.OVERALL_COLUMNS))


def _search_table(scored: Sequence[ScoredDraw]) -> pd.DataFrame:
    parts = [one.search.assign(seed=one.seed, noise_level=one.draw.level) for one in scored if one.search is not None]
    return pd.concat(parts, ignore_index=True)[list(files.SEARCH_COLUMNS)]


def _bin_table(scored: Sequence[ScoredDraw], config: ExperimentConfig, grid: BinGrid) -> pd.DataFrame:
    rows = []
    for one in scored:
        models, scores = one.models[-1], one.scores[-1]
        for number, score in enumerate(scores.bins):
            names = dict(zip(grid.columns, grid.bin_names[number], strict=True))
            rows.append(
                {
                    "seed": one.seed,
                    "noise_level": one.draw.level,
                    "target": config.target,
                    "bin": number,
                    **{f"{column}_bin": name for column, name in names.items()},
                    "alpha": models.expert_alphas[number],
                    "n_train": models.expert_counts[number],
                    "n_test": score.n_test,
                    **merit_columns(score, config.bootstrap.confidence),
                    "mae_oracle": score.mae_oracle,
                    "mae_global": score.mae_global,
                }
            )
    return pd.DataFrame(rows)


def _summary(run: ScoredRun, config: ExperimentConfig, grid: BinGrid) -> dict[str, Any]:
    levels = [
        _level_summary(_at_level(run.draws, level), config, grid)
        | {"ablation": summarise_ablation([one for one in run.binnings if one.draw.draw.level == level], config)}
        | {"routing": summarise_routing([one for one in run.gates if one.noise_level == level], config)}
        | _gated_binnings(run, config, level)
        for level in config.noise.levels
    ]
    headline = config.headline_level
    at_headline, compared = _at_level(run.draws, headline), _at_level(run.compared, headline)
    return {
        "target": config.target,
        "confidence": config.bootstrap.confidence,
        "headline_level": headline,
        "levels": levels,
        "learning": summarise_learning(at_headline, config),
        "marginal": compare_learning(at_headline, compared, config) if compared else None,
        "design": summarise_design(run.design, config) if run.design is not None else None,
    }


def _gated_binnings(run: ScoredRun, config: ExperimentConfig, level: float) -> dict[str, Any]:
    own = [one for one in run.binning_gates if one.gate.noise_level == level]
    return {"gated_binnings": summarise_binning_gates(own, config)} if own else {}


def _at_level(scored: Sequence[ScoredDraw], level: float) -> list[ScoredDraw]:
    return [one for one in scored if one.draw.level == level]


def _level_summary(scored: Sequence[ScoredDraw], config: ExperimentConfig, grid: BinGrid) -> dict[str, Any]:
    confidence = config.bootstrap.confidence
    first = scored[0]
    parts = summarise_parts([one.scores[-1] for one in scored], [one.models[-1] for one in scored], grid, confidence)
    covered = {merit: Estimate(**parts["scopes"]["covered"][merit]) for merit in MERITS}
    of_bins = {one["bin"]: float(one["r2_oracle"]["mean"]) for one in parts["bins"]}
    hypotheses = evaluate_hypotheses(
        covered["r2_oracle"],
        covered["delta_r2"],
        {k: mean for k, mean in of_bins.items() if math.isfinite(mean)},
        config.stated_hypotheses,
        [grid.describe(k) for k in range(grid.n_bins)],
    )
    return {
        "noise_level": first.draw.level,
        "test_noise": first.test_noise_name,
        **parts,
        "labels": summarise_labels(scored, config, grid),
        "decision": vars(decide(covered["delta_r2"], config.decision, confidence)),
        "hypotheses": [hypothesis.to_dict() for hypothesis in hypotheses],
    }


def _alpha_warnings(levels: Sequence[dict[str, Any]], scored: Sequence[ScoredDraw]) -> list[str]:
    """Warn where experts do worse than the global model, which too large a penalty does, or one for other models."""
    per_spectrum = scored[0].models[-1].global_alpha / scored[0].models[-1].global_count
    search = scored[0].models[-1].search
    advice = {
        None: "a penalty that is too large for the training set does this (α is "
        f"{per_spectrum:.3g} per training spectrum, the reference run's is 0.1); lower ridge.alpha before you believe "
        "the verdict",
        "global": "their penalty is the global model's choice and need not suit them; set ridge.alpha.by: per_expert",
        "per_expert": "each chose its own penalty, so they may have too few training spectra",
    }[search.by if search is not None else None]
    return [
        f"at noise level {level['noise_level']:g} the experts do worse than the global model: {advice}"
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
        "n_spectra": count_selected(store),
        "n_pixels": store.n_pixels,
        "wavelength_range": [float(store.wavelength[0]), float(store.wavelength[-1])],
        "sources": [vars(source) for k, source in enumerate(store.sources) if k not in find_left_out(store)],
        "left_out": [store.shard_names[k] for k in find_left_out(store)],
        "coverage": covered / count_selected(store),
        "has_noisy": store.has_noisy,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


# --- How many models one pass yielded, and what fitting each from the spectra again would have cost.


def count_models(run: ScoredRun, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of distinct models of a run, and the time of reading their training spectra once for each.

    Parameters
    ----------
    run
        All that was scored; models of one noise are counted once however many test noises there are.
    steps
        The run's steps with their seconds: the time of the pass is measured, and multiplied by the spectra of every
        model over those of the pass. Solving, which costs the same either way, is not counted.

    Returns
    -------
    dict
        ``models`` (each for ``labels`` labels), ``passes`` (reads' worth of training spectra, one for each noise) and
        ``refit_seconds``, None where the pass was an earlier run's.
    """
    noises = {one.draw.name: one for one in (*run.draws, *run.compared)}
    counts = [count for one in noises.values() for count in _iter_counts(one.models)]
    binnings = {(one.draw.draw.name, one.binning.name): one for one in run.binnings if one.binning.name != MAIN}
    counts += [int(count) for one in binnings.values() for count in one.models.expert_counts]
    passed = sum(one.models[-1].global_count for one in noises.values())
    accumulated = next((step for step in steps if step["name"] == "accumulate"), None)
    measured = accumulated is not None and not accumulated["skipped"]
    return {
        "models": len(counts),
        "labels": len(run.draws[0].models[-1].labels),
        "passes": len(noises),
        "refit_seconds": accumulated["seconds"] * sum(counts) / passed if measured and accumulated else None,
    }


def _iter_counts(prefixes: Sequence[ExpertModels]) -> Iterator[int]:
    """Yield the training spectra of every model: along the learning curve, and of every trial of a search."""
    for models in prefixes:
        yield from _count_one(models)
    whole, search = prefixes[-1], prefixes[-1].search
    if search is not None:
        n_folds, n_alphas = search.sse.shape[1:3]
        for count in _count_one(whole):
            yield from [count] * (n_alphas - 1)  # the chosen one is counted above
            yield from [count * (n_folds - 1) // n_folds] * (n_folds * n_alphas)


def _count_one(models: ExpertModels) -> list[int]:
    return [models.global_count, *models.expert_counts.tolist()]
