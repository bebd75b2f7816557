"""What the report says of binnings by signal-to-noise ratio that have gates of their own."""

from __future__ import annotations

from typing import Any

from pipeline.figures.views import estimate_view
from pipeline.report_tables import Table, number_cell

__all__ = ["list_binning_gates"]


def list_binning_gates(level: dict[str, Any]) -> Table:
    """Return a row for every gated binning at one noise level: what its experts gain, and what its gate keeps."""
    rows = []
    for entry in level["gated_binnings"]:
        routes = entry["scopes"]["covered"]
        r2, gain = (estimate_view(routes["oracle"][merit]) for merit in ("r2", "gain"))
        soft, hard = (estimate_view(routes[route]["kept"]) for route in ("soft", "hard"))
        rows.append(
            (
                entry["name"],
                str(entry["n_bins"]),
                f"{entry['n_test']:,}",
                number_cell(r2.mean),
                *(number_cell(value, "+.4f").replace("-", "−") for value in (gain.mean, gain.low, gain.high)),
                *(number_cell(value, ".3f").replace("-", "−") for value in (soft.mean, soft.low, soft.high, hard.mean)),
                f"{entry['accuracy']:.0%}",
            )
        )
    header = (
        "Experts by", "experts", "test", "R² oracle", "ΔR²", "low", "high", "ρ soft", "low", "high", "ρ hard", "right",
    )  # fmt: skip
    return Table(f"Experts by signal-to-noise ratio at noise level {level['noise_level']:g}", header, tuple(rows), 1)
