"""The work folder of a conversion: held by one process at a time, resumed, cleaned of leftovers, removed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from pipeline.convert_ranges import read_json, write_json
from pipeline.errors import InputError

__all__ = ["claim_work", "is_work_of", "lock_work", "remove_work"]

_LOCK: Final = "lock"
_PLAN: Final = "plan.json"
#: How often a lock is tried again whose owner removed the folder just then.
_ATTEMPTS: Final = 100


@contextmanager
def lock_work(work: Path) -> Iterator[None]:
    """Hold a work folder, made where there is none; nothing in it may be changed without this.

    Raises
    ------
    InputError
        If another process holds it.
    """
    with _open_lock(work) as lock:
        try:
            yield
        finally:
            # nothing was begun here, or all of it is gone: leave no empty folder behind
            if _is_same_file(lock, work / _LOCK) and [entry.name for entry in work.iterdir()] == [_LOCK]:
                remove_work(work)


def claim_work(work: Path, description: dict[str, Any], overwrite: bool) -> None:
    """Make a locked work folder that of the described conversion, resuming what an earlier run of the same one left.

    Raises
    ------
    InputError
        If it holds another conversion (which ``overwrite`` discards), or something else.
    """
    _require_same_plan(work, description, overwrite)
    _remove_temporaries(work)
    write_json(work / _PLAN, description)


def is_work_of(work: Path, key: str) -> bool:
    """Tell whether a work folder belongs to the conversion of this key."""
    return (read_json(work / _PLAN) or {}).get("key") == key


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


def _open_lock(work: Path) -> IO[str]:
    for _ in range(_ATTEMPTS):
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(work / _LOCK, "a")  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError:
            continue  # its last owner has just removed the folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InputError(f"another conversion is writing {work}; wait for it or name another target") from error
        except OSError:
            return lock  # a file system without locks: the user has to know
        if _is_same_file(lock, work / _LOCK):
            return lock
        lock.close()  # this was the lock of a folder that is gone
    raise InputError(f"{work} cannot be locked, because others keep removing it; run again when they have finished")


def _is_same_file(opened: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except OSError:
        return False


def _require_same_plan(work: Path, description: dict[str, Any], overwrite: bool) -> None:
    left = [entry for entry in work.iterdir() if entry.name != _LOCK]
    if not left:
        return
    found = read_json(work / _PLAN)
    if found is None:
        if all(entry.name.startswith(_PLAN) for entry in left):
            return  # killed before the plan was written
        raise InputError(f"{work} exists and is not the work folder of a conversion; remove it or name another target")
    if found.get("key") == description["key"]:
        return
    if not overwrite:
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
