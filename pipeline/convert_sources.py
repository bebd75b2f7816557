"""The shards of one conversion together: whether they agree, and the columns they make up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.shard_table import TAKEN_NAMES
from pipeline.shards import ShardInfo, read_shard_info
from pipeline.store_layout import StoreLayout, plan_layout
from pipeline.store_manifest import SourceRecord
from pipeline.store_rows import find_other_wavelengths

__all__ = [
    "ConversionSettings",
    "merge_columns",
    "read_sources",
    "record_source",
    "source_key",
    "store_column_name",
]


@dataclass(frozen=True)
class ConversionSettings:
    """What shapes a store besides its shards; sizes that are None follow from the data."""

    chunk_rows: int | None
    shard_rows: int | None
    nonfinite: str

    def plan_layout(self, n_spectra: int, n_pixels: int) -> StoreLayout:
        """Return the layout of a store of all the shards' spectra."""
        return plan_layout(n_spectra, n_pixels, self.chunk_rows, self.shard_rows)

    def describe(self, layout: StoreLayout) -> dict[str, Any]:
        """Return what the manifest records of them."""
        return {"chunk_rows": layout.chunk_rows, "shard_rows": layout.shard_rows, "nonfinite": self.nonfinite}


def read_sources(shards: Sequence[Path | str]) -> list[ShardInfo]:
    """Check every shard, and that all have the same wavelengths, columns and arrays but not the same spectra.

    Raises
    ------
    InputError
        Naming the two files and the first difference.
    """
    if not shards:
        raise InputError("at least one shard is required, found none; name the HDF5 shards to convert")
    infos = [read_shard_info(shard) for shard in shards]
    for info in infos[1:]:
        _require_agreement(infos[0], info)
    first_with: dict[str, Path] = {}
    for info in infos:
        other = first_with.setdefault(info.fingerprint, info.path)
        if other is not info.path:
            raise InputError(
                f"shards {other} and {info.path} must hold different spectra, but they are copies of each other; every "
                "spectrum may count once only, so remove one of the two"
            )
    return infos


def record_source(info: ShardInfo, dropped: Mapping[str, Iterable[int]]) -> SourceRecord:
    """Describe a shard for the manifest, by name and content and not by where it lies."""
    return SourceRecord(
        name=_name(info.path),
        size=info.size,
        n_spectra=info.n_spectra,
        fingerprint=info.fingerprint,
        dropped={kind: sorted(rows) for kind, rows in dropped.items() if rows},
        remarks=info.remarks,
        mtime_ns=info.mtime_ns,
    )


def merge_columns(infos: Sequence[ShardInfo], dropped: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Join the shards' columns for the rows that are kept.

    Returns
    -------
    dict
        The labels and every other numeric column that is not all NaN, each (N,); then ``shard`` (int32) and ``row``
        (int64, within its shard). Strings are left out; a name that the store uses itself gets ``params_`` before it.
    """
    keeps = []
    for info, rows in zip(infos, dropped, strict=True):
        keep = np.ones(info.n_spectra, bool)
        keep[list(rows)] = False
        keeps.append(keep)
    merged: dict[str, np.ndarray] = {}
    for name in infos[0].columns:
        parts = [info.columns[name][keep] for info, keep in zip(infos, keeps, strict=True)]
        values = np.concatenate(parts)
        if values.dtype.kind not in "fiub" or (values.dtype.kind == "f" and np.isnan(values).all()):
            continue
        merged[store_column_name(name)] = values
    merged["shard"] = np.repeat(np.arange(len(infos), dtype=np.int32), [int(keep.sum()) for keep in keeps])
    merged["row"] = np.concatenate([np.flatnonzero(keep) for keep in keeps]).astype(np.int64)
    return merged


def store_column_name(name: str) -> str:
    """Return what a store calls a shard's column: the store's own names are taken."""
    return f"params_{name}" if name in TAKEN_NAMES else name


def source_key(infos: Sequence[ShardInfo | SourceRecord], settings: Mapping[str, Any]) -> str:
    """Return a digest of sources and settings, which says which conversion this is.

    Sources enter by fingerprint and size, which a change of some rows in place may leave as they are: whether a
    file is still the one that was read, its :attr:`ShardInfo.stamp` tells.
    """
    content = [[info.fingerprint, info.n_spectra, info.size] for info in infos]
    return hashlib.sha256(repr((content, sorted(settings.items()))).encode()).hexdigest()


def _require_agreement(first: ShardInfo, other: ShardInfo) -> None:
    pair = f"shards {_name(first.path)} and {_name(other.path)}"
    remedy = "convert them into separate stores"
    if first.n_pixels != other.n_pixels:
        raise InputError(f"{pair} must have equal pixels, found {first.n_pixels} and {other.n_pixels}; {remedy}")
    apart = find_other_wavelengths(first.wavelength, other.wavelength)
    if apart.size:
        pixel = int(apart[0])
        raise InputError(
            f"{pair} must have equal wavelengths, found {first.wavelength[pixel]:.6f} and "
            f"{other.wavelength[pixel]:.6f} Å at pixel {pixel}, the first of {apart.size}; {remedy}"
        )
    if first.has_noisy != other.has_noisy:
        with_noisy = _name((first if first.has_noisy else other).path)
        raise InputError(f"{pair}: only {with_noisy} has a 'noisy' array, but all or none must; {remedy}")
    lonely = sorted(set(first.columns) ^ set(other.columns))
    if lonely:
        owner = _name((first if lonely[0] in first.columns else other).path)
        raise InputError(f"{pair} must have equal columns, but only {owner} has {lonely[0]!r}; {remedy}")
    for name, values in first.columns.items():
        if (values.dtype.kind in "fiub") != (other.columns[name].dtype.kind in "fiub"):
            raise InputError(
                f"{pair} must agree on column {name!r}, found {values.dtype} and {other.columns[name].dtype}; {remedy}"
            )


def _name(path: Path) -> str:
    return str(Path(*path.parts[-2:]))
