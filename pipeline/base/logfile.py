"""A log file in a run folder: what was begun and finished, what was noted, and how it ended, each line with its time.

The log never fails a run; what cannot be written is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.base.files import open_own
from pipeline.base.progress import Advance, Progress

__all__ = ["RUN_LOG", "LogFile", "LoggedProgress"]

RUN_LOG = "run.log"


class LogFile:
    """Appends lines to a text file. Earlier lines stay, so that the log tells of all attempts.

    Parameters
    ----------
    path
        The file. Its folder must exist, or nothing is written. A link is not followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, line: str) -> None:
        """Write one line, with the time (UTC) before it. Line breaks become spaces."""
        text = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {' '.join(line.splitlines())}\n"
        with suppress(Exception), open(self.path, "ab", opener=open_own) as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))


class LoggedProgress:
    """Tells a log file what it tells another progress: the beginning and the end of steps, and notes."""

    def __init__(self, shown: Progress, log: LogFile) -> None:
        self._shown, self._log = shown, log

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Open the step, and log how long it takes."""
        self._log.say(f"{title}: {total:,} {unit}")
        started = time.monotonic()
        with self._shown.step(title, total, unit) as advance:
            yield advance
        self._log.say(f"{title}: done in {time.monotonic() - started:.1f} s")

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Tell how many parts of the step are done; they are not logged."""
        self._shown.count_parts(done, total, unit)

    def note(self, message: str) -> None:
        """Say one line, and log it."""
        self._log.say(message)
        self._shown.note(message)
