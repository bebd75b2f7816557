"""Files and folders that are written whole or not at all; values as JSON text that every reader takes."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import InputError, ResourceError

__all__ = [
    "TEMPORARY_SUFFIX",
    "disk_errors_told",
    "find_json",
    "json_text",
    "read_json",
    "remove_leftovers",
    "replacing",
    "replacing_folder",
    "write_json",
]

#: Files and folders of this ending are halves that a killed run left; whoever owns their folder may delete them.
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` for a file that replaces it when the block succeeds.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; the message names the path, and nothing is left behind.
    """
    with disk_errors_told(path), _replaced(path) as temporary:
        yield temporary


@contextmanager
def replacing_folder(path: Path, is_good: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a new folder beside ``path`` that takes its place when the block succeeds.

    Parameters
    ----------
    path
        The folder to be made.
    is_good
        Whether a folder that is there already may stay. Several processes may make the same folder at once; the first
        one wins, and what it made is as good as what the others would put there.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; the message names the path, and nothing is left behind.
    """
    temporary = _temporary_name(path)
    with disk_errors_told(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists() and not is_good(path):
                discarded = _temporary_name(path)
                os.replace(path, discarded)
                shutil.rmtree(discarded, ignore_errors=True)
            try:
                os.replace(temporary, path)
            except OSError:
                # A folder never replaces one that holds files: another process was faster.
                if not (path.is_dir() and is_good(path)):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the halves that a killed run left in a folder; only its owner may call this."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


@contextmanager
def disk_errors_told(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing below ``path`` into a ResourceError that names it."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free space" if full else f"{error.strerror or error}; make it writable"
        raise ResourceError(f"cannot write {path}: {reason}, or choose another folder with --out") from error


# --- JSON: no NaN, no infinity, nothing that needs Python.

Built = TypeVar("Built")


def json_text(value: Any) -> str:
    """Return a value as JSON: dataclasses as objects, paths as text, NumPy scalars as numbers, NaN and ±∞ as null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def read_json(path: Path, build: Callable[[dict[str, Any]], Built]) -> Built:
    """Return what ``build`` makes of a JSON object that a run wrote into its folder.

    Raises
    ------
    InputError
        If the file cannot be read, or holds something else than ``build`` takes; says to delete it.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except InputError as error:
        reason = str(error)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{path} is damaged ({reason}); delete the file, and run again with the same --out")


def find_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is none: no such file, or none that can be read as an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write plain values as a JSON file at once: readers see the old file or the new one, never a part.

    Raises
    ------
    OSError
        If the disk is full or not writable.
    """
    with _replaced(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar; the command line starts without NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
