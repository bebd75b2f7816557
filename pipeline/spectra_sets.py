"""The train and test spectra of an experiment: found, checked against each other, converted if needed.

Whatever can be wrong is looked for in headers and labels first, before hours of conversion or accumulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import schema
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import DataConfig, ExperimentConfig, content_hash
from pipeline.convert import convert_shards
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.shards import ShardInfo, find_shards, read_shard_info
from pipeline.store import SpectraStore, is_store
from pipeline.store_layout import plan_layout

__all__ = ["SetHeader", "SpectraSets", "check_headers", "open_spectra_sets", "read_headers"]


@dataclass(frozen=True, eq=False)
class SetHeader:
    """What is known of a set of spectra without its pixels, from a store or from the headers of shards.

    Attributes
    ----------
    role
        ``train`` or ``test``.
    name
        How messages call it.
    shard_lengths
        Spectra in each shard.
    wavelength
        Shape (P,), Å.
    columns
        Per-spectrum columns, each (N,).
    chunk_rows
        Spectra that the store decodes together, or will.
    unconverted_bytes
        Upper bound of the store that is still to be written; 0 if there is one.
    flagged_pixels
        Pixels that a mask flags; 0 before conversion.
    """

    role: str
    name: str
    shard_lengths: tuple[int, ...]
    wavelength: NDArray[np.float64]
    columns: Mapping[str, NDArray[Any]]
    chunk_rows: int
    unconverted_bytes: int = 0
    flagged_pixels: int = 0

    @property
    def n_spectra(self) -> int:
        """N."""
        return sum(self.shard_lengths)

    @classmethod
    def of_store(cls, role: str, store: SpectraStore) -> SetHeader:
        """Describe a store."""
        return cls(
            role,
            store.path.name,
            store.shard_lengths,
            store.wavelength,
            store.columns,
            store.chunk_rows,
            flagged_pixels=int(store.manifest.counts.get("flagged_pixels", 0)),
        )

    @classmethod
    def of_shards(cls, role: str, infos: Sequence[ShardInfo], store: Path) -> SetHeader:
        """Describe shards that are to become ``store``; whether they fit together is the conversion's to check."""
        lengths = tuple(info.n_spectra for info in infos)
        n_pixels = infos[0].n_pixels
        shared = [name for name in infos[0].columns if all(name in info.columns for info in infos)]
        arrays = 3 if any(info.has_noisy for info in infos) else 2
        return cls(
            role,
            infos[0].path.parent.name if len(infos) == 1 else f"{len(infos)} shards",
            lengths,
            infos[0].wavelength,
            {name: np.concatenate([info.columns[name] for info in infos]) for name in shared},
            plan_layout(max(sum(lengths), 1), n_pixels, None, None).chunk_rows,
            0 if is_store(store) else sum(lengths) * n_pixels * arrays * 4,
        )


@dataclass(frozen=True)
class SpectraSets:
    """The stores of an experiment."""

    train: SpectraStore
    test: SpectraStore

    @property
    def headers(self) -> tuple[SetHeader, SetHeader]:
        """Train and test without their pixels."""
        return SetHeader.of_store("train", self.train), SetHeader.of_store("test", self.test)


def read_headers(data: DataConfig) -> tuple[SetHeader, SetHeader]:
    """Describe train and test from stores, or from the headers of shards; converts nothing.

    Raises
    ------
    InputError
        If a source is missing or broken.
    """
    headers = []
    for role, sources in (("train", data.train), ("test", data.test)):
        found = _find_sources(role, sources)
        if isinstance(found, Path):
            headers.append(SetHeader.of_store(role, SpectraStore.open(found)))
        else:
            infos = [read_shard_info(shard) for shard in found]
            headers.append(SetHeader.of_shards(role, infos, _store_path(role, infos, data)))
    return headers[0], headers[1]


def check_headers(train: SetHeader, test: SetHeader, config: ExperimentConfig) -> list[str]:
    """Check that train and test fit each other and the configuration; return what a reader should know.

    Raises
    ------
    InputError
        If wavelengths differ, test spectra occur in train, a column of the bins is missing, or a bin has too few
        spectra.
    """
    _require_same_wavelengths(train, test)
    grid = BinGrid(config.bins, config.bin_names)
    warnings = _require_scorable(train, test, grid, config)
    if not config.data.allow_overlap:
        warnings += _require_disjoint(train, test)
    for header in (train, test):
        if header.flagged_pixels:
            warnings.append(
                f"{header.flagged_pixels:,} pixels of {header.name} are flagged by their mask and used all the same"
            )
    if config.precision == "float32" and 0 in config.noise.levels:
        warnings.append(
            "noise level 0 in float32: without noise the pixels are nearly collinear, and predictions may differ by "
            "about 1e-4 from float64; set precision: float64 to be exact"
        )
    return warnings


def open_spectra_sets(data: DataConfig, progress: Progress, workers: int | None = None) -> SpectraSets:
    """Open the train and test stores, converting shards that have no store yet."""
    return SpectraSets(
        _open_or_convert("train", data.train, data, progress, workers),
        _open_or_convert("test", data.test, data, progress, workers),
    )


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
    # Other shards get another store, and experiments on the same shards share one; the fingerprints only sample the
    # pixels, so conversion compares the rest where a shard's time stamp changed.
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


def _require_same_wavelengths(train: SetHeader, test: SetHeader) -> None:
    if train.wavelength.shape != test.wavelength.shape:
        raise InputError(
            f"train has {train.wavelength.size} pixels ({train.name}) and test {test.wavelength.size} ({test.name}); "
            "the models need one wavelength grid, so give spectra of one arm and resolution"
        )
    difference = np.abs(train.wavelength - test.wavelength)
    if difference.any():
        pixel = int(np.argmax(difference > 0))
        raise InputError(
            f"wavelengths of train and test differ from pixel {pixel} on ({train.wavelength[pixel]:.4f} and "
            f"{test.wavelength[pixel]:.4f} Å, at most {difference.max():.3g} Å); give spectra on one wavelength grid"
        )


def _require_disjoint(train: SetHeader, test: SetHeader) -> list[str]:
    """Refuse test spectra that the models are trained on: the same id and the same labels."""
    identity = ["id", *schema.LABELS]
    for header in (train, test):
        ids = header.columns.get("id")
        if ids is None or not np.issubdtype(ids.dtype, np.number) or not np.isfinite(ids).any():
            return [f"{header.name} has no usable ids, so whether test spectra also occur in train was not checked"]
    of_train = pd.DataFrame({name: train.columns[name] for name in identity}).drop_duplicates(identity)
    of_test = pd.DataFrame({name: test.columns[name] for name in identity})
    shared = of_test.reset_index(names="test_row").merge(of_train.reset_index(names="train_row"), on=identity)
    if len(shared):
        first = shared.iloc[0]
        raise InputError(
            f"{len(shared):,} of {test.n_spectra:,} test spectra also occur in train (same id and labels; for example "
            f"id {first['id']:g}: row {int(first['test_row'])} of {test.name}, row {int(first['train_row'])} of "
            f"{train.name}), so scores would be too good; leave them out, or set data.allow_overlap: true"
        )
    return []


def _require_scorable(train: SetHeader, test: SetHeader, grid: BinGrid, config: ExperimentConfig) -> list[str]:
    """Check that experts can be trained and headroom scored; warn of bins without enough test spectra."""
    counts = {}
    for header in (train, test):
        bins = grid.assign(header.columns)
        if not (bins != OUTSIDE).any():
            found = ", ".join(
                f"{column} {np.nanmin(header.columns[column]):g} … {np.nanmax(header.columns[column]):g}"
                for column in grid.columns
            )
            raise InputError(
                f"no {header.role} spectrum lies in any bin: the spectra of {header.name} span {found}; "
                "move the edges of `bins` there"
            )
        counts[header.role] = np.bincount(bins[bins != OUTSIDE], minlength=grid.n_bins)
        covered = np.asarray(header.columns[config.target])[bins != OUTSIDE]
    if covered.size < 2 or np.ptp(covered) == 0:
        raise InputError(
            f"R² needs at least two test spectra in bins with different {config.target}, found {covered.size} in "
            f"{test.name}; give a larger test set"
        )
    starved = np.flatnonzero(counts["train"] < config.ridge.min_spectra)
    if starved.size:
        first = int(starved[0])
        others = f", and {starved.size - 1} more bins likewise" if starved.size > 1 else ""
        raise InputError(
            f"{grid.describe(first)} has {counts['train'][first]} training spectra, at least "
            f"{config.ridge.min_spectra} are required for an expert (ridge.min_spectra){others}; widen the bin or "
            "add spectra"
        )
    few = [grid.describe(int(k)) for k in np.flatnonzero(counts["test"] < 2)]
    return [f"no R² for bins with fewer than 2 test spectra: {', '.join(few)}"] if few else []
