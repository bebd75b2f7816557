"""One writer for a folder at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["exclusive"]


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
    with open(lock, "w", encoding="utf-8") as stream:
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is writing {what} {folder}; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(lock)
