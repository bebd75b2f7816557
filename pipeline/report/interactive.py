"""What the interactive view of the report shows: every bin at every noise level and for every seed, as text.

The page's own script draws it as SVG and HTML, not a plotting library: marks drawn on a canvas cannot be reached by
keyboard, read aloud, follow a dark screen or be printed sharply, and a library weighs a megabyte more than this.
Numbers are formatted here as in all other tables; the script places a mark by reading the number that it shows, so
mark and text cannot differ.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Hashable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.questions.penalty import count_choices
from pipeline.report.tables import MISSING, interval_cells, number_cell
from pipeline.report.views import (
    MERITS,
    ScopeView,
    bin_edges,
    bin_views,
    headline,
    quantity,
    scope_views,
    symbol,
    thresholds,
)
from pipeline.report.words import LEAK
from pipeline.scoring import NO_SEED, Estimate, RunResults

__all__ = ["answer_cards", "describe_interactive", "hash_script", "read_asset"]

_ASSETS = Path(__file__).parent / "templates"
#: The choice that stands for all seeds together.
_MEAN = "mean"
_OUTSIDE = "outside"
#: The figures of merit in the order of importance.
_SHOWN = {merit: MERITS[merit] for merit in ("delta_r2", "r2_oracle", "r2_global")}


def read_asset(name: str) -> str:
    """Return a style sheet or script of the page; line ends are those that a browser's checksum is made over."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def hash_script(script: str) -> str:
    """Return the source expression by which the page's content security policy allows one script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def answer_cards(results: RunResults) -> list[tuple[str, str, str]]:
    """Return name, number and remark of what the page opens with: ΔR² and R² of covered spectra, and the verdict."""
    level = headline(results)
    scope = next(iter(scope_views(level).values()))
    limits = thresholds(results)
    confidence = f"{results.summary['confidence']:.0%} interval"
    cards = []
    for merit, title in _SHOWN.items():
        mean, low, high = interval_cells(merit, getattr(scope, merit))
        name = f"{title} of {scope.n_test:,} covered spectra" if merit == "delta_r2" else title
        cards.append((name, mean, MISSING if low == MISSING else f"{confidence} {low} to {high}"))
    rule = f"continue from {limits.continue_:g}, stop below {limits.stop:g}"
    return [*cards, ("Decision", str(level["decision"]["verdict"]), rule)]


def describe_interactive(results: RunResults) -> dict[str, Any]:
    """Return what the page's script needs, ready for JSON; every leaf is text.

    Returns
    -------
    dict[str, Any]
        ``choices``: pairs of value and words for ``label``, ``level``, ``seed``, ``scope``; ``start``: the values to
        start with; ``parts``: the bins and the scopes with name and edges; ``leaks``: why a label has no experts here;
        ``facts``: what each row tells beside its figures of merit; ``rows``: by ``label|level|seed|part`` the figures
        of merit (mean, low, high) and those facts.
    """
    labels = _list_labels(results)
    rows: dict[str, Any] = {}
    for label in labels:
        rows |= dict(_joint_rows(results, label)) | dict(_seed_rows(results, label))
    limits = thresholds(results)
    start = headline(results)
    return {
        "confidence": f"{results.summary['confidence']:.0%}",
        "leaks": {label: LEAK for label in labels if _leaks(start, label)},
        "choices": {
            "label": [[label, quantity(label)] for label in labels],
            "level": [[f"{level['noise_level']:g}"] * 2 for level in results.summary["levels"]],
            "seed": _list_seeds(results),
            "scope": _list_scopes(start),
        },
        "start": {
            "label": labels[0],
            "level": f"{start['noise_level']:g}",
            "seed": _MEAN,
            "scope": next(iter(scope_views(start))),
        },
        "thresholds": [["stop below", f"{limits.stop:g}"], ["continue from", f"{limits.continue_:g}"]],
        "merits": _SHOWN,
        "parts": _list_parts(results, start),
        "facts": ["ΔR² ± seeds", "MAE global", "MAE oracle", "α expert", "α global", "n train", "n test"],
        "rows": rows,
    }


def _list_labels(results: RunResults) -> list[str]:
    """Return the target, and then all labels that every noise level knows."""
    known = [set(level.get("labels") or ()) for level in results.summary["levels"]]
    others = headline(results).get("labels") or {}
    return [str(results.summary["target"]), *(label for label in others if all(label in one for one in known))]


def _leaks(level: Mapping[str, Any], label: str) -> bool:
    return bool(((level.get("labels") or {}).get(label) or {}).get("leaks"))


def _tables_of(results: RunResults, label: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of ``results.csv`` and of ``per_bin_results.csv`` for the target, the same for other labels."""
    if label == results.summary["target"]:
        return results.overall, results.per_bin
    own = results.labels[results.labels["target"] == label]
    is_bin = own["part"].str.isdigit()
    return own[~is_bin].rename(columns={"part": "scope"}), own[is_bin].assign(bin=own["part"][is_bin].astype(int))


def _list_seeds(results: RunResults) -> list[list[str]]:
    seeds = [seed for seed in results.overall["seed"].unique() if seed != NO_SEED]
    if not seeds:
        return [[_MEAN, "none (marginal noise)"]]
    if len(seeds) == 1:
        return [[_MEAN, str(seeds[0])]]
    return [[_MEAN, f"mean of {len(seeds)}"], *([str(seed)] * 2 for seed in seeds)]


def _list_scopes(level: Mapping[str, Any]) -> list[list[str]]:
    words = {"covered": "covered (in a bin)", "all": "all (outside, too)"}
    return [[scope, words[scope]] for scope in scope_views(level)]


def _list_parts(results: RunResults, level: Mapping[str, Any]) -> list[dict[str, str]]:
    edges = bin_edges(results)
    shape = tuple(len(cuts) - 1 for cuts in edges.values())
    intervals = [list(pairwise(cuts)) for cuts in edges.values()]
    parts = [{"id": scope, "name": f"{scope} spectra", "where": ""} for scope in scope_views(level)]
    for view in bin_views(level):
        place = np.unravel_index(view.number, shape)
        ends = [spans[k] for spans, k in zip(intervals, place, strict=True)]
        spans = [
            f"{symbol(column)} {low:g} to {high:g}{_unit(column)}"
            for column, (low, high) in zip(edges, ends, strict=True)
        ]
        name = f"{view.number} · {', '.join(view.names)}"
        parts.append({"id": str(view.number), "name": name, "where": "; ".join(spans).replace("-", "−")})
    where = "no expert: the global model answers in both cases, so ΔR² is 0"
    return [*parts, {"id": _OUTSIDE, "name": "outside every bin", "where": where}]


def _with_unit(cell: str, unit: str) -> str:
    return cell if cell == MISSING else f"{cell}{unit}"


def _unit(column: str) -> str:
    unit = quantity(column).removeprefix(symbol(column)).strip(" ()")
    return f" {unit}" if unit else ""


def _joint_rows(results: RunResults, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label's rows of all seeds together, whose intervals are those of the key numbers."""
    tables = _tables_of(results, label)
    for level in results.summary["levels"]:
        own = level if label == results.summary["target"] else level["labels"][label]
        at_level = [table[table["noise_level"] == level["noise_level"]] for table in tables]
        views = {str(view.number): view for view in bin_views(own)}
        key = f"{label}|{level['noise_level']:g}|{_MEAN}"
        yield from _rows(key, scope_views(own), views, (at_level[0], at_level[1]), label)


def _seed_rows(results: RunResults, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label's rows of every seed alone, from the tables of results; none where there is one seed only."""
    tables = _tables_of(results, label)
    if tables[0]["seed"].nunique() < 2:
        return
    draws = tables[0][["noise_level", "seed"]].drop_duplicates()
    for level, seed in draws.itertuples(index=False):
        overall, bins = (table[(table["noise_level"] == level) & (table["seed"] == seed)] for table in tables)
        scopes = {str(row["scope"]): _read_view(row) for row in overall.to_dict("records")}
        views = {str(row["bin"]): _read_view(row) for row in bins.to_dict("records")}
        yield from _rows(f"{label}|{level:g}|{seed}", scopes, views, (overall, bins), label)


def _read_view(row: Mapping[Hashable, Any]) -> ScopeView:
    """Return a row of a table of results as the summary's entries are returned; one seed has no spread."""
    merits = {
        merit: Estimate(*map(float, (row[merit], math.nan, row[f"{merit}_low"], row[f"{merit}_high"])))
        for merit in MERITS
    }
    return ScopeView(int(row["n_train"]), int(row["n_test"]), **merits)


def _rows(
    key: str,
    scopes: Mapping[str, ScopeView],
    views: Mapping[str, ScopeView],
    tables: tuple[pd.DataFrame, pd.DataFrame],
    label: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what scopes, bins and the outside show; ``tables`` are their rows of ``results.csv`` and per bin."""
    overall, bins = tables
    unit = _unit(label)
    several = overall["seed"].nunique() > 1
    penalty = count_choices(overall.drop_duplicates("seed")["alpha_global"])
    for part, view in {**scopes, **views}.items():
        found = bins[bins["bin"] == int(part)] if part in views else bins.iloc[:0]
        facts = (
            number_cell(view.delta_r2.std) if several else MISSING,
            *(_with_unit(number_cell(found[name].mean()), unit) for name in ("mae_global", "mae_oracle")),
            count_choices(found["alpha"].dropna()),
            penalty,
            *(f"{count:,}" for count in (view.n_train, view.n_test)),
        )
        merits = {merit: interval_cells(merit, getattr(view, merit)) for merit in MERITS}
        yield f"{key}|{part}", {**merits, "facts": facts}
    if scopes.keys() >= {"covered", "all"}:
        counts = (getattr(scopes["all"], n) - getattr(scopes["covered"], n) for n in ("n_train", "n_test"))
        facts = (*(MISSING,) * 4, penalty, *(f"{count:,}" for count in counts))
        yield f"{key}|{_OUTSIDE}", {**dict.fromkeys(MERITS, (MISSING,) * 3), "facts": facts}
