"""Progress of long steps: a bar with rate and time left on a terminal, sparse log lines elsewhere.

Steps take a :class:`Progress` and know nothing of terminals; the command line chooses which one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO, runtime_checkable

__all__ = [
    "BarProgress",
    "LogProgress",
    "NumberedProgress",
    "Progress",
    "SilentProgress",
    "SubjectProgress",
    "choose_progress",
    "format_rate",
    "wants_colour",
]

Advance = Callable[[int], None]


class Progress(Protocol):
    """What a long step needs of its audience."""

    def step(self, title: str, total: int, unit: str = "spectra") -> AbstractContextManager[Advance]:
        """Open a step of ``total`` units; the context's value adds finished units."""

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Say how many parts of the step are done, where it has parts that stay done whatever happens."""

    def note(self, message: str) -> None:
        """Say one line between or within steps."""


@runtime_checkable
class StepKeeper(Protocol):
    """A progress that also keeps which step of a run is under way while no part of it is counted."""

    def enter(self, title: str) -> None:
        """Take note of the step."""


def format_rate(done: float, seconds: float, unit: str) -> str:
    """Return how fast things are done, such as ``1,943 spectra/s``, ``2.5 models/s`` or ``4.2 s each``.

    Nothing where one thing or none is done: the time says the same.
    """
    if done <= 1 or seconds <= 0:
        return ""
    rate = done / seconds
    if rate < 1:
        return f"{1 / rate:,.1f} s each"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


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
        self.note(f"{title}: {total:,} {unit}" if total > 1 else title)

        def advance(count: int) -> None:
            nonlocal finished, last
            finished += count
            now = time.monotonic()
            if now - last >= self._interval and finished < total:
                told = [f"{finished:,} of {total:,} {unit}", format_rate(finished, now - started, unit)]
                if finished > 0:
                    told.append(f"{(total - finished) * (now - started) / finished:,.0f} s left")
                self.note(f"{title}: {', '.join(filter(None, told))}")
                last = now

        yield advance
        seconds = time.monotonic() - started
        told = [f"done in {seconds:.1f} s", format_rate(finished, seconds, unit)]
        self.note(f"{title}: {', '.join(filter(None, told))}")

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
            TextColumn(f"{unit}  {{task.fields[rate]}}"),
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
                bar.update(task, advance=count, rate=format_rate(finished, seconds, unit))

            yield advance

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Draw no parts: the step's units say it."""

    def note(self, message: str) -> None:
        """Print one line above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


class NumberedProgress:
    """Tells another progress which of a run's steps is under way: ``3 of 6, solve``.

    A note is passed on once: the runs of a sweep share stores, and say the same of them.

    Parameters
    ----------
    shown
        Is told.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._names: Sequence[str] = ()
        self._name = ""
        self._noted: set[str] = set()

    def expect(self, names: Sequence[str]) -> None:
        """Say which steps there will be, in their order."""
        self._names = names

    def enter(self, name: str) -> None:
        """Begin a step, and tell whoever keeps the journal. One that was not expected has no number."""
        self._name = name
        if name in self._names and isinstance(self._shown, StepKeeper):
            self._shown.enter(self._numbered())

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Open a part of the present step, and say which step it is."""
        if self._name in self._names:
            names_it = title.partition(" ")[0] == self._name  # such as ``convert train``
            title = self._numbered() + (title.removeprefix(self._name) if names_it else f": {title}")
        with self._shown.step(title, total, unit) as advance:
            yield advance

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Pass it on."""
        self._shown.count_parts(done, total, unit)

    def _numbered(self) -> str:
        return f"{self._names.index(self._name) + 1} of {len(self._names)}, {self._name}"

    def note(self, message: str) -> None:
        """Pass it on, if it is new."""
        if message not in self._noted:
            self._noted.add(message)
            self._shown.note(message)


class SubjectProgress:
    """Tells another progress its steps with what they are about: ``convert train``.

    Parameters
    ----------
    shown
        Is told.
    subject
        Follows the title of every step.
    """

    def __init__(self, shown: Progress, subject: str) -> None:
        self._shown, self._subject = shown, subject

    @contextmanager
    def step(self, title: str, total: int, unit: str = "spectra") -> Iterator[Advance]:
        """Open the step."""
        with self._shown.step(f"{title} {self._subject}", total, unit) as advance:
            yield advance

    def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
        """Pass it on."""
        self._shown.count_parts(done, total, unit)

    def note(self, message: str) -> None:
        """Pass it on."""
        self._shown.note(message)


def choose_progress(*, quiet: bool = False) -> Progress:
    """Return a bar on a terminal or in a notebook, log lines otherwise, nothing when ``quiet``."""
    if quiet:
        return SilentProgress()
    in_notebook = "ipykernel.zmqshell" in sys.modules
    return BarProgress() if sys.stderr.isatty() or in_notebook else LogProgress()


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether to write colours to a stream (standard output by default): a terminal, and ``NO_COLOR`` is not set."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
