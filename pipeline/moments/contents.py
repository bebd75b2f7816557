"""List the moments of a run, and read them without the run's configuration.

A run's ``moments`` folder holds a folder for each noise draw. This holds a folder for each finished fold and, during
the pass, for each finished partition. ``docs/moments.md`` describes the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import (
    PathLike,
    Progress,
    SilentProgress,
    format_bytes,
    is_sealed,
    list_paths,
    parse_object,
    read_file,
    render_html,
)
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import ExperimentConfig, Quantiles, load_config
from pipeline.errors import InputError
from pipeline.moments.files import KEY_FILE, SavedMoments
from pipeline.moments.moments import Moments
from pipeline.schema import MOMENTS_LISTING_VERSION

__all__ = [
    "DrawContents",
    "MergedMoments",
    "MomentsContents",
    "PieceContents",
    "merge_runs",
    "open_moments",
    "render_contents",
    "tabulate_contents",
]

#: Noise draws that the contents name when they show themselves.
_SHOWN_DRAWS = 8
_PIECE = re.compile(r"(fold|partition)-(\d+)")


@dataclass(frozen=True, eq=False)
class PieceContents:
    """The moments of one fold, or of one partition that waits for the others of its fold.

    Attributes
    ----------
    folder, kind, number
        Its folder; ``"fold"`` or ``"partition"``; and its number.
    rows
        First row of the training set, and one past the last; None if damaged.
    left_out
        Row ranges within these that belong to shards that are left out.
    counts
        Spectra of every cell.
    n_pixels, precision, labels
        P, ``"float32"`` or ``"float64"`` of the Gram matrices, names of the labels.
    nbytes
        Bytes on disk.
    problem
        What is damaged; None if no damage is known.
    """

    folder: Path
    kind: str
    number: int
    rows: tuple[int, int] | None = None
    left_out: tuple[tuple[int, int], ...] = ()
    counts: tuple[int, ...] = ()
    n_pixels: int = 0
    precision: str = ""
    labels: tuple[str, ...] = ()
    nbytes: int = 0
    problem: str | None = None

    def __repr__(self) -> str:
        state = "; damaged" if self.problem else ""
        return (
            f"PieceContents({self.kind} {self.number}, {sum(self.counts):,} spectra in {len(self.counts)} cells{state})"
        )

    def read(self, cell: int) -> Moments:
        """Read the moments of one cell, every byte checked.

        Raises
        ------
        InputError
            If there is no such cell, or a file is missing or damaged.
        """
        saved = SavedMoments.open(self.folder)
        if not 0 <= cell < saved.n_cells:
            raise InputError(f"moments {self.folder}: cells 0 to {saved.n_cells - 1} are there, asked for {cell}")
        return saved.read(cell)


@dataclass(frozen=True, eq=False)
class DrawContents:
    """The moments of one noise draw.

    Attributes
    ----------
    folder
        Where they are.
    noise
        Level, seed and stream of drawn noise, or level and algorithm of marginal noise.
    key, store
        Two hashes: the key of the computation, and the fingerprint of all stores together.
    folds, partitions
        The finished ones, in order.
    n_folds
        Number of folds of a complete run; None if ``key.json`` is damaged.
    problem
        What is damaged besides the folds; None if nothing is.
    fold_keys
        The key of each fold of a complete run.
    """

    folder: Path
    noise: Mapping[str, Any]
    key: str
    store: str
    folds: tuple[PieceContents, ...]
    partitions: tuple[PieceContents, ...]
    n_folds: int | None
    problem: str | None = None
    fold_keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"DrawContents({self.folder.name}, {self._describe()})"

    def _describe(self) -> str:
        state = "damaged" if self.problems else "complete" if self.complete else "unfinished"
        folds = f"{len(self.folds)} of {self.n_folds or '?'} folds"
        return f"{sum(self.counts):,} spectra in {len(self.counts)} cells, {folds}, {state}"

    @property
    def pieces(self) -> tuple[PieceContents, ...]:
        """Folds and partitions."""
        return self.folds + self.partitions

    @property
    def problems(self) -> list[str]:
        """What is damaged."""
        return [one for one in (self.problem, *(piece.problem for piece in self.pieces)) if one is not None]

    @property
    def missing(self) -> str | None:
        """A text that says what is missing; None if nothing is known to be missing."""
        if self.partitions:
            return f"{len(self.partitions)} partitions wait for the others of their folds"
        if not self.folds:
            return "no fold is finished"
        absent = sorted(set(range(self.n_folds or 0)) - {fold.number for fold in self.folds})
        return f"folds {', '.join(map(str, absent))} of {self.n_folds} are missing" if absent else None

    @property
    def complete(self) -> bool:
        """Whether all folds exist and none is damaged."""
        return not self.problems and self.missing is None

    @property
    def counts(self) -> list[int]:
        """Spectra of every cell, over all pieces that are finished and not damaged."""
        sound = [piece.counts for piece in self.pieces if piece.counts]
        return [sum(column) for column in zip(*sound, strict=True)] if len({len(c) for c in sound}) == 1 else []

    def total(self, cell: int) -> Moments:
        """Return the moments of one cell over all finished folds, in fold order, in float64.

        Raises
        ------
        InputError
            If no fold is finished, there is no such cell, or a file is damaged.
        """
        return Moments.merge(fold.read(cell) for fold in self.folds)


@dataclass(frozen=True, eq=False)
class MomentsContents:
    """What :func:`open_moments` found.

    Attributes
    ----------
    folder
        Where.
    draws
        One for each noise draw, by name.
    cell_names
        Names of the cells: the run's bins and the outside, or parts of them if it has further binnings. None if the
        run's configuration is missing, or if its binnings are cut by quantiles.
    """

    folder: Path
    draws: tuple[DrawContents, ...]
    cell_names: tuple[str, ...] | None

    @property
    def problems(self) -> list[str]:
        """What is damaged."""
        return [problem for draw in self.draws for problem in draw.problems]

    def cell_name(self, cell: int) -> str:
        """Return ``bin 0 (Cool, Poor)``, ``outside``, or ``cell 0`` where bins have no names."""
        return f"cell {cell}" if self.cell_names is None else self.cell_names[cell]

    def __repr__(self) -> str:
        lines = [f"  {draw.folder.name}: {draw._describe()}" for draw in self.draws[:_SHOWN_DRAWS]]
        if len(self.draws) > _SHOWN_DRAWS:
            lines.append(f"  and {len(self.draws) - _SHOWN_DRAWS} more")
        return "\n".join([f"MomentsContents({str(self.folder)!r}, {len(self.draws)} noise draws)", *lines])

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a line for each noise draw."""
        rows = []
        for draw in self.draws:
            state = "damaged" if draw.problems else "complete" if draw.complete else "unfinished"
            size = format_bytes(sum(piece.nbytes for piece in draw.pieces))
            rows.append((draw.folder.name, f"{sum(draw.counts):,}", len(draw.counts), len(draw.folds), size, state))
        headings = ("noise", "spectra", "cells", "folds", "size", "state")
        return render_html(f"Moments of {self.folder}", self.problems, headings, rows)

    def verify(self, progress: Progress | None = None) -> MomentsContents:
        """Read every Gram matrix and check it against its checksum; return the contents with the problems found."""
        pieces = [piece for draw in self.draws for piece in draw.pieces]
        checked = {}
        with (progress or SilentProgress()).step("verify", sum(map(_n_grams, pieces)), "Gram matrices") as advance:
            for piece in pieces:
                checked[piece.folder] = _verify_piece(piece)
                advance(_n_grams(piece))

        def renew(old: Iterable[PieceContents]) -> tuple[PieceContents, ...]:
            return tuple(checked[piece.folder] for piece in old)

        draws = [replace(draw, folds=renew(draw.folds), partitions=renew(draw.partitions)) for draw in self.draws]
        return replace(self, draws=tuple(draws))


def open_moments(folder: str | Path) -> MomentsContents:
    """List the moments of a run. A Gram matrix is read only when it is asked for.

    Parameters
    ----------
    folder
        A run folder, its ``moments`` folder, or the folder of one noise draw.

    Returns
    -------
    MomentsContents
        ``contents.draws[0].folds[2].read(cell)`` gives the moments of a fold and cell,
        ``contents.draws[0].total(cell)`` those of all folds. Damaged parts are listed with their ``problem``.

    Raises
    ------
    InputError
        If there are no moments in the folder.
    """
    asked = Path(folder)
    if not asked.is_dir():
        raise InputError(f"moments {asked}: a run folder or its moments folder is required, found no such folder")
    root = asked / "moments" if (asked / "moments").is_dir() else asked
    candidates = [root] if _is_draw(root) else sorted(one for one in root.iterdir() if one.is_dir())
    found = [one for one in candidates if _is_draw(one)]
    if not found:
        raise InputError(
            f"moments {asked}: no moments found (a folder for each noise draw with {KEY_FILE} and fold-000 …); give a "
            "run folder, its moments folder, or the folder of a draw"
        )
    run = root.parent.parent if found == [root] else root.parent
    config = _read_config(run)
    draws = tuple(map(_open_draw, found))
    return MomentsContents(asked, draws, _name_cells(config, {len(draw.counts) for draw in draws}))


def _is_draw(folder: Path) -> bool:
    return (folder / KEY_FILE).is_file() or any(_PIECE.fullmatch(one.name) for one in folder.iterdir())


def _open_draw(folder: Path) -> DrawContents:
    problem, n_folds = None, None
    wanted: dict[int, tuple[str, list[int]]] = {}
    try:
        facts = parse_object(read_file(folder / KEY_FILE))
        is_sealed(facts)  # earlier versions wrote no checksum
        noise, key, store = dict(facts["draw"]), str(facts["key"]), str(facts["store"])
        wanted = {k: (str(fold["key"]), list(fold["rows"])) for k, fold in enumerate(facts["folds"])}
        n_folds = len(wanted)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        wanted, n_folds = {}, None
        problem = f"{folder / KEY_FILE}: missing, or not what this program writes; move {folder} away and run again"
        noise, key, store = {}, "", ""
    named = sorted((one.name, one) for one in folder.iterdir() if _PIECE.fullmatch(one.name))
    pieces = [_open_piece(path, wanted, noise) for _, path in named]
    # A run that is under way merges and deletes partitions. So a folder that has disappeared is not damaged.
    pieces = [piece for piece in pieces if piece.problem is None or piece.folder.is_dir()]
    folds, partitions = ([piece for piece in pieces if piece.kind == kind] for kind in ("fold", "partition"))
    keys = tuple(fold_key for fold_key, _ in wanted.values())
    return DrawContents(folder, noise, key, store, tuple(folds), tuple(partitions), n_folds, problem, keys)


def _open_piece(folder: Path, wanted: Mapping[int, tuple[str, list[int]]], noise: Mapping[str, Any]) -> PieceContents:
    matched = _PIECE.fullmatch(folder.name)
    assert matched is not None
    piece = PieceContents(folder, matched.group(1), int(matched.group(2)))
    try:
        nbytes = sum(file.stat().st_size for file in folder.iterdir())
        saved = SavedMoments.open(folder)
        saved.check_sizes()
        start, stop = saved.header["rows"]
        piece = replace(
            piece,
            rows=(int(start), int(stop)),
            left_out=tuple((int(a), int(b)) for a, b in saved.header.get("left_out", ())),
            counts=tuple(saved.counts),
            n_pixels=saved.n_pixels,
            precision=np.dtype(str(saved.header["gram_dtype"])).name,
            labels=tuple(map(str, saved.header["labels"])),
            nbytes=nbytes,
        )
    except (InputError, OSError) as error:
        return replace(piece, problem=str(error))
    except (KeyError, TypeError, ValueError) as error:
        return replace(piece, problem=f"moments {folder}: wrong facts ({error}); delete it and run again")
    if piece.kind == "fold" and wanted:
        key, rows = wanted.get(piece.number, ("", []))
        if (saved.header.get("key"), [start, stop]) != (key, rows):
            return replace(piece, problem=f"moments {folder}: of another computation; delete it and run again")
    if wanted and saved.header.get("draw") != noise:
        return replace(piece, problem=f"moments {folder}: of another noise; delete it and run again")
    n_rows = stop - start - sum(b - a for a, b in piece.left_out)
    if sum(piece.counts) != n_rows:
        return replace(piece, problem=f"moments {folder}: {sum(piece.counts)} spectra of {n_rows} rows")
    return piece


def _n_grams(piece: PieceContents) -> int:
    return 0 if piece.problem is not None else sum(count > 0 for count in piece.counts)


def _verify_piece(piece: PieceContents) -> PieceContents:
    try:
        for cell, count in enumerate(piece.counts if piece.problem is None else ()):
            if count:
                piece.read(cell)
    except InputError as error:
        return replace(piece, problem=str(error))
    return piece


def _read_config(run: Path) -> ExperimentConfig | None:
    """Return the configuration of a finished run. It is used only for names."""
    try:
        return load_config(run / "config.yaml")
    except InputError:
        return None


def _name_cells(config: ExperimentConfig | None, numbers: set[int]) -> tuple[str, ...] | None:
    if config is None:
        return None
    main = BinGrid(config.bins, config.bin_names)
    names = [*map(main.describe, range(main.n_bins)), "outside"]
    others = []
    for cuts in config.further_grids.values():
        if any(isinstance(cut, Quantiles) for cut in cuts.values()):
            break  # the cells are finer, by edges that only the spectra tell
        others.append(BinGrid({column: cut for column, cut in cuts.items() if not isinstance(cut, Quantiles)}))
    cells = CellGrid((main, *others))
    if numbers != {cells.n_cells}:
        return None
    named = [""] * cells.n_cells
    for name, members in zip(names, cells.members(0), strict=True):
        for part, cell in enumerate(members, start=1):
            named[cell] = name if len(members) == 1 else f"{name}, part {part} of {len(members)}"
    return tuple(named)


# --- Moments of several runs as one, if machines each accumulated other shards of one set of spectra.


#: Settings that may differ between merged runs: how the work is divided does not change the meaning of the sums.
_CUTS = ("folds", "partition_rows")


@dataclass(frozen=True, eq=False)
class MergedMoments:
    """The moments of one noise draw over several runs.

    Attributes
    ----------
    name
        Of the noise draw's folders.
    folds
        Of all runs, by their rows.
    """

    name: str
    folds: tuple[PieceContents, ...]

    @property
    def counts(self) -> list[int]:
        """Spectra of every cell."""
        return [sum(column) for column in zip(*(fold.counts for fold in self.folds), strict=True)]

    def total(self, cell: int) -> Moments:
        """Return the moments of one cell over all runs, added by their rows, in float64.

        Raises
        ------
        InputError
            If there is no such cell, or a file is damaged.
        """
        return Moments.merge(fold.read(cell) for fold in self.folds)


def merge_runs(folders: PathLike | Sequence[PathLike]) -> tuple[MergedMoments, ...]:
    """Merge the moments of runs that accumulated different shards of one set of spectra.

    Every run names all stores in ``data.train``, and leaves out the shards of the others by ``data.exclude``. So all
    runs have the same origins, and every spectrum has the same noise as in one run over all shards. A Gram matrix is
    read only when it is asked for.

    Parameters
    ----------
    folders
        Run folders, or their ``moments`` folders; at least one.

    Returns
    -------
    tuple of MergedMoments
        One for each noise draw, by name.

    Raises
    ------
    InputError
        If noise draws, bins, labels, origins, precision or another setting differ, if a spectrum is in two runs, or if
        moments are unfinished or damaged; the message says which.
    """
    runs = [open_moments(folder) for folder in list_paths(folders)]
    if not runs:
        raise InputError("cannot merge no runs at all; give at least one run folder")
    names = [[draw.folder.name for draw in run.draws] for run in runs]
    for run, own in zip(runs, names, strict=True):
        if own != names[0]:
            raise InputError(
                f"cannot merge runs of different noise: {runs[0].folder} has {', '.join(names[0])}, {run.folder} has "
                f"{', '.join(own)}; accumulate both with the same noise and seeds"
            )
    return tuple(_merge_draws(draws) for draws in zip(*(run.draws for run in runs), strict=True))


def _merge_draws(draws: Sequence[DrawContents]) -> MergedMoments:
    for draw in draws:
        if not draw.complete:
            raise InputError(f"cannot merge {draw.folder}: {(*draw.problems, draw.missing)[0]}; finish that run first")
        _require_same_settings(draws[0], draw)
    folds = [fold for draw in draws for fold in draw.folds]
    for one, other in combinations(folds, 2):
        shared = [(max(a[0], b[0]), min(a[1], b[1])) for a in _row_ranges(one) for b in _row_ranges(other)]
        for low, high in shared:
            if low < high:
                raise InputError(
                    f"cannot merge {one.folder} and {other.folder}: both hold rows {low} to {high - 1}, and every "
                    "spectrum may count once only; let data.exclude of each run name the shards of the other"
                )
    return MergedMoments(draws[0].folder.name, tuple(sorted(folds, key=lambda fold: fold.rows or (0, 0))))


def _require_same_settings(first: DrawContents, other: DrawContents) -> None:
    (mine, noise), (theirs, other_noise) = _read_settings(first), _read_settings(other)
    differing = [name for name in mine if name not in _CUTS and mine[name] != theirs.get(name)]
    if noise != other_noise:
        differing.append("draw")
    if differing:
        shown = "; ".join(f"{name}: {_shorten(mine.get(name))} and {_shorten(theirs.get(name))}" for name in differing)
        raise InputError(
            f"cannot merge {first.folder} and {other.folder}: {', '.join(differing)} differ ({shown}); accumulate both "
            "with one configuration, naming the same stores in the same order"
        )


def _read_settings(draw: DrawContents) -> tuple[dict[str, object], object]:
    facts = parse_object(read_file(draw.folder / KEY_FILE))  # it has just been found sound
    return dict(facts["settings"]), facts["draw"]


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]} …"


def _row_ranges(fold: PieceContents) -> list[tuple[int, int]]:
    """Return the row ranges of a fold, without the rows that are left out."""
    start, stop = fold.rows or (0, 0)
    edges = [start, *(edge for hole in fold.left_out for edge in hole), stop]
    return list(zip(edges[::2], edges[1::2], strict=True))


# --- The contents of a moments folder in words, and as JSON.


LISTING_FORMAT = "headroom-moments-listing"


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
    """Return the contents as plain values for JSON, in a format with a version."""
    return {
        "format": LISTING_FORMAT,
        "version": MOMENTS_LISTING_VERSION,
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
