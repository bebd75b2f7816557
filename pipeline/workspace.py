"""Large arrays that one piece of work leaves to the next: the first touch of fresh memory is slow.

On a virtual machine, fresh pages may cost ten times what their use does, and a process that allocates and frees its
accumulators for every partition pays that again and again. One block of memory for each process, handed out anew for
each piece of work, pays once; pages that are never touched cost nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.files_direct import BLOCK, aligned_buffer

__all__ = ["Workspace", "format_bytes", "process_workspace", "release_workspace"]


class Workspace:
    """One block of memory that grows to the largest request; not for two pieces of work at once."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def lease(self, *requests: tuple[Sequence[int], DTypeLike]) -> list[NDArray[Any]]:
        """Return arrays of the given shapes and types, of any content; they are valid until the next call."""
        types = [np.dtype(dtype) for _, dtype in requests]
        sizes = [math.prod(shape) * dtype.itemsize for (shape, _), dtype in zip(requests, types, strict=True)]
        starts = np.cumsum([0, *(-(-size // BLOCK) * BLOCK for size in sizes)]).tolist()
        if self._block.size < starts[-1]:
            self.clear()
            self._block = aligned_buffer(starts[-1])
        return [
            self._block[start : start + size].view(dtype).reshape(shape)
            for start, size, dtype, (shape, _) in zip(starts, sizes, types, requests, strict=False)
        ]

    def clear(self) -> None:
        """Give the memory back."""
        self._block = np.empty(0, np.uint8)


_LOCK = threading.Lock()
_OF_THIS_PROCESS = Workspace()


@contextmanager
def process_workspace() -> Iterator[Workspace]:
    """Give the workspace of this process, to one thread at a time.

    A Dask worker may have many threads, but a plan's memory is that of one piece of work at a time; the others wait
    here.
    """
    with _LOCK:
        yield _OF_THIS_PROCESS


def release_workspace() -> None:
    """Give the memory of this process' workspace back, unless somebody uses it: nobody waits for a task given up."""
    if _LOCK.acquire(blocking=False):
        try:
            _OF_THIS_PROCESS.clear()
        finally:
            _LOCK.release()


def format_bytes(count: float) -> str:
    """Return a size for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
