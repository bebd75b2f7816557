"""Progress of long steps: a bar with rate and time left on a terminal, sparse log lines elsewhere.

Steps take a :class:`Progress` and know nothing of terminals; the command line chooses which one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

__all__ = ["BarProgress", "LogProgress", "Progress", "SilentProgress", "choose_progress", "wants_colour"]

Advance = Callable[[int], None]


class Progress(Protocol):
    """What a long step needs of its audience."""

    def step(self, title: str, total: int, unit: str = "spectra") -> AbstractContextManager[Advance]:
        """Open a step of ``total`` units; the context's value adds finished units."""

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Say how many parts of the step are done, where it has parts that stay done whatever happens."""

    def note(self, message: str) -> None:
        """Say one line between or within steps."""


class SilentProgress:
    """Says nothing; the default of the Python API."""

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Ignore the step."""
        yield lambda _count: None

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Ignore the parts."""

    def note(self, message: str) -> None:
        """Ignore the line."""


class LogProgress:
    """One line at the start and end of a step and every ``interval`` seconds between, for log files."""

    def __init__(self, stream: TextIO | None = None, interval: float = 15.0) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Log the step's start, its advance and its end with the rate."""
        started = last = time.monotonic()
        finished = 0
        self.note(f"{title}: {total:,} {unit}")

        def advance(count: int) -> None:
            nonlocal finished, last
            finished += count
            now = time.monotonic()
            if now - last >= self._interval and finished < total:
                rate = finished / (now - started)
                left = (total - finished) / rate if rate > 0 else float("inf")
                self.note(f"{title}: {finished:,} of {total:,} {unit}, {rate:,.0f}/s, {left:,.0f} s left")
                last = now

        yield advance
        seconds = time.monotonic() - started
        rate_text = f", {finished / seconds:,.0f} {unit}/s" if finished and seconds > 0 else ""
        self.note(f"{title}: done in {seconds:.1f} s{rate_text}")

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Log no parts: the step's units say it."""

    def note(self, message: str) -> None:
        """Write one line."""
        print(message, file=self._stream, flush=True)


class BarProgress:
    """A bar per step with rate and time left, for terminals (drawn by rich)."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Draw the step's bar until the context ends."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        started = time.monotonic()
        with RichProgress(*columns, console=self._console) as bar:
            task = bar.add_task(title, total=total, rate="")
            finished = 0

            def advance(count: int) -> None:
                nonlocal finished
                finished += count
                seconds = max(time.monotonic() - started, 1e-9)
                bar.update(task, advance=count, rate=f"{finished / seconds:,.0f}/s")

            yield advance

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Draw no parts: the step's units say it."""

    def note(self, message: str) -> None:
        """Print one line above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


def choose_progress(*, quiet: bool = False) -> Progress:
    """Return a bar on a terminal or in a notebook, log lines otherwise, nothing when ``quiet``."""
    if quiet:
        return SilentProgress()
    in_notebook = "ipykernel.zmqshell" in sys.modules
    return BarProgress() if sys.stderr.isatty() or in_notebook else LogProgress()


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether to write colours to a stream (standard output by default): a terminal, and ``NO_COLOR`` is not set."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
