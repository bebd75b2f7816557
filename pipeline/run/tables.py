"""From scores to the run folder's files: the summary, its tables, and what the run was made of."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.base import hash_file, json_text, parse_object, replacing, seal, tabulate
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import ExperimentConfig, content_hash
from pipeline.errors import InputError, enumerate_words
from pipeline.questions import QUESTIONS, Facts, Question, Trained
from pipeline.ridge import ExpertModels
from pipeline.run.spectra import SpectraSets
from pipeline.scoring import (
    LEARNING_FILE,
    METADATA_FILE,
    OVERALL_FILE,
    PER_BIN_FILE,
    PREDICTIONS_FILE,
    SAMPLE_FILE,
    SUMMARY_FILE,
    WITHHELD,
    Level,
    ScoredDraw,
    Summary,
    decide,
    evaluate_hypotheses,
    find_doubts,
    read_metadata,
    summarise_curve,
    summarise_draw,
    summarise_parts,
    tabulate_bins,
    tabulate_overall,
)
from pipeline.store import AnyStore, count_selected, find_left_out

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["describe_algorithms", "results_hold", "summarise", "tell_remade", "write_results", "write_tables"]

#: Digits in the tables: more than any interval needs, fewer than the last bits of a BLAS with other threads.
_FLOAT_FORMAT = "%.10g"


def write_results(
    facts: Facts,
    sets: SpectraSets,
    questions: Sequence[Question[Any]],
    draws: Sequence[ScoredDraw],
    record: dict[str, Any],
) -> None:
    """Write the summary and every table of a run, each atomically; ``metadata.json`` last, with the others' hashes.

    Parameters
    ----------
    facts, sets
        The run and its spectra.
    questions
        What was asked, with all that they heard.
    draws
        The scores that the verdict is about.
    record
        How the run went, for ``metadata.json``.
    """
    answers = {question.name: answer for question in questions if (answer := question.answer()) is not None}
    summary = summarise(facts, draws, {name: answer.to_dict() for name, answer in answers.items()})
    written = write_tables(facts.folder, summary, facts.settings, {SAMPLE_FILE: tabulate_sample(sets, facts.grid)})
    warnings = _warn_of_losses(summary, draws)
    warnings += [warning for question in questions for warning in question.warnings]
    hashes = {name: hash_file(facts.folder / name) for name in [*written, PREDICTIONS_FILE]}
    content = _describe(facts, sets) | record
    content["warnings"] = [*warnings, *facts.warnings]
    content["algorithms"] = describe_algorithms()
    content["absent"] = _explain_absent(questions, answers)
    content["economy"] = count_models(facts.trained, record["steps"])
    _write_json(facts.folder / METADATA_FILE, seal(parse_object(json_text(content | {"hashes": hashes}))))


def _explain_absent(questions: Sequence[Question[Any]], answers: Collection[str]) -> dict[str, str]:
    """Return why questions have no answer and what would give one, by their names and those of their tables."""
    absent: dict[str, str] = {}
    for question in questions:
        if question.name not in answers and question.asked_by:
            asked = f"the configuration does not ask for it; add {question.asked_by}"
            names = {question.name, *(Path(name).stem for name in question.files)}
            absent |= dict.fromkeys(names, question.warnings[-1] if question.warnings else asked)
    return dict(sorted(absent.items()))


def write_tables(
    folder: Path, summary: Summary, settings: ExperimentConfig, further: Mapping[str, pd.DataFrame]
) -> list[str]:
    """Write ``summary.json`` and every table that is a view of it, each atomically; return the names of the files.

    Tables of questions that were not asked are removed, should an earlier run have left them.

    Parameters
    ----------
    folder
        The run folder.
    summary
        All scores.
    settings
        The experiment.
    further
        Tables that hold no scores, by file name.
    """
    draws = [draw for level in summary.levels for draw in level.draws]
    tables = {
        OVERALL_FILE: tabulate_overall(draws, summary.target),
        LEARNING_FILE: tabulate_overall(draws, summary.target, curve=True),
        PER_BIN_FILE: tabulate_bins(draws, summary.target, BinGrid(settings.bins).columns),
        **further,
    }
    for question in QUESTIONS:
        if question.name in summary.answers:
            answer = question.Answer.model_validate(summary.answers[question.name])
            tables |= question.tables(answer, settings)
    for name in {name for question in QUESTIONS for name in question.files} - set(tables):
        (folder / name).unlink(missing_ok=True)
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            table.to_csv(temporary, index=False, float_format=_FLOAT_FORMAT, lineterminator="\n")
    _write_json(folder / SUMMARY_FILE, summary.to_dict())
    return [*tables, SUMMARY_FILE]


def results_hold(folder: Path, key: str) -> bool:
    """Whether a run folder's tables were made with this key and are still what was written then."""
    try:
        metadata = read_metadata(folder)
        return bool(metadata["key"] == key) and all(
            hash_file(folder / name) == digest for name, digest in metadata["hashes"].items()
        )
    except (OSError, InputError, KeyError):
        return False


def describe_algorithms() -> dict[str, Any]:
    """Return what tells whether another version of this package computes a run otherwise, for ``metadata.json``."""
    return {**schema.REMADE, "results": [schema.RESULTS_ALGORITHM, *(question.name for question in QUESTIONS)]}


def tell_remade(folder: Path) -> str | None:
    """Return a line on what is made again of a finished run since this version computes it otherwise; None if nothing.

    Results of versions that did not record their algorithms tell nothing.
    """
    try:
        before = read_metadata(folder).get("algorithms", {})
    except InputError:
        return None
    remade = [name for name, now in describe_algorithms().items() if name in before and before[name] != now]
    if not remade:
        return None
    return (
        f"another version of headroom has made the results in {folder}, and this one computes otherwise: "
        f"{enumerate_words(remade)}; these, and what follows from them, are made anew"
    )


def summarise(facts: Facts, draws: Sequence[ScoredDraw], answers: Mapping[str, Any]) -> Summary:
    """Return the summary of a run: every noise level over seeds, and what the questions have found."""
    levels = dict.fromkeys(draw.level for draw in draws)
    return Summary(
        target=facts.settings.target,
        confidence=facts.bootstrap.confidence,
        headline_level=facts.settings.headline_level,
        levels=tuple(_summarise_level(facts, [one for one in draws if one.level == level]) for level in levels),
        answers=dict(answers),
    )


def _summarise_level(facts: Facts, draws: Sequence[ScoredDraw]) -> Level:
    settings, grid, confidence = facts.settings, facts.grid, facts.bootstrap.confidence
    whole = summarise_parts([one.scores[-1] for one in draws], [one.models[-1] for one in draws], grid, confidence)
    covered = whole.covered
    doubts = find_doubts(
        whole,
        draws[0].noise,
        [one.models[-1] for one in draws],
        draws[0].likeness,
        is_standardized=settings.ridge.standardize != "none",
    )
    hypotheses = evaluate_hypotheses(
        covered.r2_oracle,
        covered.delta_r2,
        {one.bin: one.r2_oracle.mean for one in whole.bins if math.isfinite(one.r2_oracle.mean)},
        settings.stated_hypotheses,
        [grid.describe(k) for k in range(grid.n_bins)],
        doubts,
    )
    return Level(
        **dict(whole),
        noise_level=draws[0].level,
        test_noise=draws[0].test_noise.kind,
        decision=decide(covered.delta_r2, settings.decision, confidence, doubts),
        hypotheses=tuple(hypotheses),
        curve=summarise_curve([one.scores for one in draws], draws[0].models, confidence),
        draws=tuple(summarise_draw((one.seed, one.level), one.scores, one.models, grid, confidence) for one in draws),
    )


def _warn_of_losses(summary: Summary, draws: Sequence[ScoredDraw]) -> list[str]:
    """Warn where experts do worse than the global model though nothing speaks against the numbers."""
    search = draws[0].models[-1].search
    advice = {
        None: "set ridge.alpha to a search with by: per_expert, so that every expert has the penalty that suits it",
        "global": "their penalty is the global model's choice and need not suit them; set ridge.alpha.by: per_expert",
        "per_expert": "each chose its own penalty, so they may have too few training spectra",
    }[search.by if search is not None else None]
    return [
        f"at noise level {level.noise_level:g} the experts do worse than the global model: {advice}"
        for level in summary.levels
        if level.covered.delta_r2.mean < 0 and level.decision.verdict != WITHHELD.words
    ]


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
    return tabulate(table | counts)


def _iter_values(store: AnyStore, columns: Sequence[str]) -> Iterator[NDArray[np.float64]]:
    """Yield some columns in blocks of rows, each (n, columns)."""
    for _, block in store.iter_columns(columns):
        yield np.column_stack([block[column] for column in columns]).astype(np.float64)


def _describe(facts: Facts, sets: SpectraSets) -> dict[str, Any]:
    """Return what a run is made of: settings and spectra."""
    plain, grid = facts.settings.to_dict(), facts.grid
    return {
        "config": plain,
        "config_hash": content_hash(plain),
        "bin_columns": list(grid.columns),
        "interval_names": {column: list(names) for column, names in grid.interval_names.items()},
        "simulated": _is_simulated(sets.train) or _is_simulated(sets.test),
        "stores": {"train": _describe_store(sets.train, grid), "test": _describe_store(sets.test, grid)},
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
        "flux_exponent": store.exponent,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


# --- How many models one pass yielded, and what fitting each from the spectra again would have cost.


def count_models(trained: Sequence[Trained], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of distinct models of a run, and the time of reading their training spectra once for each.

    Parameters
    ----------
    trained
        Every training noise with its models; they are counted once however many test noises there are.
    steps
        The run's steps with their seconds: the time of the pass is measured, and multiplied by the spectra of every
        model over those of the pass. Solving, which costs the same either way, is not counted.

    Returns
    -------
    dict
        ``models`` (each for ``labels`` labels), ``passes`` (reads' worth of training spectra, one for each noise) and
        ``refit_seconds``, None where the pass was an earlier run's.
    """
    counts = [count for one in trained for count in _iter_counts(one.models)]
    counts += [int(count) for one in trained for models in one.others for count in models.expert_counts]
    passed = sum(one.whole.global_count for one in trained)
    accumulated = next((step for step in steps if step["name"] == "accumulate"), None)
    measured = accumulated is not None and not accumulated["skipped"]
    return {
        "models": len(counts),
        "labels": len(trained[0].whole.labels),
        "passes": len(trained),
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
