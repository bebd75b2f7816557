"""Moments of several runs as one: of machines that each accumulated other shards of one set of spectra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pipeline.errors import InputError
from pipeline.moments import Moments
from pipeline.moments_contents import DrawContents, PieceContents, open_moments
from pipeline.moments_files import KEY_FILE

__all__ = ["MergedMoments", "merge_runs"]

#: How runs cut their spectra changes no meaning of the sums.
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


def merge_runs(folders: Sequence[str | Path]) -> tuple[MergedMoments, ...]:
    """Merge the moments of runs that accumulated different shards of one set of spectra.

    Every run names all stores in ``data.train`` and leaves out, by ``data.exclude``, the shards of the others: so all
    have the same origins, and every spectrum the noise that it has in a run over all shards. Reads no Gram matrix
    before it is asked for.

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
    runs = [open_moments(folder) for folder in folders]
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
    facts = json.loads((draw.folder / KEY_FILE).read_text(encoding="utf-8"))  # it has just been found sound
    return dict(facts["settings"]), facts["draw"]


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]} …"


def _row_ranges(fold: PieceContents) -> list[tuple[int, int]]:
    """Return the rows of a fold, in ranges without those that are left out."""
    start, stop = fold.rows or (0, 0)
    edges = [start, *(edge for hole in fold.left_out for edge in hole), stop]
    return list(zip(edges[::2], edges[1::2], strict=True))
