"""The lock: one process at a time writes a folder or a file, and a lock ends with its process, however that ends.

A lock is the system's own (``flock``) on a file. Whoever releases it may delete that file, and another process may have
opened it just before: it would then lock a file that nobody else can find. So a lock counts only if its file still has
its name once it is locked; otherwise the attempt begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from pipeline.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["exclusive", "hold_file", "is_same_file", "try_lock"]

#: How often a file is locked again that its last owner deleted just then.
_ATTEMPTS: Final = 100


@contextmanager
def exclusive(folder: Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    On a file system without locks nothing is held, and the user has to know. Locks of other names are other locks.

    Raises
    ------
    InputError
        If another process holds it.
    """
    lock = folder / name
    try:
        stream = hold_file(lock)
    except BlockingIOError:
        raise InputError(f"another process is writing {what} {folder}; wait for it, or choose another --out") from None
    with stream:
        try:
            yield
        finally:
            if is_same_file(stream, lock):
                with suppress(OSError):
                    lock.unlink()


def hold_file(path: Path, *, make_folder: bool = False) -> IO[bytes]:
    """Open a file for appending and lock it for this process; closing what is returned releases it.

    Parameters
    ----------
    path
        The file; created where it is missing, never emptied.
    make_folder
        Make the folder that it lies in, again if its last owner removes it meanwhile.

    Returns
    -------
    IO
        The open file, locked, and still the one of this name. On a file system without locks it is open and no more.

    Raises
    ------
    BlockingIOError
        If another process holds it, or others delete it again and again.
    OSError
        If it cannot be opened.
    """
    for _ in range(_ATTEMPTS):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = open(path, "ab")  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError:
            if not make_folder:
                raise
            continue  # its last owner has just removed the folder
        locked = try_lock(stream)
        if locked is None or (locked and is_same_file(stream, path)):
            return stream
        stream.close()
        if locked is False:
            break
    raise BlockingIOError(f"{path} is held by another process")


def try_lock(stream: IO[Any]) -> bool | None:
    """Return whether an open file was locked for this process; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_same_file(opened: IO[Any], path: Path) -> bool:
    """Tell whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except OSError:
        return False
