"""What the interactive view of the report shows: every bin at every noise level and for every seed, as text.

The page's own script draws it as SVG and HTML, not a plotting library: marks drawn on a canvas cannot be reached by
keyboard, read aloud, follow a dark screen or be printed sharply, and a library weighs a megabyte more than this.
Numbers are formatted here as in all other tables; the script places a mark by reading the number that it shows, so
mark and text cannot differ.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.noise import NO_SEED
from pipeline.report.section import Subject, count_choices, merit_cells, number_cell
from pipeline.report.words import bin_edges, quantity, symbol, thresholds
from pipeline.scoring import (
    DELTA_R2,
    MERITS,
    MISSING,
    R2_GLOBAL,
    R2_ORACLE,
    Draw,
    Level,
    Part,
    RunResults,
    Scope,
)

__all__ = ["Card", "answer_cards", "describe_interactive", "hash_script", "read_asset"]

_ASSETS = Path(__file__).parent / "templates"
#: The choice that stands for all seeds together.
_MEAN = "mean"
_OUTSIDE = "outside"
#: Name, number and remark of a number that the page opens with.
Card = tuple[str, str, str]
#: The figures of merit in the order of importance.
_SHOWN = (DELTA_R2, R2_ORACLE, R2_GLOBAL)


def read_asset(name: str) -> str:
    """Return a style sheet or script of the page; line ends are those that a browser's checksum is made over."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def hash_script(script: str) -> str:
    """Return the source expression by which the page's content security policy allows one script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def answer_cards(results: RunResults, subjects: Sequence[Card] = ()) -> list[Card]:
    """Return name, number and remark of what the page opens with: R² of the global model and of experts, and more.

    What the questions add, such as the ceiling, stands after the experts'; the gain is the last one.
    """
    level = results.summary.headline
    confidence = f"{results.summary.confidence:.0%} interval"
    cards = []
    for merit, name in ((R2_GLOBAL, "Global model"), (R2_ORACLE, "Oracle experts"), (DELTA_R2, "Gain")):
        mean, low, high = merit_cells(merit, level.covered.merit(merit))
        remark = MISSING if low == MISSING else f"{confidence} {low} to {high}"
        cards.append((f"{name}, {merit.symbol}", mean, remark))
    return [*cards[:2], *subjects, cards[2]]


def describe_interactive(results: RunResults, others: Sequence[Subject] = ()) -> dict[str, Any]:
    """Return what the page's script needs, ready for JSON; every leaf is text.

    Parameters
    ----------
    results
        A scored run.
    others
        Labels beside the target that can be shown.

    Returns
    -------
    dict[str, Any]
        ``choices``: pairs of value and words for ``label``, ``level``, ``seed``, ``scope``; ``start``: the values to
        start with; ``parts``: the bins and the scopes with name and edges; ``leaks``: why a label has no experts here;
        ``facts``: what each row tells beside its figures of merit; ``rows``: by ``label|level|seed|part`` the figures
        of merit (mean, low, high) and those facts.
    """
    levels, start, limits = results.summary.levels, results.summary.headline, thresholds(results)
    target = Subject(results.summary.target, [(level, level.draws) for level in levels])
    rows: dict[str, Any] = {}
    for subject in (target, *others):
        for level, (part, draws) in zip(levels, subject.levels, strict=True):
            rows |= dict(_joint_rows(subject.label, level, part, draws)) | dict(_seed_rows(subject.label, level, draws))
    return {
        "confidence": f"{results.summary.confidence:.0%}",
        "leaks": {subject.label: subject.leak for subject in others if subject.leak},
        "choices": {
            "label": [[subject.label, quantity(subject.label)] for subject in (target, *others)],
            "level": [[f"{level.noise_level:g}"] * 2 for level in levels],
            "seed": _list_seeds(results),
            "scope": _list_scopes(start),
        },
        "start": {
            "label": target.label,
            "level": f"{start.noise_level:g}",
            "seed": _MEAN,
            "scope": next(iter(start.scopes)),
        },
        "thresholds": [["not worth it below", f"{limits.stop:g}"], ["build experts from", f"{limits.continue_:g}"]],
        "merits": {merit.name: merit.symbol for merit in _SHOWN},
        "parts": _list_parts(results, start),
        "facts": ["ΔR² ± seeds", "MAE global", "MAE oracle", "α expert", "α global", "n train", "n test"],
        "rows": rows,
    }


def _list_seeds(results: RunResults) -> list[list[str]]:
    seeds = [seed for seed in results.overall["seed"].unique() if seed != NO_SEED]
    if not seeds:
        return [[_MEAN, "none (marginal noise)"]]
    if len(seeds) == 1:
        only = "one for each level" if NO_SEED in results.overall["seed"].to_numpy() else str(seeds[0])
        return [[_MEAN, only]]
    return [[_MEAN, f"mean of {len(seeds)}"], *([str(seed)] * 2 for seed in seeds)]


def _list_scopes(level: Level) -> list[list[str]]:
    words = {"covered": "covered (in a bin)", "all": "all (outside, too)"}
    return [[scope, words[scope]] for scope in level.scopes]


def _list_parts(results: RunResults, level: Level) -> list[dict[str, str]]:
    edges = bin_edges(results)
    shape = tuple(len(cuts) - 1 for cuts in edges.values())
    intervals = [list(pairwise(cuts)) for cuts in edges.values()]
    parts = [{"id": scope, "name": f"{scope} spectra", "where": ""} for scope in level.scopes]
    for one in level.bins:
        place = np.unravel_index(one.bin, shape)
        ends = [spans[k] for spans, k in zip(intervals, place, strict=True)]
        spans = [
            f"{symbol(column)} {low:g} to {high:g}{_unit(column)}"
            for column, (low, high) in zip(edges, ends, strict=True)
        ]
        name = f"{one.bin} · {', '.join(one.names)}"
        parts.append({"id": str(one.bin), "name": name, "where": "; ".join(spans).replace("-", "−")})
    where = "no expert: the global model answers in both cases, so ΔR² is 0"
    return [*parts, {"id": _OUTSIDE, "name": "outside every bin", "where": where}]


def _with_unit(cell: str, unit: str) -> str:
    return cell if cell == MISSING else f"{cell}{unit}"


def _unit(column: str) -> str:
    unit = quantity(column).removeprefix(symbol(column)).strip(" ()")
    return f" {unit}" if unit else ""


def _joint_rows(label: str, level: Level, part: Part, draws: Sequence[Draw]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label's rows of all seeds together, whose intervals are those of the key numbers."""
    yield from _rows(f"{label}|{level.noise_level:g}|{_MEAN}", part, draws, label)


def _seed_rows(label: str, level: Level, draws: Sequence[Draw]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label's rows of every seed alone; none where there is one seed only."""
    for draw in draws if len(draws) > 1 else ():
        yield from _rows(f"{label}|{level.noise_level:g}|{draw.seed}", draw, [draw], label)


def _rows(key: str, part: Part, draws: Sequence[Draw], label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what scopes, bins and the outside show; ``draws`` are those that the part is a mean over."""
    unit, several = _unit(label), len(draws) > 1
    penalty = count_choices(draw.alpha_global for draw in draws)

    def row(scope: Scope, errors: tuple[str, ...], alpha: str) -> dict[str, Any]:
        facts = (
            number_cell(scope.delta_r2.std) if several else MISSING,
            *errors,
            alpha,
            penalty,
            *(f"{count:,}" for count in (scope.n_train, scope.n_test)),
        )
        return {**{merit.name: merit_cells(merit, scope.merit(merit)) for merit in MERITS}, "facts": facts}

    for name, scope in part.scopes.items():
        yield f"{key}|{name}", row(scope, (MISSING, MISSING), MISSING)
    for place, one in enumerate(part.bins):
        errors = tuple(_with_unit(number_cell(value), unit) for value in (one.mae_global, one.mae_oracle))
        yield f"{key}|{one.bin}", row(one, errors, count_choices(draw.bins[place].alpha for draw in draws))
    if part.scopes.keys() >= {"covered", "all"}:
        counts = (getattr(part.scopes["all"], n) - getattr(part.covered, n) for n in ("n_train", "n_test"))
        facts = (*(MISSING,) * 4, penalty, *(f"{count:,}" for count in counts))
        yield f"{key}|{_OUTSIDE}", {**{merit.name: (MISSING,) * 3 for merit in MERITS}, "facts": facts}
