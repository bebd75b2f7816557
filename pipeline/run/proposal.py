"""A first configuration for somebody's spectra, with comments that say what was found and what was guessed.

Headers and labels are read, no pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import expect_factored
from pipeline.base import PathLike, list_paths
from pipeline.bins import BinGrid, count_in_folds, plan_folds
from pipeline.config import REFERENCE_EDGES, ComputeConfig, ExperimentConfig, load_config, schema_file, yaml_text
from pipeline.convert import find_sources
from pipeline.errors import InputError
from pipeline.noise import MarginalNoise
from pipeline.run.spectra import SetHeader, check_headers, find_stores_of, read_header
from pipeline.schema import COLUMN_UNITS

__all__ = ["propose_config"]

#: The reference bins are taken if so large a share of the spectra lies in them.
_LEAST_COVERED = 0.5
#: Fewest training spectra of a bin outside any fold, which is the default of ``ridge.min_spectra``, and fewest test
#: spectra with an R².
_LEAST_TRAIN, _LEAST_TEST = 50, 2
#: Numbers of bins along T_eff and [M/H], the most wanted first.
_SHAPES = ((3, 3), (3, 2), (2, 2), (2, 1), (1, 2))
#: Edges are multiples of these.
_STEPS: Mapping[str, float] = {"T_eff": 50.0, "M_H": 0.05}
#: Penalties to try, for each training spectrum: those that fit marginal noise, see pipeline.scoring.decision. The best
#: one falls with the noise level; the smallest serve levels of 0.2 and less.
_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_NO_TEST = "PATH/OF/THE/TEST/SPECTRA"


@dataclass(frozen=True)
class _Found:
    """What the labels tell of one set of spectra."""

    header: SetHeader
    columns: Mapping[str, NDArray[np.float64]]

    def count(self, bins: Mapping[str, Sequence[float]]) -> NDArray[np.int64]:
        """Return the spectra in every bin."""
        grid = BinGrid.of(bins)
        assigned = grid.assign(self.columns)
        return np.bincount(assigned[assigned >= 0], minlength=grid.n_bins)

    def count_left(self, bins: Mapping[str, Sequence[float]], n_folds: int | Literal["shards"]) -> NDArray[np.int64]:
        """Return the spectra of every bin outside the fold that holds most of them: what a search trains on."""
        grid, folds = BinGrid.of(bins), plan_folds(self.header.shard_lengths, n_folds)
        counts = count_in_folds(folds, [(0, grid.assign(self.columns))], grid.n_bins)
        return np.asarray(counts.sum(axis=0) - counts.max(axis=0))

    def describe(self) -> str:
        """Return its size in words."""
        header, wave = self.header, self.header.wavelength
        n = len(header.shard_lengths)
        return (
            f"{header.n_spectra:,} spectra × {wave.size:,} pixels, {wave[0]:.2f} to {wave[-1]:.2f} Å, "
            f"{n} shard{'s' if n > 1 else ''}"
        )


def propose_config(
    train: PathLike | Sequence[PathLike], test: PathLike | Sequence[PathLike] | None = None
) -> tuple[str, list[str]]:
    """Return a commented configuration for some spectra, as YAML, and what was guessed.

    Parameters
    ----------
    train, test
        Shards, files of other layouts, stores, their folders and globs, see ``data.train`` in
        ``docs/configuration.md``. Without ``test`` the last of several training shards is kept for it.

    Returns
    -------
    text : str
        Paths in it are absolute. It can be run as it is, unless there are no test spectra.
    guesses : list of str
        One sentence each.

    Raises
    ------
    InputError
        If the spectra cannot be read, do not fit each other, or are too few for any bins.
    """
    train_paths, test_paths, guesses = _split(
        [_absolute(path) for path in list_paths(train)], None if test is None else [*map(_absolute, list_paths(test))]
    )
    data = {"train": train_paths, "test": test_paths or [_NO_TEST], "stores": "stores"}
    plain = load_config({"data": data})
    found = [_read(role, plain) for role in (("train", "test") if test_paths else ("train",))]
    bins, why = _choose_bins(found, plain.compute.folds)
    guesses.append(why)
    search = [_round(share * found[0].header.n_spectra) for share in _PENALTIES]
    notes = []
    if test_paths:
        settings = {"data": data, "bins": bins, "noise": {"mode": "marginal"}, "ridge": {"alpha": {"search": search}}}
        notes = check_headers(found[0].header, found[1].header, load_config(settings))
    return "\n".join(_write(data, found, bins, search, [*guesses, *notes])) + "\n", [*guesses, *notes]


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())


def _split(train: list[str], test: list[str] | None) -> tuple[list[str], list[str], list[str]]:
    """Return training and test paths; without test spectra those of the last shard, if there are several."""
    if test is not None:
        return train, test, []
    shards = [str(path) for path in find_stores_of("train", train) or find_sources(train, Path.cwd())]
    if len(shards) < 2:
        return train, [], [f"no test spectra were named; write their path instead of {_NO_TEST}"]
    return (
        shards[:-1],
        shards[-1:],
        [f"no test spectra were named, so the last shard, {shards[-1]}, is kept for the test"],
    )


def _read(role: str, config: ExperimentConfig) -> _Found:
    header = read_header(role, config)
    names = [name for name in _STEPS if name in header.column_names]
    blocks = [columns for _, columns in header.iter_columns(names)]
    return _Found(header, {name: np.concatenate([block[name] for block in blocks]).astype(float) for name in names})


def _choose_bins(found: Sequence[_Found], n_folds: int | Literal["shards"]) -> tuple[dict[str, list[float]], str]:
    """Return bins that hold enough spectra of every set, and why these."""
    for bins, why in _list_bins(found[0]):
        counts = [found[0].count_left(bins, n_folds), *(one.count(bins) for one in found[1:])]
        enough = all(n.size and n.min() >= least for n, least in zip(counts, (_LEAST_TRAIN, _LEAST_TEST), strict=False))
        covered = found[0].count(bins).sum() / max(1, found[0].header.n_spectra)
        if enough and covered >= _LEAST_COVERED:
            return bins, why
    spans = ", ".join(
        f"{name} {values.min():g} to {values.max():g}" for name, values in found[0].columns.items() if values.size
    )
    raise InputError(
        f"no bins hold at least {_LEAST_TRAIN} training spectra outside every fold and {_LEAST_TEST} test spectra: "
        f"there are {' and '.join(f'{one.header.n_spectra:,}' for one in found)}, with {spans}; give more spectra"
    )


def _list_bins(train: _Found) -> Iterator[tuple[dict[str, list[float]], str]]:
    yield {name: list(edges) for name, edges in REFERENCE_EDGES.items()}, "bins are those of the reference experiment"
    why = "the reference bins hold too few of these spectra, so the bins cut T_eff and [M/H] into about equal parts"
    for shape in _SHAPES:
        cuts = {
            name: _cut(train.columns[name], n, _STEPS[name]) for name, n in zip(_STEPS, shape, strict=True) if n > 1
        }
        if cuts and all(
            len(edges) == n + 1 for edges, n in zip(cuts.values(), (n for n in shape if n > 1), strict=True)
        ):
            yield cuts, why


def _cut(values: NDArray[np.float64], parts: int, step: float) -> list[float]:
    """Return round edges of about equal parts that hold all values."""
    inner = np.quantile(values, np.arange(1, parts) / parts)
    ends = (np.floor(values.min() / step) * step, np.ceil(values.max() / step) * step)
    edges = [ends[0], *np.round(inner / step) * step, ends[1]]
    return sorted({round(float(edge), 6) for edge in edges})


def _round(value: float) -> float:
    """Return one significant digit of a penalty."""
    return float(f"{value:.0e}")


def _write(
    data: Mapping[str, object],
    found: Sequence[_Found],
    bins: Mapping[str, Sequence[float]],
    search: Sequence[float],
    notes: Sequence[str],
) -> Iterator[str]:
    yield f"# yaml-language-server: $schema={schema_file().as_uri()}"
    yield "# A first configuration, by `headroom init`, from the headers and labels of the spectra; no pixel was read."
    for one in found:
        yield f"# {one.header.role}: {one.describe()}"
    yield from (f"# Note: {note}" for note in notes)
    yield "# Next: `headroom inspect` checks every pixel, `headroom plan` says what a run costs, `headroom run` runs it"
    yield ""
    yield "data:"
    yield from _indent({"train": data["train"], "test": data["test"]})
    yield "  stores: stores              # shards are converted into this folder, once; relative to this file"
    yield "target: log_g                 # the label that is predicted"
    yield "bins:                         # one expert for each; half-open [a, b), the last edge closed"
    for name, edges in bins.items():
        unit = COLUMN_UNITS[name]
        yield f"  {name}: [{', '.join(f'{edge:g}' for edge in edges)}]   # {unit}"
    grid, counts = BinGrid.of(bins), [one.count(bins) for one in found]
    yield f"  # spectra in each bin, {' / '.join(one.header.role for one in found)}:"
    for k in range(grid.n_bins):
        yield f"  #   {grid.describe(k)}: {' / '.join(f'{n[k]:,}' for n in counts)}"
    outside = [one.header.n_spectra - int(n.sum()) for one, n in zip(found, counts, strict=True)]
    yield f"  #   outside: {' / '.join(f'{n:,}' for n in outside)}"
    yield "noise:"
    yield "  mode: marginal              # the exact expectation over all noise draws: few spectra suffice"
    yield "  levels: [1.0]               # in units of the 1σ error; 0 for observed spectra, which have their noise"
    yield "  test: stored                # the noise of the test file; it is drawn if the file has none"
    yield "ridge:"
    listed = ", ".join(f"{one:g}" for one in search)
    yield "  # The best α on held-out folds of the training set. The range fits this number of spectra and marginal"
    yield "  # noise; for drawn noise write {per_spectrum: 0.1}, the rule of the reference experiment."
    yield f"  alpha: {{search: [{listed}], by: per_expert}}"
    yield "seeds: [42]                   # of noise that is drawn; more seeds tell the scatter"
    yield "ceiling: {}                   # also measure the R² that no model can beat; leave it out to save time"
    yield "# gate: {}                    # also measure a gate, which must guess the bin"
    yield "# forecast: {}                # also say what runs on more spectra would give"
    if not expect_factored([MarginalNoise(1.0)], found[0].header.wavelength.size, ComputeConfig()):
        yield "#                             # with so few pixels it needs compute: {moments: factored}, too"
    yield "# compute: {folds: shards}    # each shard can then be added or removed by itself"


def _indent(content: Mapping[str, object]) -> Iterator[str]:
    return (f"  {line}" for line in yaml_text(dict(content)).splitlines())
