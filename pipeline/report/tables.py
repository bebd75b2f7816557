"""The tables of the report, as text: every number that the report shows is formatted here and only here.

R² and ΔR² have four decimals, counts are exact, and what a run does not have is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.report.views import (
    MERITS,
    bin_views,
    binning_views,
    estimate_view,
    has_joint_learning,
    headline,
    learning_points,
    quantity,
    scope_views,
    symbol,
)
from pipeline.scoring import Estimate, RunResults

__all__ = [
    "MISSING",
    "Table",
    "interval_cells",
    "list_ablation",
    "list_bins",
    "list_files",
    "list_hypotheses",
    "list_key_numbers",
    "list_labels",
    "list_learning",
    "list_levels",
    "list_marginal",
    "list_run",
    "list_steps",
    "list_stores",
    "number_cell",
]

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table of text; columns from number ``numeric_from`` on are numbers, aligned to the right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 99


def list_hypotheses(level: Mapping[str, Any]) -> Table:
    """Return the hypotheses of a noise level, each with PASS or FAIL."""
    rows = tuple(
        (str(h["name"]), str(h["statement"]), str(h["found"]), "PASS" if h["passed"] else "FAIL")
        for h in level["hypotheses"]
    )
    return Table(f"Hypotheses, noise level {level['noise_level']:g}", ("", "Hypothesis", "Found", "Result"), rows)


def list_key_numbers(results: RunResults, level: Mapping[str, Any]) -> Table:
    """Return the overall figures of merit of both scopes with spread, interval and numbers of spectra."""
    rows = []
    for name, scope in scope_views(level).items():
        for merit, title in MERITS.items():
            cells = _estimate_cells(merit, getattr(scope, merit), several_seeds=_several_seeds(results))
            rows.append((name, title, *cells, f"{scope.n_train:,}", f"{scope.n_test:,}"))
    header = ("Test spectra", "Figure of merit", "mean", "± seeds", "low", "high", "n train", "n test")
    return Table(f"Key numbers, noise level {level['noise_level']:g}", header, tuple(rows), 2)


def list_labels(results: RunResults, level: Mapping[str, Any]) -> Table:
    """Return the figures of merit of the labels beside the target, as far as they mean anything."""
    rows = [
        (symbol(label), scope, title, *_estimate_cells(merit, estimate, several_seeds=_several_seeds(results)))
        for label, own in (level.get("labels") or {}).items()
        for scope, view in scope_views(own).items()
        for merit, title in MERITS.items()
        if not math.isnan((estimate := getattr(view, merit)).mean)
    ]
    header = ("Label", "Test spectra", "Figure of merit", "mean", "± seeds", "low", "high")
    return Table(f"Other labels, noise level {level['noise_level']:g}", header, tuple(rows), 3)


def list_bins(results: RunResults, level: Mapping[str, Any]) -> Table:
    """Return every bin's figures of merit, penalty, mean absolute errors and numbers of spectra."""
    rows = []
    errors = _mean_absolute_errors(results, level["noise_level"])
    for view in bin_views(level):
        delta = view.delta_r2
        rows.append(
            (
                str(view.number),
                *view.names,
                number_cell(view.r2_global.mean),
                number_cell(view.r2_oracle.mean),
                *_estimate_cells("delta_r2", delta, several_seeds=_several_seeds(results)),
                *(number_cell(errors[name].get(view.number, math.nan)) for name in errors),
                number_cell(view.alpha, ".6g"),
                f"{view.n_train:,}",
                f"{view.n_test:,}",
            )
        )
    columns = [symbol(column) for column in results.metadata["bin_columns"]]
    unit = quantity(results.summary["target"]).removeprefix(symbol(results.summary["target"]))
    header = (
        "Bin",
        *columns,
        *("R²_global", "R²_oracle", "ΔR²", "± seeds", "low", "high"),
        *(f"MAE global{unit}", f"MAE oracle{unit}", "α", "n train", "n test"),
    )
    return Table(f"Bins, noise level {level['noise_level']:g}", header, tuple(rows), 1 + len(columns))


def _mean_absolute_errors(results: RunResults, noise_level: float) -> dict[str, dict[int, float]]:
    frame = results.per_bin[results.per_bin["noise_level"] == noise_level]
    means = frame.groupby("bin")[["mae_global", "mae_oracle"]].mean()
    return {str(name): {int(str(key)): float(value) for key, value in means[name].items()} for name in means}


def list_levels(results: RunResults) -> Table:
    """Return R² and ΔR² of covered spectra at every noise level, with the verdict."""
    rows = []
    for level in results.summary["levels"]:
        scope = next(iter(scope_views(level).values()))
        rows.append(
            (
                f"{level['noise_level']:g}",
                str(level["decision"]["verdict"]),
                number_cell(scope.r2_global.mean),
                number_cell(scope.r2_oracle.mean),
                *interval_cells("delta_r2", scope.delta_r2),
            )
        )
    header = ("Noise level", "Verdict", "R²_global", "R²_oracle", "ΔR²", "low", "high")
    return Table("Covered test spectra at every noise level", header, tuple(rows), 2)


def list_ablation(results: RunResults, level: Mapping[str, Any]) -> Table:
    """Return what every binning gains on the spectra that it covers; no rows where there is no other binning."""
    rows = []
    for view in binning_views(level):
        ends = [number_cell(value, ".0%") for value in (view.share.mean, view.share.low, view.share.high)]
        rows.append(
            (
                view.name,
                " × ".join(symbol(column) for column in view.columns),
                str(view.n_bins),
                number_cell(view.r2_global.mean),
                number_cell(view.r2_oracle.mean),
                *_estimate_cells("delta_r2", view.delta_r2, several_seeds=_several_seeds(results)),
                *ends,
                number_cell(view.coverage, ".1%"),
                f"{view.n_test:,}",
            )
        )
    header = (
        *("Binning", "Columns", "Experts", "R²_global", "R²_oracle", "ΔR²", "± seeds", "low", "high"),
        *("share", "low", "high", "coverage", "n test"),
    )
    return Table(f"Binnings, noise level {level['noise_level']:g}", header, tuple(rows), 2)


def list_learning(results: RunResults) -> Table:
    """Return the learning curve of covered test spectra at the headline noise level."""
    rows = []
    for point in learning_points(results).to_dict("records"):
        cells = [f"{int(point['n_train']):,}", f"{int(point['n_test']):,}"]
        for merit in MERITS:
            ends = Estimate(point[merit], 0.0, point[f"{merit}_low"], point[f"{merit}_high"])
            cells.extend(interval_cells(merit, ends))
        rows.append(tuple(cells))
    header = ["n train", "n test"]
    for title in MERITS.values():
        header.extend((title, "low", "high"))
    over_seeds = "mean and interval over seeds" if has_joint_learning(results) else "means over seeds"
    caption = f"Covered test spectra, noise level {headline(results)['noise_level']:g}, {over_seeds}"
    return Table(caption, tuple(header), tuple(rows), 0)


def list_marginal(results: RunResults) -> Table:
    """Return the learning curves of drawn and marginal training noise; no rows where the run has only one of them."""
    rows = []
    for name, entry in (("drawn", "learning"), ("marginal", "marginal")):
        points = (results.summary.get(entry) or {}).get("points") or ()
        for point in points if results.summary.get("marginal") else ():
            estimates = {merit: estimate_view(point[merit]) for merit in MERITS}
            cells = [cell for merit, estimate in estimates.items() for cell in interval_cells(merit, estimate)]
            rows.append((name, f"{int(point['n_train']):,}", *cells))
    header = ["Training noise", "n train"]
    for title in MERITS.values():
        header.extend((title, "low", "high"))
    caption = f"Covered test spectra, noise level {headline(results)['noise_level']:g}, by training noise"
    return Table(caption, tuple(header), tuple(rows), 1)


def list_run(results: RunResults) -> Table:
    """Return who computed what: code, configuration, versions, memory."""
    metadata = results.metadata
    plan = metadata.get("plan") or {}
    rows = {
        "started": metadata.get("started"),
        "git commit": metadata.get("git_commit") or "not recorded (no git checkout)",
        "command": metadata.get("command"),
        "configuration": metadata.get("config_source"),
        "configuration hash": metadata.get("config_hash"),
        "peak memory of all, measured": _mebibytes(metadata.get("peak_memory_bytes")),
        "memory of the driver, projected": _mebibytes(plan.get("driver_memory_bytes")),
        "peak memory of a worker, measured": _mebibytes(metadata.get("worker_peak_memory_bytes")),
        "memory per worker, projected": _mebibytes(plan.get("memory_per_worker_bytes")),
        **{f"{name} version": value for name, value in (metadata.get("versions") or {}).items()},
    }
    return _pairs("Run", ((name, value) for name, value in rows.items() if value is not None))


def list_stores(results: RunResults) -> Table:
    """Return the spectra that were read: where, how many, and the fingerprints that identify them."""
    rows: list[tuple[str, Any]] = []
    for part, store in (results.metadata.get("stores") or {}).items():
        spans = store.get("wavelength_range")
        entries = {
            "stores": ", ".join(store.get("paths") or ()) or None,
            "fingerprint": store.get("fingerprint"),
            "spectra": None if store.get("n_spectra") is None else f"{store['n_spectra']:,}",
            "pixels": store.get("n_pixels"),
            "wavelength": f"{spans[0]:g} to {spans[1]:g} Å" if spans else None,
            "share in a bin": None if store.get("coverage") is None else f"{store['coverage']:.2%}",
            "pre-drawn noise": {True: "yes", False: "no"}.get(store.get("has_noisy")),
            "sources": ", ".join(map(_name_source, store.get("sources") or ())) or None,
        }
        rows.extend((f"{part}: {name}", value) for name, value in entries.items() if value is not None)
    return _pairs("Spectra", rows)


def _name_source(source: str | Mapping[str, Any]) -> str:
    if isinstance(source, str):
        return source
    return f"{source['name']} ({source['n_spectra']:,} spectra, {source['fingerprint']})"


def list_steps(results: RunResults) -> Table:
    """Return what each step took."""
    rows = tuple(
        (str(step["name"]), f"{step['seconds']:.2f}", "taken from an earlier run" if step.get("skipped") else "")
        for step in results.metadata.get("steps") or ()
    )
    return Table("Time of each step", ("Step", "seconds", "Note"), rows)


def list_files(results: RunResults) -> Table:
    """Return the checksums of the result files."""
    return _pairs("SHA-256 of the results", (results.metadata.get("hashes") or {}).items())


def _pairs(caption: str, rows: Iterable[tuple[str, Any]]) -> Table:
    cells = tuple((str(name), MISSING if value is None else str(value)) for name, value in rows)
    return Table(caption, ("", "Value"), cells)


def _several_seeds(results: RunResults) -> bool:
    return bool(results.overall["seed"].nunique() > 1)


def _estimate_cells(merit: str, estimate: Estimate, *, several_seeds: bool) -> tuple[str, ...]:
    mean, *ends = interval_cells(merit, estimate)
    # One seed has no spread; a zero would claim perfect agreement.
    return (mean, number_cell(estimate.std) if several_seeds else MISSING, *ends)


def interval_cells(merit: str, estimate: Estimate) -> tuple[str, ...]:
    """Return mean, low and high of a figure of merit with four decimals; ΔR² always has its sign."""
    form = "+.4f" if merit == "delta_r2" else ".4f"
    return tuple(number_cell(value, form) for value in (estimate.mean, estimate.low, estimate.high))


def number_cell(value: float, form: str = ".4f") -> str:
    """Return a number as text, and a dash for NaN."""
    return MISSING if pd.isna(value) else format(value, form)


def _mebibytes(count: float | None) -> str | None:
    return None if count is None else f"{count / 2**20:,.0f} MiB"
