"""What the report says of a gate: the share of the headroom that routing without labels keeps."""

from __future__ import annotations

import math
from typing import Any

from pipeline.questions.gate.snr import list_binning_gates
from pipeline.report import MISSING, Table, estimate_view
from pipeline.scoring import RunResults

__all__ = ["describe_gate"]


def describe_gate(results: RunResults) -> dict[str, Any] | None:
    """Return the section about the gate: ``sentences`` and ``tables``, for each noise level; None without one."""
    levels = [level for level in results.summary["levels"] if level.get("routing")]
    if not levels:
        return None
    several = len(levels) > 1
    sentences = []
    for level in levels:
        routing = level["routing"]
        quality = (
            f"The most probable bin, the outside counted as one, is the true one for {routing['accuracy']:.0%} of all "
            f"test spectra; told and found probabilities differ by {routing['calibration_error']:.3f} on average."
        )
        where = f"Noise level {level['noise_level']:g}: " if several else ""
        sentences.append(f"{where}{routing['sentence']} {quality}")
        if routing.get("blend"):
            sentences.append(f"{where}{routing['blend']['sentence']}{_say_blend(routing)}")
        if routing.get("importance"):
            sentences.append(f"{where}{_say_importance(routing['importance'])}")
    tables = [_list_routes(level) for level in levels]
    return {"sentences": sentences, "tables": [*tables, *map(list_binning_gates, _with_binnings(levels))]}


def _with_binnings(levels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [level for level in levels if level.get("gated_binnings")]


def _list_routes(level: dict[str, Any]) -> Table:
    rows = []
    for scope in ("covered", "all"):
        for route, entry in level["routing"]["scopes"][scope].items():
            r2, gain, kept = (estimate_view(entry[merit]) for merit in ("r2", "gain", "kept"))
            rows.append(
                (
                    scope,
                    route,
                    _number(r2.mean, ".4f"),
                    _number(gain.mean, "+.4f"),
                    _number(gain.low, "+.4f"),
                    _number(gain.high, "+.4f"),
                    _number(kept.mean, ".3f"),
                    _number(kept.low, ".3f"),
                    _number(kept.high, ".3f"),
                    entry.get("verdict", MISSING),
                )
            )
    header = ("Spectra", "Routing", "R²", "gain over global", "low", "high", "ρ", "low", "high", f"ρ ≥ {_asked(level)}")
    return Table(f"Routing at noise level {level['noise_level']:g}", header, tuple(rows), 2)


def _say_blend(routing: dict[str, Any]) -> str:
    """Say what the blend keeps, and how that can be more than all."""
    kept = estimate_view(routing["scopes"]["covered"]["blend"]["kept"])
    if not math.isfinite(kept.mean):
        return ""
    more = (
        " That is more than all: the oracle asks one expert of each spectrum, the blend averages several."
        if kept.mean > 1
        else ""
    )
    return f" On covered test spectra its route keeps {kept.mean:.0%} of the headroom.{more}"


def _say_importance(importance: dict[str, float]) -> str:
    """Name the features that the gate would miss most."""
    most = sorted(importance, key=lambda name: -importance[name])[:3]
    words = ", ".join(f"{name} ({importance[name]:.3f})" for name in most)
    return (
        f"Of {len(importance)} features the gate would miss {words} most: by so much its log loss on held-out folds of "
        "the training spectra grows where a feature's values are shuffled."
    )


def _asked(level: dict[str, Any]) -> str:
    return f"{level['routing']['keep']:g}"


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "−") if math.isfinite(value) else MISSING
