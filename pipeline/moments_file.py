"""Moments on disk: one file for the cells of a partition or fold, written whole or not at all.

The format is NumPy's ``.npz`` (a ZIP archive whose CRC-32 sums guard every array), uncompressed and free of
pickles: a JSON header, the origins, and for every cell ``count, x_sum, gram, y_sum, cross, y_gram``.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError, ResourceError
from pipeline.moments import Moments

__all__ = ["FORMAT_VERSION", "merge_moments_files", "read_cell", "read_moments_header", "replacing", "write_moments"]

#: Files of this ending are halves that a killed run left; whoever owns the folder may delete them.
TEMPORARY_SUFFIX = ".tmp"

FORMAT = "headroom-moments"
FORMAT_VERSION = 1
_CELL_ARRAYS = ("x_sum", "gram", "y_sum", "cross", "y_gram")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that replaces it when the block succeeds.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; the message names the path, and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free space" if full else f"{error.strerror or error}; make it writable"
        raise ResourceError(f"cannot write {path}: {reason}, or choose another folder with --out") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_moments(path: Path, cells: Sequence[Moments], header: dict[str, Any]) -> None:
    """Write the moments of all cells to one file, atomically.

    Parameters
    ----------
    path
        The file; replaced if it exists.
    cells
        Moments of each cell, with common origins.
    header
        JSON-able facts to keep with them, such as the key of the computation.
    """
    facts = {
        **header,
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "labels": list(cells[0].labels),
        "counts": [cell.count for cell in cells],
        "epsilon": max(cell.epsilon for cell in cells),
    }
    arrays: dict[str, np.ndarray] = {
        "header": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        "x_origin": cells[0].x_origin,
        "y_origin": cells[0].y_origin,
    }
    for k, cell in enumerate(cells):
        arrays |= {f"cell_{k}_{name}": getattr(cell, name) for name in _CELL_ARRAYS}
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            yield archive
    except FileNotFoundError:
        raise InputError(f"moments file {path}: no such file; run the accumulation again") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"moments file {path}: damaged ({error}); delete it and run again to recompute it") from None


def _header(archive: Any, path: Path) -> dict[str, Any]:
    facts = json.loads(archive["header"].tobytes().decode())
    if facts.get("format") != FORMAT or facts.get("version") != FORMAT_VERSION:
        raise InputError(
            f"moments file {path}: {FORMAT} version {FORMAT_VERSION} is required, found "
            f"{facts.get('format')} version {facts.get('version')}; accumulate again"
        )
    return dict(facts)


def read_moments_header(path: Path) -> dict[str, Any]:
    """Return what was recorded with the moments, without reading them."""
    with _open(path) as archive:
        return _header(archive, path)


def read_cell(path: Path, cell: int) -> Moments:
    """Read the moments of one cell.

    Raises
    ------
    InputError
        If the file is missing, damaged (its CRC-32 fails) or of another version.
    """
    with _open(path) as archive:
        facts = _header(archive, path)
        return Moments(
            count=int(facts["counts"][cell]),
            **{name: archive[f"cell_{cell}_{name}"] for name in _CELL_ARRAYS},
            x_origin=archive["x_origin"],
            y_origin=archive["y_origin"],
            labels=tuple(facts["labels"]),
            epsilon=float(facts["epsilon"]),
        )


def merge_moments_files(paths: Sequence[Path], n_cells: int) -> list[Moments]:
    """Return the sums over several files, cell by cell, in the order given and in float64."""
    return [Moments.merge(read_cell(path, cell) for path in paths) for cell in range(n_cells)]
