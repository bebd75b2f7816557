"""Cast float64 rows of a shard to the float32 rows of a store, and find every pixel that may not enter it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["DROPPABLE", "Fault", "cast_rows"]

#: Values cast at a time: source, result and sums of a tile stay in the processor's cache.
_TILE_VALUES: Final = 1 << 16
#: Kinds of faults that ``nonfinite="drop"`` may leave out; an overflow means wrong units, not a bad spectrum.
DROPPABLE: Final = ("nonfinite", "negative error", "all zero", "zero error")


@dataclass(frozen=True)
class Fault:
    """A spectrum that may not enter the store: which row, why, and its first wrong pixel."""

    row: int
    kind: str
    pixel: int
    value: float


def cast_rows(
    variable: str, source: np.ndarray, out: np.ndarray, sums: np.ndarray | None = None
) -> tuple[int, list[Fault]]:
    """Cast rows to float32 in one pass that also checks and sums them.

    Parameters
    ----------
    variable
        ``flux``, ``error`` or ``noisy``. Errors that are NaN in the first or last pixel take the neighbour's value,
        in ``source`` itself; so does ``noisy``, which inherits the NaN of the errors it was drawn with.
    source
        Shape (n, P) float64.
    out
        Shape (n, P) float32, filled.
    sums
        Shape (P,) float64; the rows of ``out`` are added to it.

    Returns
    -------
    tuple
        Number of repaired edge pixels, and the faults: non-finite pixels, values beyond float32, negative errors,
        flux or errors that are zero in all pixels, as storage reads that was never written. Faulty rows
        are cast like the others.
    """
    repaired, faults = 0, []
    step = max(1, _TILE_VALUES // source.shape[1])
    clipped = np.empty((min(step, len(source)), source.shape[1])) if sums is not None else None
    for first in range(0, len(source), step):
        tile, cast = source[first : first + step], out[first : first + step]
        if variable in ("error", "noisy"):
            repaired += _repair_edges(tile)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(cast, tile, casting="same_kind")
        for row in _suspects(variable, cast):
            faults.append(_describe_fault(variable, tile[row], cast[row], first + row))
        if clipped is not None:
            # The clean flux of the noise model is max(flux, 0): a pixel that is never positive is 0 there, exactly.
            sums += np.maximum(cast, 0, out=clipped[: len(cast)]).sum(axis=0)
    return repaired, faults


def _repair_edges(tile: np.ndarray) -> int:
    """Give NaN at the first and last pixel the neighbour's value, as the shards' own loader does."""
    repaired = 0
    for edge, neighbour in ((0, 1), (-1, -2)):
        rows = np.flatnonzero(np.isnan(tile[:, edge]) & ~np.isnan(tile[:, neighbour]))
        if rows.size:
            tile[rows, edge] = tile[rows, neighbour]
            repaired += rows.size
    return repaired


def _suspects(variable: str, cast: np.ndarray) -> list[int]:
    with np.errstate(over="ignore", invalid="ignore"):
        row_sums = cast.sum(axis=1)
    # a float32 sum is not finite where a value is not, and where large ones add up: those are looked at again
    suspicious = ~np.isfinite(row_sums)
    for row in np.flatnonzero(suspicious):
        suspicious[row] = not np.isfinite(cast[row]).all()
    if variable == "error":
        suspicious |= cast.min(axis=1) < 0
    if variable in ("flux", "error"):
        for row in np.flatnonzero(row_sums == 0):
            suspicious[row] |= not cast[row].any()
    rows: list[int] = np.flatnonzero(suspicious).tolist()
    return rows


def _describe_fault(variable: str, source: np.ndarray, cast: np.ndarray, row: int) -> Fault:
    wrong = np.flatnonzero(~np.isfinite(source))
    if wrong.size:
        return Fault(row, "nonfinite", int(wrong[0]), float(source[wrong[0]]))
    wrong = np.flatnonzero(~np.isfinite(cast))
    if wrong.size:
        return Fault(row, "overflow", int(wrong[0]), float(source[wrong[0]]))
    wrong = np.flatnonzero(cast < 0)
    if wrong.size:
        return Fault(row, "negative error", int(wrong[0]), float(source[wrong[0]]))
    return Fault(row, "zero error" if variable == "error" else "all zero", 0, 0.0)
