"""The contents of a moments folder in words, and as JSON."""

from __future__ import annotations

from typing import Any

from pipeline.moments_contents import DrawContents, MomentsContents, PieceContents
from pipeline.workspace import format_bytes

__all__ = ["render_contents", "tabulate_contents"]

LISTING_FORMAT, LISTING_VERSION = "headroom-moments-listing", 1


def render_contents(contents: MomentsContents) -> str:
    """Return the contents as text for a terminal; long hashes are cut."""
    lines = [str(contents.folder)]
    shown: list[int] = []
    for draw in contents.draws:
        lines += _render_draw(draw)
        if draw.counts and draw.counts == shown:
            lines.append("    spectra per cell: as above")
        elif draw.counts:
            shown = draw.counts
            names = [contents.cell_name(k) for k in range(len(shown))]
            width = max(map(len, names))
            lines.append("    spectra per cell:")
            lines += [
                f"      {name:<{width}}  {count:>11,}  {100 * count / max(sum(shown), 1):5.1f} %"
                for name, count in zip(names, shown, strict=True)
            ]
    return "\n".join(lines)


def tabulate_contents(contents: MomentsContents) -> dict[str, Any]:
    """Return the contents as what JSON can hold, a versioned format of its own."""
    return {
        "format": LISTING_FORMAT,
        "version": LISTING_VERSION,
        "folder": str(contents.folder),
        "draws": [_tabulate_draw(contents, draw) for draw in contents.draws],
    }


def _some_piece(draw: DrawContents) -> PieceContents | None:
    return next((piece for piece in draw.pieces if piece.n_pixels), None)


def _render_draw(draw: DrawContents) -> list[str]:
    if draw.problems:
        state = "DAMAGED"
    elif draw.missing is not None:
        state = f"unfinished, {draw.missing}"
    else:
        state = "complete"
    lines = [f"  {draw.folder.name}: {state}"]
    some = _some_piece(draw)
    if some is not None:
        lines += [
            f"    {sum(draw.counts):,} spectra × {some.n_pixels:,} pixels, {len(draw.counts)} cells, "
            f"{some.precision}, {format_bytes(sum(piece.nbytes for piece in draw.pieces))}",
            f"    labels {', '.join(some.labels)}; key {draw.key[:16]}, store {draw.store[:16]}",
        ]
    if draw.problem is not None:
        lines.append(f"    damaged: {draw.problem}")
    return [*lines, *map(_render_piece, draw.pieces)]


def _render_piece(piece: PieceContents) -> str:
    what = f"    {piece.kind} {piece.number}"
    if piece.problem is not None or piece.rows is None:
        return f"{what}: damaged: {piece.problem}"
    start, stop = piece.rows
    return f"{what}: rows {start:,} to {stop - 1:,}, {sum(piece.counts):,} spectra, {format_bytes(piece.nbytes)}"


def _tabulate_draw(contents: MomentsContents, draw: DrawContents) -> dict[str, Any]:
    some = _some_piece(draw)
    return {
        "name": draw.folder.name,
        "noise": dict(draw.noise),
        "key": draw.key,
        "store": draw.store,
        "labels": list(some.labels) if some else None,
        "n_pixels": some.n_pixels if some else None,
        "precision": some.precision if some else None,
        "bytes": sum(piece.nbytes for piece in draw.pieces),
        "complete": draw.complete,
        "missing": draw.missing,
        "problem": draw.problem,
        "cells": [{"cell": k, "name": contents.cell_name(k), "count": n} for k, n in enumerate(draw.counts)],
        "folds": [_tabulate_piece(piece) for piece in draw.folds],
        "partitions": [_tabulate_piece(piece) for piece in draw.partitions],
    }


def _tabulate_piece(piece: PieceContents) -> dict[str, Any]:
    return {
        piece.kind: piece.number,
        "rows": None if piece.rows is None else list(piece.rows),
        "left_out": [list(rows) for rows in piece.left_out],
        "counts": list(piece.counts),
        "bytes": piece.nbytes,
        "problem": piece.problem,
    }
