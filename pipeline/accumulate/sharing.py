"""One reading of a store for two loops that need the same rows in the same order.

The dense loop and the factored one divide their rows differently. So one of them reads, and what it has read is kept
for the other, in a ring of few blocks. Whichever is ahead waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate.hotloop import SpectraReader, StoppedError, raise_cause
from pipeline.base import one_blas_thread

__all__ = ["SharedReading", "read_together", "sharing_memory"]

Pixels = NDArray[np.float32]
#: Blocks that are kept. Two suffice; with three the loops wait less for each other.
_SLOTS = 3
_VARIABLES = ("flux", "error")


def sharing_memory(n_pixels: int, chunk_rows: int) -> int:
    """Return the bytes of the blocks that are kept."""
    return _SLOTS * len(_VARIABLES) * chunk_rows * n_pixels * 4


def read_together(
    reader: SpectraReader, lead: Callable[[SpectraReader], None], follow: Callable[[SpectraReader], None]
) -> None:
    """Run two loops over the same rows, each in a thread of its own. Only the first one reads the store.

    Raises
    ------
    Exception
        The first error of either loop. Both have then ended.
    """
    shared = SharedReading(reader)

    def run(loop: Callable[[SpectraReader], None], own: SpectraReader) -> None:
        try:
            loop(own)
        except BaseException:
            shared.stop()
            raise

    # The loops limit BLAS to one thread, too. The outer limit holds until both have ended.
    with one_blas_thread(), ThreadPoolExecutor(2, "together") as threads:
        jobs = [threads.submit(run, lead, shared.leader), threads.submit(run, follow, shared.follower)]
        failures = [job.exception() for job in jobs]
    raise_cause(failures)


@dataclass(eq=False)
class _Slot:
    """A block that was read: its rows, its pixels by variable, and how many rows of each are still wanted."""

    start: int
    stop: int
    pixels: dict[str, Pixels]
    wanted: dict[str, int] = field(default_factory=dict)


class SharedReading:
    """A store for two loops, each in threads of its own: ``leader`` reads, and ``follower`` gets the same rows.

    Parameters
    ----------
    reader
        The store.
    """

    def __init__(self, reader: SpectraReader) -> None:
        shape = (reader.chunk_rows, reader.n_pixels)
        self._free = [{name: np.empty(shape, np.float32) for name in _VARIABLES} for _ in range(_SLOTS)]
        self._slots: deque[_Slot] = deque()
        self._changed = Condition()
        self._has_stopped = False
        self.leader: SpectraReader = _Leader(reader, self)
        self.follower: SpectraReader = _Follower(reader, self)

    def stop(self) -> None:
        """Let the other loop end, too, because one has failed."""
        with self._changed:
            self._has_stopped = True
            self._changed.notify_all()

    def put(self, variable: str, start: int, stop: int, pixels: Pixels) -> None:
        """Keep one variable of a block for the follower; wait for a place."""
        slot = self._take_slot(start, stop)
        np.copyto(slot.pixels[variable][: stop - start], pixels)
        with self._changed:
            slot.wanted[variable] = stop - start
            self._changed.notify_all()

    def get(self, variable: str, start: int, stop: int, out: Pixels) -> None:
        """Wait for some rows of a block, and write them to ``out``. Every row is got once."""
        slot = self._find_slot(variable, start, stop)
        np.copyto(out, slot.pixels[variable][start - slot.start : stop - slot.start])
        with self._changed:
            slot.wanted[variable] -= stop - start
            if all(slot.wanted.get(name) == 0 for name in _VARIABLES):
                self._slots.remove(slot)
                self._free.append(slot.pixels)
                self._changed.notify_all()

    def _take_slot(self, start: int, stop: int) -> _Slot:
        """Return the place of a block, which the first of its variables takes."""
        with self._changed:
            while True:
                for slot in self._slots:
                    if (slot.start, slot.stop) == (start, stop):
                        return slot
                if self._free:
                    self._slots.append(_Slot(start, stop, self._free.pop()))
                    return self._slots[-1]
                self._wait()

    def _find_slot(self, variable: str, start: int, stop: int) -> _Slot:
        with self._changed:
            while True:
                for slot in self._slots:
                    if slot.start <= start and stop <= slot.stop and variable in slot.wanted:
                        return slot
                self._wait()

    def _wait(self) -> None:
        if self._has_stopped:
            raise StoppedError("the loop that shares the reading has stopped")
        self._changed.wait()


@dataclass(frozen=True, eq=False)
class _Sharer:
    """What both sides have in common with the store."""

    reader: SpectraReader
    shared: SharedReading

    @property
    def n_pixels(self) -> int:
        return self.reader.n_pixels

    @property
    def chunk_rows(self) -> int:
        return self.reader.chunk_rows

    @property
    def starts(self) -> tuple[int, ...]:
        return self.reader.starts

    def iter_blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self.reader.iter_blocks(start, stop)


class _Leader(_Sharer):
    def read_rows(self, variable: str, start: int, stop: int, out: Pixels | None = None) -> Pixels:
        pixels = self.reader.read_rows(variable, start, stop, out)
        self.shared.put(variable, start, stop, pixels)
        return pixels


class _Follower(_Sharer):
    def read_rows(self, variable: str, start: int, stop: int, out: Pixels | None = None) -> Pixels:
        pixels = np.empty((stop - start, self.n_pixels), np.float32) if out is None else out
        self.shared.get(variable, start, stop, pixels)
        return pixels
