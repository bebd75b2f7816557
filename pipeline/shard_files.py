"""Which HDF5 files a user means: files, folders, globs and ``shard_index.txt``, in the order stated.

No file is opened here; only names and folders are looked at.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.schema import SHARD_FILE_NAME, SHARD_INDEX_NAME

__all__ = ["HDF5_SUFFIXES", "find_shards", "natural_key"]

HDF5_SUFFIXES = (".h5", ".hdf5")


def find_shards(patterns: Sequence[str | Path], base: Path) -> tuple[Path, ...]:
    """Return the shard files that the patterns name, in the order stated.

    A pattern is a file, a folder, a glob, or an index file that lists shard folders one per line (``#``
    starts a comment). Of a folder, the first of these that it holds counts: ``shard_index.txt``,
    ``dataset.h5``, sub-folders with a ``dataset.h5``, other ``*.h5`` files. Patterns keep their order; what
    one folder or glob holds is sorted naturally (``train_2`` before ``train_10``). Entries of an index are
    relative to the index's own folder.

    Parameters
    ----------
    patterns
        At least one; relative ones start at ``base``.
    base
        Folder of relative patterns, e.g. that of the configuration file.

    Raises
    ------
    InputError
        If a pattern names nothing or one file is named twice; the message names the pattern.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    if not patterns:
        raise InputError("at least one shard is required, found none; name files, folders or globs of HDF5 shards")
    found: list[Path] = []
    named_by: dict[str, str] = {}
    for pattern in patterns:
        for shard in _expand(str(pattern), Path(base)):
            identity = str(shard.resolve())
            if identity in named_by:
                raise InputError(
                    f"shard {shard} is named twice, by {named_by[identity]!r} and by {str(pattern)!r}; every "
                    "spectrum may count once only, so remove one of the two"
                )
            named_by[identity] = str(pattern)
            found.append(shard)
    return tuple(found)


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sort key under which numbers inside names compare as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def _expand(pattern: str, base: Path) -> list[Path]:
    path = base / pattern
    if path.is_dir():
        return _expand_folder(path, pattern)
    if path.is_file():
        return _read_index(path) if path.suffix == ".txt" else [path]
    if glob.has_magic(pattern):
        matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)
        shards = [shard for match in matches for shard in _expand_match(Path(match), pattern)]
        if shards:
            return shards
    raise InputError(
        f"no shard matches {pattern!r} (looked in {path.parent}); name HDF5 files, folders that hold a "
        f"{SHARD_FILE_NAME}, globs, or a {SHARD_INDEX_NAME}"
    )


def _expand_match(match: Path, pattern: str) -> list[Path]:
    return _expand_folder(match, pattern) if match.is_dir() else [match]


def _expand_folder(folder: Path, pattern: str) -> list[Path]:
    if (folder / SHARD_INDEX_NAME).is_file():
        return _read_index(folder / SHARD_INDEX_NAME)
    if (folder / SHARD_FILE_NAME).is_file():
        return [folder / SHARD_FILE_NAME]
    shards = _sorted(entry / SHARD_FILE_NAME for entry in folder.iterdir() if (entry / SHARD_FILE_NAME).is_file())
    shards = shards or _sorted(entry for entry in folder.iterdir() if entry.suffix in HDF5_SUFFIXES)
    if not shards:
        raise InputError(
            f"folder {folder} (named by {pattern!r}) holds no shard: a {SHARD_FILE_NAME}, folders with one, *.h5 "
            f"files or a {SHARD_INDEX_NAME} is required; name the folder of the shards"
        )
    return shards


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=natural_key)


def _read_index(index: Path) -> list[Path]:
    shards: list[Path] = []
    try:
        lines = index.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{index} must be UTF-8 text with one shard folder per line, found byte "
            f"{error.object[error.start]:#04x} at position {error.start}; name an HDF5 file, or write it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{index} cannot be read ({error.strerror}); correct its permissions") from error
    for number, line in enumerate(lines, start=1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        shard = index.parent / entry
        if shard.is_dir():
            shard = shard / SHARD_FILE_NAME
        if not shard.is_file():
            raise InputError(
                f"{index}, line {number}: {entry!r} must be a folder with a {SHARD_FILE_NAME} or an HDF5 file, but "
                f"{shard} does not exist; correct the line or remove it"
            )
        shards.append(shard)
    if not shards:
        raise InputError(f"{index} lists no shard; write one shard folder per line")
    return shards
