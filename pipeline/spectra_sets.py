"""The train and test spectra of an experiment: found, converted if needed, and checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import schema
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import DataConfig, content_hash
from pipeline.convert import convert_shards
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.shards import ShardInfo, find_shards, read_shard_info
from pipeline.store import SpectraStore, is_store

__all__ = ["SourceSizes", "SpectraSets", "measure_sources", "open_spectra_sets", "require_scorable"]


@dataclass(frozen=True)
class SpectraSets:
    """The stores of an experiment."""

    train: SpectraStore
    test: SpectraStore


@dataclass(frozen=True)
class SourceSizes:
    """What the sources of an experiment hold, known before anything is converted."""

    train_lengths: tuple[int, ...]
    n_pixels: int
    unconverted_bytes: int


def measure_sources(data: DataConfig) -> SourceSizes:
    """Read the sizes of train and test from stores, or from the headers of shards; converts nothing.

    Raises
    ------
    InputError
        If a source is missing or broken, or shards, train and test disagree on the number of pixels.
    """
    lengths: dict[str, tuple[int, ...]] = {}
    pixels: dict[str, int] = {}
    unconverted = 0
    for role, sources in (("train", data.train), ("test", data.test)):
        found = _find_sources(role, sources)
        if isinstance(found, Path):
            store = SpectraStore.open(found)
            lengths[role], pixels[role] = store.shard_lengths, store.n_pixels
            continue
        infos = [read_shard_info(shard) for shard in found]
        lengths[role], pixels[role] = tuple(info.n_spectra for info in infos), infos[0].n_pixels
        if not is_store(_store_path(role, infos, data)):
            arrays = 3 if any(info.has_noisy for info in infos) else 2
            unconverted += sum(lengths[role]) * pixels[role] * arrays * 4
    if pixels["train"] != pixels["test"]:
        raise InputError(
            f"train has {pixels['train']} pixels and test {pixels['test']}; the models need one wavelength grid, "
            "so give spectra of one arm and resolution"
        )
    return SourceSizes(lengths["train"], pixels["train"], unconverted)


def open_spectra_sets(data: DataConfig, progress: Progress, workers: int | None = None) -> SpectraSets:
    """Open the train and test stores, converting shards that have no store yet.

    Raises
    ------
    InputError
        If wavelengths differ, or test spectra also occur in train.
    """
    train = _open_or_convert("train", data.train, data, progress, workers)
    test = _open_or_convert("test", data.test, data, progress, workers)
    _require_same_wavelengths(train, test)
    if not data.allow_overlap:
        _require_disjoint(train, test)
    return SpectraSets(train, test)


def _find_sources(role: str, sources: Sequence[str]) -> Path | tuple[Path, ...]:
    """Return the one store, or the shards, that a configuration names."""
    if len(sources) == 1 and is_store(sources[0]):
        return Path(sources[0])
    for source in sources:
        if is_store(source):
            raise InputError(
                f"data.{role}: {source} is a store; give one store alone, or shards alone to be converted together"
            )
    return find_shards(sources, Path.cwd())


def _store_path(role: str, infos: Sequence[ShardInfo], data: DataConfig) -> Path:
    # The name follows the contents: other shards get another store, and experiments on the same shards share one.
    key = content_hash([[info.fingerprint for info in infos], data.nonfinite])
    return Path(data.stores) / f"{role}-{key}.zarr"


def _open_or_convert(
    role: str, sources: Sequence[str], data: DataConfig, progress: Progress, workers: int | None
) -> SpectraStore:
    found = _find_sources(role, sources)
    if isinstance(found, Path):
        return SpectraStore.open(found)
    path = _store_path(role, [read_shard_info(shard) for shard in found], data)
    return convert_shards(found, path, workers=workers, nonfinite=data.nonfinite, progress=progress)


def _require_same_wavelengths(train: SpectraStore, test: SpectraStore) -> None:
    if train.n_pixels != test.n_pixels:
        raise InputError(
            f"train has {train.n_pixels} pixels ({train.path.name}) and test {test.n_pixels} ({test.path.name}); "
            "the models need one wavelength grid, so give spectra of one arm and resolution"
        )
    if not np.array_equal(train.wavelength, test.wavelength):
        difference = np.abs(train.wavelength - test.wavelength)
        pixel = int(np.argmax(difference > 0))
        raise InputError(
            f"wavelengths of train and test differ from pixel {pixel} on ({train.wavelength[pixel]:.4f} and "
            f"{test.wavelength[pixel]:.4f} Å, at most {difference.max():.3g} Å); give spectra on one wavelength grid"
        )


def _require_disjoint(train: SpectraStore, test: SpectraStore) -> None:
    """Refuse test spectra that the models were trained on: the same id and the same labels."""
    identity = ["id", *schema.LABELS]
    if any("id" not in store.columns for store in (train, test)):
        return
    of_train = pd.DataFrame({name: train.columns[name] for name in identity}).assign(train_row=lambda t: t.index)
    of_test = pd.DataFrame({name: test.columns[name] for name in identity}).assign(test_row=lambda t: t.index)
    # Merging on the id alone is cheap where ids are unique, and never compares floats by a hash.
    shared = of_test.merge(of_train.drop_duplicates(identity), on=identity, how="inner")
    if len(shared):
        first = shared.iloc[0]
        raise InputError(
            f"{len(shared):,} of {test.n_spectra:,} test spectra also occur in train (same id and labels; for example "
            f"id {first['id']:g}: row {int(first['test_row'])} of {test.path.name}, row {int(first['train_row'])} of "
            f"{train.path.name}), so scores would be too good; leave them out, or set data.allow_overlap: true"
        )


def require_scorable(sets: SpectraSets, grid: BinGrid) -> list[str]:
    """Check that bins have spectra; return warnings about bins without test spectra.

    Raises
    ------
    InputError
        If no spectrum of train, or of test, lies in any bin.
    """
    warnings = []
    for role, store in (("train", sets.train), ("test", sets.test)):
        bins = grid.assign(store.columns)
        if not (bins != OUTSIDE).any():
            found = ", ".join(
                f"{column} {np.nanmin(store.columns[column]):g} … {np.nanmax(store.columns[column]):g}"
                for column in grid.columns
            )
            raise InputError(
                f"no {role} spectrum lies in any bin: the spectra of {store.path.name} span {found}; "
                "move the edges of `bins` there"
            )
        counts = np.bincount(bins[bins != OUTSIDE], minlength=grid.n_bins)
        few = [grid.describe(int(k)) for k in np.flatnonzero(counts < 2)]
        if few and role == "test":
            warnings.append(f"no R² for bins with fewer than 2 test spectra: {', '.join(few)}")
    return warnings
