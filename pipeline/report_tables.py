"""The tables of the report, as text: every number that the report shows is formatted here and only here.

R² and ΔR² have four decimals, counts are exact, and what a run does not have is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from pipeline.decision import Estimate
from pipeline.figures.views import (
    MERITS,
    bin_views,
    headline,
    learning_points,
    quantity,
    scope_views,
    symbol,
)
from pipeline.results import RunResults

__all__ = [
    "MISSING",
    "REPORT_FIGURES",
    "TEST_NOISE",
    "Table",
    "describe_words",
    "list_bins",
    "list_files",
    "list_hypotheses",
    "list_key_numbers",
    "list_learning",
    "list_levels",
    "list_run",
    "list_steps",
    "list_stores",
]

MISSING = "–"

#: Title and what to look for, by file name and in the order of the report.
REPORT_FIGURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "moe_oracle_dashboard.png": (
            "The result on one page",
            "Look first at the middle left: the verdict needs the whole bar of “covered” in one coloured zone. "
            "The bars on the right tell whether all bins gain or a few carry the rest.",
        ),
        "moe_delta_r2_heatmap.png": (
            "ΔR² in every bin",
            "Blue bins gain from an expert of their own, red ones lose. Where the interval in a cell includes "
            "zero, the colour may be chance.",
        ),
        "moe_perbin_r2_grouped.png": (
            "R² in every bin, both models",
            "A long blue bar is a bin that is easy once it has its own expert; a short one is hard for any "
            "linear model. R² of a bin is relative to the spread of labels within it, so it can be low in "
            "every bin and still be high over all.",
        ),
        "moe_pred_vs_true.png": (
            "Predicted against true",
            "A good model lies along the dashed line. A cloud flatter than the line is shrunk towards the "
            "mean: low values are predicted too high, high ones too low.",
        ),
        "moe_sample_distribution.png": (
            "Where the spectra are",
            "Spectra beyond the lines are in no bin and have no expert. Train and test should look alike; "
            "where they do not, the overall numbers weigh the bins differently.",
        ),
        "moe_learning_curve.png": (
            "Gain against the number of training spectra",
            "A curve that still rises at its right end says that more spectra would help that model. Where ΔR² "
            "falls, the global model is catching up; only its level at the right end counts for the decision.",
        ),
        "moe_noise_levels.png": (
            "Gain against the noise level",
            "Look where ΔR² crosses the thresholds: the decision holds only for noise levels on its side.",
        ),
    }
)


#: The protocol of the test noise in words.
TEST_NOISE: Mapping[str, str] = MappingProxyType(
    {
        "stored": "the noisy spectra that came with the test files were used (pre-drawn), the same for every seed.",
        "drawn": "noise was drawn for the test spectra by this run, anew for every seed.",
    }
)


def describe_words(results: RunResults) -> list[tuple[str, str]]:
    """Explain covered, all, interval, ± and α to a reader who is no astronomer."""
    columns = " and ".join(symbol(column) for column in results.metadata["bin_columns"])
    config = results.metadata.get("config") or {}
    resamples = (config.get("bootstrap") or {}).get("resamples")
    drawn = f" ({resamples} times, with replacement)" if resamples else " with replacement"
    return [
        (
            "covered",
            f"test spectra of stars whose true {columns} lie in one of the bins: those an expert exists for. Both "
            "models are scored on these same spectra; the conclusion is about them.",
        ),
        (
            "all",
            "every test spectrum. Stars in no bin get the global model's answer in both cases, which dilutes "
            "the difference.",
        ),
        (
            "interval",
            f"how far the number could move by the luck of which test spectra were picked: redrawing them{drawn} gave "
            f"values between low and high in {results.summary['confidence']:.0%} of the cases.",
        ),
        (
            "±",
            "standard deviation between seeds, that is, between repetitions with other random noise; a dash where "
            "there was one seed only.",
        ),
        (
            "α",
            "the ridge penalty: how strongly a model is held back from following the noise. Larger means "
            "simpler; it is never chosen on the test spectra.",
        ),
    ]


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
                _number(view.r2_global.mean),
                _number(view.r2_oracle.mean),
                *_estimate_cells("delta_r2", delta, several_seeds=_several_seeds(results)),
                *(_number(errors[name].get(view.number, math.nan)) for name in errors),
                _number(view.alpha, ".6g"),
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
                _number(scope.r2_global.mean),
                _number(scope.r2_oracle.mean),
                *_interval_cells("delta_r2", scope.delta_r2),
            )
        )
    header = ("Noise level", "Verdict", "R²_global", "R²_oracle", "ΔR²", "low", "high")
    return Table("Covered test spectra at every noise level", header, tuple(rows), 2)


def list_learning(results: RunResults) -> Table:
    """Return the learning curve of covered test spectra at the headline noise level, means over seeds."""
    rows = []
    for point in learning_points(results).to_dict("records"):
        cells = [f"{int(point['n_train']):,}", f"{int(point['n_test']):,}"]
        for merit in MERITS:
            ends = Estimate(point[merit], 0.0, point[f"{merit}_low"], point[f"{merit}_high"])
            cells.extend(_interval_cells(merit, ends))
        rows.append(tuple(cells))
    header = ["n train", "n test"]
    for title in MERITS.values():
        header.extend((title, "low", "high"))
    caption = f"Covered test spectra, noise level {headline(results)['noise_level']:g}, means over seeds"
    return Table(caption, tuple(header), tuple(rows), 0)


def list_run(results: RunResults) -> Table:
    """Return who computed what: code, configuration, versions, memory."""
    metadata = results.metadata
    plan = metadata.get("plan") or {}
    rows = {
        "started": metadata.get("started"),
        "git commit": metadata.get("git_commit") or "not recorded (no git checkout)",
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
            "store": store.get("path"),
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
    mean, *ends = _interval_cells(merit, estimate)
    # One seed has no spread; a zero would claim perfect agreement.
    return (mean, _number(estimate.std) if several_seeds else MISSING, *ends)


def _interval_cells(merit: str, estimate: Estimate) -> tuple[str, ...]:
    form = "+.4f" if merit == "delta_r2" else ".4f"
    return tuple(_number(value, form) for value in (estimate.mean, estimate.low, estimate.high))


def _number(value: float, form: str = ".4f") -> str:
    return MISSING if pd.isna(value) else format(value, form)


def _mebibytes(count: float | None) -> str | None:
    return None if count is None else f"{count / 2**20:,.0f} MiB"
