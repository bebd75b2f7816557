"""Where a run and its workers meet: a folder inside the run folder that only its owner may enter.

It holds the keys of the run's certificates, and is gone with the run. What a killed run left behind, keys and jobs, is
removed by the next one.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster.certificates import VALIDITY
from pipeline.files import disk_errors_told

__all__ = ["SharedFolder", "abandoned_tokens", "shared_folder"]

_PREFIX = ".tls-"
_LOCK = "lock"


@dataclass(frozen=True)
class SharedFolder:
    """A folder of one run's cluster.

    Attributes
    ----------
    path
        Absolute, mode 0700.
    token
        The part of its name that no other run's has.
    """

    path: Path
    token: str


@contextmanager
def shared_folder(run_folder: Path) -> Iterator[SharedFolder]:
    """Make a folder of mode 0700 inside the run folder, and remove it at the end.

    The run folder is made where it is missing, and removed again where nothing else came to lie in it.

    Raises
    ------
    ResourceError
        If it cannot be written.
    """
    home = run_folder.absolute()
    made = not home.exists()
    token = secrets.token_hex(4)
    folder = SharedFolder(home / f"{_PREFIX}{token}", token)
    try:
        with disk_errors_told(folder.path):
            home.mkdir(parents=True, exist_ok=True)
            folder.path.mkdir(mode=0o700)
            stream = (folder.path / _LOCK).open("w", encoding="ascii")
        with stream:
            _try_lock(stream)
            yield folder
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        if made:
            with suppress(OSError):
                home.rmdir()  # fails, as it should, if there is anything in it


def abandoned_tokens(run_folder: Path) -> Iterator[str]:
    """Yield the tokens of runs that were killed, and remove the folder of each once the caller is done with it."""
    for path in sorted(run_folder.glob(f"{_PREFIX}*")):
        if path.is_dir() and _is_abandoned(path):
            yield path.name.removeprefix(_PREFIX)
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether the run that made a folder is dead: its lock went with it, on whichever machine it was."""
    try:
        with (path / _LOCK).open("r+", encoding="ascii") as stream:
            locked = _try_lock(stream)
    except OSError:
        locked = None
    if locked is not None:
        return locked
    # No locks here, or none yet: a folder is surely of no use once its certificates are not.
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > VALIDITY.total_seconds()
    return False


def _try_lock(stream: IO[str]) -> bool | None:
    """Return whether the file was locked for this process; None where the file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
