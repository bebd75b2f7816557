"""The shards of one conversion: whether they agree, and the columns they make up; and the folder of its work."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

import numpy as np

from pipeline.base import find_json, hold_file, is_same_file, write_json
from pipeline.convert.datasets import read_source_info
from pipeline.errors import ConfigError, InputError
from pipeline.shards import TAKEN_NAMES, ShardInfo
from pipeline.store import SourceRecord, StoreLayout, plan_layout, require_same_wavelengths

__all__ = [
    "ConversionSettings",
    "StoreShape",
    "claim_work",
    "is_work_of",
    "kept_if_refused",
    "lock_work",
    "merge_columns",
    "read_sources",
    "record_source",
    "remove_work",
    "source_key",
    "store_column_name",
]


class StoreShape(TypedDict, total=False):
    """What shapes a store besides its shards.

    Attributes
    ----------
    chunk_rows, shard_rows
        Spectra per chunk and per Zarr shard, see :func:`pipeline.store.layout.plan_layout`; by default they follow from
        the data.
    nonfinite
        ``"refuse"`` (the default) spectra with NaN, infinite or absurd pixels, negative errors, or pixels that are all
        the same as if they were never written, or ``"drop"`` them and list them in the manifest. An error (or noisy
        flux) that is NaN in the first or last pixel takes its neighbour's value either way.
    """

    chunk_rows: int | None
    shard_rows: int | None
    nonfinite: Literal["refuse", "drop"]


@dataclass(frozen=True)
class ConversionSettings:
    """A :class:`StoreShape` that was checked."""

    chunk_rows: int | None = None
    shard_rows: int | None = None
    nonfinite: str = "refuse"

    def __post_init__(self) -> None:
        if self.nonfinite not in ("refuse", "drop"):
            raise ConfigError(f"nonfinite must be 'refuse' or 'drop', found {self.nonfinite!r}")

    def plan_layout(self, n_spectra: int, n_pixels: int) -> StoreLayout:
        """Return the layout of a store of all the shards' spectra."""
        return plan_layout(n_spectra, n_pixels, self.chunk_rows, self.shard_rows)

    def describe(self, layout: StoreLayout) -> dict[str, Any]:
        """Return what the manifest records of them."""
        return {"chunk_rows": layout.chunk_rows, "shard_rows": layout.shard_rows, "nonfinite": self.nonfinite}


def read_sources(shards: Sequence[Path | str | ShardInfo], allow_external: bool = False) -> list[ShardInfo]:
    """Check every shard, and that all have the same wavelengths, columns and arrays but not the same spectra.

    With ``allow_external`` their arrays may lie in other files.

    Raises
    ------
    InputError
        Naming the two files and the first difference.
    """
    if not shards:
        raise InputError("at least one shard is required, found none; name the HDF5 shards to convert")
    infos = [
        shard if isinstance(shard, ShardInfo) else read_source_info(shard, allow_external=allow_external)
        for shard in shards
    ]
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
    require_same_wavelengths(
        f"shards {_name(first.path)}", first.wavelength, _name(other.path), other.wavelength, remedy
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


# --- The work folder: held by one process at a time, resumed, cleaned of leftovers, removed.

_LOCK: Final = "lock"
_PLAN: Final = "plan.json"


@contextmanager
def lock_work(work: Path) -> Iterator[None]:
    """Hold a work folder, made where there is none; nothing in it may be changed without this.

    Raises
    ------
    InputError
        If another process holds it.
    """
    try:
        lock = hold_file(work / _LOCK, make_folder=True)
    except BlockingIOError as error:
        raise InputError(f"another conversion is writing {work}; wait for it or name another target") from error
    with lock:
        try:
            yield
        finally:
            # nothing was begun here, or all of it is gone: leave no empty folder behind
            if is_same_file(lock, work / _LOCK) and [entry.name for entry in work.iterdir()] == [_LOCK]:
                remove_work(work)


def claim_work(work: Path, description: dict[str, Any], overwrite: bool) -> None:
    """Make a locked work folder that of the described conversion, resuming what an earlier run of the same one left.

    Raises
    ------
    InputError
        If it holds another conversion, or something else. ``overwrite`` discards another conversion; one that stopped
        at a shard that was refused is discarded anyway.
    """
    _require_same_plan(work, description, overwrite)
    _remove_temporaries(work)
    write_json(work / _PLAN, description)


@contextmanager
def kept_if_refused(work: Path, description: dict[str, Any]) -> Iterator[None]:
    """Where a shard is refused in this block, say in the error what is kept of a locked work folder.

    The same conversion then goes on from there, once the shard is mended; any other conversion replaces it. Where
    nothing was finished, the folder is removed.

    Raises
    ------
    InputError
        That of the block.
    """
    try:
        yield
    except InputError as error:
        if not any(any(work.glob(f"{done}/*.json")) for done in ("ranges", "scan")):
            remove_work(work)
            raise
        write_json(work / _PLAN, {**description, "refused": str(error)})
        raise type(error)(
            f"{error}; what was converted so far is kept in {work}: when the shard is mended, the same command goes on "
            "from there, and another conversion to this place replaces it"
        ) from error


def is_work_of(work: Path, key: str) -> bool:
    """Tell whether a work folder belongs to the conversion of this key."""
    return (find_json(work / _PLAN) or {}).get("key") == key


def remove_work(work: Path) -> None:
    """Remove a locked work folder: its plan late, so that a run killed here still knows the rest as its own, and the
    lock last, because from then on the folder may be another's."""
    for entry in work.iterdir():
        if entry.name not in (_PLAN, _LOCK):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name in (_PLAN, _LOCK):
        (work / name).unlink(missing_ok=True)
    with suppress(OSError):  # another conversion has just locked it
        work.rmdir()


def _require_same_plan(work: Path, description: dict[str, Any], overwrite: bool) -> None:
    left = [entry for entry in work.iterdir() if entry.name != _LOCK]
    if not left:
        return
    found = find_json(work / _PLAN)
    if found is None or "key" not in found:
        if all(entry.name.startswith(_PLAN) for entry in left):
            return  # killed before the plan was written
        raise InputError(f"{work} exists and is not the work folder of a conversion; name another target")
    if found.get("key") == description["key"]:
        return
    if not overwrite and "refused" not in found:
        raise InputError(
            f"{work} holds an unfinished conversion of other shards or settings: it has {found.get('shards')} with "
            f"{found.get('settings')}, now {description['shards']} with {description['settings']} are wanted; finish "
            "that one, or discard it: delete the folder, or use headroom convert with --overwrite"
        )
    for entry in left:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _remove_temporaries(work: Path) -> None:
    """Remove what killed runs were writing; the lock says that nobody writes now."""
    for pattern in ("*.tmp", "ranges/*.tmp", "scan/*.tmp", "store/*/c/*/.*.part", "store/**/*.partial"):
        for path in work.glob(pattern):
            path.unlink(missing_ok=True)
